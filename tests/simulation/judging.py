"""What a schedule's history is worth: it is run, and the rules of histories judge it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

import msgspec

from coordjournal.testing.histories import RULES, AppendInvoked, AppendReturned, Era, Event, Finding, check
from tests.simulation.kinds import Kind
from tests.simulation.schedule import Schedule
from tests.simulation.world import World


class Violated(AssertionError):
    """A history breaks a rule; there is a subclass for each."""

    rule: str = ""


_VIOLATIONS: Final[dict[str, type[Violated]]] = {
    rule: type(f"Violated_{rule.replace(' ', '_')}", (Violated,), {"rule": rule}) for rule in RULES
}


_KEYS: Final = re.compile(r"\bk\d+\b")
_KEPT_KEY: Final = re.compile(r"it was published in term \d+; who held the space then had term \d+")


def simulate(schedule: Schedule, kind: Kind | None = None) -> World:
    """Run one schedule and judge its history. Raises the `Violated` of the first rule that it breaks."""
    world = World(schedule, kind)
    findings = judged(world.run())
    if findings:
        raise _VIOLATIONS[findings[0].rule]("; ".join(map(str, findings[:3])))
    return world


def judge(schedule: Schedule) -> None:
    """Run one schedule of whichever kind, and judge its history, likewise."""
    simulate(schedule)


def judged(events: Sequence[Event]) -> list[Finding]:
    """Return what is wrong with a history, four things aside that only look so.

    A holder whose handoff was not answered finds its key again, and serves on in a new term. Two calls
    under one key at the same time may both be told that it was appended since they began; which of them it
    was is not known, so neither is the order in which its caller asked for it. A reader may see that etcd
    was set back: only a new holder judges.
    """
    twice, set_back = _told_twice(events), any(isinstance(event, Era) for event in events)
    calls = Counter(event.append.key for event in events if isinstance(event, AppendInvoked))
    return [
        finding
        for finding in check(_without_denials(events))
        if not _KEPT_KEY.search(finding.words)
        and (twice or "were told that each" not in finding.words)
        and not (finding.rule == "real time" and any(calls[key] > 1 for key in _KEYS.findall(finding.words)))
        and not (set_back and finding.rule == "reads" and "was published before it began" in finding.words)
    ]


def _told_twice(events: Sequence[Event]) -> bool:
    """Whether a call was told that it had appended what another call had a receipt for before it began."""
    asked = {event.op: event for event in events if isinstance(event, AppendInvoked)}
    first: dict[tuple[str, str], float] = {}
    for event in events:
        if isinstance(event, AppendReturned) and event.receipt is not None:
            call = asked[event.op]
            name = (call.space, call.append.key)
            if call.at > first.setdefault(name, event.at) and not event.receipt.duplicate:
                return True
    return False


def _without_denials(events: Sequence[Event]) -> list[Event]:
    """Return the events; some failures say less than that an append is not in the log.

    What fails under a key that its own process has a receipt for says nothing of that receipt. What was
    asked for before etcd was set back and failed after may have been published, and an operator may bring
    it back.
    """
    acknowledged: set[tuple[str, str]] = set()
    asked: dict[str, AppendInvoked] = {}
    found: list[Event] = []
    set_back = -1.0
    for event in events:
        match event:
            case AppendInvoked():
                asked[event.op] = event
            case Era():
                set_back = event.at
            case AppendReturned():
                call = asked[event.op]
                name = (call.process, call.append.key)
                if event.outcome == "ok":
                    acknowledged.add(name)
                elif event.outcome == "failed" and (name in acknowledged or call.at < set_back):
                    event = msgspec.structs.replace(event, outcome="unknown")
        found.append(event)
    return found
