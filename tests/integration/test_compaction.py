"""Compaction makes one pack of many and loses nothing: not what is in flight, not to a crash, not under readers."""

from __future__ import annotations

import fcntl
import os
import threading
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

import coordjournal as cj
from coordjournal import maintenance
from coordjournal.store import compaction, pack
from tests.integration.crashing import PowerCuts, Steps, die_at_every_step
from tests.integration.processes import Channel, Child, quick_path, start, until
from tests.integration.workers import ACTOR, append_until_told, check_whole, log_of, repo
from tests.support import alias, fsck, git

__all__ = ["quick_path", "repo"]  # pytest finds the fixtures here

PACKS_BOUND: Final = 64 + 2 * 32  # due at 64, looked for every 32 groups, while one compaction more is under way


def packs(repo: Path, suffix: str = ".pack") -> list[Path]:
    return sorted((repo / "objects" / "pack").glob(f"*{suffix}"))


def pack_files(repo: Path) -> int:
    return len(list((repo / "objects" / "pack").iterdir()))


def reachable(repo: Path) -> set[str]:
    return {line.split()[0] for line in git(repo, "rev-list", "--objects", "--all").splitlines()}


def all_objects(repo: Path) -> set[str]:
    return set(git(repo, "cat-file", "--batch-all-objects", "--batch-check=%(objectname)").split())


def append_many(repo: Path, first: int, last: int) -> None:
    with cj.DecisionLog.open(repo, actor=ACTOR) as log:
        for number in range(first, last + 1):
            log.append("s", alias(number), key=f"key-{number}")


def orphan(repo: Path) -> str:
    """Leave an append that was made durable and never published; return its commit."""
    lock = repo / "refs" / "heads" / "s.lock"
    draft = repo / "coordjournal" / "drafts" / "ref-s"
    draft.unlink(missing_ok=True)
    lock.touch()
    with start(append_an_orphan, repo) as child:
        until(lambda: draft.exists() and len(draft.read_bytes()) == 41, "the draft of the branch")
        child.kill()
    lock.unlink()
    return draft.read_text().strip()


def append_an_orphan(channel: Channel, repo: str) -> None:
    with cj.DecisionLog.open(repo, actor=ACTOR) as log:
        log.append("s", cj.AliasSet("orphan", "t"), key="orphan", timeout=None)


# Bounded by itself


def test_a_thousand_single_appends_keep_the_number_of_files_bounded(repo: Path) -> None:
    with cj.DecisionLog.open(repo, actor=ACTOR) as log:
        for number in range(1, 1001):
            log.append("s", alias(number), key=f"key-{number}")
            if number % 32 == 0:  # memory, which stands for the disk here, is faster than any compaction
                until(lambda: len(packs(repo)) <= PACKS_BOUND, "a compaction")
    assert len(packs(repo)) <= PACKS_BOUND
    assert sum(len(names) for _, _, names in os.walk(repo)) <= 3 * PACKS_BOUND + 50
    assert [key for _, _, key in log_of(repo)] == [f"key-{number}" for number in range(1, 1001)]
    check_whole(repo)


def append_once(channel: Channel, repo: str, number: int) -> None:
    with cj.DecisionLog.open(repo, actor=ACTOR) as log:
        log.append("s", alias(number), key=f"key-{number}")


def test_processes_that_append_once_and_end_keep_the_number_of_files_bounded_too(repo: Path) -> None:
    """As a shell loop over the command line does."""
    for number in range(1, 101):
        assert start(append_once, repo, number).result() is None
        assert len(packs(repo)) <= 96
    assert len(log_of(repo)) == 100
    check_whole(repo)


# On demand


def test_compaction_on_demand_leaves_one_pack_with_everything_in_it(repo: Path) -> None:
    append_many(repo, 1, 30)
    lost = orphan(repo)
    blob = git(repo, "hash-object", "-w", "--stdin", stdin="an operator's loose object").strip()
    before, log_before = all_objects(repo), log_of(repo)
    done = maintenance.compact(repo)
    assert (done.packs_before, done.packs_after, done.objects) == (31, 1, len(before) - 1)
    assert sorted(path.suffix for path in (repo / "objects" / "pack").iterdir()) == [".idx", ".keep", ".pack"]
    assert packs(repo, ".keep")[0].read_bytes() == pack.KEEP
    assert all_objects(repo) == before
    assert git(repo, "cat-file", "-t", lost).strip() == "commit"
    assert git(repo, "cat-file", "-t", blob).strip() == "blob"
    assert log_of(repo) == log_before
    check_whole(repo)
    again = maintenance.compact(repo)
    assert (again.packs_before, again.packs_after, again.objects) == (1, 1, 0)
    with cj.DecisionLog.open(repo, actor=ACTOR) as log:
        assert log.append("s", cj.AliasSet("orphan", "t"), key="orphan").duplicate is False


def test_compaction_of_nothing_does_nothing(repo: Path) -> None:
    assert maintenance.compact(repo)[:2] == (0, 0)
    append_many(repo, 1, 1)
    assert maintenance.compact(repo)[:2] == (1, 1)
    with pytest.raises(cj.NotFound):
        maintenance.compact(repo.with_name("none.git"))


