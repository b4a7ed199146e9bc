"""Processes whose steps a test takes one by one, over the model of etcd; nothing happens by chance."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Final

import coordjournal as cj
from coordjournal.authority.etcd import EtcdAuthority
from coordjournal.authority.lane import AppendFuture
from coordjournal.authority.member import Member
from coordjournal.authority.node import Node
from coordjournal.authority.wire import HeadValue, Role, decode_head, encode_head
from coordjournal.cache import SpaceCache
from coordjournal.entry import Append, Head, Receipt
from coordjournal.etcd import Put, Refused
from coordjournal.keyspace import Keyspace
from coordjournal.replica import Replica
from tests.simulation.model import Fate, ModelClient, ModelEtcd, Request
from tests.simulation.process import KEYS, entropy
from tests.simulation.store import SimulatedDisk, SimulatedStore
from tests.simulation.workload import ACTOR, AT

SPACE: Final = "wiki"


class Hands:
    """The world: etcd, a disk, a clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.server = ModelEtcd(self)
        self.disk = SimulatedDisk(clock=self)
        self.store = SimulatedStore(self.disk, "onlooker")
        self.operator = Keyspace(ModelClient(self.server, "operator"), KEYS)
        self._drawn = 0

    def entropy(self, count: int) -> bytes:
        self._drawn += 1
        return entropy(self._drawn, count)

    @property
    def holder(self) -> str:
        """Return the session that holds the space."""
        found = self.server.peek(KEYS.holder(SPACE))
        return found.value.decode() if found is not None else ""

    @property
    def head(self) -> Head:
        """Return the published head."""
        found = self.server.peek(KEYS.head(SPACE))
        return decode_head(found.value, "").head if found is not None else Head()

    def keys(self) -> list[str]:
        """Return the keys of the published log, in order."""
        return [appended.key for appended in self.store.read(SPACE, self.head)]

    def up_to(self, revision: int) -> None:
        """Let others write to etcd until the next revision is `revision`."""
        assert self.server.revision < revision
        while self.server.revision < revision - 1:
            self.server.txn((), [Put(b"/elsewhere", b"")])

    def publish(self, head: Head) -> None:
        """Publish a head as `recover` of one space does."""
        assert self.operator.publish(SPACE, head, self.store.identity(SPACE, head), self.operator.head(SPACE))

    def recover(self, head: Head, *, marked: bool = True) -> None:
        """Publish a head as `recover` does; `marked` is false for a naive one, which clears nothing either."""
        identity = self.store.identity(SPACE, head)
        if marked:
            self.operator.clear(self.operator.journal(), journal=False)
            self.publish(head)
        else:
            raw = encode_head(HeadValue(head.seq, head.commit, head.term, identity))
            self.server.txn((), [Put(KEYS.head(SPACE), raw)])
        if self.operator.journal() is None:
            self.operator.tell_journal(self.disk.journal)


class Hand:
    """One process. `fates` are what becomes of its next writes of a key that begins so, one after the other."""

    def __init__(self, world: Hands, name: str, role: Role = "auto") -> None:
        self.world = world
        self.fates: list[tuple[bytes, Fate]] = []
        client = ModelClient(world.server, name, self)
        self._replicas: dict[str, Replica] = {}
        self.store = SimulatedStore(world.disk, name)
        self.node = Node(
            client,
            KEYS,
            self.store,
            self._replica,
            ttl=10,
            role=role,
            program="1",
            clock=lambda: world.now,
            random=world.entropy,
        )
        self.authority = EtcdAuthority(self.node, threads=False)
        self.authority.watch()
        self.watcher = client.watchers[0]

    def _replica(self, space: str) -> Replica:
        if space not in self._replicas:
            self._replicas[space] = Replica(space, self.store, SpaceCache(None))
        return self._replicas[space]

    def decide(self, kind: str, description: Request) -> Fate | Refused:
        if kind == "txn" and self.fates:
            then = description.arguments[1]
            assert isinstance(then, tuple)
            prefix, fate = self.fates[0]
            if any(isinstance(operation, Put) and operation.key.startswith(prefix) for operation in then):
                del self.fates[0]
                return fate
        return Fate.DELIVER

    def elapse(self, seconds: float) -> None:
        self.world.now += seconds

    @property
    def member(self) -> Member:
        return self.authority.member(SPACE)

    def submit(self, key: str, event: cj.Event | None = None) -> Future[Receipt]:
        made = event or cj.AliasSet(alias=f"Name {key}", target="page:1")
        return self.authority.submit(SPACE, Append((made,), key, ACTOR, AT))

    def withdraw(self, future: Future[Receipt]) -> bool:
        """Ask that an append be taken back; the next steps do it."""
        assert isinstance(future, AppendFuture)
        return self.member.withdraw(future, seconds=0)

    def steps(self, most: int = 40) -> None:
        """Take steps until nothing is due now."""
        for _ in range(most):
            if self.member.step() != 0.0:
                return
        raise AssertionError("it does not come to rest")

    def append(self, key: str, event: cj.Event | None = None) -> Receipt:
        """Append, as the holder."""
        future = self.submit(key, event)
        self.steps()
        return future.result(0)

    def forward(self, key: str, event: cj.Event | None = None) -> Future[Receipt]:
        """Send an append to the holder, who has not seen it yet."""
        future = self.submit(key, event)
        self.steps()
        return future
