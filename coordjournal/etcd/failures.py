"""What a call that failed means: etcd's definite refusals are a closed list, all else is unanswered."""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import unquote

from coordjournal.etcd import EtcdError, OutOfSpace, Reason, Refused, Unanswered


class Failure(NamedTuple):
    """A failed call as gRPC tells it: the code's name, and etcd's or gRPC's own text."""

    code: str
    details: str


_REFUSALS: Final[dict[Failure, tuple[Reason, str]]] = {
    Failure("NOT_FOUND", "etcdserver: requested lease not found"): (
        "lease not found",
        "there is no such lease any more",
    ),
    Failure("INVALID_ARGUMENT", "etcdserver: request is too large"): (
        "too large",
        "the request is larger than etcd takes (see its --max-request-bytes)",
    ),
    Failure("INVALID_ARGUMENT", "etcdserver: too many operations in txn request"): (
        "too large",
        "the transaction has more operations than etcd takes (see its --max-txn-ops)",
    ),
    Failure("INVALID_ARGUMENT", "etcdserver: duplicate key given in txn request"): (
        "invalid",
        "the transaction writes a key twice",
    ),
    Failure("INVALID_ARGUMENT", "etcdserver: key is not provided"): ("invalid", "a key is empty"),
    Failure("OUT_OF_RANGE", "etcdserver: too large lease TTL"): ("invalid", "the lease's TTL is too large"),
    Failure("OUT_OF_RANGE", "etcdserver: mvcc: required revision has been compacted"): (
        "compacted",
        "the revision asked for has been compacted",
    ),
    Failure("OUT_OF_RANGE", "etcdserver: mvcc: required revision is a future revision"): (
        "invalid",
        "the revision asked for is not there yet",
    ),
    Failure("RESOURCE_EXHAUSTED", "etcdserver: too many requests"): (
        "too many requests",
        "etcd has more to do than it can keep up with",
    ),
    Failure("PERMISSION_DENIED", "etcdserver: permission denied"): (
        "permission denied",
        "this user may not do that; it needs a role that covers the journal's prefix",
    ),
    Failure("UNAUTHENTICATED", "etcdserver: invalid auth token"): (
        "not authenticated",
        "the token of this session is not taken",
    ),
    Failure("INVALID_ARGUMENT", "etcdserver: user name is empty"): (
        "not authenticated",
        "it wants a user, and none is named",
    ),
    Failure("INVALID_ARGUMENT", "etcdserver: authentication failed, invalid user ID or password"): (
        "not authenticated",
        "user name and password do not match",
    ),
    Failure("INVALID_ARGUMENT", "etcdserver: revision of auth store is old"): (
        "not authenticated",
        "users or roles were changed meanwhile",
    ),
    Failure("UNKNOWN", "auth: revision in header is old"): (
        "not authenticated",
        "users or roles were changed meanwhile",
    ),
}
"""As in etcd's `rpctypes/error.go`, 3.4 to 3.6. "Database space exceeded" is missing on purpose: when 32 threads
ran into a quota, 31 of the 32 writes so answered were done (3.4.23; see `quotaApplierV3` in its `apply.go`)."""

AUTH_NOT_ENABLED: Final = Failure("FAILED_PRECONDITION", "etcdserver: authentication is not enabled")

_NO_SPACE: Final = Failure("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded")

_STALE: Final = frozenset(
    {
        Failure("UNAUTHENTICATED", "etcdserver: invalid auth token"),
        Failure("INVALID_ARGUMENT", "etcdserver: user name is empty"),
        Failure("INVALID_ARGUMENT", "etcdserver: revision of auth store is old"),
        Failure("UNKNOWN", "auth: revision in header is old"),
    }
)

_REQUEST_TOO_LARGE: Final = re.compile(
    r"grpc: received message (after decompression )?larger than max"
)  # by gRPC there
_ANSWER_TOO_LARGE: Final = re.compile(r"\bReceived message larger than max")  # by gRPC here

_NOBODY: Final = "Connection refused"

