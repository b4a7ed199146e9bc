"""What the documents promise of the authority that etcd elects: what calls cost, what is told, what heals by itself."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future

import pytest

import coordjournal as cj
from coordjournal.authority.intake import Intake
from coordjournal.authority.lane import AppendFuture
from coordjournal.authority.settings import Settings
from coordjournal.entry import Receipt
from coordjournal.etcd import Get
from coordjournal.etcd.client import EtcdClient
from coordjournal.log import DecisionLog
from coordjournal.overview import status
from coordjournal.testing.etcd import EtcdServer
from tests.integration.etcd_parts import (
    SPACE,
    Nodes,
    Party,
    drain,
    dropped,
    expire,
    holding,
    node,
    refused,
    server,
    told,
)
from tests.integration.processes import quick_path

__all__ = ["node", "quick_path", "server"]


# What reading costs.


def log_of(party: Party) -> DecisionLog:
    return DecisionLog(lambda: party.store, lambda *_: party.authority, where="here")


def calls_of(party: Party, does: Callable[[], object]) -> list[str]:
    """Return the calls to etcd that something costs, by name."""
    before = len(party.edge.names)
    does()
    return party.edge.names[before:]


def test_a_linearizable_state_costs_one_read_of_etcd_at_the_holder_too(node: Nodes) -> None:
    holder, other = holding(node, "a", "b"), node()
    for party in (holder, other):
        log = log_of(party)
        assert log.state(SPACE).seq == 2  # from here on the replica is warm
        for _ in range(3):
            assert calls_of(party, lambda log=log: log.state(SPACE)) == ["read"]  # type: ignore[misc]
            assert calls_of(party, lambda log=log: log.head(SPACE)) == ["read"]  # type: ignore[misc]
    holder.submit("c")
    holder.run()
    log = log_of(other)
    states: list[int] = []
    assert calls_of(other, lambda: states.append(log.state(SPACE).seq)) == ["read"], "what was appended costs none"
    assert states == [3]


def test_a_state_of_this_log_or_of_this_host_costs_nothing(node: Nodes) -> None:
    for party in (holding(node, "a"), node()):
        log = log_of(party)
        assert log.state(SPACE).seq == 1
        for consistency in ("session", "local"):
            assert calls_of(party, lambda c=consistency: log.state(SPACE, consistency=c)) == []  # type: ignore[misc]  # noqa: B023


# What is told through `logging`.


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[tuple[int, str]]]:
    """Return the lines that were logged since the last call: their levels and words."""
    caplog.set_level(logging.INFO, "coordjournal")

    def new() -> list[tuple[int, str]]:
        found = [(record.levelno, record.getMessage()) for record in caplog.records]
        caplog.clear()
        return found

    return new


def test_who_becomes_and_ceases_to_be_the_holder_says_so_and_why(
    server: EtcdServer, node: Nodes, lines: Callable[[], list[tuple[int, str]]]
) -> None:
    party = holding(node)
    assert (logging.INFO, f"session {party.node.id} is open") in lines()
    party.member.hint_successor("")
    party.run()
    found = lines()
    assert (logging.INFO, f"space {SPACE}: handed over to whoever needs it") in found
    assert (logging.INFO, f"space {SPACE}: no longer held: it is handed over") in found
    party.clock.now += 3
    party.submit("again")
    party.run()
    assert (logging.INFO, f"space {SPACE}: held from entry 1 on, term 2") in lines()
    expire(server, party)
    party.submit("late")
    party.run()
    assert (logging.INFO, f"space {SPACE}: no longer held: another process holds it, or etcd lost what it knew") in (
        lines()
    )
    drain([party])
    party.clock.now += 40
    party.run()
    assert (logging.INFO, f"space {SPACE}: let go, nothing was appended for a while") in lines()


def test_a_session_that_is_lost_is_said_to_be_opened_anew(
    server: EtcdServer, node: Nodes, lines: Callable[[], list[tuple[int, str]]]
) -> None:
    party = holding(node)
    lines()
    expire(server, party)
    party.clock.now += 60
    party.authority.tick()
    found = lines()
    assert [level for level, words in found if "lost its lease" in words and party.node.id in words] == [
        logging.WARNING
    ]
    assert (logging.INFO, f"session {party.node.id} is open") in found


def test_a_refusal_of_etcds_and_its_silence_are_told(node: Nodes, lines: Callable[[], list[tuple[int, str]]]) -> None:
    party = holding(node)
    lines()
    party.edge.next("publish", refused("too large"))
    party.submit("refused")
    party.run()
    assert (logging.WARNING, f"space {SPACE}: nothing can be published: etcd refused: too large") in lines()
    party.edge.next("publish", dropped)
    party.submit("silence")
    party.run()
    assert (logging.INFO, f"space {SPACE}: etcd does not answer: the request is lost") in lines()
    drain([party])


# A right that is not there heals by itself when it is granted.


def tries_again(party: Party) -> None:
    """Let so much time pass that a right that was missing is tried again."""
    party.clock.now += 31
    party.authority._renew_at = party.clock.now + 60  # the lease lives by etcd's own clock


@pytest.mark.parametrize(
    ("call", "right"), [("publish", "outcomes/"), ("campaign", "holders/"), ("intents", "intents/")]
)
def test_a_right_that_is_granted_later_lets_a_process_hold(node: Nodes, call: str, right: str) -> None:
    party = node()
    party.edge.always(call, refused("permission denied"))
    first = party.submit("first")
    party.run()
    assert not party.holds
    if call != "campaign":
        assert isinstance(told(first), cj.OperatorNeeded)
        assert "permission denied" in str(told(first))
    party.submit("second")
    party.run()
    assert not party.holds, "others come first"
    assert "permission denied" in party.member.trouble
    assert right in party.member.trouble
    assert "coordjournal node" in party.member.trouble
    tries = party.edge.names.count(call)
    party.run()
    assert party.edge.names.count(call) == tries, "it is not tried again and again"
    party.edge.always(call, None)
    tries_again(party)
    drain([party])
    assert party.member.tenure is not None
    assert isinstance(told(party.futures["second"]), Receipt)
    assert party.member.trouble == ""


def test_a_process_without_a_right_leaves_the_space_to_one_that_has_it(server: EtcdServer, node: Nodes) -> None:
    barred, other = node(), node()
    barred.edge.always("publish", refused("permission denied"))
    barred.submit("first")
    barred.run()
    other.submit("o")
    other.run()
    assert other.holds
    forwarded = barred.submit("second")
    drain([barred, other])
    assert isinstance(told(forwarded), Receipt)


@pytest.mark.parametrize("keep", [False, True])
def test_a_right_that_a_server_lacks_is_an_error_in_its_log(
    node: Nodes, lines: Callable[[], list[tuple[int, str]]], keep: bool
) -> None:
    party = node(role="auto" if keep else "holder")
    party.member.keep = keep
    party.member.need()
    party.edge.always("campaign", refused("permission denied"))
    for _ in range(3):
        party.run()
        tries_again(party)
    errors = [words for level, words in lines() if level == logging.ERROR]
    assert len(errors) == 3
    assert all("permission denied" in words and "holders/" in words for words in errors)
    party.edge.always("campaign", None)
    party.run()
    assert party.holds, "nobody has asked it again"


# What is taken back leaves nothing, and in time.


def keys_of(server: EtcdServer, party: Party) -> list[bytes]:
    client = EtcdClient([server.endpoint])
    first, end = party.keys.intents, party.keys.intents[:-1] + b"0"
    found = client.get(Get(first, end), timeout=5)[1]
    client.close()
    return [kv.key for kv in found.kvs]


def test_appends_that_nobody_served_leave_no_keys(server: EtcdServer, node: Nodes) -> None:
    holding(node).close()
    client = node(role="client")
    for number in range(20):
        client.submit(f"k{number}")
        client.until("send")
    assert len(keys_of(server, client)) == 20
    for number in range(20):
        client.withdraw(f"k{number}")
        client.run()
    assert keys_of(server, client) == []
    assert {type(told(future)) for future in client.futures.values()} == {cj.Unavailable}


def test_a_put_of_unknown_fate_is_no_intent_that_waits(server: EtcdServer, node: Nodes) -> None:
    holding(node).close()
    client = node(role="client")
    client.edge.next("send", dropped)
    client.submit("k")
    client.until("settle")
    client.withdraw("k")
    client.run()
    assert len(keys_of(server, client)) == 1, "a tombstone, for as long as the session lives"
    (found,), _ = status(node.path, Settings(server.endpoint, prefix=node.prefix))
    assert found.intents == 0
    expire(server, client)
    assert keys_of(server, client) == []


@pytest.mark.parametrize(("timeout", "waits"), [(0.3, 0.225), (1.0, 0.75), (10.0, 9.0)])
def test_an_append_ends_a_quarter_of_a_second_after_its_timeout(
    node: Nodes, monkeypatch: pytest.MonkeyPatch, timeout: float, waits: float
) -> None:
    asked: list[float] = []

    def result(future: AppendFuture, seconds: float | None = None) -> Receipt:
        if seconds is not None and not future.done():
            asked.append(seconds)
        return Future.result(future, 0)

    def try_to_withdraw(intake: Intake, future: AppendFuture, seconds: float) -> bool:
        asked.append(seconds)
        return False

    monkeypatch.setattr(AppendFuture, "result", result)
    monkeypatch.setattr(Intake, "_try_to_withdraw", try_to_withdraw)
    log = log_of(node())
    with pytest.raises(cj.Undecided):
        log.append(SPACE, cj.AliasSet(alias="a", target="page:1"), key="k", timeout=timeout)
    assert asked[0] == pytest.approx(waits)
    assert sum(asked) == pytest.approx(timeout + 0.25)


def test_a_client_that_nobody_serves_is_told_what_to_start(server: EtcdServer, node: Nodes) -> None:
    holding(node).close()
    client = node(role="client", threads=True)
    with pytest.raises(cj.Unavailable, match=r"nobody holds space s.*role is client.*coordjournal node"):
        log_of(client).append(SPACE, cj.AliasSet(alias="a", target="page:1"), key="k", timeout=1.0)
