"""Who holds what, since when, and how far everyone is: what an operator looks at, and `hand_over`."""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from coordjournal.authority.node import CALL_SECONDS, one, told
from coordjournal.authority.settings import Settings
from coordjournal.authority.wire import HeadValue, Keys, decode_head, decode_node, range_of, session_of
from coordjournal.entry import Head, check_space, format_time
from coordjournal.errors import (
    HeadBehind,
    HeadMissing,
    InvalidEvent,
    MissingObjects,
    NotFound,
    OperatorNeeded,
    Unavailable,
    WrongAuthority,
)
from coordjournal.etcd import Compare, Etcd, EtcdError, Found, Get, KeyValue, Put
from coordjournal.store import message
from coordjournal.store.git import GitStore
from coordjournal.store.walk import read_object

logger = logging.getLogger(__name__)

_MAX_KEYS: Final = 100_000
_SUCCESSOR_SECONDS: Final = 2
_LOOK_SECONDS: Final = 0.02
_SPACE = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_SESSION = re.compile(r"[0-9a-f]{32}")
_COMMITTED = re.compile(rb"\ncommitter [^\n]* (\d+) [+-]\d{4}\n")


class Holder(msgspec.Struct, frozen=True):
    """The session that holds a space, and the process behind it; host and pid are empty where it does not say."""

    session: str
    host: str = ""
    pid: int = 0


class Place(msgspec.Struct, frozen=True):
    """How far something is: the last seq and its commit, 0 and empty where there is nothing."""

    seq: int
    commit: str


class SpaceStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a space is. `ttl` is in seconds; without etcd there is no holder, and the branch is the head.

    `fault` says what is wrong, and what to run, if anything is.
    """

    space: str
    holder: Holder | None
    term: int
    ttl: int | None
    head: Place
    intents: int
    branch: Place
    fault: str = ""


class NodeStatus(msgspec.Struct, frozen=True):
    """A session: who it is, since when, in what role, and how many spaces it holds. `ttl` is in seconds."""

    session: str
    host: str
    pid: int
    version: str
    since: str
    role: str
    ttl: int
    holds: int


class Reign(msgspec.Struct, frozen=True):
    """One holder's time with a space, as git tells it: its term and node, its entries, when it made them."""

    term: int
    node: str
    first: int
    seq: int
    appends: int
    since: str
    until: str


def status(
    path: str | os.PathLike[str], settings: Settings, space: str | None = None
) -> tuple[list[SpaceStatus], list[NodeStatus]]:
    """Return how a space is, or all of them, and the sessions there are. Raises `NotFound`, `Unavailable`."""
    store = _store(path)
    if space is not None:
        check_space(space)
    wanted = _names(store) if space is None else [space]
    branches = {name: _branch(store, name) for name in wanted}  # before etcd is asked: so they are never ahead
    if not settings.etcd:
        found = [
            SpaceStatus(name, None, head.term, None, _place(head), 0, _place(head), fault)
            for name, (head, fault) in branches.items()
            if head.seq or fault
        ]
        _check_found(space, found)
        return found, []
    seen = _Seen(settings)
    names = {*branches, *seen.spaces} if space is None else {space}
    found = [seen.status(store, name, *(branches.get(name) or _branch(store, name))) for name in sorted(names)]
    found = [one for one in found if one.head.seq or one.branch.seq or one.holder or one.intents or one.fault]
    _check_found(space, found)
    return found, seen.nodes()


def _names(store: GitStore) -> list[str]:
    """Return the names of the spaces here; where a branch is damaged, of all branches that could be one."""
    try:
        return store.spaces()
    except OperatorNeeded:
        files = (store.repository.path / "refs" / "heads").iterdir()
        return sorted(file.name for file in files if _SPACE.fullmatch(file.name))


def _branch(store: GitStore, space: str) -> tuple[Head, str]:
    """Return where a branch is, or what is wrong with it."""
    try:
        return store.head(space), ""
    except OperatorNeeded as error:
        return Head(), str(error)


