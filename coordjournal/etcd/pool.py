"""The members of one etcd: a channel to each, one of them current, and who we are there.

This module and those above it load grpc; `client` and `endpoints` do not.
"""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any, Final

import grpc

from coordjournal.etcd import EtcdError, Refused, Unanswered
from coordjournal.etcd import etcd_pb2 as pb
from coordjournal.etcd.endpoints import Endpoint, Tls
from coordjournal.etcd.failures import (
    AUTH_NOT_ENABLED,
    Failure,
    answer_too_large,
    error_of,
    mended_by_signing_in,
    more_telling,
)
from coordjournal.retry import ETCD_ROUND, NoneAnswered, within

RANGE: Final = "/etcdserverpb.KV/Range"
TXN: Final = "/etcdserverpb.KV/Txn"
LEASE_GRANT: Final = "/etcdserverpb.Lease/LeaseGrant"
LEASE_REVOKE: Final = "/etcdserverpb.Lease/LeaseRevoke"
LEASE_KEEP_ALIVE: Final = "/etcdserverpb.Lease/LeaseKeepAlive"
AUTHENTICATE: Final = "/etcdserverpb.Auth/Authenticate"
STATUS: Final = "/etcdserverpb.Maintenance/Status"
ALARM: Final = "/etcdserverpb.Maintenance/Alarm"
WATCH: Final = "/etcdserverpb.Watch/Watch"

_UNARY: Final[dict[str, tuple[Any, Any]]] = {
    RANGE: (pb.RangeRequest, pb.RangeResponse),
    TXN: (pb.TxnRequest, pb.TxnResponse),
    LEASE_GRANT: (pb.LeaseGrantRequest, pb.LeaseGrantResponse),
    LEASE_REVOKE: (pb.LeaseRevokeRequest, pb.LeaseRevokeResponse),
    # A stream to etcd. One request, then the end of ours, is what a unary call sends; one answer, then the
    # end of theirs, what it takes. So it has a deadline and needs no threads.
    LEASE_KEEP_ALIVE: (pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse),
    AUTHENTICATE: (pb.AuthenticateRequest, pb.AuthenticateResponse),
    STATUS: (pb.StatusRequest, pb.StatusResponse),
    ALARM: (pb.AlarmRequest, pb.AlarmResponse),
}

_OPTIONS: Final = (
    ("grpc.enable_retries", 0),  # whether to send again is not for the transport to say
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # a connection of our own, whoever else is in this process
    ("grpc.max_receive_message_length", 128 << 20),
    # A silent connection is given up after 6 + 3 s. Etcd hangs up on who pings more often than every 5 s,
    # or pings without a call (its --grpc-keepalive-min-time).
    ("grpc.keepalive_time_ms", 6000),
    ("grpc.keepalive_timeout_ms", 3000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.min_reconnect_backoff_ms", 2000),  # in truth: how long one attempt to connect may take
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
)

_FIRST_TRY_SECONDS: Final = 1.0  # with several members; doubled each round
_FRESH_SECONDS: Final = 5.0
_RENEW_SECONDS: Final = 10.0

_SYSTEM_ROOTS: Final = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
)

_HAS_LEADER: Final = (("hasleader", "true"),)  # a member that is cut off says so at once

_PROBE: Final = pb.RangeRequest(key=b"\0", count_only=True)

logger = logging.getLogger(__name__)

Metadata = tuple[tuple[str, str], ...]


