"""Rules about what is published, and by whom: chain, fencing, branch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple

from coordjournal.testing.histories.events import BranchSeen, Revision
from coordjournal.testing.histories.findings import Finding
from coordjournal.testing.histories.history import HEADS, History, Log, Published, Space, head_of

HOLDERS = "holders/"


def chain(history: History) -> Iterator[Finding]:
    """Each published head descends from the one before it; the log is whole, its seqs are contiguous."""
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
        yield from _heads(space.log, history.published.get(space.name, []), history)
    yield from _ill_formed(history)


def _ill_formed(history: History) -> Iterator[Finding]:
    for (_, revision), changes in history.revisions:
        for change in changes:
            if not change.key.startswith(HEADS):
                continue
            name = change.key.removeprefix(HEADS)
            if change.value is not None and head_of(change) is None:
                yield Finding("chain", name, f"revision {revision} put a head that is none: {change.value[:80]}")
            elif change.value is None and not history.had("operator"):
                yield Finding("chain", name, f"revision {revision} deleted the published head")


def _heads(log: Log, puts: list[Published], history: History) -> Iterator[Finding]:
    name = log.space
    before: Published | None = None
    for put in puts:
        if history.inherited(put.revision):
            continue
        value, revision = put.value, put.revision.revision
        item = log.stored.get(value.commit)
        if item is None:
            yield Finding("chain", name, f"revision {revision} published commit {value.commit}, which is not there")
        elif (item.seq, item.term) != (value.seq, value.term):
            words = f"entry {item.seq} of term {item.term}, not entry {value.seq} of term {value.term}"
            yield Finding("chain", name, f"revision {revision} published commit {value.commit}, which is {words}")
        elif not put.marked and not log.between(before.value.commit if before is not None else "", value.commit):
            what = f"entry {before.value.seq}, commit {before.value.commit}" if before is not None else "nothing"
            words = f"published entry {value.seq}, commit {value.commit}, which does not follow {what}"
            yield Finding("chain", name, f"revision {revision} {words}")
        before = put
    if before is not None and before.value.commit != (log.final.commit if log.final is not None else ""):
        yield Finding("chain", name, f"the log does not end at the head that was published last, {before.value.commit}")


class _Tenure(NamedTuple):
    """A holder's key: its create-revision, the session in it, the term that it may publish with (0: any)."""

    created: int
    session: str
    term: int


def fencing(history: History) -> Iterator[Finding]:
    """Each head was published by the session that held the space, in its term, over nobody else's appends.

    Which session sent a publish is known where the history has `Sent`. Terms never fall along the log.
    """
    for space in history.spaces:
        for before, item in pairwise(space.log.appends):
            if item.term < before.term:
                words = f"the term falls from {before.term} to {item.term} at entry {item.first}"
                yield Finding("fencing", space.name, words)
    logs = {space.name: space.log for space in history.spaces}
    tenures: dict[str, _Tenure] = {}
    heads: dict[str, Published] = {}
    at_era = 0
    for (era, _), changes in history.revisions:
        if era != at_era:
            at_era, tenures, heads = era, {}, {}
        for change in changes:
            value = head_of(change) if change.key.startswith(HEADS) else None
            if value is not None:
                name = change.key.removeprefix(HEADS)
                put = Published(change, value)
                if not put.marked and not history.inherited(change):
                    base = heads[name].value.commit if name in heads else ""
                    senders = history.sent.get((name, value.commit), set()) if history.sent else None
                    fault = _fault(put, tenures.get(name), senders)
                    if fault := fault or _strangers(put, logs[name], base):
                        yield Finding("fencing", name, f"revision {change.revision}, entry {value.seq}: {fault}")
                heads[name] = put
        yield from _held(changes, tenures, heads, history)


def _fault(put: Published, tenure: _Tenure | None, senders: set[str] | None) -> str:
    """Return why a head may not have been published."""
    if tenure is None:
        return "it was published while nobody held the space"
    if tenure.term and put.value.term != tenure.term:
        return f"it was published in term {put.value.term}; who held the space then had term {tenure.term}"
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


def _held(
    changes: list[Revision], tenures: dict[str, _Tenure], heads: Mapping[str, Published], history: History
) -> Iterator[Finding]:
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
                term = heads[name].value.term + 1 if name in heads else 1
                tenures[name] = _Tenure(change.created, change.value, 0 if history.inherited(change) else term)


def branch(history: History) -> Iterator[Finding]:
    """Nothing but what is published is ever shown by the branch, and it never goes back."""
    for space in history.spaces:
        last = -1
        for seen in space.branch:
            if fault := _branch_fault(space, seen, last):
                yield Finding("branch", space.name, fault)
                continue
            last = space.log.place[seen.commit] if seen.commit else last


def _branch_fault(space: Space, seen: BranchSeen, last: int) -> str:
    log = space.log
    place = log.place.get(seen.commit)
    if not seen.commit:
        return "the branch is gone" if last >= 0 else ""
    if place is None:
        return f"the branch was at commit {seen.commit}, which is not part of the log"
    if place < last:
        return f"the branch went back from entry {log.seqs[last]} to {log.seqs[place]}"
    if seen.published is not None and log.seqs[place] > seen.published:
        return f"the branch was at entry {log.seqs[place]} while entry {seen.published} was published"
    return ""
