"""Names that each lead to one other name, without circles: aliases to targets, forks to sources."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from coordjournal.persistent import MapDraft, PersistentMap


class Pointers:
    """One version of such a map: name → (where it leads, the seq that made it so)."""

    __slots__ = ("_inbound", "facts")

    def __init__(
        self, facts: PersistentMap[str, tuple[str, int]], inbound: PersistentMap[str, int] | None = None
    ) -> None:
        self.facts = facts
        self._inbound = inbound

    def follow(self, name: str) -> Iterator[str]:
        """Yield `name` and every name on its way, the last one leading nowhere."""
        yield name
        while (fact := self.facts.get(name)) is not None:
            name = fact[0]
            yield name

    def inbound(self) -> PersistentMap[str, int]:
        """Return how many names lead directly to a name; counted when it is first asked for."""
        if self._inbound is None:
            counts = Counter(target for target, _ in self.facts.as_dict().values())
            self._inbound = PersistentMap(dict(counts))
        return self._inbound


class PointersDraft:
    """The changes towards the next version of `Pointers`."""

    __slots__ = ("_base", "_facts", "_inbound")

    def __init__(self, base: Pointers) -> None:
        self._base = base
        self._facts = MapDraft(base.facts)
        self._inbound: MapDraft[str, int] | None = None

    def get(self, name: str) -> str | None:
        """Return where `name` leads, None if nowhere."""
        fact = self._facts.get(name)
        return None if fact is None else fact[0]

    def __contains__(self, name: str) -> bool:
        return name in self._facts

    def would_circle(self, name: str, target: str) -> bool:
        """Whether leading `name` to `target` would close a circle.

        A circle through `name` needs something that leads to it, so a name that nothing leads to is
        known at once to be harmless: chains of any length grow at either end at constant cost.
        """
        if name == target:
            return True
        if not self._counts().get(name):
            return False
        step: str | None = target
        while step is not None:
            if step == name:
                return True
            step = self.get(step)
        return False

    def set(self, name: str, target: str, seq: int) -> None:
        """Lead `name` to `target` from now on; a circle must have been ruled out."""
        if (before := self.get(name)) is not None:
            self._count(before, -1)
        self._facts[name] = (target, seq)
        self._count(target, +1)

    def remove(self, name: str) -> None:
        """Lead `name` nowhere from now on; it must have led somewhere."""
        before = self.get(name)
        assert before is not None, name
        del self._facts[name]
        self._count(before, -1)

    def freeze(self) -> Pointers:
        """Return the next version; the draft must not be used afterwards."""
        if self._inbound is None:
            return self._base
        return Pointers(self._facts.freeze(), self._inbound.freeze())

    def _counts(self) -> MapDraft[str, int]:
        if self._inbound is None:
            self._inbound = MapDraft(self._base.inbound())
        return self._inbound

    def _count(self, target: str, change: int) -> None:
        counts = self._counts()
        count = (counts.get(target) or 0) + change
        if count:
            counts[target] = count
        else:
            del counts[target]
