"""A run: several real processes and a real etcd, faults at random, then the checker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any, Final

import msgspec

from coordjournal.authority.wire import Role
from coordjournal.entry import Head
from coordjournal.errors import CoordJournalError
from coordjournal.store.git import GitStore
from coordjournal.testing.etcd import EtcdCluster, EtcdFailed, EtcdServer
from coordjournal.testing.histories import (
    AppendInvoked,
    AppendReturned,
    Event,
    EventFile,
    Examined,
    Fault,
    FinalHead,
    Healed,
    Logged,
    ReadInvoked,
    ReadReturned,
    Revision,
    check,
    logged,
    read_events,
)
from tests.chaos import faults
from tests.chaos.faults import Ongoing
from tests.chaos.proxy import Proxies
from tests.chaos.slots import Slot
from tests.chaos.watching import BranchWatch, Gateway, LockWatch, NoAnswer, Watching
from tests.chaos.worker import PREFIX, Config, tracebacks
from tests.support import CHECKOUT

BOUND_SECONDS: Final = 20.0
"""Within so many seconds after all faults are healed an append must succeed in every space."""

_TICK_SECONDS: Final = 0.02
_QUIET_SECONDS: Final = 20.0  # within which no intent waits any more
_END_SECONDS: Final = 30.0
_AT_ONCE: Final = 3  # faults
_OWED_SECONDS: Final = 20.0  # for so much longer a storm lasts where one that is to come has not come yet


class Settings(msgspec.Struct, frozen=True):
    """What a run is like. `members` is of etcd, `ttl` the sessions', in seconds."""

    seed: int = 0
    seconds: float = 60.0
    members: int = 1
    workers: int = 4
    callers: int = 2
    spaces: tuple[str, ...] = ("alpha", "beta")
    ttl: int = 2
    pause_seconds: float = 0.02
    storm_seconds: float = 8.0
    fault_seconds: float = 0.6
    kinds: tuple[str, ...] = ()
    """The names of the functions in `faults` to choose from; all if there are none."""
    first: tuple[str, ...] = ()
    """The names of those that come before any is chosen by chance; a storm lasts until all of them came."""


class Result(msgspec.Struct):
    """What a run came to: `findings` and `problems` are empty where all went well."""

    seed: int
    members: int
    seconds: float
    operations: dict[str, int]
    faults: dict[str, int]
    log: dict[str, int]
    revisions: int
    healed_seconds: list[float]
    findings: list[str]
    problems: list[str]
    history: str = ""

    @property
    def good(self) -> bool:
        """Whether nothing was lost, and the run itself went as it should."""
        return not (self.findings or self.problems)


