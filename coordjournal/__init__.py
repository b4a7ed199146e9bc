"""coordjournal: an append-only decision log for federated wikis, in git, folded into what is true."""

import sys

if sys.platform not in ("linux", "darwin"):
    raise ImportError(f"coordjournal runs on Linux and macOS, not on {sys.platform}: it needs flock(2)")

from coordjournal.entry import Entry, Head, Receipt
from coordjournal.errors import (
    AliasCycle,
    Closed,
    Conflict,
    CoordJournalError,
    Corrupt,
    ForeignRepository,
    ForkedProcess,
    HeadBehind,
    HeadMissing,
    InvalidEvent,
    InvalidName,
    KeyReused,
    MissingObjects,
    NotForkable,
    NotFound,
    NothingToRetract,
    OperatorNeeded,
    Rejected,
    SpaceFull,
    TooLarge,
    Unavailable,
    Undecided,
    UnknownEvent,
    UnknownFormat,
    WrongAuthority,
)
from coordjournal.etcd.endpoints import Tls
from coordjournal.events import (
    AliasRemoved,
    AliasSet,
    Event,
    OverlayRemoved,
    OverlaySet,
    PageForked,
    PagesBound,
    PagesMerged,
    PagesUnbound,
)
from coordjournal.log import DecisionLog
from coordjournal.replay import Replayed, replay
from coordjournal.space import InformationSpace
from coordjournal.state import CoordinationState, Group, Overlay, Resolution, fold

__version__ = "0.1.0"

__all__ = [
    "AliasCycle",
    "AliasRemoved",
    "AliasSet",
    "Closed",
    "Conflict",
    "CoordJournalError",
    "CoordinationState",
    "Corrupt",
    "DecisionLog",
    "Entry",
    "Event",
    "ForeignRepository",
    "ForkedProcess",
    "Group",
    "Head",
    "HeadBehind",
    "HeadMissing",
    "InformationSpace",
    "InvalidEvent",
    "InvalidName",
    "KeyReused",
    "MissingObjects",
    "NotForkable",
    "NotFound",
    "NothingToRetract",
    "OperatorNeeded",
    "Overlay",
    "OverlayRemoved",
    "OverlaySet",
    "PageForked",
    "PagesBound",
    "PagesMerged",
    "PagesUnbound",
    "Receipt",
    "Rejected",
    "Replayed",
    "Resolution",
    "SpaceFull",
    "Tls",
    "TooLarge",
    "Unavailable",
    "Undecided",
    "UnknownEvent",
    "UnknownFormat",
    "WrongAuthority",
    "fold",
    "replay",
]
