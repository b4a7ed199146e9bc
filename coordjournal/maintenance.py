"""What an operator does with a repository: make it, verify it, compact it, adopt it, examine it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.metadata import requires, version
from pathlib import Path
from typing import Final, NamedTuple

import pygit2

from coordjournal.errors import CoordJournalError, ForeignRepository, NotFound, WrongAuthority
from coordjournal.store import EMBEDDED, compaction, pack
from coordjournal.store.compaction import Compacted
from coordjournal.store.files import file_system, is_network, locked
from coordjournal.store.git import GitStore
from coordjournal.store.repository import Owner, Repository, write_owner
from coordjournal.verification import Verified, verify_space

_MANY_PACKS: Final = 200
_OLD_LOCK_SECONDS: Final = 60.0
_LITTLE_BYTES: Final = 100 << 20


class Adopted(NamedTuple):
    """What an adoption did, or would do: the journal's id, its spaces, whether anything changed, the steps."""

    journal: str
    spaces: int
    changed: bool
    steps: list[str]


class Finding(NamedTuple):
    """One thing that was examined: `ok` is None where it is a fact and no judgement."""

    name: str
    ok: bool | None
    found: str
    advice: str = ""


def init(path: str | os.PathLike[str]) -> Owner:
    """Make the repository at `path` if it is not there, and return whose it is.

    Raises `ForeignRepository` and `WrongAuthority` if there is one that is not an embedded journal's.
    """
    store = _store(path)
    store.claim(EMBEDDED)
    owner = store.repository.owner()
    assert owner is not None  # claim saw to it
    return owner


def verify(path: str | os.PathLike[str], space: str | None = None) -> list[Verified]:
    """Walk everything of one space, or of all, and return what was found sound.

    Raises `Corrupt`, `UnknownEvent`, `UnknownFormat` for the first fault, `NotFound` if there is no
    such repository or space.
    """
    store = _store(path)
    spaces = store.spaces() if space is None else [space]
    if space is not None and not store.head(space).seq:
        raise NotFound(f"there is no space {space} in {store.repository.path}")
    return [verify_space(store, name) for name in spaces]


def compact(path: str | os.PathLike[str]) -> Compacted:
    """Make one pack of all; may run while others append. Raises `NotFound`, `Unavailable`, `Corrupt`.

    Raises `ForeignRepository` for a mirror clone, which is plain git's to pack.
    """
    store = _store(path)
    if store.repository.owner() is None:
        store.claim(EMBEDDED)  # says what it is
    return compaction.compact(store.repository)


def adopt(path: str | os.PathLike[str], *, dry_run: bool = False) -> Adopted:
    """Make a mirror clone an embedded journal of its own: the way back from a backup.

    Every space is verified first; remotes that would overwrite its branches are removed. Nothing is
    changed if `dry_run`, or if it is an embedded journal already. Raises what `verify` does,
    `ForeignRepository` if it holds no space or borrows objects, `WrongAuthority` if it has another authority or is on a
    network file system.
    """
    store = _store(path)
    repository = store.repository
    owner = repository.owner()
    spaces = store.spaces()
    if owner is not None and owner.authority == EMBEDDED:
        return Adopted(owner.journal, len(spaces), changed=False, steps=[])
    if owner is not None:
        raise WrongAuthority(f"appends go through the authority {owner.authority!r} here", str(repository.path))
    if is_network(kind := file_system(repository.path)):
        raise WrongAuthority(
            f"it is on a network file system ({kind})", str(repository.path), "copy it to a disk of this host"
        )
    if (repository.path / "objects" / "info" / "alternates").exists():
        raise ForeignRepository(
            "it borrows objects of another repository (objects/info/alternates), which may delete them",
            str(repository.path),
            "clone it with `git clone --mirror --no-local` and adopt that",
        )
    if not spaces:
        raise ForeignRepository("no branch here is a space's log", str(repository.path), "adopt a clone of a journal")
    journal = os.urandom(16).hex()
    remotes = sorted({name.split(".")[1] for name in _remote_settings(repository)})
    steps = [f"verify space {space}" for space in spaces]
    steps += [f"remove the remote {remote}, from which a fetch would overwrite the branches" for remote in remotes]
    steps.append(f"make it the embedded journal {journal}")
    if not dry_run:
        with ExitStack() as locks:
            for space in (compaction.LOCK, *spaces):
                locks.enter_context(locked(repository.lock_path(space)))
            for space in spaces:
                verify_space(store, space)
            _forget_remotes(repository)
            write_owner(repository.path / "config", Owner(EMBEDDED, journal))
    return Adopted(journal, len(spaces), changed=True, steps=steps)


