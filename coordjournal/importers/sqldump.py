"""The rows of a table in an SQL dump, as `mysqldump` and `mariadb-dump` write it and Wikimedia publishes it.

Pure, streaming and strict: what is not the SQL that these programs write is refused at its place,
never skipped; only comments are, those included that a server executes, for no rows stand there.
Source of the literals: MySQL 8.0 Reference Manual, sections 11.1.1, 11.1.2 and 11.1.4.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final

from coordjournal.errors import InvalidEvent, NotFound
from coordjournal.importers.sqltext import CHUNK_BYTES, MAX_TOKEN_BYTES, STRING, Readable, SqlText, name_of

MAX_COLUMNS: Final = 256  # ten times what a table of MediaWiki's has

Value = int | str | bytes | None
"""An integer; another number, as it is written; the bytes of a string; NULL."""

_DIGITS = rb"[0-9]{1,65}+(?:\.[0-9]*+(?:[eE][-+]?[0-9]++)?|[eE][-+]?[0-9]++)?"  # 65: those of a DECIMAL
_HEXADECIMAL = rb"0[xX](?:[0-9A-Fa-f]{2})++|[xX]'(?:[0-9A-Fa-f]{2})*+'"
_VALUE = b"(?:%s)" % b"|".join(
    (STRING, _HEXADECIMAL, _DIGITS, b"-" + _DIGITS, rb"[Nn][Uu][Ll][Ll]", rb"_binary\s*+" + STRING)
)
_OPENS, _COMMA, _CLOSES, _ENDS = rb"\s*+\(\s*+", rb"\s*+,\s*+", rb"\s*+\)\s*+", rb"[,;]"

_ESCAPE = re.compile(rb"\\.|''", re.DOTALL)
_ESCAPES = {
    b"\\0": b"\0",
    b"\\b": b"\b",
    b"\\n": b"\n",
    b"\\r": b"\r",
    b"\\t": b"\t",
    b"\\Z": b"\x1a",
    b"\\%": b"\\%",  # these two keep the backslash, which is for LIKE to read;
    b"\\_": b"\\_",  # before any byte that is not listed it is dropped
}

_SKIPPED = frozenset({b"ALTER", b"BEGIN", b"COMMIT", b"DROP", b"LOCK", b"SET", b"START", b"UNLOCK", b"USE"})
_NOT_A_COLUMN = frozenset(
    {b"CHECK", b"CONSTRAINT", b"FOREIGN", b"FULLTEXT", b"INDEX", b"KEY", b"PERIOD", b"PRIMARY", b"SPATIAL", b"UNIQUE"}
)


def read_rows(
    source: str | os.PathLike[str] | Readable, table: str, columns: Sequence[str], *, chunk_bytes: int = CHUNK_BYTES
) -> Iterator[tuple[Value, ...]]:
    r"""Yield the named columns of each row that the dump `source` holds of `table`, in the dump's order.

    `source` is a path or a binary stream, which is left open; gzip is known by its first bytes. It
    holds one table, as Wikimedia's files do. Where a column stands is read from the `CREATE TABLE`
    statement or from the column list of an `INSERT`. A row is a tuple in the order of `columns`;
    `Value` tells its types. Strings are bytes, their escapes undone (`\'` and `''` are `'`), and
    their encoding is the caller's to judge. `chunk_bytes` are read at a time.

    Nothing is opened before the first row is asked for, and rows may come before an error does.
    Raises `NotFound` where there is no such file, and `InvalidEvent`, with the byte offset in the
    unpacked text and what was expected there, if the file cannot be read or unpacked, is not a dump,
    is cut off, holds another table or lacks a column, or if a row, literal or comment has more than
    `MAX_TOKEN_BYTES`. A dump with the first line of `mysqldump` is whole only with its last one,
    `-- Dump completed`; if it was made without these, a loss of whole statements cannot be seen.
    """
    if not isinstance(source, str | os.PathLike):
        name = getattr(source, "name", None)
        yield from _Dump(SqlText(source, str(name or "dump"), chunk_bytes), table, columns).rows()
        return
    try:
        stream = Path(source).open("rb")  # noqa: SIM115 - closed below: only what opening raises is translated here
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"{source}: there is no such file") from error
    except (OSError, ValueError) as error:
        raise InvalidEvent(f"{source}: the file cannot be opened: {error}") from error
    with stream:
        yield from _Dump(SqlText(stream, str(source), chunk_bytes), table, columns).rows()


class _Dump:
    """The statements of a dump of `table`."""

    def __init__(self, text: SqlText, table: str, wanted: Sequence[str]) -> None:
        self._text, self._table, self._wanted = text, table, tuple(wanted)
        self._columns: tuple[str, ...] = ()
        self._found = False
        self._whole = True

    def rows(self) -> Iterator[tuple[Value, ...]]:
        while token := self._text.token():
            verb = token[0].upper()
            if token.lastgroup == "space":
                self._note(token[0])
            elif verb == b"INSERT":
                yield from self._insert()
            elif verb == b"CREATE":
                self._create()
            elif verb in _SKIPPED:
                self._skip()
            elif verb != b";":
                raise self._text.fault("a statement of a dump")
        if not self._found:
            raise self._text.refusal(f"the file ends here and has no table {self._table!r}")
        if not self._whole:
            raise self._text.refusal("the dump is cut off here: its last line, '-- Dump completed', is missing")

    def _note(self, comment: bytes) -> None:
        if comment.startswith((b"-- MySQL dump ", b"-- MariaDB dump ")):
            self._whole = False
        elif comment.startswith(b"-- Dump completed"):
            self._whole = True

    def _skip(self) -> None:
        while token := self._text.token():
            if token[0] == b";":
                return
        raise self._text.fault("';' after the statement")

    def _create(self) -> None:
        text = self._text
        if text.word().upper() != b"TABLE":
            self._skip()
            return
        name = text.word()
        if name.upper() == b"IF":
            text.word(b"NOT")
            text.word(b"EXISTS")
            name = text.word()
        self._check_table(name)
        if self._columns:
            raise text.refusal(f"table {self._table!r} is created a second time")
        text.word(b"(")
        self._columns = tuple(self._defined_columns())
        self._places(self._columns)
        self._skip()

    def _defined_columns(self) -> Iterator[str]:
        """Move to the parenthesis that closes the definitions and yield the names of the columns."""
        depth, first, count = 1, True, 0
        while depth:
            token = self._text.token()
            if not token:
                raise self._text.fault("')' after the columns")
            if token.lastgroup == "space":
                continue
            if first and token.lastgroup == "word" and token[0].upper() not in _NOT_A_COLUMN:
                count += 1
                self._check_count(count)
                yield name_of(token[0])
            depth += (token[0] == b"(") - (token[0] == b")")
            first = depth == 1 and token[0] == b","

    def _insert(self) -> Iterator[tuple[Value, ...]]:
        text, columns = self._text, self._columns
        text.word(b"INTO")
        self._check_table(text.word())
        if text.word(b"(", b"VALUES") == b"(":
            columns = tuple(self._listed_columns())
            text.word(b"VALUES")
        elif not columns:
            raise text.refusal("the rows come before CREATE TABLE and without a list of columns")
        places = self._places(columns)
        in_order = sorted(set(places))
        groups = [in_order.index(place) for place in places]
        for row in text.matches(_row_pattern(len(columns), frozenset(places))):
            literals = row.groups()
            yield tuple([_value(literals[group]) for group in groups])
            if literals[-1] == b";":
                return
        raise self._row_fault(len(columns))

    def _listed_columns(self) -> Iterator[str]:
        end, count = b",", 0
        while end == b",":
            name = name_of(self._text.word())
            count += 1
            self._check_count(count)
            yield name
            end = self._text.word(b",", b")")

    def _places(self, columns: tuple[str, ...]) -> list[int]:
        for name in self._wanted:
            if (count := columns.count(name)) != 1:
                has = f"{count} columns {name!r}, not one" if count else f"no column {name!r}"
                raise self._text.refusal(f"table {self._table!r} has {has}")
        return [columns.index(name) for name in self._wanted]

    def _check_count(self, count: int) -> None:
        if count > MAX_COLUMNS:
            raise self._text.fault(f"at most {MAX_COLUMNS} columns")

    def _check_table(self, word: bytes) -> None:
        if (name := name_of(word)) != self._table:
            raise self._text.refusal(f"expected table {self._table!r}, found table {name[:64]!a}")
        self._found = True

    def _row_fault(self, count: int) -> InvalidEvent:
        """Return the error that says where the row at this place goes wrong."""
        text, at = self._text, self._text.at
        steps = [(rb"\s*+", "a row"), (_OPENS, "'(' before a row")]
        steps += [(_VALUE + rb"\s*+", "a string, a number or NULL"), (_COMMA, f"',' and {count} values in all")] * count
        steps[-1:] = [(_CLOSES, f"')' after {count} values"), (_ENDS, "',' or ';' after a row")]
        for pattern, expected in steps:
            match = re.compile(pattern, re.DOTALL).match(text.window, at)
            if not match or match.end() - text.at > MAX_TOKEN_BYTES:
                return text.fault(f"{expected} (a row has at most {MAX_TOKEN_BYTES} bytes)", at)
            at = match.end()
        raise AssertionError("a row that goes wrong nowhere")


@lru_cache(maxsize=8)
def _row_pattern(count: int, wanted: frozenset[int]) -> re.Pattern[bytes]:
    """Return the pattern of a row of `count` values: groups are the `wanted` ones, and what ends the row."""
    values = [b"(%s)" % _VALUE if place in wanted else _VALUE for place in range(count)]
    return re.compile(_OPENS + _COMMA.join(values) + _CLOSES + b"(%s)" % _ENDS, re.DOTALL)


def _value(literal: bytes) -> Value:
    if literal[0] == 0x27:  # a quote
        text = literal[1:-1]
        return _ESCAPE.sub(_unescaped, text) if b"\\" in text or b"'" in text else text
    if literal.isdigit():
        return int(literal)
    if literal[:2] in (b"0x", b"0X", b"x'", b"X'"):
        return bytes.fromhex(literal[2:].rstrip(b"'").decode())
    if literal[0] == 0x5F:  # an underscore: _binary
        return _value(literal[len(b"_binary") :].lstrip())
    if literal.upper() == b"NULL":
        return None
    return int(literal) if literal[1:].isdigit() else literal.decode()


def _unescaped(match: re.Match[bytes]) -> bytes:
    return _ESCAPES.get(match[0], match[0][1:])