class Member:
    """One endpoint and the channel to it, made at first use."""

    def __init__(self, endpoint: Endpoint, tls: Tls | None) -> None:
        self.name = str(endpoint)
        self.answered_at = -inf  # when it last did, and if it did not since, never
        self._endpoint = endpoint
        self._tls = (tls or Tls()) if endpoint.tls or (tls and endpoint.tls is None) else None
        self._lock = threading.Lock()
        self._channel: Any = None
        self._calls: dict[str, Any] = {}
        self._failing_since = 0.0
        self._failure: Failure | None = None  # the last one, without an answer since

    def call(self, path: str) -> Any:
        """Return what makes a call. Raises `Unanswered` if a certificate cannot be read."""
        return self._calls.get(path) or self._open()[path]

    def answered(self) -> None:
        """Note that a call was answered."""
        self.answered_at = monotonic()
        self._failing_since = 0.0
        self._failure = None

    def explained(self, failure: Failure) -> Failure:
        """Note how a call failed, and return the failure to tell of: this one, or an earlier one that says more."""
        self._failure = failure = more_telling(self._failure, failure)
        return failure

    def failed(self) -> None:
        """Note that one was not. After a while of nothing else the channel is made anew.

        That reads the certificates and asks for the name's addresses again; gRPC by itself would leave up
        to two minutes between its questions.
        """
        self.answered_at = -inf
        now = monotonic()
        if not self._failing_since:
            self._failing_since = now
        elif now - self._failing_since >= _RENEW_SECONDS:
            self._failing_since = now
            self.close()

    def close(self) -> None:
        """Close the channel. Calls under way fail; the next one opens another."""
        with self._lock:
            channel, self._channel, self._calls = self._channel, None, {}
            self._failure = None  # certificates are read anew
        if channel is not None:
            channel.close()

    def _open(self) -> dict[str, Any]:
        with self._lock:
            if not self._calls:
                self._channel = self._connect()
                calls = {
                    path: self._channel.unary_unary(path, request.SerializeToString, response.FromString)
                    for path, (request, response) in _UNARY.items()
                }
                calls[WATCH] = self._channel.stream_stream(
                    WATCH, pb.WatchRequest.SerializeToString, pb.WatchResponse.FromString
                )
                self._calls = calls
            return self._calls

    def _connect(self) -> Any:
        target = f"dns:///{self._endpoint.address}"
        if self._tls is None:
            return grpc.insecure_channel(target, _OPTIONS)
        credentials = grpc.ssl_channel_credentials(
            _roots() if self._tls.ca is None else _pem(self._tls.ca),
            None if self._tls.key is None else _pem(self._tls.key),
            None if self._tls.cert is None else _pem(self._tls.cert),
        )
        return grpc.secure_channel(target, credentials, _OPTIONS)


class Login:
    """A user's token, got anew when etcd no longer takes it; by one thread for all."""

    def __init__(self, username: str, password: str) -> None:
        self.needed = bool(username)
        self.metadata: Metadata | None = None if username else _HAS_LEADER
        self._request = pb.AuthenticateRequest(name=username, password=password)
        self._lock = threading.Lock()

    def renew(self, stale: Metadata | None, call: Callable[[pb.AuthenticateRequest], str], seconds: float) -> Metadata:
        """Return other metadata than `stale`. `call` asks for a token, and gets "" where none is needed."""
        if not self._lock.acquire(timeout=max(0.0, seconds)):
            raise Unanswered("no token of etcd came in time")
        try:
            if self.metadata is None or self.metadata is stale:
                token = call(self._request)
                self.metadata = (*_HAS_LEADER, *((("token", token),) if token else ()))
            return self.metadata
        finally:
            self._lock.release()


