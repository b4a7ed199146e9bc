"""How a process reaches etcd, and what part it takes: what a user configures."""

from __future__ import annotations

from typing import Final, NamedTuple, get_args

from coordjournal.authority.wire import Keys, Role
from coordjournal.errors import InvalidEvent
from coordjournal.etcd.client import EtcdClient
from coordjournal.etcd.endpoints import Tls, parse_endpoints
from coordjournal.etcd.session import MIN_TTL_SECONDS

DEFAULT_PREFIX: Final = "/coordjournal/"
"""Where the keys are in etcd, unless told otherwise."""

DEFAULT_TTL: Final = 10
"""Seconds for which a dead process keeps what it holds, unless told otherwise."""

_MAX_TTL: Final = 3600


class Settings(NamedTuple):
    """The arguments of `DecisionLog.open` that are about etcd; `etcd` is empty without it."""

    etcd: str = ""
    tls: Tls | None = None
    username: str = ""
    password: str = ""
    prefix: str = DEFAULT_PREFIX
    ttl: int = DEFAULT_TTL
    role: Role = "auto"

    def check(self) -> None:
        """Raise `InvalidEvent` for the first that is not of its form. No I/O."""
        Keys(self.prefix)
        if type(self.ttl) is not int or not MIN_TTL_SECONDS <= self.ttl <= _MAX_TTL:
            raise InvalidEvent(f"ttl: whole seconds from {MIN_TTL_SECONDS} to {_MAX_TTL}, not {self.ttl!r}")
        if self.role not in get_args(Role):
            raise InvalidEvent(f"role: one of {', '.join(get_args(Role))}, not {self.role!r}")
        if self.etcd:
            self.client()

    def client(self) -> EtcdClient:
        """Return a client, not connected yet. Raises `InvalidEvent`."""
        try:
            return EtcdClient(parse_endpoints(self.etcd), tls=self.tls, username=self.username, password=self.password)
        except ValueError as error:
            raise InvalidEvent(f"etcd: {error}") from error
