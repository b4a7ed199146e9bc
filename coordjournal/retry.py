"""Every retry policy, by name, in one place; the one module that knows the retry library."""

from __future__ import annotations

from typing import Final

from tenacity import (
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    stop_after_delay,
    stop_before_delay,
    wait_random_exponential,
)

from coordjournal.etcd import Unanswered
from coordjournal.store import HeadMoved


class RefLocked(Exception):
    """Another process, plain git as a rule, holds a ref's `.lock` for a moment."""


class HandleStale(Exception):
    """Compaction replaced packs that this handle had opened."""


class NoneAnswered(Unanswered):
    """No member of etcd answered, in one round of them."""


class StreamLost(Exception):
    """A stream of watches did not come to stand, or not for long."""


REF_LOCK: Final = Retrying(
    retry=retry_if_exception_type(RefLocked),
    wait=wait_random_exponential(multiplier=0.002, max=0.1),
    stop=stop_after_delay(3.0),
    reraise=True,
)
"""Git holds a ref's lock for milliseconds; after three seconds its holder is stuck or dead."""

REF_LOCK_BRIEFLY: Final = Retrying(
    retry=retry_if_exception_type(RefLocked),
    wait=wait_random_exponential(multiplier=0.002, max=0.02),
    stop=stop_after_delay(0.1),
    reraise=True,
)
"""For a branch that may stay behind for a while: whoever waits for the append must not wait for that."""

STALE_HANDLE: Final = Retrying(
    retry=retry_if_exception_type(HandleStale),
    stop=stop_after_attempt(3),
    reraise=True,
)
"""A new handle sees the new packs at once; three, since compaction may come by again meanwhile."""

HEAD_MOVED: Final = Retrying(
    retry=retry_if_exception_type(HeadMoved),
    wait=wait_random_exponential(multiplier=0.001, max=0.05),
    stop=stop_after_attempt(10),
    reraise=True,
)
"""Under the space's lock only plain git moves a branch; ten times in a row is a fight, not a race."""

ETCD_ROUND: Final = Retrying(
    retry=retry_if_exception_type(NoneAnswered),
    wait=wait_random_exponential(multiplier=0.02, max=0.5),
    reraise=True,
)
"""For a read that no member of etcd answered: they may be choosing a leader, or starting. See `within`."""


ETCD_STREAM: Final = Retrying(
    retry=retry_if_exception_type(StreamLost),
    wait=wait_random_exponential(multiplier=0.05, max=2.0),
)
"""Without an end: whoever watches waits for etcd to come back. A stream that stood is replaced at once."""


def within(policy: Retrying, seconds: float) -> Retrying:
    """Return the policy, for as long as no pause would last beyond `seconds` from now."""
    return policy.copy(stop=stop_before_delay(seconds))
