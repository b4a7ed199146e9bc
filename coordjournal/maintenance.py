"""What an operator does with a repository: make it, verify it, compact it."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from coordjournal.authority.node import Node
from coordjournal.authority.settings import Settings
from coordjournal.cache import SpaceCache
from coordjournal.errors import NotFound, Unavailable
from coordjournal.inspection import Inspection
from coordjournal.keyspace import Keyspace
from coordjournal.premises import writing
from coordjournal.replica import Replica
from coordjournal.store import EMBEDDED, ETCD, compaction
from coordjournal.store.compaction import Compacted
from coordjournal.store.git import GitStore
from coordjournal.store.repository import Owner
from coordjournal.verification import SpaceWalk, Verified, verify_branches, verify_packs


def init(path: str | os.PathLike[str], settings: Settings | None = None) -> Owner:
    """Make the repository at `path` if it is not there, and return whose it is.

    With an etcd in `settings` appends go through that. Raises `ForeignRepository` and `WrongAuthority` if
    there is one of another journal or authority, `HeadMissing`, `Unavailable`.
    """
    with closing(_store(path)) as store:
        if settings is not None and settings.etcd:
            settings.check()
            node = Node.connect(settings, store, lambda space: Replica(space, store, SpaceCache(None)))
            try:
                node.identify()
            finally:
                node.etcd.close()
        else:
            store.claim(EMBEDDED)
        owner = store.repository.owner()
        assert owner is not None  # claim saw to it
        return owner


class Sound(NamedTuple):
    """What was found sound: the spaces, and how many keys in etcd; None where etcd was not looked at."""

    spaces: list[Verified]
    keys: int | None = None


def verify(path: str | os.PathLike[str], space: str | None = None) -> list[Verified]:
    """Walk everything of one space, or of all and every pack, and return what was found sound.

    Raises `Corrupt`, `UnknownEvent`, `UnknownFormat` for the first fault, `NotFound` if there is no
    such repository or space.
    """
    return verify_with(path, Settings(), space).spaces


def verify_with(path: str | os.PathLike[str], settings: Settings, space: str | None = None) -> Sound:
    """Do what `verify` does, and look at every key of a journal that is under the etcd that is named.

    Raises also `ForeignRepository`, `HeadMissing`, `HeadBehind`, `MissingObjects` and other `OperatorNeeded`
    for what is wrong there, `Unavailable` if etcd does not answer. Nothing is written.
    """
    with ExitStack() as stack:
        store = stack.enter_context(closing(_store(path)))
        spaces = store.spaces() if space is None else [space]
        etcd = _inspection(store, settings, stack)
        trouble: Unavailable | None = None
        try:
            if etcd is not None:
                etcd.begin(has_spaces=bool(spaces))
        except Unavailable as error:
            etcd, trouble = None, error
        sound = [_walked(store, name, etcd) for name in spaces]
        if space is not None and not sound[0].seq:
            raise NotFound(f"there is no space {space} in {store.repository.path}")
        keys = etcd.rest(space) if etcd is not None else None
        if space is None:
            verify_packs(store.repository)
            verify_branches(store)
        if trouble is not None:
            raise Unavailable(f"the repository is sound; {trouble}") from trouble
        return Sound(sound, keys)


def _walked(store: GitStore, space: str, etcd: Inspection | None) -> Verified:
    walk = SpaceWalk(store, space)
    walk.to(store.head(space))
    if etcd is not None and walk.head.seq:
        etcd.follow(walk)
    return walk.verified


def _inspection(store: GitStore, settings: Settings, stack: ExitStack) -> Inspection | None:
    """Return what looks at etcd; None if none is named, or the journal is not etcd's: a mirror clone of one, say."""
    owner = store.repository.owner()
    if not settings.etcd or owner is None or owner.authority != ETCD:
        return None
    return Inspection(store, Keyspace.connected(settings, stack), owner)


def compact(path: str | os.PathLike[str]) -> Compacted:
    """Make one pack of all; may run while others append. Raises `NotFound`, `Unavailable`, `Corrupt`.

    Raises `ForeignRepository` for a mirror clone, which is plain git's to pack, and `OperatorNeeded` where it
    may not be written.
    """
    with writing(path), closing(_store(path)) as store:
        if store.repository.owner() is None:
            store.claim(EMBEDDED)  # says what it is
        return compaction.compact(store.repository)


def _store(path: str | os.PathLike[str]) -> GitStore:
    return GitStore(Path(path), node=socket.gethostname(), clock=lambda: datetime.now(UTC), random=os.urandom)
