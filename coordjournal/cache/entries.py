"""Decoded entries in blocks, so that reading the log again does not cost git's objects again."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from coordjournal.cache import spans
from coordjournal.entry import Appended, Entry, Head
from coordjournal.store import Diverged, Store

_KIND: Final = "entries"
_BLOCK_ENTRIES: Final = 4096
_BLOCK_BYTES: Final = 4 << 20
_MIN_ENTRIES: Final = 512  # what the store reads in some 5 ms is not worth a file
_NEAR: Final = 256  # nor is it worth a look into the directory
_WAITING: Final = 42  # bytes that a list and a `bytes` take beside what is in it

_encode = msgspec.msgpack.Encoder().encode
_DECODER = msgspec.msgpack.Decoder(list[Entry])


class EntryCache:
    """Reads the entries of one space, from the store where it must and from its blocks where it can."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._newest: _Block | None = None  # ends at the newest append that was seen

    def read(self, store: Store, space: str, head: Head, base: Head, upto: int | None = None) -> Iterator[Entry]:
        """Yield the entries after `base`, up to seq `upto` or to `head`, in order.

        `base` may lack its commit; `Diverged`, before the first entry, if it has one that is not the
        log's.
        """
        end = head.seq if upto is None else min(upto, head.seq)
        if self._directory is not None and head.seq - base.seq > _NEAR:
            blocks = self._blocks(self._directory, store, space, head, base)
            if blocks:
                return self._from_blocks(self._directory, blocks, store, space, head, base, end)
        return self._from_store(store.read(space, head, base.seq, base.commit or None), base, end)

    def add(self, appended: Appended) -> None:
        """Remember an append that was published, for a block."""
        if self._directory is None:
            return
        with self._lock:
            block = self._newest
            if block is None or not block.add(appended):
                if block is not None and block.end == appended.head:
                    return  # read from the store already
                self._newest = block = _Block(self._directory, appended)
                block.add(appended)

    @property
    def held(self) -> int:
        """About how many bytes of memory what waits takes."""
        block = self._newest
        return 0 if block is None else block.held

    def flush(self) -> None:
        """Write what waits into a block, if it is enough to be worth one."""
        with self._lock:
            if self._newest is not None:
                self._newest.flush()

    def _from_blocks(
        self, directory: Path, blocks: list[str], store: Store, space: str, head: Head, base: Head, end: int
    ) -> Iterator[Entry]:
        """Yield from `blocks`, then from the store; a block that turns out damaged ends the first part."""
        for name in blocks:
            entries = _load(directory, name)
            if entries is None:
                break
            first, last = entries[0].seq, entries[-1]
            yield from entries[max(0, base.seq + 1 - first) : max(0, end + 1 - first)]
            base = Head(last.seq, last.commit, last.term)
            if base.seq >= end:
                return
        yield from self._from_store(store.read(space, head, base.seq, base.commit or None), base, end)

    def _from_store(self, tail: Iterator[Appended], base: Head, end: int) -> Iterator[Entry]:
        block: _Block | None = None
        for appended in tail:
            if self._directory is not None:
                with self._lock:
                    if block is None:
                        goes_on = self._newest is not None and self._newest.goes_on(appended)
                        block = self._newest if goes_on else _Block(self._directory, appended)
                        assert block is not None
                    block.add(appended)
            for entry in appended.entries:
                if entry.seq > base.seq:
                    if entry.seq > end:
                        return
                    yield entry
        if block is not None:
            with self._lock:
                block.flush()
                if self._newest is None or self._newest.worth < block.worth:
                    self._newest = block

    def _blocks(self, directory: Path, store: Store, space: str, head: Head, base: Head) -> list[str]:
        """Return the names of the blocks that lead on from the one holding the entry after `base`.

        They are believed because the log says the same: the last one's end is a commit of it, and each
        begins after the commit at which the one before it ends.
        """
        chain = _chain(directory)
        _sweep(directory, chain)
        covering = [(span, name) for span, name in chain if span.head.seq > base.seq]
        if not covering:
            return []
        first, last = covering[0][0], covering[-1][0]
        try:
            if last.head.seq <= head.seq:
                store.read(space, head, last.head.seq, last.head.commit)
            elif _commit_at(directory, covering, head.seq) != head.commit:
                raise Diverged
        except Diverged:
            for _, name in chain:
                spans.drop(directory, name)
            return []
        if base.commit:
            known = first.parent if first.first == base.seq + 1 else _commit_at(directory, covering, base.seq)
            if known is not None and known != base.commit:
                raise Diverged
        return [name for _, name in covering]


