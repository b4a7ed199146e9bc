"""Folded states at a commit, so that opening a space costs its facts, not its log."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from coordjournal.cache import spans
from coordjournal.entry import Head
from coordjournal.facts import Facts, from_facts, to_facts
from coordjournal.state import EMPTY, CoordinationState

_KIND: Final = "state"
_MIN_ENTRIES: Final = 4096  # fold that many in some 20 ms; not worth a file
_BYTES_PER_ENTRY: Final = 256  # write at most so much of a state for each entry that it is ahead
_KEPT: Final = 2

_DECODER = msgspec.msgpack.Decoder(Facts)


class StateCache:
    """The folded states of one space."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._last: tuple[int, int] | None = None  # seq and bytes of the newest file

    def newest(self, upto: int) -> tuple[Head, CoordinationState]:
        """Return the newest state that is kept as of `upto` or before, the empty one if there is none.

        The caller sees to it that its head is part of the log.
        """
        if self._directory is not None:
            for _, last, name in reversed(spans.names(self._directory, _KIND)):
                if last <= upto and (found := spans.load(self._directory, name)):
                    try:
                        state = from_facts(_DECODER.decode(found[1]))
                    except msgspec.MsgspecError:
                        spans.drop(self._directory, name)
                        continue
                    return found[0].head, state
        return Head(), EMPTY

    def keep(self, head: Head, state: CoordinationState) -> None:
        """Keep `state` if it is far enough ahead of what is kept to be worth its bytes."""
        if self._directory is None or state.seq != head.seq:
            return
        seq, size = self._newest_file(self._directory, head.seq)
        if head.seq - seq < max(_MIN_ENTRIES, size // _BYTES_PER_ENTRY):
            return
        payload = msgspec.msgpack.encode(to_facts(state))
        span = spans.Span(_KIND, 1, head, "", spans.digest(payload))
        self._last = (head.seq, len(payload))
        if spans.save(self._directory, span, payload):
            for name in _names(self._directory, head.seq)[:-_KEPT]:
                spans.drop(self._directory, name)

    def distrust(self, head: Head) -> None:
        """Throw the state at `head` away: the log has no such head."""
        self._last = None
        if self._directory is not None:
            spans.drop(self._directory, spans.Span(_KIND, 1, head, "").name)

    def _newest_file(self, directory: Path, upto: int) -> tuple[int, int]:
        """Return seq and bytes of the newest file as of `upto`; what is newer is of a log that was set back."""
        if self._last is None or self._last[0] > upto:
            found = _names(directory, upto)
            try:
                self._last = (int(found[-1].split("-")[2]), (directory / found[-1]).stat().st_size) if found else (0, 0)
            except OSError:
                self._last = (0, 0)
        return self._last


def _names(directory: Path, upto: int) -> list[str]:
    return [name for _, last, name in spans.names(directory, _KIND) if last <= upto]
