"""What the log is made of: appends asked for, entries as stored, heads, receipts; their bytes.

The canonical bytes of an append are one JSON object a line, fields in the order of `StoredEntry`,
UTF-8, no spare white space, a newline at the end. The same events, keys, actors and times give the
same bytes on every backend.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, Literal

import msgspec

from coordjournal.errors import Corrupt, InvalidEvent, InvalidName, TooLarge, UnknownEvent
from coordjournal.events import EVENT_CLASSES, EVENT_TYPES, Event

MAX_SEQ: Final = 99_999_999
MAX_APPEND_BYTES: Final = 1 << 20
MAX_ACTOR_BYTES: Final = 254

_SPACE = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_KEY = re.compile(r"[\x21-\x7e]{1,128}")
_AT = re.compile(r"\d{4}-\d\d-\d\dT(?:[01]\d|2[0-3]):\d\d:\d\d\.\d{6}Z")
_AT_FORMAT = "%Y-%m-%dT%H:%M:%S.%f"


class Head(msgspec.Struct, frozen=True):
    """The last committed append: its last seq, its commit, its term. Seq 0, no commit: nothing yet."""

    seq: int = 0
    commit: str = ""
    term: int = 0


class StoredEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One event as the log stores it."""

    seq: int
    key: str
    at: str
    actor: str
    event: Event


class Entry(StoredEntry, frozen=True, forbid_unknown_fields=True):
    """One event as it is read: stored, and by which commit of which term."""

    commit: str
    term: int


class Append(msgspec.Struct, frozen=True):
    """What one caller asks for: an atomic batch of events under one key.

    `at` is UTC, `YYYY-MM-DDTHH:MM:SS.ffffffZ`; `expect` is the seq that the head must have, or None.
    """

    events: tuple[Event, ...]
    key: str
    actor: str
    at: str
    expect: int | None = None

    def check(self) -> None:
        """Raise the `Rejected` that says what is not well formed, and where; `TooLarge` is `encode`'s."""
        check_key(self.key)
        check_actor(self.actor)
        check_time(self.at)
        if self.expect is not None and (type(self.expect) is not int or not 0 <= self.expect <= MAX_SEQ):
            raise InvalidEvent(f"expect: a seq is a whole number from 0 to {MAX_SEQ}")
        events: object = self.events
        if not (isinstance(events, tuple) and events):
            raise InvalidEvent("an append holds a tuple of at least one event")
        for position, event in enumerate(self.events):
            if type(event) not in EVENT_CLASSES:
                raise InvalidEvent(f"event {position + 1}: {type(event).__name__} is not an event")
            event.check()

    def encode(self, first: int) -> bytes:
        """Return the canonical bytes of the append whose first entry gets seq `first`; else `TooLarge`."""
        lines = [
            _encode(StoredEntry(seq, self.key, self.at, self.actor, event))
            for seq, event in enumerate(self.events, first)
        ]
        lines.append(b"")
        data = b"\n".join(lines)
        if len(data) > MAX_APPEND_BYTES:
            raise TooLarge(f"the append has {len(data):,} bytes, at most {MAX_APPEND_BYTES:,} are possible; split it")
        return data


class Appended(msgspec.Struct, frozen=True):
    """An append as it stands in the log: its commit, that commit's parent and term, its entries."""

    commit: str
    parent: str
    term: int
    entries: tuple[Entry, ...]

    @property
    def first(self) -> int:
        """The seq of the first entry."""
        return self.entries[0].seq

    @property
    def seq(self) -> int:
        """The seq of the last entry."""
        return self.entries[-1].seq

    @property
    def key(self) -> str:
        """The idempotency key."""
        return self.entries[0].key

    @property
    def head(self) -> Head:
        """The head that this append made."""
        return Head(self.seq, self.commit, self.term)

    def answers(self, asked: Append) -> bool:
        """Whether this is what `asked` asks for: the same events by the same actor."""
        return self.entries[0].actor == asked.actor and tuple(e.event for e in self.entries) == asked.events


class Receipt(msgspec.Struct, frozen=True):
    """What the caller of an append gets: where it stands, and how it came there.

    `first` and `seq` are the append's first and last seq; `via` tells whether this process appended
    it or forwarded it; `duplicate` is true where the key had been appended before.
    """

    space: str
    first: int
    seq: int
    commit: str
    term: int
    key: str
    via: Literal["local", "forwarded"] = "local"
    duplicate: bool = False


