"""Measures coordjournal side by side with `eventsourcing` on SQLite and with git's own commands.

Run it by `scripts/bench`, which sets it up. Every contestant stores the same decisions on the same
disk, in turns, and counts an append when it says that it is durable. Everything is made in a temporary
directory beside the checkout and removed afterwards.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple, Protocol

import coordjournal as cj
from coordjournal import maintenance
from coordjournal.store.files import file_system

CHECKOUT: Final = Path(__file__).resolve().parent.parent
SPACE: Final = "wiki"
ACTOR: Final = "alice@example.org"
THREADS: Final = 32
OTHERS: Final = ("eventsourcing", "git")


class Sizes(NamedTuple):
    """How much is measured."""

    appends: int = 600
    git_appends: int = 150
    rounds: int = 6  # in each of which every contestant has a turn: the machine's speed is the same for all
    thread_appends: int = 4_000
    git_thread_appends: int = 60
    events: int = 100_000
    small: int = 1_000
    growth: int = 300
    singles: int = 10_000
    repeats: int = 7
    million: int = 1_000_000
    versions: int = 100_000


QUICK: Final = Sizes(60, 20, 2, 400, 10, 5_000, 200, 40, 400, 2, 20_000, 5_000)


# What is told.


class Row(NamedTuple):
    """One measured number, what others have in its place, and what is aimed for."""

    section: str
    what: str
    unit: str
    ours: float
    others: dict[str, float]
    less_is_better: bool
    aim: str
    met: bool | None

    def ratio(self, other: str) -> float:
        """How many times better ours is."""
        theirs = self.others[other]
        return theirs / self.ours if self.less_is_better else self.ours / theirs


def shown(value: float, unit: str) -> str:
    if value and abs(value) < 10:
        return f"{value:.2f} {unit}".rstrip()
    return f"{value:,.{1 if abs(value) < 100 else 0}f} {unit}".rstrip()


class Report:
    """Rows and notes; each is printed as it comes."""

    HEADINGS: Final = ("measured", "coordjournal", "eventsourcing, SQLite", "git, command line", "to aim for")
    WIDTHS: Final = (50, 18, 26, 26, 20)

    def __init__(self, machine: dict[str, str], *, markdown: bool) -> None:
        self.machine = machine
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self._markdown = markdown
        self._section = ""

    def begin(self) -> None:
        for name, value in self.machine.items():
            print(f"* {name}: {value}" if self._markdown else f"{name:<12} {value}")
        print()
        self._line("`--only`", self.HEADINGS)
        if self._markdown:
            self._line("---", ("---", "---:", "---:", "---:", "---"))

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
    ) -> None:
        row = Row(section, what, unit, ours, others or {}, less_is_better, aim, met)
        self.rows.append(row)
        if section != self._section and not self._markdown:
            print()
        self._section = section
        theirs = [f"{shown(row.others[o], unit)} ({row.ratio(o):.1f}×)" if o in row.others else "" for o in OTHERS]
        verdict = {True: f"{aim} ✓", False: f"{aim} ✗", None: aim}[met]
        self._line(section, (what, shown(ours, unit), *theirs, verdict))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def fault(self, section: str, error: BaseException) -> None:
        text = f"{section} did not run: {type(error).__name__}: {error}"
        print(f"| {section} | {text} | | | | |" if self._markdown else f"\n{text}", flush=True)
        self.notes.append(text)

    def end(self) -> None:
        print("\n(×: how many times better coordjournal is; below 1 it is worse)\n")
        for note in self.notes:
            print(f"* {note}")

    def _line(self, section: str, cells: Sequence[str]) -> None:
        if self._markdown:
            print(f"| {' | '.join((section, *map(str.strip, cells)))} |", flush=True)
        else:
            texts = [f"{cells[0]:<{self.WIDTHS[0]}}"]
            texts += [f"{cell:>{width}}" for cell, width in zip(cells[1:4], self.WIDTHS[1:4], strict=True)]
            print("  ".join([*texts, f"  {cells[4]}"]).rstrip(), flush=True)


def machine(directory: Path) -> dict[str, str]:
    """Return what the numbers were measured on."""
    import pygit2

    libraries = [f"coordjournal {cj.__version__}", f"pygit2 {version('pygit2')} (libgit2 {pygit2.LIBGIT2_VERSION})"]
    for name in ("msgspec", "eventsourcing", "rpds-py", "immutables"):
        try:
            libraries.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    git = subprocess.run(["git", "--version"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.release()}, {file_system(directory) or 'unknown file system'}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "libraries": ", ".join([*libraries, f"SQLite {sqlite3.sqlite_version}", git]),
    }


def processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


# The contestants.


class Contestant(Protocol):
    """Something that stores decisions, one at a time, durably, in one order."""

    def append(self, number: int) -> None:
        """Store decision `number`; it is durable when this returns."""

    def close(self) -> None: ...


class Ours:
    def __init__(self, directory: Path) -> None:
        self.log = cj.DecisionLog.open(directory / "wiki.git", actor=ACTOR)

    def append(self, number: int) -> None:
        self.log.append(SPACE, alias(number), timeout=None)

    def close(self) -> None:
        self.log.close()


class EventSourcing:
    """An `Application` on SQLite as its documentation sets it up; a decision is an aggregate with one event."""

    def __init__(self, directory: Path) -> None:
        application = importlib.import_module("eventsourcing.application")
        self._decision = decision_class()
        self._database = str(directory / "decisions.sqlite")
        self._application = application.Application(
            env={"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": self._database}
        )

    def append(self, number: int) -> None:
        event = alias(number)
        self._application.save(self._decision(alias=event.alias, target=event.target))

    def pragmas(self) -> str:
        """Return what its own connections run with: it sets WAL mode, which stays, and nothing else."""
        with closing(sqlite3.connect(self._database)) as connection:
            names = ("journal_mode", "synchronous", "fullfsync", "wal_autocheckpoint")
            values = {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names}
        return ", ".join(f"{name}={value}" for name, value in values.items())

    def close(self) -> None:
        self._application.close()


@cache
def decision_class() -> Any:
    domain = importlib.import_module("eventsourcing.domain")

    def body(namespace: dict[str, Any]) -> None:
        namespace["__annotations__"] = {"alias": str, "target": str}
        namespace["__module__"] = __name__

    return types.new_class("Decision", (domain.Aggregate,), exec_body=body)


class GitCommands:
    """`git commit-tree` and `git update-ref`, one after the other; the tree is always the same, empty one."""

    DURABLY: Final = ("-c", "core.fsync=all", "-c", "core.fsyncMethod=fsync")

    def __init__(self, directory: Path) -> None:
        self._repo = directory / "plain.git"
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
            **{f"GIT_{role}_{what}": ACTOR for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
        }
        subprocess.run(["git", "init", "-q", "--bare", str(self._repo)], check=True, env=self._environment)
        self._tree = self._git("hash-object", "-t", "tree", "-w", os.devnull)
        self._head = ""
        self._turn = threading.Lock()  # the log has one order, so each commit needs the one before it

    def append(self, number: int) -> None:
        event = alias(number)
        with self._turn:
            parent = ("-p", self._head) if self._head else ()
            words = f"alias: {event.alias} → {event.target}"
            commit = self._git("commit-tree", self._tree, *parent, "-m", words)
            self._git("update-ref", f"refs/heads/{SPACE}", commit, self._head)
            self._head = commit

    def _git(self, *arguments: str) -> str:
        command = ["git", "-C", str(self._repo), *self.DURABLY, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=self._environment).stdout.strip()

    def close(self) -> None:
        pass


CONTESTANTS: Final[dict[str, Callable[[Path], Contestant]]] = {
    "coordjournal": Ours,
    "eventsourcing": EventSourcing,
    "git": GitCommands,
}


def alias(number: int) -> cj.AliasSet:
    return cj.AliasSet(alias=f"Name {number}", target=f"page:{number % 997}")


# The sections. Each measures, and tells the report.


class Bench:
    """What the sections share: sizes, a directory, logs that are made once."""

    def __init__(self, sizes: Sizes, directory: Path, report: Report) -> None:
        self.sizes = sizes
        self.directory = directory
        self.report = report
        self._made = count()

    def place(self) -> Path:
        """Return a new empty directory."""
        path = self.directory / f"{next(self._made)}"
        path.mkdir()
        return path

    @contextmanager
    def contestants(self) -> Iterator[dict[str, Contestant]]:
        """Yield those that can be had, each in a directory of its own."""
        made: dict[str, Contestant] = {}
        try:
            for name, make in CONTESTANTS.items():
                try:
                    made[name] = make(self.place())
                except (ImportError, OSError, subprocess.SubprocessError) as error:
                    self.report.note(f"{name} cannot be had here: {error}")
            yield made
        finally:
            for contestant in made.values():
                contestant.close()

    @cached_property
    def singles(self) -> Path:
        """A log of so many appends of one event each, its cache warm."""
        return self._log(1)

    @cached_property
    def batched(self) -> Path:
        """A log of so many events in appends of 100, its cache warm."""
        return self._log(100)

    def _log(self, per_append: int, events: int = 0) -> Path:
        repo = self.place() / "wiki.git"
        with cj.DecisionLog.open(repo, actor=ACTOR) as log:
            submit(log, SPACE, events or self.sizes.events, per_append)
            log.state(SPACE)
            assert sum(1 for _ in log.events(SPACE)) == (events or self.sizes.events)
        return repo

    def small(self) -> Path:
        return self._log(100, self.sizes.small)

    def million(self) -> Path:
        return self._log(1000, self.sizes.million)


def submit(log: cj.DecisionLog, space: str, events: int, per_append: int) -> None:
    """Submit without waiting, some events at a time, and wait for these."""
    at_a_time = max(per_append, 20_000 // per_append * per_append)
    for start in range(0, events, at_a_time):
        end = min(start + at_a_time, events)
        done = [
            log.submit(space, [alias(n) for n in range(first, min(first + per_append, end))])
            for first in range(start, end, per_append)
        ]
        for future in done:
            future.result()


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def p50_ms(times: Sequence[float]) -> float:
    return 1000 * median(times)


def probe(bench: Bench) -> None:
    """The disk alone, so that the other numbers can be related."""
    place = bench.place()

    def new_file(number: int) -> None:
        file = os.open(place / str(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        os.write(file, bytes(4096))
        os.fsync(file)
        os.close(file)

    times = [seconds(lambda n=n: new_file(n)) for n in range(bench.sizes.appends)]  # type: ignore[misc]
    bench.report.row("probe", "disk: a new file of 4 KiB, synced, p50", "ms", p50_ms(times))
    file = os.open(place / "growing", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def more() -> None:
        os.write(file, bytes(500))
        os.fsync(file)

    times = [seconds(more) for _ in range(bench.sizes.appends)]
    os.close(file)
    bench.report.row("probe", "disk: 500 bytes more in a file, synced, p50", "ms", p50_ms(times))


def appends(bench: Bench) -> None:
    """Durable appends, one at a time, by turns."""
    sizes = bench.sizes
    with bench.contestants() as contestants:
        times: dict[str, list[float]] = {name: [] for name in contestants}
        numbers = count()
        used = 0.0
        for _ in range(sizes.rounds):
            for name, contestant in contestants.items():
                total = sizes.git_appends if name == "git" else sizes.appends
                before = time.process_time()
                for _ in range(total // sizes.rounds):
                    times[name].append(seconds(lambda c=contestant: c.append(next(numbers))))  # type: ignore[misc]
                used += time.process_time() - before if name == "coordjournal" else 0
        p50 = {name: p50_ms(found) for name, found in times.items()}
        ours = p50.pop("coordjournal")
        bench.report.row("appends", "a durable append, one at a time, p50", "ms", ours, p50)
        bench.report.row(
            *(
                "appends",
                "  processor time, compaction's share included",
                "ms",
                1000 * used / len(times["coordjournal"]),
            )
        )
        if isinstance(peer := contestants.get("eventsourcing"), EventSourcing):
            bench.report.note(
                f"eventsourcing: one `Application.save` an append; its connections have {peer.pragmas()} "
                "(synchronous=2 is FULL: the WAL is synced at every commit); it judges nothing and knows no keys."
            )
        if "git" in contestants:
            bench.report.note(
                f"git: `git commit-tree` and `git update-ref`, each with {' '.join(GitCommands.DURABLY)}: objects and "
                "refs are synced, the directories' entries are not (coordjournal syncs these too); the tree is empty "
                "and always the same."
            )


def threads(bench: Bench) -> None:
    """Many threads that each append and wait for the receipt."""
    sizes = bench.sizes
    with bench.contestants() as contestants:
        rates: dict[str, list[float]] = {name: [] for name in contestants}
        numbers = count()
        for _ in range(sizes.rounds):
            for name, contestant in contestants.items():
                total = sizes.git_thread_appends if name == "git" else sizes.thread_appends
                rates[name].append(total / seconds(lambda c=contestant, t=total: in_threads(c, t, numbers)))  # type: ignore[misc]
    found = {name: median(each) for name, each in rates.items()}
    ours = found.pop("coordjournal")
    theirs = found.get("eventsourcing")
    bench.report.row(
        *("threads", f"durable appends of {THREADS} threads", "/s", ours, found),
        less_is_better=False,
        aim="≥ 1.5× eventsourcing",
        met=ours >= 1.5 * theirs if theirs else None,
    )


def in_threads(contestant: Contestant, total: int, numbers: Iterator[int]) -> None:
    left = threading.Semaphore(total)
    faults: list[BaseException] = []

    def work() -> None:
        while left.acquire(blocking=False):
            try:
                contestant.append(next(numbers))
            except Exception as error:  # noqa: BLE001  # it is raised where the threads were started
                faults.append(error)
                return

    workers = [threading.Thread(target=work) for _ in range(THREADS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if faults:
        raise faults[0]


def batches(bench: Bench) -> None:
    """Batches of 100 events, submitted without waiting."""
    total = bench.sizes.events
    with cj.DecisionLog.open(bench.place() / "wiki.git", actor=ACTOR) as log:
        rates = []
        for turn in range(bench.sizes.rounds):
            asked = [[alias(n) for n in range(first, first + 100)] for first in range(0, total, 100)]

            def work(space: str = f"space-{turn}", asked: list[list[cj.AliasSet]] = asked) -> None:
                for future in [log.submit(space, batch) for batch in asked]:
                    future.result()

            rates.append(total / seconds(work))
    rate = median(rates)
    bench.report.row(
        *("batches", f"{total:,} events in batches of 100, not waiting", "events/s", rate),
        less_is_better=False,
        aim="≥ 100,000 events/s",
        met=rate >= 100_000,
    )


READ: Final = """
import sys, time
import coordjournal as cj
with cj.DecisionLog.open(sys.argv[1]) as log:
    log.head(sys.argv[2])
    start = time.perf_counter()
    count = sum(1 for _ in log.events(sys.argv[2]))
    print(count / (time.perf_counter() - start))
