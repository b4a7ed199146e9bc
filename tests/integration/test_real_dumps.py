from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from coordjournal.errors import InvalidEvent
from coordjournal.importers.sqldump import Value, read_rows

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
REDIRECT = ("rd_from", "rd_namespace", "rd_title", "rd_interwiki", "rd_fragment")
PAGE = ("page_id", "page_namespace", "page_title")

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"Wikimedia's dumps are not in {DATA}")


def path_of(wiki: str, table: str) -> Path:
    return DATA / f"{wiki}-20160111-{table}.sql.gz"


def read(wiki: str, table: str, columns: tuple[str, ...]) -> list[tuple[Value, ...]]:
    return list(read_rows(path_of(wiki, table), table, columns))


def naive_rows(text: bytes) -> list[list[bytes | None]]:
    """Read the same rows byte by byte, with nothing taken from the reader: numbers stay as written."""
    rows: list[list[bytes | None]] = []
    for line in text.split(b"\n"):
        if not line.startswith(b"INSERT INTO "):
            continue
        at = line.index(b" VALUES ") + 8
        while line[at : at + 1] != b";":
            at += 1  # the parenthesis, or the comma before it
            row: list[bytes | None] = []
            while line[at - 1 : at] != b")":
                at += line[at : at + 1] in (b"(", b",")
                start = at
                if line[at : at + 1] == b"'":
                    value = bytearray()
                    at += 1
                    while line[at : at + 1] != b"'":
                        at += line[at : at + 1] == b"\\"
                        value += line[at : at + 1]
                        at += 1
                    at += 1
                    row.append(bytes(value))
                else:
                    while line[at : at + 1] not in (b",", b")"):
                        at += 1
                    row.append(None if line[start:at] == b"NULL" else line[start:at])
                at += 1
            rows.append(row)
    return rows


@pytest.mark.parametrize(
    ("wiki", "redirects", "interwiki", "pages"), [("miwiki", 1193, 24, 12615), ("hzwiki", 10, 2, 175)]
)
def test_the_counts_are_those_that_are_known(wiki: str, redirects: int, interwiki: int, pages: int) -> None:
    rows = read(wiki, "redirect", REDIRECT)
    assert len(rows) == redirects
    assert sum(1 for row in rows if row[3]) == interwiki
    assert len(read(wiki, "page", PAGE)) == pages


@pytest.mark.parametrize("wiki", ["miwiki", "hzwiki"])
def test_pages_are_as_the_database_keeps_them(wiki: str) -> None:
    pages = read(wiki, "page", PAGE)
    assert len({number for number, _, _ in pages}) == len(pages)
    assert len({(namespace, title) for _, namespace, title in pages}) == len(pages)
    for number, namespace, title in pages:
        assert isinstance(number, int)
        assert isinstance(namespace, int)
        assert isinstance(title, bytes)
        assert title.decode()
        assert b" " not in title


def test_titles_with_quotes_and_backslashes() -> None:
    titles = [title for (title,) in read("miwiki", "page", ("page_title",)) if isinstance(title, bytes)]
    assert [len([title for title in titles if mark in title]) for mark in (b"'", b'"', b"\\")] == [18, 0, 4]
    assert rb"Broken/Template\x3aMaramara" in titles


@pytest.mark.parametrize("wiki", ["miwiki", "hzwiki"])
@pytest.mark.parametrize("table", ["redirect", "page"])
def test_a_naive_reader_finds_the_same_rows(wiki: str, table: str) -> None:
    columns = REDIRECT if table == "redirect" else PAGE
    plain = [
        tuple(str(value).encode() if isinstance(value, int) else value for value in row)
        for row in read(wiki, table, columns)
    ]
    text = gzip.decompress(path_of(wiki, table).read_bytes())
    assert plain == [tuple(row[: len(columns)]) for row in naive_rows(text)]


def test_a_table_given_for_the_other_is_refused_at_its_head() -> None:
    with pytest.raises(InvalidEvent, match="byte offset 1002: expected table 'redirect', found table 'page'"):
        next(read_rows(path_of("hzwiki", "page"), "redirect", REDIRECT))
    with pytest.raises(InvalidEvent, match="has no column 'page_language'"):
        next(read_rows(path_of("hzwiki", "page"), "page", (*PAGE, "page_language")))
