"""The client against a scripted etcd: what a failed call means, and what is sent how often."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordjournal.etcd import (
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
from coordjournal.etcd import etcd_pb2 as pb
from coordjournal.etcd.client import EtcdClient, Tls, parse_endpoints
from coordjournal.etcd.endpoints import Endpoint
from coordjournal.etcd.failures import _REFUSALS, Failure, error_of
from coordjournal.etcd.pool import (
    ALARM,
    AUTHENTICATE,
    LEASE_GRANT,
    LEASE_KEEP_ALIVE,
    LEASE_REVOKE,
    RANGE,
    STATUS,
    TXN,
    Member,
)
from tests.support import CHECKOUT
from tests.unit.fake_etcd import WAIT_SECONDS, Abort, FakeEtcd, Landed, header

SECONDS = WAIT_SECONDS
"""A timeout that is not meant to pass."""

GONE = Abort("UNAVAILABLE", "etcdserver: server stopped")
STALE = Abort("UNAUTHENTICATED", "etcdserver: invalid auth token")
PUT = Put(b"/k", b"v")


@pytest.fixture
def fake() -> Iterator[FakeEtcd]:
    with FakeEtcd() as fake:
        yield fake


@pytest.fixture
def other() -> Iterator[FakeEtcd]:
    with FakeEtcd() as fake:
        yield fake


@pytest.fixture
def connect() -> Iterator[Callable[..., EtcdClient]]:
    clients = []

    def make(*fakes: FakeEtcd | str, **options: Any) -> EtcdClient:
        client = EtcdClient([fake if isinstance(fake, str) else fake.endpoint for fake in fakes], **options)
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def refusing() -> Iterator[str]:
    """An endpoint at which nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


class Holding:
    """An answer that waits until it is let go, and then has landed."""

    def __init__(self) -> None:
        self.arrived = threading.Event()
        self.go = threading.Event()
        self.landed = threading.Event()

    def __call__(self, _: Landed) -> None:
        self.arrived.set()
        assert self.go.wait(WAIT_SECONDS)
        self.landed.set()


# Where etcd is.


@pytest.mark.parametrize(
    ("text", "endpoints"),
    [
        ("10.0.0.1:2379", ["10.0.0.1:2379"]),
        (" a:1 , b:2 ", ["a:1", "b:2"]),
        ("http://h:2379/,https://h:2379", ["http://h:2379", "https://h:2379"]),
        ("[::1]:2379,http://[fe80::1%eth0]:1", ["[::1]:2379", "http://[fe80::1%eth0]:1"]),
        ("etcd", ["etcd:2379"]),
        ("https://etcd.example.org", ["https://etcd.example.org:2379"]),
        ("a:1,a:1,A:1", ["a:1"]),
        ("etcd_1.my-net:2379", ["etcd_1.my-net:2379"]),
    ],
)
def test_endpoints_are_read_as_users_write_them(text: str, endpoints: list[str]) -> None:
    assert parse_endpoints(text) == endpoints
    assert parse_endpoints(",".join(endpoints)) == endpoints


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "no etcd endpoint"),
        ("  ", "no etcd endpoint"),
        ("a:1,,b:2", "empty"),
        ("ftp://h:1", "http://"),
        ("h:port", "1 to 65535"),
        ("h:0", "1 to 65535"),
        ("h:65536", "1 to 65535"),
        ("h:", "1 to 65535"),
        ("::1", "brackets"),
        ("::1:2379", "brackets"),
        ("[::1:2379", "no address"),
        ("[zz]:1", "no address|host"),
        (":2379", "no host"),
        ("https://", "no host"),
        ("h:1/v3", "after the port"),
        ("h:1?x", "after the port"),
        ("a b:1", "no host"),
        ("-h:1", "no host"),
        ("http://root:sesame@h:1", "user"),
    ],
)
def test_nonsense_is_no_endpoint(text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint) as caught:
        parse_endpoints(text)
    assert "sesame" not in str(caught.value)


