"""Where the log lies: the port. `memory` and `git` stand behind it, and both pass one contract test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Final, NamedTuple, Protocol

from coordjournal.entry import Append, Appended, Head

EMBEDDED: Final = "embedded"
"""The authority without a server, as a repository's config names it: its lock is the host's own."""


ETCD: Final = "etcd"
"""The authority that etcd elects, as a repository's config names it."""


class HeadMoved(Exception):
    """The branch is not where it was read: another append, or plain git, moved it. Read again."""


class Diverged(Exception):
    """What was read before is not part of the log that the head ends: begin from its start."""


class Ready(NamedTuple):
    """An append that was judged and accepted: the seq of its first entry, its canonical bytes."""

    append: Append
    first: int
    data: bytes


class Store(Protocol):
    """The log of many spaces. A space is a chain of appends that ends in its branch's head.

    Every method but `close` raises `NotFound` while there is no repository (`claim` makes it) and
    `UnknownFormat` if it is not of the one format; reading raises `Corrupt` and `UnknownEvent` with
    the place. Safe in many threads.
    """

    def claim(self, authority: str, journal: str = "", place: str = "") -> str:
        """Make sure that appends may go through `authority`, and return the journal's id.

        Makes the repository if there is none. `journal` is the id that the authority knows, empty if it
        knows none yet; `place` is where it keeps what it knows. Raises `WrongAuthority` if appends go
        through another one, `ForeignRepository` if the repository is another journal's, or none's own,
        as a mirror clone is not.
        """

    def exclusive(self, space: str, *, wait: bool = True) -> AbstractContextManager[bool]:
        """Let one writer of the space in at a time, on this host; the next one waits, or gets false."""

    def spaces(self) -> list[str]:
        """Return the names of all spaces, sorted."""

    def head(self, space: str) -> Head:
        """Return the head that the branch shows; `Head()` if there is no branch."""

    def read(self, space: str, head: Head, after: int = 0, base: str | None = None) -> Iterator[Appended]:
        """Return the appends up to `head` whose last seq is greater than `after`, in order, streamed.

        Raises `Diverged`, at the call, if `base` is given and is not the commit of entry `after`.
        """

    @property
    def patience(self) -> float:
        """For how many seconds another host's appends may be hidden from this one."""

    def has(self, space: str, head: Head) -> bool:
        """Whether the append that made `head` is in sight."""

    def identity(self, space: str, head: Head) -> str:
        """Return the random id that the space was given by its first append."""

    def load(self, space: str, commit: str) -> Appended:
        """Return the one append that `commit` is."""

    def write(self, space: str, head: Head, group: Sequence[Ready], term: int) -> list[Appended]:
        """Make the group durable on top of `head`, one commit an append; nobody sees it yet.

        Raises `Unavailable` if the disk does not take it.
        """

    def advance(self, space: str, old: Head, new: Head) -> None:
        """Move the branch from `old` to `new`, durably.

        Raises `HeadMoved` if it is not at `old`, `Unavailable` if it certainly stayed there,
        `Undecided` if that is not known.
        """

    def confirm(self, space: str) -> None:
        """Make the branch durable where it is: whoever moved it may have died before it was.

        Raises `Undecided` if the disk does not confirm it.
        """

    def close(self) -> None:
        """Let go of all files; the store may be used again."""