"""


def reading(bench: Bench) -> None:
    """All events, cold from git and warm from the cache, each time in a new process."""
    total = bench.sizes.events
    for repo, kind in ((bench.singles, f"{total:,} appends of 1"), (bench.batched, f"{total // 100:,} appends of 100")):
        cold = []
        for _ in range(2):
            forget(repo)
            cold.append(child(READ, repo, SPACE))
        bench.report.row(
            *("reading", f"reading {total:,} events cold, {kind}", "events/s", max(cold)), less_is_better=False
        )
        warm = median([child(READ, repo, SPACE) for _ in range(bench.sizes.repeats)])
        bench.report.row(
            *("reading", "  again, warm", "events/s", warm),
            less_is_better=False,
            aim="≥ 500,000 events/s",
            met=warm >= 500_000,
        )


def forget(repo: Path) -> None:
    """Make a log cold: its cache is gone. What the kernel keeps of its files stays."""
    shutil.rmtree(repo / "coordjournal" / "cache")


def child(code: str, *arguments: object) -> float:
    """Return the number that a new Python process prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=CHECKOUT, check=False)
    if done.returncode:
        raise RuntimeError(f"a child process failed: {done.stderr.strip().splitlines()[-1:]}")
    return float(done.stdout)


OPEN: Final = """
import time
start = time.perf_counter()
import sys
import coordjournal as cj
with cj.DecisionLog.open(sys.argv[1]) as log:
    found = log.state(sys.argv[2]).resolve("Name 4321")
    print(time.perf_counter() - start)
assert found.hops == ("Name 4321", f"page:{4321 % 997}")
"""