def test_what_a_compaction_makes_is_smaller(repo: Path) -> None:
    append_many(repo, 1, 60)
    done = maintenance.compact(repo)
    assert done.bytes_after < done.bytes_before / 2


# Beside others


def read_until_told(channel: Channel, repo: str) -> int:
    """Read everything again and again with one log, until the file `stop` is there; return how many times."""
    turns = 0
    with cj.DecisionLog.open(repo) as log:
        while not Path(repo, "stop").exists():
            head = log.head("s")
            entries = list(log.events("s"))
            assert [e.seq for e in entries] == list(range(1, len(entries) + 1))
            assert len(entries) >= head.seq
            assert cj.fold(entries).seq == len(entries)
            assert log.state("s").seq >= len(entries)
            turns += 1
            channel.send(turns)
    return turns


def test_a_reader_and_an_appender_go_on_across_compactions(repo: Path) -> None:
    append_many(repo, 1, 20)
    with start(read_until_told, repo) as reader, start(append_until_told, repo, "a") as appender:
        said: list[list[Any]] = []
        for _ in range(15):
            said.append(appender.receive())
            reader.receive()
            maintenance.compact(repo)
        (repo / "stop").touch()
        said += appender.said()
        reader.result()
        assert appender.join() == 0
    in_log = log_of(repo)
    assert [receipt for receipt in in_log if receipt[2].startswith("a-")] == said
    check_whole(repo)


def compact_repeatedly(channel: Channel, repo: str, times: int) -> list[int]:
    channel.send("ready")
    channel.receive()
    return [maintenance.compact(repo).packs_after for _ in range(times)]


def test_two_compactors_at_a_time_take_turns(repo: Path) -> None:
    append_many(repo, 1, 40)
    with start(append_until_told, repo, "a") as appender:
        compactors = [start(compact_repeatedly, repo, 8) for _ in range(2)]
        for compactor in compactors:
            compactor.receive()
        for compactor in compactors:
            compactor.send("go")
        for compactor in compactors:
            compactor.result()
        (repo / "stop").touch()
        said = appender.said()
        assert appender.join() == 0
    in_log = log_of(repo)
    assert in_log[40:] == said
    check_whole(repo)
    assert maintenance.compact(repo).packs_after == 1
    assert log_of(repo) == in_log
    check_whole(repo)


def test_a_compaction_that_another_process_is_at_is_not_waited_for_by_appends(repo: Path) -> None:
    append_many(repo, 1, 3)
    with (repo / "coordjournal" / "locks" / compaction.LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        append_many(repo, 4, 150)
        assert len(packs(repo)) == 150
    append_many(repo, 151, 220)
    assert len(packs(repo)) <= PACKS_BOUND
    assert len(log_of(repo)) == 220


def descriptors(of: str = "") -> int:
    """Return how many files this process has open whose path holds `of`."""
    places = list(Path("/proc/self/fd").iterdir())
    return sum(of in str(place.readlink()) for place in places if place.is_symlink())


def count_descriptors(channel: Channel, repo: str) -> list[int]:
    """Read, whenever told to, in two threads with one log; return how many descriptors were open each time."""
    counts: list[int] = []
    with cj.DecisionLog.open(repo) as log:
        while channel.receive():
            threads = [threading.Thread(target=lambda: list(log.events("s"))) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            log.state("s")
            counts.append(descriptors())
            channel.send(counts[-1])
    return counts


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="descriptors are counted by way of /proc")
def test_a_long_lived_reader_keeps_few_files_open_over_many_compactions(repo: Path) -> None:
    append_many(repo, 1, 10)
    with start(count_descriptors, repo) as reader:
        for turn in range(30):
            append_many(repo, 11 + 3 * turn, 13 + 3 * turn)
            reader.send(True)
            reader.receive()
            maintenance.compact(repo)
        reader.send(False)
        counts = reader.result()
    assert max(counts[10:]) <= max(counts[:10]), counts


def has_index(cache: Path) -> bool:
    return any(cache.glob("keys-*"))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="descriptors are counted by way of /proc")
def test_an_index_of_keys_that_is_no_longer_used_keeps_no_file_open(
    quick_path: Path,
) -> None:
    """More spaces than a process remembers take turns; each has a key index on disk."""
    repo = quick_path / "wiki.git"
    with cj.DecisionLog.open(repo, actor=ACTOR, state_bytes=1) as log:
        for space in ("s", "t"):
            futures = [log.submit(space, alias(number)) for number in range(4200)]
            assert futures[-1].result(60).seq == 4200
            cache = repo / "coordjournal" / "cache" / space
            until(partial(has_index, cache), "the index")
        for number in range(12):
            log.append("s", alias(5000 + number))
            log.append("t", alias(5000 + number))
            assert descriptors("/keys-") <= 2
    assert descriptors("/keys-") == 0


# Packs of others


