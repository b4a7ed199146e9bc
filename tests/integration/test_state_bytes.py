"""What a log keeps folded is bounded by bytes: what is let go of costs time when it is asked for, and nothing else."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import coordjournal as cj
from tests.support import alias, git

SPACES = [f"space-{number}" for number in range(12)]


def fill(log: cj.DecisionLog, spaces: list[str], count: int = 50) -> None:
    done = [log.submit(space, [alias(number) for number in range(count)], key="first") for space in spaces]
    for future in done:
        future.result(60)


def warm(log: cj.DecisionLog) -> list[str]:
    """Return the spaces whose states are in memory."""
    return [space for space, replica in log._replicas._replicas.items() if replica.state.seq]


def test_250_small_spaces_all_stay_warm(tmp_path: Path) -> None:
    spaces = [f"small-{number}" for number in range(250)]
    with cj.DecisionLog.open(tmp_path / "wiki.git") as log:
        fill(log, spaces, 5)
        states = {space: log.state(space) for space in spaces}
        assert len(warm(log)) == 250
        assert all(log.state(space) is states[space] for space in spaces)


@pytest.mark.parametrize("kind", ["git", "memory"])
def test_what_was_let_go_of_is_folded_again_and_right(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "wiki.git"
    bound = 60_000
    with (
        cj.DecisionLog.open(path, state_bytes=bound) if kind == "git" else cj.DecisionLog.in_memory(state_bytes=bound)
    ) as log:
        fill(log, SPACES)
        expected = {space: log.state(space) for space in SPACES}
        for turn in range(3):
            for space in SPACES:
                receipt = log.append(space, alias(100 + turn))
                assert log.append(space, alias(100 + turn), key=receipt.key).duplicate, "the key is known again"
                assert log.append(space, [alias(number) for number in range(50)], key="first").duplicate
                state = log.state(space)
                assert (state.seq, state) == (51 + turn, cj.fold(log.events(space)))
                assert log.state(space, upto=50) == expected[space]
                assert log._replicas.held <= bound
        assert 1 < len(warm(log)) < len(SPACES)
        assert set(warm(log)) == set(SPACES[-len(warm(log)) :]), "those that were used last"
        assert expected["space-0"].seq == 50, "a state that was handed out stays as it is"


def test_one_that_is_larger_than_the_bound_is_kept_alone(tmp_path: Path) -> None:
    with cj.DecisionLog.open(tmp_path / "wiki.git", state_bytes=40_000) as log:
        fill(log, ["small", "large"])
        large = [alias(number) for number in range(1000)]
        log.append("large", large)
        state = log.state("large")
        assert state.held > 40_000
        assert log.state("large") is state
        assert warm(log) == ["large"]
        assert log.state("small").seq == 50
        assert warm(log) == ["small"]
        assert log.append("large", cj.AliasRemoved(large[0].alias)).seq == 1051


def test_threads_that_share_too_little_memory_agree(tmp_path: Path) -> None:
    with cj.DecisionLog.open(tmp_path / "wiki.git", state_bytes=1) as log:

        def work(number: int) -> None:
            for turn in range(40):
                space = SPACES[(number * turn) % 3]
                seq = log.append(space, alias(turn), key=f"{number}-{turn}").seq
                state = log.state(space)
                assert state.seq >= seq
                assert len(state.aliases) == len({entry.event for entry in log.events(space, upto=state.seq)})

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(work, range(4)))
        for space in SPACES[:3]:
            assert log.state(space) == cj.fold(log.events(space))
    assert log._replicas.held == 0


def test_a_log_that_is_set_back_is_noticed_though_its_state_was_let_go_of(tmp_path: Path) -> None:
    path = tmp_path / "wiki.git"
    with cj.DecisionLog.open(path, state_bytes=1) as log:
        first, second = log.append("s", alias(1)), log.append("s", alias(2))
        fill(log, ["other"])
        log.state("other")
        assert "s" not in warm(log)
        git(path, "update-ref", "refs/heads/s", first.commit)
        for ask in (lambda: log.state("s"), lambda: log.append("s", alias(3))):
            with pytest.raises(cj.Corrupt, match="does not hold it"):
                ask()
        git(path, "update-ref", "refs/heads/s", second.commit)
        assert log.append("s", alias(3)).seq == 3


@pytest.mark.parametrize("wrong", [-1, 1.5, "1", True, None])
def test_a_bound_is_a_number_of_bytes(tmp_path: Path, wrong: object) -> None:
    with pytest.raises(cj.InvalidEvent, match="state_bytes"):
        cj.DecisionLog.open(tmp_path / "wiki.git", state_bytes=wrong)  # type: ignore[arg-type]
