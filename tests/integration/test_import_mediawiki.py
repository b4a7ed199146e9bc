"""A wiki's redirects become a journal: real dumps, strange dumps, killed imports, several at a time."""

from __future__ import annotations

import gzip
import itertools
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import coordjournal as cj
from coordjournal import maintenance
from coordjournal.importers import mediawiki
from coordjournal.importers.report import Imported, Reject
from tests.integration.processes import Channel, start
from tests.support import CHECKOUT, alias, fsck, git

DATA: Final = CHECKOUT.parent / "shared" / "data"
AT: Final = "2026-02-28T00:00:00.000000Z"
ACTOR: Final = "importer@example.org"

real = pytest.mark.skipif(not DATA.is_dir(), reason=f"Wikimedia's dumps are not in {DATA}")

RedirectRow = tuple[int, int, bytes | None, bytes | None]
PageRow = tuple[int, int, bytes]


def dumps_of(wiki: str) -> tuple[Path, Path]:
    return DATA / f"{wiki}-20160111-redirect.sql.gz", DATA / f"{wiki}-20160111-page.sql.gz"


def write_dump(path: Path, table: str, columns: str, rows: list[tuple[int | bytes | None, ...]]) -> Path:
    """Write rows as mysqldump does."""
    values = ",".join("(" + ",".join(literal(value) for value in row) + ")" for row in rows)
    text = f"-- MySQL dump 10.13\nCREATE TABLE `{table}` (\n{columns}\n) ENGINE=InnoDB;\n"
    text += f"INSERT INTO `{table}` VALUES {values};\n" if rows else ""
    text += "-- Dump completed on 2026-02-28  0:00:00\n"
    data = text.encode("latin-1")
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def literal(value: int | bytes | None) -> str:
    if not isinstance(value, bytes):
        return "NULL" if value is None else str(value)
    return "'" + value.decode("latin-1").replace("\\", "\\\\").replace("'", "\\'") + "'"


def write_dumps(directory: Path, redirects: list[RedirectRow], pages: list[PageRow]) -> tuple[Path, Path]:
    columns = "`rd_from` int,\n`rd_namespace` int,\n`rd_title` varbinary(255),\n`rd_interwiki` varbinary(32)"
    redirect = write_dump(directory / "redirect.sql.gz", "redirect", columns, list(redirects))
    columns = "`page_id` int,\n`page_namespace` int,\n`page_title` varbinary(255)"
    return redirect, write_dump(directory / "page.sql", "page", columns, list(pages))


class Run:
    """One import: what it returned, and what it told."""

    def __init__(self, log: cj.DecisionLog, space: str, dumps: tuple[Path, Path], *, dry_run: bool = False) -> None:
        self.rejects: list[Reject] = []
        self.progress: list[int] = []
        self.done: Imported = mediawiki.import_redirects(
            *(log, space, *dumps),
            rejects=self.rejects.append,
            progress=self.progress.append,
            dry_run=dry_run,
            actor=ACTOR,
            at=AT,
        )

    @property
    def counts(self) -> tuple[int, int, int]:
        return self.done.appended, self.done.duplicates, self.done.rejected

    @property
    def told(self) -> list[tuple[str, str]]:
        return [(reject.place, reject.code) for reject in self.rejects]


@pytest.fixture
def log() -> Iterator[cj.DecisionLog]:
    with cj.DecisionLog.in_memory() as made:
        yield made


def kept(log: cj.DecisionLog, space: str) -> list[tuple[int, str, str, str, cj.Event]]:
    return [(e.seq, e.key, e.at, e.actor, e.event) for e in log.events(space)]


