"""Rules about how a run ended: drain, storage, liveness."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from coordjournal.testing.histories.events import Revision
from coordjournal.testing.histories.findings import Finding
from coordjournal.testing.histories.history import Attempt, History, Reading
from coordjournal.testing.histories.reads import contents
from coordjournal.testing.histories.recording import is_known

_INTENT: Final = re.compile(r"intents/([^/]+)/([^/]+)/(\d+)")
_OUTCOME: Final = re.compile(r"outcomes/([^/]+)/([^/]+)/(\d+)")
_Place = tuple[str, str, str]  # space, session, number
_DAMAGE: Final = frozenset({"Corrupt", "UnknownEvent", "UnknownFormat", "MissingObjects"})


def drain(history: History) -> Iterator[Finding]:
    """After quiet no intent waits, each had one outcome, and every caller was told something."""
    waiting = {(name, key) for name, final in history.finals.items() for key in final.waiting}
    yield from _outcomes(history, waiting)
    for name, key in sorted(waiting):
        yield Finding("drain", name, f"{key} waits, though all is quiet")
    for space in history.spaces:
        for call in space.calls:
            if fault := _untold(history, call):
                yield Finding("drain", space.name, fault)


def _untold(history: History, call: Attempt | Reading) -> str:
    told, asked = call.told, call.asked
    if told is None:
        ended = history.ended.get(asked.process)
        return "" if ended is not None else f"{asked.op} was never answered, and {asked.process} did not end"
    return f"{asked.op} was answered with {told.error}" if told.error and not is_known(told.error) else ""


def _outcomes(history: History, waiting: set[tuple[str, str]]) -> Iterator[Finding]:
    """Follow every intent: its outcome comes in the transaction that takes it, once.

    One that is deleted without an outcome held nothing any more, is swept by an operator's command, or was
    taken back by its own session in an etcd without space. Adds to `waiting` those that are left.
    """
    may_go = history.had("operator") or history.had("no space")
    held: dict[_Place, str] = {}
    decided: set[_Place] = set()
    at_era = 0
    for (era, _), changes in history.revisions:
        if era != at_era:
            at_era, held, decided = era, {}, set()
        put = {place: change.value for change in changes if change.value is not None and (place := _intent(change))}
        gone = {place for change in changes if change.value is None and (place := _intent(change))}
        told = {place for change in changes if change.value is not None and (place := _outcome(change))}
        if not all(history.inherited(change) for change in changes):
            for place in sorted(told - gone | told & decided):
                yield _about(place, "has an outcome, and was not taken by it, or is decided already")
            for place in sorted(gone - told):
                if held.get(place) and not may_go:
                    yield _about(place, "was deleted without an outcome")
        decided |= told
        held.update(put)
        for place in gone:
            held.pop(place, None)
    left = (place for place, value in held.items() if value and place[0] in history.finals)
    waiting.update((place[0], f"intents/{'/'.join(place)}") for place in left)


def _about(place: _Place, words: str) -> Finding:
    space, session, number = place
    return Finding("drain", space, f"intent {number} of session {session} {words}")


def _intent(change: Revision) -> _Place | None:
    match = _INTENT.fullmatch(change.key)
    return (match[1], match[2], match[3]) if match else None


def _outcome(change: Revision) -> _Place | None:
    match = _OUTCOME.fullmatch(change.key)
    return (match[2], match[1], match[3]) if match else None


def storage(history: History) -> Iterator[Finding]:
    """Tools find nothing wrong with what is stored, and what was read is what the log gives."""
    for examined in history.examined:
        if examined.problem:
            yield Finding("storage", "", f"{examined.what}: {examined.problem}")
    yield from contents(history)
    if history.had("damage"):
        return
    for space in history.spaces:
        for call in space.calls:
            if call.told is not None and call.told.error in _DAMAGE:
                yield Finding("storage", space.name, f"{call.asked.op} was answered with {call.told.error}")


def liveness(history: History) -> Iterator[Finding]:
    """Within its stated bound after all was healed an append succeeded, in each space."""
    by_name = {space.name: space for space in history.spaces}
    for healed in history.healed:
        for name in healed.spaces:
            attempts = by_name[name].attempts if name in by_name else []
            if not any(
                attempt.ok and attempt.invoked >= healed.at and attempt.returned <= healed.at + healed.within
                for attempt in attempts
            ):
                words = f"no append that was asked for after all was healed succeeded within {healed.within:g} s"
                yield Finding("liveness", name, words)
