"""What a folded state takes in memory, estimated: counts times what one of each takes, and its texts.

The constants are bytes on CPython 3.11 to 3.14 (64 bit), fitted to what tracemalloc says:
`python -m tests.unit.weighing` prints both for many shapes of state. An estimate is meant to be
within a factor of two of it, and costs no walk through the state.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import filterfalse
from typing import Any, Final

from coordjournal.persistent import PersistentMap

STATE: Final = 1536  # one in which nothing was decided, with its maps
POINTER: Final = 115  # an alias or a fork, without its two names: a place in a dict, a tuple, a seq
COUNT: Final = 50  # how many aliases lead to a name
RANK: Final = 60  # that a page was named: a place in a dict, a number
TIED: Final = 400  # a page with ties: a place in a dict, a map, its dict
TIE: Final = 190  # one tie: a place in the dicts of both its pages, a tuple, a seq
GROUPED: Final = 90  # a page in a group: a place in two dicts
GROUP: Final = 560  # a group: a number, a map, its dict, what leads it
MERGED: Final = 80  # a page that others were merged into
LAID_ON: Final = 400  # a page with overlays: a place in a dict, a map, its dict
LAID: Final = 160  # an overlay without its texts: a place in a dict, the overlay, a seq

_ASCII: Final = 49
_WIDE: Final = 72


def of_text(text: str) -> int:
    """Return what a text takes.

    One that is not ASCII counts half more: Python keeps its UTF-8 beside it once that was asked for.
    """
    size = len(text)
    if text.isascii():
        return _ASCII + size
    if len(text.encode("latin-1", "ignore")) == size:
        width = 1
    else:
        width = 2 if len(text.encode("utf-16-le", "surrogatepass")) == 2 * size else 4
    return (_WIDE + width * size) * 3 // 2


def of_texts(texts: Collection[str]) -> int:
    """Return what texts take that nobody encoded yet: the sum of `of_text`, nearly, and quicker."""
    ascii_only = sum(map(str.__sizeof__, filter(str.isascii, texts)))
    return ascii_only + sum(map(str.__sizeof__, filterfalse(str.isascii, texts))) * 3 // 2


def scaled(weight: int, facts: PersistentMap[str, Any]) -> int:
    """Return what the facts of a map take that weigh so much, with those that newer ones lie over."""
    return weight * facts.slots // len(facts) if facts else 0