def opening(bench: Bench) -> None:
    """A new process that opens the space and asks one name."""
    total, repo = bench.sizes.events, bench.singles
    inside, whole = [], []
    for _ in range(bench.sizes.repeats):
        start = time.perf_counter()
        inside.append(child(OPEN, repo, SPACE))
        whole.append(time.perf_counter() - start)
    bench.report.row(
        *("opening", f"opening {total:,} events warm, one name asked", "s", median(inside)),
        aim="< 0.3 s",
        met=median(inside) < 0.3,
    )
    bench.report.row("opening", "  the whole process, from its start to its end", "s", median(whole))
    forget(repo)
    start = time.perf_counter()
    cold = child(OPEN, repo, SPACE)
    bench.report.row("opening", "  cold, the cache being made", "s", cold)
    bench.report.row("opening", "  cold, the whole process", "s", time.perf_counter() - start)


def growth(bench: Bench) -> None:
    """An append to a small log and to a large one, by turns."""
    sizes = bench.sizes
    repos = (bench.small(), bench.batched)
    logs = [cj.DecisionLog.open(repo, actor=ACTOR) for repo in repos]
    times: tuple[list[float], list[float]] = ([], [])
    try:
        for number in range(sizes.growth + 20):
            for log, found in zip(logs, times, strict=True):
                event = cj.AliasSet(f"late name {number}", "page:1")
                found.append(seconds(lambda log=log, event=event: log.append(SPACE, event, timeout=None)))  # type: ignore[misc]
    finally:
        for log in logs:
            log.close()
    small, large = (p50_ms(found[20:]) for found in times)  # the first ones open the index of keys
    ratio = large / small
    bench.report.row("growth", f"an append at {sizes.small:,} entries, p50", "ms", small)
    bench.report.row("growth", f"an append at {sizes.events:,} entries, p50", "ms", large)
    bench.report.row("growth", "  the second by the first", "", ratio, aim="≤ 1.2", met=ratio <= 1.2)


