"""The pool of threads that take members' steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from coordjournal.authority import workers
from coordjournal.authority.workers import Workers
from tests.integration.processes import until

Step = Callable[["Space"], float | None]


class Space:
    """What the pool sees of a member."""

    def __init__(self, name: str, *, own: bool = False) -> None:
        self.space = name
        self.keep = False
        self.idle = not own


class Pool:
    """A pool, and what it did: who was stepped, and how many threads were at it at a time."""

    def __init__(self, step: Step, most: int) -> None:
        self.stepped: list[str] = []
        self.most_at_once = 0
        self._step = step
        self._at_it: list[str] = []
        self._lock = threading.Lock()
        parts: Any = self._noting
        self.workers = Workers(parts, most=most)

    def kick(self, space: Space) -> None:
        member: Any = space
        self.workers.kick(member)

    def _noting(self, space: Space) -> float | None:
        with self._lock:
            assert space.space not in self._at_it, "two threads are with one member"
            self.stepped.append(space.space)
            self._at_it.append(space.space)
            self.most_at_once = max(self.most_at_once, len(self._at_it))
        try:
            return self._step(space)
        finally:
            with self._lock:
                self._at_it.remove(space.space)


@pytest.fixture
def pool() -> Iterator[Callable[..., Pool]]:
    made: list[Pool] = []

    def make(step: Step = lambda space: None, most: int = 4) -> Pool:
        made.append(Pool(step, most))
        return made[-1]

    yield make
    for each in made:
        each.workers.stop(5)


def of_the_pool() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(("coordjournal-w", "coordjournal-m"))]


def names(count: int, prefix: str = "s") -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def test_many_spaces_take_few_threads_which_end_when_nothing_is_left(
    pool: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_THREAD_SECONDS", 0.05)
    left = dict.fromkeys(names(200), 3)

    def step(space: Space) -> float | None:
        time.sleep(0.0005)
        left[space.space] -= 1
        return 0.0 if left[space.space] else None

    busy = pool(step)
    for number, name in enumerate(left):
        busy.kick(Space(name, own=number % 2 == 0))
    until(lambda: not any(left.values()), "all to be stepped")
    assert busy.most_at_once <= 4
    until(lambda: not of_the_pool(), "the threads to end")
    busy.kick(Space("again"))
    until(lambda: "again" in busy.stepped, "a thread to begin again")


def test_a_kick_during_a_step_is_not_lost(pool: Callable[..., Pool]) -> None:
    space, under_way, goes_on = Space("s"), threading.Event(), threading.Event()

    def step(_: Space) -> None:
        under_way.set()
        goes_on.wait(5)

    busy = pool(step)
    busy.kick(space)
    under_way.wait(5)
    busy.kick(space)
    goes_on.set()
    until(lambda: len(busy.stepped) == 2, "the second step")


def test_a_space_whose_step_does_not_come_back_stands_in_nobodys_way(pool: Callable[..., Pool]) -> None:
    goes_on = threading.Event()
    busy = pool(lambda space: goes_on.wait(20) and None if space.space.startswith("stuck") else None)
    for name in names(3, "stuck"):
        busy.kick(Space(name, own=True))
    for name in names(50):
        busy.kick(Space(name))
    until(lambda: len(busy.stepped) == 53, "the others to be stepped")
    goes_on.set()


def test_where_callers_of_our_own_wait_comes_before_a_flood_of_others(pool: Callable[..., Pool]) -> None:
    goes_on = threading.Event()
    busy = pool(lambda space: goes_on.wait(20) and None if space.space.startswith("slow") else None)
    for name in names(3, "slow-other"):
        busy.kick(Space(name))
    for name in names(500):
        busy.kick(Space(name))
    assert busy.workers.waits(Space("none")) == 0.0  # type: ignore[arg-type]
    busy.kick(Space("own", own=True))
    until(lambda: "own" in busy.stepped, "the thread that is kept for it")
    assert len(busy.stepped) == 4, "three for others, and our own"
    busy.kick(Space("slow-own", own=True))
    until(lambda: len(busy.stepped) == 5, "all threads to be busy")
    turned = Space("s499")
    later = Space("turned")
    busy.kick(later)
    later.idle = False
    busy.kick(later)
    busy.kick(turned)
    goes_on.set()
    until(lambda: len(busy.stepped) >= 506, "all to be stepped")
    assert busy.stepped.index("turned") < 10, "a caller came while it waited among the others"


def test_others_are_stepped_though_callers_of_our_own_never_cease(pool: Callable[..., Pool]) -> None:
    stop = threading.Event()
    busy = pool(lambda space: None if space.space == "other" or stop.is_set() else 0.0)
    for name in names(12):
        busy.kick(Space(name, own=True))
    busy.kick(Space("other"))
    until(lambda: "other" in busy.stepped, "the other's turn")
    assert set(names(12)) <= set(busy.stepped)
    stop.set()


def test_what_is_due_later_is_stepped_then_and_earlier_if_kicked(pool: Callable[..., Pool]) -> None:
    delays = {"soon": [0.05, 0.02, None], "late": [30.0, None], "put-off": [0.03, 0.2, None]}
    times: dict[str, list[float]] = {name: [] for name in delays}

    def step(space: Space) -> float | None:
        times[space.space].append(time.monotonic())
        return delays[space.space].pop(0)

    busy = pool(step)
    spaces = {name: Space(name) for name in delays}
    for space in spaces.values():
        busy.kick(space)
    until(lambda: len(times["soon"]) == 3, "it to be due twice")
    until(lambda: len(times["put-off"]) == 3, "it to be due twice")
    assert times["soon"][1] - times["soon"][0] >= 0.05
    assert times["put-off"][2] - times["put-off"][1] >= 0.2
    assert len(times["late"]) == 1
    busy.kick(spaces["late"])
    until(lambda: len(times["late"]) == 2, "the kick")


def test_an_unexpected_error_in_a_step_is_told_and_the_space_goes_on(
    pool: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers, "_FAILED_SECONDS", 0.01)
    failures = [ValueError("what nobody thought of")]

    def step(_: Space) -> None:
        if failures:
            raise failures.pop()

    busy = pool(step)
    busy.kick(Space("s"))
    until(lambda: len(busy.stepped) == 2, "the next step")
    assert "met something unexpected" in caplog.text


def test_a_thread_that_cannot_be_begun_is_begun_later(
    pool: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    busy = pool()
    with monkeypatch.context() as system:
        system.setattr(threading.Thread, "start", no_thread)
        busy.kick(Space("s"))
        busy.kick(Space("t"))
        busy.workers.mind()
    assert not busy.stepped
    busy.workers.mind()
    until(lambda: set(busy.stepped) == {"s", "t"}, "the steps")
    assert caplog.text.count("no thread can be begun") == 1


def test_a_pool_that_never_had_a_thread_is_stopped(pool: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch) -> None:
    busy = pool()
    with monkeypatch.context() as system:
        system.setattr(threading.Thread, "start", no_thread)
        busy.kick(Space("s"))
        busy.workers.stop(1)
    busy.kick(Space("t"))
    busy.workers.mind()
    assert not busy.stepped


def no_thread(thread: threading.Thread) -> None:
    """Do what the system does that has no thread left."""
    raise RuntimeError("can't start new thread")
