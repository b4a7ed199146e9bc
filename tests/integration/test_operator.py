"""Operators do to a repository what they like, while processes append to it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import pygit2
import pytest
from pygit2.enums import ConfigLevel
from tenacity import stop_after_delay

import coordjournal as cj
from coordjournal import adoption, doctor, maintenance, retry
from coordjournal.store.files import file_system, is_network, mounted_kind
from tests.integration.processes import Channel, quick_path, start, until
from tests.integration.workers import ACTOR, append_one, append_until_told, check_whole, gate, intents, log_of, repo
from tests.support import alias, git

__all__ = ["quick_path", "repo"]  # pytest finds the fixtures here

NOBODY: Final = 65534


@pytest.fixture
def log(repo: Path) -> Iterator[cj.DecisionLog]:
    """Give a log that has been in use for five entries, as a long-lived process has."""
    with cj.DecisionLog.open(repo, actor=ACTOR) as opened:
        for number in range(1, 6):
            opened.append("s", alias(number), key=f"key-{number}")
        opened.state("s")
        yield opened


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up sooner on a ref's lock."""
    monkeypatch.setattr(retry.REF_LOCK, "stop", stop_after_delay(0.3))


def branch(repo: Path) -> str:
    return git(repo, "rev-parse", "refs/heads/s").strip()


