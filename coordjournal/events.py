"""The vocabulary: what can be decided, as frozen structs of one tagged union.

Field order is the order of the canonical JSON. `check()` says whether the event is well formed by
itself; whether it fits what was decided before is the state's to judge (`coordjournal.state`).
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

import msgspec

from coordjournal.errors import InvalidEvent, InvalidName

MAX_NAME_BYTES: Final = 512
MAX_MEDIA_TYPE_BYTES: Final = 255

_FORBIDDEN_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})
# A media type with parameters as RFC 9110, sections 5.6.6 and 8.3.1, writes it.
_WORD = r"[!#$%&'*+\-.^_`|~A-Za-z0-9]+"
_QUOTED = r'"(?:[ !\x23-\x5b\x5d-\x7e]|\\[ -~])*"'
_MEDIA_TYPE = re.compile(rf"{_WORD}/{_WORD}(?: *; *{_WORD}=(?:{_WORD}|{_QUOTED}))*")


def check_name(value: object, what: str, *, stored: bool = False) -> None:
    """Check that `value` may name a page, an alias or an overlay; `what` it is goes into the error.

    A name is 1–512 bytes of UTF-8 in NFC, neither beginning nor ending with white space, without
    control characters, surrogates, line and paragraph separators. Raises `InvalidName`. Of a `stored`
    name NFC is not asked again: what it is depends on the version of Unicode, and so of Python.
    """
    if type(value) is not str:
        raise InvalidName(f"{what}: a name is text, not {type(value).__name__}")
    if not _is_plain(value) and (fault := _name_fault(value, stored=stored)):
        raise InvalidName(f"{what} {_shown(value)}: {fault}")


def _is_plain(value: object) -> bool:
    """Whether `value` is a legal name of printable ASCII: most are, and this is quick to see."""
    return (
        type(value) is str
        and value.isascii()
        and value.isprintable()
        and 0 < len(value) <= MAX_NAME_BYTES
        and value[0] != " " != value[-1]
    )


def _name_fault(value: str, *, stored: bool) -> str:
    if not value:
        return "a name is not empty"
    for position, char in enumerate(value[: MAX_NAME_BYTES + 1]):
        category = unicodedata.category(char)
        if category in _FORBIDDEN_CATEGORIES:
            return f"character {position + 1} is U+{ord(char):04X}, of category {category}, which no name holds"
    size = len(value.encode("utf-8", "surrogatepass"))
    if size > MAX_NAME_BYTES:
        return f"a name has at most {MAX_NAME_BYTES} bytes of UTF-8, this one has {size}"
    if value[0].isspace() or value[-1].isspace():
        return "a name neither begins nor ends with white space"
    if not stored and not unicodedata.is_normalized("NFC", value):
        return "a name is in Unicode normalization form C; normalize it first"
    return ""


def _shown(value: str) -> str:
    return ascii(value if len(value) <= 60 else value[:57] + "...")


def short(name: str, limit: int = 60) -> str:
    """Return `name`, cut to `limit` characters, as words about it hold it."""
    return name if len(name) <= limit else name[: limit - 1] + "…"


class _Event(msgspec.Struct, frozen=True, tag_field="type", forbid_unknown_fields=True):
    """What all events share."""

    def check(self, *, stored: bool = False) -> None:
        """Raise `InvalidName` or `InvalidEvent`, saying what and where, if not well formed.

        `stored` is what the log has already: see `check_name`.
        """
        for field, name in self._named():
            if not _is_plain(name):
                check_name(name, f"{self.type}: {field}", stored=stored)

    def names(self) -> tuple[str, ...]:
        """Return the names that the event touches, in field order."""
        return tuple(name for _, name in self._named())

    def words(self) -> str:
        """Return the decision in words, one line, as a commit's subject bears it."""
        raise TypeError("an event is one of the eight kinds")  # the base class is never an event

    def _named(self) -> tuple[tuple[str, str], ...]:
        return tuple((field, getattr(self, field)) for field in self.__struct_fields__)

    @property
    def type(self) -> str:
        """The kind, as the JSON tag: `alias.set`."""
        return str(self.__struct_config__.tag)


class AliasSet(_Event, frozen=True, tag="alias.set"):
    """The name `alias` leads to `target`; the last one wins."""

    alias: str
    target: str

    def words(self) -> str:
        return f"alias: {short(self.alias)} → {short(self.target)}"