class _Seen:
    """What etcd has under the prefix, all of one moment. Raises `Unavailable`."""

    def __init__(self, settings: Settings) -> None:
        keys = self._keys = Keys(settings.prefix)
        with closing(settings.client()) as client:
            nodes, holders, heads, intents = _read(
                client,
                Get(*range_of(keys.nodes), limit=_MAX_KEYS),
                Get(*range_of(keys.holders), limit=_MAX_KEYS),
                Get(*range_of(keys.heads), limit=_MAX_KEYS),
                Get(*range_of(keys.intents), limit=_MAX_KEYS, only="keys"),
            )
        self._holders = {keys.space_of(keys.holders, kv.key): session_of(kv.value) for kv in holders.kvs}
        self._heads = {keys.space_of(keys.heads, kv.key): kv for kv in heads.kvs}
        waiting = (kv.key for kv in intents.kvs if not kv.lease)  # with a lease they are tombstones
        self._intents = Counter(keys.space_of(keys.intents, key) for key in waiting)
        self._nodes = {
            kv.key.removeprefix(keys.nodes).decode("ascii", "replace"): decode_node(kv.value) for kv in nodes.kvs
        }
        self.spaces = {name for name in (*self._holders, *self._heads, *self._intents) if name is not None}

    def status(self, store: GitStore, space: str, branch: Head, fault: str) -> SpaceStatus:
        """Return how a space is, whose branch was at `branch` before etcd was asked, or is at `fault`."""
        holder, ttl = None, None
        if (session := self._holders.get(space)) is not None:
            node = self._nodes.get(session)
            holder = Holder(session, node.host, node.pid) if node else Holder(session)
            ttl = node.ttl if node else None
        head = Head()
        try:
            head = self._head(store, space, branch)
        except OperatorNeeded as error:
            fault = fault or str(error)
            if (known := self._value(space)) is not None:
                head = known.head
        return SpaceStatus(space, holder, head.term, ttl, _place(head), self._intents[space], _place(branch), fault)

    def _value(self, space: str) -> HeadValue | None:
        try:
            return decode_head(self._heads[space].value, "") if space in self._heads else None
        except OperatorNeeded:
            return None

    def _head(self, store: GitStore, space: str, branch: Head) -> Head:
        """Return the published head. Raises `OperatorNeeded` if it and the branch do not fit together."""
        kv = self._heads.get(space)
        where, run = f"space {space}", f"run `coordjournal recover {space}`"
        if kv is None:
            if branch.seq:
                raise HeadMissing(f"the branch is at entry {branch.seq}, and etcd knows no head", where, run)
            return Head()
        value = decode_head(kv.value, f"the head of space {space}")
        if value.left:
            raise WrongAuthority("the journal left etcd", where, "run `coordjournal adopt` to finish or undo it")
        if branch.seq > value.seq:
            raise HeadBehind(f"the branch is at entry {branch.seq}, etcd knows entry {value.seq} only", where, run)
        if not store.has(space, value.head):
            raise MissingObjects(
                f"entry {value.seq}, commit {value.commit}, is published, and its objects are not here",
                where,
                "bring them back; or, if they are lost, run `coordjournal recover`",
            )
        return value.head

    def nodes(self) -> list[NodeStatus]:
        """Return the sessions there are."""
        counts = Counter(self._holders.values())
        return [
            NodeStatus(session, node.host, node.pid, node.version, node.since, node.role, node.ttl, counts[session])
            for session, node in sorted(self._nodes.items())
            if node is not None
        ]


def _place(head: Head) -> Place:
    return Place(head.seq, head.commit)


def _check_found(space: str | None, found: list[SpaceStatus]) -> None:
    if space is not None and not found:
        raise NotFound(f"there is no space {space}")


def holders(path: str | os.PathLike[str], space: str) -> list[Reign]:
    """Return who held a space when, oldest first, read from git alone. Raises `NotFound`, `Corrupt`."""
    check_space(space)
    store = _store(path)
    head = store.head(space)
    if not head.seq:
        raise NotFound(f"there is no space {space} in {store.repository.path}")
    return list(_reigns(store, head))


def _reigns(store: GitStore, head: Head) -> Iterator[Reign]:
    reign: Reign | None = None
    for commit in store.commits(head):
        raw, _ = store.repository.use(lambda handle, c=commit: read_object(handle, c))  # type: ignore[misc]
        info, at = message.parse(raw, commit), _committed(raw)
        if reign is not None and (reign.term, reign.node) == (info.term, info.node):
            reign = msgspec.structs.replace(reign, seq=info.seq, appends=reign.appends + 1, until=at)
            continue
        if reign is not None:
            yield reign
        reign = Reign(info.term, info.node, info.first, info.seq, 1, at, at)
    if reign is not None:
        yield reign


