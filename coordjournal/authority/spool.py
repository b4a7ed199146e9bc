"""Intents between the processes of one host, so that one durable write serves many of them.

A process that finds a space's lock taken leaves its appends here, as one intent, and then waits for the
lock. Whoever has the lock takes what lies here into its own group and leaves an outcome for each; the
waiting process finds it when the lock comes round. Taking, deciding and collecting happen under the
lock only, so nothing here needs an order of its own. An intent is locked by the process that left it:
one whose lock is free is a dead process's and is swept, not served.

Nothing here is durable and nothing needs to be: the log is the truth, by the append's key, and an
outcome that is missing proves nothing.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from coordjournal import errors
from coordjournal.commit import Outcome
from coordjournal.entry import Append, Receipt
from coordjournal.store.files import forget_lock, open_lock

_INTENT, _TAKEN, _OUTCOME = ".intent", ".taken", ".outcome"
_SWEEP_SECONDS: Final = 3600.0  # an outcome that nobody collected for so long belongs to a dead process


class _Refusal(msgspec.Struct, array_like=True, tag=True):
    """An error of the tree, by its name and arguments."""

    name: str
    args: list[str | int]


class _Accepted(msgspec.Struct, array_like=True, tag=True):
    receipt: Receipt


_INTENTS = msgspec.msgpack.Decoder(list[Append])
_OUTCOMES = msgspec.msgpack.Decoder(list[_Refusal | _Accepted])


class Spool:
    """The intents and outcomes of one space, in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._locks: dict[str, int] = {}

    def leave(self, appends: Sequence[Append]) -> str:
        """Leave an intent for whoever has the space's lock; return its name. Raises `OSError`."""
        data = msgspec.msgpack.encode(list(appends))
        name = f"{time.time_ns():020}-{os.getpid()}-{os.urandom(4).hex()}"
        self._directory.mkdir(parents=True, exist_ok=True)
        draft = self._directory / f".{name}"
        file = open_lock(draft, os.O_EXCL)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            with open(file, "wb", closefd=False) as out:
                out.write(data)
            draft.rename(self._path(name, _INTENT))
        except BaseException:
            forget_lock(file)
            draft.unlink(missing_ok=True)
            raise
        self._locks[name] = file
        return name

    def withdraw(self, name: str) -> bool:
        """Take an intent back; false if someone took it on, so that it may be appended."""
        try:
            self._path(name, _INTENT).unlink()
        except OSError:
            return False
        self._release(name)
        return True

    def collect(self, name: str) -> tuple[list[Outcome] | None, bool]:
        """Return what became of an intent's appends, None if that is not told, and whether it was taken on.

        The intent is gone then. Under the lock.
        """
        path = self._path(name, _OUTCOME)
        taken = self._path(name, _TAKEN).exists()
        outcomes: list[Outcome] | None
        try:
            outcomes = [_received(outcome) for outcome in _OUTCOMES.decode(path.read_bytes())]
        except (OSError, msgspec.MsgspecError):
            outcomes = None
        for suffix in (_OUTCOME, _INTENT, _TAKEN):
            self._path(name, suffix).unlink(missing_ok=True)
        self._release(name)
        return outcomes, taken

    def take(self) -> Iterator[tuple[str, list[Append]]]:
        """Yield the intents of other processes, oldest first, each taken on as it is yielded. Under the lock."""
        try:
            found = sorted(os.listdir(self._directory))  # noqa: PTH208  # at every group; names are all it takes
        except FileNotFoundError:
            return
        for entry in found:
            name, suffix = os.path.splitext(entry)  # noqa: PTH122
            if suffix == _INTENT and name not in self._locks:
                appends = self._take(name)
                if appends:
                    yield name, appends
            elif suffix != _INTENT:
                self._sweep(entry, suffix)

    def _take(self, name: str) -> list[Append]:
        intent, taken = self._path(name, _INTENT), self._path(name, _TAKEN)
        try:
            file = os.open(intent, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return []  # withdrawn
        try:
            if _is_free(file):
                intent.unlink(missing_ok=True)
                return []
            intent.rename(taken)
            with open(file, "rb", closefd=False) as data:
                return _INTENTS.decode(data.read())
        except (OSError, msgspec.MsgspecError):
            return []  # withdrawn, or broken: its process decides it itself, by its keys
        finally:
            os.close(file)

    def decide(self, name: str, outcomes: Sequence[Outcome]) -> None:
        """Leave the outcomes of an intent that was taken on, in its order. Under the lock.

        One that cannot be left is looked up by the waiting process in the log.
        """
        data = msgspec.msgpack.encode([_told(outcome) for outcome in outcomes])
        draft = self._directory / f".{name}{_OUTCOME}"
        try:
            draft.write_bytes(data)
            draft.rename(self._path(name, _OUTCOME))
        except OSError:
            draft.unlink(missing_ok=True)
            return  # it stays taken: its process must know that it may have been appended
        self._path(name, _TAKEN).unlink(missing_ok=True)

    def forget(self, name: str) -> None:
        """Let go of an intent that another process has taken on, and of its outcome."""
        self._release(name)

    def _release(self, name: str) -> None:
        file = self._locks.pop(name, None)
        if file is not None:
            forget_lock(file)

    def _sweep(self, entry: str, suffix: str) -> None:
        """Delete what a dead process left: an intent that was taken on, an outcome, a draft."""
        path = self._directory / entry
        try:
            if suffix == _TAKEN:
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    dead = _is_free(file)
                finally:
                    os.close(file)
            else:
                dead = time.time() - path.stat().st_mtime > _SWEEP_SECONDS
            if dead:
                path.unlink()
        except FileNotFoundError:
            return

    def _path(self, name: str, suffix: str) -> Path:
        return self._directory / f"{name}{suffix}"


def _is_free(file: int) -> bool:
    """Whether the process that left the intent is dead: the kernel has freed its lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _told(outcome: Outcome) -> _Accepted | _Refusal:
    if isinstance(outcome, Receipt):
        return _Accepted(outcome)
    return _Refusal(type(outcome).__name__, [arg for arg in outcome.args if isinstance(arg, (str, int))])


def _received(outcome: _Accepted | _Refusal) -> Outcome:
    if isinstance(outcome, _Accepted):
        return outcome.receipt
    kind = getattr(errors, outcome.name, None)
    if isinstance(kind, type) and issubclass(kind, errors.CoordJournalError):
        return kind(*outcome.args)
    return errors.Undecided(f"another process answered {outcome.name}; try the same key again")
