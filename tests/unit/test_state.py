"""What each event means, corner by corner, as `docs/state.md` tells it."""

from __future__ import annotations

import time

import msgspec
import pytest

from coordjournal.entry import Entry
from coordjournal.errors import AliasCycle, Corrupt, NotForkable, NothingToRetract, Rejected
from coordjournal.events import (
    AliasRemoved,
    AliasSet,
    Event,
    OverlayRemoved,
    OverlaySet,
    PageForked,
    PagesBound,
    PagesMerged,
    PagesUnbound,
)
from coordjournal.facts import Facts, from_facts, to_facts
from coordjournal.state import EMPTY, CoordinationState, Group, Overlay, Resolution, StateDraft, apply, fold, judge
from tests.unit.strategies import entries


def after(*log: Event) -> CoordinationState:
    return fold(entries(list(log)))


def note(page: str, name: str = "note", body: str = "text") -> OverlaySet:
    return OverlaySet(page, name, "text/plain", body)


def merge(*pages: str) -> PagesMerged:
    """Merge all but the last into the last."""
    return PagesMerged(pages[:-1], pages[-1])


def canonical(state: CoordinationState, page: str) -> str:
    group = state.group(page)
    return page if group is None else group.canonical


def refuses(state: CoordinationState, event: Event, error: type[Rejected]) -> None:
    with pytest.raises(error):
        judge(state, [event])


# Nothing decided


def test_of_nothing_decided_nothing_is_true_and_a_name_leads_to_itself() -> None:
    assert (EMPTY.seq, dict(EMPTY.aliases), dict(EMPTY.forks), dict(EMPTY.overlays), EMPTY.groups) == (
        0,
        {},
        {},
        {},
        (),
    )
    assert EMPTY.group("A") is None
    assert EMPTY.resolve("A") == Resolution("A", ("A",), "A", ("A",), ())
    assert fold([]) == judge(EMPTY, []) == EMPTY


# Aliases


def test_an_alias_leads_to_its_target_and_the_last_one_wins() -> None:
    state = after(AliasSet("A", "B"), AliasSet("A", "C"))
    assert state.aliases == {"A": "C"}
    assert state.resolve("A").hops == ("A", "C")
    assert state.resolve("A").canonical == "C"


def test_a_chain_is_followed_and_every_name_passed_is_told() -> None:
    state = after(AliasSet("A", "B"), AliasSet("C", "D"), AliasSet("B", "C"))
    assert state.resolve("A") == Resolution("A", ("A", "B", "C", "D"), "D", ("D",), ())
    assert state.aliases == {"A": "B", "B": "C", "C": "D"}


def test_a_removed_alias_leads_nowhere_and_is_a_page_again() -> None:
    state = after(AliasSet("A", "B"), AliasSet("B", "C"), AliasRemoved("B"))
    assert state.aliases == {"A": "B"}
    assert state.resolve("A").hops == ("A", "B")


def test_the_last_alias_of_all_can_be_removed() -> None:
    assert after(AliasSet("A", "B"), AliasRemoved("A")).aliases == {}


@pytest.mark.parametrize(
    ("log", "closing"),
    [
        ([], AliasSet("A", "A")),
        ([AliasSet("A", "B")], AliasSet("B", "A")),
        ([AliasSet("A", "B"), AliasSet("B", "C")], AliasSet("C", "A")),
        ([AliasSet("A", "B"), AliasSet("B", "C")], AliasSet("B", "A")),
        ([AliasSet("A", "B"), AliasSet("A", "C")], AliasSet("A", "A")),
        ([AliasSet("A", "X"), AliasSet("B", "X"), AliasSet("A", "Y")], AliasSet("X", "B")),
        ([AliasSet("A", "X"), AliasSet("B", "X"), AliasRemoved("A")], AliasSet("X", "B")),
        ([AliasSet("A", "X"), AliasSet("A", "X")], AliasSet("X", "A")),
    ],
)
def test_an_alias_that_would_lead_back_to_itself_is_refused(log: list[Event], closing: Event) -> None:
    refuses(after(*log), closing, AliasCycle)


def test_a_circle_that_was_opened_again_is_none() -> None:
    state = after(AliasSet("A", "B"), AliasSet("A", "C"), AliasSet("B", "A"))
    assert state.resolve("B").hops == ("B", "A", "C")
    assert after(AliasSet("A", "B"), AliasRemoved("A"), AliasSet("B", "A")).aliases == {"B": "A"}


