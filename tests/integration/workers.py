"""What the child processes of several tests do, and how tests hold a journal still."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

import coordjournal as cj
from coordjournal import maintenance
from tests.integration.processes import Channel
from tests.support import fsck

ACTOR: Final = "alice@example.org"


@pytest.fixture
def repo(quick_path: Path) -> Path:
    """Make an empty journal."""
    path = quick_path / "wiki.git"
    maintenance.init(path)
    return path


@contextmanager
def gate(repo: Path, space: str = "s") -> Iterator[None]:
    """Hold the lock of a space, as a process that is busy does."""
    file = os.open(repo / "coordjournal" / "locks" / space, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def intents(repo: Path) -> list[Path]:
    """Return what processes have left for whoever has the lock of space `s`."""
    return sorted(repo.glob("coordjournal/spool/s/*.intent"))


def check_whole(repo: Path) -> None:
    """Assert that neither git nor we find anything wrong."""
    maintenance.verify(repo)
    fsck(repo)


def log_of(repo: Path) -> list[list[Any]]:
    """Return seq, commit and key of every entry of space `s`, as a process that comes anew reads them."""
    with cj.DecisionLog.open(repo) as log:
        return [[entry.seq, entry.commit, entry.key] for entry in log.events("s")]


def append_one(channel: Channel, repo: str, key: str, timeout: float | None) -> list[Any]:
    """Append under a key; return what became of it, without waiting for what may yet become of it."""
    log = cj.DecisionLog.open(repo, actor=ACTOR)
    try:
        receipt = log.append("s", cj.AliasSet(key, "t"), key=key, timeout=timeout)
    except cj.CoordJournalError as error:
        return [error.code]
    return ["appended", receipt.seq, receipt.commit, receipt.duplicate]


def append_until_told(channel: Channel, repo: str, name: str) -> None:
    """Append one after the other, saying each receipt, until the file `stop` is there."""
    with cj.DecisionLog.open(repo, actor=ACTOR) as log:
        number = 0
        while not Path(repo, "stop").exists():
            receipt = log.append("s", cj.AliasSet(f"{name}-{number}", "t"), key=f"{name}-{number}", timeout=None)
            channel.send([receipt.seq, receipt.commit, receipt.key])
            number += 1
