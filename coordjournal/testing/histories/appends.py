"""Rules about appends: durability, exactly once (what outcomes say of it is in `intents`), real time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from math import inf
from typing import NamedTuple

from coordjournal.testing.histories.events import Logged
from coordjournal.testing.histories.findings import Finding
from coordjournal.testing.histories.history import Attempt, History, Space
from coordjournal.testing.histories.intents import outcomes


def durability(history: History) -> Iterator[Finding]:
    """Every acknowledged append is in the log, at its acknowledged seqs and commit, and was so when it was."""
    for space in history.spaces:
        for attempt in space.attempts:
            receipt = attempt.told.receipt if attempt.told is not None else None
            if receipt is None:
                continue
            told = (
                f"key {attempt.key} was acknowledged as entries {receipt.first}-{receipt.seq}, commit {receipt.commit}"
            )
            places = space.log.by_key.get(attempt.key, [])
            if not places:
                yield Finding("durability", space.name, f"{told}, and is not in the log")
            elif not any(
                (item.first, item.seq, item.commit, item.term)
                == (receipt.first, receipt.seq, receipt.commit, receipt.term)
                for item in places
            ):
                item = places[0]
                yield Finding("durability", space.name, f"{told}; the log has it at {item.first}, {item.commit}")
            elif (receipt.space, receipt.key) != (space.name, attempt.key):
                yield Finding("durability", space.name, f"{told}, with the receipt of another append")
            elif attempt.returned < space.earliest(space.log.place[receipt.commit] + 1):
                yield Finding("durability", space.name, f"{told}, before that was published")


def exactly_once(history: History) -> Iterator[Finding]:
    """Of each key: acknowledged is that one append, failed none, unknown none or one; outcomes and log agree."""
    for space in history.spaces:
        for key, items in space.log.by_key.items():
            attempts = space.by_key.get(key, [])
            if len(items) > 1:
                seqs = ", ".join(str(item.first) for item in items)
                yield Finding("exactly once", space.name, f"key {key} is in the log {len(items)} times: at {seqs}")
            elif fault := _stands_wrongly(space, items[0], attempts):
                yield Finding("exactly once", space.name, f"entry {items[0].first}, key {key}: {fault}")
        for key, attempts in space.by_key.items():
            if fault := _told_wrongly(attempts):
                yield Finding("exactly once", space.name, f"key {key}: {fault}")
    yield from outcomes(history)


def _stands_wrongly(space: Space, item: Logged, attempts: Sequence[Attempt]) -> str:
    """Return what is wrong with an append's being in the log."""
    if not attempts:
        return "nobody asked for it"
    for attempt in attempts:
        if attempt.ok and not _answers(attempt, item):
            return f"{attempt.asked.op} has a receipt for other events, or another actor: its key was used already"
    asked = [attempt for attempt in attempts if _answers(attempt, item) and attempt.asked.append.at == item.append.at]
    if not asked:
        return "it is another append than was asked for"
    possible = [attempt for attempt in asked if not attempt.certainly_not]
    if not possible:
        return f"it was {asked[0].told.outcome if asked[0].told else ''}, for certain, and is in the log"
    seen = space.known.first_seen(item.seq)
    if len(possible) < len(asked) and all(attempt.invoked > seen for attempt in possible):
        return "it is in the log by a call that had failed for certain"
    told = min((attempt.returned for attempt in attempts if attempt.ok), default=inf)
    return _denied(possible, [attempt for attempt in attempts if attempt.failed and attempt.returned < told], seen)


def _denied(possible: Sequence[Attempt], failed: Sequence[Attempt], seen: float) -> str:
    """Return whether the process that appended it had said, before anybody had a receipt, that it never would.

    That is said of what it was asked for before; a call beside the one that failed proves nothing.
    """
    for denial in failed:
        left = [
            attempt
            for attempt in possible
            if attempt.asked.process != denial.asked.process or attempt.invoked > denial.invoked
        ]
        if not left or all(attempt.invoked > seen for attempt in left):
            return f"{denial.asked.process} was told that no call of its can have appended it ({denial.asked.op})"
    return ""


def _answers(attempt: Attempt, item: Logged) -> bool:
    """Whether what was asked for is what stands under its key; whoever asks again may do so at another time."""
    asked = attempt.asked.append
    return (asked.events, asked.actor) == (item.append.events, item.append.actor)


def _told_wrongly(attempts: Sequence[Attempt]) -> str:
    """Return what contradicts itself in what the callers under one key were told.

    Calls beside each other may all be told that it was appended since they began.
    """
    told = min((attempt for attempt in attempts if attempt.ok), key=lambda attempt: attempt.returned, default=None)
    for attempt in attempts:
        if told is not None and attempt.appended and attempt.invoked > told.returned:
            words = f"was told that it had appended it, when {told.asked.op} had a receipt"
            return f"{attempt.asked.op} {words}"
    for attempt in attempts:
        receipt = attempt.told.receipt if attempt.told is not None else None
        if receipt is None:
            continue
        others = [
            other
            for other in attempts
            if other is not attempt and not other.certainly_not and other.invoked < attempt.returned
        ]
        if receipt.duplicate and not others and not attempt.set_back:
            return f"{attempt.asked.op} was told that another call had appended it, and there is none that can have"
    return ""


class Span(NamedTuple):
    """An append of the log, not before `begin` and not after `end`, in whatever these count."""

    item: Logged
    begin: float
    end: float


def real_time(history: History) -> Iterator[Finding]:
    """See that what was over before another was asked for comes before it; so do one caller's appends.

    Not so what a caller asked for while etcd was set back: it may have forgotten that it was refused.
    """
    for space in history.spaces:
        items = [items[0] for items in space.log.by_key.values() if len(items) == 1]
        items.sort(key=lambda item: item.first)
        spans = [Span(item, space.begun_at(item), space.known.first_seen(item.seq)) for item in items]
        for early, late in inversions(spans):
            words = f"key {late.key} was appended before {early.key} was asked for: entries {late.first}, {early.first}"
            yield Finding("real time", space.name, words)
        for caller, own in _by_caller(space, items).items():
            for early, late in inversions(own):
                words = f"caller {caller} asked for {late.key} before {early.key}: entries {late.first}, {early.first}"
                yield Finding("real time", space.name, words)


def _by_caller(space: Space, items: Sequence[Logged]) -> dict[str, list[Span]]:
    """Return each caller's appends in the order of the log, each between the calls that can have made it."""
    order: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for number, attempt in enumerate(space.attempts):
        order[attempt.asked.caller][attempt.asked.op] = number
    found: defaultdict[str, list[Span]] = defaultdict(list)
    for item in items:
        candidates = space.candidates(item.key)
        callers = {attempt.asked.caller for attempt in candidates}
        if len(callers) == 1 and not any(attempt.set_back for attempt in candidates):
            places = [order[attempt.asked.caller][attempt.asked.op] for attempt in candidates]
            found[callers.pop()].append(Span(item, min(places), max(places)))
    return found


def inversions(spans: Sequence[Span]) -> Iterator[tuple[Logged, Logged]]:
    """Yield each append of the log that began after the end of one further on, and that one."""
    soonest: list[Span] = []  # the one that ended first, of those from here on
    for span in reversed(spans):
        soonest.append(span if not soonest or span.end < soonest[-1].end else soonest[-1])
    for span, later in zip(spans, reversed(soonest[:-1]), strict=False):  # nothing is beyond the last one
        if later.end < span.begin:
            yield span.item, later.item
