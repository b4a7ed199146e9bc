"""What a schedule's history is worth: it is run, and the rules of histories judge it."""

from __future__ import annotations

from typing import Final

from coordjournal.testing.histories import RULES, check
from tests.simulation.kinds import Kind
from tests.simulation.schedule import Schedule
from tests.simulation.world import World


class Violated(AssertionError):
    """A history breaks a rule; there is a subclass for each."""

    rule: str = ""


_VIOLATIONS: Final[dict[str, type[Violated]]] = {
    rule: type(f"Violated_{rule.replace(' ', '_')}", (Violated,), {"rule": rule}) for rule in RULES
}


def simulate(schedule: Schedule, kind: Kind | None = None) -> World:
    """Run one schedule and judge its history. Raises the `Violated` of the first rule that it breaks."""
    world = World(schedule, kind)
    findings = check(world.run())
    if findings:
        raise _VIOLATIONS[findings[0].rule]("; ".join(map(str, findings[:3])))
    return world


def judge(schedule: Schedule) -> None:
    """Run one schedule of whichever kind, and judge its history, likewise."""
    simulate(schedule)