@real
def test_the_redirects_of_a_real_wiki_become_a_journal(tmp_path: Path) -> None:
    """1,193 redirects: all are appended but one, whose page's title was broken by encoding it twice."""
    repo = tmp_path / "wiki.git"
    with cj.DecisionLog.open(repo) as log:
        rehearsed = Run(log, "miwiki", dumps_of("miwiki"), dry_run=True)
        assert not repo.exists()
        run = Run(log, "miwiki", dumps_of("miwiki"))
        assert (run.counts, rehearsed.counts) == ((1192, 0, 1), (1192, 0, 1))
        assert run.rejects == rehearsed.rejects
        assert run.told == [("rd_from 12644", "invalid_name")]
        assert "U+0081, of category Cc" in run.rejects[0].reason
        assert run.progress[-1] == 1192 + 1
        entries = list(log.events("miwiki"))
        ids = [int(entry.key.removeprefix("import:miwiki:")) for entry in entries]
        assert ids == sorted(set(ids))
        assert {(entry.actor, entry.at) for entry in entries} == {(ACTOR, AT)}
        state = log.state("miwiki")
        assert state.resolve("Hau Käinga").hops == ("Hau Käinga", "Hau Kāinga")
        assert state.resolve("10:Country data Tajikistan").canonical == "10:Country data Tahikitāna"
        elsewhere = ("en:", "wikimedia:", "m:", "ksh:", "fr:", "fi:", "w:", "ur:", "es:")
        assert sum(target.startswith(elsewhere) for target in state.aliases.values()) == 24
        again = Run(log, "miwiki", dumps_of("miwiki"))
        assert again.counts == (0, 1192, 1)
        assert again.rejects == run.rejects
        assert log.head("miwiki").seq == 1192
    fsck(repo)
    maintenance.verify(repo)
    assert git(repo, "log", "-1", "--format=%an|%s", "miwiki~1191").startswith("importer@example.org|alias: Hau Käinga")
    assert git(repo, "rev-list", "--count", "miwiki") == "1192\n"
    packs = len(list((repo / "objects" / "pack").glob("*.pack")))
    assert packs < 1192 / 10, f"{packs} durable writes: many appends are to share one"


@real
def test_a_redirect_to_a_redirect_is_a_chain(tmp_path: Path) -> None:
    with cj.DecisionLog.open(tmp_path / "wiki.git") as log:
        assert Run(log, "hzwiki", dumps_of("hzwiki")).counts == (10, 0, 0)
        state = log.state("hzwiki")
        assert state.resolve("2:Küñall").hops == ("2:Küñall", "2:Diego Grez", "2:Diego Grez-Cañete")
        assert state.aliases["2:Sirius Zwarts Bot"] == "en:User:Sirius Zwarts Bot"
    fsck(tmp_path / "wiki.git")


def import_and_tell(channel: Channel, repo: str, redirect: str, page: str, halt_at: int, at: str | None) -> list[int]:
    """Import, but wait in the middle to be told to go on, or to be killed."""

    def progress(decided: int) -> None:
        if decided == halt_at:
            channel.send(decided)
            channel.receive()

    with cj.DecisionLog.open(repo) as log:
        done = mediawiki.import_redirects(
            *(log, "s", Path(redirect), Path(page)),
            rejects=lambda _: None,
            progress=progress,
            dry_run=False,
            actor=ACTOR,
            at=at,
        )
    return [done.appended, done.duplicates, done.rejected]


def append_many(channel: Channel, repo: str, name: str, count: int) -> int:
    with cj.DecisionLog.open(repo) as log:
        channel.send("open")
        channel.receive()
        return sum(not log.append("s", alias(n), key=f"{name}-{n}", timeout=None).duplicate for n in range(count))


def many(directory: Path, count: int = 1300) -> tuple[Path, Path]:
    """Write dumps of many redirects, every hundredth one to itself."""
    redirects: list[RedirectRow] = []
    pages: list[PageRow] = []
    for page in range(1, count + 1):
        redirects.append((page, 0, b"Page_%d" % (page if page % 100 == 0 else page + count), b""))
        pages.append((page, 0, b"Page_%d" % page))
    return write_dumps(directory, redirects, pages)


@pytest.mark.parametrize("halt_at", [1, 700])
def test_an_import_that_was_killed_goes_on_when_it_is_run_again(tmp_path: Path, halt_at: int) -> None:
    repo, dumps = tmp_path / "wiki.git", many(tmp_path)
    with cj.DecisionLog.in_memory() as whole:
        assert Run(whole, "s", dumps).counts == (1287, 0, 13)
        with start(import_and_tell, repo, *dumps, halt_at, AT) as child:
            assert child.receive() == halt_at
            child.kill()
            assert child.join() == -signal.SIGKILL
        with cj.DecisionLog.open(repo) as log:
            there = log.head("s").seq
            assert halt_at * 0.99 - 1 <= there, "what was told to be decided is there"
            assert Run(log, "s", dumps, dry_run=True).counts == (1287 - there, there, 13)
            assert Run(log, "s", dumps).counts == (1287 - there, there, 13)
            assert kept(log, "s") == kept(whole, "s")
            assert Run(log, "s", dumps).counts == (0, 1287, 13)
    fsck(repo)
    maintenance.verify(repo)


