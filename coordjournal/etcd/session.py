"""One process's presence in etcd: one lease, one key that tells who it is, one random id.

The lease serves liveness only. Losing it is a state to look at, not an exception in a thread: `renew`
tells, and whoever depends on it asks `live`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from coordjournal.etcd import Compare, Delete, Etcd, EtcdError, Get, Put, Refused, Unanswered

MIN_TTL_SECONDS: Final = 2
"""Etcd raises a shorter TTL to this (with its ordinary election timeout of one second)."""

logger = logging.getLogger(__name__)


class Session:
    """A session that can be opened, lost, and opened again under the same id. One thread at a time.

    `key` makes the key of a session id, `value` what stands there. `clock` is monotonic, in seconds.
    """

    def __init__(
        self,
        etcd: Etcd,
        identity: str,
        key: bytes,
        value: bytes,
        *,
        ttl: int,
        clock: Callable[[], float],
    ) -> None:
        self.id = identity
        self.ttl = ttl
        self.lease = 0
        self.created = 0  # the create-revision of the session's key, 0 while there is none
        self.valid_until = 0.0  # counted from when the renewal was sent
        self._etcd = etcd
        self._key = key
        self._value = value
        self._clock = clock

    @property
    def live(self) -> bool:
        """Whether the lease was renewed within its TTL; it may be gone nevertheless."""
        return self.created != 0 and self._clock() < self.valid_until

    def open(self, *, timeout: float) -> None:
        """Get a new lease, and put the session's key with it. Raises `Unanswered` and `Refused`."""
        sent = self._clock()
        stale, self.lease, self.created = self.lease, 0, 0
        if stale:
            try:
                self._etcd.revoke(stale, timeout=timeout)  # its keys would be in the way until it ends
            except EtcdError as error:
                logger.info("the old lease cannot be revoked, it ends by itself: %s", error)
        self.lease, self.ttl = self._etcd.grant(self.ttl, timeout=timeout)
        for _ in range(2):
            done = self._etcd.txn(
                [Compare(self._key, "version", 0)],
                [Put(self._key, self._value, self.lease)],
                [Get(self._key)],
                timeout=timeout,
            )
            if done.succeeded:
                self.created = done.revision
                self.valid_until = sent + self.ttl
                return
            found = done.found[0]
            if found is not None and found.kvs:
                left = found.kvs[0]
                if left.lease == self.lease:  # put by a transaction whose answer was lost
                    self.created, self.valid_until = left.create_revision, sent + self.ttl
                    return
                self._etcd.txn(
                    [Compare(self._key, "mod_revision", left.mod_revision)], [Delete(self._key)], timeout=timeout
                )
        raise Unanswered("the session's key is put by somebody else again and again")

    def renew(self, *, timeout: float) -> bool:
        """Renew the lease; false if it is gone. Raises `Unanswered`, which leaves open whether it is."""
        if not self.created:
            return False
        sent = self._clock()
        try:
            ttl = self._etcd.keep_alive(self.lease, timeout=timeout)
        except Refused as refusal:
            if refusal.reason != "lease not found":
                raise
            ttl = 0
        if not ttl:
            self.created = 0
            return False
        self.valid_until = sent + ttl
        return True

    def close(self, *, timeout: float) -> None:
        """Revoke the lease, and with it every key that was put with it."""
        lease, self.lease, self.created = self.lease, 0, 0
        if lease:
            try:
                self._etcd.revoke(lease, timeout=timeout)
            except EtcdError as error:
                logger.info("the lease cannot be revoked, it ends by itself: %s", error)
