"""The appends of one space on their way through one process of a host.

Each step is a method of `Lane` and is described, with what may happen between each two, in
`docs/architecture.md`; one thread a lane drives them.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Final, NamedTuple, Protocol

import msgspec

from coordjournal.authority.spool import Spool
from coordjournal.commit import Group, Outcome
from coordjournal.entry import Append, Receipt
from coordjournal.errors import Closed, CoordJournalError, OperatorNeeded, Unavailable, Undecided
from coordjournal.events import OverlaySet, PagesMerged
from coordjournal.replica import Replica
from coordjournal.retry import HEAD_MOVED
from coordjournal.store import EMBEDDED, HeadMoved, Store

_MAX_WAITING: Final = 1 << 16  # appends of one space; more are refused at once
_MAX_WAITING_BYTES: Final = 256 << 20  # about so much in memory
_MAX_GROUP: Final = 1024  # appends
_MAX_GROUP_BYTES: Final = 8 << 20  # about so much in memory, and one more append
_IDLE_SECONDS: Final = 2.0  # a space's thread ends when it had nothing to do for so long

logger = logging.getLogger(__name__)


class Waiting(NamedTuple):
    """An append, and the future that its caller holds."""

    append: Append
    future: AppendFuture


class Withdrawing(Protocol):
    """What can take an append back."""

    @property
    def trouble(self) -> str:
        """What keeps appends from being decided, as far as that is known."""

    def withdraw(self, future: AppendFuture) -> bool:
        """Take an append back, so that nobody will judge it; false if somebody does, or did."""


class AppendFuture(Future[Receipt]):
    """A future that can be cancelled as long as nobody, in any process, has taken its append on."""

    def __init__(self, lane: Withdrawing, key: str = "") -> None:
        super().__init__()
        self.key = key
        self.cancel_seconds = 1.0  # how long `cancel` may wait for other processes, at the most
        self._lane = lane

    @property
    def trouble(self) -> str:
        """What keeps the append from being decided, as far as that is known."""
        return self._lane.trouble

    def cancel(self) -> bool:
        if self.cancelled():
            return True
        if not (self._lane.withdraw(self) and super().cancel()):
            return False
        self.set_running_or_notify_cancel()  # tells those who wait for many futures that this one is done
        return True


class Pulse:
    """Wakes all that wait for it, each time it beats."""

    def __init__(self) -> None:
        self._beat = threading.Event()

    def wait(self, seconds: float) -> None:
        self._beat.wait(seconds)

    def beat(self) -> None:
        beat, self._beat = self._beat, threading.Event()
        beat.set()


class Lane:
    """The appends of one space on their way through this process, and the thread that takes them."""

    def __init__(self, space: str, store: Store, replica: Callable[[str], Replica], spool: Spool | None) -> None:
        self.published = Pulse()
        self.trouble = ""
        self._spool = spool
        self._intent = ""  # what lies in the spool, and whose it is; guarded by `_work`
        self._left: list[Waiting] = []
        self._space = space
        self._store = store
        self._replica = replica
        self._work = threading.Condition()
        self._waiting: deque[Waiting] = deque()
        self._waiting_bytes = 0
        self._thread: threading.Thread | None = None
        self._closing = False
        self._running: list[Waiting] = []  # taken on, and not decided yet
        self._left_after = 0  # the seq that the head had when the intent was left

    def put(self, waiting: Waiting) -> None:
        with self._work:
            if self._closing:
                raise Closed("the log was closed; open another one")
            if len(self._waiting) >= _MAX_WAITING or self._waiting_bytes >= _MAX_WAITING_BYTES:
                raise Unavailable(
                    f"{len(self._waiting):,} appends to space {self._space} wait already; try again later"
                )
            self._waiting.append(waiting)
            self._waiting_bytes += rough_bytes(waiting.append)
            if self._thread is None:
                name = f"coordjournal-{self._space}"
                self._thread = threading.Thread(target=self._run, name=name, daemon=True)
                self._thread.start()
            elif len(self._waiting) == 1:
                self._work.notify_all()

    def close(self, seconds: float) -> None:
        with self._work:
            self._closing = True
            self._work.notify_all()
            # Not for the thread itself: it may wait for another process's lock, with nothing left to do.
            self._work.wait_for(lambda: not (self._waiting or self._left or self._running), seconds)
            queued, self._waiting = list(self._waiting), deque()
            left, self._left = self._left, []
            taken = self._is_taken()
            self._intent = ""
            for waiting in left + queued:
                waiting.future.set_running_or_notify_cancel()
        closed = Closed("the log was closed before the append was taken on")
        undecided = Undecided("the log was closed while another process had the append; try the same key again")
        _tell(left, [undecided if taken else closed] * len(left))
        _tell(queued, [closed] * len(queued))

    def _run(self) -> None:
        while self._await_work():
            try:
                self._serve()
            except Exception as error:
                logger.exception("space %s: a group of appends failed", self._space)
                refusal = Unavailable(f"nothing can be appended to space {self._space}: {error!r}")
                refusal.__cause__ = error
                self._refuse(refusal)
            with self._work:
                self._running = []
                self._work.notify_all()

    def _await_work(self) -> bool:
        with self._work:
            if not self._waiting and not self._closing:
                self._work.wait(_IDLE_SECONDS)
            if not self._waiting:
                self._thread = None
                return False
            return True

    def withdraw(self, future: AppendFuture) -> bool:
        """Take an append back, so that nobody will judge it; false if somebody does, or did.

        False too if another attempt under its key may be applied: then it is not certain that the append
        is not.
        """
        with self._work:
            others = [waiting for waiting in (*self._running, *self._left) if waiting.future is not future]
            for waiting in self._waiting:
                if waiting.future is future:
                    if any(other.append.key == waiting.append.key for other in others):
                        return False
                    self._waiting.remove(waiting)
                    self._waiting_bytes -= rough_bytes(waiting.append)
                    return True
            rest = [waiting for waiting in self._left if waiting.future is not future]
            if len(rest) == len(self._left):
                return False
            if self._intent and self._spool is not None and not self._spool.withdraw(self._intent):
                return False
            self._leave_intent(rest)
            return True

    def _serve(self) -> None:
        """Take one group through; or leave it to the process that has the space's lock, and then look."""
        try:
            self._store.claim(EMBEDDED)
            with self._store.exclusive(self._space, wait=self._spool is None) as mine:
                if mine:
                    self._lead([])
            if not mine and self._leave():
                with self._store.exclusive(self._space):
                    group, taken = self._collect()
                    self._lead(group, taken=taken)
        except CoordJournalError as error:
            self._refuse(error)
            return
        self._replica(self._space).settle()

    def _leave(self) -> bool:
        """Leave what has gathered as an intent; false if it was all withdrawn."""
        with self._work:
            self._left_after = self._store.head(self._space).seq
            self._leave_intent(self._gather(take_on=False))
            return bool(self._left)

    def _leave_intent(self, group: list[Waiting]) -> None:
        self._left, self._intent = group, ""
        if group and self._spool is not None:
            try:
                self._intent = self._spool.leave([waiting.append for waiting in group])
            except OSError as error:  # a full disk, as a rule: then the lock is waited for, as without a spool
                logger.warning("space %s: no intent can be left: %s", self._space, error)

    def _is_taken(self) -> bool:
        """Whether another process has taken our intent on; if not, it is withdrawn, so that none will."""
        if not self._intent or self._spool is None or self._spool.withdraw(self._intent):
            return False
        self._spool.forget(self._intent)
        return True

    def _collect(self) -> tuple[list[Waiting], bool]:
        """Give the callers what another process decided.

        Returns what is still to be decided, and whether another process had taken it on and may have
        appended it before it died.
        """
        outcomes, taken = None, False
        with self._work:
            if self._spool is not None and self._intent:
                outcomes, taken = self._spool.collect(self._intent)
            group, self._left, self._intent = self._left, [], ""
            self._running = list(group)
            for waiting in group:
                waiting.future.set_running_or_notify_cancel()
        if outcomes is None or len(outcomes) != len(group):
            return group, taken
        _tell(group, outcomes)
        return [], False

    def _lead(self, group: list[Waiting], *, taken: bool = False) -> None:
        """Decide, under the space's lock, the appends `group`, those of the queue and those in the spool."""
        try:
            self._store.claim(EMBEDDED)  # again, since another process may have changed whose it is
        except Exception as error:
            undecided = Undecided(f"another process may have appended it, but it is not to be known: {error}")
            refusal = error if isinstance(error, CoordJournalError) else Unavailable(f"nothing is appended: {error!r}")
            _tell(group, [undecided if taken else refusal] * len(group))
            raise
        left = {waiting.append.key: self._left_after for waiting in group if taken}
        group = group + self._gather()
        if not group:
            return
        try:
            self._decide(group, left)
        except Exception as error:  # a fault of ours must not leave callers waiting for ever
            logger.exception("space %s: a group of appends failed", self._space)
            undecided = Undecided(f"it is not known what became of the append: {error!r}")
            undecided.__cause__ = error
            told = [waiting for waiting in group if not waiting.future.done()]
            _tell(told, [undecided] * len(told))

    def _gather(self, *, take_on: bool = True) -> list[Waiting]:
        group: list[Waiting] = []
        size = 0
        with self._work:
            while self._waiting and len(group) < _MAX_GROUP and size < _MAX_GROUP_BYTES:
                waiting = self._waiting.popleft()
                self._waiting_bytes -= rough_bytes(waiting.append)
                size += rough_bytes(waiting.append)
                if take_on:
                    self._running.append(waiting)
                    waiting.future.set_running_or_notify_cancel()
                group.append(waiting)
        return group

    def _refuse(self, error: Exception) -> None:
        """Give what has gathered the reason for which nothing can be appended now."""
        with self._work:
            left, self._left = self._left, []
            taken = self._is_taken()
            self._intent = ""
            for waiting in left:
                waiting.future.set_running_or_notify_cancel()
        undecided = Undecided(f"another process may have appended it, but it is not to be known: {error}")
        _tell(left, [undecided if taken else error] * len(left))
        queued = self._gather()
        _tell(queued, [error] * len(queued))

    def _decide(self, group: list[Waiting], left: dict[str, int]) -> None:
        asked = [waiting.append for waiting in group]
        taken: list[tuple[str, int]] = []
        for name, appends in self._take_others(sum(map(rough_bytes, asked))):
            taken.append((name, len(appends)))
            asked += appends
        outcomes = self._outcomes(asked, left, len(group))
        at = len(group)
        for name, count in taken:
            self._tell_other(name, outcomes[at : at + count])
            at += count
        _tell(group, outcomes[: len(group)])
        self.published.beat()

    def _take_others(self, size: int) -> Iterator[tuple[str, list[Append]]]:
        """Yield what other processes left, up to a group's size; it has `size` bytes already."""
        if self._spool is None:
            return
        try:
            for name, appends in self._spool.take() if size < _MAX_GROUP_BYTES else ():
                yield name, appends
                size += sum(map(rough_bytes, appends))
                if size >= _MAX_GROUP_BYTES:
                    return
        except OSError as error:
            logger.warning("space %s: the intents of other processes cannot be read: %s", self._space, error)

    def _tell_other(self, name: str, outcomes: list[Outcome]) -> None:
        """Leave the outcomes of another process's intent; what is not decided it decides itself."""
        assert self._spool is not None
        if any(isinstance(outcome, (Unavailable, Undecided, OperatorNeeded)) for outcome in outcomes):
            return
        forwarded = [
            msgspec.structs.replace(outcome, via="forwarded") if isinstance(outcome, Receipt) else outcome
            for outcome in outcomes
        ]
        self._spool.decide(name, forwarded)

    def _outcomes(self, asked: list[Append], left: dict[str, int], checked: int) -> list[Outcome]:
        try:
            outcomes: list[Outcome] = HEAD_MOVED(self._commit, asked, left, checked)
        except HeadMoved:
            moved = Unavailable(f"the branch {self._space} is moved by others again and again; try again")
            return [moved] * len(asked)
        except CoordJournalError as error:
            return [error] * len(asked)
        return outcomes

    def _commit(self, asked: list[Append], left: dict[str, int], checked: int) -> list[Outcome]:
        replica = self._replica(self._space)
        base = self._store.head(self._space)
        group = Group(asked, replica, base, left, range(checked, len(asked)))
        group.judge()
        if group.repeats:
            self._store.confirm(self._space)  # a receipt leaves only for what a power cut does not take back
        failure: CoordJournalError | None = None
        if group.ready:
            try:
                group.write(self._store, self._space, base.term)
                self._store.advance(self._space, base, group.written[-1].head)
                replica.accept(group.written, group.state)
            except (Unavailable, Undecided) as error:
                failure = error
        return group.outcomes(self._space, failure)


def _tell(group: Sequence[Waiting], outcomes: Sequence[Receipt | Exception]) -> None:
    for waiting, outcome in zip(group, outcomes, strict=True):
        if isinstance(outcome, Receipt):
            waiting.future.set_result(outcome)
        else:
            waiting.future.set_exception(copy.copy(outcome))  # each its own, since a raise changes it


def rough_bytes(append: Append) -> int:
    """Return about how much memory an append takes, before it was checked."""
    size = 512 * len(append.events)
    for event in append.events:
        if isinstance(event, OverlaySet):
            size += len(str(event.body))
        elif isinstance(event, PagesMerged):
            size += len(str(event.sources))
    return size
