"""The scheduler and the shrinker, on toys whose faults are known."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from tests.simulation.schedule import Schedule, ScheduleFailed, explore, shrink
from tests.simulation.scheduler import Crash, Deadlock, Endless, Scheduler

Body = Callable[[], object]


class Counter:
    """Reads and writes with a yield point in between: updates get lost."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.value = 0
        self._scheduler = scheduler

    def add_five(self) -> None:
        for _ in range(5):
            self.add()

    def add(self) -> None:
        read = self.value
        self._scheduler.yield_point("read")
        self.value = read + 1
        self._scheduler.yield_point("written")


def count_together(schedule: Schedule, nodes: int = 3, times: int = 2) -> None:
    scheduler = Scheduler(schedule)
    counter = Counter(scheduler)

    def body() -> None:
        for _ in range(times):
            counter.add()

    for number in range(nodes):
        scheduler.spawn(f"n{number}", body)
    scheduler.run()
    assert counter.value == nodes * times, "an update was lost"


def run(scheduler: Scheduler, *bodies: Body) -> None:
    for number, body in enumerate(bodies):
        scheduler.spawn(f"n{number}", body)
    scheduler.run()


def test_the_same_seed_makes_the_same_steps_and_another_one_others() -> None:
    def trace(seed: int) -> list[tuple[str, str]]:
        schedule = Schedule(seed)
        scheduler = Scheduler(schedule)
        counter = Counter(scheduler)
        run(scheduler, *[counter.add_five] * 3)
        return schedule.trace

    first = trace(7)
    assert first == trace(7)
    assert len(first) == 3 * 5 * 2
    assert len({tuple(trace(seed)) for seed in range(20)}) == 20


def test_recorded_decisions_go_the_way_of_their_seed() -> None:
    def trace(schedule: Schedule) -> list[tuple[str, str]]:
        scheduler = Scheduler(schedule)
        counter = Counter(scheduler)
        run(scheduler, *[counter.add_five] * 3)
        return schedule.trace

    seeded = Schedule(3)
    steps = trace(seeded)
    again = Schedule(seeded.decisions)
    assert trace(again) == steps
    assert again.decisions == seeded.decisions


def test_without_a_seed_every_node_runs_to_its_end_before_the_next_one() -> None:
    count_together(schedule := Schedule([]))
    assert [node for node, _ in schedule.trace] == [name for name in ("n0", "n1", "n2") for _ in range(4)]


def test_a_lost_update_is_found_and_shrunk_to_one_switch() -> None:
    with pytest.raises(ScheduleFailed, match="an update was lost") as caught:
        explore(count_together, range(50))
    failed = caught.value
    assert isinstance(failed.__cause__, AssertionError)
    with pytest.raises(AssertionError):
        count_together(Schedule(failed.seed))
    with pytest.raises(AssertionError):
        count_together(Schedule(failed.decisions))
    assert failed.decisions == [0, 1]  # the first node begins, and the next one goes on after its first step
    assert str(failed).startswith(f"seed {failed.seed} fails: AssertionError: an update was lost")
    assert "n0         read" in str(failed)


def test_exploring_what_never_fails_says_nothing() -> None:
    explore(lambda schedule: count_together(schedule, nodes=1), range(20))


def test_shrinking_keeps_what_matters_only() -> None:
    def fails(decisions: list[int]) -> bool:
        return sum(1 for decision in decisions if decision >= 3) >= 2 and 7 in decisions

    long = [5, 1, 0, 2, 9, 7, 4, 4, 0, 1] * 20
    assert fails(long)
    short = shrink(long, fails)
    assert fails(short)
    assert sorted(short) == [3, 7]


def test_shrinking_asks_no_more_often_than_it_may() -> None:
    asked = []

    def fails(decisions: list[int]) -> bool:
        asked.append(decisions)
        return len(decisions) > 50

    for tries in range(12):
        asked.clear()
        shrink([1] * 200, fails, tries=tries)
        assert len(asked) == tries


def test_shrinking_a_long_list_of_which_little_matters_is_quick() -> None:
    asked = []

    def fails(decisions: list[int]) -> bool:
        asked.append(decisions)
        return decisions[:2] == [4, 2]

    assert shrink([4, 2, *range(5000)], fails) == [4, 2]
    assert len(asked) < 50


