"""What holds for every test: `git fsck --strict` is clean about whatever it left behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from coordjournal.store.git import GitStore
from tests.support import fsck


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
