"""Watching from outside: every revision of etcd, and the branches beside the published heads.

All of it by etcd's own JSON gateway and by reading files, so that nothing is believed that the journal's own
client says.
"""

from __future__ import annotations

import base64
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Self

from coordjournal.testing.histories import BranchSeen, Event, Fault, Revision

_ANSWER_SECONDS: Final = 2.0
_SILENCE_SECONDS: Final = 3.0  # a watch that says nothing for so long is asked for again, elsewhere
_PAUSE_SECONDS: Final = 0.05
_SAMPLE_SECONDS: Final = 0.1

Write = Callable[[Event], object]


class NoAnswer(Exception):
    """No member of etcd answers."""


class Gateway:
    """Etcd's JSON gateway, at whichever member answers. One thread at a time."""

    def __init__(self, endpoints: Sequence[str], prefix: str) -> None:
        self.prefix = prefix.encode()
        self._endpoints = list(endpoints)

    def call(self, method: str, **fields: object) -> dict[str, Any]:
        """Call a method. Raises `NoAnswer`."""
        why: object = ""
        for _ in self._endpoints:
            try:
                with _Connection(self._endpoints[0], _ANSWER_SECONDS) as connection:
                    status, answer = connection.post(method, fields)
                    if status == http.client.OK:
                        found: dict[str, Any] = json.loads(answer.read())
                        return found
                    why = answer.read()
            except (OSError, http.client.HTTPException, ValueError) as error:
                why = error
            self._endpoints.append(self._endpoints.pop(0))
        raise NoAnswer(f"{method}: {why!r}")

    def get(self, kind: str) -> dict[str, str]:
        """Return all keys below `kind`, without the prefix, and their values, linearizably."""
        first = self.prefix + kind.encode()
        found = self.call("kv/range", key=_b64(first), range_end=_b64(_end(first)))
        return {self.name(kv["key"]): _text(kv.get("value", "")) for kv in found.get("kvs", [])}

    def leases(self, kind: str) -> list[tuple[str, str]]:
        """Return the keys below `kind` that live by a lease, and that."""
        first = self.prefix + kind.encode()
        found = self.call("kv/range", key=_b64(first), range_end=_b64(_end(first)), keys_only=True)
        return [(self.name(kv["key"]), kv["lease"]) for kv in found.get("kvs", []) if "lease" in kv]

    def put(self, key: str, value: str, lease: str = "0") -> None:
        """Put a key."""
        self.call("kv/put", key=_b64(self.prefix + key.encode()), value=_b64(value.encode()), lease=lease)

    def delete(self, key: str) -> None:
        """Delete a key."""
        self.call("kv/deleterange", key=_b64(self.prefix + key.encode()))

    def watch(self, start: int) -> Iterator[dict[str, Any]]:
        """Yield what a watch of the prefix says, from revision `start` on; ends when it breaks off or falls silent."""
        request = {"key": _b64(self.prefix), "range_end": _b64(_end(self.prefix)), "start_revision": str(start)}
        try:
            with _Connection(self._endpoints[0], _SILENCE_SECONDS) as connection:
                _, answer = connection.post("watch", {"create_request": request})
                while line := answer.readline():
                    yield json.loads(line).get("result", {})
        except (OSError, http.client.HTTPException, ValueError):
            pass  # whoever wants to know more asks the next one
        self._endpoints.append(self._endpoints.pop(0))

    def name(self, key: str) -> str:
        """Return a key, as the gateway says it, without the prefix."""
        return base64.b64decode(key).removeprefix(self.prefix).decode("ascii", "replace")


class _Connection:
    def __init__(self, endpoint: str, seconds: float) -> None:
        self._connection = http.client.HTTPConnection(endpoint, timeout=seconds)

    def post(self, method: str, fields: dict[str, object]) -> tuple[int, http.client.HTTPResponse]:
        self._connection.request("POST", f"/v3/{method}", json.dumps(fields))
        response = self._connection.getresponse()
        return response.status, response

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()


