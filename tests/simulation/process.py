"""One simulated process: an open log, the threads that drive it, and its callers. The code in it is the real one."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from coordjournal.authority import Authority
from coordjournal.authority.etcd import EtcdAuthority
from coordjournal.authority.member import Member
from coordjournal.authority.node import Node
from coordjournal.authority.wire import Keys, Role
from coordjournal.cache import SpaceCache
from coordjournal.entry import Append, Receipt
from coordjournal.errors import CoordJournalError
from coordjournal.log import DecisionLog
from coordjournal.replica import Replica
from coordjournal.replicas import DEFAULT_STATE_BYTES, Replicas
from coordjournal.store import Store
from coordjournal.testing.histories.events import Ended
from coordjournal.testing.histories.recording import Recorder
from tests.simulation import scheduler as threads
from tests.simulation.locks import SimulatedCondition, SimulatedEvent, SimulatedLock
from tests.simulation.model import ModelClient
from tests.simulation.store import SimulatedStore

if TYPE_CHECKING:
    from tests.simulation.world import World

PREFIX: Final = "/coordjournal/"
KEYS: Final = Keys(PREFIX)

_EPOCH: Final = datetime(2026, 1, 31, 12, tzinfo=UTC)


class SimulatedReplica(Replica):
    """A replica whose locks are waited for in virtual time."""

    def __init__(self, space: str, store: Store, scheduler: threads.Scheduler) -> None:
        super().__init__(space, store, SpaceCache(None))
        parts: Any = self
        parts._lock, parts._keys_lock = SimulatedLock(scheduler), SimulatedLock(scheduler)


class SimulatedAuthority(EtcdAuthority):
    """The authority, whose drivers are simulated threads and whose waits take virtual time."""

    def __init__(self, node: Node, process: Process) -> None:
        super().__init__(node, threads=False)
        self.process = process
        self.kicked: set[Member] = set()
        self.made: dict[str, int] = {}
        self.stop = SimulatedEvent(process.scheduler)
        parts: Any = self
        parts._stop = parts._reading._stop = self.stop
        parts._lock, parts._reading._lock = SimulatedLock(process.scheduler), SimulatedLock(process.scheduler)

    def submit(self, space: str, append: Append) -> Future[Receipt]:
        future = super().submit(space, append)
        parts: Any = future
        parts._condition = SimulatedCondition(self.process.scheduler)
        return future

    def _made(self, space: str) -> Member:
        member = super()._made(space)
        parts: Any = member
        parts.intake._lock = SimulatedCondition(self.process.scheduler)
        revoke = member.revoke

        def let_go() -> None:
            self.process.world.schedule.note(f"{self.process.name} lets go of {space}: no progress")
            revoke()

        parts.revoke = let_go
        self.made[space] = self.made.get(space, 0) + 1
        which = f" again, {self.made[space]}" if self.made[space] > 1 else ""
        self.process.spawn(f"works on {space}{which}", lambda: self.work(member))
        return member

    def _kick(self, member: Member) -> None:
        self.kicked.add(member)

    def work(self, member: Member) -> None:
        """Take a member's steps, as a thread does."""
        scheduler = self.process.scheduler
        while not self.stop.is_set():
            scheduler.yield_point("step")
            self.kicked.discard(member)
            delay = member.step()
            if self.stop.is_set():
                return
            self._stepped(member)
            if member not in self.kicked and delay != 0.0:
                until = threads.NEVER if delay is None else scheduler.now + delay
                scheduler.sleep_until(lambda: self.calls(member), until, "nothing is due")
            if self.dropped(member):
                return

    def dropped(self, member: Member) -> bool:
        """Whether a member was forgotten."""
        return self.members.get(member.space) is not member

    def calls(self, member: Member) -> bool:
        """Whether the thread of a member is to look up."""
        return member in self.kicked or self.stop.is_set() or self.dropped(member)

    def keep(self) -> None:
        """Look after the session, as the keeper's thread does."""
        self._keep()