def test_setting_an_alias_again_to_where_it_leads_is_a_new_fact() -> None:
    state = after(AliasSet("A", "B"), AliasRemoved("A"), AliasSet("A", "B"), AliasSet("A", "B"))
    assert state.made_by(AliasSet("A", "B")) == 4


def test_removing_what_is_no_alias_is_refused() -> None:
    refuses(EMPTY, AliasRemoved("A"), NothingToRetract)
    refuses(after(AliasSet("A", "B")), AliasRemoved("B"), NothingToRetract)
    refuses(after(AliasSet("A", "B"), AliasRemoved("A")), AliasRemoved("A"), NothingToRetract)


def test_other_events_take_names_literally_and_do_not_follow_aliases() -> None:
    state = after(AliasSet("A", "B"), PagesBound("A", "C"), note("A"), PageForked("A", "F"))
    assert state.groups == (Group("A", ("A", "C")),)
    assert state.group("B") is None
    assert list(state.overlays) == ["A"]
    assert state.forks == {"F": "A"}


def test_an_alias_hides_the_page_of_its_name_until_it_is_removed() -> None:
    state = after(PagesBound("A", "C"), note("A"), AliasSet("A", "B"))
    assert state.resolve("A") == Resolution("A", ("A", "B"), "B", ("B",), ())
    shown = judge(state, [AliasRemoved("A")]).resolve("A")
    assert (shown.hops, shown.members, [each.page for each in shown.overlays]) == (("A",), ("A", "C"), ["A"])


def test_a_hidden_page_stays_in_its_group_and_may_be_canonical_and_is_not_followed_again() -> None:
    state = after(PagesBound("A", "C"), note("A"), AliasSet("A", "B"))
    found = state.resolve("C")
    assert (found.hops, found.canonical, found.members) == (("C",), "A", ("A", "C"))
    assert [each.page for each in found.overlays] == ["A"]


# Bindings


def test_a_binding_is_unordered_and_transitive() -> None:
    state = after(PagesBound("B", "A"), PagesBound("C", "B"), PagesBound("X", "Y"))
    assert state.groups == (Group("B", ("A", "B", "C")), Group("X", ("X", "Y")))
    assert state.group("C") == state.group("A") == Group("B", ("A", "B", "C"))
    assert state.resolve("C").members == ("A", "B", "C")


def test_members_are_sorted_by_code_point() -> None:
    state = after(PagesBound("𐀀", "￮"), PagesBound("é", "z"), PagesBound("é", "𐀀"), PagesBound("Z", "z"))
    assert state.groups == (Group("𐀀", ("Z", "z", "é", "￮", "𐀀")),)


def test_groups_are_sorted_by_canonical_page() -> None:
    state = after(PagesBound("M", "A"), PagesBound("C", "D"))
    assert [group.canonical for group in state.groups] == ["C", "M"]


def test_a_binding_set_twice_is_one_and_keeps_its_first_seq() -> None:
    state = after(PagesBound("A", "B"), PagesBound("B", "A"), PagesBound("A", "B"))
    assert state.made_by(PagesBound("A", "B")) == state.made_by(PagesBound("B", "A")) == 1
    assert judge(state, [PagesUnbound("B", "A")]).groups == ()


def test_a_binding_that_was_retracted_and_set_again_has_its_new_seq() -> None:
    state = after(PagesBound("A", "B"), PagesUnbound("A", "B"), PagesBound("A", "B"))
    assert state.made_by(PagesBound("A", "B")) == 3


def test_retracting_a_binding_splits_the_group_where_nothing_else_ties_it() -> None:
    chain = after(PagesBound("A", "B"), PagesBound("B", "C"), PagesBound("C", "D"))
    assert judge(chain, [PagesUnbound("C", "B")]).groups == (Group("A", ("A", "B")), Group("C", ("C", "D")))
    assert judge(chain, [PagesUnbound("A", "B")]).groups == (Group("B", ("B", "C", "D")),)
    ring = judge(chain, [PagesBound("D", "A")])
    assert judge(ring, [PagesUnbound("B", "C")]).groups == ring.groups


def test_a_group_that_loses_its_last_binding_is_none() -> None:
    state = after(PagesBound("A", "B"), PagesUnbound("A", "B"))
    assert state.groups == ()
    assert state.group("A") is None
    assert state.resolve("A").members == ("A",)


