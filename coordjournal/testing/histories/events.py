"""What a history is made of: one struct for each kind of event, one JSON object a line.

Times are seconds of one monotonic clock that all processes share; of what was done, `at` is when it was
seen, which is never earlier. Keys of etcd stand without the journal's prefix: `heads/wiki`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from coordjournal.entry import Append, Appended, Receipt

Consistency = Literal["linearizable", "session", "local"]
What = Literal["head", "state", "events"]

Outcome = Literal["ok", "refused", "failed", "unknown"]
"""How an append ended: with a receipt; refused by a judge; certainly not applied; nobody knows."""


class _Event(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What all events share."""

    at: float


class AppendInvoked(_Event, frozen=True, tag="append"):
    """A caller asks for an append. `process` is one open log; the calls of one `caller` follow each other."""

    op: str
    process: str
    caller: str
    space: str
    append: Append


class AppendReturned(_Event, frozen=True, tag="appended"):
    """What the caller of an append got: a receipt, or the error of that name, with a `Conflict`'s `head_seq`."""

    op: str
    outcome: Outcome
    receipt: Receipt | None = None
    error: str = ""
    head_seq: int = 0


class ReadInvoked(_Event, frozen=True, tag="read"):
    """A caller reads. `after` is the seq of the receipt, or of the entry, after which it wants to read."""

    op: str
    process: str
    caller: str
    space: str
    what: What = "head"
    consistency: Consistency = "linearizable"
    after: int = 0


class ReadReturned(_Event, frozen=True, tag="was-read"):
    """What a read got: up to which entry, of which commit, and a digest of the content; or an error's name.

    The commit is empty where the reader was not told it, the digest is of nothing where `head` was read.
    """

    op: str
    seq: int = 0
    commit: str = ""
    digest: str = ""
    error: str = ""


class Ended(_Event, frozen=True, tag="ended"):
    """A process was killed, or closed its log: what it has under way it never hears of."""

    process: str


class Sent(_Event, frozen=True, tag="sent"):
    """A session sends the publish of a head to etcd; whether that is done, only a revision tells."""

    process: str
    session: str
    space: str
    commit: str


class Revision(_Event, frozen=True, tag="revision"):
    """What became of one key at one revision of etcd; `value` is None where it was deleted.

    All keys of one transaction have one revision. `created` is the key's create-revision. `era` tells
    apart revisions that repeat since etcd was wiped or restored. `exact` says that `at` is when it was done.
    """

    revision: int
    key: str
    value: str | None = None
    created: int = 0
    lease: int = 0
    era: int = 0
    exact: bool = False


class Era(_Event, frozen=True, tag="era"):
    """Etcd is set back: from now on revisions are of era `era`.

    Those up to `revision` say what it was set back to. `at` is before anybody can have noticed.
    """

    era: int
    revision: int = 0


class BranchSeen(_Event, frozen=True, tag="branch"):
    """The branch shows `commit` (empty: there is none), looked at no earlier than `at`.

    `published` is the seq of the published head as it was read *after* the branch; None if it was not.
    """

    space: str
    commit: str
    published: int | None = None


class Logged(_Event, frozen=True, tag="logged"):
    """An append as it lies in the store, whether the log holds it or not. `first` is its first entry's seq."""

    space: str
    commit: str
    parent: str
    term: int
    first: int
    append: Append

    @property
    def seq(self) -> int:
        """The seq of its last entry."""
        return self.first + len(self.append.events) - 1

    @property
    def key(self) -> str:
        """The idempotency key."""
        return self.append.key


class FinalHead(_Event, frozen=True, tag="final"):
    """The published head of a space when all was quiet, and the keys of the intents that waited still."""

    space: str
    commit: str
    waiting: tuple[str, ...] = ()


class Examined(_Event, frozen=True, tag="examined"):
    """Somebody went through what is stored: `what` is the tool, `problem` what it found, if anything.

    Every history has one.
    """

    what: str
    problem: str = ""


class Fault(_Event, frozen=True, tag="fault"):
    """Something was done to the journal or to what it stands on; `kind` is of whoever did it.

    Five kinds mean something to the rules: `no space` (etcd takes deletions only), `operator` (`adopt` or
    `recover` was run), `damage` (what is stored was damaged, or hidden), `branch` (a branch could not be
    moved), `power` (what was not synced is lost). Of `damage` and `branch`, `target` is the process that
    met it, empty for any. What has no end lasts for ever, what is `once` a moment; damage lasts.
    """

    kind: str
    target: str = ""
    phase: Literal["once", "begin", "end"] = "once"


class Healed(_Event, frozen=True, tag="healed"):
    """Nothing is wrong any more: within so many seconds an append must succeed, in each of the spaces."""

    within: float
    spaces: tuple[str, ...]


Event = (
    AppendInvoked
    | AppendReturned
    | ReadInvoked
    | ReadReturned
    | Ended
    | Sent
    | Revision
    | Era
    | BranchSeen
    | Logged
    | FinalHead
    | Examined
    | Fault
    | Healed
)


def logged(at: float, space: str, found: Appended) -> Logged:
    """Return the event that says of an append how it lies in the store."""
    top = found.entries[0]
    append = Append(tuple(entry.event for entry in found.entries), found.key, top.actor, top.at)
    return Logged(at, space, found.commit, found.parent, found.term, found.first, append)
