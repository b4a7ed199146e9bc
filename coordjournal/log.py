"""The decision log: what a program holds in its hands."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Self, cast, get_args

from coordjournal.authority import Authority, Consistency, Serving
from coordjournal.authority.embedded import EmbeddedAuthority
from coordjournal.authority.lane import AppendFuture
from coordjournal.authority.node import Node
from coordjournal.authority.settings import DEFAULT_PREFIX, DEFAULT_TTL, Settings, variable
from coordjournal.authority.spool import Spool
from coordjournal.authority.wire import Role
from coordjournal.cache import SpaceCache
from coordjournal.entry import Append, Entry, Head, Receipt, check_space, format_time
from coordjournal.errors import (
    Closed,
    ForkedProcess,
    InvalidEvent,
    NotFound,
    Rejected,
    Unavailable,
    Undecided,
    WrongAuthority,
)
from coordjournal.etcd.endpoints import Tls
from coordjournal.events import Event
from coordjournal.replica import Replica, not_there
from coordjournal.replicas import DEFAULT_STATE_BYTES, Replicas
from coordjournal.state import CoordinationState
from coordjournal.store import Diverged, Store
from coordjournal.store.files import file_system, is_network
from coordjournal.store.memory import MemoryStore

DEFAULT_TIMEOUT: Final = 10.0
"""Seconds for which an append waits for its receipt, unless told otherwise."""

_LATE_SECONDS: Final = 0.25
"""For so long past its timeout an append may find out whether it was made."""

_CLOSE_SECONDS: Final = 10.0
_WAIT_SECONDS: Final = 1.0


def _utc_now() -> datetime:
    return datetime.now(UTC)


class DecisionLog:
    """The decisions of many spaces: append, read, fold, subscribe. Blocking, safe in many threads.

    Nothing is read or written before the block is entered or the first method is called. An object
    that was used before a fork raises `ForkedProcess` in the child; one that was not works there.
    Every method that takes a space raises `InvalidName` if it is none, and `Closed` after `close`.
    """

    def __init__(
        self,
        store: Callable[[], Store],
        authority: Callable[[Store, Callable[[str], Replica]], Authority] = EmbeddedAuthority,
        *,
        where: str,
        actor: str | None = None,
        cache: Callable[[], Path | None] = lambda: None,
        consistency: Consistency = "linearizable",
        read_timeout: float = DEFAULT_TIMEOUT,
        state_bytes: int = DEFAULT_STATE_BYTES,
        clock: Callable[[], datetime] = _utc_now,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """Prefer `open` and `in_memory`; this takes the parts apart for tests."""
        self._make_store = store
        self._cache_root = cache
        self._make_authority = authority
        self._where = where
        self._actor = actor
        self._consistency: Consistency = consistency
        self._read_timeout = read_timeout
        self._clock = clock
        self._random = random
        self._lock = threading.Lock()
        self._pid = 0
        self._closed = False
        self._parts: tuple[Store, Authority] | None = None
        self._replicas = Replicas(self._make_replica, state_bytes)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        actor: str | None = None,
        node: str | None = None,
        etcd: str = "",
        tls: Tls | None = None,
        username: str = "",
        password: str = "",
        prefix: str = DEFAULT_PREFIX,
        ttl: int = DEFAULT_TTL,
        role: Role = "auto",
        cache_dir: str | os.PathLike[str] | None = None,
        consistency: Consistency = "linearizable",
        read_timeout: float = DEFAULT_TIMEOUT,
        state_bytes: int = DEFAULT_STATE_BYTES,
    ) -> DecisionLog:
        """Return the log in the bare git repository at `path`, which the first append makes.

        Without `etcd`, any number of processes on this host may have it open. With it (endpoints, such
        as `10.0.0.1:2379,10.0.0.2:2379`), any number of processes on all hosts that share the
        repository may: one of them at a time holds a space, and the others forward to it. `tls` gives
        certificates, `username` and `password` are etcd's, `prefix` is where its keys are. `ttl`, in
        whole seconds of at least 2, is how long a dead process keeps what it holds. `role`: `auto` holds
        the spaces that it needs, `client` none, `holder` also those that others need and nobody holds.

        `actor` is who decides where an append does not say (`user@host` unless given), `node` is this
        host's name in commits. `cache_dir` is a directory on a disk of this host for what is derived and
        disposable; unless given it is in the repository, or nowhere if that is on a network file system.
        `consistency` is what reads hold that do not say, see `head`, and `read_timeout` for how many seconds
        they wait for etcd. `state_bytes` is about how much memory the folded states and key indexes of all spaces
        may take: beyond it those are let go of that were used least lately, and folded again when they are
        asked for. One that is larger is kept alone. Raises `InvalidEvent` for an argument that is not of its form.
        """
        from coordjournal.store.git import GitStore

        where = Path(path).absolute()  # wherever the process goes
        settings = Settings(etcd, tls, username, password, prefix, ttl, role)
        settings.check()
        if type(state_bytes) is not int or state_bytes < 0:
            raise InvalidEvent(f"state_bytes: a whole number of bytes from 0 on, not {state_bytes!r}")
        own_cache = None if cache_dir is None else Path(cache_dir).absolute()

        def store() -> Store:
            writer = f"-{os.getpid()}-{os.urandom(4).hex()}" if etcd else ""
            name = node or socket.gethostname()
            return GitStore(where, node=name, clock=_utc_now, random=os.urandom, writer=writer)

        def cache() -> Path | None:
            if own_cache is not None:
                return own_cache
            own = where / "coordjournal"
            usable = own.is_dir() and os.access(own, os.W_OK) and not (etcd and is_network(file_system(own)))
            return own / "cache" if usable else None

        def authority(store: Store, replica: Callable[[str], Replica]) -> Authority:
            if etcd:
                from coordjournal.authority.etcd import EtcdAuthority

                return EtcdAuthority(Node.connect(settings, store, replica))
            return EmbeddedAuthority(store, replica, lambda space: Spool(where / "coordjournal" / "spool" / space))

        return cls(
            store,
            authority,
            where=str(where),
            actor=actor,
            cache=cache,
            consistency=consistency,
            read_timeout=read_timeout,
            state_bytes=state_bytes,
        )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> DecisionLog:
        """Return the log that the command line's variables name, all of which docs/cli.md has.

        For a program that is configured as the command line is: pass `os.environ`. Raises `InvalidEvent` for
        one that is not of its form or names a file that cannot be read, and if `COORDJOURNAL_REPO` is not there.
        """
        given = {
            name: environment.get(variable(name)) or None for name in ("repo", "actor", "cache_dir", "consistency")
        }
        if given["repo"] is None:
            raise InvalidEvent("which repository? name it in COORDJOURNAL_REPO")
        if (consistency := given["consistency"] or "linearizable") not in get_args(Consistency):
            raise InvalidEvent(
                f"{variable('consistency')}: one of {', '.join(get_args(Consistency))}, not {consistency!r}"
            )
        return cls.open(
            given["repo"],
            actor=given["actor"],
            cache_dir=given["cache_dir"],
            consistency=cast(Consistency, consistency),
            **Settings.from_environment(environment)._asdict(),
        )

    def serve(self, spaces: Sequence[str] = ()) -> None:
        """Begin to hold `spaces`, and with the role `holder` all others that nobody else holds; until `close`.

        Returns at once. Raises `InvalidName`, and `WrongAuthority` without etcd.
        """
        for space in spaces:
            check_space(space)
        _, authority = self._open()
        if not isinstance(authority, Serving):
            raise WrongAuthority("nothing is to be served without etcd: every process appends by itself", self._where)
        authority.serve(spaces)

    @classmethod
    def in_memory(cls, *, actor: str | None = None, state_bytes: int = DEFAULT_STATE_BYTES) -> DecisionLog:
        """Return an empty log in this process's memory, with the same interface and the same judgement."""
        return cls(MemoryStore, where="memory", actor=actor, state_bytes=state_bytes)

    def append(
        self,
        space: str,
        events: Event | Sequence[Event],
        *,
        actor: str | None = None,
        key: str | None = None,
        expect: int | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        at: str | None = None,
    ) -> Receipt:
        """Append one event, or several as one atomic batch, and return the receipt when it is durable.

        `key` makes a retry safe: the same key never appends twice (made up if not given). `expect` is
        the seq that the head must have. `timeout` is in seconds, None for ever; the answer comes a quarter
        of a second after it at the latest. `at` is when it was decided, `YYYY-MM-DDTHH:MM:SS.ffffffZ`, now
        if not given.

        Raises a `Rejected` or `Conflict` if the journal refuses it, `Unavailable` if it certainly was
        not appended, `Undecided` if that is not known (try the same key again), `OperatorNeeded`.
        """
        future = self.submit(space, events, actor=actor, key=key, expect=expect, at=at)
        grace = 0.0 if timeout is None else min(self._open()[1].grace, timeout / 4)
        try:
            return future.result(None if timeout is None else timeout - grace)
        except FutureTimeoutError:
            if future.done():
                return future.result()
            if isinstance(future, AppendFuture):
                future.cancel_seconds = grace + _LATE_SECONDS
            if future.cancel():
                raise Unavailable(
                    f"no append to space {space} was possible within {timeout} s{_because(future)}; try again"
                ) from None
            if future.done():
                return future.result()
            raise Undecided(
                f"the append to space {space} was not decided within {timeout} s{_because(future)};"
                " try the same key again"
            ) from None
        except CancelledError:
            raise Closed("the log was closed before the append was taken on") from None

    def submit(
        self,
        space: str,
        events: Event | Sequence[Event],
        *,
        actor: str | None = None,
        key: str | None = None,
        expect: int | None = None,
        at: str | None = None,
    ) -> Future[Receipt]:
        """Begin an append and return at once; the arguments are `append`'s.

        Appends that one thread submits to a space are decided in that order. Cancelling the future
        works until the append is being judged, and means that it is not applied; with etcd it may take
        a second.
        """
        check_space(space)
        _, authority = self._open()
        batch = tuple(events) if isinstance(events, Sequence) else (events,)
        asked = Append(
            batch,
            self._random(16).hex() if key is None else key,
            self.default_actor() if actor is None else actor,
            format_time(self._clock()) if at is None else at,
            expect,
        )
        try:
            asked.check()
        except Rejected as refusal:
            refused: Future[Receipt] = Future()
            refused.set_exception(refusal)
            return refused
        return authority.submit(space, asked)

    def default_actor(self) -> str:
        """Return who decides where an append does not say."""
        if self._actor is None:
            self._actor = f"{_account()}@{socket.gethostname()}"
        return self._actor

    def head(
        self,
        space: str,
        *,
        consistency: Consistency | None = None,
        after: Receipt | None = None,
        timeout: float | None = None,
    ) -> Head:
        """Return the head of `space`; its seq is 0 where nothing was decided. `NotFound` without a repository.

        `consistency`, the log's own if not given, says what the head holds at least: `linearizable`
        everything that was acknowledged to anyone before the call, which takes one read of etcd;
        `session` what was appended and read through this log, and what `after` is the receipt of;
        `local` what this host has, for which etcd is not asked (`age` tells how old that is). Without
        etcd they are the same. Raises `Unavailable` if etcd does not answer within `timeout` seconds.
        """
        check_space(space)
        _, authority = self._open()
        seconds = self._read_timeout if timeout is None else timeout
        return authority.head(space, seconds, consistency or self._consistency, after.seq if after is not None else 0)

    def age(self, space: str) -> float | None:
        """Return how many seconds ago the local head of `space` was known to be the newest; None: never.

        Without etcd it always is.
        """
        check_space(space)
        return self._open()[1].age(space)

    def spaces(self) -> list[str]:
        """Return the names of all spaces in which something was decided, sorted. `NotFound` without a repository."""
        store, _ = self._open()
        return store.spaces()

    def events(
        self, space: str, *, after: int = 0, upto: int | None = None, consistency: Consistency | None = None
    ) -> Iterator[Entry]:
        """Return the entries with `after` < seq ≤ `upto` (the head if not given), in order, streamed.

        All belong to the one head that the space had at the call; `consistency` as in `head`. Raises
        `NotFound` if `upto` is past it, `Corrupt` and `UnknownEvent` with the seq at which the log cannot
        be read on.
        """
        head = self.head(space, consistency=consistency)
        _check_seq("after", after)
        if upto is not None:
            _check_upto(space, upto, head)
        if after >= (head.seq if upto is None else upto):
            return iter(())
        store, _ = self._open()
        return self._cache(space).entries.read(store, space, head, Head(after), upto)

    def subscribe(self, space: str, *, after: int = 0) -> Iterator[Entry]:
        """Yield the entries after seq `after`: those there are, then each that comes, until the log is closed."""
        _check_seq("after", after)
        self.head(space)
        return self._follow(space, after)

    def _follow(self, space: str, after: int) -> Iterator[Entry]:
        base = Head(after)
        while True:
            try:
                head = self.head(space)
                if base.commit and head.seq < base.seq:
                    raise Diverged
                store, authority = self._open()
                for entry in self._cache(space).entries.read(store, space, head, base) if head.seq >= base.seq else ():
                    base = Head(entry.seq, entry.commit, entry.term)
                    yield entry
                authority.wait(space, head, _WAIT_SECONDS)
            except Closed:
                return
            except Diverged:
                raise not_there(space, base, self.head(space)) from None

    def state(
        self,
        space: str,
        *,
        upto: int | None = None,
        consistency: Consistency | None = None,
        after: Receipt | None = None,
        timeout: float | None = None,
    ) -> CoordinationState:
        """Return what is true at the head, or was as of entry `upto`; `NotFound` if that is past the head.

        `consistency`, `after` and `timeout` are those of `head`. The state never changes; asking again
        after one more append costs that append. Raises `Corrupt` and `UnknownEvent` with the seq at which
        the log cannot be folded on.
        """
        head = self.head(space, consistency=consistency, after=after, timeout=timeout)
        replica = self._replicas(space)
        if upto is not None:
            _check_upto(space, upto, head)
            if upto != head.seq:
                return replica.state_upto(upto, head)
        state = replica.at(head)
        if state.seq > head.seq:  # another thread appended meanwhile, or the branch was set back
            head = self.head(space, consistency=consistency, after=after, timeout=timeout)
            store, authority = self._open()
            # Under etcd the branch may lag behind what is published, and so behind what was folded here.
            lags = isinstance(authority, Serving) and (consistency or self._consistency) != "linearizable"
            if state.seq > max(head.seq, store.head(space).seq) and not lags:  # etcd's head may be ahead of the branch
                raise replica.set_back(head)
        return state

    def close(self, timeout: float = _CLOSE_SECONDS) -> None:
        """Decide what was submitted, then let go of everything; whatever follows raises `Closed`.

        What is not decided after `timeout` seconds gets `Closed` where it was not taken on, else `Undecided`.
        """
        if self._pid not in (0, os.getpid()):
            self._closed = True
            return
        with self._lock:
            first, self._closed = not self._closed, True
            parts = self._parts
        if parts is None or not first:
            return
        store, authority = parts
        authority.close(timeout)
        self._replicas.close()
        store.close()

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<DecisionLog {self._where}{' closed' if self._closed else ''}>"

    def _open(self) -> tuple[Store, Authority]:
        parts = self._parts
        if parts is None or self._closed or self._pid != os.getpid():
            if self._closed:
                raise Closed("the log was closed; open another one")
            self._pid = self._pid or os.getpid()
            if self._pid != os.getpid():  # before the lock, which a thread that is not here may hold
                raise ForkedProcess(
                    f"{self!r} was used in process {self._pid} before it forked; open another one in the child"
                )
            with self._lock:
                if self._closed:
                    raise Closed("the log was closed; open another one")
                if self._parts is None:
                    store = self._make_store()
                    self._parts = store, self._make_authority(store, self._replicas)
                parts = self._parts
        return parts

    def _make_replica(self, space: str, weigh: Callable[[Replica], None]) -> Replica:
        assert self._parts is not None
        root = self._cache_root()
        return Replica(space, self._parts[0], SpaceCache(None if root is None else root / space), weigh)

    def _cache(self, space: str) -> SpaceCache:
        return self._replicas(space).cache


def _because(future: Future[Receipt]) -> str:
    trouble = future.trouble if isinstance(future, AppendFuture) else ""
    return f": {trouble}" if trouble else ""


def _check_seq(what: str, seq: object) -> None:
    if type(seq) is not int or seq < 0:
        raise InvalidEvent(f"{what}: a seq is a whole number from 0 on, not {seq!r}")


def _check_upto(space: str, upto: int, head: Head) -> None:
    _check_seq("upto", upto)
    if upto > head.seq:
        raise NotFound(f"space {space} has no entry {upto} yet; its head is {head.seq}")


def _account() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user without a name
        return f"uid-{os.getuid()}"
