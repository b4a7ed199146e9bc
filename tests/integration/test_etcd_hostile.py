"""What somebody else may write into etcd: it is refused or swept, and harms nobody."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

import coordjournal as cj
from coordjournal.authority.wire import Refusal, decode_outcome
from coordjournal.etcd import Get, Put
from coordjournal.etcd.client import EtcdClient
from coordjournal.testing.etcd import EtcdServer
from tests.integration.etcd_parts import (
    SPACE,
    Nodes,
    Party,
    check,
    delete_key,
    drain,
    holding,
    node,
    read,
    refused,
    server,
    then,
    told,
    unbroken,
)
from tests.integration.processes import quick_path

__all__ = ["node", "quick_path", "server"]

STRANGER: Final = "0123456789abcdef" * 2
APPEND: Final = {
    "key": "hostile",
    "actor": "eve",
    "at": "2026-01-31T12:00:00.000000Z",
    "events": [{"type": "alias.set", "alias": "x", "target": "y"}],
}


def intent(*appends: dict[str, Any]) -> bytes:
    return json.dumps(list(appends), separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")


def plain(**changed: object) -> bytes:
    return intent({**APPEND, **changed})


BROKEN: Final[dict[str, bytes]] = {
    "no JSON": b"{",
    "no UTF-8": b"\xff\xfe",
    "half a character": plain(actor="x\ud800"),
    "half a character, escaped": plain(actor="X").replace(b'"X"', b'"\\ud800"'),
    "another type": b'"text"',
    "nothing in it": b"[]",
    "null": b"null",
    "a field twice": plain().replace(b'"key":"hostile"', b'"key":"hostile","key":"hostile"'),
    "a field too many": plain(admin=True),
    "a field too few": intent({key: value for key, value in APPEND.items() if key != "actor"}),
    "NaN": plain(expect=1).replace(b'"expect":1', b'"expect":NaN'),
    "a fraction": plain(expect=1).replace(b'"expect":1', b'"expect":1.5'),
    "a huge number": plain(expect=10**30),
    "a negative one": plain(expect=-1),
    "a wrong type": plain(events={"type": "alias.set"}),
    "an unknown event": plain(events=[{"type": "delete.everything"}]),
    "no event": plain(events=[]),
    "a bad key": plain(key="a b"),
    "a huge key": plain(key="k" * 700_000),
    "a bad actor": plain(actor="<eve>\n"),
    "a bad time": plain(at="yesterday"),
    "a bad name": plain(events=[{"type": "alias.set", "alias": "\0" * 5000, "target": "y"}]),
    "too deep": b"[" * 100_000 + b"]" * 100_000,
    "too deep in an event": plain().replace(b'"target":"y"', b'"target":' + b"[" * 50_000 + b"]" * 50_000),
    "too large": plain(
        events=[
            {"type": "overlay.set", "page": "p", "overlay": "o", "media_type": "text/plain", "body": "x" * (1 << 20)}
        ]
    ),
    "too many": intent(*({**APPEND, "key": f"h{number}"} for number in range(129))),
    "spare space": plain().replace(b'":', b'": '),
}


def put(server: EtcdServer, *pairs: tuple[bytes, bytes]) -> None:
    client = EtcdClient([server.endpoint])
    for key, value in pairs:
        client.txn([], [Put(key, value)], timeout=5)
    client.close()


def waiting(server: EtcdServer, party: Party) -> int:
    """Return how many keys there are where intents are, of all spaces and of none."""
    client = EtcdClient([server.endpoint])
    first = party.keys.intents
    count = client.get(Get(first, first[:-1] + b"0", only="count"), timeout=5)[1].count
    client.close()
    return count


def serve(party: Party) -> None:
    party.member.hint_intents()
    party.run()


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_intent_is_refused_by_its_outcome_and_nobody_else_is(
    server: EtcdServer, node: Nodes, what: str
) -> None:
    holder, forwarder = holding(node), node()
    put(server, (holder.keys.intent(SPACE, STRANGER, 7), BROKEN[what]))
    forwarder.submit("f")
    drain([holder, forwarder])
    holder.submit("h")
    serve(holder)
    assert check(server, [holder, forwarder]).keys() == {"first", "f", "h"}
    assert waiting(server, holder) == 0
    raw = read(server, holder.keys.outcome(STRANGER, SPACE, 7))
    assert raw is not None
    assert len(raw) < 200_000
    items = decode_outcome(raw)
    assert items
    assert all(isinstance(item, Refusal) for item in items)


def test_many_broken_intents_together_are_no_transaction_that_etcd_refuses(server: EtcdServer, node: Nodes) -> None:
    holder = holding(node)
    worst = intent(*({**APPEND, "key": "\\" * 1000 + str(n), "actor": "\\" * 1000} for n in range(100)))
    put(server, *((holder.keys.intent(SPACE, STRANGER, number), worst) for number in range(10)))
    put(server, *((holder.keys.intent(SPACE, STRANGER, 100 + n), BROKEN["a huge key"]) for n in range(10)))
    holder.submit("h")
    serve(holder)
    drain([holder])
    assert waiting(server, holder) == 0
    assert check(server, [holder]).keys() == {"first", "h"}


def test_a_key_that_names_no_intent_is_swept(server: EtcdServer, node: Nodes) -> None:
    holder = holding(node)
    space = holder.keys.intents_of(SPACE)
    names = (b"", b"x", STRANGER.encode(), STRANGER.encode() + b"/", STRANGER.encode() + b"/1", b"../s/1", b"\xff/\0")
    put(server, *((space + name, plain()) for name in names))
    put(server, *((holder.keys.intents + name, plain()) for name in (b"UPPER/x", b"\xff", b"a" * 64 + b"/x")))
    serve(holder)
    holder.clock.now += 10
    holder.authority.tick()
    holder.submit("h")
    drain([holder])
    assert waiting(server, holder) == 0
    assert check(server, [holder]).keys() == {"first", "h"}


@pytest.fixture
def junk(server: EtcdServer, node: Nodes) -> int:
    """Put more keys under a name that is no space's than one look shows."""
    count, prefix = 10_100, node.prefix.encode() + b"intents/-/"
    client = EtcdClient([server.endpoint])
    for first in range(0, count, 100):
        client.txn([], [Put(prefix + b"%d" % n, b"x") for n in range(first, first + 100)], timeout=5)
    client.close()
    return count


