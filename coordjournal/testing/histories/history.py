"""A history, taken apart: who asked for what and when, the log, and who can have known what at which time."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate, groupby
from math import inf
from typing import Final, NamedTuple

from coordjournal.authority.wire import HeadValue, decode_head
from coordjournal.errors import OperatorNeeded
from coordjournal.testing.histories.events import (
    AppendInvoked,
    AppendReturned,
    BranchSeen,
    Ended,
    Era,
    Event,
    Examined,
    Fault,
    FinalHead,
    Healed,
    Logged,
    ReadInvoked,
    ReadReturned,
    Revision,
    Sent,
)

HEADS: Final = "heads/"


class Attempt(NamedTuple):
    """One call of `append`: what was asked for, and how it ended; None if it never did."""

    asked: AppendInvoked
    told: AppendReturned | None

    @property
    def key(self) -> str:
        return self.asked.append.key

    @property
    def invoked(self) -> float:
        return self.asked.at

    @property
    def returned(self) -> float:
        return self.told.at if self.told is not None else inf

    @property
    def ok(self) -> bool:
        return self.told is not None and self.told.receipt is not None

    @property
    def certainly_not(self) -> bool:
        """Whether its caller was told that it was not applied."""
        return self.told is not None and self.told.outcome in ("refused", "failed")

    @property
    def appended(self) -> bool:
        """Whether its caller was told that it was applied by this very call."""
        return self.told is not None and self.told.receipt is not None and not self.told.receipt.duplicate


class Reading(NamedTuple):
    """One read: what was asked for, and what came of it; None if it never returned."""

    asked: ReadInvoked
    told: ReadReturned | None

    @property
    def saw(self) -> bool:
        """Whether it tells how far the log was: one of entries that found none does not."""
        told = self.told
        return told is not None and not told.error and (self.asked.what != "events" or bool(told.commit))


class Published(NamedTuple):
    """A head that was put: at which revision of which era, when that was seen, what it says."""

    revision: Revision
    value: HeadValue

    @property
    def marked(self) -> bool:
        """Whether an operator's command put it."""
        return bool(self.value.mark) or self.value.left


class Log:
    """The log of one space as it ended: `appends` in their order, and what else lies in the store."""

    def __init__(self, space: str, final: FinalHead | None, stored: Iterable[Logged]) -> None:
        self.space = space
        self.final = final
        self.stored = {item.commit: item for item in stored}
        self.broken = ""
        self.appends = self._walk()
        self.place = {item.commit: number for number, item in enumerate(self.appends)}
        self.seqs = [item.seq for item in self.appends]
        self.by_key: defaultdict[str, list[Logged]] = defaultdict(list)
        for item in self.appends:
            self.by_key[item.key].append(item)

    def _walk(self) -> list[Logged]:
        found: list[Logged] = []
        commit = self.final.commit if self.final is not None else ""
        while commit:
            item = self.stored.get(commit)
            if item is None or len(found) > len(self.stored):
                self.broken = f"commit {commit} is not in the store, or is its own ancestor"
                break
            found.append(item)
            commit = item.parent
        return found[::-1]

    def place_of(self, seq: int) -> int | None:
        """Return how many appends there are up to the one that ends at `seq`; None if none does."""
        if seq == 0:
            return 0
        number = bisect_left(self.seqs, seq)
        return number + 1 if number < len(self.seqs) and self.seqs[number] == seq else None

    def holds(self, commit: str, seq: int) -> bool:
        """Whether `commit` is part of the log and ends at `seq`; no commit fits any append's end."""
        if not commit:
            return self.place_of(seq) is not None
        number = self.place.get(commit)
        return number is not None and self.seqs[number] == seq

    def between(self, old: str, new: str) -> list[Logged] | None:
        """Return the appends after commit `old`, up to and with `new`; None if `new` does not descend from it."""
        found: list[Logged] = []
        commit = new
        while commit != old:
            item = self.stored.get(commit)
            if item is None or len(found) > len(self.stored):
                return None
            found.append(item)
            commit = item.parent
        return found[::-1]


class Space:
    """What happened to one space."""

    def __init__(self, name: str, history: History) -> None:
        self.name = name
        self._history = history
        self.log = Log(name, history.finals.get(name), history.stored[name])
        self.attempts = history.attempts_of[name]
        self.reads = history.reads_of[name]
        self.branch = history.branches[name]
        self.calls: list[Attempt | Reading] = [*self.attempts, *self.reads]
        self.by_key: defaultdict[str, list[Attempt]] = defaultdict(list)
        for attempt in self.attempts:
            self.by_key[attempt.key].append(attempt)

    @cached_property
    def known(self) -> Knowledge:
        """What anybody can have known of the published head."""
        return Knowledge(self._sightings())

    def _sightings(self) -> Iterator[tuple[float, int]]:
        """Yield when which seq was seen to be published; what the log does not bear out is for other rules."""
        log = self.log
        for attempt in self.attempts:
            if (
                attempt.told is not None
                and (receipt := attempt.told.receipt)
                and log.holds(receipt.commit, receipt.seq)
            ):
                yield attempt.returned, receipt.seq
        for read in self.reads:
            if read.told is not None and read.saw and log.holds(read.told.commit, read.told.seq):
                yield read.told.at, read.told.seq
        for put in self._history.published.get(self.name, ()):
            if log.holds(put.value.commit, put.value.seq):
                yield put.revision.at, put.value.seq

    @cached_property
    def begun(self) -> list[float]:
        """The earliest time at which each append of the log can have been published; never falls along it."""
        return list(accumulate((self.begun_at(item) for item in self.log.appends), max))

    def possible(self, at: float) -> int:
        """Return how many appends of the log can have been published by a time."""
        return bisect_right(self.begun, at)

    def candidates(self, key: str) -> list[Attempt]:
        """Return the calls under a key that can be the one which was applied."""
        attempts = self.by_key.get(key, [])
        if own := [attempt for attempt in attempts if attempt.appended]:
            return own
        possible = [attempt for attempt in attempts if not attempt.certainly_not and not attempt.ok]
        return possible or [attempt for attempt in attempts if not attempt.certainly_not] or attempts

    def begun_at(self, item: Logged) -> float:
        """Return the time before which an append of the log cannot have been published.

        A call that is said to have failed counts as well: that it did is for another rule to see.
        """
        attempts = self.by_key.get(item.key, [])
        counted = [*self.candidates(item.key), *(attempt for attempt in attempts if attempt.certainly_not)]
        return min((attempt.invoked for attempt in counted), default=-inf)


