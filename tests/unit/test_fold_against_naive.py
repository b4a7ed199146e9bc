"""The fold against a second, plain one: whatever is decided, both tell the same."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordjournal.errors import Corrupt, Rejected
from coordjournal.events import Event, PagesBound, PagesMerged, PagesUnbound
from coordjournal.facts import Facts, from_facts, to_facts
from coordjournal.state import EMPTY, CoordinationState, Overlay, StateDraft, fold, judge
from tests.unit.naive import Content, Laid, NaiveState, Way
from tests.unit.strategies import FEW, alias_events, chain_logs, entries, group_logs, logs, tie_events, twin_logs

SLOW = [HealthCheck.too_slow]


def names_of(log: list[Event]) -> tuple[str, ...]:
    return tuple(sorted({name for event in log for name in event.names()} | {"never named"}))


def content_of(state: CoordinationState, names: tuple[str, ...]) -> Content:
    return Content(
        state.seq,
        dict(state.aliases),
        dict(state.forks),
        {page: laid(overlays) for page, overlays in state.overlays.items()},
        [(group.canonical, group.members) for group in state.groups],
        {name: way_of(state, name) for name in names},
    )


def way_of(state: CoordinationState, name: str) -> Way:
    found = state.resolve(name)
    assert found.name == name
    return Way(found.hops, found.canonical, found.members, laid(found.overlays))


def laid(overlays: tuple[Overlay, ...]) -> tuple[Laid, ...]:
    return tuple(Laid(each.page, each.overlay, each.media_type, each.body, each.seq) for each in overlays)


def refusal_of(state: CoordinationState, batch: list[Event]) -> type[Rejected] | None:
    try:
        judge(state, batch)
    except Rejected as refusal:
        return type(refusal)
    return None


def accepted(log: list[Event]) -> list[Event]:
    naive = NaiveState()
    return [event for event in log if naive.decide(event) is None]


def follow(log: list[Event], names: tuple[str, ...]) -> None:
    """Judge `log` event by event, comparing all that is shown; then look at every old state again."""
    state, naive = EMPTY, NaiveState()
    seen: list[tuple[CoordinationState, Content]] = []
    for event in log:
        refusal = naive.decide(event)
        assert refusal_of(state, [event]) is refusal
        if refusal is None:
            state = judge(state, [event])
        content = content_of(state, names)
        assert content == naive.content(names)
        seen.append((state, content))
    for old, content in seen:
        assert content_of(old, names) == content


@settings(deadline=None, max_examples=200, suppress_health_check=SLOW)
@given(logs(max_size=25, kind=alias_events()))
def test_aliases_set_and_removed_again_and_again_lead_where_the_naive_fold_leads(log: list[Event]) -> None:
    follow(log, FEW[:4])


@settings(deadline=None, max_examples=150, suppress_health_check=SLOW)
@given(logs(max_size=25, kind=tie_events()))
def test_pages_tied_and_parted_again_and_again_are_grouped_as_in_the_naive_fold(log: list[Event]) -> None:
    follow(log, FEW[:4])


@settings(deadline=None, max_examples=150, suppress_health_check=SLOW)
@given(logs())
def test_any_log_over_few_names_gives_what_the_naive_fold_gives_after_every_event(log: list[Event]) -> None:
    follow(log, (*FEW, "never named"))


@settings(deadline=None, max_examples=80, suppress_health_check=SLOW)
@given(group_logs())
def test_big_groups_split_and_join_as_in_the_naive_fold(log: list[Event]) -> None:
    follow(log, names_of(log)[::5])


@settings(deadline=None, max_examples=60, suppress_health_check=SLOW)
@given(chain_logs())
def test_long_chains_of_aliases_lead_where_the_naive_fold_leads(log: list[Event]) -> None:
    follow(log, names_of(log)[::4])


@settings(deadline=None, max_examples=100, suppress_health_check=SLOW)
@given(logs())
def test_every_fact_knows_the_seq_that_made_it(log: list[Event]) -> None:
    naive = NaiveState()
    events = [event for event in log if naive.decide(event) is None]
    state = fold(entries(events))
    for event in log:
        if not isinstance(event, PagesMerged):
            assert state.made_by(event) == naive.made_by(event)


@settings(deadline=None, max_examples=100, suppress_health_check=SLOW)
@given(logs(max_size=60))
def test_a_draft_that_refused_events_goes_on_as_if_they_had_never_come(log: list[Event]) -> None:
    draft, naive = StateDraft(EMPTY), NaiveState()
    for event in log:
        if (refusal := naive.decide(event)) is None:
            draft.decide(event)
        else:
            with pytest.raises(refusal):
                draft.decide(event)
    assert content_of(draft.freeze(), FEW) == naive.content(FEW)


@settings(deadline=None, max_examples=100, suppress_health_check=SLOW)
@given(st.one_of(logs(), group_logs(), chain_logs()), st.data())
def test_folding_a_prefix_and_then_the_rest_is_folding_all(log: list[Event], data: st.DataObject) -> None:
    whole = entries(accepted(log))
    cut = data.draw(st.integers(0, len(whole)))
    prefix = fold(whole[:cut])
    names = names_of(log)
    before = content_of(prefix, names)
    state = fold(whole[cut:], prefix)
    assert state == fold(iter(whole))
    assert content_of(state, names) == content_of(fold(whole), names)
    assert content_of(prefix, names) == before


@settings(deadline=None, max_examples=60, suppress_health_check=SLOW)
@given(logs(max_size=25), st.lists(logs(max_size=5), max_size=4))
def test_a_batch_is_judged_as_its_events_one_by_one_and_all_or_none(
    log: list[Event], batches: list[list[Event]]
) -> None:
    state = fold(entries(accepted(log)))
    for batch in batches:
        before = content_of(state, FEW)
        one_by_one, refusal, fitting = state, None, 0
        for event in batch:
            if (refusal := refusal_of(one_by_one, [event])) is not None:
                break
            one_by_one = judge(one_by_one, [event])
            fitting += 1
        if refusal is None:
            after = judge(state, batch)
            assert after == one_by_one
            assert content_of(after, FEW) == content_of(one_by_one, FEW)
        else:
            place = f"^event {fitting + 1} of {len(batch)}: " if len(batch) > 1 else "^(?!event 1 of 1)"
            with pytest.raises(refusal, match=place):
                judge(state, batch)
            after = state
        assert content_of(state, FEW) == before
        state = after


@settings(deadline=None, max_examples=100, suppress_health_check=SLOW)
@given(st.one_of(logs(), group_logs()), st.data())
def test_a_stored_and_loaded_state_is_equal_and_goes_on_alike(log: list[Event], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(log)))
    names = names_of(log)
    naive = NaiveState()
    state = fold(entries([event for event in log[:cut] if naive.decide(event) is None]))
    stored = msgspec.msgpack.encode(to_facts(state))
    loaded = from_facts(msgspec.msgpack.decode(stored, type=Facts))
    assert loaded == state
    assert content_of(loaded, names) == content_of(state, names)
    for event in log[cut:]:
        refusal = naive.decide(event)
        assert refusal_of(loaded, [event]) is refusal
        if refusal is None:
            loaded = judge(loaded, [event])
    assert content_of(loaded, names) == naive.content(names)
    assert content_of(state, names) == content_of(from_facts(msgspec.msgpack.decode(stored, type=Facts)), names)


@settings(deadline=None, max_examples=60, suppress_health_check=SLOW)
@given(logs())
def test_an_entry_that_the_state_refuses_is_corrupt_and_its_seq_is_told(log: list[Event]) -> None:
    naive = NaiveState()
    for number, event in enumerate(log, 1):
        if (refusal := naive.decide(event)) is not None:
            with pytest.raises(Corrupt, match=rf"^entry {number} contradicts") as caught:
                fold(entries(log))
            assert caught.value.seq == number
            assert isinstance(caught.value.__cause__, refusal)
            return
    assert fold(entries(log)).seq == len(log)


@settings(deadline=None, max_examples=300, suppress_health_check=SLOW)
@given(twin_logs(), st.data())
def test_states_that_are_equal_stay_equal_whatever_is_decided_next(
    twins: tuple[list[Event], list[Event]], data: st.DataObject
) -> None:
    a, b = (fold(entries(log)) for log in twins)
    bound = [event for event in twins[0] if isinstance(event, PagesBound)]
    for event in data.draw(st.permutations(bound)):
        if a != b:
            return
        unbound = PagesUnbound(event.a, event.b)
        refusal = refusal_of(a, [unbound])
        assert refusal_of(b, [unbound]) is refusal
        if refusal is None:
            a, b = judge(a, [unbound]), judge(b, [unbound])
            assert a == b
