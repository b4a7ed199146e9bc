"""The one append path, whoever has the authority: judge → write → publish → advance.

A `Group` takes a few appends of one space through it together, each atomic by itself. The steps can be
called one by one; what may happen between two of them, and why that is harmless, is in
`docs/architecture.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from coordjournal.entry import MAX_SEQ, Append, Appended, Head, Receipt
from coordjournal.errors import Conflict, CoordJournalError, KeyReused, Rejected, SpaceFull
from coordjournal.replica import Replica
from coordjournal.state import CoordinationState, judge
from coordjournal.store import Ready, Store

Outcome = Receipt | CoordJournalError


class Group:
    """Appends of one space on their way, on top of `base`, the log's newest head.

    `ready` are the accepted ones, `written` what the store made of them, `state` is what is true
    after them. `left` are keys of appends that another process may have appended for their caller, who
    was not told, each with the seq that the head had before: what the log has of them after that is no
    duplicate. Only the appends whose numbers are in `unchecked` may be not well formed; all, if not given.
    """

    def __init__(
        self,
        asked: Sequence[Append],
        replica: Replica,
        base: Head,
        left: Mapping[str, int] | None = None,
        unchecked: range | None = None,
    ) -> None:
        self.base = base
        self.state: CoordinationState = replica.exactly_at(base)
        self.ready: list[Ready] = []
        self.written: list[Appended] = []
        self._asked = asked
        self._replica = replica
        self._left = left or {}
        self._unchecked = range(len(asked)) if unchecked is None else unchecked
        self._verdicts: list[int | Appended | CoordJournalError] = []
        self._places: dict[str, int] = {}

    def judge(self) -> None:
        """Accept or refuse each append, in order, on top of those accepted before it."""
        for number, append in enumerate(self._asked):
            verdict: int | Appended | CoordJournalError
            try:
                if number in self._unchecked:
                    append.check()
                verdict = self._judge(append)
            except (Rejected, Conflict) as refusal:
                verdict = refusal
            self._verdicts.append(verdict)

    def _judge(self, append: Append) -> int | Appended:
        """Return the place of an accepted append in `ready`, or what its key was used for before.

        The key comes before `expect` and the state, so that a retry of an append gets its receipt.
        """
        first = self.ready[-1].first + len(self.ready[-1].append.events) if self.ready else self.base.seq + 1
        if (place := self._places.get(append.key)) is not None:
            fellow = self.ready[place].append
            if (fellow.events, fellow.actor) != (append.events, append.actor):
                raise key_reused(append.key, self.ready[place].first)
            return place
        if (before := self._replica.find(append.key, self.base)) is not None:
            if not before.answers(append):
                raise key_reused(append.key, before.first)
            return before
        data = append.encode(first)
        if append.expect is not None and append.expect != first - 1:
            raise Conflict(f"expected head {append.expect}, found {first - 1}", first - 1)
        check_room(append, first)
        self.state = judge(self.state, append.events)
        self._places[append.key] = len(self.ready)
        self.ready.append(Ready(append, first, data))
        return len(self.ready) - 1

    @property
    def repeats(self) -> bool:
        """Whether any of the appends stood in the log before."""
        return any(isinstance(verdict, Appended) for verdict in self._verdicts)

    def write(self, store: Store, space: str, term: int) -> None:
        """Make what was accepted durable; nobody sees it yet. Raises `Unavailable`."""
        self.written = store.write(space, self.base, self.ready, term)

    def outcomes(self, space: str, failure: CoordJournalError | None = None) -> list[Outcome]:
        """Return what became of each append, in the order they were asked for.

        `failure` is why the accepted ones were not published, None if they were.
        """
        served: set[int] = set()
        told: set[str] = set()
        outcomes: list[Outcome] = []
        unpublished = False  # whether an accepted append that was not published is below
        for append, verdict in zip(self._asked, self._verdicts, strict=True):
            if isinstance(verdict, CoordJournalError):
                outcomes.append(failure if failure is not None and unpublished else verdict)
            elif isinstance(verdict, Appended):
                after = self._left.get(append.key)
                own = after is not None and verdict.first > after and append.key not in told
                told.add(append.key)
                outcomes.append(_receipt(space, verdict, "forwarded" if own else "local", duplicate=not own))
            elif failure is not None:
                unpublished = True
                outcomes.append(failure)
            else:
                outcomes.append(_receipt(space, self.written[verdict], "local", duplicate=verdict in served))
                served.add(verdict)
        return outcomes


def _receipt(space: str, appended: Appended, via: Literal["local", "forwarded"], *, duplicate: bool) -> Receipt:
    return Receipt(space, appended.first, appended.seq, appended.commit, appended.term, appended.key, via, duplicate)


def key_reused(key: str, first: int) -> KeyReused:
    """Return the refusal of an append whose key was used for another one, which begins at seq `first`."""
    return KeyReused(f"key {key!r} was used at seq {first} for other events or by another actor; use a new key")


def check_room(append: Append, first: int) -> None:
    """Raise `SpaceFull` if an append whose first entry gets seq `first` ends past the last seq."""
    if first + len(append.events) - 1 > MAX_SEQ:
        raise SpaceFull(f"the space ends at seq {MAX_SEQ:,}, its head is {first - 1:,}")
