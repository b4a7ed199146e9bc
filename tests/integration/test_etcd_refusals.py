"""What an operator has to look at is refused by name, and never guessed."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import pytest

import coordjournal as cj
from coordjournal import maintenance
from coordjournal.authority.settings import Settings
from coordjournal.authority.wire import Keys, range_of
from coordjournal.etcd import Delete
from coordjournal.testing.plugin import EtcdAtHand
from tests.integration.etcd_workers import ACTOR, SPACE, alias_of
from tests.integration.processes import quick_path
from tests.support import git

__all__ = ["quick_path"]


class Site:
    def __init__(self, repo: Path, etcd: str, prefix: str) -> None:
        self.repo, self.etcd, self.prefix = repo, etcd, prefix

    def log(self, repo: Path | None = None, prefix: str = "", role: str = "auto") -> cj.DecisionLog:
        return cj.DecisionLog.open(
            repo or self.repo,
            etcd=self.etcd,
            prefix=prefix or self.prefix,
            ttl=2,
            actor=ACTOR,
            role=role,  # type: ignore[arg-type]
        )


@pytest.fixture
def site(quick_path: Path, coordjournal_etcd: EtcdAtHand, coordjournal_prefix: str) -> Site:
    site = Site(quick_path / "wiki.git", coordjournal_etcd.endpoints, coordjournal_prefix)
    with site.log() as log:
        for number in range(3):
            append(log, f"k{number}")
    return site


def append(log: cj.DecisionLog, key: str = "k") -> cj.Receipt:
    return log.append(SPACE, alias_of(key), key=key, timeout=10)


def test_an_embedded_process_on_a_repository_of_etcds(site: Site) -> None:
    with cj.DecisionLog.open(site.repo) as log:
        assert log.state(SPACE).seq == 3, "reading is always allowed"
        with pytest.raises(cj.WrongAuthority, match="adopt"):
            append(log)


def test_a_process_under_etcd_on_an_embedded_repository(site: Site, quick_path: Path) -> None:
    with cj.DecisionLog.open(quick_path / "other.git") as log:
        append(log)
    with site.log(quick_path / "other.git", prefix=f"{site.prefix}other/") as log, pytest.raises(cj.WrongAuthority):
        append(log)


def test_another_prefix(site: Site) -> None:
    with site.log(prefix=f"{site.prefix}other/") as log:
        with pytest.raises(cj.ForeignRepository, match="prefix"):
            log.state(SPACE)
        with pytest.raises(cj.ForeignRepository, match="prefix"):
            append(log)


def test_the_prefix_of_another_journal_with_a_space_of_this_name(site: Site, quick_path: Path) -> None:
    prefix = f"{site.prefix}other/"
    with site.log(quick_path / "other.git", prefix) as log:
        for number in range(5):
            append(log, f"k{number}")
    for repo, place in ((site.repo, prefix), (quick_path / "other.git", site.prefix)):
        with site.log(repo, place) as log, pytest.raises(cj.ForeignRepository, match="prefix"):
            log.state(SPACE)


def test_another_journals_etcd(site: Site, quick_path: Path) -> None:
    for role in ("auto", "client", "holder"):
        with site.log(quick_path / "absent.git", role=role) as log, pytest.raises(cj.ForeignRepository):
            append(log)
    assert not (quick_path / "absent.git").exists(), "no second repository is made for a journal that has one"


def test_a_mirror_clone_is_read_and_not_appended_to(site: Site, quick_path: Path) -> None:
    git(quick_path, "clone", "--mirror", "-q", str(site.repo), "mirror.git")
    with site.log(quick_path / "mirror.git") as log:
        assert log.state(SPACE).seq == 3
        with pytest.raises(cj.ForeignRepository, match="mirror"):
            append(log)


def test_a_deleted_branch_is_rolled_forward(site: Site) -> None:
    git(site.repo, "update-ref", "-d", f"refs/heads/{SPACE}")
    with site.log() as log:
        assert log.state(SPACE).seq == 3
        assert append(log).seq == 4
    assert git(site.repo, "rev-list", "--count", SPACE).strip() == "4"


def test_a_branch_that_was_set_back_is_rolled_forward(site: Site) -> None:
    git(site.repo, "update-ref", f"refs/heads/{SPACE}", f"{SPACE}~2")
    with site.log() as log:
        assert append(log).seq == 4
    assert git(site.repo, "rev-list", "--count", SPACE).strip() == "4"


@pytest.mark.damages
def test_objects_that_are_gone(site: Site) -> None:
    git(site.repo, "update-ref", "-d", f"refs/heads/{SPACE}")
    for file in (site.repo / "objects" / "pack").iterdir():
        file.unlink()
    with site.log() as log:
        with pytest.raises(cj.MissingObjects, match="recover"):
            log.head(SPACE)
        with pytest.raises(cj.MissingObjects, match="recover"):
            append(log)


@pytest.mark.damages
def test_a_repository_that_is_gone_is_not_made_anew(site: Site) -> None:
    shutil.rmtree(site.repo)
    with site.log() as log, pytest.raises((cj.ForeignRepository, cj.NotFound)):
        append(log)
    assert not site.repo.exists()


def test_a_branch_that_parted_from_what_is_published(site: Site) -> None:
    tree = git(site.repo, "rev-parse", f"{SPACE}~1^{{tree}}").strip()
    message = git(site.repo, "log", "-1", "--format=%B", f"{SPACE}~1").strip() + "\n"
    other = git(site.repo, "commit-tree", tree, "-p", f"{SPACE}~2", "-F", "-", stdin=message).strip()
    git(site.repo, "update-ref", f"refs/heads/{SPACE}", other)
    with site.log() as log, pytest.raises(cj.Corrupt, match="recover"):
        append(log)


def test_a_session_that_is_opened_anew_is_no_fault(site: Site) -> None:
    """`recover` takes the sessions' keys away; their processes notice in their next round."""
    settings = Settings(site.etcd, prefix=site.prefix)
    with site.log() as log, closing(settings.client()) as etcd:
        assert append(log, "held").via == "local"
        etcd.txn([], [Delete(*range_of(Keys(site.prefix).nodes))], timeout=10)
        assert maintenance.verify_with(site.repo, settings).spaces


def test_a_journal_without_etcd_cannot_be_served(quick_path: Path) -> None:
    with cj.DecisionLog.open(quick_path / "wiki.git") as log, pytest.raises(cj.WrongAuthority):
        log.serve([SPACE])


def test_spaces_that_are_to_be_served_are_held_though_nobody_appends(site: Site) -> None:
    with site.log() as server, site.log(role="client") as other:
        server.serve([SPACE, "quiet"])
        assert append(other).via == "forwarded"
        assert other.append("quiet", alias_of("q"), key="q").via == "forwarded"
