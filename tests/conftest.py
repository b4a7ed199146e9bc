"""What holds for every test: `git fsck --strict` is clean about whatever it left behind, and no thread is left."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from coordjournal.store.git import GitStore
from tests.support import fsck

_OURS: Final = frozenset(
    {
        "coordjournal-watch",
        "coordjournal-keeper",
        "coordjournal-worker",
        "coordjournal-minder",
        "coordjournal-compaction",
    }
)
_END_SECONDS: Final = 15.0


@pytest.fixture(autouse=True)
def repositories(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[set[Path]]:
    """Note every repository that the test opens, and have git look at it when the test is done.

    Tests that damage a repository on purpose are marked `damages`.
    """
    seen: set[Path] = set()
    claim = GitStore.claim

    def noting(store: GitStore, authority: str, journal: str = "", place: str = "") -> str:
        seen.add(store.repository.path)
        return claim(store, authority, journal, place)

    monkeypatch.setattr(GitStore, "claim", noting)
    yield seen
    if request.node.get_closest_marker("damages") is None:
        for path in seen:
            if (path / "HEAD").is_file():
                fsck(path)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Have no thread of a log outlive the test that opened it: it would go on calling etcd beside the next ones."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + _END_SECONDS
    for thread in set(threading.enumerate()) - before:
        if thread.name in _OURS:
            thread.join(max(0.0, deadline - time.monotonic()))
            assert not thread.is_alive(), f"{thread.name} goes on"
