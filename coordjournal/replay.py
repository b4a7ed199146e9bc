"""Replaying appends into a log: as they were decided, in order, many to one durable write."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Final, NamedTuple

from coordjournal.entry import Append, Entry, Receipt
from coordjournal.errors import Conflict, CoordJournalError, Rejected
from coordjournal.log import DecisionLog

_WINDOW: Final = 1024  # appends under way at a time
_WINDOW_EVENTS: Final = 16_384


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
    under_way: deque[tuple[Append, Future[Receipt]]] = deque()
    events = 0
    counts = [0, 0, 0]

    def decide() -> None:
        append, future = under_way.popleft()
        try:
            receipt = future.result()
        except (Rejected, Conflict) as refusal:
            if on_refusal is None:
                raise
            counts[2] += 1
            on_refusal(append, refusal)
        else:
            counts[receipt.duplicate] += 1
            if on_receipt is not None:
                on_receipt(receipt)

    try:
        for append in asked:
            while under_way and (len(under_way) >= _WINDOW or events >= _WINDOW_EVENTS):
                events -= len(under_way[0][0].events)
                decide()
            future = target.submit(
                space, append.events, actor=append.actor, key=append.key, at=append.at, expect=append.expect
            )
            under_way.append((append, future))
            events += len(append.events)
        while under_way:
            decide()
    finally:
        for _, future in under_way:  # after a failure: nothing of ours goes on behind the caller's back
            if not future.cancel():
                future.exception()
    return Replayed(*counts)
