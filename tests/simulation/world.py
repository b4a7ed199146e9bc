"""A world of processes that share a journal: what they do, what befalls them, and what is noted of it.

Everything that could go one way or another is asked of a `Schedule`. `World.run` returns when all was
mended and is quiet again; `history` is then for the rules to judge.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Final

from coordjournal.authority import etcd as etcd_module
from coordjournal.authority import reading as reading_module
from coordjournal.authority.wire import HeadValue, decode_head, range_of
from coordjournal.entry import Head
from coordjournal.etcd import KeyValue, Put, Refused
from coordjournal.log import DecisionLog
from coordjournal.store import EMBEDDED
from coordjournal.testing.histories import (
    AppendReturned,
    BranchSeen,
    Era,
    Event,
    Examined,
    Fault,
    FinalHead,
    Healed,
    Sent,
    logged,
    revisions,
)
from tests.simulation import faults
from tests.simulation.kinds import KINDS, WEIGHTS, Kind
from tests.simulation.model import Committed, Fate, ModelEtcd, Request
from tests.simulation.operator import Operator
from tests.simulation.process import KEYS, PREFIX, Process, entropy, make_log, simulated_store
from tests.simulation.schedule import Schedule
from tests.simulation.scheduler import Scheduler
from tests.simulation.server import Snapshot
from tests.simulation.store import SimulatedDisk, SimulatedStore
from tests.simulation.workload import Workload

SPACE: Final = "wiki"

_MAX_STEPS: Final = 12_000
_MAX_LIVES: Final = 9
_LIMIT_SECONDS: Final = 60.0
_QUIET_SECONDS: Final = 30.0
"""Within so much time after the last fault an append succeeds, and nothing waits any more."""


class Broken(AssertionError):
    """The code met something that it did not expect: an exception that only a fault of its own explains."""


class WatchedEtcd(ModelEtcd):
    """The model, which tells of every revision as it is made."""

    def __init__(self, scheduler: Scheduler, committed: Callable[[Committed], None]) -> None:
        super().__init__(scheduler)
        self._committed = committed

    def _commit(self, by: str) -> None:
        before = len(self.history)
        super()._commit(by)
        if len(self.history) > before:
            self._committed(self.history[-1])


class World:
    """Processes, etcd, the disk and time, all at the mercy of a schedule."""

    def __init__(self, schedule: Schedule, kind: Kind | None = None) -> None:
        self.schedule = schedule
        self.kind = kind if kind is not None else KINDS[schedule.weighted(WEIGHTS)]
        schedule.note(self.kind.name)
        self.scheduler = Scheduler(schedule, interfere=self.interfere, max_steps=_MAX_STEPS)
        self.events: list[Event] = []
        self.server = WatchedEtcd(self.scheduler, self.committed)
        self.server.renews_the_dead = lambda: not self.healing and schedule.chance(0.5)
        self.network = WorldNetwork(self)
        self.ttl = 2 + schedule.pick(3)
        self.disk = SimulatedDisk(
            clock=self.scheduler,
            hidden_seconds=self.kind.hidden_seconds,
            fails=self.disk_fails,
            looked=self.disk_looked,
        )
        self.spaces = [SPACE] if schedule.chance(0.85) else [SPACE, "other"]
        self.workload = Workload(self, self.kind.ops)
        self.operator = Operator(self)
        self.processes: list[Process] = []
        self.heads: dict[str, list[HeadValue]] = {}  # every published head, in order
        self.broken: Exception | None = None
        self.healing = False
        self.told = 0  # how often a watch told something before
        self.forked = False
        self.cut: dict[str, float] = {}  # hosts that reach no etcd until then
        self.wrong = False  # etcd was set back, and no operator has seen to it
        self._lives = 0
        self._random = 0
        self._ticks = 0
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._snapshots: list[Snapshot] = []
        self._weights = [100.0 - sum(self.kind.events.values()), *self.kind.events.values()]
        self._things: list[Callable[[], object]] = [getattr(self, name) for name in self.kind.events]
        self._branches: dict[str, str] = {}
        self._blind: set[str] = set()  # processes from which something is hidden
        self.scheduler.timers += [self.next_due, self.server.next_expiry]

    # What a process finds in its world.

    def now(self) -> float:
        """Return the time for the history: no two events are at the same one."""
        self._ticks += 1
        return self.scheduler.now + self._ticks * 1e-8

    def entropy(self, count: int) -> bytes:
        self._random += 1
        return entropy(self._random, count)

    def store(self, host: str) -> SimulatedStore:
        return simulated_store(self, host)

    def disk_yields(self, label: str) -> None:
        """Only what changes something, or looks at what others change, is a step of its own."""
        self.look_at_branches()
        if label.startswith(("write", "advance", "head", "exclusive")):
            self.scheduler.yield_point(label)
            self.look_at_branches()

    def disk_fails(self, step: str) -> bool:
        if self.healing or not self.kind.disk_fails:
            return False
        fails = self.schedule.chance(self.kind.disk_fails)
        if fails:
            self.schedule.note(f"the disk fails: {step}")
            if step != "write":
                self.write(Fault(self.now(), "branch", self.process_at_work))
        return fails

    def disk_looked(self, there: bool) -> None:
        """Note that something is hidden from a process, until it looks again and it is not."""
        if there == (self.process_at_work in self._blind):
            (self._blind.remove if there else self._blind.add)(self.process_at_work)
            for kind in ("damage", "branch"):
                self.write(Fault(self.now(), kind, self.process_at_work, "end" if there else "begin"))

    @property
    def process_at_work(self) -> str:
        """The name of the process whose step it is."""
        return self.scheduler.current.partition(" ")[0]

    # Its run.

    def run(self) -> list[Event]:
        """Let it all happen; return the history. Raises `Broken`, and what the scheduler does."""
        with self._real_parts_in_virtual_time():
            self._begin()
            self.scheduler.spawn("world", self._direct)
            self.scheduler.run()
        if self.broken is not None:
            raise self.broken
        return self.events

    @contextmanager
    def _real_parts_in_virtual_time(self) -> Iterator[None]:
        module: Any = etcd_module
        reading: Any = reading_module
        logger, handler = logging.getLogger("coordjournal"), _Tell(self)
        before = module.time, logger.level, logger.propagate
        module.time = reading.time = SimpleNamespace(monotonic=lambda: self.scheduler.now)
        logger.setLevel(logging.ERROR)
        logger.propagate = False
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            module.time, logger.level, logger.propagate = before
            reading.time = module.time
            logger.setLevel(before[1])

    def _begin(self) -> None:
        self.forked = self.schedule.chance(0.2)  # one program, which made its log before it forked
        twins = make_log() if self.forked else None
        for host in "abc"[: 2 + self.schedule.pick(2)]:
            self.start(host, twins)

    def _direct(self) -> None:
        scheduler = self.scheduler
        scheduler.sleep_until(self.workload.is_done, _LIMIT_SECONDS, "until all is asked for")
        self._heal()
        scheduler.sleep_until(lambda: not (self.wrong or self.operator.busy), scheduler.now + 60, "for the operator")
        self.write(Healed(self.now(), _QUIET_SECONDS, tuple(self.spaces)))
        deadline = scheduler.now + _QUIET_SECONDS
        self.workload.finish(deadline)
        scheduler.sleep_until(lambda: self.workload.finished and not self.waiting(), deadline, "until all is quiet")
        self._note_end()

    def _heal(self) -> None:
        """Let nothing go wrong any more."""
        self.schedule.note("from here on nothing goes wrong")
        self.healing = True
        self.server.no_space = self.server.down = False
        self.cut.clear()
        for process in self.processes:
            for watcher in process.client.watchers:
                if watcher.silent:
                    watcher.reconnect()
            for thread in process.threads:
                thread.paused_until = 0.0
        if not any(process.role != "client" and not process.closing for process in self.living()):
            self.start("a", role="auto")
        roles = {process.role for process in self.living() if not process.closing}
        if "client" in roles and "holder" not in roles:
            self.start("d", role="holder")  # a client alone waits for ever, by design
        if self.wrong:
            self.operator.recover_soon()

    def waiting(self) -> list[KeyValue]:
        """Return the intents that somebody has yet to decide."""
        first, end = range_of(KEYS.intents)
        return [kv for kv in self.server.peek_all() if first <= kv.key < end and (kv.value or not kv.lease)]

    def _note_end(self) -> None:
        """Note what there is when all is quiet."""
        at = self.now()
        self.write(Examined(at, "the simulated disk"))  # what is published is looked at when it is
        for (space, _), commit in self.disk.commits.items():
            self.write(logged(at, space, commit.appended))
        for space in self.spaces:
            head = self.server.peek(KEYS.head(space))
            last = decode_head(head.value, "").commit if head is not None else ""
            below = KEYS.intents_of(space)
            waiting = tuple(kv.key.decode() for kv in self.waiting() if kv.key.startswith(below))
            self.write(FinalHead(at, space, last, waiting))

    # What befalls it.

    def interfere(self) -> None:
        """Do what is due, and perhaps something else: between any two steps."""
        if self.broken is not None:
            raise self.broken
        while self._due and self._due[0][0] <= self.scheduler.now:
            self._due.pop(0)[2]()
        if self.healing:
            for process in self.living():
                for watcher in process.client.watchers:
                    if watcher.untold():
                        watcher.pump(merge=True)
            if self.server.in_flight and self.schedule.chance(0.1):
                self.land()
            return
        chosen = self.schedule.weighted(self._weights)
        if chosen:
            self._things[chosen - 1]()

    def later(self, seconds: float, does: Callable[[], object]) -> None:
        self._due.append((self.scheduler.now + seconds, len(self._due), does))
        self._due.sort(key=lambda due: due[0])

    def next_due(self) -> float | None:
        return self._due[0][0] if self._due else None

    def living(self) -> list[Process]:
        return [process for process in self.processes if process.alive]

    def start(self, host: str, prototype: DecisionLog | None = None, role: str = "") -> None:
        """Start a process on a host."""
        self._lives += 1
        chosen: Any = role or ("auto", "auto", "client", "holder")[self.schedule.weighted((0, 85, 7, 8))]
        process = Process(self, host, f"{host}{self._lives}", chosen)
        self.schedule.note(f"{process.name} starts, role {chosen}")
        self.processes.append(process)
        process.start(prototype)
        self.workload.begin(process)

    def some(self) -> Process | None:
        """Choose one that lives."""
        living = self.living()
        return living[self.schedule.pick(len(living))] if living else None

    def seconds(self) -> float:
        """Choose how long something takes: a moment, or longer than a session lives."""
        return (0.05, 0.6, self.ttl + 0.5, 3.0 * self.ttl)[self.schedule.pick(4)]

    def tell(self) -> None:
        due = [watcher for process in self.living() for watcher in process.client.watchers if watcher.untold()]
        if due:
            self.told += due[self.schedule.pick(len(due))].pump((None, 1)[self.schedule.pick(2)], merge=True)

    def land(self) -> None:
        if self.server.in_flight and not self.server.down:
            pending = self.server.in_flight[self.schedule.pick(len(self.server.in_flight))]
            self.schedule.note(f"{pending.node}: {pending.kind} lands late")
            self.server.land(pending)

    def crash(self) -> None:
        if (process := self.some()) is not None:
            self.end(process)
            self.schedule.note(f"{process.name} crashed")

    def end(self, process: Process) -> None:
        process.kill()
        self.begin_again(process.host)

    def begin_again(self, host: str) -> None:
        """Start a process where one ended, at once or later, unless there were many."""
        if self._lives < _MAX_LIVES:
            self.later(self.seconds(), lambda: None if self.healing else self.start(host))

    def lose_power(self) -> None:
        if (process := self.some()) is not None:
            self.schedule.note(f"host {process.host} loses power")
            for fellow in self.living():
                if fellow.host == process.host:
                    self.end(fellow)
            self.write(Fault(self.now(), "power", process.host))
            self.disk.lose_power(process.host, survives=lambda: self.schedule.chance(0.5))
            self.look_at_branches()

    def close(self) -> None:
        process = self.some()
        if process is not None and not process.closing and self._lives < _MAX_LIVES:
            process.closing = True
            process.spawn("closes", process.close)
            self.later(self.seconds(), lambda: None if self.healing else self.start(process.host))

    def pause(self) -> None:
        if (process := self.some()) is not None:
            seconds = self.seconds()
            for thread in process.threads:
                self.scheduler.pause(thread, seconds)

    def get_stuck(self) -> None:
        """A worker waits for its disk, while the session is kept alive."""
        works = [thread for process in self.living() for thread in process.threads if " works " in thread.name]
        if works:
            self.scheduler.pause(works[self.schedule.pick(len(works))], 3.0 * self.ttl)

    def cut_off(self) -> None:
        if (process := self.some()) is not None:
            seconds = self.seconds()
            self.schedule.note(f"{process.host} is cut off for {seconds:g} s")
            self.cut[process.host] = self.scheduler.now + seconds

    def revoke(self) -> None:
        leases = self.server.leases()
        if leases:
            self.schedule.note("etcd ends a lease")
            self.server.revoke(leases[self.schedule.pick(len(leases))])

    def change_leader(self) -> None:
        self.server.change_leader()

    def hand_over(self) -> None:
        process = self.some()
        if process is not None and not self.server.no_space and self.server.peek(KEYS.holder(self.spaces[0])):
            lease, _ = self.server.grant(2)
            value = (process.session, "-")[self.schedule.pick(2)].encode()
            self.schedule.note("somebody asks for a handoff")
            self.server.txn((), [Put(KEYS.successor(self.spaces[0]), value, lease)])

    def lose_watch(self) -> None:
        if (process := self.some()) is not None:
            for watcher in process.client.watchers:
                watcher.lose()

    def die_in_silence(self) -> None:
        if (process := self.some()) is not None:
            for watcher in process.client.watchers:
                watcher.die()

                def again(watcher: Any = watcher) -> None:
                    watcher.reconnect()

                self.later(self.seconds(), again)

    def compact(self) -> None:
        if self.server.revision > self.server.compacted:
            self.server.compact(self.server.revision)

    def take_down(self) -> None:
        self.schedule.note("etcd is down")
        self.server.down = True
        self.later(self.seconds(), self._up)

    def _up(self) -> None:
        self.server.down = False

    def fill(self) -> None:
        self.schedule.note("etcd is full")
        self.write(Fault(self.now(), "no space", phase="begin"))
        self.server.no_space = True
        self.later(self.seconds(), self._empty)

    def _empty(self) -> None:
        self.server.no_space = False
        self.write(Fault(self.now(), "no space", phase="end"))

    def refuse(self) -> None:
        """Etcd says no to a few requests that it could do."""
        self.network.refusals = 1 + self.schedule.pick(2)

    # An etcd that loses what it knew.

    def take_snapshot(self) -> None:
        self._snapshots.append(self.server.snapshot())

    def wipe(self) -> None:
        if not self.operator.busy and self.server.revision > 3:
            self.schedule.note("etcd is wiped")
            self._set_back(Snapshot({}, {}, 1))

    def restore(self) -> None:
        if not self.operator.busy and self._snapshots:
            snapshot = self._snapshots[self.schedule.pick(len(self._snapshots))]
            self.schedule.note(f"etcd is restored to revision {snapshot.revision}")
            self._set_back(self._without_withdrawn(snapshot))

    def _without_withdrawn(self, snapshot: Snapshot) -> Snapshot:
        """Leave out the intents of a space whose head is the newest: nobody notices that withdrawn ones are back.

        The documentation says so, and what clears them.
        """
        kvs = dict(snapshot.kvs)
        for space in self.spaces:
            then = kvs.get(KEYS.head(space))
            if (decode_head(then.value, "").head if then is not None else Head()) == self.truth(space):
                kvs = {key: kv for key, kv in kvs.items() if not key.startswith(KEYS.intents_of(space))}
        return snapshot._replace(kvs=kvs)

    def _set_back(self, snapshot: Snapshot) -> None:
        """Set etcd back. An operator sees to it: at once, before anybody notices, or in a while."""
        at = self.now()
        self.wrong = True
        self.server.restore(snapshot)
        self.write(Era(at, self.server.era, snapshot.revision))
        for kv in snapshot.kvs.values():
            self._note_revision(kv.mod_revision, [(kv.key, kv)])
        if self.schedule.chance(0.5):
            self.later((0.0, 0.01, 0.5)[self.schedule.pick(3)], self.align)
        waits = (0.0, 0.0, 1.0, 6.0)[self.schedule.pick(4)]
        self.later(waits, self.operator.recover_soon)

    def align(self) -> None:
        """Let etcd's next revision be one at which somebody was elected in another time."""
        held = [
            process.authority.members[space].tenure
            for process in self.living()
            if process.authority is not None
            for space in self.spaces
            if space in process.authority.members
        ]
        wanted = [tenure.created - 1 for tenure in held if tenure is not None and tenure.created > self.server.revision]
        if wanted:
            self.schedule.note("etcd's revisions repeat")
            while self.server.revision < wanted[0]:
                self.server.txn((), [Put(b"/elsewhere", b"")])

    def leave_etcd(self) -> None:
        if not self.operator.busy and not self.wrong:
            self.operator.leave_soon()

    # What is noted.

    def committed(self, made: Committed) -> None:
        self._note_revision(made.revision, made.changes)
        for key, kv in made.changes:
            if kv is not None and key.startswith(KEYS.heads):
                space, value = key.removeprefix(KEYS.heads).decode(), decode_head(kv.value, "")
                self.heads.setdefault(space, []).append(value)
                self._see_that_it_lasts(space, value.head)

    def _see_that_it_lasts(self, space: str, head: Head) -> None:
        """What is published is synced by then, down to the first append."""
        commit = head.commit
        while commit:
            stored = self.disk.commits.get((space, commit))
            if stored is None or not stored.synced:
                what = "is not there" if stored is None else "is not synced"
                self.write(Examined(self.now(), "the simulated disk", f"commit {commit} is published, and {what}"))
                return
            commit = stored.appended.parent

    def write(self, event: Event) -> None:
        """Note an event; at each receipt where the branches are."""
        self.events.append(event)
        if isinstance(event, AppendReturned) and event.receipt is not None:
            self.look_at_branches(event.receipt.space)

    def _note_revision(self, revision: int, changes: Sequence[tuple[bytes, KeyValue | None]]) -> None:
        for event in revisions(self.now(), self.server.era, revision, changes, PREFIX.encode(), exact=True):
            self.write(event)

    def look_at_branches(self, surely: str = "") -> None:
        """Note where a branch was moved to; where the one of space `surely` is, moved or not."""
        for space, branch in self.disk.branches.items():
            commit = branch.head.commit  # what was not synced others see, and a power cut may undo
            if space == surely or self._branches.get(space, "") != commit:
                self._branches[space] = commit
                embedded = self.disk.owner is not None and self.disk.owner[0] == EMBEDDED
                self.write(BranchSeen(self.now(), space, commit, None if embedded else self.truth(space).seq))

    def truth(self, space: str) -> Head:
        """Return what was published last, whatever etcd remembers of it."""
        published = self.heads.get(space)
        return published[-1].head if published else Head()


