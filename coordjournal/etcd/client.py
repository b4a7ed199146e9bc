"""etcd over gRPC, as far as the journal needs it: what a user configures, and the port's calls.

Nothing is connected, and grpc is not even imported, before the first call.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from coordjournal.etcd import Compare, Found, Get, Operation, Result, Unanswered, Watcher
from coordjournal.etcd.endpoints import Tls, endpoints_of, parse_endpoints

if TYPE_CHECKING:
    from coordjournal.etcd.calls import Calls

__all__ = ["Alarm", "EndpointStatus", "EtcdClient", "Tls", "parse_endpoints"]


class EndpointStatus(NamedTuple):
    """What one endpoint says of itself; with `error`, why it says nothing.

    Sizes are in bytes. `leader` is the id of the member that leads, 0 if it knows of none; `problems` are
    etcd's own words.
    """

    endpoint: str
    error: str = ""
    version: str = ""
    db_size: int = 0
    db_size_in_use: int = 0
    cluster: int = 0
    member: int = 0
    leader: int = 0
    learner: bool = False
    problems: tuple[str, ...] = ()

    @property
    def is_leader(self) -> bool:
        """Whether this member leads."""
        return self.member != 0 and self.member == self.leader


class Alarm(NamedTuple):
    """An alarm of a member that stays until an operator disarms it: `NOSPACE` or `CORRUPT`."""

    member: int
    kind: str


class EtcdClient:
    """An `Etcd` that speaks to real ones: the members of one cluster, or a single one.

    `endpoints` are as `parse_endpoints` describes, or what it returns; with `tls`, those that do not say
    `http://` are spoken to with TLS. `username` and `password` are for etcd's own authentication. Raises
    `ValueError` where these do not fit together. Making one does no I/O, so it may be made before a fork.
    """

    def __init__(
        self,
        endpoints: str | Sequence[str],
        *,
        tls: Tls | None = None,
        username: str = "",
        password: str = "",
    ) -> None:
        self._endpoints = endpoints_of(endpoints.split(",") if isinstance(endpoints, str) else endpoints)
        if tls is not None and (tls.cert is None) != (tls.key is None):
            raise ValueError("for TLS a certificate and its key are given together, or neither")
        if tls is not None and any(endpoint.tls is False for endpoint in self._endpoints):
            raise ValueError("an endpoint with http:// is spoken to without TLS, but TLS is configured")
        if password and not username:
            raise ValueError("a password for etcd is given, and no user name")
        if username and not password:
            raise ValueError(
                f"a user of etcd, {username!r}, is named without a password; a user by certificate is the one whom"
                " the certificate names, and is not named besides"
            )
        self._tls = tls
        self._username = username
        self._password = password
        self._lock = threading.Lock()
        self._opened: Calls | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"EtcdClient([{', '.join(repr(str(endpoint)) for endpoint in self._endpoints)}])"

    @property
    def trouble(self) -> str:
        return self._opened.trouble if self._opened is not None else ""

    def get(self, what: Get, *, timeout: float) -> tuple[int, Found]:
        return self._calls().get(what, timeout)

    def txn(
        self,
        guards: Sequence[Compare],
        then: Sequence[Operation],
        otherwise: Sequence[Operation] = (),
        *,
        timeout: float,
    ) -> Result:
        return self._calls().txn(guards, then, otherwise, timeout)

    def grant(self, ttl: int, *, timeout: float) -> tuple[int, int]:
        return self._calls().grant(ttl, timeout)

    def keep_alive(self, lease: int, *, timeout: float) -> int:
        return self._calls().keep_alive(lease, timeout)

    def revoke(self, lease: int, *, timeout: float) -> None:
        self._calls().revoke(lease, timeout)

    def watcher(self) -> Watcher:
        return self._calls().watcher()

    def statuses(self, *, timeout: float) -> list[EndpointStatus]:
        """Ask every endpoint how it is, all at the same time. Raises nothing of the kind `EtcdError`."""
        return self._calls().statuses(timeout)

    def alarms(self, *, timeout: float) -> list[Alarm]:
        """Return the cluster's alarms. Raises `Unanswered` and `Refused`."""
        return self._calls().alarms(timeout)

    def is_kept(self, key: bytes, revision: int, *, timeout: float) -> bool:
        """Return whether a past revision can still be read, or was compacted away.

        `key` is one that this user may read. Raises `Unanswered` and `Refused`.
        """
        return self._calls().is_kept(key, revision, timeout)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            opened = self._opened
        if opened is not None:
            opened.close()

    def _calls(self) -> Calls:
        if self._opened is not None:
            return self._opened
        with self._lock:
            if self._closed:
                raise Unanswered("this etcd client is closed")
            if self._opened is None:
                from coordjournal.etcd.calls import Calls

                self._opened = Calls(self._endpoints, self._tls, self._username, self._password)
            return self._opened
