"""A scripted etcd: a real gRPC server on loopback that says what a test has it say.

For what a real etcd seldom does. A test puts answers into `script`, and plays watches by hand: each stream
that a client opens is a `WatchStream`.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import grpc

from coordjournal.etcd import etcd_pb2 as pb
from coordjournal.etcd.pool import (
    ALARM,
    AUTHENTICATE,
    LEASE_GRANT,
    LEASE_KEEP_ALIVE,
    LEASE_REVOKE,
    RANGE,
    STATUS,
    TXN,
    WATCH,
)

WAIT_SECONDS: Final = 20.0
"""How long a test waits for what must come."""

CLUSTER: Final = 7

_KINDS: Final[dict[str, tuple[Any, Any]]] = {
    RANGE: (pb.RangeRequest, pb.RangeResponse),
    TXN: (pb.TxnRequest, pb.TxnResponse),
    LEASE_GRANT: (pb.LeaseGrantRequest, pb.LeaseGrantResponse),
    LEASE_REVOKE: (pb.LeaseRevokeRequest, pb.LeaseRevokeResponse),
    AUTHENTICATE: (pb.AuthenticateRequest, pb.AuthenticateResponse),
    STATUS: (pb.StatusRequest, pb.StatusResponse),
    ALARM: (pb.AlarmRequest, pb.AlarmResponse),
}


class Abort(NamedTuple):
    """An answer that is an error."""

    code: str
    details: str


class Landed(NamedTuple):
    """A request that came in, and the metadata that came with it."""

    path: str
    request: Any
    metadata: dict[str, str]


Answer = Abort | Callable[[Landed], Any] | Any
"""A message, an error, or what makes one of these of the request when it has landed."""


def header(revision: int, *, cluster: int = CLUSTER, term: int = 2) -> pb.ResponseHeader:
    """Return the header of a response."""
    return pb.ResponseHeader(cluster_id=cluster, member_id=1, revision=revision, raft_term=term)


def put(revision: int, key: str, value: str = "") -> pb.Event:
    """Return a watch's event."""
    kv = pb.KeyValue(key=key.encode(), value=value.encode(), mod_revision=revision, create_revision=1, version=2)
    return pb.Event(type=pb.Event.PUT, kv=kv)


class WatchStream:
    """One stream of watches, played by hand from etcd's side."""

    def __init__(self, metadata: dict[str, str]) -> None:
        self.metadata = metadata
        self.progress = threading.Semaphore(0)  # one for each request for progress
        self.over = threading.Event()  # the client hung up, or the stream was ended
        self._inbox: SimpleQueue[pb.WatchRequest] = SimpleQueue()
        self._outbox: SimpleQueue[pb.WatchResponse | Abort | None] = SimpleQueue()

    def receive(self) -> pb.WatchRequest:
        """Return the next request other than for progress."""
        return self._inbox.get(timeout=WAIT_SECONDS)

    def has_request(self) -> bool:
        """Return whether there is one to be received."""
        return not self._inbox.empty()

    def receive_create(self) -> pb.WatchCreateRequest:
        """Return the next request, which is for a watch."""
        request = self.receive()
        assert request.WhichOneof("request_union") == "create_request", request
        return request.create_request

    def create(self, revision: int, **fields: Any) -> pb.WatchCreateRequest:
        """Receive a request for a watch, confirm it, and return it."""
        request = self.receive_create()
        self.confirm(request, revision, **fields)
        return request

    def confirm(self, request: pb.WatchCreateRequest, revision: int, **fields: Any) -> None:
        """Confirm a watch, at a revision of the store."""
        self.send(watch_id=request.watch_id, created=True, header=header(revision, **fields))

    def events(self, watch_id: int, *events: pb.Event, fragment: bool = False) -> None:
        """Tell of events; with `fragment`, more is to come."""
        revision = max(event.kv.mod_revision for event in events)
        self.send(watch_id=watch_id, events=events, fragment=fragment, header=header(revision))

    def show_progress(self, revision: int) -> None:
        """Give a sign of life."""
        self.send(watch_id=-1, header=header(revision))

    def send(self, **fields: Any) -> None:
        """Send a response."""
        self._outbox.put(pb.WatchResponse(**{"header": header(1), **fields}))

    def end(self) -> None:
        """End the stream as if all was well."""
        self._outbox.put(None)

    def fail(self, code: str, details: str) -> None:
        """End the stream with an error."""
        self._outbox.put(Abort(code, details))

    def serve(self, requests: Iterator[pb.WatchRequest], context: Any) -> Iterator[pb.WatchResponse]:
        """Be the stream."""
        context.add_callback(self._is_over)
        threading.Thread(target=self._receive, args=(requests,), daemon=True).start()
        while (response := self._outbox.get()) is not None:
            if isinstance(response, Abort):
                context.abort(getattr(grpc.StatusCode, response.code), response.details)
            else:
                yield response

    def _is_over(self) -> None:
        self.over.set()
        self._outbox.put(None)

    def _receive(self, requests: Iterator[pb.WatchRequest]) -> None:
        try:
            for request in requests:
                if request.WhichOneof("request_union") == "progress_request":
                    self.progress.release()
                else:
                    self._inbox.put(request)
        except grpc.RpcError:
            pass  # the stream is over
        except Exception as error:  # grpc's own, without a public type
            if type(error) is not Exception:
                raise