class Pool:
    """All members of one etcd. The current one is asked, until it does not answer: then the next is.

    Safe in many threads. Every call raises `Unanswered` or `Refused`.
    """

    def __init__(self, endpoints: Sequence[Endpoint], tls: Tls | None, username: str, password: str) -> None:
        self._members = [Member(endpoint, tls) for endpoint in endpoints]
        self._login = Login(username, password)
        self._lock = threading.Lock()
        self._current = self._members[0]
        self._closed = False
        self.trouble = ""  # what the last call failed with, in words; empty after an answer

    @property
    def has_user(self) -> bool:
        """Whether there is a user to sign in as."""
        return self._login.needed

    @property
    def current(self) -> Member:
        """The member that is asked first."""
        return self._current

    def ask(self, path: str, request: Any, *, timeout: float) -> Any:
        """Make a call that may be made twice: go round the members until one answers.

        With several of them a try has a deadline of its own, so that a silent member costs a part of the
        time only.
        """
        deadline = monotonic() + timeout
        rounds = count()

        def go_round() -> Any:
            patience = _FIRST_TRY_SECONDS * 2.0 ** min(next(rounds), 10)
            return self._round(path, request, deadline, patience)

        return within(ETCD_ROUND, timeout)(go_round)

    def send(self, path: str, request: Any, *, timeout: float) -> Any:
        """Make a call that may change something: once.

        To a member that answers: unless the current one did so a moment ago, a read goes ahead.
        """
        now = monotonic()
        deadline = now + timeout
        if now - self._current.answered_at > _FRESH_SECONDS:
            try:
                self.ask(RANGE, _PROBE, timeout=timeout)
            except Refused as refusal:
                if refusal.reason == "not authenticated":
                    raise
                # Else it is an answer too: this user may not read that key.
        return self._call(self._current, path, request, deadline - monotonic(), write=True)

    def everywhere(self, path: str, request: Any, *, timeout: float) -> list[tuple[str, Any]]:
        """Ask all members at the same time; return each endpoint with its answer or its `EtcdError`."""
        if self._login.metadata is None:
            try:
                self.ask(RANGE, _PROBE, timeout=timeout / 2)  # so that none of them waits for another's token
            except EtcdError:
                pass  # each tells for itself

        def one(member: Member) -> tuple[str, Any]:
            try:
                return member.name, self._call(member, path, request, timeout / 2, write=False)
            except EtcdError as error:
                return member.name, error

        with ThreadPoolExecutor(len(self._members)) as threads:
            return list(threads.map(one, self._members))

    def leave(self, member: Member) -> None:
        """Note that a member does not answer, and go on with the next one if it is the current one."""
        member.failed()
        with self._lock:
            if self._current is member and len(self._members) > 1:
                self._current = self._members[(self._members.index(member) + 1) % len(self._members)]
                logger.info("going on with etcd at %s, since %s does not answer", self._current.name, member.name)

    def metadata(self, member: Member, *, timeout: float, stale: Metadata | None = None) -> Metadata:
        """Return what a stream is to be opened with; other than `stale`, if there is a user."""
        known = self._login.metadata
        if known is None or (known is stale and self._login.needed):
            return self._sign_in(member, stale, timeout)
        return known

    def has_changed(self, metadata: Metadata) -> bool:
        """Return whether a newer token is known than the one that `metadata` has."""
        return self._login.metadata is not metadata

    def close(self) -> None:
        """Close all channels; calls under way are `Unanswered`, and so is every later one."""
        self._closed = True
        for member in self._members:
            member.close()

    def _round(self, path: str, request: Any, deadline: float, patience: float) -> Any:
        failures: list[Unanswered] = []
        for left in range(len(self._members), 0, -1):
            rest = deadline - monotonic()
            if rest <= 0 and failures:
                break
            member = self._current
            seconds = rest if len(self._members) == 1 else min(patience, rest / left)
            try:
                return self._call(member, path, request, seconds, write=False)
            except Unanswered as error:
                if self._closed:
                    raise
                failures.append(error)
        if len(failures) == 1:
            raise NoneAnswered(str(failures[0])) from failures[0]
        raise NoneAnswered("no etcd answers: " + "; ".join(dict.fromkeys(map(str, failures)))) from failures[-1]

    def _call(self, member: Member, path: str, request: Any, seconds: float, *, write: bool) -> Any:
        """Make one call; twice only if the first was refused for want of a valid token."""
        deadline = monotonic() + seconds
        signed_in = self._login.metadata or self._sign_in(member, None, seconds)
        try:
            return self._make(member, path, request, deadline - monotonic(), signed_in)
        except grpc.RpcError as error:
            failure, cause = failure_of(error), error
        if self._login.needed and mended_by_signing_in(failure):
            signed_in = self._sign_in(member, signed_in, deadline - monotonic())
            try:
                return self._make(member, path, request, deadline - monotonic(), signed_in)
            except grpc.RpcError as error:
                failure, cause = failure_of(error), error
        raise self._translated(member, failure, write=write, seconds=seconds) from cause

    def _sign_in(self, member: Member, stale: Metadata | None, seconds: float) -> Metadata:
        deadline = monotonic() + seconds

        def call(request: pb.AuthenticateRequest) -> str:
            try:
                response = self._make(member, AUTHENTICATE, request, deadline - monotonic(), _HAS_LEADER)
            except grpc.RpcError as error:
                failure = failure_of(error)
                if failure == AUTH_NOT_ENABLED:
                    return ""
                raise self._translated(member, failure, write=False, seconds=seconds) from error
            token: str = response.token
            return token

        return self._login.renew(stale, call, seconds)

    def _make(self, member: Member, path: str, request: Any, seconds: float, metadata: Metadata) -> Any:
        if self._closed:
            raise Unanswered("this etcd client is closed")
        call = member.call(path)
        try:
            response = call(request, timeout=max(0.0, seconds), metadata=metadata)
        except ValueError as error:  # the channel was closed just now
            raise Unanswered(f"the call to etcd at {member.name} was given up") from error
        member.answered()
        self.trouble = ""
        return response

    def _translated(self, member: Member, failure: Failure, *, write: bool, seconds: float) -> EtcdError:
        error = error_of(member.explained(failure), member.name, write=write, seconds=seconds)
        if isinstance(error, Refused) or answer_too_large(failure):
            member.answered()
        elif failure.code != "CANCELLED":
            self.trouble = str(error)
            self.leave(member)
        return error


def failure_of(error: grpc.RpcError) -> Failure:
    """Return a failed call in plain words."""
    return Failure(error.code().name, error.details() or "")


def _pem(path: Any) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise Unanswered(f"etcd is not called: {path} cannot be read ({error.strerror})") from error


def _roots() -> bytes | None:
    """Return the system's roots; without any, gRPC has some of its own."""
    for path in (ssl.get_default_verify_paths().cafile, *_SYSTEM_ROOTS):
        if path and Path(path).is_file():
            return _pem(path)
    return None
