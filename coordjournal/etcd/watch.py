"""One stream of watches that mends itself: the `Watcher` over etcd's Watch call.

A thread reads the stream, however many watches are on it, and tells what it reads. gRPC's own thread, which
sends the requests, keeps the time: it asks for a sign of life now and then, and hangs up on a silent etcd.

Where a watch goes on after its stream was lost is the revision after its last whole response. Answers to
requests for progress do not move it: before 3.4.25 and 3.5.8 they may come ahead of older events.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, Final

import grpc

from coordjournal.etcd import Change, EtcdError, Tell, Unanswered
from coordjournal.etcd import etcd_pb2 as pb
from coordjournal.etcd.failures import error_of, mended_by_signing_in, watch_denial, watch_wants_token
from coordjournal.etcd.messages import changes
from coordjournal.etcd.pool import WATCH, Member, Metadata, Pool, failure_of
from coordjournal.retry import ETCD_STREAM, StreamLost

_SILENT: Final = 3
_SIGN_IN_SECONDS: Final = 5.0
_JOIN_SECONDS: Final = 0.25
_STOOD_SECONDS: Final = 1.0
_MOST_DOUBLINGS: Final = 4  # of the pause before a denied watch is tried again

_PROGRESS: Final = pb.WatchRequest(progress_request=pb.WatchProgressRequest())

logger = logging.getLogger(__name__)


class _Watch:
    """One watch, over all streams it is ever on."""

    __slots__ = ("cluster", "denials", "end", "gone", "key", "next", "parts", "tell", "term", "wire")

    def __init__(self, key: bytes, end: bytes, tell: Tell) -> None:
        self.key = key
        self.end = end
        self.tell = tell
        self.wire = 0  # its id on the stream, a new one each time it is created
        self.next = 0  # the revision to go on from; 0: from now, and tell that some may have been missed
        self.parts: list[Change] = []  # of a response that is not complete
        self.cluster = self.term = 0  # of the etcd that `next` is from
        self.denials = 0  # in a row
        self.gone = False

    def restart(self) -> None:
        """Forget where to go on."""
        self.next = 0
        self.parts = []


class _Stream:
    """One stream: what is still to be sent on it, and which watches etcd has confirmed on it."""

    def __init__(self, member: Member, metadata: Metadata) -> None:
        self.member = member
        self.metadata = metadata
        self.call: Any = None
        self.outbox: SimpleQueue[pb.WatchRequest | None] = SimpleQueue()
        self.pending: deque[_Watch] = deque()  # asked for; etcd answers in this order
        self.standing: dict[int, _Watch] = {}
        self.denied: list[tuple[float, _Watch]] = []  # when to ask for it again
        self.began = monotonic()
        self.waiting_since: float | None = None  # the reader has been waiting for etcd, not etcd for it
        self.revision = 0  # the greatest one seen
        self.asked = 0  # signs of life that were asked for and did not come yet
        self.asked_revision = 0  # the greatest revision seen before they were
        self.overdue = 0  # signs of life since the oldest pending watch was asked for
        self.why = ""  # why we hung up

    def hang_up(self, why: str) -> None:
        """End the stream; its reader gets to know why."""
        self.why = self.why or why
        if self.call is not None:
            self.call.cancel()

    def create(self, watch: _Watch, wire: int) -> None:
        """Ask for a watch under a new id. Etcd numbers streams' watches from 0, so ours begin at 1."""
        watch.wire = wire
        watch.parts = []
        if not self.pending and not self.standing and self.waiting_since is not None:
            self.waiting_since = monotonic()  # until now there was nothing for etcd to say
        self.pending.append(watch)
        request = pb.WatchCreateRequest(
            key=watch.key, range_end=watch.end, start_revision=watch.next, watch_id=wire, fragment=True
        )
        self.outbox.put(pb.WatchRequest(create_request=request))

    def cancel(self, wire: int) -> None:
        """Ask for the end of a watch; what still comes for it is not told any more."""
        self.standing.pop(wire, None)
        self.outbox.put(pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=wire)))

    def answered(self, wire: int) -> _Watch | None:
        """Return the pending watch that etcd answers, by its id; the oldest if the id says nothing."""
        self.overdue = 0
        for watch in self.pending:
            if watch.wire == wire:
                self.pending.remove(watch)
                return watch
        return self.pending.popleft() if self.pending else None


