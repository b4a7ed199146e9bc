"""Many spaces in one process: few threads, and those that nobody uses are let go of and forgotten."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import coordjournal as cj
from coordjournal.authority import etcd as authority_etcd
from coordjournal.authority import workers as authority_workers
from coordjournal.authority.member import IDLE_SECONDS
from coordjournal.authority.workers import MAX_WORKERS
from coordjournal.etcd import Get, Put
from coordjournal.etcd.client import EtcdClient
from coordjournal.testing.etcd import EtcdServer
from tests.integration.etcd_parts import (
    SPACE,
    Nodes,
    check,
    drain,
    fresh_prefix,
    holding,
    node,
    read,
    refused,
    server,
    told,
)
from tests.integration.processes import quick_path, until

__all__ = ["node", "quick_path", "server"]

STRANGER: Final = "0123456789abcdef" * 2
A_WHILE: Final = IDLE_SECONDS + 1


@pytest.fixture
def log(server: EtcdServer, quick_path: Path) -> Iterator[cj.DecisionLog]:
    with opened(server, quick_path, fresh_prefix()) as log:
        yield log


def opened(server: EtcdServer, path: Path, prefix: str, role: str = "auto") -> cj.DecisionLog:
    return cj.DecisionLog.open(
        path / "wiki.git",
        etcd=server.endpoint,
        prefix=prefix,
        ttl=2,
        actor="alice@example.org",
        role=role,  # type: ignore[arg-type]
    )


def keys_below(server: EtcdServer, prefix: bytes) -> set[bytes]:
    client = EtcdClient([server.endpoint])
    found = client.get(Get(prefix, prefix[:-1] + b"0", only="keys"), timeout=5)[1]
    client.close()
    return {kv.key.removeprefix(prefix) for kv in found.kvs}


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "coordjournal-worker"]


# Idle spaces.


def test_a_space_that_nobody_uses_is_let_go_and_costs_nothing_but_its_keys(server: EtcdServer, node: Nodes) -> None:
    holder = holding(node)
    holder.clock.now += A_WHILE
    holder.authority.tick()
    holder.run()
    assert holder.member.tenure is None
    left = keys_below(server, holder.keys.prefix)
    assert left == {b"journal", b"nodes/" + holder.node.id.encode(), b"heads/" + SPACE.encode()}
    holder.clock.now += 600
    holder.authority.tick()
    assert not holder.authority.members
    holder.submit("next")
    holder.run()
    assert holder.holds
    assert check(server, [holder]).keys() == {"first", "next"}


def test_a_space_that_is_to_be_kept_is_not_let_go(node: Nodes) -> None:
    holder = holding(node)
    holder.member.keep = True
    holder.clock.now += 10 * A_WHILE
    holder.authority.tick()
    holder.run()
    assert holder.holds


def test_a_space_in_which_somebody_waits_or_remembers_what_is_not_known_is_not_forgotten(node: Nodes) -> None:
    party = node()
    future = party.ask("k")
    party.edge.always("all", refused("too many requests"))
    party.clock.now += 1000
    party.authority.tick()
    assert SPACE in party.authority.members, "somebody waits"
    party.edge.always("all", None)
    party.run()
    assert future.done()
    party.member.intake.note_undecided("doubted")
    party.clock.now += 1000
    party.authority.tick()
    party.run()
    party.authority.tick()
    assert SPACE in party.authority.members, "the next attempt under that key is no first one"
    assert not party.holds


def test_the_outcome_of_a_forgotten_space_answers_no_later_intent(server: EtcdServer, node: Nodes) -> None:
    holder, forwarder = holding(node), node()
    refused_once = cj.entry.Append(
        (cj.AliasSet(alias="a", target="page:1"),), "k", "alice@example.org", "2026-01-31T12:00:00.000000Z", 99
    )
    conflict = forwarder.authority.submit(SPACE, refused_once)
    drain([holder, forwarder])
    assert isinstance(told(conflict), cj.Conflict)
    assert read(server, holder.keys.outcome(forwarder.node.id, SPACE, 1)) is not None
    forwarder.clock.now += 700
    forwarder.authority.tick()
    assert not forwarder.authority.members
    forwarder.submit("k")
    drain([holder, forwarder])
    assert "k" in check(server, [holder, forwarder]), "the key was free again"
    assert read(server, holder.keys.outcome(forwarder.node.id, SPACE, 2)) is not None


# Floods.


def test_more_spaces_than_a_process_looks_after_have_their_turn(
    server: EtcdServer, node: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authority_etcd, "_MAX_MEMBERS", 8)
    holder = node(role="holder")
    holder.node.identify()
    holder.node.ensure_session()
    client = EtcdClient([server.endpoint])
    for number in range(40):
        client.txn([], [Put(holder.keys.intent(f"n{number}", STRANGER, 1), b"x")], timeout=5)
    most = 0
    for _ in range(40):
        holder.clock.now += 6
        holder.authority.tick()
        most = max(most, len(holder.authority.members))
        for member in list(holder.authority.members.values()):
            for _ in range(10):
                if member.step() != 0.0:
                    break
        if client.get(Get(holder.keys.intents, holder.keys.intents[:-1] + b"0"), timeout=5)[1].count == 0:
            break
    assert client.get(Get(holder.keys.intents, holder.keys.intents[:-1] + b"0"), timeout=5)[1].count == 0
    client.close()
    assert most <= 8


def test_a_flood_of_names_takes_few_threads_and_does_not_hold_up_our_own(server: EtcdServer, quick_path: Path) -> None:
    prefix = fresh_prefix()
    with opened(server, quick_path, prefix, "holder") as log:
        log.serve()
        log.append("own", cj.AliasSet(alias="a", target="page:1"))
        client = EtcdClient([server.endpoint])
        for first in range(0, 200, 100):
            puts = [Put(f"{prefix}intents/n{n}/{STRANGER}/{1:012d}".encode(), b"x") for n in range(first, first + 100)]
            client.txn([], puts, timeout=5)
        most = 0
        for number in range(10):
            log.append("own", cj.AliasSet(alias=f"a{number}", target="page:1"), timeout=5)
            most = max(most, len(workers()))
        below = f"{prefix}intents/".encode()
        until(lambda: client.get(Get(below, below[:-1] + b"0"), timeout=5)[1].count == 0, "the flood to end")
        client.close()
    assert 0 < most <= MAX_WORKERS


# Threads that cannot be begun, or are stuck.


def test_an_append_for_which_there_is_no_thread_just_now_is_appended_later(
    log: cj.DecisionLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authority_workers, "_THREAD_SECONDS", 0.05)
    monkeypatch.setattr(authority_etcd, "_RESCAN_SECONDS", 60.0)  # which would find it, too
    first = log.append(SPACE, cj.AliasSet(alias="b", target="page:1"))
    until(lambda: not workers(), "the threads to end")
    with monkeypatch.context() as system:
        deny(system, "coordjournal-worker", "coordjournal-minder")
        futures = [log.submit(SPACE, cj.AliasSet(alias=f"a{n}", target="page:1")) for n in range(2)]
    receipts = [future.result(20) for future in futures]
    assert [(receipt.seq, receipt.term) for receipt in receipts] == [(2, first.term), (3, first.term)]


@pytest.mark.parametrize("name", ["coordjournal-keeper", "coordjournal-watch"])
def test_a_log_that_cannot_begin_says_so_and_begins_later(
    log: cj.DecisionLog, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as system:
        deny(system, name)
        with pytest.raises(cj.Unavailable, match="no thread"):
            log.submit(SPACE, cj.AliasSet(alias="a", target="page:1"))
    assert log.append(SPACE, cj.AliasSet(alias="a", target="page:1")).seq == 1


def test_a_watcher_that_cannot_begin_can_be_closed_or_begin_later(
    server: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = EtcdClient([server.endpoint])
    never, later = client.watcher(), client.watcher()
    with monkeypatch.context() as system:
        deny(system, "coordjournal-watch")
        for watcher in (never, later):
            with pytest.raises(RuntimeError):
                watcher.add(b"/a", b"", lambda changes: None)
    never.close()
    stands = threading.Event()
    later.add(b"/a", b"", lambda changes: stands.set())
    assert stands.wait(10)
    client.close()


def test_a_log_that_never_had_a_thread_is_closed_and_its_session_ends(
    server: EtcdServer, quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = fresh_prefix()
    log = opened(server, quick_path, prefix)
    with monkeypatch.context() as system:
        deny(system, "coordjournal-worker", "coordjournal-minder")
        future = log.submit(SPACE, cj.AliasSet(alias="a", target="page:1"))
        log.serve([SPACE])
        assert any(key.startswith(b"nodes/") for key in keys_below(server, prefix.encode()))
        log.close(0.5)
    assert isinstance(future.exception(5), cj.Closed)
    assert not any(key.startswith(b"nodes/") for key in keys_below(server, prefix.encode()))


def test_the_session_ends_though_the_rest_of_the_close_fails(
    node: Nodes, server: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    party = holding(node)
    node.made.remove(party)

    def fail(seconds: float) -> None:
        raise RuntimeError("what nobody thought of")

    monkeypatch.setattr(party.authority._workers, "stop", fail)
    with pytest.raises(RuntimeError, match="nobody thought"):
        party.authority.close(1)
    party.store.close()
    assert keys_below(server, party.keys.nodes) == set()
    assert read(server, party.keys.holder(SPACE)) is None


def test_a_stuck_holder_is_told_of_and_let_go_once(
    server: EtcdServer, node: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    party = holding(node)
    party.member.busy_since = party.clock.now
    party.edge.next("let go", refused("too many requests"))
    for _ in range(5):
        party.clock.now += 2 * party.node.session.ttl + 1
        party.authority._look_after(party.clock.now)
    assert party.edge.names.count("let go") == 2, "the refused one and the one that was done"
    assert sum(record.levelno == logging.ERROR for record in caplog.records) == 1
    assert read(server, party.keys.holder(SPACE)) is None
    party.member.busy_since = None
    party.submit("again")
    drain([party])
    assert "again" in check(server, [party])


def test_a_holder_that_comes_back_after_the_close_finds_its_watcher_closed(node: Nodes) -> None:
    party = node()
    party.authority.watch()
    party.submit("k")
    party.until("campaign")
    assert party.authority._watcher is not None
    party.authority._watcher.close()
    assert party.authority._step(party.member) is not None
    assert party.holds


def deny(system: pytest.MonkeyPatch, *names: str) -> None:
    """Have the system refuse threads of these names."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name in names:
            raise RuntimeError("can't start new thread")
        start(thread)

    system.setattr(threading.Thread, "start", refuse)
