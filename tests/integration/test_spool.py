"""Processes that find a space's lock taken leave intents; whoever has the lock serves them."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import coordjournal as cj
from coordjournal.authority.embedded import EmbeddedAuthority
from coordjournal.authority.lane import Lane
from coordjournal.entry import Append
from coordjournal.maintenance import init, verify
from coordjournal.store.files import locked
from tests.support import alias, fsck, python

APPEND = """
import sys, coordjournal as cj
repo, name, timeout = sys.argv[1:4]
with cj.DecisionLog.open(repo) as log:
    try:
        r = log.append("s", cj.AliasSet(name, "t"), key=name, actor="a", timeout=float(timeout))
        print(r.seq, r.commit, r.via, r.duplicate)
    except cj.CoordJournalError as error:
        print(error.code)
"""


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    path = tmp_path / "wiki.git"
    init(path)
    return path


def appender(repo: Path, name: str, timeout: float = 60) -> subprocess.Popen[str]:
    return python(APPEND, repo, name, str(timeout))


def answer(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=60)
    assert not err, err
    return out.strip()


def spool(repo: Path) -> Path:
    return repo / "coordjournal" / "spool" / "s"


def intents(repo: Path) -> list[Path]:
    return sorted(spool(repo).glob("*.intent"))


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.005)


def packs(repo: Path) -> int:
    return len(list((repo / "objects" / "pack").glob("*.pack")))


def test_one_durable_write_serves_all_processes_that_wait(repo: Path) -> None:
    with locked(repo / "coordjournal" / "locks" / "s"):
        waiting = [appender(repo, f"w{number}") for number in range(5)]
        until(lambda: len(intents(repo)) == 5)
    answers = [answer(process).split() for process in waiting]
    assert sorted(int(seq) for seq, *_ in answers) == [1, 2, 3, 4, 5]
    assert {duplicate for *_, duplicate in answers} == {"False"}
    assert sorted(via for _, _, via, _ in answers) == ["forwarded"] * 4 + ["local"]
    assert packs(repo) == 1
    with cj.DecisionLog.open(repo) as log:
        assert {(e.seq, e.commit) for e in log.events("s")} == {(int(seq), commit) for seq, commit, *_ in answers}
    assert list(spool(repo).iterdir()) == []
    assert verify(repo)[0].entries == 5
    fsck(repo)


def test_a_timeout_withdraws_the_intent_and_nothing_is_applied(repo: Path) -> None:
    with locked(repo / "coordjournal" / "locks" / "s"):
        assert answer(appender(repo, "late", timeout=0.3)) == "unavailable"
        assert intents(repo) == []
    with cj.DecisionLog.open(repo) as log:
        log.append("s", alias(1))
        assert "late" not in [e.key for e in log.events("s")]
        assert log.head("s").seq == 1


def test_withdrawing_one_append_leaves_its_fellows_in_the_intent(repo: Path) -> None:
    with cj.DecisionLog.open(repo) as log:
        log.append("s", alias(0))
        lane = lane_of(log)
        with locked(repo / "coordjournal" / "locks" / "s"):
            with lane._work:  # so that its thread finds them together
                futures = [log.submit("s", alias(number)) for number in range(1, 6)]
            until(lambda: len(intents(repo)) == 1)
            (before,) = intents(repo)
            assert futures[2].cancel()
            assert futures[2].cancel(), "it stays cancelled"
            (after,) = intents(repo)
            assert before != after
            later = log.submit("s", alias(6))
            assert later.cancel(), "one in the queue is cancelled as well"
        assert [future.result(60).seq for future in futures if not future.cancelled()] == [2, 3, 4, 5]
        assert [e.event for e in log.events("s")] == [alias(number) for number in (0, 1, 2, 4, 5)]


def test_an_intent_that_was_taken_cannot_be_withdrawn_and_is_undecided(repo: Path) -> None:
    with locked(repo / "coordjournal" / "locks" / "s"):
        process = appender(repo, "taken", timeout=1.0)
        until(lambda: len(intents(repo)) == 1)
        intents(repo)[0].rename(intents(repo)[0].with_suffix(".taken"))
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "undecided"
    answer(process)


@pytest.mark.parametrize("published", [True, False])
def test_a_process_that_dies_with_an_intent_taken_leaves_it_to_its_owner(repo: Path, published: bool) -> None:
    with cj.DecisionLog.open(repo) as log:
        with locked(repo / "coordjournal" / "locks" / "s"):
            process = appender(repo, "orphaned")
            until(lambda: len(intents(repo)) == 1)
            (intent,) = intents(repo)
            taken = intent.rename(intent.with_suffix(".taken"))
            if published:
                publish_as_a_dying_process_would(log, taken.read_bytes())
        seq, commit, via, duplicate = answer(process).split()
        assert (seq, via, duplicate) == ("1", "forwarded" if published else "local", "False")
        assert [(e.seq, e.commit, e.key) for e in log.events("s")] == [(1, commit, "orphaned")]
        assert list(spool(repo).iterdir()) == []


def publish_as_a_dying_process_would(log: cj.DecisionLog, intent: bytes) -> None:
    import msgspec

    from coordjournal.cache import SpaceCache
    from coordjournal.commit import Group
    from coordjournal.replica import Replica

    store, _ = log._open()
    group = Group(msgspec.msgpack.decode(intent, type=list[Append]), Replica("s", store, SpaceCache(None)), cj.Head())
    group.judge()
    group.write(store, "s", 0)
    store.advance("s", cj.Head(), group.written[-1].head)


def test_an_intent_of_a_dead_process_is_swept_and_not_applied(repo: Path) -> None:
    with locked(repo / "coordjournal" / "locks" / "s"):
        process = appender(repo, "dead")
        until(lambda: len(intents(repo)) == 1)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    with cj.DecisionLog.open(repo) as log:
        log.append("s", alias(1), key="alive")
        assert [e.key for e in log.events("s")] == ["alive"]
    assert intents(repo) == []


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x91\x01", b"\xdd\xff\xff\xff\xff", b"\x91" * 10_000])
def test_a_broken_intent_harms_nobody(repo: Path, content: bytes) -> None:
    import fcntl

    spool(repo).mkdir(parents=True)
    broken = spool(repo) / "00000000000000000001-1-aaaaaaaa.intent"
    broken.write_bytes(content)
    with broken.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with cj.DecisionLog.open(repo) as log:
            assert log.append("s", alias(1)).seq == 1
            assert log.append("s", alias(2)).seq == 2


def test_an_event_in_an_intent_is_judged_like_any_other(repo: Path) -> None:
    import fcntl

    import msgspec

    bad = Append((cj.AliasSet("bad\nname", "t"),), "k", "<eve>", "yesterday")
    good = Append((cj.AliasSet("good", "t"),), "good", "eve", "2026-01-31T12:00:00.000000Z")
    spool(repo).mkdir(parents=True)
    left = spool(repo) / "00000000000000000001-1-aaaaaaaa.intent"
    left.write_bytes(msgspec.msgpack.encode([bad, good]))
    with left.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with cj.DecisionLog.open(repo) as log:
            log.append("s", alias(1))
            assert [e.key for e in log.events("s")][1:] == ["good"]


def test_without_a_spool_to_write_to_the_lock_is_waited_for(repo: Path) -> None:
    (repo / "coordjournal" / "spool").write_bytes(b"a file where the directory would be")
    with cj.DecisionLog.open(repo) as log:
        with locked(repo / "coordjournal" / "locks" / "s"):
            future = log.submit("s", alias(1))
            until(future_waits(log))
        assert future.result(60).seq == 1


def lane_of(log: cj.DecisionLog) -> Lane:
    _, authority = log._open()
    assert isinstance(authority, EmbeddedAuthority)
    return authority._lanes["s"]


def future_waits(log: cj.DecisionLog) -> Callable[[], bool]:
    return lambda: bool(lane_of(log)._left)


def test_appends_that_wait_in_two_processes_keep_each_ones_order(repo: Path) -> None:
    code = """
