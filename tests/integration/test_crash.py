"""A process may die before and after anything it does to the disk: the log opens, and nothing is lost or doubled."""

from __future__ import annotations

import fcntl
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

import coordjournal as cj
from coordjournal import maintenance
from tests.integration.crashing import PowerCuts, Steps, die_at_every_step
from tests.integration.processes import Channel, Child, quick_path, start, until
from tests.support import alias, fsck

__all__ = ["quick_path"]  # pytest finds the fixture here

ACTOR: Final = "alice@example.org"
AT: Final = "2026-01-31T12:00:00.000000Z"

Asked = dict[str, list[cj.AliasSet]]
"""The appends that a child makes, by their keys."""

SINGLE: Final[Asked] = {"single": [alias(100)]}
SINGLE_AND_BATCH: Final[Asked] = {"first": [alias(101)], "batch": [alias(number) for number in range(110, 125)]}
GROUP: Final[Asked] = {f"group-{number}": [alias(number), alias(number + 50)] for number in range(130, 136)}
NEIGHBOUR: Final[Asked] = {"neighbour": [alias(190)]}


def make(repo: Path) -> None:
    with cj.DecisionLog.open(repo, actor=ACTOR, node="node") as log:
        for number in range(3):
            log.append("s", alias(number), key=f"before-{number}", at=AT)
        log.append("s", [alias(number) for number in range(3, 9)], key="before-3", at=AT)


def append_and_die(channel: Channel, repo: str, last: int, asked: dict[str, list[list[str]]]) -> int:
    """Append each, waiting for its receipt, and say so; return how many steps there were."""
    steps = Steps(last)
    with cj.DecisionLog.open(repo, actor=ACTOR, node="node") as log:
        steps.watch()
        for key, events in asked.items():
            receipt = log.append("s", [cj.AliasSet(*event) for event in events], key=key, at=AT, timeout=None)
            channel.send(receipt.key)
    return len(steps.names)


def submit_and_die(channel: Channel, repo: str, last: int, asked: dict[str, list[list[str]]]) -> int:
    """Submit all, so that they travel as one group, then wait for each receipt and say so."""
    steps = Steps(last)
    with cj.DecisionLog.open(repo, actor=ACTOR, node="node") as log:
        gate = os.open(f"{repo}/coordjournal/locks/s", os.O_RDWR | os.O_CREAT)
        fcntl.flock(gate, fcntl.LOCK_EX)
        futures = [
            log.submit("s", [cj.AliasSet(*event) for event in events], key=key, at=AT) for key, events in asked.items()
        ]
        steps.watch()
        os.close(gate)
        for future in futures:
            channel.send(future.result().key)
    return len(steps.names)


def append_and_wait(channel: Channel, repo: str, asked: dict[str, list[list[str]]]) -> list[str]:
    with cj.DecisionLog.open(repo, actor=ACTOR, node="node") as log:
        return [
            log.append("s", [cj.AliasSet(*event) for event in events], key=key, at=AT, timeout=None).key
            for key, events in asked.items()
        ]


def in_json(asked: Asked) -> dict[str, list[list[str]]]:
    return {key: [[event.alias, event.target] for event in events] for key, events in asked.items()}


def keys_in(log: cj.DecisionLog) -> Counter[str]:
    """Return how many entries each key has in the log; 0 where there is no log yet."""
    try:
        return Counter(entry.key for entry in log.events("s"))
    except cj.NotFound:
        return Counter()


def check_what_is_left(repo: Path, asked: Asked, acknowledged: set[str]) -> None:
    """The log after a crash, then after a retry of everything, then after one more append."""
    if (repo / "refs" / "heads" / "s").exists():
        fsck(repo)
        maintenance.verify(repo)
    with cj.DecisionLog.open(repo, actor=ACTOR, node="node") as log:
        found = keys_in(log)
        before = Counter(key for key in found.elements() if key.startswith("before-"))
        assert before in (Counter({"before-0": 1, "before-1": 1, "before-2": 1, "before-3": 6}), Counter())
        for key, count in (found - before).items():
            assert count == len(asked[key]), f"{key} is there, but not once and whole"
        assert acknowledged <= set(found), "an acknowledged append is lost"

        for key, events in asked.items():
            receipt = log.append("s", events, key=key, at=AT, timeout=None)
            assert receipt.duplicate is (key in found)
        assert keys_in(log) == before + Counter({key: len(events) for key, events in asked.items()})
        log.append("s", alias(200), key="after", timeout=None)
        assert [e.seq for e in log.events("s")] == list(range(1, log.head("s").seq + 1))
        assert cj.fold(log.events("s")) == log.state("s")
    assert maintenance.compact(repo).packs_after == 1
    maintenance.verify(repo)
    assert list((repo / "refs" / "heads").iterdir()) == [repo / "refs" / "heads" / "s"], "a lock is left"


@pytest.mark.parametrize(
    ("work", "asked", "fewest"),
    [
        pytest.param(append_and_die, SINGLE_AND_BATCH, 60, id="an append, then a batch"),
        pytest.param(submit_and_die, GROUP, 30, id="a group of appends"),
    ],
)
def test_a_process_that_dies_at_any_step_of_an_append_loses_and_doubles_nothing(
    quick_path: Path, work: Callable[..., object], asked: Asked, fewest: int
) -> None:
    def check(repo: Path, last: int, acknowledged: set[str], survived: bool) -> None:
        assert not survived or acknowledged == set(asked)
        check_what_is_left(repo, asked, acknowledged)

    make(quick_path / "template")
    assert die_at_every_step(quick_path, lambda repo, last: start(work, repo, last, in_json(asked)), check) > fewest


