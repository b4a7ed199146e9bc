"""The bare repository: made whole or not at all, checked before it is believed, opened for one thread at a time."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import pygit2
from pygit2.enums import ConfigLevel, RepositoryOpenFlag

from coordjournal.errors import Corrupt, NotFound, OperatorNeeded, Unavailable, UnknownFormat
from coordjournal.retry import STALE_HANDLE, HandleStale
from coordjournal.store.files import make_directory, replace_synced, sync, sync_directory

T = TypeVar("T")

_OWN: Final = "coordjournal"  # our directory in the repository, and our section of its config
_POOLED: Final = 8
_SHORT_OF: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))
# What libgit2 1.9 and we both understand; another value or extension may mean another way of storing things.
_EXTENSIONS: Final = {
    "preciousobjects": None,
    "noop": None,
    "objectformat": "sha1",
    "refstorage": "files",
}


class Owner(NamedTuple):
    """Through which authority a repository is appended to, its journal's random id, and the authority's place.

    `place` is the prefix of the keys in etcd; empty without etcd.
    """

    authority: str
    journal: str
    place: str = ""


class Repository:
    """One bare git repository. Nothing is opened before it is used; safe in many threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.packs = path / "objects" / "pack"
        self.own = path / _OWN
        self._lock = threading.Lock()
        self._handles: list[pygit2.Repository] = []
        self._generation: bytes | None = None
        self._checked: tuple[int, int, int] | None = None
        self._owner: Owner | None = None

    def exists(self) -> bool:
        """Whether there is anything at the path. Raises `OperatorNeeded` if that may not be known."""
        try:
            return self.path.exists() and not _is_empty(self.path)
        except OSError as error:
            raise OperatorNeeded(
                f"the repository cannot be looked at: {error.strerror}", str(self.path), "give this user the right to"
            ) from error

    def create(self, owner: Owner) -> None:
        """Make the repository, unless another process does so first; it appears whole or not at all."""
        parent = self.path.parent
        draft = parent / f".{self.path.name}.{os.getpid()}.{os.urandom(4).hex()}"
        try:
            make_directory(parent)
            _sync_what_git_writes()
            pygit2.init_repository(str(draft), bare=True, initial_head="main")
            shutil.rmtree(draft / "hooks", ignore_errors=True)
            (draft / _OWN / "locks").mkdir(parents=True)
            (draft / _OWN / "drafts").mkdir()
            (draft / "description").write_text("A coordjournal: decisions of wikis, one branch a space.\n")
            write_owner(draft / "config", owner)
            _sync_tree(draft)
            draft.rename(self.path)
            sync_directory(parent)
        except (OSError, pygit2.GitError) as error:
            if not self.exists():
                raise Unavailable(f"{self.path} cannot be made: {error}") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def owner(self) -> Owner | None:
        """Return whose repository it is, None for a clone or a repository of something else.

        Raises `NotFound` and `UnknownFormat`.
        """
        self._check()
        return self._owner

    def lock_path(self, name: str) -> Path:
        """Return the file that stands for the lock `name`; only in a repository that has an owner."""
        path = self.own / "locks" / name
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def begun_path(self, space: str = "") -> Path:
        """Return the file whose presence says that `space` had a branch; without one, the directory of those files."""
        return self.own / "begun" / space

    def drafts(self) -> Path:
        """Return the directory of unfinished files, on the same disk as the packs."""
        path = self.own / "drafts"
        if not path.is_dir():
            path.mkdir(parents=True, exist_ok=True)
        return path

    def use(self, work: Callable[[pygit2.Repository], T]) -> T:
        """Return `work(handle)`; if compaction replaced packs under the handle, with a new one.

        `work` raises `KeyError` or `OSError` where git lacks an object: with a new handle as well, it
        is `Corrupt`.
        """
        try:
            result: T = STALE_HANDLE(self._attempt, work)
        except HandleStale as stale:
            raise Unavailable(f"{self.path} is compacted again and again; try again") from stale
        return result

    def _attempt(self, work: Callable[[pygit2.Repository], T]) -> T:
        before = self._read_generation()
        with self._handle() as handle:
            try:
                return work(handle)
            except (KeyError, OSError, pygit2.GitError) as error:
                if isinstance(error, OSError) and error.errno in _SHORT_OF:
                    raise Unavailable(f"this process is short of files or memory: {error}") from error
                self._drop_handles()
                if self._read_generation() != before:
                    raise HandleStale from error
                fault = error
        with self._handle() as handle:  # packs may vanish a moment before the generation tells
            try:
                return work(handle)
            except (KeyError, OSError, pygit2.GitError):
                raise Corrupt(f"git cannot read an object of the log: {fault}", str(self.path)) from fault

    @contextmanager
    def _handle(self) -> Iterator[pygit2.Repository]:
        self._check()
        generation = self._read_generation()
        with self._lock:
            if generation != self._generation:
                self._free_handles()
                self._generation = generation
            handle = self._handles.pop() if self._handles else None
        if handle is None:
            handle = _open(self.path)
        try:
            yield handle
        finally:
            with self._lock:
                if generation == self._generation and len(self._handles) < _POOLED:
                    self._handles.append(handle)
                else:
                    handle.free()

    def _drop_handles(self) -> None:
        with self._lock:
            self._free_handles()
            self._generation = None

    def _free_handles(self) -> None:
        """Close the handles that nobody uses, at once: they hold themselves, and deleted packs open."""
        while self._handles:
            self._handles.pop().free()

    def _read_generation(self) -> bytes:
        try:
            return (self.own / "generation").read_bytes()
        except OSError:
            return b""

    def next_generation(self) -> None:
        """Tell every process that packs were replaced, so that it opens new handles."""
        replace_synced(self.own / "generation", os.urandom(8).hex().encode() + b"\n")
        self._drop_handles()

    def close(self) -> None:
        """Let go of all handles."""
        self._drop_handles()

    def _check(self) -> None:
        """Read the config again if it changed, and refuse a format that is not ours."""
        config = self.path / "config"
        try:
            stat = config.stat()
        except OSError:
            if not self.exists():
                raise NotFound(f"there is no repository at {self.path}; `coordjournal init` makes one") from None
            if config.exists():  # another process made the repository just now; it appeared whole
                self._check()
                return
            raise UnknownFormat("this is no bare git repository", str(self.path), "name the right one") from None
        signature = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        if signature != self._checked:
            self._owner = _read_config(self.path)
            self._checked = signature


