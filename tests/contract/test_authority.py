"""The contract of an authority, over every store."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

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
from tests.support import alias

Make = Callable[[Path], tuple[Store, Authority]]


def embedded(store: Store, spool: Callable[[str], Spool | None]) -> Authority:
    replicas: dict[str, Replica] = {}

    def replica(space: str) -> Replica:
        return replicas.setdefault(space, Replica(space, store, SpaceCache(None)))

    return EmbeddedAuthority(store, replica, spool)


def in_memory(_: Path) -> tuple[Store, Authority]:
    store = MemoryStore()
    return store, embedded(store, lambda space: None)


def in_git(path: Path) -> tuple[Store, Authority]:
    store = GitStore(path / "wiki.git", node="test", clock=lambda: datetime.now(UTC), random=os.urandom)
    store.claim("embedded")
    return store, embedded(store, lambda space: Spool(path / "wiki.git" / "coordjournal" / "spool" / space))


@pytest.fixture(params=[in_memory, in_git])
def parts(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Store, Authority]]:
    make: Make = request.param
    store, authority = make(tmp_path)
    yield store, authority
    authority.close(20)
    store.close()


def asked(number: int, key: str = "") -> Append:
    return Append((alias(number),), key or f"key-{number}", "alice@example.org", "2026-01-31T12:00:00.000000Z")


def test_appends_of_one_thread_are_decided_in_its_order(parts: tuple[Store, Authority]) -> None:
    _, authority = parts
    futures = [authority.submit("s", asked(number)) for number in range(300)]
    assert [future.result(30).seq for future in futures] == list(range(1, 301))


def test_the_head_holds_what_anyone_was_told_is_appended(parts: tuple[Store, Authority]) -> None:
    _, authority = parts
    assert authority.head("s") == cj.Head()
    receipt = authority.submit("s", asked(1)).result(30)
    assert authority.head("s") == cj.Head(receipt.seq, receipt.commit, receipt.term)


def test_an_append_that_was_cancelled_in_time_is_not_applied(parts: tuple[Store, Authority]) -> None:
    store, authority = parts
    with store.exclusive("s"):  # nothing is decided meanwhile
        futures = [authority.submit("s", asked(number)) for number in range(5)]
        cancelled = [number for number, future in enumerate(futures[1:4], 1) if future.cancel()]
    done = [number for number in range(5) if number not in cancelled]
    assert [futures[number].result(30).seq for number in done] == list(range(1, len(done) + 1))
    keys = [appended.key for appended in store.read("s", authority.head("s"))]
    assert keys == [f"key-{number}" for number in done]


def test_waiting_ends_when_the_head_moves(parts: tuple[Store, Authority]) -> None:
    _, authority = parts
    seen: list[cj.Head] = []

    def wait() -> None:
        authority.wait("s", cj.Head(), 60)
        seen.append(authority.head("s"))

    waiter = threading.Thread(target=wait)
    waiter.start()
    receipt = authority.submit("s", asked(1)).result(30)
    waiter.join(30)
    assert [head.seq for head in seen] == [receipt.seq]


def test_waiting_ends_at_once_where_the_head_is_another_already(parts: tuple[Store, Authority]) -> None:
    _, authority = parts
    authority.submit("s", asked(1)).result(30)
    authority.wait("s", cj.Head(), 60)


def test_close_decides_what_waits_and_takes_nothing_on_afterwards(parts: tuple[Store, Authority]) -> None:
    _, authority = parts
    futures = [authority.submit("s", asked(number)) for number in range(50)]
    authority.close(30)
    assert [future.result(0).seq for future in futures] == list(range(1, 51))
    with pytest.raises(cj.Closed):
        authority.submit("s", asked(99))


def test_what_cannot_be_decided_before_the_close_is_closed(parts: tuple[Store, Authority]) -> None:
    store, authority = parts
    with store.exclusive("s"):
        future = authority.submit("s", asked(1))
        authority.close(0)
        assert future.done() or isinstance(store, MemoryStore), "only who waits in memory's lock goes on"
    if future.done():
        assert isinstance(future.exception(), cj.Closed)
        assert authority.head("s") == cj.Head()


def test_too_many_waiting_appends_are_refused_at_once(
    parts: tuple[Store, Authority], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordjournal.authority.lane._MAX_WAITING", 10)
    store, authority = parts
    futures = []
    refused: list[cj.Unavailable] = []
    with store.exclusive("s"):
        for number in range(100):
            try:
                futures.append(authority.submit("s", asked(number)))
            except cj.Unavailable as error:
                refused.append(error)
    assert refused
    assert [future.result(30).seq for future in futures] == list(range(1, len(futures) + 1))
