"""Rules about what is published, and by whom: chain, fencing, branch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from math import inf
from typing import Final, NamedTuple

from coordjournal.testing.histories.events import BranchSeen, Revision
from coordjournal.testing.histories.findings import Finding
from coordjournal.testing.histories.history import HEADS, History, Log, Published, Space, head_of
from coordjournal.testing.histories.intents import forwarded

HOLDERS: Final = "holders/"

_AGAIN_SECONDS: Final = 1.0
"""A branch that could not be moved is tried again after so long; until then it holds up nobody."""
_LAG_SECONDS: Final = 5.0
"""For so long after a receipt a branch may be behind it where times are not exact."""


def chain(history: History) -> Iterator[Finding]:
    """Each published head descends from the one before it; the log is whole, its seqs are contiguous.

    Where etcd was set back, a head that was published before that may be so once more, and what the branch never
    showed may be lost. An operator's head need not follow, if a command of an operator is on record.
    """
    for space in history.spaces:
        log = space.log
        if log.broken:
            yield Finding("chain", space.name, log.broken)
        for before, item in pairwise([None, *log.appends]):
            assert item is not None
            expected = before.seq + 1 if before is not None else 1
            if item.first != expected:
                words = f"commit {item.commit} begins at entry {item.first}, not {expected}"
                yield Finding("chain", space.name, words)
        yield from _heads(space, history)
    yield from _ill_formed(history)


def _ill_formed(history: History) -> Iterator[Finding]:
    last: dict[str, float] = {}
    for (_, revision), changes in history.revisions:
        for change in changes:
            if not change.key.startswith(HEADS):
                continue
            name = change.key.removeprefix(HEADS)
            if change.value is not None and head_of(change) is None:
                yield Finding("chain", name, f"revision {revision} put a head that is none: {change.value[:80]}")
            elif change.value is None and not history.operated(change, last.get(name, -inf)):
                yield Finding("chain", name, f"revision {revision} deleted the published head")
            last[name] = change.at


def _heads(space: Space, history: History) -> Iterator[Finding]:
    log, name = space.log, space.name
    before: Published | None = None
    first: dict[str, int] = {}  # by commit: the era in which it was published first
    here: dict[int, str] = {}  # by era: the head that it had last
    for put in space.heads:
        value, revision, era = put.value, put.revision.revision, put.revision.era
        base = here.get(era, "")
        here[era] = value.commit
        if history.inherited(put.revision):
            continue
        item = log.stored.get(value.commit)
        if item is None:
            yield Finding("chain", name, f"revision {revision} published commit {value.commit}, which is not there")
        elif (item.seq, item.term) != (value.seq, value.term):
            words = f"entry {item.seq} of term {item.term}, not entry {value.seq} of term {value.term}"
            yield Finding("chain", name, f"revision {revision} published commit {value.commit}, which is {words}")
        elif first.setdefault(value.commit, era) < era and not put.marked and log.between(base, value.commit):
            continue  # what an earlier era has seen already comes again, by a request that landed late
        elif not put.marked and before is not None and _unseen(space, before, base, put):
            pass  # it never reached the branch, and nobody can know that it was there
        elif not put.marked and not log.between(before.value.commit if before is not None else "", value.commit):
            what = f"entry {before.value.seq}, commit {before.value.commit}" if before is not None else "nothing"
            words = f"published entry {value.seq}, commit {value.commit}, which does not follow {what}"
            yield Finding("chain", name, f"revision {revision} {words}")
        before = put
    if before is not None and before.value.commit != (log.final.commit if log.final is not None else ""):
        yield Finding("chain", name, f"the log does not end at the head that was published last, {before.value.commit}")


def _unseen(space: Space, before: Published, base: str, put: Published) -> bool:
    """Whether a head of another era follows what its etcd had, and the branch never showed what was lost."""
    log = space.log
    lost = log.between(base, before.value.commit)
    if not lost or before.revision.era == put.revision.era or not log.between(base, put.value.commit):
        return False
    commits = {item.commit for item in lost}
    return not any(sample.commit in commits for sample in space.branch if sample.at < put.revision.at)


class _Tenure(NamedTuple):
    """A holder's key: its create-revision, and the session in it. One that finds its key again is elected anew."""

    created: int
    session: str


