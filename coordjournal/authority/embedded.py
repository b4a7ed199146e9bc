"""The authority without a server: any number of processes on one host take turns by a file lock.

A thread a space takes what has gathered, as one group, through lock → judge → write → publish. The
branch is the published head, so publishing is moving it. While one group is made durable the next one
gathers: the appends of this process in its queue, those of the others as intents in the spool.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final

from coordjournal.authority import Consistency
from coordjournal.authority.lane import AppendFuture, Lane, Waiting
from coordjournal.authority.spool import Spool
from coordjournal.entry import Append, Head, Receipt
from coordjournal.errors import Closed
from coordjournal.replica import Replica
from coordjournal.store import Store

_LOOK_SECONDS: Final = 0.05  # how often another process's appends are looked for by `wait`


class EmbeddedAuthority:
    """An `Authority` for the processes of one host, over any `Store`.

    `replica` gives this process's replica of a space, `spool` where the processes of this host leave
    each other intents; None where there is only this process.
    """

    def __init__(
        self,
        store: Store,
        replica: Callable[[str], Replica],
        spool: Callable[[str], Spool | None] = lambda _: None,
    ) -> None:
        self._store = store
        self._replica = replica
        self._spool = spool
        self._lock = threading.Lock()
        self._lanes: dict[str, Lane] = {}
        self._closed = False

    grace = 0.0

    def head(
        self, space: str, seconds: float = 10.0, consistency: Consistency = "linearizable", after: int = 0
    ) -> Head:
        del seconds, consistency, after  # the branch is the published head, whatever is asked for
        return self._store.head(space)

    def age(self, space: str) -> float | None:
        del space  # likewise
        return 0.0

    def submit(self, space: str, append: Append) -> Future[Receipt]:
        with self._lock:
            if self._closed:
                raise Closed("the log was closed; open another one")
            lane = self._lanes.get(space)
            if lane is None:
                lane = self._lanes[space] = Lane(space, self._store, self._replica, self._spool(space))
        future = AppendFuture(lane)
        lane.put(Waiting(append, future))
        return future

    def wait(self, space: str, seen: Head, seconds: float) -> None:
        with self._lock:
            lane = self._lanes.get(space)
        deadline = time.monotonic() + seconds
        while not self._closed and self._store.head(space) == seen and (left := deadline - time.monotonic()) > 0:
            if lane is None:
                time.sleep(min(left, _LOOK_SECONDS))
            else:
                lane.published.wait(min(left, _LOOK_SECONDS))

    def close(self, seconds: float) -> None:
        with self._lock:
            self._closed = True
            lanes = list(self._lanes.values())
        deadline = time.monotonic() + seconds
        for lane in lanes:
            lane.close(max(0.0, deadline - time.monotonic()))
