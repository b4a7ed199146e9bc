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
    """One call of `append`: what was asked for, and how it ended; None if it never did.

    `set_back` is true if etcd was while it was under way: what was published then may be so again.
    """

    asked: AppendInvoked
    told: AppendReturned | None
    set_back: bool = False

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
        """Whether its caller was told that it was not applied, and whoever said so can have known."""
        return self.told is not None and (self.told.outcome == "refused" or self.failed)

    @property
    def failed(self) -> bool:
        """Likewise, by an error that is no refusal."""
        return self.told is not None and self.told.outcome == "failed" and not self.set_back

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
    """A head that was put: at which revision of which era, when that was seen, what it says.

    `marked` says that an operator's command put it: it has a mark or has left, and one is on record.
    """

    revision: Revision
    value: HeadValue
    marked: bool


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

    def within(self, commit: str, head: str) -> bool:
        """Whether a commit is `head`, or one of those that it descends from."""
        if head in self.place:
            return commit in self.place and self.place[commit] <= self.place[head]
        return bool(commit and head) and self.between(commit, head) is not None

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
        """Return the calls under a key that can be the one which was applied.

        Whoever was told that it was by this call knows only that it was not before that; another call that was
        under way, and of which nobody knows, may have done it.
        """
        attempts = self.by_key.get(key, [])
        told = max((attempt.returned for attempt in attempts if attempt.appended), default=inf)
        unsure = [a for a in attempts if not a.certainly_not and not a.ok and a.invoked < told]
        own = [attempt for attempt in attempts if attempt.appended]
        return own + unsure or [attempt for attempt in attempts if not attempt.certainly_not] or attempts

    @cached_property
    def heads(self) -> list[Published]:
        """Every head that was put, in the order of etcd."""
        return self._history.published.get(self.name, [])

    def forgotten(self, at: float) -> Iterator[list[Logged]]:
        """Yield the logs that etcd published before a time, and forgot later, with what the branch never showed."""
        shown = {sample.commit for sample in self.branch}
        for put in self.heads:
            over = any(era.era > put.revision.era and era.at > at for era in self._history.eras)
            if over and put.revision.at <= at and put.value.commit not in self.log.place:
                found = self.log.between("", put.value.commit)
                if found is not None and found[-1].commit not in shown:
                    yield found

    def is_head(self, commit: str) -> bool:
        """Whether an append of the log was a head by itself, published or embedded."""
        return self.log.place.get(commit) in self._shown

    def earliest(self, place: int) -> float:
        """Return the time before which so many appends cannot have been published; -infinity if nothing tells.

        That is the time of its head's revision, if that is exact, or of its sending; of embedded appends when the
        journal left etcd.
        """
        number = bisect_left(self._places, place - 1)
        return self._shown[self._places[number]] if number < len(self._places) else -inf

    @cached_property
    def _places(self) -> list[int]:
        return sorted(self._shown)

    @cached_property
    def _shown(self) -> dict[int, float]:
        """Each append of the log that was a head by itself, by its place, and the time before which it was none."""
        found: dict[int, float] = {}
        embedded: float | None = -inf  # since when, if so
        covered = 0
        for put in self.heads:
            if (place := self.log.place.get(put.value.commit)) is not None:
                at = self._published_at(put)
                if put.marked and embedded is not None:
                    at = embedded
                    found.update(dict.fromkeys(range(covered, place), at))
                found.setdefault(place, at if place >= covered else -inf)
                covered = max(covered, place + 1)
            embedded = self._published_at(put) if put.marked and put.value.left else None
        if self.heads and embedded is not None:
            found.update(dict.fromkeys(range(covered, len(self.log.appends)), embedded))
        return found

    def _published_at(self, put: Published) -> float:
        if put.revision.exact and not self._history.inherited(put.revision):
            return put.revision.at
        return -inf if put.marked else self._history.sent_at.get((self.name, put.value.commit), -inf)

    def floor(self, asked: float, told: float) -> int:
        """Return the seq up to which a read that asks etcd must go.

        That is what anybody knew to be published before it was asked for; since etcd was set back, what was
        published there since, or was there: a reader may see that it was, only a new holder judges.
        """
        era = self._history.era_at(told)
        if era is None:
            return self.known.before(asked)
        seqs = [put.value.seq for put in self.heads if put.revision.era == era and put.revision.at < asked]
        return seqs[-1] if seqs else 0

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
        self._most = list(accumulate((seq for _, seq in ordered), max))

    def before(self, at: float) -> int:
        """Return the greatest seq that was seen before a time."""
        end = bisect_left(self._times, at)
        return self._most[end - 1] if end else 0

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
        self.sent_at: dict[tuple[str, str], float] = {}
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
                self.attempts_of[event.space].append(self._attempt(event, told.get(event.op)))
            elif isinstance(event, ReadInvoked):
                self.reads_of[event.space].append(Reading(event, read.get(event.op)))

    def _attempt(self, asked: AppendInvoked, told: AppendReturned | None) -> Attempt:
        return Attempt(asked, told, told is not None and self.set_back(asked.at, told.at))

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
                self.sent_at.setdefault((event.space, event.commit), event.at)
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
                    before = found.setdefault(change.key.removeprefix(HEADS), [])
                    since = before[-1].revision.at if before else -inf
                    marked = (bool(value.mark) or value.left) and self.operated(change, since)
                    before.append(Published(change, value, marked))
        return found

    def operated(self, change: Revision, since: float) -> bool:
        """Whether an operator's command can have done it, which was not done before `since`."""
        return self.during("operator", change.at if change.exact else since, change.at)

    def inherited(self, change: Revision) -> bool:
        """Whether a key was not changed at that revision, but etcd was set back to it."""
        return any(era.era == change.era and change.revision <= era.revision for era in self.eras)

    @cached_property
    def exact(self) -> bool:
        """Whether it is known when each revision was made."""
        return any(change.exact for change in self._revisions)

    def era_at(self, at: float) -> int | None:
        """Return the era that etcd is in since it was last set back by a time; None if it never was."""
        return max((era.era for era in self.eras if era.at <= at), default=None)

    def set_back(self, since: float, until: float) -> bool:
        """Whether etcd was set back in between."""
        return any(since < era.at < until for era in self.eras)

    @cached_property
    def _spans(self) -> dict[str, list[tuple[float, float, str]]]:
        """When there was which kind of fault, and whom it befell."""
        found: defaultdict[str, list[tuple[float, float, str]]] = defaultdict(list)
        for fault in self.faults:
            spans = found[fault.kind]
            if fault.phase == "end":
                opened = [n for n, (_, end, target) in enumerate(spans) if end == inf and target == fault.target]
                if opened:
                    spans[opened[0]] = spans[opened[0]][0], fault.at, fault.target
            else:
                lasts = fault.phase == "begin" or fault.kind == "damage"
                spans.append((fault.at, inf if lasts else fault.at, fault.target))
        return found

    def during(self, kind: str, since: float, until: float, process: str = "") -> bool:
        """Whether there was a fault of a kind at some time from `since` to `until`, one that `process` met if given."""
        return any(
            begin <= until and end >= since and (not process or target in ("", process))
            for begin, end, target in self._spans.get(kind, ())
        )


def head_of(change: Revision) -> HeadValue | None:
    """Return the head that was put; None for a deletion, and for what is none."""
    if change.value is None:
        return None
    try:
        return decode_head(change.value.encode(), change.key)
    except OperatorNeeded:
        return None