def test_only_a_binding_of_just_these_two_pages_can_be_retracted() -> None:
    state = after(PagesBound("A", "B"), PagesBound("B", "C"))
    refuses(state, PagesUnbound("A", "C"), NothingToRetract)
    refuses(state, PagesUnbound("A", "X"), NothingToRetract)
    refuses(judge(state, [PagesUnbound("A", "B")]), PagesUnbound("B", "A"), NothingToRetract)


# Merges


def test_a_merge_makes_one_group_of_its_pages_and_their_groups_with_into_canonical() -> None:
    state = after(PagesBound("A", "B"), PagesBound("C", "D"), merge("B", "E", "D"))
    assert state.groups == (Group("D", ("A", "B", "C", "D", "E")),)


def test_what_a_merge_tied_is_no_binding_and_stays() -> None:
    state = after(merge("A", "B", "C"))
    for a, b in (("A", "C"), ("C", "B"), ("A", "B")):
        refuses(state, PagesUnbound(a, b), NothingToRetract)


def test_a_binding_beside_a_merge_can_be_retracted_and_the_merge_still_ties() -> None:
    bound, merged = PagesBound("A", "B"), merge("A", "B")
    for state in (after(bound, merged, PagesUnbound("A", "B")), after(merged, bound, PagesUnbound("A", "B"))):
        assert state.groups == (Group("B", ("A", "B")),)
        refuses(state, PagesUnbound("A", "B"), NothingToRetract)


def test_a_merge_ties_its_sources_and_into_for_good_but_not_the_other_members_of_their_groups() -> None:
    state = after(PagesBound("A", "X"), PagesBound("B", "Y"), merge("A", "B"))
    state = judge(state, [PagesUnbound("A", "X"), PagesUnbound("Y", "B")])
    assert state.groups == (Group("B", ("A", "B")),)


def test_a_source_that_is_in_one_group_with_into_already_is_tied_to_it_for_good() -> None:
    state = after(PagesBound("A", "X"), PagesBound("X", "B"), merge("A", "B"))
    assert canonical(state, "X") == "B"
    state = judge(state, [PagesUnbound("A", "X"), PagesUnbound("X", "B")])
    assert state.groups == (Group("B", ("A", "B")),)


def test_sources_named_twice_and_into_among_them_change_nothing() -> None:
    assert after(PagesMerged(("A", "C", "A", "C"), "C")) == after(PagesMerged(("A",), "C"))


def test_a_merge_is_never_refused_for_the_state() -> None:
    state = after(merge("A", "B"), merge("B", "A"), merge("A", "B"), merge("A", "B"))
    assert state.groups == (Group("B", ("A", "B")),)


# The canonical page


def test_the_into_of_the_latest_merge_is_canonical() -> None:
    state = after(merge("A", "B"), merge("C", "D"))
    assert canonical(judge(state, [merge("B", "D")]), "A") == "D"
    assert canonical(judge(state, [merge("D", "A")]), "C") == "A"
    assert canonical(judge(state, [PagesBound("A", "C")]), "B") == "D"
    assert canonical(judge(state, [merge("A", "B"), PagesBound("A", "C")]), "D") == "B"


def test_an_earlier_merge_leads_again_when_the_latest_into_is_no_member_any_more() -> None:
    state = after(merge("A", "B"), merge("C", "D"), PagesBound("B", "D"))
    assert state.groups == (Group("D", ("A", "B", "C", "D")),)
    state = judge(state, [PagesUnbound("D", "B")])
    assert state.groups == (Group("B", ("A", "B")), Group("D", ("C", "D")))


def test_a_part_without_a_merge_goes_back_to_the_member_named_first() -> None:
    state = after(PagesBound("Y", "X"), merge("A", "B"), PagesBound("X", "A"))
    assert canonical(state, "Y") == "B"
    assert canonical(judge(state, [PagesUnbound("X", "A")]), "X") == "Y"


@pytest.mark.parametrize(
    ("naming", "first"),
    [
        ([], "B"),
        ([PagesBound("A", "X"), PagesUnbound("A", "X")], "A"),
        ([PagesBound("X", "A"), PagesUnbound("A", "X")], "A"),
        ([PageForked("X", "A")], "A"),
        ([PageForked("A", "X")], "A"),
        ([note("A")], "A"),
        ([note("A"), OverlayRemoved("A", "note")], "A"),
        ([note("X", name="A")], "B"),
        ([AliasSet("A", "X"), AliasRemoved("A")], "B"),
        ([AliasSet("X", "A")], "B"),
        ([note("B"), note("A")], "B"),
    ],
)
def test_else_the_member_is_canonical_that_a_binding_merge_fork_or_overlay_named_first(
    naming: list[Event], first: str
) -> None:
    assert canonical(after(*naming, PagesBound("B", "A")), "A") == first


