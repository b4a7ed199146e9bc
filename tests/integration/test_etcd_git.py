"""An operator's plain git between the publish of a head and the move of its branch: then no ref holds its objects."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordjournal.entry import Receipt
from coordjournal.testing.etcd import EtcdServer
from tests.integration.etcd_parts import SPACE, Party, check, drain, expire, fresh_prefix, published, server, told
from tests.integration.processes import quick_path
from tests.support import fsck, git

__all__ = ["quick_path", "server"]

PRUNING = ["gc --prune=now --quiet", "repack -ad --quiet", "repack -a --quiet", "prune --expire=now", "prune-packed"]


class Dies(BaseException):
    """The process ends there."""


class Pair:
    """A holder with one append, and another process, of one repository."""

    def __init__(self, server: EtcdServer, path: Path) -> None:
        self.path = path
        self.server = server
        self.published = ""
        prefix = fresh_prefix()
        self.holder, self.other = (Party(server.endpoint, path, prefix) for _ in range(2))
        self.holder.submit("k1")
        self.holder.run()

    def publish_and_prune(self, *commands: str, dies: bool, keeps: bool = True) -> None:
        """Append under `k2`; run git when that is published and the branch is not moved, and perhaps let it die."""

        def around(call: object) -> object:
            assert callable(call)
            answer = call()
            log = published(self.server, self.other)
            self.published = log[-1].commit
            assert git(self.path, "rev-parse", SPACE).strip() == log[-2].commit
            for keep in () if keeps else (self.path / "objects" / "pack").glob("*.keep"):
                keep.unlink()
            for command in commands:
                subprocess.run(["git", "-C", str(self.path), *command.split()], check=False, capture_output=True)
            if dies:
                raise Dies
            return answer

        self.holder.edge.next("publish", around)
        self.holder.submit("k2")
        if dies:
            with pytest.raises(Dies):
                self.holder.run()
            expire(self.server, self.holder)
        else:
            self.holder.run()


@pytest.fixture
def pair(server: EtcdServer, quick_path: Path) -> Iterator[Pair]:
    pair = Pair(server, quick_path / "wiki.git")
    yield pair
    for party in (pair.holder, pair.other):
        party.close()


@pytest.mark.parametrize("dies", [False, True], ids=["goes on", "dies"])
@pytest.mark.parametrize("command", PRUNING)
def test_plain_git_between_publish_and_branch_move_destroys_nothing(pair: Pair, command: str, dies: bool) -> None:
    pair.publish_and_prune(command, dies=dies)
    pair.other.submit("k3")
    drain([pair.other] if dies else [pair.holder, pair.other])
    assert list(check(pair.server, [pair.other], all_told=True)) == ["k1", "k2", "k3"]
    assert git(pair.path, "rev-list", "--count", SPACE).strip() == "3", "the branch was rolled forward"
    fsck(pair.path)
    if not dies:
        assert isinstance(told(pair.holder.futures["k2"]), Receipt)


def test_in_a_plain_repository_it_would_have_destroyed_the_published_head(pair: Pair) -> None:
    subprocess.run(["git", "-C", str(pair.path), "config", "--unset", "extensions.preciousObjects"], check=True)
    pair.publish_and_prune("repack -ad --quiet", "gc --prune=now --quiet", dies=True, keeps=False)
    look = subprocess.run(
        ["git", "-C", str(pair.path), "cat-file", "-e", pair.published], check=False, capture_output=True
    )
    assert look.returncode, "who has it open may read on, and nobody else"
