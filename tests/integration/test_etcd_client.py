"""The client against real etcd processes."""

from __future__ import annotations

import base64
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from coordjournal.etcd import (
    Change,
    Compare,
    Delete,
    EtcdError,
    Get,
    OutOfSpace,
    Put,
    Refused,
    Unanswered,
    end_of,
)
from coordjournal.etcd.client import EtcdClient, Tls
from coordjournal.retry import ETCD_STREAM
from coordjournal.testing.etcd import EtcdCluster, EtcdServer

SECONDS = 20.0
"""A timeout that is not meant to pass."""

Connect = Callable[..., EtcdClient]


@pytest.fixture(scope="module")
def server(coordjournal_etcd_binary: str) -> Iterator[EtcdServer]:
    with EtcdServer(binary=coordjournal_etcd_binary) as server:
        yield server


@pytest.fixture
def own(coordjournal_etcd_binary: str) -> Iterator[EtcdServer]:
    """A server for one test, to be mistreated."""
    with EtcdServer(binary=coordjournal_etcd_binary) as server:
        yield server


@pytest.fixture(scope="module")
def cluster(coordjournal_etcd_binary: str) -> Iterator[EtcdCluster]:
    with EtcdCluster(binary=coordjournal_etcd_binary) as cluster:
        yield cluster


@pytest.fixture
def connect() -> Iterator[Connect]:
    clients = []

    def make(*servers: EtcdServer | str, **options: Any) -> EtcdClient:
        endpoints = [server if isinstance(server, str) else server.endpoint for server in servers]
        clients.append(EtcdClient(endpoints, **options))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """While it is not set, a watcher that lost its stream does not connect again."""
    gate = threading.Event()

    def wait(_: object) -> float:
        assert gate.wait(SECONDS)
        return 0.0

    monkeypatch.setattr("coordjournal.etcd.watch.ETCD_STREAM", ETCD_STREAM.copy(wait=wait))
    return gate


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent etcd is left after a second, not five."""
    monkeypatch.setattr("coordjournal.etcd.calls.PROGRESS_SECONDS", 0.4)


class Told:
    """What a watch was told."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Sequence[Change] | None] = SimpleQueue()

    def __call__(self, changes: Sequence[Change] | None) -> None:
        self._queue.put(changes)

    def next(self) -> Sequence[Change] | None:
        return self._queue.get(timeout=SECONDS)

    def gap(self) -> None:
        """Wait until it was told that some changes may have been missed."""
        while self.next() is not None:
            pass

    def keys(self, number: int) -> list[bytes]:
        """Return the keys of the next so many changes, and of no more."""
        found: list[bytes] = []
        while len(found) < number:
            changes = self.next()
            assert changes is not None, f"a gap after {found}"
            found += [change.kv.key for change in changes]
        return found


def put(client: EtcdClient, key: bytes, value: bytes = b"") -> int:
    """Put until it is known to be done: the guard makes it safe to try again."""
    while True:
        try:
            done = client.txn([Compare(key, "version", 0)], [Put(key, value)], [Get(key)], timeout=2.0)
        except Unanswered:
            continue
        if done.succeeded:
            return done.revision
        assert done.found[0] is not None
        return done.found[0].kvs[0].mod_revision


# Keys and transactions.


def test_guards_choose_the_branch(server: EtcdServer, connect: Connect) -> None:
    client = connect(server)
    key = b"/guards/k"
    absent = [Compare(key, "version", 0), Compare(key, "create_revision", 0), Compare(key, "mod_revision", 0)]
    done = client.txn(absent, [Put(key, b"v"), Get(key)], [Get(key)], timeout=SECONDS)
    assert done.succeeded
    assert done.found[0] is None
    assert done.found[1] is not None
    (kv,) = done.found[1].kvs
    assert kv == (key, b"v", done.revision, done.revision, 1, 0)
    for guard in (
        Compare(key, "version", 1),
        Compare(key, "create_revision", done.revision),
        Compare(key, "mod_revision", done.revision),
        Compare(key, "value", b"v"),
    ):
        assert client.txn([guard], [], timeout=SECONDS).succeeded
        wrong = guard._replace(wanted=b"w" if guard.target == "value" else 0)
        refused = client.txn([wrong], [Put(key, b"w")], [Get(key, only="keys")], timeout=SECONDS)
        assert not refused.succeeded
        assert refused.found == ((((key, b"", *kv[2:]),), 1),)
    assert not client.txn([Compare(b"/guards/none", "value", b"")], [], timeout=SECONDS).succeeded