def test_junk_is_in_nobodys_way_however_much_there_is(server: EtcdServer, node: Nodes, junk: int) -> None:
    client, holder = node(role="client"), node(role="holder")
    client.submit("k")
    client.until("send")
    assert waiting(server, client) == junk + 1
    holder.node.identify()
    holder.node.ensure_session()
    holder.authority.tick()
    drain([holder, client])
    assert check(server, [client]).keys() == {"k"}
    assert waiting(server, holder) == 0


def test_junk_is_swept_round_by_round_so_that_the_session_is_kept(server: EtcdServer, node: Nodes, junk: int) -> None:
    client, holder = node(role="client"), node(role="holder")
    client.submit("k")
    client.until("send")
    holder.node.identify()
    holder.node.ensure_session()

    def slowly() -> None:
        holder.clock.now += 0.1

    holder.edge.always("withdraw", then(before=slowly))
    rounds = 0
    while waiting(server, holder):
        before = holder.clock.now
        holder.authority.tick()
        assert holder.clock.now - before < 1.0
        holder.run()
        rounds += 1
        assert rounds < 100
    assert rounds > 10
    drain([holder, client])
    assert check(server, [client]).keys() == {"k"}


def test_junk_that_may_not_be_swept_is_left_and_the_rest_is_served(
    server: EtcdServer, node: Nodes, junk: int, caplog: pytest.LogCaptureFixture
) -> None:
    client, holder = node(role="client"), node(role="holder")
    client.submit("k")
    client.until("send")
    holder.node.identify()
    holder.node.ensure_session()
    holder.edge.always("withdraw", refused("permission denied"))
    holder.authority.tick()
    drain([holder, client])
    assert check(server, [client]).keys() == {"k"}
    assert waiting(server, holder) == junk
    assert caplog.text.count("cannot be swept") == 1


