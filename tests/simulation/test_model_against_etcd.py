"""The model of etcd answers as a real one does: the same calls to both, the same results, refusals and events."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from coordjournal.etcd import (
    Change,
    Compare,
    Delete,
    Etcd,
    Found,
    Get,
    KeyValue,
    Operation,
    OutOfSpace,
    Put,
    Refused,
    Result,
)
from coordjournal.etcd.client import EtcdClient, parse_endpoints
from coordjournal.testing.etcd import EtcdServer
from tests.simulation.limits import MAX_MESSAGE_BYTES, MAX_REQUEST_BYTES, txn_bytes
from tests.simulation.model import ModelClient, ModelEtcd
from tests.simulation.schedule import Schedule
from tests.simulation.scheduler import Scheduler

TIMEOUT: Final = 10.0
NO_SUCH_LEASE: Final = 77

# What is asked for, with keys relative to a prefix, and revisions and leases by what they mean.


class Guard(NamedTuple):
    key: bytes
    target: str
    wanted: int | bytes
    """Of revisions: 0, or how far it is from the key's own."""


class Write(NamedTuple):
    key: bytes
    value: bytes = b""
    lease: int = 0
    """Which of the leases that were granted, counted from 1; -1 is one that never was."""


class Txn(NamedTuple):
    guards: list[Guard]
    then: list[Write | Delete | Get]
    otherwise: list[Write | Delete | Get]


class Grant(NamedTuple):
    ttl: int


class KeepAlive(NamedTuple):
    lease: int


class Revoke(NamedTuple):
    lease: int


Call = Txn | Get | Grant | KeepAlive | Revoke

KEYS = st.sampled_from([b"a", b"a/", b"a/1", b"a/2", b"a\x00", b"a\xff", b"b", b"b/1", b"c"])
ENDS = st.one_of(st.just(b""), st.sampled_from([b"a", b"a0", b"a/2", b"b", b"c", b"d", b"\xff"]))
VALUES = st.binary(max_size=3)
LEASES = st.sampled_from([0, 0, 1, 2, -1])
GETS = st.builds(
    Get, KEYS, ENDS, st.sampled_from([0, 0, 1, 2, 5]), st.booleans(), st.sampled_from(["", "", "keys", "count"])
)
GUARDS = st.one_of(
    st.builds(Guard, KEYS, st.just("version"), st.integers(0, 3)),
    st.builds(Guard, KEYS, st.sampled_from(["create_revision", "mod_revision"]), st.sampled_from([0, 0, 1])),
    st.builds(Guard, KEYS, st.just("value"), VALUES),
)
BRANCHES = st.lists(st.one_of(st.builds(Write, KEYS, VALUES, LEASES), st.builds(Delete, KEYS, ENDS), GETS), max_size=4)
WHICH = st.sampled_from([1, 2, 3, -1])
CALLS = st.one_of(
    st.builds(Txn, st.lists(GUARDS, max_size=2), BRANCHES, BRANCHES),
    st.builds(Txn, st.just([]), st.lists(st.builds(Write, KEYS, VALUES, LEASES), min_size=1, max_size=1), st.just([])),
    GETS,
    st.builds(Grant, st.sampled_from([-1, 0, 1, 2, 30, 9_000_000_000, 9_000_000_001])),
    st.builds(KeepAlive, WHICH),
    st.builds(Revoke, WHICH),
)
WATCHED: Final = [(b"a", b""), (b"a", b"b"), (b"a/", b"a0"), (b"", b"\xff")]


