"""The protocol in a world that a schedule decides about: a thousand schedules; `test_schedules` has a thousand more."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from functools import cache, partial
from importlib import import_module
from typing import Any

import pytest

from coordjournal.testing.histories import Era, Fault
from tests.simulation.judging import Violated, judge, simulate
from tests.simulation.kinds import CALM, KINDS, Kind
from tests.simulation.schedule import Schedule, ScheduleFailed, explore
from tests.simulation.world import World

CHUNK = 100
STARTS = range(0, 1000, CHUNK)

HAPPENS = {
    "crash": "crashed",
    "land": "lands late",
    "lose_power": "loses power",
    "pause": "paused for",
    "close": "has closed in order",
    "get_stuck": "no progress",
    "cut_off": "is cut off",
    "revoke": "etcd ends a lease",
    "change_leader": "another leader prolongs a lease",
    "hand_over": "somebody asks for a handoff",
    "lose_watch": "a watch loses what it had to tell",
    "die_in_silence": "a watch dies in silence",
    "compact": "a watch misses what is compacted",
    "fill": "etcd is full",
    "refuse": "is refused",
    "wipe": "etcd is wiped",
    "restore": "etcd is restored",
    "take_snapshot": "etcd is restored",
    "take_down": "etcd is down",
    "leave_etcd": "config: written",
    "tell": "told",
}
"""What is seen of each event of a kind of world where it has an effect."""

ELSE = (
    *("txn drop", "txn lose answer", "txn delay", "txn out of space"),
    *("the disk fails: write", "the disk fails: advance", "the disk fails: sync", "hidden", "twins"),
    "a renewal is answered after a revoke",
    "etcd's revisions repeat",
    "an adoption waits for an append that is under way",
    "the lock held",
)
"""What happens besides."""


def happened(world: World) -> Counter[str]:
    """Return how often each of these was seen."""
    labels = Counter(label for _, label in world.schedule.trace) + world.server.befell
    seen: Counter[str] = Counter()
    for word in {*HAPPENS.values(), *ELSE}:
        seen[word] = sum(count for label, count in labels.items() if word in label)
    seen["hidden"] += world.disk.hid
    seen["twins"] += world.forked
    seen["told"] += world.told
    return seen


@cache
def ordinary(start: int) -> Counter[str]:
    """Simulate some schedules of the ordinary run; return what happened in them."""
    seen: Counter[str] = Counter()
    explore(lambda schedule: seen.update(happened(simulate(schedule))), range(start, start + CHUNK))
    return seen


@pytest.mark.parametrize("start", STARTS)
def test_no_schedule_breaks_a_rule(start: int) -> None:
    ordinary(start)


def test_everything_that_can_go_wrong_does_in_the_ordinary_run() -> None:
    """A simulation in which nothing happens finds nothing."""
    seen = sum(map(ordinary, STARTS), Counter[str]())
    events = {event for kind in KINDS for event in kind.events}
    assert events == set(HAPPENS), "an event of which nobody says how it is seen"
    assert not [word for word in {*HAPPENS.values(), *ELSE} if not seen[word]]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_each_kind_of_world_is_seen_to_do_what_it_is_for(kind: Kind) -> None:
    seen: Counter[str] = Counter()
    for seed in range(30):
        world = simulate(Schedule(seed), kind)
        seen += happened(world)
        seen["eras"] += sum(isinstance(event, Era) for event in world.events)
        seen["operator"] += sum(isinstance(event, Fault) and event.kind == "operator" for event in world.events)
        seen["heads"] += sum(map(len, world.heads.values()))
    assert seen["heads"] > 100
    assert not [event for event in kind.events if not seen[HAPPENS[event]]]
    assert "wipe" not in kind.events or seen["eras"] > 5
    assert "leave_etcd" not in kind.events or seen["operator"] > 5
    assert not kind.disk_fails or seen["the disk fails: sync"]
    assert not kind.hidden_seconds or seen["hidden"]


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


def test_the_script_prints_the_command_that_shows_a_failure_again(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from coordjournal.authority.tenure import Tenure

    script: Any = import_module("scripts.simulate")
    monkeypatch.setattr(Tenure, "guards", lambda tenure, intents: [])
    monkeypatch.setattr(script, "explore", partial(explore, tries=0))
    assert script.main(["--schedules", "100", "--kind", "late"]) == 1
    first = capfd.readouterr().out
    (again,) = re.findall(r"^again: scripts/simulate (.*)$", first, re.MULTILINE)
    assert script.main(shlex.split(again)) == 1
    failures = [re.findall(r"^seed \d+ fails: .*$", out, re.MULTILINE) for out in (first, capfd.readouterr().out)]
    assert failures[0] == failures[1]
    assert len(failures[0]) == 1
