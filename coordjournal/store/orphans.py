"""Commits that no branch holds: what a crash, or a lost etcd, may have left of a log."""

from __future__ import annotations

from functools import cached_property
from typing import Final

import msgspec
import pygit2

from coordjournal.entry import Head
from coordjournal.errors import Corrupt
from coordjournal.store import message, pack
from coordjournal.store.repository import Repository
from coordjournal.store.walk import about_of, read_object

_MAX_TIPS: Final = 20

Children = dict[str, list[tuple[bytes, Head]]]
"""The appends that stand on a commit, "" for those that begin a log: each one's root tree, and the head it makes."""


class Orphans:
    """The chains of appends that lie in a repository, whether a branch holds them or not.

    Every object is read once, when that is first asked for.
    """

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def on(self, space: str, head: Head) -> list[Head]:
        """Return the ends of the chains that stand on `head`, the newest term and greatest seq first.

        On an empty head they are those that begin the log of `space`.
        """
        tips: list[Head] = []
        reached = [
            child for root, child in self._children.get(head.commit, ()) if head.seq or self._name(root) == space
        ]
        while reached:
            child = reached.pop()
            on_it = [further for _, further in self._children.get(child.commit, ())]
            reached += on_it
            if not on_it:
                tips.append(child)
        return sorted(tips, key=lambda tip: (tip.term, tip.seq), reverse=True)[:_MAX_TIPS]

    def begun(self) -> set[str]:
        """Return the names of all spaces whose first append is here."""
        names = (self._name(root) for root, _ in self._children.get("", ()))
        return {name for name in names if name}

    @cached_property
    def _children(self) -> Children:
        return self._repository.use(_read_all)

    def _name(self, root: bytes) -> str:
        """Return the name of the space whose tree it is; empty if it is none's."""
        try:
            about = msgspec.json.decode(self._repository.use(lambda handle: about_of(handle, root)))
        except (Corrupt, msgspec.MsgspecError):
            return ""
        name = about.get("name") if isinstance(about, dict) else None
        return name if isinstance(name, str) else ""


def branch_gone(repository: Repository, space: str, tips: list[Head]) -> Corrupt:
    """Return the error that a space's branch is gone; `tips` are the ends of its log, as `Orphans.on` gives them."""
    where, run = (
        str(repository.path),
        f"bring it back from a clone: `git fetch CLONE refs/heads/{space}:refs/heads/{space}`",
    )
    what, seq = f"the branch of space {space} is gone, and so is what it held", 0
    if tips:
        what = f"the branch of space {space} is gone, whose log reached entry {tips[0].seq}, commit {tips[0].commit}"
        seq = tips[0].seq
        run = f"bring it back: `git update-ref refs/heads/{space} {tips[0].commit}`"
        if len(tips) > 1:
            others = ", ".join(tip.commit for tip in tips[1:])
            run += f" (`git log` shows where it parts from what else ends a log of that space: {others})"
    note = repository.begun_path(space)
    if note.exists():
        run += f"; or, to begin the space anew on purpose, delete {note}"
    return Corrupt(what, where, run, seq)


def _read_all(handle: pygit2.Repository) -> Children:
    children: Children = {}
    for oid in handle:
        raw, kind = read_object(handle, str(oid))
        if kind != pack.COMMIT:
            continue
        try:
            info = message.parse(raw, str(oid))
        except Corrupt:
            continue  # an operator's own commit
        children.setdefault(info.parent, []).append((bytes.fromhex(info.tree), Head(info.seq, str(oid), info.term)))
    return children
