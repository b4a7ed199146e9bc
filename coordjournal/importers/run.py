"""Carrying an import out, or rehearsing it: the same for every kind of input."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import closing

from coordjournal.entry import Receipt
from coordjournal.errors import Conflict, NotFound, Rejected
from coordjournal.importers.again import again
from coordjournal.importers.known import known_in
from coordjournal.importers.rehearsal import rehearsed
from coordjournal.importers.report import Imported, Item, Reject, There
from coordjournal.log import DecisionLog
from coordjournal.replay import decided
from coordjournal.state import EMPTY, CoordinationState


class Import:
    """One import into `space`, on top of what the space holds when this is made.

    Anew or again, in earnest or as a rehearsal, it goes the same way up to who decides.
    """

    def __init__(self, log: DecisionLog, space: str, *, dry_run: bool) -> None:
        """Look at the log. Raises what `DecisionLog.state` does, but not where there is no repository yet."""
        self._log = log
        self._space = space
        self._dry_run = dry_run
        self._now = _state_of(log, space)
        self._known = known_in(log, space, self._now.seq)

    @property
    def reads_twice(self) -> bool:
        """Whether `carry_out` asks for the items twice: first to see which of them the log has."""
        return bool(self._known)

    def carry_out(
        self,
        items: Callable[[], Iterable[Item]],
        *,
        rejects: Callable[[Reject], None],
        progress: Callable[[int], None],
    ) -> Imported:
        """Append what `items()` gives, in order; tell `rejects` what is skipped, in order too.

        `progress` is told how many appends are decided. Raises what `DecisionLog.append` does, but no
        refusal; what was appended until then stays, and is not appended twice when the import is run again.
        """
        appended = duplicates = refused = rejected = 0
        with closing(self._outcomes(items)) as outcomes:
            for item, outcome in outcomes:
                told: Iterable[Reject] = ()
                if isinstance(item, Reject):
                    told = (item,)
                elif isinstance(item, There):
                    duplicates += 1
                elif isinstance(outcome, Receipt):
                    duplicates += outcome.duplicate
                    appended += not outcome.duplicate
                else:
                    assert outcome is not None
                    refused += 1
                    told = item.refused(outcome)
                for reject in told:
                    rejects(reject)
                    rejected += 1
                progress(appended + duplicates + refused)
        return Imported(appended, duplicates, rejected)

    def _outcomes(
        self, items: Callable[[], Iterable[Item]]
    ) -> Generator[tuple[Item | There, Receipt | Rejected | Conflict | None], None, None]:
        if self._known:
            entries = self._log.events(self._space, upto=self._now.seq)
            asked: Iterable[Item | There] = again(items, entries, self._known, self._now)
        else:
            asked = items()
        if self._dry_run:
            return rehearsed(asked, self._space, self._now, self._known)
        return decided(asked, self._log, self._space)


def _state_of(log: DecisionLog, space: str) -> CoordinationState:
    try:
        return log.state(space)
    except NotFound:  # the first append makes the repository
        return EMPTY