def test_what_is_weighted_is_as_likely_as_it_weighs_and_is_recorded() -> None:
    def draw(schedule: Schedule) -> list[object]:
        return [(schedule.weighted((80, 15, 5)), schedule.chance(0.1), schedule.pick(4)) for _ in range(1000)]

    seeded = Schedule(11)
    drawn = draw(seeded)
    assert draw(Schedule(seeded.decisions)) == drawn
    assert 750 < sum(seeded.decisions[at] == 0 for at in range(0, 3000, 3)) < 850
    assert 20 < sum(seeded.decisions[at] == 2 for at in range(0, 3000, 3)) < 90
    assert 60 < sum(seeded.decisions[at] for at in range(1, 3000, 3)) < 140
    assert {seeded.decisions[at] for at in range(2, 3000, 3)} == {0, 1, 2, 3}
    assert draw(Schedule([])) == [(0, False, 0)] * 1000


def test_a_killed_node_ends_where_it_is_and_does_nothing_more() -> None:
    did: list[str] = []
    scheduler = Scheduler(Schedule([0, 0]), interfere=lambda: scheduler.pause(node, 1))

    def victim() -> None:
        try:
            did.append("begun")
            scheduler.yield_point("here")
            did.append("gone on")
        finally:
            did.append("unwound")
            scheduler.yield_point("cleaning up")
            did.append("cleaned up")

    def killer() -> None:
        scheduler.kill(node)
        did.append("killed")
        scheduler.kill(node)  # is dead

    node = scheduler.spawn("victim", victim)
    scheduler.spawn("killer", killer)
    scheduler.run()
    assert did == ["begun", "unwound", "killed"]
    assert node.done
    assert ("victim", "killed") in scheduler.schedule.trace


def test_what_a_node_tries_while_the_world_kills_it_does_not_happen() -> None:
    did: list[str] = []

    def victim() -> None:
        try:
            scheduler.yield_point("here")
        finally:
            scheduler.yield_point("cleaning up")
            did.append("cleaned up")

    def interfere() -> None:
        if scheduler.current == "other":
            scheduler.kill(node)
            did.append("killed")

    scheduler = Scheduler(Schedule([0, 1]), interfere=interfere)
    node = scheduler.spawn("victim", victim)
    scheduler.spawn("other", lambda: scheduler.yield_point("step"))
    scheduler.run()
    assert did == ["killed"]


def test_the_world_may_do_what_has_yield_points() -> None:
    asked: list[str] = []

    def interfere() -> None:
        asked.append(scheduler.current)
        scheduler.yield_point("of the world")

    scheduler = Scheduler(Schedule([]), interfere=interfere, max_steps=100)
    run(scheduler, lambda: scheduler.yield_point("step"))
    assert asked == ["n0"]
    assert scheduler.schedule.trace == [("n0", "step")]


def test_the_world_may_kill_the_node_that_runs_and_start_it_again() -> None:
    lives: list[int] = []

    def body() -> None:
        lives.append(0)
        for _ in range(10):
            scheduler.yield_point("step")
            lives[-1] += 1

    def interfere() -> None:
        if lives == [3]:
            scheduler.kill(scheduler.alive()[0])
            scheduler.spawn("node, again", body)

    scheduler = Scheduler(Schedule(1), interfere=interfere)
    scheduler.spawn("node", body)
    scheduler.run()
    assert lives == [3, 10]


def test_a_node_that_did_not_start_yet_never_does_when_it_is_killed() -> None:
    scheduler = Scheduler(Schedule([]))
    second = scheduler.spawn("first", lambda: scheduler.kill(second))
    second = scheduler.spawn("second", lambda: pytest.fail("it ran"))
    scheduler.run()
    assert second.done


def test_a_crash_cannot_be_caught_and_outlived() -> None:
    def stubborn() -> None:
        for _ in range(5):
            try:
                scheduler.yield_point("step")
                steps.append(scheduler.steps)
            except BaseException as error:  # noqa: BLE001  # as code under test might
                caught.append(error)

    steps: list[int] = []
    caught: list[BaseException] = []
    scheduler = Scheduler(Schedule([]))
    node = scheduler.spawn("stubborn", stubborn)
    scheduler.interfere = lambda: scheduler.kill(node)
    scheduler.run()
    assert steps == []
    assert [type(error) for error in caught] == [Crash] * 5


def test_a_paused_node_goes_on_when_its_time_has_come() -> None:
    times: dict[str, float] = {}
    scheduler = Scheduler(Schedule([]))

    def slow() -> None:
        scheduler.pause(scheduler.alive()[0], 10)
        scheduler.yield_point("pause")
        times["slow"] = scheduler.now

    def quick() -> None:
        scheduler.sleep(3)
        times["quick"] = scheduler.now

    run(scheduler, slow, quick)
    assert times["quick"] == pytest.approx(3, abs=0.1)
    assert times["slow"] == pytest.approx(10, abs=0.1)


def test_a_paused_node_need_not_wait_longer_for_what_has_come_meanwhile() -> None:
    scheduler = Scheduler(Schedule([]), step_seconds=0)

    def body() -> None:
        scheduler.pause(scheduler.alive()[0], 5)
        assert scheduler.sleep_until(lambda: True, 100)

    run(scheduler, body)
    assert scheduler.now == 5


