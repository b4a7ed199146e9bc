"""Locks, conditions and events of a simulated process: whoever waits for one lets the schedule decide who goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from tests.simulation.scheduler import NEVER, Scheduler

__all__ = ["SimulatedCondition", "SimulatedEvent", "SimulatedLock"]

_NOBODY: Final = 0


class SimulatedLock:
    """A reentrant lock. Nobody waits for it while the world acts between two steps."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._owner = _NOBODY
        self._depth = 0

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        me = threading.get_ident()
        until = NEVER if timeout < 0 else self._scheduler.now + timeout
        while self._owner not in (_NOBODY, me):
            if not blocking or self._scheduler.now >= until:
                return False
            assert self._scheduler.current, "the world waits for a lock"
            self._scheduler.sleep_until(lambda: self._owner == _NOBODY, until, "lock")
        self._owner = me
        self._depth += 1
        return True

    def release(self) -> None:
        if self._owner != threading.get_ident():
            return  # it was killed while it waited, and unwinds
        self._depth -= 1
        if not self._depth:
            self._owner = _NOBODY


class SimulatedCondition(SimulatedLock):
    """A condition with a lock of its own; it is waited for in virtual time."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__(scheduler)
        self._beats = 0

    def wait(self, timeout: float | None = None) -> bool:
        beats = self._beats
        return self._wait(lambda: self._beats != beats, timeout)

    def wait_for(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        return predicate() or self._wait(predicate, timeout)

    def notify(self, n: int = 1) -> None:
        del n
        self.notify_all()

    def notify_all(self) -> None:
        self._beats += 1

    def _wait(self, predicate: Callable[[], bool], timeout: float | None) -> bool:
        depth, self._depth, self._owner = self._depth, 0, _NOBODY
        until = NEVER if timeout is None else self._scheduler.now + timeout
        try:
            return self._scheduler.sleep_until(predicate, until, "wait")
        finally:
            self.acquire()
            self._depth = depth


class SimulatedEvent:
    """A flag that is waited for in virtual time."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._flag = False

    def is_set(self) -> bool:
        return self._flag

    def set(self) -> None:
        self._flag = True

    def wait(self, timeout: float | None = None) -> bool:
        if not self._flag:
            until = NEVER if timeout is None else self._scheduler.now + timeout
            self._scheduler.sleep_until(self.is_set, until, "wait")
        return self._flag