def test_all_or_nothing(server: EtcdServer, connect: Connect) -> None:
    client = connect(server)
    with pytest.raises(Refused) as caught:
        client.txn([], [Put(b"/whole/a", b""), Put(b"/whole/b", b"", lease=12345)], timeout=SECONDS)
    assert caught.value.reason == "lease not found"
    assert client.get(Get(b"/whole/", end_of(b"/whole/")), timeout=SECONDS)[1] == ((), 0)


def test_ranges_are_sorted_counted_and_limited(server: EtcdServer, connect: Connect) -> None:
    client = connect(server)
    for name in (b"c", b"a", b"b"):
        client.txn([], [Put(b"/range/" + name, name)], timeout=SECONDS)
    everything = Get(b"/range/", end_of(b"/range/"))

    def names(what: Get) -> tuple[list[bytes], int]:
        _, found = client.get(what, timeout=SECONDS)
        return [kv.key[-1:] for kv in found.kvs], found.count

    assert names(everything) == ([b"a", b"b", b"c"], 3)
    assert names(everything._replace(by_creation=True)) == ([b"c", b"a", b"b"], 3)
    assert names(everything._replace(by_creation=True, limit=2)) == ([b"c", b"a"], 3)
    assert names(everything._replace(only="count")) == ([], 3)
    assert names(everything._replace(only="keys", limit=1)) == ([b"a"], 3)
    assert names(Get(b"/range/a")) == ([b"a"], 1)
    done = client.txn([], [Delete(b"/range/a"), Delete(b"/range/b", b"/range/z")], timeout=SECONDS)
    assert done.found == (None, None)
    revision, found = client.get(everything, timeout=SECONDS)
    assert (revision, found.count) == (done.revision, 0)


@pytest.mark.parametrize(
    ("operations", "reason"),
    [
        ([Put(b"/twice", b"1"), Put(b"/twice", b"2")], "invalid"),
        ([Put(b"/many/%d" % number, b"") for number in range(129)], "too large"),
        ([Put(b"/large", bytes(1_600_000))], "too large"),  # etcd's own limit
        ([Put(b"/large", bytes(3_000_000))], "too large"),  # that of its gRPC
        ([Put(b"", b"")], "invalid"),
    ],
    ids=["a key twice", "129 operations", "1.6 MB", "3 MB", "no key"],
)
def test_what_etcd_does_not_take(server: EtcdServer, connect: Connect, operations: Any, reason: str) -> None:
    client = connect(server)
    with pytest.raises(Refused) as caught:
        client.txn([], operations, timeout=SECONDS)
    assert caught.value.reason == reason
    client.txn([], [Put(b"/fine", b"")], timeout=SECONDS)


def test_an_answer_may_be_much_larger_than_grpc_takes_by_itself(server: EtcdServer, connect: Connect) -> None:
    client = connect(server)
    for number in range(12):
        client.txn([], [Put(b"/big/%d" % number, bytes(1_000_000))], timeout=SECONDS)
    _, found = client.get(Get(b"/big/", end_of(b"/big/")), timeout=SECONDS)
    assert sum(len(kv.value) for kv in found.kvs) == 12_000_000


