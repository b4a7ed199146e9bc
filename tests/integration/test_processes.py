"""Several processes, with several threads each, have one journal: they append, read, die, stop and fork."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest

import coordjournal as cj
from coordjournal.authority.embedded import EmbeddedAuthority
from coordjournal.store.git import GitStore
from tests.integration.processes import Channel, Child, quick_path, start, until
from tests.integration.workers import ACTOR, append_one, append_until_told, check_whole, gate, intents, log_of, repo
from tests.support import alias

__all__ = ["quick_path", "repo"]  # pytest finds the fixtures here

AT: Final = "2026-01-31T12:00:00.000000Z"


# Appending at once


def append_in_threads(channel: Channel, repo: str, name: str, threads: int, count: int, spaces: list[str]) -> Any:
    """Append from several threads when told to; return each one's receipts, in its order."""
    results: list[list[tuple[str, int, str, str]]] = [[] for _ in range(threads)]
    with cj.DecisionLog.open(repo, actor=ACTOR) as log:

        def work(number: int) -> None:
            for n in range(count):
                key = f"{name}-{number}-{n}"
                space = spaces[(number + n) % len(spaces)]
                receipt = log.append(space, cj.AliasSet(key, "t"), key=key, timeout=None)
                results[number].append((space, receipt.seq, receipt.commit, receipt.key))

        workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
        channel.send("ready")
        channel.receive()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    return results


@pytest.mark.parametrize("spaces", [["s"], ["s", "t", "u"]], ids=["one space", "three spaces"])
def test_processes_and_threads_append_at_once_without_gap_loss_or_disorder(repo: Path, spaces: list[str]) -> None:
    children = [start(append_in_threads, repo, name, 4, 12, spaces) for name in "abc"]
    for child in children:
        child.receive()
    for child in children:
        child.send("go")
    results = [thread for child in children for thread in child.result()]
    receipts = [tuple(receipt) for thread in results for receipt in thread]
    assert len(receipts) == 3 * 4 * 12
    with cj.DecisionLog.open(repo) as log:
        in_log = [(space, e.seq, e.commit, e.key) for space in spaces for e in log.events(space)]
        for space in spaces:
            assert [e.seq for e in log.events(space)] == list(range(1, log.head(space).seq + 1))
            assert cj.fold(log.events(space)) == log.state(space)
    assert Counter(receipts) == Counter(in_log)
    for thread in results:
        for space in spaces:
            seqs = [seq for where, seq, _, _ in thread if where == space]
            assert seqs == sorted(seqs), "what one thread appended stands in its order"
    check_whole(repo)


def test_two_logs_of_one_process_take_turns_like_two_processes(repo: Path) -> None:
    with cj.DecisionLog.open(repo) as one, cj.DecisionLog.open(repo) as two:
        futures = [log.submit("s", alias(2 * n + k)) for n in range(100) for k, log in enumerate((one, two))]
        assert sorted(future.result(60).seq for future in futures) == list(range(1, 201))
        assert list(one.events("s")) == list(two.events("s"))
        assert one.state("s") == two.state("s")


def read_and_append(channel: Channel, repo: str, name: str) -> None:
    """Check that what the others appended is there, then append, whenever told to."""
    with cj.DecisionLog.open(repo, actor=ACTOR) as log:
        while (newest := channel.receive()) is not None:
            seq, commit, key = newest
            assert (log.head("s").seq, log.head("s").commit) == (seq, commit)
            assert log.state("s").resolve(key).hops == (key, f"target of {key}")
            assert log.state("s").seq == seq
            last = list(log.events("s", after=seq - 1))
            assert [(e.seq, e.commit, e.key) for e in last] == [(seq, commit, key)]
            mine = f"{name}-{seq}"
            receipt = log.append("s", cj.AliasSet(mine, f"target of {mine}"), key=mine, expect=seq, timeout=None)
            channel.send([receipt.seq, receipt.commit, receipt.key])


