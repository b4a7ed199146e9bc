"""The heads of spaces under etcd, as one process reads them: the published ones, the branches', and when they move."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Final

from coordjournal.authority import Consistency
from coordjournal.authority.node import Node
from coordjournal.authority.wire import decode_head
from coordjournal.entry import Head, Receipt
from coordjournal.errors import (
    Closed,
    CoordJournalError,
    Corrupt,
    HeadBehind,
    HeadMissing,
    MissingObjects,
    NotFound,
    Unavailable,
)
from coordjournal.etcd import Change, EtcdError, Watcher

_WATCH_HEADS_SECONDS: Final = 60.0  # after the last call of `wait`


class Reading:
    """What is known of heads, and who waits for one to move. Safe in many threads.

    `stop` is set when the process ends: nobody waits for objects any more then.
    """

    def __init__(self, node: Node, stop: threading.Event) -> None:
        self._node = node
        self._stop = stop
        self._seen: dict[str, int] = {}  # what was appended and read here, by space
        self._confirmed: dict[str, tuple[int, float]] = {}  # which seq was the head, and when that was asked
        self._watcher: Watcher | None = None
        self._watches: dict[str, _HeadWatch] = {}
        self._lock = threading.Lock()  # around all of these, not while anything is asked

    def head(self, space: str, seconds: float, consistency: Consistency, after: int) -> Head:
        """Return a head that holds what `consistency` says, and entry `after`, as `Authority.head`."""
        if consistency == "linearizable":
            return self._published(space, seconds)
        local = self._node.store.head(space)
        if consistency == "session":
            after = max(after, self._seen.get(space, 0))
        if local.seq < after:
            return self._published(space, seconds)
        self._saw(space, local.seq)
        return local

    def age(self, space: str) -> float | None:
        """Return how many seconds ago a local head was known to be the newest, None if it never was."""
        confirmed = self._confirmed.get(space)
        if confirmed is None or confirmed[0] > self._node.store.head(space).seq:
            return None
        return self._node.clock() - confirmed[1]

    def acknowledged(self, space: str, done: Future[Receipt]) -> None:
        """Note what became of an append of this process: a later read of a `session` holds it."""
        if not done.cancelled() and done.exception() is None:
            self._saw(space, done.result().seq)

    def _saw(self, space: str, seq: int) -> None:
        with self._lock:  # many threads read at a time, and what was seen never falls
            self._seen[space] = max(seq, self._seen.get(space, 0))

    def _published(self, space: str, seconds: float) -> Head:
        asked = self._node.clock()
        head = self._read_published(space, seconds)
        self._saw(space, head.seq)
        with self._lock:
            if head.seq >= self._confirmed.get(space, (0, 0.0))[0]:
                self._confirmed[space] = head.seq, asked
        return head

    def _read_published(self, space: str, seconds: float) -> Head:
        node = self._node
        deadline = node.clock() + seconds
        head, found = node.published(space, seconds)
        try:
            branch = node.store.head(space)
        except (Corrupt, NotFound):  # said by whoever needs it
            if found is None:
                raise
            branch = Head()
        known = max(branch.seq, self._seen.get(space, 0))
        if known > head.seq:
            # It may have grown just now. But nothing is ahead of etcd, so what is ahead of a later look says more.
            if node.clock() >= deadline:
                raise Unavailable(f"etcd does not tell the head of space {space} in time")
            head, found = node.published(space, deadline - node.clock())
            if known > head.seq:
                node.identify()
                raise _fallen_behind(space, known, branch.seq, head if found else None)
        pause, patient_until = 0.01, min(deadline, node.clock() + node.store.patience)
        while head.seq and not node.store.has(space, head):  # the branch may be in sight sooner
            if node.clock() >= patient_until:
                node.identify()
                raise MissingObjects(
                    f"entry {head.seq}, commit {head.commit}, is published, and its objects are not here",
                    f"space {space}",
                    f"bring them back; if they are lost for good, run `coordjournal recover {space}`",
                )
            self._stop.wait(pause)
            pause = min(1.0, 2 * pause)
        return head

    # Waiting for a head to move.

    def watch(self, watcher: Watcher) -> None:
        """Have the heads that are waited for from now on watched."""
        self._watcher = watcher

    def wait(self, space: str, seen: Head, seconds: float) -> None:
        """Return when the head may be another than `seen`, after `seconds` at the latest. Raises `Closed`."""
        with self._lock:
            watch = self._watches.get(space)
            if watch is None and self._watcher is not None:
                watch = _HeadWatch()
                try:
                    watch.number = self._watcher.add(self._node.keys.head(space), b"", watch.tell)
                except EtcdError as error:
                    raise Closed("the log was closed; open another one") from error
                self._watches[space] = watch
        if watch is None:
            raise Closed("the log was closed; open another one")
        watch.used = time.monotonic()
        watch.wait(seen, seconds)

    def forget(self) -> None:
        """Watch no longer the heads that nobody has waited for lately."""
        with self._lock:
            for space, watch in list(self._watches.items()):
                if time.monotonic() - watch.used > _WATCH_HEADS_SECONDS and self._watcher is not None:
                    self._watcher.remove(watch.number)
                    del self._watches[space]

    def wake(self) -> None:
        """Have all who wait look again, at the close."""
        with self._lock:
            waited = list(self._watches.values())
        for watch in waited:
            watch.tell(None)


class _HeadWatch:
    """Who waits for a space's head to move, and what the watch told of it last."""

    def __init__(self) -> None:
        self.number = 0
        self.used = time.monotonic()
        self._moved = threading.Condition()
        self._seq = 0

    def tell(self, changes: Sequence[Change] | None) -> None:
        seq = 0
        for kv, deleted in changes or ():
            try:
                seq = 0 if deleted else decode_head(kv.value, "").seq
            except CoordJournalError:
                seq = 0  # whoever reads it says so
        with self._moved:
            self._seq = seq
            self._moved.notify_all()

    def wait(self, seen: Head, seconds: float) -> None:
        with self._moved:
            if self._seq <= seen.seq:
                self._moved.wait(seconds)


def _fallen_behind(space: str, known: int, branch: int, head: Head | None) -> HeadMissing | HeadBehind:
    fact = f"the branch of space {space} is at entry {known}"
    if branch < known:
        fact = f"this process has read entry {known} of space {space}"
    if head is None:
        return HeadMissing(
            f"{fact}, and etcd knows no head of it: etcd was wiped, or it is another one",
            f"space {space}",
            f"name the right etcd and prefix; or run `coordjournal recover {space}`",
        )
    return HeadBehind(
        f"{fact}, the published head is entry {head.seq} only: etcd was restored from an older time",
        f"space {space}",
        f"run `coordjournal recover {space}`, which shows what there is",
    )
