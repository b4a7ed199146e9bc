"""Text as a terminal may see it: no control characters, known widths, decisions in words."""

from __future__ import annotations

import unicodedata
from typing import Final

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

_ESCAPED: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})
# These turn the order of what follows, so that a line reads as something else than it says.
_BIDIRECTIONAL: Final = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def plain(text: str) -> str:
    """Return `text` with everything escaped that could steer a terminal or break a line."""
    if text.isprintable():
        return text
    return "".join(_escaped(char) for char in text)


def _escaped(char: str) -> str:
    if char in _BIDIRECTIONAL or unicodedata.category(char) in _ESCAPED:
        return char.encode("unicode_escape").decode("ascii")
    return char


def width(text: str) -> int:
    """Return how many columns of a terminal `text` takes (Unicode Standard Annex 11)."""
    if text.isascii():
        return len(text)
    return sum(_columns(char) for char in text)


def _columns(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1


def describe(event: Event) -> str:
    """Return the decision in words, with names in full: `Event.words` cuts them, for a commit's subject."""
    match event:
        case AliasSet(alias=alias, target=target):
            return f"alias {alias} → {target}"
        case AliasRemoved(alias=alias):
            return f"unalias {alias}"
        case PagesBound(a=a, b=b):
            return f"bind {a} = {b}"
        case PagesUnbound(a=a, b=b):
            return f"unbind {a} ≠ {b}"
        case PagesMerged(sources=sources, into=into):
            return f"merge {', '.join(sources)} → {into}"
        case PageForked(source=source, fork=fork):
            return f"fork {source} ⇒ {fork}"
        case OverlaySet(page=page, overlay=overlay):
            return f"overlay {overlay} on {page}"
        case OverlayRemoved(page=page, overlay=overlay):
            return f"withdraw {overlay} from {page}"


def when(at: str) -> str:
    """Return a time as the log has it, `2026-01-31T12:00:00.123456Z`, to the second and easier to read."""
    return f"{at[:10]} {at[11:19]}Z"


def count(number: int, one: str, many: str = "") -> str:
    """Return `1 space`, `2 spaces`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
