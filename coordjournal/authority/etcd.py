"""The authority that etcd elects: one holder a space, everybody else forwards to it.

This module drives: a few threads for the spaces that have something to do (`workers`), one that keeps the
session alive and looks after the rest, and the watch's. The protocol's steps are in `member`, `tenure` and
`forwarding`, what is read of heads in `reading`.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Final

from coordjournal.authority import Consistency
from coordjournal.authority.member import IDLE_SECONDS, Member
from coordjournal.authority.node import Node
from coordjournal.authority.reading import Reading
from coordjournal.authority.rescan import Rescan
from coordjournal.authority.wire import range_of, session_of
from coordjournal.authority.workers import Workers
from coordjournal.entry import Append, Head, Receipt
from coordjournal.errors import Closed, CoordJournalError, Unavailable
from coordjournal.etcd import Change, EtcdError, Watcher

_RESCAN_SECONDS: Final = 5.0
_MAX_MEMBERS: Final = 4096  # spaces in hand; others' appends to more wait until some are done with
_CROWDED_SECONDS: Final = 1.0  # a space that was not used for so long gives way then
_REMEMBERED_SECONDS: Final = 600.0  # a space's late receipts are
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
        self._pins: dict[str, int] = {}  # who is at work with a member, which therefore stays
        self._next_intent = 1  # above those of all members that were dropped
        self._workers = Workers(self._step)
        self._stuck: dict[Member, bool] = {}  # whether its space has been let go
        self._rescanner = Rescan(node)
        self._keeper: threading.Thread | None = None
        self._pid = 0  # of the process whose session it is
        self._stop = threading.Event()
        self._reading = Reading(node, self._stop)
        self._watcher: Watcher | None = None
        self._intent_watches: dict[str, int] = {}
        self._renew_at = 0.0
        self._rescan_at = 0.0
        self._balance_at = 0.0

    # The port.

    def head(
        self, space: str, seconds: float = 10.0, consistency: Consistency = "linearizable", after: int = 0
    ) -> Head:
        return self._reading.head(space, seconds, consistency, after)

    def age(self, space: str) -> float | None:
        return self._reading.age(space)

    def submit(self, space: str, append: Append) -> Future[Receipt]:
        with self._pinned(space) as member:
            future = member.submit(append)
        future.add_done_callback(lambda done: self._reading.acknowledged(space, done))
        return future

    def wait(self, space: str, seen: Head, seconds: float) -> None:
        self._start()
        self._reading.wait(space, seen, seconds)

    def close(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        with self._lock:
            first, self._closed = not self._closed, True
            members = list(self.members.values())
        if not first:
            return
        try:
            self._end(members, deadline)
        finally:
            self._end_session(deadline)

    def _end(self, members: Sequence[Member], deadline: float) -> None:
        """Answer all callers, and end the threads."""
        for member in members:
            member.intake.close()
        for member in members:
            if not member.wait_idle(max(0.0, deadline - time.monotonic())):
                member.intake.abandon()
        self._stop.set()
        self._reading.wake()
        self._workers.stop(max(0.1, deadline - time.monotonic()))
        if self._keeper is not None:
            self._keeper.join(max(0.1, deadline - time.monotonic()))
        if self._watcher is not None:
            self._watcher.close()

    def _end_session(self, deadline: float) -> None:
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
            with self._pinned(space) as member:
                member.keep = True
                member.need()
        self._start()

    def member(self, space: str) -> Member:
        """Return this process's part in a space; it is forgotten when it is not used for a while."""
        with self._pinned(space) as member:
            return member

    @contextmanager
    def _pinned(self, space: str) -> Iterator[Member]:
        """Return this process's part in a space, which is not forgotten meanwhile."""
        self._start()
        with self._lock:
            if self._closed:
                raise Closed("the log was closed; open another one")
            member = self.members.get(space)
            if member is None:
                member = self.members[space] = self._made(space)
            self._pins[space] = self._pins.get(space, 0) + 1
        try:
            yield member
        finally:
            with self._lock:
                others = self._pins.pop(space) - 1
                if others:
                    self._pins[space] = others

    def _made(self, space: str) -> Member:
        return Member(self.node, space, self._kick, first_intent=self._next_intent)

    def _drop(self, member: Member) -> None:
        """Forget a member, unless something has come up."""
        with self._lock:
            if member.spare and not (member.space in self._pins or member.space in self._intent_watches):
                del self.members[member.space]
                self._next_intent = max(self._next_intent, member.next_intent)

    def _start(self) -> None:
        """Begin to watch and to keep the session. Raises `Unavailable` if the system has no thread for it."""
        if not self._threads:
            return
        with self._lock:
            if self._keeper is not None or self._closed:
                return
            keeper = threading.Thread(target=self._keep, name="coordjournal-keeper", daemon=True)
            try:
                if self._watcher is None:
                    self.watch()
                keeper.start()
            except (RuntimeError, MemoryError) as error:
                raise Unavailable(f"no thread can be begun: {error}") from error
            self._keeper, self._pid = keeper, os.getpid()
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
        if self._threads:
            self._workers.kick(member)

    def _step(self, member: Member) -> float | None:
        delay = member.step()
        self._stepped(member)
        return delay

    def _stepped(self, member: Member) -> None:
        """Watch the intents of a space while it is held."""
        held = member.tenure is not None
        if held == (member.space in self._intent_watches) or self._watcher is None or self.node.role == "holder":
            return
        if held:
            first, end = range_of(self.node.keys.intents_of(member.space))
            try:
                self._intent_watches[member.space] = self._watcher.add(first, end, lambda _: member.hint_intents())
            except EtcdError:
                logger.info("space %s: its intents are not watched, the log is being closed", member.space)
        else:
            self._watcher.remove(self._intent_watches.pop(member.space))

    # What the watch tells: hints, each of which a rescan would find as well.

    def watch(self) -> None:
        """Begin to watch who holds what, and for outcomes."""
        keys, watcher = self.node.keys, self.node.etcd.watcher()
        watcher.add(*range_of(keys.holders), self._told_holders)
        watcher.add(*range_of(keys.successors), self._told_successors)
        watcher.add(*range_of(keys.outcomes_of(self.node.id)), self._told_outcomes)
        if self.node.role == "holder":
            watcher.add(*range_of(keys.intents), self._told_intents)
        self._watcher = watcher
        self._reading.watch(watcher)

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
            if session == self.node.id and not self._closed:
                with self._pinned(space) as member:
                    member.hint_successor(session)
            elif (asked := self.members.get(space)) is not None:
                tenure = asked.tenure
                if tenure is None or kv.mod_revision > tenure.created:  # else the holder before was asked
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
            member = self.members.get(space or "")
            if space is not None and not (member is not None and member.held_elsewhere):
                self._waiting_in(space)  # what names no space, the next rescan sweeps

    def _waiting_in(self, space: str) -> bool:
        """Note that intents may wait in a space: for its holder, or for one who would be.

        False if this process looks after so many that one more has to wait.
        """
        member = self.members.get(space)
        if member is not None and member.tenure is not None:
            member.hint_intents()
        elif self.node.role == "holder" and not self._closed:
            if member is None and self._crowded:
                return False
            with self._pinned(space) as needed:
                needed.need()
        return True

    @property
    def _crowded(self) -> bool:
        return len(self.members) >= _MAX_MEMBERS

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
        except Closed:
            pass
        except EtcdError as error:
            logger.info("etcd does not answer the keeper: %s", error)
        except CoordJournalError as error:
            logger.warning("the keeper: %s", error)
        except Exception:
            logger.exception("the keeper's round failed; it goes on")
        self._look_after(now)
        self._workers.mind()
        return min(1.0, self.node.session.ttl / 6)

    def _renew(self) -> None:
        if not self.node.renew():
            logger.warning("session %s has lost its lease; it is opened anew, with another one", self.node.id)
            self.node.ensure_session()
            for member in list(self.members.values()):
                member.hint_holder(None)

    def _rescan(self) -> None:
        """Find what no watch told: intents that wait, holders' keys of ours that we do not serve, a session's loss."""
        self.node.doubt_session()
        if not self.node.session.created:
            logger.warning("the key of session %s is gone, as after a recovery; it is put anew", self.node.id)
            self.node.ensure_session()
        mine = self.node.id.encode()
        held = self._rescanner.held()
        for space, holder in held.items():
            if holder == mine:
                with self._pinned(space) as ours:
                    if ours.tenure is None and ours.idle:
                        ours.need()
        serves = self.node.role == "holder" or mine in held.values()
        for spaces in self._rescanner.waiting(held, sweep=serves):
            for space in spaces:
                if held.get(space, mine) == mine and not self._waiting_in(space):
                    self._rescanner.stop_at(space)
                    return
        if not self._rescanner.whole:
            self._rescan_at = 0.0

    def _look_after(self, now: float) -> None:
        balance = now >= self._balance_at
        if balance:
            self._balance_at = now + _BALANCE_SECONDS
        for member in list(self.members.values()):
            if member.holds:
                self._look_after_held(member, now, balance=balance)
            else:
                self._stuck.pop(member, None)
                kept = _REMEMBERED_SECONDS if member.intake.remembers else IDLE_SECONDS
                if member.spare and member.unused_for > (_CROWDED_SECONDS if self._crowded else kept):
                    self._drop(member)
        self._reading.forget()

    def _look_after_held(self, member: Member, now: float, *, balance: bool) -> None:
        since = member.busy_since
        seconds = max(0.0 if since is None else now - since, self._workers.waits(member))
        if seconds > 2 * self.node.session.ttl:
            self._let_go(member, seconds)
            return
        self._stuck.pop(member, None)
        if member.keep:
            return
        if member.unused_for > IDLE_SECONDS:
            self._kick(member)
        elif self._crowded and member.idle and member.unused_for > _CROWDED_SECONDS:
            member.hint_successor("")
        elif balance and self.node.role != "holder" and (busiest := member.busiest()):
            member.hint_successor(busiest)

    def _let_go(self, member: Member, seconds: float) -> None:
        """Let go of a space whose worker is stuck; once that is done, there is nothing more to do."""
        if member not in self._stuck:
            logger.error("space %s: no progress for %.0f s; it is let go", member.space, seconds)
            self._stuck[member] = False
        if not self._stuck[member]:
            try:
                member.revoke()
                self._stuck[member] = True
            except EtcdError as error:
                logger.warning("space %s cannot be let go: %s", member.space, error)
