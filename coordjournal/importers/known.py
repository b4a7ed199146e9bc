"""What a log holds already: which keys, and what for, so that an import can tell before it appends."""

from __future__ import annotations

import hashlib
from typing import Final, NamedTuple

import msgspec

from coordjournal.entry import Append
from coordjournal.log import DecisionLog
from coordjournal.replay import appends

_DIGEST_BYTES: Final = 12  # as in the log's own key index
_SEQ_BYTES: Final = 4


class Use(NamedTuple):
    """What a key was used for: the append from seq `first`; `same` if that is the one asked for."""

    first: int
    same: bool


class Known:
    """The keys of appends, each with a digest of what it was used for: some 150 bytes an append."""

    def __init__(self) -> None:
        self._uses: dict[bytes, bytes] = {}

    def __bool__(self) -> bool:
        return bool(self._uses)

    def add(self, append: Append, first: int) -> None:
        """Remember an append whose first entry has seq `first`."""
        self._uses[_digest(append.key.encode())] = _content(append) + first.to_bytes(_SEQ_BYTES, "big")

    def find(self, append: Append) -> Use | None:
        """Return what the key of `append` was used for; None if it was not."""
        use = self._uses.get(_digest(append.key.encode()))
        if use is None:
            return None
        return Use(int.from_bytes(use[_DIGEST_BYTES:], "big"), use[:_DIGEST_BYTES] == _content(append))


def known_in(log: DecisionLog, space: str, upto: int) -> Known:
    """Return what `log` holds of `space` up to seq `upto`; costs reading all of it.

    Raises what `DecisionLog.events` does.
    """
    known, first = Known(), 1
    if upto:
        for append in appends(log.events(space, upto=upto)):
            known.add(append, first)
            first += len(append.events)
    return known


def _content(append: Append) -> bytes:
    return _digest(msgspec.msgpack.encode((append.actor, append.events)))


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()
