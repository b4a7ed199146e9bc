"""The part of the bench that needs an etcd: appends through the authority that it elects, beside raw puts.

Everything in one run, on one disk, with one etcd process on loopback, whose data are on that disk too.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from statistics import median
from typing import Final, Protocol

import coordjournal as cj
from coordjournal.authority.settings import Settings
from coordjournal.authority.wire import Keys
from coordjournal.etcd import Put
from coordjournal.etcd.client import EtcdClient, parse_endpoints
from coordjournal.overview import status
from coordjournal.testing.etcd import EtcdServer

SPACE: Final = "wiki"
THREADS: Final = 32
TTL: Final = 3
VALUE: Final = b"x" * 200
SINGLES: Final = 300
QUICK_SINGLES: Final = 40
TOTAL: Final = 6_000
QUICK_TOTAL: Final = 640
ROUNDS: Final = 20
QUICK_ROUNDS: Final = 2
SIZES: Final = (100, 100_000)
QUICK_SIZES: Final = (100, 1_000)
SECTION: Final = "etcd"


class Rows(Protocol):
    """What a bench's report does with a measured number."""

    def row(
        self,
        section: str,
        what: str,
        unit: str,
        ours: float,
        others: dict[str, float] | None = None,
        *,
        less_is_better: bool = True,
        aim: str = "",
        met: bool | None = None,
    ) -> None: ...


def measure(directory: Path, report: Rows, *, quick: bool) -> None:
    """Measure everything that etcd is for; `directory` is on the disk that is measured."""
    singles, total, rounds = (QUICK_SINGLES, QUICK_TOTAL, QUICK_ROUNDS) if quick else (SINGLES, TOTAL, ROUNDS)
    with EtcdServer(directory / "etcd") as server, ExitStack() as stack:
        raw = stack.enter_context(closing(EtcdClient(parse_endpoints(server.endpoint))))
        embedded = stack.enter_context(cj.DecisionLog.open(directory / "embedded.git"))
        repo = directory / "wiki.git"
        holder = stack.enter_context(cj.DecisionLog.open(repo, etcd=server.endpoint, ttl=TTL))
        client = stack.enter_context(cj.DecisionLog.open(repo, etcd=server.endpoint, ttl=TTL, role="client"))
        contestants: dict[str, Callable[[int], object]] = {
            "a raw put": lambda number: raw.txn((), [Put(b"/raw/%d" % (number % 64), VALUE)], timeout=10),
            "an embedded append": lambda number: embedded.append(SPACE, alias(number)),
            "an append by the holder": lambda number: holder.append(SPACE, alias(number)),
            "an append by another process": lambda number: client.append(SPACE, alias(number)),
        }
        for contestant in contestants.values():
            contestant(0)
        _singles(report, contestants, singles)
        _together(report, directory, server.endpoint, contestants, total)
    _failovers(report, directory, rounds)
    _sizes(report, directory, QUICK_SIZES if quick else SIZES, rounds)


def _singles(report: Rows, contestants: dict[str, Callable[[int], object]], singles: int) -> None:
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(1, singles + 1):  # in turns: the machine's speed is the same for all
        for name, contestant in contestants.items():
            times[name].append(seconds(lambda c=contestant, n=number: c(n)))  # type: ignore[misc]
    p50 = {name: 1000 * median(found) for name, found in times.items()}
    bound = p50["an embedded append"] + 1.5 * p50["a raw put"]
    for name in contestants:
        aimed = name == "an append by the holder"
        aim = f"≤ embedded + 1.5 puts, {bound:.2f}" if aimed else ""
        report.row(SECTION, f"{name}, p50", "ms", p50[name], aim=aim, met=p50[name] <= bound if aimed else None)
        report.row(SECTION, "  p99", "ms", 1000 * sorted(times[name])[int(0.99 * len(times[name]))])


def _together(
    report: Rows, directory: Path, endpoint: str, contestants: dict[str, Callable[[int], object]], total: int
) -> None:
    puts = in_threads(contestants["a raw put"], total)
    report.row(SECTION, f"raw puts, {THREADS} threads", "a second", puts, less_is_better=False)
    held = in_threads(contestants["an append by the holder"], total)
    report.row(
        SECTION,
        f"appends by the holder, {THREADS} threads",
        "a second",
        held,
        less_is_better=False,
        aim=f"≥ 2 × puts, {2 * puts:,.0f}",
        met=held >= 2 * puts,
    )
    forwarded = in_processes(directory / "wiki.git", endpoint, total)
    report.row(
        SECTION,
        "appends of 4 other processes, 8 threads each",
        "a second",
        forwarded,
        less_is_better=False,
        aim=f"≥ 1 × puts, {puts:,.0f}",
        met=forwarded >= puts,
    )