def test_waiting_ends_with_what_is_waited_for_or_with_the_deadline() -> None:
    results: list[tuple[bool, float]] = []
    done: list[str] = []
    scheduler = Scheduler(Schedule([]), step_seconds=0)

    def waiting() -> None:
        results.append((scheduler.sleep_until(lambda: bool(done), 5.0), scheduler.now))
        results.append((scheduler.sleep_until(lambda: len(done) > 1, 9.0), scheduler.now))

    def working() -> None:
        scheduler.sleep(2)
        done.append("work")
        scheduler.sleep(100)

    run(scheduler, waiting, working)
    assert results == [(True, 2.0), (False, 9.0)]


def test_time_moves_to_a_timer_of_the_world_and_lets_it_act() -> None:
    rung: list[float] = []
    scheduler = Scheduler(Schedule([]), step_seconds=0)
    scheduler.timers.append(lambda: None if rung else 4.0)

    def interfere() -> None:
        if scheduler.now >= 4.0:
            rung.append(scheduler.now)

    scheduler.interfere = interfere
    run(scheduler, lambda: scheduler.sleep_until(lambda: bool(rung), float("inf")))
    assert rung == [4.0]


def test_a_daemon_does_not_keep_the_run_from_its_end() -> None:
    def forever() -> None:
        while True:
            scheduler.sleep(1)

    scheduler = Scheduler(Schedule(5))
    daemon = scheduler.spawn("daemon", forever, daemon=True)
    scheduler.spawn("node", lambda: scheduler.sleep(10))
    before = threading.active_count()
    scheduler.run()
    assert daemon.done
    assert threading.active_count() == before


def test_what_a_node_raises_ends_the_run() -> None:
    def failing() -> None:
        scheduler.yield_point("step")
        raise KeyError("broken")

    scheduler = Scheduler(Schedule(5))
    other = scheduler.spawn("other", lambda: scheduler.sleep(10))
    scheduler.spawn("failing", failing)
    with pytest.raises(KeyError, match="broken"):
        scheduler.run()
    assert other.done


def test_what_the_world_raises_is_not_the_nodes_to_catch() -> None:
    def careless() -> None:
        for _ in range(5):
            try:
                scheduler.yield_point("step")
            except Exception:  # noqa: BLE001  # as code under test might
                pytest.fail("it saw the world's error")

    def interfere() -> None:
        raise KeyError("the world is broken")

    scheduler = Scheduler(Schedule(5), interfere=interfere)
    scheduler.spawn("careless", careless)
    with pytest.raises(KeyError, match="the world is broken"):
        scheduler.run()


def test_nodes_that_wait_for_each_other_are_a_deadlock() -> None:
    scheduler = Scheduler(Schedule([]))
    with pytest.raises(Deadlock, match="n0 at 'for n1'"):
        run(scheduler, lambda: scheduler.sleep_until(lambda: False, float("inf"), "for n1"))
    assert scheduler.alive() == []


def test_nodes_that_never_end_are_endless() -> None:
    def spin() -> None:
        while True:
            scheduler.yield_point("again")

    scheduler = Scheduler(Schedule([]), max_steps=100)
    with pytest.raises(Endless, match="n0 at 'again'"):
        run(scheduler, spin)
    assert scheduler.alive() == []


def test_a_lock_held_across_a_yield_point_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.simulation.scheduler.STUCK_SECONDS", 0.3)
    from tests.simulation.scheduler import Stuck

    lock = threading.Lock()
    scheduler = Scheduler(Schedule([0, 1]))

    def locking() -> None:
        with lock:
            scheduler.yield_point("locked")

    with pytest.raises(Stuck, match=r"n0 at 'locked', n1 at 'start' \(current\)"):
        run(scheduler, locking, locking)
    lock.release()  # so that the threads end


def test_a_thread_of_somebody_else_has_no_yield_points() -> None:
    errors: list[BaseException] = []
    scheduler = Scheduler(Schedule([]))

    def stranger() -> None:
        try:
            scheduler.yield_point("strange")
        except AssertionError as error:
            errors.append(error)

    def body() -> None:
        thread = threading.Thread(target=stranger)
        thread.start()
        thread.join()

    run(scheduler, body)
    assert "strange: a thread of which the scheduler knows nothing" in str(errors[0])


def test_outside_of_a_run_a_yield_point_is_nothing_and_sleep_moves_time() -> None:
    scheduler = Scheduler(Schedule([]))
    scheduler.yield_point("setting up")
    scheduler.sleep(3)
    assert scheduler.now == 3
    assert scheduler.schedule.trace == []
