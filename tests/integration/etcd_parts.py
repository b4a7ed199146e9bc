"""Nodes of one journal that are stepped by hand, over a real etcd whose calls go wrong where a test says.

A `Party` is one process's part: real objects, a real client, no threads, a clock that the test moves. What
goes wrong does so between our port and the foreign library: see `Edge`.
"""

from __future__ import annotations

import base64
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest

import coordjournal as cj
from coordjournal.authority.etcd import EtcdAuthority
from coordjournal.authority.lane import AppendFuture
from coordjournal.authority.member import Member
from coordjournal.authority.node import Node, one
from coordjournal.authority.wire import Keys, Role, decode_head
from coordjournal.cache import SpaceCache
from coordjournal.entry import Append, Appended, Head, Receipt
from coordjournal.etcd import Compare, Delete, Found, Get, Operation, Put, Reason, Refused, Result, Unanswered, Watcher
from coordjournal.etcd.client import EtcdClient, parse_endpoints
from coordjournal.replica import Replica
from coordjournal.store.git import GitStore
from coordjournal.testing.etcd import EtcdServer
from tests.integration.processes import quick_path, until

__all__ = ["quick_path"]

SPACE: Final = "s"
ACTOR: Final = "alice@example.org"
AT: Final = "2026-01-31T12:00:00.000000Z"
_ROUNDS: Final = 400
_numbers = itertools.count()

Around = Callable[[Callable[[], object]], object]
"""What happens instead of a call: takes what makes the call, returns its answer or raises."""


def lost(call: Callable[[], object]) -> object:
    """Make the call, and lose its answer."""
    call()
    raise Unanswered("the answer is lost")


def dropped(call: Callable[[], object]) -> object:
    """Never make the call, and leave that open."""
    raise Unanswered("the request is lost")


def refused(reason: Reason) -> Around:
    """Return what refuses the call for certain."""

    def refuse(call: Callable[[], object]) -> object:
        raise Refused(f"etcd refused: {reason}", reason)

    return refuse


def then(before: Callable[[], object] = lambda: None, after: Callable[[], object] = lambda: None) -> Around:
    """Return what does something before the call is made, or before its answer is seen."""

    def around(call: Callable[[], object]) -> object:
        before()
        answer = call()
        after()
        return answer

    return around


@contextmanager
def stalled(edge: Edge) -> Iterator[None]:
    """Let no call be made meanwhile; those that were begun are made afterwards."""
    goes_on = threading.Event()

    def wait(call: Callable[[], object]) -> object:
        goes_on.wait(60)
        return call()

    edge.always("all", wait)
    try:
        yield
    finally:
        edge.always("all", None)
        goes_on.set()


class Late:
    """A call that is under way until `land`; whoever made it gets no answer."""

    def __init__(self) -> None:
        self._call: Callable[[], object] | None = None
        self.landed = False

    def __call__(self, call: Callable[[], object]) -> object:
        self._call = call
        raise Unanswered("no answer came in time")

    def land(self) -> None:
        """Let it arrive, if it is under way."""
        call, self._call = self._call, None
        if call is not None:
            try:
                call()
            except (Unanswered, Refused):
                pass
            self.landed = True


