"""The authority that etcd elects: one holder a space, everybody else forwards to it.

This module drives: a thread a space that has something to do, one that keeps the session alive and looks
after the rest, and the watch's. The protocol's steps are in `member`, `tenure` and `forwarding`.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Final

from coordjournal.authority import Consistency
from coordjournal.authority.member import IDLE_SECONDS, Member
from coordjournal.authority.node import Node
from coordjournal.authority.wire import decode_head, range_of, session_of
from coordjournal.entry import Append, Head, Receipt
from coordjournal.errors import (
    Closed,
    CoordJournalError,
    Corrupt,
    HeadBehind,
    HeadMissing,
    MissingObjects,
    NotFound,
)
from coordjournal.etcd import Change, EtcdError, Get, Watcher

_THREAD_SECONDS: Final = 2.0  # a space's thread ends when it had nothing to do for so long
_RESCAN_SECONDS: Final = 5.0
_MAX_RESCAN: Final = 10_000  # keys; what is beyond has its turn when these are gone
_WATCH_HEADS_SECONDS: Final = 60.0  # after the last call of `wait`
_BALANCE_SECONDS: Final = 10.0

logger = logging.getLogger(__name__)


class EtcdAuthority:
    """An `Authority` of one process among many, on one host or several, over a store that they share.

    Closes `node`'s etcd with itself. `threads` is false where a test drives the steps.
    """

    grace = 1.0
    """For so many seconds before its deadline an append is already being taken back."""

    def __init__(self, node: Node, *, threads: bool = True) -> None:
        self.node = node
        self.members: dict[str, Member] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._threads = threads
        self._drivers: dict[str, _Driver] = {}
        self._keeper: threading.Thread | None = None
        self._pid = 0  # of the process whose session it is
        self._stop = threading.Event()
        self._watcher: Watcher | None = None
        self._intent_watches: dict[str, int] = {}
        self._head_watches: dict[str, _HeadWatch] = {}
        self._seen: dict[str, int] = {}  # what was appended and read here, by space
        self._confirmed: dict[str, tuple[int, float]] = {}  # which seq was the head, and when that was asked
        self._renew_at = 0.0
        self._rescan_at = 0.0
        self._balance_at = 0.0

    # The port.

    def head(
        self, space: str, seconds: float = 10.0, consistency: Consistency = "linearizable", after: int = 0
    ) -> Head:
        if consistency == "linearizable":
            return self._published(space, seconds)
        local = self.node.store.head(space)
        if consistency == "session":
            after = max(after, self._seen.get(space, 0))
        if local.seq < after:
            return self._published(space, seconds)
        self._saw(space, local)
        return local

    def age(self, space: str) -> float | None:
        confirmed = self._confirmed.get(space)
        if confirmed is None or confirmed[0] > self.node.store.head(space).seq:
            return None
        return self.node.clock() - confirmed[1]

    def _saw(self, space: str, head: Head) -> None:
        if head.seq > self._seen.get(space, 0):
            self._seen[space] = head.seq

    def _published(self, space: str, seconds: float) -> Head:
        asked = self.node.clock()
        head = self._read_published(space, seconds)
        self._saw(space, head)
        if head.seq >= self._confirmed.get(space, (0, 0.0))[0]:
            self._confirmed[space] = head.seq, asked
        return head

    def _read_published(self, space: str, seconds: float) -> Head:
        node = self.node
        deadline = node.clock() + seconds
        head, found = node.published(space, seconds)
        try:
            branch = node.store.head(space)
        except (Corrupt, NotFound):  # said by whoever needs it
            if found is None:
                raise
            branch = Head()
        if branch.seq > head.seq:
            # It may have grown just now. But it never is ahead of etcd, so one that is ahead of a later look says more.
            head, found = node.published(space, max(0.0, deadline - node.clock()))
            if branch.seq > head.seq:
                node.identify()
                raise _fallen_behind(space, branch, head if found else None)
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

    def submit(self, space: str, append: Append) -> Future[Receipt]:
        future = self.member(space).submit(append)
        future.add_done_callback(lambda done: self._acknowledged(space, done))
        return future

    def _acknowledged(self, space: str, done: Future[Receipt]) -> None:
        if not done.cancelled() and done.exception() is None:
            receipt = done.result()
            if receipt.seq > self._seen.get(space, 0):
                self._seen[space] = receipt.seq

    def wait(self, space: str, seen: Head, seconds: float) -> None:
        self._start()
        with self._lock:
            watch = self._head_watches.get(space)
            if watch is None and self._watcher is not None:
                watch = self._head_watches[space] = _HeadWatch()
                key = self.node.keys.head(space)
                watch.number = self._watcher.add(key, b"", watch.tell)
        if watch is None:
            raise Closed("the log was closed; open another one")
        watch.used = time.monotonic()
        watch.wait(seen, seconds)

    def close(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        with self._lock:
            first, self._closed = not self._closed, True
            members = list(self.members.values())
        if not first:
            return
        for member in members:
            member.close_intake()
        for member in members:
            if not member.wait_idle(max(0.0, deadline - time.monotonic())):
                member.abandon()
        self._stop.set()
        with self._lock:
            drivers, waited = list(self._drivers.values()), list(self._head_watches.values())
        for watch in waited:
            watch.tell(None)
        for driver in drivers:
            driver.stop(max(0.1, deadline - time.monotonic()))
        if self._keeper is not None:
            self._keeper.join(max(0.1, deadline - time.monotonic()))
        if self._watcher is not None:
            self._watcher.close()
        rest = min(2.0, max(0.2, deadline - time.monotonic()))
        if self.node.lock.acquire(timeout=rest):  # else etcd does not answer whoever has it
            try:
                self.node.session.close(timeout=rest)
            finally:
                self.node.lock.release()
        self.node.etcd.close()
        atexit.unregister(self._at_exit)

    def serve(self, spaces: Sequence[str]) -> None:
        self.node.identify()
        self.node.ensure_session()
        for space in spaces:
            member = self.member(space)
            member.keep = True
            member.need()
        self._start()

    def member(self, space: str) -> Member:
        """Return this process's part in a space."""
        with self._lock:
            if self._closed:
                raise Closed("the log was closed; open another one")
            member = self.members.get(space)
            if member is None:
                member = self.members[space] = Member(self.node, space, self._kick)
        self._start()
        return member

    def _start(self) -> None:
        if not self._threads:
            return
        with self._lock:
            if self._keeper is None and not self._closed:
                self._keeper = threading.Thread(target=self._keep, name="coordjournal-keeper", daemon=True)
                self.watch()
                self._keeper.start()
                self._pid = os.getpid()
                atexit.register(self._at_exit)

    def _at_exit(self) -> None:
        """Let go in order where a program ends without closing its log: others need not wait for the TTL."""
        if self._pid != os.getpid():
            return  # a forked child: the session is its parent's
        try:
            self.close(2.0)
        except Exception:
            logger.exception("the session cannot be closed at the program's end")

    def _kick(self, member: Member) -> None:
        if not self._threads:
            return
        with self._lock:
            driver = self._drivers.get(member.space)
            if driver is None:
                driver = self._drivers[member.space] = _Driver(member, self._stepped)
        driver.kick()

    def _stepped(self, member: Member) -> None:
        """Watch the intents of a space while it is held."""
        held = member.tenure is not None
        if held == (member.space in self._intent_watches) or self._watcher is None or self.node.role == "holder":
            return
        if held:
            first, end = range_of(self.node.keys.intents_of(member.space))
            self._intent_watches[member.space] = self._watcher.add(first, end, lambda _: member.hint_intents())
        else:
            self._watcher.remove(self._intent_watches.pop(member.space))

    # What the watch tells: hints, each of which a rescan would find as well.

    def watch(self) -> None:
        """Begin to watch who holds what, and for outcomes."""
        keys, watcher = self.node.keys, self.node.etcd.watcher()
        self._watcher = watcher
        watcher.add(*range_of(keys.holders), self._told_holders)
        watcher.add(*range_of(keys.successors), self._told_successors)
        watcher.add(*range_of(keys.outcomes_of(self.node.id)), self._told_outcomes)
        if self.node.role == "holder":
            watcher.add(*range_of(keys.intents), self._told_intents)

    def _told_holders(self, changes: Sequence[Change] | None) -> None:
        if changes is None:
            for member in list(self.members.values()):
                member.hint_holder(None)
            return
        for kv, deleted in changes:
            space = self.node.keys.space_of(self.node.keys.holders, kv.key)
            asked = self.members.get(space or "")
            if asked is not None:
                asked.hint_holder("" if deleted else session_of(kv.value))

    def _told_successors(self, changes: Sequence[Change] | None) -> None:
        for kv, deleted in changes or ():
            space = self.node.keys.space_of(self.node.keys.successors, kv.key)
            if deleted or space is None:
                continue
            session = session_of(kv.value)
            mine = session == self.node.id and not self._closed
            asked = self.member(space) if mine else self.members.get(space)
            if asked is not None:
                asked.hint_successor(session)

    def _told_outcomes(self, changes: Sequence[Change] | None) -> None:
        for kv, deleted in changes or ():
            parsed = self.node.keys.parse_outcome(kv.key)
            member = self.members.get(parsed[0]) if parsed is not None and not deleted else None
            if parsed is not None and member is not None:
                member.hint_outcome(parsed[1], kv.value)

    def _told_intents(self, changes: Sequence[Change] | None) -> None:
        if changes is None:
            self._rescan_at = 0.0
            return
        keys = self.node.keys
        for space in {keys.space_of(keys.intents, kv.key) for kv, deleted in changes if not deleted}:
            self._waiting_in(space)

    def _waiting_in(self, space: str | None) -> None:
        """Note that intents may wait in a space: for its holder, or for one who would be."""
        if space is None:
            return
        member = self.members.get(space)
        if member is not None and member.tenure is not None:
            member.hint_intents()
        elif self.node.role == "holder" and not self._closed:
            (member or self.member(space)).need()

    # The keeper: what is due from time to time.

    def _keep(self) -> None:
        while not self._stop.wait(self.tick()):
            pass

    def tick(self) -> float:
        """Do what is due, and return after how many seconds to call again."""
        now = self.node.clock()
        try:
            if self.node.session.created and now >= self._renew_at:
                self._renew_at = now + self.node.session.ttl / 3
                self._renew()
            if self.node.session.created and now >= self._rescan_at:
                self._rescan_at = now + _RESCAN_SECONDS
                self._rescan()
        except EtcdError as error:
            logger.info("etcd does not answer the keeper: %s", error)
        except CoordJournalError as error:
            logger.warning("the keeper: %s", error)
        except Exception:
            logger.exception("the keeper's round failed; it goes on")
        self._look_after(now)
        return min(1.0, self.node.session.ttl / 6)

    def _renew(self) -> None:
        if not self.node.renew():
            logger.warning("session %s has lost its lease; it is opened anew, with another one", self.node.id)
            self.node.ensure_session()
            for member in list(self.members.values()):
                member.hint_holder(None)

    def _rescan(self) -> None:
        """Find what no watch told: intents that wait, holders' keys of ours that we do not serve, a session's loss."""
        keys = self.node.keys
        self.node.doubt_session()
        if not self.node.session.created:
            logger.warning("the key of session %s is gone, as after a recovery; it is put anew", self.node.id)
            self.node.ensure_session()
        intents, holders = self.node.get(
            Get(*range_of(keys.intents), limit=_MAX_RESCAN, only="keys"),
            Get(*range_of(keys.holders), limit=_MAX_RESCAN),
        )
        mine = self.node.id.encode()
        held = {keys.space_of(keys.holders, kv.key): kv.value for kv in holders.kvs}
        for space in {keys.space_of(keys.intents, kv.key) for kv in intents.kvs}:
            if space is not None and held.get(space, mine) == mine:
                self._waiting_in(space)
        for space, holder in held.items():
            if space is not None and holder == mine:
                ours = self.member(space)
                if ours.tenure is None and ours.idle:
                    ours.need()

    def _look_after(self, now: float) -> None:
        balance = now >= self._balance_at
        if balance:
            self._balance_at = now + _BALANCE_SECONDS
        for member in list(self.members.values()):
            if not member.holds:
                continue
            since = member.busy_since
            if since is not None and now - since > 2 * self.node.session.ttl:
                logger.error("space %s: no progress for %.0f s; it is let go", member.space, now - since)
                try:
                    member.revoke()
                except EtcdError as error:
                    logger.warning("space %s cannot be let go: %s", member.space, error)
            elif member.unused_for > IDLE_SECONDS and not member.keep:
                self._kick(member)
            elif balance and not member.keep and self.node.role != "holder" and (busiest := member.busiest()):
                member.hint_successor(busiest)
        self._forget_heads()

    def _forget_heads(self) -> None:
        with self._lock:
            for space, watch in list(self._head_watches.items()):
                if time.monotonic() - watch.used > _WATCH_HEADS_SECONDS and self._watcher is not None:
                    self._watcher.remove(watch.number)
                    del self._head_watches[space]