def test_whether_a_past_revision_is_kept(own: EtcdServer, connect: Connect) -> None:
    client = connect(own)
    first, second = put(client, b"/1"), put(client, b"/2")
    assert client.is_kept(b"/1", first, timeout=SECONDS)
    own.call("kv/compaction", revision=second)
    assert not client.is_kept(b"/1", first, timeout=SECONDS)
    assert client.is_kept(b"/1", second, timeout=SECONDS)
    with pytest.raises(Refused) as caught:
        client.is_kept(b"/1", second + 1, timeout=SECONDS)
    assert caught.value.reason == "invalid"


# Leases.


def test_a_lease_keeps_keys_until_it_is_revoked(server: EtcdServer, connect: Connect) -> None:
    client = connect(server)
    lease, ttl = client.grant(60, timeout=SECONDS)
    assert ttl == 60
    client.txn([], [Put(b"/leased", b"", lease)], timeout=SECONDS)
    assert client.get(Get(b"/leased"), timeout=SECONDS)[1].kvs[0].lease == lease
    assert client.keep_alive(lease, timeout=SECONDS) == 60
    client.revoke(lease, timeout=SECONDS)
    assert client.get(Get(b"/leased"), timeout=SECONDS)[1].count == 0
    assert client.keep_alive(lease, timeout=SECONDS) == 0
    client.revoke(lease, timeout=SECONDS)


def test_a_lease_that_is_not_renewed_ends(server: EtcdServer, connect: Connect) -> None:
    client = connect(server)
    told = Told()
    client.watcher().add(b"/mortal", b"", told)
    told.gap()
    lease, _ = client.grant(1, timeout=SECONDS)
    client.txn([], [Put(b"/mortal", b"", lease)], timeout=SECONDS)
    assert [change.deleted for change in told.next() or ()] == [False]
    assert [change.deleted for change in told.next() or ()] == [True]
    assert client.keep_alive(lease, timeout=SECONDS) == 0


# Watches.


def test_a_thousand_watches(server: EtcdServer, connect: Connect) -> None:
    client = connect(server)
    watcher = client.watcher()
    told = {b"/thousand/%d/" % number: Told() for number in range(1000)}
    for prefix, tell in told.items():
        watcher.add(prefix, end_of(prefix), tell)
    for tell in told.values():
        tell.gap()
    prefixes = list(told)
    for start in range(0, 1000, 100):
        client.txn([], [Put(prefix + b"x", b"") for prefix in prefixes[start : start + 100]], timeout=SECONDS)
    for prefix, tell in told.items():
        assert tell.keys(1) == [prefix + b"x"]


def test_a_backlog_of_eight_megabytes_is_told_whole(own: EtcdServer, connect: Connect, gate: threading.Event) -> None:
    client = connect(own)
    told = Told()
    client.watcher().add(b"/backlog/", end_of(b"/backlog/"), told)
    told.gap()
    own.restart()
    keys = []
    for revision in range(8):
        names = [b"/backlog/%d/%03d" % (revision, number) for number in range(100)]
        client.txn([], [Put(name, bytes(10_000)) for name in names], timeout=SECONDS)
        keys += names
    gate.set()
    assert told.keys(800) == keys


def test_compaction_past_a_watch_is_told(own: EtcdServer, connect: Connect, gate: threading.Event) -> None:
    client = connect(own)
    told = Told()
    client.watcher().add(b"/c/", end_of(b"/c/"), told)
    told.gap()
    own.restart()
    put(client, b"/c/missed")
    own.call("kv/compaction", revision=put(client, b"/c/kept"))
    gate.set()
    assert told.next() is None
    put(client, b"/c/after")
    assert told.keys(1) == [b"/c/after"]


def test_a_watch_outlives_a_restart_without_a_gap(own: EtcdServer, connect: Connect) -> None:
    client = connect(own)
    told = Told()
    client.watcher().add(b"/r/", end_of(b"/r/"), told)
    told.gap()
    put(client, b"/r/1")
    own.kill()
    own.start()
    put(client, b"/r/2")
    assert told.keys(2) == [b"/r/1", b"/r/2"]


