"""Several processes under one etcd: they are killed, stopped for three TTLs, stuck, forked, and end in order."""

from __future__ import annotations

import re
import signal
import threading
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest

import coordjournal as cj
from coordjournal.authority.workers import MAX_WORKERS
from coordjournal.etcd import Get
from coordjournal.etcd.client import EtcdClient, parse_endpoints
from coordjournal.testing.plugin import EtcdAtHand
from tests.integration import etcd_workers as workers
from tests.integration.etcd_parts import put_new
from tests.integration.etcd_workers import ACTOR, SPACE, alias_of, answer_of
from tests.integration.processes import Child, quick_path, start

__all__ = ["quick_path"]

TTL: Final = 2


class Site:
    """One journal, its etcd, and what a test starts there."""

    def __init__(self, repo: Path, etcd: EtcdAtHand, prefix: str) -> None:
        self.repo, self.etcd, self.prefix = repo, etcd.endpoints, prefix

    def child(self, role: str = "auto", ttl: int = 2) -> Child:
        child = start(workers.obey, self.repo, self.etcd, self.prefix, role, ttl)
        assert child.receive() == "ready"
        return child

    def start(self, function: Any, *arguments: object) -> Child:
        return start(function, self.repo, self.etcd, self.prefix, *arguments)

    def log(self, role: str = "auto") -> cj.DecisionLog:
        return cj.DecisionLog.open(
            self.repo,
            etcd=self.etcd,
            prefix=self.prefix,
            ttl=2,
            actor=ACTOR,
            role=role,  # type: ignore[arg-type]
        )

    def keys(self) -> list[str]:
        with self.log("client") as log:
            return [entry.key for entry in log.events(SPACE)]


@pytest.fixture
def site(quick_path: Path, coordjournal_etcd: EtcdAtHand, coordjournal_prefix: str) -> Site:
    return Site(quick_path / "wiki.git", coordjournal_etcd, coordjournal_prefix)


def ask(child: Child, key: str) -> list[Any]:
    child.send(key)
    answer: list[Any] = child.receive()
    return answer


def test_whoever_comes_first_holds_and_the_others_forward(site: Site) -> None:
    with site.child() as one, site.child() as two, site.child("client") as three:
        assert ask(one, "a")[3] == "local"
        for child, key in ((two, "b"), (three, "c")):
            answer = ask(child, key)
            assert (answer[0], answer[3], answer[4]) == ("appended", "forwarded", False)
            assert ask(one, key)[:5] == [*answer[:3], "local", True], "the same key, the same append"
        for child in (one, two, three):
            child.send(None)
        assert [child.result() for child in (one, two, three)] == [[3], [3], [3]]


def test_a_client_is_served_by_a_node_of_the_role_holder_whoever_starts_first(site: Site) -> None:
    with site.child("client") as client:
        client.send("waits")
        with site.child("holder") as holder:
            assert client.receive()[:2] == ["appended", 1]
            assert ask(client, "more")[3] == "forwarded"
            holder.kill()
            with site.child("holder"):
                assert ask(client, "after")[:2] == ["appended", 3]


def test_a_killed_holders_space_is_taken_over_and_its_keys_are_intact(site: Site) -> None:
    with site.child() as one, site.child() as two:
        first = ask(one, "a")
        one.kill()
        assert ask(two, "b")[:2] == ["appended", 2]
        assert ask(two, "a")[:3] == first[:3]
        assert ask(two, "a")[4] is True


def test_a_holder_that_ends_in_order_leaves_its_space_at_once(site: Site) -> None:
    with site.child(ttl=60) as one, site.child(ttl=60) as two:
        ask(one, "a")
        ask(two, "b")
        one.send(None)
        one.result()
        assert ask(two, "c")[3] == "local", "with a TTL of a minute"


def test_a_branch_that_a_killed_holder_left_behind_is_rolled_forward(site: Site) -> None:
    with site.start(workers.die_before_the_branch_moves) as child:
        assert child.receive() == "published"
        with site.log("client") as log:
            assert log.head(SPACE).seq == 2, "what is published is read, wherever the branch is"
            assert log.state(SPACE).seq == 2
            assert log.head(SPACE, consistency="local").seq == 1
            child.kill()
            child.join()
        with site.log() as log:
            assert answer_of(log, "next")[:2] == ["appended", 3]
            assert answer_of(log, "published")[4] is True
            assert log.head(SPACE, consistency="local").seq == 3


def test_a_holder_that_stands_still_for_three_ttls_and_wakes_up_forwards_what_it_has(site: Site) -> None:
    with site.start(workers.pour, "old", 30) as old:
        assert [old.receive(), old.receive()] == ["ready", "under way"]
        old.kill(signal.SIGSTOP)
        with site.log() as log:
            assert answer_of(log, "new", timeout=30)[0] == "appended", "after one TTL"
            threading.Event().wait(2 * TTL)
            old.kill(signal.SIGCONT)
            assert answer_of(log, "newer", timeout=30)[0] == "appended"
        old.send("stop")
        answers = old.result()
    in_log = site.keys()
    assert len(in_log) == len(set(in_log))
    mine = [key for key in in_log if key.startswith("old")]
    assert mine == [key for key, _, _ in answers] == [f"old-{number}" for number in range(len(mine))]