class _Driver:
    """The thread that takes a member's steps; it ends when there was nothing to do for a while."""

    def __init__(self, member: Member, stepped: Callable[[Member], None]) -> None:
        self._member = member
        self._stepped = stepped
        self._work = threading.Condition()
        self._kicked = False
        self._stopped = False
        self._thread: threading.Thread | None = None

    def kick(self) -> None:
        with self._work:
            self._kicked = True
            if self._thread is None and not self._stopped:
                name = f"coordjournal-{self._member.space}"
                self._thread = threading.Thread(target=self._run, name=name, daemon=True)
                self._thread.start()
            else:
                self._work.notify()

    def stop(self, seconds: float) -> None:
        with self._work:
            self._stopped = True
            self._work.notify()
            thread = self._thread
        if thread is not None:
            thread.join(seconds)

    def _run(self) -> None:
        while True:
            with self._work:
                self._kicked = False
            delay = self._member.step()
            self._stepped(self._member)
            with self._work:
                if not (self._kicked or self._stopped or delay == 0.0):
                    self._work.wait(_THREAD_SECONDS if delay is None else delay)
                if self._stopped or (delay is None and not self._kicked):
                    self._thread = None
                    return


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


def _fallen_behind(space: str, branch: Head, head: Head | None) -> HeadMissing | HeadBehind:
    if head is None:
        return HeadMissing(
            f"space {space} has a branch, and etcd knows no head of it: etcd was wiped, or it is another one",
            f"space {space}",
            f"name the right etcd and prefix; or run `coordjournal recover {space}`",
        )
    return HeadBehind(
        f"the branch is at entry {branch.seq}, the published head is entry {head.seq} only: etcd was restored from an"
        " older time",
        f"space {space}",
        f"run `coordjournal recover {space}`, which shows what there is",
    )