class Side:
    """One etcd, real or not: makes calls to it, and tells results as if revisions had begun here."""

    def __init__(self, etcd: Etcd, prefix: bytes) -> None:
        self.etcd = etcd
        self.prefix = prefix
        self.leases: list[int] = []
        self.base = etcd.get(Get(prefix), timeout=TIMEOUT)[0]

    def call(self, call: Call) -> object:
        """Return the result, or the refusal's reason."""
        etcd = self.etcd
        try:
            match call:
                case Txn(guards, then, otherwise):
                    done = etcd.txn(
                        [self._guard(guard) for guard in guards],
                        [self._operation(each) for each in then],
                        [self._operation(each) for each in otherwise],
                        timeout=TIMEOUT,
                    )
                    return Result(
                        done.revision - self.base,
                        done.succeeded,
                        tuple(each and self._found(each) for each in done.found),
                    )
                case Get():
                    revision, found = etcd.get(self._get(call), timeout=TIMEOUT)
                    return revision - self.base, self._found(found)
                case Grant(ttl):
                    lease, ttl = etcd.grant(ttl, timeout=TIMEOUT)
                    self.leases.append(lease)
                    return ttl
                case KeepAlive(lease):
                    return etcd.keep_alive(self._lease(lease), timeout=TIMEOUT)
                case Revoke(lease):
                    return etcd.revoke(self._lease(lease), timeout=TIMEOUT)  # type: ignore[func-returns-value]
        except Refused as refusal:
            return refusal.reason
        except OutOfSpace:
            return OutOfSpace

    def clean(self) -> None:
        for lease in self.leases:
            self.etcd.revoke(lease, timeout=TIMEOUT)
        self.etcd.txn([], [Delete(self.prefix, self._end(b"\xff"))], timeout=TIMEOUT)

    def changes(self, told: Sequence[Change]) -> list[Change]:
        return [Change(self._kv(change.kv), change.deleted) for change in told]

    def _guard(self, guard: Guard) -> Compare:
        wanted = guard.wanted
        key = self.prefix + guard.key
        if guard.target in ("create_revision", "mod_revision") and wanted:
            assert isinstance(wanted, int)
            found = self.etcd.get(Get(key), timeout=TIMEOUT)[1].kvs
            wanted += (getattr(found[0], guard.target) if found else self.base) - 1
        return Compare(key, guard.target, wanted)  # type: ignore[arg-type]

    def _operation(self, operation: Write | Delete | Get) -> Operation:
        match operation:
            case Write(key, value, lease):
                return Put(self.prefix + key, value, self._lease(lease))
            case Delete(key, end):
                return Delete(self.prefix + key, self._end(end))
            case Get():
                return self._get(operation)

    def _get(self, what: Get) -> Get:
        return what._replace(key=self.prefix + what.key, end=self._end(what.end))

    def _end(self, end: bytes) -> bytes:
        return self.prefix + end if end else b""

    def _lease(self, number: int) -> int:
        return self.leases[number - 1] if 0 < number <= len(self.leases) else NO_SUCH_LEASE if number else 0

    def _found(self, found: Found) -> Found:
        return Found(tuple(map(self._kv, found.kvs)), found.count)

    def _kv(self, kv: KeyValue) -> KeyValue:
        return kv._replace(
            key=kv.key.removeprefix(self.prefix),
            create_revision=kv.create_revision and kv.create_revision - self.base,
            mod_revision=kv.mod_revision - self.base,
            lease=self.leases.index(kv.lease) + 1 if kv.lease else 0,
        )


class ModelSide(Side):
    """The model, with its insides."""

    def __init__(self, server: ModelEtcd, prefix: bytes) -> None:
        self.client = ModelClient(server)
        super().__init__(self.client, prefix)

    def pump(self) -> None:
        for watcher in self.client.watchers:
            watcher.pump()


class Witness:
    """What the watches of one side were told, each revision as a list of changes, in order."""

    def __init__(self, side: Side, pump: Callable[[], object] = lambda: None) -> None:
        self.nones = [threading.Semaphore(0) for _ in WATCHED]
        self.told: list[list[Change]] = [[] for _ in WATCHED]
        self._pump = pump
        self._side = side
        self._more = threading.Condition()
        self.watcher = side.etcd.watcher()
        for place, (key, end) in enumerate(WATCHED):
            self.watcher.add(side.prefix + key, side.prefix + end if end else b"", self._tell(place))

    def _tell(self, place: int) -> Callable[[Sequence[Change] | None], None]:
        def tell(changes: Sequence[Change] | None) -> None:
            if changes is None:
                self.nones[place].release()
                return
            with self._more:
                self.told[place].extend(changes)
                self._more.notify_all()

        return tell

    def stand(self) -> None:
        self._pump()
        for none in self.nones:
            assert none.acquire(timeout=TIMEOUT), "the watch does not stand"

    def all(self) -> list[list[Change]]:
        """Return what every watch has told, up to a last put of the key that all of them watch."""
        self._side.call(Txn([], [Write(b"a", b"the last")], []))
        self._side.call(Txn([], [Write(b"a/", b"the last")], []))
        self._pump()
        with self._more:
            assert self._more.wait_for(
                lambda: (
                    all(told and told[-1].kv.value == b"the last" for told in self.told)
                    and all(told[-1].kv.key.endswith(b"a/") for told in self.told[1:])
                ),
                TIMEOUT,
            )
        self.watcher.close()
        return [self._side.changes(told) for told in self.told]


