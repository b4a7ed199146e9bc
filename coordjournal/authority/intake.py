"""The callers' side of one space under etcd: what waits, what is remembered of it, and what is to be taken back.

Callers' threads meet the worker here, the one thread that takes the member's steps at the time, under one
lock. It is never held while etcd or the log is asked; `take_back_next` alone asks them at all.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Final

import msgspec

from coordjournal.authority.forwarding import Asked, Forwarding, Sent
from coordjournal.authority.lane import AppendFuture, rough_bytes
from coordjournal.authority.node import Node
from coordjournal.entry import Append, Receipt
from coordjournal.errors import Closed, CoordJournalError, Unavailable, Undecided

_MAX_WAITING: Final = 1 << 16  # appends of one space; more are refused at once
_MAX_WAITING_BYTES: Final = 256 << 20  # about so much in memory
_MAX_GROUP: Final = 1024  # own appends
_MAX_GROUP_BYTES: Final = 8 << 20
_MAX_RECEIPTS: Final = 4096  # that are remembered for those who wait under the same key
_LOOKS: Final = 8
_LOOK_SECONDS: Final = 0.00025


class Intake:
    """The appends that this process's callers asked for in one space, until each is sent, published or answered.

    An append is in the queue, then in `judging`, then in an intent of `forwarding` or in what `publishing`
    returns; or it is in the queue again. So all attempts under one key are known here.

    `kick` is called when there is something to do, without the lock; it must not block. Some futures are told
    under the lock. It is reentrant, since what they call then notes the outcome here.
    """

    def __init__(
        self,
        node: Node,
        space: str,
        forwarding: Forwarding,
        publishing: Callable[[], Sequence[Asked]],
        kick: Callable[[], None],
    ) -> None:
        self.judging: list[Asked] = []  # taken from the queue, and neither sent nor decided; the worker's
        self.closed = False
        self._node = node
        self._space = space
        self._forwarding = forwarding
        self._publishing = publishing
        self._kick = kick
        self._lock = threading.Condition()  # notified after each step
        self._queue: deque[Asked] = deque()
        self._queue_bytes = 0
        self._withdrawals: list[tuple[Asked, CoordJournalError | None]] = []
        self._undecided: OrderedDict[str, bool] = OrderedDict()  # keys; whether not even the log can tell
        self._forgot = False  # whether there were more of them
        self._receipts: OrderedDict[str, tuple[int, Receipt]] = OrderedDict()  # by key, with what was appended

    # What any thread may look at, without the lock: it may have changed by the next line.

    @property
    def waiting(self) -> int:
        """How many appends are in the queue."""
        return len(self._queue)

    @property
    def to_take_back(self) -> bool:
        """Whether something is to be taken back."""
        return bool(self._withdrawals)

    @property
    def doubts(self) -> bool:
        """Whether it remembers keys of which this process does not know whether they were appended."""
        return bool(self._undecided) or self._forgot

    @property
    def remembers(self) -> bool:
        """Whether it has receipts that it can tell again."""
        return bool(self._receipts)

    # What callers' threads call, without the lock.

    def take_on(self, append: Append, future: Future[Receipt]) -> None:
        """Put an append into the queue. Raises `Unavailable` if too many wait, `Closed`."""
        asked = Asked(append, future)
        future.add_done_callback(lambda _: self._note_outcome(asked))
        with self._lock:
            if self.closed:
                raise Closed("the log was closed; open another one")
            if len(self._queue) >= _MAX_WAITING or self._queue_bytes >= _MAX_WAITING_BYTES:
                raise Unavailable(f"{len(self._queue):,} appends to space {self._space} wait already; try again later")
            asked.again = self._forgot or append.key in self._undecided
            asked.doubtful = self._undecided.get(append.key, False)
            self._enqueue(asked)
        self._kick()

    def withdraw(self, future: AppendFuture, seconds: float) -> bool:
        """Take an append back so that it certainly is not applied; false if that is not certain.

        Waits for so many seconds at the most for the worker, where it was sent or may have been applied.
        """
        taken_back = self._try_to_withdraw(future, seconds)
        if not (taken_back or future.done()):
            self.note_undecided(future.key)  # as its caller is about to be told
        return taken_back

    def _try_to_withdraw(self, future: AppendFuture, seconds: float) -> bool:
        with self._lock:
            queued = next((asked for asked in self._queue if asked.future is future), None)
            if queued is not None and self._tell_receipt(queued):
                self._unqueue(queued)
                return False
            asked = queued or next((asked for asked in self._under_way() if asked.future is future), None)
            if asked is None or self._has_fellow(asked):
                return False
            asked.given_up = True
            if queued is not None and not self._may_be_applied(queued):
                self._unqueue(queued)
                return True
            self._withdrawals.append((asked, None))
        self._kick()
        with self._lock:
            self._lock.wait_for(lambda: asked.withdrawn or future.done(), seconds)
            asked.abandoned = not asked.withdrawn
            if asked.withdrawn and self._has_fellow(asked):
                asked.tell(_undecided("it was taken back, but another attempt under its key is on its way"))
            return asked.withdrawn

    def note_undecided(self, key: str, *, doubtful: bool = False) -> None:
        """Remember a key whose caller was told that it is not known: the next attempt under it is no first one."""
        with self._lock:
            self._undecided[key] = doubtful or self._undecided.get(key, False)
            if len(self._undecided) > _MAX_WAITING:
                self._undecided.popitem(last=False)
                self._forgot = True

    def _note_outcome(self, asked: Asked) -> None:
        """Remember what a caller was told; whoever tells it calls this, with the lock or without."""
        if asked.future.cancelled():
            return
        error = asked.future.exception()
        if error is None:
            with self._lock:
                self._receipts[asked.append.key] = _content(asked.append), asked.future.result()
                if len(self._receipts) > _MAX_RECEIPTS:
                    self._receipts.popitem(last=False)
        elif isinstance(error, Undecided):
            self.note_undecided(asked.append.key, doubtful=asked.doubtful)

    def close(self) -> None:
        """Take nothing on any more."""
        with self._lock:
            self.closed = True
        self._kick()

    def wait_for(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until a condition, looked at under the lock after each step, is true; whether it is."""
        with self._lock:
            return self._lock.wait_for(condition, seconds)

    def abandon(self) -> None:
        """Answer everything that is still on its way, at the close."""
        with self._lock:
            queued, under_way = list(self._queue), self._under_way()
            self._queue.clear()
            self._queue_bytes = 0
        self.tell_all(queued, Closed("the log was closed before the append was taken on"))
        for asked in under_way:
            asked.tell(_undecided("the log was closed while the append was on its way"))

    # What the worker calls, one thread at a time, without the lock.

    def await_more(self) -> None:
        """Wait a moment while appends keep coming: the callers of the last group are on their way with the next.

        Measured with 32 threads: groups of 31 in the place of 16, and a quarter more appends a second.
        """
        before = -1
        for _ in range(_LOOKS):
            if before == (before := len(self._queue)):
                return
            time.sleep(_LOOK_SECONDS)

    def gather(self, choose: Callable[[Iterable[Asked]], list[Asked]] | None = None) -> list[Asked]:
        """Take the next ones from the queue: a group, or those that `choose` chooses, which are its first.

        They are in `judging` until `done`, `requeue` or `tell_all`.
        """
        with self._lock:
            own = (choose or group)(self._queue)
            for _ in own:
                self._queue_bytes -= rough_bytes(self._queue.popleft().append)
            self.judging = own
        return own

    def done(self) -> None:
        """Note that what was gathered is sent or decided."""
        self.judging = []

    def requeue(self, asked: Iterable[Asked]) -> None:
        """Put appends back, ahead of newer ones. What is to be taken back is, or is looked up first."""
        with self._lock:
            self.judging = []  # here, so that at no moment an append is nowhere
            back: list[Asked] = []
            for item in reversed(list(asked)):
                if item.given_up and not self._may_be_applied(item):
                    back.append(item)
                    continue
                self._enqueue(item, front=True)
                if item.given_up and all(asked is not item for asked, _ in self._withdrawals):
                    self._withdrawals.append((item, None))
            for item in back:  # when its fellows are in the queue again
                self._take_back(item)

    def requeue_gone(self) -> None:
        """Put back what was forwarded and is to be submitted anew."""
        self.requeue(self._forwarding.gone)
        self._forwarding.gone = []

    def tell_all(self, taken: Sequence[Asked], error: CoordJournalError) -> None:
        """Answer with an error what was taken from the queue and is certain not to be applied any more."""
        self.judging = []
        with self._lock:
            fellows = {other.append.key for other in (*self._queue, *self._under_way())} if taken else set()
        for asked in taken:
            certain = not (self._may_be_applied(asked) or asked.append.key in fellows)
            if certain and self._tell_receipt(asked):
                continue
            asked.tell(error if certain else _undecided(str(error)))

    def fail(self, error: CoordJournalError) -> None:
        """Answer with an error what waits, and take back what was forwarded."""
        self.tell_all(self.gather(), error)
        with self._lock:
            noted = {id(asked) for asked, _ in self._withdrawals}
            under_way = [asked for sent in self._open for asked in sent.asked]
            self._withdrawals += [(asked, error) for asked in under_way if id(asked) not in noted]

    def take_back_next(self) -> bool:
        """Take appends back, all of one intent together; false if there was nothing that it could do.

        Raises `EtcdError`, `Unavailable`, `OperatorNeeded`: then all of it stays to be taken back.
        """
        with self._lock:
            wanted, self._withdrawals = self._withdrawals, []
        try:
            return self._take_back_some(wanted)
        except BaseException:
            with self._lock:
                self._withdrawals = wanted + self._withdrawals
            raise

    def _take_back_some(self, wanted: Sequence[tuple[Asked, CoordJournalError | None]]) -> bool:
        open_ = {id(asked): sent for sent in self._open for asked in sent.asked}
        reasons = {id(asked): reason for asked, reason in wanted}
        done: Sent | None = None
        keep: list[tuple[Asked, CoordJournalError | None]] = []
        victims: list[Asked] = []
        for asked, reason in wanted:
            sent = open_.get(id(asked))
            if sent is not None and done in (None, sent):
                done = sent
                victims.append(asked)
            elif sent is not None:
                keep.append((asked, reason))
            elif not asked.future.done() and asked in self._queue:
                self._look_up_queued(asked, reason)
        if done is None:
            return False
        self._forwarding.withdraw(done, victims)
        for asked in victims:
            reason = reasons[id(asked)]
            if asked.withdrawn:
                with self._lock:
                    self._take_back(asked, reason)
            elif not asked.future.done() and any(asked in s.asked for s in self._open):
                keep.append((asked, reason))
        with self._lock:
            self._withdrawals += keep
        return True

    def _look_up_queued(self, asked: Asked, reason: CoordJournalError | None) -> None:
        """Take back what waits again after an attempt that may have been applied: the log tells."""
        _, found = self._node.published(self._space, 3.0)
        with self._lock:
            if asked not in self._queue:
                return
            self._unqueue(asked)
        self._forwarding.look_up(asked, found)
        if asked.withdrawn:
            with self._lock:
                self._take_back(asked, reason)

    def stepped(self) -> None:
        """Have those who wait look again: a step is done."""
        with self._lock:
            self._lock.notify_all()

    # What is called with the lock.

    def _enqueue(self, asked: Asked, *, front: bool = False) -> None:
        (self._queue.appendleft if front else self._queue.append)(asked)
        self._queue_bytes += rough_bytes(asked.append)

    def _unqueue(self, asked: Asked) -> None:
        self._queue.remove(asked)
        self._queue_bytes -= rough_bytes(asked.append)

    def _take_back(self, asked: Asked, reason: CoordJournalError | None = None) -> None:
        """Note that an append certainly was not applied, and tell its caller unless it is waiting for just that."""
        if self._tell_receipt(asked):
            return
        asked.withdrawn = True
        if reason is not None or asked.abandoned:
            why = reason or Unavailable(f"the append to space {self._space} was taken back in time")
            asked.tell(_undecided(str(why)) if self._has_fellow(asked) else why)

    def _has_fellow(self, asked: Asked) -> bool:
        """Whether another attempt of this process under the same key may yet be applied."""
        key = asked.append.key
        return any(other is not asked and other.append.key == key for other in (*self._queue, *self._under_way()))

    def _under_way(self) -> list[Asked]:
        """Return what this process has sent or is publishing, and is not decided."""
        sent = [asked for sent in self._open for asked in sent.asked]
        return [*sent, *self.judging, *self._publishing(), *self._forwarding.gone]

    # What the worker calls without the lock as well: it tells of one moment only.

    @property
    def _open(self) -> list[Sent]:
        return list(self._forwarding.open.values())

    def _may_be_applied(self, asked: Asked) -> bool:
        """Whether an attempt under its key may have been applied, this one or another that was told so meanwhile."""
        return asked.may_be_applied or asked.append.key in self._undecided

    def _tell_receipt(self, asked: Asked) -> bool:
        """Give the caller the receipt that this process has for the same append; false if it has none."""
        content, receipt = self._receipts.get(asked.append.key, (0, None))
        if receipt is None or content != _content(asked.append):
            return False
        asked.tell(msgspec.structs.replace(receipt, duplicate=True))
        return True


def group(waiting: Iterable[Asked]) -> list[Asked]:
    """Return those of the appends that wait that a holder judges together."""
    chosen: list[Asked] = []
    size = 0
    for asked in waiting:
        if size >= _MAX_GROUP_BYTES or len(chosen) == _MAX_GROUP:
            break
        chosen.append(asked)
        size += rough_bytes(asked.append)
    return chosen


def _content(append: Append) -> int:
    """Return what two appends under one key have in common if they are the same."""
    return hash((append.events, append.actor))


def _undecided(why: str) -> Undecided:
    return Undecided(f"{why}; it is not known whether it was appended: try the same key again")