@pytest.mark.parametrize("wiki", [pytest.param("miwiki", marks=real), ""])
def test_two_imports_of_the_same_dumps_at_a_time_do_it_once_while_others_append(tmp_path: Path, wiki: str) -> None:
    repo = tmp_path / "wiki.git"
    dumps = dumps_of(wiki) if wiki else many(tmp_path, 600)
    redirects, refused = (1193, 1) if wiki else (600, 6)
    with (
        start(import_and_tell, repo, *dumps, 100, None) as one,
        start(import_and_tell, repo, *dumps, 100, None) as two,
        start(append_many, repo, "a", 40) as other,
        start(append_many, repo, "b", 40) as another,
    ):
        for child in (other, another, one, two):
            child.receive()
        for child in (other, another, one, two):  # all have begun, and none has ended
            child.send("go on")
        results = [one.result(), two.result()]
        assert [other.result(), another.result()] == [40, 40]
    assert [sum(counts) for counts in results] == [redirects, redirects]
    assert sum(counts[0] for counts in results) == redirects - refused
    assert {counts[2] for counts in results} == {refused}
    with cj.DecisionLog.open(repo) as log:
        keys = Counter(entry.key for entry in log.events("s"))
        assert set(keys.values()) == {1}
        imported = [entry.key for entry in log.events("s") if entry.key.startswith("import:s:")]
        assert len(imported) == redirects - refused
        assert imported == sorted(imported, key=lambda key: int(key.split(":")[2]))
        assert len(keys) == len(imported) + 80
    fsck(repo)
    maintenance.verify(repo)


PAGES: Final[list[PageRow]] = [
    *((1, 0, b"A_b"), (2, 10, b"Box"), (3, 0, b"C"), (4, 0, b"D"), (5, 0, b"E"), (6, 0, b"F")),
    *((7, 0, "E\u0301".encode()), (8, 0, b"\xff"), (9, 0, b"_I"), (10, 0, b""), (11, 0, b"It's\\"), (12, 0, b"10:Box")),
    *((13, 0, b"N"), (14, 0, b"O"), (15, 0, b"P"), (16, 0, b"Q"), (17, -2, b"R.png"), (18, 0, b"S")),
    *((20, 0, b"V"), (20, 0, b"W")),
]


def test_how_names_are_written(log: cj.DecisionLog, tmp_path: Path) -> None:
    redirects: list[RedirectRow] = [
        (2, 10, b"Other_box", None),
        (1, 0, b"B_b", b""),
        (3, -1, b"Search", None),
        (4, 0, b"User:X_y", b"en"),
        (5, 2, b"X", b"en"),
        (6, 0, b"", b"fr"),
        (11, 0, b"It''s", None),
        (17, 6, b"R.png", None),
        (18, 14, b"", b"fr"),
    ]
    assert Run(log, "s", write_dumps(tmp_path, redirects, PAGES)).counts == (9, 0, 0)
    assert [(e.key, e.event) for e in log.events("s")] == [
        ("import:s:1", cj.AliasSet("A b", "B b")),
        ("import:s:2", cj.AliasSet("10:Box", "10:Other box")),
        ("import:s:3", cj.AliasSet("C", "-1:Search")),
        ("import:s:4", cj.AliasSet("D", "en:User:X y")),
        ("import:s:5", cj.AliasSet("E", "en:2:X")),
        ("import:s:6", cj.AliasSet("F", "fr:")),
        ("import:s:11", cj.AliasSet("It's\\", "It''s")),
        ("import:s:17", cj.AliasSet("-2:R.png", "6:R.png")),
        ("import:s:18", cj.AliasSet("S", "fr:14:")),
    ]