class Process:
    """A process on `host`, which dies as a whole. Processes of one host share its page cache and its clock."""

    def __init__(self, world: World, host: str, name: str, role: Role = "auto") -> None:
        self.world = world
        self.scheduler = world.scheduler
        self.host = host
        self.name = name
        self.role: Role = role
        self.alive = True
        self.closing = False
        self.threads: list[threads.Node] = []
        self.client = ModelClient(world.server, name, world.network, self.scheduler.yield_point)
        self.recorder = Recorder(world.write, name, world.now)
        self.authority: SimulatedAuthority | None = None
        self.log: DecisionLog

    # What a program does.

    def start(self, prototype: DecisionLog | None = None) -> None:
        """Open the log, or the copy that a fork gave this process, and let the callers begin."""
        self.log = make_log() if prototype is None else forked(prototype)
        parts: Any = self.log
        parts._make_store, parts._make_authority = self.make_store, self.make_authority
        parts._lock = SimulatedLock(self.scheduler)
        parts._clock = lambda: _EPOCH + timedelta(seconds=self.scheduler.now)
        parts._replicas = Replicas(self.replica, DEFAULT_STATE_BYTES)
        self.log._open()
        assert self.authority is not None
        self.authority.watch()
        self.spawn("keeper", self.authority.keep)
        if self.role == "holder":
            self.spawn("serves", self.serve)

    def serve(self) -> None:
        """Hold what nobody else does, as `coordjournal node`."""
        while not self.closing:
            try:
                self.log.serve(())
                return
            except CoordJournalError:
                self.scheduler.sleep(0.5)

    def make_store(self) -> Store:
        return self.world.store(self.host)

    def make_authority(self, store: Store, replica: Callable[[str], Replica]) -> Authority:
        node = Node(
            self.client,
            KEYS,
            store,
            replica,
            ttl=self.world.ttl,
            role=self.role,
            program="1",
            clock=lambda: self.scheduler.now,
            random=self.world.entropy,
        )
        parts: Any = node
        parts.lock = SimulatedLock(self.scheduler)
        self.authority = SimulatedAuthority(node, self)
        return self.authority

    def replica(self, space: str, _weigh: Callable[[Replica], None]) -> Replica:
        store, _ = self.log._open()
        return SimulatedReplica(space, store, self.scheduler)

    def spawn(self, what: str, target: Callable[[], object]) -> threads.Node:
        self.threads = [thread for thread in self.threads if not thread.done]
        thread = self.scheduler.spawn(f"{self.name} {what}", target, daemon=True)
        self.threads.append(thread)
        return thread

    def close(self) -> None:
        """End in order."""
        self.closing = True
        self.log.close()
        self.world.schedule.note(f"{self.name} has closed in order")
        self.ended()

    def kill(self) -> None:
        """End between two steps. What is under way in the network stays there."""
        for thread in self.threads:
            self.scheduler.kill(thread)
        self.ended()

    def ended(self) -> None:
        if self.alive:
            self.alive = False
            self.client.close()
            self.world.write(Ended(self.world.now(), self.name))

    @property
    def session(self) -> str:
        assert self.authority is not None
        return self.authority.node.id


def make_log() -> DecisionLog:
    """Return a log as a program makes it before it forks: nothing in it is one process's yet."""

    def missing(*_: object) -> Any:
        raise AssertionError("the process has not started")

    return DecisionLog(missing, missing, where="simulated", actor="alice@example.org")


def forked(prototype: DecisionLog) -> DecisionLog:
    """Return what a forked child has of a log."""
    return copy.copy(prototype)


def entropy(number: int, count: int) -> bytes:
    """Return the kernel's random bytes: the same for the same number, and different for each."""
    return hashlib.sha256(b"entropy %d" % number).digest()[:count]


def simulated_store(world: World, host: str) -> SimulatedStore:
    """Return a host's store on the shared disk."""

    def wait(free: Callable[[], bool]) -> None:
        world.scheduler.sleep_until(free, threads.NEVER, "the space's lock")

    return SimulatedStore(world.disk, host, world.disk_yields, wait)