def test_junk_that_changes_while_it_is_swept_is_swept_the_next_time(server: EtcdServer, node: Nodes) -> None:
    holder = holding(node)
    keys = [holder.keys.intents + b"-/%d" % n for n in range(5)]
    put(server, *((key, b"x") for key in keys))

    def change() -> None:
        put(server, (keys[3], b"y"))
        delete_key(server, keys[1])

    holder.edge.next("withdraw", then(before=change))
    for left in (1, 0):
        holder.clock.now += 10
        holder.authority.tick()
        assert waiting(server, holder) == left
    assert read(server, keys[3]) is None


def test_a_process_that_serves_nobody_sweeps_nothing(server: EtcdServer, node: Nodes) -> None:
    bystander = node()
    bystander.node.identify()
    bystander.node.ensure_session()
    put(server, (bystander.keys.intents + b"-/1", b"x"))
    bystander.authority.tick()
    assert waiting(server, bystander) == 1


def test_an_intent_under_another_sessions_name_takes_nothing_from_it(server: EtcdServer, node: Nodes) -> None:
    holder, forwarder = holding(node), node()
    forwarder.submit("before")
    drain([holder, forwarder])
    put(server, *((holder.keys.intent(SPACE, forwarder.node.id, number), plain()) for number in range(2, 6)))
    forwarder.submit("after")
    drain([holder, forwarder])
    by_key = unbroken(server, holder)
    assert by_key.keys() == {"first", "before", "after", "hostile"}, "an intent that is well formed is one"
    assert told(forwarder.futures["after"]) is not None
    check(server, [holder])


@pytest.mark.parametrize(
    "raw",
    [b"", b"x", b"[" * 100_000, b"[]", b'[{"type":"accepted","key":"f","first":1e400}]', b'[{"type":"refused"}]',
     b'[{"type":"accepted","key":"f","first":' + b"9" * 40 + b',"seq":1,"commit":"x","term":1}]'],
)  # fmt: skip
def test_a_broken_outcome_is_looked_up_in_the_log(server: EtcdServer, node: Nodes, raw: bytes) -> None:
    holder, forwarder = holding(node), node()
    forwarder.submit("f")
    forwarder.until("send")
    put(server, (holder.keys.outcome(forwarder.node.id, SPACE, 1), raw))
    forwarder.member.hint_outcome(1, raw)
    drain([holder, forwarder])
    assert "f" in check(server, [holder, forwarder])


@pytest.mark.parametrize("raw", [b"", b"{}", b"[" * 100_000, b'{"seq":1e99,"commit":"","term":0,"space":""}', b"\xff"])
def test_a_broken_head_calls_for_an_operator_and_nothing_is_appended(
    server: EtcdServer, node: Nodes, raw: bytes
) -> None:
    holder, reader = holding(node), node()
    put(server, (holder.keys.head(SPACE), raw))
    with pytest.raises(cj.OperatorNeeded, match="recover"):
        reader.authority.head(SPACE)
    for party in (reader, holder):
        future = party.submit(f"k{party.node.id}")
        for _ in range(20):
            party.clock.now += party.step() or 0.0
        assert not future.done() or isinstance(future.exception(), cj.OperatorNeeded | cj.Undecided)
    assert read(server, holder.keys.head(SPACE)) == raw


@pytest.mark.parametrize("value", [b"", b"nobody", b"\xff" * 40], ids=repr)
def test_values_that_name_no_session_stop_nothing_but_their_space(
    server: EtcdServer, node: Nodes, value: bytes
) -> None:
    party = node()
    put(
        server, (party.keys.holders + b"other", value), (party.keys.holders + b"\xff", value), (party.keys.nodes, value)
    )
    party.submit("k")
    drain([party])
    party.clock.now += 10
    party.authority.tick()
    check(server, [party])
