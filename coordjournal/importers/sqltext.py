"""The text of an SQL dump as a window that moves over it: unpacked, in tokens, with places for errors.

Neither the file nor a line of it (one of Wikimedia's has a megabyte) is ever held whole. Time is
linear in the size of the text and memory is bounded, whatever it holds: a token or a row is read as
a whole, and one of more than `MAX_TOKEN_BYTES` is not read.

Source of the lexical rules: MySQL 8.0 Reference Manual, chapter 11, "Language Structure".
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from itertools import chain
from typing import Final, Protocol

from coordjournal.errors import InvalidEvent

MAX_TOKEN_BYTES: Final = 1 << 20
CHUNK_BYTES: Final = 1 << 16
_SHOWN_BYTES = 32
_GZIP: Final = b"\x1f\x8b"

# Linear, because alternatives are disjoint: there is never a second way to match the same bytes. And
# right on every CPython 3.11, because no possessive group fails after a repeat inside of it: before
# 3.11.5 it then went on from the wrong place (gh-100061).
STRING: Final = rb"'[^'\\]*+(?:'(?!')|(?:\\.[^'\\]*+|''[^'\\]*+)++')"
_DOUBLE_QUOTED = STRING.replace(b"'", b'"')
_COMMENT = rb"--(?:[ \t\r][^\n]*+)?(?:\n|\Z)|\#[^\n]*+|/\*.*?\*/"

_TOKEN = re.compile(
    rb"(?P<space>\s{1,4096}+|" + _COMMENT + rb")"
    rb"|(?P<string>" + STRING + rb"|" + _DOUBLE_QUOTED + rb")"
    rb"|(?P<word>`(?:[^`]++|``)++`|[^\s'\"`(),;/\#-]{1,4096}+)"
    rb"|(?P<mark>[(),;]|/(?!\*)|-(?!-))",
    re.DOTALL,
)


class Readable(Protocol):
    """A blocking binary stream, of which only `read` is asked."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes, none only at the end."""


class SqlText:
    """The text of `stream`, plain or gzip by its first bytes; `name` is what errors call it.

    `at` is the place in `window`, `begun` the one where the last token began.
    """

    def __init__(self, stream: Readable, name: str, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.window, self.at, self.begun = b"", 0, 0
        self._name = name
        self._pieces = _unpacked(iter(lambda: stream.read(chunk_bytes), b""), chunk_bytes)
        self._passed_bytes = 0
        self._ended = False

    def match(self, pattern: re.Pattern[bytes]) -> re.Match[bytes] | None:
        """Return the match at this place, whatever chunks the text comes in, or None; do not move.

        None also if the match would be longer than `MAX_TOKEN_BYTES`.
        """
        while True:
            match = pattern.match(self.window, self.at)
            end = match.end() if match else len(self.window)
            if end - self.at > MAX_TOKEN_BYTES:
                return None
            if end < len(self.window) or self._ended:
                return match
            self._read_on()

    def matches(self, pattern: re.Pattern[bytes]) -> Iterator[re.Match[bytes]]:
        """Move over matches side by side and yield them; no more bytes may change what a match is."""
        while match := self.match(pattern):
            window, find = self.window, pattern.match
            while match is not None and match.end() - self.at <= MAX_TOKEN_BYTES:
                self.at = match.end()
                yield match
                match = find(window, self.at)

    def token(self) -> re.Match[bytes] | None:
        """Move over the next token (space, string, word or mark: the last group's name); None at the end."""
        match = self.match(_TOKEN)
        self.begun = self.at
        if match:
            self.at = match.end()
        elif self.at < len(self.window):
            raise self.fault(f"a token of SQL, at most {MAX_TOKEN_BYTES} bytes long")
        return match

    def word(self, *expected: bytes) -> bytes:
        """Move over the next token but space and return it, a name with its quotes.

        Raises `InvalidEvent` if it is none of those `expected`, in upper case, or no word at all.
        """
        while (token := self.token()) and token.lastgroup == "space":
            pass
        if token and (token[0].upper() in expected if expected else token.lastgroup == "word"):
            return token[0]
        raise self.fault(" or ".join(ascii(word.decode()) for word in expected) or "a name")

    def fault(self, expected: str, at: int | None = None) -> InvalidEvent:
        """Return the error that `expected` is not what is found at `at`, or where the last token began."""
        self.at = self.begun if at is None else at
        while len(self.window) - self.at <= _SHOWN_BYTES and not self._ended:
            self._read_on()
        rest = self.window[self.at :][: _SHOWN_BYTES + 1]
        found = [ascii(rest[:_SHOWN_BYTES])[1:]] if rest else []
        if len(rest) <= _SHOWN_BYTES:
            found.append("the end of the file")
        return self.refusal(f"expected {expected}, found {', then '.join(found)}", self.at)

    def refusal(self, words: str, at: int | None = None) -> InvalidEvent:
        """Return the error that `words` say, with the file and the byte offset in the unpacked text."""
        at = self.begun if at is None else at
        return InvalidEvent(f"{self._name}: byte offset {self._passed_bytes + at}: {words}")

    def _read_on(self) -> None:
        """Forget what lies before this place; read as much again as is left, so that looking again is linear."""
        parts = [self.window[self.at :]]
        wanted_bytes = max(1, len(parts[0]))
        try:
            while wanted_bytes > 0 and not self._ended:
                parts.append(next(self._pieces, b""))
                wanted_bytes -= len(parts[-1])
                self._ended = not parts[-1]
        except (OSError, EOFError, zlib.error) as error:
            end = self.at + sum(map(len, parts))
            raise self.refusal(f"the file cannot be read on from here: {_words(error)}", end) from error
        self._passed_bytes += self.at
        self.window, self.at = b"".join(parts), 0


def _words(error: Exception) -> str:
    if isinstance(error, zlib.error):
        return "the gzip data is damaged"
    return (isinstance(error, OSError) and error.strerror) or str(error)


def name_of(word: bytes) -> str:
    """Return the name that a word is, without its back quotes."""
    if word.startswith(b"`"):
        word = word[1:-1].replace(b"``", b"`")
    return word.decode(errors="replace")


def _unpacked(pieces: Iterator[bytes], chunk_bytes: int) -> Iterator[bytes]:
    """Yield the pieces, none empty, unpacked if they are gzip.

    Raises `EOFError` if that is cut off or goes on with something else, `zlib.error` if it is damaged.
    """
    head = b""
    while len(head) < 2 and (piece := next(pieces, b"")):
        head += piece
    pieces = chain([head], pieces)
    if head[:2] != _GZIP:
        yield from pieces
        return
    member = None
    for piece in pieces:
        while piece:
            if not member:
                piece = piece.lstrip(b"\0")  # padding, which may follow a member
                if not piece:
                    break
                if not _GZIP.startswith(piece[:2]):
                    raise EOFError("something follows the gzip data")
                member = zlib.decompressobj(zlib.MAX_WBITS | 16)
            if data := member.decompress(piece, chunk_bytes):
                yield data
            piece, member = (member.unused_data, None) if member.eof else (member.unconsumed_tail, member)
    if member:
        raise EOFError("the gzip file is cut off")