MEMORY: Final = """
import resource, sys, time
def resident(field):
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(field)) * 1024 / 1e6
    except OSError:  # macOS; on Linux its maxrss would include the parent's
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
import coordjournal as cj
from coordjournal.store import git
before = resident("VmRSS")
start = time.perf_counter()
with cj.DecisionLog.open(sys.argv[1]) as log:
    state = log.state(sys.argv[2])
    took = time.perf_counter() - start
    assert len(state.aliases) == int(sys.argv[3])
    print({"grown": resident("VmRSS") - before, "peak": resident("VmHWM"), "took": took}[sys.argv[4]])
"""


def memory(bench: Bench) -> None:
    """What the state of so many aliases takes in a new process."""
    total = bench.sizes.events
    grown = median([child(MEMORY, bench.singles, SPACE, total, "grown") for _ in range(3)])
    bench.report.row("memory", f"memory of {total:,} aliases, opened warm", "MB", grown)
    peak = child(MEMORY, bench.singles, SPACE, total, "peak")
    bench.report.row("memory", "  the whole process at its peak", "MB", peak)


def million(bench: Bench) -> None:
    """The same with ten times as many."""
    repo, total = bench.million(), bench.sizes.million
    took = median([child(MEMORY, repo, SPACE, total, "took") for _ in range(3)])
    bench.report.row("million", f"opening {total:,} aliases warm", "s", took, aim="< 1.5 s", met=took < 1.5)
    peak = child(MEMORY, repo, SPACE, total, "peak")
    bench.report.row("million", "  the whole process at its peak", "MB", peak, aim="< 500 MB", met=peak < 500)


