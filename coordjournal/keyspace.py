"""The journal's keys in etcd, as an operator's commands read and change them, whatever state they are in."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

from coordjournal.authority.node import CALL_SECONDS, SIGN_IN, foreign, one
from coordjournal.authority.settings import Settings
from coordjournal.authority.wire import HeadValue, Keys, encode_head, range_of
from coordjournal.entry import Head
from coordjournal.errors import OperatorNeeded, Unavailable
from coordjournal.etcd import Compare, Delete, Etcd, EtcdError, Found, Get, KeyValue, Operation, Put, Refused

_MAX_KEYS: Final = 100_000


class Keyspace:
    """Etcd, and the journal's keys in it. Every method raises `Unavailable` and `OperatorNeeded`."""

    def __init__(self, etcd: Etcd, keys: Keys, random: Callable[[int], bytes] = os.urandom) -> None:
        self.keys = keys
        self._etcd = etcd
        self._random = random

    def mark(self) -> str:
        """Return a word for a head that nobody has seen before."""
        return self._random(8).hex()

    @classmethod
    def connected(cls, settings: Settings, stack: ExitStack) -> Keyspace:
        """Return the keys that `settings` name, until the end of `stack`. Nothing is connected yet."""
        settings.check()
        client = settings.client()
        stack.callback(client.close)
        return cls(client, Keys(settings.prefix))

    @property
    def place(self) -> str:
        """The prefix of the keys."""
        return self.keys.prefix.decode()

    def get(self, *wanted: Get) -> list[Found]:
        """Read several things at one moment."""
        return [found for found in self.txn((), wanted)[1] if found is not None]

    def txn(
        self, guards: list[Compare] | tuple[()], then: list[Operation] | tuple[Get, ...]
    ) -> tuple[bool, tuple[Found | None, ...]]:
        """Send a transaction; return whether its guards held, and what was found."""
        try:
            done = self._etcd.txn(guards, then, timeout=CALL_SECONDS)
        except Refused as refusal:
            if refusal.reason in ("permission denied", "not authenticated"):
                run = SIGN_IN if refusal.reason == "not authenticated" else "name a user who may (--etcd-user)"
                raise OperatorNeeded(f"etcd does not let this user do it: {refusal}", self.place, run) from refusal
            raise Unavailable(f"etcd does not do it: {refusal}; run the command again, it begins anew") from refusal
        except EtcdError as error:
            raise Unavailable(f"etcd does not do it: {error}; run the command again, it begins anew") from error
        return done.succeeded, done.found

    def journal(self) -> KeyValue | None:
        """Return the key with the id of the journal that etcd knows, None if it knows none."""
        return one(self.get(Get(self.keys.journal))[0])

    def check(self, known: KeyValue | None, journal: str) -> None:
        """Raise `ForeignRepository` if `known` is another journal than this one."""
        if known is not None and known.value != journal.encode():
            raise foreign(known.value.decode("ascii", "replace"), journal, self.place)

    def heads(self) -> dict[str, KeyValue]:
        """Return the published heads by space."""
        (found,) = self.get(Get(*range_of(self.keys.heads), limit=_MAX_KEYS))
        named = ((self.keys.space_of(self.keys.heads, kv.key), kv) for kv in found.kvs)
        return {space: kv for space, kv in named if space is not None}

    def head(self, space: str) -> KeyValue | None:
        """Return the published head of one space."""
        return one(self.get(Get(self.keys.head(space)))[0])

    def counts(self) -> tuple[int, int]:
        """Return how many holders and intents there are."""
        holders, intents = self.get(
            *(Get(*range_of(part), only="count") for part in (self.keys.holders, self.keys.intents))
        )
        return holders.count, intents.count

    def clear(self, known: KeyValue | None, *, journal: bool) -> None:
        """Delete all holders, intents and outcomes, so that nobody serves; the journal's key too if so said.

        The sessions' keys go along: what they sent before cannot land any more. `known` is the journal's key
        as it was read. Raises `Unavailable` if it is another by now.
        """
        keys = self.keys
        guard = Compare(keys.journal, "mod_revision", 0 if known is None else known.mod_revision)
        parts = (keys.holders, keys.intents, keys.nodes, keys.outcomes)
        then: list[Operation] = [Delete(*range_of(part)) for part in parts]
        if not self.txn([guard], [*then, Delete(keys.journal)] if journal else then)[0]:
            raise Unavailable(f"somebody else changed whose journal is under {self.place}; run the command again")

    def publish(self, space: str, head: Head, identity: str, before: KeyValue | None) -> bool:
        """Put a head where `before` is, under a mark that nobody knows; false if something else is there.

        Clears the space of its holder and its intents: no publish that was under way can follow.
        """
        value = HeadValue(head.seq, head.commit, head.term, identity, mark=self.mark())
        return self.replace_head(space, encode_head(value), before)

    def replace_head(self, space: str, raw: bytes | None, before: KeyValue | None) -> bool:
        """Put `raw`, or nothing, where `before` is, and clear the space of its holder and its intents.

        Among these are the tombstones that keep withdrawn puts from landing; so the sessions' keys, which every
        put is guarded by, go with them, and each living process opens its session anew.
        """
        keys = self.keys
        key = keys.head(space)
        guard = Compare(key, "mod_revision", before.mod_revision if before is not None else 0)
        change: Operation = Put(key, raw) if raw is not None else Delete(key)
        cleared = [Delete(keys.holder(space)), Delete(*range_of(keys.intents_of(space))), Delete(*range_of(keys.nodes))]
        return self.txn([guard], [change, *cleared])[0]

    def tell_journal(self, journal: str) -> None:
        """Put the journal's id, where there is none. Raises `ForeignRepository` if there is another one."""
        key = self.keys.journal
        if not self.txn([Compare(key, "version", 0)], [Put(key, journal.encode())])[0]:
            self.check(self.journal(), journal)