class StreamWatcher:
    """A `Watcher` with one stream and one thread, both begun by the first `add`.

    The thread ends at `close` only. `progress_seconds` is how often etcd is asked for a sign of life.
    """

    def __init__(self, pool: Pool, *, progress_seconds: float) -> None:
        self._pool = pool
        self._pace = progress_seconds
        self._lock = threading.Lock()  # around all below, and what a stream knows of its watches
        self._closed = threading.Event()
        self._numbers = itertools.count(1)
        self._wires = itertools.count(1)
        self._watches: dict[int, _Watch] = {}
        self._stream: _Stream | None = None
        self._stale: Metadata | None = None  # with a token that etcd did not take
        self._thread: threading.Thread | None = None

    def add(self, key: bytes, end: bytes, tell: Tell) -> int:
        watch = _Watch(key, end, tell)
        with self._lock:
            if self._closed.is_set():
                raise Unanswered("this watcher of etcd is closed")
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="coordjournal-watch", daemon=True)
                thread.start()
                self._thread = thread
            number = next(self._numbers)
            self._watches[number] = watch
            if self._stream is not None:
                self._stream.create(watch, next(self._wires))
        return number

    def remove(self, number: int) -> None:
        with self._lock:
            watch = self._watches.pop(number, None)
            if watch is None:
                return
            watch.gone = True
            if self._stream is not None and watch.wire:
                self._stream.cancel(watch.wire)

    def close(self) -> None:
        with self._lock:
            self._closed.set()
            for watch in self._watches.values():
                watch.gone = True
            self._watches.clear()
            stream, thread = self._stream, self._thread
        if stream is not None:
            stream.hang_up("the watcher is closed")
            stream.outbox.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join(_JOIN_SECONDS)

    # The reader's thread.

    def _run(self) -> None:
        lives = ETCD_STREAM.copy(sleep=self._closed.wait)
        while not self._closed.is_set():
            lives(self._live)

    def _live(self) -> None:
        """Live through one stream. Raises `StreamLost` if the next one is to wait a little."""
        if self._closed.is_set():
            return
        stream = None
        try:
            stream = self._open()
            self._read(stream)
            why = "etcd ended the stream"
        except grpc.RpcError as error:
            assert stream is not None
            why = self._explained(stream, error)
        except EtcdError as error:  # no token, no certificate
            why = str(error)
        except Exception as error:
            logger.exception("the watches on etcd met something unexpected; connecting again")
            why = repr(error)
        finally:
            self._drop(stream)
        if self._closed.is_set():
            return
        stood = stream is not None and stream.revision and monotonic() - stream.began > _STOOD_SECONDS
        logger.log(logging.INFO if stood else logging.DEBUG, "connecting the watches on etcd again: %s", why)
        if not stood:
            raise StreamLost(why)

    def _open(self) -> _Stream:
        member = self._pool.current
        metadata = self._pool.metadata(member, timeout=_SIGN_IN_SECONDS, stale=self._stale)
        self._stale = None
        stream = _Stream(member, metadata)
        try:
            stream.call = member.call(WATCH)(self._requests(stream), metadata=metadata)
        except ValueError as error:  # the channel was closed just now
            raise Unanswered("the channel to etcd is closed") from error
        with self._lock:
            if self._closed.is_set():
                stream.hang_up("the watcher is closed")
            self._stream = stream
            for watch in self._watches.values():
                stream.create(watch, next(self._wires))
        return stream

    def _drop(self, stream: _Stream | None) -> None:
        with self._lock:
            self._stream = None
        if stream is not None:
            stream.hang_up("the stream is over")
            stream.outbox.put(None)

    def _read(self, stream: _Stream) -> None:
        while True:
            stream.waiting_since = monotonic()
            try:
                response = next(stream.call)
            except StopIteration:
                self._pool.leave(stream.member)
                return
            stream.waiting_since = None
            if not stream.revision:
                stream.member.answered()
            stream.revision = max(stream.revision, response.header.revision)
            self._take(stream, response)

    def _explained(self, stream: _Stream, error: grpc.RpcError) -> str:
        """Return why a stream was lost, and leave the member unless it was us who hung up on a good one."""
        failure = failure_of(error)
        if self._closed.is_set() or self._stale is not None:
            return stream.why
        if mended_by_signing_in(failure) and self._pool.has_user:
            self._stale = stream.metadata
        else:
            self._pool.leave(stream.member)
        told = error_of(stream.member.explained(failure), stream.member.name, write=False, seconds=0)
        return stream.why or str(told)

    # What etcd says.

    def _take(self, stream: _Stream, response: pb.WatchResponse) -> None:
        if response.created:
            self._take_created(stream, response)
            return
        with self._lock:
            watch = stream.standing.get(response.watch_id)
        if response.canceled:
            if watch is not None:
                self._take_canceled(stream, watch, response)
        elif response.events or response.fragment:
            if watch is not None:
                self._take_events(watch, response)
        else:
            self._take_progress(stream, response)

    def _take_created(self, stream: _Stream, response: pb.WatchResponse) -> None:
        with self._lock:
            watch = stream.answered(response.watch_id)
            if watch is None or watch.gone:
                return
            if not response.canceled:
                watch.wire = response.watch_id
                stream.standing[watch.wire] = watch
                watch.denials = 0
                if watch.next and _came_from_elsewhere(watch, response.header):
                    # Etcd was wiped or restored, or this member lags: revisions mean something else here.
                    stream.cancel(watch.wire)
                    watch.restart()
                    stream.create(watch, next(self._wires))
                    return
                watch.cluster, watch.term = response.header.cluster_id, response.header.raft_term
                if watch.next:
                    return
                watch.next = response.header.revision + 1
        if response.canceled:
            self._take_canceled(stream, watch, response)
        else:
            self._tell(watch, None)

    def _take_canceled(self, stream: _Stream, watch: _Watch, response: pb.WatchResponse) -> None:
        with self._lock:
            stream.standing.pop(watch.wire, None)
            if watch.gone:
                return
            if response.compact_revision:
                watch.restart()
                stream.create(watch, next(self._wires))
                return
        reason = response.cancel_reason
        if self._pool.has_user and (watch_wants_token(reason) or self._pool.has_changed(stream.metadata)):
            self._stale = stream.metadata
            stream.hang_up("its token is not taken any more")
            return
        key, why = watch.key.decode("utf-8", "backslashreplace"), watch_denial(reason)
        logger.warning("etcd at %s does not let %s be watched: %s", stream.member.name, key, why)
        stood, first = watch.next, not watch.denials
        with self._lock:
            watch.restart()
            pause = self._pace * 2 ** min(watch.denials, _MOST_DOUBLINGS)
            watch.denials += 1
            stream.denied.append((monotonic() + pause, watch))
        if stood and first:
            self._tell(watch, None)

    def _take_events(self, watch: _Watch, response: pb.WatchResponse) -> None:
        watch.parts += changes(response.events)
        if response.fragment:  # may end within a revision
            return
        told, watch.parts = watch.parts, []
        if told:
            watch.next = told[-1].kv.mod_revision + 1
            self._tell(watch, told)

    def _take_progress(self, stream: _Stream, response: pb.WatchResponse) -> None:
        stream.asked = max(0, stream.asked - 1)
        if response.header.revision < stream.asked_revision:
            with self._lock:
                for watch in self._watches.values():
                    watch.restart()
            stream.hang_up("etcd went back to an older revision")
        elif stream.pending:  # asked for before this sign of life was, and so to be answered before it
            stream.overdue += 1
            if stream.overdue >= _SILENT:
                stream.hang_up("etcd does not answer a request to watch")

    def _tell(self, watch: _Watch, what: Sequence[Change] | None) -> None:
        with self._lock:
            if watch.gone:
                return
        try:
            watch.tell(what)
        except Exception:
            logger.exception(
                "a watch on %s was told of changes, and raised", watch.key.decode("utf-8", "backslashreplace")
            )

    # gRPC's thread, which sends.

    def _requests(self, stream: _Stream) -> Iterator[pb.WatchRequest]:
        due = monotonic() + self._pace
        while True:
            rest = due - monotonic()
            try:
                request = stream.outbox.get(timeout=max(0.0, rest)) if rest > 0 else None
            except Empty:
                request = None
            else:
                if rest > 0 and request is None:
                    return  # the stream is over
            if request is None:
                due = monotonic() + self._pace
                request = self._tick(stream)
            if request is not None:
                yield request

    def _tick(self, stream: _Stream) -> pb.WatchRequest | None:
        """Look after the stream; return the request for a sign of life, if one may be expected."""
        now = monotonic()
        with self._lock:
            due = [watch for when, watch in stream.denied if when <= now and not watch.gone]
            stream.denied = [(when, watch) for when, watch in stream.denied if when > now]
            for watch in due:
                stream.create(watch, next(self._wires))
            expecting = bool(stream.pending or stream.standing)
        since = stream.waiting_since
        if since is None:
            return None
        if expecting and now - since > (_SILENT - 0.5) * self._pace:  # the answer to the last one may be on its way
            stream.hang_up(f"etcd at {stream.member.name} was silent for {now - since:.0f} s")
            return None
        if not stream.asked:  # else the next answer may be to an older question
            stream.asked_revision = stream.revision
        stream.asked += 1
        return _PROGRESS


def _came_from_elsewhere(watch: _Watch, header: pb.ResponseHeader) -> bool:
    return header.revision < watch.next - 1 or header.cluster_id != watch.cluster or header.raft_term < watch.term
