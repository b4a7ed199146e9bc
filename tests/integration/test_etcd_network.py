"""A node that is cut off from etcd in one direction or both, an etcd that stands still, members that die."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

import coordjournal as cj
from coordjournal.authority.intake import Intake
from coordjournal.authority.lane import AppendFuture
from coordjournal.entry import Receipt
from coordjournal.etcd import Get
from coordjournal.etcd.client import EtcdClient, parse_endpoints
from coordjournal.testing.etcd import EtcdCluster, EtcdServer
from coordjournal.testing.plugin import EtcdAtHand
from tests.integration.etcd_proxy import Proxy
from tests.integration.etcd_workers import ACTOR, SPACE, alias_of
from tests.integration.processes import all_stopped, quick_path, until

__all__ = ["quick_path"]

TTL: Final = 2


class Site:
    """One journal; opens logs that reach etcd by themselves or through a proxy."""

    def __init__(self, repo: Path, etcd: str, prefix: str, stack: ExitStack) -> None:
        self.repo, self.etcd, self.prefix = repo, etcd, prefix
        self._stack = stack

    def log(self, etcd: str = "", role: str = "auto") -> cj.DecisionLog:
        return self._stack.enter_context(
            cj.DecisionLog.open(
                self.repo,
                etcd=etcd or self.etcd,
                prefix=self.prefix,
                ttl=TTL,
                actor=ACTOR,
                role=role,  # type: ignore[arg-type]
            )
        )

    def proxy(self) -> Proxy:
        return self._stack.enter_context(Proxy(self.etcd))

    def entries(self) -> dict[str, cj.Entry]:
        entries = list(self.log(role="client").events(SPACE))
        by_key = {entry.key: entry for entry in entries}
        assert len(by_key) == len(entries), "a key was appended twice"
        return by_key


@pytest.fixture
def site(quick_path: Path, coordjournal_etcd: EtcdAtHand, coordjournal_prefix: str) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(quick_path / "wiki.git", coordjournal_etcd.endpoints, coordjournal_prefix, stack)


@pytest.fixture
def server(coordjournal_etcd_binary: str, quick_path: Path) -> Iterator[EtcdServer]:
    with EtcdServer(quick_path / "etcd") as server:
        yield server


def append(log: cj.DecisionLog, key: str, timeout: float | None = 20.0) -> Receipt:
    return log.append(SPACE, alias_of(key), key=key, timeout=timeout)


def submit(log: cj.DecisionLog, *keys: str) -> list[Future[Receipt]]:
    return [log.submit(SPACE, alias_of(key), key=key) for key in keys]


@pytest.mark.parametrize(("to_etcd", "to_node"), [(False, False), (True, False), (False, True)])
def test_a_holder_that_is_cut_off_loses_the_space_and_forwards_what_it_has(
    site: Site, to_etcd: bool, to_node: bool
) -> None:
    proxy = site.proxy()
    cut_off, other = site.log(proxy.endpoint), site.log()
    append(cut_off, "a")
    append(other, "b")
    proxy.silence(to_etcd=to_etcd, to_node=to_node)
    under_way = submit(cut_off, *(f"cut-{number}" for number in range(10)))
    assert append(other, "c", timeout=30).seq >= 3
    proxy.cut()
    proxy.heal()
    receipts = [future.result(30) for future in under_way]
    assert [receipt.seq for receipt in receipts] == sorted(receipt.seq for receipt in receipts)
    entries = site.entries()
    assert {entries[receipt.key].commit for receipt in receipts} == {receipt.commit for receipt in receipts}
    assert len(entries) == 13


def test_what_is_unavailable_while_etcd_is_cut_off_is_not_appended_when_it_heals(site: Site) -> None:
    proxy = site.proxy()
    holder, forwarder = site.log(), site.log(proxy.endpoint)
    append(holder, "a")
    append(forwarder, "b")
    answers: dict[str, cj.CoordJournalError] = {}
    for number, way in enumerate(({"to_etcd": True}, {"to_node": True}, {})):
        proxy.silence(**way)
        for half in range(2):
            key = f"cut-{number}-{half}"
            with pytest.raises((cj.Unavailable, cj.Undecided)) as failure:
                append(forwarder, key, timeout=0.6)
            answers[key] = failure.value
        proxy.heal()
        append(forwarder, f"healed-{number}")
    assert any(isinstance(answer, cj.Unavailable) for answer in answers.values())
    append(holder, "last")
    entries = site.entries()
    for key, answer in answers.items():
        assert not (isinstance(answer, cj.Unavailable) and key in entries), f"{key}: {answer}"
    for key in answers:
        again = append(forwarder, key)
        assert key not in entries or again.commit == entries[key].commit


def test_a_connection_that_breaks_again_and_again_costs_no_append_and_doubles_none(site: Site) -> None:
    proxy = site.proxy()
    holder, forwarder = site.log(proxy.endpoint), site.log()
    append(holder, "first")
    under_way: list[Future[Receipt]] = []
    for round_ in range(8):
        under_way += submit(holder, *(f"h{round_}-{number}" for number in range(20)))
        under_way += submit(forwarder, *(f"f{round_}-{number}" for number in range(20)))
        proxy.cut()
        under_way[20 * round_].result(30)
    receipts = [future.result(30) for future in under_way]
    entries = site.entries()
    assert len(entries) == 1 + len(receipts)
    for receipt in receipts:
        assert (entries[receipt.key].seq, entries[receipt.key].commit) == (receipt.seq, receipt.commit)
        assert not receipt.duplicate


def test_while_etcd_stands_still_local_reads_go_on_and_appends_fail_by_their_deadline(
    server: EtcdServer, quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []
    withdraw = Intake._try_to_withdraw

    def noted(intake: Intake, future: AppendFuture, seconds: float) -> bool:
        given.append(seconds)
        return withdraw(intake, future, seconds)

    monkeypatch.setattr(Intake, "_try_to_withdraw", noted)
    with ExitStack() as stack:
        site = Site(quick_path / "wiki.git", server.endpoint, "/still/", stack)
        log, other = site.log(), site.log()
        first = append(log, "a")
        append(other, "b")
        assert log.head(SPACE).seq == 2
        server.pause()
        until(lambda: all_stopped(server.pid))
        try:
            for which, key in ((log, "h"), (other, "f")):
                with pytest.raises((cj.Unavailable, cj.Undecided)):
                    append(which, key, timeout=1.0)
            assert given == [0.5, 0.5], "what is left of the timeout, and a quarter of a second"
            assert log.head(SPACE, consistency="local").seq == 2
            assert log.state(SPACE, consistency="session").seq == 2
            assert log.state(SPACE, consistency="session", after=first).seq == 2
            assert [entry.key for entry in other.events(SPACE, consistency="local")] == ["a", "b"]
            age = log.age(SPACE)
            assert age is not None
            assert 0 < age < 60
            with pytest.raises(cj.Unavailable):
                log.head(SPACE, timeout=0.5)
        finally:
            server.resume()
        answers = [append(which, key).key for which, key in ((log, "h"), (other, "f"), (log, "f"))]
        assert answers == ["h", "f", "f"]
        assert log.head(SPACE).seq == 4


def test_the_age_of_a_local_head_is_known_only_where_it_was_the_newest(site: Site) -> None:
    one, two = site.log(), site.log()
    append(one, "a")
    assert two.age(SPACE) is None
    assert two.head(SPACE).seq == 1
    young = two.age(SPACE)
    assert young is not None
    until(lambda: (two.age(SPACE) or 0) > young)


def test_what_was_acknowledged_to_anyone_is_in_every_state_asked_for_afterwards(site: Site) -> None:
    logs = [site.log(), site.log(), site.log(role="client")]
    for number in range(30):
        receipt = append(logs[number % 3], f"k{number}")
        for log in logs:
            assert log.state(SPACE).seq >= receipt.seq
            assert log.state(SPACE, consistency="session", after=receipt).seq >= receipt.seq
        assert logs[number % 3].state(SPACE, consistency="session").seq >= receipt.seq


def test_a_killed_etcd_that_comes_back_goes_on_with_everything_in_its_place(
    server: EtcdServer, quick_path: Path
) -> None:
    with ExitStack() as stack:
        site = Site(quick_path / "wiki.git", server.endpoint, "/killed/", stack)
        log, other = site.log(), site.log()
        append(log, "a")
        append(other, "b")
        under_way = submit(log, *(f"h{n}" for n in range(50))) + submit(other, *(f"f{n}" for n in range(50)))
        server.kill()
        server.start()
        receipts = [future.result(40) for future in under_way]
        entries = site.entries()
        assert len(entries) == 102
        assert all(entries[receipt.key].commit == receipt.commit for receipt in receipts)


def test_a_compaction_past_what_was_watched_hides_nothing(server: EtcdServer, quick_path: Path) -> None:
    with ExitStack() as stack:
        site = Site(quick_path / "wiki.git", server.endpoint, "/compacted/", stack)
        proxy = site.proxy()
        holder, forwarder = site.log(), site.log(proxy.endpoint)
        append(holder, "a")
        append(forwarder, "b")
        proxy.silence()
        for number in range(20):
            append(holder, f"h{number}")
        client = EtcdClient(parse_endpoints(server.endpoint))
        revision, _ = client.get(Get(b"x"), timeout=5)
        server.call("kv/compaction", revision=revision, physical=True)
        client.close()
        proxy.cut()
        proxy.heal()
        assert append(forwarder, "after").seq == 23
        assert forwarder.state(SPACE).seq == 23


@pytest.fixture(scope="module")
def cluster(coordjournal_etcd_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with EtcdCluster(3, tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.mark.parametrize("how", ["kill", "pause"])
def test_a_cluster_that_loses_its_leader_goes_on_without_it(cluster: EtcdCluster, quick_path: Path, how: str) -> None:
    with ExitStack() as stack:
        dead = "127.0.0.1:1"
        site = Site(quick_path / "wiki.git", f"{dead},{cluster.endpoints}", f"/{how}/", stack)
        logs = [site.log(), site.log()]
        append(logs[0], "a")
        append(logs[1], "b")
        leader = cluster.leader()
        under_way = [
            future
            for log, name in zip(logs, "hf", strict=True)
            for future in submit(log, *(f"{name}{n}" for n in range(30)))
        ]
        getattr(leader, how)()
        try:
            receipts = [future.result(40) for future in under_way]
            append(logs[1], "after", timeout=40)
        finally:
            leader.resume() if how == "pause" else leader.start()
        entries = site.entries()
        assert len(entries) == 63
        assert all(entries[receipt.key].commit == receipt.commit for receipt in receipts)
