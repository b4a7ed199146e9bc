"""The checker: a good history passes, and each violation is found under exactly its rule's name."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from random import Random

import msgspec
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import coordjournal as cj
from coordjournal.authority.wire import HeadValue, encode_head, encode_outcome, outcome_item
from coordjournal.entry import Append, Appended, Head, Receipt
from coordjournal.etcd import KeyValue
from coordjournal.testing.histories import (
    RULES,
    AppendInvoked,
    AppendReturned,
    BranchSeen,
    Event,
    EventFile,
    Examined,
    FinalHead,
    Logged,
    ReadInvoked,
    ReadReturned,
    RecordedLog,
    Recorder,
    Revision,
    Sent,
    check,
    logged,
    outcome_of,
    read_events,
    revisions,
    write_events,
)
from tests.unit.stories import (
    AT,
    SPACE,
    Asked,
    Story,
    Unfit,
    World,
    change,
    decision,
    final_log,
    known_at,
    pick,
    receipt,
    the_call,
)


def broken(events: list[Event]) -> set[str]:
    return {finding.rule for finding in check(events)}


def appended(story: Story, key: str, process: str = "p") -> Asked:
    """Append, from call to return."""
    asked = story.ask(key, process)
    story.publish(asked)
    story.acknowledge(asked)
    return asked


def begun() -> Story:
    """Tell of a holder who has appended once."""
    story = Story()
    story.elect("holder")
    appended(story, "k0")
    return story


# Histories in which nothing is wrong.


def test_a_history_in_which_nothing_is_wrong_passes() -> None:
    story = begun()
    a, b = story.ask("a", "p"), story.ask("b", "q")
    story.publish(b, a)
    story.see_branch(1)
    story.acknowledge(b)
    story.read(process="q", consistency="session", what="state")
    story.acknowledge(a)
    story.see_branch()
    story.read()
    story.read(0, consistency="local")
    story.depose()
    story.elect("next")
    story.heal(10.0)
    appended(story, "c", "q")
    assert check(story.over()) == []


def test_a_call_whose_process_died_may_have_appended_or_not() -> None:
    story = begun()
    landed, lost = story.ask("landed", "dead", "one"), story.ask("lost", "dead", "two")
    story.end("dead")
    story.publish(landed)
    again = story.ask("landed", "p")
    story.acknowledge(again, duplicate=True)
    assert lost.append.key not in {item.key for item in story.log}
    assert check(story.over()) == []


def test_an_unknown_append_may_land_later_but_not_after_what_its_caller_asked_for_next() -> None:
    story = begun()
    first = story.ask("first")
    story.tell(first, cj.Undecided(""))
    second = story.ask("second")
    story.publish(first, second)
    story.acknowledge(second)
    assert check(story.over()) == []


def test_a_failed_append_that_is_asked_for_again_is_in_the_log_once() -> None:
    story = begun()
    story.tell(story.ask("k"), cj.Unavailable(""))
    appended(story, "k")
    assert check(story.over()) == []


def test_whoever_has_its_receipt_may_fail_to_get_another() -> None:
    story = begun()
    story.tell(story.ask("k0"), cj.Unavailable(""))
    assert check(story.over()) == []


def test_another_process_may_have_appended_what_this_one_says_it_did_not() -> None:
    story = begun()
    elsewhere = story.ask("k", "q")
    story.tell(story.ask("k", "p"), cj.Unavailable(""))
    story.publish(elsewhere)
    story.tell(elsewhere, cj.Undecided(""))
    assert check(story.over()) == []


def test_refusals_that_are_right_pass() -> None:
    story = begun()
    conflicting = story.ask("a", expect=7)
    removal = story.ask("b", "q", events=[cj.AliasRemoved("nobody")])
    reused = story.ask("k0", "r", events=[cj.AliasSet("k0", "other")])
    ill_formed = story.ask("c", "s", events=[cj.PagesBound("x", "x")])
    fitting = story.ask("d", "t")
    late = story.ask("e", "u", expect=2)
    story.tell(conflicting, cj.Conflict("", 1))
    story.publish(fitting)
    story.tell(removal, cj.NothingToRetract(""))
    story.tell(reused, cj.KeyReused(""))
    story.tell(ill_formed, cj.InvalidEvent(""))
    story.acknowledge(fitting)
    story.publish(late)
    story.acknowledge(late)
    assert check(story.over()) == []


def test_a_recovery_may_put_a_head_that_follows_nothing() -> None:
    story = begun()
    older = list(story.log)
    unknown = story.ask("k1")
    story.publish(unknown)
    story.tell(unknown, cj.Undecided(""))
    story.log = []
    story.harm("operator")
    story.put(f"holders/{SPACE}", None)
    story.publish_all(older, mark="abcd")
    story.elect("next")
    appended(story, "k2")
    assert check(story.over()) == []


def test_after_etcd_was_set_back_the_log_goes_on_from_a_recovered_head() -> None:
    story = begun()
    backup = [event for event in story.events if isinstance(event, Revision)]
    appended(story, "k1")
    story.set_back(backup)
    story.read(1, process="new")
    story.harm("operator")
    story.put(f"holders/{SPACE}", None)
    story.publish_all([story.log.pop()], mark="abcd")
    story.elect("next")
    appended(story, "k2")
    assert check(story.over()) == []


def test_an_etcd_that_was_set_back_is_not_followed_without_recovery() -> None:
    story = begun()
    backup = [event for event in story.events if isinstance(event, Revision)]
    unknown = story.ask("k1")
    story.publish(unknown)
    story.see_branch()
    story.end("p")
    story.set_back(backup)
    story.log.pop()
    story.put(f"holders/{SPACE}", None)
    story.elect("next")
    appended(story, "k2", "q")
    assert broken(story.over()) == {"chain", "branch"}


def test_what_an_etcd_that_was_set_back_had_and_nobody_saw_is_gone() -> None:
    story = begun()
    backup = [event for event in story.events if isinstance(event, Revision)]
    unknown = story.ask("k1")
    story.publish(unknown)
    story.see_branch(1)
    story.end("p")
    story.set_back(backup)
    story.log.pop()
    story.put(f"holders/{SPACE}", None)
    story.elect("next")
    appended(story, "k2", "q")
    assert check(story.over()) == []


def test_what_was_damaged_on_purpose_may_be_said_to_be_damaged() -> None:
    story = begun()
    story.harm("damage")
    story.tell(story.ask("k"), cj.MissingObjects(""))
    assert check(story.over()) == []


def test_forwarded_appends_have_one_outcome_each() -> None:
    story = begun()
    asked, again = story.ask("forwarded", "q"), story.ask("k0", "q")
    refused = story.ask("refused", "q", expect=7)
    story.forward(asked, again, refused)
    story.publish(asked)
    refusal = outcome_item("refused", cj.Conflict("", 2))
    story.decide(asked, items=[story.accepted(asked), story.accepted(again, duplicate=True), refusal])
    story.acknowledge(asked)
    story.acknowledge(again, duplicate=True)
    story.tell(refused, cj.Conflict("", 2))
    story.put("outcomes/q/s/000000000001", None)
    story.put("intents/s/q/000000000003", "no intent")
    story.put("intents/s/q/000000000003", None)
    story.put(
        "outcomes/q/s/000000000003", encode_outcome([outcome_item("", cj.InvalidEvent(""))]).decode(), alone=False
    )
    withdrawn = story.ask("withdrawn", "q")
    story.forward(withdrawn, number=2)
    story.put("intents/s/q/000000000002", "")
    story.tell(withdrawn, cj.Unavailable(""))
    story.put("intents/s/q/000000000002", None)
    assert check(story.over()) == []


def test_a_holder_that_finds_its_key_again_may_keep_its_term_or_begin_another() -> None:
    story = begun()
    appended(story, "k1")
    story.term += 1
    appended(story, "k2")
    assert check(story.over()) == []


def test_a_publish_that_lands_again_in_an_etcd_that_was_set_back_is_the_same_append() -> None:
    story = begun()
    backup = [event for event in story.events if isinstance(event, Revision)]
    appended(story, "k1")
    appended(story, "k2")
    story.set_back(backup)
    late = story.log[1:]
    del story.log[1:]
    for item in late:
        story.publish_all([item])
    appended(story, "k3", "q")
    assert check(story.over()) == []


def test_a_read_of_an_etcd_that_was_set_back_need_not_be_newer() -> None:
    story = begun()
    backup = [event for event in story.events if isinstance(event, Revision)]
    appended(story, "k1")
    op = story.by("r").read_invoked("r", SPACE, "head")
    story.set_back(backup)
    story.by("r").read_returned(op, Head(1, story.log[0].commit, 1))
    story.read(1, process="new")
    story.publish_all([story.log.pop()])
    assert check(story.over()) == []


def test_calls_beside_each_other_may_all_be_told_that_it_was_appended_meanwhile() -> None:
    story = begun()
    one, two = story.ask("k", "p"), story.ask("k", "q")
    story.publish(one)
    story.acknowledge(one)
    story.acknowledge(two)
    assert check(story.over()) == []


def test_a_call_beside_one_that_failed_may_append() -> None:
    """A schedule found it: the one was decided, and not told yet, when the other began."""
    story = begun()
    failing = story.ask("k")
    beside = story.ask("k", caller="p/2")
    story.tell(failing, cj.Unavailable(""))
    story.publish(beside)
    story.acknowledge(beside)
    assert check(story.over()) == []


def test_what_failed_while_etcd_was_set_back_may_have_been_published() -> None:
    story = begun()
    backup = [event for event in story.events if isinstance(event, Revision)]
    asked = story.ask("k1")
    story.publish(asked)
    story.set_back(backup)
    story.tell(asked, cj.Unavailable(""))
    story.harm("operator")
    story.publish_all([story.log.pop()], mark="abcd")
    assert check(story.over()) == []


def test_what_was_appended_without_etcd_is_published_when_the_journal_comes_back() -> None:
    story = begun()
    story.exact = True
    story.harm("operator", phase="begin")
    story.put(f"holders/{SPACE}", None)
    left = HeadValue(1, story.head.commit, 1, "0" * 32, "abcd", left=True)
    story.put(f"heads/{SPACE}", encode_head(left).decode())
    embedded = []
    for key in "ab":
        asked = story.ask(key, "e")
        embedded += story.write(asked.append)
        story.log.append(embedded[-1])
        story.events.append(BranchSeen(story.tick(), SPACE, story.head.commit))
        story.acknowledge(asked)
        story.read(process="e")
    del story.log[1:]
    story.publish_all(embedded, mark="bcde")
    story.harm("operator", phase="end")
    story.elect("next")
    appended(story, "k2")
    assert check(story.over()) == []


@pytest.mark.parametrize("kind", ["branch", "power"])
def test_whoever_cannot_move_the_branch_acknowledges_nevertheless(kind: str) -> None:
    story = begun()
    story.exact = True
    appended(story, "k1")
    story.see_branch()
    asked = story.ask("k2")
    story.publish(asked)
    story.harm(kind, "p" if kind == "branch" else "host")
    story.acknowledge(asked)
    story.see_branch(2)
    story.see_branch()
    assert check(story.over()) == []


def test_a_lost_power_undoes_what_the_branch_was_not_synced_at() -> None:
    story = begun()
    appended(story, "k1")
    story.see_branch()
    story.harm("power", "host")
    story.see_branch(0)
    assert check(story.over()) == []


def test_a_forwarder_moves_the_branch_to_its_own_append_within_a_group() -> None:
    story = begun()
    one, two = story.ask("one", "q"), story.ask("two")
    story.forward(one)
    story.publish(one, two)
    story.decide(one)
    story.see_branch(2)
    story.acknowledge(one)
    story.acknowledge(two)
    story.see_branch()
    assert check(story.over()) == []


def test_whoever_finds_its_key_in_the_log_moves_the_branch_there_though_nobody_waits_for_it() -> None:
    story = begun()
    one, two = story.ask("one"), story.ask("two")
    again = story.ask("one", "q")
    story.publish(one, two)
    story.tell(again, cj.Undecided(""))
    story.see_branch(2)
    story.acknowledge(one)
    story.acknowledge(two)
    assert check(story.over()) == []


def test_a_refusal_that_etcd_has_forgotten_is_another_one_after_what_its_caller_asked_for_next() -> None:
    """A schedule found it: the first one did not fit, and fitted when it was judged again."""
    story = begun()
    first, second = story.ask("first"), story.ask("second")
    story.publish(second)
    story.set_back([event for event in story.events if isinstance(event, Revision)])
    story.acknowledge(second)
    story.publish(first)
    story.acknowledge(first)
    assert check(story.over()) == []


@pytest.mark.parametrize("shown", [False, True])
def test_what_etcd_forgot_may_have_been_read_unless_the_branch_showed_it(shown: bool) -> None:
    """A schedule found it: published, read, and gone with a wiped etcd before the branch was moved."""
    story = begun()
    backup = [event for event in story.events if isinstance(event, Revision)]
    second = story.ask("second")
    story.publish(second)
    if shown:
        story.see_branch()
    story.read()
    story.read(what="state")
    story.set_back(backup)
    del story.log[-1:]
    story.tell(second, cj.Undecided("etcd forgot it"))
    third = story.ask("third")
    story.publish(third)
    story.acknowledge(third)
    found = check(story.over())
    rules = {finding.rule for finding in found}
    assert ("reads" in rules) if shown else rules == set(), found


def test_an_operator_sweeps_intents_and_a_full_etcd_lets_its_session_take_one_back() -> None:
    story = begun()
    story.harm("operator", phase="begin")
    swept, back = story.ask("swept", "q"), story.ask("back", "q")
    story.forward(swept)
    story.put("intents/s/q/000000000001", None)
    story.harm("operator", phase="end")
    story.harm("no space", phase="begin")
    story.forward(back, number=2)
    story.harm("no space", phase="end")
    story.put("intents/s/q/000000000002", None)
    story.end("q")
    assert check(story.over()) == []


def test_a_process_that_ends_or_is_harmed_again_need_not_recover() -> None:
    story = begun()
    story.heal(30.0)
    story.ask("ends", "q")
    story.end("q")
    appended(story, "k1")
    story.heal(30.0)
    asked = story.ask("harmed")
    appended(story, "k2", "r")
    story.harm("revoke a lease")
    story.tell(asked, cj.Undecided(""))
    assert check(story.over()) == []


# Histories in which one thing is wrong.


def lost(story: Story) -> None:
    asked = story.ask("k")
    story.tell(asked, Receipt(SPACE, 2, 2, "f" * 40, 1, "k"))


def somewhere_else(story: Story) -> None:
    asked = story.ask("k")
    story.publish(asked)
    story.tell(asked, msgspec.structs.replace(receipt(story.log[-1]), commit="f" * 40))


def at_another_seq(story: Story) -> None:
    asked = story.ask("k")
    story.publish(asked)
    story.tell(asked, msgspec.structs.replace(receipt(story.log[-1]), first=1, seq=1))


def with_the_receipt_of_another_space(story: Story) -> None:
    asked = story.ask("k")
    story.publish(asked)
    story.tell(asked, msgspec.structs.replace(receipt(story.log[-1]), space="t"))


def before_it_was_published(story: Story) -> None:
    asked = story.ask("k")
    written = story.write(asked.append)
    story.tell(asked, receipt(written[-1]))
    story.publish_all(written)


def duplicated(story: Story) -> None:
    asked = story.ask("k")
    story.publish(asked)
    story.acknowledge(asked)
    story.publish(asked)


def resurrected(story: Story) -> None:
    asked = story.ask("k")
    story.tell(asked, cj.Unavailable(""))
    story.publish(asked)


def refused_and_appended(story: Story) -> None:
    asked = story.ask("k", expect=0)
    story.tell(asked, cj.Conflict("", 1))
    story.publish(asked)


def resurrected_before_it_was_asked_for_again(story: Story) -> None:
    asked = story.ask("k")
    story.tell(asked, cj.Unavailable(""))
    story.publish(asked)
    again = story.ask("k")
    story.acknowledge(again)


def denied_after_it_was_unknown(story: Story) -> None:
    first = story.ask("k")
    story.tell(first, cj.Undecided(""))
    story.publish(first)
    story.tell(story.ask("k"), cj.Unavailable(""))


def duplicate_of_nothing(story: Story) -> None:
    asked = story.ask("k")
    story.publish(asked)
    story.acknowledge(asked, duplicate=True)


def both_appended_it(story: Story) -> None:
    one = story.ask("k", "p")
    story.publish(one)
    story.acknowledge(one)
    story.acknowledge(story.ask("k", "q"))


def acknowledged_for_other_events(story: Story) -> None:
    one, other = story.ask("k", "p"), story.ask("k", "q", events=[decision("other")])
    story.publish(one)
    story.tell(one, cj.Undecided(""))
    story.acknowledge(other)


def duplicate_of_other_events(story: Story) -> None:
    story.acknowledge(story.ask("k0", "q", events=[decision("other")]), duplicate=True)


def at_a_time_that_nobody_named(story: Story) -> None:
    asked = story.ask("k")
    story.publish(asked._replace(append=msgspec.structs.replace(asked.append, at="1999-01-01T00:00:00.000000Z")))
    story.acknowledge(asked)


def outcome_says_another_place(story: Story) -> None:
    asked = story.ask("k", "q")
    story.forward(asked)
    story.publish(asked)
    story.decide(asked, items=[msgspec.structs.replace(story.accepted(asked), first=9, seq=9)])
    story.acknowledge(asked)


def outcome_says_what_was_not_published(story: Story) -> None:
    asked = story.ask("k", "q")
    story.forward(asked)
    story.publish(asked)
    story.decide(asked, items=[msgspec.structs.replace(story.accepted(asked), commit="f" * 40)])
    story.acknowledge(asked)


def outcome_comes_before_it_is_published(story: Story) -> None:
    asked = story.ask("k", "q")
    story.forward(asked)
    written = story.write(asked.append)
    story.log += written
    story.revision += 1
    story.decide(asked)
    story.log.pop()
    story.publish_all(written)
    story.acknowledge(asked)


def outcome_refuses_what_stands_there(story: Story) -> None:
    asked = story.ask("k0", "q")
    story.forward(asked)
    story.revision += 1
    story.decide(asked, items=[outcome_item("k0", cj.KeyReused(""))])
    story.acknowledge(asked, duplicate=True)


def outcome_answers_other_appends(story: Story) -> None:
    one, two = story.ask("one", "q"), story.ask("two", "q")
    story.forward(one, two)
    story.publish(one, two)
    story.decide(one, items=[story.accepted(two), story.accepted(one)])
    story.acknowledge(one)
    story.acknowledge(two)


def outcome_is_none(story: Story) -> None:
    asked = story.ask("k", "q")
    story.forward(asked)
    story.publish(asked)
    story.decide(asked, raw="[...]")
    story.acknowledge(asked)


def outcome_of_what_is_no_intent(story: Story) -> None:
    asked = story.ask("k", "q")
    story.put("intents/s/q/000000000001", "no intent")
    story.publish(asked)
    story.decide(asked)
    story.acknowledge(asked)


def outcome_hides_that_it_is_a_duplicate(story: Story) -> None:
    asked = story.ask("k0", "q")
    story.forward(asked)
    story.revision += 1
    story.decide(asked)
    story.acknowledge(asked, duplicate=True)


def nobody_asked_for_it(story: Story) -> None:
    story.publish_all(story.write(msgspec.structs.replace(story.log[0].append, key="k")))


def another_append_than_was_asked_for(story: Story) -> None:
    asked = story.ask("k")
    story.publish(asked._replace(append=msgspec.structs.replace(asked.append, actor="mallory@example.org")))


def swapped(story: Story) -> None:
    a = story.ask("a")
    story.publish_all(story.write(msgspec.structs.replace(a.append, key="b", events=(decision("b"),)), a.append))
    story.acknowledge(a)
    story.acknowledge(story.ask("b", "q"))


def swapped_though_one_was_asked_for_twice(story: Story) -> None:
    one = story.ask("k", "q")
    story.publish_all(story.write(msgspec.structs.replace(one.append, key="b", events=(decision("b"),)), one.append))
    story.acknowledge(one)
    story.acknowledge(story.ask("k", "q"), duplicate=True)
    story.acknowledge(story.ask("b", "p"))


def overtaken_by_its_callers_next(story: Story) -> None:
    first = story.ask("first")
    second = story.ask("second")
    story.publish(second, first)
    story.acknowledge(second)
    story.acknowledge(first)


def refused_for_no_reason(story: Story) -> None:
    story.tell(story.ask("k"), cj.NothingToRetract(""))


def refused_by_a_head_that_was_over(story: Story) -> None:
    appended(story, "k1")
    story.tell(story.ask("k", expect=2), cj.Conflict("", 1))


def refused_by_the_wrong_name(story: Story) -> None:
    story.tell(story.ask("k", events=[cj.AliasRemoved("nobody")]), cj.AliasCycle(""))


def refused_though_it_stands_there(story: Story) -> None:
    story.tell(story.ask("k0", expect=7), cj.Conflict("", 1))


def refused_by_an_outcome_for_no_reason(story: Story) -> None:
    asked = story.ask("k", "q")
    story.forward(asked)
    story.revision += 1
    story.decide(asked, items=[outcome_item("k", cj.AliasCycle(""))])
    story.tell(asked, cj.Undecided(""))


def expectation_not_met(story: Story) -> None:
    asked = story.ask("k", expect=7)
    story.publish(asked)
    story.acknowledge(asked)


def accepted_though_it_does_not_fit(story: Story) -> None:
    asked = story.ask("k", events=[cj.AliasRemoved("nobody")])
    story.publish(asked)
    story.acknowledge(asked)


def stale(story: Story) -> None:
    appended(story, "k1")
    story.read(1)


def stale_before_etcd_was_set_back(story: Story) -> None:
    backup = [event for event in story.events if isinstance(event, Revision)]
    appended(story, "k1")
    story.read(1)
    story.set_back(backup)
    story.publish_all([story.log.pop()])


def stale_since_etcd_was_set_back(story: Story) -> None:
    story.set_back([event for event in story.events if isinstance(event, Revision)])
    appended(story, "k1")
    story.read(1)


def not_published_yet(story: Story) -> None:
    asked = story.ask("k")
    written = story.write(asked.append)
    op = story.by("r").read_invoked("r", SPACE, "head")
    story.by("r").read_returned(op, Head(written[-1].seq, written[-1].commit, written[-1].term))
    story.publish_all(written)
    story.acknowledge(asked)


def not_published_yet_where_times_are_exact(story: Story) -> None:
    story.exact = True
    asked = story.ask("k")
    written = story.write(asked.append)
    story.events.append(Sent(story.tick(), "p", "holder", SPACE, written[-1].commit))
    op = story.by("r").read_invoked("r", SPACE, "head")
    story.by("r").read_returned(op, Head(written[-1].seq, written[-1].commit, written[-1].term))
    story.publish_all(written)
    story.acknowledge(asked)


def older_than_its_own(story: Story) -> None:
    appended(story, "k1")
    story.read(1, process="p", consistency="session")


def older_than_what_it_read(story: Story) -> None:
    story.read(1, process="r", consistency="local")
    story.read(0, process="r", consistency="session")


def of_no_prefix(story: Story) -> None:
    op = story.by("r").read_invoked("r", SPACE, "head", "local")
    story.by("r").read_returned(op, Head(1, "f" * 40, 1))


def from_within_a_batch(story: Story) -> None:
    batch = story.ask("batch", events=[decision("x"), decision("y")])
    story.publish(batch)
    op = story.by("r").read_invoked("r", SPACE, "state", "local")
    story.events.append(ReadReturned(story.tick(), op, 2))


def forked(story: Story) -> None:
    unknown = story.ask("k1", "q")
    story.publish(unknown)
    story.tell(unknown, cj.Undecided(""))
    story.log.pop()
    asked = story.ask("k2")
    story.publish(asked)
    story.acknowledge(asked)


def marked_by_no_operator(story: Story) -> None:
    story.harm("operator", phase="begin")
    story.harm("operator", phase="end")
    appended(story, "k1")
    story.exact = True
    unknown = story.ask("k2", "q")
    story.publish(unknown)
    story.tell(unknown, cj.Undecided(""))
    story.log.pop()
    story.publish(story.ask("k3"), mark="abcd")


def deleted_after_an_operator_was_there(story: Story) -> None:
    story.harm("operator")
    appended(story, "k1")
    story.put(f"heads/{SPACE}", None)


def published_twice(story: Story) -> None:
    appended(story, "k1")
    story.publish_all([story.log.pop()])


def gap(story: Story) -> None:
    asked = story.ask("k")
    story.publish_all(story.write(asked.append, base=Head(2, story.head.commit, 1)))
    story.acknowledge(asked)


def not_there(story: Story) -> None:
    story.events.append(Sent(story.tick(), "p", "holder", SPACE, "f" * 40))
    story.put(f"heads/{SPACE}", f'{{"seq":2,"commit":"{"f" * 40}","term":1,"space":"x"}}')
    story.publish(story.ask("k"))


def says_another_seq(story: Story) -> None:
    story.publish(story.ask("k"))
    put = next(event for event in reversed(story.events) if isinstance(event, Revision))
    assert put.value is not None
    change(story.events, put, msgspec.structs.replace(put, value=put.value.replace('"seq":2', '"seq":3')))


def head_that_is_none(story: Story) -> None:
    story.put(f"heads/{SPACE}", "{}")


def head_deleted(story: Story) -> None:
    story.put(f"heads/{SPACE}", None)


def other_end(story: Story) -> None:
    asked = story.ask("k")
    story.publish(asked)
    story.log.pop()


def while_nobody_held_it(story: Story) -> None:
    asked = story.ask("k")
    story.depose()
    story.publish(asked, sender="late")
    story.acknowledge(asked)


def by_another(story: Story) -> None:
    asked = story.ask("k")
    story.publish(asked, sender="usurper")
    story.acknowledge(asked)


def by_nobody(story: Story) -> None:
    appended(story, "k1")
    story.events.remove(next(event for event in reversed(story.events) if isinstance(event, Sent)))


def in_an_older_term(story: Story) -> None:
    story.depose()
    story.elect("next")
    asked = story.ask("k")
    story.publish_all(story.write(asked.append, term=1))


def in_the_term_of_its_key_before(story: Story) -> None:
    story.depose()
    story.elect("holder")
    asked = story.ask("k")
    story.publish_all(story.write(asked.append, term=1))


def in_a_term_too_far(story: Story) -> None:
    story.term += 2
    story.publish(story.ask("k"))


def with_a_mark_and_no_operator(story: Story) -> None:
    story.depose()
    asked = story.ask("k")
    story.publish(asked, sender="late", mark="abcd")
    story.acknowledge(asked)


def with_a_strangers_append(story: Story) -> None:
    strange, asked = story.ask("a"), story.ask("b")
    (item,) = story.write(strange.append)
    story.depose()
    story.elect("next")
    story.publish_all([item, *story.write(asked.append, base=Head(item.seq, item.commit, item.term))])


def term_falls(story: Story) -> None:
    story.depose()
    story.elect("next")
    appended(story, "k1")
    story.harm("operator")
    story.term = 1
    story.publish(story.ask("k2"), mark="abcd")


def holder_overwritten(story: Story) -> None:
    created = next(e.created for e in story.events if isinstance(e, Revision) and e.key.startswith("holders/"))
    story.put(f"holders/{SPACE}", "usurper", created)


def branch_elsewhere(story: Story) -> None:
    story.events.append(BranchSeen(story.tick(), SPACE, "f" * 40))


def branch_ahead(story: Story) -> None:
    asked = story.ask("k")
    story.publish(asked)
    story.see_branch(published=1)


def branch_ahead_of_the_publish(story: Story) -> None:
    asked = story.ask("k")
    written = story.write(asked.append)
    story.events.append(BranchSeen(story.tick(), SPACE, written[-1].commit))
    story.publish_all(written)
    story.acknowledge(asked)


def branch_within_a_group(story: Story) -> None:
    one, two = story.ask("one", "q"), story.ask("two")
    story.publish(one, two)
    story.see_branch(2)
    story.acknowledge(one)
    story.acknowledge(two)


def branch_behind_a_receipt(story: Story) -> None:
    story.exact = True
    appended(story, "k1")
    story.see_branch(1)


def branch_behind_a_receipt_where_times_are_not_exact(story: Story) -> None:
    appended(story, "k1")
    for _ in range(6):
        story.see_branch(1)


def branch_behind_though_only_another_could_not_move_it(story: Story) -> None:
    story.exact = True
    story.harm("branch", "p")
    story.tick()
    asked = story.ask("k1")
    story.publish(asked)
    story.harm("branch", "q")
    story.acknowledge(asked)
    story.see_branch(1)


def branch_went_back(story: Story) -> None:
    appended(story, "k1")
    story.see_branch()
    story.see_branch(1)


def branch_gone(story: Story) -> None:
    story.see_branch()
    story.see_branch(0)


def never_answered(story: Story) -> None:
    story.ask("k")


def answered_with_nonsense(story: Story) -> None:
    story.tell(story.ask("k"), AssertionError())


def intent_left(story: Story) -> None:
    story.put("intents/s/q/000000000001", "[...]")


def intent_without_outcome(story: Story) -> None:
    story.put("intents/s/q/000000000001", "[...]")
    story.put("intents/s/q/000000000001", None)


def intent_gone_after_an_operator_was_there(story: Story) -> None:
    story.harm("operator")
    intent_without_outcome(story)


def intent_gone_after_etcd_was_full(story: Story) -> None:
    story.harm("no space", phase="begin")
    story.harm("no space", phase="end")
    intent_without_outcome(story)


def intent_gone_with_another_in_a_full_etcd(story: Story) -> None:
    story.harm("no space")
    story.put("intents/s/q/000000000001", "[...]")
    story.put("intents/s/q/000000000002", "[...]")
    story.harm("no space")
    story.put("intents/s/q/000000000001", None)
    story.put("intents/s/q/000000000002", None, alone=False)


def outcome_of_nothing(story: Story) -> None:
    story.put("outcomes/q/s/000000000001", "[...]")


def two_outcomes(story: Story) -> None:
    asked = story.ask("k0", "q")
    for _ in range(2):
        story.forward(asked)
        story.revision += 1
        story.decide(asked, items=[story.accepted(asked, duplicate=True)])
    story.acknowledge(asked, duplicate=True)


def other_state(story: Story) -> None:
    op = story.by("r").read_invoked("r", SPACE, "state")
    story.events.append(ReadReturned(story.tick(), op, 1, "", "0" * 32))


def other_entries(story: Story) -> None:
    op = story.by("r").read_invoked("r", SPACE, "events")
    story.events.append(ReadReturned(story.tick(), op, 1, story.head.commit, "0" * 32))


def found_by_fsck(story: Story) -> None:
    story.events.append(Examined(story.tick(), "git fsck --full", "missing blob"))


def said_to_be_damaged(story: Story) -> None:
    story.tell(story.ask("k"), cj.Corrupt(""))


def said_to_be_damaged_before_it_was(story: Story) -> None:
    said_to_be_damaged(story)
    story.harm("damage")


def said_to_be_damaged_to_another(story: Story) -> None:
    story.harm("damage", "q")
    said_to_be_damaged(story)


def said_to_be_damaged_when_that_was_over(story: Story) -> None:
    story.harm("damage", phase="begin")
    story.harm("damage", phase="end")
    said_to_be_damaged(story)


def too_late(story: Story) -> None:
    story.heal(1.0)
    appended(story, "k1")


def one_process_is_stuck(story: Story) -> None:
    story.heal(9.0)
    story.tell(story.ask("a", "q"), cj.Unavailable(""))
    appended(story, "k1")
    story.tell(story.ask("b", "q"), cj.Unavailable(""))


def asked_before_it_was_healed(story: Story) -> None:
    asked = story.ask("k")
    story.heal(30.0)
    story.publish(asked)
    story.acknowledge(asked)


WRONG: dict[str, list[Callable[[Story], object]]] = {
    "durability": [
        lost,
        somewhere_else,
        at_another_seq,
        with_the_receipt_of_another_space,
        before_it_was_published,
    ],
    "exactly once": [
        duplicated,
        resurrected,
        refused_and_appended,
        resurrected_before_it_was_asked_for_again,
        denied_after_it_was_unknown,
        duplicate_of_nothing,
        both_appended_it,
        acknowledged_for_other_events,
        duplicate_of_other_events,
        at_a_time_that_nobody_named,
        outcome_says_another_place,
        outcome_says_what_was_not_published,
        outcome_comes_before_it_is_published,
        outcome_answers_other_appends,
        outcome_is_none,
        outcome_of_what_is_no_intent,
        outcome_hides_that_it_is_a_duplicate,
        nobody_asked_for_it,
        another_append_than_was_asked_for,
    ],
    "real time": [swapped, swapped_though_one_was_asked_for_twice, overtaken_by_its_callers_next],
    "refusals": [
        refused_for_no_reason,
        refused_by_a_head_that_was_over,
        refused_by_the_wrong_name,
        refused_though_it_stands_there,
        refused_by_an_outcome_for_no_reason,
        outcome_refuses_what_stands_there,
        expectation_not_met,
        accepted_though_it_does_not_fit,
    ],
    "reads": [
        stale,
        stale_before_etcd_was_set_back,
        stale_since_etcd_was_set_back,
        not_published_yet,
        not_published_yet_where_times_are_exact,
        older_than_its_own,
        older_than_what_it_read,
        of_no_prefix,
        from_within_a_batch,
    ],
    "chain": [
        forked,
        deleted_after_an_operator_was_there,
        published_twice,
        gap,
        not_there,
        says_another_seq,
        head_that_is_none,
        head_deleted,
        other_end,
    ],
    "fencing": [
        while_nobody_held_it,
        by_another,
        by_nobody,
        in_an_older_term,
        in_the_term_of_its_key_before,
        in_a_term_too_far,
        with_a_mark_and_no_operator,
        with_a_strangers_append,
        term_falls,
        holder_overwritten,
    ],
    "branch": [
        branch_elsewhere,
        branch_ahead,
        branch_ahead_of_the_publish,
        branch_within_a_group,
        branch_behind_a_receipt,
        branch_behind_a_receipt_where_times_are_not_exact,
        branch_behind_though_only_another_could_not_move_it,
        branch_went_back,
        branch_gone,
    ],
    "drain": [
        never_answered,
        answered_with_nonsense,
        intent_left,
        intent_without_outcome,
        intent_gone_after_an_operator_was_there,
        intent_gone_after_etcd_was_full,
        intent_gone_with_another_in_a_full_etcd,
        outcome_of_nothing,
        two_outcomes,
    ],
    "storage": [
        other_state,
        other_entries,
        found_by_fsck,
        said_to_be_damaged,
        said_to_be_damaged_before_it_was,
        said_to_be_damaged_to_another,
        said_to_be_damaged_when_that_was_over,
    ],
    "liveness": [too_late, one_process_is_stuck, asked_before_it_was_healed],
}
SINGLE = {never_answered, intent_left}  # the rest ends with every call answered


@pytest.mark.parametrize(
    ("rule", "wrong"), [pytest.param(rule, wrong, id=wrong.__name__) for rule, each in WRONG.items() for wrong in each]
)
def test_what_is_wrong_is_found_under_exactly_its_rules_name(rule: str, wrong: Callable[[Story], object]) -> None:
    story = begun()
    wrong(story)
    if wrong not in SINGLE:
        story.end("p")
        story.end("q")
    findings = check(story.over())
    assert {finding.rule for finding in findings} == {rule}, findings
    assert all(finding.words and str(finding).startswith(f"{rule}: ") for finding in findings)


def test_a_fork_is_one_though_its_head_bears_a_mark_if_no_operator_put_it() -> None:
    story = begun()
    marked_by_no_operator(story)
    story.end("p")
    assert broken(story.over()) == {"chain"}


def test_a_history_that_nobody_examined_proves_nothing_of_what_is_stored() -> None:
    events: list[Event] = [event for event in begun().over() if not isinstance(event, Examined)]
    assert broken(events) == {"storage"}


def test_every_rule_has_a_history_that_breaks_it() -> None:
    assert set(WRONG) == set(RULES)


def test_a_log_that_cannot_be_walked_is_broken_and_has_lost_what_is_beyond() -> None:
    story = begun()
    unknown = story.ask("k1")
    story.publish(unknown)
    story.tell(unknown, cj.Undecided(""))
    story.events.remove(story.log[-1])
    assert broken(story.over()) == {"chain", "durability"}


def test_only_the_rules_that_are_asked_for_are_checked() -> None:
    story = begun()
    stale(story)
    assert check(story.over(), {"chain", "liveness"}) == []
    assert [finding.rule for finding in check(story.over(), {"reads"})] == ["reads"]


# Valid histories of all shapes, and what is found when they are bent.


@given(seed=st.integers(0), steps=st.integers(5, 80))
@settings(deadline=None)
def test_whatever_happens_in_a_world_that_keeps_the_rules_is_found_right(seed: int, steps: int) -> None:
    assert check(World(Random(seed)).run(steps)) == []


def lose(events: list[Event], random: Random) -> str:
    """Acknowledge an append that is not in the log."""
    told = pick(random, [e for e in events if isinstance(e, AppendReturned) and e.outcome == "unknown"])
    asked = the_call(events, told.op)
    if any(isinstance(e, Logged) and e.append.key == asked.append.key for e in events):
        raise Unfit
    claim = Receipt(SPACE, 1, 1, "f" * 40, 1, asked.append.key)
    change(events, told, msgspec.structs.replace(told, outcome="ok", receipt=claim, error=""))
    return "durability"


def resurrect(events: list[Event], random: Random) -> str:
    """Say of an append of the log that it failed for certain."""
    told = pick(random, [e for e in events if isinstance(e, AppendReturned) and e.receipt and not e.receipt.duplicate])
    key = the_call(events, told.op).append.key
    if sum(isinstance(e, AppendInvoked) and e.append.key == key for e in events) > 1:
        raise Unfit
    change(events, told, msgspec.structs.replace(told, outcome="failed", receipt=None, error="Unavailable"))
    return "exactly once"


def double(events: list[Event], random: Random) -> str:
    """Put an append into the log once more."""
    log = final_log(events)
    top, again = log[-1], pick(random, log)
    copy = msgspec.structs.replace(again, commit="e" * 40, parent=top.commit, first=top.seq + 1, term=top.term)
    final = next(e for e in events if isinstance(e, FinalHead))
    change(events, final, msgspec.structs.replace(final, commit=copy.commit))
    events.append(copy)
    return "exactly once"


def swap(events: list[Event], random: Random) -> str:
    """Change the places of two appends, one of which was over before the other was asked for; receipts too."""
    log = final_log(events)
    calls = {e.op: e for e in events if isinstance(e, AppendInvoked)}
    over = {e.receipt.key: e.at for e in reversed(events) if isinstance(e, AppendReturned) and e.receipt}
    begun_at: dict[str, float] = {}
    for call in calls.values():
        begun_at.setdefault(call.append.key, call.at)
    pairs = [
        (a, b)
        for number, a in enumerate(log)
        for b in log[number + 1 :]
        if over.get(a.key, 1e9) < begun_at[b.key] and len(a.append.events) == len(b.append.events)
    ]
    a, b = pick(random, pairs)
    change(events, a, msgspec.structs.replace(a, append=b.append))
    change(events, b, msgspec.structs.replace(b, append=a.append))
    for told in [e for e in events if isinstance(e, AppendReturned) and e.receipt]:
        assert told.receipt is not None
        for old, new in ((a, b), (b, a)):
            if told.receipt.key == old.key:
                claim = receipt(msgspec.structs.replace(new, append=old.append), duplicate=told.receipt.duplicate)
                change(events, told, msgspec.structs.replace(told, receipt=claim))
    return "real time"


def fork(events: list[Event], random: Random) -> str:
    """Have one head not descend from the one before."""
    puts = [e for e in events if isinstance(e, Revision) and e.key.startswith("heads/")]
    number = random.randrange(1, max(2, len(puts)))
    if len(puts) < 3 or number + 1 >= len(puts):
        raise Unfit
    one, two = puts[number], puts[number + 1]
    change(events, one, msgspec.structs.replace(one, value=two.value))
    change(events, two, msgspec.structs.replace(two, value=one.value))
    return "chain"


def read_stale(events: list[Event], random: Random) -> str:
    """Have a read that promises the newest return nothing."""
    calls = {
        e.op
        for e in events
        if isinstance(e, ReadInvoked) and e.consistency == "linearizable" and known_at(events, e.at)
    }
    told = pick(random, [e for e in events if isinstance(e, ReadReturned) and e.op in calls])
    change(events, told, msgspec.structs.replace(told, seq=0, commit="", digest=""))
    return "reads"


def usurp(events: list[Event], random: Random) -> str:
    """Have another session publish."""
    sent = pick(random, [e for e in events if isinstance(e, Sent)])
    change(events, sent, msgspec.structs.replace(sent, session="usurper"))
    return "fencing"


def run_ahead(events: list[Event], random: Random) -> str:
    """Have the branch be ahead of what is published."""
    seen = pick(random, [e for e in events if isinstance(e, BranchSeen) and e.published])
    change(events, seen, msgspec.structs.replace(seen, published=0))
    return "branch"


def leave(events: list[Event], random: Random) -> str:
    """Have an outcome never put."""
    outcome = pick(random, [e for e in events if isinstance(e, Revision) and e.key.startswith("outcomes/")])
    events.remove(outcome)
    return "drain"


def misread(events: list[Event], random: Random) -> str:
    """Have a state read that is not the fold."""
    told = pick(random, [e for e in events if isinstance(e, ReadReturned) and e.digest])
    change(events, told, msgspec.structs.replace(told, digest="0" * 32))
    return "storage"


def refuse(events: list[Event], random: Random) -> str:
    """Have a call that failed be refused instead, for what was not so."""
    told = pick(random, [e for e in events if isinstance(e, AppendReturned) and e.outcome == "failed"])
    change(events, told, msgspec.structs.replace(told, outcome="refused", error="NotForkable"))
    return "refusals"


BENT: list[Callable[[list[Event], Random], str]] = [
    lose, resurrect, double, swap, fork, read_stale, usurp, run_ahead, leave, misread, refuse
]  # fmt: skip


@pytest.mark.parametrize("bend", BENT, ids=lambda bend: bend.__name__)
@given(seed=st.integers(0), steps=st.integers(30, 80))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.filter_too_much])
def test_a_valid_history_that_is_bent_is_found_out(
    bend: Callable[[list[Event], Random], str], seed: int, steps: int
) -> None:
    random = Random(seed)
    events = World(random).run(steps)
    try:
        rule = bend(events, random)
    except Unfit:
        assume(False)
    assert rule in broken(events)


# Writing histories down.


def test_a_history_survives_its_file_and_a_line_that_was_torn_off(tmp_path: Path) -> None:
    events = World(Random(7)).run(60)
    write_events(tmp_path / "a.jsonl", events[::2])
    write_events(tmp_path / "b.jsonl", events[1::2])
    with (tmp_path / "a.jsonl").open("ab") as file:
        file.write(b'{"type":"sent","at":3.0,"proc')
    again = read_events(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert [event.at for event in again] == sorted(event.at for event in events)
    assert sorted(map(repr, again)) == sorted(map(repr, events))


def test_a_line_that_is_no_event_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"type":"nothing","at":1}\n')
    with pytest.raises(msgspec.MsgspecError):
        read_events(tmp_path / "a.jsonl")


def test_the_calls_of_a_log_are_noted(tmp_path: Path) -> None:
    with cj.DecisionLog.open(tmp_path / "wiki.git") as log, EventFile(tmp_path / "a.jsonl") as file:
        clock = itertools.count(1.0)
        caller = RecordedLog(log, Recorder(file, "p", lambda: next(clock)), "p/1")
        one = caller.append(SPACE, Append((decision("a"),), "a", "alice", AT), 10.0)
        assert isinstance(one, Receipt)
        assert isinstance(caller.append(SPACE, Append((decision("b"),), "b", "alice", AT, 7), 10.0), cj.Conflict)
        assert isinstance(caller.append(SPACE, Append((decision("a"),), "a", "alice", AT), 10.0), Receipt)
        for what in ("head", "state", "events"):
            caller.read(SPACE, what)
        caller.read(SPACE, "events", after=1)
        assert isinstance(caller.read("-", "head"), cj.InvalidName)
        (entry,) = log.events(SPACE)
        stands = Appended(entry.commit, "", entry.term, (entry,))
        file(logged(next(clock), SPACE, stands))
        file(FinalHead(next(clock), SPACE, entry.commit))
        file(Examined(next(clock), "by eye"))
    events = read_events(tmp_path / "a.jsonl")
    assert check(events) == []
    assert [e.outcome for e in events if isinstance(e, AppendReturned)] == ["ok", "refused", "ok"]
    assert [(e.seq, e.error) for e in events if isinstance(e, ReadReturned)] == [(1, "")] * 4 + [(0, "InvalidName")]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (cj.AliasCycle(""), "refused"),
        (cj.Conflict("", 3), "refused"),
        (cj.Unavailable(""), "failed"),
        (cj.HeadMissing(""), "failed"),
        (cj.Undecided(""), "unknown"),
        (cj.Closed(""), "unknown"),
        (OSError(), "unknown"),
    ],
)
def test_what_an_error_says_of_an_append(error: Exception, outcome: str) -> None:
    assert outcome_of(error) == outcome


def test_revisions_come_from_what_a_model_of_etcd_has_committed() -> None:
    changes = [
        (b"/x/heads/s", KeyValue(b"/x/heads/s", b"{}", 3, 7, 2)),
        (b"/x/holders/s", None),
        (b"/other/heads/s", None),
    ]
    assert list(revisions(1.5, 1, 7, changes, b"/x/")) == [
        Revision(1.5, 7, "heads/s", "{}", 3, era=1),
        Revision(1.5, 7, "holders/s", era=1),
    ]