class Edge:
    """An `Etcd`: a real client, around whose calls a test puts what goes wrong.

    `names` lists the calls that were made, each by what it is for: `campaign`, `publish`, `intents`, …
    """

    def __init__(self, real: EtcdClient) -> None:
        self.real = real
        self.names: list[str] = []
        self.watched: Callable[[], object] = lambda: None
        self._at: dict[int, Around] = {}
        self._next: list[tuple[str, Around]] = []
        self._always: dict[str, Around] = {}

    def at(self, number: int, around: Around) -> None:
        """Have this happen to the call of that number, the first is 0."""
        self._at[number] = around

    def next(self, name: str, *around: Around) -> None:
        """Have this happen to the next calls of that name, to each one thing."""
        self._next += [(name, one_of_them) for one_of_them in around]

    def always(self, name: str, around: Around | None) -> None:
        """Have this happen to all calls of that name, or to none any more; every call has the name `all`."""
        if around is None:
            self._always.pop(name, None)
        else:
            self._always[name] = around

    def _made(self, name: str, call: Callable[[], object]) -> object:
        self.names.append(name)
        self.watched()
        if (around := self._at.get(len(self.names) - 1)) is not None:
            return around(call)
        for place, (wanted, around) in enumerate(self._next):
            if wanted == name:
                del self._next[place]
                return around(call)
        if (around := self._always.get(name) or self._always.get("all")) is not None:
            return around(call)
        return call()

    def get(self, what: Get, *, timeout: float) -> tuple[int, Found]:
        name = "intents" if what.by_creation else "read"
        return self._made(name, lambda: self.real.get(what, timeout=timeout))  # type: ignore[return-value]

    def txn(
        self,
        guards: Sequence[Compare],
        then: Sequence[Operation],
        otherwise: Sequence[Operation] = (),
        *,
        timeout: float,
    ) -> Result:
        name = name_of(guards, then)
        return self._made(name, lambda: self.real.txn(guards, then, otherwise, timeout=timeout))  # type: ignore[return-value]

    def grant(self, ttl: int, *, timeout: float) -> tuple[int, int]:
        return self._made("grant", lambda: self.real.grant(ttl, timeout=timeout))  # type: ignore[return-value]

    def keep_alive(self, lease: int, *, timeout: float) -> int:
        return self._made("keep alive", lambda: self.real.keep_alive(lease, timeout=timeout))  # type: ignore[return-value]

    def revoke(self, lease: int, *, timeout: float) -> None:
        self._made("revoke", lambda: self.real.revoke(lease, timeout=timeout))

    def watcher(self) -> Watcher:
        return self.real.watcher()

    @property
    def trouble(self) -> str:
        return self.real.trouble

    def close(self) -> None:
        self.real.close()