def test_what_one_process_was_told_is_appended_every_other_one_reads_at_once(repo: Path) -> None:
    with cj.DecisionLog.open(repo, actor=ACTOR) as log:
        receipt = log.append("s", cj.AliasSet("first", "target of first"), key="first")
    newest = [receipt.seq, receipt.commit, receipt.key]
    children = [start(read_and_append, repo, name) for name in "abc"]
    for turn in range(60):
        child = children[turn % 3 if turn % 4 else (turn + 1) % 3]
        child.send(newest)
        newest = child.receive()
    assert newest[0] == 61
    for child in children:
        child.send(None)
        child.result()


def count_up(channel: Channel, repo: str, times: int) -> int:
    """Add one to the number on a page, by compare-and-swap; return how often it had to be tried again."""
    conflicts = 0
    with cj.DecisionLog.open(repo, actor=ACTOR) as log:
        channel.send("ready")
        channel.receive()
        for _ in range(times):
            while True:
                state = log.state("s")
                laid = state.overlays.get("counter")
                number = int(laid[0].body) if laid else 0
                event = cj.OverlaySet("counter", "number", "text/plain", str(number + 1))
                try:
                    log.append("s", event, expect=state.seq, timeout=None)
                    break
                except cj.Conflict:
                    conflicts += 1
    return conflicts


def test_expect_is_a_compare_and_swap_among_processes(repo: Path) -> None:
    children = [start(count_up, repo, 20) for _ in range(3)]
    for child in children:
        child.receive()
    for child in children:
        child.send("go")
    for child in children:
        child.result()
    with cj.DecisionLog.open(repo) as log:
        bodies = [e.event.body for e in log.events("s") if isinstance(e.event, cj.OverlaySet)]
    assert bodies == [str(number) for number in range(1, 61)], "an update was lost"


def append_when_told(channel: Channel, repo: str, key: str) -> list[Any]:
    with cj.DecisionLog.open(repo, actor=ACTOR) as log:
        results = []
        while (turn := channel.receive()) is not None:
            event = cj.AliasSet(f"{key}-{turn}", "t")
            receipt = log.append("s", event, key=f"{key}-{turn}", timeout=None)
            results.append([receipt.first, receipt.seq, receipt.commit, receipt.term, receipt.key, receipt.duplicate])
            channel.send(results[-1])
        return results


def test_the_same_key_from_many_processes_at_once_is_one_append_and_one_receipt(repo: Path) -> None:
    children = [start(append_when_told, repo, "same") for _ in range(4)]
    for turn in range(8):
        for child in children:
            child.send(turn)
        receipts = [child.receive() for child in children]
        assert len({tuple(receipt[:5]) for receipt in receipts}) == 1
        assert sorted(receipt[5] for receipt in receipts) == [False, True, True, True]
    for child in children:
        child.send(None)
        child.result()
    with cj.DecisionLog.open(repo) as log:
        assert [e.key for e in log.events("s")] == [f"same-{turn}" for turn in range(8)]


BAD: Final[list[tuple[Any, type[cj.CoordJournalError]]]] = [
    ([alias(1), cj.AliasSet("b", "a")], cj.AliasCycle),
    (cj.AliasRemoved("nothing"), cj.NothingToRetract),
    (cj.AliasSet("new\nline", "t"), cj.InvalidName),
    (cj.OverlaySet("p", "o", "text/plain", "x" * (1 << 20)), cj.TooLarge),
    (cj.AliasSet("a number", 5), cj.InvalidName),  # type: ignore[arg-type]
    (cj.AliasSet("half a character", "\ud800"), cj.InvalidName),
    (cj.AliasSet("an object", object()), cj.InvalidName),  # type: ignore[arg-type]
    (object(), cj.InvalidEvent),
]


