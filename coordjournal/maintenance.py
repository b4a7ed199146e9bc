"""What an operator does with a repository: make it, verify it, compact it."""

from __future__ import annotations

import os
import socket
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from coordjournal.authority.node import Node
from coordjournal.authority.settings import Settings
from coordjournal.cache import SpaceCache
from coordjournal.errors import NotFound
from coordjournal.replica import Replica
from coordjournal.store import EMBEDDED, compaction
from coordjournal.store.compaction import Compacted
from coordjournal.store.git import GitStore
from coordjournal.store.repository import Owner
from coordjournal.verification import Verified, verify_branches, verify_packs, verify_space


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


def verify(path: str | os.PathLike[str], space: str | None = None) -> list[Verified]:
    """Walk everything of one space, or of all and every pack, and return what was found sound.

    Raises `Corrupt`, `UnknownEvent`, `UnknownFormat` for the first fault, `NotFound` if there is no
    such repository or space.
    """
    with closing(_store(path)) as store:
        spaces = store.spaces() if space is None else [space]
        if space is not None and not store.head(space).seq:
            raise NotFound(f"there is no space {space} in {store.repository.path}")
        sound = [verify_space(store, name) for name in spaces]
        if space is None:
            verify_packs(store.repository)
            verify_branches(store)
        return sound


def compact(path: str | os.PathLike[str]) -> Compacted:
    """Make one pack of all; may run while others append. Raises `NotFound`, `Unavailable`, `Corrupt`.

    Raises `ForeignRepository` for a mirror clone, which is plain git's to pack.
    """
    with closing(_store(path)) as store:
        if store.repository.owner() is None:
            store.claim(EMBEDDED)  # says what it is
        return compaction.compact(store.repository)


def _store(path: str | os.PathLike[str]) -> GitStore:
    return GitStore(Path(path), node=socket.gethostname(), clock=lambda: datetime.now(UTC), random=os.urandom)
