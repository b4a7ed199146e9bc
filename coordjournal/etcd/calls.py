"""Each call: its message, its answer. See `client`, which opens this at the first one."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final
from weakref import WeakSet

from coordjournal.etcd import Compare, EtcdError, Found, Get, Operation, Refused, Result, Unanswered
from coordjournal.etcd import etcd_pb2 as pb
from coordjournal.etcd.client import Alarm, EndpointStatus
from coordjournal.etcd.endpoints import Endpoint, Tls
from coordjournal.etcd.messages import found, range_request, result, txn_request
from coordjournal.etcd.pool import ALARM, LEASE_GRANT, LEASE_KEEP_ALIVE, LEASE_REVOKE, RANGE, STATUS, TXN, Pool
from coordjournal.etcd.watch import StreamWatcher

PROGRESS_SECONDS: Final = 2.0
"""How often a watched etcd is asked for a sign of life. It is left after 2.5 times as long without one."""

_STATUS: Final = pb.StatusRequest()
_ALARMS: Final = pb.AlarmRequest()


class Calls:
    """The calls of `Etcd` over one pool of members, and those for an operator."""

    def __init__(self, endpoints: Sequence[Endpoint], tls: Tls | None, username: str, password: str) -> None:
        self._pool = Pool(endpoints, tls, username, password)
        self._lock = threading.Lock()
        self._watchers: WeakSet[StreamWatcher] = WeakSet()
        self._closed = False

    @property
    def trouble(self) -> str:
        """What the last call failed with; empty after an answer."""
        return self._pool.trouble

    def get(self, what: Get, timeout: float) -> tuple[int, Found]:
        response = self._pool.ask(RANGE, range_request(what), timeout=timeout)
        return response.header.revision, found(response)

    def txn(
        self, guards: Sequence[Compare], then: Sequence[Operation], otherwise: Sequence[Operation], timeout: float
    ) -> Result:
        return result(self._pool.send(TXN, txn_request(guards, then, otherwise), timeout=timeout))

    def grant(self, ttl: int, timeout: float) -> tuple[int, int]:
        response = self._pool.send(LEASE_GRANT, pb.LeaseGrantRequest(TTL=ttl), timeout=timeout)
        return response.ID, response.TTL

    def keep_alive(self, lease: int, timeout: float) -> int:
        # Asked of the next member too if one is silent: to renew twice is to renew.
        ttl: int = self._pool.ask(LEASE_KEEP_ALIVE, pb.LeaseKeepAliveRequest(ID=lease), timeout=timeout).TTL
        return max(0, ttl)

    def revoke(self, lease: int, timeout: float) -> None:
        try:
            self._pool.send(LEASE_REVOKE, pb.LeaseRevokeRequest(ID=lease), timeout=timeout)
        except Refused as refusal:
            if refusal.reason != "lease not found":
                raise

    def watcher(self) -> StreamWatcher:
        with self._lock:
            if self._closed:
                raise Unanswered("this etcd client is closed")
            watcher = StreamWatcher(self._pool, progress_seconds=PROGRESS_SECONDS)
            self._watchers.add(watcher)
            return watcher

    def statuses(self, timeout: float) -> list[EndpointStatus]:
        found = []
        for endpoint, answer in self._pool.everywhere(STATUS, _STATUS, timeout=timeout):
            if isinstance(answer, EtcdError):
                found.append(EndpointStatus(endpoint, str(answer)))
                continue
            found.append(
                EndpointStatus(
                    endpoint,
                    version=answer.version,
                    db_size=answer.dbSize,
                    db_size_in_use=answer.dbSizeInUse,
                    cluster=answer.header.cluster_id,
                    member=answer.header.member_id,
                    leader=answer.leader,
                    learner=answer.isLearner,
                    problems=tuple(problem.strip() for problem in answer.errors),
                )
            )
        return found

    def alarms(self, timeout: float) -> list[Alarm]:
        response = self._pool.ask(ALARM, _ALARMS, timeout=timeout)
        return [Alarm(alarm.memberID, pb.AlarmType.Name(alarm.alarm)) for alarm in response.alarms]

    def is_kept(self, key: bytes, revision: int, timeout: float) -> bool:
        try:
            self._pool.ask(RANGE, pb.RangeRequest(key=key, revision=revision, count_only=True), timeout=timeout)
        except Refused as refusal:
            if refusal.reason != "compacted":
                raise
            return False
        return True

    def close(self) -> None:
        with self._lock:
            self._closed = True
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher.close()
        self._pool.close()