@pytest.mark.parametrize("contended", [False, True], ids=["the lock is free", "another process has the lock"])
@pytest.mark.parametrize(("bad", "error"), BAD, ids=lambda value: value.__name__ if isinstance(value, type) else "")
def test_one_refused_append_among_those_that_wait_together_harms_no_other(
    repo: Path, bad: Any, error: type[cj.CoordJournalError], contended: bool
) -> None:
    with cj.DecisionLog.open(repo) as log:
        log.append("s", cj.AliasSet("a", "b"))
        authority = log._open()[1]
        assert isinstance(authority, EmbeddedAuthority)
        lane = authority._lanes["s"]
        with gate(repo) if contended else nullcontext():
            with lane._work:  # so that they travel together
                before, refused, after = log.submit("s", alias(2)), log.submit("s", bad), log.submit("s", alias(3))
            if contended:
                until(lambda: lane._left or refused.done(), "the lane to find the lock taken")
        assert (before.result(60).seq, after.result(60).seq) == (2, 3)
        assert type(refused.exception(60)) is error
        assert [e.event for e in log.events("s", after=1)] == [alias(2), alias(3)]


def test_a_retry_is_told_that_it_is_one_whether_or_not_the_lock_was_free(repo: Path) -> None:
    with cj.DecisionLog.open(repo, actor=ACTOR) as log:
        first = log.append("s", alias(1), key="k", at=AT)
        again = log.append("s", alias(1), key="k", at=AT)
        with gate(repo):
            waiting = log.submit("s", alias(1), key="k", at=AT)
            until(lambda: intents(repo), "the intent")
        contended = waiting.result(60)
    assert (first.duplicate, again.duplicate, contended.duplicate) == (False, True, True)
    assert first.commit == again.commit == contended.commit


def test_a_cancelled_append_counts_as_done_for_those_who_wait_for_many(repo: Path) -> None:
    with cj.DecisionLog.open(repo) as log:
        with gate(repo):
            first = log.submit("s", alias(1))
            until(lambda: intents(repo), "the intent")
            second = log.submit("s", alias(2))
            assert first.cancel()
            assert second.cancel()
        done, waiting = concurrent.futures.wait([first, second], timeout=5)
        assert (len(done), len(waiting)) == (2, 0)
        assert log.append("s", alias(3)).seq == 1


# Dying and standing still


def test_a_process_that_is_killed_in_the_middle_harms_neither_its_receipts_nor_the_others(repo: Path) -> None:
    children = {name: start(append_until_told, repo, name) for name in "abc"}
    said: dict[str, list[list[Any]]] = {name: [child.receive() for _ in range(5)] for name, child in children.items()}
    for victim in "ab":
        children[victim].kill()
        said[victim] += children[victim].said()
        assert children[victim].join() == -signal.SIGKILL
        said["c"] += [children["c"].receive() for _ in range(20)]
    (repo / "stop").touch()
    said["c"] += children["c"].said()
    assert children["c"].join() == 0
    in_log = log_of(repo)
    acknowledged = [receipt for receipts in said.values() for receipt in receipts]
    assert all(receipt in in_log for receipt in acknowledged)
    assert len(in_log) - len(acknowledged) in (0, 1, 2), "what a victim had under way, at most"
    assert max(Counter(key for _, _, key in in_log).values()) == 1
    check_whole(repo)


def stop_under_the_lock(channel: Channel, repo: str, key: str) -> list[Any]:
    """Append, and wait to be stopped at the first durable write, which is done under the space's lock."""
    with cj.DecisionLog.open(repo, actor=ACTOR) as log:
        log.head("s")
        stopped: list[int] = []
        fsync = os.fsync

        def stop_once(file: int) -> None:
            if not stopped:
                stopped.append(file)
                channel.send("under the lock")
                channel.receive()
            fsync(file)

        os.fsync = stop_once  # type: ignore[assignment]
        receipt = log.append("s", cj.AliasSet(key, "t"), key=key, timeout=None)
        return [receipt.seq, receipt.commit, receipt.duplicate]


