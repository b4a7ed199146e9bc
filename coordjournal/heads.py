"""Which head a space has, where branch and etcd do not agree: what both knew, and nothing made up."""

from __future__ import annotations

from typing import Final, NamedTuple

from coordjournal.authority.wire import HeadValue, decode_head
from coordjournal.entry import Head
from coordjournal.errors import CoordJournalError, Corrupt, MissingObjects, NotFound, OperatorNeeded, Unavailable
from coordjournal.etcd import KeyValue
from coordjournal.premises import Premises
from coordjournal.store import Diverged, HeadMoved

_PAUSE_SECONDS: Final = 1.0


class Case(NamedTuple):
    """What is to be done about one space: which head is published, and in the place of what."""

    space: str
    before: KeyValue | None
    head: Head
    loses: bool
    step: str


class Heads:
    """The heads that a repository has or could have."""

    def __init__(self, here: Premises) -> None:
        self._here = here
        self._store = here.store

    def branch(self, space: str) -> Head:
        """Return where the branch is."""
        return self._store.head(space)

    def case(self, space: str, found: KeyValue | None, chosen: str = "") -> Case | None:
        """Return what has to be done so that `found`, which etcd has, is the space's head; None if it is.

        `chosen` is the commit to publish. Raises `OperatorNeeded` where an operator has to choose one, or to
        bring something back, `NotFound` where there is nothing that could be published.
        """
        branch = self.branch(space)
        if chosen:
            return self._chosen(space, found, branch, chosen)
        value = known(found)
        if found is None or value is None:
            where = "" if found is None else ", where etcd has something that is no head"
            return self._at_branch(space, found, branch, where, loses=found is not None)
        head = value.head
        if not self.has(space, head):
            if not branch.seq:
                raise self._gone(space, head)
            where = f", where etcd has {head.seq} whose objects are lost"
            return self._at_branch(space, found, branch, where, loses=True)
        if self.holds(space, head, branch):
            step = f"publish the head of space {space} again: entry {head.seq}"
            return Case(space, found, head, False, step) if value.left else None
        if self.holds(space, branch, head):
            return self._at_branch(space, found, branch, f", where etcd has {head.seq}", loses=False)
        raise Corrupt(
            f"the branch, commit {branch.commit} of entry {branch.seq}, and the published head, commit"
            f" {head.commit} of entry {head.seq}, have parted",
            f"space {space}",
            f"look at both, and choose one: `coordjournal recover {space} --to COMMIT`",
        )

    def _at_branch(self, space: str, found: KeyValue | None, branch: Head, where: str, *, loses: bool) -> Case:
        if not branch.seq:
            tips = self.standing_on(space, branch)
            choice = f"; but commit {tips[0].commit}, entry {tips[0].seq}, is: choose it with --to" if tips else ""
            raise NotFound(f"there is no space {space}, neither a branch here nor a head in etcd{choice}")
        step = f"publish the head of space {space}: entry {branch.seq}{where}"
        return Case(space, found, branch, loses, step)

    def standing_on(self, space: str, branch: Head) -> list[Head]:
        """Return the ends of the sound logs that hold the branch and more: only etcd knew whether they count."""
        return [tip for tip in self._here.standing_on(space, branch) if self._is_sound(space, tip)]

    def begun(self) -> set[str]:
        """Return the names of all spaces of which the repository has the first append, with a branch or without."""
        return self._here.begun()

    def _is_sound(self, space: str, head: Head) -> bool:
        try:
            self._here.verify(space, head)
        except CoordJournalError:
            return False
        return True

    def _chosen(self, space: str, found: KeyValue | None, branch: Head, commit: str) -> Case:
        value = known(found)
        published = value.head if value is not None else Head()
        choices = [head for head in (branch, *self.standing_on(space, branch)) if head.seq and head.commit == commit]
        if published.commit == commit and self.has(space, published):
            choices.append(published)
        if not choices:
            raise NotFound(
                f"commit {commit} is neither the branch of space {space}, nor what etcd has published, nor an append"
                " that stands on the branch (write it in full)"
            )
        head = choices[0]
        keeps_published = value is not None and self.has(space, published) and self.holds(space, head, published)
        loses = not (self.holds(space, head, branch) and (found is None or keeps_published))
        step = f"publish entry {head.seq}, commit {head.commit}, as the head of {space}"
        return Case(space, found, head, loses, step)

    def _gone(self, space: str, head: Head) -> MissingObjects:
        return MissingObjects(
            f"entry {head.seq}, commit {head.commit}, is published, and nothing of the space is here",
            f"space {space}",
            f"bring it back from a clone: `git fetch CLONE refs/heads/{space}:refs/heads/{space}`",
        )

    def newest(self, space: str, found: KeyValue | None) -> Head:
        """Return the one of the branch and what etcd has that holds the other.

        Raises `OperatorNeeded` if neither does, `MissingObjects` if what etcd has is not here.
        """
        branch, value = self.branch(space), known(found)
        if value is None:
            return branch
        head = value.head
        if value.left and branch.seq and value.space != self._store.identity(space, branch):
            return branch  # another journal had its keys here, and left
        if not self.has(space, head):
            raise MissingObjects(
                f"entry {head.seq}, commit {head.commit}, is published, and its objects are not here",
                f"space {space}",
                f"bring them back (`git fetch` from a clone); if they are lost, run `coordjournal recover {space}`",
            )
        if self.holds(space, branch, head):
            return branch
        if self.holds(space, head, branch):
            return head
        raise Corrupt(
            f"the branch, at entry {branch.seq}, is not part of the published log, which ends at {head.seq}",
            f"space {space}",
            f"run `coordjournal recover {space}`, which shows both",
        )

    def has(self, space: str, head: Head) -> bool:
        """Whether a head's objects are here; looks for as long as another host's may be hidden."""
        until = self._here.now() + self._store.patience
        while not self._store.has(space, head):
            if self._here.now() >= until:
                return False
            self._here.sleep(_PAUSE_SECONDS)
        return True

    def holds(self, space: str, head: Head, part: Head) -> bool:
        """Whether the log that `head` ends holds the one that `part` ends."""
        if head.seq < part.seq:
            return False
        try:
            self._store.read(space, head, part.seq, part.commit)
        except Diverged:
            return False
        return True

    def move_branch(self, space: str, head: Head) -> None:
        """Move the branch to a head that was published, unless it is there or further. Raises `Unavailable`."""
        for _ in range(5):
            branch = self.branch(space)
            if branch == head or self.holds(space, branch, head):
                return
            try:
                self._store.advance(space, branch, head)
            except HeadMoved:
                continue  # by a holder that rolls it forward
            return
        raise Unavailable(f"the branch of space {space} is moved by others again and again; run the command again")

    def set_branch(self, space: str, old: Head, new: Head) -> None:
        """Move the branch from `old` to `new`, which may be an earlier one or another log."""
        if old == new:
            return
        try:
            self._store.advance(space, old, new)
        except HeadMoved:
            self.move_branch(space, new)


def known(found: KeyValue | None) -> HeadValue | None:
    """Return what a head's key says, None where there is none or it is not well formed."""
    if found is None:
        return None
    try:
        return decode_head(found.value, "")
    except OperatorNeeded:
        return None