class Pair:
    """A real etcd, and a model that is asked the same."""

    def __init__(self, etcd: Etcd, model: ModelEtcd, prefix: bytes) -> None:
        self.real = Side(etcd, prefix)
        self.model = ModelSide(model, prefix)

    def call(self, call: Call) -> Any:
        expected, answered = self.real.call(call), self.model.call(call)
        assert answered == expected, call
        return answered


def ordinary(binary: str, directory: Path, flags: Mapping[str, object] | None = None) -> EtcdServer:
    """Return a server with etcd's own timing, on which the shortest TTL depends."""
    return EtcdServer(directory, binary=binary, heartbeat_ms=100, election_ms=1000, flags=flags)


@pytest.fixture(scope="module")
def server(coordjournal_etcd_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """One whose revisions nobody else moves."""
    with ordinary(coordjournal_etcd_binary, tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture(scope="module")
def real(server: EtcdServer) -> Iterator[EtcdClient]:
    client = connected(server)
    yield client
    client.close()


def connected(server: EtcdServer) -> EtcdClient:
    return EtcdClient(parse_endpoints(server.endpoint))


_prefixes = (b"%06d/" % number for number in count())


@pytest.fixture
def clock() -> Scheduler:
    return Scheduler(Schedule([]))


@pytest.fixture
def model(clock: Scheduler) -> ModelEtcd:
    return ModelEtcd(clock)


@pytest.fixture
def pair(real: EtcdClient, model: ModelEtcd) -> Iterator[Pair]:
    pair = Pair(real, model, next(_prefixes))
    yield pair
    pair.real.clean()


@settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(st.lists(CALLS, min_size=1, max_size=40))
@example([])
@example([Txn([], [], []), Txn([Guard(b"a", "value", b"")], [Write(b"a")], [Write(b"b")])])
@example([Grant(30), Txn([], [Write(b"a", b"", 1)], []), Txn([], [Delete(b"a")], []), Revoke(1)])
@example([Grant(30), Txn([], [Write(b"a", b"value", 1)], []), Get(b"a", only="keys"), Get(b"a", only="count")])
@example([Grant(30), Grant(30), Txn([], [Write(b"a", b"", 1)], []), Txn([], [Write(b"a", b"", 2)], []), Revoke(1)])
def test_any_calls_give_the_same_results_and_events(real: EtcdClient, calls: list[Call]) -> None:
    pair = Pair(real, ModelEtcd(Scheduler(Schedule([]))), next(_prefixes))
    witness, model_witness = Witness(pair.real), Witness(pair.model, pair.model.pump)
    witness.stand()
    model_witness.stand()
    try:
        for call in calls:
            pair.call(call)
        pair.call(Get(b"", b"\xff"))
        assert model_witness.all() == witness.all()
    finally:
        pair.real.clean()


def many(number: int) -> list[Write | Delete | Get]:
    return [Write(b"%03d" % each) for each in range(number)]


@pytest.mark.parametrize(
    ("call", "outcome"),
    [
        (Txn([], many(128), many(128)), None),
        (Txn([], many(129), []), "too large"),
        (Txn([], [], many(129)), "too large"),
        (Txn([Guard(b"a", "version", 0)] * 128, [], []), None),
        (Txn([Guard(b"a", "version", 0)] * 129, [], []), "too large"),
        (Txn([], [Get(b"a")] * 129, []), "too large"),
        (Txn([], [Delete(b"a"), Delete(b"a", b"c"), Delete(b"b")], []), None),
        (Txn([], [Write(b"a"), Write(b"a")], []), "invalid"),
        (Txn([], [], [Write(b"a"), Write(b"a")]), "invalid"),
        (Txn([], [Write(b"a")], [Write(b"a")]), None),
        (Txn([], [Write(b"a"), Delete(b"a")], []), "invalid"),
        (Txn([], [Delete(b"a"), Write(b"a")], []), "invalid"),
        (Txn([], [Delete(b"a", b"c"), Write(b"b")], []), "invalid"),
        (Txn([], [Write(b"a"), Delete(b"a", b"b")], []), "invalid"),
        (Txn([], [Delete(b"a", b"b"), Write(b"b")], []), None),
        (Txn([], [Delete(b"b", b"a"), Write(b"b")], []), None),
        (Txn([], [Write(b"a", b"", -1)], []), "lease not found"),
        (Txn([], [Write(b"b"), Write(b"a", b"", -1)], []), "lease not found"),
        (Txn([], [], [Write(b"a", b"", -1)]), None),
        (Txn([], [], []), None),
        (Txn([], [Get(b"d", b"a"), Get(b"a", b"a")], []), None),
        (Grant(9_000_000_001), "invalid"),
        (KeepAlive(-1), None),
        (Revoke(-1), None),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_limits(pair: Pair, call: Call, outcome: str | None) -> None:
    pair.call(Txn([], [Write(b"b", b"there")], []))
    answer = pair.call(call)
    if outcome is None:
        assert not isinstance(answer, str)
    else:
        assert answer == outcome
    pair.call(Get(b"", b"\xff"))


@pytest.mark.parametrize("operation", [Get(b""), Delete(b""), Put(b"", b"")])
def test_an_empty_key_is_refused(real: EtcdClient, operation: Operation) -> None:
    model = ModelClient(ModelEtcd(Scheduler(Schedule([]))))
    for etcd in (real, model):
        with pytest.raises(Refused) as caught:
            etcd.txn([], [operation], timeout=TIMEOUT)
        assert caught.value.reason == "invalid"
        with pytest.raises(Refused) as caught:
            etcd.txn([Compare(b"", "version", 0)], [], timeout=TIMEOUT)
        assert caught.value.reason == "invalid"


def test_a_request_may_be_as_large_as_that_and_no_larger(pair: Pair) -> None:
    def sized(total: int) -> Txn:
        rest = Delete(b"b", b"c")
        shape: Sequence[Operation] = [Put(pair.real.prefix + b"a", b"x" * 1_000_000), Delete(b"x" * 8, b"x" * 8)]
        return Txn([], [Write(b"a", b"x" * (1_000_000 + total - txn_bytes([], shape, []))), rest], [])

    assert isinstance(pair.call(sized(MAX_REQUEST_BYTES - 20)), Result)
    assert pair.call(sized(MAX_REQUEST_BYTES)) == "too large"
    assert pair.call(sized(MAX_MESSAGE_BYTES + 100)) == "too large"
    large = Guard(b"a", "value", b"x" * (MAX_REQUEST_BYTES + 1000))
    assert isinstance(pair.call(Txn([large], [], [])), Result), "what only reads is not handed to the members"
    larger = Guard(b"a", "value", b"x" * (MAX_MESSAGE_BYTES + 1000))
    assert pair.call(Txn([larger], [], [])) == "too large"


def test_keys_made_one_after_the_other_are_found_in_that_order_however_many(pair: Pair) -> None:
    for number in range(30):
        pair.call(Txn([], [Write(b"%02d" % (number * 7 % 30))], []))
    for limit in (0, 1, 12, 20, 30, 31):
        pair.call(Get(b"0", b"9", limit, by_creation=True))
        pair.call(Get(b"0", b"9", limit))


def test_of_keys_made_at_once_the_first_twelve_keep_their_order(pair: Pair) -> None:
    pair.call(Txn([], many(12), []))
    pair.call(Get(b"0", b"9", by_creation=True))


def test_a_lease_that_is_not_renewed_takes_its_keys_along(pair: Pair, model: ModelEtcd, clock: Scheduler) -> None:
    ended = threading.Event()
    stands = threading.Event()
    changes: list[Change] = []

    def tell(told: Sequence[Change] | None) -> None:
        stands.set()
        changes.extend(told or ())
        if changes:
            ended.set()

    pair.call(Grant(1))
    pair.call(Txn([], [Write(b"x/2", b"", 1), Write(b"x/1", b"", 1), Write(b"a")], []))
    told: list[Sequence[Change] | None] = []
    watcher, model_watcher = pair.real.etcd.watcher(), pair.model.client.watcher()
    watcher.add(pair.real.prefix + b"x", pair.real.prefix + b"y", tell)
    model_watcher.add(pair.model.prefix + b"x", pair.model.prefix + b"y", told.append)
    assert stands.wait(TIMEOUT)
    assert ended.wait(TIMEOUT)
    watcher.close()
    clock.advance(2)
    assert pair.call(KeepAlive(1)) == 0
    assert pair.call(Txn([], [Write(b"y", b"", 1)], [])) == "lease not found"
    pair.call(Get(b"", b"\xff"))
    model_watcher.pump()
    assert told[0] is None
    assert [change.deleted for change in changes] == [True, True]
    assert pair.model.changes(told[1] or []) == pair.real.changes(changes)


def test_an_etcd_without_space_only_takes_what_does_not_make_it_grow(
    coordjournal_etcd_binary: str, model: ModelEtcd, tmp_path: Path
) -> None:
    flags = {"quota-backend-bytes": 1 << 20, "backend-batch-limit": 1}  # it looks at its size after each batch
    with ordinary(coordjournal_etcd_binary, tmp_path, flags) as server:
        client = connected(server)
        pair = Pair(client, model, b"p/")
        pair.call(Grant(60))
        pair.call(Txn([], [Write(b"a", b"v", 1), Write(b"b"), Write(b"c")], []))
        for _ in range(20):
            if pair.real.call(Txn([], [Write(b"full", b"x" * 400_000)], [])) is OutOfSpace:
                break
        else:
            pytest.fail("it is never full")
        pair.real.call(Txn([], [Delete(b"full")], []))
        pair.real.base += client.get(Get(b"p/"), timeout=TIMEOUT)[0] - pair.real.base - 1  # as if nothing had been
        model.no_space = True
        for call in (Txn([], [Write(b"b")], []), Txn([], [Get(b"b")], [Write(b"b")]), Grant(60)):
            assert pair.call(call) is OutOfSpace
        assert pair.call(KeepAlive(1)) == 60
        pair.call(Txn([], [Delete(b"b")], []))
        pair.call(Revoke(1))
        assert [kv.key for kv in client.get(Get(b"p/", b"p0"), timeout=TIMEOUT)[1].kvs] == [b"p/c"]
        client.close()


def test_a_restored_and_a_wiped_etcd(coordjournal_etcd_binary: str, model: ModelEtcd, tmp_path: Path) -> None:
    with ordinary(coordjournal_etcd_binary, tmp_path / "etcd") as server:
        client = connected(server)
        pair = Pair(client, model, b"p/")
        pair.call(Grant(60))
        pair.call(Txn([], [Write(b"a", b"1", 1), Write(b"b", b"1")], []))
        server.snapshot(tmp_path / "backup")
        backup = model.snapshot()
        pair.call(Txn([], [Write(b"b", b"2")], []))
        pair.call(Revoke(1))
        server.restore(tmp_path / "backup")
        model.restore(backup)
        pair.call(Get(b"", b"\xff"))
        pair.call(KeepAlive(1))
        pair.call(Txn([], [Write(b"c", b"3", 1)], []))
        pair.call(Revoke(1))
        pair.call(Get(b"", b"\xff"))
        server.wipe()
        model.wipe()
        assert client.get(Get(b"p/"), timeout=TIMEOUT)[0] == 1
        pair.call(Get(b"", b"\xff"))
        pair.call(KeepAlive(1))
        pair.call(Txn([], [Write(b"a", b"1", 1)], []))
        pair.call(Txn([], [Write(b"a", b"1")], []))
        pair.call(Get(b"", b"\xff"))
        client.close()
