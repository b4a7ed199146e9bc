"""The wiki's own verbs: one information space and what may be decided in it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Final, Self

from coordjournal.entry import Entry, Receipt, check_space
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
    check_name,
)
from coordjournal.log import DEFAULT_TIMEOUT, DecisionLog
from coordjournal.state import CoordinationState, Resolution

DEFAULT_MEDIA_TYPE: Final = "text/plain"


class InformationSpace:
    """One space of a log. Every verb appends one decision and returns its `Receipt`.

    The verbs take `actor`, `key`, `expect` and `timeout` and raise what `DecisionLog.append` does.
    """

    def __init__(self, name: str, log: DecisionLog) -> None:
        """Speak of the space `name` in `log`, which stays the caller's; `InvalidName` if it is no name."""
        check_space(name)
        self.name = name
        self.log = log
        self._owns_log = False

    @classmethod
    def open(cls, name: str, *, repo: str | os.PathLike[str] | None = None) -> InformationSpace:
        """Return the space in the repository at `repo`, in memory if None; it owns its log and closes it."""
        space = cls(name, DecisionLog.in_memory() if repo is None else DecisionLog.open(repo))
        space._owns_log = True
        return space

    def alias(
        self,
        name: str,
        target: str,
        *,
        actor: str | None = None,
        key: str | None = None,
        expect: int | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
    ) -> Receipt:
        """Decide that `name` leads to `target`; `AliasCycle` if it would lead back."""
        return self._decide(AliasSet(name, target), actor, key, expect, timeout)

    def unalias(
        self,
        name: str,
        *,
        actor: str | None = None,
        key: str | None = None,
        expect: int | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
    ) -> Receipt:
        """Decide that `name` leads nowhere any more; `NothingToRetract` if it is no alias."""
        return self._decide(AliasRemoved(name), actor, key, expect, timeout)

    def bind(
        self,
        a: str,
        b: str,
        *,
        actor: str | None = None,
        key: str | None = None,
        expect: int | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
    ) -> Receipt:
        """Decide that `a` and `b` are the same page."""
        return self._decide(PagesBound(a, b), actor, key, expect, timeout)

    def unbind(
        self,
        a: str,
        b: str,
        *,
        actor: str | None = None,
        key: str | None = None,
        expect: int | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
    ) -> Receipt:
        """Retract the binding of `a` and `b`; `NothingToRetract` if there is none."""
        return self._decide(PagesUnbound(a, b), actor, key, expect, timeout)

    def merge(
        self,
        sources: Iterable[str],
        into: str,
        *,
        actor: str | None = None,
        key: str | None = None,
        expect: int | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
    ) -> Receipt:
        """Decide that `sources` were merged into the page `into`, which stands for them from now on."""
        return self._decide(PagesMerged(tuple(sources), into), actor, key, expect, timeout)

    def fork(
        self,
        source: str,
        fork: str,
        *,
        actor: str | None = None,
        key: str | None = None,
        expect: int | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
    ) -> Receipt:
        """Decide that `fork` descends from `source` and is another page; `NotForkable` if it cannot."""
        return self._decide(PageForked(source, fork), actor, key, expect, timeout)

    def overlay(
        self,
        page: str,
        overlay: str,
        body: str,
        *,
        media_type: str = DEFAULT_MEDIA_TYPE,
        actor: str | None = None,
        key: str | None = None,
        expect: int | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
    ) -> Receipt:
        """Decide that the text `body` lies on `page` as `overlay`, in place of one of that name."""
        return self._decide(OverlaySet(page, overlay, media_type, body), actor, key, expect, timeout)

    def withdraw(
        self,
        page: str,
        overlay: str,
        *,
        actor: str | None = None,
        key: str | None = None,
        expect: int | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
    ) -> Receipt:
        """Take the overlay off the page; `NothingToRetract` if it does not lie there."""
        return self._decide(OverlayRemoved(page, overlay), actor, key, expect, timeout)

    def resolve(self, name: str) -> Resolution:
        """Return where `name` leads now; `InvalidName` if it is no name."""
        check_name(name, "name")
        return self.state().resolve(name)

    def state(self, *, upto: int | None = None) -> CoordinationState:
        """Return what is true now, or was as of entry `upto`."""
        return self.log.state(self.name, upto=upto)

    def history(self, name: str) -> Iterator[Entry]:
        """Yield every entry that touches `name`, literally, as a page or as an alias, in order."""
        check_name(name, "name")
        return (entry for entry in self.log.events(self.name) if name in entry.event.names())

    def close(self) -> None:
        """Close the log if this space opened it."""
        if self._owns_log:
            self.log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<InformationSpace {self.name} of {self.log!r}>"

    def _decide(
        self, event: Event, actor: str | None, key: str | None, expect: int | None, timeout: float | None
    ) -> Receipt:
        return self.log.append(self.name, event, actor=actor, key=key, expect=expect, timeout=timeout)
