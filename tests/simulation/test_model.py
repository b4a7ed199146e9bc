"""The model of etcd: what no real one can be made to do on demand. The rest is `test_model_against_etcd`."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from coordjournal.etcd import (
    Change,
    Compare,
    Delete,
    Etcd,
    Get,
    KeyValue,
    OutOfSpace,
    Put,
    Refused,
    Unanswered,
    Watcher,
)
from tests.simulation.model import Fate, ModelClient, ModelEtcd, ModelWatcher, Request
from tests.simulation.schedule import Schedule
from tests.simulation.scheduler import Scheduler
from tests.simulation.server import MAX_IN_FLIGHT, MAX_UNTOLD

Told = list[Sequence[Change] | None]


class Fates:
    """A network that does what it is told, once; then it delivers."""

    def __init__(self) -> None:
        self.next: Fate | Refused = Fate.DELIVER
        self.asked: list[Request] = []
        self.waited = 0.0

    def decide(self, kind: str, description: Request) -> Fate | Refused:
        assert kind == description.kind
        self.asked.append(description)
        fate, self.next = self.next, Fate.DELIVER
        return fate

    def elapse(self, seconds: float) -> None:
        self.waited += seconds


@pytest.fixture
def clock() -> Scheduler:
    return Scheduler(Schedule([]))


@pytest.fixture
def server(clock: Scheduler) -> ModelEtcd:
    return ModelEtcd(clock)


@pytest.fixture
def network() -> Fates:
    return Fates()


@pytest.fixture
def client(server: ModelEtcd, network: Fates) -> ModelClient:
    return ModelClient(server, "a", network)


def put(client: Etcd, key: bytes = b"k", value: bytes = b"v", lease: int = 0) -> int:
    return client.txn([], [Put(key, value, lease)], timeout=1).revision


def keys(client: Etcd) -> list[bytes]:
    return [kv.key for kv in client.get(Get(b"\x01", b"\xff"), timeout=1)[1].kvs]


def watching(watcher: ModelWatcher, key: bytes = b"k", end: bytes = b"") -> Told:
    told: Told = []
    watcher.add(key, end, told.append)
    return told


def revisions(told: Told) -> list[list[int] | None]:
    return [None if changes is None else [change.kv.mod_revision for change in changes] for changes in told]


def test_it_is_an_etcd(client: ModelClient) -> None:
    etcd: Etcd = client
    watcher: Watcher = etcd.watcher()
    watcher.close()


# Requests that get lost.


def test_a_dropped_request_never_lands(server: ModelEtcd, client: ModelClient, network: Fates) -> None:
    network.next = Fate.DROP
    with pytest.raises(Unanswered):
        put(client)
    assert keys(client) == []
    assert server.in_flight == []
    assert network.waited == 1
    assert network.asked[0] == Request("a", "txn", ((), (Put(b"k", b"v"),), ()))


def test_a_request_whose_answer_is_lost_has_landed(client: ModelClient, network: Fates) -> None:
    network.next = Fate.LOSE_ANSWER
    with pytest.raises(Unanswered):
        put(client)
    assert keys(client) == [b"k"]
    network.next = Fate.LOSE_ANSWER
    with pytest.raises(Unanswered):
        put(client, lease=77)  # the refusal is lost as well


def test_a_delayed_request_lands_when_it_is_let(server: ModelEtcd, client: ModelClient, network: Fates) -> None:
    guards, then = [Compare(b"k", "version", 0)], [Put(b"k", b"late")]
    network.next = Fate.DELAY
    with pytest.raises(Unanswered):
        client.txn(guards, then, timeout=1)
    guards.clear()
    then.clear()
    assert keys(client) == []
    client.close()  # the node may be dead by then
    server.land(server.in_flight[0])
    assert server.peek(b"k") == KeyValue(b"k", b"late", 2, 2, 1)
    assert server.in_flight == []


def test_a_delayed_request_is_judged_when_it_lands(server: ModelEtcd, client: ModelClient, network: Fates) -> None:
    network.next = Fate.DELAY
    with pytest.raises(Unanswered):
        client.txn([Compare(b"k", "version", 0)], [Put(b"k", b"late")], timeout=1)
    put(client, value=b"early")
    server.land(server.in_flight[0])
    lease, _ = client.grant(5, timeout=1)
    network.next = Fate.DELAY
    with pytest.raises(Unanswered):
        put(client, b"with lease", lease=lease)
    client.revoke(lease, timeout=1)
    server.land(server.in_flight[0])
    assert [kv.value for kv in server.peek_all()] == [b"early"]


def test_a_delayed_read_is_no_more(server: ModelEtcd, client: ModelClient, network: Fates) -> None:
    network.next = Fate.DELAY
    with pytest.raises(Unanswered):
        client.get(Get(b"k"), timeout=1)
    assert server.in_flight == []


def test_of_too_many_delayed_requests_the_oldest_get_lost(
    server: ModelEtcd, client: ModelClient, network: Fates
) -> None:
    for number in range(MAX_IN_FLIGHT + 1):
        network.next = Fate.DELAY
        with pytest.raises(Unanswered):
            put(client, b"%d" % number)
    assert len(server.in_flight) == MAX_IN_FLIGHT
    server.land(server.in_flight[0])
    assert keys(client) == [b"1"]


def test_the_network_may_refuse(client: ModelClient, network: Fates) -> None:
    network.next = Refused("etcd has more to do than it can keep up with", "too many requests")
    with pytest.raises(Refused) as caught:
        put(client)
    assert caught.value.reason == "too many requests"
    assert keys(client) == []


def test_an_etcd_that_is_down_answers_nothing_and_takes_nothing(
    server: ModelEtcd, client: ModelClient, network: Fates
) -> None:
    network.next = Fate.DELAY
    with pytest.raises(Unanswered):
        put(client)
    server.down = True
    with pytest.raises(Unanswered):
        put(client)
    server.land(server.in_flight[0])
    server.down = False
    assert keys(client) == []


def test_a_full_etcd_says_the_same_whether_it_wrote_or_not(
    server: ModelEtcd, client: ModelClient, network: Fates
) -> None:
    network.next = Fate.OUT_OF_SPACE
    with pytest.raises(OutOfSpace):
        put(client)
    assert keys(client) == [b"k"]
    server.no_space = True
    with pytest.raises(OutOfSpace):
        put(client, b"other")
    network.next = Fate.LOSE_ANSWER
    with pytest.raises(Unanswered) as caught:
        put(client, b"other")
    assert type(caught.value) is Unanswered
    assert keys(client) == [b"k"]
    network.next = Fate.OUT_OF_SPACE
    assert client.keep_alive(1, timeout=1) == 0


def test_there_is_a_yield_point_before_and_after_each_request(server: ModelEtcd) -> None:
    seen: list[tuple[str, int]] = []
    client = ModelClient(server, "a", None, lambda label: seen.append((label, server.revision)))
    put(client)
    client.get(Get(b"k"), timeout=1)
    with pytest.raises(Refused):
        put(client, lease=77)
    assert seen == [("txn →", 1), ("txn ←", 2), ("get →", 2), ("get ←", 2), ("txn →", 2), ("txn ←", 2)]


def test_a_closed_client_asks_nothing(client: ModelClient) -> None:
    client.close()
    with pytest.raises(Unanswered):
        put(client)
    with pytest.raises(Unanswered):
        client.watcher()


# Leases, on a clock that stands still unless it is moved.


def test_a_lease_lives_as_long_as_its_ttl_says_and_no_longer(
    clock: Scheduler, server: ModelEtcd, client: ModelClient
) -> None:
    lease, ttl = client.grant(1, timeout=1)
    assert ttl == 2
    put(client, b"a", lease=lease)
    put(client, b"b", lease=lease)
    put(client, b"c")
    clock.advance(1.9)
    assert keys(client) == [b"a", b"b", b"c"]
    assert client.keep_alive(lease, timeout=1) == 2
    assert server.next_expiry() == pytest.approx(3.9)
    clock.advance(1.9)
    assert keys(client) == [b"a", b"b", b"c"]
    clock.advance(0.2)
    assert keys(client) == [b"c"]
    assert server.history[-1] == (0, 5, ((b"a", None), (b"b", None)), "")  # one revision for all of them
    assert client.keep_alive(lease, timeout=1) == 0
    assert server.next_expiry() is None


def test_leases_end_without_a_call_too_and_in_the_order_of_their_time(
    clock: Scheduler, server: ModelEtcd, client: ModelClient
) -> None:
    long, short = client.grant(9, timeout=1)[0], client.grant(3, timeout=1)[0]
    put(client, b"long", lease=long)
    put(client, b"short", lease=short)
    clock.advance(20)
    assert len(server.peek_all()) == 2
    server.expire()
    assert [committed.changes for committed in server.history[2:]] == [((b"short", None),), ((b"long", None),)]


def test_a_new_leader_gives_every_lease_its_full_ttl(clock: Scheduler, server: ModelEtcd, client: ModelClient) -> None:
    lease, _ = client.grant(10, timeout=1)
    put(client, lease=lease)
    clock.advance(9)
    server.change_leader()
    clock.advance(9)
    assert keys(client) == [b"k"]
    clock.advance(1)
    assert keys(client) == []


def test_a_key_leaves_its_lease_when_it_is_put_again(server: ModelEtcd, client: ModelClient) -> None:
    lease, _ = client.grant(10, timeout=1)
    put(client, b"a", lease=lease)
    put(client, b"b", lease=lease)
    put(client, b"a")
    assert server.revoke(lease)  # etcd's own doing
    assert keys(client) == [b"a"]
    assert not server.revoke(lease)
    client.revoke(lease, timeout=1)


# Backups, losses, history.


def test_what_was_wiped_is_gone_and_revisions_repeat(server: ModelEtcd, client: ModelClient) -> None:
    lease, _ = client.grant(10, timeout=1)
    put(client, lease=lease)
    server.no_space = True
    server.wipe()
    assert client.get(Get(b"k"), timeout=1) == (1, ((), 0))
    assert client.keep_alive(lease, timeout=1) == 0
    assert put(client) == 2
    assert [(committed.era, committed.revision) for committed in server.history] == [(0, 2), (1, 2)]


def test_what_was_restored_is_as_it_was_and_its_leases_live_again(
    clock: Scheduler, server: ModelEtcd, client: ModelClient
) -> None:
    lease, _ = client.grant(10, timeout=1)
    put(client, b"a", lease=lease)
    clock.advance(9)
    backup = server.snapshot()
    put(client, b"b")
    clock.advance(9)
    assert keys(client) == [b"b"]
    server.restore(backup)
    assert client.get(Get(b"a"), timeout=1) == (2, ((KeyValue(b"a", b"v", 2, 2, 1, lease),), 1))
    assert keys(client) == [b"a"]
    clock.advance(9)
    assert keys(client) == [b"a"]
    clock.advance(1)
    assert keys(client) == []
    server.restore(backup)
    assert keys(client) == [b"a"], "a backup is not changed by what became of it"


def test_history_tells_who_did_what(server: ModelEtcd) -> None:
    one, other = ModelClient(server, "a"), ModelClient(server, "b")
    one.txn([], [Put(b"k", b"1"), Put(b"l", b"1")], timeout=1)
    other.txn([], [Delete(b"l"), Put(b"k", b"2")], timeout=1)
    other.txn([], [Delete(b"l"), Get(b"k")], timeout=1)
    assert server.history == [
        (0, 2, ((b"k", KeyValue(b"k", b"1", 2, 2, 1)), (b"l", KeyValue(b"l", b"1", 2, 2, 1))), "a"),
        (0, 3, ((b"l", None), (b"k", KeyValue(b"k", b"2", 2, 3, 2))), "b"),
    ]


# Watches.


def test_a_watch_begins_with_none_and_tells_when_it_is_pumped(client: ModelClient) -> None:
    watcher = client.watcher()
    put(client)
    told = watching(watcher)
    put(client)
    put(client, b"not watched")
    assert told == []
    assert watcher.untold() == 2
    assert watcher.pump(1) == 1
    assert revisions(told) == [None]
    client.txn([], [Delete(b"k")], timeout=1)
    assert watcher.pump() == 2
    assert told[1:] == [
        (Change(KeyValue(b"k", b"v", 2, 3, 2), deleted=False),),
        (Change(KeyValue(b"k", b"", 0, 5, 0), deleted=True),),
    ]
    assert watcher.pump() == 0


def test_a_revision_is_told_whole_and_revisions_may_be_told_together(client: ModelClient) -> None:
    watcher = client.watcher()
    told = watching(watcher, b"a", b"c")
    client.txn([], [Put(b"b", b""), Put(b"a", b""), Put(b"c", b"")], timeout=1)
    put(client, b"a")
    assert watcher.pump(merge=True) == 2
    assert revisions(told) == [None, [2, 2, 3]]
    changes = told[1]
    assert changes is not None
    assert [change.kv.key for change in changes] == [b"b", b"a", b"a"]


def test_watches_of_a_stream_lag_each_for_itself(client: ModelClient) -> None:
    watcher = client.watcher()
    first, second = watching(watcher, b"a"), watching(watcher, b"b")
    watcher.pump()
    put(client, b"b")
    put(client, b"a")
    assert watcher.pump(1) == 1
    assert (revisions(first), revisions(second)) == ([None], [None, [2]])
    put(client, b"b")
    assert watcher.pump(number=watcher.numbers()[1]) == 1
    assert (revisions(first), revisions(second)) == ([None], [None, [2], [4]])
    assert watcher.untold(watcher.numbers()[0]) == 1


def test_what_is_lost_is_told_as_none(client: ModelClient) -> None:
    watcher = client.watcher()
    told, other = watching(watcher), watching(watcher)
    watcher.pump()
    put(client)
    watcher.lose(watcher.numbers()[0])
    put(client)
    watcher.pump()
    assert revisions(told) == [None, None, [3]]
    assert revisions(other) == [None, [2], [3]]
    watcher.lose()
    watcher.pump()
    assert (told[-1], other[-1]) == (None, None)


def test_a_stream_that_died_in_silence_tells_nothing_until_it_stands_again(client: ModelClient) -> None:
    watcher = client.watcher()
    told = watching(watcher)
    watcher.pump()
    put(client)
    watcher.die()
    put(client)
    late = watching(watcher)
    assert (watcher.untold(), watcher.pump()) == (0, 0)
    watcher.reconnect()
    put(client)
    watcher.pump()
    assert revisions(told) == [None, None, [4]]
    assert revisions(late) == [None, [4]]


def test_a_watch_that_lags_behind_a_compaction_has_missed_something(server: ModelEtcd, client: ModelClient) -> None:
    watcher = client.watcher()
    told = watching(watcher)
    watcher.pump()
    for _ in range(3):
        put(client)
    server.compact(2)
    watcher.pump(1)
    assert revisions(told) == [None, [2]]
    server.compact(4)
    watcher.pump()
    assert revisions(told) == [None, [2], None]
    for revision, reason in ((4, "compacted"), (5, "invalid")):
        with pytest.raises(Refused) as caught:
            server.compact(revision)
        assert caught.value.reason == reason


def test_a_restored_etcd_breaks_every_watch(server: ModelEtcd, client: ModelClient) -> None:
    watcher = client.watcher()
    told = watching(watcher)
    backup = server.snapshot()
    watcher.pump()
    put(client)
    server.restore(backup)
    put(client)
    watcher.pump()
    assert revisions(told) == [None, None, [2]]


def test_no_watch_stands_while_etcd_is_down(server: ModelEtcd, client: ModelClient) -> None:
    watcher = client.watcher()
    told = watching(watcher)
    server.down = True
    assert (watcher.untold(), watcher.pump()) == (0, 0)
    server.down = False
    watcher.pump()
    assert told == [None]


def test_a_watch_that_was_removed_or_closed_tells_nothing_more(server: ModelEtcd, client: ModelClient) -> None:
    watcher = client.watcher()
    told: Told = []
    removed = watcher.add(b"k", b"", told.append)
    watching(watcher)
    watcher.remove(removed)
    put(client)
    watcher.pump()
    assert told == []
    client.close()
    assert server.watches == []
    assert watcher.pump() == 0


def test_a_watch_may_be_removed_while_it_is_told(client: ModelClient) -> None:
    watcher = client.watcher()
    told: Told = []

    def once(changes: Sequence[Change] | None) -> None:
        told.append(changes)
        watcher.remove(number)

    number = watcher.add(b"k", b"", once)
    put(client)
    assert watcher.pump() == 1
    assert told == [None]


def test_a_watch_that_nobody_pumps_loses_what_is_too_much(server: ModelEtcd, client: ModelClient) -> None:
    watcher = client.watcher()
    told = watching(watcher)
    for _ in range(MAX_UNTOLD + 5):
        server.txn([], [Put(b"k", b"")])
    watcher.pump()
    assert told[0] is None
    assert 1 <= len(told) < 10


# What etcd leaves open.


def test_of_many_keys_made_at_once_the_order_of_creation_is_not_that_of_keys(client: ModelClient) -> None:
    client.txn([], [Put(b"%02d" % number, b"") for number in range(13)], timeout=1)
    found = client.get(Get(b"0", b"9", by_creation=True), timeout=1)[1]
    assert sorted(kv.key for kv in found.kvs) != [kv.key for kv in found.kvs]


def test_a_range_without_an_end_is_not_the_ports(client: ModelClient) -> None:
    with pytest.raises(AssertionError):
        client.get(Get(b"k", b"\0"), timeout=1)
    with pytest.raises(AssertionError):
        client.txn([], [Delete(b"k", b"\0")], timeout=1)