class _Base(NamedTuple):
    """The head that a publish replaces, and by whose key it was published: None if an operator did, or nobody knows."""

    put: Published
    by: _Tenure | None
    known: bool = True

    def terms(self, tenure: _Tenure) -> set[int]:
        """Return the terms in which a holder may follow it: a new one, or its own that it published this one in."""
        term = self.put.value.term
        return {term, term + 1} if self.by == tenure or not self.known else {term + 1}


def fencing(history: History) -> Iterator[Finding]:
    """Each head was published by the session that held the space, in its term, over nobody else's appends.

    That is the term after that of the head before, or the same if that head was published by the very same
    holder's key. Which session sent a publish is known where the history has `Sent`. Terms never fall along
    the log. No holder's key is overwritten.
    """
    for space in history.spaces:
        for before, item in pairwise(space.log.appends):
            if item.term < before.term:
                words = f"the term falls from {before.term} to {item.term} at entry {item.first}"
                yield Finding("fencing", space.name, words)
    logs = {space.name: space.log for space in history.spaces}
    puts = {id(put.revision): put for each in history.published.values() for put in each}
    publishers: dict[tuple[str, str | None], _Tenure | None] = {}  # of each head's bytes, in whichever era
    tenures: dict[str, _Tenure] = {}
    bases: dict[str, _Base] = {}
    at_era = 0
    for (era, _), changes in history.revisions:
        if era != at_era:
            at_era, tenures, bases = era, {}, {}
        for change in changes:
            if (put := puts.get(id(change))) is None:
                continue
            name = change.key.removeprefix(HEADS)
            if history.inherited(change):
                place = name, change.value
                bases[name] = _Base(put, publishers.get(place), place in publishers)
                continue
            tenure = None if put.marked else tenures.get(name)
            if not put.marked:
                base = bases.get(name)
                senders = history.sent.get((name, put.value.commit), set()) if history.sent else None
                fault = _fault(put, tenure, base, senders)
                if fault := fault or _strangers(put, logs[name], base.put.value.commit if base is not None else ""):
                    yield Finding("fencing", name, f"revision {change.revision}, entry {put.value.seq}: {fault}")
            bases[name], publishers[name, change.value] = _Base(put, tenure), tenure
        yield from _held(changes, tenures)


def _fault(put: Published, tenure: _Tenure | None, base: _Base | None, senders: set[str] | None) -> str:
    """Return why a head may not have been published."""
    if tenure is None:
        return "it was published while nobody held the space"
    terms = base.terms(tenure) if base is not None else {1}
    if put.value.term not in terms:
        held = " or ".join(map(str, sorted(terms)))
        return f"it was published in term {put.value.term}; who held the space then had term {held}"
    if senders is not None and tenure.session not in senders:
        names = ", ".join(sorted(senders)) or "nobody who is known"
        return f"it was published by {names}, while {tenure.session} held the space"
    return ""


def _strangers(put: Published, log: Log, before: str) -> str:
    """Return whether the head brought appends along that another term's holder made."""
    for item in log.between(before, put.value.commit) or ():
        if item.term != put.value.term:
            return f"with it came entry {item.first} of term {item.term}, which had not been published"
    return ""


def _held(changes: list[Revision], tenures: dict[str, _Tenure]) -> Iterator[Finding]:
    """Follow who holds what through one transaction."""
    for change in changes:
        if change.key.startswith(HOLDERS):
            name = change.key.removeprefix(HOLDERS)
            held = tenures.get(name)
            if change.value is None:
                tenures.pop(name, None)
            else:
                if held is not None and held.created == change.created:
                    words = f"revision {change.revision} changed the holder's key from {held.session} to {change.value}"
                    yield Finding("fencing", name, words)
                tenures[name] = _Tenure(change.created, change.value)


