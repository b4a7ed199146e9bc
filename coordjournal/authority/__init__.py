"""Who may append: the port. `embedded` needs no server."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Protocol

from coordjournal.entry import Append, Head, Receipt


class Authority(Protocol):
    """Decides appends, one at a time a space, and knows the newest head. Safe in many threads."""

    def head(self, space: str) -> Head:
        """Return the head after everything that anyone was told is appended."""

    def submit(self, space: str, append: Append) -> Future[Receipt]:
        """Take a well-formed append on and return at once; those of one thread are decided in its order.

        The future can be cancelled until the append, or another attempt under its key, is being judged:
        it is then certainly not applied. Raises, at the call, `Unavailable` if too many are waiting and
        `Closed` after `close`.
        """

    def wait(self, space: str, seen: Head, seconds: float) -> None:
        """Return when the head may be another than `seen`, at the latest after `seconds`."""

    def close(self, seconds: float) -> None:
        """Decide what waits, for at most `seconds`; what still waits then gets `Closed`."""
