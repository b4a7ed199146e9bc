"""The intents of one process in one space: sent, asked about, withdrawn.

Each method is one step of the protocol, with one transaction that counts; `docs/authority.md` says what may
happen between each two. Nothing here waits or starts a thread.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Final

import msgspec

from coordjournal.authority.node import Node, Presence, one
from coordjournal.authority.tenure import Parted, receipt_head, roll_forward, see_no_parting
from coordjournal.authority.wire import (
    MAX_INTENT_APPENDS,
    Accepted,
    OutcomeItem,
    decode_outcome,
    encode_intent,
    range_of,
    received,
    session_of,
)
from coordjournal.commit import Outcome, key_reused
from coordjournal.entry import Append, Appended, Head, Receipt
from coordjournal.errors import CoordJournalError, Corrupt, NotFound, Undecided
from coordjournal.etcd import Compare, Delete, Get, KeyValue, Operation, OutOfSpace, Put, Refused

_MAX_SWEPT: Final = 60  # in one of etcd's transactions of 128 operations
_MAX_INTENT_BYTES: Final = 64 << 10  # of several appends; one alone may have any allowed size

logger = logging.getLogger(__name__)


class Asked:
    """An append on its way through this process, and the future that its caller holds.

    `seen` is the head's seq when it was last sent. `after` is that of an attempt that may have been
    applied without our being told: what the log has of the key after it is this append. `doubtful` is
    true if not even the log can tell, since etcd lost what it knew. `again`: another append of this
    process under its key may have been applied. `given_up`: it is to be taken back; `withdrawn`: it was,
    and certainly is not applied; `abandoned`: its caller does not wait for that.
    """

    __slots__ = ("abandoned", "after", "again", "append", "doubtful", "future", "given_up", "seen", "withdrawn")

    def __init__(self, append: Append, future: Future[Receipt]) -> None:
        self.append = append
        self.future = future
        self.seen = 0
        self.after: int | None = None
        self.doubtful = False
        self.again = False
        self.given_up = False
        self.withdrawn = False
        self.abandoned = False

    @property
    def may_be_applied(self) -> bool:
        """Whether an attempt under its key may have been applied: then only the log can say that none was."""
        return self.after is not None or self.doubtful or self.again

    def tell(self, outcome: Receipt | Exception) -> None:
        """Give the caller what became of the append."""
        if self.future.done() or not self.future.set_running_or_notify_cancel():
            return
        if isinstance(outcome, Receipt):
            self.future.set_result(outcome)
        else:
            self.future.set_exception(copy.copy(outcome))  # each its own, since a raise changes it


class Sent:
    """One intent of ours. `mod_revision` is 0 while its put is not answered."""

    def __init__(self, number: int, asked: list[Asked], session: int, era: int) -> None:
        self.number = number
        self.asked = asked
        self.era = era  # of etcd, when it was sent
        self.full = False  # etcd answered that it has no space: the put is done by now, or never
        self.session = session  # the create-revision of the session's key that the put was guarded with
        self.mod_revision = 0
        self.rewrites: dict[bytes, list[Asked]] = {}  # those that were not answered, and what they leave


class Forwarding:
    """What this process has forwarded of one space and is not decided. One thread at a time.

    `first` is the number of the first intent: of a session and a space none may come again, since outcomes stay.
    `gone` collects, in order, what is to be submitted anew: it is certain that no attempt can still be
    applied, but not always that none was (then `after` is set).
    """

    def __init__(self, node: Node, space: str, first: int = 1) -> None:
        self.open: dict[int, Sent] = {}
        self.gone: list[Asked] = []
        self.emptied: dict[int, int] = {}  # mod-revisions of intents that hold nothing any more, by number
        self.holder: str | None = None  # as last seen; empty if there was none, None if it is not known
        self.head: Head | None = None  # the published one, as last seen
        self._node = node
        self._space = space
        self.next = first

    def unanswered(self) -> Sent | None:
        """Return the intent whose put was not answered; there is at most one."""
        return next((sent for sent in self.open.values() if not sent.mod_revision), None)

    @property
    def last(self) -> Sent | None:
        """The intent that was sent last."""
        return next(reversed(self.open.values()), None)

    def send(self, asked: list[Asked], presence: Presence) -> bool:
        """Put an intent. False if the session is lost: then it is not put, and `gone` has it.

        Raises `Unanswered`: then `settle` comes next; `Refused`: then it is not put, and not open.
        """
        node, keys = self._node, self._node.keys
        number, self.next = self.next, self.next + 1
        sent = self.open[number] = Sent(number, asked, presence.created, node.era)
        self._see(asked, node.store.head(self._space).seq)
        then: list[Operation] = [
            Put(keys.intent(self._space, node.id, number), encode_intent([item.append for item in asked])),
            Get(keys.holder(self._space)),
            Get(keys.head(self._space)),
        ]
        try:
            done = node.txn(self._absent(sent), then, [])
        except Refused:
            del self.open[number]
            raise
        except OutOfSpace:
            sent.full = True
            raise
        if not done.succeeded:
            self._lose(sent, maybe=False)
            return False
        sent.mod_revision = done.revision
        self._note_holder(one(done.found[1]))
        self.note_head(one(done.found[2]))
        self._see(asked, asked[0].seen)  # what the log has of their keys by now, others appended
        return True

    def _see(self, asked: Iterable[Asked], seq: int) -> None:
        """Note that the head is at least at `seq`, or where it was last seen, when appends are sent."""
        seen = max(seq, self.head.seq if self.head is not None else 0)
        for item in asked:
            item.seen = seen

    def _absent(self, sent: Sent) -> list[Compare]:
        keys, node = self._node.keys, self._node
        return [
            Compare(keys.node(node.id), "create_revision", sent.session),
            Compare(keys.intent(self._space, node.id, sent.number), "version", 0),
        ]

    def settle(self, sent: Sent) -> None:
        """Make certain that a put that was not answered has landed, or never will. Raises `Unanswered`, `Refused`.

        A tombstone, which lives as long as this session, takes its place if it has not.
        """
        node, keys = self._node, self._node.keys
        intent, outcome = self._places(sent)
        look = [Get(intent), Get(outcome), Get(keys.head(self._space))]
        then: list[Operation] = [Put(intent, b"", node.presence().lease), *look[1:]]
        guards = [] if sent.full else self._absent(sent)  # etcd without space takes no tombstone, and needs none
        done = node.txn(guards, look if sent.full else then, look)
        self.note_head(one(done.found[2]))
        found = one(done.found[0])
        if (told := one(done.found[1])) is not None:
            self.decided(sent.number, told.value)
        elif found is not None and found.value:
            sent.mod_revision = found.mod_revision
        else:
            self._lose(sent, maybe=True)

    def ask(self) -> None:
        """Look what became of all that is open. Raises `Unanswered`, `Refused`."""
        node, keys = self._node, self._node.keys
        mine, told = (
            range_of(keys.intents_of(self._space, node.id)),
            range_of(keys.outcomes_of(node.id, self._space)),
        )
        intents, outcomes, head, holder = node.get(
            Get(*mine, only="keys"), Get(*told), Get(keys.head(self._space)), Get(keys.holder(self._space))
        )
        self.note_head(one(head))
        self._note_holder(one(holder))
        values = {kv.key: kv.value for kv in outcomes.kvs}
        waiting = {kv.key: kv for kv in intents.kvs}
        for sent in [sent for sent in self.open.values() if sent.mod_revision]:
            intent, outcome = self._places(sent)
            if outcome in values:
                self.decided(sent.number, values[outcome])
            elif intent not in waiting:
                self._lose(sent, maybe=True)  # decided, and the outcome is lost; or etcd lost the intent

    def decided(self, number: int, raw: bytes) -> bool:
        """Give the callers an outcome; false if it answers no intent of ours that is open."""
        sent = self.open.get(number)
        if sent is None:
            return False
        items = decode_outcome(raw)
        whole = items[0] if len(items) == 1 and not items[0].key else None
        by_key: dict[str, list[OutcomeItem]] = {}
        for item in items:
            by_key.setdefault(item.key, []).append(item)
        found = [(asked, whole or self._taken(by_key, asked.append.key)) for asked in sent.asked]
        if any(item is None or not self._is_so(item) for _, item in found):
            logger.warning("space %s: the outcome of intent %d does not answer it", self._space, number)
            self._lose(sent, maybe=True)
            return True
        outcomes = [(asked, received(self._space, item)) for asked, item in found if item is not None]
        parting = self._follow(outcome for _, outcome in outcomes)
        for asked, outcome in outcomes:
            self._tell(asked, outcome, parting)
        del self.open[number]
        return True

    def _is_so(self, item: OutcomeItem) -> bool:
        """Whether an outcome tells of an append what the log does; true if the log is not to be read yet."""
        if not isinstance(item, Accepted):
            return True
        try:
            stands = self._node.store.load(self._space, item.commit)
        except (Corrupt, NotFound):
            return self._node.store.patience > 0  # else it is here, since it was synced before it was published
        except CoordJournalError:
            return True  # nothing is known against it
        return (stands.key, stands.first, stands.seq, stands.term) == (item.key, item.first, item.seq, item.term)

    @staticmethod
    def _taken(by_key: dict[str, list[OutcomeItem]], key: str) -> OutcomeItem | None:
        items = by_key.get(key)
        return items.pop(0) if items else None

    def _follow(self, outcomes: Iterable[Outcome]) -> Parted | None:
        """See that the branch holds what is about to be acknowledged: its holder may have died before it moved it.

        Returns why it may not be: etcd lost it since, and the log went on without it.
        """
        receipts = [outcome for outcome in outcomes if isinstance(outcome, Receipt)]
        if not receipts:
            return None
        try:
            roll_forward(self._node, self._space, None, receipt_head(max(receipts, key=lambda receipt: receipt.seq)))
        except Parted as error:
            logger.error("space %s: what was published is not acknowledged: %s", self._space, error)
            return error
        except CoordJournalError as error:
            logger.warning("space %s: the branch stays behind the published head: %s", self._space, error)
        return None

    def _tell(self, asked: Asked, outcome: Receipt | CoordJournalError, parting: Parted | None) -> None:
        if parting is not None and isinstance(outcome, Receipt):
            asked.doubtful = True
            asked.tell(not_in_the_branch(parting))
        else:
            asked.tell(as_own(asked, outcome))

    def withdraw(self, sent: Sent, victims: Sequence[Asked]) -> None:
        """Take appends out of an intent that has landed, which keeps its turn. Raises `Unanswered`, `Refused`.

        One that is left empty gets the session's lease, and goes with the next `sweep`.
        Afterwards `withdrawn` tells of each whether it is certain that it was not applied; what else was
        decided is told. One that is neither stays open.
        """
        node, keys = self._node, self._node.keys
        intent, outcome = self._places(sent)
        rest = [asked for asked in sent.asked if asked not in victims]
        raw = encode_intent([asked.append for asked in rest])
        sent.rewrites[raw] = rest
        head = Get(keys.head(self._space))
        guard = Compare(intent, "mod_revision", sent.mod_revision)
        look = [Get(intent), Get(outcome), head]
        try:
            done = node.txn([guard], [Put(intent, raw, 0 if rest else node.presence().lease), head], look)
        except OutOfSpace:
            if rest and sent is not self.last:
                raise  # the others would be overtaken by what was sent after them
            rest = []  # etcd without space takes deletions only; the others are submitted anew
            done = node.txn([guard], [Delete(intent), head], look)
        if done.succeeded:
            self.note_head(one(done.found[1]))
            self._withdrawn(sent, rest, done.revision, victims, one(done.found[1]))
            return
        found, told, current = (one(item) for item in done.found)
        self.note_head(current)
        if told is not None:
            self.decided(sent.number, told.value)
        elif found is None:
            self._withdrawn(sent, [], 0, victims, current)
        elif found.value in sent.rewrites:  # one of ours landed, though its answer was lost
            self._withdrawn(sent, sent.rewrites[found.value], found.mod_revision, victims, current)
        else:
            sent.mod_revision = found.mod_revision

    def sweep(self) -> None:
        """Delete intents that hold nothing any more. Raises `Unanswered`, `Refused`: they go with the session then.

        Nothing of ours can land there any more: the put was answered, and each rewrite names what it found.
        """
        emptied = list(self.emptied.items())[:_MAX_SWEPT]
        for number, _ in emptied:
            del self.emptied[number]
        intents = [self._node.keys.intent(self._space, self._node.id, number) for number, _ in emptied]
        guards = [Compare(key, "mod_revision", left[1]) for key, left in zip(intents, emptied, strict=True)]
        self._node.txn(guards, [Delete(key) for key in intents])

    def _withdrawn(
        self, sent: Sent, rest: list[Asked], revision: int, victims: Sequence[Asked], head: KeyValue | None
    ) -> None:
        """Note that of an intent only `rest` is left to be decided, as of a moment at which `head` was published."""
        self._doubt(sent)
        out = [asked for asked in sent.asked if asked not in rest]
        sent.asked, sent.mod_revision, sent.rewrites = rest, revision, {}
        if not rest:
            del self.open[sent.number]
            if revision:
                self.emptied[sent.number] = revision
        for asked in out:
            if asked.after is None and not (revision and asked in victims):
                asked.after = asked.seen  # somebody has taken it on
            if asked in victims:
                self.look_up(asked, head, undone=revision != 0)
            else:
                self.gone.append(asked)

    def look_up(self, asked: Asked, published: KeyValue | None, *, undone: bool = False) -> None:
        """Tell from the log up to the published head whether an append that cannot be applied any more was.

        `undone` is true where it is certain that its last attempt was not. `withdrawn` is set if it
        certainly was not applied; its caller gets the receipt if it was.
        """
        try:
            head = self._node.read_head(self._space, published) if published is not None else Head()
            all_of_it = not asked.doubtful and head.seq >= asked.seen  # else etcd lost what it knew
            branch = self._node.store.head(self._space)
            if branch.seq > head.seq:  # others appended meanwhile, or etcd lost what it knew: it was published
                see_no_parting(self._node, self._space, branch, head)
                head = branch
            found = self._node.replica(self._space).find(asked.append.key, head) if head.seq and all_of_it else None
        except Exception as error:  # noqa: BLE001  # whatever it is, it is not certain then
            logger.warning("space %s: the log does not tell of key %s: %r", self._space, asked.append.key, error)
            all_of_it, found = False, None
        if found is not None:
            parting = self._follow([receipt_of(self._space, found)])
            self._tell(asked, answer(self._space, asked.append, found), parting)
        elif all_of_it or (undone and not asked.may_be_applied):
            asked.withdrawn = True
        else:
            asked.tell(
                Undecided(f"it is not known whether it was appended to space {self._space}; try the same key again")
            )

    def _lose(self, sent: Sent, *, maybe: bool) -> None:
        self._doubt(sent)
        for asked in sent.asked:
            if maybe and asked.after is None:
                asked.after = asked.seen
            self.gone.append(asked)
        del self.open[sent.number]

    def _doubt(self, sent: Sent) -> None:
        """Note that etcd forgot what it did since an intent was sent, if so: it may have been applied."""
        if sent.era != self._node.era:
            for asked in sent.asked:
                asked.doubtful = True

    def _places(self, sent: Sent) -> tuple[bytes, bytes]:
        keys, session = self._node.keys, self._node.id
        return keys.intent(self._space, session, sent.number), keys.outcome(session, self._space, sent.number)

    def _note_holder(self, found: KeyValue | None) -> None:
        self.holder = session_of(found.value) if found is not None else ""

    def note_head(self, found: KeyValue | None) -> None:
        """Note the published head, as it was just read."""
        try:
            self.head = self._node.read_head(self._space, found) if found is not None else Head()
        except CoordJournalError:
            self.head = None  # whoever takes the space over says what is wrong with it


def batch(waiting: Iterable[Asked]) -> list[Asked]:
    """Return those of the appends that wait that go into the next intent."""
    chosen: list[Asked] = []
    size = 0
    for asked in waiting:
        size += len(msgspec.json.encode(asked.append.events)) + 512
        if chosen and (size > _MAX_INTENT_BYTES or len(chosen) == MAX_INTENT_APPENDS):
            break
        chosen.append(asked)
    return chosen


def as_own(asked: Asked, outcome: Receipt | Exception) -> Receipt | Exception:
    """Return an outcome without `duplicate` where what the log has of the key is this very append."""
    if isinstance(outcome, Receipt) and outcome.duplicate and asked.after is not None and outcome.first > asked.after:
        return msgspec.structs.replace(outcome, duplicate=False)
    return outcome


def not_in_the_branch(parting: Parted) -> Undecided:
    """Return what a caller gets whose append was published, and the branch does not hold it."""
    return Undecided(f"it was published, and may be lost: {parting}; try the same key again afterwards")


def answer(space: str, append: Append, found: Appended) -> Outcome:
    """Return what the log says of an append whose key it has."""
    if not found.answers(append):
        return key_reused(append.key, found.first)
    return receipt_of(space, found)


def receipt_of(space: str, found: Appended) -> Receipt:
    """Return the receipt of an append that stands in the log."""
    return Receipt(space, found.first, found.seq, found.commit, found.term, found.key, "forwarded", True)
