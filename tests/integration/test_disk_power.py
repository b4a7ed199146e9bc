"""The power fails, on a real ext4, at everything that a process does to it: what was acknowledged is there."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest

import coordjournal as cj
from coordjournal import maintenance
from tests.integration.crashing import Steps
from tests.integration.loopdisk import Cut, Drive, DriveCuts, loop_devices, own_mounts
from tests.integration.processes import Channel, quick_path, start
from tests.integration.test_compaction import all_objects, append_many
from tests.integration.workers import ACTOR, check_whole, log_of
from tests.support import alias, fsck

__all__ = ["loop_devices", "quick_path"]

pytestmark = pytest.mark.usefixtures("loop_devices")

AT: Final = "2026-01-31T12:00:00.000000Z"
MIB: Final = 8
BEFORE: Final = {f"before-{number}": [number] for number in range(3)}
ASKED: Final = {"single": [10], "batch": [11, 12, 13]}


def append_all(log: cj.DecisionLog, asked: dict[str, list[int]]) -> dict[str, bool]:
    """Append each, which may be there already; return by key whether it was."""
    return {
        key: log.append("s", [alias(number) for number in numbers], key=key, at=AT, timeout=None).duplicate
        for key, numbers in asked.items()
    }


def append_with_cuts(channel: Channel, home: str, holds_back: bool) -> list[Cut]:
    own_mounts()
    drive = Drive.make(Path(home), MIB, holds_back=holds_back)
    said: list[str] = []
    with drive.mounted() as root:
        cuts = DriveCuts(drive, Path(home), lambda: list(said))
        with cj.DecisionLog.open(root / "wiki.git", actor=ACTOR, node="node") as log:
            append_all(log, BEFORE)
            said += BEFORE
            cuts.watch()
            for key, numbers in ASKED.items():
                append_all(log, {key: numbers})
                said.append(key)
                cuts.take("after append")
    return cuts.left


def check_appends(channel: Channel, home: str, holds_back: bool, left: list[Any]) -> None:
    own_mounts()
    for step, image, said in left:
        with Drive(Path(home), Path(image), holds_back=holds_back).mounted() as root:
            check_appends_in(root / "wiki.git", f"a power cut {step}", set(said))
        Path(image).unlink()


def check_appends_in(repo: Path, cut: str, said: set[str]) -> None:
    everything = BEFORE | ASKED
    maintenance.verify(repo)
    fsck(repo)
    with cj.DecisionLog.open(repo, actor=ACTOR, node="node") as log:
        entries = list(log.events("s"))
        found = list(dict.fromkeys(entry.key for entry in entries))
        assert said <= set(found), f"{cut} loses an acknowledged append"
        assert found == list(everything)[: len(found)], f"{cut} changes the order"
        told = [(key, alias(number)) for key in found for number in everything[key]]
        assert [(entry.key, entry.event) for entry in entries] == told, f"{cut} invents or tears an append"
        assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
        duplicates = append_all(log, everything)
        assert [key for key, duplicate in duplicates.items() if duplicate] == found
        assert Counter(entry.key for entry in log.events("s")) == {k: len(v) for k, v in everything.items()}
    maintenance.verify(repo)


@pytest.mark.parametrize("holds_back", [False, True], ids=["a drive that writes", "a drive that holds back"])
def test_a_power_cut_at_every_step_of_an_append_loses_and_invents_nothing(quick_path: Path, holds_back: bool) -> None:
    left = start(append_with_cuts, quick_path, holds_back).result()
    start(check_appends, quick_path, holds_back, left).result()
    assert {len(said) for _, _, said in left} == {3, 4, 5}
    assert len(left) > 10


def first_append_with_cuts(channel: Channel, home: str, holds_back: bool) -> list[Cut]:
    own_mounts()
    drive = Drive.make(Path(home), MIB, holds_back=holds_back)
    said: list[str] = []
    with drive.mounted() as root:
        cuts = DriveCuts(drive, Path(home), lambda: list(said))
        with cj.DecisionLog.open(root / "wikis" / "wiki.git", actor=ACTOR, node="node") as log:
            cuts.watch()
            append_all(log, {"single": [10]})
            said.append("single")
            cuts.take("after append")
    return cuts.left


def check_first_append(channel: Channel, home: str, holds_back: bool, left: list[Any]) -> None:
    own_mounts()
    for step, image, said in left:
        with Drive(Path(home), Path(image), holds_back=holds_back).mounted() as root:
            repo = root / "wikis" / "wiki.git"
            with cj.DecisionLog.open(repo, actor=ACTOR, node="node") as log:
                try:
                    found = [entry.key for entry in log.events("s")]
                except cj.NotFound:
                    found = []
                assert found in ([], ["single"])
                assert set(said) <= set(found), f"a power cut {step} loses an acknowledged append"
                assert append_all(log, {"single": [10]}) == {"single": bool(found)}
            check_whole(repo)
        Path(image).unlink()


def test_a_power_cut_at_every_step_of_the_first_append_leaves_no_repository_or_a_whole_one(quick_path: Path) -> None:
    left = start(first_append_with_cuts, quick_path, True).result()
    start(check_first_append, quick_path, True, left).result()
    assert {len(said) for _, _, said in left} == {0, 1}


def compact_with_cuts(channel: Channel, home: str) -> tuple[list[Cut], list[str], list[list[Any]]]:
    own_mounts()
    drive = Drive.make(Path(home), MIB, holds_back=True)
    with drive.mounted() as root:
        repo = root / "wiki.git"
        append_many(repo, 1, 6)
        objects, entries = all_objects(repo), log_of(repo)
        cuts = DriveCuts(drive, Path(home), list)
        cuts.watch()
        assert maintenance.compact(repo).packs_after == 1
        cuts.take("after compact")
    return cuts.left, sorted(objects), entries


def check_compactions(
    channel: Channel, home: str, left: list[Any], objects: list[str], entries: list[list[Any]]
) -> list[int]:
    own_mounts()
    packs = []
    for step, image, _ in left:
        with Drive(Path(home), Path(image), holds_back=True).mounted() as root:
            repo = root / "wiki.git"
            check_whole(repo)
            assert log_of(repo) == entries, f"a power cut {step} of a compaction changes the log"
            assert all_objects(repo) == set(objects), f"a power cut {step} of a compaction loses or invents objects"
            packs.append(len(list(repo.glob("objects/pack/*.idx"))))
            append_many(repo, 7, 7)
            maintenance.compact(repo)
            check_whole(repo)
            assert log_of(repo)[:-1] == entries
        Path(image).unlink()
    return packs


def test_a_power_cut_at_every_step_of_a_compaction_loses_and_invents_nothing(quick_path: Path) -> None:
    left, objects, entries = start(compact_with_cuts, quick_path).result()
    packs = start(check_compactions, quick_path, left, objects, entries).result()
    assert {6, 7, 1} <= set(packs), "the cuts were before, within and after it"


def die_after_the_rename(channel: Channel, repo: str) -> None:
    """Append, and be killed when the branch is moved and its directory is not synced yet."""
    with cj.DecisionLog.open(repo, actor=ACTOR, node="node") as log:
        log.state("s")
        steps = Steps(0)
        steps.watch()
        plain = os.rename

        def rename(source: Any, target: Any) -> None:
            plain(source, target)
            if str(target).endswith("/refs/heads/s"):
                os.kill(os.getpid(), 9)

        os.rename = rename  # type: ignore[assignment]
        append_all(log, ASKED)


def retry_with_a_cut(channel: Channel, home: str) -> str:
    own_mounts()
    drive = Drive.make(Path(home), MIB, holds_back=True)
    with drive.mounted() as root:
        repo = root / "wiki.git"
        with cj.DecisionLog.open(repo, actor=ACTOR, node="node") as log:
            append_all(log, BEFORE)
        channel.send(os.getpid())
        pid = os.fork()
        if not pid:
            die_after_the_rename(channel, str(repo))
        os.waitpid(pid, 0)
        with cj.DecisionLog.open(repo, actor=ACTOR, node="node") as log:
            receipt = log.append("s", [alias(10)], key="single", at=AT, timeout=None)
            assert receipt.duplicate, "it was appended by the process that died"
        drive.cut(Path(home, "cut.img"))
    return "cut.img"


def read_after_a_cut(channel: Channel, home: str) -> list[str]:
    own_mounts()
    with Drive(Path(home), Path(home, "cut.img"), holds_back=True).mounted() as root:
        return [key for _, _, key in log_of(root / "wiki.git")]


def test_a_retry_of_what_a_dead_process_appended_is_acknowledged_when_it_outlives_a_power_cut(quick_path: Path) -> None:
    """It died between moving the branch and syncing the branch's directory."""
    start(retry_with_a_cut, quick_path).result()
    assert start(read_after_a_cut, quick_path).result() == [*BEFORE, "single"]
