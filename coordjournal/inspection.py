"""Looking at every key that a journal has in etcd, beside the repository: what is not as it must be is named.

Nothing is written. What goes on meanwhile raises no alarm: a branch is read before the head that must hold
it, and what must be there together is read at one moment.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Final

from coordjournal.authority.node import foreign
from coordjournal.authority.wire import (
    Accepted,
    HeadValue,
    decode_head,
    decode_intent,
    decode_node,
    decode_outcome,
    range_of,
    session_of,
)
from coordjournal.entry import Head
from coordjournal.errors import (
    Corrupt,
    ForeignRepository,
    HeadBehind,
    HeadMissing,
    MissingObjects,
    OperatorNeeded,
    Rejected,
    WrongAuthority,
)
from coordjournal.etcd import Get, KeyValue
from coordjournal.keyspace import Keyspace
from coordjournal.store import Diverged, message
from coordjournal.store.git import GitStore
from coordjournal.store.repository import Owner
from coordjournal.store.walk import read_object
from coordjournal.verification import SpaceWalk

_MAX_KEYS: Final = 100_000
_PAGE: Final = 32  # values of up to 1.5 MiB
_PAUSE_SECONDS: Final = 1.0
_LOOKS: Final = 8  # at holders: longer than a keeper's round
_SPACE: Final = b"([a-z0-9][a-z0-9-]{0,62})"
_SESSION: Final = b"[0-9a-f]{32}"
_NUMBER: Final = b"[0-9]{12}"
_MARK = re.compile("[0-9a-f]{16}|")
_DELETED: Final = "then another holder is elected, and one that is cut off so publishes nothing"
_REFUSED: Final = "it harms nobody: whoever holds the space refuses it"
_LOOKED_UP: Final = "it harms nobody for long: it ends with its lease, in ten minutes; `etcdctl del {key}` ends it now"


class Inspection:
    """The keys under a journal's prefix, and the repository that they must fit.

    Every method raises the first fault, an `OperatorNeeded` that names the key and says what to do, and
    `Unavailable` if etcd does not answer.
    """

    def __init__(self, store: GitStore, etcd: Keyspace, owner: Owner) -> None:
        self._store = store
        self._etcd = etcd
        self._owner = owner
        self._followed: set[str] = set()
        keys = etcd.keys
        self._kinds: list[tuple[re.Pattern[bytes], Callable[[str, KeyValue], None]]] = [
            (re.compile(re.escape(part) + form), look)
            for part, form, look in (
                (keys.journal, b"()", self._journal),
                (keys.heads, _SPACE, self._head),
                (keys.holders, _SPACE, self._holder),
                (keys.successors, _SPACE, self._successor),
                (keys.nodes, _SESSION + b"()", self._node),
                (keys.intents, b"/".join((_SPACE, _SESSION, _NUMBER)), self._intent),
                (keys.outcomes, b"/".join((_SESSION, _SPACE, _NUMBER)), self._outcome),
            )
        ]

    def begin(self, *, has_spaces: bool) -> None:
        """See that repository and etcd are one journal's. Raises `ForeignRepository`, `HeadMissing`."""
        place = self._etcd.place
        if self._owner.place != place:
            raise ForeignRepository(
                f"appends go through etcd under the prefix {self._owner.place} here, not under {place}",
                str(self._store.repository.path),
                f"use --prefix {self._owner.place}",
            )
        known = self._etcd.journal()
        if known is not None:
            self._journal("", known)
        elif has_spaces:
            raise HeadMissing(
                f"etcd knows nothing of journal {self._owner.journal} under {place}: it was wiped, or is another one",
                place,
                "name the right etcd; or, if its data is lost, run `coordjournal recover`",
            )

    def follow(self, walk: SpaceWalk) -> None:
        """See that the published head holds the branch, up to which `walk` came, and walk on to it.

        Raises `HeadMissing`, `HeadBehind`, `MissingObjects`, `WrongAuthority`, what the walk does.
        """
        space, branch = walk.space, walk.head
        self._followed.add(space)
        found = self._etcd.head(space)
        if found is None:
            raise self._missing(space, branch)
        value = self._known(space, found)
        if value.left:
            if value.space != self._store.identity(space, branch):  # another journal had its keys here, and left
                raise self._missing(space, branch)
            raise WrongAuthority(
                f"the journal of space {space} left etcd",
                text(found.key),
                "run `coordjournal adopt` to finish or undo it",
            )
        self._check_head(space, found, value)
        if value.head == branch:
            return
        if value.seq < branch.seq and self._holds(space, branch, value.head):
            raise HeadBehind(
                f"the branch is at entry {branch.seq}, etcd knows entry {value.seq} only",
                text(found.key),
                f"run `coordjournal recover {space}`",
            )
        try:
            walk.to(value.head)
        except Diverged:
            raise Corrupt(
                f"the branch, commit {branch.commit} of entry {branch.seq}, and the published head, commit"
                f" {value.commit} of entry {value.seq}, have parted",
                text(found.key),
                f"look at both, and choose one: `coordjournal recover {space} --to COMMIT`",
            ) from None

    def rest(self, space: str | None = None) -> int:
        """Look at every key, or every one that is about one space. Returns how many there are."""
        looks = 1
        while (kv := self._orphan(space)) is not None:
            if looks == _LOOKS:
                gone = session_of(kv.value)
                raise fault(kv, f"its holder, session {gone}, is not there", f"`etcdctl del {{key}}`: {_DELETED}")
            time.sleep(_PAUSE_SECONDS)  # a process whose session `recover` took away opens it anew in its next round
            looks += 1
        return sum(self._look(kv, space) for kv in self._all())

    def _orphan(self, space: str | None) -> KeyValue | None:
        """Return a holder's key whose session is not there."""
        keys = self._etcd.keys
        holders, nodes = self._etcd.get(*(Get(*range_of(part), _MAX_KEYS) for part in (keys.holders, keys.nodes)))
        there = {kv.key.removeprefix(keys.nodes).decode("ascii", "replace") for kv in nodes.kvs}
        for kv in holders.kvs:
            about, session = keys.space_of(keys.holders, kv.key), session_of(kv.value)
            if space in (None, about) and session and session not in there:
                return kv
        return None

    def _all(self) -> Iterator[KeyValue]:
        start, end = range_of(self._etcd.keys.prefix)
        while True:
            (found,) = self._etcd.get(Get(start, end, _PAGE))
            yield from found.kvs
            if found.count <= len(found.kvs):
                return
            start = found.kvs[-1].key + b"\0"

    def _look(self, kv: KeyValue, space: str | None) -> bool:
        """Look at a key; false if it is not about `space`."""
        for form, look in self._kinds:
            if match := form.fullmatch(kv.key):
                about = match[1].decode()
                if space not in (None, about):
                    return False
                look(about, kv)
                return True
        if space is None:
            intent = kv.key.startswith(self._etcd.keys.intents)
            run = (
                f"{_REFUSED}, or `etcdctl del {{key}}`"
                if intent
                else "no process of a journal reads it: `etcdctl del {key}`"
            )
            raise fault(kv, "this is no key that a journal has", run)
        return False

    def _journal(self, _: str, kv: KeyValue) -> None:
        if kv.value != self._owner.journal.encode():
            raise foreign(kv.value.decode("ascii", "backslashreplace"), self._owner.journal, self._etcd.place)

    # Heads

    def _missing(self, space: str, branch: Head) -> HeadMissing:
        return HeadMissing(
            f"the branch is at entry {branch.seq}, and etcd knows no head",
            f"space {space}",
            f"run `coordjournal recover {space}`",
        )

    def _known(self, space: str, kv: KeyValue) -> HeadValue:
        value = decode_head(kv.value, text(kv.key))
        if not _MARK.fullmatch(value.mark):
            raise fault(kv, f"the published head has the mark {value.mark!r}", f"run `coordjournal recover {space}`")
        return value

    def _check_head(self, space: str, kv: KeyValue, value: HeadValue) -> None:
        """See that what is published is an append of this very space."""
        recover = f"run `coordjournal recover {space}`"
        if not self._has(space, value.head):
            raise MissingObjects(
                f"entry {value.seq}, commit {value.commit}, is published, and its objects are not here",
                text(kv.key),
                f"bring them back (`git fetch` from a clone); if they are lost, {recover} --accept-loss",
            )
        try:
            raw, _ = self._store.repository.use(lambda handle: read_object(handle, value.commit))
            info = message.parse(raw, value.commit)
            identity = self._store.identity(space, value.head)
        except Corrupt as error:
            raise fault(kv, f"the published head is no append of the space: {error.what}", recover) from error
        if (info.seq, info.term) != (value.seq, value.term):
            what = f"it says entry {value.seq} of term {value.term}, its commit is entry {info.seq} of term {info.term}"
            raise fault(kv, what, recover)
        if identity != value.space:
            raise fault(kv, f"it is of space id {value.space}, its commit of {identity}", recover)

    def _head(self, space: str, kv: KeyValue) -> None:
        """Look at a head; the log that it ends too if the branch was not there when the spaces were listed."""
        value = self._known(space, kv)
        if value.left:
            return  # it may be what another journal left behind
        self._check_head(space, kv, value)
        if space in self._followed:
            return
        SpaceWalk(self._store, space).to(value.head)
        if not self._store.head(space).seq:
            time.sleep(_PAUSE_SECONDS)  # a first append moves its branch a moment later
        if not self._store.head(space).seq:
            raise Corrupt(
                f"the branch of space {space} is gone, entry {value.seq} of it is published",
                str(self._store.repository.path),
                f"the next append brings it back, or `git update-ref refs/heads/{space} {value.commit}`",
                value.seq,
            )

    def _has(self, space: str, head: Head) -> bool:
        """Whether a commit is here; looks for as long as another host's may be hidden."""
        until = time.monotonic() + self._store.patience
        while not self._store.has(space, head):
            if time.monotonic() >= until:
                return False
            time.sleep(_PAUSE_SECONDS)
        return True

    def _holds(self, space: str, head: Head, part: Head) -> bool:
        try:
            self._store.read(space, head, part.seq, part.commit)
        except Diverged:
            return False
        return True

    # Who is there, and what waits

    def _holder(self, space: str, kv: KeyValue) -> None:
        if not session_of(kv.value):
            raise fault(kv, f"it names no session as the holder of {space}", f"`etcdctl del {{key}}`: {_DELETED}")
        if not kv.lease:
            raise fault(kv, "it has no lease, so it never ends", f"`etcdctl del {{key}}`: {_DELETED}")

    def _successor(self, space: str, kv: KeyValue) -> None:
        if kv.value != b"-" and not session_of(kv.value):
            raise fault(kv, f"it names no session to take {space} over", "it ends within two seconds")
        if not kv.lease:
            raise fault(kv, f"it has no lease: nobody can take {space} over", "`etcdctl del {key}`")

    def _node(self, _: str, kv: KeyValue) -> None:
        if decode_node(kv.value) is None:
            raise fault(kv, "what it says of its process is not well formed", "it ends with that process's session")
        if not kv.lease:
            raise fault(kv, "it has no lease, so it never ends", "`etcdctl del {key}`: its process makes it anew")

    def _intent(self, _: str, kv: KeyValue) -> None:
        try:
            appends = decode_intent(kv.value)
            for append in appends:
                append.check()
        except Rejected as error:
            raise fault(kv, f"what it asks for is not well formed: {error}", _REFUSED) from error
        if not appends and not kv.lease:
            raise fault(kv, "it asks for nothing", "it harms nobody: whoever sent it asks anew")

    def _outcome(self, space: str, kv: KeyValue) -> None:
        items = decode_outcome(kv.value)
        if not items and kv.value != b"[]":
            raise fault(kv, "what it tells is not well formed", _LOOKED_UP)
        for item in items:
            if isinstance(item, Accepted) and not self._stands(space, item):
                what = f"it tells that key {item.key} became entry {item.seq}, commit {item.commit}, which is not so"
                raise fault(kv, what, _LOOKED_UP)
        if not kv.lease:
            raise fault(kv, "it has no lease, so it never ends", "`etcdctl del {key}`")

    def _stands(self, space: str, item: Accepted) -> bool:
        if not self._has(space, Head(item.seq, item.commit, item.term)):
            return False
        try:
            self._store.identity(space, Head(item.seq, item.commit, item.term))  # it is of this very space
            told = self._store.load(space, item.commit)
        except Corrupt:
            return False
        return (told.key, told.first, told.seq, told.term) == (item.key, item.first, item.seq, item.term)


def text(key: bytes) -> str:
    """Return a key as it is shown."""
    return key.decode("ascii", "backslashreplace")


def fault(kv: KeyValue, what: str, run: str) -> OperatorNeeded:
    """Return the error that something is wrong with a key; `{key}` in `run` stands for it."""
    return OperatorNeeded(what, text(kv.key), run.replace("{key}", text(kv.key)))