class _Block:
    """Entries that follow one another and wait to become a block."""

    def __init__(self, directory: Path, first: Appended) -> None:
        self.end = self._start = Head(first.first - 1, first.parent)
        self._directory = directory
        self._waiting: list[bytes] = []  # encoded entries
        self._bytes = 0
        self._follows = not self._start.seq  # whether a block from here follows another one, as far as is known
        self._alone = False  # it is known that none does

    @property
    def worth(self) -> tuple[int, bool]:
        """How new it is, and whether it certainly follows another block."""
        return self.end.seq, self._follows

    @property
    def held(self) -> int:
        """About how many bytes of memory it takes."""
        return self._bytes + _WAITING * len(self._waiting)

    def goes_on(self, appended: Appended) -> bool:
        """Whether `appended` comes next."""
        return (appended.first, appended.parent) == (self.end.seq + 1, self.end.commit)

    def add(self, appended: Appended) -> bool:
        """Take an append in; false if it is not the next one."""
        if not self.goes_on(appended):
            return False
        self.end = appended.head
        if not self._alone:
            for entry in appended.entries:
                data = _encode(entry)
                self._waiting.append(data)
                self._bytes += len(data)
            if len(self._waiting) >= _BLOCK_ENTRIES or self._bytes >= _BLOCK_BYTES:
                self.flush()
        return True

    def flush(self) -> None:
        """Write what waits, if it is enough; forget it if no block ends where it begins."""
        if len(self._waiting) < _MIN_ENTRIES:
            return
        if not self._follows:
            self._alone = all(last != self._start.seq for _, last, _ in spans.names(self._directory, _KIND))
        if not self._alone:
            payload = b"".join((b"\xdd", len(self._waiting).to_bytes(4, "big"), *self._waiting))  # msgpack: array 32
            span = spans.Span(_KIND, self._start.seq + 1, self.end, self._start.commit, spans.digest(payload))
            self._follows = spans.save(self._directory, span, payload)
        self._start = self.end
        self._waiting, self._bytes = [], 0


def _load(directory: Path, name: str) -> list[Entry] | None:
    found = spans.load(directory, name)
    if found is None:
        return None
    try:
        return _DECODER.decode(found[1])
    except msgspec.MsgspecError:
        spans.drop(directory, name)
        return None


def _chain(directory: Path) -> list[tuple[spans.Span, str]]:
    """Return the blocks that follow one another from entry 1, the longest at each place."""
    at: dict[int, list[str]] = {}
    for first, _, name in spans.names(directory, _KIND):
        at.setdefault(first, []).append(name)
    chain: list[tuple[spans.Span, str]] = []
    end = Head()
    while names := at.get(end.seq + 1):
        for name in reversed(names):
            opened = spans.open_span(directory, name)
            if opened is None:
                continue
            span, file, _ = opened
            os.close(file)
            if span.parent == end.commit:
                chain.append((span, name))
                end = span.head
                break
        else:
            break
    return chain


def _sweep(directory: Path, chain: list[tuple[spans.Span, str]]) -> None:
    """Delete the blocks that others cover: written by two processes at a time, or before more was known."""
    used = {name for _, name in chain}
    end = chain[-1][0].head.seq if chain else 0
    for _, last, name in spans.names(directory, _KIND):
        if last <= end and name not in used:
            spans.drop(directory, name)


def _commit_at(directory: Path, blocks: list[tuple[spans.Span, str]], seq: int) -> str | None:
    """Return the commit of entry `seq`, None if no block can tell."""
    for span, name in blocks:
        if span.first <= seq <= span.head.seq:
            entries = _load(directory, name)
            return entries[seq - span.first].commit if entries else None
    return None
