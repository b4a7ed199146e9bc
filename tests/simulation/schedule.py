"""A schedule: every decision that chance makes in a simulation, recorded; and how to shorten one.

Whoever simulates asks a `Schedule` each time something could go one way or another. 0 is always the
harmless answer (nobody else's turn, nothing goes wrong), so that a schedule with fewer and smaller numbers
is a simpler one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from random import Random

Step = tuple[str, str]
"""Which node, and what it was about to do; the world itself has no name."""


class Schedule:
    """Decisions from a seed, or from a list, after whose end everything is 0.

    `decisions` are those that were made; a schedule made of them goes the same way. `trace` is what
    happened.
    """

    def __init__(self, source: int | Sequence[int]) -> None:
        self.decisions: list[int] = []
        self.trace: list[Step] = []
        self._random = Random(source) if isinstance(source, int) else None
        self._given = [] if isinstance(source, int) else list(source)

    def pick(self, count: int) -> int:
        """Return one of 0 … `count - 1`, each as likely."""
        decision = self._next() % count if self._random is None else int(self._random.random() * count)
        self.decisions.append(decision)
        return decision

    def weighted(self, weights: Sequence[float]) -> int:
        """Return a position in `weights`, as likely as it weighs."""
        if self._random is not None:
            decision = 0
            at = self._random.random() * sum(weights)
            for decision, bound in enumerate(accumulate(weights)):  # noqa: B007  # the last one found is used
                if at < bound:
                    break
        else:
            decision = self._next() % len(weights)
        self.decisions.append(decision)
        return decision

    def chance(self, probability: float) -> bool:
        """Return true as often as `probability` says."""
        return self.weighted((1 - probability, probability)) == 1

    def note(self, text: str) -> None:
        """Write something into the trace that no node did."""
        self.trace.append(("", text))

    def _next(self) -> int:
        made = len(self.decisions)
        return self._given[made] if made < len(self._given) else 0


class ScheduleFailed(AssertionError):
    """A simulation failed; the message says how to see it again, and the shortest way to it that was found."""

    def __init__(self, seed: int, decisions: list[int], trace: list[Step], failure: BaseException) -> None:
        steps = "\n".join(f"  {node or '*':10} {label}" for node, label in trace)
        super().__init__(
            f"seed {seed} fails: {type(failure).__name__}: {failure}\n"
            f"shrunk to Schedule({decisions}), whose steps are\n{steps}"
        )
        self.seed = seed
        self.decisions = decisions


def explore(simulate: Callable[[Schedule], None], seeds: Iterable[int], *, tries: int = 300) -> None:
    """Simulate with each seed; raises `ScheduleFailed` for the first one that fails, with the failure as cause.

    It is run `tries` times more, at the most, to find a shorter schedule that fails with the same type
    of exception.
    """
    for seed in seeds:
        schedule = Schedule(seed)
        failure = _outcome(simulate, schedule)
        if failure is not None:
            raise _shortest(simulate, seed, schedule.decisions, failure, tries) from failure


def _shortest(
    simulate: Callable[[Schedule], None], seed: int, decisions: list[int], failure: Exception, tries: int
) -> ScheduleFailed:
    kind = type(failure)
    short = shrink(decisions, lambda shorter: type(_outcome(simulate, Schedule(shorter))) is kind, tries=tries)
    schedule = Schedule(short)
    again = _outcome(simulate, schedule)
    if type(again) is not kind:
        raise AssertionError(f"seed {seed} fails, its decisions do not: it is not deterministic") from failure
    return ScheduleFailed(seed, short, schedule.trace, again)


def _outcome(simulate: Callable[[Schedule], None], schedule: Schedule) -> Exception | None:
    try:
        simulate(schedule)
    except Exception as error:  # noqa: BLE001  # whatever it is, it is the simulation's result
        return error
    return None


def shrink(decisions: Sequence[int], fails: Callable[[list[int]], bool], *, tries: int = 1_000) -> list[int]:
    """Return a simpler list of decisions with which it still `fails`; asks that `tries` times at the most.

    Delta debugging (Zeller and Hildebrandt, 2002) on the list: leave out pieces of it, from its end and
    of half the size each time, then zero such pieces, then lower single numbers; again as long as that helps.
    """
    return _Shrinker(decisions, fails, tries).run()


class _Shrinker:
    def __init__(self, decisions: Sequence[int], fails: Callable[[list[int]], bool], tries: int) -> None:
        self._best = _without_end(decisions)
        self._fails = fails
        self._tries = tries
        self._seen = {tuple(self._best)}

    def run(self) -> list[int]:
        before: list[int] | None = None
        while before != self._best and self._tries > 0:
            before = self._best
            self._pieces(lambda best, start, end: best[:start] + best[end:])
            self._pieces(lambda best, start, end: best[:start] + [0] * (end - start) + best[end:])
            self._lower()
        return self._best

    def _better(self, candidate: list[int]) -> bool:
        candidate = _without_end(candidate)
        if self._tries <= 0 or tuple(candidate) in self._seen:
            return False
        self._seen.add(tuple(candidate))
        self._tries -= 1
        if not self._fails(candidate):
            return False
        self._best = candidate
        return True

    def _pieces(self, change: Callable[[list[int], int, int], list[int]]) -> None:
        size = max(1, len(self._best) // 2)
        while size and self._tries > 0:
            end = len(self._best)
            while end > 0:  # from the end: what comes later depends on what came before
                self._better(change(self._best, max(0, end - size), end))
                end = min(end - size, len(self._best))
            size //= 2

    def _lower(self) -> None:
        for at in range(len(self._best) - 1, -1, -1):
            if at >= len(self._best):
                continue
            for value in (1, self._best[at] // 2, self._best[at] - 1):
                if 0 < value < self._best[at] and self._better([*self._best[:at], value, *self._best[at + 1 :]]):
                    break


def _without_end(decisions: Sequence[int]) -> list[int]:
    """Leave out the zeros at the end, which go without saying."""
    end = len(decisions)
    while end and decisions[end - 1] == 0:
        end -= 1
    return list(decisions[:end])
