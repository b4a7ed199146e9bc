"""Kinds of worlds: what can go wrong in each, and how likely it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from tests.simulation import faults


class Kind(NamedTuple):
    """What can happen in a schedule. Each of `events` is a method of `World` and how likely it is, in per cent."""

    name: str
    events: dict[str, float]
    network: Sequence[float] = faults.FAULTY
    ops: int = 12
    disk_fails: float = 0.0
    hidden_seconds: float = 0.0


_LIVELY: Final = {"tell": 12.0, "land": 3.0}

CALM: Final = Kind("calm", {"tell": 20.0}, (100, 0, 0, 0, 0))
CRASHES: Final = Kind(
    "crashes", {**_LIVELY, "crash": 0.8, "lose_power": 0.2, "pause": 0.6, "hand_over": 0.2, "close": 0.2}
)
STUCK: Final = Kind(
    "stuck", {**_LIVELY, "get_stuck": 0.8, "revoke": 0.6, "cut_off": 0.6, "change_leader": 0.2, "pause": 0.3}
)
DEAF: Final = Kind(
    "deaf",
    {
        "tell": 8.0,
        "land": 2.0,
        "lose_watch": 1.0,
        "die_in_silence": 0.4,
        "compact": 0.6,
        "crash": 0.3,
        "take_down": 0.2,
    },
)
FULL: Final = Kind("full", {**_LIVELY, "fill": 0.5, "crash": 0.3, "refuse": 0.5, "revoke": 0.2})
LOSSY: Final = Kind("lossy", {**_LIVELY, "crash": 0.2, "revoke": 0.4}, (80, 5, 5, 10, 0))
LATE: Final = Kind("late", {"tell": 12.0, "land": 1.0, "revoke": 1.2}, (75, 0, 5, 20, 0), ops=16)
SET_BACK: Final = Kind(
    "set back",
    {**_LIVELY, "wipe": 0.25, "take_snapshot": 1.0, "restore": 0.3, "pause": 0.5, "crash": 0.2},
)
ADOPTED: Final = Kind("adopted", {**_LIVELY, "leave_etcd": 0.3, "crash": 0.3, "pause": 0.5})
BAD_DISK: Final = Kind("bad disk", {**_LIVELY, "crash": 0.4, "lose_power": 0.3}, disk_fails=0.03)
HIDDEN: Final = Kind("hidden", {**_LIVELY, "crash": 0.4, "hand_over": 0.4, "revoke": 0.3}, hidden_seconds=2.0)

KINDS: Final = (CALM, CRASHES, STUCK, DEAF, FULL, LOSSY, LATE, SET_BACK, ADOPTED, BAD_DISK, HIDDEN)
WEIGHTS: Final = (3, 18, 14, 11, 9, 13, 10, 12, 5, 7, 5)
"""How often each of them is simulated."""
