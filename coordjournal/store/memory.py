"""The log in memory: for tests, and as a source of `replay`. As strict as the one in git."""

from __future__ import annotations

import hashlib
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from coordjournal.entry import Appended, Head, decode_entries
from coordjournal.errors import Corrupt
from coordjournal.store import Diverged, HeadMoved, Ready


class MemoryStore:
    """A `Store` in the memory of one process. A commit is SHA-256 over its parent, term and bytes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._writers: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._commits: dict[tuple[str, str], Appended] = {}
        self._heads: dict[str, Head] = {}

    def claim(self, authority: str, journal: str = "", place: str = "") -> str:
        del authority, place
        return journal or "memory"  # memory belongs to this process alone

    @contextmanager
    def exclusive(self, space: str, *, wait: bool = True) -> Iterator[bool]:
        with self._lock:
            writer = self._writers[space]
        mine = writer.acquire(blocking=wait)
        try:
            yield mine
        finally:
            if mine:
                writer.release()

    def spaces(self) -> list[str]:
        with self._lock:
            return sorted(self._heads)

    def head(self, space: str) -> Head:
        with self._lock:
            return self._heads.get(space, Head())

    def read(self, space: str, head: Head, after: int = 0, base: str | None = None) -> Iterator[Appended]:
        trail = []
        commit, seq = head.commit, head.seq
        while seq > after:
            appended = self.load(space, commit)
            trail.append(appended)
            commit, seq = appended.parent, appended.first - 1
        if base is not None and (commit, seq) != (base, after):
            raise Diverged
        return reversed(trail)

    @property
    def patience(self) -> float:
        return 0.0

    def has(self, space: str, head: Head) -> bool:
        with self._lock:
            return (space, head.commit) in self._commits

    def identity(self, space: str, head: Head) -> str:
        first = self.load(space, head.commit)
        while first.parent:
            first = self.load(space, first.parent)
        return first.commit[:32]

    def load(self, space: str, commit: str) -> Appended:
        try:
            with self._lock:
                return self._commits[space, commit]
        except KeyError:
            raise Corrupt(f"no commit {commit}", f"space {space}") from None

    def write(self, space: str, head: Head, group: Sequence[Ready], term: int) -> list[Appended]:
        written = []
        parent = head.commit
        for ready in group:
            commit = hashlib.sha256(f"{parent} {term}\n".encode() + ready.data).hexdigest()
            entries = decode_entries(ready.data, ready.first, commit, term)
            written.append(Appended(commit, parent, term, entries))
            parent = commit
        with self._lock:
            self._commits.update(((space, appended.commit), appended) for appended in written)
        return written

    def advance(self, space: str, old: Head, new: Head) -> None:
        with self._lock:
            if self._heads.get(space, Head()) != old:
                raise HeadMoved
            self._heads[space] = new

    def confirm(self, space: str) -> None:
        pass  # memory outlives nothing

    def close(self) -> None:
        pass  # there are no files to let go of
