"""An operator, who runs the real `adopt` and `recover` on the simulated repository and etcd, while all others go on.

Real are the plans, the heads that are chosen, every request to etcd and every step of the store, in their
order (`coordjournal.adoption`, `recovery`, `heads`, `keyspace`). Simulated is what `Premises` stands for:
the config, the locks, the walk over all objects. Git's own, its remotes and clones and the file system's kind
among it, is tested in `tests/integration/test_adopt_recover.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from coordjournal.adoption import adopt_to_embedded, adopt_to_etcd
from coordjournal.entry import Appended, Head
from coordjournal.errors import CoordJournalError, Corrupt, NotFound, OperatorNeeded
from coordjournal.heads import known
from coordjournal.keyspace import Keyspace
from coordjournal.recovery import recover_heads
from coordjournal.store.repository import Owner
from coordjournal.testing.histories.events import Fault
from tests.simulation.embedded import EmbeddedProcess
from tests.simulation.model import ModelClient
from tests.simulation.process import KEYS

if TYPE_CHECKING:
    from tests.simulation.world import World

_TRIES: Final = 8
_AWAY_SECONDS: Final = (0.0, 0.05, 0.5, 3.0)


class SimulatedPremises:
    """`coordjournal.premises.Premises` on the simulated disk."""

    where = "the simulated disk"

    def __init__(self, world: World) -> None:
        self.store = world.store("op")
        self._world = world

    def owner(self) -> Owner | None:
        disk = self._world.disk
        if disk.owner is None:
            raise NotFound("there is no repository")
        authority, place = disk.owner
        return Owner(authority, disk.journal, place)

    def give_to(self, owner: Owner) -> None:
        yield_point = self._world.scheduler.yield_point
        yield_point("config: not written")
        self._world.disk.owner = (owner.authority, owner.place)
        yield_point("config: written")

    def check_sharable(self) -> None:
        """It is."""

    def check_local(self) -> None:
        """It is."""

    def check_clone(self, spaces: Sequence[str]) -> None:
        raise AssertionError("it is no clone")

    def remotes(self) -> list[str]:
        return []

    def forget_remotes(self) -> None:
        raise AssertionError("it has none")

    def hold_all(self, locks: ExitStack, held: set[str]) -> list[str]:
        names = {*self.store.spaces(), *self._world.spaces}  # as git's premises, it knows those that somebody has taken
        for space in sorted(names - held):
            if space in self._world.disk.locks:
                self._world.schedule.note("an adoption waits for an append that is under way")
            locks.enter_context(self.store.exclusive(space))
            held.add(space)
        return self.store.spaces()

    def verify(self, space: str, head: Head | None = None) -> None:
        keys: set[str] = set()
        seq = 0
        for appended in self.store.read(space, self.store.head(space) if head is None else head):
            if appended.first != seq + 1 or appended.key in keys:
                raise Corrupt(f"commit {appended.commit} does not follow", f"space {space}", seq=seq + 1)
            seq = appended.seq
            keys.add(appended.key)

    def standing_on(self, space: str, head: Head) -> list[Head]:
        children: dict[str, list[Appended]] = {}
        for appended in self._lying_here(space):
            children.setdefault(appended.parent, []).append(appended)
        tips: list[Head] = []
        reached = list(children.get(head.commit, ()))
        while reached:
            appended = reached.pop()
            on_it = children.get(appended.commit, [])
            reached += on_it
            if not on_it:
                tips.append(appended.head)
        return sorted(tips, key=lambda tip: (tip.term, tip.seq), reverse=True)

    def begun(self) -> set[str]:
        return {space for space in self._world.spaces if any(not each.parent for each in self._lying_here(space))}

    def _lying_here(self, space: str) -> list[Appended]:
        commits = self._world.disk.commits
        return [commit.appended for (where, _), commit in commits.items() if where == space]

    def now(self) -> float:
        return self._world.scheduler.now

    def sleep(self, seconds: float) -> None:
        self._world.scheduler.sleep(seconds)


class Operator:
    """Runs one command at a time, over a network that loses nothing, each request a step of its own."""

    def __init__(self, world: World) -> None:
        self.busy = False
        self._world = world
        self._runs = 0
        self._here = SimulatedPremises(world)
        client = ModelClient(world.server, "operator", yield_point=world.scheduler.yield_point)
        self._etcd = Keyspace(client, KEYS, world.entropy)

    def recover_soon(self) -> None:
        if not self.busy:
            self._spawn(self.recover)

    def leave_soon(self) -> None:
        if not self.busy and self._world.disk.owner is not None:
            self._spawn(self.leave_and_come_back)

    def _spawn(self, command: Callable[[], None]) -> None:
        self.busy = True
        self._runs += 1
        self._world.scheduler.spawn(f"operator {self._runs}", lambda: self._run(command), daemon=True)

    def _run(self, command: Callable[[], None]) -> None:
        world = self._world
        world.write(Fault(world.now(), "operator", command.__name__, "begin"))
        command()
        world.write(Fault(world.now(), "operator", command.__name__, "end"))
        self.busy = False

    def _insist(self, command: Callable[[], None]) -> None:
        """Run a command again, as it says, where something changed meanwhile."""
        for attempt in range(_TRIES):
            try:
                command()
                return
            except CoordJournalError:
                if attempt == _TRIES - 1:
                    raise
                self._world.scheduler.sleep(0.5)

    def recover(self) -> None:
        """Recover all spaces. Where a branch lags behind what was published last, choose that, as an operator may.

        A holder that wakes late may yet tell its callers so.
        """
        era = self._world.server.era
        self._insist(self._recover)
        if self._world.server.era == era:
            self._world.wrong = False

    def _recover(self) -> None:
        here, etcd, world = self._here, self._etcd, self._world
        for space in world.spaces:
            truth, value = world.truth(space), known(etcd.head(space))
            if truth.seq > max(here.store.head(space).seq, value.seq if value is not None else 0):
                recover_heads(here, etcd, space, to=truth.commit)  # the notes of `recover` name it
        done = recover_heads(here, etcd)
        if done.wrong:  # branch and published head have parted: receipts were given for what the branch holds
            for space in world.spaces:
                if (branch := here.store.head(space)).seq:
                    recover_heads(here, etcd, space, to=branch.commit, accept_loss=True)
            done = recover_heads(here, etcd)
        if done.wrong:
            raise OperatorNeeded("; ".join(done.wrong), here.where, "look at it")

    def leave_and_come_back(self) -> None:
        """Adopt to embedded and back to etcd, while embedded processes try to append before, meanwhile and after."""
        world = self._world
        beside = [EmbeddedProcess(world, f"e{self._runs}.{number}") for number in range(1 + world.schedule.pick(2))]
        self._insist(self._leave)
        world.scheduler.sleep(_AWAY_SECONDS[world.schedule.pick(len(_AWAY_SECONDS))])
        if world.schedule.chance(0.5):  # in the middle of an append, if there is one soon
            world.scheduler.sleep_until(lambda: bool(world.disk.locks), world.scheduler.now + 2)
        if world.schedule.chance(0.25):
            beside[0].kill()
        self._insist(self._come_back)
        for process in beside:
            process.stop()

    def _leave(self) -> None:
        adopt_to_embedded(self._here, self._etcd)

    def _come_back(self) -> None:
        adopt_to_etcd(self._here, self._etcd)
