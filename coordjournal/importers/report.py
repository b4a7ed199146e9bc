"""What an import does and tells: the appends it asks for, what it could not read, what became of all."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from coordjournal.entry import Append
from coordjournal.errors import CoordJournalError


class Imported(msgspec.Struct, frozen=True):
    """What an import did: appends that were new, appends that were there already, and rejects told."""

    appended: int
    duplicates: int
    rejected: int


class Reject(msgspec.Struct, frozen=True):
    """What was skipped, and why.

    `place` is where it stands in the input: `line 12`, `rd_from 345`. `key` is that of its append, empty
    where it has none or it could not be read. `code` is the error's, as in `CoordJournalError.code`.
    """

    place: str
    key: str
    reason: str
    code: str


class Asked(Append, frozen=True):
    """An append that an import asks for, and the places in the input that it comes from."""

    places: tuple[str, ...] = ()

    def refused(self, refusal: CoordJournalError) -> Iterator[Reject]:
        """Yield what is to be told, one reject a place, if the append is refused."""
        reason = str(refusal)
        if len(self.places) > 1:
            reason += f" (one append, from {self.places[0]} to {self.places[-1]}, which is skipped whole)"
        for place in self.places:
            yield Reject(place, self.key, reason, refusal.code)


class There(msgspec.Struct, frozen=True):
    """An append of the input that the log was found to have already, under `key`."""

    key: str


Item = Asked | Reject
"""What an importer reads from its input, in the input's order."""
