"""Rules about how a run ended: drain, storage, liveness."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from coordjournal.testing.histories.events import Healed
from coordjournal.testing.histories.findings import Finding
from coordjournal.testing.histories.history import Attempt, History, Reading
from coordjournal.testing.histories.intents import waits
from coordjournal.testing.histories.reads import contents
from coordjournal.testing.histories.recording import is_known

_DAMAGE: Final = frozenset({"Corrupt", "UnknownEvent", "UnknownFormat", "MissingObjects"})


def drain(history: History) -> Iterator[Finding]:
    """After quiet no intent waits, each had one outcome, and every caller was told something."""
    yield from waits(history)
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


def storage(history: History) -> Iterator[Finding]:
    """Tools went through what is stored and find nothing wrong with it; what was read is what the log gives.

    Nobody is told of damage, save who met some that is on record.
    """
    if not history.examined:
        yield Finding("storage", "", "nobody has examined what is stored")
    for examined in history.examined:
        if examined.problem:
            yield Finding("storage", "", f"{examined.what}: {examined.problem}")
    yield from contents(history)
    for space in history.spaces:
        for call in space.calls:
            asked, told = call.asked, call.told
            if told is None or told.error not in _DAMAGE:
                continue
            if not history.during("damage", asked.at, told.at, asked.process):
                yield Finding("storage", space.name, f"{asked.op} was answered with {told.error}")


def liveness(history: History) -> Iterator[Finding]:
    """Within its stated bound after all was healed an append succeeded, in each space.

    So it did for each process that asked for one in the first half of that time, or at least it was refused
    one, unless it ended, or something went wrong again meanwhile.
    """
    by_name = {space.name: space for space in history.spaces}
    for healed in history.healed:
        until = healed.at + healed.within
        calm = not any(healed.at < fault.at <= until and fault.phase != "end" for fault in history.faults)
        for name in healed.spaces:
            attempts = by_name[name].attempts if name in by_name else []
            attempts = [attempt for attempt in attempts if attempt.invoked >= healed.at]
            if not any(attempt.ok and attempt.returned <= until for attempt in attempts):
                words = f"no append that was asked for after all was healed succeeded within {healed.within:g} s"
                yield Finding("liveness", name, words)
            elif calm:
                for process in _stuck(history, healed, attempts):
                    words = f"{process} asked for appends after all was healed, and had none within {healed.within:g} s"
                    yield Finding("liveness", name, words)


def _stuck(history: History, healed: Healed, attempts: Sequence[Attempt]) -> list[str]:
    until, half = healed.at + healed.within, healed.at + healed.within / 2
    asked = {attempt.asked.process for attempt in attempts if attempt.invoked <= half}
    ended = {process for process, at in history.ended.items() if at <= until}
    live = {
        attempt.asked.process
        for attempt in attempts
        if attempt.told is not None and attempt.told.outcome in ("ok", "refused") and attempt.returned <= until
    }
    return sorted(asked - ended - live)