def test_appends_keep_their_order_while_the_space_is_handed_from_hand_to_hand(site: Site) -> None:
    with site.start(workers.pour, "a", 50) as a, site.start(workers.pour, "b", 50) as b:
        assert [a.receive(), b.receive()] == ["ready", "ready"]
        assert [a.receive(), b.receive()] == ["under way", "under way"]
        for _ in range(6):  # a handoff to nobody by name, as an operator asks for it
            put_new(site.etcd, f"{site.prefix}successors/{SPACE}".encode(), b"-")
        for child in (a, b):
            child.send("stop")
        answers = {"a": a.result(), "b": b.result()}
    in_log = site.keys()
    for name, told in answers.items():
        assert [key for key in in_log if key.startswith(f"{name}-")] == [key for key, _, _ in told]
    assert len(in_log) == len(set(in_log))


@pytest.mark.parametrize("taking_over", [False, True])
def test_a_holder_whose_disk_stands_still_loses_the_space_though_its_session_lives(
    site: Site, taking_over: bool
) -> None:
    if taking_over:
        with site.start(workers.die_before_the_branch_moves) as dying:
            assert dying.receive() == "published"
            dying.kill()
            dying.join()
    with site.start(workers.hold_with_slow_disk, taking_over) as slow:
        assert slow.receive() == "stuck"
        with site.log() as log:
            answer = answer_of(log, "quick", timeout=40)
            assert answer[0] == "appended"
            slow.send("go on")
            answers = slow.result()
    assert answers[-1][0] == "appended"
    in_log = site.keys()
    assert set(in_log[-2:]) == {"quick", "slow"}
    assert (in_log[answers[-1][1] - 1], in_log[answer[1] - 1]) == ("slow", "quick")


def test_a_log_made_before_a_fork_works_in_each_child_and_one_that_was_used_says_so(site: Site) -> None:
    with site.start(workers.fork_workers) as child:
        said = [child.receive() for _ in range(2)]
        assert sorted(number for number, _ in said) == [0, 1]
        assert all(answer[0] == "appended" for _, answer in said)
        assert child.receive() == "forked"
        parent, invalid, again = child.result()
    assert parent[0] == again[0] == "appended"
    assert invalid == ["invalid_name"]
    assert (again[3], again[5]) == ("local", parent[5]), "the child's end took nothing from its parent's session"


def test_a_thousand_spaces_in_four_processes_take_one_lease_one_stream_and_few_threads_each(site: Site) -> None:
    with site.log() as log:
        log.append(SPACE, alias_of("made"))
    streams = watch_streams(site)
    names = [f"w{number}" for number in range(4)]
    children = [site.start(workers.many_spaces, name, 250) for name in names]
    try:
        for child in children:
            assert child.receive() == "own"
        for name, child in zip(names, children, strict=True):
            child.send([other for other in names if other != name][:1])
        for child in children:
            assert child.receive() == "others"
        assert watch_streams(site) - streams == 4
        held, sessions = leases_of(site, "holders"), leases_of(site, "nodes")
        assert len(held) == 1000, "each space is held"
        assert len(set(sessions)) == 4
        assert set(held) == set(sessions)
        for child in children:
            child.send("end")
        results = [child.result() for child in children]
    finally:
        for child in children:
            child.__exit__(None, None, None)
    for own, via, threads in results:
        assert own == [1] * 250
        assert set(via) == {"forwarded"}
        assert threads <= MAX_WORKERS + 8, "the keeper, the watch's and gRPC's are the rest"
    with site.log("client") as log:
        assert len(log.spaces()) == 1001


def watch_streams(site: Site) -> int:
    """Return how many streams of watches all members of etcd serve, by their own count."""
    streams = 0
    for endpoint in site.etcd.split(","):
        with urllib.request.urlopen(f"http://{endpoint.removeprefix('http://')}/metrics", timeout=10) as metrics:
            found = re.search(r"^etcd_debugging_mvcc_watch_stream_total (\S+)$", metrics.read().decode(), re.MULTILINE)
        assert found is not None
        streams += int(float(found[1]))
    return streams


def leases_of(site: Site, kind: str) -> list[int]:
    """Return the lease of each key of a kind."""
    with closing(EtcdClient(parse_endpoints(site.etcd))) as client:
        first = f"{site.prefix}{kind}/".encode()
        return [kv.lease for kv in client.get(Get(first, first[:-1] + b"0"), timeout=10)[1].kvs]
