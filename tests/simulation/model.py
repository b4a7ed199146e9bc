"""One node's way to a model of etcd: the port, with a network in between that a test decides about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Final, NamedTuple, Protocol, TypeVar

from coordjournal.etcd import Compare, Found, Get, Operation, OutOfSpace, Refused, Result, Tell, Unanswered
from tests.simulation.server import Clock, Committed, ModelEtcd, Pending, Snapshot, Watch

__all__ = [
    "FATES",
    "Clock",
    "Committed",
    "Fate",
    "ModelClient",
    "ModelEtcd",
    "ModelWatcher",
    "Network",
    "Pending",
    "Reliable",
    "Request",
    "Snapshot",
]

T = TypeVar("T")


class Fate(IntEnum):
    """What becomes of a request. The harmless one is 0."""

    DELIVER = 0
    DROP = 1
    """It never arrives: `Unanswered`."""
    LOSE_ANSWER = 2
    """It is done, and `Unanswered`."""
    DELAY = 3
    """`Unanswered`; a write arrives when the test calls `ModelEtcd.land`, or never."""
    OUT_OF_SPACE = 4
    """A transaction or a new lease is made, and `OutOfSpace`, as an etcd answers that is full now."""


FATES: Final = tuple(Fate)
_DONE: Final = frozenset({Fate.DELIVER, Fate.LOSE_ANSWER, Fate.OUT_OF_SPACE})


class Request(NamedTuple):
    """What a node asks for: the call's name and its arguments without the timeout."""

    node: str
    kind: str
    arguments: tuple[object, ...]


class Network(Protocol):
    """Whoever decides what becomes of requests."""

    def decide(self, kind: str, description: Request) -> Fate | Refused:
        """Return what becomes of a request; a `Refused` is raised in its place, and nothing is done."""

    def elapse(self, seconds: float) -> None:
        """Let a node wait for an answer that does not come, `seconds` at the most."""


class Reliable:
    """A network that delivers everything."""

    def decide(self, kind: str, description: Request) -> Fate | Refused:
        return Fate.DELIVER

    def elapse(self, seconds: float) -> None:
        pass


def _go_on(label: str) -> None:
    """Yield to nobody."""


class ModelWatcher:
    """A stream of watches. It tells nothing by itself: a test calls `pump`, in whichever thread it likes."""

    def __init__(self, server: ModelEtcd) -> None:
        self._server = server
        self._watches: dict[int, tuple[Watch, Tell]] = {}
        self._last = 0
        self._closed = False
        self.silent = False
        """Whether the stream has died without a word."""

    def add(self, key: bytes, end: bytes, tell: Tell) -> int:
        assert not self._closed, "the watcher is closed"
        watch = Watch(key, end)
        watch.lose()
        self._server.watches.append(watch)
        self._last += 1
        self._watches[self._last] = (watch, tell)
        return self._last

    def remove(self, number: int) -> None:
        watch, _ = self._watches.pop(number)
        self._forget(watch)

    def close(self) -> None:
        self._closed = True
        for watch, _ in self._watches.values():
            self._forget(watch)
        self._watches.clear()

    def _forget(self, watch: Watch) -> None:
        self._server.watches = [other for other in self._server.watches if other is not watch]

    def numbers(self) -> list[int]:
        """Return the watches there are."""
        return list(self._watches)

    def untold(self, number: int | None = None) -> int:
        """Return how many calls of `tell` are due: of one watch, or of all."""
        if self.silent or self._server.down:
            return 0
        chosen = self._watches if number is None else {number: self._watches[number]}
        return sum(len(watch.untold) for watch, _ in chosen.values())

    def pump(self, limit: int | None = None, number: int | None = None, *, merge: bool = False) -> int:
        """Tell what is due, in the order of revisions, `limit` calls at the most; return how many were made.

        With `number`, of one watch only: watches do not wait for each other. With `merge`, revisions of a
        watch that follow each other are told in one call.
        """
        told = 0
        while not self.silent and not self._server.down and (limit is None or told < limit):
            due = [
                (watch.untold[0][0], each)
                for each, (watch, _) in self._watches.items()
                if watch.untold and number in (None, each)
            ]
            if not due:
                break
            watch, tell = self._watches[min(due)[1]]
            _, changes = watch.untold.popleft()
            while merge and changes is not None and watch.untold and (more := watch.untold[0][1]) is not None:
                watch.untold.popleft()
                changes += more
            told += 1
            tell(changes)
        return told

    def lose(self, number: int | None = None) -> None:
        """Lose what is due, of one watch or of all; the next pump tells None instead."""
        for each, (watch, _) in self._watches.items():
            if number in (None, each):
                self._server.befell["a watch loses what it had to tell"] += any(watch.untold)
                watch.lose()

    def die(self) -> None:
        """Die in silence: nothing is told any more, until `reconnect`."""
        self._server.befell["a watch dies in silence"] += not self.silent
        self.silent = True

    def reconnect(self) -> None:
        """Stand again, with None due for every watch."""
        self.silent = False
        for watch, _ in self._watches.values():
            watch.lose()


