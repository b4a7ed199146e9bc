"""What one process knows of one space: its state and the index of its keys, at one published head.

Everything here follows from the log and can be thrown away; the cache shortens the way.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from coordjournal.cache import SpaceCache
from coordjournal.entry import Appended, Entry, Head
from coordjournal.errors import Corrupt
from coordjournal.state import EMPTY, CoordinationState, StateDraft
from coordjournal.store import Diverged, HeadMoved, Store


def not_there(space: str, known: Head, head: Head) -> Corrupt:
    """Return the error that a log which held `known` ends at `head` now, without it."""
    return Corrupt(
        f"entry {known.seq} was commit {known.commit}; the branch is at entry {head.seq} now and does not hold it",
        f"space {space}",
        f"move the branch to where it was: `git update-ref refs/heads/{space} {known.commit}`;"
        " or, if it was set back on purpose, start every process anew that has read it",
        seq=known.seq,
    )


class Replica:
    """The folded log of one space. It only ever stands at heads that were published.

    Any thread may read; `find`, `accept` and `settle` belong to the one that may append to the space.
    `weigh` is called, by whoever changed it, when it holds more or less than before.
    """

    def __init__(
        self, space: str, store: Store, cache: SpaceCache, weigh: Callable[[Replica], None] = lambda _: None
    ) -> None:
        self._space = space
        self._store = store
        self.cache = cache
        self._lock = threading.Lock()
        self._keys_lock = threading.Lock()
        self._weigh = weigh
        self.head = Head()
        self.state: CoordinationState = EMPTY
        self._cold = False  # whether the state at the head was let go of

    @property
    def held(self) -> int:
        """About how many bytes of memory all of it takes."""
        return (0 if self._cold else self.state.held) + self.cache.held

    def cool(self) -> Callable[[], Any] | None:
        """Let go of the state and of what the cache has in memory; None if someone is at work on it.

        Does not wait. What is returned is to be called: it writes to the cache what is worth it, closes its
        files, and frees the memory. The head stays: a log without it is still refused.
        """
        if not self._keys_lock.acquire(blocking=False):
            return None
        try:
            if not self._lock.acquire(blocking=False):
                return None
            try:
                left = partial(self._leave, self.head, self.state, self.cache)
                self.state, self._cold, self.cache = EMPTY, self.head.seq > 0, self.cache.anew()
                return left
            finally:
                self._lock.release()
        finally:
            self._keys_lock.release()

    @staticmethod
    def _leave(head: Head, state: CoordinationState, cache: SpaceCache) -> None:
        cache.states.keep(head, state)
        cache.entries.flush()
        cache.keys.close()

    def at(self, head: Head) -> CoordinationState:
        """Return the state at `head`, or at a later head that was reached meanwhile.

        Costs what was appended since the last call. Raises `Corrupt` and `UnknownEvent` with the seq,
        `Corrupt` too if `head` ends a log that does not hold what was reached before.
        """
        with self._lock:
            to = head if head.seq >= self.head.seq else self.head
            if to == self.head and not self._cold:
                return self.state
            self._catch_up(to)
            state = self.state
        self._weigh(self)
        return state

    def exactly_at(self, head: Head) -> CoordinationState:
        """Return the state at `head`, the log's newest one. Raises what `at` does, `HeadMoved` if it is not."""
        with self._lock:
            if head.seq < self.head.seq:
                if self._store.head(self._space) != head:
                    raise HeadMoved
                raise self.set_back(head)
            if head == self.head and not self._cold:
                return self.state
            self._catch_up(head)
            state = self.state
        self._weigh(self)
        return state

    def set_back(self, head: Head) -> Corrupt:
        """Return the error that `head`, read after what was reached, does not hold it."""
        return not_there(self._space, self.head, head)

    def find(self, key: str, head: Head) -> Appended | None:
        """Return the append up to `head`, the log's newest, that used `key`."""
        before = self.cache.keys.held
        found = self._find(key, head)
        if self.cache.keys.held != before:
            self._weigh(self)
        return found

    def _find(self, key: str, head: Head) -> Appended | None:
        with self._keys_lock:
            commit = self.cache.keys.find(self._store, self._space, head, key)
            if commit is None:
                return None
            try:
                appended = self._store.load(self._space, commit)
                if appended.key == key:
                    return appended
            except Corrupt:
                pass  # it is for the log itself to say so, below
            self.cache.keys.distrust()  # git does not confirm what it says
            for entry in self.cache.entries.read(self._store, self._space, head, Head()):
                if entry.key == key:
                    return self._store.load(self._space, entry.commit)
            return None

    def accept(self, written: Sequence[Appended], state: CoordinationState) -> None:
        """Go on to what was just published on top of the newest head, and to the state it gives."""
        with self._keys_lock:
            for appended in written:
                self.cache.keys.add(appended)
        with self._lock:
            for appended in written:
                self.cache.entries.add(appended)
            if written[-1].seq > self.head.seq:  # else a reader has come here already, or further
                self.head, self.state, self._cold = written[-1].head, state, False
        self._weigh(self)

    def settle(self) -> None:
        """Write to the cache what is worth it; for the one that holds the space's authority."""
        with self._keys_lock:
            before = self.cache.keys.held
            self.cache.keys.settle()
            changed = self.cache.keys.held != before
        self.cache.states.keep(self.head, self.state)
        if changed:
            self._weigh(self)

    def close(self) -> None:
        """Write to the cache what is worth it, and close its files."""
        with self._lock:
            self.cache.entries.flush()
            self.cache.states.keep(self.head, self.state)
        with self._keys_lock:
            self.cache.keys.close()

    def state_upto(self, seq: int, head: Head) -> CoordinationState:
        """Return the state as of entry `seq`, which is not past `head`; costs a fold up to there."""
        return self._fold_from(self._kept(seq), head, seq)[1]

    def _catch_up(self, head: Head) -> None:
        if self.head.seq:
            try:
                if self._cold:
                    self._store.read(self._space, head, self.head.seq, self.head.commit)  # it has what was reached
                else:
                    self.head, self.state = self._fold(head, self.head, self.state)
            except Diverged:
                raise self.set_back(head) from None
        if self._cold or not self.head.seq:
            self.head, self.state = self._fold_from(self._kept(head.seq), head)
            self._cold = False
        self.cache.states.keep(self.head, self.state)

    def _kept(self, upto: int) -> Iterator[tuple[Head, CoordinationState]]:
        """Yield the states that the cache has, the newest as of `upto` first, the empty one last."""
        while True:
            head, state = self.cache.states.newest(upto)
            yield head, state
            if not head.seq:
                return
            upto = head.seq - 1

    def _fold_from(
        self, starts: Iterator[tuple[Head, CoordinationState]], head: Head, upto: int | None = None
    ) -> tuple[Head, CoordinationState]:
        """Fold from the first of `starts` that is part of the log."""
        for base, state in starts:
            try:
                return self._fold(head, base, state, upto)
            except Diverged:
                self.cache.states.distrust(base)
        raise AssertionError("the empty state is part of every log")

    def _fold(
        self, head: Head, base: Head, state: CoordinationState, upto: int | None = None
    ) -> tuple[Head, CoordinationState]:
        draft = StateDraft(state)
        last: Entry | None = None
        for entry in self.cache.entries.read(self._store, self._space, head, base, upto):
            draft.apply(entry)
            last = entry
        return (Head(last.seq, last.commit, last.term) if last else base), draft.freeze()
