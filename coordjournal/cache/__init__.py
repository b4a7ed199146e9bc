"""Derived and disposable: folded states, decoded entries and key indexes, on the host's own disk.

Deleting or damaging any of it costs time only. Every file says which entries it covers and which
commits they begin after and end at, so that it is believed only where the log says the same; every
byte is under a checksum. Files are written after the publish of what they hold, never changed, and
replaced by rename, so any number of processes share a directory.
"""

from __future__ import annotations

from pathlib import Path

from coordjournal.cache.entries import EntryCache
from coordjournal.cache.keys import KeyIndex
from coordjournal.cache.states import StateCache


class SpaceCache:
    """What is kept of one space, in `directory`; in memory only, and little, where that is None."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self.states = StateCache(directory)
        self.entries = EntryCache(directory)
        self.keys = KeyIndex(directory, self.entries)

    @property
    def held(self) -> int:
        """About how many bytes of memory it takes; for each open file it counts far more, since those are few."""
        return self.entries.held + self.keys.held

    def anew(self) -> SpaceCache:
        """Return another one of the same directory, which holds nothing yet."""
        return SpaceCache(self._directory)