def compaction(bench: Bench) -> None:
    """Many appends one at a time, and the files that there are meanwhile."""
    total = bench.sizes.singles
    repo = bench.place() / "wiki.git"
    packs = repo / "objects" / "pack"
    most = 0
    with cj.DecisionLog.open(repo, actor=ACTOR) as log:
        start = time.perf_counter()
        for number in range(total):
            log.append(SPACE, alias(number), timeout=None)
            if number % 10 == 0:
                most = max(most, sum(1 for _ in packs.iterdir()))
        took = time.perf_counter() - start
    bench.report.row(*("compaction", f"{total:,} appends, one at a time", "/s", total / took), less_is_better=False)
    bench.report.row("compaction", "  most files in objects/pack meanwhile", "files", most)
    bench.report.row("compaction", "  size afterwards", "MB", size_mb(packs))
    took = seconds(lambda: maintenance.compact(repo))
    bench.report.row("compaction", "  compacted on demand, size", "MB", size_mb(packs))
    bench.report.row("compaction", "  compacted on demand, files", "files", sum(1 for _ in packs.iterdir()))
    bench.report.row("compaction", "  compacting on demand takes", "s", took)


def size_mb(directory: Path) -> float:
    return sum(path.stat().st_size for path in directory.iterdir()) / 1e6