def test_a_pack_that_someone_else_keeps_is_left_alone(repo: Path) -> None:
    append_many(repo, 1, 10)
    kept = packs(repo)[3]
    kept.with_suffix(".keep").write_bytes(b"an operator's\n")
    empty = packs(repo)[5]
    empty.with_suffix(".keep").write_bytes(b"")
    promised = packs(repo)[7]
    promised.with_suffix(".promisor").touch()
    done = maintenance.compact(repo)
    assert done.packs_after == 1
    assert len(packs(repo)) == 4
    for path in (kept, empty, promised):
        assert path.exists()
        assert path.with_suffix(".idx").exists()
    assert kept.with_suffix(".keep").read_bytes() == b"an operator's\n"
    promised.with_suffix(".promisor").unlink()
    assert len(log_of(repo)) == 10
    check_whole(repo)


@pytest.mark.parametrize("command", ["repack -a", "repack -a --write-bitmap-index", "gc", "multi-pack-index write"])
def test_packs_of_plain_git_are_taken_in_and_nothing_of_them_is_left(repo: Path, command: str) -> None:
    append_many(repo, 1, 10)
    git(repo, *command.split(), check=False)
    append_many(repo, 11, 12)
    before = all_objects(repo)
    maintenance.compact(repo)
    left = sorted(path.name for path in (repo / "objects" / "pack").iterdir())
    (name,) = {Path(file).stem for file in left}
    assert left == [f"{name}.idx", f"{name}.keep", f"{name}.pack"]
    assert all_objects(repo) == before
    check_whole(repo)


def test_a_damaged_pack_stops_the_compaction_and_nothing_is_deleted(repo: Path) -> None:
    append_many(repo, 1, 10)
    victim = packs(repo)[4]
    victim.chmod(0o644)
    data = bytearray(victim.read_bytes())
    data[data.index(b"Name ")] ^= 1
    victim.write_bytes(data)
    before = sorted((repo / "objects" / "pack").iterdir())
    with pytest.raises(cj.CoordJournalError):
        maintenance.compact(repo)
    assert sorted((repo / "objects" / "pack").iterdir()) == before
    assert list((repo / "coordjournal" / "drafts").glob("compaction-*")) == []


@pytest.mark.parametrize("content", [b"", b"\xfftOc\0\0\0\2", b"garbage" * 500])
def test_a_damaged_index_stops_the_compaction_and_nothing_is_deleted(repo: Path, content: bytes) -> None:
    append_many(repo, 1, 5)
    victim = packs(repo, ".idx")[2]
    victim.chmod(0o644)
    whole = victim.read_bytes()
    victim.write_bytes(content)
    before = sorted((repo / "objects" / "pack").iterdir())
    with pytest.raises(cj.Corrupt, match=victim.name):
        maintenance.compact(repo)
    assert sorted((repo / "objects" / "pack").iterdir()) == before
    victim.write_bytes(whole)
    assert maintenance.compact(repo).packs_after == 1
    check_whole(repo)


# Dying


def compact_and_die(channel: Channel, repo: str, last: int) -> int:
    steps = Steps(last)
    steps.watch()
    maintenance.compact(repo)
    return len(steps.names)


def test_a_compactor_that_dies_at_any_step_loses_nothing_and_the_next_one_finishes(quick_path: Path) -> None:
    template = quick_path / "template"
    append_many(template, 1, 3)
    lost = orphan(template)
    git(template, "repack", "-a", "--quiet")
    objects, entries = all_objects(template), log_of(template)

    def begin(repo: Path, last: int) -> Child:
        return start(compact_and_die, repo, last)

    def check(repo: Path, last: int, acknowledged: set[str], survived: bool) -> None:
        fsck(repo)
        assert all_objects(repo) == objects
        assert log_of(repo) == entries
        append_many(repo, 4, 4)
        assert maintenance.compact(repo).packs_after == 1
        assert list((repo / "coordjournal" / "drafts").glob("compaction-*")) == []
        assert git(repo, "cat-file", "-t", lost).strip() == "commit"
        check_whole(repo)

    assert die_at_every_step(quick_path, begin, check) > 40


def compact_with_power_cuts(channel: Channel, root: str, target: str) -> list[tuple[str, list[str]]]:
    steps = PowerCuts(Path(root), Path(target))
    steps.watch()
    maintenance.compact(Path(root, "wiki.git"))
    return steps.left


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="what a power cut leaves is only known on Linux")
def test_a_power_cut_at_any_step_of_a_compaction_loses_nothing(quick_path: Path) -> None:
    root, target = quick_path / "root", quick_path / "target"
    root.mkdir()
    target.mkdir()
    append_many(root / "wiki.git", 1, 5)
    objects, entries = all_objects(root / "wiki.git"), log_of(root / "wiki.git")
    with start(compact_with_power_cuts, root, target) as child:
        left = child.result()
    assert len(left) > 20
    for place, (step, _) in zip(sorted(target.iterdir(), key=lambda path: int(path.name)), left, strict=True):
        repo = place / "wiki.git"
        assert log_of(repo) == entries, f"a power cut {step} loses appends"
        assert all_objects(repo) >= objects, f"a power cut {step} loses objects"
        maintenance.verify(repo)
