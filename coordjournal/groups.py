"""Which pages are the same page: bindings and merges tie pages, tied pages are a group.

A binding ties two pages and can be retracted; a merge ties each of its sources to its `into`, for
good. A group is a connected component of what ties are left, of two pages or more. Groups are kept
joined as ties come (the smaller one is renamed, so n joins cost O(n log n)); a retraction walks from
both of its pages at once and costs at most the size of their group.
"""

from __future__ import annotations

from typing import NamedTuple

from coordjournal import weight
from coordjournal.persistent import MapDraft, PersistentMap

Members = PersistentMap[str, None]


class Tie(NamedTuple):
    """What ties two pages: the seq of their binding and of their latest merge, 0 for none."""

    bound: int
    merged: int


class Lead(NamedTuple):
    """What decides a group's canonical page.

    The latest merge among the members (`merged`, its seq, 0 for none, and `into`), else the member
    that was named first (`rank`, and `first`, the page).
    """

    merged: int
    into: str
    rank: int
    first: str

    @property
    def canonical(self) -> str:
        """The page that stands for the group."""
        return self.into if self.merged else self.first


class Groups(NamedTuple):
    """One version of all ties and what follows from them."""

    ties: PersistentMap[str, PersistentMap[str, Tie]] = PersistentMap()
    group_of: PersistentMap[str, int] = PersistentMap()
    members: PersistentMap[int, Members] = PersistentMap()
    leads: PersistentMap[int, Lead] = PersistentMap()
    ranks: PersistentMap[str, int] = PersistentMap()
    merged: PersistentMap[str, int] = PersistentMap()
    next_group: int = 1
    tied: int = 0
    """How many ties there are."""
    texts: int = 0
    """About how many bytes the names of all pages take."""
    again: int = 0
    """About how many bytes more they take where ties have them as texts of their own."""

    @property
    def held(self) -> int:
        """About how many bytes all of it takes."""
        ties = weight.TIED * len(self.ties) + weight.TIE * self.tied + self.again
        groups = weight.GROUPED * self.group_of.slots + weight.GROUP * self.members.slots
        return (
            weight.scaled(weight.RANK * len(self.ranks) + self.texts, self.ranks)
            + weight.scaled(ties, self.ties)
            + groups
            + weight.MERGED * self.merged.slots
        )


