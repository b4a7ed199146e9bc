"""Replaying appends into a log: as they were decided, in order, many to one durable write."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import closing
from typing import Final, NamedTuple, TypeVar

from coordjournal.entry import Append, Entry, Receipt
from coordjournal.errors import Conflict, CoordJournalError, Rejected
from coordjournal.events import OverlaySet, PagesMerged
from coordjournal.log import DecisionLog

T = TypeVar("T")

_WINDOW: Final = 1024  # appends under way at a time
_WINDOW_EVENTS: Final = 16_384
_WEIGHT_CHARACTERS: Final = 4096
_WEIGHT_SOURCES: Final = 64


class Replayed(NamedTuple):
    """What a replay did: appends that were new, that the target had already, that it refused."""

    appended: int
    duplicates: int
    refused: int


def replay(
    source: DecisionLog,
    target: DecisionLog,
    space: str,
    *,
    on_refusal: Callable[[Append, CoordJournalError], None] | None = None,
) -> Replayed:
    """Append all of `source`'s `space` to `target`'s, append by append, with their times, actors and keys.

    Can be run again, or after an interruption: what the target has already is not appended twice. A
    refusal is raised, after what is under way is decided, unless `on_refusal` takes it. Raises what
    `DecisionLog.append` and `DecisionLog.events` do.
    """
    return replay_appends(appends(source.events(space)), target, space, on_refusal=on_refusal)


def appends(entries: Iterable[Entry]) -> Iterator[Append]:
    """Yield the appends that made `entries`: those of one commit and key are one."""
    batch: list[Entry] = []
    for entry in entries:
        if batch and (entry.commit, entry.key) != (batch[0].commit, batch[0].key):
            yield _append(batch)
            batch = []
        batch.append(entry)
    if batch:
        yield _append(batch)


def _append(batch: list[Entry]) -> Append:
    top = batch[0]
    return Append(tuple(entry.event for entry in batch), top.key, top.actor, top.at)


def replay_appends(
    asked: Iterable[Append],
    target: DecisionLog,
    space: str,
    *,
    on_refusal: Callable[[Append, CoordJournalError], None] | None = None,
    on_receipt: Callable[[Receipt], None] | None = None,
) -> Replayed:
    """Append `asked` in order, a bounded number under way at a time; what `replay` does, for any source."""
    counts = [0, 0, 0]
    with closing(decided(asked, target, space)) as outcomes:
        for append, outcome in outcomes:
            assert outcome is not None
            if isinstance(outcome, Receipt):
                counts[outcome.duplicate] += 1
                if on_receipt is not None:
                    on_receipt(outcome)
            elif on_refusal is None:
                raise outcome
            else:
                counts[2] += 1
                on_refusal(append, outcome)
    return Replayed(*counts)


def decided(
    asked: Iterable[T], target: DecisionLog, space: str
) -> Generator[tuple[T, Receipt | Rejected | Conflict | None], None, None]:
    """Append what `asked` holds, in order, and yield each with its receipt or refusal, in that order.

    A bounded number is under way at a time, so that many share a durable write. What is no `Append` is
    passed through in its turn, with None. Raises what else `DecisionLog.append` does; when the generator
    is closed or fails, what was not taken on is withdrawn, and the rest is decided before it ends.
    """
    under_way: deque[tuple[T, Future[Receipt] | None]] = deque()
    weight = 0

    def oldest() -> tuple[T, Receipt | Rejected | Conflict | None]:
        nonlocal weight
        item, future = under_way[0]
        outcome = None if future is None else _outcome(future)
        under_way.popleft()
        weight -= _weight(item)
        return item, outcome

    def is_decided() -> bool:
        future = under_way[0][1]
        return future is None or future.done()

    try:
        for item in asked:
            while under_way and (is_decided() or len(under_way) >= _WINDOW or weight >= _WINDOW_EVENTS):
                yield oldest()
            under_way.append((item, _submit(item, target, space) if isinstance(item, Append) else None))
            weight += _weight(item)
        while under_way:
            yield oldest()
    finally:
        # After a failure: nothing of ours goes on behind the caller's back. From the end, so that what is
        # appended all the same has no gap.
        begun = [future for _, future in reversed(under_way) if future is not None and not future.cancel()]
        for future in begun:
            future.exception()


def _submit(append: Append, target: DecisionLog, space: str) -> Future[Receipt]:
    return target.submit(space, append.events, actor=append.actor, key=append.key, at=append.at, expect=append.expect)


def _outcome(future: Future[Receipt]) -> Receipt | Rejected | Conflict:
    try:
        return future.result()
    except (Rejected, Conflict) as refusal:
        return refusal


def _weight(item: object) -> int:
    """Return how many events of usual size `item` is worth: texts and long merges are worth several."""
    if not isinstance(item, Append):
        return 0
    weight = len(item.events)
    for event in item.events:
        if isinstance(event, OverlaySet):
            weight += len(event.body) // _WEIGHT_CHARACTERS
        elif isinstance(event, PagesMerged):
            weight += len(event.sources) // _WEIGHT_SOURCES
    return weight