def _failovers(report: Rows, directory: Path, rounds: int) -> None:
    repo = directory / "failover.git"
    with EtcdServer(directory / "etcd-2") as server, ExitStack() as stack:
        settings = Settings(server.endpoint)
        keys = Keys(settings.prefix)
        raw = stack.enter_context(closing(settings.client()))
        log = stack.enter_context(cj.DecisionLog.open(repo, etcd=server.endpoint, ttl=TTL))
        log.append(SPACE, alias(0))
        killed = []
        for number in range(rounds):
            with worker(repo, server.endpoint) as victim:
                _hand_over(raw, keys, session_of(victim, repo, settings), log)
                victim.send_signal(signal.SIGKILL)
                killed.append(seconds(lambda n=number: log.append(SPACE, alias(n), timeout=60)))  # type: ignore[misc]
        with worker(repo, server.endpoint) as other:
            sessions = session_of(other, repo, settings), session_of(None, repo, settings)
            handed = [_hand_over(raw, keys, sessions[number % 2], log) for number in range(rounds)]
        left = []
        for _ in range(rounds):
            with worker(repo, server.endpoint) as leaving:
                _hand_over(raw, keys, session_of(leaving, repo, settings), log)
                before = log.append(SPACE, alias(0)).term
                leaving.send_signal(signal.SIGTERM)
                left.append(seconds(lambda term=before: _await_term(log, SPACE, term)))  # type: ignore[misc]
    aim = f"≤ {TTL + 0.5} s"
    what = f"from SIGKILL of the holder to the next append, TTL {TTL} s"
    report.row(SECTION, f"{what}, p50", "s", median(killed), aim=aim, met=median(killed) <= TTL + 0.5)
    report.row(SECTION, "  the longest", "s", max(killed), aim=aim, met=max(killed) <= TTL + 0.5)
    p50 = 1000 * median(handed)
    report.row(
        SECTION, "from asking for a handoff to an append of the next term, p50", "ms", p50, aim="≤ 50 ms", met=p50 <= 50
    )
    report.row(SECTION, "  the longest", "ms", 1000 * max(handed))
    what = "from SIGTERM to an idle holder to an append of the next term"
    report.row(SECTION, f"{what}, p50", "s", median(left), aim="≤ 0.3 s", met=median(left) <= 0.3)
    report.row(SECTION, "  the longest", "s", max(left), aim="≤ 0.3 s", met=max(left) <= 0.3)


def _sizes(report: Rows, directory: Path, sizes: Sequence[int], rounds: int) -> None:
    """Hand spaces of several sizes over to processes that have not read them yet; the cache on disk is warm."""
    repo = directory / "sizes.git"
    with EtcdServer(directory / "etcd-3") as server, ExitStack() as stack:
        settings = Settings(server.endpoint)
        keys = Keys(settings.prefix)
        raw = stack.enter_context(closing(settings.client()))
        log = stack.enter_context(cj.DecisionLog.open(repo, etcd=server.endpoint, ttl=TTL))
        spaces = {size: f"of-{size}" for size in sizes}
        times: dict[int, list[float]] = {size: [] for size in sizes}
        for size, space in spaces.items():
            for first in range(0, size, 100):
                log.append(space, [alias(first + number) for number in range(100)], timeout=60)
        for _ in range(rounds):
            for size, space in spaces.items():  # in turns
                with worker(repo, server.endpoint) as other:
                    session = session_of(other, repo, settings)
                    times[size].append(_hand_over(raw, keys, session, log, space))
        for size, found in times.items():
            what = f"handing a space of {size:,} entries to a process that is new to it, p50"
            report.row(SECTION, what, "ms", 1000 * median(found))


def _hand_over(raw: EtcdClient, keys: Keys, session: str, log: cj.DecisionLog, space: str = SPACE) -> float:
    """Ask that the space be handed over to a session; return how long it took until an append told of it."""
    before = log.append(space, alias(0)).term
    start = time.perf_counter()
    lease, _ = raw.grant(2, timeout=10)
    raw.txn((), [Put(keys.successor(space), session.encode(), lease)], timeout=10)
    _await_term(log, space, before)
    return time.perf_counter() - start


def _await_term(log: cj.DecisionLog, space: str, before: int) -> None:
    """Append until an append tells of a term after `before`."""
    while log.append(space, alias(1), timeout=60).term == before:
        pass


def session_of(process: subprocess.Popen[str] | None, repo: Path, settings: Settings) -> str:
    """Return the session of a process, of this one if None."""
    pid = os.getpid() if process is None else process.pid
    return next(node.session for node in status(repo, settings)[1] if node.pid == pid)


WORKER: Final = """
import os, signal, sys, threading
import coordjournal as cj
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
repo, endpoint, role, total = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
with cj.DecisionLog.open(repo, etcd=endpoint, ttl=3, role=role) as log:
    log.append("wiki", cj.AliasSet(alias=f"{os.getpid()}", target="page:0"))
    print("ready", flush=True)
    sys.stdin.readline()
    def work(thread):
        for number in range(total // 8):
            log.append("wiki", cj.AliasSet(alias=f"{os.getpid()}-{thread}-{number}", target="page:0"), timeout=60)
    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    print("done", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def worker(repo: Path, endpoint: str, role: str = "auto", total: int = 0) -> Iterator[subprocess.Popen[str]]:
    """Start a process with the log open; it appends when it is told to, and ends at the end of the block."""
    arguments = [sys.executable, "-c", WORKER, str(repo), endpoint, role, str(total)]
    process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


def in_processes(repo: Path, endpoint: str, total: int) -> float:
    """Return how many appends a second four processes forward together."""
    with ExitStack() as stack:
        processes = [stack.enter_context(worker(repo, endpoint, "client", total // 4)) for _ in range(4)]
        start = time.perf_counter()
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "done\n"
        return total // 32 * 32 / (time.perf_counter() - start)


def in_threads(contestant: Callable[[int], object], total: int) -> float:
    """Return how many of it there are a second with so many threads."""

    def work(first: int) -> None:
        for number in range(first, total, THREADS):
            contestant(number)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(THREADS)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return total / (time.perf_counter() - start)


def alias(number: int) -> cj.AliasSet:
    return cj.AliasSet(alias=f"Name {number}", target=f"page:{number % 997}")


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
