"""The authority without a server: any number of processes on one host take turns by a file lock.

A thread a space takes what has gathered, as one group, through lock → judge → write → publish. The
branch is the published head, so publishing is moving it. While one group is made durable the next one
gathers.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, NamedTuple

from coordjournal.commit import Group
from coordjournal.entry import Append, Head, Receipt
from coordjournal.errors import Closed, CoordJournalError, Unavailable, Undecided
from coordjournal.replica import Replica
from coordjournal.retry import HEAD_MOVED
from coordjournal.store import HeadMoved, Store

AUTHORITY: Final = "embedded"

_MAX_WAITING: Final = 1 << 16  # appends of one space; more are refused at once
_MAX_GROUP: Final = 1024  # appends
_MAX_GROUP_EVENTS: Final = 16_384
_IDLE_SECONDS: Final = 2.0  # a space's thread ends when it had nothing to do for so long
_LOOK_SECONDS: Final = 0.05  # how often another process's appends are looked for by `wait`

logger = logging.getLogger(__name__)


class _Waiting(NamedTuple):
    append: Append
    future: Future[Receipt]


class EmbeddedAuthority:
    """An `Authority` for the processes of one host, over any `Store`.

    `replica` gives this process's replica of a space.
    """

    def __init__(self, store: Store, replica: Callable[[str], Replica]) -> None:
        self._store = store
        self._replica = replica
        self._lock = threading.Lock()
        self._lanes: dict[str, _Lane] = {}
        self._closed = False

    def head(self, space: str) -> Head:
        return self._store.head(space)

    def submit(self, space: str, append: Append) -> Future[Receipt]:
        future: Future[Receipt] = Future()
        with self._lock:
            if self._closed:
                raise Closed("the log was closed; open another one")
            lane = self._lanes.get(space)
            if lane is None:
                lane = self._lanes[space] = _Lane(space, self._store, self._replica)
        lane.put(_Waiting(append, future))
        return future

    def wait(self, space: str, seen: Head, seconds: float) -> None:
        with self._lock:
            lane = self._lanes.get(space)
        deadline = time.monotonic() + seconds
        while self._store.head(space) == seen and (left := deadline - time.monotonic()) > 0:
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


class _Pulse:
    """Wakes all that wait for it, each time it beats."""

    def __init__(self) -> None:
        self._beat = threading.Event()

    def wait(self, seconds: float) -> None:
        self._beat.wait(seconds)

    def beat(self) -> None:
        beat, self._beat = self._beat, threading.Event()
        beat.set()


class _Lane:
    """The appends of one space on their way through this process, and the thread that takes them."""

    def __init__(self, space: str, store: Store, replica: Callable[[str], Replica]) -> None:
        self.published = _Pulse()
        self._space = space
        self._store = store
        self._replica = replica
        self._work = threading.Condition()
        self._waiting: deque[_Waiting] = deque()
        self._thread: threading.Thread | None = None
        self._closing = False

    def put(self, waiting: _Waiting) -> None:
        with self._work:
            if self._closing:
                raise Closed("the log was closed; open another one")
            if len(self._waiting) >= _MAX_WAITING:
                raise Unavailable(f"{_MAX_WAITING:,} appends to space {self._space} are waiting; try again later")
            self._waiting.append(waiting)
            if self._thread is None:
                name = f"coordjournal-{self._space}"
                self._thread = threading.Thread(target=self._run, name=name, daemon=True)
                self._thread.start()
            elif len(self._waiting) == 1:
                self._work.notify()

    def close(self, seconds: float) -> None:
        with self._work:
            self._closing = True
            self._work.notify()
            thread = self._thread
        if thread is not None:
            thread.join(seconds)
        with self._work:
            left, self._waiting = self._waiting, deque()
        for waiting in left:
            if waiting.future.set_running_or_notify_cancel():
                waiting.future.set_exception(Closed("the log was closed before the append was taken on"))

    def _run(self) -> None:
        while self._await_work():
            try:
                self._serve()
            except Exception as error:
                logger.exception("space %s: a group of appends failed", self._space)
                self._refuse(error)

    def _await_work(self) -> bool:
        with self._work:
            if not self._waiting and not self._closing:
                self._work.wait(_IDLE_SECONDS)
            if not self._waiting:
                self._thread = None
                return False
            return True

    def _serve(self) -> None:
        """Take one group through: under the space's lock, whatever gathered until it was had."""
        try:
            self._store.claim(AUTHORITY)
            with self._store.exclusive(self._space):
                self._store.claim(AUTHORITY)  # again, since another process may have changed whose it is
                group = self._gather()
                if group:
                    self._decide(group)
        except CoordJournalError as error:
            self._refuse(error)
            return
        self._replica(self._space).settle()

    def _gather(self) -> list[_Waiting]:
        group: list[_Waiting] = []
        events = 0
        with self._work:
            while self._waiting and len(group) < _MAX_GROUP and events < _MAX_GROUP_EVENTS:
                waiting = self._waiting.popleft()
                if waiting.future.set_running_or_notify_cancel():
                    group.append(waiting)
                    events += len(waiting.append.events)
        return group

    def _refuse(self, error: Exception) -> None:
        """Give what has gathered the reason for which nothing can be appended now."""
        for waiting in self._gather():
            waiting.future.set_exception(copy.copy(error))

    def _decide(self, group: list[_Waiting]) -> None:
        asked = [waiting.append for waiting in group]
        try:
            outcomes = HEAD_MOVED(self._commit, asked)
        except HeadMoved:
            outcomes = [Unavailable(f"the branch {self._space} is moved by others again and again")] * len(group)
        except CoordJournalError as error:
            outcomes = [error] * len(group)
        except Exception as error:  # a fault of ours must not leave callers waiting for ever
            logger.exception("space %s: a group of appends failed", self._space)
            undecided = Undecided(f"it is not known what became of the append: {error!r}")
            undecided.__cause__ = error
            outcomes = [undecided] * len(group)
        for waiting, outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, Receipt):
                waiting.future.set_result(outcome)
            else:
                waiting.future.set_exception(copy.copy(outcome))
        self.published.beat()

    def _commit(self, asked: list[Append]) -> list[Receipt | CoordJournalError]:
        replica = self._replica(self._space)
        base = self._store.head(self._space)
        group = Group(asked, replica, base)
        group.judge()
        failure: CoordJournalError | None = None
        if group.ready:
            try:
                group.write(self._store, self._space, base.term)
                self._store.advance(self._space, base, group.written[-1].head)
                replica.accept(group.written, group.state)
            except (Unavailable, Undecided) as error:
                failure = error
        return group.outcomes(self._space, failure=failure)
