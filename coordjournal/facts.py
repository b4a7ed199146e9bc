"""All that a state knows, in plain containers, to be stored and loaded as it is."""

from __future__ import annotations

import msgspec

from coordjournal import weight
from coordjournal.groups import Groups, Lead, Tie
from coordjournal.persistent import PersistentMap
from coordjournal.pointers import Pointers
from coordjournal.state import CoordinationState, Overlay, texts_of


class Facts(msgspec.Struct, array_like=True):
    """The content of a `CoordinationState`; its layout is `FOLD_VERSION`'s."""

    seq: int
    aliases: dict[str, tuple[str, int]]
    forks: dict[str, tuple[str, int]]
    ties: dict[str, dict[str, Tie]]
    groups: dict[int, tuple[Lead, list[str]]]
    ranks: dict[str, int]
    merged: dict[str, int]
    next_group: int
    overlays: dict[str, dict[str, Overlay]]


def to_facts(state: CoordinationState) -> Facts:
    """Return what `state` knows; the containers may be shared with it and must not be changed."""
    groups = state._groups
    return Facts(
        state.seq,
        state._aliases.facts.as_dict(),
        state._forks.facts.as_dict(),
        {page: ties.as_dict() for page, ties in groups.ties.items()},
        {group: (groups.leads[group], list(pages)) for group, pages in groups.members.items()},
        groups.ranks.as_dict(),
        groups.merged.as_dict(),
        groups.next_group,
        {page: laid.as_dict() for page, laid in state._overlays.items()},
    )


def from_facts(facts: Facts) -> CoordinationState:
    """Return the state that gave `facts`, which it takes over."""
    state = CoordinationState()
    state._seq = facts.seq
    one = {page: page for page in facts.ranks}.setdefault  # the one text that stands for all that are equal
    state._aliases = Pointers(PersistentMap(facts.aliases))
    state._forks = Pointers(PersistentMap(facts.forks))
    state._groups = Groups(
        PersistentMap(
            {
                one(page, page): PersistentMap({one(other, other): tie for other, tie in ties.items()})
                for page, ties in facts.ties.items()
            }
        ),
        PersistentMap({one(page, page): group for group, (_, pages) in facts.groups.items() for page in pages}),
        PersistentMap(
            {
                group: PersistentMap(dict.fromkeys([one(page, page) for page in pages]))
                for group, (_, pages) in facts.groups.items()
            }
        ),
        PersistentMap({group: lead for group, (lead, _) in facts.groups.items()}),
        PersistentMap(facts.ranks),
        PersistentMap(facts.merged),
        facts.next_group,
        sum(map(len, facts.ties.values())) // 2,
        weight.of_texts(facts.ranks.keys()),
    )
    state._overlays = PersistentMap({page: PersistentMap(laid) for page, laid in facts.overlays.items()})
    laid = [overlay for overlays in facts.overlays.values() for overlay in overlays.values()]
    state._laid, state._laid_texts = len(laid), sum(map(texts_of, laid))
    return state
