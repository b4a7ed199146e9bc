"""What the tests of an operator's commands under etcd share: a real etcd a module, a prefix a test."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import coordjournal as cj
from coordjournal.authority.settings import Settings
from coordjournal.authority.wire import Keys
from coordjournal.etcd import Get, Operation
from coordjournal.etcd.client import EtcdClient
from coordjournal.testing.etcd import EtcdServer

T = TypeVar("T")
PATIENCE: Final = 20.0


def wait_for(found: Callable[[], T], why: str) -> T:
    """Return what `found` finds, as soon as it is something."""
    deadline = time.monotonic() + PATIENCE
    while not (result := found()):
        assert time.monotonic() < deadline, why
        time.sleep(0.01)
    return result


class Killed(BaseException):
    """The process ends here, as far as the code under test can tell."""


class Counted:
    """A client whose call number `at` kills the process, before it is made or (`after`) when it was."""

    def __init__(self, real: EtcdClient, at: int, *, after: bool) -> None:
        self._real = real
        self._at = at
        self._after = after
        self.calls = 0

    def txn(self, guards: Any, then: Any, otherwise: Any = (), *, timeout: float) -> Any:
        self.calls += 1
        if self.calls == self._at and not self._after:
            raise Killed
        done = self._real.txn(guards, then, otherwise, timeout=timeout)
        if self.calls == self._at:
            raise Killed
        return done

    def close(self) -> None:
        self._real.close()


class Dying(Settings):
    """Settings whose client kills the process at one of its calls."""

    made: list[Counted]
    at: int
    after: bool

    def client(self) -> EtcdClient:
        counted = Counted(Settings(*self).client(), self.at, after=self.after)
        self.made.append(counted)
        return counted  # type: ignore[return-value]


def dying(settings: Settings, at: int, *, after: bool) -> Dying:
    """Return settings whose client dies at its call of that number, counted from 1."""
    found = Dying(*settings)
    found.made, found.at, found.after = [], at, after
    return found


class Place:
    """A repository and a prefix in an etcd."""

    def __init__(self, server: EtcdServer, repo: Path, prefix: str) -> None:
        self.server = server
        self.repo = repo
        self.settings = Settings(etcd=server.endpoint, prefix=prefix, ttl=2)
        self.keys = Keys(prefix)

    def log(self, **how: Any) -> cj.DecisionLog:
        """Open the log under etcd."""
        asked = {"etcd": self.server.endpoint, "prefix": self.settings.prefix, "ttl": 2, "actor": "alice@example.org"}
        return cj.DecisionLog.open(self.repo, **{**asked, **how})

    def embedded(self) -> cj.DecisionLog:
        """Open the log without etcd."""
        return cj.DecisionLog.open(self.repo, actor="alice@example.org")

    def read(self, key: bytes) -> bytes | None:
        """Return what etcd has under a key."""
        client = EtcdClient([self.server.endpoint])
        try:
            kvs = client.get(Get(key), timeout=5)[1].kvs
        finally:
            client.close()
        return kvs[0].value if kvs else None

    def change(self, *then: Operation) -> None:
        """Change keys behind everybody's back."""
        client = EtcdClient([self.server.endpoint])
        try:
            client.txn([], list(then), timeout=5)
        finally:
            client.close()
