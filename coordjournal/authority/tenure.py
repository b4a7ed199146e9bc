"""One holder's time with one space: elected, the head taken over, groups published, let go.

Each method is one step of the protocol; `docs/authority.md` says what may happen between each two.
Nothing here waits or starts a thread.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Final, Literal, NamedTuple

from coordjournal.authority.node import CALL_SECONDS, Node, foreign, one
from coordjournal.authority.wire import (
    HeadValue,
    Refusal,
    decode_head,
    decode_intent,
    encode_head,
    encode_outcome,
    outcome_item,
    range_of,
    session_of,
)
from coordjournal.commit import Group, Outcome
from coordjournal.entry import Append, Head, Receipt
from coordjournal.errors import (
    CoordJournalError,
    Corrupt,
    HeadBehind,
    HeadMissing,
    MissingObjects,
    Rejected,
    Unavailable,
)
from coordjournal.etcd import (
    Compare,
    Delete,
    EtcdError,
    Found,
    Get,
    KeyValue,
    Operation,
    OutOfSpace,
    Put,
    Reason,
    Refused,
    Unanswered,
)
from coordjournal.store import Diverged, HeadMoved

_MAX_INTENTS: Final = 42  # each takes a guard and up to three of etcd's 128 operations
_KEPT_OUTCOMES: Final = 64  # of one session; it has read what is older, or finds it in the log
_MAX_FORWARDED: Final = 400  # appends of intents in a group: their outcomes stay below 512 KiB
_SUCCESSOR_SECONDS: Final = 2
_ROLLS: Final = 8  # tries to move a branch that others move meanwhile
_DEEP: Final = 1000  # entries
_ADVANCE_AGAIN_SECONDS: Final = 1.0  # a branch that cannot be moved does not hold up every group

_REFUSED_EVER: Final[frozenset[Reason]] = frozenset({"lease not found", "too large", "invalid"})
"""Why etcd refuses a transaction whenever it arrives; the other reasons may pass."""

logger = logging.getLogger(__name__)


class Parted(Corrupt):
    """The branch is elsewhere than on the way to, or from, what was published: etcd lost it, or the branch did."""


Verdict = Literal["published", "again", "changed", "lost", "doubtful"]
"""What is known of a group whose publish was sent.

