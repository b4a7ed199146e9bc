"""Running an import again: what was refused the first time is refused again, not tried on a later state."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from coordjournal.entry import Entry
from coordjournal.errors import Rejected
from coordjournal.importers.known import Known
from coordjournal.importers.report import Asked, Item, There
from coordjournal.state import EMPTY, CoordinationState, fold, judge


def again(
    items: Callable[[], Iterable[Item]], entries: Iterator[Entry], known: Known, now: CoordinationState
) -> Iterator[Item | There]:
    """Yield `items()`: what the log has as `There`, and what an earlier run refused as rejects once more.

    Keys alone do not make a second run idle: it might do what the first one refused, such as the
    retraction of something that came later. So an append that is not among the `known`, while a later
    one of the input is, is judged where it once stood: on the state right before that later one. If one
    fits there, the input is not that of the earlier run, and what is new in the rest is left to the log.

    `entries` are the log's from the first on, read as far as needed; `now` is the state after them all.
    """
    turns = _turns(items(), known)
    state = EMPTY
    for number, item in enumerate(items()):
        while turns and turns[0][0] <= number:
            turns.popleft()
        use = known.find(item) if isinstance(item, Asked) else None
        if use and use.same:
            yield There(item.key)
            continue
        if isinstance(item, Asked) and use is None and turns and turns[0][1] >= state.seq and _is_well_formed(item):
            state = fold(islice(entries, turns[0][1] - state.seq), state)
            if refusal := _refusal(item, state):
                yield from item.refused(refusal if _refusal(item, now) else _as_then(refusal, state.seq))
                continue
            turns.clear()
        yield item


def _turns(items: Iterable[Item], known: Known) -> deque[tuple[int, int]]:
    """Return the known appends that come right after new ones: the number of each, the seq before it."""
    turns: deque[tuple[int, int]] = deque()
    after_new = False
    for number, item in enumerate(items):
        if not isinstance(item, Asked) or not _is_well_formed(item):
            continue
        use = known.find(item)
        if use is None:
            after_new = True
        elif use.same and after_new:
            turns.append((number, use.first - 1))
            after_new = False
    return turns


def _is_well_formed(item: Asked) -> bool:
    try:
        item.check()
    except Rejected:
        return False
    return True


def _refusal(item: Asked, state: CoordinationState) -> Rejected | None:
    try:
        item.encode(state.seq + 1)
        judge(state, item.events)
    except Rejected as refusal:
        return refusal
    return None


def _as_then(refusal: Rejected, seq: int) -> Rejected:
    return type(refusal)(f"{refusal} (as of seq {seq}, its place: what follows it in the input is there already)")
