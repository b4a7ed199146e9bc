"""Following intents through etcd: that each is decided once, and that its outcome is what the log says."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from math import inf
from typing import Final, NamedTuple

from coordjournal.authority.wire import Accepted, OutcomeItem, Refusal, decode_intent, decode_outcome
from coordjournal.entry import Append
from coordjournal.errors import Rejected
from coordjournal.testing.histories.events import AppendInvoked, AppendReturned, Logged, Revision
from coordjournal.testing.histories.findings import Finding
from coordjournal.testing.histories.history import HEADS, Attempt, History, Log, head_of

_INTENT: Final = re.compile(r"intents/([^/]+)/([^/]+)/(\d+)")
_OUTCOME: Final = re.compile(r"outcomes/([^/]+)/([^/]+)/(\d+)")
_MAX_KEY: Final = 128  # of what a refusal says of a key that is longer than one may be

Place = tuple[str, str, str]
"""Whose intent it is: space, session, number."""


def waits(history: History) -> Iterator[Finding]:
    """Follow every intent: its outcome comes in the transaction that takes it, once; in the end none is left.

    One that is deleted without an outcome held nothing any more, is swept by an operator's command, or was
    taken back by its own session alone in an etcd that had no space meanwhile.
    """
    held: dict[Place, Revision] = {}
    decided: set[Place] = set()
    at_era = 0
    for (era, _), changes in history.revisions:
        if era != at_era:
            at_era, held, decided = era, {}, set()
        put = {place: change for change in changes if change.value is not None and (place := _intent(change))}
        gone = {place: change for change in changes if change.value is None and (place := _intent(change))}
        told = {place for change in changes if change.value is not None and (place := _outcome(change))}
        if not all(history.inherited(change) for change in changes):
            for place in sorted(told - gone.keys() | told & decided):
                yield _about(place, "has an outcome, and was not taken by it, or is decided already")
            for place, change in sorted(gone.items()):
                if place not in told and not _may_go(history, held.get(place), change, alone=len(changes) == 1):
                    yield _about(place, "was deleted without an outcome")
        decided |= told
        held.update(put)
        for place in gone:
            held.pop(place, None)
    left = {(place[0], f"intents/{'/'.join(place)}") for place, change in held.items() if change.value}
    waiting = {(name, key) for name, final in history.finals.items() for key in final.waiting}
    for name, key in sorted(waiting | {item for item in left if item[0] in history.finals}):
        yield Finding("drain", name, f"{key} waits, though all is quiet")


def _may_go(history: History, held: Revision | None, change: Revision, *, alone: bool) -> bool:
    if held is None or not held.value or history.operated(change, held.at):
        return True
    return alone and history.during("no space", held.at, change.at)


class Decision(NamedTuple):
    """An outcome that was put, of an intent that held `intent`; the heads before and after that transaction."""

    place: Place
    outcome: Revision
    intent: str
    base: str
    head: str


def decisions(history: History) -> Iterator[Decision]:
    """Yield every outcome whose intent is known, in the order of etcd."""
    held: dict[Place, str] = {}
    heads: dict[str, str] = {}
    at_era = 0
    for (era, _), changes in history.revisions:
        if era != at_era:
            at_era, held, heads = era, {}, {}
        before = dict(heads)
        for change in changes:
            if change.key.startswith(HEADS) and (value := head_of(change)) is not None:
                heads[change.key.removeprefix(HEADS)] = value.commit
        for change in changes:
            place = _outcome(change)
            if place and place in held and change.value is not None and not history.inherited(change):
                name = place[0]
                yield Decision(place, change, held[place], before.get(name, ""), heads.get(name, ""))
        for change in changes:
            if place := _intent(change):
                held[place] = change.value or ""


def outcomes(history: History) -> Iterator[Finding]:
    """Compare each outcome with its intent, and with the log up to the head that was published with it."""
    logs = {space.name: space.log for space in history.spaces}
    for decision in decisions(history):
        name = decision.place[0]
        for fault in _disagrees(logs[name], decision) if name in logs else ():
            words = _about(decision.place, f"has an outcome that {fault}").words
            yield Finding("exactly once", name, words)


def _disagrees(log: Log, decision: Decision) -> Iterator[str]:
    items, appends = _read(decision)
    if not items:
        yield "is not well formed"
    elif appends is None:
        if not _refuses_all(items):
            yield "answers what is no intent"
    elif [item.key for item in items] != [append.key[:_MAX_KEY] for append in appends]:
        yield "answers other appends"
    else:
        for item, append in zip(items, appends, strict=True):
            fault = _untrue(log, decision, item, append)
            if fault:
                yield f"says of key {append.key}: {fault}"


def _read(decision: Decision) -> tuple[list[OutcomeItem], list[Append] | None]:
    items = decode_outcome((decision.outcome.value or "").encode())
    try:
        return items, decode_intent(decision.intent.encode())
    except Rejected:
        return items, None


def _refuses_all(items: Sequence[OutcomeItem]) -> bool:
    return len(items) == 1 and isinstance(items[0], Refusal) and not items[0].key


def _untrue(log: Log, decision: Decision, item: OutcomeItem, append: Append) -> str:
    if isinstance(item, Accepted):
        found = log.stored.get(item.commit)
        if found is None or not log.within(item.commit, decision.head):
            return f"entry {item.first}, commit {item.commit}, which was not published then"
        if (found.first, found.seq, found.term, found.key) != (item.first, item.seq, item.term, item.key):
            return f"entries {item.first}-{item.seq}; that commit is {found.first}-{found.seq} of key {found.key}"
        if not _same(found, append):
            return f"entry {item.first}, which is another append"
        if not item.duplicate and log.within(item.commit, decision.base):
            return f"entry {item.first}, which was there before, and not that it is a duplicate"
    return ""  # of a refusal another rule says whether it is right


def _same(found: Logged, append: Append) -> bool:
    return (found.append.events, found.append.actor) == (append.events, append.actor)


def refused(history: History) -> Iterator[tuple[str, str, str, Attempt]]:
    """Yield each refusal of an outcome as a call's, its space, and the heads before and after that transaction."""
    for decision in decisions(history):
        space, session, number = decision.place
        items, appends = _read(decision)
        for item, append in zip(items, appends or (), strict=False):
            if isinstance(item, Refusal) and item.key == append.key:
                at, op = decision.outcome.at, f"intent {number} of session {session}"
                told = AppendReturned(at, op, "refused", None, item.name, item.head_seq)
                asked = AppendInvoked(-inf, op, session, session, space, append)
                yield space, decision.base, decision.head, Attempt(asked, told)


def forwarded(history: History, space: str) -> Iterator[Accepted]:
    """Yield what outcomes say of a space's appends that were accepted."""
    for decision in decisions(history):
        if decision.place[0] == space:
            yield from (item for item in _read(decision)[0] if isinstance(item, Accepted))


def _about(place: Place, words: str) -> Finding:
    space, session, number = place
    return Finding("drain", space, f"intent {number} of session {session} {words}")


def _intent(change: Revision) -> Place | None:
    match = _INTENT.fullmatch(change.key)
    return (match[1], match[2], match[3]) if match else None


def _outcome(change: Revision) -> Place | None:
    match = _OUTCOME.fullmatch(change.key)
    return (match[2], match[1], match[3]) if match else None
