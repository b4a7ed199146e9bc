"""The replicas of one process: one for each space, of which as many stay warm as so many bytes hold."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from coordjournal.replica import Replica

DEFAULT_STATE_BYTES: Final = 512 << 20
"""What the folded states of one log may take, unless told otherwise: 2.5 million aliases with short names."""


class Replicas:
    """Gives the replica of a space, and sees to it that all together hold about `limit` bytes at the most.

    What a replica holds beyond that is let go of, that of the space first which was asked for least
    lately; asked for again, it folds from what the cache has. The one at work is kept, however large. What
    is left of the others is a few kilobytes each: what they have reached, so that a log that
    is set back is noticed. Safe in many threads.
    """

    def __init__(self, make: Callable[[str, Callable[[Replica], None]], Replica], limit: int) -> None:
        """`make` makes the replica of a space, which calls what it is given whenever it holds more or less."""
        self._make = make
        self._limit = limit
        self._lock = threading.Lock()
        self._replicas: dict[str, Replica] = {}
        self._warm: dict[Replica, int] = {}  # what each holds, the least lately used one first
        self.held = 0
        """About how many bytes all of them hold."""

    def __call__(self, space: str) -> Replica:
        """Return the replica of `space`."""
        with self._lock:
            replica = self._replicas.get(space)
            if replica is None:
                replica = self._replicas[space] = self._make(space, self._weigh)
            elif (held := self._warm.pop(replica, None)) is not None:
                self._warm[replica] = held  # dicts keep their order
            return replica

    def close(self) -> None:
        """Write to the cache what is worth it, and close its files."""
        with self._lock:
            replicas, self._replicas, self._warm, self.held = list(self._replicas.values()), {}, {}, 0
        for replica in replicas:
            replica.close()

    def _weigh(self, replica: Replica) -> None:
        """Note what a replica holds; let others go where that is too much."""
        gone = []
        held = replica.held
        with self._lock:
            self.held += held - self._warm.pop(replica, 0)
            self._warm[replica] = held
            for other in list(self._warm) if self.held > self._limit else ():
                if self.held <= self._limit:
                    break
                # One that is at work is left alone: it will say what it holds when it is done.
                if other is not replica and (left := other.cool()) is not None:
                    gone.append(left)
                    self.held -= self._warm.pop(other)
        for left in gone:  # to write and to free takes a while
            left()
