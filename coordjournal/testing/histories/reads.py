"""Rules about what callers were told of the log: refusals, reads, and the state that was read (storage)."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from math import inf

from coordjournal.commit import check_room
from coordjournal.entry import Append, Entry, StoredEntry, encode_entries
from coordjournal.errors import Conflict, CoordJournalError, KeyReused, Rejected
from coordjournal.state import EMPTY, CoordinationState, fold, judge
from coordjournal.testing.histories.events import Logged, ReadInvoked, ReadReturned
from coordjournal.testing.histories.findings import Finding
from coordjournal.testing.histories.history import Attempt, History, Reading, Space
from coordjournal.testing.histories.intents import refused
from coordjournal.testing.histories.recording import entries_digest, state_digest


def refusals(history: History) -> Iterator[Finding]:
    """Each refusal is right at some head between call and return; what was accepted was not to be refused.

    One in an outcome is right where its publish put it: after one of the appends of that group, or before.
    """
    outcomes: defaultdict[str, list[tuple[str, str, Attempt]]] = defaultdict(list)
    for name, base, head, attempt in refused(history):
        outcomes[name].append((base, head, attempt))
    for space in history.spaces:
        yield from _accepted(space)
        waiting: defaultdict[int, list[tuple[int, Attempt]]] = defaultdict(list)
        for attempt in space.attempts:
            if attempt.told is not None and attempt.told.outcome == "refused":
                first = space.log.place_of(space.known.before(attempt.invoked)) or 0
                waiting[first].append((max(first, space.possible(attempt.returned)), attempt))
        for base, head, attempt in outcomes[space.name]:
            if head in space.log.place:
                first = space.log.place.get(base, -1) + 1
                waiting[first].append((max(first, space.log.place[head] + 1), attempt))
        open_: list[tuple[int, Attempt]] = []
        for place, state in _prefixes(space):
            open_ = [item for item in open_ + waiting.pop(place, []) if not _right(space, place, state, item[1])]
            for last, attempt in open_:
                if last == place:
                    yield Finding("refusals", space.name, _unright(attempt))
            open_ = [item for item in open_ if item[0] > place]


def _unright(attempt: Attempt) -> str:
    assert attempt.told is not None
    words = f"key {attempt.key} was refused ({attempt.asked.op}: {attempt.told.error}"
    if attempt.told.error == "Conflict":
        words += f", head {attempt.told.head_seq}"
    return f"{words}), and at no head between call and return is that right"


def _accepted(space: Space) -> Iterator[Finding]:
    """Yield what stands in the log and did not fit there."""
    for attempt in space.attempts:
        receipt = attempt.told.receipt if attempt.told is not None else None
        expect = attempt.asked.append.expect
        if receipt is not None and not receipt.duplicate and expect is not None and receipt.first != expect + 1:
            words = f"key {attempt.key} was to follow entry {expect}, and was acknowledged as entry {receipt.first}"
            yield Finding("refusals", space.name, words)
    state = EMPTY
    for item in space.log.appends:
        try:
            state = judge(state, item.append.events)
        except Rejected as refusal:
            words = f"entry {item.first}, key {item.key}, does not fit what was decided before: {refusal}"
            yield Finding("refusals", space.name, words)
            return


def _prefixes(space: Space) -> Iterator[tuple[int, CoordinationState]]:
    """Yield the state after each append of the log, the empty one first, as far as it folds."""
    state = EMPTY
    yield 0, state
    for place, item in enumerate(space.log.appends, 1):
        try:
            state = fold(_stored(item), state)
        except CoordJournalError:
            return  # `_accepted` says so
        yield place, state


def _stored(item: Logged) -> list[StoredEntry]:
    append = item.append
    return [
        StoredEntry(seq, append.key, append.at, append.actor, event)
        for seq, event in enumerate(append.events, item.first)
    ]


def _right(space: Space, place: int, state: CoordinationState, attempt: Attempt) -> bool:
    """Whether an append is refused, as it was, after so many appends of the log."""
    told = attempt.told
    assert told is not None
    try:
        _judge(space, place, state, attempt.asked.append)
    except (Rejected, Conflict) as refusal:
        seq = refusal.head_seq if isinstance(refusal, Conflict) else 0
        return (type(refusal).__name__, seq) == (told.error, told.head_seq)
    return False


def _judge(space: Space, place: int, state: CoordinationState, append: Append) -> None:
    """Raise what an append deserves there: form, key, size, `expect`, room, state, in this order."""
    append.check()
    head = space.log.seqs[place - 1] if place else 0
    for item in space.log.by_key.get(append.key, ()):
        if item.seq <= head:
            if (item.append.events, item.append.actor) != (append.events, append.actor):
                raise KeyReused(append.key)
            return
    append.encode(head + 1)
    if append.expect not in (None, head):
        raise Conflict(append.key, head)
    check_room(append, head + 1)
    judge(state, append.events)


def reads(history: History) -> Iterator[Finding]:
    """Each read is a prefix of the log that was published, and holds what its consistency promises.

    Linearizable ones hold all that anybody knew to be published before they began; if etcd was set back, what
    was published there since. Session ones hold what their own log was told. What etcd published, forgot when it
    was set back, and the branch never showed, may have been read until then.
    """
    for space in history.spaces:
        own = _Own(space)
        for read in space.reads:
            told = read.told
            if told is None or told.error:
                continue
            if fault := _not_there(space, read) or _too_old(space, own, read.asked, told):
                asked = read.asked
                words = f"{asked.op}, a {asked.consistency} read of the {asked.what} up to entry {told.seq}: {fault}"
                yield Finding("reads", space.name, words)


def _not_there(space: Space, read: Reading) -> str:
    told = read.told
    assert told is not None
    if not read.saw:
        return ""
    if any(log[-1].seq == told.seq and told.commit in ("", log[-1].commit) for log in space.forgotten(told.at)):
        return ""
    if not space.log.holds(told.commit, told.seq):
        return f"no append of the log ends there, or not as commit {told.commit}"
    place = space.log.place_of(told.seq)
    if place is not None and place > space.possible(told.at):
        return "that was not asked for yet"
    if place and told.at < space.earliest(place):
        return "that was not published yet"
    return ""


def _too_old(space: Space, own: _Own, asked: ReadInvoked, told: ReadReturned) -> str:
    if asked.consistency == "linearizable":
        floor = space.floor(asked.at, told.at)
        return f"entry {floor} was published before it began" if told.seq < floor else ""
    if asked.consistency == "session":
        floor = max(own.before(asked.process, asked.at), asked.after if asked.what != "events" else 0)
        return f"its own session knew entry {floor} before it began" if told.seq < floor else ""
    return ""


class _Own:
    """What each open log was told of a space: its own appends, and what was read through it."""

    def __init__(self, space: Space) -> None:
        self._told: defaultdict[str, list[tuple[float, int]]] = defaultdict(list)
        for attempt in space.attempts:
            if attempt.told is not None and attempt.told.receipt is not None:
                self._told[attempt.asked.process].append((attempt.returned, attempt.told.receipt.seq))
        for read in space.reads:
            if read.told is not None and read.saw:
                self._told[read.asked.process].append((read.told.at, read.told.seq))
        for told in self._told.values():
            told.sort()
            most = 0
            for number, (at, seq) in enumerate(told):
                most = max(most, seq)
                told[number] = at, most

    def before(self, process: str, at: float) -> int:
        """Return the greatest seq that a log was told of before a time."""
        told = self._told[process]
        number = bisect_left(told, (at, -inf))
        return told[number - 1][1] if number else 0


def contents(history: History) -> Iterator[Finding]:
    """Compare the states that were read with the folds of their prefixes, and entries with the log's."""
    for space in history.spaces:
        states: defaultdict[int, list[tuple[ReadInvoked, ReadReturned]]] = defaultdict(list)
        for read in space.reads:
            if read.told is None or not read.told.digest or (place := space.log.place_of(read.told.seq)) is None:
                continue
            if read.asked.what == "state":
                states[place].append((read.asked, read.told))
            elif read.told.digest not in _digests_of_entries(space, read, place):
                words = (
                    f"{read.asked.op} read other entries than the log has from {read.asked.after} to {read.told.seq}"
                )
                yield Finding("storage", space.name, words)
        if not states:
            continue
        for place, state in _prefixes(space):
            if place in states:
                digest = state_digest(state)
                for asked, told in states[place]:
                    if told.digest != digest and told.digest not in _forgotten_states(space, told):
                        words = f"{asked.op} read a state at entry {told.seq} that is not the fold of the log up to it"
                        yield Finding("storage", space.name, words)


def _digests_of_entries(space: Space, read: Reading, place: int) -> Iterator[str]:
    """Yield the digests of the entries that a read may have found: the log's, and what etcd forgot since."""
    told, after = read.told, read.asked.after
    assert told is not None
    yield _digest_of_entries(space.log.appends[bisect_right(space.log.seqs, after) : place], after)
    for log in space.forgotten(told.at):
        if log[-1].seq == told.seq:
            yield _digest_of_entries(log, after)


def _digest_of_entries(appends: Sequence[Logged], after: int) -> str:
    entries = [
        Entry(entry.seq, entry.key, entry.at, entry.actor, entry.event, item.commit, item.term)
        for item in appends
        for entry in _stored(item)
        if entry.seq > after
    ]
    return entries_digest(encode_entries(entries))


def _forgotten_states(space: Space, told: ReadReturned) -> Iterator[str]:
    """Yield the digests of the states of that seq which etcd forgot since."""
    for log in space.forgotten(told.at):
        if log[-1].seq == told.seq:
            yield state_digest(fold(entry for item in log for entry in _stored(item)))
