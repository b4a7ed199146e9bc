"""Names that each lead to one other name, without circles: aliases to targets, forks to sources."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from coordjournal.persistent import MapDraft, PersistentMap

_SHORT_WAY: Final = 64  # names; walking them costs less than knowing what leads where


class Pointers:
    """One version of such a map: name → (where it leads, the seq that made it so)."""

    __slots__ = ("counted", "facts")

    def __init__(
        self, facts: PersistentMap[str, tuple[str, int]], inbound: PersistentMap[str, int] | None = None
    ) -> None:
        self.facts = facts
        self.counted = inbound  # how many names lead directly to a name, None if that was not needed yet

    def follow(self, name: str) -> Iterator[str]:
        """Yield `name` and every name on its way, the last one leading nowhere."""
        yield name
        while (fact := self.facts.get(name)) is not None:
            name = fact[0]
            yield name

    def inbound(self) -> PersistentMap[str, int]:
        """Return how many names lead directly to a name."""
        if self.counted is None:
            counts = Counter(target for target, _ in self.facts.as_dict().values())
            self.counted = PersistentMap(dict(counts))
        return self.counted


class PointersDraft:
    """The changes towards the next version of `Pointers`."""

    __slots__ = ("_facts", "_inbound")

    def __init__(self, base: Pointers) -> None:
        self._facts = MapDraft(base.facts)
        self._inbound = MapDraft(base.counted) if base.counted is not None else None

    def get(self, name: str) -> str | None:
        """Return where `name` leads, None if nowhere."""
        fact = self._facts.get(name)
        return None if fact is None else fact[0]

    def __contains__(self, name: str) -> bool:
        return name in self._facts

    def would_circle(self, name: str, target: str) -> bool:
        """Whether leading `name` to `target` would close a circle.

        The way from `target` is walked. Where it is long, it is first asked whether anything leads to
        `name`: a circle through it needs that. So a chain grows at either end at constant cost.
        """
        step: str | None = target
        for _ in range(_SHORT_WAY):
            if step is None or step == name:
                return step == name
            step = self.get(step)
        if not self._counts().get(name):
            return False
        while step is not None and step != name:
            step = self.get(step)
        return step == name

    def set(self, name: str, target: str, seq: int) -> None:
        """Lead `name` to `target` from now on; a circle must have been ruled out."""
        before = self._facts.put(name, (target, seq))
        if self._inbound is not None:
            if before is not None:
                self._count(before[0], -1)
            self._count(target, +1)

    def remove(self, name: str) -> None:
        """Lead `name` nowhere from now on; it must have led somewhere."""
        before = self.get(name)
        assert before is not None, name
        del self._facts[name]
        self._count(before, -1)

    def freeze(self) -> Pointers:
        """Return the next version; the draft must not be used afterwards."""
        return Pointers(self._facts.freeze(), None if self._inbound is None else self._inbound.freeze())

    def _counts(self) -> MapDraft[str, int]:
        """Return how many names lead directly to a name: counted when first asked for, kept from then on."""
        if self._inbound is None:
            facts = self._facts.freeze()
            self._facts = MapDraft(facts)
            self._inbound = MapDraft(Pointers(facts).inbound())
        return self._inbound

    def _count(self, target: str, change: int) -> None:
        if self._inbound is None:
            return
        count = (self._inbound.get(target) or 0) + change
        if count:
            self._inbound[target] = count
        else:
            del self._inbound[target]
