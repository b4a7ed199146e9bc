"""What `adopt` and `recover` find and change in a repository: the port, and git behind it.

A simulated repository stands behind it too, so that both are tried between any two steps of everybody else.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

import pygit2

from coordjournal.entry import Head
from coordjournal.errors import ForeignRepository, OperatorNeeded, Unavailable, WrongAuthority
from coordjournal.store import Store, compaction
from coordjournal.store.files import file_system, is_network, is_sharable, locked, sync, sync_directory
from coordjournal.store.git import GitStore
from coordjournal.store.orphans import Orphans
from coordjournal.store.repository import Owner, Repository, write_owner
from coordjournal.verification import verify_space

_FORBIDDEN: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


class Premises(Protocol):
    """A repository as an operator's commands see it: its store, and what only they do to it."""

    @property
    def store(self) -> Store:
        """The log."""

    @property
    def where(self) -> str:
        """The place of the repository, in words."""

    def owner(self) -> Owner | None:
        """Return whose it is; None for a mirror clone, which is nobody's."""

    def give_to(self, owner: Owner) -> None:
        """Write into the config whose it is: all of it, or nothing of it, durably. Raises `Unavailable`."""

    def check_sharable(self) -> None:
        """Raise `WrongAuthority` if the file system promises too little for hosts that share it."""

    def check_local(self) -> None:
        """Raise `WrongAuthority` if it is not on a disk of this host."""

    def check_clone(self, spaces: Sequence[str]) -> None:
        """Raise `ForeignRepository` if a repository that belongs to nobody cannot be made a journal."""

    def remotes(self) -> list[str]:
        """Return the names of the remotes, from which a fetch would overwrite the branches."""

    def forget_remotes(self) -> None:
        """Delete the settings of all remotes."""

    def hold_all(self, locks: ExitStack, held: set[str]) -> list[str]:
        """Hold every lock there is but those `held`, and those of all spaces; return the spaces."""

    def verify(self, space: str, head: Head | None = None) -> None:
        """Walk all of a space's log, up to the branch unless `head` is given. Raises `Corrupt`, `UnknownEvent`."""

    def standing_on(self, space: str, head: Head) -> list[Head]:
        """Return the ends of the chains of appends that stand on a head, whether a branch holds them or not."""

    def begun(self) -> set[str]:
        """Return the names of all spaces whose first append is here."""

    def now(self) -> float:
        """Return a time in seconds that only grows."""

    def sleep(self, seconds: float) -> None:
        """Let time pass."""


class GitPremises:
    """`Premises` in git."""

    def __init__(self, store: GitStore) -> None:
        self.store = store
        self.where = str(store.repository.path)
        self._repository = store.repository
        self._orphans = Orphans(store.repository)

    def owner(self) -> Owner | None:
        return self._repository.owner()

    def give_to(self, owner: Owner) -> None:
        replace_owner(self._repository, owner)

    def check_sharable(self) -> None:
        if not is_sharable(kind := file_system(self._repository.path)):
            raise WrongAuthority(
                f"the file system ({kind}) promises too little for hosts that share it",
                self.where,
                "move it to one that docs/deployment.md names",
            )

    def check_local(self) -> None:
        if is_network(kind := file_system(self._repository.path)):
            raise WrongAuthority(
                f"it is on a network file system ({kind})", self.where, "copy it to a disk of this host"
            )

    def check_clone(self, spaces: Sequence[str]) -> None:
        if (self._repository.path / "objects" / "info" / "alternates").exists():
            raise ForeignRepository(
                "it borrows objects of another repository (objects/info/alternates), which may delete them",
                self.where,
                "clone it with `git clone --mirror --no-local` and adopt that",
            )
        if not spaces:
            raise ForeignRepository("no branch here is a space's log", self.where, "adopt a clone of a journal")

    def remotes(self) -> list[str]:
        return sorted({name.split(".", 1)[1].rpartition(".")[0] for name in self._remote_settings()})

    def forget_remotes(self) -> None:
        config = pygit2.Config(str(self._repository.path / "config"))
        for name in self._remote_settings():  # libgit2's own way would delete the branches with a mirror's
            config.delete_multivar(name, ".*")

    def _remote_settings(self) -> set[str]:
        config = pygit2.Config(str(self._repository.path / "config"))
        return {entry.name for entry in config if entry.name.startswith("remote.")}

    def hold_all(self, locks: ExitStack, held: set[str]) -> list[str]:
        names = {compaction.LOCK, *self.store.spaces()}
        folder = self._repository.lock_path(compaction.LOCK).parent
        names.update(name for name in os.listdir(folder))  # noqa: PTH208  # names only
        for name in sorted(names - held):
            locks.enter_context(locked(self._repository.lock_path(name)))
            held.add(name)
        return self.store.spaces()

    def verify(self, space: str, head: Head | None = None) -> None:
        verify_space(self.store, space, head)

    def standing_on(self, space: str, head: Head) -> list[Head]:
        return self._orphans.on(space, head)

    def begun(self) -> set[str]:
        return self._orphans.begun()

    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raise `OperatorNeeded` where the repository at `path` may not be written: to try again does not mend that."""
    try:
        yield
    except (Unavailable, OSError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError) or cause.errno not in _FORBIDDEN:
            raise
        raise OperatorNeeded(
            f"the repository cannot be written: {cause.strerror}: {cause.filename}",
            os.fspath(path),
            "mount it so that it can be, or run this as its owner",
        ) from error


def store_of(path: str | os.PathLike[str]) -> GitStore:
    """Return the store at `path`, as a writer that is told apart from all others."""
    writer = f"-{os.getpid()}-{os.urandom(4).hex()}"
    clock = lambda: datetime.now(UTC)  # noqa: E731  # it is one where it is used
    return GitStore(Path(path), node=socket.gethostname(), clock=clock, random=os.urandom, writer=writer)


def replace_owner(repository: Repository, owner: Owner) -> None:
    """Write into the config whose the repository is: all of it, or nothing of it, durably."""
    config = repository.path / "config"
    draft = repository.drafts() / f"config-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        shutil.copy2(config, draft)
        write_owner(draft, owner)
        file = os.open(draft, os.O_RDONLY | os.O_CLOEXEC)
        try:
            sync(file)
        finally:
            os.close(file)
        draft.replace(config)
        sync_directory(repository.path)
    except (OSError, pygit2.GitError) as error:
        raise Unavailable(f"the config of {repository.path} cannot be written: {error}") from error
    finally:
        draft.unlink(missing_ok=True)