`published`; `again`: it was not, and the same one may be sent; `changed`: it was not, since intents changed
or are gone; `lost`: it was not and never will be; `doubtful`: etcd has lost the answer to it.
"""


class Election(NamedTuple):
    """How a campaign ended: `created` is the holder key's create-revision if it was won, else 0.

    `holder` is the session that holds the space, empty where a successor is waited for. `head` is what
    was published at that very moment.
    """

    created: int
    holder: str
    head: KeyValue | None


class Intent(NamedTuple):
    """An intent as it was read; what is wrong with it in `refusal`. `session` is empty if its key is none."""

    kv: KeyValue
    session: str
    number: int
    appends: list[Append]
    refusal: Rejected | None = None


def campaign(node: Node, space: str) -> Election:
    """Take the space if nobody holds it. Raises `Unanswered`: then ask again, it may have been won; `Unavailable`."""
    keys = node.keys
    holder, head, successor = Get(keys.holder(space)), Get(keys.head(space)), Get(keys.successor(space))
    lease, created = node.presence()
    put = Put(keys.holder(space), node.id.encode(), lease)
    free = Compare(keys.holder(space), "version", 0)
    present = Compare(keys.node(node.id), "create_revision", created)
    unclaimed = Compare(keys.successor(space), "version", 0)
    done = node.txn([free, present, unclaimed], [put, head], [holder, head, successor])
    if done.succeeded:
        return Election(done.revision, node.id, one(done.found[1]))
    found, chosen = one(done.found[0]), one(done.found[2])
    if found is None and chosen is not None and session_of(chosen.value) in ("", node.id):
        done = node.txn([free, present], [put, head, Delete(keys.successor(space))], [holder, head])
        if done.succeeded:
            return Election(done.revision, node.id, one(done.found[1]))
        found = one(done.found[0])
    current = one(done.found[1])
    if found is not None and found.value == node.id.encode():
        if found.lease == lease:
            return Election(found.create_revision, node.id, current)  # won, and the answer was lost
        mine = Compare(keys.holder(space), "mod_revision", found.mod_revision)
        node.txn([mine], [Delete(keys.holder(space))])  # of a session that was lost: nobody serves it
        return Election(0, "", current)
    return Election(0, session_of(found.value) if found else "", current)


class Tenure:
    """What the holder of a space knows: the key it holds it by, the head it may publish on, its term."""

    def __init__(self, node: Node, space: str, election: Election) -> None:
        self.created = election.created
        self.head = Head()
        self.term = 0
        self.served: dict[str, int] = {}  # appends decided lately, by the session that asked
        self.first_revision = election.created  # intents made before it come before any append of our own
        self._node = node
        self._space = space
        self._election = election
        self._raw: bytes | None = None  # the published head's value
        self._identity = ""
        self._branch = Head()
        self._advance_after = 0.0
        self._tombstones = 0

    def take_over(self) -> None:
        """Make ready to serve: the objects, the branch, the state and the keys, all at the published head.

        Raises `HeadMissing`, `HeadBehind`, `MissingObjects`, `ForeignRepository`, `WrongAuthority`,
        `Corrupt`, `Unavailable`.
        """
        node, space, found = self._node, self._space, self._election.head
        node.identify(again=True)
        if found is None:
            self._branch = node.store.head(space)
            if self._branch.seq:
                raise HeadMissing(
                    f"the branch of space {space} is at entry {self._branch.seq}, and etcd knows no head of it",
                    f"space {space}",
                    f"run `coordjournal recover {space}`, which shows what there is",
                )
        else:
            self.head = node.read_head(space, found)
            self._raw = found.value
            self._reach(found)
        self.term = self.head.term + 1
        replica = node.replica(space)
        if (reached := replica.head).seq > self.head.seq:
            raise self._behind(f"this process has read entry {reached.seq}")
        replica.exactly_at(self.head)
        replica.find("", self.head)  # the index of keys, up to the head

    def stands(self) -> bool:
        """Whether nothing happened since the election. If not, or if that is not known, its head proves nothing."""
        try:
            holder, current = (one(found) for found in self._node.get(*self._look))
        except EtcdError:
            return False
        held = self._is_mine(holder)
        elected = self._election.head
        return held and (current and current.value) == (elected and elected.value)

    def _reach(self, found: KeyValue) -> None:
        """See that the head's objects are there and the branch is on the way to it; roll it forward."""
        node, space, head = self._node, self._space, self.head
        if not node.store.has(space, head):
            raise self._missing()
        self._identity = decode_head(found.value, "").space
        if (own := node.store.identity(space, head)) != self._identity:
            raise foreign(f"with space {space} of id {self._identity}", f"with one of id {own}", f"space {space}")
        self._branch = branch = node.store.head(space)
        if branch == head:
            return
        try:
            node.store.read(space, head, branch.seq, branch.commit)
        except Diverged:
            raise self._not_on_the_way(branch) from None
        logger.warning("space %s: the branch is rolled forward from entry %d to %d", space, branch.seq, head.seq)
        self.advance(head)

    def _missing(self) -> MissingObjects:
        return MissingObjects(
            f"entry {self.head.seq}, commit {self.head.commit}, is published, and its objects are not here",
            f"space {self._space}",
            "bring them back (`git fetch` from a clone, the file system that hosts share);"
            f" if they are lost for good, run `coordjournal recover {self._space}`",
        )

    def _not_on_the_way(self, branch: Head) -> CoordJournalError:
        try:
            self._node.store.read(self._space, branch, self.head.seq, self.head.commit)
        except Diverged:
            return parted(self._space, branch, self.head)
        return self._behind(f"the branch is at entry {branch.seq}")

    def _behind(self, fact: str) -> HeadBehind:
        return HeadBehind(
            f"{fact}, the published head is entry {self.head.seq} only: etcd was restored from an older time",
            f"space {self._space}",
            f"run `coordjournal recover {self._space}`, which shows what there is",
        )

    def intents(self) -> list[Intent]:
        """Return the intents that wait, those made first first, up to one group's. Raises `Unanswered`."""
        node = self._node
        first, end = range_of(node.keys.intents_of(self._space))
        while True:
            found = node.get(Get(first, end, limit=_MAX_INTENTS + self._tombstones, by_creation=True))[0]
            tombstones = sum(1 for kv in found.kvs if kv.lease and not kv.value)
            if tombstones <= self._tombstones or len(found.kvs) == found.count:
                break
            self._tombstones = 2 * tombstones  # in the way of those that came later
        self._tombstones = tombstones
        intents: list[Intent] = []
        appends = 0
        for kv in found.kvs:
            if kv.lease and not kv.value:
                continue  # it keeps a put that was never answered from landing, and goes with its session
            intent = self._parsed(kv)
            appends += len(intent.appends)
            if intents and (len(intents) == _MAX_INTENTS or appends > _MAX_FORWARDED):
                break
            intents.append(intent)
        return intents

    def _parsed(self, kv: KeyValue) -> Intent:
        parsed = self._node.keys.parse_intent(kv.key)
        if parsed is None:
            logger.warning("space %s: %r is no intent's key; it is swept", self._space, kv.key)
            return Intent(kv, "", 0, [])
        _, session, number = parsed
        try:
            return Intent(kv, session, number, decode_intent(kv.value))
        except Rejected as refusal:
            logger.warning("space %s: the intent %s is refused: %s", self._space, kv.key.decode(), refusal)
            return Intent(kv, session, number, [], refusal)

    def propose(self, intents: Sequence[Intent], own: Sequence[Append], left: Mapping[str, int]) -> Proposal:
        """Judge intents, then own appends, and make durable what is accepted; nobody sees it yet.

        `left` are the keys of own appends that may have been appended before, as in `Group`. Raises
        `Unavailable` if the disk does not take it, `HeadMoved` if the head is not the newest any more.
        """
        asked = [append for intent in intents for append in intent.appends]
        replica = self._node.replica(self._space)
        try:
            group = Group(asked + list(own), replica, self.head, left, range(len(asked)))
        except Corrupt:
            if replica.head.seq > self.head.seq:  # a reader of this process has come further
                raise HeadMoved from None
            raise
        group.judge()
        if group.ready:
            group.write(self._node.store, self._space, self.term)
        return Proposal(self, group, intents, len(asked))

    def publish(self, proposal: Proposal) -> Verdict:
        """Send a group's publish, the one commit point. Raises `Unanswered` and `Refused`."""
        if self._node.store.head(self._space).seq > self.head.seq:
            verdict = self.resolve(proposal)
            if verdict == "again":  # etcd was set back to when this one held the space, and others went on meanwhile
                verdict = "doubtful" if proposal.may_land else "lost"
            return verdict
        if not proposal.then:
            proposal.then = self._operations(proposal)
        try:
            done = self._node.txn(proposal.guards, proposal.then, self._look)
        except OutOfSpace as error:
            proposal.full = None if proposal.may_land else error
            raise
        except Unanswered:
            proposal.may_land, proposal.full = True, None
            raise
        except Refused as refusal:
            if proposal.may_land and refusal.reason not in _REFUSED_EVER:
                raise Unanswered(f"{refusal}; what was sent before may yet be done") from refusal
            raise
        if done.succeeded:
            return "published"
        verdict = self._verdict(proposal, done.found)
        return "changed" if verdict == "again" else verdict

    def resolve(self, proposal: Proposal) -> Verdict:
        """Find out what became of a publish that was not answered. Raises `Unanswered`, `Corrupt`, …."""
        return self._verdict(proposal, self._node.get(*self._look))

    @property
    def _look(self) -> tuple[Get, Get]:
        return Get(self._node.keys.holder(self._space)), Get(self._node.keys.head(self._space))

    def _operations(self, proposal: Proposal) -> list[Operation]:
        then: list[Operation] = []
        if proposal.raw is not None:
            then.append(Put(self._node.keys.head(self._space), proposal.raw))
        outcomes = proposal.forwarded
        lease = self._node.outcome_lease() if any(outcomes) else 0
        for intent, outcome in zip(proposal.intents, outcomes, strict=True):
            then.append(Delete(intent.kv.key))
            if outcome:
                then.append(Put(self._node.keys.outcome(intent.session, self._space, intent.number), outcome, lease))
        then.extend(self._old_outcomes(proposal.intents))
        return then

    def _old_outcomes(self, intents: Sequence[Intent]) -> Iterator[Operation]:
        """Yield the deletions of what sessions have read long ago; nobody but a holder may write outcomes."""
        keys, least = self._node.keys, dict[str, int]()
        for intent in intents:
            if intent.session:
                least[intent.session] = min(intent.number, least.get(intent.session, intent.number))
        for session, number in least.items():
            if number > _KEPT_OUTCOMES:
                first, end = keys.outcomes_of(session, self._space), number - _KEPT_OUTCOMES
                yield Delete(first, keys.outcome(session, self._space, end))

    def guards(self, intents: Iterable[Intent]) -> list[Compare]:
        """Return what must hold for a publish: I hold the space, the head is mine to build on, the intents as read."""
        keys = self._node.keys
        head = keys.head(self._space)
        return [
            *self._mine,
            Compare(head, "version", 0) if self._raw is None else Compare(head, "value", self._raw),
            *(Compare(intent.kv.key, "mod_revision", intent.kv.mod_revision) for intent in intents),
        ]

    def _is_mine(self, holder: KeyValue | None) -> bool:
        return holder is not None and (holder.create_revision, holder.value) == (self.created, self._node.id.encode())

    @property
    def _mine(self) -> list[Compare]:
        """What must hold for the space to be mine: after a wipe another's key may have the revision that mine had."""
        key = self._node.keys.holder(self._space)
        return [Compare(key, "create_revision", self.created), Compare(key, "value", self._node.id.encode())]

    def value(self, head: Head) -> bytes:
        """Return the bytes that publish `head`."""
        store = self._node.store
        if self.head.seq and not self._identity:
            self._identity = store.identity(self._space, self.head)
        identity = self._identity or store.identity(self._space, head)  # each try of a first append makes one up
        return encode_head(HeadValue(head.seq, head.commit, head.term, identity))

    def _verdict(self, proposal: Proposal, found: Sequence[Found | None]) -> Verdict:
        holder, current = one(found[0]), one(found[1])
        raw = current.value if current is not None else None
        held = self._is_mine(holder)
        if proposal.raw is not None and raw == proposal.raw:
            return "published"
        if self._node.era != proposal.era:
            return "doubtful"
        if raw == self._raw:
            return "again" if held else "lost"
        if proposal.raw is None:
            return "lost"
        return self._descends(proposal, current)

    def _descends(self, proposal: Proposal, current: KeyValue | None) -> Verdict:
        """Whether a later head holds the group; doubtful if it does not even hold what the group stood on."""
        if current is None:
            return "doubtful"
        head = decode_head(current.value, current.key.decode("ascii", "replace")).head
        store, written = self._node.store, proposal.group.written
        if not store.has(self._space, head):
            raise self._missing()
        try:
            store.read(self._space, head, self.head.seq, self.head.commit)
        except Diverged:
            return "doubtful"
        last = written[-1]
        try:
            if head.seq >= last.seq:
                store.read(self._space, head, last.seq, last.commit)
                return "published"
        except Diverged:
            pass
        return "lost"

    def accept(self, proposal: Proposal) -> None:
        """Go on from the head that was published: the branch, then what this process knows.

        Raises `Parted` where the branch holds something else: nothing of the group may be acknowledged then.
        """
        for intent in proposal.intents:
            if intent.session:
                self.served[intent.session] = self.served.get(intent.session, 0) + len(intent.appends)
        group = proposal.group
        if proposal.raw is None:
            return
        head = group.written[-1].head
        self.advance(head)
        self.head, self._raw = head, proposal.raw
        self._node.replica(self._space).accept(group.written, group.state)

    def advance(self, head: Head) -> None:
        """Move the branch to a published head. What keeps it from moving is told in the log, and tried again.

        Raises `Parted`: where the branch does not hold the head then, it is where it was seen on the way to it.
        """
        try:
            if self._node.clock() < self._advance_after:
                self._look_at_the_branch(head)
                return
            self._branch = roll_forward(self._node, self._space, self._branch, head)
        except Parted:
            raise
        except CoordJournalError as error:
            self._advance_after = self._node.clock() + _ADVANCE_AGAIN_SECONDS
            logger.warning("space %s: the branch stays behind the published head: %s", self._space, error)
            self._look_at_the_branch(head)

    def _look_at_the_branch(self, head: Head) -> None:
        """See that the branch, which cannot be moved, is where it was seen last, or on the way to `head`."""
        try:
            branch = self._node.store.head(self._space)
            if branch != self._branch:
                see_no_parting(self._node, self._space, branch, head)
                self._branch = branch
        except Parted:
            raise
        except CoordJournalError as error:
            logger.warning("space %s: where the branch is cannot be read: %s", self._space, error)

    @property
    def lags(self) -> bool:
        """Whether the branch is behind the published head."""
        return self._branch.seq < self.head.seq

    def let_go(self, successor: str = "") -> None:
        """Delete the holder's key, if it is still mine; with a successor, who then has two seconds to come.

        Raises `Unanswered` and `Refused`.
        """
        keys = self._node.keys
        then: list[Operation] = [Delete(keys.holder(self._space))]
        if successor:
            lease, _ = self._node.etcd.grant(_SUCCESSOR_SECONDS, timeout=CALL_SECONDS)
            then.append(Put(keys.successor(self._space), successor.encode(), lease))
        self._node.txn(self._mine, then)