def gitted(repo: Path, *args: str) -> tuple[int, str]:
    done = subprocess.run(["git", "-C", str(repo), *args], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


# Maintenance in the middle of appends

MAINTENANCE: Final = [
    "gc",
    "gc --prune=now --aggressive",
    "repack -ad",
    "repack -adf --write-bitmap-index",
    "repack -a",
    "prune --expire=now",
    "prune-packed",
    "pack-refs --all",
    "pack-refs --all --no-prune",
    "commit-graph write --reachable",
    "multi-pack-index write --bitmap",
    "maintenance run --task=gc --task=incremental-repack --task=loose-objects",
    "reflog expire --expire=now --all",
    "fsck --full",
    "update-server-info",
]


def test_git_maintenance_of_any_kind_in_the_middle_of_appends_loses_nothing(repo: Path, log: cj.DecisionLog) -> None:
    said: list[list[Any]] = []
    with start(append_until_told, repo, "a") as child:
        for command in MAINTENANCE:
            said += [child.receive() for _ in range(3)]
            gitted(repo, *command.split())  # which may refuse, or find a pack replaced under its feet
            receipt = log.append("s", cj.AliasSet(f"after {command}", "t"), key=f"after-{len(said)}", timeout=None)
            said.append([receipt.seq, receipt.commit, receipt.key])
            assert log.head("s").seq >= said[-1][0]
        (repo / "stop").touch()
        said += child.said()
        assert child.join() == 0
    in_log = log_of(repo)
    assert [seq for seq, _, _ in in_log] == list(range(1, len(in_log) + 1))
    assert all(receipt in in_log for receipt in said)
    assert len(in_log) == 5 + len(said)
    assert cj.fold(log.events("s")) == log.state("s")
    maintenance.compact(repo)  # an index over packs may have been made while these were replaced
    check_whole(repo)
    assert log_of(repo) == in_log


@pytest.mark.parametrize("command", MAINTENANCE)
def test_after_git_maintenance_of_any_kind_compaction_leaves_a_repository_that_git_finds_sound(
    repo: Path, log: cj.DecisionLog, command: str
) -> None:
    gitted(repo, *command.split())
    log.append("s", alias(6))
    maintenance.compact(repo)
    check_whole(repo)
    assert git(repo, "rev-list", "--count", "s").strip() == "6"
    assert log.append("s", alias(7)).seq == 7
    check_whole(repo)


def test_an_unreachable_append_in_flight_survives_an_operators_maintenance(repo: Path, log: cj.DecisionLog) -> None:
    """Between the durable write and the move of the branch nothing refers to the commit yet."""
    lock = repo / "refs" / "heads" / "s.lock"
    lock.touch()
    future = log.submit("s", alias(6), key="in-flight")
    draft = repo / "coordjournal" / "drafts" / "ref-s"
    until(lambda: draft.exists() and len(draft.read_bytes()) == 41, "the draft of the branch")
    commit = draft.read_text().strip()
    for command in ("gc --prune=now", "repack -ad", "prune --expire=now", "prune-packed"):
        gitted(repo, *command.split())
    maintenance.compact(repo)
    assert git(repo, "cat-file", "-t", commit).strip() == "commit"
    lock.unlink()
    assert future.result(60).commit == commit
    check_whole(repo)


# Locks of refs


def test_a_ref_lock_that_git_holds_for_a_moment_is_waited_for(repo: Path, log: cj.DecisionLog) -> None:
    lock = repo / "refs" / "heads" / "s.lock"
    lock.touch()
    future = log.submit("s", alias(6))
    until((repo / "coordjournal" / "drafts" / "ref-s").exists, "the draft of the branch")
    assert not future.done()
    lock.unlink()
    assert future.result(60).seq == 6


@pytest.mark.usefixtures("impatient")
def test_a_ref_lock_that_git_holds_on_to_makes_appends_unavailable_and_stays(repo: Path, log: cj.DecisionLog) -> None:
    lock = repo / "refs" / "heads" / "s.lock"
    lock.write_text("git's own")
    with pytest.raises(cj.Unavailable, match=r"s\.lock is held by another git process"):
        log.append("s", alias(6), key="k")
    assert lock.read_text() == "git's own"
    assert log.head("s").seq == 5
    lock.unlink()
    assert log.append("s", alias(6), key="k").duplicate is False


@pytest.mark.usefixtures("impatient")
def test_a_refusal_is_not_judged_on_appends_that_could_not_be_published(repo: Path, log: cj.DecisionLog) -> None:
    """The second would close a circle with the first, which never came to be."""
    lock = repo / "refs" / "heads" / "s.lock"
    lock.touch()
    with gate(repo):
        blocker = log.submit("s", alias(6))
        until(lambda: intents(repo), "the intent")
        first = log.submit("s", cj.AliasSet("x", "y"))
        second = log.submit("s", cj.AliasSet("y", "x"))
        third = log.submit("s", alias(7), expect=5)
    for future in (blocker, first, second, third):
        assert isinstance(future.exception(60), (cj.Unavailable, cj.Undecided))
    lock.unlink()
    assert log.append("s", cj.AliasSet("y", "x")).seq == 6


@pytest.mark.usefixtures("impatient")
def test_a_ref_lock_older_than_a_minute_is_dead_and_cleared(repo: Path, log: cj.DecisionLog) -> None:
    lock = repo / "refs" / "heads" / "s.lock"
    lock.touch()
    old = lock.stat().st_mtime - 61
    os.utime(lock, (old, old))
    assert log.append("s", alias(6)).seq == 6
    assert not lock.exists()


@pytest.mark.usefixtures("impatient")
def test_a_ref_lock_that_a_dead_process_of_ours_left_is_cleared_at_once(repo: Path, log: cj.DecisionLog) -> None:
    draft = repo / "coordjournal" / "drafts" / "ref-s"
    draft.write_text("what it would have moved the branch to")
    (repo / "refs" / "heads" / "s.lock").hardlink_to(draft)
    assert log.append("s", alias(6)).seq == 6
    assert not (repo / "refs" / "heads" / "s.lock").exists()


def test_a_lock_of_packed_refs_does_not_matter_to_appends(repo: Path, log: cj.DecisionLog) -> None:
    git(repo, "pack-refs", "--all")
    (repo / "packed-refs.lock").touch()
    assert log.append("s", alias(6)).seq == 6
    assert log_of(repo)[-1][0] == 6


# Branches moved by plain git


def every_use(log: cj.DecisionLog) -> list[Callable[[], object]]:
    return [
        lambda: log.append("s", alias(9)),
        lambda: log.head("s"),
        lambda: log.state("s"),
        lambda: list(log.events("s")),
        lambda: log.state("s", upto=3),
    ]


def test_a_branch_that_was_set_back_is_not_appended_to_by_a_process_that_knows_better(
    repo: Path, log: cj.DecisionLog
) -> None:
    before = branch(repo)
    git(repo, "update-ref", "refs/heads/s", "s~2")
    with pytest.raises(cj.OperatorNeeded, match="s"):
        log.append("s", alias(6))
    with pytest.raises(cj.OperatorNeeded):
        log.state("s")
    git(repo, "update-ref", "refs/heads/s", before)
    assert log.append("s", alias(6)).seq == 6
    assert log.state("s").seq == 6
    check_whole(repo)


def test_a_branch_that_was_deleted_does_not_begin_again_under_a_process_that_knows_better(
    repo: Path, log: cj.DecisionLog
) -> None:
    before = branch(repo)
    git(repo, "update-ref", "-d", "refs/heads/s")
    with pytest.raises(cj.OperatorNeeded):
        log.append("s", alias(6))
    with pytest.raises(cj.OperatorNeeded):
        log.state("s")
    git(repo, "update-ref", "refs/heads/s", before)
    assert log.append("s", alias(6)).seq == 6


@pytest.mark.parametrize("more", [1, 2, 5])
def test_a_log_that_took_another_course_is_not_served_as_the_one_that_was_read_before(
    repo: Path, log: cj.DecisionLog, more: int
) -> None:
    """The branch was set back by two and went on by a process that knew nothing, to below, at and past the head."""
    git(repo, "update-ref", "refs/heads/s", "s~2")
    for number in range(more):
        assert start(append_one, repo, f"other-{number}", None).result()[0] == "appended"
    for read in (lambda: log.state("s"), lambda: log.append("s", alias(9))):
        with pytest.raises(cj.OperatorNeeded):
            read()
    with cj.DecisionLog.open(repo) as other:
        assert cj.fold(other.events("s")) == other.state("s")
        assert other.head("s").seq == 3 + more


def test_a_subscriber_is_told_that_the_log_took_another_course(repo: Path, log: cj.DecisionLog) -> None:
    subscription = log.subscribe("s")
    assert [next(subscription).seq for _ in range(5)] == [1, 2, 3, 4, 5]
    git(repo, "update-ref", "refs/heads/s", "s~2")
    for number in range(4):
        assert start(append_one, repo, f"other-{number}", None).result()[0] == "appended"
    with pytest.raises(cj.OperatorNeeded):
        next(subscription)


def commit_on_top(repo: Path, *options: str) -> str:
    tree = git(repo, "rev-parse", "s^{tree}").strip()
    return git(repo, "commit-tree", tree, *options, "-m", "an operator's own").strip()


@pytest.mark.parametrize("how", ["on top", "in its place"])
def test_a_foreign_commit_on_a_branch_is_named_and_nothing_is_appended(
    repo: Path, log: cj.DecisionLog, how: str
) -> None:
    before = branch(repo)
    commit = commit_on_top(repo, *(["-p", before] if how == "on top" else []))
    git(repo, "update-ref", "refs/heads/s", commit)
    with cj.DecisionLog.open(repo) as fresh:
        for use in every_use(log) + every_use(fresh):
            with pytest.raises(cj.Corrupt, match=commit):
                use()
    with pytest.raises(cj.OperatorNeeded, match=commit):
        maintenance.verify(repo, "s")
    with pytest.raises(cj.OperatorNeeded, match=commit):
        maintenance.verify(repo)
    assert branch(repo) == commit
    git(repo, "update-ref", "refs/heads/s", before)
    assert log.append("s", alias(6)).seq == 6


def test_a_branch_of_something_else_is_no_space_and_no_fault(repo: Path, log: cj.DecisionLog) -> None:
    empty = git(repo, "mktree", stdin="").strip()
    note = git(repo, "commit-tree", empty, "-m", "notes of an operator").strip()
    git(repo, "update-ref", "refs/heads/notes", note)
    git(repo, "update-ref", "refs/heads/Upper/case", note)
    git(repo, "tag", "t", note)
    assert log.spaces() == ["s"]
    assert [space.space for space in maintenance.verify(repo)] == ["s"]


def test_a_copied_branch_is_no_space_of_its_own_and_the_original_goes_on(repo: Path, log: cj.DecisionLog) -> None:
    git(repo, "branch", "copy", "s")
    for use in (
        lambda: log.state("copy"),
        lambda: log.append("copy", alias(9)),
        lambda: maintenance.verify(repo, "copy"),
    ):
        with pytest.raises(cj.Corrupt, match="the branch copy holds the log of space s"):
            use()
    assert log.append("s", alias(6)).seq == 6
    assert git(repo, "rev-parse", "copy") == git(repo, "rev-parse", "s~1")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"x" * 40 + b"\n",
        b"0" * 40 + b"\n",
        b"f" * 40 + b"\n",
        b"ref: refs/heads/other\n",
        b"ref: refs/heads/twenty-four-characters-x\n",
        bytes(range(200, 241)),
    ],
    ids=ascii,
)
def test_a_damaged_branch_is_named_and_nothing_is_appended(repo: Path, log: cj.DecisionLog, content: bytes) -> None:
    ref = repo / "refs" / "heads" / "s"
    ref.write_bytes(content)
    with cj.DecisionLog.open(repo) as fresh:
        for use in every_use(log) + every_use(fresh):
            with pytest.raises(cj.OperatorNeeded):
                use()
    with pytest.raises(cj.OperatorNeeded):
        maintenance.verify(repo)
    assert ref.read_bytes() == content
    assert [path.name for path in ref.parent.iterdir()] == ["s"]


