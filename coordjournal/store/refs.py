"""Moving a branch: compare and swap, durably, by git's own lock file protocol.

Steps: write the new value to a draft and sync it → link the draft as `<ref>.lock` → compare the old
value → rename the lock to the ref → sync the directory. libgit2 could do it, but it holds the GIL while
it syncs, which stops every thread of the process.

A crash between the link and the rename leaves a lock. It is told from a lock of plain git by the
draft, which is still there and is the same file; the draft is only used under the space's lock, so
whoever sees it there knows that its maker is gone.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from coordjournal.errors import Unavailable, Undecided
from coordjournal.retry import REF_LOCK, REF_LOCK_BRIEFLY, RefLocked
from coordjournal.store import HeadMoved
from coordjournal.store.files import sync_directory, write_synced

_DEAD_LOCK_SECONDS: Final = 60.0

logger = logging.getLogger(__name__)


def swap(ref: Path, draft: Path, read: Callable[[], str], old: str, new: str, *, patient: bool = True) -> None:
    """Move `ref` from commit `old` (empty: it must not exist) to `new`; under the space's lock.

    `read` returns the ref's value wherever git keeps it, `draft` is a path of this space alone.
    A lock of another git process is waited for, if not `patient` only for a moment. Raises `HeadMoved`,
    `Unavailable` (certainly not moved), `Undecided` (not known).
    """
    lock = ref.with_name(f"{ref.name}.lock")
    try:
        _clear_own(lock, draft)
        draft.unlink(missing_ok=True)
        write_synced(draft, f"{new}\n".encode())
        (REF_LOCK if patient else REF_LOCK_BRIEFLY)(_link, draft, lock)
    except RefLocked:
        _drop(draft)
        raise Unavailable(f"{lock} is held by another git process; try again when it is done") from None
    except OSError as error:
        raise Unavailable(f"the branch {ref.name} cannot be moved: {error}") from error
    try:
        if read() != old:
            raise HeadMoved
        os.rename(lock, ref)  # noqa: PTH104  # as its name says, on one disk
    except OSError as error:
        if _may_be_moved(ref, draft):
            raise _unconfirmed(ref, error) from error
        _drop(lock)
        raise Unavailable(f"the branch {ref.name} cannot be moved: {error}") from error
    except BaseException:
        _drop(lock)
        raise
    try:
        sync_directory(ref.parent)
    except OSError as error:
        raise _unconfirmed(ref, error) from error
    _drop(draft)


def _unconfirmed(ref: Path, error: OSError) -> Undecided:
    return Undecided(f"the branch {ref.name} was moved, but the disk does not confirm it: {error}")


def _may_be_moved(ref: Path, draft: Path) -> bool:
    """Whether a rename that failed was done nevertheless, as on a file system whose answer was lost."""
    try:
        return ref.samefile(draft)
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _drop(path: Path) -> None:
    """Delete a file. One that the disk keeps is cleared by the next writer, as a dead process's."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _link(draft: Path, lock: Path) -> None:
    try:
        os.link(draft, lock)  # atomic: the lock appears with its content, or not
    except FileExistsError:
        _clear_dead(lock)
        raise RefLocked from None
    except FileNotFoundError:
        lock.parent.mkdir(parents=True, exist_ok=True)
        raise RefLocked from None


def _clear_own(lock: Path, draft: Path) -> None:
    try:
        if not lock.samefile(draft):
            return
    except FileNotFoundError:
        return
    logger.warning("clearing %s, left by a process that died while it moved the branch", lock)
    lock.unlink(missing_ok=True)


def _clear_dead(lock: Path) -> None:
    """Clear a lock that has not changed for a minute: no git process moves one ref that long."""
    try:
        age = time.time() - lock.stat().st_mtime
    except FileNotFoundError:
        return
    if age > _DEAD_LOCK_SECONDS:
        logger.warning("clearing %s, unchanged for %.0f s", lock, age)
        lock.unlink(missing_ok=True)