class AliasRemoved(_Event, frozen=True, tag="alias.removed"):
    """The name `alias` leads nowhere any more."""

    alias: str

    def words(self) -> str:
        return f"unalias: {short(self.alias)}"


class _Pair(_Event, frozen=True):
    a: str
    b: str

    def check(self, *, stored: bool = False) -> None:
        super().check(stored=stored)
        if self.a == self.b:
            raise InvalidEvent(f"{self.type}: a and b are both {_shown(self.a)}; a binding ties two pages")


class PagesBound(_Pair, frozen=True, tag="binding.set"):
    """Pages `a` and `b` are the same page; unordered, transitive."""

    def words(self) -> str:
        return f"bind: {short(self.a)} = {short(self.b)}"


class PagesUnbound(_Pair, frozen=True, tag="binding.removed"):
    """The binding of `a` and `b` is retracted."""

    def words(self) -> str:
        return f"unbind: {short(self.a)} ≠ {short(self.b)}"


class PagesMerged(_Event, frozen=True, tag="merge"):
    """`sources` and `into`, with their groups, are one group whose canonical page is `into`."""

    sources: tuple[str, ...]
    into: str

    def __post_init__(self) -> None:
        sources: object = self.sources
        if isinstance(sources, list):  # what a caller writes first; a struct is frozen throughout
            msgspec.structs.force_setattr(self, "sources", tuple(sources))

    def check(self, *, stored: bool = False) -> None:
        if not isinstance(self.sources, tuple):
            raise InvalidEvent(f"{self.type}: sources is a tuple of names, not {type(self.sources).__name__}")
        super().check(stored=stored)
        if not self.tied():
            raise InvalidEvent(f"{self.type}: no source besides into {_shown(self.into)}; name another page")

    def tied(self) -> tuple[str, ...]:
        """Return the sources without doubles and without `into`, in order."""
        return tuple(dict.fromkeys(source for source in self.sources if source != self.into))

    def words(self) -> str:
        first = self.sources[:3]
        more = f" and {len(self.sources) - 3} more" if len(self.sources) > 3 else ""
        return f"merge: {', '.join(short(s) for s in first)}{more} → {short(self.into)}"

    def _named(self) -> tuple[tuple[str, str], ...]:
        numbered = tuple((f"sources[{n}]", source) for n, source in enumerate(self.sources))
        return (*numbered, ("into", self.into))


class PageForked(_Event, frozen=True, tag="fork"):
    """The page `fork` descends from `source` and is another page."""

    source: str
    fork: str

    def words(self) -> str:
        return f"fork: {short(self.source)} ⇒ {short(self.fork)}"


class OverlaySet(_Event, frozen=True, tag="overlay.set"):
    """The overlay named `overlay`, text `body` of `media_type`, lies on `page`."""

    page: str
    overlay: str
    media_type: str
    body: str

    def check(self, *, stored: bool = False) -> None:
        super().check(stored=stored)
        if not all(type(text) is str for text in (self.media_type, self.body)):
            raise InvalidEvent(f"{self.type}: media_type and body are text")
        if len(self.media_type) > MAX_MEDIA_TYPE_BYTES or not _MEDIA_TYPE.fullmatch(self.media_type):
            raise InvalidEvent(f"{self.type}: media_type {_shown(self.media_type)} is not like text/markdown")
        try:
            self.body.encode()
        except UnicodeEncodeError as error:
            raise InvalidEvent(f"{self.type}: body is not UTF-8 text: {error.reason}") from error

    def words(self) -> str:
        return f"overlay: {short(self.overlay)} on {short(self.page)}"

    def _named(self) -> tuple[tuple[str, str], ...]:
        return (("page", self.page), ("overlay", self.overlay))

    def names(self) -> tuple[str, ...]:
        return (self.page,)


class OverlayRemoved(_Event, frozen=True, tag="overlay.removed"):
    """The overlay named `overlay` no longer lies on `page`."""

    page: str
    overlay: str

    def words(self) -> str:
        return f"withdraw: {short(self.overlay)} from {short(self.page)}"

    def names(self) -> tuple[str, ...]:
        return (self.page,)


Event = AliasSet | AliasRemoved | PagesBound | PagesUnbound | PagesMerged | PageForked | OverlaySet | OverlayRemoved

EVENT_CLASSES: Final = Event.__args__
EVENT_TYPES: Final = frozenset(str(kind.__struct_config__.tag) for kind in EVENT_CLASSES)
