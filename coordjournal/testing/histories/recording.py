"""Writing a history down, and reading it again."""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from coordjournal.entry import Append, Entry, Head, Receipt, encode_entries
from coordjournal.errors import Conflict, CoordJournalError, OperatorNeeded, Rejected, Unavailable
from coordjournal.etcd import KeyValue
from coordjournal.facts import to_facts
from coordjournal.log import DecisionLog
from coordjournal.state import CoordinationState
from coordjournal.testing.histories.events import (
    AppendInvoked,
    AppendReturned,
    Consistency,
    Event,
    Outcome,
    ReadInvoked,
    ReadReturned,
    Revision,
    What,
)

Write = Callable[[Event], object]
"""Takes each event as it happens: `list.append`, or an `EventFile`."""

_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(Event).decode


class EventFile:
    """A file of events that outlives its process: each one is the kernel's before the call returns."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def __call__(self, event: Event) -> None:
        os.write(self._file, _encode(event) + b"\n")

    def close(self) -> None:
        """Take no more."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def write_events(path: str | os.PathLike[str], events: Iterable[Event]) -> None:
    """Write a history to one file."""
    with closing(EventFile(path)) as file:
        for event in events:
            file(event)


def read_events(*paths: str | os.PathLike[str]) -> list[Event]:
    """Return the events of several files as one history, in the order of their times.

    A last line without an end, as a killed process may leave one, is none. Raises `msgspec.MsgspecError`
    for another line that is no event.
    """
    found = [event for path in paths for event in _events_of(Path(path))]
    return sorted(found, key=lambda event: event.at)  # which keeps the order of those at the same time


def _events_of(path: Path) -> Iterator[Event]:
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield _decode(line)


class Recorder:
    """Notes what the callers of one open log ask for, and what they get.

    `process` names the log, `clock` is the history's. Safe in many threads. Invoke before the call is
    made, return when it has: what is between the two is the operation.
    """

    def __init__(self, write: Write, process: str, clock: Callable[[], float]) -> None:
        self.process = process
        self.write = write
        self.clock = clock
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def _op(self) -> str:
        with self._lock:
            return f"{self.process}.{next(self._numbers)}"

    def append_invoked(self, caller: str, space: str, append: Append) -> str:
        """Note that an append is asked for; return the operation's name."""
        op = self._op()
        self.write(AppendInvoked(self.clock(), op, self.process, caller, space, append))
        return op

    def append_returned(self, op: str, told: Receipt | BaseException) -> None:
        """Note what the caller of an append got."""
        at = self.clock()
        if isinstance(told, Receipt):
            self.write(AppendReturned(at, op, "ok", told))
        else:
            seq = told.head_seq if isinstance(told, Conflict) else 0
            self.write(AppendReturned(at, op, outcome_of(told), None, type(told).__name__, seq))

    def read_invoked(
        self, caller: str, space: str, what: What, consistency: Consistency = "linearizable", after: int = 0
    ) -> str:
        """Note that somebody reads; return the operation's name."""
        op = self._op()
        self.write(ReadInvoked(self.clock(), op, self.process, caller, space, what, consistency, after))
        return op

    def read_returned(
        self, op: str, found: Head | CoordinationState | Sequence[Entry] | BaseException, after: int = 0
    ) -> None:
        """Note what a reader got; of entries, those after `after`."""
        at = self.clock()
        match found:
            case Head():
                self.write(ReadReturned(at, op, found.seq, found.commit))
            case CoordinationState():
                self.write(ReadReturned(at, op, found.seq, "", state_digest(found)))
            case BaseException():
                self.write(ReadReturned(at, op, error=type(found).__name__))
            case _:
                seq, commit = (found[-1].seq, found[-1].commit) if found else (after, "")
                self.write(ReadReturned(at, op, seq, commit, entries_digest(encode_entries(found))))


class RecordedLog:
    """A log and its recorder: the calls of `DecisionLog`, each noted, for one caller."""

    def __init__(self, log: DecisionLog, recorder: Recorder, caller: str) -> None:
        self._log = log
        self._recorder = recorder
        self._caller = caller

    def append(self, space: str, append: Append, timeout: float) -> Receipt | Exception:
        """Append, and return the receipt or the error."""
        told: Receipt | Exception
        op = self._recorder.append_invoked(self._caller, space, append)
        try:
            told = self._log.append(
                space,
                append.events,
                actor=append.actor,
                key=append.key,
                expect=append.expect,
                at=append.at,
                timeout=timeout,
            )
        except Exception as error:  # noqa: BLE001  # whatever it is, it is what the caller got
            told = error
        self._recorder.append_returned(op, told)
        return told

    def read(
        self, space: str, what: What, consistency: Consistency = "linearizable", after: int = 0, timeout: float = 10.0
    ) -> Head | CoordinationState | Sequence[Entry] | Exception:
        """Read the head, the state, or the entries after `after`; return it or the error."""
        found: Head | CoordinationState | Sequence[Entry] | Exception
        op = self._recorder.read_invoked(self._caller, space, what, consistency, after)
        try:
            if what == "head":
                found = self._log.head(space, consistency=consistency, timeout=timeout)
            elif what == "state":
                found = self._log.state(space, consistency=consistency, timeout=timeout)
            else:
                found = list(self._log.events(space, consistency=consistency, after=after))
        except Exception as error:  # noqa: BLE001  # likewise
            found = error
        self._recorder.read_returned(op, found, after)
        return found


def outcome_of(error: BaseException) -> Outcome:
    """Return what an append's error says of the append."""
    if isinstance(error, Rejected | Conflict):
        return "refused"
    return "failed" if isinstance(error, Unavailable | OperatorNeeded) else "unknown"


def revisions(
    at: float,
    era: int,
    revision: int,
    changes: Iterable[tuple[bytes, KeyValue | None]],
    prefix: bytes,
    *,
    exact: bool = False,
) -> Iterator[Revision]:
    """Yield the events of one revision of etcd: what each key below `prefix` became, None if it was deleted.

    `exact` if it was made at that very time, not only seen.
    """
    for key, kv in changes:
        if not key.startswith(prefix):
            continue
        name = key.removeprefix(prefix).decode("ascii", "replace")
        if kv is None:
            yield Revision(at, revision, name, era=era, exact=exact)
        else:
            value = kv.value.decode("utf-8", "replace")
            yield Revision(at, revision, name, value, kv.create_revision, kv.lease, era, exact)


def state_digest(state: CoordinationState) -> str:
    """Return the digest of a state: equal states have equal ones."""
    facts = to_facts(state)
    groups = sorted((sorted(pages), lead.canonical) for lead, pages in facts.groups.values())
    content = (
        facts.seq,
        facts.aliases,
        facts.forks,
        facts.ties,
        facts.ranks,
        facts.merged,
        {page: laid for page, laid in facts.overlays.items() if laid},
        groups,
    )
    return hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()[:32]


def entries_digest(raw: bytes) -> str:
    """Return the digest of entries' canonical bytes."""
    return hashlib.sha256(raw).hexdigest()[:32]


def is_known(error: str) -> bool:
    """Whether an error of that name is one of the journal's."""
    return error in _NAMES


def _names(kind: type[CoordJournalError]) -> Iterator[str]:
    yield kind.__name__
    for below in kind.__subclasses__():
        yield from _names(below)


_NAMES: Final = frozenset(_names(CoordJournalError))
