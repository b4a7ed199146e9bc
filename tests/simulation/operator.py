"""An operator, who does to etcd what `recover` and `adopt` do, while everybody else goes on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from coordjournal.authority.wire import HeadValue, encode_head
from coordjournal.entry import Head
from coordjournal.errors import CoordJournalError, Corrupt, Unavailable
from coordjournal.etcd import KeyValue
from coordjournal.heads import known
from coordjournal.keyspace import Keyspace
from coordjournal.store import EMBEDDED, ETCD, Diverged, HeadMoved
from coordjournal.testing.histories.events import Fault
from tests.simulation.model import ModelClient
from tests.simulation.process import KEYS, PREFIX, entropy

if TYPE_CHECKING:
    from tests.simulation.world import World

_TRIES: Final = 8


class Operator:
    """Runs one command at a time, over a network that loses nothing, each request a step of its own."""

    def __init__(self, world: World) -> None:
        self.busy = False
        self._world = world
        self._runs = 0
        self._store = world.store("op")
        client = ModelClient(world.server, "operator", yield_point=world.scheduler.yield_point)
        self._etcd = Keyspace(client, KEYS)

    def recover_soon(self) -> None:
        if not self.busy:
            self._spawn(self.recover)

    def leave_soon(self) -> None:
        if not self.busy:
            self._spawn(self.leave_and_come_back)

    def _spawn(self, command: Callable[[], None]) -> None:
        self.busy = True
        self._runs += 1
        self._world.scheduler.spawn(f"operator {self._runs}", lambda: self._run(command), daemon=True)

    def _run(self, command: Callable[[], None]) -> None:
        world = self._world
        world.write(Fault(world.now(), "operator", command.__name__, "begin"))
        for attempt in range(_TRIES):
            try:
                command()
                break
            except CoordJournalError:
                if attempt == _TRIES - 1:
                    raise
                world.scheduler.sleep(0.5)
        world.write(Fault(world.now(), "operator", command.__name__, "end"))
        self.busy = False

    def recover(self) -> None:
        """Do as `recover` of all spaces does; what stands on a branch it takes if it was published.

        A holder that wakes late may yet tell its callers so.
        """
        world, etcd = self._world, self._etcd
        era = world.server.era
        key, found = etcd.journal(), etcd.heads()
        journal = self._store.claim(ETCD, key.value.decode() if key is not None else "", PREFIX)
        spaces = sorted({*found, *self._store.spaces(), *(s for s in world.spaces if world.truth(s).seq)})
        etcd.clear(key, journal=False)
        for space in spaces:
            self._publish(space, found.get(space), always=False)
        if key is None:
            etcd.tell_journal(journal)
        if world.server.era == era:
            world.wrong = False

    def _publish(self, space: str, found: KeyValue | None, *, always: bool) -> None:
        """Publish a space's head under a new mark, in the place of `found`, if it is not the right one."""
        store, value = self._store, known(found)
        branch, truth = store.head(space), self._world.truth(space)
        right = truth if truth.seq and self._holds(space, truth, branch) else branch
        if not right.seq:
            return
        if value is not None and not value.left and value.head == right and not always:
            return
        if not self._etcd.publish(space, right, store.identity(space, right), found):
            raise Unavailable("its head changed meanwhile")
        self._move(space, right)

    def _holds(self, space: str, head: Head, part: Head) -> bool:
        if head.seq < part.seq:
            return False
        try:
            self._store.read(space, head, part.seq, part.commit)
        except (Diverged, Corrupt):
            return False
        return True

    def _move(self, space: str, head: Head) -> None:
        """Move the branch to a head, unless it is there or further."""
        for _ in range(_TRIES):
            branch = self._store.head(space)
            if branch == head or self._holds(space, branch, head):
                return
            try:
                self._store.advance(space, branch, head)
            except HeadMoved:
                continue

    def leave_and_come_back(self) -> None:
        """As `adopt` to embedded, a few appends by an embedded process, and `adopt` to etcd."""
        world = self._world
        if world.disk.owner is None or world.disk.owner[0] == ETCD:
            self._leave()
        world.workload.append_embedded()
        self._come_back()

    def _leave(self) -> None:
        etcd, store, disk = self._etcd, self._store, self._world.disk
        key = etcd.journal()
        if key is None:
            raise Unavailable("nobody has appended yet")
        with ExitStack() as locks:
            for space in store.spaces():
                locks.enter_context(store.exclusive(space))
            etcd.clear(key, journal=True)
            for space, before in etcd.heads().items():
                kv: KeyValue | None = before
                for _ in range(_TRIES):
                    value = known(kv)
                    assert kv is not None
                    assert value is not None
                    mark = entropy(9_000_000 + kv.mod_revision, 8).hex()
                    gone = HeadValue(value.seq, value.commit, value.term, value.space, mark, left=True)
                    if etcd.replace_head(space, encode_head(gone), kv):
                        self._move(space, value.head)
                        break
                    kv = etcd.head(space)
                else:
                    raise Unavailable("it is still being appended to")
            etcd.clear(None, journal=True)
            disk.owner = (EMBEDDED, "")

    def _come_back(self) -> None:
        etcd, store, disk = self._etcd, self._store, self._world.disk
        with ExitStack() as locks:
            for space in store.spaces():
                locks.enter_context(store.exclusive(space))
            key = etcd.journal()
            etcd.clear(key, journal=True)
            disk.owner = (ETCD, PREFIX)
            found = etcd.heads()
            for space in sorted({*store.spaces(), *found}):
                self._publish(space, found.get(space), always=True)
            etcd.tell_journal(disk.journal)