def _committed(raw: bytes) -> str:
    match = _COMMITTED.search(raw)
    return format_time(datetime.fromtimestamp(int(match[1]), UTC)) if match else ""


def hand_over(settings: Settings, space: str, to: str | None = None, *, seconds: float = 10.0) -> str:
    """Ask a space's holder to hand it over, to the session `to` or to whoever needs it next; wait until it has.

    Returns the session that holds it then, empty if nobody does yet. Raises `NotFound` if nobody holds
    it or there is no such session, `InvalidEvent` if that one never holds, `Unavailable` if nothing comes
    of it within so many seconds.
    """
    check_space(space)
    if not settings.etcd:
        raise InvalidEvent("nobody holds a space without etcd; name the etcd with --etcd")
    if to is not None and not _SESSION.fullmatch(to):
        raise InvalidEvent(
            f"a session is 32 digits and letters a-f, not {to!r}; `coordjournal status --nodes` lists them"
        )
    keys = Keys(settings.prefix)
    deadline = time.monotonic() + seconds
    with closing(settings.client()) as client:
        holder, node = _read(client, Get(keys.holder(space)), Get(keys.node(to or "-")), seconds=seconds)
        before = one(holder)
        if before is None:
            raise NotFound(f"nobody holds space {space}")
        if to is not None:
            _check_can_hold(to, one(node))
            if session_of(before.value) == to:
                return to
        ask_at = 0.0
        request = _Request(client, Put(keys.successor(space), (to or "-").encode()), before)
        try:
            while (now := time.monotonic()) < deadline:
                if now >= ask_at:  # what asks lives for two seconds, and a watch may have missed it
                    request.send(deadline - now)
                    ask_at = now + _SUCCESSOR_SECONDS
                found = one(_read(client, Get(keys.holder(space)), seconds=deadline - now)[0])
                if found is None and to is None:
                    return ""
                if found is not None and found.create_revision != before.create_revision:
                    session = session_of(found.value)
                    if to in (None, session):
                        return session
                    raise Unavailable(f"space {space} was handed over, but {session} was quicker than {to}; try again")
                time.sleep(_LOOK_SECONDS)
        finally:
            request.clear()
    raise Unavailable(
        f"space {space} was not handed over within {seconds:g} s; its holder, {session_of(before.value)}, may be stuck:"
        " `coordjournal status --nodes` tells its host and process"
    )


def _check_can_hold(session: str, found: KeyValue | None) -> None:
    if found is None:
        raise NotFound(f"there is no session {session}; `coordjournal status --nodes` lists them")
    node = decode_node(found.value)
    if node is not None and node.role == "client":
        raise InvalidEvent(f"session {session} has the role client: it holds no space")


class _Request:
    """What asks a holder to hand over: of that holder alone, whenever it arrives."""

    def __init__(self, client: Etcd, put: Put, holder: KeyValue) -> None:
        self._client = client
        self._put = put
        self._guard = Compare(holder.key, "create_revision", holder.create_revision)
        self._lease = 0

    def send(self, seconds: float) -> None:
        """Ask, in the place of what was asked before. Raises `Unavailable`, `OperatorNeeded`."""
        timeout = max(0.1, min(CALL_SECONDS, seconds))
        self.clear()
        try:
            self._lease, _ = self._client.grant(_SUCCESSOR_SECONDS, timeout=timeout)
            self._client.txn((self._guard,), [self._put._replace(lease=self._lease)], timeout=timeout)
        except EtcdError as error:
            raise told(error, "etcd does not take the request") from error

    def clear(self) -> None:
        """Take back what was asked and not heard yet; where etcd does not answer, it goes by itself."""
        lease, self._lease = self._lease, 0
        if lease:
            try:
                self._client.revoke(lease, timeout=1.0)
            except EtcdError as error:
                logger.info("the request to hand over ends with its lease: %s", error)


def _read(client: Etcd, *wanted: Get, seconds: float = CALL_SECONDS) -> list[Found]:
    try:
        done = client.txn((), wanted, timeout=max(0.1, min(CALL_SECONDS, seconds)))
    except EtcdError as error:
        raise told(error, "etcd does not tell who holds what") from error
    return [found for found in done.found if found is not None]


def _store(path: str | os.PathLike[str]) -> GitStore:
    return GitStore(Path(path), node=socket.gethostname(), clock=lambda: datetime.now(UTC), random=os.urandom)