def stopped_under_the_lock(repo: Path, key: str) -> Child:
    child = start(stop_under_the_lock, repo, key)
    assert child.receive() == "under the lock"
    child.kill(signal.SIGSTOP)
    return child


def go_on(child: Child) -> None:
    child.kill(signal.SIGCONT)
    child.send("go on")


def test_while_a_process_stands_still_with_the_lock_appends_are_unavailable_and_certainly_not_applied(
    repo: Path,
) -> None:
    with stopped_under_the_lock(repo, "stopped") as stopped, cj.DecisionLog.open(repo, actor=ACTOR) as log:
        with pytest.raises(cj.Unavailable):
            log.append("s", alias(1), key="mine", timeout=0.2)
        assert start(append_one, repo, "theirs", 0.2).result() == ["unavailable"]
        assert log.head("s").seq == 0, "reading goes on"
        assert log.append("t", alias(1)).seq == 1, "another space goes on"
        waiting = log.submit("s", alias(2), key="patient")
        go_on(stopped)
        assert stopped.result()[0] == 1
        assert waiting.result(60).seq == 2
        assert [e.key for e in log.events("s")] == ["stopped", "patient"]
        assert log.append("s", alias(1), key="mine").duplicate is False
        assert start(append_one, repo, "theirs", None).result()[3] is False
    check_whole(repo)


def test_an_append_that_a_process_took_on_and_stands_still_with_is_undecided_and_a_retry_finds_it(repo: Path) -> None:
    with cj.DecisionLog.open(repo, actor=ACTOR) as log:
        with gate(repo):
            neighbour = start(append_one, repo, "neighbour", 1.0)
            until(lambda: intents(repo), "the intent")
            neighbour.kill(signal.SIGSTOP)
        with stopped_under_the_lock(repo, "stopped") as stopped:
            assert intents(repo) == [], "it was taken on"
            neighbour.kill(signal.SIGCONT)
            assert neighbour.result() == ["undecided"]
            go_on(stopped)
            assert stopped.result()[0] == 1
        assert log.append("s", cj.AliasSet("neighbour", "t"), key="neighbour").duplicate is True
        assert [e.key for e in log.events("s")] == ["stopped", "neighbour"]


def test_an_append_that_is_being_made_at_its_timeout_is_undecided_and_a_retry_finds_it(repo: Path) -> None:
    with cj.DecisionLog.open(repo, actor=ACTOR) as log:
        lock = repo / "refs" / "heads" / "s.lock"
        lock.touch()
        with pytest.raises(cj.Undecided, match="same key"):
            log.append("s", alias(1), key="k", timeout=0.2)
        lock.unlink()
        assert log.append("s", alias(1), key="k").duplicate is True
        assert log.head("s").seq == 1


