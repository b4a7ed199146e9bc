"""Hypothesis strategies for names, events and logs.

Logs use few names on purpose: with few, events meet each other, and collide, split, close circles
and retract what is there.
"""

from __future__ import annotations

import unicodedata
from itertools import permutations

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from coordjournal.entry import StoredEntry
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

TIME = "2026-01-31T12:00:00.000000Z"

FEW = ("B", "A", "é", "￮", "𐀀", "a b")
"""Few names; sorted by code point, U+FFEE comes before U+10000 (by UTF-16 unit, after it)."""

_OVERLAYS = ("note", "Map")
_MEDIA_TYPES = ("text/plain", "text/markdown; charset=utf-8", "application/vnd.wiki+json")


def entries(log: list[Event], first: int = 1) -> list[StoredEntry]:
    """Return `log` as the entries from seq `first`."""
    return [StoredEntry(seq, f"key-{seq}", TIME, "somebody", event) for seq, event in enumerate(log, first)]


def legal_names(max_size: int = 30) -> SearchStrategy[str]:
    """Return names of any script."""
    characters = st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp"))
    texts = st.text(characters, min_size=1, max_size=max_size)
    return texts.map(lambda text: unicodedata.normalize("NFC", text).strip()).filter(
        lambda name: 0 < len(name.encode()) <= 512
    )


def any_events() -> SearchStrategy[Event]:
    """Return well-formed events of every kind, with names and bodies of any script."""
    name = legal_names()
    pair = st.lists(name, min_size=2, max_size=2, unique=True)
    body = st.text(st.characters(codec="utf-8"), max_size=40)
    return st.one_of(
        st.builds(AliasSet, name, name),
        st.builds(AliasRemoved, name),
        pair.map(lambda names: PagesBound(*names)),
        pair.map(lambda names: PagesUnbound(*names)),
        _merges(name),
        st.builds(PageForked, name, name),
        st.builds(OverlaySet, name, name, st.sampled_from(_MEDIA_TYPES), body),
        st.builds(OverlayRemoved, name, name),
    )


def events(names: tuple[str, ...] = FEW) -> SearchStrategy[Event]:
    """Return events over `names`, bindings and their retractions most often."""
    name = st.sampled_from(names)
    pair = st.sampled_from(list(permutations(names, 2)))
    bound = pair.map(lambda names: PagesBound(*names))
    unbound = pair.map(lambda names: PagesUnbound(*names))
    overlay = st.sampled_from(_OVERLAYS)
    return st.one_of(
        bound,
        unbound,
        _merges(name),
        st.builds(AliasSet, name, name),
        st.builds(AliasRemoved, name),
        st.builds(PageForked, name, name),
        st.builds(OverlaySet, name, overlay, st.just("text/plain"), st.sampled_from(("", "x", "y"))),
        st.builds(OverlayRemoved, name, overlay),
        bound,
        unbound,
    )


def alias_events(names: tuple[str, ...] = FEW[:4]) -> SearchStrategy[Event]:
    """Return aliases and removals over `names`."""
    name = st.sampled_from(names)
    return st.one_of(st.builds(AliasSet, name, name), st.builds(AliasSet, name, name), st.builds(AliasRemoved, name))


def tie_events(names: tuple[str, ...] = FEW[:4]) -> SearchStrategy[Event]:
    """Return bindings, retractions and merges over `names`."""
    pair = st.sampled_from(list(permutations(names, 2)))
    return st.one_of(
        pair.map(lambda names: PagesBound(*names)),
        pair.map(lambda names: PagesUnbound(*names)),
        pair.map(lambda names: PagesMerged((names[0],), names[1])),
        pair.map(lambda names: PagesUnbound(*names)),
    )


def _merges(name: SearchStrategy[str]) -> SearchStrategy[PagesMerged]:
    sources = st.lists(name, min_size=1, max_size=3).map(tuple)
    return st.builds(PagesMerged, sources, name).filter(lambda event: event.tied() != ())


@st.composite
def logs(draw: st.DrawFn, max_size: int = 40, kind: SearchStrategy[Event] | None = None) -> list[Event]:
    """Draw events of one `kind` or any, fitting or not; every length is as likely as another."""
    size = draw(st.integers(0, max_size))
    return draw(st.lists(events() if kind is None else kind, min_size=size, max_size=size))


@st.composite
def group_logs(draw: st.DrawFn, pages: int = 24) -> list[Event]:
    """Draw the growth of big groups by bindings and some merges, then retractions, then some growth."""
    names = [f"p{number:02}" for number in range(pages)]
    log: list[Event] = []
    for number in range(1, pages):
        other = names[draw(st.integers(0, number - 1))]
        match draw(st.integers(0, 9)):
            case 0:
                log.append(PagesMerged((names[number],), other))
            case 1:
                log.append(PageForked(other, names[number]))  # so trees stay apart, and late ranks differ
            case _:
                log.append(PagesBound(other, names[number]))
    extra = st.tuples(st.sampled_from(names), st.sampled_from(names)).filter(lambda pair: pair[0] != pair[1])
    log += [PagesBound(a, b) for a, b in draw(st.lists(extra, max_size=4))]
    bound = [event for event in log if isinstance(event, PagesBound)]
    if bound:
        gone = draw(st.lists(st.sampled_from(bound), max_size=16))
        log += [PagesUnbound(event.b, event.a) for event in gone]
    log += [PagesBound(a, b) for a, b in draw(st.lists(extra, max_size=3))]
    return log


@st.composite
def chain_logs(draw: st.DrawFn, links: int = 25) -> list[Event]:
    """Draw one long chain of aliases, its links made in any order, then changes to it."""
    names = [f"n{number:02}" for number in range(links + 1)]
    order = draw(st.permutations(range(links)))
    log: list[Event] = [AliasSet(names[number], names[number + 1]) for number in order]
    name = st.sampled_from(names)
    change = st.one_of(st.builds(AliasSet, name, name), st.builds(AliasRemoved, name))
    return log + draw(st.lists(change, max_size=12))


@st.composite
def twin_logs(draw: st.DrawFn) -> tuple[list[Event], list[Event]]:
    """Draw two logs that bind and merge the same four pages, one of the pairs the other way round."""
    pairs = list(permutations(FEW[:4], 2))
    one: list[Event] = []
    for kind in draw(st.lists(st.sampled_from("bmm"), min_size=2, max_size=5)):
        a, b = draw(st.sampled_from(pairs))
        one.append(PagesBound(a, b) if kind == "b" else PagesMerged((a,), b))
    turned = draw(st.integers(0, len(one) - 1))
    other = list(one)
    match one[turned]:
        case PagesBound(a=a, b=b):
            other[turned] = PagesBound(b, a)
        case PagesMerged(sources=(source,), into=into):
            other[turned] = PagesMerged((into,), source)
    return one, other