_PLAIN: Final = (
    (
        "CERTIFICATE_VERIFY_FAILED",
        "its certificate is not from the authority (ca) that is trusted here, or has expired",
    ),
    ("TSI_DATA_CORRUPTED", "it ended the TLS handshake; it may ask for a client certificate, or for another one"),
    ("Handshake read failed", "it does not answer in TLS (https://)"),
    ("Failed to create security handshaker", "the certificate and key given here cannot be used"),
    (_NOBODY, "connection refused; nothing listens there"),
    ("before receiving SETTINGS frame", "it did not answer in time, as etcd would; it may be something else, or stuck"),
    ("Domain name not found", "there is no such host"),
    ("Socket closed", "the connection was closed; etcd ended, or asks for TLS (https://)"),
)
"""What is in gRPC's text, and what it means; the first that fits. Its texts change: others are shown as they are."""

_ADDRESSED: Final = re.compile(r"\b(?:ipv4|ipv6|dns):(\S+): ")


def mended_by_signing_in(failure: Failure) -> bool:
    """Return whether etcd refused for want of a valid token: for certain without doing anything."""
    return failure in _STALE


def watch_wants_token(reason: str) -> bool:
    """Return whether a watch was canceled for want of a valid token, as its response says it."""
    return any(stale.details in reason for stale in _STALE)


def watch_denial(reason: str) -> str:
    """Return why a watch was canceled, in a user's words where they are known, and etcd's own."""
    plain = reason.rpartition(" desc = ")[2]
    known = next((words for failure, (_, words) in _REFUSALS.items() if failure.details == plain), None)
    return known or plain.removeprefix("etcdserver: ") or "it does not say why"


def answer_too_large(failure: Failure) -> bool:
    """Return whether an answer came that is larger than this client takes."""
    return failure.code == "RESOURCE_EXHAUSTED" and _ANSWER_TOO_LARGE.search(failure.details) is not None


def more_telling(before: Failure | None, now: Failure) -> Failure:
    """Return which of an endpoint's last two failures, with no answer between them, says what is wrong.

    A name may have several addresses, as localhost has 127.0.0.1 and ::1, and gRPC tells of the one that it
    happened to try last. Where something at one of them ended the handshake, that nothing listens at another
    is no news.
    """
    if before is None or _NOBODY not in now.details or _NOBODY in before.details:
        return now
    there = _address(before)
    return before if there and there != _address(now) else now


def _address(failure: Failure) -> str:
    """Return the address that a failure names last, `host:port`; nothing if it names none."""
    found: list[str] = _ADDRESSED.findall(failure.details)
    return unquote(found[-1]) if found else ""


def error_of(failure: Failure, place: str, *, write: bool, seconds: float) -> EtcdError:
    """Return the error that a call failed with at `place`, in a user's words.

    `write` tells whether the call may have changed something, `seconds` how long it was given.
    """
    if refusal := _REFUSALS.get(failure):
        reason, words = refusal
        return Refused(f"etcd at {place} refused: {words}", reason)
    if failure.code == "RESOURCE_EXHAUSTED":
        return _exhausted(failure, place, write=write)
    if failure.code == "DEADLINE_EXCEEDED":
        return Unanswered(f"etcd at {place} did not answer within {seconds:.3g} s")
    if failure.code == "CANCELLED":
        return Unanswered(f"the call to etcd at {place} was given up")
    if failure.code == "UNAVAILABLE" and not failure.details.startswith("etcdserver: "):
        return Unanswered(f"etcd at {place} cannot be reached: {_reached(failure, place)}")
    return Unanswered(f"etcd at {place} failed: {failure.details.removeprefix('etcdserver: ')} ({failure.code})")


def _exhausted(failure: Failure, place: str, *, write: bool) -> EtcdError:
    if failure == _NO_SPACE:
        return OutOfSpace(f"etcd at {place} is out of space (see its --quota-backend-bytes); compact and defragment it")
    if _REQUEST_TOO_LARGE.match(failure.details):
        return Refused(f"etcd at {place} refused: the request is larger than etcd takes", "too large")
    if answer_too_large(failure) and not write:
        return Refused(f"the answer of etcd at {place} is larger than this client takes", "too large")
    return Unanswered(f"etcd at {place} failed: {failure.details} ({failure.code})")


def _reached(failure: Failure, place: str) -> str:
    """Return what kept gRPC from etcd, in a user's words where they are known, and its own."""
    for sign, words in _PLAIN:
        if sign in failure.details:
            at = _address(failure)
            return words if sign != _NOBODY or not at or place.endswith(at) else f"connection refused at {at}"
    plain = _ADDRESSED.split(failure.details)[-1]
    return plain.rpartition("connect: ")[2] or plain