def test_closing_a_log_while_another_process_has_the_lock_leaves_nobody_waiting(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordjournal.log._CLOSE_SECONDS", 0.1)
    with gate(repo):
        log = cj.DecisionLog.open(repo)
        left = log.submit("s", alias(1))
        until(lambda: intents(repo), "the intent")
        queued = log.submit("s", alias(2))
        log.close()
        for future in (left, queued):
            assert isinstance(future.exception(5), cj.Closed)
        with pytest.raises(cj.Closed):
            log.submit("s", alias(3))
    with cj.DecisionLog.open(repo) as other:
        other.append("s", alias(4))
        assert [e.event for e in other.events("s")] == [alias(4)]


# Following


def test_a_subscriber_sees_what_other_processes_append_without_gap_until_the_log_is_closed(repo: Path) -> None:
    with cj.DecisionLog.open(repo, actor=ACTOR) as log:
        log.append("s", [alias(1), alias(2)])
        seen: list[tuple[int, str]] = []

        def follow() -> None:
            seen.extend((entry.seq, entry.key) for entry in log.subscribe("s", after=1))

        follower = threading.Thread(target=follow)
        follower.start()
        children = [start(append_in_threads, repo, name, 2, 10, ["s"]) for name in "ab"]
        for child in children:
            child.receive()
            child.send("go")
        for child in children:
            child.result()
        log.append("s", alias(3), key="last")
        expected = [(e.seq, e.key) for e in log.events("s", after=1)]
        assert len(expected) == 1 + 40 + 1
        until(lambda: log._closed or len(seen) == len(expected) or not follower.is_alive(), "all entries")
    follower.join(60)
    assert not follower.is_alive()
    assert seen == expected


# Forking


def fork(work: Callable[[], object]) -> int:
    """Run `work` in a forked child, for at most a minute; return 0, or what went wrong as a status."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            signal.alarm(60)
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def expect_forked(log: cj.DecisionLog) -> None:
    uses: list[Callable[[], object]] = [
        lambda: log.append("s", alias(9)),
        lambda: log.submit("s", alias(9)),
        lambda: log.head("s"),
        log.spaces,
        lambda: log.events("s"),
        lambda: log.state("s"),
        lambda: next(log.subscribe("s")),
        log.__enter__,
    ]
    for use in uses:
        with pytest.raises(cj.ForkedProcess, match="open another one in the child"):
            use()
    log.close()


def fork_with_logs(channel: Channel, repo: str) -> list[int]:
    used, unused = cj.DecisionLog.open(repo, actor=ACTOR), cj.DecisionLog.open(repo, actor=ACTOR)
    used.append("s", alias(1))
    statuses = [fork(lambda: expect_forked(used)), fork(lambda: unused.append("s", alias(2)))]
    used.append("s", alias(3))
    unused.append("s", alias(4))
    used.close()
    unused.close()
    return statuses


def test_a_log_that_was_used_before_a_fork_says_so_and_one_that_was_not_works(repo: Path) -> None:
    assert start(fork_with_logs, repo).result() == [0, 0]
    with cj.DecisionLog.open(repo) as log:
        assert [e.event for e in log.events("s")] == [alias(n) for n in (1, 2, 3, 4)]


def fork_prefork_twins(channel: Channel, repo: str) -> list[int]:
    log = cj.DecisionLog.open(repo, actor=ACTOR)

    def work() -> None:
        with log:
            for number in range(5):
                log.append("s", alias(number))

    return [fork(work) for _ in range(3)]


def test_forked_twins_of_one_log_do_not_make_the_same_keys(repo: Path) -> None:
    assert start(fork_prefork_twins, repo).result() == [0, 0, 0]
    with cj.DecisionLog.open(repo) as log:
        assert log.head("s").seq == 15
        assert len({e.key for e in log.events("s")}) == 15


def fork_while_a_thread_is_inside(channel: Channel, repo: str) -> int:
    inside, leave = threading.Event(), threading.Event()

    def cache() -> None:
        inside.set()
        leave.wait(60)

    def store() -> GitStore:
        return GitStore(Path(repo), node="node", clock=lambda: datetime.now(UTC), random=os.urandom)

    log = cj.DecisionLog(store, where=repo, cache=cache)
    thread = threading.Thread(target=log.state, args=("s",))
    thread.start()
    inside.wait(60)
    pid = os.fork()
    if not pid:
        signal.alarm(5)  # ends the process if it hangs
        try:
            log.head("s")
        except cj.ForkedProcess:
            os._exit(0)
        os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    leave.set()
    thread.join()
    log.close()
    return status


def test_a_log_that_a_thread_was_inside_of_at_the_fork_says_so_in_the_child_and_does_not_hang(repo: Path) -> None:
    assert start(fork_while_a_thread_is_inside, repo).result() == 0


def live_on(channel: Channel, repo: str) -> None:
    """Be the forked child that outlives its parent, until the pipe `repo`/end is closed at its other end."""
    channel.send(os.getpid())
    channel.close()
    with Path(repo, "end").open("rb") as end:
        end.read()
    os._exit(0)


def fork_under_the_lock(channel: Channel, repo: str) -> None:
    """Fork while a thread is in the middle of an append, under the space's lock."""
    log = cj.DecisionLog.open(repo, actor=ACTOR)
    log.head("s")
    inside = threading.Event()

    def never_done(file: int) -> None:
        inside.set()
        threading.Event().wait()

    os.fsync = never_done  # type: ignore[assignment]
    log.submit("s", alias(1))
    inside.wait(60)
    if not os.fork():
        live_on(channel, repo)
    channel.receive()


@contextmanager
def outliving(repo: Path, parent: Child) -> Iterator[None]:
    """Have the parent's forked child live until the end of the block."""
    pid = parent.receive()
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_fork_under_the_lock_neither_frees_it_nor_keeps_it_when_the_parent_dies(repo: Path) -> None:
    os.mkfifo(repo / "end")
    parent = start(fork_under_the_lock, repo)
    with outliving(repo, parent), cj.DecisionLog.open(repo) as log:
        with pytest.raises(cj.Unavailable):
            log.append("s", alias(2), timeout=0.2)
        parent.kill()
        assert parent.join() == -signal.SIGKILL
        assert log.append("s", alias(3), timeout=20).seq == 1
        assert [e.event for e in log.events("s")] == [alias(3)]


def fork_at_the_edge_of_the_lock(channel: Channel, repo: str, edge: str) -> None:
    """Fork while a thread opens, or closes, the descriptor of the space's lock; then go on appending."""
    log = cj.DecisionLog.open(repo, actor=ACTOR)
    log.head("s")
    main = threading.get_ident()
    lock = Path(repo, "coordjournal", "locks", "s").stat()
    at_the_edge, forked = threading.Event(), threading.Event()
    plain_open, plain_close = os.open, os.close

    def is_lock(file: int) -> bool:
        return threading.get_ident() != main and os.path.samestat(os.fstat(file), lock)

    def reach(name: str) -> None:
        if name == edge and not at_the_edge.is_set():
            at_the_edge.set()
            forked.wait(1)  # a fork that waits for the lock to be left alone comes later

    def slow_open(path: Any, *args: Any, **options: Any) -> int:
        file = plain_open(path, *args, **options)
        if is_lock(file):
            reach("open")
        return file

    def slow_close(file: int) -> None:
        if is_lock(file):
            reach("close")
        plain_close(file)

    os.open, os.close = slow_open, slow_close  # type: ignore[assignment]
    future = log.submit("s", alias(1))
    at_the_edge.wait(60)
    if not os.fork():
        live_on(channel, repo)
    forked.set()
    future.result()
    os.open, os.close = plain_open, plain_close
    channel.receive()


@pytest.mark.parametrize("edge", ["open", "close"])
def test_a_fork_at_the_moment_at_which_the_lock_is_opened_or_closed_does_not_keep_it(repo: Path, edge: str) -> None:
    os.mkfifo(repo / "end")
    (repo / "coordjournal" / "locks" / "s").touch()
    parent = start(fork_at_the_edge_of_the_lock, repo, edge)
    with outliving(repo, parent), cj.DecisionLog.open(repo) as log:
        until(lambda: log.head("s").seq == 1, "the append")
        parent.kill()
        assert parent.join() == -signal.SIGKILL
        assert log.append("s", alias(3), timeout=3).seq == 2


# Standing elsewhere


def append_and_move_on(channel: Channel, home: str) -> list[int]:
    os.chdir(home)
    with cj.DecisionLog.open("wiki.git", actor=ACTOR) as log:
        first = log.append("s", alias(1)).seq
        (Path(home) / "elsewhere").mkdir()
        os.chdir("elsewhere")
        return [first, log.append("s", alias(2)).seq, log.head("s").seq]


def test_a_log_stays_where_it_was_opened_when_the_process_changes_its_directory(quick_path: Path) -> None:
    assert start(append_and_move_on, quick_path).result() == [1, 2, 2]
    assert not (quick_path / "elsewhere" / "wiki.git").exists()
