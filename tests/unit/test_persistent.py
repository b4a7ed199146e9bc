"""The persistent map against a plain dict, every old version kept and looked at again."""

from __future__ import annotations

import math
import sys
import threading
from itertools import pairwise
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordjournal.persistent import MapDraft, PersistentMap

Version = tuple[PersistentMap[int, int], dict[int, int]]


def looks_like(version: PersistentMap[int, int], plain: dict[int, int]) -> None:
    assert len(version) == len(plain)
    assert bool(version) == bool(plain)
    for key in range(-1, 25):
        assert (key in version) == (key in plain)
        assert version.get(key) == plain.get(key)
        assert version.get(key, -7) == plain.get(key, -7)
        if key in plain:
            assert version[key] == plain[key]
        else:
            with pytest.raises(KeyError):
                version[key]


def reads_like(version: PersistentMap[int, int], plain: dict[int, int]) -> None:
    """Read the whole map, which may put its layers together."""
    assert version == plain
    assert sorted(version) == sorted(plain)
    assert dict(version.items()) == plain
    assert version.as_dict() == plain


def layers_grow(version: PersistentMap[int, int]) -> bool:
    sizes = [len(layer) for layer in version._layers]
    return all(2 * newer <= older for newer, older in pairwise(sizes)) and 0 not in sizes


# Each step: on which of the versions so far (counted from the newest), and the changes that make the next
# one, a value to set or None to remove; no changes at all: read the version whole instead.
_change = st.tuples(st.integers(0, 23), st.none() | st.integers(0, 9))
_steps = st.lists(st.tuples(st.integers(0, 5), st.lists(_change, max_size=6)), max_size=40)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 24), _steps)
def test_every_version_is_what_a_dict_would_be_and_stays_so(
    size: int, steps: list[tuple[int, list[tuple[int, int | None]]]]
) -> None:
    start = dict.fromkeys(range(size), 0)
    versions: list[Version] = [(PersistentMap(dict(start)), start)]
    for back, changes in steps:
        base, plain = versions[-1 - min(back, len(versions) - 1)]
        if not changes:
            reads_like(base, plain)
            continue
        draft, plain = MapDraft(base), dict(plain)
        for key, value in changes:
            if value is not None:
                draft[key] = value
                plain[key] = value
            elif key in plain:
                del draft[key]
                del plain[key]
            else:
                with pytest.raises(KeyError):
                    del draft[key]
            assert len(draft) == len(plain)
            assert (key in draft) == (key in plain)
            assert draft.get(key) == plain.get(key)
        versions.append((draft.freeze(), plain))
    for version, plain in versions:
        looks_like(version, plain)
        assert layers_grow(version)
    for version, plain in reversed(versions):
        reads_like(version, plain)
    for version, plain in versions:
        looks_like(version, plain)


def test_one_change_at_a_time_is_what_a_draft_of_them_is() -> None:
    one: PersistentMap[str, int] = PersistentMap()
    draft = MapDraft(one)
    for number, name in enumerate("abcab"):
        one = one.with_item(name, number)
        draft[name] = number
    one = one.without("c")
    del draft["c"]
    assert one == draft.freeze() == {"a": 3, "b": 4}


def test_without_a_key_that_is_not_there_is_a_key_error() -> None:
    version = PersistentMap({"a": 1}).without("a")
    with pytest.raises(KeyError):
        version.without("a")
    with pytest.raises(KeyError):
        version["a"]


def test_none_is_a_value_like_others() -> None:
    version: PersistentMap[str, None] = PersistentMap({"a": None})
    assert "a" in version
    assert version["a"] is None
    assert version.get("b", 1) == 1


def test_a_draft_without_changes_is_its_base() -> None:
    base = PersistentMap({"a": 1})
    assert MapDraft(base).freeze() is base


def test_emptied_it_holds_no_layer_at_all() -> None:
    version = PersistentMap(dict.fromkeys(range(100), 0))
    for key in range(100):
        version = version.without(key)
    assert not version
    assert version._layers == ()


@pytest.mark.parametrize("start", [0, 3000])
def test_the_layers_stay_logarithmic_and_so_does_the_copying_per_change(start: int) -> None:
    version = PersistentMap(dict.fromkeys(range(-start, 0), 0))
    changes, copied = 3000, 0
    for key in range(changes):
        version = version.with_item(key, key)
        copied += len(version._layers[0])
        assert layers_grow(version)
        assert len(version._layers) <= math.log2(start + key + 1) + 1
    assert copied <= changes * (math.log2(start + changes) + 1)
    assert len(version) == start + changes


def test_the_layers_stay_logarithmic_while_keys_come_and_go() -> None:
    version = PersistentMap(dict.fromkeys(range(1000), 0))
    plain = dict.fromkeys(range(1000), 0)
    for step in range(4000):
        key = step * 7919 % 1500
        if key in plain:
            version = version.without(key)
            del plain[key]
        else:
            version = version.with_item(key, step)
            plain[key] = step
        assert len(version) == len(plain)
        assert len(version._layers) <= 12
        assert layers_grow(version)
    assert version == plain


def test_a_change_of_a_big_map_shares_the_rest_with_it() -> None:
    big = PersistentMap(dict.fromkeys(range(100_000), 0))
    assert big.with_item(7, 1)._layers[-1] is big._layers[-1]


def _read_while_another_thread_reads(version: PersistentMap[int, int], at: int) -> tuple[dict[int, int], int]:
    """Read `version` whole, before line `at` of that in another thread too; tell what was found, in how many lines."""
    code = PersistentMap.as_dict.__code__
    lines = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal lines
        if frame.f_code is not code:
            return None
        if event == "line":
            if lines == at:
                other = threading.Thread(target=version.as_dict)
                other.start()
                other.join()
            lines += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        return version.as_dict(), lines
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("at", range(20))
def test_two_threads_that_read_a_version_whole_at_once_lose_nothing(at: int) -> None:
    version = PersistentMap(dict.fromkeys(range(100), 0))
    for key in (100, 101, 102, 7):
        version = version.with_item(key, key)
    version = version.without(8)
    expected = {key: key if key in (100, 101, 102, 7) else 0 for key in range(103) if key != 8}
    assert len(version._layers) > 1
    found, lines = _read_while_another_thread_reads(version, at)
    assert lines < 20
    assert found == version.as_dict() == expected
    assert len(version) == len(expected)