def test_what_is_refused_is_told_with_its_id_and_the_rest_goes_on(log: cj.DecisionLog, tmp_path: Path) -> None:
    redirects: list[RedirectRow] = [
        (16, 0, b"T", None),
        (16, 0, b"U", None),
        (1, 0, b"A_b", None),
        (2, 0, b"10:Other", None),
        (3, 0, b"D", None),
        (4, 0, b"C", None),
        (5, 0, b"", None),
        (6, 0, b"\xe4", None),
        (7, 0, b"A_b", None),
        (8, 0, b"A_b", None),
        (9, 0, b"A_b", None),
        (10, 0, b"A_b", None),
        (12, 0, b"A_b", None),
        (13, 0, b"X" * 600, None),
        (14, 0, None, None),
        (15, 0, "e\u0301".encode(), None),
        (99, 0, b"A_b", None),
        (-1, 0, b"A_b", None),
        (20, 0, b"A_b", None),
    ]
    dumps = write_dumps(tmp_path, redirects, PAGES)
    rehearsed = Run(log, "s", dumps, dry_run=True)
    run = Run(log, "s", dumps)
    assert run.counts == rehearsed.counts == (3, 0, 16)
    assert run.rejects == rehearsed.rejects
    assert [(reject.place, reject.code, reject.key) for reject in run.rejects] == [
        (f"rd_from {page}", code, f"import:s:{page}")
        for page, code in [
            *((-1, "not_found"), (1, "alias_cycle"), (4, "alias_cycle"), (5, "invalid_name"), (6, "invalid_name")),
            *((7, "invalid_name"), (8, "invalid_name"), (9, "invalid_name"), (10, "invalid_name")),
            *((12, "invalid_name"), (13, "invalid_name"), (14, "invalid_event"), (15, "invalid_name")),
            *((16, "key_reused"), (20, "invalid_event"), (99, "not_found")),
        ]
    ]
    reasons = {reject.place.removeprefix("rd_from "): reject.reason for reject in run.rejects}
    assert "no page has the id 99" in reasons["99"]
    assert "not UTF-8, from its byte 1 on" in reasons["6"]
    assert "normalization form C" in reasons["7"]
    assert "the redirect of page 2 is written '10:Box' too" in reasons["12"]
    assert dict(log.state("s").aliases) == {"10:Box": "10:Other", "C": "D", "Q": "T"}
    assert Run(log, "s", dumps).counts == (0, 3, 16)


def test_a_newer_dump_adds_what_is_new(log: cj.DecisionLog, tmp_path: Path) -> None:
    redirects: list[RedirectRow] = [(3, 0, b"X", None), (5, 0, b"X", None)]
    assert Run(log, "s", write_dumps(tmp_path, redirects, PAGES)).counts == (2, 0, 0)
    redirects = [(1, 0, b"X", None), (3, 0, b"Y", None), (4, 0, b"Y", None), (5, 0, b"X", None), (6, 0, b"X", None)]
    run = Run(log, "s", write_dumps(tmp_path, redirects, PAGES))
    assert run.counts == (3, 1, 1)
    assert run.told == [("rd_from 3", "key_reused")], "the first decision stands"
    assert [entry.key for entry in log.events("s", after=2)] == ["import:s:1", "import:s:4", "import:s:6"]


def test_the_same_dumps_in_two_spaces_are_two_imports(log: cj.DecisionLog, tmp_path: Path) -> None:
    dumps = write_dumps(tmp_path, [(3, 0, b"X", None)], PAGES)
    for space in ("one", "two"):
        assert Run(log, space, dumps).counts == (1, 0, 0)
        assert [entry.key for entry in log.events(space)] == [f"import:{space}:3"]


@pytest.mark.parametrize("broken", ["redirect", "page"])
def test_a_dump_that_is_cut_off_imports_nothing(tmp_path: Path, broken: str) -> None:
    redirect, page = many(tmp_path, 50)
    whole = (redirect if broken == "redirect" else page).read_bytes()
    (redirect if broken == "redirect" else page).write_bytes(whole[:-60])
    with cj.DecisionLog.open(tmp_path / "wiki.git") as log:
        for dry_run in (True, False):
            with pytest.raises(cj.InvalidEvent, match=f"{broken}.sql"):
                Run(log, "s", (redirect, page), dry_run=dry_run)
    assert not (tmp_path / "wiki.git").exists()


def test_an_error_that_an_operator_has_to_mend_ends_the_import(tmp_path: Path) -> None:
    dumps = write_dumps(tmp_path, [(3, 0, b"X", None), (5, 0, b"E", None)], PAGES)
    with cj.DecisionLog.open(tmp_path / "wiki.git") as log:
        log.append("s", alias(1))
    git(tmp_path, "clone", "--quiet", "--mirror", "wiki.git", "mirror.git")
    with cj.DecisionLog.open(tmp_path / "mirror.git") as mirror:
        assert Run(mirror, "s", dumps, dry_run=True).counts == (1, 0, 1)
        with pytest.raises(cj.ForeignRepository):
            Run(mirror, "s", dumps)
        assert mirror.head("s").seq == 1


