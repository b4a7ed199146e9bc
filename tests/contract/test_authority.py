"""The contract of an authority, over every store."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest

import coordjournal as cj
from coordjournal.authority import Authority
from coordjournal.authority.embedded import EmbeddedAuthority
from coordjournal.authority.spool import Spool
from coordjournal.cache import SpaceCache
from coordjournal.entry import Append
from coordjournal.replica import Replica
from coordjournal.store import Store
from coordjournal.store.git import GitStore
from coordjournal.store.memory import MemoryStore
from coordjournal.testing.plugin import EtcdAtHand
from tests.integration.etcd_parts import Party, stalled
from tests.support import alias


class Parts(NamedTuple):
    """A store, its authority, and what keeps it from deciding anything meanwhile."""

    store: Store
    authority: Authority
    hold: Callable[[], AbstractContextManager[object]]


def embedded(store: Store, spool: Callable[[str], Spool | None]) -> Authority:
    replicas: dict[str, Replica] = {}

    def replica(space: str) -> Replica:
        return replicas.setdefault(space, Replica(space, store, SpaceCache(None)))

    return EmbeddedAuthority(store, replica, spool)


def in_memory(path: Path, request: pytest.FixtureRequest) -> Parts:
    store = MemoryStore()
    return Parts(store, embedded(store, lambda space: None), lambda: store.exclusive("s"))


def in_git(path: Path, request: pytest.FixtureRequest) -> Parts:
    store = GitStore(path / "wiki.git", node="test", clock=lambda: datetime.now(UTC), random=os.urandom)
    store.claim("embedded")
    authority = embedded(store, lambda space: Spool(path / "wiki.git" / "coordjournal" / "spool" / space))
    return Parts(store, authority, lambda: store.exclusive("s"))


def under_etcd(path: Path, request: pytest.FixtureRequest) -> Parts:
    """Return one node of a journal in git."""
    etcd: EtcdAtHand = request.getfixturevalue("coordjournal_etcd")
    prefix: str = request.getfixturevalue("coordjournal_prefix")
    party = Party(etcd.endpoints, path / "wiki.git", prefix, threads=True)
    party.node.identify()
    return Parts(party.store, party.authority, lambda: stalled(party.edge))


@pytest.fixture(params=[in_memory, in_git, under_etcd])
def parts(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Parts]:
    made: Parts = request.param(tmp_path, request)
    yield made
    made.authority.close(20)
    made.store.close()


def asked(number: int, key: str = "") -> Append:
    return Append((alias(number),), key or f"key-{number}", "alice@example.org", "2026-01-31T12:00:00.000000Z")


def test_appends_of_one_thread_are_decided_in_its_order(parts: Parts) -> None:
    authority = parts.authority
    futures = [authority.submit("s", asked(number)) for number in range(300)]
    assert [future.result(30).seq for future in futures] == list(range(1, 301))


def test_the_head_holds_what_anyone_was_told_is_appended(parts: Parts) -> None:
    authority = parts.authority
    assert authority.head("s") == cj.Head()
    receipt = authority.submit("s", asked(1)).result(30)
    assert authority.head("s") == cj.Head(receipt.seq, receipt.commit, receipt.term)


def test_an_append_that_was_cancelled_in_time_is_not_applied(parts: Parts) -> None:
    store, authority, hold = parts
    with hold():  # nothing is decided meanwhile
        futures = [authority.submit("s", asked(number)) for number in range(5)]
        cancelled = [number for number, future in enumerate(futures[1:4], 1) if future.cancel()]
    done = [number for number in range(5) if number not in cancelled]
    assert [futures[number].result(30).seq for number in done] == list(range(1, len(done) + 1))
    keys = [appended.key for appended in store.read("s", authority.head("s"))]
    assert keys == [f"key-{number}" for number in done]


def test_waiting_ends_when_the_head_moves(parts: Parts) -> None:
    authority = parts.authority
    seen: list[cj.Head] = []

    def wait() -> None:
        for _ in range(10):  # it may return early, but not again and again
            authority.wait("s", cj.Head(), 60)
            if (head := authority.head("s")).seq:
                seen.append(head)
                return

    waiter = threading.Thread(target=wait)
    waiter.start()
    receipt = authority.submit("s", asked(1)).result(30)
    waiter.join(30)
    assert [head.seq for head in seen] == [receipt.seq]


def test_waiting_ends_at_once_where_the_head_is_another_already(parts: Parts) -> None:
    authority = parts.authority
    authority.submit("s", asked(1)).result(30)
    authority.wait("s", cj.Head(), 60)


def test_close_decides_what_waits_and_takes_nothing_on_afterwards(parts: Parts) -> None:
    authority = parts.authority
    futures = [authority.submit("s", asked(number)) for number in range(50)]
    authority.close(30)
    assert [future.result(0).seq for future in futures] == list(range(1, 51))
    with pytest.raises(cj.Closed):
        authority.submit("s", asked(99))


def test_what_cannot_be_decided_before_the_close_is_closed(parts: Parts) -> None:
    store, authority, hold = parts
    with hold():
        future = authority.submit("s", asked(1))
        authority.close(0)
        assert future.done() or isinstance(store, MemoryStore), "only who waits in memory's lock goes on"
    if future.done():
        assert isinstance(future.exception(), cj.Closed)
        assert store.head("s") == cj.Head()


def test_too_many_waiting_appends_are_refused_at_once(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordjournal.authority.lane._MAX_WAITING", 10)
    monkeypatch.setattr("coordjournal.authority.intake._MAX_WAITING", 10)
    authority = parts.authority
    futures = []
    refused: list[cj.Unavailable] = []
    with parts.hold():
        for number in range(100):
            try:
                futures.append(authority.submit("s", asked(number)))
            except cj.Unavailable as error:
                refused.append(error)
    assert refused
    assert [future.result(30).seq for future in futures] == list(range(1, len(futures) + 1))
