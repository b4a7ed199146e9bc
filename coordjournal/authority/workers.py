"""The threads that take members' steps: few of them, however many spaces have something to do.

One thread at a time is with a member. It stays there as long as there is something to do and nobody waits
for a thread; when all are busy, each gives way after a few steps.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from time import monotonic
from typing import Final

from coordjournal.authority.member import Member

MAX_WORKERS: Final = 32
"""Threads of one process: so many spaces' syncs can stand still before another space waits for them."""

_FOR_OTHERS: Final = 3 / 4  # of the threads; the rest is kept for spaces in which this process's own callers wait
_OTHERS_TURN: Final = 4  # one turn in so many is for others, though callers of our own wait
_THREAD_SECONDS: Final = 2.0  # a thread ends when it had nothing to do for so long
_STEPS: Final = 8  # before a thread goes to whoever waits; a takeover and its first groups take fewer
_FAILED_SECONDS: Final = 1.0  # until the next try of what failed unexpectedly

logger = logging.getLogger(__name__)


class _Turn:
    """A member that has something to do: now, at a time, or as soon as the step that is under way is done."""

    __slots__ = ("alarm", "due", "for_others", "kicked", "member", "queue", "running", "since", "steps")

    def __init__(self, member: Member) -> None:
        self.member = member
        self.queue: _Queue | None = None  # where it waits for a thread
        self.since = 0.0  # when it began to wait there
        self.running = False
        self.for_others = False  # what runs
        self.steps = 0  # since it was picked
        self.kicked = False  # while it ran
        self.due: float | None = None  # when it is to be stepped, if not now
        self.alarm: float | None = None  # when to look at it again; not later than that


_Queue = OrderedDict[_Turn, None]


class _Worker:
    """A thread, and what it is to do next; nothing if it is to end."""

    __slots__ = ("thread", "turn", "wake")

    def __init__(self, lock: threading.Lock, turn: _Turn) -> None:
        self.turn: _Turn | None = turn
        self.wake = threading.Condition(lock)
        self.thread: threading.Thread | None = None


