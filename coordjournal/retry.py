"""Every retry policy, by name, in one place; the one module that knows the retry library."""

from __future__ import annotations

from typing import Final

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, stop_after_delay, wait_random_exponential

from coordjournal.store import HeadMoved


class RefLocked(Exception):
    """Another process, plain git as a rule, holds a ref's `.lock` for a moment."""


class HandleStale(Exception):
    """Compaction replaced packs that this handle had opened."""


REF_LOCK: Final = Retrying(
    retry=retry_if_exception_type(RefLocked),
    wait=wait_random_exponential(multiplier=0.002, max=0.1),
    stop=stop_after_delay(3.0),
    reraise=True,
)
"""Git holds a ref's lock for milliseconds; after three seconds its holder is stuck or dead."""

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
