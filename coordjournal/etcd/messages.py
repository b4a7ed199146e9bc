"""The port's values as etcd's messages, and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from coordjournal.etcd import Change, Compare, Delete, Found, Get, KeyValue, Operation, Put, Result
from coordjournal.etcd import etcd_pb2 as pb

_TARGETS: Final = {
    "version": pb.Compare.VERSION,
    "create_revision": pb.Compare.CREATE,
    "mod_revision": pb.Compare.MOD,
    "value": pb.Compare.VALUE,
}


def range_request(what: Get) -> pb.RangeRequest:
    """Return the request of a read on its own."""
    request = pb.RangeRequest()
    _fill_range(request, what)
    return request


def txn_request(guards: Sequence[Compare], then: Sequence[Operation], otherwise: Sequence[Operation]) -> pb.TxnRequest:
    """Return the request of a transaction. It is filled in place: large values are copied once."""
    request = pb.TxnRequest()
    for guard in guards:
        compare = request.compare.add()
        compare.target = _TARGETS[guard.target]
        compare.key = guard.key
        setattr(compare, guard.target, guard.wanted)  # also 0: that sets which of them it is
    _fill_branch(request.success, then)
    _fill_branch(request.failure, otherwise)
    return request


def result(response: pb.TxnResponse) -> Result:
    """Return what became of a transaction."""
    return Result(
        response.header.revision,
        response.succeeded,
        tuple(
            found(one.response_range) if one.WhichOneof("response") == "response_range" else None
            for one in response.responses
        ),
    )


def found(response: pb.RangeResponse) -> Found:
    """Return what a read found."""
    return Found(tuple(map(_key_value, response.kvs)), response.count)


def changes(events: Iterable[pb.Event]) -> list[Change]:
    """Return a watch's events."""
    return [Change(_key_value(event.kv), event.type == pb.Event.DELETE) for event in events]


def _key_value(kv: pb.KeyValue) -> KeyValue:
    return KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


def _fill_branch(branch: Any, operations: Sequence[Operation]) -> None:
    for operation in operations:
        one = branch.add()
        if isinstance(operation, Put):
            put = one.request_put
            put.key = operation.key
            put.value = operation.value
            if operation.lease:
                put.lease = operation.lease
        elif isinstance(operation, Delete):
            delete = one.request_delete_range
            delete.key = operation.key
            if operation.end:
                delete.range_end = operation.end
        else:
            _fill_range(one.request_range, operation)


def _fill_range(request: pb.RangeRequest, what: Get) -> None:
    request.key = what.key
    if what.end:
        request.range_end = what.end
    if what.limit:
        request.limit = what.limit
    if what.by_creation:
        request.sort_target = pb.RangeRequest.CREATE
        request.sort_order = pb.RangeRequest.ASCEND
    if what.only == "keys":
        request.keys_only = True
    elif what.only == "count":
        request.count_only = True
