"""What etcd refuses before it does anything: its limits, as etcd 3.4.23 was seen to apply them.

`test_model_against_etcd` asks a real one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Final

from coordjournal.etcd import Compare, Delete, Get, Operation, Put, Refused

MAX_OPERATIONS: Final = 128
"""`--max-txn-ops`: of guards, and of the operations of either branch."""

MAX_REQUEST_BYTES: Final = 1572864
"""`--max-request-bytes`: of a write, as etcd hands it to its members."""

MAX_MESSAGE_BYTES: Final = MAX_REQUEST_BYTES + 512 * 1024
"""Of any request, as it comes in."""

MIN_TTL_SECONDS: Final = 2
MAX_TTL_SECONDS: Final = 9_000_000_000

_ENVELOPE_BYTES: Final = 14  # the member's request id and header, at the most
_FEW_BYTES: Final = 64  # more than any operation has besides its key, end and value


def check_txn(guards: Sequence[Compare], then: Sequence[Operation], otherwise: Sequence[Operation]) -> bool:
    """Raise `Refused` if etcd does not look at such a transaction; return whether it may write."""
    if max(len(guards), len(then), len(otherwise)) > MAX_OPERATIONS:
        raise Refused("too many operations in txn request", "too large")
    rough = 0
    for guard in guards:
        _check_key(guard.key)
        rough += _FEW_BYTES + len(guard.key) + (len(guard.wanted) if isinstance(guard.wanted, bytes) else 0)
    writes = False
    for branch in (then, otherwise):
        for operation in branch:
            _check_key(operation.key)
            rough += _FEW_BYTES + len(operation.key)
            if isinstance(operation, Put):
                rough += len(operation.value)
                writes = True
            else:
                check_end(operation.end)
                rough += len(operation.end)
                writes |= isinstance(operation, Delete)
        if len(branch) > 1:
            _check_puts(branch)
    if rough > MAX_REQUEST_BYTES:  # then it is worth counting
        size = txn_bytes(guards, then, otherwise)
        if size > MAX_MESSAGE_BYTES or (writes and size + _ENVELOPE_BYTES + 1 + _varint(size) > MAX_REQUEST_BYTES):
            raise Refused("request is too large", "too large")
    return writes


def check_get(what: Get) -> None:
    """Raise `Refused` if etcd does not look at such a read."""
    _check_key(what.key)
    check_end(what.end)


def check_end(end: bytes) -> None:
    """Assert that no one uses etcd's `\\0`, "to the last key": the port has no such range."""
    assert end != b"\0", "the port has no range without an end"


def _check_key(key: bytes) -> None:
    if not key:
        raise Refused("key is not provided", "invalid")


def _check_puts(branch: Sequence[Operation]) -> None:
    """No key twice, and none that the same branch deletes, whichever comes first."""
    keys = [operation.key for operation in branch if isinstance(operation, Put)]
    twice = len(set(keys)) < len(keys)
    if twice or any(_covers(delete, key) for delete in branch if isinstance(delete, Delete) for key in keys):
        raise Refused("duplicate key given in txn request", "invalid")


def _covers(delete: Delete, key: bytes) -> bool:
    return delete.key <= key < delete.end if delete.end else key == delete.key


# The sizes of protobuf messages, as their fields are laid out in etcd's rpc.proto.


def txn_bytes(guards: Sequence[Compare], then: Sequence[Operation], otherwise: Sequence[Operation]) -> int:
    """Return the size of a `TxnRequest` in bytes."""
    items = chain(_compare_sizes(guards), _operation_sizes(then), _operation_sizes(otherwise))
    return sum(1 + _varint(size) + size for size in items)


def _compare_sizes(guards: Sequence[Compare]) -> Iterator[int]:
    for guard in guards:
        target = 0 if guard.target == "version" else 2
        wanted = _bytes(guard.wanted, always=True) if isinstance(guard.wanted, bytes) else 1 + _varint(guard.wanted)
        yield target + _bytes(guard.key) + wanted


def _operation_sizes(branch: Sequence[Operation]) -> Iterator[int]:
    for operation in branch:
        size = _bytes(operation.key)
        match operation:
            case Put():
                size += _bytes(operation.value) + (1 + _varint(operation.lease) if operation.lease else 0)
            case Delete():
                size += _bytes(operation.end)
            case Get():
                size += _bytes(operation.end) + (1 + _varint(operation.limit) if operation.limit else 0)
                size += 2 * 2 * operation.by_creation + 2 * bool(operation.only)
        yield 1 + _varint(size) + size


def _bytes(value: bytes, *, always: bool = False) -> int:
    return 1 + _varint(len(value)) + len(value) if value or always else 0


def _varint(number: int) -> int:
    return max(1, (number.bit_length() + 6) // 7)