def test_a_wiped_etcd_is_told_as_a_gap(own: EtcdServer, connect: Connect) -> None:
    client = connect(own)
    told = Told()
    client.watcher().add(b"/w/", end_of(b"/w/"), told)
    told.gap()
    for number in range(5):
        put(client, b"/w/%d" % number)
    told.keys(5)
    own.wipe()
    assert told.next() is None
    put(client, b"/w/new")
    assert told.keys(1) == [b"/w/new"]


def test_closing_leaves_no_thread(own: EtcdServer) -> None:
    client = EtcdClient(own.endpoints)
    told = Told()
    client.watcher().add(b"/x", b"", told)
    told.gap()
    own.pause()
    client.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "coordjournal-watch"]
    own.resume()


# Several members.


def members_from(cluster: EtcdCluster, first: EtcdServer) -> list[EtcdServer]:
    return [first, *(member for member in cluster.members if member is not first)]


@pytest.mark.parametrize("harm", ["kill", "pause"])
@pytest.mark.parametrize("leads", [True, False], ids=["the leader", "a follower"])
def test_the_other_members_take_over(
    cluster: EtcdCluster, connect: Connect, impatient: None, harm: str, leads: bool
) -> None:
    leader = cluster.leader()
    victim = leader if leads else next(member for member in cluster.members if member is not leader)
    prefix = f"/over/{harm}/{leads}/".encode()
    client = connect(*members_from(cluster, victim))
    lease, _ = client.grant(30, timeout=SECONDS)
    told = Told()
    client.watcher().add(prefix, end_of(prefix), told)
    told.gap()
    put(client, prefix + b"1")
    assert told.keys(1) == [prefix + b"1"]
    getattr(victim, harm)()
    try:
        assert client.keep_alive(lease, timeout=SECONDS) == 30
        put(client, prefix + b"2")
        _, found = client.get(Get(prefix, end_of(prefix)), timeout=SECONDS)
        assert [kv.key for kv in found.kvs] == [prefix + b"1", prefix + b"2"]
        assert [kv.version for kv in found.kvs] == [1, 1]
        seen: list[bytes] = []
        while prefix + b"2" not in seen:  # a member that lags is watched from now, with a gap
            seen += [change.kv.key for change in told.next() or ()]
        statuses = client.statuses(timeout=1.0)
        assert [bool(status.error) for status in statuses] == [True, False, False]
        assert [status.is_leader for status in statuses].count(True) == 1
    finally:
        if harm == "pause":
            victim.resume()
        cluster.start()


def test_without_a_majority_nothing_is_answered(coordjournal_etcd_binary: str, connect: Connect) -> None:
    with EtcdCluster(binary=coordjournal_etcd_binary) as cluster:
        left = cluster.members[0]
        client = connect(left)
        put(client, b"/k")
        for member in cluster.members[1:]:
            member.kill()
        for call in (
            lambda: client.txn([], [Put(b"/k", b"2")], timeout=0.5),
            lambda: client.get(Get(b"/k"), timeout=0.5),
            lambda: client.txn([], [Put(b"/k", b"3")], timeout=0.5),
        ):
            with pytest.raises(Unanswered):
                call()
        cluster.start()
        _, found = client.get(Get(b"/k"), timeout=SECONDS)
        # The first may have been done late; the last was not sent, since the member did not answer a read.
        assert found.kvs[0].value in (b"", b"2")


# Who we are.