class WorldNetwork(faults.ChosenNetwork):
    """The network between processes and etcd; it notes the publishes that it sees."""

    def __init__(self, world: World) -> None:
        super().__init__(world.schedule, world.scheduler, world.kind.network)
        self.refusals = 0
        self._world = world

    def decide(self, kind: str, description: Request) -> Fate | Refused:
        world = self._world
        if kind == "txn":
            self._note_publish(description)
        if world.healing:
            return Fate.DELIVER
        if world.cut and world.cut.get(description.node[0], 0.0) > world.scheduler.now:
            return Fate.DROP
        if self.refusals:
            self.refusals -= 1
            world.schedule.note(f"{description.node}: {kind} is refused")
            return Refused("too many requests", "too many requests")
        return super().decide(kind, description)

    def _note_publish(self, request: Request) -> None:
        then: Any = request.arguments[1]
        for operation in then:
            if isinstance(operation, Put) and operation.key.startswith(KEYS.heads):
                world = self._world
                process = next(each for each in world.processes if each.name == request.node)
                space = operation.key.removeprefix(KEYS.heads).decode()
                value = decode_head(operation.value, "")
                world.write(Sent(world.now(), process.name, process.session, space, value.commit))


class _Tell(logging.Handler):
    """Tells the world of exceptions that the code did not expect."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.ERROR)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None and self._world.broken is None:
            error = record.exc_info[1]
            broken = Broken(f"{record.getMessage()}: {error!r}")
            broken.__cause__ = error
            self._world.broken = broken