def test_a_branch_written_in_capitals_is_read_as_git_reads_it(repo: Path, log: cj.DecisionLog) -> None:
    ref = repo / "refs" / "heads" / "s"
    ref.write_text(ref.read_text().upper())
    with cj.DecisionLog.open(repo) as fresh:
        for one in (fresh, log):
            one.append("s", cj.AliasSet(f"{one!r}", "t"))
    assert [seq for seq, _, _ in log_of(repo)] == [1, 2, 3, 4, 5, 6, 7]
    check_whole(repo)


def test_packed_refs_are_read_and_appended_on(repo: Path, log: cj.DecisionLog) -> None:
    for number in range(6, 10):
        git(repo, "pack-refs", "--all", "--prune")
        assert not (repo / "refs" / "heads" / "s").exists()
        assert log.head("s").seq == number - 1
        assert log_of(repo)[-1][0] == number - 1
        assert log.append("s", alias(number), expect=number - 1).seq == number
    check_whole(repo)


def test_a_fast_forward_that_is_pushed_is_read_on(repo: Path, log: cj.DecisionLog, quick_path: Path) -> None:
    """A clone that was adopted and went on is pushed back: its appends are true here too."""
    clone = quick_path / "clone.git"
    git(repo, "clone", "--quiet", "--mirror", str(repo), str(clone))
    adoption.adopt(clone)
    with cj.DecisionLog.open(clone) as other:
        other.append("s", cj.AliasSet("pushed", "t"))
    git(clone, "push", "--quiet", str(repo), "s")
    assert log.state("s").resolve("pushed").hops == ("pushed", "t")
    assert log.append("s", alias(7)).seq == 7
    check_whole(repo)