def test_pages_named_by_one_event_are_named_in_field_order() -> None:
    assert canonical(after(PagesBound("B", "A")), "A") == "B"
    state = after(PageForked("B", "A"), PagesBound("A", "X"), PagesBound("X", "B"))
    assert state.groups == (Group("B", ("A", "B", "X")),)


def test_a_refused_event_names_nothing() -> None:
    state = after(PageForked("S", "F"))
    draft = StateDraft(state)
    with pytest.raises(NotForkable):
        draft.decide(PageForked("A", "F"))
    draft.decide(PagesBound("B", "A"))
    assert canonical(draft.freeze(), "A") == "B"


# Forks


def test_a_fork_descends_from_its_source_and_is_another_page() -> None:
    state = after(PagesBound("A", "B"), note("A"), PageForked("A", "F"), PageForked("F", "G"), PageForked("A", "H"))
    assert state.forks == {"F": "A", "G": "F", "H": "A"}
    assert state.group("F") is None
    assert state.resolve("F") == Resolution("F", ("F",), "F", ("F",), ())


@pytest.mark.parametrize(
    ("log", "event"),
    [
        ([], PageForked("A", "A")),
        ([PagesBound("A", "X"), PagesBound("X", "B")], PageForked("A", "B")),
        ([merge("B", "A")], PageForked("A", "B")),
        ([PageForked("A", "B")], PageForked("C", "B")),
        ([PageForked("A", "B")], PageForked("A", "B")),
        ([PageForked("A", "B")], PageForked("B", "A")),
        ([PageForked("A", "B"), PageForked("B", "C"), PageForked("C", "D")], PageForked("D", "A")),
    ],
    ids=["itself", "bound", "merged", "another source", "the same again", "a circle of two", "a long circle"],
)
def test_what_cannot_be_forked_is_refused(log: list[Event], event: Event) -> None:
    refuses(after(*log), event, NotForkable)


def test_a_page_that_has_a_group_of_its_own_may_be_a_fork() -> None:
    state = after(PagesBound("B", "C"), PageForked("A", "B"))
    assert state.forks == {"B": "A"}
    assert state.groups == (Group("B", ("B", "C")),)


def test_pages_that_were_parted_may_be_fork_and_source() -> None:
    assert after(PagesBound("A", "B"), PagesUnbound("A", "B"), PageForked("A", "B")).forks == {"B": "A"}


def test_a_later_binding_or_merge_joins_a_fork_with_its_source_and_ancestry_stays() -> None:
    for joining in (PagesBound("A", "F"), merge("A", "F")):
        state = after(PageForked("A", "F"), joining)
        assert state.forks == {"F": "A"}
        assert state.resolve("A").members == ("A", "F")
        refuses(state, PageForked("F", "A"), NotForkable)


def test_ancestry_is_of_pages_not_of_their_groups() -> None:
    state = after(PageForked("A", "F"), PagesBound("F", "G"))
    assert judge(state, [PageForked("G", "A")]).forks == {"F": "A", "A": "G"}


# Overlays


def test_an_overlay_lies_on_its_page_and_the_same_name_replaces_it() -> None:
    state = after(note("A", body="old"), note("A", "map"), note("B"), OverlaySet("A", "note", "text/html", "new"))
    assert state.overlays == {
        "A": (Overlay("A", "map", "text/plain", "text", 2), Overlay("A", "note", "text/html", "new", 4)),
        "B": (Overlay("B", "note", "text/plain", "text", 3),),
    }


def test_a_removed_overlay_is_gone_and_a_page_without_any_is_not_listed() -> None:
    state = after(note("A"), note("A", "map"), note("B"))
    state = judge(state, [OverlayRemoved("A", "note"), OverlayRemoved("B", "note")])
    assert {page: [each.overlay for each in laid] for page, laid in state.overlays.items()} == {"A": ["map"]}


def test_the_last_overlay_of_all_can_be_removed() -> None:
    state = judge(after(note("A")), [OverlayRemoved("A", "note")])
    assert state.overlays == {}
    assert state.resolve("A").overlays == ()
    refuses(state, OverlayRemoved("A", "note"), NothingToRetract)


