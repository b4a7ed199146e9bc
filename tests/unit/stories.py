"""Small histories, told step by step: a world of one space in which everything goes right, unless told otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import NamedTuple, TypeVar

import msgspec

import coordjournal as cj
from coordjournal.authority.wire import Accepted, HeadValue, OutcomeItem, encode_head, encode_intent, encode_outcome
from coordjournal.entry import Append, Head, Receipt, StoredEntry
from coordjournal.events import Event as Decision
from coordjournal.state import EMPTY, fold
from coordjournal.testing.histories import (
    AppendInvoked,
    BranchSeen,
    Ended,
    Era,
    Event,
    Examined,
    Fault,
    FinalHead,
    Healed,
    Logged,
    Recorder,
    Revision,
    Sent,
)

SPACE = "s"
T = TypeVar("T")

AT = "2026-01-31T12:00:00.000000Z"
ACTOR = "alice@example.org"


class Asked(NamedTuple):
    """An append under way."""

    op: str
    process: str
    append: Append


def decision(key: str) -> cj.AliasSet:
    """Return the decision that is asked for under a key, unless another is."""
    return cj.AliasSet(key, "page:1")


class Story:
    """What happens, in the order in which it is told; each event is a second after the one before."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.log: list[Logged] = []
        self.holder = ""
        self.term = 0
        self.revision = 1
        self.era = 0
        self._now = 0.0
        self._recorders: dict[str, Recorder] = {}
        self._commits = 0
        self.exact = False  # whether it is known when each revision was made

    def tick(self) -> float:
        self._now += 1.0
        return self._now

    @property
    def head(self) -> Head:
        return head_of(self.log)

    def by(self, process: str) -> Recorder:
        if process not in self._recorders:
            self._recorders[process] = Recorder(self.events.append, process, self.tick)
        return self._recorders[process]

    # Calls.

    def ask(
        self,
        key: str,
        process: str = "p",
        caller: str = "",
        events: Sequence[Decision] = (),
        expect: int | None = None,
        actor: str = ACTOR,
    ) -> Asked:
        append = Append(tuple(events) or (decision(key),), key, actor, AT, expect)
        op = self.by(process).append_invoked(caller or process, SPACE, append)
        return Asked(op, process, append)

    def tell(self, asked: Asked, told: Receipt | BaseException) -> None:
        self.by(asked.process).append_returned(asked.op, told)

    def acknowledge(self, asked: Asked, *, duplicate: bool = False) -> None:
        found = next(item for item in self.log if item.key == asked.append.key)
        self.tell(asked, receipt(found, duplicate=duplicate))

    def read(
        self, upto: int | None = None, process: str = "r", consistency: str = "linearizable", what: str = "head"
    ) -> None:
        """Read what is there, or a shorter log."""
        op = self.by(process).read_invoked(process, SPACE, what, consistency)  # type: ignore[arg-type]
        log = self.log if upto is None else self.log[:upto]
        match what:
            case "head":
                self.by(process).read_returned(op, head_of(log))
            case "state":
                self.by(process).read_returned(op, fold(stored(log)))
            case _:
                raise AssertionError(what)

    # Etcd.

    def put(self, key: str, value: str | None, created: int = 0, *, alone: bool = True) -> None:
        self.revision += alone
        at, created = self.tick(), created or self.revision
        self.events.append(Revision(at, self.revision, key, value, created, era=self.era, exact=self.exact))

    def set_back(self, backup: Sequence[Revision]) -> None:
        """Restore etcd from what it had when it had made these revisions."""
        self.era += 1
        self.revision = backup[-1].revision
        self.events.append(Era(self.tick(), self.era, self.revision))
        self.events += [msgspec.structs.replace(event, at=self.tick(), era=self.era) for event in backup]

    def forward(self, *asked: Asked, number: int = 1) -> None:
        """Put an intent, as the process does that asks for its appends."""
        value = encode_intent([each.append for each in asked]).decode()
        self.put(f"intents/{SPACE}/{asked[0].process}/{number:012}", value)

    def decide(self, *asked: Asked, number: int = 1, items: Sequence[OutcomeItem] = (), raw: str = "") -> None:
        """Put an intent's outcome, in the transaction that is being told: all were accepted, unless it says else."""
        value = raw or encode_outcome(items or [self.accepted(each) for each in asked]).decode()
        self.put(f"intents/{SPACE}/{asked[0].process}/{number:012}", None, alone=False)
        self.put(f"outcomes/{asked[0].process}/{SPACE}/{number:012}", value, alone=False)

    def accepted(self, asked: Asked, *, duplicate: bool = False) -> Accepted:
        item = next(item for item in self.log if item.key == asked.append.key)
        return Accepted(item.key, item.first, item.seq, item.commit, item.term, duplicate)

    def elect(self, session: str) -> None:
        self.put(f"holders/{SPACE}", session)
        self.holder, self.term = session, self.head.term + 1

    def depose(self) -> None:
        self.put(f"holders/{SPACE}", None)
        self.holder = ""

    def write(self, *appends: Append, base: Head | None = None, term: int = 0) -> list[Logged]:
        """Write appends on top of the log, or of another head; nobody sees them yet."""
        base = self.head if base is None else base
        written = []
        for append in appends:
            self._commits += 1
            item = Logged(
                self._now, SPACE, f"{self._commits:040x}", base.commit, term or self.term, base.seq + 1, append
            )
            base = Head(item.seq, item.commit, item.term)
            written.append(item)
        self.events += written
        return written

    def publish(self, *asked: Asked, sender: str = "", mark: str = "") -> None:
        """Write and publish a group, as its holder does."""
        self.publish_all(self.write(*(each.append for each in asked)), sender, mark)

    def publish_all(self, written: Sequence[Logged], sender: str = "", mark: str = "") -> None:
        head = written[-1]
        self.events.append(Sent(self.tick(), "p", sender or self.holder, SPACE, head.commit))
        value = HeadValue(head.seq, head.commit, head.term, "0" * 32, mark)
        self.put(f"heads/{SPACE}", encode_head(value).decode())
        self.log += written

    def see_branch(self, upto: int | None = None, published: int | None = None) -> None:
        head = head_of(self.log if upto is None else self.log[:upto])
        self.events.append(
            BranchSeen(self.tick(), SPACE, head.commit, self.head.seq if published is None else published)
        )

    # The rest.

    def end(self, process: str) -> None:
        self.events.append(Ended(self.tick(), process))

    def heal(self, within: float) -> None:
        self.events.append(Healed(self.tick(), within, (SPACE,)))

    def harm(self, kind: str, target: str = "", phase: str = "once") -> None:
        self.events.append(Fault(self.tick(), kind, target, phase))  # type: ignore[arg-type]

    def over(self, problem: str = "", waiting: Sequence[str] = ()) -> list[Event]:
        """Return the whole history, with the log as it ended."""
        final = FinalHead(self.tick(), SPACE, self.head.commit, tuple(waiting))
        return [*self.events, final, Examined(self.tick(), "git fsck --full", problem)]


