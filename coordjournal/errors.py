"""Every error that coordjournal raises, in one tree, grouped by what the caller does next.

=====================  =====================================================================
`Rejected`             mend the input: the journal understood it and says no
`Conflict`             read again, then decide again: the head was not the expected one
`NotFound`             there is no such repository, entry or head
`Unavailable`          try again: for certain nothing was appended
`Undecided`            try again **with the same key**: it may have been appended
`OperatorNeeded`       call an operator: what is wrong, where, and what to run
`Closed`               this log was closed
`ForkedProcess`        this log was used before a fork and again in the child
=====================  =====================================================================
"""

from __future__ import annotations

import re
from typing import Any, ClassVar


class CoordJournalError(Exception):
    """The root of the tree. `code` is the name in snake case, as the command line prints it."""

    code: ClassVar[str] = "coord_journal_error"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.code = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


class Rejected(CoordJournalError):
    """The journal refuses this append; the same one will be refused again."""


class InvalidEvent(Rejected):
    """An event, a batch, a time or another argument is not of the form the journal takes."""


class InvalidName(Rejected):
    """A page, alias, overlay, space, actor or key is not a legal name."""


class AliasCycle(Rejected):
    """The alias would lead back to itself."""


class NothingToRetract(Rejected):
    """What is to be removed is not there."""


class NotForkable(Rejected):
    """Both pages are in one group, the fork has a source already, or ancestry would be a circle."""


class KeyReused(Rejected):
    """The key was used for an append with other events or another actor."""


class TooLarge(Rejected):
    """The append is larger than `MAX_APPEND_BYTES`."""


class SpaceFull(Rejected):
    """The space has no seq left for the append."""


class Conflict(CoordJournalError):
    """`expect` named another seq than the head's. `head_seq` is the one that was found."""

    def __init__(self, message: str, head_seq: int = 0) -> None:
        super().__init__(message, head_seq)
        self.head_seq = head_seq

    def __str__(self) -> str:
        return str(self.args[0])


class NotFound(CoordJournalError):
    """There is no such repository, entry or head."""


class Unavailable(CoordJournalError):
    """The append could not be made and, for certain, was not; it may be tried again."""


class Undecided(CoordJournalError):
    """It is not known whether the append was made; the same key may be tried again safely."""


class OperatorNeeded(CoordJournalError):
    """Something that no retry mends: `what` is wrong, `where`, and what to `run`."""

    def __init__(self, what: str, where: str = "", run: str = "") -> None:
        super().__init__(what, where, run)
        self.what, self.where, self.run = what, where, run

    def __str__(self) -> str:
        text = self.what
        if self.where:
            text += f" (in {self.where})"
        if self.run:
            text += f"; {self.run}"
        return text


class Corrupt(OperatorNeeded):
    """The log contradicts itself or its bytes are damaged. `seq` is the place, 0 if unknown."""

    def __init__(self, what: str, where: str = "", run: str = "", seq: int = 0) -> None:
        super().__init__(what, where, run or "run `coordjournal verify` and restore from a clone")
        self.args = (what, where, self.run, seq)
        self.seq = seq


class UnknownEvent(OperatorNeeded):
    """The log holds an event type that this version does not know. `seq` is its place."""

    def __init__(self, what: str, where: str = "", run: str = "", seq: int = 0) -> None:
        super().__init__(what, where, run or "run a newer version of coordjournal on this repository")
        self.args = (what, where, self.run, seq)
        self.seq = seq


class UnknownFormat(OperatorNeeded):
    """The repository is not of the one git format that coordjournal reads and writes."""


class WrongAuthority(OperatorNeeded):
    """The repository's appends go through another authority than the one that was opened."""


class ForeignRepository(OperatorNeeded):
    """The repository is not this journal's own: a mirror clone, or another journal."""


class HeadMissing(OperatorNeeded):
    """The repository has a log, but etcd knows no head of it: etcd was wiped, or is another one."""


class HeadBehind(OperatorNeeded):
    """The repository is ahead of the published head: etcd was restored from an older time."""


class MissingObjects(OperatorNeeded):
    """The objects of the published head are nowhere to be found in the repository."""


class Closed(CoordJournalError):
    """The log was closed; open another one."""


class ForkedProcess(CoordJournalError):
    """The object was used before a fork and again in the child; open a new one in the child."""