import sys, coordjournal as cj
with cj.DecisionLog.open(sys.argv[1]) as log:
    futures = [log.submit("s", cj.AliasSet(f"{sys.argv[2]}-{n}", "t")) for n in range(200)]
    print(*(future.result(60).seq for future in futures))
"""
    processes = [python(code, repo, name) for name in ("a", "b", "c")]
    for name, process in zip("abc", processes, strict=True):
        seqs = [int(seq) for seq in answer(process).split()]
        assert seqs == sorted(seqs)
        with cj.DecisionLog.open(repo) as log:
            mine = [e for e in log.events("s") if e.event.names()[0].startswith(name)]
        assert [e.event.names()[0] for e in mine] == [f"{name}-{n}" for n in range(200)]
        assert [e.seq for e in mine] == seqs
    assert list(spool(repo).glob("*")) == []


def test_a_retry_of_what_is_not_decided_is_not_said_to_be_not_applied(repo: Path) -> None:
    """The first attempt was taken on by another process, which stands still; the second waits behind it."""
    with cj.DecisionLog.open(repo) as log:
        with locked(repo / "coordjournal" / "locks" / "s"):
            with pytest.raises(cj.Undecided):
                append_and_have_it_taken(repo, log)
            with pytest.raises(cj.Undecided):
                log.append("s", alias(1), key="k", actor="a", timeout=0.1)
        assert log.append("s", alias(1), key="k", actor="a").seq == 1
        assert [e.key for e in log.events("s")] == ["k"]


def append_and_have_it_taken(repo: Path, log: cj.DecisionLog) -> None:
    future = log.submit("s", alias(1), key="k", actor="a")
    until(lambda: len(intents(repo)) == 1)
    (intent,) = intents(repo)
    intent.rename(intent.with_suffix(".taken"))
    assert not future.cancel()
    raise cj.Undecided


def test_a_malformed_append_harms_none_that_waits_with_it(repo: Path) -> None:
    class Text(str):
        __slots__ = ()

    wrong: list[object] = [cj.AliasSet("\ud800", "t"), cj.AliasSet(Text("a"), "t"), object()]
    with cj.DecisionLog.open(repo) as log:
        with locked(repo / "coordjournal" / "locks" / "s"):
            good = log.submit("s", alias(1))
            refused = [log.submit("s", event) for event in wrong]  # type: ignore[arg-type]
            refused.append(log.submit("s", alias(2), key=["k"]))  # type: ignore[arg-type]
        assert good.result(60).seq == 1
        assert all(isinstance(future.exception(60), cj.Rejected) for future in refused)