class Workers:
    """A bounded pool of threads over `step`, which says after how many seconds to call it again, as `Member.step`.

    Threads begin when there is something to do, and end when there is not. What the pool cannot begin a
    thread for waits: `mind` tries again.
    """

    def __init__(self, step: Callable[[Member], float | None], *, most: int = MAX_WORKERS) -> None:
        self._step = step
        self._most = most
        self._most_for_others = max(1, int(most * _FOR_OTHERS))
        self._lock = threading.Lock()  # around all below
        self._stopped = False
        self._turns: dict[Member, _Turn] = {}
        self._own: _Queue = OrderedDict()  # those in which callers of this process wait
        self._others: _Queue = OrderedDict()
        self._picked = 0
        self._for_others = 0  # threads
        self._workers: set[_Worker] = set()
        self._idle: list[_Worker] = []  # the last one is the first to be used again, so that the others can end
        self._alarms: list[tuple[float, int, _Turn]] = []  # a heap
        self._numbers = itertools.count()
        self._alarm_set = threading.Condition(self._lock)
        self._minder: threading.Thread | None = None  # rings the alarms
        self._short = False  # a thread could not be begun

    def kick(self, member: Member) -> None:
        """Have a member stepped as soon as may be. Does not block, and does not raise."""
        with self._lock:
            if self._stopped:
                return
            turn = self._turns.get(member)
            if turn is None:
                turn = self._turns[member] = _Turn(member)
            if turn.running:
                turn.kicked = True
            else:
                self._enqueue(turn)
                self._employ()

    def waits(self, member: Member) -> float:
        """Return for how many seconds a member has been waiting for a thread."""
        with self._lock:
            turn = self._turns.get(member)
            return monotonic() - turn.since if turn is not None and turn.queue is not None else 0.0

    def mind(self) -> None:
        """Begin the threads that could not be begun before, if there is something to do for them."""
        with self._lock:
            if self._stopped:
                return
            self._ring()
            if self._alarms and self._minder is None:
                self._minder = self._begin("coordjournal-minder", self._mind_alarms)

    def stop(self, seconds: float) -> None:
        """Have the threads end after the steps they are in; wait for them for at most so long."""
        deadline = monotonic() + seconds
        with self._lock:
            self._stopped = True
            threads = [worker.thread for worker in self._workers if worker.thread is not None]
            for worker in self._idle:
                worker.wake.notify()
            self._alarm_set.notify()
            if self._minder is not None:
                threads.append(self._minder)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - monotonic()))

    # Who is next. All of this holds the lock.

    def _enqueue(self, turn: _Turn) -> None:
        turn.due = None
        own = turn.member.keep or not turn.member.idle
        queue = self._own if own else self._others
        if turn.queue is self._others and own:
            del self._others[turn]
        elif turn.queue is not None:
            return
        else:
            turn.since = monotonic()
        turn.queue = queue
        queue[turn] = None

    def _pick(self) -> _Turn | None:
        others = self._others and self._for_others < self._most_for_others
        self._picked += 1
        if self._own and not (others and self._picked % _OTHERS_TURN == 0):
            turn, _ = self._own.popitem(last=False)
        elif others:
            turn, _ = self._others.popitem(last=False)
        else:
            return None
        turn.for_others = turn.queue is self._others
        self._for_others += turn.for_others
        turn.queue, turn.running, turn.kicked, turn.steps = None, True, False, 0
        return turn

    def _put_back(self, turn: _Turn) -> None:
        turn.queue, turn.running = self._others if turn.for_others else self._own, False
        turn.queue[turn] = None
        turn.queue.move_to_end(turn, last=False)
        self._for_others -= turn.for_others

    def _employ(self) -> None:
        """Give what waits to the threads that have nothing to do, and to new ones."""
        while self._idle or len(self._workers) < self._most:
            turn = self._pick()
            if turn is None:
                return
            if self._idle:
                worker = self._idle.pop()
                worker.turn = turn
                worker.wake.notify()
                continue
            worker = _Worker(self._lock, turn)
            worker.thread = self._begin("coordjournal-worker", lambda worker=worker: self._run(worker))  # type: ignore[misc]
            if worker.thread is None:
                self._put_back(turn)
                return
            self._workers.add(worker)

    def _begin(self, name: str, target: Callable[[], None]) -> threading.Thread | None:
        thread = threading.Thread(target=target, name=name, daemon=True)
        try:
            thread.start()
        except (RuntimeError, MemoryError) as error:
            if not self._short:
                logger.warning("no thread can be begun: %s; with those there are it takes longer", error)
            self._short = True
            return None
        self._short = False
        return thread

    def _done(self, turn: _Turn, delay: float | None) -> None:
        turn.running = False
        self._for_others -= turn.for_others
        if turn.kicked or delay == 0.0:
            self._enqueue(turn)
        elif delay is not None:
            turn.due = monotonic() + delay
            self._set_alarm(turn, turn.due)
        elif turn.alarm is None:
            del self._turns[turn.member]

    # The threads.

    def _run(self, worker: _Worker) -> None:
        turn = worker.turn
        while turn is not None:
            try:
                delay = self._step(turn.member)
            except Exception:
                logger.exception("space %s: its thread met something unexpected; it goes on", turn.member.space)
                delay = _FAILED_SECONDS
            turn.steps += 1
            with self._lock:
                if (turn.kicked or delay == 0.0) and turn.steps < _STEPS and not self._stopped:
                    turn.kicked = False
                else:
                    self._done(turn, delay)
                    turn = self._next(worker)

    def _next(self, worker: _Worker) -> _Turn | None:
        turn = None if self._stopped else self._pick()
        if turn is None and not self._stopped:
            worker.turn = None
            self._idle.append(worker)
            worker.wake.wait(_THREAD_SECONDS)
            turn = worker.turn
            if turn is None:
                self._idle.remove(worker)
        if turn is None:
            self._workers.remove(worker)
        return turn

    # What is due later.

    def _set_alarm(self, turn: _Turn, due: float) -> None:
        if turn.alarm is not None and turn.alarm <= due:
            return  # it is looked at in time, and then put off
        turn.alarm = due
        heapq.heappush(self._alarms, (due, next(self._numbers), turn))
        if self._minder is None:
            self._minder = self._begin("coordjournal-minder", self._mind_alarms)
        elif self._alarms[0][2] is turn:
            self._alarm_set.notify()

    def _ring(self) -> None:
        now = monotonic()
        while self._alarms and self._alarms[0][0] <= now:
            due, _, turn = heapq.heappop(self._alarms)
            if turn.alarm != due:
                continue  # an earlier one was set
            turn.alarm = None
            if turn.due is not None and turn.due <= now:
                self._enqueue(turn)
            elif turn.due is not None:
                self._set_alarm(turn, turn.due)
            elif not turn.running and turn.queue is None:
                del self._turns[turn.member]
        self._employ()

    def _mind_alarms(self) -> None:
        with self._lock:
            while not self._stopped:
                self._ring()
                rest = self._alarms[0][0] - monotonic() if self._alarms else _THREAD_SECONDS
                if rest > 0 and not self._alarm_set.wait(rest) and not self._alarms:
                    break
            self._minder = None
