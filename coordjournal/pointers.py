"""Names that each lead to one other name, without circles: aliases to targets, forks to sources."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from coordjournal import weight
from coordjournal.persistent import MapDraft, PersistentMap

_SHORT_WAY: Final = 64  # names; walking them costs less than knowing what leads where


class Pointers:
    """One version of such a map: name → (where it leads, the seq that made it so)."""

    __slots__ = ("_texts", "counted", "facts")

    def __init__(
        self,
        facts: PersistentMap[str, tuple[str, int]],
        inbound: PersistentMap[str, int] | None = None,
        texts: int | None = None,
    ) -> None:
        self.facts = facts
        self.counted = inbound  # how many names lead directly to a name, None if that was not needed yet
        self._texts = texts

    @property
    def texts(self) -> int:
        """About how many bytes the names take, and what they lead to; `texts` of what was loaded is counted here."""
        if self._texts is None:
            facts = self.facts.as_dict()
            self._texts = weight.of_texts(facts.keys()) + weight.of_texts([fact[0] for fact in facts.values()])
        return self._texts

    @property
    def held(self) -> int:
        """About how many bytes all of it takes."""
        counts = 0 if self.counted is None else weight.COUNT * self.counted.slots
        return weight.scaled(weight.POINTER * len(self.facts) + self.texts, self.facts) + counts

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

    __slots__ = ("_facts", "_inbound", "_texts")

    def __init__(self, base: Pointers) -> None:
        self._facts = MapDraft(base.facts)
        self._inbound = MapDraft(base.counted) if base.counted is not None else None
        self._texts = base.texts

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
        self._texts += weight.of_text(target)
        self._texts += weight.of_text(name) if before is None else -weight.of_text(before[0])
        if self._inbound is not None:
            if before is not None:
                self._count(before[0], -1)
            self._count(target, +1)

    def remove(self, name: str) -> None:
        """Lead `name` nowhere from now on; it must have led somewhere."""
        before = self.get(name)
        assert before is not None, name
        del self._facts[name]
        self._texts -= weight.of_text(name) + weight.of_text(before)
        self._count(before, -1)

    def freeze(self) -> Pointers:
        """Return the next version; the draft must not be used afterwards."""
        inbound = None if self._inbound is None else self._inbound.freeze()
        return Pointers(self._facts.freeze(), inbound, max(0, self._texts))

    def _counts(self) -> MapDraft[str, int]:
        """Return how many names lead directly to a name: counted when first asked for, kept from then on."""
        if self._inbound is None:
            facts = self._facts.freeze()
            self._facts = MapDraft(facts)
            self._inbound = MapDraft(Pointers(facts, texts=0).inbound())
        return self._inbound

    def _count(self, target: str, change: int) -> None:
        if self._inbound is None:
            return
        count = (self._inbound.get(target) or 0) + change
        if count:
            self._inbound[target] = count
        else:
            del self._inbound[target]
