"""The protocol in a world that a schedule decides about: a thousand schedules; `test_schedules` has a thousand more."""

from __future__ import annotations

from collections import Counter

import pytest

from coordjournal.testing.histories import Era, Fault
from tests.simulation.judging import Violated, judge, simulate
from tests.simulation.kinds import CALM, KINDS, Kind
from tests.simulation.schedule import Schedule, ScheduleFailed, explore
from tests.simulation.world import World

CHUNK = 100


@pytest.mark.parametrize("start", range(0, 1000, CHUNK))
def test_no_schedule_breaks_a_rule(start: int) -> None:
    explore(judge, range(start, start + CHUNK))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_each_kind_of_world_is_seen_to_do_what_it_is_for(kind: Kind) -> None:
    """A simulation in which nothing happens finds nothing."""
    seen: Counter[str] = Counter()
    for seed in range(30):
        schedule = Schedule(seed)
        world = simulate(schedule, kind)
        seen.update(label for _, label in schedule.trace)
        seen["eras"] += sum(isinstance(event, Era) for event in world.events)
        seen["operator"] += sum(isinstance(event, Fault) and event.kind == "operator" for event in world.events)
        seen["heads"] += sum(map(len, world.heads.values()))
        seen["processes"] += len(world.processes)
    words = " ".join(seen)
    assert seen["heads"] > 100
    for event, word in {
        "crash": "killed",
        "land": "lands late",
        "lose_power": "loses power",
        "pause": "paused for",
        "cut_off": "is cut off",
        "revoke": "etcd ends a lease",
        "hand_over": "somebody asks for a handoff",
        "fill": "etcd is full",
        "refuse": "is refused",
        "wipe": "etcd is wiped",
        "restore": "etcd is restored",
        "take_down": "etcd is down",
    }.items():
        assert event not in kind.events or word in words, event
    if "wipe" in kind.events:
        assert seen["eras"] > 5
        assert seen["etcd's revisions repeat"]
    assert "leave_etcd" not in kind.events or seen["operator"] > 5


def test_the_same_seed_is_the_same_world() -> None:
    for seed in range(20):
        one, other = World(Schedule(seed)), World(Schedule(seed))
        assert [type(event) for event in one.run()] == [type(event) for event in other.run()]
        assert one.schedule.trace == other.schedule.trace
        assert one.schedule.decisions == other.schedule.decisions


def test_a_failure_prints_its_seed_and_its_shrunk_schedule_fails_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    from coordjournal.authority.tenure import Tenure

    guards = Tenure.guards
    monkeypatch.setattr(Tenure, "guards", lambda tenure, intents: guards(tenure, intents)[2:])
    with pytest.raises(ScheduleFailed, match=r"seed \d+ fails: Violated") as caught:
        explore(judge, range(300), tries=60)
    assert str(caught.value.seed) in str(caught.value)
    with pytest.raises(Violated):
        simulate(Schedule(caught.value.seed))
    with pytest.raises(Violated):
        simulate(Schedule(caught.value.decisions))


def test_preforked_twins_are_two_sessions() -> None:
    """They start from one log, which was made before the fork; what is random is drawn at first use."""
    twins = 0
    for seed in range(40):
        schedule = Schedule(seed)
        world = World(schedule, CALM)
        world.run()
        sessions = [process.session for process in world.processes]
        assert len(set(sessions)) == len(sessions)
        twins += world.forked
    assert twins > 2
