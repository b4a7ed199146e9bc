"""Who may append: the port. `embedded` needs no server."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Literal, Protocol, runtime_checkable

from coordjournal.entry import Append, Head, Receipt

Consistency = Literal["linearizable", "session", "local"]
"""What a read holds at least: everything that anyone was told is appended before the read began; what this
log appended and read itself; what this host happens to have, which needs no server."""


class Authority(Protocol):
    """Decides appends, one at a time a space, and knows the newest head. Safe in many threads."""

    grace: float
    """So many seconds before its deadline an append is to be cancelled, for it to be answered in time."""

    def head(
        self, space: str, seconds: float = 10.0, consistency: Consistency = "linearizable", after: int = 0
    ) -> Head:
        """Return a head that holds what `consistency` says, and entry `after`; takes at most `seconds`.

        Raises `Unavailable` if that cannot be known, and `OperatorNeeded`.
        """

    def age(self, space: str) -> float | None:
        """Return how many seconds ago a local head was known to be the newest, None if it never was."""

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


@runtime_checkable
class Serving(Protocol):
    """An authority that one process can hold for others."""

    def serve(self, spaces: Sequence[str]) -> None:
        """Hold these spaces from now on whenever nobody else does; with none, look after all that need it."""
