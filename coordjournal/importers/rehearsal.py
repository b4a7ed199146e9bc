"""Judging appends as a log would, and appending nothing."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import TypeVar

from coordjournal.commit import check_room, key_reused
from coordjournal.entry import Append, Receipt
from coordjournal.errors import Rejected
from coordjournal.importers.known import Known, Use
from coordjournal.state import CoordinationState, judge

T = TypeVar("T")


def rehearsed(
    asked: Iterable[T], space: str, state: CoordinationState, known: Known
) -> Generator[tuple[T, Receipt | Rejected | None], None, None]:
    """Yield what `replay.decided` would, for a log in `state` with the keys `known`.

    The receipts bear no commit. Memory: the state, and some 150 bytes for each append that it takes.
    """
    taken = Known()
    for item in asked:
        if not isinstance(item, Append):
            yield item, None
            continue
        first = state.seq + 1
        try:
            use = _judge_but_state(item, first, taken, known)
            if use is None:
                state = judge(state, item.events)
                taken.add(item, first)
        except Rejected as refusal:
            yield item, refusal
        else:
            first = use.first if use else first
            seq = first + len(item.events) - 1
            yield item, Receipt(space, first, seq, "", 0, item.key, duplicate=use is not None)


def _judge_but_state(append: Append, first: int, taken: Known, known: Known) -> Use | None:
    """Judge in the order of `commit.Group`; return the append that was there before."""
    append.check()
    append.encode(first)
    use = taken.find(append) or known.find(append)
    if use is not None and not use.same:
        raise key_reused(append.key, use.first)
    if use is None:
        check_room(append, first)
    return use
