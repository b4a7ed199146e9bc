"""The fold: what is true now, as a pure function of the entries of one space.

No clock, no I/O, no randomness. A `CoordinationState` never changes; the next one shares with it all
that is the same, so that one more append costs that append. `docs/state.md` has every corner of the
meaning of the events in words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from coordjournal import weight
from coordjournal.entry import Entry, StoredEntry
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
    short,
)
from coordjournal.groups import Groups, GroupsDraft, Tie
from coordjournal.persistent import MapDraft, PersistentMap
from coordjournal.pointers import Pointers, PointersDraft

FOLD_VERSION: Final = 1
"""Grows with every change of what a fold gives; stored states of another version are not believed."""


class Group(msgspec.Struct, frozen=True):
    """Pages that are one page: two or more, sorted by code point, and which one stands for them."""

    canonical: str
    members: tuple[str, ...]


class Overlay(msgspec.Struct, frozen=True):
    """A text that lies on a page, and the seq of the entry that put it there."""

    page: str
    overlay: str
    media_type: str
    body: str
    seq: int


class Resolution(msgspec.Struct, frozen=True):
    """Where a name leads.

    `hops` are the names passed, the asked one first and the page last; `canonical` stands for the
    page's group, `members` are its pages (the page alone where it has no group), `overlays` lie on
    any of them, sorted by page and name.
    """

    name: str
    hops: tuple[str, ...]
    canonical: str
    members: tuple[str, ...]
    overlays: tuple[Overlay, ...]


_Laid = PersistentMap[str, Overlay]


class CoordinationState:
    """What is true after the entry `seq`. Immutable, equal by content, safe in many threads."""

    __slots__ = ("_aliases", "_forks", "_groups", "_laid", "_laid_texts", "_overlays", "_seq")

    def __init__(self) -> None:
        """Make the state in which nothing was decided."""
        self._seq = 0
        self._aliases = Pointers(PersistentMap())
        self._forks = Pointers(PersistentMap())
        self._groups = Groups()
        self._overlays: PersistentMap[str, _Laid] = PersistentMap()
        self._laid = 0  # overlays
        self._laid_texts = 0  # bytes that these take, about

    @property
    def seq(self) -> int:
        """The entry as of which this is true, 0 where nothing was decided."""
        return self._seq

    @property
    def aliases(self) -> Mapping[str, str]:
        """Every alias and the name it leads to, literally."""
        return _View(self._aliases.facts, lambda fact: fact[0])

    @property
    def forks(self) -> Mapping[str, str]:
        """Every fork and the page that it descends from."""
        return _View(self._forks.facts, lambda fact: fact[0])

    @property
    def overlays(self) -> Mapping[str, tuple[Overlay, ...]]:
        """Every page that overlays lie on, and these, sorted by name."""
        return _View(self._overlays, lambda laid: tuple(laid[name] for name in sorted(laid)))

    @property
    def groups(self) -> tuple[Group, ...]:
        """All groups, sorted by canonical page."""
        groups = (self._group(group) for group in self._groups.members)
        return tuple(sorted(groups, key=lambda group: group.canonical))

    def group(self, page: str) -> Group | None:
        """Return the group of `page`, None if it has none; aliases are not followed."""
        group = self._groups.group_of.get(page)
        return None if group is None else self._group(group)

    def resolve(self, name: str) -> Resolution:
        """Return where `name` leads; a name of which nothing was decided leads to itself."""
        hops = tuple(self._aliases.follow(name))
        page = hops[-1]
        group = self.group(page) or Group(page, (page,))
        laid = self.overlays
        overlays = tuple(overlay for member in group.members for overlay in laid.get(member, ()))
        return Resolution(name, hops, group.canonical, group.members, overlays)

    def made_by(self, event: Event) -> int:
        """Return the seq of the entry that made the fact which `event` sets, 0 if it does not stand."""
        match event:
            case AliasSet(alias=alias, target=target):
                return _made_by(self._aliases, alias, target)
            case PageForked(source=source, fork=fork):
                return _made_by(self._forks, fork, source)
            case PagesBound(a=a, b=b):
                return self._groups.ties.get(a, _NO_TIES).get(b, _NO_TIE).bound
            case PagesMerged(into=into):
                ties = self._groups.ties.get(into, _NO_TIES)
                made = [ties.get(source, _NO_TIE).merged for source in event.tied()]
                return max(made) if all(made) and (self._groups.merged.get(into) or 0) >= max(made) else 0
            case OverlaySet(page=page, overlay=name):
                laid = self._overlays.get(page, _NO_OVERLAYS).get(name)
                same = laid and (laid.media_type, laid.body) == (event.media_type, event.body)
                return laid.seq if laid and same else 0
            case _:
                return 0

    @property
    def held(self) -> int:
        """About how many bytes of memory it takes, if it shares them with no other state; costs no walk."""
        laid = weight.LAID_ON * len(self._overlays) + weight.LAID * self._laid + self._laid_texts
        forks = self._forks.held - self._forks.texts // 2  # pages that the groups' ranks name too
        return weight.STATE + self._aliases.held + forks + self._groups.held + weight.scaled(laid, self._overlays)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CoordinationState):
            return NotImplemented
        return self.seq == other.seq and (
            self._aliases.facts == other._aliases.facts
            and self._forks.facts == other._forks.facts
            and self._groups.ties == other._groups.ties
            and self._groups.ranks == other._groups.ranks
            and self._groups.merged == other._groups.merged
            and self._overlays == other._overlays
            and self.groups == other.groups
        )

    __hash__ = None  # type: ignore[assignment]  # equal by content, which is too large to hash

    def __repr__(self) -> str:
        return (
            f"<CoordinationState seq={self.seq}: {len(self.aliases)} aliases, {len(self._groups.members)} groups,"
            f" {len(self.forks)} forks, {len(self.overlays)} pages with overlays>"
        )

    def _group(self, group: int) -> Group:
        return Group(self._groups.leads[group].canonical, tuple(sorted(self._groups.members[group])))


_NO_TIES: PersistentMap[str, Tie] = PersistentMap()
_NO_TIE = Tie(0, 0)
_NO_OVERLAYS: _Laid = PersistentMap()
EMPTY: Final = CoordinationState()


def _shown(name: str) -> str:
    return repr(short(name))


def texts_of(overlay: Overlay) -> int:
    """Return about how many bytes the texts of an overlay take."""
    return sum(map(weight.of_text, (overlay.page, overlay.overlay, overlay.media_type, overlay.body)))


def _made_by(pointers: Pointers, name: str, target: str) -> int:
    fact = pointers.facts.get(name)
    return fact[1] if fact is not None and fact[0] == target else 0


class StateDraft:
    """The changes towards the next state: entries are applied one by one, then it is frozen.

    Only the parts that an event touches are drafted, so a draft for one append costs that append.
    """

    def __init__(self, base: CoordinationState) -> None:
        self._base = base
        self.seq = base.seq
        self._drafted_aliases: PointersDraft | None = None
        self._drafted_forks: PointersDraft | None = None
        self._drafted_groups: GroupsDraft | None = None
        self._drafted_overlays: MapDraft[str, _Laid] | None = None
        self._laid = base._laid
        self._laid_texts = base._laid_texts

    def decide(self, event: Event) -> None:
        """Apply `event` as the next entry.

        Raises `AliasCycle`, `NothingToRetract` or `NotForkable` where the state does not allow it;
        the draft is then as it was before.
        """
        seq = self.seq + 1
        _DECIDE[type(event)](self, event, seq)
        self.seq = seq

    def apply(self, entry: StoredEntry) -> None:
        """Apply an entry of the log; `Corrupt` with its seq if it contradicts the state."""
        if entry.seq != self.seq + 1:
            raise Corrupt(f"entry {entry.seq} follows entry {self.seq}", seq=entry.seq)
        try:
            self.decide(entry.event)
        except Rejected as refusal:
            raise Corrupt(f"entry {entry.seq} contradicts what was before it: {refusal}", seq=entry.seq) from refusal

    def freeze(self) -> CoordinationState:
        """Return the next state; the draft must not be used afterwards."""
        base, state = self._base, CoordinationState()
        state._seq = self.seq
        state._aliases = self._drafted_aliases.freeze() if self._drafted_aliases is not None else base._aliases
        state._forks = self._drafted_forks.freeze() if self._drafted_forks is not None else base._forks
        state._groups = self._drafted_groups.freeze() if self._drafted_groups is not None else base._groups
        state._overlays = self._drafted_overlays.freeze() if self._drafted_overlays is not None else base._overlays
        state._laid, state._laid_texts = self._laid, self._laid_texts
        return state

    @property
    def _aliases(self) -> PointersDraft:
        if self._drafted_aliases is None:
            self._drafted_aliases = PointersDraft(self._base._aliases)
        return self._drafted_aliases

    @property
    def _forks(self) -> PointersDraft:
        if self._drafted_forks is None:
            self._drafted_forks = PointersDraft(self._base._forks)
        return self._drafted_forks

    @property
    def _groups(self) -> GroupsDraft:
        if self._drafted_groups is None:
            self._drafted_groups = GroupsDraft(self._base._groups)
        return self._drafted_groups

    @property
    def _overlays(self) -> MapDraft[str, _Laid]:
        if self._drafted_overlays is None:
            self._drafted_overlays = MapDraft(self._base._overlays)
        return self._drafted_overlays

    def _alias_set(self, event: AliasSet, seq: int) -> None:
        if self._aliases.would_circle(event.alias, event.target):
            alias, target = _shown(event.alias), _shown(event.target)
            raise AliasCycle(f"alias {alias} → {target}: {target} leads back to it")
        self._aliases.set(event.alias, event.target, seq)

    def _alias_removed(self, event: AliasRemoved, _seq: int) -> None:
        if event.alias not in self._aliases:
            raise NothingToRetract(f"{_shown(event.alias)} is no alias")
        self._aliases.remove(event.alias)

    def _bound(self, event: PagesBound, seq: int) -> None:
        self._groups.bind(event.a, event.b, seq)

    def _unbound(self, event: PagesUnbound, _seq: int) -> None:
        if not self._groups.is_bound(event.a, event.b):
            raise NothingToRetract(f"no binding ties {_shown(event.a)} and {_shown(event.b)}")
        self._groups.unbind(event.a, event.b)

    def _merged(self, event: PagesMerged, seq: int) -> None:
        self._groups.merge(event.tied(), event.into, seq)

    def _forked(self, event: PageForked, seq: int) -> None:
        source, fork = event.source, event.fork
        if self._groups.are_one(source, fork):
            raise NotForkable(f"{_shown(fork)} and {_shown(source)} are the same page")
        if (before := self._forks.get(fork)) is not None:
            raise NotForkable(f"{_shown(fork)} is a fork of {_shown(before)} already")
        if self._forks.would_circle(fork, source):
            raise NotForkable(f"{_shown(source)} descends from {_shown(fork)}")
        self._groups.name(source, fork)
        self._forks.set(fork, source, seq)

    def _overlay_set(self, event: OverlaySet, seq: int) -> None:
        laid = self._overlays.get(event.page) or _NO_OVERLAYS
        overlay = Overlay(event.page, event.overlay, event.media_type, event.body, seq)
        self._groups.name(event.page)
        self._take_off(laid.get(event.overlay))
        self._laid += 1
        self._laid_texts += texts_of(overlay)
        self._overlays[event.page] = laid.with_item(event.overlay, overlay)

    def _overlay_removed(self, event: OverlayRemoved, _seq: int) -> None:
        laid = self._overlays.get(event.page) or _NO_OVERLAYS
        if event.overlay not in laid:
            raise NothingToRetract(f"no overlay {_shown(event.overlay)} lies on {_shown(event.page)}")
        self._take_off(laid[event.overlay])
        laid = laid.without(event.overlay)
        if laid:
            self._overlays[event.page] = laid
        else:
            del self._overlays[event.page]

    def _take_off(self, overlay: Overlay | None) -> None:
        if overlay is not None:
            self._laid -= 1
            self._laid_texts -= texts_of(overlay)


_DECIDE: dict[type, Callable[[StateDraft, Any, int], None]] = {
    AliasSet: StateDraft._alias_set,
    AliasRemoved: StateDraft._alias_removed,
    PagesBound: StateDraft._bound,
    PagesUnbound: StateDraft._unbound,
    PagesMerged: StateDraft._merged,
    PageForked: StateDraft._forked,
    OverlaySet: StateDraft._overlay_set,
    OverlayRemoved: StateDraft._overlay_removed,
}


def judge(state: CoordinationState, events: Iterable[Event]) -> CoordinationState:
    """Return the state after `events`, all or none.

    Raises the `Rejected` that the first event which does not fit deserves; its number is in the error
    where there are several.
    """
    draft = StateDraft(state)
    events = tuple(events)
    for number, event in enumerate(events, 1):
        try:
            draft.decide(event)
        except Rejected as refusal:
            if len(events) > 1:
                raise type(refusal)(f"event {number} of {len(events)}: {refusal}") from None
            raise
    return draft.freeze()


def apply(state: CoordinationState, entry: StoredEntry) -> CoordinationState:
    """Return the state after one more entry; `Corrupt` with its seq if it contradicts the state."""
    return fold((entry,), state)


def fold(entries: Iterable[Entry | StoredEntry], state: CoordinationState = EMPTY) -> CoordinationState:
    """Return the state after `entries`, on top of `state`; entries are streamed, not held.

    Raises `Corrupt` with the seq of the first entry that is out of order or contradicts the state.
    """
    draft = StateDraft(state)
    for entry in entries:
        draft.apply(entry)
    return draft.freeze()


class _View(Mapping[str, Any]):
    """A read-only map over a persistent one that shows each value in the form the caller asked for."""

    __slots__ = ("_facts", "_shown")

    def __init__(self, facts: PersistentMap[str, Any], shown: Callable[[Any], Any]) -> None:
        self._facts = facts
        self._shown = shown

    def __getitem__(self, key: str) -> Any:
        return self._shown(self._facts[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._facts)

    def __len__(self) -> int:
        return len(self._facts)

    def __repr__(self) -> str:
        return repr(dict(self))