def maps(bench: Bench) -> None:
    """The map under the state, against hash tries: a version an item, and opening a stored one."""
    from coordjournal.persistent import PersistentMap

    total = bench.sizes.versions
    items = [(f"Name {n}", (f"page:{n % 997}", n)) for n in range(total)]

    def ours() -> Any:
        made: PersistentMap[str, tuple[str, int]] = PersistentMap()
        for name, value in items:
            made = made.with_item(name, value)
        return made

    def trie() -> Any:
        made = importlib.import_module("rpds").HashTrieMap()
        for name, value in items:
            made = made.insert(name, value)
        return made

    def immutable() -> Any:
        made = importlib.import_module("immutables").Map()
        for name, value in items:
            made = made.set(name, value)
        return made

    stored = dict(items)
    kinds: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "PersistentMap": (ours, lambda: PersistentMap(dict(stored))),
        "rpds HashTrieMap": (trie, lambda: importlib.import_module("rpds").HashTrieMap(stored)),
        "immutables Map": (immutable, lambda: importlib.import_module("immutables").Map(stored)),
    }
    for name, (build, convert) in kinds.items():
        try:
            took = seconds(build)
        except ImportError:
            bench.report.note(f"{name} is not installed, and not measured.")
            continue
        found = build()
        look = seconds(lambda found=found: [found[key] for key, _ in items])  # type: ignore[misc]
        row = bench.report.row
        row("maps", f"{name}: {total:,} versions, one item each", "µs each", 1e6 * took / total)
        row("maps", "  opened from a dict", "ms", 1000 * min(seconds(convert) for _ in range(3)))
        row("maps", "  a look-up after so many versions", "µs", 1e6 * look / total)


def etcd(bench: Bench) -> None:
    """Appends through the authority that etcd elects, beside raw puts."""
    if shutil.which("etcd") is None:
        bench.report.note("There is no etcd on the PATH: what needs one was not measured.")
        return
    import bench_etcd

    bench_etcd.measure(bench.place(), bench.report, quick=bench.sizes == QUICK)


SECTIONS: Final[dict[str, Callable[[Bench], None]]] = {
    section.__name__: section
    for section in (
        *(probe, appends, threads, batches, growth, reading, opening, memory, compaction),
        *(etcd, maps, million),
    )
}
ON_REQUEST: Final = ("maps", "million")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke run of less than half a minute")
    parser.add_argument("--full", action="store_true", help="a million aliases as well")
    parser.add_argument("--maps", action="store_true", help="the map under the state against other libraries as well")
    parser.add_argument("--only", metavar="SECTION,…", help=f"only these of {', '.join(SECTIONS)}")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write everything to a file as well")
    arguments = parser.parse_args()
    chosen = [name for name in SECTIONS if name not in ON_REQUEST or getattr(arguments, WISHES[name])]
    if arguments.only:
        chosen = arguments.only.split(",")
        if unknown := set(chosen) - set(SECTIONS):
            parser.error(f"no such section: {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the directory is removed
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=beside()) as directory:
        sizes = QUICK if arguments.quick else Sizes()
        report = Report(machine(Path(directory)), markdown=arguments.markdown)
        report.begin()
        failed = run(Bench(sizes, Path(directory), report), chosen)
        report.end()
    if arguments.json:
        rows = [row._asdict() for row in report.rows]
        told = {"machine": report.machine, "sizes": sizes._asdict(), "rows": rows, "notes": report.notes}
        arguments.json.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 1 if failed else 0


WISHES: Final = {"maps": "maps", "million": "full"}


def beside() -> Path:
    """Return the directory that the checkout is in, or the checkout where nothing can be made there."""
    return CHECKOUT.parent if os.access(CHECKOUT.parent, os.W_OK) else CHECKOUT


def run(bench: Bench, chosen: Sequence[str]) -> bool:
    """Run the chosen sections; whether any of them failed."""
    failed = False
    if (kind := file_system(bench.directory)) in ("tmpfs", "ramfs"):
        bench.report.note(f"The directory is on {kind}, where nothing is durable: the times of appends mean nothing.")
    for name in chosen:
        try:
            SECTIONS[name](bench)
        except Exception as error:  # noqa: BLE001  # the others are still worth measuring
            bench.report.fault(name, error)
            failed = True
    return failed


if __name__ == "__main__":
    sys.exit(main())
