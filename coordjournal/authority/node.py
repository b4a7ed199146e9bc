"""One process as etcd sees it: its session, and what all of its spaces share."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Final, NamedTuple

from coordjournal.authority.settings import Settings
from coordjournal.authority.wire import Keys, NodeValue, Role, decode_head, encode_node
from coordjournal.entry import Head, format_time
from coordjournal.errors import ForeignRepository, HeadMissing, OperatorNeeded, Unavailable, WrongAuthority
from coordjournal.etcd import (
    Compare,
    Etcd,
    EtcdError,
    Found,
    Get,
    KeyValue,
    Operation,
    Put,
    Refused,
    Result,
)
from coordjournal.etcd.session import Session
from coordjournal.replica import Replica
from coordjournal.store import ETCD, Store

CALL_SECONDS: Final = 3.0
"""How long one call to etcd may take before its answer counts as lost."""

GRANT: Final = "grant the user a role that docs/deployment.md names"
SIGN_IN: Final = (
    "name a user of etcd and the right password (--etcd-user, --etcd-password-file), or give its certificate"
    " (--etcd-cert)"
)

_OUTCOME_SECONDS: Final = 600
_OUTCOME_ROLL_SECONDS: Final = 200.0  # an outcome lives at least the difference

logger = logging.getLogger(__name__)


class Presence(NamedTuple):
    """A session as it stands: its lease, and the create-revision of its key."""

    lease: int
    created: int


class Node:
    """What the spaces of one process share: etcd, the keys, the session, the store, the clock.

    `program` is this program's version; `clock` is monotonic, in seconds.
    """

    def __init__(
        self,
        etcd: Etcd,
        keys: Keys,
        store: Store,
        replica: Callable[[str], Replica],
        *,
        ttl: int,
        role: Role,
        program: str,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.etcd = etcd
        self.keys = keys
        self.store = store
        self.replica = replica
        self.role: Role = role
        self.clock = clock
        self.random = random
        identity = random(16).hex()
        value = NodeValue(socket.gethostname(), os.getpid(), program, format_time(datetime.now(UTC)), role, ttl)
        self.session = Session(etcd, identity, keys.node(identity), encode_node(value), ttl=ttl, clock=clock)
        self.lock = threading.RLock()  # around the session, the journal, the outcomes' lease
        self.era = 0  # grows when etcd's revisions go back: it was wiped, or restored from an older time
        self._revision = 0
        self._revision_lock = threading.Lock()
        self._journal = ""
        self._outcome_lease = 0
        self._outcome_until = 0.0

    @classmethod
    def connect(cls, settings: Settings, store: Store, replica: Callable[[str], Replica]) -> Node:
        """Return this process's node as it is configured; nothing is connected yet."""
        return cls(
            settings.client(),
            Keys(settings.prefix),
            store,
            replica,
            ttl=settings.ttl,
            role=settings.role,
            program=version("coordjournal"),
        )

    @property
    def id(self) -> str:
        """The session's id."""
        return self.session.id

    def txn(
        self,
        guards: Sequence[Compare],
        then: Sequence[Operation],
        otherwise: Sequence[Operation] = (),
        timeout: float = CALL_SECONDS,
    ) -> Result:
        """Send a transaction, once. Raises `Unanswered` and `Refused`."""
        before = self._revision
        done = self.etcd.txn(guards, then, otherwise, timeout=timeout)
        self._note(before, done.revision)
        return done

    def get(self, *wanted: Get, timeout: float = CALL_SECONDS) -> list[Found]:
        """Read several things at one moment. Raises `Unanswered` and `Refused`."""
        if len(wanted) == 1:
            before = self._revision
            revision, found = self.etcd.get(wanted[0], timeout=timeout)
            self._note(before, revision)
            return [found]
        done = self.txn((), wanted, timeout=timeout)
        return [found for found in done.found if found is not None]

    def _note(self, before: int, revision: int) -> None:
        """Note the revision of an answer to a request that was sent when `before` was known.

        Requests are linearizable: an answer from before its own request is of another store, or of this
        one restored.
        """
        with self._revision_lock:
            if revision >= before:
                self._revision = max(self._revision, revision)
            elif self._revision >= before:  # and nobody has noticed yet
                logger.error("etcd went back from revision %d to %d: wiped or restored", before, revision)
                self._revision = revision
                self.era += 1
                self._outcome_lease = 0

    def ensure_session(self) -> None:
        """Open the session if there is none. Raises `Unavailable`."""
        with self.lock:
            if not self.session.created:
                try:
                    self.session.open(timeout=CALL_SECONDS)
                except EtcdError as error:
                    raise told(error, "etcd gives this process no session") from error
                logger.info("session %s is open", self.session.id)

    def presence(self) -> Presence:
        """Return what this process's keys are put with, and guarded by; opens the session if there is none.

        Taken together: while another thread opens it anew there is neither, and a guard that compares with no
        create-revision passes where the session is gone. Raises `Unavailable`.
        """
        with self.lock:
            self.ensure_session()
            return Presence(self.session.lease, self.session.created)

    def lose_session(self) -> None:
        """Have the session opened anew when it is needed next."""
        with self.lock:
            self.session.created = 0

    def renew(self) -> bool:
        """Renew the session; false if it is lost. Raises `Unanswered` and `Refused`."""
        with self.lock:
            return self.session.renew(timeout=min(CALL_SECONDS, max(1.0, self.session.ttl / 3)))

    def doubt_session(self) -> None:
        """Look whether the session's key still stands, after a guard on it may have failed. Raises `EtcdError`.

        If not, `ensure_session` opens it anew, though its lease may live.
        """
        with self.lock:
            found = one(self.get(Get(self.keys.node(self.id)))[0])
            if found is None or found.create_revision != self.session.created:
                self.lose_session()

    def outcome_lease(self) -> int:
        """Return the lease that outcomes are put with. Raises `Unanswered` and `Refused`."""
        with self.lock:
            if not self._outcome_lease or self.clock() > self._outcome_until:
                self._outcome_lease, _ = self.etcd.grant(_OUTCOME_SECONDS, timeout=CALL_SECONDS)
                self._outcome_until = self.clock() + _OUTCOME_ROLL_SECONDS
            return self._outcome_lease

    def forget_outcome_lease(self) -> None:
        """Take another lease next time: etcd does not know this one."""
        with self.lock:
            self._outcome_lease = 0

    def identify(self, *, again: bool = False) -> None:
        """See to it that the repository and etcd are one journal's; make what is not there yet.

        Raises `WrongAuthority`, `ForeignRepository`, `HeadMissing`, `Unavailable`.
        """
        with self.lock:
            if self._journal and not again:
                return
            try:
                self._journal = self._identified()
            except EtcdError as error:
                raise told(error, "etcd does not tell whose journal it serves") from error

    def _identified(self) -> str:
        place = self.keys.prefix.decode()
        known = one(self.get(Get(self.keys.journal))[0])
        journal = self.store.claim(ETCD, known.value.decode("ascii", "replace") if known else "", place)
        if known:
            if known.value != journal.encode():
                raise foreign(known.value.decode("ascii", "backslashreplace"), journal, place)
            return journal
        spaces = self.store.spaces()
        if spaces and one(self.get(Get(self.keys.journal))[0]) is None:  # else it was another process's first append
            raise HeadMissing(
                f"etcd knows nothing of journal {journal} under {place}, though the repository has"
                f" {len(spaces)} space(s): etcd was wiped, or it is another one",
                place,
                "name the right etcd; or, if its data is lost, run `coordjournal recover`",
            )
        guard = Compare(self.keys.journal, "version", 0)
        try:
            done = self.txn([guard], [Put(self.keys.journal, journal.encode())], [Get(self.keys.journal)])
        except Refused as refusal:
            if refusal.reason != "permission denied":
                raise
            raise OperatorNeeded(
                f"etcd knows no journal under {place} yet, and this user may not make one: {refusal}",
                place,
                "let a user with the role operator run `coordjournal init` first; or name the right prefix",
            ) from refusal
        if not done.succeeded and (found := one(done.found[0])) and found.value != journal.encode():
            raise foreign(found.value.decode("ascii", "replace"), journal, place)
        return journal

    def published(self, space: str, timeout: float) -> tuple[Head, KeyValue | None]:
        """Return the published head of a space, linearizably. Raises `Unavailable`, `OperatorNeeded`."""
        try:
            found = one(self.get(Get(self.keys.head(space)), timeout=timeout)[0])
        except EtcdError as error:
            raise told(error, f"etcd does not tell the head of space {space}") from error
        return (self.read_head(space, found), found) if found else (Head(), None)

    def read_head(self, space: str, found: KeyValue) -> Head:
        """Return the head that a key holds. Raises `OperatorNeeded`, `WrongAuthority` if the journal left etcd."""
        value = decode_head(found.value, found.key.decode("ascii", "replace"))
        if value.left:
            raise WrongAuthority(
                f"the journal of space {space} left etcd",
                found.key.decode("ascii", "replace"),
                "open the repository without etcd, or run `coordjournal adopt` to finish or undo it",
            )
        return value.head


def one(found: Found | None) -> KeyValue | None:
    """Return the one key that was found, None if it was not."""
    return found.kvs[0] if found is not None and found.kvs else None


def foreign(theirs: str, ours: str, place: str) -> ForeignRepository:
    """Return the error that etcd serves journal `theirs` and the repository is `ours`."""
    return ForeignRepository(
        f"etcd serves journal {theirs} under {place}, the repository is journal {ours}",
        place,
        "name the right repository, etcd or prefix",
    )


def told(error: EtcdError, what: str) -> Unavailable | OperatorNeeded:
    """Return what a caller gets where `what` could not be done for an error of etcd, which it certainly was not."""
    if isinstance(error, Refused) and error.reason == "permission denied":
        return OperatorNeeded(f"{what}: {error}", "", GRANT)
    if isinstance(error, Refused) and error.reason == "not authenticated":
        return OperatorNeeded(f"{what}: {error}", "", SIGN_IN)
    return Unavailable(f"{what}: {error}")