class GroupsDraft:
    """The changes towards the next version of `Groups`."""

    def __init__(self, base: Groups) -> None:
        self._ties = MapDraft(base.ties)
        self._group_of = MapDraft(base.group_of)
        self._members = MapDraft(base.members)
        self._leads = MapDraft(base.leads)
        self._ranks = MapDraft(base.ranks)
        self._merged = MapDraft(base.merged)
        self._next_group = base.next_group
        self._tied = base.tied
        self._texts = base.texts
        self._again = base.again

    def freeze(self) -> Groups:
        """Return the next version; the draft must not be used afterwards."""
        return Groups(
            self._ties.freeze(),
            self._group_of.freeze(),
            self._members.freeze(),
            self._leads.freeze(),
            self._ranks.freeze(),
            self._merged.freeze(),
            self._next_group,
            self._tied,
            self._texts,
            self._again,
        )

    def name(self, *pages: str) -> None:
        """Note that a decision of this space named `pages`, in this order."""
        for page in pages:
            if page not in self._ranks:
                self._ranks[page] = len(self._ranks)
                self._texts += weight.of_text(page)

    def are_one(self, a: str, b: str) -> bool:
        """Whether both pages are in one group, or are one page."""
        return a == b or (a in self._group_of and self._group_of.get(a) == self._group_of.get(b))

    def bind(self, a: str, b: str, seq: int) -> None:
        """Tie `a` and `b` by a binding; one that is there already stays as it was made."""
        known = [page for page in (a, b) if page in self._ranks]
        self.name(a, b)
        tie = self._tie(a, b)
        if not tie.bound:
            if not tie.merged:
                self._note_texts(known)
            self._set_tie(a, b, Tie(seq, tie.merged))
            self._join(a, b)

    def is_bound(self, a: str, b: str) -> bool:
        """Whether a binding of just these two pages stands."""
        return self._tie(a, b).bound > 0

    def unbind(self, a: str, b: str) -> None:
        """Retract the binding of `a` and `b`, which must stand."""
        tie = self._tie(a, b)
        assert tie.bound, (a, b)
        self._set_tie(a, b, Tie(0, tie.merged))
        if not tie.merged:
            self._part(a, b)

    def merge(self, sources: tuple[str, ...], into: str, seq: int) -> None:
        """Tie each of `sources` to `into` for good; `into` becomes canonical."""
        known = [page for page in (*sources, into) if page in self._ranks]
        self.name(*sources, into)
        self._note_texts(known)
        self._merged[into] = seq
        for source in sources:
            self._set_tie(source, into, Tie(self._tie(source, into).bound, seq))
            self._join(source, into)
        group = self._group_of.get(into)
        assert group is not None
        lead = self._leads.get(group)
        assert lead is not None
        self._leads[group] = lead._replace(merged=seq, into=into)

    def _note_texts(self, known: list[str]) -> None:
        """Note names that an event has as texts of its own, though they were known before."""
        for page in known:
            self._again += weight.of_text(page)

    def _tie(self, a: str, b: str) -> Tie:
        ties = self._ties.get(a)
        tie = ties.get(b) if ties else None
        return tie or Tie(0, 0)

    def _set_tie(self, a: str, b: str, tie: Tie) -> None:
        before = self._tie(a, b)
        if any(tie) and not any(before):
            self._tied += 1
        elif any(before) and not any(tie):
            self._again -= self._again // self._tied  # whose it was, nobody knows any more
            self._tied -= 1
        for page, other in ((a, b), (b, a)):
            ties = self._ties.get(page) or PersistentMap()
            ties = ties.with_item(other, tie) if any(tie) else ties.without(other)
            if ties:
                self._ties[page] = ties
            else:
                del self._ties[page]

    def _lead_of(self, pages: Members | set[str]) -> Lead:
        into, first = "", ""
        merged, rank = 0, len(self._ranks)
        for page in pages:
            if (at := self._merged.get(page) or 0) > merged:
                merged, into = at, page
            page_rank = self._ranks.get(page)
            assert page_rank is not None, page
            if page_rank < rank:
                rank, first = page_rank, page
        return Lead(merged, into, rank, first)

    def _group(self, page: str) -> int:
        """Return the page's group, a new one of this page alone if it has none yet."""
        group = self._group_of.get(page)
        if group is None:
            group = self._open({page})
        return group

    def _open(self, pages: set[str]) -> int:
        group = self._next_group
        self._next_group += 1
        self._members[group] = PersistentMap(dict.fromkeys(pages))
        self._leads[group] = self._lead_of(pages)
        for page in pages:
            self._group_of[page] = group
        return group

    def _close(self, group: int) -> None:
        del self._members[group]
        del self._leads[group]

    def _join(self, a: str, b: str) -> None:
        kept, gone = self._group(a), self._group(b)
        if kept == gone:
            return
        kept_pages, gone_pages = self._pages(kept), self._pages(gone)
        if len(kept_pages) < len(gone_pages):
            kept, gone, kept_pages, gone_pages = gone, kept, gone_pages, kept_pages
        draft = MapDraft(kept_pages)
        for page in gone_pages:
            draft[page] = None
            self._group_of[page] = kept
        x, y = self._leads.get(kept), self._leads.get(gone)
        assert x is not None
        assert y is not None
        latest, earliest = max(x, y), min(x, y, key=lambda lead: lead.rank)
        self._members[kept] = draft.freeze()
        self._leads[kept] = Lead(latest.merged, latest.into, earliest.rank, earliest.first)
        self._close(gone)

    def _pages(self, group: int) -> Members:
        pages = self._members.get(group)
        assert pages is not None, group
        return pages

    def _part(self, a: str, b: str) -> None:
        part = self._side(a, b)
        if part is None:
            return
        group = self._group_of.get(a)
        assert group is not None
        rest = set(self._pages(group)) - part
        self._close(group)
        for pages in (rest, part):
            if len(pages) > 1:
                self._open(pages)
            else:
                del self._group_of[next(iter(pages))]

    def _side(self, a: str, b: str) -> set[str] | None:
        """Return the smaller of the two components of `a` and `b`, None if they are still one.

        Both are walked by turns, so the walk ends with the smaller one.
        """
        sides = ({a}, {b})
        waiting = ([a], [b])
        while waiting[0] and waiting[1]:
            for mine, other, todo in ((sides[0], sides[1], waiting[0]), (sides[1], sides[0], waiting[1])):
                if not todo:
                    break
                for page in self._ties.get(todo.pop()) or ():
                    if page in other:
                        return None
                    if page not in mine:
                        mine.add(page)
                        todo.append(page)
        return sides[1] if waiting[0] else sides[0]