def branch(history: History) -> Iterator[Finding]:
    """See that the branch shows what was published, never goes back, and holds what was acknowledged.

    Whoever forwarded an append rolls it forward to that, and no further: it shows what has an outcome, too, or
    was found in the log. It holds what has a receipt; where times are not exact, 5 s later. Not so what was
    acknowledged by a process that could not move it, since a second before it was published. After the power
    was lost it may have gone back.
    """
    for space in history.spaces:
        seen = _Branch(space, history)
        for sample in space.branch:
            if fault := seen.fault(sample):
                yield Finding("branch", space.name, fault)


class _Due(NamedTuple):
    """From when on the branch holds an append; not before which time it was published."""

    at: float
    place: int
    published: float


class _Branch:
    """What is to be seen of a branch."""

    def __init__(self, space: Space, history: History) -> None:
        self._log = space.log
        self._space = space
        self._history = history
        self._last = -1  # the place of what it showed last
        self._seen_at = -inf
        self._due = sorted(self._receipts(), reverse=True)
        self._held = -1  # the place up to which it holds what was acknowledged

    def _receipts(self) -> Iterator[_Due]:
        """Yield what was acknowledged, save by who could not move the branch since about when it was published."""
        for attempt in self._space.attempts:
            receipt = attempt.told.receipt if attempt.told is not None else None
            place = self._log.place.get(receipt.commit) if receipt is not None else None
            if place is None:
                continue
            published = self._space.earliest(place + 1)
            process = attempt.asked.process
            if self._history.exact and published > -inf:
                if not self._history.during("branch", published - _AGAIN_SECONDS, attempt.returned, process):
                    yield _Due(attempt.returned, place, published)
            elif not self._history.during("branch", attempt.invoked, attempt.returned + _LAG_SECONDS):
                yield _Due(attempt.returned + _LAG_SECONDS, place, max(published, attempt.invoked))

    def _may_show(self, commit: str) -> bool:
        return self._space.is_head(commit) or commit in self._forwarded

    @cached_property
    def _forwarded(self) -> set[str]:
        """What some process may have got a receipt for that forwarded it, or found it in the log."""
        found = {item.commit for item in forwarded(self._history, self._space.name)}
        for attempt in self._space.attempts:
            if attempt.told is None or attempt.told.outcome == "unknown":  # and looked up nevertheless
                found |= {item.commit for item in self._log.by_key.get(attempt.key, ())}
            elif (receipt := attempt.told.receipt) is not None and receipt.via == "forwarded":
                found.add(receipt.commit)
        return found

    def fault(self, sample: BranchSeen) -> str:
        """Return what is wrong with a sample; they come in the order of their times."""
        log = self._log
        cut = self._history.during("power", self._seen_at, sample.at)
        if cut:
            self._last = self._held = -1
        self._seen_at = sample.at
        while self._due and self._due[-1].at < sample.at:
            due = self._due.pop()
            if not self._history.during("power", due.published, sample.at):
                self._held = max(self._held, due.place)
        place = log.place.get(sample.commit) if sample.commit else -1
        if place is None:
            return f"the branch was at commit {sample.commit}, which is not part of the log"
        seq = log.seqs[place] if place >= 0 else 0
        if place < self._last:
            was = log.seqs[self._last]
            return f"the branch went back from entry {was} to {seq}" if place >= 0 else "the branch is gone"
        self._last = place
        if place >= 0 and self._space.heads and not self._may_show(sample.commit):
            return f"the branch was at entry {seq}, which was never published as a head, nor forwarded"
        if sample.published is not None and seq > sample.published:
            return f"the branch was at entry {seq} while entry {sample.published} was published"
        if place >= 0 and sample.at < self._space.earliest(place + 1):
            return f"the branch was at entry {seq} before that was published"
        if place < self._held:
            return f"the branch was at entry {seq} when entry {log.seqs[self._held]} had been acknowledged"
        return ""
