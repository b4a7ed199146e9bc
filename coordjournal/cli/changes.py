"""What differs between two states of a space: aliases, groups, overlays, forks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from coordjournal.cli.output import Output
from coordjournal.cli.text import count, plain
from coordjournal.state import CoordinationState, Group, Overlay


class AliasChange(msgspec.Struct):
    """Where a name leads, before and after; None: nowhere."""

    alias: str
    before: str | None
    after: str | None


class GroupChange(msgspec.Struct):
    """Pages that were grouped anew: joined, split, both at once (mixed), or led by another page (canonical).

    `before` and `after` hold the same pages, a page alone being a group of one.
    """

    change: str
    before: list[Group]
    after: list[Group]


class Laid(msgspec.Struct):
    """What lies on a page under a name, and by which entry."""

    media_type: str
    body: str
    seq: int


class OverlayChange(msgspec.Struct):
    """What lies on a page under a name, before and after; None: nothing."""

    page: str
    overlay: str
    before: Laid | None
    after: Laid | None


class ForkChange(msgspec.Struct):
    """From which page a fork descends, before and after; None: from none."""

    fork: str
    before: str | None
    after: str | None


class Changes(msgspec.Struct):
    """All of them, each kind sorted by name."""

    aliases: list[AliasChange]
    groups: list[GroupChange]
    overlays: list[OverlayChange]
    forks: list[ForkChange]


def changes_between(before: CoordinationState, after: CoordinationState, touched: Iterable[str]) -> Changes:
    """Return what differs; `touched` are the names of the events that lie between, so only they are looked at."""
    names = sorted(set(touched))
    return Changes(
        [AliasChange(name, a, b) for name, a, b in _pointers(before.aliases, after.aliases, names)],
        _groups(before, after, names),
        [change for name in names for change in _overlays(before, after, name)],
        [ForkChange(name, a, b) for name, a, b in _pointers(before.forks, after.forks, names)],
    )


def _pointers(
    before: Mapping[str, str], after: Mapping[str, str], names: Iterable[str]
) -> Iterable[tuple[str, str | None, str | None]]:
    for name in names:
        a, b = before.get(name), after.get(name)
        if a != b:
            yield name, a, b


def _overlays(before: CoordinationState, after: CoordinationState, page: str) -> Iterable[OverlayChange]:
    laid = [{overlay.overlay: overlay for overlay in state.overlays.get(page, ())} for state in (before, after)]
    for name in sorted({*laid[0], *laid[1]}):
        a, b = (_laid(overlays.get(name)) for overlays in laid)
        if a != b:
            yield OverlayChange(page, name, a, b)


def _laid(overlay: Overlay | None) -> Laid | None:
    return None if overlay is None else Laid(overlay.media_type, overlay.body, overlay.seq)


def _groups(before: CoordinationState, after: CoordinationState, names: Iterable[str]) -> list[GroupChange]:
    changes, seen = [], set[str]()
    for name in names:
        if name not in seen and before.group(name) != after.group(name):
            pages = _cluster(before, after, name)
            seen |= pages
            old, new = (_partition(state, pages) for state in (before, after))
            changes.append(GroupChange(_kind(old, new), old, new))
    return changes


def _cluster(before: CoordinationState, after: CoordinationState, name: str) -> set[str]:
    """Return the pages that are connected to `name` through groups of either state."""
    pages, waiting = {name}, [name]
    while waiting:
        page = waiting.pop()
        for state in (before, after):
            group = state.group(page)
            if group is not None and not pages.issuperset(group.members):
                waiting.extend(set(group.members) - pages)
                pages.update(group.members)
    return pages


def _partition(state: CoordinationState, pages: set[str]) -> list[Group]:
    groups = {(group.canonical, group.members) for page in pages if (group := state.group(page))}
    alone = {(page, (page,)) for page in pages if state.group(page) is None}
    return [Group(canonical, members) for canonical, members in sorted(groups | alone)]


def _kind(before: list[Group], after: list[Group]) -> str:
    old, new = ({frozenset(group.members) for group in groups} for groups in (before, after))
    if old == new:
        return "canonical"
    if all(any(part <= whole for whole in new) for part in old):
        return "joined"
    if all(any(part <= whole for whole in old) for part in new):
        return "split"
    return "mixed"


def print_changes(out: Output, changes: Changes) -> None:
    """Print changes for a person: `+` is new, `-` is gone, `~` was grouped anew."""
    if not any((changes.aliases, changes.groups, changes.overlays, changes.forks)):
        out.line("nothing")
    for alias in changes.aliases:
        _print_sides(out, *(to and f"alias {alias.alias} → {to}" for to in (alias.before, alias.after)))
    for group in changes.groups:
        old, new = ("  |  ".join(shown_group(part) for part in side) for side in (group.before, group.after))
        out.line(f"{out.style('~', 'yellow')} {group.change}: {old}  ⟶  {new}")
    for laid in changes.overlays:
        name = f"overlay {laid.overlay} on {laid.page}"
        _print_sides(out, *(f"{name}: {_shown_text(text)}" if text else None for text in (laid.before, laid.after)))
    for fork in changes.forks:
        _print_sides(out, *(source and f"fork {source} ⇒ {fork.fork}" for source in (fork.before, fork.after)))


def _print_sides(out: Output, before: str | None, after: str | None) -> None:
    for mark, color, text in (("-", "red", before), ("+", "green", after)):
        if text:
            out.line(f"{out.style(mark, color)} {plain(text)}")


def shown_group(group: Group) -> str:
    """Return a group in words: its canonical page first."""
    others = [page for page in group.members if page != group.canonical]
    return plain(" = ".join((group.canonical, *others)))


def _shown_text(text: Laid) -> str:
    return f"{text.media_type}, {count(len(text.body.encode()), 'byte')}, by entry {text.seq}"