def head_of(log: Sequence[Logged]) -> Head:
    return Head(log[-1].seq, log[-1].commit, log[-1].term) if log else Head()


def receipt(item: Logged, *, duplicate: bool = False) -> Receipt:
    return Receipt(SPACE, item.first, item.seq, item.commit, item.term, item.key, "local", duplicate)


def stored(log: Sequence[Logged]) -> list[StoredEntry]:
    return [
        StoredEntry(seq, item.key, AT, ACTOR, event)
        for item in log
        for seq, event in enumerate(item.append.events, item.first)
    ]


def state_of(log: Sequence[Logged]) -> cj.CoordinationState:
    return fold(stored(log), EMPTY)


class World:
    """A world that keeps the rules: callers ask for and read what they like, holders come and go."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._story = Story()
        self._open: dict[str, Asked] = {}  # by caller
        self._intents: dict[str, int] = {}  # by operation: the number of what lies in etcd for it
        self._landed: set[str] = set()  # operations that were decided
        self._made: dict[str, str] = {}  # by key: the operation that appended it
        self._numbers = 0
        self._unsure: list[Asked] = []

    def run(self, steps: int) -> list[Event]:
        """Return a whole history of about so many steps."""
        story = self._story
        story.elect("holder-0")
        moves = [self.ask, self.ask, self.publish, self.publish, self.answer, self.answer, self.read, self.branch]
        for number in range(steps):
            self._random.choice([*moves, self.forget, self.fail, self.again, self.refuse])()
            if self._random.random() < 0.05:
                story.depose()
                story.elect(f"holder-{number + 1}")
        for process in "pq":
            story.end(process)
        for asked in self._open.values():
            if asked.op in self._intents:
                self._decide([asked])
        return story.over()

    def ask(self, key: str = "") -> None:
        self._numbers += 1
        process, thread = self._random.choice("pq"), self._random.choice("12")
        caller = f"{process}/{thread}"
        if caller in self._open:
            return
        asked = self._story.ask(key or f"k{self._numbers}", process, caller)
        self._open[caller] = asked
        if self._random.random() < 0.5:
            self._intents[asked.op] = self._numbers
            self._story.forward(asked, number=self._numbers)

    def publish(self) -> None:
        waiting = [asked for asked in self._open.values() if asked.op not in self._landed]
        self._random.shuffle(waiting)
        self._decide(waiting[: self._random.randint(0, 3)])

    def _decide(self, asked: list[Asked]) -> None:
        """Publish a group: what is not in the log yet is appended, and each intent gets its outcome."""
        known = {item.key for item in self._story.log}
        fresh = [each for each in asked if each.append.key not in known]
        keys = [each.append.key for each in fresh]
        if len(set(keys)) < len(keys) or not asked:
            return
        if fresh:
            self._story.publish(*fresh)
        else:
            self._story.revision += 1
        self._made.update({each.append.key: each.op for each in fresh})
        self._landed |= {each.op for each in asked}
        for each in asked:
            if number := self._intents.pop(each.op, None):
                item = self._story.accepted(each, duplicate=each.append.key in known)
                self._story.decide(each, number=number, items=[item])

    def answer(self) -> None:
        for caller, asked in list(self._open.items()):
            if asked.op in self._landed and self._random.random() < 0.7:
                del self._open[caller]
                self._story.acknowledge(asked, duplicate=self._made[asked.append.key] != asked.op)

    def _attempts(self, key: str) -> list[Asked]:
        calls = [event for event in self._story.events if isinstance(event, AppendInvoked)]
        return [Asked(call.op, call.process, call.append) for call in calls if call.append.key == key]

    def forget(self) -> None:
        """Tell a caller that nobody knows."""
        for caller, asked in list(self._open.items()):
            if self._random.random() < 0.5 and asked.op not in self._intents:
                del self._open[caller]
                self._story.tell(asked, cj.Undecided(""))
                self._unsure.append(asked)

    def again(self) -> None:
        """Ask again for what nobody knew of."""
        if self._unsure:
            self.ask(self._random.choice(self._unsure).append.key)

    def fail(self) -> None:
        for caller, asked in list(self._open.items()):
            others = [each for each in self._attempts(asked.append.key) if each.op != asked.op]
            if asked.op in self._landed or asked.op in self._intents or others:
                continue
            if self._random.random() < 0.5:
                del self._open[caller]
                self._story.tell(asked, cj.Unavailable(""))

    def refuse(self) -> None:
        self._numbers += 1
        asked = self._story.ask(f"r{self._numbers}", "q", "q/3", expect=self._story.head.seq + 3)
        self._story.tell(asked, cj.Conflict("", self._story.head.seq))

    def read(self) -> None:
        log = self._story.log
        what = self._random.choice(["head", "state"])
        if self._random.random() < 0.3:
            self._story.read(self._random.randint(0, len(log)), "local-reader", "local", what)
        else:
            self._story.read(None, "r", self._random.choice(["session", "linearizable"]), what)

    def branch(self) -> None:
        self._story.see_branch()


class Unfit(Exception):
    """The history has nothing that can be bent so."""


def pick(random: Random, found: Sequence[T]) -> T:
    if not found:
        raise Unfit
    return random.choice(found)


def change(events: list[Event], old: Event, new: Event) -> None:
    events[next(number for number, event in enumerate(events) if event is old)] = new


def the_call(events: Sequence[Event], op: str) -> AppendInvoked:
    return next(event for event in events if isinstance(event, AppendInvoked) and event.op == op)


def final_log(events: Sequence[Event]) -> list[Logged]:
    stored = {event.commit: event for event in events if isinstance(event, Logged)}
    commit = next(event.commit for event in events if isinstance(event, FinalHead))
    log = []
    while commit:
        log.append(stored[commit])
        commit = stored[commit].parent
    if not log:
        raise Unfit
    return log[::-1]


def known_at(events: Sequence[Event], at: float) -> bool:
    """Whether anything was published before a time."""
    return any(isinstance(event, Revision) and event.key.startswith("heads/") and event.at < at for event in events)
