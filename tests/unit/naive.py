"""A second fold, as plain as the words of `docs/state.md`: lists, dicts, everything worked out anew.

It shares nothing with the real one but the events and the names of the refusals.
"""

from __future__ import annotations

from typing import NamedTuple

from coordjournal.errors import AliasCycle, NotForkable, NothingToRetract, Rejected
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


class Laid(NamedTuple):
    """An overlay."""

    page: str
    overlay: str
    media_type: str
    body: str
    seq: int


class Way(NamedTuple):
    """What `resolve` tells of a name."""

    hops: tuple[str, ...]
    canonical: str
    members: tuple[str, ...]
    overlays: tuple[Laid, ...]


class Content(NamedTuple):
    """All that a state shows, in copies."""

    seq: int
    aliases: dict[str, str]
    forks: dict[str, str]
    overlays: dict[str, tuple[Laid, ...]]
    groups: list[tuple[str, tuple[str, ...]]]
    ways: dict[str, Way]


class NaiveState:
    """What is true, kept without any cleverness."""

    def __init__(self) -> None:
        self.seq = 0
        self.aliases: dict[str, tuple[str, int]] = {}
        self.forks: dict[str, tuple[str, int]] = {}
        self.overlays: dict[tuple[str, str], Laid] = {}
        self.bindings: dict[frozenset[str], int] = {}
        self.merges: list[PagesMerged] = []
        self.named: list[str] = []

    def decide(self, event: Event) -> type[Rejected] | None:
        """Apply `event`, or return which refusal it deserves."""
        refusal = self.refusal(event)
        if refusal is None:
            self.seq += 1
            self._change(event)
        return refusal

    def refusal(self, event: Event) -> type[Rejected] | None:
        """Return what speaks against `event`, None if nothing does."""
        fits = True
        error: type[Rejected] = NothingToRetract
        match event:
            case AliasSet(alias=alias, target=target):
                error, fits = AliasCycle, alias not in self._walk(self.aliases, target)
            case AliasRemoved(alias=alias):
                fits = alias in self.aliases
            case PagesUnbound(a=a, b=b):
                fits = frozenset((a, b)) in self.bindings
            case OverlayRemoved(page=page, overlay=overlay):
                fits = (page, overlay) in self.overlays
            case PageForked(source=source, fork=fork):
                one_group = fork in self._group(source)
                circle = fork in self._walk(self.forks, source)
                error, fits = NotForkable, not (one_group or circle or fork in self.forks)
        return None if fits else error

    def content(self, names: tuple[str, ...]) -> Content:
        """Return all that is true, and where each of `names` leads."""
        groups = self._groups()
        return Content(
            self.seq,
            {alias: target for alias, (target, _) in self.aliases.items()},
            {fork: source for fork, (source, _) in self.forks.items()},
            {page: self._laid([page]) for page, _ in self.overlays},
            sorted((self._canonical(group), tuple(sorted(group))) for group in groups),
            {name: self._way(name, groups) for name in names},
        )

    def made_by(self, event: Event) -> int:
        """Return the seq that made what `event` sets, 0 if it does not stand; merges are left out."""
        match event:
            case AliasSet(alias=alias, target=target):
                found, seq = self.aliases.get(alias, ("", 0))
                return seq if found == target else 0
            case PageForked(source=source, fork=fork):
                found, seq = self.forks.get(fork, ("", 0))
                return seq if found == source else 0
            case PagesBound(a=a, b=b):
                return self.bindings.get(frozenset((a, b)), 0)
            case OverlaySet(page=page, overlay=overlay, media_type=media_type, body=body):
                laid = self.overlays.get((page, overlay))
                return laid.seq if laid and (laid.media_type, laid.body) == (media_type, body) else 0
        return 0

    def _change(self, event: Event) -> None:
        match event:
            case AliasSet(alias=alias, target=target):
                self.aliases[alias] = (target, self.seq)
            case AliasRemoved(alias=alias):
                del self.aliases[alias]
            case PagesBound(a=a, b=b):
                self._name(a, b)
                self.bindings.setdefault(frozenset((a, b)), self.seq)
            case PagesUnbound(a=a, b=b):
                del self.bindings[frozenset((a, b))]
            case PagesMerged(sources=sources, into=into):
                self._name(*sources, into)
                self.merges.append(event)
            case PageForked(source=source, fork=fork):
                self._name(source, fork)
                self.forks[fork] = (source, self.seq)
            case OverlaySet(page=page, overlay=overlay, media_type=media_type, body=body):
                self._name(page)
                self.overlays[page, overlay] = Laid(page, overlay, media_type, body, self.seq)
            case OverlayRemoved(page=page, overlay=overlay):
                del self.overlays[page, overlay]

    def _name(self, *pages: str) -> None:
        self.named += [page for page in pages if page not in self.named]

    @staticmethod
    def _walk(leads: dict[str, tuple[str, int]], name: str) -> list[str]:
        way = [name]
        while way[-1] in leads:
            way.append(leads[way[-1]][0])
        return way

    def _groups(self) -> list[set[str]]:
        ties = [set(pair) for pair in self.bindings]
        ties += [{source, merge.into} for merge in self.merges for source in merge.sources if source != merge.into]
        groups: list[set[str]] = []
        for tie in ties:
            touched = [group for group in groups if group & tie]
            groups = [group for group in groups if not group & tie]
            groups.append(tie.union(*touched))
        return groups

    def _group(self, page: str, groups: list[set[str]] | None = None) -> set[str]:
        return next((group for group in groups or self._groups() if page in group), {page})

    def _canonical(self, group: set[str]) -> str:
        merged = [merge.into for merge in self.merges if merge.into in group]
        return merged[-1] if merged else min(group, key=self.named.index)

    def _laid(self, pages: list[str]) -> tuple[Laid, ...]:
        return tuple(laid for _, laid in sorted(self.overlays.items()) if laid.page in pages)

    def _way(self, name: str, groups: list[set[str]]) -> Way:
        hops = self._walk(self.aliases, name)
        group = self._group(hops[-1], groups)
        canonical = self._canonical(group) if len(group) > 1 else hops[-1]
        members = sorted(group)
        return Way(tuple(hops), canonical, tuple(members), self._laid(members))