@given(st.text(max_size=20))
def test_any_text_is_endpoints_or_a_value_error(text: str) -> None:
    try:
        endpoints = parse_endpoints(text)
    except ValueError:
        return
    assert parse_endpoints(",".join(endpoints)) == endpoints


@pytest.mark.parametrize(
    ("endpoints", "options"),
    [
        ([], {}),
        (["h:1"], {"tls": Tls(cert="c.pem")}),
        (["h:1"], {"tls": Tls(key="k.pem")}),
        (["http://h:1"], {"tls": Tls()}),
        (["h:1"], {"password": "p"}),
        (["h:1"], {"username": "u"}),
        (["h:1"], {"username": "u", "tls": Tls(cert="c.pem", key="k.pem")}),
    ],
)
def test_what_does_not_fit_together_is_told_when_a_client_is_made(endpoints: list[str], options: Any) -> None:
    with pytest.raises(ValueError, match=r"etcd|TLS"):
        EtcdClient(endpoints, **options)


# What a client is before its first call.


def run_python(program: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_making_a_client_neither_connects_nor_loads_grpc() -> None:
    run_python(
        "import sys\n"
        "from coordjournal.etcd.client import EtcdClient\n"
        "EtcdClient(['h:1']).close()\n"
        "assert not {'grpc', 'google.protobuf', 'coordjournal.etcd.etcd_pb2'} & set(sys.modules)\n"
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_client_that_was_made_before_a_fork_works_in_every_child(fake: FakeEtcd) -> None:
    run_python(
        "import os, sys\n"
        "from coordjournal.etcd import Get\n"
        "from coordjournal.etcd.client import EtcdClient\n"
        "client = EtcdClient([sys.argv[1]])\n"
        "children = []\n"
        "for _ in range(2):\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        client.get(Get(b'/k'), timeout=20)\n"
        "        os._exit(0)\n"
        "    children.append(child)\n"
        "assert all(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 for child in children)\n"
        "client.get(Get(b'/k'), timeout=20)\n",
        fake.endpoint,
    )
    assert fake.count(RANGE) == 3


def test_two_clients_of_etcd_fit_into_one_process() -> None:
    """Another client has messages of the same names, under etcd's own package."""
    run_python(
        "from google.protobuf import descriptor_pool, descriptor_pb2\n"
        "file = descriptor_pb2.FileDescriptorProto(name='rpc.proto', package='etcdserverpb')\n"
        "file.message_type.add(name='TxnRequest')\n"
        "descriptor_pool.Default().Add(file) if hasattr(descriptor_pool.Default(), 'Add')"
        " else descriptor_pool.Default().AddSerializedFile(file.SerializeToString())\n"
        "from coordjournal.etcd import etcd_pb2\n"
        "assert etcd_pb2.TxnRequest.DESCRIPTOR.full_name == 'coordjournal.etcd.TxnRequest'\n"
    )


# What a failed call means.


@pytest.mark.parametrize(("failure", "reason"), [(failure, reason) for failure, (reason, _) in _REFUSALS.items()])
def test_a_refusal_of_the_closed_list_is_refused(
    fake: FakeEtcd, connect: Callable[..., EtcdClient], failure: Failure, reason: str
) -> None:
    fake.script[TXN].append(Abort(*failure))
    with pytest.raises(Refused) as caught:
        connect(fake).txn([], [PUT], timeout=SECONDS)
    assert caught.value.reason == reason
    assert fake.endpoint in str(caught.value)
    assert fake.count(TXN) == 1


@pytest.mark.parametrize(
    "abort",
    [
        GONE,
        Abort("UNAVAILABLE", "etcdserver: request timed out"),
        Abort("UNAVAILABLE", "etcdserver: leader changed"),
        Abort("UNKNOWN", "etcdserver: something that nobody knows"),
        Abort("INTERNAL", "transport: the stream is broken"),
        Abort("RESOURCE_EXHAUSTED", "of something or other"),
        Abort("DEADLINE_EXCEEDED", "context deadline exceeded"),
        Abort("CANCELLED", "context canceled"),
        Abort("FAILED_PRECONDITION", "etcdserver: rpc not supported for learner"),
        Abort("DATA_LOSS", "etcdserver: corrupt cluster"),
        Abort("NOT_FOUND", "a proxy knows no such page"),
        Abort("RESOURCE_EXHAUSTED", "CLIENT: Received message larger than max (5 vs. 4)"),
    ],
)
def test_every_other_failure_of_a_write_is_unanswered_and_nothing_is_sent_again(
    fake: FakeEtcd, other: FakeEtcd, connect: Callable[..., EtcdClient], abort: Abort
) -> None:
    client = connect(fake, other)
    for path, call in (
        (TXN, lambda: client.txn([], [PUT], timeout=SECONDS)),
        (LEASE_GRANT, lambda: client.grant(5, timeout=SECONDS)),
        (LEASE_REVOKE, lambda: client.revoke(5, timeout=SECONDS)),
    ):
        before = fake.count(path) + other.count(path)
        fake.script[path] = other.script[path] = type(fake.script[path])([abort])
        with pytest.raises(Unanswered):
            call()
        assert fake.count(path) + other.count(path) == before + 1


@given(st.sampled_from(["NOT_FOUND", "UNAVAILABLE", "UNKNOWN", "RESOURCE_EXHAUSTED", "INTERNAL"]), st.text())
def test_only_code_and_text_together_make_a_refusal(code: str, details: str) -> None:
    known = {failure.details for failure in _REFUSALS}
    for text in (details, *known):
        if Failure(code, text) not in _REFUSALS and not text.lower().startswith("grpc: received message"):
            assert isinstance(error_of(Failure(code, text), "h:1", write=True, seconds=1), Unanswered)


def test_no_space_leaves_open_whether_a_write_was_done(fake: FakeEtcd, connect: Callable[..., EtcdClient]) -> None:
    fake.script[TXN].append(Abort("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded"))
    with pytest.raises(OutOfSpace):
        connect(fake).txn([], [PUT], timeout=SECONDS)


def test_an_answer_that_is_too_large_is_a_refusal_of_a_read_and_no_answer_to_a_write(
    fake: FakeEtcd, connect: Callable[..., EtcdClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    from coordjournal.etcd import pool

    small = [(name, 1000 if name == "grpc.max_receive_message_length" else value) for name, value in pool._OPTIONS]
    monkeypatch.setattr(pool, "_OPTIONS", small)
    large = pb.RangeResponse(kvs=[pb.KeyValue(value=b"v" * 2000)])
    client = connect(fake)
    fake.script[RANGE].append(large)
    with pytest.raises(Refused) as caught:
        client.get(Get(b"/k"), timeout=SECONDS)
    assert caught.value.reason == "too large"
    fake.script[TXN].append(pb.TxnResponse(responses=[pb.ResponseOp(response_range=large)]))
    with pytest.raises(Unanswered):
        client.txn([], [PUT], timeout=SECONDS)
    assert (fake.count(RANGE), fake.count(TXN)) == (1, 1)


# What is sent, and how often.


def test_a_write_that_lands_after_its_deadline_was_sent_once(
    fake: FakeEtcd, connect: Callable[..., EtcdClient]
) -> None:
    client = connect(fake)
    client.get(Get(b"/k"), timeout=SECONDS)
    late = Holding()
    fake.script[TXN].append(late)
    with pytest.raises(Unanswered, match="did not answer within"):
        client.txn([], [PUT], timeout=0.05)
    assert late.arrived.wait(WAIT_SECONDS)
    late.go.set()
    assert late.landed.wait(WAIT_SECONDS)
    client.txn([], [Put(b"/next", b"")], timeout=SECONDS)
    assert [landed.request.success[0].request_put.key for landed in fake.landed if landed.path == TXN] == [
        b"/k",
        b"/next",
    ]


def test_a_write_after_a_lost_one_is_preceded_by_a_read(
    fake: FakeEtcd, other: FakeEtcd, connect: Callable[..., EtcdClient]
) -> None:
    """So it does not go to a member that has just been silent, where it might land late."""
    client = connect(fake, other)
    client.txn([], [PUT], timeout=SECONDS)
    fake.script[TXN].append(GONE)
    other.script[RANGE].append(GONE)
    with pytest.raises(Unanswered):
        client.txn([], [PUT], timeout=SECONDS)
    client.txn([], [PUT], timeout=SECONDS)  # the other one does not answer, and this one again does
    assert (fake.count(TXN), other.count(TXN), other.count(RANGE)) == (3, 0, 1)
    alone = connect(fake)
    alone.txn([], [PUT], timeout=SECONDS)
    fake.script[TXN].append(GONE)
    with pytest.raises(Unanswered):
        alone.txn([], [PUT], timeout=SECONDS)
    before = fake.count(RANGE)
    alone.txn([], [PUT], timeout=SECONDS)
    alone.txn([], [PUT], timeout=SECONDS)
    assert fake.count(RANGE) == before + 1


def test_a_write_after_a_long_time_is_preceded_by_a_read(
    fake: FakeEtcd, connect: Callable[..., EtcdClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect(fake)
    client.txn([], [PUT], timeout=SECONDS)
    client.txn([], [PUT], timeout=SECONDS)
    assert fake.count(RANGE) == 1
    monkeypatch.setattr("coordjournal.etcd.pool._FRESH_SECONDS", 0.0)
    client.txn([], [PUT], timeout=SECONDS)
    assert fake.count(RANGE) == 2


def test_a_write_goes_to_an_endpoint_that_is_there(
    refusing: str, fake: FakeEtcd, connect: Callable[..., EtcdClient]
) -> None:
    assert connect(refusing, fake).txn([], [PUT], timeout=SECONDS) is not None
    assert fake.count(TXN) == 1


def test_a_read_is_tried_at_the_other_members(
    fake: FakeEtcd, other: FakeEtcd, connect: Callable[..., EtcdClient]
) -> None:
    fake.script[RANGE].append(GONE)
    other.script[RANGE].append(pb.RangeResponse(header=header(5), count=3))
    revision, found = connect(fake, other).get(Get(b"/k"), timeout=SECONDS)
    assert (revision, found.count) == (5, 3)


def test_a_silent_member_costs_a_read_a_part_of_its_time(
    fake: FakeEtcd, other: FakeEtcd, connect: Callable[..., EtcdClient]
) -> None:
    silent = Holding()
    fake.script[RANGE].append(silent)
    other.script[RANGE].append(pb.RangeResponse(header=header(5)))
    assert connect(fake, other).get(Get(b"/k"), timeout=2.0)[0] == 5
    silent.go.set()


def test_a_read_goes_round_until_its_time_is_up(fake: FakeEtcd, connect: Callable[..., EtcdClient]) -> None:
    client = connect(fake)
    fake.script[RANGE].extend([GONE, GONE, pb.RangeResponse(header=header(5))])
    assert client.get(Get(b"/k"), timeout=SECONDS)[0] == 5
    fake.script[RANGE].extend(itertools.repeat(GONE, 1000))
    with pytest.raises(Unanswered, match="server stopped"):
        client.get(Get(b"/k"), timeout=0.3)


def test_when_none_answers_each_is_named(refusing: str, fake: FakeEtcd, connect: Callable[..., EtcdClient]) -> None:
    fake.script[RANGE].extend(itertools.repeat(GONE, 1000))
    with pytest.raises(Unanswered) as caught:
        connect(refusing, fake).txn([], [PUT], timeout=0.3)
    assert refusing in str(caught.value)
    assert fake.endpoint in str(caught.value)
    assert fake.count(TXN) == 0


def test_a_renewal_is_tried_at_the_other_members(
    fake: FakeEtcd, other: FakeEtcd, connect: Callable[..., EtcdClient]
) -> None:
    fake.script[LEASE_KEEP_ALIVE].append(GONE)
    other.script[LEASE_KEEP_ALIVE].append(pb.LeaseKeepAliveResponse(ID=9, TTL=6))
    assert connect(fake, other).keep_alive(9, timeout=SECONDS) == 6
    assert other.landed[-1].request.ID == 9


def test_a_lease_that_is_gone(fake: FakeEtcd, connect: Callable[..., EtcdClient]) -> None:
    client = connect(fake)
    fake.script[LEASE_KEEP_ALIVE].append(pb.LeaseKeepAliveResponse(ID=9, TTL=0))
    assert client.keep_alive(9, timeout=SECONDS) == 0
    fake.script[LEASE_REVOKE].append(Abort("NOT_FOUND", "etcdserver: requested lease not found"))
    client.revoke(9, timeout=SECONDS)


def test_every_call_asks_for_a_member_that_has_a_leader(fake: FakeEtcd, connect: Callable[..., EtcdClient]) -> None:
    client = connect(fake)
    client.get(Get(b"/k"), timeout=SECONDS)
    client.txn([], [PUT], timeout=SECONDS)
    client.keep_alive(1, timeout=SECONDS)
    assert {landed.metadata.get("hasleader") for landed in fake.landed} == {"true"}


def test_a_transaction_is_sent_as_it_is_meant(fake: FakeEtcd, connect: Callable[..., EtcdClient]) -> None:
    connect(fake).txn(
        [
            Compare(b"a", "version", 0),
            Compare(b"b", "create_revision", 7),
            Compare(b"c", "mod_revision", 8),
            Compare(b"d", "value", b""),
        ],
        [Put(b"p", b"v", lease=3), Delete(b"d"), Delete(b"d/", end_of(b"d/"))],
        [Get(b"g"), Get(b"g/", end_of(b"g/"), limit=2, by_creation=True, only="keys"), Get(b"h", only="count")],
        timeout=SECONDS,
    )
    request = fake.landed[-1].request
    assert [compare.WhichOneof("target_union") for compare in request.compare] == [
        "version",
        "create_revision",
        "mod_revision",
        "value",
    ]
    assert [compare.target for compare in request.compare] == [0, 1, 2, 3]
    assert [one.WhichOneof("request") for one in request.success] == [
        "request_put",
        "request_delete_range",
        "request_delete_range",
    ]
    assert request.success[0].request_put == pb.PutRequest(key=b"p", value=b"v", lease=3)
    assert request.success[2].request_delete_range == pb.DeleteRangeRequest(key=b"d/", range_end=b"d0")
    assert request.failure[1].request_range == pb.RangeRequest(
        key=b"g/", range_end=b"g0", limit=2, sort_order="ASCEND", sort_target="CREATE", keys_only=True
    )
    assert request.failure[2].request_range == pb.RangeRequest(key=b"h", count_only=True)


# One name, two addresses: gRPC tells of the one that it tried last, by chance.

ENDED = Failure("UNAVAILABLE", "last error: UNAVAILABLE: ipv4:127.0.0.1:5: Unwrap failed (TSI_DATA_CORRUPTED)")
NOBODY_6 = Failure("UNAVAILABLE", "last error: UNKNOWN: ipv6:%5B::1%5D:5: Failed to connect: Connection refused")
NOBODY_4 = Failure("UNAVAILABLE", "last error: UNKNOWN: ipv4:127.0.0.1:5: Failed to connect: Connection refused")


@pytest.mark.parametrize(
    ("failures", "told"),
    [
        ([ENDED, NOBODY_6], ENDED),
        ([NOBODY_6, ENDED, NOBODY_6, NOBODY_6], ENDED),
        ([ENDED, NOBODY_4], NOBODY_4),
        ([NOBODY_4, NOBODY_6], NOBODY_6),
        ([ENDED, None, NOBODY_6], NOBODY_6),
        ([Failure("DEADLINE_EXCEEDED", "Deadline Exceeded"), NOBODY_4], NOBODY_4),
    ],
)
def test_what_is_told_is_what_somebody_there_said(failures: list[Failure | None], told: Failure) -> None:
    member = Member(Endpoint("localhost:5", tls=True), None)
    explained = None
    for failure in failures:
        if failure is None:
            member.answered()
        else:
            explained = member.explained(failure)
    assert explained == told


@pytest.mark.parametrize(
    ("place", "failure", "words"),
    [
        ("127.0.0.1:5", NOBODY_4, "connection refused; nothing listens there"),
        ("https://[::1]:5", NOBODY_6, "connection refused; nothing listens there"),
        ("https://localhost:5", NOBODY_6, "connection refused at [::1]:5"),
        (
            "h:5",
            Failure("UNAVAILABLE", "ipv4:10.0.0.1:5: connection attempt timed out before receiving SETTINGS frame"),
            "it did not answer in time, as etcd would; it may be something else, or stuck",
        ),
    ],
)
def test_why_nobody_is_reached_is_told_in_words(place: str, failure: Failure, words: str) -> None:
    assert str(error_of(failure, place, write=False, seconds=1)) == f"etcd at {place} cannot be reached: {words}"


# Who we are.


def token(text: str) -> pb.AuthenticateResponse:
    return pb.AuthenticateResponse(token=text)


def test_an_expired_token_is_got_anew_and_the_write_sent_once_more(
    fake: FakeEtcd, connect: Callable[..., EtcdClient]
) -> None:
    client = connect(fake, username="node", password="sesame")
    fake.script[AUTHENTICATE].extend([token("one"), token("two")])
    client.txn([], [PUT], timeout=SECONDS)
    fake.script[TXN].append(STALE)
    client.txn([], [PUT], timeout=SECONDS)
    assert [landed.metadata["token"] for landed in fake.landed if landed.path == TXN] == ["one", "one", "two"]
    assert fake.count(AUTHENTICATE) == 2


def test_a_token_that_is_refused_again_is_a_refusal(fake: FakeEtcd, connect: Callable[..., EtcdClient]) -> None:
    client = connect(fake, username="node", password="sesame")
    fake.script[AUTHENTICATE].extend([token("one"), token("two")])
    client.get(Get(b"/k"), timeout=SECONDS)
    fake.script[TXN].extend([STALE, STALE])
    with pytest.raises(Refused) as caught:
        client.txn([], [PUT], timeout=SECONDS)
    assert caught.value.reason == "not authenticated"
    assert fake.count(TXN) == 2


def test_many_threads_whose_token_expired_get_one_new_one(fake: FakeEtcd, connect: Callable[..., EtcdClient]) -> None:
    client = connect(fake, username="node", password="sesame")
    fake.script[AUTHENTICATE].extend([token("old"), token("new")])
    client.get(Get(b"/k"), timeout=SECONDS)
    threads = 8
    all_sent = threading.Barrier(threads)

    def refuse(landed: Landed) -> Any:
        if landed.metadata["token"] == "old":
            all_sent.wait(WAIT_SECONDS)
            return STALE
        return None

    fake.script[TXN].extend([refuse] * 2 * threads)
    with ThreadPoolExecutor(threads) as running:
        for done in [running.submit(client.txn, [], [PUT], timeout=SECONDS) for _ in range(threads)]:
            done.result()
    assert fake.count(AUTHENTICATE) == 2


@pytest.mark.parametrize("late", ["etcdserver: user name is empty", "etcdserver: revision of auth store is old"])
def test_access_control_may_be_off_and_switched_on_later(
    fake: FakeEtcd, connect: Callable[..., EtcdClient], late: str
) -> None:
    client = connect(fake, username="node", password="sesame")
    off = Abort("FAILED_PRECONDITION", "etcdserver: authentication is not enabled")
    fake.script[AUTHENTICATE].extend([off, token("one")])
    client.txn([], [PUT], timeout=SECONDS)
    assert "token" not in fake.landed[-1].metadata
    fake.script[TXN].append(Abort("INVALID_ARGUMENT", late))
    client.txn([], [PUT], timeout=SECONDS)
    assert fake.landed[-1].metadata["token"] == "one"


def test_a_wrong_password_is_refused_and_never_shown(fake: FakeEtcd, connect: Callable[..., EtcdClient]) -> None:
    client = connect(fake, username="node", password="sesame")
    wrong = Abort("INVALID_ARGUMENT", "etcdserver: authentication failed, invalid user ID or password")
    fake.script[AUTHENTICATE].append(wrong)
    with pytest.raises(Refused) as caught:
        client.txn([], [PUT], timeout=SECONDS)
    assert caught.value.reason == "not authenticated"
    assert "sesame" not in str(caught.value) + repr(caught.value) + repr(client) + repr(caught.value.__cause__)
    assert fake.count(TXN) == 0


def test_without_a_user_a_refused_token_is_a_refusal(fake: FakeEtcd, connect: Callable[..., EtcdClient]) -> None:
    fake.script[TXN].append(Abort("INVALID_ARGUMENT", "etcdserver: user name is empty"))
    with pytest.raises(Refused):
        connect(fake).txn([], [PUT], timeout=SECONDS)
    assert (fake.count(TXN), fake.count(AUTHENTICATE)) == (1, 0)


def test_a_certificate_that_cannot_be_read_is_named(tmp_path: Path, connect: Callable[..., EtcdClient]) -> None:
    missing = tmp_path / "ca.pem"
    with pytest.raises(Unanswered, match=r"ca\.pem cannot be read"):
        connect("h:1", tls=Tls(ca=missing)).txn([], [PUT], timeout=0.2)


# The rest.


def test_statuses_tell_of_those_that_are_there_and_of_those_that_are_not(
    refusing: str, fake: FakeEtcd, connect: Callable[..., EtcdClient]
) -> None:
    fake.script[STATUS].append(
        pb.StatusResponse(header=header(1), version="3.9", dbSize=5, dbSizeInUse=4, leader=1, errors=["alarm:NOSPACE "])
    )
    gone, there = connect(refusing, fake).statuses(timeout=SECONDS)
    assert gone.endpoint == refusing
    assert refusing in gone.error
    assert (there.error, there.version, there.db_size, there.db_size_in_use) == ("", "3.9", 5, 4)
    assert there.is_leader
    assert there.problems == ("alarm:NOSPACE",)


def test_statuses_are_asked_for_as_the_user_that_one_is(fake: FakeEtcd, connect: Callable[..., EtcdClient]) -> None:
    """Etcd 3.6 tells only root, 3.7 only those that it knows."""
    fake.script[AUTHENTICATE].extend([token("one"), token("two")])
    fake.script[STATUS].append(STALE)
    (there,) = connect(fake, username="root", password="sesame").statuses(timeout=SECONDS)
    assert there.error == ""
    assert fake.landed[-1].metadata["token"] == "two"


def test_alarms_are_named(fake: FakeEtcd, connect: Callable[..., EtcdClient]) -> None:
    fake.script[ALARM].append(pb.AlarmResponse(alarms=[pb.AlarmMember(memberID=3, alarm="NOSPACE")]))
    assert connect(fake).alarms(timeout=SECONDS) == [(3, "NOSPACE")]


def test_closing_answers_calls_under_way_and_all_later_ones(fake: FakeEtcd, connect: Callable[..., EtcdClient]) -> None:
    client = connect(fake)
    held = Holding()
    fake.script[TXN].append(held)
    with ThreadPoolExecutor(1) as running:
        call = running.submit(client.txn, [], [PUT], timeout=SECONDS)
        assert held.arrived.wait(WAIT_SECONDS)
        client.close()
        with pytest.raises(Unanswered):
            call.result(WAIT_SECONDS)
    held.go.set()
    for later in (
        lambda: client.txn([], [PUT], timeout=SECONDS),
        lambda: client.get(Get(b"/k"), timeout=SECONDS),
        client.watcher,
    ):
        with pytest.raises(EtcdError, match="closed"):
            later()
    client.close()


def test_a_client_that_was_never_used_closes() -> None:
    client = EtcdClient(["h:1"])
    client.close()
    with pytest.raises(Unanswered, match="closed"):
        client.get(Get(b"/k"), timeout=SECONDS)
