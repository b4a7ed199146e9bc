"""Shapes of state, and what one takes: as it estimates itself, and as tracemalloc says.

`PYTHONPATH=. python -m tests.unit.weighing` prints both; the constants of `coordjournal.weight` are fitted to it.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, islice
from random import Random
from typing import Final

import msgspec

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
from coordjournal.state import EMPTY, CoordinationState, StateDraft

_ENCODE = msgspec.json.Encoder().encode
_DECODE = msgspec.json.Decoder(Event).decode
_LOAD = msgspec.msgpack.Decoder(Facts).decode


def _name(number: int, like: str) -> str:
    return f"{number} {like}"


LIKE: Final = {
    "short": "Page",
    "long": "A page of the federation " * 18,
    "German": "Übersicht über Größen",
    "Russian": "Заглавная страница",
    "emoji": "🍲 soup of the day",
}


def chain(count: int, like: str) -> Iterator[Event]:
    """Aliases that each lead to the next."""
    for number in range(count):
        yield AliasSet(_name(number + 1, like), _name(number, like))


def bundle(count: int, like: str) -> Iterator[Event]:
    """Aliases that all lead to one page."""
    for number in range(count):
        yield AliasSet(_name(number + 1, like), _name(0, like))


def moved(count: int, like: str) -> Iterator[Event]:
    """Aliases that are set again and again."""
    for times in range(4):
        for number in range(count // 4):
            yield AliasSet(_name(number + 1, like), _name(-times, like))


def cleared(count: int, like: str) -> Iterator[Event]:
    """Aliases of which a quarter is left."""
    yield from bundle(count, like)
    for number in range(count - count // 4):
        yield AliasRemoved(_name(number + 1, like))


def pairs(count: int, like: str) -> Iterator[Event]:
    """Pages that are one, two by two."""
    for number in range(count):
        yield PagesBound(_name(2 * number, like), _name(2 * number + 1, like))


def star(count: int, like: str) -> Iterator[Event]:
    """Pages that are all bound to one."""
    for number in range(count):
        yield PagesBound(_name(0, like), _name(number + 1, like))


def clique(count: int, like: str) -> Iterator[Event]:
    """Pages of which each is bound to each."""
    pages = [_name(number, like) for number in range(count)]
    for a, b in islice(combinations(pages, 2), count):
        yield PagesBound(a, b)


def parted(count: int, like: str) -> Iterator[Event]:
    """Pages that were bound to one, and most are no longer."""
    yield from star(count, like)
    for number in range(count - count // 5):
        yield PagesUnbound(_name(0, like), _name(number + 1, like))


def merges(count: int, like: str) -> Iterator[Event]:
    """Pages that were merged into others, five at a time."""
    for number in range(0, count, 6):
        yield PagesMerged(tuple(_name(number + source, like) for source in range(1, 6)), _name(number, like))


def forks(count: int, like: str) -> Iterator[Event]:
    """Pages that descend from one another."""
    for number in range(count):
        yield PageForked(_name(number // 3, like), _name(number + 1, like))


def overlays(count: int, like: str) -> Iterator[Event]:
    """Overlays of every length, few on each page."""
    for number in range(count):
        body = (like + "\n") * (number % 50)
        yield OverlaySet(_name(number // 3, like), f"note {number % 3}", "text/plain", body)


def replaced(count: int, like: str) -> Iterator[Event]:
    """Overlays that are set again and again, or taken off."""
    for times in range(4):
        for number in range(count // 4):
            yield OverlaySet(_name(number, like), "note", "text/plain", f"{times} " + like * 40)
    for number in range(count // 5):
        yield OverlayRemoved(_name(number, like), "note")


def mixed(count: int, like: str) -> Iterator[Event]:
    """A bit of everything, by chance."""
    kinds = [
        list(kind(count // 6, f"{kind.__name__} {like}")) for kind in (chain, pairs, star, merges, forks, overlays)
    ]
    random = Random(count)
    while any(kinds):
        kind = random.choice([kind for kind in kinds if kind])
        yield kind.pop(0)


Shape = Callable[[int, str], Iterator[Event]]
SHAPES: Final[tuple[Shape, ...]] = (
    *(chain, bundle, moved, cleared, pairs, star, clique, parted, merges, forks, overlays, replaced, mixed),
)
WAYS: Final = ("one by one", "a hundred at a time", "all at once", "loaded")


def folded(events: Sequence[bytes], at_once: int) -> CoordinationState:
    """Return the state after events, each with texts of its own, as they come out of a log."""
    state = EMPTY
    for start in range(0, len(events), at_once):
        draft = StateDraft(state)
        for event in events[start : start + at_once]:
            draft.decide(_DECODE(event))
        state = draft.freeze()
    return state


def made(events: Sequence[bytes], way: str) -> CoordinationState:
    """Return the state after events, made in one of the `WAYS`."""
    if way == "loaded":
        return from_facts(_LOAD(msgspec.msgpack.encode(to_facts(folded(events, len(events))))))
    return folded(events, {"one by one": 1, "a hundred at a time": 100}.get(way, len(events)))


def weighed(events: Sequence[bytes], way: str) -> tuple[int, int]:
    """Return how many bytes a state takes, as it estimates and as tracemalloc counts."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        state = made(events, way)
        return state.held, tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


def encoded(shape: Shape, count: int, like: str) -> list[bytes]:
    """Return a shape's events, as they lie in a log."""
    return [_ENCODE(event) for event in shape(count, LIKE[like])]


def _print_all() -> None:
    for count in (400, 3000):
        for shape in SHAPES:
            for like in LIKE:
                events = encoded(shape, count, like)
                for way in WAYS:
                    estimated, real = weighed(events, way)
                    row = f"{count:6} {shape.__name__:9} {like:8} {way:20} {estimated:10,} {real:10,}"
                    print(f"{row} {estimated / real:5.2f}")  # noqa: T201  # it is for people


if __name__ == "__main__":
    _print_all()
