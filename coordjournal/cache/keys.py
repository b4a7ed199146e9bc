"""Which append used a key: sorted runs on disk, and the newest keys in memory.

A run is a file of records, 12 bytes of the key's BLAKE2b and 20 of the commit, sorted, in blocks of
4,096 bytes with a CRC each, so that a damaged block is seen and not taken for "no such key". Runs
cover the log from entry 1 without a gap; a run that grows as large as the one before it is merged with
it (a log-structured merge tree: O'Neil et al., 1996). What the runs do not cover is read from the log.
"""

from __future__ import annotations

import hashlib
import os
import weakref
import zlib
from bisect import bisect_right
from pathlib import Path
from typing import Final

from coordjournal.cache import spans
from coordjournal.cache.entries import EntryCache
from coordjournal.entry import Appended, Head
from coordjournal.store import Diverged, Store

_KIND: Final = "keys"
_HASH: Final = 12
_RECORD: Final = 32
_RECORDS: Final = 127  # in a block
_BLOCK: Final = 4096
_RECENT: Final = 4096  # keys held in memory before they become a run
_RECENT_KEY: Final = 180  # bytes: a place in a dict, a hash, a commit
_FILE: Final = 1 << 20  # bytes that an open file counts as: a process may have 1,024 or so


class _Damaged(Exception):
    """A block does not bear its checksum."""


class KeyIndex:
    """The keys of one space, up to a head. It belongs to one thread at a time."""

    def __init__(self, directory: Path | None, entries: EntryCache) -> None:
        self._directory = directory
        self._entries = entries
        self._runs: list[_Run] | None = None
        self._start = Head()  # where the runs end
        self._end = Head()  # where the recent keys end
        self._recent: dict[bytes, str] = {}
        self._enough = _RECENT  # so many recent keys become a run

    def find(self, store: Store, space: str, head: Head, key: str) -> str | None:
        """Return the commit that used `key` up to `head`, which is the log's newest; None if none did."""
        if self._end != head or self._runs is None:
            self._catch_up(store, space, head)
        hashed = _hashed(key)
        if (commit := self._recent.get(hashed)) is not None:
            return commit
        for run in reversed(self._runs or ()):
            try:
                if (commit := run.find(hashed)) is not None:
                    return commit
            except (_Damaged, OSError):
                self.distrust()
                return self.find(store, space, head, key)
        return None

    def add(self, appended: Appended) -> None:
        """Remember the key of an append that was published on top of the head that was reached."""
        if appended.parent == self._end.commit and appended.first == self._end.seq + 1:
            self._recent[_hashed(appended.key)] = appended.commit
            self._end = appended.head

    @property
    def held(self) -> int:
        """About how many bytes of memory it takes, and `_FILE` more for each file that it has open."""
        return _RECENT_KEY * len(self._recent) + _FILE * len(self._runs or ())

    def settle(self) -> None:
        """Turn the recent keys into a run, if they are many."""
        try:
            self._settle()
        except (_Damaged, OSError):
            self.distrust()

    def _settle(self) -> None:
        if self._directory is None or self._runs is None or len(self._recent) < self._enough:
            return
        records = b"".join(hashed + bytes.fromhex(commit) for hashed, commit in self._recent.items())
        run = _save(self._directory, self._start, self._end, records)
        if run is None:
            self._enough = 2 * len(self._recent)  # tries of what the disk does not take stay few
            return
        self._recent, self._start, self._enough = {}, self._end, _RECENT
        self._runs.append(run)
        while len(self._runs) > 1 and self._runs[-2].count < 2 * self._runs[-1].count:
            if not self._merge(self._directory, self._runs):
                return

    def close(self) -> None:
        """Close the runs' files; the index opens again when it is next asked."""
        for run in self._runs or ():
            run.close()
        self._runs = None
        self._recent = {}
        self._start = self._end = Head()

    def _merge(self, directory: Path, runs: list[_Run]) -> bool:
        older, newer = runs[-2], runs[-1]
        records = older.records() + newer.records()
        merged = _save(directory, Head(older.span.first - 1, older.span.parent), newer.span.head, records)
        if merged is None:
            return False
        for run in (older, newer):
            run.close()
            spans.drop(directory, run.span.name)
        runs[-2:] = [merged]
        return True

    def _catch_up(self, store: Store, space: str, head: Head) -> None:
        if self._runs is None:
            self._open()
        if self._end.seq > head.seq:
            self.distrust()
        try:
            self._read(store, space, head)
        except (Diverged, _Damaged, OSError):
            self.distrust()
            self._read(store, space, head)

    def _read(self, store: Store, space: str, head: Head) -> None:
        self._runs = self._runs or []
        for entry in self._entries.read(store, space, head, self._end):
            if entry.commit != self._end.commit:  # a new append begins, the one before is whole
                self._settle()
                self._recent[_hashed(entry.key)] = entry.commit
            self._end = Head(entry.seq, entry.commit, entry.term)
        self._settle()

    def _open(self) -> None:
        """Take up the runs that follow one another from entry 1, the longest at each place."""
        self._runs = []
        if self._directory is None:
            return
        at: dict[int, list[str]] = {}
        for first, _, name in spans.names(self._directory, _KIND):
            at.setdefault(first, []).append(name)
        while names := at.pop(self._end.seq + 1, None):
            for name in reversed(names):
                run = _open_run(self._directory, name)
                if run is None:
                    continue
                if run.span.parent == self._end.commit:
                    self._runs.append(run)
                    self._start = self._end = run.span.head
                    break
                run.close()
        self._sweep(self._directory)

    def _sweep(self, directory: Path) -> None:
        """Delete the runs that others cover: left by a merge, or written by two processes at a time."""
        used = {run.span.name for run in self._runs or ()}
        for _, last, name in spans.names(directory, _KIND):
            if last <= self._end.seq and name not in used:
                spans.drop(directory, name)

    def distrust(self) -> None:
        """Throw the index away, its files too: it is built again from the log when it is next asked."""
        self.close()
        if self._directory is not None:
            for _, _, name in spans.names(self._directory, _KIND):
                spans.drop(self._directory, name)