def test_dumps_that_are_none(log: cj.DecisionLog, tmp_path: Path) -> None:
    redirect, page = write_dumps(tmp_path, [(3, 0, b"X", None)], PAGES)
    with pytest.raises(cj.InvalidEvent, match="expected table 'redirect', found table 'page'"):
        Run(log, "s", (page, redirect))
    with pytest.raises(cj.NotFound):
        Run(log, "s", (redirect, tmp_path / "nowhere.sql"))
    write_dump(redirect, "redirect", "`rd_from` int,\n`rd_namespace` int,\n`rd_title` text", [(3, 0, b"X")])
    with pytest.raises(cj.InvalidEvent, match="has no column 'rd_interwiki'"):
        Run(log, "s", (redirect, page))
    columns = "`rd_from` int,\n`rd_namespace` int,\n`rd_title` text,\n`rd_interwiki` text"
    write_dump(redirect, "redirect", columns, [(3, 0, b"X", None), (None, 0, b"X", None)])
    with pytest.raises(cj.InvalidEvent, match="row 2: rd_from is None"):
        Run(log, "s", (redirect, page))
    assert log.spaces() == []


@pytest.mark.parametrize(("redirects", "pages", "fit"), [(19, 9, False), (20, 10, True), (9, 0, True), (10, 0, False)])
def test_dumps_of_two_wikis_import_nothing(tmp_path: Path, redirects: int, pages: int, fit: bool) -> None:
    rows: list[RedirectRow] = [(number, 0, b"X", None) for number in range(redirects)]
    found: list[PageRow] = [(number, 0, b"Page_%d" % number) for number in range(pages)]
    dumps = write_dumps(tmp_path, rows, [*found, (1000, 0, b"Another")])
    with cj.DecisionLog.open(tmp_path / "wiki.git") as log:
        for dry_run in (True, False):
            if fit:
                assert Run(log, "s", dumps, dry_run=dry_run).counts == (pages, 0, redirects - pages)
                continue
            with pytest.raises(cj.InvalidEvent, match="the dumps do not belong together"):
                Run(log, "s", dumps, dry_run=dry_run)
    assert (tmp_path / "wiki.git").exists() == (fit and pages > 0)


TITLES: Final = (b"A", b"B", b"C", b"D", b"_", b"\xff")


@given(
    st.lists(st.tuples(st.integers(1, 8), st.sampled_from((0, 0, 0, 2)), st.sampled_from(TITLES)), max_size=10),
    st.permutations(list(itertools.product((0, 2), TITLES[:4]))),
    st.integers(0, 8),
)
@settings(max_examples=50, deadline=None)
def test_whatever_was_imported_before_an_import_ends_where_one_ends_that_is_run_at_once(
    rows: list[tuple[int, int, bytes]], titles: list[tuple[int, bytes]], first: int
) -> None:
    pages: list[PageRow] = [(number, *title) for number, title in enumerate(titles, 1)]
    with (
        tempfile.TemporaryDirectory() as directory,
        cj.DecisionLog.in_memory() as whole,
        cj.DecisionLog.in_memory() as parts,
    ):
        redirects: list[RedirectRow] = [(*row, None) for row in rows]
        some = sorted(redirects, key=lambda row: row[0])[:first]
        Run(parts, "s", write_dumps(Path(directory), some, pages))
        dumps = write_dumps(Path(directory), redirects, pages)
        rehearsed, run = Run(whole, "s", dumps, dry_run=True), Run(whole, "s", dumps)
        assert (rehearsed.counts, rehearsed.rejects) == (run.counts, run.rejects)
        assert sum(run.counts) == len(rows)
        assert run.done.duplicates == 0
        rehearsed, rest = Run(parts, "s", dumps, dry_run=True), Run(parts, "s", dumps)
        assert (rehearsed.counts, rehearsed.rejects) == (rest.counts, rest.rejects)
        assert rest.told == run.told
        assert kept(parts, "s") == kept(whole, "s")
        assert Run(parts, "s", dumps).counts == (0, run.done.appended, run.done.rejected)