def _remote_settings(repository: Repository) -> set[str]:
    config = pygit2.Config(str(repository.path / "config"))
    return {entry.name for entry in config if entry.name.startswith("remote.")}


def _forget_remotes(repository: Repository) -> None:
    """Delete the settings of all remotes; libgit2's own way would delete the branches with a mirror's."""
    config = pygit2.Config(str(repository.path / "config"))
    for name in _remote_settings(repository):
        config.delete_multivar(name, ".*")


def doctor(path: str | os.PathLike[str] | None) -> list[Finding]:
    """Examine this machine, and the repository if one is named; never raises for what it finds."""
    findings = [
        Finding("coordjournal", None, version("coordjournal")),
        Finding("python", None, platform.python_version()),
        Finding("platform", platform.system() in ("Linux", "Darwin"), platform.platform()),
        Finding("pygit2", None, f"{version('pygit2')} with libgit2 {pygit2.LIBGIT2_VERSION}"),
        *(Finding(name, None, version(name)) for name in _libraries()),
        _git(),
    ]
    if path is None:
        findings.append(Finding("repository", None, "none named", "name one with --repo or COORDJOURNAL_REPO"))
        return findings
    try:
        findings.extend(_examine(_store(path)))
    except (CoordJournalError, OSError) as error:
        findings.append(Finding("repository", False, str(error)))
    return findings


def _libraries() -> list[str]:
    """Return the names of the packages that this one needs, as its metadata says; pygit2 is told apart."""
    needed = (re.match(r"[\w-]+", line) for line in requires("coordjournal") or () if "extra ==" not in line)
    return sorted(match[0] for match in needed if match and match[0] != "pygit2")


def _git() -> Finding:
    program = shutil.which("git")
    if program is None:
        return Finding("git", None, "not installed", "coordjournal does without; install it to read the log with it")
    try:
        done = subprocess.run(  # noqa: S603  # the git of the PATH, with a fixed argument
            [program, "--version"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("git", False, f"{program} does not run: {error}", "install git again")
    return Finding("git", True, done.stdout.strip())


def _examine(store: GitStore) -> Iterator[Finding]:
    repository = store.repository
    owner = repository.owner()
    yield Finding("repository", True, str(repository.path))
    if owner is None:
        yield Finding("owner", None, "a mirror clone: read only", "run `coordjournal adopt` to append to it")
    else:
        yield Finding("owner", True, f"journal {owner.journal}, authority {owner.authority}")
    kind = file_system(repository.path)
    network = is_network(kind)
    yield Finding("file system", not network, kind or "unknown", "move it to a disk of this host" if network else "")
    free = shutil.disk_usage(repository.path).free
    roomy = free > _LITTLE_BYTES
    yield Finding("free space", roomy, f"{free / (1 << 20):,.0f} MiB", "" if roomy else "make room")
    writable = os.access(repository.path, os.W_OK)
    yield Finding("writable", writable or None, "yes" if writable else "no, reading only")
    yield Finding("spaces", True, str(len(store.spaces())))
    packs = len(pack.ours(repository.packs))
    many = packs > _MANY_PACKS
    yield Finding("packs", not many, str(packs), "run `coordjournal compact`" if many else "")
    yield from _locks(repository)


def _locks(repository: Repository) -> Iterator[Finding]:
    now = datetime.now(UTC).timestamp()
    for lock in sorted((repository.path / "refs" / "heads").glob("*.lock")):
        try:
            age = now - lock.stat().st_mtime
        except FileNotFoundError:
            continue
        old = age > _OLD_LOCK_SECONDS
        advice = "the next append to that space clears it" if old else ""
        yield Finding("ref lock", not old, f"{lock.name}, {age:.0f} s old", advice)


def _store(path: str | os.PathLike[str]) -> GitStore:
    return GitStore(Path(path), node=socket.gethostname(), clock=lambda: datetime.now(UTC), random=os.urandom)