class Chaos:
    """One run in `directory`, which must be empty; `run` returns its result."""

    def __init__(self, settings: Settings, directory: Path, say: Callable[[str], object] = lambda _: None) -> None:
        self.settings = settings
        self.random = Random(f"{settings.seed} {settings.members}")
        self.repository = directory / "wiki.git"
        self.history = directory / "history"
        self.compacted = 0
        self.members: Sequence[EtcdServer] = ()
        self._directory = directory
        self._say = say
        self._stack = ExitStack()
        self._slots: list[Slot] = []
        self._ongoing: list[tuple[float, Ongoing]] = []
        self._counts: Counter[str] = Counter()
        self._healed: list[float] = []
        self._probing: set[str] = set()  # workers that have yet to say that they have appended to every space
        self._problems: list[str] = []
        self._reached = False  # whether a worker came to a place at which something was to happen
        self._owed = [begin for name in settings.first for begin in faults.KINDS if begin.__name__ == name]
        assert len(self._owed) == len(settings.first), settings.first

    def run(self) -> Result:
        """Set everything up, let the storm blow, wait for quiet, check; whatever happens, leave no process behind."""
        began = time.monotonic()
        self.history.mkdir(parents=True)
        with self._stack:
            self._set_up()
            self._calm()
            deadline = began + self.settings.seconds
            while time.monotonic() < deadline:
                self._storm(min(deadline, time.monotonic() + self.settings.storm_seconds))
                self._calm()
            self._end()
        self._say("checking")
        return self._result(time.monotonic() - began)

    # Its parts.

    def _set_up(self) -> None:
        settings = self.settings
        self._write = self._stack.enter_context(EventFile(self.history / "outside.jsonl"))
        etcd: EtcdServer | EtcdCluster
        if settings.members == 1:
            etcd = EtcdServer(self._directory / "etcd")
            self.members = [etcd]
        else:
            etcd = EtcdCluster(settings.members, self._directory / "etcd")
            self.members = etcd.members
        self._stack.enter_context(etcd)
        endpoints = [member.endpoint for member in self.members]
        self.gateway = Gateway(endpoints, PREFIX)
        self.watching = Watching(Gateway(endpoints, PREFIX), self._write)
        self._branches = BranchWatch(self.repository, settings.spaces, Gateway(endpoints, PREFIX), self._write)
        proxies = Proxies()
        self._stack.callback(proxies.close)
        config = Config(
            name="",
            repository=str(self.repository),
            history=str(self.history),
            etcd="",
            seed=str(settings.seed),
            spaces=settings.spaces,
            ttl=settings.ttl,
            role="auto",
            callers=settings.callers,
            pause_seconds=settings.pause_seconds,
        )
        self._slots = [Slot(number, config, self._write, proxies, etcd.endpoints) for number in range(settings.workers)]
        self._stack.callback(self._kill_all)
        for thread in (self.watching, self._branches, LockWatch(self.repository, settings.spaces, self._write)):
            thread.start()
            self._stack.callback(thread.close)
        for slot in self._slots:
            slot.start(self._role(slot))

    def _role(self, slot: Slot) -> Role:
        """One serves whoever needs it, one only forwards, the rest is as by default."""
        return "holder" if slot.number == 1 else "client" if slot.number == 2 else "auto"

    def _kill_all(self) -> None:
        for slot in self._slots:
            slot.kill()
            slot.bury_soon(5.0)

    # Whom a fault may befall.

    def anyone(self) -> Slot | None:
        free = [slot for slot in self._slots if self._free(slot)]
        return self.random.choice(free) if free else None

    def _free(self, slot: Slot) -> bool:
        taken = any(ongoing.keeps is slot for _, ongoing in self._ongoing)
        return slot.ready and not slot.doomed and not taken

    def holder(self) -> Slot | None:
        """Return the worker that holds a space, if one is free."""
        pids = self._holders()
        holders = [slot for slot in self._slots if self._free(slot) and slot.child and slot.child.pid in pids]
        return self.random.choice(holders) if holders else None

    def other(self) -> Slot | None:
        """Return a worker that holds no space."""
        pids = self._holders()
        others = [slot for slot in self._slots if self._free(slot) and slot.child and slot.child.pid not in pids]
        return self.random.choice(others) if others else None

    def _holders(self) -> set[int]:
        sessions = set(self.gateway.get("holders/").values())
        nodes = self.gateway.get("nodes/")
        return {json.loads(value)["pid"] for key, value in nodes.items() if key.removeprefix("nodes/") in sessions}

    def leader(self) -> EtcdServer | None:
        for member in self.members if len(self.members) > 1 else ():
            try:
                if member.running and member.metric("etcd_server_is_leader"):
                    return member
            except (OSError, EtcdFailed):
                pass  # paused, or not up yet
        return None

    def leases(self) -> list[tuple[str, str]]:
        """Return the sessions there are, and the leases they live by."""
        return self.gateway.leases("nodes/")

    # What happens.

    def _storm(self, until: float) -> None:
        next_at = time.monotonic()
        chosen = {begin: weight for begin, weight in faults.KINDS.items() if self._wanted(begin)}
        while (now := time.monotonic()) < until or (self._owed and now < until + _OWED_SECONDS):
            self._tend()
            if now >= next_at and len(self._ongoing) < _AT_ONCE:
                next_at = now + self.random.uniform(0.3, 1.7) * self.settings.fault_seconds
                if self._owed:
                    self._begin_owed()
                else:
                    (begin,) = self.random.choices(list(chosen), list(chosen.values()))
                    self._begin(begin)
            time.sleep(_TICK_SECONDS)

    def _begin_owed(self) -> None:
        """Begin the next of those that are to come; one that cannot now has its turn after the others."""
        begin = self._owed.pop(0)
        if not self._begin(begin):
            self._owed.append(begin)

    def _wanted(self, begin: faults.Begin) -> bool:
        return not self.settings.kinds or begin.__name__ in self.settings.kinds

    def _begin(self, begin: faults.Begin) -> bool:
        """Begin a fault; false if it cannot be done now."""
        kept = {ongoing.keeps for _, ongoing in self._ongoing}
        if (begin in faults.OF_ETCD and "etcd" in kept) or (begin in faults.OF_GIT and "repository" in kept):
            return False
        try:
            ongoing = begin(self)
        except NoAnswer:
            return False  # etcd is away: another one, another time
        if ongoing is not None:
            self._note(ongoing)
        return ongoing is not None or (begin is faults.at_a_place and self._reached)

    def _note(self, ongoing: Ongoing) -> None:
        now = time.monotonic()
        self._counts[ongoing.kind] += 1
        self._write(Fault(now, ongoing.kind, ongoing.target, "begin" if ongoing.seconds else "once"))
        if ongoing.seconds:
            self._ongoing.append((now + ongoing.seconds, ongoing))

    def _tend(self, *, all_over: bool = False) -> None:
        """End what is over, hear what the workers say, and start new ones for those that are gone."""
        now = time.monotonic()
        for item in [item for item in self._ongoing if all_over or item[0] <= now]:
            self._ongoing.remove(item)
            if isinstance(undone := item[1].end(), str):
                self._problems.append(undone)
                self._counts[item[1].kind] -= 1
            self._write(Fault(time.monotonic(), item[1].kind, item[1].target, "end"))
        for slot in self._slots:
            for answer in slot.heard():
                self._heard(slot, answer)
            if slot.problem:
                self._problems.append(slot.problem)
                slot.problem = ""
            if slot.child is None:
                self._ongoing = [item for item in self._ongoing if item[1].keeps is not slot or slot.cut]
                slot.start(self._role(slot))

    def _heard(self, slot: Slot, answer: dict[str, Any]) -> None:
        if "reached" in answer:
            self._reached = True
            place, when, what = answer["reached"]
            lost = f"lose the {'request' if when == 'before' else 'answer'} of {place}"
            kind = lost if what == "lose" else f"{what} {when} {place}"
            seconds = self.settings.ttl * self.random.uniform(1.2, 2.5) if what == "stop" else 0.0
            if what == "stop":
                slot.stopped = True
            self._note(Ongoing(kind, slot.name, seconds, slot.resume, slot))
        elif "probed" in answer:
            self._probing.discard(slot.name)

    def _calm(self) -> None:
        """End all faults, and see how long it takes until appends succeed."""
        for slot in self._slots:
            slot.tell(do="arm", plans=[])
        self._tend(all_over=True)
        for member in self.members:
            member.start(wait=False)
            member.wait()
        self._wait(lambda: all(slot.ready and not slot.stopped for slot in self._slots), _END_SECONDS)
        self._tend(all_over=True)  # a place may have been reached meanwhile
        self._probe()

    def _probe(self) -> None:
        """Have every worker append to every space, and note how long the slowest one took."""
        healed = time.monotonic()
        self._write(Healed(healed, BOUND_SECONDS, self.settings.spaces))
        asked = [slot for slot in self._slots if slot.ready and not slot.doomed]
        self._probing = {slot.name for slot in asked}
        for slot in asked:
            slot.tell(do="probe", until=healed + BOUND_SECONDS)
        if self._wait(lambda: not self._probing.intersection(s.name for s in asked if s.ready), BOUND_SECONDS + 10.0):
            self._healed.append(round(time.monotonic() - healed, 2))

    def _wait(self, condition: Callable[[], object], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                return False
            self._tend()
            time.sleep(_TICK_SECONDS)
        return True

    # The end.

    def _end(self) -> None:
        """Stop the callers, wait for quiet, note the log as it is, close everything in good order."""
        stopped: set[int] = set()
        for slot in self._slots:
            slot.tell(do="stop")
        deadline = time.monotonic() + _END_SECONDS
        while len(stopped) < len(self._slots) and time.monotonic() < deadline:
            for slot in self._slots:
                stopped |= {slot.number for answer in slot.heard() if "stopped" in answer}
            time.sleep(_TICK_SECONDS)
        if len(stopped) < len(self._slots):
            self._problems.append("not all callers came to an end")
        self._probe()
        deadline = time.monotonic() + _QUIET_SECONDS
        while any(self.gateway.get("intents/").values()) and time.monotonic() < deadline:
            time.sleep(10 * _TICK_SECONDS)
        waiting = [key for key, value in self.gateway.get("intents/").items() if value]
        heads = self.gateway.get("heads/")
        for slot in self._slots:
            slot.doomed = True
            slot.tell(do="close")
        for slot in self._slots:
            slot.bury_soon(_END_SECONDS)
            if slot.problem:
                self._problems.append(slot.problem)
        self._problems += tracebacks(self.history)
        self._see_all()
        self._note_log(heads, waiting)
        self._examine()

    def _see_all(self) -> None:
        """Put a last word, and wait until it was seen: then everything before it was."""
        self.gateway.put("over", "")
        deadline = time.monotonic() + _QUIET_SECONDS
        while not self.watching.over and not self.watching.lost and time.monotonic() < deadline:
            time.sleep(_TICK_SECONDS)
        if not self.watching.over:
            self._problems.append(self.watching.lost or "not all revisions were seen")

    def _note_log(self, heads: dict[str, str], waiting: Sequence[str]) -> None:
        store = GitStore(self.repository, node="checker", clock=_no_clock, random=os.urandom)
        at = time.monotonic()
        for space in self.settings.spaces:
            value = json.loads(heads.get(f"heads/{space}", "{}"))
            head = Head(value.get("seq", 0), value.get("commit", ""), value.get("term", 0))
            mine = tuple(key for key in waiting if key.startswith(f"intents/{space}/"))
            self._write(FinalHead(at, space, head.commit, mine))
            try:
                for appended in store.read(space, head):
                    self._write(logged(at, space, appended))
            except CoordJournalError as error:
                self._write(Examined(at, f"reading the log of {space}", str(error)))
        store.close()

    def _examine(self) -> None:
        commands = {
            "git fsck --full": ["git", "-C", str(self.repository), "fsck", "--full", "--strict", "--no-dangling"],
            "coordjournal verify": [sys.executable, "-m", "coordjournal", "verify"],
        }
        environment = {**os.environ, "COORDJOURNAL_REPO": str(self.repository), "PYTHONPATH": str(CHECKOUT)}
        for what, command in commands.items():
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=CHECKOUT)
            said = [line for line in done.stderr.splitlines() if not line.startswith("notice: ")]
            bad = done.returncode or (said if what.startswith("git") else ())
            self._write(Examined(time.monotonic(), what, f"{done.stdout} {said}" if bad else ""))

    def _result(self, seconds: float) -> Result:
        events = read_events(*self.history.glob("*.jsonl"))
        findings = [str(finding) for finding in check(events)]
        log: Counter[str] = Counter()
        for event in events:
            if isinstance(event, Logged):
                log[f"{event.space} appends"] += 1
                log[f"{event.space} entries"] += len(event.append.events)
        revisions = len({event.revision for event in events if isinstance(event, Revision)})
        return Result(
            seed=self.settings.seed,
            members=self.settings.members,
            seconds=round(seconds, 1),
            operations=operations(events),
            faults=dict(sorted((+self._counts).items())),
            log=dict(sorted(log.items())),
            revisions=revisions,
            healed_seconds=self._healed,
            findings=findings,
            problems=self._problems,
        )


def operations(events: Sequence[Event]) -> dict[str, int]:
    """Count the calls by what became of them."""
    counts: Counter[str] = Counter()
    for event in events:
        match event:
            case AppendInvoked():
                counts["appends"] += 1
            case AppendReturned():
                counts[f"appends {event.outcome}"] += 1
            case ReadInvoked():
                counts["reads"] += 1
            case ReadReturned():
                counts["reads failed" if event.error else "reads ok"] += 1
            case _:
                pass
    return dict(sorted(counts.items()))


def _no_clock() -> Any:
    raise AssertionError("nothing is written here")