class Knowledge:
    """When which entry was known to be published."""

    def __init__(self, sightings: Iterable[tuple[float, int]]) -> None:
        ordered = sorted(sightings)
        self._times = [at for at, _ in ordered]
        self._seqs = [seq for _, seq in ordered]
        self._most = list(accumulate(self._seqs, max))

    def before(self, at: float, since: float = -inf) -> int:
        """Return the greatest seq that was seen before a time; of what was seen `since` then, if given."""
        end = bisect_left(self._times, at)
        if since == -inf:
            return self._most[end - 1] if end else 0
        return max(self._seqs[bisect_right(self._times, since) : end], default=0)

    def first_seen(self, seq: int) -> float:
        """Return when an entry was first known to be published, infinity if it never was."""
        number = bisect_left(self._most, seq)
        return self._times[number] if number < len(self._times) else inf


class History:
    """All events of a run, by what they are about."""

    def __init__(self, events: Iterable[Event]) -> None:
        self.events: Sequence[Event] = sorted(events, key=lambda event: event.at)
        told: dict[str, AppendReturned] = {}
        read: dict[str, ReadReturned] = {}
        self.stored: defaultdict[str, list[Logged]] = defaultdict(list)
        self.finals: dict[str, FinalHead] = {}
        self.branches: defaultdict[str, list[BranchSeen]] = defaultdict(list)
        self.attempts_of: defaultdict[str, list[Attempt]] = defaultdict(list)
        self.reads_of: defaultdict[str, list[Reading]] = defaultdict(list)
        self.sent: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        self.ended: dict[str, float] = {}
        self.eras: list[Era] = []
        self.examined: list[Examined] = []
        self.healed: list[Healed] = []
        self.faults: list[Fault] = []
        self._revisions: list[Revision] = []
        for event in self.events:
            match event:
                case AppendReturned():
                    told[event.op] = event
                case ReadReturned():
                    read[event.op] = event
                case _:
                    self._file(event)
        for event in self.events:
            if isinstance(event, AppendInvoked):
                self.attempts_of[event.space].append(Attempt(event, told.get(event.op)))
            elif isinstance(event, ReadInvoked):
                self.reads_of[event.space].append(Reading(event, read.get(event.op)))

    def _file(self, event: Event) -> None:
        match event:
            case Logged():
                self.stored[event.space].append(event)
            case FinalHead():
                self.finals[event.space] = event
            case BranchSeen():
                self.branches[event.space].append(event)
            case Sent():
                self.sent[event.space, event.commit].add(event.session)
            case Revision():
                self._revisions.append(event)
            case Ended():
                self.ended.setdefault(event.process, event.at)
            case Era():
                self.eras.append(event)
            case Examined():
                self.examined.append(event)
            case Healed():
                self.healed.append(event)
            case Fault():
                self.faults.append(event)
            case _:
                pass  # calls are filed with their returns

    @cached_property
    def spaces(self) -> list[Space]:
        """Every space that is spoken of."""
        names = {*self.stored, *self.finals, *self.branches, *self.attempts_of, *self.reads_of, *self.published}
        return [Space(name, self) for name in sorted(names)]

    @cached_property
    def revisions(self) -> list[tuple[tuple[int, int], list[Revision]]]:
        """Every transaction: its era and revision, and what became of which key, in the order of etcd."""
        ordered = sorted(self._revisions, key=lambda event: (event.era, event.revision))
        return [(place, list(group)) for place, group in groupby(ordered, lambda event: (event.era, event.revision))]

    @cached_property
    def published(self) -> dict[str, list[Published]]:
        """Every head that was put, by space, in the order of etcd."""
        found: dict[str, list[Published]] = {}
        for _, changes in self.revisions:
            for change in changes:
                if change.key.startswith(HEADS) and (value := head_of(change)) is not None:
                    found.setdefault(change.key.removeprefix(HEADS), []).append(Published(change, value))
        return found

    def inherited(self, change: Revision) -> bool:
        """Whether a key was not changed at that revision, but etcd was set back to it."""
        return any(era.era == change.era and change.revision <= era.revision for era in self.eras)

    def since(self, at: float) -> float:
        """Return when etcd was last set back by a time; what was known before that is no promise any more."""
        return max((era.at for era in self.eras if era.at <= at), default=-inf)

    def had(self, kind: str) -> bool:
        """Whether a fault of that kind is on record."""
        return any(fault.kind == kind for fault in self.faults)


def head_of(change: Revision) -> HeadValue | None:
    """Return the head that was put; None for a deletion, and for what is none."""
    if change.value is None:
        return None
    try:
        return decode_head(change.value.encode(), change.key)
    except OperatorNeeded:
        return None