def name_of(guards: Sequence[Compare], operations: Sequence[Operation]) -> str:
    """Return what a transaction is for."""
    if not guards:
        return "read"
    puts = {operation.key.split(b"/")[2] for operation in operations if isinstance(operation, Put)}
    deletes = {operation.key.split(b"/")[2] for operation in operations if isinstance(operation, Delete)}
    if b"holders" in puts | deletes:
        return "campaign" if b"holders" in puts else "let go"
    if any(b"/heads/" in guard.key for guard in guards):
        return "publish"
    if b"intents" in puts | deletes:
        if any(guard.target == "mod_revision" for guard in guards):
            return "withdraw"
        values = [operation.value for operation in operations if isinstance(operation, Put)]
        return "send" if any(values) else "settle"
    return "session" if b"nodes" in puts | deletes else "journal"


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Party:
    """One node with its part in each space; nothing happens unless it is stepped."""

    def __init__(
        self, endpoints: str, path: Path, prefix: str, *, role: Role = "auto", ttl: int = 60, threads: bool = False
    ) -> None:
        self.edge = Edge(EtcdClient(parse_endpoints(endpoints)))
        self.clock = Clock()
        writer = f"-{os.getpid()}-{os.urandom(4).hex()}"
        self.store = GitStore(path, node="test", clock=lambda: datetime.now(UTC), random=os.urandom, writer=writer)
        replicas: dict[str, Replica] = {}

        def replica(space: str) -> Replica:
            return replicas.setdefault(space, Replica(space, self.store, SpaceCache(None)))

        self.keys = Keys(prefix)
        clock = time.monotonic if threads else self.clock
        self.node = Node(self.edge, self.keys, self.store, replica, ttl=ttl, role=role, program="test", clock=clock)
        self.authority = EtcdAuthority(self.node, threads=threads)
        self.futures: dict[str, AppendFuture] = {}
        self._asked: list[Future[Receipt]] = []
        if not threads:
            self.edge.watched = self.check_idle

    def check_idle(self) -> None:
        """Assert that nobody waits for a member that says that nothing is on its way: a close would leave them so."""
        self._asked = [future for future in self._asked if not future.done()]
        assert not (self._asked and self.member.idle), f"{len(self._asked)} are forgotten"

    @property
    def member(self) -> Member:
        return self.authority.member(SPACE)

    @property
    def holds(self) -> bool:
        return self.member.tenure is not None

    def submit(self, *keys: str) -> AppendFuture:
        """Ask for one append under each key; return the future of the last."""
        for key in keys:
            assert key not in self.futures, "each asks once, so that what was told can be checked"
            self.futures[key] = self.ask(key)
        return self.futures[keys[-1]]

    def ask(self, key: str) -> AppendFuture:
        """Ask for the append of that key, without noting it."""
        future = self.authority.submit(SPACE, appended_as(key))
        assert isinstance(future, AppendFuture)
        self._asked.append(future)
        return future

    def step(self, times: int = 1) -> float | None:
        """Take so many steps; return what the last one says of the next."""
        delay: float | None = 0.0
        for _ in range(times):
            delay = self.member.step()
            self.check_idle()
        return delay

    def run(self) -> None:
        """Take steps until one has nothing to do at once."""
        for _ in range(_ROUNDS):
            if self.step() != 0.0:
                return
        raise AssertionError(f"no end of steps: {self.edge.names[-20:]}")

    def until(self, call: str) -> None:
        """Take steps until a call of that name was made."""
        before = self.edge.names.count(call)
        for _ in range(_ROUNDS):
            if self.edge.names.count(call) > before:
                return
            self.step()
        raise AssertionError(f"no {call}: {self.edge.names[-20:]}")

    def withdraw(self, key: str) -> None:
        """Begin to take back what was asked for under a key, as its caller's deadline does."""
        future = self.futures[key]
        if self.member.withdraw(future, 0.0):
            Future.cancel(future)
            future.set_running_or_notify_cancel()

    def close(self) -> None:
        for name in list(self.edge._always):
            self.edge.always(name, None)
        self.edge._at.clear()
        self.edge._next.clear()
        self.authority.close(0.5)
        self.store.close()


def appended_as(key: str) -> Append:
    """Return the append that tests ask for under a key."""
    append = Append((cj.AliasSet(alias=key, target="page:1"),), key, ACTOR, AT)
    append.check()
    return append


def drain(parties: Sequence[Party]) -> None:
    """Step all in turn, those too that join meanwhile, and let time pass, until nothing of anybody is on its way."""
    for round_ in range(_ROUNDS):
        if round_ > _ROUNDS // 4:
            time.sleep(0.01)  # etcd's own clock, by which leases end, is not ours
        for party in tuple(parties):
            delay = party.step()
            party.clock.now += delay if delay is not None else 1.0
            party.authority.tick()
        if all(party.member.idle and not (party.holds and party.member._intents) for party in parties):
            return
    states = [(party.member.idle, party.edge.names[-6:]) for party in parties]
    raise AssertionError(f"it does not come to rest: {states}")


def expire(server: EtcdServer, party: Party) -> None:
    """Take a party's lease away behind its back, as its end or etcd's operator does."""
    if party.node.session.lease:
        EtcdClient([server.endpoint]).revoke(party.node.session.lease, timeout=5)


def read(server: EtcdServer, key: bytes) -> bytes | None:
    """Return what etcd has under a key."""
    client = EtcdClient([server.endpoint])
    try:
        found = one(client.get(Get(key), timeout=5)[1])
    finally:
        client.close()
    return None if found is None else found.value


def delete_key(server: EtcdServer, key: bytes) -> None:
    """Delete a key behind everybody's back, through etcd's own gateway."""
    server.call("kv/deleterange", key=base64.b64encode(key).decode())


def put_key(server: EtcdServer, key: bytes, value: bytes) -> None:
    """Put a key behind everybody's back."""
    server.call("kv/put", key=base64.b64encode(key).decode(), value=base64.b64encode(value).decode())


