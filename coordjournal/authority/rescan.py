"""Looking for what the watch did not tell: who holds what, where intents wait, and keys that are no intent's."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from coordjournal.authority.node import Node
from coordjournal.authority.wire import range_of
from coordjournal.etcd import Compare, Delete, Found, Get, KeyValue, Refused

_PAGE: Final = 10_000  # keys
_MAX_PAGES: Final = 16  # in one round; the next one goes on there
_ROUND_SECONDS: Final = 0.5  # so that the session is kept alive meanwhile
_SWEPT_TOGETHER: Final = 60  # each takes a guard and one of etcd's 128 operations
_TRIES: Final = 4  # of a sweep, while others sweep too

logger = logging.getLogger(__name__)


class Rescan:
    """Lists the intents round by round. A round that is cut short is gone on with by the next one.

    One thread at a time.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._from = b""  # where the next round begins, if not at the first key
        self._until = 0.0
        self._may_sweep = True

    @property
    def whole(self) -> bool:
        """Whether the last round came to the end."""
        return not self._from

    def stop_at(self, space: str) -> None:
        """Have the next round begin at a space."""
        self._from = self._node.keys.intents_of(space)

    def held(self) -> dict[str, bytes]:
        """Return what stands in the holder's key of each space. Raises `Unanswered`, `Refused`."""
        keys = self._node.keys
        first, end = range_of(keys.holders)
        held: dict[str, bytes] = {}
        while True:
            found = self._page(first, end, whole=True)
            for kv in found.kvs:
                if (space := keys.space_of(keys.holders, kv.key)) is not None:
                    held[space] = kv.value
            if len(found.kvs) == found.count:
                return held
            first = found.kvs[-1].key + b"\0"

    def waiting(self, held: Mapping[str, bytes], *, sweep: bool) -> Iterator[list[str]]:
        """Yield the spaces in which intents wait, page by page, for one round.

        With `sweep`, keys that are no intent's are deleted where no holder does it, who would with his next
        publish. Raises `Unanswered` and `Refused`; not for a deletion to which this process has no right.
        """
        keys = self._node.keys
        start, end = range_of(keys.intents)
        self._until = self._node.clock() + _ROUND_SECONDS
        for _ in range(_MAX_PAGES):
            found = self._page(self._from or start, end)
            spaces, junk = dict[str, None](), list[KeyValue]()
            for kv in found.kvs:
                space = keys.space_of(keys.intents, kv.key)
                if keys.parse_intent(kv.key) is None and (space is None or space not in held):
                    junk.append(kv)
                elif space is not None:
                    spaces[space] = None
            rest = junk[self._sweep(junk) :] if sweep and self._may_sweep else []
            self._from = found.kvs[-1].key + b"\0" if len(found.kvs) < found.count else b""
            yield list(spaces)
            if rest:
                self._from = rest[0].key
            if self.whole or self._node.clock() >= self._until:
                return

    def _page(self, first: bytes, end: bytes, *, whole: bool = False) -> Found:
        return self._node.get(Get(first, end, limit=_PAGE, only="" if whole else "keys"))[0]

    def _sweep(self, junk: Sequence[KeyValue]) -> int:
        """Delete keys, for as long as the round may last; return how many were looked after."""
        done = 0
        try:
            while done < len(junk) and (not done or self._node.clock() < self._until):
                self._delete(junk[done : done + _SWEPT_TOGETHER])
                done = min(len(junk), done + _SWEPT_TOGETHER)
        except Refused as refusal:
            if refusal.reason != "permission denied":
                raise
            self._may_sweep = False
            logger.warning("keys that are no intent's cannot be swept: %s", refusal)
            return len(junk)
        if done:
            logger.warning("%d keys that are no intent's are swept, such as %r", done, junk[0].key)
        return done

    def _delete(self, junk: Iterable[KeyValue]) -> None:
        """Delete keys that still are as they were read; what somebody changed meanwhile is left to the next round."""
        left = list(junk)
        for _ in range(_TRIES):
            guards = [Compare(kv.key, "mod_revision", kv.mod_revision) for kv in left]
            look = [Get(kv.key, only="keys") for kv in left]
            done = self._node.txn(guards, [Delete(kv.key) for kv in left], look)
            if done.succeeded:
                return
            there = {kv.key: kv.mod_revision for found in done.found if found is not None for kv in found.kvs}
            left = [kv for kv in left if there.get(kv.key) == kv.mod_revision]
            if not left:
                return
