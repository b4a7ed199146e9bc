"""What a worker does to etcd and to the disk, and what happens to it on the way.

The edges are those of foreign things: etcd's transactions, told apart by the keys they touch, and the
calls by which files change. A plan names a place, and whether it strikes before or after it was done.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from coordjournal.authority.wire import Keys
from coordjournal.etcd import Compare, Delete, Operation, Put, Result, Unanswered
from coordjournal.etcd.client import EtcdClient
from coordjournal.store.git import GitStore
from tests.integration.processes import Channel

USUAL: Final = ("objects", "pack", "publish", "branch", "ref lock", "send")
"""Places that every worker comes by all the time, each in the one part or the other."""

RARE: Final = ("campaign", "let go", "settle", "withdrawal")
"""Places that it comes by when something is changing, or going wrong."""

ASKED_OF_ETCD: Final = frozenset({"publish", "send", *RARE})
"""Places at which a request can be lost, or its answer."""


class Plan(NamedTuple):
    """What is to happen at a place: `die`, `stop` (until somebody lets it go on), `lose` (a request, or its answer)."""

    place: str
    when: str
    what: str


class Edges:
    """The places of this process. `told` is called with the name of a place at which something is about to happen."""

    def __init__(self, channel: Channel, keys: Keys, sent: Callable[[str, str], None]) -> None:
        self.slow_seconds = 0.0
        self._channel = channel
        self._keys = keys
        self._sent = sent
        self._lock = threading.Lock()
        self._plans: dict[tuple[str, str], str] = {}

    def arm(self, plans: Sequence[Plan]) -> None:
        """Have something happen at the next visits of places, beside what is to happen already; if none: nothing."""
        with self._lock:
            if not plans:
                self._plans.clear()
            self._plans.update({(plan.place, plan.when): plan.what for plan in plans})

    def meet(self, place: str, when: str) -> None:
        """Be at a place."""
        with self._lock:
            what = self._plans.pop((place, when), None)
        if what is None:
            return
        self._channel.send({"reached": [place, when, what]})
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
            signal.pause()
        elif what == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        else:
            raise Unanswered(f"{place}: lost {when} it was done")

    def install(self) -> None:
        """Stand around everything."""
        txn, write, advance = EtcdClient.txn, GitStore.write, GitStore.advance
        rename, fsync = os.rename, os.fsync

        def watched_txn(
            client: EtcdClient,
            guards: Sequence[Compare],
            then: Sequence[Operation],
            otherwise: Sequence[Operation] = (),
            *,
            timeout: float,
        ) -> Result:
            place = self._place(guards, then)
            for operation in then:
                if isinstance(operation, Put) and operation.key.startswith(self._keys.heads):
                    self._sent(operation.key.removeprefix(self._keys.heads).decode(), operation.value.decode())
            self.meet(place, "before")
            done = txn(client, guards, then, otherwise, timeout=timeout)
            self.meet(place, "after")
            return done

        def watched_rename(source: Any, target: Any, **options: Any) -> None:
            place = _place_of(os.fspath(target))
            self.meet(place, "before")
            rename(source, target, **options)
            self.meet(place, "after")

        def slow_fsync(file: int) -> None:
            if self.slow_seconds:
                time.sleep(self.slow_seconds)
            fsync(file)

        def around(call: Callable[..., Any], place: str) -> Callable[..., Any]:
            def watched(*arguments: Any) -> Any:
                self.meet(place, "before")
                result = call(*arguments)
                self.meet(place, "after")
                return result

            return watched

        EtcdClient.txn = watched_txn  # type: ignore[method-assign,assignment]
        GitStore.write = around(write, "objects")  # type: ignore[method-assign]
        GitStore.advance = around(advance, "branch")  # type: ignore[method-assign]
        os.rename = watched_rename  # type: ignore[assignment]
        os.fsync = slow_fsync  # type: ignore[assignment]

    def _place(self, guards: Sequence[Compare], then: Sequence[Operation]) -> str:
        """Return what a transaction is for, by what it touches and what it asks first."""
        keys = self._keys
        guarded = {(self._kind(guard.key), guard.target) for guard in guards}
        writes = [operation for operation in then if isinstance(operation, Put | Delete)]
        if not writes:
            return ""
        first = writes[0]
        kind = self._kind(first.key)
        if ("holders", "create_revision") in guarded:
            return "let go" if kind == "holders" else "publish"
        if kind == "holders":
            return "campaign"
        if kind == "intents" and ("intents", "version") in guarded:
            return "send" if isinstance(first, Put) and first.value else "settle"
        if kind == "intents" and ("intents", "mod_revision") in guarded:
            return "withdrawal"
        return keys.prefix.decode() + kind

    def _kind(self, key: bytes) -> str:
        return key.removeprefix(self._keys.prefix).partition(b"/")[0].decode("ascii", "replace")


def _place_of(target: str | bytes) -> str:
    name = os.fsdecode(target)
    if "/refs/heads/" in name:
        return "ref lock"
    return "pack" if name.endswith(".idx") else ""
