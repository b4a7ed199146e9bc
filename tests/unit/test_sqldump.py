from __future__ import annotations

import gzip
import io
import re
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordjournal.errors import InvalidEvent, NotFound
from coordjournal.importers.sqldump import MAX_COLUMNS, Value, read_rows
from coordjournal.importers.sqltext import MAX_TOKEN_BYTES

CREATE = b"""\
DROP TABLE IF EXISTS `page`;
/*!40101 SET @saved_cs_client     = @@character_set_client */;
CREATE TABLE `page` (
  `page_id` int(8) unsigned NOT NULL AUTO_INCREMENT,
  `page_namespace` int(11) NOT NULL DEFAULT '0' COMMENT 'a (number), it''s; `so`',
  `page_title` varbinary(255) NOT NULL DEFAULT '',
  `page_random` double unsigned NOT NULL DEFAULT -1, # of its own
  PRIMARY KEY (`page_id`),
  UNIQUE KEY `name_title` (`page_namespace`,`page_title`) /* both; */
) ENGINE=InnoDB AUTO_INCREMENT=2174 DEFAULT CHARSET=binary;
"""
HEADER = b"""\
/*M!999999\\- enable the sandbox mode */
-- MySQL dump 10.13  Distrib 5.5.44, for debian-linux-gnu (x86_64)
--
-- Host: 10.64.16.16    Database: it's "a" `wiki`;
/*!40014 SET @OLD_UNIQUE_CHECKS=@@UNIQUE_CHECKS, UNIQUE_CHECKS=0 */;
"""
FOOTER = b"""\
/*!40000 ALTER TABLE `page` ENABLE KEYS */;
UNLOCK TABLES;
-- Dump completed on 2016-01-12  6:28:15
"""
COLUMNS = ("page_id", "page_namespace", "page_title", "page_random")
ROWS: list[tuple[Value, ...]] = [
    (1, 0, b"Hau_K\xc4\x81inga", "0.25"),
    (2, -1, b"It's_(a),'b');", None),
    (33, 4, b"", "1e-05"),
]
SMALL = b"".join(
    (
        HEADER,
        CREATE,
        b"LOCK TABLES `page` WRITE;\n",
        b"INSERT INTO `page` VALUES (1,0,'Hau_K\xc4\x81inga',0.25),(2,-1,'It\\'s_(a),''b'');',NULL);\n",
        b"INSERT INTO `page` VALUES (33,4,'',1e-05);\n",
        FOOTER,
    )
)