def test_removing_an_overlay_that_is_not_there_is_refused() -> None:
    refuses(EMPTY, OverlayRemoved("A", "note"), NothingToRetract)
    refuses(after(note("A")), OverlayRemoved("A", "Note"), NothingToRetract)
    refuses(after(note("A"), PagesBound("A", "B")), OverlayRemoved("B", "note"), NothingToRetract)


def test_overlays_of_all_members_are_found_through_any_of_them_sorted_by_page_and_name() -> None:
    state = after(note("B", "x"), note("A", "y"), note("B", "Z"), note("C"), PagesBound("B", "A"), AliasSet("N", "A"))
    assert [(each.page, each.overlay) for each in state.resolve("N").overlays] == [("A", "y"), ("B", "Z"), ("B", "x")]
    parted = judge(state, [PagesUnbound("A", "B")])
    assert [(each.page, each.overlay) for each in parted.resolve("N").overlays] == [("A", "y")]


# What made a fact


def test_a_fact_knows_the_seq_that_made_it_and_one_that_does_not_stand_has_none() -> None:
    state = after(AliasSet("A", "B"), PagesBound("C", "D"), merge("E", "F", "G"), PageForked("C", "H"), note("C"))
    standing = (AliasSet("A", "B"), PagesBound("D", "C"), merge("F", "G"), PageForked("C", "H"), note("C"))
    assert [state.made_by(event) for event in standing] == [1, 2, 3, 4, 5]
    missing = (
        AliasSet("A", "C"),
        AliasSet("B", "A"),
        PagesBound("E", "G"),
        merge("E", "H", "G"),
        merge("C", "D"),
        PageForked("D", "H"),
        note("C", body="other"),
        note("D"),
        AliasRemoved("A"),
        PagesUnbound("C", "D"),
    )
    assert [state.made_by(event) for event in missing] == [0] * len(missing)


def test_a_merge_the_other_way_round_did_not_make_the_fact() -> None:
    state = after(merge("B", "A"))
    assert state.made_by(merge("A", "B")) == 0


# Entries and batches


def test_apply_is_one_step_of_the_fold() -> None:
    log = entries([AliasSet("A", "B"), PagesBound("A", "C")])
    state = apply(apply(EMPTY, log[0]), log[1])
    assert state == fold(log)
    assert state.seq == 2
    read = [Entry(e.seq, e.key, e.at, e.actor, e.event, "c0ffee", 1) for e in log]
    assert fold(read) == state


@pytest.mark.parametrize("seq", [0, 1, 3, -1])
def test_an_entry_out_of_order_is_corrupt_and_its_seq_is_told(seq: int) -> None:
    with pytest.raises(Corrupt, match=f"^entry {seq} follows entry 1") as caught:
        apply(after(AliasSet("A", "B")), entries([AliasSet("C", "D")], seq)[0])
    assert caught.value.seq == seq


@pytest.mark.parametrize(
    "event",
    [AliasSet("B", "A"), AliasRemoved("C"), PagesUnbound("A", "B"), PageForked("A", "A"), OverlayRemoved("A", "n")],
)
def test_an_entry_that_contradicts_the_state_is_corrupt_and_its_seq_is_told(event: Event) -> None:
    with pytest.raises(Corrupt, match=r"^entry 2 contradicts what was before it: ") as caught:
        fold(entries([AliasSet("A", "B"), event, AliasSet("A", "C")]))
    assert caught.value.seq == 2
    assert isinstance(caught.value.__cause__, Rejected)


def test_entries_are_streamed_and_read_no_further_than_the_first_that_is_corrupt() -> None:
    log = iter(entries([AliasSet("A", "B"), AliasRemoved("B"), AliasSet("C", "D")]))
    with pytest.raises(Corrupt):
        fold(log)
    assert [entry.seq for entry in log] == [3]


def test_a_batch_is_judged_with_its_own_events_before_each() -> None:
    state = judge(EMPTY, (event for event in (AliasSet("A", "B"), AliasRemoved("A"), AliasSet("B", "A"))))
    assert state.aliases == {"B": "A"}
    assert state.seq == 3