def test_with_access_control(coordjournal_etcd_binary: str, connect: Connect) -> None:
    flags = {"auth-token": "simple", "auth-token-ttl": 1}
    with EtcdServer(flags=flags, binary=coordjournal_etcd_binary) as server:
        server.enable_auth({"root": "r", "node": "sesame"}, prefix="/mine/")
        client = connect(server, username="node", password="sesame")
        watcher = client.watcher()
        told = Told()
        watcher.add(b"/mine/", end_of(b"/mine/"), told)
        told.gap()
        put(client, b"/mine/1")
        assert told.keys(1) == [b"/mine/1"]

        for call in (
            lambda: client.get(Get(b"/theirs"), timeout=SECONDS),
            lambda: client.txn([], [Put(b"/theirs", b"")], timeout=SECONDS),
        ):
            with pytest.raises(Refused) as caught:
                call()
            assert caught.value.reason == "permission denied"

        while "deleted a simple token" not in server.log:  # it expires
            time.sleep(0.02)
        put(client, b"/mine/2")
        late = Told()
        watcher.add(b"/mine/3", b"", late)  # with a token that is gone, on the stream that it opened
        late.gap()
        put(client, b"/mine/3")
        assert late.keys(1) == [b"/mine/3"]
        assert told.keys(2) == [b"/mine/2", b"/mine/3"]

        root = server.call("auth/authenticate", name="root", password="r")["token"]
        server.call("auth/user/changepw", token=root, name="node", password="other")
        with pytest.raises(Refused) as caught:
            client.txn([], [Put(b"/mine/4", b"")], timeout=SECONDS)
        assert caught.value.reason == "not authenticated"
        for name, password in (("nobody", "x"), ("node", "sesame")):
            with pytest.raises(Refused) as caught:
                connect(server, username=name, password=password).get(Get(b"/mine/1"), timeout=SECONDS)
            assert caught.value.reason == "not authenticated"
        with pytest.raises(Refused) as caught:
            connect(server).txn([], [Put(b"/mine/4", b"")], timeout=SECONDS)
        assert caught.value.reason == "not authenticated"


def test_a_watch_that_is_not_permitted_stands_once_it_is(
    coordjournal_etcd_binary: str, connect: Connect, impatient: None
) -> None:
    with EtcdServer(binary=coordjournal_etcd_binary) as server:
        server.enable_auth({"root": "r", "node": "n"}, prefix="/mine/")
        client = connect(server, username="node", password="n")
        watcher = client.watcher()
        mine, theirs = Told(), Told()
        watcher.add(b"/theirs/", end_of(b"/theirs/"), theirs)
        watcher.add(b"/mine/", end_of(b"/mine/"), mine)
        mine.gap()
        root = server.call("auth/authenticate", name="root", password="r")["token"]
        start, end = (base64.b64encode(key).decode() for key in (b"/theirs/", end_of(b"/theirs/")))
        permission = {"permType": "READWRITE", "key": start, "range_end": end}
        server.call("auth/role/grant", token=root, name="node-role", perm=permission)
        theirs.gap()
        put(client, b"/theirs/1")
        assert theirs.keys(1) == [b"/theirs/1"]


def test_with_tls(coordjournal_etcd_binary: str, connect: Connect, tmp_path: Path) -> None:
    certificates = pytest.importorskip("coordjournal.testing.certificates")
    pytest.importorskip("cryptography")
    authority = certificates.CertificateAuthority(tmp_path / "ours")
    stranger = certificates.CertificateAuthority(tmp_path / "theirs").client("node")
    us = authority.client("node")
    with EtcdServer(tls=authority.server("etcd", "127.0.0.1"), binary=coordjournal_etcd_binary) as server:
        client = connect(server, tls=Tls(us.ca, us.cert, us.key))
        put(client, b"/k")
        (status,) = connect(f"https://{server.endpoint}", tls=Tls(*us)).statuses(timeout=SECONDS)
        assert status.is_leader
        for tls, hint in (
            (Tls(us.ca), "client certificate"),
            (Tls(stranger.ca, us.cert, us.key), "authority"),
            (Tls(us.ca, stranger.cert, stranger.key), "client certificate"),
            (None, "TLS"),
        ):
            with pytest.raises(Unanswered, match=f"{server.endpoint}.*{hint}"):
                connect(server, tls=tls).get(Get(b"/k"), timeout=0.5)
        with pytest.raises(Unanswered, match="authority"):
            connect(f"https://{server.endpoint}").get(Get(b"/k"), timeout=0.5)