class Trickle:
    """A binary stream that gives `sizes` bytes at a time, in turn, whatever is asked."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        self._data, self._sizes, self._turn = io.BytesIO(data), sizes, 0

    def read(self, size: int, /) -> bytes:
        self._turn += 1
        return self._data.read(min(size, self._sizes[self._turn % len(self._sizes)]))


class Endless:
    """A binary stream that gives `start` and then `more` for ever, and counts."""

    def __init__(self, start: bytes, more: bytes) -> None:
        self.start, self.more, self.given_bytes = start, more, 0

    def read(self, size: int, /) -> bytes:
        data, self.start = self.start, b""
        data = data or (self.more * (size // len(self.more) + 1))[:size]
        self.given_bytes += len(data)
        return data


def read(
    data: bytes, columns: tuple[str, ...] = COLUMNS, table: str = "page", chunk_bytes: int = 1 << 16
) -> list[tuple[Value, ...]]:
    return list(read_rows(io.BytesIO(data), table, columns, chunk_bytes=chunk_bytes))


def read_until_error(data: bytes, chunk_bytes: int = 1 << 16) -> tuple[list[tuple[Value, ...]], InvalidEvent | None]:
    rows = []
    try:
        for row in read_rows(io.BytesIO(data), "page", COLUMNS, chunk_bytes=chunk_bytes):
            rows.append(row)  # noqa: PERF402 - the rows before an error count
    except InvalidEvent as error:
        return rows, error
    return rows, None


def one(literal: bytes) -> Value:
    """Return the value that `literal` has in a dump of one column."""
    [(value,)] = read(b"CREATE TABLE `t` (`v` blob);\nINSERT INTO `t` VALUES (%s);\n" % literal, ("v",), "t")
    return value


def test_a_dump_as_mysqldump_writes_it() -> None:
    assert read(SMALL) == ROWS


def test_columns_are_found_by_the_order_of_create_table() -> None:
    data = b"CREATE TABLE `t` (`a` int, `b` int, PRIMARY KEY (`a`), `c` int);INSERT INTO `t` VALUES (1,2,3);"
    assert read(data, ("a", "b", "c"), "t") == [(1, 2, 3)]
    assert read(data.replace(b"`a` int, `b` int", b"`b` int, `a` int"), ("a", "b", "c"), "t") == [(2, 1, 3)]


@pytest.mark.parametrize(
    ("columns", "row"),
    [(("page_title",), (b"",)), (("page_title", "page_id"), (b"", 33)), (("page_id", "page_id"), (33, 33)), ((), ())],
)
def test_a_row_has_the_columns_that_were_asked_in_their_order(columns: tuple[str, ...], row: tuple[Value, ...]) -> None:
    assert read(SMALL, columns)[-1] == row


def test_an_insert_with_a_list_of_columns_goes_by_its_own_order() -> None:
    insert = b"INSERT INTO `t` (`b`, `a`) VALUES (1,2);INSERT INTO `t`(a) VALUES(3);"
    assert read(insert, ("a",), "t") == [(2,), (3,)]
    with pytest.raises(InvalidEvent, match="table 't' has no column 'b'"):
        read(insert, ("b",), "t")
    create = b"CREATE TABLE `t` (`a` int, `b` int);"
    assert read(create + insert + b"INSERT INTO `t` VALUES (4,5);", ("a",), "t") == [(2,), (3,), (4,)]


def test_names_and_keywords_may_be_written_in_other_ways() -> None:
    data = b"create table if not exists t (`a``b` int, c int, key `k` (c));insert into t values ( 1 , 2 ) , (3,4) ;"
    assert read(data, ("a`b", "c"), "t") == [(1, 2), (3, 4)]
    assert read(b"CREATE TABLE `IF` (`key` int);\nINSERT INTO `IF` VALUES\n(1),\n(2);", ("key",), "IF") == [(1,), (2,)]


def test_an_empty_table_has_no_rows() -> None:
    assert read(HEADER + CREATE + FOOTER) == []


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        (rb"'\0'", b"\0"),
        (rb"'\''", b"'"),
        (rb"'\"'", b'"'),
        (rb"'\b'", b"\b"),
        (rb"'\n'", b"\n"),
        (rb"'\r'", b"\r"),
        (rb"'\t'", b"\t"),
        (rb"'\Z'", b"\x1a"),
        (rb"'\\'", b"\\"),
        (rb"'\%'", rb"\%"),
        (rb"'\_'", rb"\_"),
        (rb"'\x\B\z'", b"xBz"),
        (b"'\\\n\\\xc4\x81'", b"\n\xc4\x81"),
        (rb"'\\n'", rb"\n"),
        (rb"'\\\'\\'", rb"\'" + b"\\"),
        (b"''", b""),
        (b"''''", b"'"),
        (b"'a''''b'", b"a''b"),
        (rb"'\''''", b"''"),
        (rb"'a''\'b'", b"a''b"),
        (b"'\"`;--/*#'", b'"`;--/*#'),
        (b"'\xff\x00\n'", b"\xff\x00\n"),
        (b"'NULL'", b"NULL"),
        (b"_binary 'a\\0'", b"a\0"),
        (b"_binary''''", b"'"),
        (b"0x4a4B00", b"JK\0"),
        (b"0X4A", b"J"),
        (b"x'4a4B'", b"JK"),
        (b"X''", b""),
        (b"NULL", None),
        (b"null", None),
        (b"0", 0),
        (b"007", 7),
        (b"-12", -12),
        (b"9" * 65, int("9" * 65)),
        (b"0.831666706983", "0.831666706983"),
        (b"-1.50", "-1.50"),
        (b"1e-05", "1e-05"),
        (b"-1.5E+10", "-1.5E+10"),
    ],
)
def test_literals(literal: bytes, value: Value) -> None:
    found = one(literal)
    assert (found, type(found)) == (value, type(value))
    assert one(b" " + literal + b"\n") == value


@pytest.mark.parametrize(
    "literal",
    [
        *rb"""0x 0x4 x'4' x'4g' - +1 --1 1.2.3 1e 1.5e abc DEFAULT now() NULLS @a "a" `a` _utf8'a' _binary""".split(),
        *(b"", b"1 2", b"1,", b"(1)", b"'a'b", b"'a' 'b'", b"9" * 66),
    ],
)
def test_other_expressions_are_refused_and_not_guessed(literal: bytes) -> None:
    with pytest.raises(InvalidEvent, match=r"byte offset \d+: expected "):
        one(literal)


# --- every way to write it, and every place to cut it

_BACKSLASHED = {
    0: b"\\0",
    10: b"\\n",
    13: b"\\r",
    8: b"\\b",
    9: b"\\t",
    26: b"\\Z",
    34: b'\\"',
    39: b"\\'",
    92: b"\\\\",
}
_MUST = {39: b"''", 92: b"\\\\"}


def _quoted(value: bytes, escapes: dict[int, bytes]) -> bytes:
    return b"'" + b"".join(escapes.get(byte, bytes([byte])) for byte in value) + b"'"


_SPELLINGS: list[Callable[[bytes], bytes]] = [
    lambda value: _quoted(value, _BACKSLASHED),
    lambda value: _quoted(value, _MUST),
    lambda value: _quoted(value, {39: b"\\'", 92: b"\\\\"}),
    lambda value: b"_binary " + _quoted(value, _BACKSLASHED),
    lambda value: b"0x" + value.hex().encode() if value else b"''",
]
_numbers = st.integers(-(10**65) + 1, 10**65 - 1)
_decimals = st.builds("{}.{}".format, st.integers(-(10**6), 10**6), st.from_regex(r"[0-9]{1,6}", fullmatch=True))
_strings = st.one_of(
    st.binary(max_size=20), st.lists(st.sampled_from([b"'", b"\\", b"),(", b";\n", b"\0", b"%", b"a"])).map(b"".join)
)
_cells: st.SearchStrategy[Value] = st.one_of(st.none(), _numbers, _decimals, _strings)


@st.composite
def _written(draw: st.DrawFn) -> tuple[bytes, list[tuple[Value, ...]]]:
    """A dump and its rows, as the columns a, b, c."""
    names = draw(st.permutations(["a", "b", "c"]))
    rows = draw(st.lists(st.tuples(_cells, _cells, _cells), max_size=8))
    comma = draw(st.sampled_from([b",", b", ", b" ,\n"]))
    between = draw(st.sampled_from([b",", b",\n", b";\nINSERT INTO `t` VALUES ", b";INSERT INTO `t` VALUES\n"]))
    head = b"INSERT INTO `t` VALUES "
    listed = draw(st.booleans())
    if listed:
        head = b"INSERT INTO `t` (%s) VALUES " % ", ".join(f"`{name}`" for name in names).encode()
        between = between.replace(b"INSERT INTO `t` VALUES", head.rstrip())
    order = sorted(names) if listed else names
    create = b"CREATE TABLE `t` (%s, PRIMARY KEY (`a`));\n" % ",".join(f"`{name}` blob" for name in order).encode()

    def literal(value: Value) -> bytes:
        if isinstance(value, bytes):
            return draw(st.sampled_from(_SPELLINGS))(value)
        return b"NULL" if value is None else str(value).encode()

    bodies = [b"(" + comma.join(literal(row["abc".index(name)]) for name in names) + b")" for row in rows]
    inserts = head + between.join(bodies) + b";\n" if rows else b""
    ends = draw(st.sampled_from([(b"", b""), (HEADER, FOOTER)]))
    return ends[0] + create + inserts + ends[1], list(rows)


@given(_written(), st.integers(1, 40), st.lists(st.integers(1, 7), min_size=1, max_size=5), st.booleans())
def test_what_was_written_is_read_back_in_any_chunks(
    written: tuple[bytes, list[tuple[Value, ...]]], chunk_bytes: int, sizes: list[int], packed: bool
) -> None:
    data, rows = written
    data = gzip.compress(data, 1) if packed else data
    assert read(data, ("a", "b", "c"), "t") == rows
    assert read(data, ("a", "b", "c"), "t", chunk_bytes) == rows
    assert list(read_rows(Trickle(data, sizes), "t", ("c", "a"))) == [(row[2], row[0]) for row in rows]


@pytest.mark.parametrize("chunk_bytes", [1, 7, 1 << 16])
def test_a_dump_that_is_cut_anywhere_gives_some_rows_and_then_an_error(chunk_bytes: int) -> None:
    seen = set()
    for end in range(len(SMALL)):
        rows, error = read_until_error(SMALL[:end], chunk_bytes)
        assert rows == ROWS[: len(rows)]
        assert error or (rows == ROWS and SMALL[end:].startswith(b" on 2016-01-12  6:28:15\n"[-(len(SMALL) - end) :]))
        seen.add(len(rows))
    assert seen == {0, 1, 2, 3}


def test_a_gzip_file_that_is_cut_anywhere_gives_some_rows_and_then_an_error() -> None:
    packed = gzip.compress(SMALL)
    counts = []
    for end in range(len(packed)):
        rows, error = read_until_error(packed[:end], chunk_bytes=16)
        assert rows == ROWS[: len(rows)]
        assert error
        counts.append(len(rows))
        if end >= 2:
            assert isinstance(error.__cause__, EOFError)
    assert counts == sorted(counts)
    assert set(counts) >= {0, 3}


def test_a_dump_without_comments_is_whole_where_its_last_statement_is() -> None:
    bare = re.sub(rb"(?m)^--.*\n", b"", SMALL)
    assert read(bare) == ROWS
    assert read(bare[: bare.index(b"/*!40000 ALTER")]) == ROWS


def test_the_last_line_counts_only_where_it_is_a_comment() -> None:
    data = SMALL.replace(b"Hau_K\xc4\x81inga", b"\n-- Dump completed\n").replace(b"-- Dump completed on", b"-- Dump")
    with pytest.raises(InvalidEvent, match="cut off here: its last line, '-- Dump completed', is missing"):
        read(data)


@given(st.binary(max_size=200), st.booleans())
def test_arbitrary_bytes_are_refused_by_no_other_error(data: bytes, packed: bool) -> None:
    rows, error = read_until_error(gzip.compress(data) if packed else data)
    assert not rows
    assert error


@given(st.integers(0, len(SMALL)), st.integers(0, 3), st.binary(max_size=3), st.integers(1, 9))
def test_damage_raises_no_other_error_and_depends_on_no_chunks(
    at: int, lost: int, added: bytes, chunk_bytes: int
) -> None:
    data = SMALL[:at] + added + SMALL[at + lost :]
    rows, error = read_until_error(data)
    again, second = read_until_error(data, chunk_bytes)
    assert (rows, str(error)) == (again, str(second))


@given(st.data())
def test_damaged_gzip_raises_no_other_error(data: st.DataObject) -> None:
    packed = bytearray(gzip.compress(SMALL))
    at = data.draw(st.integers(10, len(packed) - 1))
    packed[at] ^= data.draw(st.integers(1, 255))
    rows, error = read_until_error(bytes(packed), chunk_bytes=8)
    assert error  # by its checksum at the latest, which is read after the rows
    assert len(rows) <= len(ROWS)


# --- gzip, files and streams


@pytest.mark.parametrize("name", ["page.sql", "page.sql.gz", "page"])
@pytest.mark.parametrize("packed", [False, True])
def test_gzip_is_known_by_its_bytes_and_not_by_its_name(tmp_path: Path, name: str, packed: bool) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(SMALL) if packed else SMALL)
    assert list(read_rows(path, "page", COLUMNS)) == ROWS
    assert list(read_rows(str(path), "page", COLUMNS)) == ROWS


def test_gzip_of_several_members_and_with_padding() -> None:
    middle = len(SMALL) // 2
    packed = gzip.compress(SMALL[:middle]) + gzip.compress(b"") + b"\0" * 9 + gzip.compress(SMALL[middle:]) + b"\0" * 99
    assert read(packed) == ROWS
    assert read(packed, chunk_bytes=1) == ROWS
    for chunk_bytes in (1, 1 << 16):
        with pytest.raises(InvalidEvent, match=r"cannot be read on from here: something follows the gzip data$"):
            read(packed + b"more", chunk_bytes=chunk_bytes)


def test_damaged_gzip_is_told_in_our_words_and_with_its_cause() -> None:
    packed = bytearray(gzip.compress(SMALL))
    packed[20] ^= 0xFF
    for damaged in (bytes(packed), b"\x1f\x8bx" + packed[3:], gzip.compress(SMALL) + b"\x1f\x8bmore" * 5):
        with pytest.raises(InvalidEvent, match=r"cannot be read on from here: the gzip data is damaged$") as caught:
            read(damaged)
        assert isinstance(caught.value.__cause__, zlib.error)


def test_nothing_is_opened_before_the_first_row_and_the_file_is_closed_after_the_last(tmp_path: Path) -> None:
    path = tmp_path / "page.sql"
    rows = read_rows(path, "page", COLUMNS)
    path.write_bytes(SMALL)
    assert next(rows) == ROWS[0]
    rows.close()  # type: ignore[attr-defined]  # it is a generator; an open file would warn here
    stream = io.BytesIO(SMALL)
    assert list(read_rows(stream, "page", COLUMNS)) == ROWS
    assert not stream.closed


@pytest.mark.parametrize("name", ["none.sql", "none/page.sql", "file/page.sql"])
def test_a_file_that_is_not_there(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotFound, match=re.escape(f"{tmp_path / name}: there is no such file")) as caught:
        next(read_rows(tmp_path / name, "page", COLUMNS))
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_what_cannot_be_opened(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidEvent, match="the file cannot be opened"):
        next(read_rows(f"{tmp_path}/{name}", "page", COLUMNS))


def test_a_stream_that_breaks_is_told_with_its_place() -> None:
    class Broken(Trickle):
        name = "page.sql"

        def read(self, size: int, /) -> bytes:
            if self._data.tell() > 300:
                raise OSError(5, "Input/output error")
            return super().read(size)

    with pytest.raises(InvalidEvent, match=r"page\.sql: byte offset 305: .*Input/output error") as caught:
        list(read_rows(Broken(SMALL, [61]), "page", COLUMNS))
    assert isinstance(caught.value.__cause__, OSError)


# --- what is refused, and where


@pytest.mark.parametrize(
    ("data", "where", "what"),
    [
        (b"", b"", "the file ends here and has no table 'page'"),
        (b"-- nothing\n", b"", "the file ends here and has no table 'page'"),
        (b"BZh91AY&SY", b"BZ", "expected a statement of a dump, found 'BZh91AY&SY', then the end of the file"),
        (b"\xef\xbb\xbf-- MySQL dump", b"\xef", r"expected a statement of a dump, found '\xef\xbb\xbf-- MySQL dump'"),
        (b"SELECT 1;" + CREATE, b"SELECT", "expected a statement of a dump, found 'SELECT 1;DROP"),
        (b"<html>", b"<", "expected a statement of a dump, found '<html>', then the end of the file"),
        (b"SET NAMES utf8", b"", "expected ';' after the statement, found the end of the file"),
        (b"SET a = 'b;\n", b"'b", "expected a token of SQL, at most 1048576 bytes long, found \"'b;"),
        (b"/* no end", b"/*", "expected a token of SQL, at most 1048576 bytes long, found '/* no end', then the end"),
        (CREATE.replace(b"`page` (", b"`redirect` ("), b"`redirect`", "expected table 'page', found table 'redirect'"),
        (CREATE + b"INSERT INTO `user` VALUES (1);", b"`user`", "expected table 'page', found table 'user'"),
        (CREATE.replace(b"_title`", b"_name`"), b")", "table 'page' has no column 'page_title'"),
        (CREATE.replace(b"_random", b"_title"), b")", "table 'page' has 2 columns 'page_title', not one"),
        (CREATE + CREATE, b"", "table 'page' is created a second time"),
        (b"CREATE TABLE `page` (`a` int", b"", "expected ')' after the columns, found the end of the file"),
        (b"CREATE TABLE 'page' (`a` int);", b"'page'", "expected a name, found \"'page' (`a` int);\""),
        (b"CREATE TABLE `page` AS SELECT 1;", b"AS", "expected '(', found 'AS SELECT 1;'"),
        (b"INSERT INTO `page` VALUES (1);", b"VALUES", "the rows come before CREATE TABLE and without a list of"),
        (b"INSERT IGNORE INTO `page` VALUES (1);", b"IGNORE", "expected 'INTO', found 'IGNORE INTO"),
        (CREATE + b"INSERT INTO `page` SELECT 1;", b"SELECT", "expected '(' or 'VALUES', found 'SELECT 1;'"),
        (b"INSERT INTO `page` (`a` `b`)", b"`b`", "expected ',' or ')', found '`b`)', then the end of the file"),
    ],
)
def test_what_is_no_such_dump_is_refused_at_its_place(data: bytes, where: bytes, what: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        read(data)
    found = re.fullmatch(r"dump: byte offset (\d+): (.*)", str(caught.value))
    assert found
    assert found[2].startswith(what)
    assert data[int(found[1]) :].startswith(where)


@pytest.mark.parametrize(
    ("rows", "at", "what"),
    [
        (b" ;", 1, "expected '(' before a row"),
        (b" 1,2", 1, "expected '(' before a row"),
        (b" (1,2)", 5, "expected ',' and 4 values in all"),
        (b" (1,2,3,4,5);", 9, "expected ')' after 4 values"),
        (b" (1,2,'a,4);", 6, "expected a string, a number or NULL"),
        (b" (1,2,'a\\',4);", 6, "expected a string, a number or NULL"),
        (b" (1,2,'a'b',4);", 9, "expected ',' and 4 values in all"),
        (b" (1,,3,4);", 4, "expected a string, a number or NULL"),
        (b" (0x41,1,wrong,4);", 9, "expected a string, a number or NULL"),
        (b" (1,2,3,4)", 10, "expected ',' or ';' after a row"),
        (b" (1,2,3,4)(1,2,3,4);", 10, "expected ',' or ';' after a row"),
        (b" (1,2,3,4),", 11, "expected '(' before a row"),
        (b" (1,2,3,4),;", 11, "expected '(' before a row"),
    ],
)
@pytest.mark.parametrize("chunk_bytes", [1, 1 << 16])
def test_a_row_that_is_wrong_is_refused_at_its_place(rows: bytes, at: int, what: str, chunk_bytes: int) -> None:
    start = CREATE + b"INSERT INTO `page` VALUES"
    with pytest.raises(InvalidEvent, match=re.escape(f"dump: byte offset {len(start) + at}: {what}")):
        read(start + rows, chunk_bytes=chunk_bytes)


def test_a_table_of_too_many_columns_is_refused() -> None:
    names = [b"`c%d` int" % n for n in range(MAX_COLUMNS)]
    row = b",".join([b"1"] * MAX_COLUMNS)
    data = b"CREATE TABLE `t` (%s);INSERT INTO `t` VALUES (%s);" % (b",".join(names), row)
    assert read(data, ("c0", f"c{MAX_COLUMNS - 1}"), "t") == [(1, 1)]
    with pytest.raises(InvalidEvent, match=f"expected at most {MAX_COLUMNS} columns, found 'more int"):
        read(data.replace(b"int);", b"int,more int);"), ("c0",), "t")
    with pytest.raises(InvalidEvent, match=f"expected at most {MAX_COLUMNS} columns, found 'more,"):
        read(b"INSERT INTO `t` (%s" % (b"more," * (MAX_COLUMNS + 1)), ("c0",), "t")


# --- bounds on memory and time


@pytest.mark.timeout(20)
@pytest.mark.parametrize("chunk_bytes", [16, 1000, 1 << 16, 1 << 23])
def test_the_longest_row_is_read_and_one_byte_more_is_refused(chunk_bytes: int) -> None:
    start = b"CREATE TABLE `t` (`a` int, `b` blob);INSERT INTO `t` VALUES"
    longest = b"(1,'%s')," % (b"x" * (MAX_TOKEN_BYTES - len("(1,''),")))
    assert len(longest) == MAX_TOKEN_BYTES
    assert len(read(start + longest * 3 + b"(2,'');", ("a",), "t", chunk_bytes)) == 4
    with pytest.raises(InvalidEvent, match=rf"a row has at most {MAX_TOKEN_BYTES} bytes"):
        read(start + longest + longest.replace(b"x", b"xx", 1) + b"(2,'');", ("a",), "t", chunk_bytes)


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"", b"x"),
        (b"/*", b"*"),
        (b"-- ", b"x"),
        (b"SET a='", b"\\'"),
        (b"CREATE TABLE `", b"``"),
        (b"CREATE TABLE `t` (`a` int);INSERT INTO `t` VALUES ('", b"\\'"),
        (b"CREATE TABLE `t` (`a` int);INSERT INTO `t` VALUES ('", b"''"),
        (b"CREATE TABLE `t` (`a` int);INSERT INTO `t` VALUES (1", b"1"),
        (b"CREATE TABLE `t` (`a` int);INSERT INTO `t` VALUES (0x", b"1f"),
        (b"CREATE TABLE `t` (`a` int);INSERT INTO `t` VALUES (", b" "),
        (b"INSERT INTO `t` (", b"a,"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.timeout(10)
def test_what_has_no_end_is_given_up_soon(start: bytes, more: bytes, packed: bool) -> None:
    stream = Endless(start, more)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidEvent, match=r"byte offset \d+: expected "):
            list(read_rows(_Packed(stream) if packed else stream, "t", ("a",)))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert stream.given_bytes < 4 * MAX_TOKEN_BYTES
    assert peak_bytes < 10 * MAX_TOKEN_BYTES


class _Packed:
    """The gzip of what a stream gives, without an end."""

    def __init__(self, stream: Endless) -> None:
        self._pieces = self._compressed(stream)

    def read(self, size: int, /) -> bytes:
        return next(self._pieces)

    @staticmethod
    def _compressed(stream: Endless) -> Iterator[bytes]:
        target = io.BytesIO()
        with gzip.GzipFile(fileobj=target, mode="wb", compresslevel=1) as packer:
            while True:
                packer.write(stream.read(1 << 14))
                packer.flush()
                yield target.getvalue()
                target.seek(0)
                target.truncate()


def test_gzip_of_much_in_little_needs_little_memory() -> None:
    packed = gzip.compress(b"\n" * (1 << 25))
    assert len(packed) < 1 << 16
    tracemalloc.start()
    try:
        with pytest.raises(InvalidEvent, match=f"byte offset {1 << 25}: the file ends here"):
            read(packed)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1_000_000


def test_a_statement_of_one_long_line_needs_little_memory() -> None:
    row = b"(7,0,'%s',0.5)" % (b"t" * 1000)
    count = 16_000

    class Line(Trickle):
        left = count

        def read(self, size: int, /) -> bytes:
            if not self.left:
                return super().read(size)
            self.left -= 100
            return (
                CREATE * (self.left == count - 100)
                + b"INSERT INTO `page` VALUES " * (self.left == count - 100)
                + b",".join([row] * 100)
                + b"," * bool(self.left)
            )

    tracemalloc.start()
    try:
        assert sum(row == (7,) for row in read_rows(Line(b";", [1]), "page", ("page_id",))) == count
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2_000_000 < len(row) * count // 8


@pytest.mark.timeout(10)
@pytest.mark.parametrize("value", [b"'a'", b"'''a'''", b"'\\'\\''", b"0", b"1.5e5", b"NULL", b"0x41", b"_binary ''''"])
def test_a_wrong_last_value_is_found_without_trying_the_others_in_every_way(value: bytes) -> None:
    count = 120
    create = b"CREATE TABLE `t` (%s);" % b",".join(b"`c%d` int" % n for n in range(count))
    row = b",".join([value] * (count - 1))
    with pytest.raises(InvalidEvent, match="expected a string, a number or NULL"):
        read(create + b"INSERT INTO `t` VALUES (%s,wrong);" % row + b" " * (2 * MAX_TOKEN_BYTES), ("c7",), "t", 64)
