"""Importing JSON lines: what is taken, under which key, what is told of the rest, and that once is enough."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import coordjournal as cj
from coordjournal.entry import MAX_APPEND_BYTES
from coordjournal.importers.jsonl import export_jsonl, import_jsonl
from coordjournal.importers.lines import MAX_LINE_BYTES, read_lines, strict_json
from coordjournal.importers.report import Imported, Reject
from tests.support import alias
from tests.unit.strategies import events

AT = "2026-01-31T12:00:00.123456Z"
IMPORTED_AT = "2026-02-28T00:00:00.000000Z"
ACTOR = "importer@example.org"


@pytest.fixture
def log() -> Iterator[cj.DecisionLog]:
    with cj.DecisionLog.in_memory() as made:
        yield made


class Stop(Exception):
    """The import is interrupted."""


class Run:
    """One import: what it returned and told; `stop_at` interrupts it when so many appends are decided."""

    def __init__(
        self, log: cj.DecisionLog, data: bytes | io.BufferedIOBase, *, dry_run: bool = False, stop_at: int | None = None
    ) -> None:
        self.rejects: list[Reject] = []
        self.progress: list[int] = []
        self._stop_at = stop_at
        self.done: Imported | None = None
        file = io.BytesIO(data) if isinstance(data, bytes) else data
        try:
            self.done = import_jsonl(
                *(log, "s", file),  # type: ignore[arg-type]
                rejects=self.rejects.append,
                progress=self._count,
                dry_run=dry_run,
                actor=ACTOR,
                at=IMPORTED_AT,
            )
        except Stop:
            pass

    def _count(self, decided: int) -> None:
        self.progress.append(decided)
        if self._stop_at is not None and decided >= self._stop_at:
            raise Stop

    @property
    def counts(self) -> tuple[int, int, int]:
        assert self.done is not None
        return self.done.appended, self.done.duplicates, self.done.rejected

    @property
    def told(self) -> list[tuple[str, str]]:
        return [(reject.place, reject.code) for reject in self.rejects]


Kept = tuple[int, str, str, str, cj.Event]


def kept(log: cj.DecisionLog) -> list[Kept]:
    return [(e.seq, e.key, e.at, e.actor, e.event) for e in log.events("s")]


def sizes(log: cj.DecisionLog) -> list[int]:
    """Return how many events each append of the log has."""
    commits = [entry.commit for entry in log.events("s")]
    return [commits.count(commit) for commit in dict.fromkeys(commits)]


def bare(event: cj.Event) -> bytes:
    return msgspec.json.encode(event) + b"\n"


def entry(
    seq: int, key: str, event: cj.Event, commit: str | None = None, actor: str = "Ada", at: str = AT, **more: object
) -> bytes:
    line = {"seq": seq, "key": key, "at": at, "actor": actor, "event": json.loads(bare(event)), **more}
    if commit is not None:
        line |= {"commit": commit, "term": 0}
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


def key_of(line: bytes, occurrence: int = 1) -> str:
    return f"import:{hashlib.sha256(line).hexdigest()}:{occurrence}"


def test_an_exported_log_is_read_back_append_by_append(log: cj.DecisionLog) -> None:
    log.append("s", [alias(1), cj.PagesBound("a", "b")], key="one", actor="Ada L.", at=AT)
    log.append("s", cj.OverlaySet("p", "o", "text/plain", "zwei\nZeilen\u2028é"), key="two", actor="Bob")
    log.append("s", [alias(2), alias(2), alias(2)], key="three")
    lines = list(export_jsonl(log, "s"))
    assert list(json.loads(lines[0])) == ["seq", "key", "at", "actor", "event", "commit", "term"]
    with cj.DecisionLog.in_memory() as copy:
        run = Run(copy, b"".join(lines))
        assert run.counts == (3, 0, 0)
        assert run.progress[-1] == 3
        assert kept(copy) == kept(log)
        assert sizes(copy) == [2, 1, 3]
        assert copy.state("s") == log.state("s")
        assert Run(copy, b"".join(lines)).counts == (0, 3, 0)
        assert list(export_jsonl(copy, "s")) == lines


def test_an_export_belongs_to_the_head_at_the_call(log: cj.DecisionLog) -> None:
    log.append("s", alias(1))
    lines = export_jsonl(log, "s")
    log.append("s", alias(2))
    assert len(list(lines)) == 1
    assert list(export_jsonl(log, "nothing-here")) == []


def test_the_lines_of_an_appends_file_in_git_are_an_append(log: cj.DecisionLog) -> None:
    data = entry(5, "one", alias(1)) + entry(6, "one", alias(2)) + entry(7, "two", alias(3))
    assert Run(log, data).counts == (2, 0, 0)
    assert sizes(log) == [2, 1]


def test_a_bare_event_gets_its_key_from_its_line_and_how_often_it_came(log: cj.DecisionLog) -> None:
    one, two = bare(alias(1)).rstrip(), b' {"type" : "alias.set", "alias":"x", "target":"y"} '
    data = one + b"\n" + two + b"\r\n\n \t\r\n" + one + b"\r\n" + one
    run = Run(log, data)
    assert run.counts == (4, 0, 0)
    assert kept(log) == [
        (1, key_of(one, 1), IMPORTED_AT, ACTOR, alias(1)),
        (2, key_of(two, 1), IMPORTED_AT, ACTOR, cj.AliasSet("x", "y")),
        (3, key_of(one, 2), IMPORTED_AT, ACTOR, alias(1)),
        (4, key_of(one, 3), IMPORTED_AT, ACTOR, alias(1)),
    ]
    assert Run(log, data).counts == (0, 4, 0)


def test_both_forms_in_one_file(log: cj.DecisionLog) -> None:
    data = bare(alias(1)) + entry(1, "k", alias(2), "c") + entry(2, "k", alias(3), "c") + bare(alias(4))
    assert Run(log, data).counts == (3, 0, 0)
    assert sizes(log) == [1, 2, 1]
    assert [e.event for e in log.events("s")] == [alias(n) for n in (1, 2, 3, 4)]


GOOD = bare(alias(1))

REFUSED = {
    "not JSON": (b"{", "invalid_event", "not JSON"),
    "not UTF-8": (b'{"type":"alias.removed","alias":"\xff"}', "invalid_event", "byte 34 is not UTF-8"),
    "half a surrogate pair": (rb'{"type":"alias.removed","alias":"\uD83D"}', "invalid_event", "surrogate"),
    "a field twice": (b'{"type":"alias.set","alias":"a","target":"b","alias":"c"}', "invalid_event", "'alias' stands"),
    "NaN": (b'{"type":"alias.removed","alias":NaN}', "invalid_event", "NaN"),
    "infinity": (b"-Infinity", "invalid_event", "-Infinity"),
    "a long number": (b'{"seq":' + b"9" * 5000 + b"}", "invalid_event", "5,000 digits"),
    "nested deeply": (b'{"type":' * 100_000 + b"1" + b"}" * 100_000, "invalid_event", "nested"),
    "a long line": (b'{"type":"alias.removed","alias":"' + b"x" * MAX_LINE_BYTES + b'"}', "too_large", "4,194,304"),
    "a list": (b"[]", "invalid_event", "neither an event nor an entry"),
    "what pipe takes": (b'{"events":[],"key":"k"}', "invalid_event", "neither an event nor an entry"),
    "an unknown event": (b'{"type":"alias.moved","alias":"a"}', "invalid_event", "alias.moved"),
    "an unknown field": (b'{"type":"alias.removed","alias":"a","why":""}', "invalid_event", "why"),
    "a missing field": (b'{"type":"alias.set","alias":"a"}', "invalid_event", "target"),
    "a wrong type": (b'{"type":"alias.removed","alias":1}', "invalid_event", "int"),
    "an illegal name": (b'{"type":"alias.removed","alias":" a"}', "invalid_name", "white space"),
    "what the state refuses": (b'{"type":"alias.set","alias":"a","target":"a"}', "alias_cycle", "leads back"),
    "an entry without a key": (b'{"seq":1,"event":{"type":"alias.removed","alias":"a"}}', "invalid_event", "key"),
    "an entry with a broken seq": (entry(1, "k", alias(7)).replace(b": 1,", b": 1.0,", 1), "invalid_event", "float"),
    "an entry with a broken time": (entry(1, "k", alias(7), at="today"), "invalid_event", "today"),
    "an entry with a broken actor": (entry(1, "k", alias(7), actor="<a>"), "invalid_name", "<a>"),
    "an entry with a broken key": (entry(1, "k k", alias(7)), "invalid_name", "'k k'"),
    "an entry with more": (entry(1, "k", alias(7), via="local"), "invalid_event", "via"),
    "an entry with null for a commit": (
        entry(1, "k", alias(7), commit_=0).replace(b"commit_", b"commit"),
        *("invalid_event", "commit"),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_told_with_its_line_and_the_rest_goes_on(log: cj.DecisionLog, name: str) -> None:
    line, code, reason = REFUSED[name]
    data = bare(alias(1)) + b"\n" + line.rstrip() + b"\n" + bare(alias(2))
    run = Run(log, data)
    assert run.counts == (2, 0, 1)
    assert run.told == [("line 3", code)]
    assert reason in run.rejects[0].reason
    assert [e.event for e in log.events("s")] == [alias(1), alias(2)]
    with cj.DecisionLog.in_memory() as other:
        rehearsed = Run(other, data, dry_run=True)
        assert (rehearsed.counts, rehearsed.rejects) == (run.counts, run.rejects)
        assert other.head("s").seq == 0


def test_a_reject_bears_the_key_that_the_append_would_have(log: cj.DecisionLog) -> None:
    circle = bare(cj.AliasSet("a", "a")).rstrip()
    unknown = b'{"type":"alias.moved"}'
    data = b"\n".join([circle, unknown, entry(1, "k", cj.AliasSet("a", "a")).rstrip(), b'{"seq":1,"key":"l"', b"[]"])
    run = Run(log, data)
    assert [reject.key for reject in run.rejects] == [key_of(circle), key_of(unknown), "k", "", ""]


class Endless(io.BufferedIOBase):
    """A file that is `start` and then `more` again and again, up to `size` bytes."""

    def __init__(self, start: bytes, more: bytes, size: int, end: bytes = b"") -> None:
        self._pieces = [start, *[more] * ((size - len(start)) // len(more)), end]
        self._left = iter(self._pieces)

    def read(self, size: int | None = -1, /) -> bytes:
        return next((piece for piece in self._left if piece), b"")

    def seekable(self) -> bool:
        return False


def test_a_line_without_an_end_takes_no_memory(log: cj.DecisionLog) -> None:
    start, end = bare(alias(1)) + b'{"type":"', b"\n" + bare(alias(2))
    tracemalloc.start()
    try:
        run = Run(log, Endless(start, b"x" * (1 << 20), 100 << 20, end))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert run.counts == (2, 0, 1)
    assert run.told == [("line 2", "too_large")]
    assert peak < 5 * MAX_LINE_BYTES


def test_an_append_without_an_end_takes_no_memory(log: cj.DecisionLog) -> None:
    overlay = cj.OverlaySet("p", "o", "text/plain", "x" * 50_000)
    lines = 600
    data = b"".join(entry(seq, "k", overlay, "c") for seq in range(1, lines + 1))
    tracemalloc.start()
    try:
        run = Run(log, data + entry(lines + 1, "next", alias(1), "d"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert run.counts == (1, 0, lines)
    assert run.told == [(f"line {number}", "too_large") for number in range(1, lines + 1)]
    assert peak < len(data) + 8 * MAX_APPEND_BYTES  # the data itself is this test's


def test_an_append_that_just_fits_is_taken_and_one_byte_more_is_not(log: cj.DecisionLog) -> None:
    room = MAX_APPEND_BYTES - len(entry(1, "k", cj.OverlaySet("p", "o", "text/plain", "")).replace(b" ", b""))
    assert Run(log, entry(1, "k", cj.OverlaySet("p", "o", "text/plain", "x" * room))).counts == (1, 0, 0)
    for dry_run in (True, False):
        run = Run(log, entry(2, "l", cj.OverlaySet("p", "o", "text/plain", "x" * (room + 1))), dry_run=dry_run)
        assert run.told == [("line 1", "too_large")]


APPEND = [entry(seq, "k", alias(seq), "c") for seq in (4, 5, 6)]


@pytest.mark.parametrize(
    ("lines", "refused", "taken"),
    [
        pytest.param([*APPEND[:2], b"{\n", APPEND[2]], {1, 2, 3, 4}, [], id="a broken line in its middle"),
        pytest.param([*APPEND, b"{\n"], {1, 2, 3, 4}, [], id="a broken line after it"),
        pytest.param([b"{\n", *APPEND], {1, 2, 3, 4}, [], id="a broken line before it"),
        pytest.param([b"{\n", b"\n", *APPEND], {1, 3, 4, 5}, [], id="a broken line before it, and an empty one"),
        pytest.param(
            [entry(1, "a", alias(1), "a"), b"{\n", entry(3, "b", alias(3), "b"), *APPEND],
            *({1, 2, 3}, ["k"]),
            id="a broken line between two others",
        ),
        pytest.param([b"{\n", bare(alias(9)), *APPEND], {1}, [key_of(bare(alias(9)).rstrip()), "k"], id="bare between"),
        pytest.param([*APPEND, b"[]\n", entry(7, "l", alias(1), "d")], {4}, ["k", "l"], id="a line of another kind"),
        pytest.param([APPEND[0], APPEND[2]], {1, 2}, [], id="a line is missing"),
        pytest.param([APPEND[0], APPEND[0], APPEND[1]], {1, 2, 3}, [], id="a line twice"),
        pytest.param(
            [entry(3, "j", alias(1), "b"), APPEND[0], APPEND[1].replace(b"alias.set", b"alias.not"), APPEND[2]],
            *({2, 3, 4}, ["j"]),
            id="an event that is not known",
        ),
        pytest.param([APPEND[0], entry(5, "k", alias(5), "c", actor="Bob")], {1, 2}, [], id="two actors"),
        pytest.param([APPEND[0], entry(5, "k", alias(5), "c", at=IMPORTED_AT)], {1, 2}, [], id="two times"),
        pytest.param(
            [APPEND[0], APPEND[1], entry(6, "k", cj.AliasSet("z", "z"), "c"), entry(7, "l", alias(1), "d")],
            *({1, 2, 3}, ["l"]),
            id="what the journal refuses",
        ),
        pytest.param(
            [APPEND[0], bare(alias(9)), APPEND[1], APPEND[2]],
            *({3, 4}, ["k", key_of(bare(alias(9)).rstrip())]),
            id="it goes on after another line",
        ),
        pytest.param(
            [APPEND[0], bare(alias(9)), APPEND[0].replace(b'"seq": 4', b'"seq": 5')],
            *({3}, ["k", key_of(bare(alias(9)).rstrip())]),
            id="it goes on with the same after another line",
        ),
        pytest.param([*APPEND[:2], entry(9, "l", alias(9), "d")], set(), ["k", "k", "l"], id="a log that was filtered"),
    ],
)
def test_an_append_is_taken_whole_or_not_at_all(
    log: cj.DecisionLog, lines: list[bytes], refused: set[int], taken: list[str]
) -> None:
    run = Run(log, b"".join(lines))
    assert [reject.place for reject in run.rejects] == [f"line {number}" for number in sorted(refused)]
    assert list(dict.fromkeys(key for _, key, *_ in kept(log))) == list(dict.fromkeys(taken))
    assert all(reject.reason for reject in run.rejects)


def test_the_reason_names_the_lines_of_an_append_that_is_skipped_whole(log: cj.DecisionLog) -> None:
    run = Run(log, APPEND[0] + entry(5, "k", cj.AliasSet("z", "z"), "c"))
    assert run.told == [("line 1", "alias_cycle"), ("line 2", "alias_cycle")]
    assert "event 2 of 2" in run.rejects[0].reason
    assert "from line 1 to line 2" in run.rejects[0].reason


def test_what_the_log_refuses(log: cj.DecisionLog) -> None:
    log.append("s", cj.AliasSet("a", "b"), key="used")
    data = b"".join(
        (
            entry(1, "used", cj.AliasSet("a", "b")),
            bare(cj.AliasSet("b", "a")),
            bare(cj.AliasRemoved("c")),
            entry(2, "new", cj.AliasSet("b", "c")),
            entry(3, "new", cj.AliasSet("b", "d"), "d"),
        )
    )
    run = Run(log, data)
    assert run.counts == (1, 0, 4)
    assert run.told == [
        *[("line 1", "key_reused"), ("line 2", "alias_cycle"), ("line 3", "nothing_to_retract")],
        ("line 5", "key_reused"),
    ]
    assert run.progress == sorted(run.progress)
    assert run.progress[-1] == 5


def test_a_second_run_does_not_do_what_the_first_one_refused(log: cj.DecisionLog) -> None:
    data = bare(cj.AliasRemoved("a")) + bare(cj.AliasSet("a", "b")) + bare(cj.AliasSet("c", "c"))
    first = Run(log, data)
    assert first.counts == (1, 0, 2)
    for dry_run in (True, False):
        again = Run(log, data, dry_run=dry_run)
        assert again.counts == (0, 1, 2)
        assert again.told == first.told
        assert "as of seq 0" in again.rejects[0].reason, "it would fit now, so the reason says why not"
        assert again.rejects[1] == first.rejects[1]
    assert dict(log.state("s").aliases) == {"a": "b"}


def test_a_line_that_was_mended_is_taken_by_the_next_run(log: cj.DecisionLog) -> None:
    lines = [bare(alias(1)), b'{"type":"alias.set","alias":" x","target":"y"}\n', bare(alias(2))]
    assert Run(log, b"".join(lines)).counts == (2, 0, 1)
    lines[1] = lines[1].replace(b" x", b"x")
    assert Run(log, b"".join(lines)).counts == (1, 2, 0)
    assert [e.event for e in log.events("s")] == [alias(1), alias(2), cj.AliasSet("x", "y")]


def test_what_is_new_is_judged_by_the_log_together_with_what_was_mended_before_it(log: cj.DecisionLog) -> None:
    broken = b'{"type":"alias.set","alias":" x","target":"y"}\n'
    lines = [bare(alias(1)), broken, bare(cj.AliasRemoved("x")), bare(alias(2))]
    assert Run(log, b"".join(lines)).told == [("line 2", "invalid_name"), ("line 3", "nothing_to_retract")]
    lines[1] = broken.replace(b" x", b"x")
    assert Run(log, b"".join(lines)).counts == (2, 2, 0)


def test_a_key_that_comes_twice_in_one_file(log: cj.DecisionLog) -> None:
    export = entry(1, "k", alias(1), "c") + entry(2, "l", alias(2), "d")
    data = export + export + entry(1, "k", alias(3), "e")
    rehearsed, run = Run(log, data, dry_run=True), Run(log, data)
    assert rehearsed.counts == run.counts == (2, 2, 1)
    assert rehearsed.rejects == run.rejects
    assert run.told == [("line 5", "key_reused")]


def test_what_others_did_meanwhile_does_not_make_a_second_run_refuse_what_is_new(log: cj.DecisionLog) -> None:
    data = bare(alias(1)) + bare(cj.AliasRemoved("a"))
    assert Run(log, bare(alias(1))).counts == (1, 0, 0)
    log.append("s", cj.AliasSet("a", "b"))
    assert Run(log, data).counts == (1, 1, 0)


def test_a_rehearsal_makes_no_repository(tmp_path: Path) -> None:
    with cj.DecisionLog.open(tmp_path / "wiki.git") as log:
        assert Run(log, GOOD, dry_run=True).counts == (1, 0, 0)
    assert list(tmp_path.iterdir()) == []


def test_input_that_cannot_be_read_twice(log: cj.DecisionLog) -> None:
    data = bare(cj.AliasRemoved("a")) + bare(cj.AliasSet("a", "b")) + bare(alias(1))
    for counts in ((2, 0, 1), (0, 2, 1)):
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb") as file:
            os.write(writer, data)
            os.close(writer)
            assert Run(log, file).counts == counts


def test_input_is_read_from_where_it_stands(log: cj.DecisionLog) -> None:
    file = io.BytesIO(b"a title\n" + bare(alias(1)))
    for counts in ((1, 0, 0), (0, 1, 0)):
        file.seek(8)
        assert Run(log, file).counts == counts


def test_an_error_that_is_no_refusal_ends_the_import(log: cj.DecisionLog) -> None:
    told: list[Reject] = []
    with pytest.raises(cj.Closed):
        import_jsonl(
            *(log, "s", io.BytesIO(b"".join(bare(alias(number)) for number in range(3000)))),
            rejects=told.append,
            progress=lambda decided: log.close() if decided == 1000 else None,
            dry_run=False,
            actor=ACTOR,
        )
    assert told == []


def test_an_interrupted_import_leaves_nothing_under_way(log: cj.DecisionLog) -> None:
    data = b"".join(bare(alias(number)) for number in range(3000))
    Run(log, data, stop_at=700)
    there = log.head("s").seq
    assert 700 <= there < 3000
    again = Run(log, data)
    assert again.counts == (3000 - there, there, 0)
    assert [e.event for e in log.events("s")] == [alias(number) for number in range(3000)]


def test_arguments_that_are_none(log: cj.DecisionLog) -> None:
    for space, actor, at, error in (
        ("S", ACTOR, AT, cj.InvalidName),
        ("s", "<>", AT, cj.InvalidName),
        ("s", ACTOR, "now", cj.InvalidEvent),
    ):
        with pytest.raises(error):
            import_jsonl(
                *(log, space, io.BytesIO(GOOD)),
                rejects=lambda _: None,
                progress=lambda _: None,
                dry_run=False,
                actor=actor,
                at=at,
            )
    assert log.spaces() == []


GARBAGE = (b"{\n", b"[]\n", b"\xff\n", b"\n", b'{"type":"alias.moved"}\n', b'{"seq":1,"key":"k","event":1}\n')


@st.composite
def files(draw: st.DrawFn) -> list[bytes]:
    """Draw lines: bare events, exported appends, and what is neither; what fits and what does not."""
    lines: list[bytes] = []
    seq = 1
    for number in range(draw(st.integers(0, 14))):
        match draw(st.sampled_from("bbbeeeg")):
            case "b":
                lines.append(bare(draw(events())))
            case "e":
                commit = f"c{number}" if draw(st.booleans()) else None
                for event in draw(st.lists(events(), min_size=1, max_size=3)):
                    lines.append(entry(seq, f"k{number}", event, commit))
                    seq += 1
            case _:
                lines.append(draw(st.sampled_from(GARBAGE)))
    return lines


def places(run: Run) -> list[str]:
    return [reject.place for reject in run.rejects]


@given(st.lists(events(), max_size=6), files())
@settings(max_examples=40, deadline=None)
def test_a_rehearsal_tells_what_the_import_then_does(before: list[cj.Event], lines: list[bytes]) -> None:
    data = b"".join(lines)
    with cj.DecisionLog.in_memory() as log:
        Run(log, b"".join(bare(event) for event in before))
        for _ in range(2):
            there = kept(log)
            rehearsed = Run(log, data, dry_run=True)
            assert kept(log) == there
            done = Run(log, data)
            assert (rehearsed.counts, rehearsed.rejects) == (done.counts, done.rejects)
            assert rehearsed.progress == done.progress
            assert done.done is not None
            assert len(done.rejects) == done.done.rejected


@given(st.lists(events(), max_size=4), files(), st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_an_interrupted_import_that_is_run_again_is_one_that_never_was(
    before: list[cj.Event], lines: list[bytes], stop_at: int
) -> None:
    data, first = b"".join(lines), b"".join(entry(1, f"before{n}", event) for n, event in enumerate(before))
    with cj.DecisionLog.in_memory() as whole, cj.DecisionLog.in_memory() as broken:
        Run(whole, first)
        Run(broken, first)
        done = Run(whole, data)
        Run(broken, data, stop_at=stop_at)
        finished = Run(broken, data)
        assert kept(broken) == kept(whole)
        assert places(finished) == places(done)
        there = kept(whole)
        again = Run(whole, data)
        assert kept(whole) == there, "a second run did something"
        assert done.done is not None
        assert again.counts == (0, done.done.appended + done.done.duplicates, done.done.rejected)
        assert places(again) == places(done)


@given(st.lists(st.lists(events(), min_size=1, max_size=3), max_size=8))
@settings(max_examples=50, deadline=None)
def test_an_export_is_read_back_to_the_same_state(batches: list[list[cj.Event]]) -> None:
    with cj.DecisionLog.in_memory() as log, cj.DecisionLog.in_memory() as copy:
        for number, batch in enumerate(batches):
            try:
                log.append("s", batch, key=f"k{number}", at=AT)
            except cj.Rejected:
                pass
        run = Run(copy, b"".join(export_jsonl(log, "s")))
        assert run.rejects == []
        assert kept(copy) == kept(log)
        assert sizes(copy) == sizes(log)
        assert copy.state("s") == log.state("s")


@given(st.lists(st.sampled_from([b"", b"a", b"ab\r", b"\r", b"abcd", b"abcde", b"abcdef\r"])), st.integers(1, 9))
def test_lines_are_the_same_whatever_pieces_they_come_in(lines: list[bytes], size: int) -> None:
    stream = io.BytesIO(b"\n".join(lines))
    expected = [line.removesuffix(b"\r")[:5] for line in lines]
    if lines and not lines[-1]:
        expected.pop()
    assert list(read_lines(lambda: stream.read(size), max_bytes=4)) == expected


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.text(st.characters(codec="utf-8")),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
        max_leaves=12,
    ),
    st.booleans(),
)
def test_what_is_plain_json_is_read_as_it_is(value: object, escaped: bool) -> None:
    assert strict_json(json.dumps(value, ensure_ascii=escaped).encode()) == value