def test_by_a_name_it_is_told_that_tls_fails_though_nothing_listens_at_its_other_address(
    coordjournal_etcd_binary: str, connect: Connect, tmp_path: Path
) -> None:
    """localhost is ::1 too, where it does not listen."""
    certificates = pytest.importorskip("coordjournal.testing.certificates")
    pytest.importorskip("cryptography")
    authority = certificates.CertificateAuthority(tmp_path / "ours")
    us, another = authority.client("node"), authority.client("another")
    stranger = certificates.CertificateAuthority(tmp_path / "theirs").client("node")
    with EtcdServer(tls=authority.server("etcd", "localhost"), binary=coordjournal_etcd_binary) as server:
        port = server.endpoint.rpartition(":")[2]
        for tls, hint in (
            (Tls(stranger.ca, us.cert, us.key), "authority"),
            (Tls(us.ca, us.cert, another.key), "certificate and key"),
            (Tls(us.ca), "client certificate"),
        ):
            for _ in range(5):
                with pytest.raises(Unanswered, match=hint):
                    connect(f"https://localhost:{port}", tls=tls).get(Get(b"/k"), timeout=0.5)


def test_certificates_that_were_replaced_are_read_again(
    coordjournal_etcd_binary: str, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates = pytest.importorskip("coordjournal.testing.certificates")
    pytest.importorskip("cryptography")
    authority = certificates.CertificateAuthority(tmp_path / "ours")
    us = authority.client("node")
    ca = tmp_path / "ca.pem"
    ca.write_bytes(certificates.CertificateAuthority(tmp_path / "theirs").client("node").ca.read_bytes())
    with EtcdServer(tls=authority.server("etcd", "127.0.0.1"), binary=coordjournal_etcd_binary) as server:
        client = connect(server, tls=Tls(ca, us.cert, us.key))
        with pytest.raises(Unanswered):
            client.get(Get(b"/k"), timeout=0.5)
        ca.write_bytes(us.ca.read_bytes())
        monkeypatch.setattr("coordjournal.etcd.pool._RENEW_SECONDS", 0.0)
        client.get(Get(b"/k"), timeout=SECONDS)


# No space.


def test_out_of_space(coordjournal_etcd_binary: str, connect: Connect) -> None:
    with EtcdServer(flags={"quota-backend-bytes": 1 << 20}, binary=coordjournal_etcd_binary) as server:
        client = connect(server)
        lease, _ = client.grant(60, timeout=SECONDS)
        told = Told()
        client.watcher().add(b"/fill/", end_of(b"/fill/"), told)
        told.gap()
        done: list[bytes] = []

        def fill(writer: int) -> None:
            for number in range(100):
                key = b"/fill/%d/%d" % (writer, number)
                client.txn([], [Put(key, os.urandom(50_000))], timeout=SECONDS)
                done.append(key)

        writers = [threading.Thread(target=expecting, args=(OutOfSpace, fill, writer)) for writer in range(4)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert [alarm.kind for alarm in client.alarms(timeout=SECONDS)] == ["NOSPACE"]
        (status,) = client.statuses(timeout=SECONDS)
        assert "NOSPACE" in " ".join(status.problems)
        with pytest.raises(OutOfSpace):
            client.grant(60, timeout=SECONDS)
        # Reading, renewing and deleting go on.
        _, found = client.get(Get(b"/fill/", end_of(b"/fill/"), only="keys"), timeout=SECONDS)
        assert {kv.key for kv in found.kvs} >= set(done)
        assert client.keep_alive(lease, timeout=SECONDS) == 60
        client.txn([], [Delete(b"/fill/", end_of(b"/fill/"))], timeout=SECONDS)


def expecting(kind: type[EtcdError], call: Callable[..., None], *arguments: Any) -> None:
    with pytest.raises(kind):
        call(*arguments)
