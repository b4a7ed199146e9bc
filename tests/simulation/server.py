"""A strict model of an etcd server, for a world in which time, order and loss are decided by a test.

It answers as etcd 3.4.23 was seen to answer (`test_model_against_etcd`), at once and in one thread; what
goes wrong on the way is for `client`. Where etcd promises nothing, it does what is least convenient.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final, NamedTuple, Protocol

from coordjournal.etcd import Change, Compare, Delete, Found, Get, KeyValue, Operation, Put, Refused, Result
from tests.simulation.limits import MAX_TTL_SECONDS, MIN_TTL_SECONDS, check_get, check_txn

MAX_IN_FLIGHT: Final = 1_000
MAX_UNTOLD: Final = 10_000

_STABLE: Final = 12  # etcd sorts by insertion up to here, and keeps the order of equals
_creation = attrgetter("create_revision")


class Clock(Protocol):
    """Virtual time in seconds. It only ever grows."""

    @property
    def now(self) -> float: ...


class Committed(NamedTuple):
    """One revision, for a checker: which keys became what (None: deleted), and which node did it.

    `era` grows at each wipe and restore, which let the revisions repeat. `by` is empty for leases that ended.
    """

    era: int
    revision: int
    changes: tuple[tuple[bytes, KeyValue | None], ...]
    by: str


class Snapshot(NamedTuple):
    """A backup: all keys, the TTLs of all leases, the revision."""

    kvs: dict[bytes, KeyValue]
    leases: dict[int, int]
    revision: int


class Pending(NamedTuple):
    """A write whose answer nobody awaits any more, and which is still under way."""

    node: str
    kind: str
    description: object
    run: Callable[[], object]


@dataclass(slots=True)
class Watch:
    """One watch: what it has yet to tell, oldest first, each with its revision; None is "look again"."""

    key: bytes
    end: bytes
    untold: deque[tuple[int, tuple[Change, ...] | None]] = field(default_factory=deque)

    def covers(self, key: bytes) -> bool:
        return self.key <= key < self.end if self.end else key == self.key

    def lose(self) -> None:
        """Forget what was not told; what is told instead is None."""
        self.untold.clear()
        self.untold.append((0, None))


@dataclass(slots=True)
class _Lease:
    ttl: int
    deadline: float
    keys: set[bytes] = field(default_factory=set)


class ModelEtcd:
    """One etcd cluster. `history` holds every revision there ever was.

    Leases end by themselves at the first call after their time; `expire` looks for such without a call.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.revision = 1
        self.compacted = 0
        self.era = 0
        self.history: list[Committed] = []
        self.no_space = False
        """The alarm: etcd takes deletions, and nothing that would make it grow."""
        self.down = False
        """Whether no request reaches it, and none lands."""
        self.renews_the_dead: Callable[[], bool] = lambda: False
        """Asked where a lease is renewed that was revoked before its time: etcd may answer as if it lived."""
        self.befell: Counter[str] = Counter()
        """What befell it and its watches, where that made a difference."""
        self.in_flight: list[Pending] = []
        self.watches: list[Watch] = []
        self._kvs: dict[bytes, KeyValue] = {}
        self._keys: list[bytes] = []
        self._leases: dict[int, _Lease] = {}
        self._revoked: dict[int, int] = {}  # leases, and their TTLs
        self._last_lease = 7_587_000_000_000_000_000
        self._next_deadline = float("inf")  # no lease ends before this
        self._changes: list[Change] = []  # of the transaction under way

    # What clients ask for.

    def get(self, what: Get) -> tuple[int, Found]:
        self.expire()
        check_get(what)
        return self.revision, self._find(what)

    def txn(
        self, guards: Sequence[Compare], then: Sequence[Operation], otherwise: Sequence[Operation] = (), by: str = ""
    ) -> Result:
        self.expire()
        check_txn(guards, then, otherwise)
        if self.no_space and any(isinstance(operation, Put) for branch in (then, otherwise) for operation in branch):
            raise Refused("database space exceeded", "no space")
        succeeded = all(map(self._holds, guards))
        branch = then if succeeded else otherwise
        for operation in branch:
            if isinstance(operation, Put) and operation.lease and operation.lease not in self._leases:
                raise Refused("requested lease not found", "lease not found")
        found = tuple([self._apply(operation) for operation in branch])
        self._commit(by)
        return Result(self.revision, succeeded, found)

    def grant(self, ttl: int) -> tuple[int, int]:
        self.expire()
        if ttl > MAX_TTL_SECONDS:
            raise Refused("too large lease TTL", "invalid")
        if self.no_space:
            raise Refused("database space exceeded", "no space")
        self._last_lease += 1
        ttl = max(ttl, MIN_TTL_SECONDS)
        self._leases[self._last_lease] = _Lease(ttl, self._deadline(ttl))
        return self._last_lease, ttl

    def keep_alive(self, lease: int) -> int:
        """Renew a lease; 0 if it is gone. For one that was revoked `renews_the_dead` may say otherwise."""
        self.expire()
        if (held := self._leases.get(lease)) is None:
            if lease in self._revoked and self.renews_the_dead():
                self.befell["a renewal is answered after a revoke"] += 1
                return self._revoked[lease]
            return 0
        held.deadline = self._deadline(held.ttl)
        return held.ttl

    def revoke(self, lease: int, by: str = "") -> bool:
        """End a lease, and what was put with it in one revision; return whether there was one.

        A test may revoke one before its time, as etcd can.
        """
        self.expire()
        if lease in self._leases:
            self._revoked[lease] = self._leases[lease].ttl
        return self._end_lease(lease, by)

    # What befalls a server.

    def expire(self) -> None:
        """End the leases whose time has come, each in a revision of its own."""
        now = self.clock.now
        if now < self._next_deadline:
            return
        due = sorted((held.deadline, lease) for lease, held in self._leases.items() if held.deadline <= now)
        for _, lease in due:
            self._end_lease(lease, "")
        self._next_deadline = min((held.deadline for held in self._leases.values()), default=float("inf"))

    def next_expiry(self) -> float | None:
        """Return when the next lease ends if nobody renews it."""
        return min((held.deadline for held in self._leases.values()), default=None)

    def leases(self) -> list[int]:
        """Return the leases there are, oldest first."""
        return sorted(self._leases)

    def change_leader(self) -> None:
        """Elect another leader: it gives every lease its full TTL again."""
        self.expire()
        for held in self._leases.values():
            before, held.deadline = held.deadline, self._deadline(held.ttl)
            self.befell["another leader prolongs a lease"] += held.deadline > before

    def compact(self, revision: int) -> None:
        """Forget the revisions below `revision`: a watch that has yet to tell one of them has missed it."""
        if revision <= self.compacted:
            raise Refused("required revision has been compacted", "compacted")
        if revision > self.revision:
            raise Refused("required revision is a future revision", "invalid")
        self.compacted = revision
        for watch in self.watches:
            if any(changes is not None and told < revision for told, changes in watch.untold):
                self.befell["a watch misses what is compacted"] += 1
                watch.lose()

    def snapshot(self) -> Snapshot:
        self.expire()
        return Snapshot(dict(self._kvs), {lease: held.ttl for lease, held in self._leases.items()}, self.revision)

    def restore(self, snapshot: Snapshot) -> None:
        """Become what was backed up: the revision goes back, leases live again with their full TTL.

        Every watch breaks off. Requests under way land in the restored server.
        """
        self.era += 1
        self.compacted = 0
        self.revision = snapshot.revision
        self._kvs = dict(snapshot.kvs)
        self._keys = sorted(snapshot.kvs)
        self._leases = {lease: _Lease(ttl, self._deadline(ttl)) for lease, ttl in snapshot.leases.items()}
        for kv in self._kvs.values():
            if kv.lease:
                self._leases[kv.lease].keys.add(kv.key)
        self.no_space = False
        for watch in self.watches:
            watch.lose()

    def wipe(self) -> None:
        """Lose everything: the revision is 1 again."""
        self.restore(Snapshot({}, {}, 1))

    def send_late(self, pending: Pending) -> None:
        """Keep a write until a test lets it land; of too many, the oldest never does."""
        self.in_flight.append(pending)
        if len(self.in_flight) > MAX_IN_FLIGHT:
            del self.in_flight[0]

    def land(self, pending: Pending) -> None:
        """Let a write that was under way arrive; nobody hears what became of it."""
        self.in_flight.remove(pending)
        if self.down:
            return
        try:
            pending.run()
        except Refused:
            pass  # there is nobody to tell

    # What a test looks at.

    def peek(self, key: bytes) -> KeyValue | None:
        """Return what a key holds, without any effect: not even on leases whose time has come."""
        return self._kvs.get(key)

    def peek_all(self) -> list[KeyValue]:
        """Return everything there is, sorted by key, likewise."""
        return [self._kvs[key] for key in self._keys]

    def _deadline(self, ttl: int) -> float:
        deadline = self.clock.now + ttl
        self._next_deadline = min(self._next_deadline, deadline)
        return deadline

    def _end_lease(self, lease: int, by: str) -> bool:
        held = self._leases.pop(lease, None)
        if held is None:
            return False
        for key in sorted(held.keys):
            self._delete(key)
        self._commit(by)
        return True

    def _holds(self, guard: Compare) -> bool:
        kv = self._kvs.get(guard.key)
        if kv is None:
            return guard.target != "value" and guard.wanted == 0
        actual: int | bytes = getattr(kv, guard.target)
        assert type(actual) is type(guard.wanted), guard
        return actual == guard.wanted

    def _apply(self, operation: Operation) -> Found | None:
        match operation:
            case Put():
                self._put(operation)
            case Delete():
                for key in self._range(operation.key, operation.end):
                    self._delete(key)
            case Get():
                return self._find(operation)
        return None

    def _put(self, put: Put) -> None:
        revision = self.revision + 1
        old = self._kvs.get(put.key)
        if old is None:
            insort(self._keys, put.key)
            kv = KeyValue(put.key, put.value, revision, revision, 1, put.lease)
        else:
            kv = KeyValue(put.key, put.value, old.create_revision, revision, old.version + 1, put.lease)
            if old.lease:
                self._leases[old.lease].keys.discard(put.key)
        if put.lease:
            self._leases[put.lease].keys.add(put.key)
        self._kvs[put.key] = kv
        self._changes.append(Change(kv, deleted=False))

    def _delete(self, key: bytes) -> None:
        old = self._kvs.pop(key)
        del self._keys[bisect_left(self._keys, key)]
        if old.lease and (held := self._leases.get(old.lease)) is not None:
            held.keys.discard(key)
        self._changes.append(Change(KeyValue(key, b"", 0, self.revision + 1, 0), deleted=True))

    def _commit(self, by: str) -> None:
        """End a transaction: what it changed, if anything, is one revision, and the watches' to tell."""
        if not self._changes:
            return
        changes, self._changes = self._changes, []
        self.revision += 1
        told = tuple([(change.kv.key, None if change.deleted else change.kv) for change in changes])
        self.history.append(Committed(self.era, self.revision, told, by))
        for watch in self.watches:
            seen = tuple([change for change in changes if watch.covers(change.kv.key)])
            if seen:
                watch.untold.append((self.revision, seen))
                if len(watch.untold) > MAX_UNTOLD:
                    watch.lose()

    def _range(self, key: bytes, end: bytes) -> list[bytes]:
        if not end:
            return [key] if key in self._kvs else []
        return self._keys[bisect_left(self._keys, key) : bisect_left(self._keys, end)]

    def _find(self, what: Get) -> Found:
        keys = self._range(what.key, what.end)
        if what.only == "count":
            return Found((), len(keys))
        kvs = [self._kvs[key] for key in keys]
        if what.by_creation and len(kvs) > 1:
            if len(kvs) > _STABLE:
                kvs.reverse()  # etcd's order of keys made in one transaction is anyone's guess then
            kvs.sort(key=_creation)
        if what.limit > 0:
            kvs = kvs[: what.limit]
        if what.only == "keys":
            kvs = [kv._replace(value=b"") for kv in kvs]
        return Found(tuple(kvs), len(keys))