class _Run:
    """One sorted run: an open file, and the first hash of each of its blocks."""

    def __init__(self, span: spans.Span, file: int, start: int) -> None:
        self.span = span
        self._file = file
        self._close = weakref.finalize(self, os.close, file)  # also where a replica is just let go of
        self._start = start
        self.count = int.from_bytes(span.extra[:8], "big")
        fences = span.extra[8:]
        self._fences = [fences[at : at + _HASH] for at in range(0, len(fences), _HASH)]

    def find(self, hashed: bytes) -> str | None:
        number = bisect_right(self._fences, hashed) - 1
        if number < 0:
            return None
        block = self._block(number)
        at = block.find(hashed)
        while at >= 0:
            if at % _RECORD == 0:
                return block[at + _HASH : at + _RECORD].hex()
            at = block.find(hashed, at + 1)
        return None

    def records(self) -> bytes:
        return b"".join(self._block(number) for number in range(len(self._fences)))

    def close(self) -> None:
        self._close()

    def _block(self, number: int) -> bytes:
        block = os.pread(self._file, _BLOCK, self._start + number * _BLOCK)
        records = min(_RECORDS, self.count - number * _RECORDS)
        data = block[: records * _RECORD]
        crc = block[_RECORDS * _RECORD : _RECORDS * _RECORD + 4]
        if len(data) != records * _RECORD or zlib.crc32(data, number).to_bytes(4, "big") != crc:
            raise _Damaged
        return data


def _save(directory: Path, start: Head, end: Head, records: bytes) -> _Run | None:
    """Write the run of the entries after `start` up to `end`; None where the disk does not take it."""
    rows = sorted(records[at : at + _RECORD] for at in range(0, len(records), _RECORD))
    fences, blocks = [], []
    for number, at in enumerate(range(0, len(rows), _RECORDS)):
        fences.append(rows[at][:_HASH])
        data = b"".join(rows[at : at + _RECORDS])
        padding = bytes(_RECORDS * _RECORD - len(data))
        crc = zlib.crc32(data, number).to_bytes(4, "big")  # seeded, so that a block counts in its place only
        blocks.append(data + padding + crc + bytes(_BLOCK - _RECORDS * _RECORD - 4))
    extra = len(rows).to_bytes(8, "big") + b"".join(fences)
    span = spans.Span(_KIND, start.seq + 1, end, start.commit, b"", extra)
    if not spans.save(directory, span, b"".join(blocks)):
        return None
    return _open_run(directory, span.name)


def _open_run(directory: Path, name: str) -> _Run | None:
    opened = spans.open_span(directory, name)
    return None if opened is None else _Run(*opened)


def _hashed(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=_HASH).digest()
