"""What the child processes of tests with etcd do."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any, Final

import coordjournal as cj
from tests.integration.processes import Channel

ACTOR: Final = "alice@example.org"
SPACE: Final = "s"


def alias_of(key: str) -> cj.AliasSet:
    return cj.AliasSet(alias=key, target="page:1")


def answer_of(log: cj.DecisionLog, key: str, timeout: float | None = 20.0, space: str = SPACE) -> list[Any]:
    """Append under a key, and return what became of it in JSON."""
    try:
        receipt = log.append(space, alias_of(key), key=key, actor=ACTOR, timeout=timeout)
    except cj.CoordJournalError as error:
        return [error.code]
    return ["appended", receipt.seq, receipt.commit, receipt.via, receipt.duplicate, receipt.term]


def obey(channel: Channel, repo: str, etcd: str, prefix: str, role: str, ttl: int) -> list[Any]:
    """Append under each key that the test sends, and send what became of it; end in order at `None`."""
    with cj.DecisionLog.open(repo, etcd=etcd, prefix=prefix, role=role, ttl=ttl) as log:  # type: ignore[arg-type]
        if role == "holder":
            log.serve()
        channel.send("ready")
        while (key := channel.receive()) is not None:
            channel.send(answer_of(log, key))
        seq = log.state(SPACE).seq
    return [seq]


def pour(channel: Channel, repo: str, etcd: str, prefix: str, name: str, window: int) -> list[Any]:
    """Keep `window` appends on their way until the test says stop; return all answers in order."""
    answers: list[Any] = []
    stop = threading.Event()

    def listen() -> None:
        channel.receive()
        stop.set()

    threading.Thread(target=listen, daemon=True).start()
    with cj.DecisionLog.open(repo, etcd=etcd, prefix=prefix, ttl=2, actor=ACTOR) as log:
        channel.send("ready")
        under_way: list[Any] = []
        number = 0
        while not stop.is_set() or under_way:
            while len(under_way) < window and not stop.is_set():
                key = f"{name}-{number}"
                under_way.append((key, log.submit(SPACE, alias_of(key), key=key)))
                number += 1
            if under_way:
                key, future = under_way.pop(0)
                receipt = future.result(60)
                answers.append([key, receipt.seq, receipt.commit])
                if len(answers) == 20:
                    channel.send("under way")
    return answers


def hold_with_slow_disk(channel: Channel, repo: str, etcd: str, prefix: str, from_start: bool) -> list[Any]:
    """Append, then have the disk stand still in the middle of the next append, or of the takeover, until told."""
    goes_on = threading.Event()
    plain = os.fsync

    def stuck(fd: Any) -> None:
        if not goes_on.is_set():
            channel.send("stuck")
            goes_on.wait()
        plain(fd)

    if from_start:
        os.fsync = stuck
    with cj.DecisionLog.open(repo, etcd=etcd, prefix=prefix, ttl=2, actor=ACTOR) as log:
        answers = [] if from_start else [answer_of(log, "before")]
        os.fsync = stuck
        future = log.submit(SPACE, alias_of("slow"), key="slow")
        channel.receive()
        goes_on.set()
        receipt = future.result(60)
        answers.append(["appended", receipt.seq, receipt.commit, receipt.via, receipt.duplicate, receipt.term])
    return answers


def die_before_the_branch_moves(channel: Channel, repo: str, etcd: str, prefix: str) -> None:
    """Publish an append, and be killed before the branch follows."""
    from coordjournal.store.git import GitStore

    def die(*_: object) -> None:
        channel.send("published")
        threading.Event().wait()

    log = cj.DecisionLog.open(repo, etcd=etcd, prefix=prefix, ttl=2, actor=ACTOR)
    log.append(SPACE, alias_of("first"), key="first")
    GitStore.advance = die  # type: ignore[method-assign, assignment]
    log.submit(SPACE, alias_of("published"), key="published")
    threading.Event().wait()


def fork_workers(channel: Channel, repo: str, etcd: str, prefix: str) -> list[Any]:
    """Make a log, fork two workers that use it, use it here; fork once more, and let that child end as programs do."""
    log = cj.DecisionLog.open(repo, etcd=etcd, prefix=prefix, ttl=2, actor=ACTOR)
    pids = []
    for number in range(2):
        pid = os.fork()
        if not pid:
            channel.send([number, answer_of(log, f"worker-{number}")])
            log.close()
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    answers = [answer_of(log, "parent")]
    pid = os.fork()
    if not pid:
        try:
            log.append(SPACE, alias_of("child"), key="child")
        except cj.ForkedProcess:
            channel.send("forked")
        try:
            sys.exit()  # runs what the parent asked to be run at its end
        except SystemExit:
            import atexit

            atexit._run_exitfuncs()
            os._exit(0)
    os.waitpid(pid, 0)
    answers.append(answer_of(log, "parent again"))
    answers.append(answer_of(log, "parent-again"))
    log.close()
    return answers


def many_spaces(channel: Channel, repo: str, etcd: str, prefix: str, name: str, spaces: int) -> list[Any]:
    """Append to so many spaces of one's own and to all of the others'."""
    with cj.DecisionLog.open(repo, etcd=etcd, prefix=prefix, ttl=5, actor=ACTOR) as log:
        futures = [log.submit(f"{name}-{n}", alias_of("own"), key=f"own-{n}") for n in range(spaces)]
        own = [future.result(60).seq for future in futures]
        channel.send("own")
        others = channel.receive()
        futures = [
            log.submit(f"{other}-{n}", alias_of(name), key=f"{name}-{n}")
            for other in others
            for n in range(0, spaces, 10)
        ]
        via = [future.result(60).via for future in futures]
        threads = threading.active_count()
        channel.send("others")
        channel.receive()
    return [own, via, threads]
