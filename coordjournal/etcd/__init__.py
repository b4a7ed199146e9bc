"""etcd, as far as the journal needs it: the port. `client` speaks to a real one.

Reads are linearizable. Every write is a transaction, so that it can carry its guard, and none is sent
twice by this layer: whether to try again is for whoever knows what the transaction means.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

Reason = Literal[
    "lease not found",
    "no space",
    "too large",
    "permission denied",
    "not authenticated",
    "compacted",
    "too many requests",
    "invalid",
]
"""Why etcd refused a request, for certain without doing any of it: the closed list."""


class EtcdError(Exception):
    """A call did not succeed. It says in words what happened, and at which endpoint."""


class Unanswered(EtcdError):
    """No answer came, or one that proves nothing: a write may have been done, or may yet be done."""


class OutOfSpace(Unanswered):
    """Etcd answered a write with "database space exceeded", which leaves open whether it was done.

    Etcd checks its space before it takes a write on and, with this same answer, once more after it has
    done it. Nothing is done any later: what a read finds now is final.
    """


class Refused(EtcdError):
    """Etcd said no: nothing was done, and nothing will be."""

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message, reason)
        self.reason: Reason = reason

    def __str__(self) -> str:
        return str(self.args[0])


class KeyValue(NamedTuple):
    """A key, its value, and the revisions that made and last changed it; `lease` is 0 without one."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0


class Compare(NamedTuple):
    """A guard: `key`'s `target` equals `wanted`. An absent key has version and revisions 0, and no value."""

    key: bytes
    target: Literal["version", "create_revision", "mod_revision", "value"]
    wanted: int | bytes


class Put(NamedTuple):
    """Write a key; with a lease, for as long as that lives."""

    key: bytes
    value: bytes
    lease: int = 0


class Delete(NamedTuple):
    """Delete a key, or all from `key` up to before `end`."""

    key: bytes
    end: bytes = b""


class Get(NamedTuple):
    """Read a key, or all from `key` up to before `end`: sorted by key, or by `create_revision`.

    `limit` is the greatest number of results, 0 without one. `only` leaves out the values, or
    everything but their number.
    """

    key: bytes
    end: bytes = b""
    limit: int = 0
    by_creation: bool = False
    only: Literal["", "keys", "count"] = ""


class Found(NamedTuple):
    """What a `Get` found: the first ones, up to its limit, and how many there are in all."""

    kvs: tuple[KeyValue, ...]
    count: int  # type: ignore[assignment]  # how many there are, not how often one is


class Result(NamedTuple):
    """What became of a transaction: whether its guards held, and what each `Get` of the branch found.

    `found` has one item for each operation of the branch that was taken, None for puts and deletes.
    `revision` is the store's at that moment.
    """

    revision: int
    succeeded: bool
    found: tuple[Found | None, ...]


class Change(NamedTuple):
    """One event of a watch: what a key became, or that it was deleted (then `value` is empty)."""

    kv: KeyValue
    deleted: bool


Tell = Callable[[Sequence[Change] | None], None]
"""Takes the changes of one or more whole revisions, in order; None where some may have been missed:
list again. It is also called with None when the watch first stands. Quick, and never raises."""


class Watcher(Protocol):
    """One stream of watches. It mends itself: whatever happens to it ends in a call with None."""

    def add(self, key: bytes, end: bytes, tell: Tell) -> int:
        """Watch a key (`end` empty) or a range, and return the watch's number. Does not wait for etcd."""

    def remove(self, number: int) -> None:
        """End a watch."""

    def close(self) -> None:
        """End all watches."""


class Etcd(Protocol):
    """An etcd v3 store. Every call raises `Unanswered` or `Refused`, at the latest after `timeout` seconds.

    Safe in many threads. Nothing is connected before the first call.
    """

    @property
    def trouble(self) -> str:
        """What the last request failed with, in a user's words; empty after an answer."""

    def get(self, what: Get, *, timeout: float) -> tuple[int, Found]:
        """Return the store's revision and what was found, linearizably."""

    def txn(
        self,
        guards: Sequence[Compare],
        then: Sequence[Operation],
        otherwise: Sequence[Operation] = (),
        *,
        timeout: float,
    ) -> Result:
        """Do `then` if all guards hold, else `otherwise`; all or nothing, sent once."""

    def grant(self, ttl: int, *, timeout: float) -> tuple[int, int]:
        """Make a lease of `ttl` whole seconds; return its id and its true TTL, which may be longer."""

    def keep_alive(self, lease: int, *, timeout: float) -> int:
        """Renew a lease and return its TTL in seconds; 0 if there is none any more."""

    def revoke(self, lease: int, *, timeout: float) -> None:
        """End a lease: what was put with it is deleted at once. One that is gone is fine."""

    def watcher(self) -> Watcher:
        """Return a stream of watches, none yet."""

    def close(self) -> None:
        """Let go of all connections and watchers."""


Operation = Put | Delete | Get


def end_of(prefix: bytes) -> bytes:
    """Return the end of the range of all keys that begin with `prefix`, which ends in `/`."""
    return prefix[:-1] + bytes((prefix[-1] + 1,))