def check_space(space: object) -> None:
    """Raise `InvalidName` unless `space` matches `[a-z0-9][a-z0-9-]{0,62}`."""
    if not isinstance(space, str) or not _SPACE.fullmatch(space):
        raise InvalidName(f"space {_shown(space)}: 1-63 of a-z, 0-9 and '-', the first one a letter or a digit")


def check_key(key: object) -> None:
    """Raise `InvalidName` unless `key` is 1–128 printable ASCII characters without space."""
    if type(key) is not str or not _KEY.fullmatch(key):
        raise InvalidName(f"key {_shown(key)}: 1-128 printable ASCII characters without space")


def check_actor(actor: object) -> None:
    """Raise `InvalidName` unless `actor` is 1–254 bytes of UTF-8 without control characters, < and >."""
    if type(actor) is not str or not actor:
        raise InvalidName(f"actor {_shown(actor)}: 1-{MAX_ACTOR_BYTES} bytes of text")
    if actor.isascii() and actor.isprintable() and len(actor) <= MAX_ACTOR_BYTES:
        legal = "<" not in actor and ">" not in actor
    else:
        legal = len(actor.encode("utf-8", "surrogatepass")) <= MAX_ACTOR_BYTES and not any(
            char in "<>" or unicodedata.category(char) in ("Cc", "Cs") for char in actor
        )
    if not legal:
        raise InvalidName(
            f"actor {_shown(actor)}: 1-{MAX_ACTOR_BYTES} bytes of UTF-8 without control characters, '<' and '>'"
        )


def check_time(at: object) -> None:
    """Raise `InvalidEvent` unless `at` is a time of the form `2026-01-31T12:00:00.000000Z`."""
    if type(at) is str and at.isascii() and _AT.fullmatch(at):
        try:
            datetime.fromisoformat(at)
            return
        except ValueError:
            pass
    raise InvalidEvent(f"at {_shown(at)}: a UTC time of the form 2026-01-31T12:00:00.000000Z")


def format_time(when: datetime) -> str:
    """Return `when`, an aware time, in the form that `at` has."""
    return when.astimezone(UTC).strftime(_AT_FORMAT).rjust(26, "0") + "Z"


def decode_entries(data: bytes, first: int, commit: str, term: int) -> tuple[Entry, ...]:
    """Return the entries that the canonical bytes `data` of commit `commit` hold, from seq `first`.

    Raises `Corrupt` where a line is not a well-formed entry with the next seq and the append's key,
    actor and time, `UnknownEvent` where its event's type is none of this version's.
    """
    if not data.endswith(b"\n"):
        raise Corrupt(f"entry {first}: the last line has no end", f"commit {commit}", seq=first)
    entries = []
    for seq, line in enumerate(data[:-1].split(b"\n"), first):
        try:
            stored = _DECODER.decode(line)
            stored.event.check(stored=True)
            if seq == first:
                check_key(stored.key)
                check_actor(stored.actor)
                check_time(stored.at)
        except (msgspec.MsgspecError, UnicodeError, InvalidName, InvalidEvent, RecursionError) as error:
            raise _undecodable(line, seq, commit, error) from error
        if stored.seq != seq:
            raise Corrupt(f"entry {seq}: the line says seq {stored.seq}", f"commit {commit}", seq=seq)
        entries.append(Entry(seq, stored.key, stored.at, stored.actor, stored.event, commit, term))
    top = entries[0]
    for entry in entries[1:]:
        if (entry.key, entry.actor, entry.at) != (top.key, top.actor, top.at):
            raise Corrupt(f"entry {entry.seq}: not of one append with its fellows", f"commit {commit}", seq=entry.seq)
    return tuple(entries)


def encode_entries(entries: Sequence[Entry]) -> bytes:
    """Return the canonical bytes of one append's entries: what `Append.encode` gave."""
    return b"".join(_encode(StoredEntry(e.seq, e.key, e.at, e.actor, e.event)) + b"\n" for e in entries)


def _undecodable(line: bytes, seq: int, commit: str, error: Exception) -> Corrupt | UnknownEvent:
    where = f"commit {commit}" if commit else ""
    try:
        kind = msgspec.json.decode(line)["event"]["type"]
    except (msgspec.MsgspecError, UnicodeError, RecursionError, LookupError, TypeError):
        kind = None
    if isinstance(kind, str) and kind not in EVENT_TYPES:
        return UnknownEvent(f"entry {seq} is an event of type {_shown(kind)}, unknown to this version", where, seq=seq)
    return Corrupt(f"entry {seq} is not well formed: {error}", where, seq=seq)


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."


_encode = msgspec.json.Encoder().encode
_DECODER = msgspec.json.Decoder(StoredEntry)
