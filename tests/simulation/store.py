"""A disk that several nodes share, and each node's `Store` on it: what was not synced is lost at a crash."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import sleep
from typing import Final

from coordjournal.entry import Appended, Head, decode_entries
from coordjournal.errors import Corrupt, ForeignRepository, NotFound, Unavailable, Undecided, WrongAuthority
from coordjournal.store import Diverged, HeadMoved, Ready
from tests.simulation.server import Clock

MAX_COMMITS: Final = 100_000


@dataclass(slots=True)
class _Commit:
    appended: Appended
    writer: str
    written_at: float
    synced: bool = False


@dataclass(slots=True)
class _Branch:
    """Where the branch is for sure, and where nodes moved it since without the disk's word for it."""

    synced: Head = field(default_factory=Head)
    moves: list[tuple[Head, str]] = field(default_factory=list)

    @property
    def head(self) -> Head:
        return self.moves[-1][0] if self.moves else self.synced

    def sync(self, move: tuple[Head, str]) -> None:
        """Make one move durable, and no later one. It may be already, or lost."""
        if move in self.moves:
            self.synced = move[0]
            del self.moves[: self.moves.index(move) + 1]


class _Always:
    now = 0.0


class SimulatedDisk:
    """The disk: commits and branches, each synced or not. What is not synced all nodes see nevertheless.

    With `hidden_seconds` the commits of one node are hidden from the others for that long, as directory
    caches of network file systems do; `looked` is told of each look at such a one whether it was there. `fails`
    is asked by each step that may fail, "write", "advance" and "sync", whether it does.
    """

    def __init__(
        self,
        *,
        journal: str = "0123456789abcdef0123456789abcdef",
        clock: Clock | None = None,
        hidden_seconds: float = 0.0,
        fails: Callable[[str], bool] = lambda _: False,
        looked: Callable[[bool], object] = lambda _: None,
    ) -> None:
        self.journal = journal
        self.clock: Clock = clock if clock is not None else _Always()
        self.hidden_seconds = hidden_seconds
        self.fails = fails
        self.looked = looked
        self.hid = 0
        """How often somebody looked for what was hidden from him."""
        self.owner: tuple[str, str] | None = None  # authority and place
        self.commits: dict[tuple[str, str], _Commit] = {}
        self.branches: dict[str, _Branch] = {}
        self.locks: dict[str, object] = {}

    def branch(self, space: str) -> _Branch:
        return self.branches.setdefault(space, _Branch())

    def lose_power(self, *nodes: str, survives: Callable[[], bool] = lambda: False) -> None:
        """Lose what these nodes (all, if none is named) did not sync; of that, what `survives` is kept.

        The nodes themselves are for the caller to kill, before.
        """
        for key, commit in list(self.commits.items()):
            if not commit.synced and (not nodes or commit.writer in nodes) and not survives():
                del self.commits[key]
        for branch in self.branches.values():
            branch.moves = [move for move in branch.moves if (nodes and move[1] not in nodes) or survives()]


def _go_on(label: str) -> None:
    """Yield to nobody."""


def _wait(free: Callable[[], bool]) -> None:
    """Wait as threads do."""
    while not free():
        sleep(0)


