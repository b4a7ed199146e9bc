"""What a state says that it takes, against what Python counts; and what stays in memory of many spaces."""

from __future__ import annotations

import tracemalloc
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordjournal import weight
from coordjournal.errors import Rejected
from coordjournal.events import AliasRemoved, AliasSet, OverlayRemoved, OverlaySet, PagesBound, PagesUnbound
from coordjournal.facts import from_facts, to_facts
from coordjournal.persistent import PersistentMap
from coordjournal.state import EMPTY, judge
from tests.unit.strategies import logs
from tests.unit.weighing import LIKE, SHAPES, WAYS, Shape, encoded, weighed


@pytest.mark.parametrize("like", LIKE)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_a_state_knows_within_a_factor_of_two_what_it_takes(shape: Shape, like: str) -> None:
    events = encoded(shape, 400, like)
    for way in WAYS:
        estimated, real = weighed(events, way)
        assert real / 2 <= estimated <= 2 * real, (way, estimated, real)


def test_a_large_state_knows_it_too() -> None:
    for shape in SHAPES[:3]:
        estimated, real = weighed(encoded(shape, 20_000, "short"), "a hundred at a time")
        assert real / 2 <= estimated <= 2 * real, (shape, estimated, real)


def test_what_was_decided_and_retracted_weighs_nothing() -> None:
    state = EMPTY
    long = "A long text. " * 1000
    for number in range(300):
        state = judge(state, [AliasSet(f"a-{number}", "b"), OverlaySet("p", f"note-{number}", "text/plain", long)])
        state = judge(state, [PagesBound("p", "q"), PagesUnbound("p", "q")])
    assert state.held > 300 * len(long)
    for number in range(300):
        state = judge(state, [AliasRemoved(f"a-{number}"), OverlayRemoved("p", f"note-{number}")])
    assert EMPTY.held <= state.held < EMPTY.held + 1000, "but that two pages were named"


def test_what_is_removed_one_by_one_does_not_stay_in_memory() -> None:
    """The layers below kept all that was removed, up to the last item."""
    tracemalloc.start()
    try:
        state = EMPTY
        for number in range(1024):
            state = judge(state, [OverlaySet(f"page {number}", "note", "text/plain", f"{number} " + "x" * 10_000)])
        for number in range(1023):
            state = judge(state, [OverlayRemoved(f"page {number}", "note")])
        assert tracemalloc.get_traced_memory()[0] < 2_000_000
    finally:
        tracemalloc.stop()


def test_the_places_of_a_map_stay_few() -> None:
    version: PersistentMap[int, int] = PersistentMap()
    for number in range(2000):
        version = version.with_item(number, number)
    for number in range(2000):
        version = version.without(number)
        assert version.slots <= 3 * len(version)
    assert version.slots == 0


@given(logs())
@settings(deadline=None)
def test_a_loaded_state_weighs_about_what_the_folded_one_did(log: list[Any]) -> None:
    state = EMPTY
    for event in log:
        with suppress(Rejected):
            state = judge(state, [event])
    again = from_facts(to_facts(state))
    assert again == state
    assert again.held > 0
    assert again._laid == state._laid == sum(map(len, state.overlays.values()))
    assert again._groups.tied == state._groups.tied
    assert state._groups.again >= 0


@given(st.text(st.characters(codec="utf-8"), max_size=50))
def test_a_text_weighs_what_python_says_and_up_to_half_more(text: str) -> None:
    fresh = "".join(list(text))
    real = text.__sizeof__() if text.isascii() else fresh.__sizeof__()
    assert real <= weight.of_text(text) + 3
    assert weight.of_text(text) <= 1.5 * real + 3 or len(text) < 2
