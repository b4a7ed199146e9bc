"""A holder whose disk fails at any one call publishes nothing that is not durable, and lets another one hold."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from coordjournal import maintenance
from coordjournal.testing.etcd import EtcdServer
from tests.integration.etcd_parts import Party, check, drain, fresh_prefix, published, told, unbroken
from tests.integration.processes import Channel, quick_path, start
from tests.integration.test_disk_errors import MOST_STEPS, Faults

__all__ = ["quick_path"]


class Server(NamedTuple):
    """An etcd, as a child process knows it."""

    endpoint: str


@pytest.fixture(scope="module")
def endpoint(coordjournal_etcd_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server.endpoint


class Failing(Party):
    """A party whose disk fails as it was armed to, whenever it takes a step."""

    faults: Faults

    def step(self, times: int = 1) -> float | None:
        with self.faults.armed():
            return super().step(times)


def hold_with_faults(channel: Channel, home: str, endpoint: str, prefix: str, for_ever: bool) -> list[dict[str, Any]]:
    """Have each call of a holder's append fail in turn, once or from there on, beside a node that is well."""
    Failing.faults = faults = Faults()
    faults.watch()
    server: Any = Server(endpoint)
    turns: list[dict[str, Any]] = []
    for at in range(1, MOST_STEPS, 1 if for_ever else 2):
        repo = Path(home, str(at), "wiki.git")
        ill, well = Failing(endpoint, repo, f"{prefix}{at}/"), Party(endpoint, repo, f"{prefix}{at}/")
        faults.arm(0)
        ill.submit("first")
        ill.run()
        assert ill.holds
        faults.arm(at, for_ever=for_ever)
        ill.submit("second")
        for _ in range(MOST_STEPS):
            if ill.futures["second"].done() or not ill.holds:
                break
            ill.step()
        holds, seq = ill.holds, len(published(server, well))
        well.submit("third")
        drain([ill, well])
        by_key = check(server, [ill, well])
        assert "third" in by_key
        answer = told(ill.futures["second"])
        hit = faults.hit
        turns.append({"hit": hit, "holds": holds, "seq": seq, "then": well.holds, "answer": type(answer).__name__})
        faults.arm(0)
        again = [party.ask("second") for party in (ill, well)]
        drain([ill, well])
        assert [future.result(0).commit for future in again] == [unbroken(server, well)["second"].commit] * 2
        ill.close()
        well.close()
        maintenance.verify(repo)
        shutil.rmtree(repo.parent)
        if not hit:
            break
    return turns


@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "from there on"])
def test_a_holder_whose_disk_fails_publishes_nothing_and_another_takes_over(
    quick_path: Path, endpoint: str, for_ever: bool
) -> None:
    turns = start(hold_with_faults, quick_path, endpoint, fresh_prefix(), for_ever).result()
    refused = [turn for turn in turns if turn["seq"] == 1]
    assert {turn["answer"] for turn in refused} == {"Unavailable"}
    assert not any(turn["holds"] for turn in refused), "it cannot write, and holds the space"
    assert all(turn["then"] for turn in refused), "the one whose disk is well did not take over"
    assert {"before write", "before fsync"} <= {turn["hit"] for turn in refused} or not for_ever
    for turn in turns:
        if turn["seq"] == 2:
            assert turn["answer"] == "Receipt", "the branch is a cache: what is published is acknowledged without it"
    assert len(turns) > len(refused) > 10
