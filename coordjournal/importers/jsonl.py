"""JSON lines: an exported log, append by append, and bare events, one a line."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from typing import Any, BinaryIO, Final

import msgspec

from coordjournal.entry import check_actor, check_space, check_time, format_time
from coordjournal.errors import InvalidEvent, Rejected
from coordjournal.events import Event
from coordjournal.importers.gathering import Gathering, Line, place_of
from coordjournal.importers.lines import read_lines, strict_json
from coordjournal.importers.report import Asked, Imported, Item, Reject
from coordjournal.importers.run import Import
from coordjournal.log import DecisionLog

_READ_BYTES: Final = 1 << 16
_HASH_BYTES: Final = 16

_encode = msgspec.json.Encoder().encode


def export_jsonl(log: DecisionLog, space: str) -> Iterator[bytes]:
    """Return the log of `space` as lines of JSON, an entry each: `seq, key, at, actor, event, commit, term`.

    All belong to the head at the call, and are streamed. Raises what `DecisionLog.events` does.
    """
    return (_encode(entry) + b"\n" for entry in log.events(space))


def import_jsonl(
    log: DecisionLog,
    space: str,
    file: BinaryIO,
    *,
    rejects: Callable[[Reject], None],
    progress: Callable[[int], None],
    dry_run: bool,
    actor: str,
    at: str | None = None,
) -> Imported:
    """Append to `space` what `file` holds: lines of `export_jsonl`, and bare events (`{"type": ...}`).

    An exported append keeps its key, time and actor. A bare event is an append by `actor`, decided `at`
    (now, if not given), under the key `import:<SHA-256 of the line>:<its how-manieth occurrence>`.

    What cannot be read or is refused is skipped, and told to `rejects`, in the order of the lines;
    `progress` is told how many appends are decided. Nothing is appended if `dry_run`, and all else is
    the same. `docs/import.md` has every corner.

    Raises `InvalidName` if `space` or `actor` is none, and what `DecisionLog.append` and
    `DecisionLog.state` do but refusals; run again, the import then goes on where it was.
    """
    check_space(space)
    check_actor(actor)
    if at is None:
        at = format_time(datetime.now(UTC))
    check_time(at)
    work = Import(log, space, dry_run=dry_run)
    with ExitStack() as stack:
        if work.reads_twice and not file.seekable():
            spool = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(file, spool)
            spool.seek(0)
            file = spool
        start = file.tell() if work.reads_twice else 0

        def items() -> Iterator[Item]:
            if work.reads_twice:
                file.seek(start)
            return _Reader(partial(file.read, _READ_BYTES), actor, at).items()

        return work.carry_out(items, rejects=rejects, progress=progress)


class _Reader:
    """What the lines of one input ask for, in their order.

    Memory: one append, one line, and some 100 bytes for each different bare event.
    """

    def __init__(self, read: Callable[[], bytes], actor: str, at: str) -> None:
        self._lines = read_lines(read)
        self._actor, self._at = actor, at
        self._seen: dict[bytes, int] = {}
        self._open: Gathering | None = None
        self._broken = 0  # the number of the line before, if that cannot be read
        self._last = ("", "")  # of which append the last entry was
        self._between = 0  # the number of a line, no entry, that came after it

    def items(self) -> Iterator[Item]:
        for number, line in enumerate(self._lines, 1):
            if line.strip(b" \t\r"):
                yield from self._take(number, line)
        yield from self._close()

    def _take(self, number: int, line: bytes) -> Iterator[Item]:
        try:
            found = strict_json(line)
        except Rejected as refusal:
            yield from self._unreadable(number, "", refusal)
            return
        if isinstance(found, dict) and ("event" in found or "seq" in found):
            yield from self._entry(number, found)
        else:
            yield from self._close()
            self._broken, self._between = 0, number
            yield self._bare(number, line, found)

    def _bare(self, number: int, line: bytes, found: Any) -> Item:
        if not isinstance(found, dict) or "type" not in found:
            refusal = InvalidEvent("the line is neither an event nor an entry of an exported log")
            return Reject(place_of(number), "", str(refusal), refusal.code)
        key = self._key(line)
        try:
            event = msgspec.convert(found, Event)
        except msgspec.ValidationError as error:
            refusal = InvalidEvent(f"the event is refused: {error}")
            return Reject(place_of(number), key, str(refusal), refusal.code)
        return Asked((event,), key, self._actor, self._at, places=(place_of(number),))

    def _key(self, line: bytes) -> str:
        hashed = hashlib.sha256(line)
        short = hashed.digest()[:_HASH_BYTES]
        self._seen[short] = occurrence = self._seen.get(short, 0) + 1
        return f"import:{hashed.hexdigest()}:{occurrence}"

    def _entry(self, number: int, found: dict[str, Any]) -> Iterator[Item]:
        entry: Line | Rejected
        try:
            entry = msgspec.convert(found, Line)
        except msgspec.ValidationError as error:
            entry = InvalidEvent(f"the entry is refused: {error}")
        key, commit = found.get("key"), found.get("commit", "")
        if not isinstance(key, str) or not isinstance(commit, str):
            assert isinstance(entry, Rejected)
            yield from self._unreadable(number, key if isinstance(key, str) else "", entry)
            return
        if self._open is None or self._open.of != (commit, key):
            yield from self._close()
            self._open = self._begin(number, (commit, key))
        yield from self._open.add(number, entry) if isinstance(entry, Line) else self._open.refuse(number, entry)

    def _begin(self, number: int, of: tuple[str, str]) -> Gathering:
        fault = ""
        if self._broken:
            fault = f"{place_of(self._broken)}, right before it, cannot be read and may be part of it"
        elif self._between and of == self._last:
            fault = f"{place_of(number)} goes on with it after {place_of(self._between)}, which is not part of it"
        self._broken, self._between, self._last = 0, 0, of
        return Gathering(of, fault)

    def _unreadable(self, number: int, key: str, refusal: Rejected) -> Iterator[Item]:
        """Reject a line of which nobody knows whose it is, and so the appends on both sides of it."""
        if self._open is not None:
            yield from self._open.spoil(f"{place_of(number)}, right after it, cannot be read and may be part of it")
            self._open = None
        self._broken = number
        yield Reject(place_of(number), key, str(refusal), refusal.code)

    def _close(self) -> Iterator[Item]:
        if self._open is not None:
            yield from self._open.asked()
            self._open = None
