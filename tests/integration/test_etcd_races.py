"""Each race that was found in the authority that etcd elects, by its name."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import pytest

import coordjournal as cj
from coordjournal.authority.forwarding import Asked, batch
from coordjournal.authority.wire import HeadValue, encode_head
from coordjournal.entry import Receipt
from coordjournal.etcd import Put
from coordjournal.etcd.client import EtcdClient
from coordjournal.testing.etcd import EtcdServer
from tests.integration.etcd_parts import (
    SPACE,
    Late,
    Nodes,
    check,
    delete_key,
    drain,
    dropped,
    expire,
    holding,
    lost,
    node,
    put_key,
    refused,
    server,
    then,
    told,
    unbroken,
)
from tests.integration.processes import quick_path

__all__ = ["node", "quick_path", "server"]


def test_what_is_taken_back_while_an_intent_is_put_together_is_not_in_it(
    server: EtcdServer, node: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, forwarder = holding(node), node()
    forwarder.submit("k1", "k2", "k3")
    forwarder.until("campaign")
    others: list[threading.Thread] = []

    def choose(waiting: Iterable[Asked]) -> list[Asked]:
        chosen = batch(waiting)
        if not others:
            others.append(threading.Thread(target=forwarder.withdraw, args=("k2",)))
            others[0].start()
            others[0].join(0.2)  # as far as it gets before the choice is made
        return chosen

    monkeypatch.setattr("coordjournal.authority.member.batch", choose)
    forwarder.until("send")
    others[0].join()
    drain([holder, forwarder])
    assert {"k1", "k3"} <= check(server, [holder, forwarder]).keys()


def test_a_retry_is_not_unavailable_where_the_first_attempt_was_applied_and_nobody_was_told(
    server: EtcdServer, node: Nodes
) -> None:
    holder, forwarder = holding(node), node()
    forwarder.edge.next("send", lost)
    first = forwarder.ask("k")
    forwarder.until("send")
    drain([holder])
    holder.member.hint_intents()
    holder.run()
    delete_key(server, forwarder.keys.outcome(forwarder.node.id, SPACE, 1))
    assert not forwarder.member.withdraw(first, 0.0)
    forwarder.edge.always("send", dropped)
    forwarder.step(20)
    assert isinstance(told(first), cj.Undecided | Receipt)
    second = forwarder.ask("k")
    assert not forwarder.member.withdraw(second, 0.0), "it is in the log"
    forwarder.edge.always("send", None)
    drain([holder, forwarder])
    assert isinstance(told(second), Receipt)


def test_two_attempts_under_one_key_that_are_taken_back_are_both_answered(node: Nodes) -> None:
    holder, forwarder = holding(node), node()
    forwarder.edge.next("send", lost)
    first = forwarder.ask("k")
    forwarder.until("send")
    second = forwarder.ask("k")
    assert not second.cancel(), "the first one may be applied"
    drain([holder, forwarder])
    assert {told(first), told(second)} >= {first.result(0)}
    assert (second.result(0).commit, second.result(0).duplicate) == (first.result(0).commit, True)


def test_a_publish_that_is_under_way_is_not_taken_for_refused_since_the_next_one_was(
    server: EtcdServer, node: Nodes
) -> None:
    holder = holding(node)
    late = Late()
    holder.edge.next("publish", late, refused("too many requests"))
    holder.submit("k")
    holder.step(6)
    late.land()
    drain([holder])
    assert late.landed
    assert "k" in check(server, [holder])


@pytest.mark.parametrize("first_ever", [False, True])
def test_one_that_was_overtaken_while_it_took_over_does_not_call_for_an_operator(
    server: EtcdServer, node: Nodes, first_ever: bool
) -> None:
    if not first_ever:
        old = holding(node)
        old.member.hint_successor("")
        old.run()
    slow, quick = node(), node()

    def overtake() -> None:
        expire(server, slow)
        quick.submit("q1", "q2")
        quick.run()
        assert quick.holds

    slow.edge.next("campaign", then(after=overtake))
    slow.submit("s1")
    slow.run()
    drain([slow, quick])
    by_key = check(server, [slow, quick])
    assert {"q1", "q2", "s1"} <= by_key.keys()


def test_each_try_of_a_first_append_makes_the_space_anew(server: EtcdServer, node: Nodes) -> None:
    one, other = node(), node()
    one.edge.next("publish", refused("too many requests"))
    refused_ = one.submit("refused")
    one.run()
    assert isinstance(told(refused_), cj.Unavailable)
    one.submit("k")
    one.run()
    expire(server, one)
    other.submit("o")
    drain([one, other])
    assert check(server, [one, other]).keys() == {"k", "o"}


def test_a_session_whose_key_was_deleted_though_its_lease_lives_is_opened_anew(server: EtcdServer, node: Nodes) -> None:
    holder, forwarder = holding(node), node()
    forwarder.submit("before")
    drain([holder, forwarder])
    for party in (forwarder, holder):
        delete_key(server, party.keys.node(party.node.id))
    forwarder.submit("after")
    holder.member.hint_successor("")
    holder.run()
    drain([forwarder, holder])
    assert "after" in check(server, [holder, forwarder])


def test_a_holders_key_of_a_lost_session_of_mine_is_in_nobodys_way(server: EtcdServer, node: Nodes) -> None:
    party = holding(node)
    party.member.hint_successor("")
    party.run()
    put_key(server, party.keys.holder(SPACE), party.node.id.encode())  # a lease that outlived its session's loss
    party.submit("k")
    drain([party])
    assert "k" in check(server, [party])


def test_a_process_that_starts_beside_the_very_first_append_does_not_call_for_an_operator(
    server: EtcdServer, node: Nodes
) -> None:
    slow, quick = node(), node()

    def append() -> None:
        quick.submit("q")
        quick.run()

    slow.edge.next("read", then(after=append))
    slow.submit("s")
    slow.run()
    drain([slow, quick])
    assert check(server, [slow, quick]).keys() == {"q", "s"}


def test_tombstones_hide_no_intent_and_let_no_own_append_pass_it(server: EtcdServer, node: Nodes) -> None:
    holder, forwarder, next_one = holding(node), node(), node()
    forwarder.submit("opens")
    drain([holder, forwarder])
    client = EtcdClient([server.endpoint])
    keys = [forwarder.keys.intent(SPACE, forwarder.node.id, 1000 + number) for number in range(250)]
    for at in range(0, len(keys), 100):
        client.txn([], [Put(key, b"", forwarder.node.session.lease) for key in keys[at : at + 100]], timeout=5)
    expire(server, holder)
    forwarder.edge.always("campaign", dropped)
    forwarder.submit("earlier")
    forwarder.until("send")
    next_one.submit("own")
    next_one.run()
    by_key = unbroken(server, next_one)
    assert by_key["earlier"].seq < by_key["own"].seq
    client.close()


def test_a_client_that_nobody_serves_puts_no_more_than_so_many_intents(node: Nodes) -> None:
    client = node(role="client")
    holding(node).close()
    for number in range(100):
        client.submit(f"k{number}")
        client.step(3)
    assert client.edge.names.count("send") <= 64
    holder = node()
    holder.submit("h")
    drain([holder, client])
    check(node.server, [client, holder])


def test_a_holder_whose_own_reader_is_ahead_of_it_steps_down(server: EtcdServer, node: Nodes) -> None:
    holder, other = holding(node), node()
    delete_key(server, holder.keys.holder(SPACE))
    other.submit("o")
    other.run()
    holder.node.replica(SPACE).at(holder.authority.head(SPACE))
    holder.submit("k")
    drain([holder, other])
    assert {"o", "k"} <= check(server, [holder, other]).keys()


def test_what_may_have_been_appended_is_undecided_when_the_log_is_closed(server: EtcdServer, node: Nodes) -> None:
    holder, forwarder = holding(node), node()
    forwarder.edge.next("send", lost)
    forwarder.submit("k")
    forwarder.until("send")
    holder.member.hint_intents()
    holder.run()
    delete_key(server, forwarder.keys.outcome(forwarder.node.id, SPACE, 1))
    forwarder.edge.always("send", dropped)
    forwarder.step(3)
    forwarder.authority.close(0.0)
    assert isinstance(told(forwarder.futures["k"]), cj.Undecided | Receipt)


def test_a_takeover_that_fails_again_and_again_is_tried_ever_less_often(node: Nodes) -> None:
    holding(node).close()
    party = node()
    party.store.has = lambda space, head: (_ for _ in ()).throw(OSError("a broken disk"))  # type: ignore[method-assign]
    began = party.clock.now
    while party.edge.names.count("campaign") < 20:
        party.ask(f"k{len(party.edge.names)}")
        party.clock.now += party.member.step() or 0.0
    assert party.clock.now - began > 15


def test_a_journal_that_left_etcd_is_not_appended_to(server: EtcdServer, node: Nodes) -> None:
    holder, forwarder = holding(node), node()
    receipt = told(holder.futures["first"])
    assert isinstance(receipt, Receipt)
    identity = holder.store.identity(SPACE, holder.store.head(SPACE))
    left = HeadValue(receipt.seq, receipt.commit, receipt.term, identity, left=True)
    put_key(server, holder.keys.head(SPACE), encode_head(left))
    answers = [party.submit(key) for party, key in ((holder, "h"), (forwarder, "f"))]
    for _ in range(30):
        for party in (holder, forwarder):
            party.clock.now += party.step() or 0.0
            party.authority.tick()
    found = [type(told(answer)) for answer in answers if answer.done()]
    assert found
    assert set(found) <= {cj.WrongAuthority, cj.Undecided, cj.Unavailable}
    assert [appended.key for appended in holder.store.read(SPACE, holder.store.head(SPACE))] == ["first"]


def test_what_is_withdrawn_between_the_objects_and_the_publish_is_not_published(
    server: EtcdServer, node: Nodes
) -> None:
    holder, forwarder = holding(node), node()
    forwarder.submit("k1", "k2")
    forwarder.until("send")

    def withdraw() -> None:
        forwarder.withdraw("k1")
        forwarder.until("withdraw")
        assert forwarder.futures["k1"].done() or forwarder.member.withdraw(forwarder.futures["k1"], 0.0)

    holder.edge.next("publish", then(before=withdraw))
    holder.member.hint_intents()
    holder.submit("own")
    drain([holder, forwarder])
    assert check(server, [holder, forwarder]).keys() == {"first", "k2", "own"}
    assert isinstance(told(forwarder.futures["k1"]), cj.Unavailable)


def test_a_put_that_arrives_after_its_session_ended_is_not_done(server: EtcdServer, node: Nodes) -> None:
    holder, forwarder = holding(node), node()
    forwarder.submit("opens")
    drain([holder, forwarder])
    late = Late()
    forwarder.edge.next("send", late)
    forwarder.submit("k")
    forwarder.until("send")
    forwarder.withdraw("k")
    forwarder.step(3)
    assert isinstance(told(forwarder.futures["k"]), cj.Unavailable)
    expire(server, forwarder)  # and with it what keeps the put from being done
    late.land()
    assert late.landed
    drain([holder, forwarder])
    assert isinstance(told(forwarder.futures["k"]), cj.Unavailable)
    assert check(server, [holder, forwarder]).keys() == {"first", "opens"}


def test_all_intents_that_waited_at_an_election_come_before_the_new_holders_own(
    server: EtcdServer, node: Nodes
) -> None:
    holding(node).close()
    client, holder = node(role="client"), node()
    for number in range(64):  # more than one group takes
        client.submit(f"k{number}")
        client.until("send")
    holder.submit("own")
    drain([holder, client])
    assert list(check(server, [client, holder])) == ["first", *(f"k{number}" for number in range(64)), "own"]


def test_what_is_published_is_acknowledged_though_this_process_stumbles_over_it(
    server: EtcdServer, node: Nodes
) -> None:
    holder = holding(node)
    replica = holder.node.replica(SPACE)
    accept = replica.accept
    stumbled: list[bool] = []

    def stumble(*arguments: Any) -> None:
        if not stumbled:
            stumbled.append(True)
            raise OSError("no file can be opened")
        accept(*arguments)

    replica.accept = stumble  # type: ignore[method-assign, assignment]
    holder.submit("k")
    drain([holder])
    assert stumbled
    assert isinstance(told(holder.futures["k"]), Receipt)
    holder.submit("next")
    drain([holder])
    assert check(server, [holder]).keys() == {"first", "k", "next"}
