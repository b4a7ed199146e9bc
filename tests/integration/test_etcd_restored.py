"""etcd is wiped, restored from older times, full, or forgets: an old holder lives on, and the log does not fork."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import coordjournal as cj
from coordjournal.entry import Receipt
from coordjournal.etcd import Delete, OutOfSpace, Put
from coordjournal.etcd.client import EtcdClient
from coordjournal.testing.etcd import EtcdServer
from tests.integration.etcd_parts import SPACE, Nodes, Party, check, drain, holding, lost, node, read, told, unbroken
from tests.integration.processes import quick_path

__all__ = ["node", "quick_path"]


@pytest.fixture
def server(coordjournal_etcd_binary: str, quick_path: Path) -> Iterator[EtcdServer]:
    with EtcdServer(quick_path / "etcd") as server:
        yield server


def rest(*parties: Party) -> None:
    """Step all, and let time pass, though it may be that nothing comes of it."""
    for _ in range(40):
        for party in parties:
            party.clock.now += party.step() or 0.5
            party.authority.tick()


def in_git(party: Party) -> list[str]:
    return [appended.key for appended in party.store.read(SPACE, party.store.head(SPACE))]


def test_a_wiped_etcd_never_starts_a_log_over(server: EtcdServer, node: Nodes) -> None:
    holder, forwarder = holding(node), node()
    forwarder.submit("f")
    drain([holder, forwarder])
    server.wipe()
    newcomer = node()
    for party in (holder, forwarder, newcomer):
        party.submit(f"after-{party.node.id}")
    rest(holder, forwarder, newcomer)
    assert read(server, holder.keys.head(SPACE)) is None
    assert in_git(holder) == ["first", "f"]
    for party in (holder, forwarder, newcomer):
        answer = told(party.futures[f"after-{party.node.id}"])
        assert isinstance(answer, cj.HeadMissing | cj.Undecided), repr(answer)
        with pytest.raises(cj.HeadMissing, match="recover"):
            party.authority.head(SPACE)


@pytest.mark.parametrize("call", ["campaign", "intents", "publish"])
def test_a_holder_that_an_etcd_wipe_finds_at_any_step_publishes_nothing(
    server: EtcdServer, node: Nodes, call: str
) -> None:
    """The wiped etcd counts its revisions anew, so that a holder's key may have the old one's revision."""
    old = node()
    late: list[object] = []

    def wipe(make: object) -> object:
        server.wipe()
        late.append(make())  # type: ignore[operator]
        return late[-1]

    old.submit("first")
    if call != "campaign":
        old.run()
        old.submit("k")
    old.member.hint_intents()
    old.edge.next(call, wipe)
    new = node()
    rest(old)
    new.submit("n")
    rest(new, old)
    heads = [read(server, old.keys.head(SPACE))]
    log = in_git(new) if new.store.spaces() else []
    for party in (old, new):
        for key, future in party.futures.items():
            if future.done() and isinstance(told(future), Receipt):
                assert key in log
    assert len(set(log)) == len(log)
    if call != "campaign":
        assert heads == [None]
        assert log == ["first"]


def test_an_etcd_restored_from_before_appends_calls_for_an_operator(
    server: EtcdServer, node: Nodes, quick_path: Path
) -> None:
    holder = holding(node)
    server.snapshot(quick_path / "snapshot")
    holder.submit("later")
    drain([holder])
    server.restore(quick_path / "snapshot")
    newcomer = node()
    holder.submit("by-the-old-one")
    newcomer.submit("by-a-new-one")
    rest(holder, newcomer)
    answers = [told(holder.futures["by-the-old-one"]), told(newcomer.futures["by-a-new-one"])]
    assert all(isinstance(answer, cj.HeadBehind | cj.Undecided) for answer in answers), answers
    assert any(isinstance(answer, cj.HeadBehind) for answer in answers), answers
    with pytest.raises(cj.HeadBehind, match="recover"):
        newcomer.authority.head(SPACE)  # a reader is not told that what it could see yesterday never was
    assert in_git(holder) == ["first", "later"], "the branch was not set back"


def test_a_publish_whose_answer_a_restore_made_worthless_is_undecided(
    server: EtcdServer, node: Nodes, quick_path: Path
) -> None:
    holder = holding(node)
    server.snapshot(quick_path / "snapshot")
    holder.edge.next("publish", lost)
    future = holder.submit("k")
    holder.until("publish")
    server.restore(quick_path / "snapshot")
    holder.withdraw("k")
    rest(holder)
    answer = told(future)
    assert isinstance(answer, Receipt | cj.Undecided), repr(answer)
    if isinstance(answer, Receipt):
        check(server, [holder])


def test_a_forwarded_append_that_a_restored_etcd_forgot_is_undecided(
    server: EtcdServer, node: Nodes, quick_path: Path
) -> None:
    """Its holder published it and died; the log that etcd now knows ends before it, and `recover` will find it."""
    holder, forwarder = holding(node), node()
    forwarder.submit("opens")
    drain([holder, forwarder])
    server.snapshot(quick_path / "snapshot")
    forwarder.submit("k")
    forwarder.until("send")
    holder.member.hint_intents()
    holder.store.advance = lambda space, old, new: (_ for _ in ()).throw(  # type: ignore[method-assign]
        cj.Unavailable("the branch cannot be moved")
    )
    holder.until("publish")
    server.restore(quick_path / "snapshot")
    forwarder.withdraw("k")
    for _ in range(20):
        forwarder.clock.now += forwarder.step() or 0.5
    assert isinstance(told(forwarder.futures["k"]), cj.Undecided)


class Full:
    """An etcd out of space: NOSPACE is raised by a small quota, and ended by deleting and defragmenting."""

    def __init__(self, server: EtcdServer) -> None:
        self._server = server
        self._client = EtcdClient([server.endpoint])

    def fill(self) -> None:
        try:
            for number in range(200):
                self._client.txn([], [Put(b"/filler/%d" % (number % 8), b"x" * 1_000_000)], timeout=5)
        except OutOfSpace:
            return
        raise AssertionError("the quota is not reached")

    def free(self) -> None:
        revision = self._client.txn([], [Delete(b"/filler/", b"/filler0")], timeout=5).revision
        self._server.call("kv/compaction", revision=revision, physical=True)
        self._server.call("maintenance/defragment")
        for alarm in self._server.call("maintenance/alarm", action="GET").get("alarms", []):
            self._server.call("maintenance/alarm", action="DEACTIVATE", memberID=alarm["memberID"], alarm="NOSPACE")

    def close(self) -> None:
        self._client.close()


@pytest.fixture
def small(coordjournal_etcd_binary: str, quick_path: Path) -> Iterator[EtcdServer]:
    with EtcdServer(quick_path / "etcd", flags={"quota-backend-bytes": 12 << 20}) as server:
        yield server


def test_an_etcd_without_space_refuses_for_certain_and_all_goes_on_when_it_has_some(
    small: EtcdServer, quick_path: Path
) -> None:
    node = Nodes(small, quick_path / "wiki.git")
    holder, forwarder = holding(node), node()
    forwarder.submit("before")
    drain([holder, forwarder])
    forwarder.submit("landed")
    forwarder.until("send")
    full = Full(small)
    full.fill()
    holder.submit("h")
    holder.member._intents = False  # nobody told it of the intent yet
    for _ in range(10):
        holder.clock.now += holder.step() or 0.0
    assert isinstance(told(holder.futures["h"]), cj.Unavailable)
    forwarder.withdraw("landed")
    forwarder.step(3)
    assert isinstance(told(forwarder.futures["landed"]), cj.Unavailable), "it is deleted where it cannot be rewritten"
    forwarder.submit("unsent")
    forwarder.until("send")
    forwarder.step(2)
    forwarder.withdraw("unsent")
    for _ in range(5):
        forwarder.clock.now += forwarder.step() or 0.0
    assert isinstance(told(forwarder.futures["unsent"]), cj.Unavailable)
    full.free()
    holder.submit("h-again")
    forwarder.submit("f-again")
    drain([holder, forwarder])
    assert check(small, [holder, forwarder]).keys() == {"first", "before", "h-again", "f-again"}
    full.close()
    for party in node.made:
        party.close()


def test_appends_keep_their_order_where_one_is_taken_back_from_a_full_etcd(small: EtcdServer, quick_path: Path) -> None:
    node = Nodes(small, quick_path / "wiki.git")
    holder, forwarder = holding(node), node()
    forwarder.submit("opens")
    drain([holder, forwarder])
    forwarder.submit("a", "b")
    forwarder.until("send")
    forwarder.submit("c")
    forwarder.until("send")
    full = Full(small)
    full.fill()
    forwarder.withdraw("a")
    for _ in range(5):
        forwarder.clock.now += forwarder.step() or 0.0
    full.free()
    drain([holder, forwarder])
    by_key = check(small, [holder, forwarder])
    assert by_key["b"].seq < by_key["c"].seq
    unbroken(small, holder)
    full.close()
    for party in node.made:
        party.close()
