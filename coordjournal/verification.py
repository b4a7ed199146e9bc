"""Walking everything, to see that the log in git is what it says it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple

import pygit2

from coordjournal.entry import Entry, Head, decode_entries, encode_entries
from coordjournal.errors import Corrupt
from coordjournal.state import EMPTY, StateDraft
from coordjournal.store import message, pack, tree
from coordjournal.store.git import GitStore
from coordjournal.store.orphans import Orphans, branch_gone
from coordjournal.store.packfile import PackFile
from coordjournal.store.repository import Repository
from coordjournal.store.walk import read_object

_KINDS = {pack.COMMIT: b"commit", pack.TREE: b"tree", pack.BLOB: b"blob"}


class Verified(NamedTuple):
    """A space that is sound: how many appends and entries it has, and its head."""

    space: str
    appends: int
    entries: int
    seq: int
    commit: str


def verify_space(store: GitStore, space: str, head: Head | None = None) -> Verified:
    """Check every object of a space's log from entry 1 on, up to the branch unless `head` is given.

    Raises what `SpaceWalk.to` does.
    """
    walk = SpaceWalk(store, space)
    walk.to(store.head(space) if head is None else head)
    return walk.verified


def verify_packs(repository: Repository) -> None:
    """Check every byte of every pack and index, whatever is in them. Raises `Corrupt` with the file's name."""
    for index in pack.ours(repository.packs):
        try:
            with closing(PackFile(index)) as opened:
                opened.check()
        except FileNotFoundError as error:
            if index.exists():  # else compaction has just replaced it
                raise Corrupt(f"{index} has no pack", str(repository.packs)) from error
        except (ValueError, OSError) as error:
            raise Corrupt(str(error), str(repository.packs)) from error


def verify_branches(store: GitStore) -> None:
    """See that no space lacks its branch. Raises `Corrupt` for the first that does, with the commit to bring back.

    A log that only one group of appends made may be a first append that was never published: unless it is
    noted that there was a branch, it is no fault.
    """
    orphans = Orphans(store.repository)
    for space in sorted(orphans.begun() - set(store.spaces())):
        tips = orphans.on(space, Head())
        groups = [{_made(store, commit) for commit in store.commits(tip)} for tip in tips]
        if store.had_branch(space) or any(len(made) > 1 for made in groups):
            raise branch_gone(store.repository, space, tips)


def _made(store: GitStore, commit: str) -> bytes:
    """Return by whom and when a commit was made: the same for all of one group."""
    raw, _ = store.repository.use(lambda handle: read_object(handle, commit))
    return raw.partition(b"\ncommitter ")[2].partition(b"\n")[0]


class SpaceWalk:
    """A walk along a space's log: `head` is how far it came, and what the next append must fit."""

    def __init__(self, store: GitStore, space: str) -> None:
        self.space = space
        self.head = Head()
        self._store = store
        self._appends = 0
        self._spine: tree.Spine | None = None
        self._keys: set[bytes] = set()
        self._draft = StateDraft(EMPTY)

    @property
    def verified(self) -> Verified:
        """What was found sound."""
        return Verified(self.space, self._appends, self.head.seq, self.head.seq, self.head.commit)

    def to(self, head: Head) -> None:
        """Check every object of the log up to `head`, from where the walk is.

        The id of every commit, tree and file is computed anew; every tree is the one before it and one
        file; seqs have no gap, no key comes twice, terms never fall; commit and file agree; the bytes are
        canonical; the entries fold. Raises `Corrupt` or `UnknownEvent` for the first fault, with its place,
        `Diverged` if the log that `head` ends does not hold what was walked.
        """
        store, space = self._store, self.space
        if self.head.seq:
            ahead = store.read(space, head, self.head.seq, self.head.commit)
            commits: Iterator[str] = (appended.commit for appended in ahead)
        else:
            commits = store.commits(head)
        for commit in commits:
            try:
                store.repository.use(lambda handle, commit=commit: self._take(handle, commit))  # type: ignore[misc]
            except Corrupt as fault:
                if fault.where and fault.seq:
                    raise
                where = fault.where or f"commit {commit}"
                raise Corrupt(fault.what, f"space {space}, {where}", seq=fault.seq or self.head.seq + 1) from fault
        if self.head != head:
            raise Corrupt(
                f"the walk ends at entry {self.head.seq}, term {self.head.term}, the head is {head.seq}, {head.term}",
                f"space {space}",
            )

    def _take(self, handle: pygit2.Repository, commit: str) -> None:
        """Check the append that `commit` is. A second call after a failed read begins at the same place."""
        raw = _read(handle, commit, pack.COMMIT)
        info = message.parse(raw, commit)
        place = f"space {self.space}, commit {commit}"

        def fault(what: str) -> Corrupt:
            return Corrupt(what, place, seq=self.head.seq + 1)

        if info.parent != self.head.commit:
            raise fault(f"its parent is {info.parent or 'none'}, not {self.head.commit or 'none'}")
        if info.first != self.head.seq + 1:
            raise fault(f"it begins at entry {info.first}, the one before it ended at {self.head.seq}")
        if info.term < self.head.term:
            raise fault(f"its term is {info.term}, the one before it had {self.head.term}")
        spine, data = self._trees(handle, info)
        entries = decode_entries(data, info.first, commit, info.term)
        if encode_entries(entries) != data:
            raise fault("the bytes of its file are not canonical")
        if (entries[-1].seq, entries[0].key) != (info.seq, info.key):
            raise fault(f"its trailers say seq {info.seq} and key {info.key}, its file says otherwise")
        if not raw.split(b"\nauthor ", 1)[1].startswith(_author(entries[0])):
            raise fault("its author or author date is not its file's actor or time")
        hashed = hashlib.blake2b(info.key.encode(), digest_size=16).digest()
        if hashed in self._keys:
            raise fault(f"its key {info.key!r} was used before")
        for entry in entries:
            self._draft.apply(entry)
        self._keys.add(hashed)
        self._spine = spine
        self.head = Head(info.seq, commit, info.term)
        self._appends += 1

    def _trees(self, handle: pygit2.Repository, info: message.CommitInfo) -> tuple[tree.Spine, bytes]:
        """Return the trees after this append, and its file: they must be the trees before it and that file.

        All that is new in them is read on the way to the file.
        """
        root = bytes.fromhex(info.tree)

        def read(oid: bytes) -> bytes:
            return _read(handle, oid.hex(), pack.TREE)

        if self._spine is None:
            about = tree.child(read(root), tree.BLOB, b"space.json")
            if about is None:
                raise Corrupt("the root tree lacks space.json", f"tree {info.tree}")
            _read(handle, about.hex(), pack.BLOB)
            spine = tree.Spine(about)
        else:
            spine = self._spine.copy()
        first, blob = tree.last_file(root, read)
        if first != info.first:
            raise Corrupt(f"the last file is not {tree.event_path(info.first)}", f"tree {info.tree}")
        expected = spine.add(first, blob)
        if expected[-1][0] != root:
            raise Corrupt("the tree is not the one before it and one file", f"tree {info.tree}")
        return spine, _read(handle, blob.hex(), pack.BLOB)


def _author(entry: Entry) -> bytes:
    return message.identity(entry.actor) + b" %d +0000\n" % message.decided_seconds(entry.at)


def _read(handle: pygit2.Repository, oid: str, kind: int) -> bytes:
    raw, found = read_object(handle, oid)
    if found != kind or tree.object_id(_KINDS[kind], raw).hex() != oid:
        raise Corrupt(f"the object is not the {_KINDS[kind].decode()} that its id says", f"object {oid}")
    return raw