class Proposal:
    """A group that was judged and written, and is to be published as one transaction."""

    def __init__(self, tenure: Tenure, group: Group, intents: Sequence[Intent], forwarded: int) -> None:
        self.group = group
        self.intents = intents
        self.guards = tenure.guards(intents)
        self.raw = tenure.value(group.written[-1].head) if group.written else None
        self.then: list[Operation] = []
        self.era = tenure._node.era
        self.may_land = False  # a publish was sent and never answered: it may be done at any time
        self.full: OutOfSpace | None = None  # etcd's answer, if it is done by now or never
        self._space = tenure._space
        self._forwarded = forwarded

    @cached_property
    def outcomes(self) -> tuple[list[Outcome], list[Outcome]]:
        """What became of the intents' appends, and of the own ones, if this is published."""
        outcomes = self.group.outcomes(self._space)
        return outcomes[: self._forwarded], outcomes[self._forwarded :]

    @cached_property
    def forwarded(self) -> list[bytes]:
        """Each intent's outcome, as it stands in etcd; no bytes where nobody waits for one."""
        outcomes = iter(self.outcomes[0])
        found = []
        for intent in self.intents:
            items = [outcome_item(append.key, next(outcomes)) for append in intent.appends]
            if intent.refusal is not None:
                items = [Refusal("", type(intent.refusal).__name__, str(intent.refusal)[:600])]
            found.append(encode_outcome(items) if items else b"")
        return found


