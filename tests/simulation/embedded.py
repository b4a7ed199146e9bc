"""A process without etcd beside those with one: it appends under the space's lock whenever the repository lets it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

from coordjournal.authority.lane import AppendFuture, Lane, Waiting
from coordjournal.errors import CoordJournalError
from coordjournal.testing.histories.events import Ended
from coordjournal.testing.histories.recording import Recorder
from tests.simulation.process import SimulatedReplica

if TYPE_CHECKING:
    from tests.simulation.world import World

_MOST: Final = 8  # appends, refused ones included
_PAUSES: Final = (0.0, 0.01, 0.2, 1.0)


class EmbeddedProcess:
    """A process on host `e`, in a thread of its own. What it is told while the repository is etcd's is a refusal."""

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self._world = world
        self._recorder = Recorder(world.write, name, world.now)
        self._store = world.store("e")
        self._stopped = False
        self._ended = False
        self._node = world.scheduler.spawn(f"{name} appends", self._run, daemon=True)

    def stop(self) -> None:
        """Let it end after the append that is under way."""
        self._stopped = True

    def kill(self) -> None:
        """End it where it is: in the middle of an append, as a rule."""
        self._world.schedule.note(f"{self.name} is killed, the lock {'held' if self._world.disk.locks else 'free'}")
        self._world.scheduler.kill(self._node)
        self._end()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._world.write(Ended(self._world.now(), self.name))

    def _run(self) -> None:
        world = self._world
        lanes = {space: self._lane(space) for space in world.spaces}
        for _ in range(_MOST):
            if self._stopped:
                break
            self._append(*list(lanes.items())[world.schedule.pick(len(lanes))])
            world.scheduler.sleep(_PAUSES[world.schedule.pick(len(_PAUSES))], "between appends")
        self._end()

    def _lane(self, space: str) -> Lane:
        replica = SimulatedReplica(space, self._store, self._world.scheduler)
        lane = Lane(space, self._store, {space: replica}.__getitem__, None)
        parts: Any = lane
        parts._thread = threading.current_thread()  # it is driven from here
        return lane

    def _append(self, space: str, lane: Lane) -> None:
        world = self._world
        append = world.workload.new()
        op = self._recorder.append_invoked(self.name, space, append)
        future = AppendFuture(lane)
        lane.put(Waiting(append, future))
        try:
            lane._serve()
        except CoordJournalError as error:  # of what comes after its callers were told
            world.schedule.note(f"{self.name}: {error}")
        self._recorder.append_returned(op, future.exception(0) or future.result(0))