class FakeEtcd:
    """A scripted etcd. What is not scripted is answered with an empty message; streams wait to be played."""

    def __init__(self) -> None:
        self.script: defaultdict[str, deque[Answer]] = defaultdict(deque)
        self.landed: list[Landed] = []
        self.streams: SimpleQueue[WatchStream] = SimpleQueue()
        self._watching: list[WatchStream] = []
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(32)
        self._server = grpc.server(self._threads, options=(("grpc.so_reuseport", 0),))
        self._server.add_generic_rpc_handlers((_Handlers(self),))
        self.endpoint = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._threads.shutdown()

    def stop(self) -> None:
        """Go away: calls under way fail, and connections are refused."""
        with self._lock:
            for stream in self._watching:
                stream.end()
        self._server.stop(0).wait()

    def stream(self) -> WatchStream:
        """Return the next stream that a client opens."""
        return self.streams.get(timeout=WAIT_SECONDS)

    def count(self, path: str) -> int:
        """Return how many requests landed."""
        with self._lock:
            return sum(landed.path == path for landed in self.landed)

    def answer(self, landed: Landed, context: Any) -> Any:
        """Answer a request as scripted."""
        with self._lock:
            self.landed.append(landed)
            script = self.script[landed.path]
            answer: Answer = script.popleft() if script else None
        if callable(answer):
            answer = answer(landed)
        if isinstance(answer, Abort):
            context.abort(getattr(grpc.StatusCode, answer.code), answer.details)
        return answer

    def watch(self, requests: Iterator[pb.WatchRequest], context: Any) -> Iterator[pb.WatchResponse]:
        """Let a stream be played."""
        stream = WatchStream(dict(context.invocation_metadata()))
        with self._lock:
            self._watching.append(stream)
        self.streams.put(stream)
        return stream.serve(requests, context)


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, fake: FakeEtcd) -> None:
        self._fake = fake

    def service(self, details: Any) -> Any:
        path = details.method
        if path == WATCH:
            return grpc.stream_stream_rpc_method_handler(
                self._fake.watch, pb.WatchRequest.FromString, pb.WatchResponse.SerializeToString
            )
        if path == LEASE_KEEP_ALIVE:
            return grpc.stream_stream_rpc_method_handler(
                self._keep_alive, pb.LeaseKeepAliveRequest.FromString, pb.LeaseKeepAliveResponse.SerializeToString
            )
        request, response = _KINDS[path]

        def answer(message: Any, context: Any) -> Any:
            landed = Landed(path, message, dict(context.invocation_metadata()))
            return self._fake.answer(landed, context) or response()

        return grpc.unary_unary_rpc_method_handler(answer, request.FromString, response.SerializeToString)

    def _keep_alive(self, requests: Iterator[pb.LeaseKeepAliveRequest], context: Any) -> Iterator[Any]:
        for request in requests:
            landed = Landed(LEASE_KEEP_ALIVE, request, dict(context.invocation_metadata()))
            yield self._fake.answer(landed, context) or pb.LeaseKeepAliveResponse(ID=request.ID)