def roll_forward(node: Node, space: str, known: Head | None, head: Head) -> Head:
    """Move the branch to `head`, which was published, unless it is there or further; return where it is.

    `known` is where it was last seen, None if it was not. Afterwards the branch holds `head`: what is
    acknowledged then stays in the log whatever etcd forgets. Raises `Parted` if it holds something else
    there, `Unavailable`, `Undecided`, `Corrupt`. Far below the branch, where only keys that were used long
    ago are found, it is not looked.
    """
    store = node.store
    for _ in range(_ROLLS):
        if known is None:
            known = store.head(space)
            if known == head:
                return head
            if known.seq - head.seq <= _DEEP:
                see_no_parting(node, space, known, head)
            if known.seq >= head.seq:
                return known
        try:
            store.advance(space, known, head)
            return head
        except HeadMoved:
            known = None  # by somebody else who rolls it forward, or by whom an operator let go on from elsewhere
    raise Unavailable(f"the branch of space {space} is moved by others again and again")


def see_no_parting(node: Node, space: str, branch: Head, head: Head) -> None:
    """Raise `Parted` if neither of branch and head holds the other. Costs a look at each commit between them."""
    older, newer = sorted((branch, head), key=lambda each: each.seq)
    try:
        node.store.read(space, newer, older.seq, older.commit)
    except Diverged:
        raise parted(space, branch, head) from None


def parted(space: str, branch: Head, head: Head) -> Parted:
    """Return the error that branch and published head do not hold each other."""
    return Parted(
        f"the branch, at entry {branch.seq}, and the published head, entry {head.seq}, have parted",
        f"space {space}",
        f"run `coordjournal recover {space}`, which shows both",
    )


def receipt_head(receipt: Receipt) -> Head:
    """Return the head that the receipt's append made."""
    return Head(receipt.seq, receipt.commit, receipt.term)
