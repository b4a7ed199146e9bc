"""The log in git: one bare repository, a branch a space, a commit an append.

`docs/git-format.md` describes what is stored; `docs/architecture.md` what may happen between two steps.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Final

import msgspec
import pygit2

from coordjournal.entry import Appended, Entry, Head, decode_entries, format_time
from coordjournal.errors import (
    Corrupt,
    ForeignRepository,
    NotFound,
    OperatorNeeded,
    Unavailable,
    Undecided,
    UnknownFormat,
    WrongAuthority,
)
from coordjournal.store import EMBEDDED, Diverged, HeadMoved, Ready, compaction, message, pack, refs, tree
from coordjournal.store.files import file_system, is_network, is_sharable, locked, sync_directory
from coordjournal.store.orphans import Orphans, branch_gone
from coordjournal.store.packfile import prefix_delta
from coordjournal.store.repository import Owner, Repository
from coordjournal.store.walk import Trail, about_of, blobs, last_blob, read_object, target_of, tree_reader, walk_back

FORMAT: Final = 1
"""The version of the git format; stands in every `space.json`."""

_BRANCH = re.compile(r"refs/heads/([a-z0-9][a-z0-9-]{0,62})")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_LOOSE = re.compile(rb"[0-9a-f]{40}\n")
_CHUNK: Final = 512  # appends read at a time
_LOOK_EVERY: Final = 32  # groups between two looks at the number of packs
_SPINES: Final = 64
_HIDDEN_SECONDS: Final = 60.0  # the Linux NFS client caches a directory for so long (nfs(5), acdirmax)

logger = logging.getLogger(__name__)


class SpaceAbout(msgspec.Struct, frozen=True):
    """What `space.json` says: the git format's version, the space's name and random id, when it was made."""

    format: int
    name: str
    id: str
    made: str


class GitStore:
    """A `Store` in a bare git repository at `path`.

    `node` names this host in commits, `clock` gives their committer date, `random` their identities.
    `writer` tells apart those whom no lock keeps apart: processes under etcd's authority.
    """

    def __init__(
        self,
        path: Path,
        *,
        node: str,
        clock: Callable[[], datetime],
        random: Callable[[int], bytes],
        writer: str = "",
    ) -> None:
        self.repository = Repository(path)
        self._writer = writer
        self._branches = str(path / "refs" / "heads")
        self._node = message.clean_node(node)
        self._clock = clock
        self._random = random
        self._lock = threading.Lock()
        self._heads: dict[str, Head] = {}
        self._noted: set[str] = set()  # spaces whose branch is noted
        self._tips: dict[str, tuple[int, list[Head]]] = {}  # where the branches that are gone may have been
        self._abouts: dict[str, bytes] = {}  # the space.json by which a log was seen to be the space's
        self._checked: set[str] = set()  # spaces whose space.json is this format's and names them
        self._spines: dict[str, tuple[str, tree.Spine]] = {}
        self._journal = ""  # the one that was claimed
        self._groups = 0
        self._compacting = threading.Lock()  # around the two below
        self._compactor: threading.Thread | None = None
        self._closed = False

    def claim(self, authority: str, journal: str = "", place: str = "") -> str:
        path = str(self.repository.path)
        self._check_file_system(authority, path)
        try:
            owner = self.repository.owner()
        except NotFound:
            if self._journal:
                raise NotFound(f"the repository at {path} was there and is gone; bring it back") from None
            if journal:
                raise ForeignRepository(
                    f"there is no repository here, and {place} knows journal {journal}",
                    path,
                    "name the repository of that journal; or bring it back from a clone and run `coordjournal recover`",
                ) from None
            self.repository.create(Owner(authority, self._random(16).hex(), place))
            owner = self.repository.owner()
        if owner is None:
            raise ForeignRepository(
                "this is a mirror clone, or a repository of something else: nothing is appended here",
                path,
                "append to the original, or run `coordjournal adopt` to make this one a journal of its own",
            )
        if owner.authority != authority:
            raise WrongAuthority(
                f"appends go through the authority {owner.authority!r} here, not through {authority!r}",
                path,
                f"open it with the {owner.authority!r} authority, or run `coordjournal adopt` to change that",
            )
        if owner.place != place:
            raise ForeignRepository(
                f"appends go through etcd under the prefix {owner.place} here, not under {place}",
                path,
                f"use --prefix {owner.place}",
            )
        for known in (self._journal, journal):
            if known not in ("", owner.journal):
                raise ForeignRepository(
                    f"journal {owner.journal} lies here, and {known} is expected",
                    path,
                    "bring the right one back, or name the right etcd and prefix, and start this process anew",
                )
        self._journal = owner.journal
        return owner.journal

    def _check_file_system(self, authority: str, path: str) -> None:
        kind = self._file_system
        if authority == EMBEDDED and is_network(kind):
            raise WrongAuthority(
                f"the repository is on a network file system ({kind}), whose locks do not keep hosts apart",
                path,
                "move it to a disk of this host, or let etcd elect who appends (--etcd)",
            )
        if authority != EMBEDDED and not is_sharable(kind):
            raise WrongAuthority(
                f"the repository is on a file system ({kind}) on which names and syncs promise too little",
                path,
                "move it to one that docs/deployment.md names",
            )

    @cached_property
    def _file_system(self) -> str:
        path = self.repository.path
        while not path.exists() and path != path.parent:
            path = path.parent
        return file_system(path)

    @contextmanager
    def exclusive(self, space: str, *, wait: bool = True) -> Iterator[bool]:
        with ExitStack() as stack:
            try:
                mine = stack.enter_context(locked(self.repository.lock_path(space), wait=wait))
            except OSError as error:
                raise Unavailable(f"the lock of space {space} cannot be taken: {error}") from error
            yield mine

    def spaces(self) -> list[str]:
        names = set(self.repository.use(lambda handle: list(handle.references)))
        try:  # git passes over a branch that is damaged
            names.update(f"refs/heads/{name}" for name in os.listdir(self._branches))  # noqa: PTH208  # names only
        except FileNotFoundError:
            pass  # all are packed
        except OSError as error:
            raise OperatorNeeded(
                f"the branches cannot be looked at: {error.strerror}", self._branches, "give this user the right to"
            ) from error
        branches = {match[1] for name in names if (match := _BRANCH.fullmatch(name))}
        return sorted([*(space for space in branches if self._is_space(space)), *self._without_branch(branches)])

    def _without_branch(self, branches: set[str]) -> list[str]:
        """Return the spaces that lost their branch, which reading and appending name as a fault."""
        try:
            begun = os.listdir(self.repository.begun_path())  # noqa: PTH208  # names only
        except OSError:
            return []
        return [
            space for space in begun if space not in branches and _NAME.fullmatch(space) and self.lost_branch(space)
        ]

    def _is_space(self, space: str) -> bool:
        """Whether the branch is one of ours: a branch of something else is no space, but no fault either.

        One whose newest commit is not an append's is ours if its tree is: a fault to be seen.
        """
        commit = self._branch(space)
        if not commit:
            return False
        raw, kind = self.repository.use(lambda handle: read_object(handle, commit))
        if kind != pack.COMMIT:
            return False
        try:
            message.parse(raw, commit)
        except Corrupt:
            root, _ = self.repository.use(lambda handle: read_object(handle, raw[5:45].decode("ascii")))
            return b"100644 space.json\0" in root
        return True

    def head(self, space: str) -> Head:
        commit = self._branch(space)
        if not commit:
            if self.lost_branch(space):
                raise self._lost(space)
            return Head()
        known = self._heads.get(space)
        if known is not None and known.commit == commit:
            return known
        info = self._info(commit)
        self._check_about(space, info.tree)
        head = Head(info.seq, commit, info.term)
        self._heads[space] = head
        return head

    def _branch(self, space: str) -> str:
        """Return the commit that the branch shows, wherever git keeps it; empty if there is none."""
        try:
            with open(f"{self._branches}/{space}", "rb") as file:  # noqa: PTH123  # at every read; a path object costs more
                text = file.read(64)
            if _LOOSE.fullmatch(text):
                return text[:40].decode("ascii")
        except OSError:
            pass  # packed, or not there, or damaged: git knows
        self.repository.owner()  # NotFound and UnknownFormat come before anything that git would say
        try:
            return self.repository.use(lambda handle: target_of(handle, space))
        except (pygit2.GitError, ValueError) as error:
            raise Corrupt(f"the branch of space {space} is damaged: {error}", str(self.repository.path)) from error

    def lost_branch(self, space: str) -> bool:
        """Whether a space without a branch had one, where the branch is all that says how far the log goes.

        Under etcd the published head says that, and the branch is rolled forward to it.
        """
        if not self.had_branch(space):
            return False
        owner = self.repository.owner()
        return (
            owner is not None and owner.authority == EMBEDDED and not self._branch(space)
        )  # it may have come just now

    def had_branch(self, space: str) -> bool:
        """Whether the space has or had a branch, as far as that was noted here: a clone has no note of it."""
        try:
            return self.repository.begun_path(space).exists()
        except OSError:
            return False

    def _lost(self, space: str) -> Corrupt:
        """Return the error that a branch is gone, with the commit that it was at; looks at every object, once."""
        changed = self.repository.packs.stat().st_mtime_ns
        known, tips = self._tips.get(space, (0, []))
        if known != changed:
            tips = Orphans(self.repository).on(space, Head())
            self._tips[space] = changed, tips
        return branch_gone(self.repository, space, tips)

    def _note_branch(self, space: str) -> None:
        """Note that the space has a branch, so that its loss is noticed. Nothing depends on it."""
        if space in self._noted:
            return
        path = self.repository.begun_path(space)
        try:
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                path.touch()
        except OSError as error:
            logger.info("that space %s has a branch cannot be noted: %s", space, error)
        self._noted.add(space)

    def _check_about(self, space: str, root: str) -> None:
        if space not in self._checked:
            self._read_about(space, root)
            self._checked.add(space)

    def _check_log(self, space: str, root: bytes) -> None:
        """See that the log which ends with the tree `root` is this space's: a head in etcd may be another one's."""
        about = self.repository.use(lambda handle: tree.child(tree_reader(handle)(root), tree.BLOB, b"space.json"))
        if about is None or self._abouts.get(space) != about:
            self._read_about(space, root.hex(), "the head of")
            self._abouts[space] = about or b""

    def _read_about(self, space: str, root: str, what: str = "the branch") -> SpaceAbout:
        raw = self.repository.use(lambda handle: about_of(handle, bytes.fromhex(root)))
        try:
            about = msgspec.json.decode(raw, type=SpaceAbout)
        except msgspec.MsgspecError as error:
            raise Corrupt(f"space.json is not well formed: {error}", f"space {space}") from error
        if about.format != FORMAT:
            raise UnknownFormat(
                f"space {space} is of format {about.format}, this version knows {FORMAT}",
                str(self.repository.path),
                "run a newer version of coordjournal",
            )
        if about.name != space:
            raise Corrupt(f"{what} {space} holds the log of space {about.name}", str(self.repository.path))
        return about

    def _info(self, commit: str) -> message.CommitInfo:
        raw, kind = self.repository.use(lambda handle: read_object(handle, commit))
        if kind != pack.COMMIT:
            raise Corrupt("the branch does not point to a commit", f"object {commit}")
        return message.parse(raw, commit)

    def read(self, space: str, head: Head, after: int = 0, base: str | None = None) -> Iterator[Appended]:
        trail = self.repository.use(lambda handle: walk_back(handle, head, after))
        if trail.tree:
            self._check_log(space, trail.tree)
        if base is not None and (trail.start, trail.start_seq) != (base, after):
            raise Diverged
        return self._stream(trail)

    def _stream(self, trail: Trail) -> Iterator[Appended]:
        """Yield the appends of a trail: its commits backwards beside the files of its tree forwards."""
        count = len(trail.firsts)
        parent = trail.start
        for end in range(count, 0, -_CHUNK):
            start = max(0, end - _CHUNK)
            first = trail.firsts[end - 1]
            files = self.repository.use(lambda handle, f=first, n=end - start: blobs(handle, trail.tree, f, n))  # type: ignore[misc]
            for (file_first, data), at in zip(files, range(end - 1, start - 1, -1), strict=True):
                commit = trail.commits[20 * at : 20 * at + 20].hex()
                if file_first != trail.firsts[at]:
                    raise Corrupt(
                        f"the commit of entry {trail.firsts[at]} stands where the tree has entry {file_first}",
                        f"commit {commit}",
                        seq=trail.firsts[at],
                    )
                entries = decode_entries(data, file_first, commit, trail.terms[at])
                expected = trail.firsts[at - 1] - 1 if at else trail.seq
                if entries[-1].seq != expected:
                    raise Corrupt(
                        f"the file of entry {file_first} ends at {entries[-1].seq}, its commit at {expected}",
                        f"commit {commit}",
                        seq=file_first,
                    )
                yield Appended(commit, parent, trail.terms[at], entries)
                parent = commit

    def commits(self, head: Head) -> Iterator[str]:
        """Yield the commits of a log from its first append to `head`."""
        trail = self.repository.use(lambda handle: walk_back(handle, head, 0))
        return (trail.commits[at : at + 20].hex() for at in range(len(trail.commits) - 20, -1, -20))

    @property
    def patience(self) -> float:
        return _HIDDEN_SECONDS if is_network(self._file_system) else 0.0

    def has(self, space: str, head: Head) -> bool:  # noqa: ARG002  # git's commits are known by id alone
        return self.repository.use(lambda handle: head.commit in handle)

    def identity(self, space: str, head: Head) -> str:
        return self._read_about(
            space, self._info(head.commit).tree
        ).id  # a first append that is not published has one too

    def load(self, space: str, commit: str) -> Appended:  # noqa: ARG002  # likewise
        info = self._info(commit)
        first, data = self.repository.use(lambda handle: last_blob(handle, bytes.fromhex(info.tree)))
        entries = decode_entries(data, info.first, commit, info.term)
        if first != info.first or entries[-1].seq != info.seq or entries[0].key != info.key:
            raise Corrupt(f"commit and file of entry {info.first} differ", f"commit {commit}", seq=info.first)
        return Appended(commit, info.parent, info.term, entries)

    def write(self, space: str, head: Head, group: Sequence[Ready], term: int) -> list[Appended]:
        made = self._clock()
        objects: list[pack.PackObject] = []
        spine = self._spine(space, head, made, objects)
        parent, written = head.commit, []
        versions: list[tuple[int, list[tuple[bytes, bytes]]]] = []
        for append, first, data in group:
            last = first + len(append.events) - 1
            blob = tree.object_id(b"blob", data)
            objects.append(pack.PackObject(pack.BLOB, blob, data))
            trees = spine.add(first, blob)
            versions.append((first, trees))
            root = trees[-1][0].hex()
            info = message.CommitInfo(root, parent, first, last, append.key, term, self._node)
            raw = message.encode(info, append, made)
            oid = tree.object_id(b"commit", raw)
            objects.append(pack.PackObject(pack.COMMIT, oid, raw))
            commit = oid.hex()
            entries = tuple(
                Entry(seq, append.key, append.at, append.actor, event, commit, term)
                for seq, event in enumerate(append.events, first)
            )
            written.append(Appended(commit, parent, term, entries))
            parent = commit
        objects.extend(_tree_objects(versions))
        try:
            pack.install(objects, self.repository.packs, self.repository.drafts())
        except OSError as error:
            raise Unavailable(f"the disk does not take the append: {error}") from error
        with self._lock:
            if len(self._spines) >= _SPINES:
                self._spines.clear()
            self._spines[space] = (parent, spine)
        return written

    def _spine(self, space: str, head: Head, made: datetime, objects: list[pack.PackObject]) -> tree.Spine:
        """Return the trees to add to; a new space's `space.json` is added to `objects`."""
        with self._lock:
            commit, spine = self._spines.get(space, ("", None))
        if spine is not None and commit == head.commit:
            return spine.copy()
        if head.commit:
            root = bytes.fromhex(self._info(head.commit).tree)
            return self.repository.use(lambda handle: tree.Spine.load(root, tree_reader(handle)))
        about = SpaceAbout(FORMAT, space, self._random(16).hex(), format_time(made))
        raw = msgspec.json.encode(about) + b"\n"
        blob = tree.object_id(b"blob", raw)
        objects.append(pack.PackObject(pack.BLOB, blob, raw))
        return tree.Spine(blob)

    def advance(self, space: str, old: Head, new: Head) -> None:
        ref = self.repository.path / "refs" / "heads" / space
        draft = self.repository.drafts() / f"ref-{space}{self._writer}"
        try:
            refs.swap(ref, draft, lambda: self._branch(space), old.commit, new.commit, patient=not self._writer)
        except HeadMoved:
            with self._lock:
                self._spines.pop(space, None)
            raise
        self._heads[space] = new
        self._note_branch(space)
        if self._groups % _LOOK_EVERY == 0:  # the first one too: many processes append once and end
            self._compact_if_due()
        self._groups += 1

    def confirm(self, space: str) -> None:
        try:
            sync_directory(Path(self._branches))
        except OSError as error:
            raise Undecided(f"the disk does not confirm where the branch {space} is: {error}") from error

    def _compact_if_due(self) -> None:
        with self._compacting:  # each space has a thread of its own, and one compactor is enough
            if self._closed or (self._compactor is not None and self._compactor.is_alive()):
                return
            try:
                if not compaction.is_due(self.repository):
                    return
            except OSError as error:  # the append is made; that the packs cannot be counted must not hide it
                logger.warning("the packs of %s cannot be counted: %s", self.repository.path, error)
                return
            compactor = threading.Thread(target=self._compact, name="coordjournal-compaction", daemon=True)
            try:
                compactor.start()
            except RuntimeError as error:  # no thread is to be had: the next look tries again
                logger.warning("the packs of %s cannot be compacted now: %s", self.repository.path, error)
                return
            self._compactor = compactor

    def _compact(self) -> None:
        try:
            compaction.compact_if_due(self.repository)
        except Exception:
            logger.exception("compaction of %s failed; nothing is lost, it is tried again", self.repository.path)

    def close(self) -> None:
        with self._compacting:
            self._closed = True
        if self._compactor is not None:
            self._compactor.join(timeout=10.0)
        self.repository.close()


def _tree_objects(versions: list[tuple[int, list[tuple[bytes, bytes]]]]) -> Iterator[pack.PackObject]:
    """Yield the trees of a group: the newest of each directory whole, older ones as deltas on it."""
    newest: dict[tuple[int, int], tuple[bytes, bytes]] = {}
    for first, trees in reversed(versions):
        size = 1
        for level, (oid, raw) in enumerate(trees):
            size *= 100
            place = (level, first // size)
            base = newest.get(place)
            delta = prefix_delta(base[1], raw) if base is not None else None
            if base is None or delta is None:
                newest[place] = (oid, raw)
                yield pack.PackObject(pack.TREE, oid, raw)
            else:
                yield pack.PackObject(pack.TREE, oid, delta, base[0])