def test_a_process_that_dies_at_any_step_of_the_first_append_leaves_no_repository_or_a_whole_one(
    quick_path: Path,
) -> None:
    def check(repo: Path, last: int, acknowledged: set[str], survived: bool) -> None:
        assert not survived or acknowledged == set(SINGLE)
        check_what_is_left(repo, SINGLE, acknowledged)

    def begin(repo: Path, last: int) -> Child:
        return start(append_and_die, repo, last, in_json(SINGLE))

    assert die_at_every_step(quick_path, begin, check) > 60


def test_a_process_that_dies_at_any_step_while_it_serves_another_process_too_harms_neither(
    quick_path: Path,
) -> None:
    """The neighbour has left its append for whoever has the lock, and stands still while that one dies."""
    make(quick_path / "template")
    neighbours: dict[int, Child] = {}

    def begin(repo: Path, last: int) -> Child:
        for neighbour in list(neighbours.values()):
            with neighbour:
                neighbours.clear()
        gate = os.open(repo / "coordjournal" / "locks" / "s", os.O_RDWR | os.O_CREAT)
        fcntl.flock(gate, fcntl.LOCK_EX)
        neighbours[last] = start(append_and_wait, repo, in_json(NEIGHBOUR))
        until(lambda: list(repo.glob("coordjournal/spool/s/*.intent")), "the neighbour's intent")
        neighbours[last].kill(signal.SIGSTOP)
        os.close(gate)
        return start(append_and_die, repo, last, in_json(SINGLE))

    def check(repo: Path, last: int, acknowledged: set[str], survived: bool) -> None:
        neighbours[last].kill(signal.SIGCONT)
        assert neighbours[last].result() == list(NEIGHBOUR)
        check_what_is_left(repo, SINGLE | NEIGHBOUR, acknowledged | set(NEIGHBOUR))

    try:
        assert die_at_every_step(quick_path, begin, check) > 40
    finally:
        for neighbour in neighbours.values():
            with neighbour:
                pass


def append_with_power_cuts(
    channel: Channel, root: str, target: str, where: str, asked: dict[str, list[list[str]]]
) -> list[tuple[str, list[str]]]:
    steps = PowerCuts(Path(root), Path(target))
    with cj.DecisionLog.open(Path(root, where), actor=ACTOR, node="node") as log:
        steps.watch()
        for key, events in asked.items():
            log.append("s", [cj.AliasSet(*event) for event in events], key=key, at=AT, timeout=None)
            steps.said.append(key)
            steps.take("after append")
    return steps.left


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="what a power cut leaves is only known on Linux")
@pytest.mark.parametrize(
    ("where", "asked"),
    [
        pytest.param("wiki.git", SINGLE_AND_BATCH, id="of an append"),
        pytest.param("new.git", SINGLE, id="of the first append"),
        pytest.param("no/such/place/new.git", SINGLE, id="of the first append, in directories that it makes"),
    ],
)
def test_a_power_cut_at_any_step_loses_no_acknowledged_append(quick_path: Path, where: str, asked: Asked) -> None:
    root, target = quick_path / "root", quick_path / "target"
    root.mkdir()
    target.mkdir()
    make(root / "wiki.git")
    with start(append_with_power_cuts, root, target, where, in_json(asked)) as child:
        left = child.result()
    assert {key for _, said in left for key in said} == set(asked)
    for place, (step, said) in zip(sorted(target.iterdir(), key=lambda path: int(path.name)), left, strict=True):
        repo = place / where
        with cj.DecisionLog.open(repo, actor=ACTOR, node="node") as log:
            found = keys_in(log)
            assert set(said) <= set(found), f"a power cut {step} loses an acknowledged append"
            if found:
                maintenance.verify(repo)
            for key, events in asked.items():
                log.append("s", events, key=key, at=AT, timeout=None)
        maintenance.verify(repo)


def fill(repo: Path, first: int, last: int) -> None:
    with cj.DecisionLog.open(repo, actor=ACTOR, node="node") as log:
        futures = [log.submit("s", alias(number), key=f"key-{number}", at=AT) for number in range(first, last)]
        assert all(not future.result(60).duplicate for future in futures)


@pytest.mark.parametrize("damage", ["zeros", "half of it", "another byte"])
def test_an_index_of_keys_that_a_power_cut_damaged_lets_no_key_append_twice(
    quick_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """A run of the index is not synced; it is met again when it is to be merged with what has come since."""
    monkeypatch.setattr("coordjournal.cache.keys._RECENT", 32)
    repo = quick_path / "wiki.git"
    fill(repo, 0, 32)
    (run,) = (repo / "coordjournal" / "cache" / "s").glob("keys-*")
    content = bytearray(run.read_bytes())
    fill(repo, 32, 100)
    for later in run.parent.glob("keys-*"):
        later.unlink()
    if damage == "zeros":
        content[-4096:] = bytes(4096)
    elif damage == "half of it":
        del content[-2048:]
    else:
        content[-4096] ^= 1
    run.write_bytes(content)
    with cj.DecisionLog.open(repo, actor=ACTOR, node="node") as log:
        for number in (99, 0, 31, 32, 98):
            assert log.append("s", alias(number), key=f"key-{number}", at=AT).duplicate
        assert log.head("s").seq == 100