def _sync_what_git_writes() -> None:
    """Tell libgit2, for the whole process, to sync: it does not read git's core.fsync.

    And to do without a user's configuration that may not be read, as git does: a service's HOME is
    often somebody else's.
    """
    pygit2.settings.enable_fsync_gitdir(True)
    for level, name in ((ConfigLevel.GLOBAL, ".gitconfig"), (ConfigLevel.XDG, "config")):
        try:
            for place in pygit2.settings.search_path[level].split(os.pathsep):
                (Path(place) / name).stat()
        except PermissionError:
            pygit2.settings.search_path[level] = ""
        except OSError:
            continue


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _open(path: Path) -> pygit2.Repository:
    _sync_what_git_writes()
    try:
        return pygit2.Repository(str(path), RepositoryOpenFlag.NO_SEARCH | RepositoryOpenFlag.BARE)
    except (pygit2.GitError, KeyError, OSError) as error:
        if "not owned by" in str(error):
            raise OperatorNeeded(
                "git does not trust the repository: it is not owned by this user",
                str(path),
                f"run `git config --global --add safe.directory {path}`",
            ) from error
        raise UnknownFormat(f"git cannot open the repository: {error}", str(path), "look at its config") from error


def _read_config(path: Path) -> Owner | None:
    try:
        config = pygit2.Config(str(path / "config"))
        values = {entry.name.lower(): entry.value or "" for entry in config}
    except (pygit2.GitError, OSError, UnicodeDecodeError) as error:
        raise UnknownFormat(f"its config cannot be read: {error}", str(path), "mend the config") from error
    if fault := _format_fault(path, values):
        raise UnknownFormat(fault, str(path), "make a plain clone with `git clone --mirror` and open that")
    authority, journal = values.get(f"{_OWN}.authority", ""), values.get(f"{_OWN}.journal", "")
    return Owner(authority, journal, values.get(f"{_OWN}.place", "")) if authority and journal else None


def _format_fault(path: Path, values: dict[str, str]) -> str:
    if not (path / "objects").is_dir() or not (path / "HEAD").is_file():
        return "this is no bare git repository"
    if values.get("core.repositoryformatversion", "0") not in ("0", "1"):
        return f"its repositoryformatversion is {values['core.repositoryformatversion']}, not 0 or 1"
    if values.get("core.bare", "true").lower() in ("false", "no", "off", "0"):
        return "this is no bare git repository: it has a working tree"
    for name, value in values.items():
        if name.startswith("extensions."):
            extension = name.partition(".")[2]
            if extension not in _EXTENSIONS or _EXTENSIONS[extension] not in (None, value.lower()):
                return f"its git extension {extension} = {value} is not supported"
        if name.startswith("remote.") and name.endswith((".promisor", ".partialclonefilter")):
            return "it is a partial clone, which lacks objects"
    return "it is a shallow clone, which lacks history" if (path / "shallow").exists() else ""


def write_owner(config_path: Path, owner: Owner) -> None:
    """Write into a repository's config whose it is, and that git must not delete objects in it."""
    config = pygit2.Config(str(config_path))
    config["core.repositoryformatversion"] = 1
    config["extensions.preciousObjects"] = True
    config["gc.auto"] = 0
    config["receive.autogc"] = False
    config["receive.denyNonFastForwards"] = True
    config["receive.denyDeletes"] = True
    config[f"{_OWN}.journal"] = owner.journal
    if owner.place:
        config[f"{_OWN}.place"] = owner.place
    elif f"{_OWN}.place" in config:
        del config[f"{_OWN}.place"]
    config[f"{_OWN}.authority"] = owner.authority


def _sync_tree(root: Path) -> None:
    for directory, _, names in os.walk(root):
        for name in names:
            file = os.open(Path(directory) / name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                sync(file)
            finally:
                os.close(file)
        sync_directory(Path(directory))