class SimulatedStore:
    """One node's `Store` on a disk. Every call is a yield point; writing and advancing have several inside.

    A commit is SHA-256 over its parent, term, node and bytes: as in git, two nodes that write the same
    append make two commits. `wait` waits for a lock; a scheduler's `sleep_until` does it for simulated nodes.
    """

    def __init__(
        self,
        disk: SimulatedDisk,
        node: str = "node",
        yield_point: Callable[[str], object] = _go_on,
        wait: Callable[[Callable[[], bool]], object] = _wait,
    ) -> None:
        self._disk = disk
        self._node = node
        self._yield_point = yield_point
        self._wait = wait

    def claim(self, authority: str, journal: str = "", place: str = "") -> str:
        self._yield_point("claim")
        disk = self._disk
        if disk.owner is None:
            if journal:
                raise ForeignRepository(f"there is no repository here, and {place} knows journal {journal}")
            disk.owner = (authority, place)
        owner, owner_place = disk.owner
        if owner != authority:
            raise WrongAuthority(f"appends go through {owner!r} here, not through {authority!r}")
        if owner_place != place:
            raise ForeignRepository(f"appends go through {owner_place!r} here, not through {place!r}")
        if journal not in ("", disk.journal):
            raise ForeignRepository(f"journal {disk.journal} lies here, and {journal} is expected")
        return disk.journal

    @contextmanager
    def exclusive(self, space: str, *, wait: bool = True) -> Iterator[bool]:
        self._enter("exclusive")
        locks, mine = self._disk.locks, object()
        taken = locks.setdefault(space, mine) is mine
        while not taken and wait:
            self._wait(lambda: space not in locks)
            taken = locks.setdefault(space, mine) is mine
        try:
            yield taken
        finally:
            if taken:
                del locks[space]  # no yield point: the kernel does it when a process dies

    def spaces(self) -> list[str]:
        self._enter("spaces")
        return sorted(space for space, branch in self._disk.branches.items() if branch.head.seq)

    def head(self, space: str) -> Head:
        self._enter("head")
        return self._disk.branch(space).head

    def read(self, space: str, head: Head, after: int = 0, base: str | None = None) -> Iterator[Appended]:
        self._enter("read")
        trail = []
        commit, seq = head.commit, head.seq
        while seq > after:
            appended = self._load(space, commit)
            if appended.seq != seq:
                raise Corrupt(f"commit {commit} ends at entry {appended.seq}, not {seq}", f"space {space}", seq=seq)
            trail.append(appended)
            commit, seq = appended.parent, appended.first - 1
        if base is not None and (commit, seq) != (base, after):
            raise Diverged
        return reversed(trail)

    @property
    def patience(self) -> float:
        return self._disk.hidden_seconds

    def has(self, space: str, head: Head) -> bool:
        self._enter("has")
        return self._in_sight(space, head.commit) is not None

    def identity(self, space: str, head: Head) -> str:
        self._enter("identity")
        first = self._load(space, head.commit)
        while first.parent:
            first = self._load(space, first.parent)
        return first.commit[:32]

    def load(self, space: str, commit: str) -> Appended:
        self._enter("load")
        return self._load(space, commit)

    def write(self, space: str, head: Head, group: Sequence[Ready], term: int) -> list[Appended]:
        self._enter("write")
        disk = self._disk
        if head.commit:
            self._load(space, head.commit)
        if disk.fails("write"):
            raise Unavailable("the disk does not take the append")
        parent, seq = head.commit, head.seq
        written = []
        for ready in group:
            assert ready.first == seq + 1, "a gap in the log"
            commit = hashlib.sha256(f"{parent} {term} {self._node}\n".encode() + ready.data).hexdigest()
            entries = decode_entries(ready.data, ready.first, commit, term)
            appended = Appended(commit, parent, term, entries)
            written.append(appended)
            parent, seq = commit, appended.seq
            disk.commits.setdefault((space, commit), _Commit(appended, self._node, disk.clock.now))
            self._yield_point("write: not synced")  # a crash here leaves some, a power cut none or some
        assert len(disk.commits) <= MAX_COMMITS
        for appended in written:
            disk.commits[space, appended.commit].synced = True
        self._yield_point("write: synced")
        return written

    def advance(self, space: str, old: Head, new: Head) -> None:
        self._enter("advance")
        disk = self._disk
        if disk.fails("advance"):
            raise Unavailable(f"the branch {space} cannot be moved")
        branch, move = disk.branch(space), (new, self._node)
        if branch.head != old:
            raise HeadMoved
        branch.moves.append(move)
        self._yield_point("advance: not synced")
        if disk.fails("sync"):
            raise Undecided(f"the branch {space} was moved, but the disk does not confirm it")
        branch.sync(move)
        self._yield_point("advance: synced")

    def confirm(self, space: str) -> None:
        self._enter("confirm")
        branch = self._disk.branch(space)
        if branch.moves:
            if self._disk.fails("sync"):
                raise Undecided(f"the disk does not confirm where the branch {space} is")
            branch.sync(branch.moves[-1])

    def close(self) -> None:
        pass  # there are no files to let go of

    def _enter(self, label: str) -> None:
        self._yield_point(label)
        if self._disk.owner is None:
            raise NotFound("there is no repository")

    def _in_sight(self, space: str, commit: str) -> _Commit | None:
        disk = self._disk
        found = disk.commits.get((space, commit))
        if found is None or found.writer == self._node:
            return found
        there = disk.clock.now >= found.written_at + disk.hidden_seconds
        disk.looked(there)
        disk.hid += not there
        return found if there else None

    def _load(self, space: str, commit: str) -> Appended:
        found = self._in_sight(space, commit)
        if found is None:
            raise Corrupt(f"no commit {commit}", f"space {space}")
        return found.appended