class Watching(threading.Thread):
    """Notes every revision of etcd, whatever becomes of its members; `seen` is the last one."""

    def __init__(self, gateway: Gateway, write: Write) -> None:
        super().__init__(name="watching", daemon=True)
        self.seen = 0
        self.over = False
        """Whether the last word, the key `over`, was seen."""
        self.lost = ""  # what was compacted before it was seen, if anything was
        self._gateway = gateway
        self._write = write
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.is_set():
            for answer in self._gateway.watch(self.seen + 1):
                if answer.get("compact_revision"):
                    self.lost = f"revisions up to {answer['compact_revision']} were compacted, {self.seen} was seen"
                    return
                self._take(answer.get("events", []))
                if self._over.is_set():
                    return
            self._over.wait(_PAUSE_SECONDS)

    def _take(self, events: Sequence[dict[str, Any]]) -> None:
        at = time.monotonic()
        fresh = [event["kv"] | {"gone": event.get("type") == "DELETE"} for event in events]
        fresh = [kv for kv in fresh if int(kv["mod_revision"]) > self.seen]
        for kv in fresh:
            name, revision = self._gateway.name(kv["key"]), int(kv["mod_revision"])
            self.over = self.over or name == "over"
            if kv["gone"]:
                self._write(Revision(at, revision, name))
            else:
                value = _text(kv.get("value", ""))
                self._write(Revision(at, revision, name, value, int(kv["create_revision"]), int(kv.get("lease", 0))))
        if fresh:
            self.seen = int(fresh[-1]["mod_revision"])

    def close(self) -> None:
        """See no more."""
        self._over.set()
        self.join(2 * _SILENCE_SECONDS)


class BranchWatch(threading.Thread):
    """Looks at the branches, each time before it asks etcd for the published heads."""

    def __init__(self, repository: Path, spaces: Sequence[str], gateway: Gateway, write: Write) -> None:
        super().__init__(name="branches", daemon=True)
        self._repository = repository
        self._spaces = spaces
        self._gateway = gateway
        self._write = write
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(_SAMPLE_SECONDS):
            at, shown = time.monotonic(), {space: read_branch(self._repository, space) for space in self._spaces}
            published: dict[str, str] | None = None
            try:
                published = self._gateway.get("heads/")
            except NoAnswer:
                pass
            for space, commit in shown.items():
                seq = None if published is None else _seq(published.get(f"heads/{space}"))
                self._write(BranchSeen(at, space, commit, seq))

    def close(self) -> None:
        """See no more."""
        self._over.set()
        self.join(2 * _ANSWER_SECONDS * 3)


class LockWatch(threading.Thread):
    """Notes while a lock keeps a branch where it is: one that is there at two looks. Nobody it asks can delay it."""

    def __init__(self, repository: Path, spaces: Sequence[str], write: Write) -> None:
        super().__init__(name="locks", daemon=True)
        self._repository = repository
        self._spaces = spaces
        self._write = write
        self._over = threading.Event()
        self._locks: dict[str, tuple[int, int] | None] = {}
        self._stuck: set[str] = set()

    def run(self) -> None:
        while not self._over.wait(_SAMPLE_SECONDS):
            for space in self._spaces:
                self._look(space)

    def _look(self, space: str) -> None:
        try:
            found = (self._repository / "refs" / "heads" / f"{space}.lock").stat()
            lock = (found.st_ino, found.st_mtime_ns)
        except FileNotFoundError:
            lock = None
        stays = lock is not None and lock == self._locks.get(space)
        if stays != (space in self._stuck):
            (self._stuck.add if stays else self._stuck.remove)(space)
            self._write(Fault(time.monotonic(), "branch", phase="begin" if stays else "end"))
        self._locks[space] = lock

    def close(self) -> None:
        """See no more."""
        self._over.set()
        self.join(_ANSWER_SECONDS)


def read_branch(repository: Path, space: str) -> str:
    """Return the commit that a branch shows, wherever git keeps it; empty if there is none."""
    for _ in range(3):  # git packs a ref before it deletes the loose one, and we may read in between
        try:
            return (repository / "refs" / "heads" / space).read_text().strip()
        except FileNotFoundError:
            pass
        try:
            for line in (repository / "packed-refs").read_text().splitlines():
                commit, _, name = line.partition(" ")
                if name == f"refs/heads/{space}":
                    return commit
        except FileNotFoundError:
            pass
    return ""


def _seq(value: str | None) -> int:
    return int(json.loads(value)["seq"]) if value else 0


def _end(prefix: bytes) -> bytes:
    return prefix[:-1] + bytes((prefix[-1] + 1,))


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _text(raw: str) -> str:
    return base64.b64decode(raw).decode("utf-8", "replace")