def test_the_error_of_a_batch_tells_which_event_does_not_fit() -> None:
    with pytest.raises(NothingToRetract, match=r"^event 2 of 3: 'B' is no alias"):
        judge(EMPTY, [AliasSet("A", "B"), AliasRemoved("B"), AliasRemoved("C")])
    with pytest.raises(NothingToRetract, match=r"^'B' is no alias"):
        judge(EMPTY, [AliasRemoved("B")])
    assert (EMPTY.seq, dict(EMPTY.aliases)) == (0, {})


# States as values


def test_a_state_is_equal_by_content_not_by_how_it_came_about() -> None:
    assert after(PagesBound("A", "B"), AliasSet("X", "Y")) == after(PagesBound("A", "B"), AliasSet("X", "Y"))
    assert after(AliasSet("X", "Y")) != after(AliasSet("X", "Z"))
    assert after(AliasSet("X", "Y"), AliasRemoved("X")) != EMPTY
    assert after(note("A")) != after(note("A", body="other"))
    assert after(PagesBound("A", "B")) != after(PagesBound("B", "A"))
    assert after(PagesBound("A", "B")) != after(merge("B", "A"))
    assert EMPTY != "state"
    with pytest.raises(TypeError):
        hash(EMPTY)


def test_states_that_would_choose_another_canonical_page_later_are_not_equal() -> None:
    gone: list[Event] = [OverlayRemoved("A", "note"), OverlayRemoved("B", "note")]
    assert after(note("A"), note("B"), *gone) != after(note("B"), note("A"), *gone)
    led: list[Event] = [merge("D", "C"), PagesBound("A", "C")]
    named = note("A")
    assert after(named, note("B"), merge("A", "B"), *led) != after(named, note("B"), merge("B", "A"), *led)


def test_the_maps_of_a_state_are_read_only() -> None:
    state = after(AliasSet("A", "B"), PageForked("C", "D"), note("E"))
    for shown in (state.aliases, state.forks, state.overlays):
        assert len(shown) == 1
        assert not hasattr(shown, "__setitem__")
        assert "missing" not in shown
        assert shown.get("missing") is None
        with pytest.raises(KeyError):
            shown["missing"]


def test_a_state_tells_in_short_what_it_holds() -> None:
    state = after(AliasSet("A", "B"), PageForked("C", "D"), note("E"), merge("F", "G"))
    assert repr(state) == "<CoordinationState seq=4: 1 aliases, 1 groups, 1 forks, 1 pages with overlays>"


def test_the_facts_of_a_state_are_what_is_stored_and_give_it_back() -> None:
    state = after(
        AliasSet("A", "B"),
        PagesBound("C", "D"),
        merge("E", "D"),
        PageForked("C", "F"),
        note("C"),
        PagesUnbound("C", "D"),
    )
    stored = msgspec.msgpack.encode(to_facts(state))
    loaded = from_facts(msgspec.msgpack.decode(stored, type=Facts))
    assert loaded == state
    assert loaded.seq == 6
    assert from_facts(to_facts(EMPTY)) == EMPTY
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode([1, {}]), type=Facts)


# What it costs


def test_long_chains_grow_at_either_end_and_lead_to_their_end() -> None:
    count = 20_000
    forward: list[Event] = [AliasSet(f"n{i}", f"n{i + 1}") for i in range(count)]
    for log in (forward, forward[::-1]):
        begun = time.perf_counter()
        state = after(*log)
        assert time.perf_counter() - begun < 5
        assert state.resolve("n0").hops[-1] == f"n{count}"
        refuses(state, AliasSet(f"n{count}", "n0"), AliasCycle)


def test_one_more_append_does_not_cost_a_copy_of_the_state() -> None:
    state = after(*(AliasSet(f"n{i}", "start") for i in range(20_000)))
    begun = time.perf_counter()
    kept = []
    for i in range(2_000):
        state = judge(state, [AliasSet(f"m{i}", "end"), PagesBound(f"p{i}", "hub")])
        kept.append(state)
    assert time.perf_counter() - begun < 5
    assert [len(old.aliases) for old in kept[::500]] == [20_001, 20_501, 21_001, 21_501]
    assert len(kept[0].resolve("hub").members) == 2
    assert len(state.resolve("hub").members) == 2_001


def test_a_retraction_walks_the_smaller_side_of_a_big_group() -> None:
    count = 5_000
    state = after(*(PagesBound(f"p{i}", f"p{i + 1}") for i in range(count)))
    cut = judge(state, [PagesUnbound("p10", "p11")])
    assert sorted(len(group.members) for group in cut.groups) == [11, count - 10]
    assert len(state.resolve("p0").members) == count + 1