class ModelClient:
    """`Etcd` for one node. `yield_point` is called before and after each request, with what it is.

    A killed node's client is closed by whoever killed it: its watches end, its requests under way do not.
    """

    trouble = ""

    def __init__(
        self,
        server: ModelEtcd,
        node: str = "node",
        network: Network | None = None,
        yield_point: Callable[[str], object] = _go_on,
    ) -> None:
        self._server = server
        self._node = node
        self._network: Network = network if network is not None else Reliable()
        self._yield_point = yield_point
        self.watchers: list[ModelWatcher] = []
        self._closed = False

    def get(self, what: Get, *, timeout: float) -> tuple[int, Found]:
        return self._ask("get", (what,), timeout, lambda: self._server.get(what), writes=False)

    def txn(
        self,
        guards: Sequence[Compare],
        then: Sequence[Operation],
        otherwise: Sequence[Operation] = (),
        *,
        timeout: float,
    ) -> Result:
        asked = (tuple(guards), tuple(then), tuple(otherwise))  # it may land when the lists have changed
        return self._ask("txn", asked, timeout, lambda: self._server.txn(*asked, self._node))

    def grant(self, ttl: int, *, timeout: float) -> tuple[int, int]:
        return self._ask("grant", (ttl,), timeout, lambda: self._server.grant(ttl))

    def keep_alive(self, lease: int, *, timeout: float) -> int:
        return self._ask("keep_alive", (lease,), timeout, lambda: self._server.keep_alive(lease))

    def revoke(self, lease: int, *, timeout: float) -> None:
        self._ask("revoke", (lease,), timeout, lambda: self._server.revoke(lease, self._node))

    def watcher(self) -> ModelWatcher:
        if self._closed:
            raise Unanswered("this etcd client is closed")
        watcher = ModelWatcher(self._server)
        self.watchers.append(watcher)
        return watcher

    def close(self) -> None:
        self._closed = True
        for watcher in self.watchers:
            watcher.close()
        self.watchers.clear()

    def _ask(
        self, kind: str, arguments: tuple[object, ...], timeout: float, run: Callable[[], T], *, writes: bool = True
    ) -> T:
        assert timeout > 0, "a call without a deadline"
        self._yield_point(f"{kind} →")
        try:
            return self._send(Request(self._node, kind, arguments), timeout, run, writes=writes)
        finally:
            self._yield_point(f"{kind} ←")

    def _send(self, request: Request, timeout: float, run: Callable[[], T], *, writes: bool) -> T:
        if self._closed:
            raise Unanswered("this etcd client is closed")
        fate = self._network.decide(request.kind, request)
        if isinstance(fate, Refused):
            raise fate
        if self._server.down:
            fate = Fate.DROP
        if fate in _DONE:
            lost = fate is Fate.LOSE_ANSWER
            try:
                answer = run()
            except Refused as refusal:
                if refusal.reason == "no space" and not lost:
                    raise OutOfSpace(str(refusal)) from refusal  # a real client cannot tell whether it was done
                if not lost:
                    raise
            else:
                if fate is Fate.OUT_OF_SPACE and request.kind in ("txn", "grant"):
                    raise OutOfSpace("database space exceeded")
                if not lost:
                    return answer
        elif fate is Fate.DELAY and writes:
            self._server.send_late(Pending(request.node, request.kind, request, run))
        self._network.elapse(timeout)
        raise Unanswered(f"{request.kind}: no answer within {timeout:g} s")