def test_a_fast_forward_that_is_pushed_in_the_middle_of_an_append_is_built_on_and_not_overwritten(
    repo: Path, log: cj.DecisionLog, quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes after the append was judged and written, and before its branch is moved."""
    clone = quick_path / "clone.git"
    git(repo, "clone", "--quiet", "--mirror", str(repo), str(clone))
    adoption.adopt(clone)
    with cj.DecisionLog.open(clone) as other:
        pushed = other.append("s", cj.AliasSet("a", "b"), key="pushed")
    link = os.link
    pushes: list[str] = []

    def push_first(source: Path, target: Path) -> None:
        if not pushes:
            pushes.append(git(clone, "push", "--quiet", str(repo), "s"))
        link(source, target)

    monkeypatch.setattr(os, "link", push_first)
    futures = [log.submit("s", alias(6), key="six"), log.submit("s", cj.AliasSet("b", "a"), key="circle")]
    assert futures[0].result(60).seq == 7
    assert isinstance(futures[1].exception(60), cj.AliasCycle)
    assert log_of(repo)[5:] == [[6, pushed.commit, "pushed"], [7, futures[0].result().commit, "six"]]
    assert log.state("s") == cj.fold(log.events("s"))
    check_whole(repo)


def test_a_repository_that_is_gone_is_not_begun_again_by_a_process_that_knows_better(
    repo: Path, log: cj.DecisionLog, quick_path: Path
) -> None:
    repo.rename(quick_path / "moved.git")
    with pytest.raises((cj.NotFound, cj.OperatorNeeded, cj.Unavailable)):
        log.append("s", alias(6))
    assert not repo.exists()
    maintenance.init(repo)
    with pytest.raises(cj.OperatorNeeded):
        log.append("s", alias(6))
    with pytest.raises(cj.OperatorNeeded):
        log.state("s")
    shutil.rmtree(repo)
    (quick_path / "moved.git").rename(repo)
    assert log.append("s", alias(6)).seq == 6


# Clones and other repositories


def mirror(repo: Path) -> Path:
    clone = repo.with_name("mirror.git")
    git(repo, "clone", "--quiet", "--mirror", str(repo), str(clone))
    return clone


def test_a_mirror_clone_opens_as_it_is_and_is_not_appended_to(repo: Path, log: cj.DecisionLog) -> None:
    clone = mirror(repo)
    before = sorted(clone.rglob("*"))
    with cj.DecisionLog.open(clone) as backup:
        assert list(backup.events("s")) == list(log.events("s"))
        assert backup.state("s") == log.state("s")
        assert backup.head("s") == log.head("s")
        assert backup.spaces() == ["s"]
        with pytest.raises(cj.ForeignRepository, match="coordjournal adopt"):
            backup.append("s", alias(6))
        with pytest.raises(cj.ForeignRepository):
            maintenance.compact(clone)
        maintenance.verify(clone)
        assert sorted(clone.rglob("*")) == before, "reading writes nothing"
        log.append("s", alias(6))
        git(clone, "fetch", "--quiet")
        assert backup.state("s") == log.state("s"), "a backup is followed"


def read_without_permission(channel: Channel, repo: str, other_home: str) -> list[Any]:
    """Read as somebody who may not write, and whose own configuration of git is not there."""
    for level in (ConfigLevel.SYSTEM, ConfigLevel.XDG, ConfigLevel.GLOBAL):
        pygit2.settings.search_path[level] = other_home
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    errors = []
    with cj.DecisionLog.open(repo) as log:
        for use in (lambda: log.append("s", alias(6)), lambda: maintenance.compact(repo)):
            try:
                use()
            except cj.CoordJournalError as error:
                errors.append(error.code)
        entries = [[entry.seq, entry.commit] for entry in log.events("s")]
        return [errors, entries, len(log.state("s").aliases), len(maintenance.verify(repo)), log.spaces()]


def belongs_to_nobody(path: Path, mode_off: int) -> None:
    for place in (path, *path.rglob("*")):
        if os.getuid() == 0:
            os.chown(place, NOBODY, NOBODY)
        place.chmod(place.stat().st_mode & ~mode_off)


@pytest.mark.parametrize("which", ["the journal", "a mirror clone"])
def test_without_permission_to_write_reading_works_and_writing_says_what_it_lacks(
    repo: Path, log: cj.DecisionLog, quick_path: Path, which: str
) -> None:
    quick_path.chmod(0o755)
    place = mirror(repo) if which == "a mirror clone" else Path(shutil.copytree(repo, quick_path / "copy.git"))
    belongs_to_nobody(place, 0o222)
    errors, entries, aliases, spaces, names = start(read_without_permission, place, quick_path).result()
    assert (len(entries), aliases, spaces, names) == (5, 5, 1, ["s"])
    assert errors == (["foreign_repository"] * 2 if which == "a mirror clone" else ["unavailable", "operator_needed"])
    belongs_to_nobody(place, 0)
    for path in (place, *place.rglob("*")):
        path.chmod(path.stat().st_mode | 0o200)


def test_a_home_that_cannot_be_read_does_not_matter(quick_path: Path, repo: Path, log: cj.DecisionLog) -> None:
    """A service's HOME is often somebody else's; plain git does not mind either."""
    quick_path.chmod(0o755)
    home = quick_path / "home"
    home.mkdir()
    (home / ".gitconfig").touch()
    home.chmod(0)
    place = mirror(repo)
    belongs_to_nobody(place, 0)
    assert len(start(read_without_permission, place, home).result()[1]) == 5
    home.chmod(0o700)


def read_as_another(channel: Channel, repo: str) -> list[str]:
    for level in (ConfigLevel.SYSTEM, ConfigLevel.XDG, ConfigLevel.GLOBAL):
        pygit2.settings.search_path[level] = str(Path(repo).parent)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    with cj.DecisionLog.open(repo) as log:
        try:
            return [str(log.state("s").seq)]
        except cj.OperatorNeeded as error:
            return [error.run]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_the_repository_of_another_user_is_read_or_the_remedy_is_named(
    repo: Path, log: cj.DecisionLog, quick_path: Path
) -> None:
    quick_path.chmod(0o755)
    (said,) = start(read_as_another, mirror(repo)).result()
    assert said == "5" or "safe.directory" in said


def test_an_adopted_clone_is_appended_to_and_a_fetch_cannot_overwrite_it(repo: Path, log: cj.DecisionLog) -> None:
    clone = mirror(repo)
    planned = adoption.adopt(clone, dry_run=True)
    assert planned.changed
    with cj.DecisionLog.open(clone, actor=ACTOR) as adopted:
        with pytest.raises(cj.ForeignRepository):
            adopted.append("s", alias(6))
        assert adoption.adopt(clone).changed
        assert not adoption.adopt(clone).changed
        assert adopted.append("s", cj.AliasSet("theirs", "t")).seq == 6
        log.append("s", cj.AliasSet("ours", "t"))
        log.append("s", alias(7))
        for fetch in ("fetch", "fetch origin", "fetch --all --prune --force", "remote update --prune"):
            gitted(clone, *fetch.split())
        gitted(clone, "fetch", str(repo))
        assert gitted(clone, "fetch", str(repo), "s:s")[0] != 0
        assert [e.event.names()[0] for e in adopted.events("s", after=5)] == ["theirs"]
        assert adopted.append("s", alias(8)).seq == 7
    assert git(clone, "config", "coordjournal.journal") != git(repo, "config", "coordjournal.journal")
    assert gitted(clone, "repack", "-ad")[0] != 0, "nothing is deleted from now on"
    check_whole(clone)
    check_whole(repo)


def test_a_clone_that_is_not_sound_is_not_adopted(repo: Path, log: cj.DecisionLog) -> None:
    clone = mirror(repo)
    git(clone, "update-ref", "refs/heads/s", commit_on_top(clone, "-p", branch(clone)))
    with pytest.raises(cj.OperatorNeeded):
        adoption.adopt(clone)
    with cj.DecisionLog.open(clone) as backup, pytest.raises(cj.OperatorNeeded):
        backup.append("t", alias(1))
    assert gitted(clone, "remote")[0] == 0
    assert git(clone, "remote").strip() == "origin"


def test_the_git_directory_of_a_working_tree_is_not_adopted(repo: Path, log: cj.DecisionLog, quick_path: Path) -> None:
    git(repo, "clone", "--quiet", "--branch", "s", str(repo), str(quick_path / "tree"))
    with pytest.raises(cj.OperatorNeeded):
        adoption.adopt(quick_path / "tree" / ".git")
    assert "coordjournal" not in (quick_path / "tree" / ".git" / "config").read_text()


def test_a_clone_that_borrows_its_objects_is_read_and_not_adopted(repo: Path, log: cj.DecisionLog) -> None:
    """What it borrows may be deleted where it lies, and no compaction would ever copy it."""
    clone = repo.with_name("shared.git")
    git(repo, "clone", "--quiet", "--mirror", "--shared", str(repo), str(clone))
    with cj.DecisionLog.open(clone) as borrowed:
        assert borrowed.state("s") == log.state("s")
    with pytest.raises(cj.OperatorNeeded, match="alternates"):
        adoption.adopt(clone)
    git(clone, "repack", "-a", "-d", "--quiet")
    (clone / "objects" / "info" / "alternates").unlink()
    assert adoption.adopt(clone).changed
    check_whole(clone)


def test_a_push_that_would_set_a_branch_back_or_delete_it_is_refused_by_git(
    repo: Path, log: cj.DecisionLog, quick_path: Path
) -> None:
    clone = quick_path / "clone.git"
    git(repo, "clone", "--quiet", "--mirror", str(repo), str(clone))
    before = branch(repo)
    for refspec in ("+s~2:s", ":s", f"+{commit_on_top(clone)}:refs/heads/s"):
        assert gitted(clone, "push", str(repo), refspec)[0] != 0
        assert branch(repo) == before
    assert log.append("s", alias(6)).seq == 6


def test_under_another_authority_reading_works_and_appending_does_not(repo: Path, log: cj.DecisionLog) -> None:
    git(repo, "config", "coordjournal.authority", "etcd")
    with cj.DecisionLog.open(repo) as fresh:
        for one in (log, fresh):
            with pytest.raises(cj.WrongAuthority, match="'etcd'"):
                one.append("s", alias(6))
            assert (one.head("s").seq, len(list(one.events("s"))), one.state("s").seq) == (5, 5, 5)
    maintenance.verify(repo)
    git(repo, "config", "coordjournal.authority", "embedded")
    assert log.append("s", alias(6)).seq == 6


def make_sha256(place: Path, source: Path) -> None:
    git(place.parent, "init", "--quiet", "--bare", "--object-format=sha256", str(place))


def make_reftable(place: Path, source: Path) -> None:
    if gitted(place.parent, "init", "--quiet", "--bare", "--ref-format=reftable", str(place))[0]:
        pytest.skip("this git knows no reftable")


def make_shallow(place: Path, source: Path) -> None:
    git(source, "clone", "--quiet", "--bare", "--depth=2", "--no-single-branch", source.as_uri(), str(place))


def make_partial(place: Path, source: Path) -> None:
    git(source, "config", "uploadpack.allowFilter", "true")
    git(source, "clone", "--quiet", "--mirror", "--filter=blob:none", source.as_uri(), str(place))


def make_with_config(place: Path, source: Path, name: str, value: str) -> None:
    shutil.copytree(source, place)
    git(place, "config", name, value)


def make_with_broken_config(place: Path, source: Path) -> None:
    shutil.copytree(source, place)
    (place / "config").write_bytes(b"[core\n\xff\0")


def make_without_objects(place: Path, source: Path) -> None:
    shutil.copytree(source, place)
    shutil.rmtree(place / "objects")


def make_a_file(place: Path, source: Path) -> None:
    place.write_text("a file")


def make_a_directory(place: Path, source: Path) -> None:
    place.mkdir()
    (place / "a file").touch()


def make_a_working_tree(place: Path, source: Path) -> None:
    git(source, "clone", "--quiet", "--branch", "s", str(source), str(place))


FOREIGN: Final[dict[str, tuple[Callable[[Path, Path], None], str]]] = {
    "of SHA-256": (make_sha256, "objectformat = sha256"),
    "with a reftable": (make_reftable, "refstorage = reftable"),
    "that is shallow": (make_shallow, "shallow"),
    "that is partial": (make_partial, "partial"),
    "of a newer format": (lambda p, s: make_with_config(p, s, "core.repositoryformatversion", "2"), "is 2, not 0 or 1"),
    "of no format": (lambda p, s: make_with_config(p, s, "core.repositoryformatversion", "one"), "is one, not 0 or 1"),
    "with an unknown extension": (lambda p, s: make_with_config(p, s, "extensions.frob", "true"), "frob = true"),
    "with worktrees": (lambda p, s: make_with_config(p, s, "extensions.worktreeConfig", "true"), "worktreeconfig"),
    "with a broken config": (make_with_broken_config, "config cannot be read"),
    "without objects": (make_without_objects, "no bare git repository"),
    "that is a file": (make_a_file, "no bare git repository"),
    "that is a directory of something else": (make_a_directory, "no bare git repository"),
    "that is a working tree": (make_a_working_tree, "no bare git repository"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_repository_of_another_kind_is_refused_by_name(repo: Path, log: cj.DecisionLog, kind: str) -> None:
    make, words = FOREIGN[kind]
    place = repo.with_name("other.git")
    make(place, repo)
    with cj.DecisionLog.open(place) as other:
        uses: list[Callable[[], object]] = [*every_use(other), other.spaces]
        uses += [partial(maintenance.verify, place), partial(maintenance.compact, place)]
        uses += [partial(adoption.adopt, place), partial(maintenance.init, place)]
        for use in uses:
            with pytest.raises(cj.UnknownFormat, match=words) as refusal:
                use()
            assert str(place) in str(refusal.value)
            assert refusal.value.run
    assert any(finding.ok is False for finding in doctor.doctor(place))


def test_a_long_lived_process_notices_that_the_format_has_changed(repo: Path, log: cj.DecisionLog) -> None:
    git(repo, "config", "extensions.frob", "true")
    for use in (lambda: log.append("s", alias(6)), lambda: list(log.events("s")), log.spaces):
        with pytest.raises(cj.UnknownFormat):
            use()


@pytest.mark.parametrize("place", ["nothing", "empty", "file/wiki.git", "dangling"])
def test_where_there_is_no_repository_reading_says_so_and_makes_none(quick_path: Path, place: str) -> None:
    (quick_path / "empty").mkdir()
    (quick_path / "file").touch()
    (quick_path / "dangling").symlink_to(quick_path / "elsewhere")
    before = sorted(quick_path.rglob("*"))
    with cj.DecisionLog.open(quick_path / place) as log:
        uses: list[Callable[[], object]] = [*every_use(log)[1:], log.spaces]
        uses.append(partial(maintenance.verify, quick_path / place))
        for use in uses:
            with pytest.raises(cj.NotFound):
                use()
        assert sorted(quick_path.rglob("*")) == before
        if place in ("nothing", "empty"):
            assert log.append("s", alias(1)).seq == 1
        else:
            with pytest.raises(cj.Unavailable, match="cannot be made"):
                log.append("s", alias(1))


def use_without_permission(channel: Channel, repo: str) -> list[str]:
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    found = []
    with cj.DecisionLog.open(repo) as log:
        uses = every_use(log)
        uses += [partial(maintenance.verify, repo), partial(maintenance.compact, repo)]
        for use in uses:
            try:
                use()
                found.append("done")
            except cj.CoordJournalError as error:
                found.append(error.code)
            except OSError:
                found.append(traceback.format_exc())
    return found


@pytest.mark.parametrize("closed", [".", "config", "coordjournal", "objects", "refs/heads"])
def test_what_may_not_be_read_is_an_error_of_ours(
    repo: Path, log: cj.DecisionLog, quick_path: Path, closed: str
) -> None:
    log.close()
    quick_path.chmod(0o755)
    belongs_to_nobody(repo, 0)
    (repo / closed).chmod(0)
    found = start(use_without_permission, repo).result()
    (repo / closed).chmod(0o700)
    known = {"done", "unavailable", "not_found", "unknown_format", "corrupt", "wrong_authority", "operator_needed"}
    assert set(found) <= known
    assert closed == "coordjournal" or "done" not in found[:-1]


# Network file systems

MOUNTS: Final = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw
36 22 0:33 / /mnt/wiki rw,relatime shared:9 master:2 - nfs4 server:/wiki rw,vers=4.2
37 22 0:34 / /mnt/with\\040space\\040-\\040dash rw - fuse.sshfs host:/ rw
38 22 0:35 /sub /mnt/btrfs rw,noatime - btrfs /dev/sdb rw
39 22 0:36 / /mnt/glued rw,relatime
40 22 0:37 / /dev/shm rw,nosuid - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("device", "kind", "network"),
    [
        ("254:0", "ext4", False),
        ("0:33", "nfs4", True),
        ("0:34", "fuse.sshfs", True),
        ("0:35", "btrfs", False),
        ("0:37", "tmpfs", False),
        ("0:36", "", False),
        ("0:3", "", False),
        ("54:0", "", False),
    ],
)
def test_the_file_system_of_a_device_is_read_from_the_mounts(device: str, kind: str, network: bool) -> None:
    assert mounted_kind(iter(MOUNTS.splitlines(keepends=True)), device) == kind
    assert is_network(kind) is network


@pytest.mark.parametrize("kind", ["nfs", "cifs", "smb3", "9p", "ceph", "fuse.glusterfs", "lustre", "smbfs", "webdav"])
def test_network_file_systems_are_known_by_name(kind: str) -> None:
    assert is_network(kind)


def test_this_disk_is_no_network_file_system(quick_path: Path) -> None:
    assert not is_network(file_system(quick_path))
    assert file_system(quick_path) or sys.platform != "linux"


def test_on_a_network_file_system_reading_works_and_appending_does_not(
    repo: Path, log: cj.DecisionLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordjournal.store.git.file_system", lambda path: "nfs4")
    with cj.DecisionLog.open(repo) as remote:
        assert remote.state("s").seq == 5
        with pytest.raises(cj.WrongAuthority, match="nfs4"):
            remote.append("s", alias(6))
    assert branch(repo) == log.head("s").commit