def put_new(endpoints: str, key: bytes, value: bytes) -> None:
    """Put a key with a lease of two seconds, and wait until it is gone or has ended."""
    client = EtcdClient(parse_endpoints(endpoints))
    lease, _ = client.grant(2, timeout=5)
    client.txn([], [Put(key, value, lease)], timeout=5)
    until(lambda: one(client.get(Get(key), timeout=5)[1]) is None, "the key to go")
    client.close()


def published(server: EtcdServer, party: Party) -> list[Appended]:
    """Return the log up to the head that is published."""
    raw = read(server, party.keys.head(SPACE))
    head = Head() if raw is None else decode_head(raw, "").head
    return list(party.store.read(SPACE, head)) if head.seq else []


def told(future: Future[Receipt]) -> Receipt | BaseException:
    """Return what a caller got; a cancelled append is what `log.append` makes `Unavailable` of."""
    if future.cancelled():
        return cj.Unavailable("taken back")
    return future.exception(0) or future.result(0)


def unbroken(server: EtcdServer, party: Party) -> dict[str, Appended]:
    """Assert that the published log is one, with each key once, and the branch on the way to its head; by key."""
    log = published(server, party)
    by_key: dict[str, Appended] = {}
    at = 0
    for appended in log:
        assert appended.first == at + 1, "a gap, or a fork"
        assert appended.key not in by_key, f"{appended.key} was appended twice"
        by_key[appended.key] = appended
        at = appended.seq
    branch = party.store.head(SPACE)
    if log:
        assert not branch.seq or any(appended.head == branch for appended in log), "the branch is elsewhere"
    return by_key


def check(server: EtcdServer, parties: Iterable[Party], *, all_told: bool = True) -> dict[str, Appended]:
    """Assert what holds whatever went wrong, of the published log and of what the callers were told.

    The log is `unbroken`; what was acknowledged stands where its receipt says, what is `Unavailable` does
    not stand there, and what one party appended is in the order it asked for. Returns the appends by key.
    """
    parties = list(parties)
    by_key = unbroken(server, parties[0])
    for party in parties:
        last = 0
        for key, future in party.futures.items():
            if not future.done():
                assert not all_told, f"{key} was never answered"
                continue
            answer = told(future)
            stands = by_key.get(key)
            if isinstance(answer, Receipt):
                assert stands is not None, f"{key} was acknowledged, and is not in the log"
                assert (answer.first, answer.seq, answer.commit, answer.term) == (
                    *(stands.first, stands.seq, stands.commit, stands.term),
                )
                assert not answer.duplicate, f"{key} was asked for once"
                assert stands.seq > last, f"{key} was overtaken"
                last = stands.seq
            elif isinstance(answer, cj.Unavailable):
                assert stands is None, f"{key} is in the log, though its caller was told that it certainly is not"
            else:
                assert isinstance(answer, cj.Undecided), repr(answer)
    return by_key


def fresh_prefix() -> str:
    """Return a prefix that no other test has."""
    return f"/test-{os.getpid()}-{next(_numbers)}/"


@pytest.fixture(scope="module")
def server(coordjournal_etcd_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server


class Nodes:
    """Makes nodes of one journal, and closes them."""

    def __init__(self, server: EtcdServer, path: Path) -> None:
        self.server = server
        self.path = path
        self.prefix = fresh_prefix()
        self.made: list[Party] = []

    def __call__(self, **options: object) -> Party:
        self.made.append(Party(self.server.endpoint, self.path, self.prefix, **options))  # type: ignore[arg-type]
        return self.made[-1]


@pytest.fixture
def node(server: EtcdServer, quick_path: Path) -> Iterator[Nodes]:
    nodes = Nodes(server, quick_path / "wiki.git")
    yield nodes
    for party in nodes.made:
        party.close()


def holding(node: Nodes, *keys: str) -> Party:
    """Return a node that holds the space, and has appended."""
    party = node()
    party.submit(*(keys or ("first",)))
    party.run()
    assert party.holds
    return party
