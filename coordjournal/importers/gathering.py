"""The lines of an exported append, gathered until it is whole: it is taken whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from coordjournal.entry import MAX_APPEND_BYTES, StoredEntry
from coordjournal.errors import InvalidEvent, Rejected, TooLarge
from coordjournal.importers.report import Asked, Reject

_encode = msgspec.json.Encoder().encode


class Line(StoredEntry, frozen=True, forbid_unknown_fields=True):
    """An entry as a line gives it: of a whole entry, or of an append's file in git, which has no commit."""

    commit: str = ""
    term: int = 0


def place_of(number: int) -> str:
    """Return what rejects call the line of that number, from 1."""
    return f"line {number}"


class Gathering:
    """The append `of` a commit and a key, as far as its lines were read.

    Once something is found that speaks against it, its lines are rejected as they come, none is held.
    """

    def __init__(self, of: tuple[str, str], fault: str = "") -> None:
        self.of = of
        self._lines: list[tuple[int, Line]] = []
        self._size_bytes = 0
        self._refusal: Rejected | None = InvalidEvent(_whole(fault)) if fault else None

    def add(self, number: int, line: Line) -> Iterator[Reject]:
        """Take the next line on; yield what is to be rejected with it."""
        if self._refusal is None and (refusal := self._fault(number, line)):
            yield from self._refuse(refusal)
        if self._refusal is not None:
            yield self._reject(number, self._refusal)
        else:
            self._lines.append((number, line))

    def refuse(self, number: int, refusal: Rejected) -> Iterator[Reject]:
        """Reject a line that is of this append and cannot be taken, and so all of it."""
        yield from self.spoil(f"{place_of(number)} is refused")
        yield self._reject(number, refusal)

    def spoil(self, fault: str) -> Iterator[Reject]:
        """Reject all of it, since it may not be whole."""
        if self._refusal is None:
            yield from self._refuse(InvalidEvent(_whole(fault)))

    def asked(self) -> Iterator[Asked]:
        """Yield the append, which no line follows any more; nothing if it was rejected."""
        if self._lines:
            top = self._lines[0][1]
            events = tuple(line.event for _, line in self._lines)
            yield Asked(events, top.key, top.actor, top.at, places=tuple(place_of(n) for n, _ in self._lines))

    def _fault(self, number: int, line: Line) -> Rejected | None:
        self._size_bytes += len(_encode(line.event))
        if self._size_bytes > MAX_APPEND_BYTES:  # what is close to it is measured when it is judged
            return TooLarge(f"the append has more than {MAX_APPEND_BYTES:,} bytes")
        if not self._lines:
            return None
        before, last = self._lines[-1]
        if line.seq != last.seq + 1:
            return InvalidEvent(
                _whole(f"{place_of(number)} has seq {line.seq}, after seq {last.seq} in {place_of(before)}")
            )
        if (line.actor, line.at) != (last.actor, last.at):
            return InvalidEvent(_whole(f"{place_of(number)} has another actor or time than {place_of(before)}"))
        return None

    def _refuse(self, refusal: Rejected) -> Iterator[Reject]:
        lines, self._lines, self._refusal = self._lines, [], refusal
        for number, _ in lines:
            yield self._reject(number, refusal)

    def _reject(self, number: int, refusal: Rejected) -> Reject:
        return Reject(place_of(number), self.of[1], str(refusal), refusal.code)


def _whole(fault: str) -> str:
    return f"the append is not known to be whole: {fault}"
