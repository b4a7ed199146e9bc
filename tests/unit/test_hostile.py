"""Whatever bytes are put in: a clear refusal, in bounded time and memory, without a traceback, and nothing changes.

`TARGETS` take any bytes and raise only what is a fault of ours; `scripts/fuzz` runs them too, guided by coverage.
"""

from __future__ import annotations

import atexit
import io
import os
import shutil
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import coordjournal as cj
from coordjournal import entry as entries
from coordjournal.authority import wire
from coordjournal.cli import main
from coordjournal.cli.exits import NOT_FOUND, OPERATOR, REFUSED, TRY_AGAIN, USAGE
from coordjournal.cli.lines import BadLine, parse
from coordjournal.entry import decode_entries, encode_entries
from coordjournal.errors import InvalidEvent, OperatorNeeded, Rejected
from coordjournal.importers.jsonl import import_jsonl
from coordjournal.importers.sqldump import read_rows
from tests.cli import streams
from tests.unit.test_sqldump import SMALL

COMMIT: Final = "0123456789abcdef0123456789abcdef01234567"
TIME: Final = "2026-01-31T12:00:00.000000Z"
INTENT: Final = (
    b'[{"key":"k","actor":"a","at":"2026-01-31T12:00:00.000000Z",'
    b'"events":[{"type":"alias.set","alias":"A","target":"B"}]}]'
)
LINE: Final = (
    b'{"seq":1,"key":"k","at":"2026-01-31T12:00:00.000000Z","actor":"a",'
    b'"event":{"type":"merge","sources":["A","B"],"into":"C"},"commit":"' + COMMIT.encode() + b'","term":0}\n'
    b'{"type":"overlay.set","page":"A","overlay":"o","media_type":"text/plain","body":"x"}\n'
)
HEAD: Final = b'{"seq":1,"commit":"' + COMMIT.encode() + b'","term":1,"space":"0123456789abcdef0123456789abcdef"}'
OUTCOME: Final = b'[{"type":"accepted","key":"k","first":1,"seq":1,"commit":"' + COMMIT.encode() + b'","term":1}]'
COMMANDS: Final = (
    *("append", "resolve", "log", "show", "state", "diff"),
    *("spaces", "export", "import", "verify", "compact"),
)
PEAK_BYTES: Final = 64 << 20
NOWHERE: Final = "127.0.0.1:1"  # nobody listens there, and the kernel says so at once
PATHS: Final = ("--repo", "--cache-dir", "--rejects")


def intents(data: bytes) -> None:
    """Values that lie in etcd: what is taken is what was meant, to the byte."""
    try:
        appends = wire.decode_intent(data)
    except Rejected:
        pass
    else:
        assert wire.encode_intent(appends) == data
        for append in appends:
            try:
                append.check()
            except Rejected:
                continue
            assert decode_entries(append.encode(1), 1, COMMIT, 0)[0].key == append.key
    try:
        assert wire.encode_head(wire.decode_head(data, "heads/s")) == data
    except OperatorNeeded:
        pass
    node = wire.decode_node(data)
    assert node is None or wire.encode_node(node) == data
    items = wire.decode_outcome(data)
    assert not items or wire.encode_outcome(items) == data
    for item in items:
        wire.received("s", item)
    wire.session_of(data)


def stored(data: bytes) -> None:
    """A file of the log: what is read is what was written, to the byte, or the place of the fault is told."""
    try:
        read = decode_entries(data, 1, COMMIT, 0)
    except (cj.Corrupt, cj.UnknownEvent):
        return
    assert [entry.seq for entry in read] == list(range(1, len(read) + 1))
    assert decode_entries(encode_entries(read), 1, COMMIT, 0) == read


def jsonl(data: bytes) -> None:
    """Lines to import, and lines of `pipe`: each is taken whole, or told; the log is sound whatever they were."""
    log = cj.DecisionLog.in_memory()
    with log:
        rejects: list[object] = []
        told: list[int] = []
        how = {"rejects": rejects.append, "progress": told.append}
        done = import_jsonl(log, "s", io.BytesIO(data), dry_run=False, actor="a", at=TIME, **how)  # type: ignore[arg-type]
        assert len(rejects) <= data.count(b"\n") + 1
        found = list(log.events("s")) if log.spaces() else []
        assert cj.fold(found) == log.state("s") if found else done is not None
    for line in data.splitlines()[:50]:
        try:
            parse(line)
        except BadLine:
            continue


def sqldump(data: bytes) -> None:
    """A dump of MediaWiki's: rows, and then perhaps a refusal that says where."""
    try:
        for row in read_rows(io.BytesIO(data), "page", ("page_id", "page_title")):
            assert len(row) == 2
    except InvalidEvent:
        pass


def names(data: bytes) -> None:
    """Names of every kind: legal, or refused as `InvalidName`, never cut or changed."""
    text = data.decode("utf-8", "surrogatepass" if len(data) % 2 else "surrogateescape") if _is_text(data) else ""
    for check in (entries.check_space, entries.check_key, entries.check_actor):
        refusal = ""
        try:
            check(text)
        except cj.InvalidName as error:
            refusal = str(error)
        assert len(refusal) < 300, "a refusal repeats what was put in at length"
    with cj.DecisionLog.in_memory(actor="a") as log:
        try:
            receipt = log.append("s", cj.AliasSet(text, "target"))
        except (cj.InvalidName, cj.AliasCycle):
            assert not log.spaces()
        else:
            assert receipt.seq == 1
            assert log.state("s").resolve(text).canonical == "target"


def _is_text(data: bytes) -> bool:
    try:
        data.decode("utf-8", "surrogatepass" if len(data) % 2 else "surrogateescape")
    except UnicodeError:
        return False
    return True


def cli(data: bytes) -> None:
    """A command line, on a repository that is not there and on one that is: an exit code and words.

    What is refused makes nothing, and changes no branch, object or setting.
    """
    words = [os.fsdecode(word) for word in data.split(b"\0")]
    command = COMMANDS[len(data) % len(COMMANDS)]
    if any(word.startswith(("--follow", "-f")) for word in words):
        return  # it never ends
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        tamed = [command, *tame(words)]
        if any(word.startswith("--etcd") for word in tamed):
            tamed += ["--timeout", "0.2"]
        _, made = run(tamed, home, "none.git")
        assert not [name for name in made - named(tamed) if not name.endswith(".rejects.jsonl")], made
        shutil.copytree(content(), home / "wiki.git")
        before = journal_of(home / "wiki.git")
        code, _ = run(tamed, home, "wiki.git")
        assert code == 0 or journal_of(home / "wiki.git") == before, f"exit code {code}, and it is changed"


def tame(words: list[str]) -> list[str]:
    """Return the words with what reaches out of here, to a host or to a path, led elsewhere."""
    tamed: list[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        before = tamed[-1] if tamed else ""
        if name.startswith("--etcd") and equals:
            word = f"{name}={NOWHERE}"
        elif name in PATHS and equals:
            word = f"{name}={inside(value)}"
        elif before.startswith("--etcd"):
            word = NOWHERE
        elif before in PATHS:
            word = inside(word)
        tamed.append(word)
    return tamed


def inside(path: str) -> str:
    """Return a path that leads to nothing but a name in this very directory."""
    return path.replace("/", "_").replace("..", "_")


def named(words: list[str]) -> set[str]:
    """Return the names that a command line names, and the repository's."""
    return {"none.git"} | {name for word in words for name in (word, word.partition("=")[2])}


def run(words: list[str], home: Path, repo: str) -> tuple[int, set[str]]:
    """Run a command line in a directory of its own; return its exit code and what is in the directory then."""
    before, environment = Path.cwd(), dict(os.environ)
    out, err = io.BytesIO(), io.BytesIO()
    try:
        os.chdir(home)
        os.environ.update(COORDJOURNAL_REPO=str(home / repo), COORDJOURNAL_ACTOR="a")
        with streams(io.BytesIO(), out, err):
            code = main(words)
    finally:
        os.chdir(before)
        os.environ.clear()
        os.environ.update(environment)
    assert code in (0, USAGE, NOT_FOUND, REFUSED, TRY_AGAIN, OPERATOR), f"{code}: {err.getvalue()!r}"
    assert code == 0 or err.getvalue() or out.getvalue(), "it failed without a word"
    assert b"Traceback" not in err.getvalue()
    return code, {path.name for path in home.iterdir()}


@cache
def content() -> Path:
    """Return a repository with two spaces, to be copied."""
    path = Path(tempfile.mkdtemp(prefix="hostile-")) / "wiki.git"
    atexit.register(shutil.rmtree, path.parent, ignore_errors=True)
    with cj.DecisionLog.open(path, actor="a") as log:
        log.append("s", cj.AliasSet("A", "B"), key="k", at=TIME)
        log.append("s", cj.OverlaySet("B", "o", "text/plain", "words"), at=TIME)
        log.append("t", cj.AliasSet("A", "C"), at=TIME)
    return path


def journal_of(path: Path) -> dict[str, bytes]:
    """Return all that is the journal, not derived from it: branches, objects, settings."""
    parts = (*("refs", "objects"), "config", "HEAD", "packed-refs")
    files = (file for part in parts for file in ((path / part).rglob("*") if (path / part).is_dir() else [path / part]))
    return {str(file.relative_to(path)): file.read_bytes() for file in files if file.is_file()}


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "intents": intents,
    "stored": stored,
    "jsonl": jsonl,
    "sqldump": sqldump,
    "names": names,
    "cli": cli,
}
SEEDS: Final[dict[str, list[bytes]]] = {
    "intents": [INTENT, HEAD, OUTCOME],
    "stored": [LINE.split(b',"commit"')[0] + b"}\n"],
    "jsonl": [LINE],
    "sqldump": [SMALL],
    "names": [b"Home", "é".encode(), b"a\xcc\x88"],
    "cli": [
        *(b"s\0alias\0A\0B", b"s\0--after\0" + b"1", b"--help", b"s\0--repo\0wiki.git\0--cache-dir\0cache"),
        *(
            b"jsonl\0s\0x\0--rejects\0wiki.git",
            b"s\0--etcd\0x\0--consistency\0local",
            b"s\0unalias\0A\0--expect\0" + b"1",
        ),
    ],
}


@st.composite
def near(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Return bytes that are near to what is well formed: a piece cut, doubled, replaced by something else."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 40)))
        piece = draw(st.sampled_from(PIECES) | st.binary(max_size=12))
        data[start:end] = piece
    return bytes(data)


PIECES: Final = [
    *(b"", b'"', b"\\", b"{", b"[", b"]}", b",", b"null", b"1e999", b"-1", b"NaN", b"9" * 20, b"\n", b"\0"),
    *(b"\xff", b"\xed\xa0\x80", b"\\ud800", b"\\u0000", b'"key":"k",', b"'", b"--", b"/*", b"`", b"(", b");", b"\xc3"),
    *(b"[" * 2000, b'{"a":' * 2000, b"A" * 5000, b"\x1f\x8b\x08", "\u202e".encode(), b"-o\0json", b"<", b"="),
]


@pytest.mark.parametrize("target", TARGETS)
def test_hostile_bytes_are_refused_in_words_and_change_nothing(target: str) -> None:
    @settings(max_examples=60 if target == "cli" else 150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(near(SEEDS[target]) | st.binary(max_size=200))
    @example(b"")
    @example(b"[" * 100_000)
    @example(b'{"a":' * 50_000)
    @example(b"9" * 50_000)
    @example(b'"' + b"\\u0000" * 50_000 + b'"')
    def run(data: bytes) -> None:
        TARGETS[target](data)

    run()


@pytest.mark.parametrize("target", ["intents", "stored", "sqldump"])
def test_any_byte_that_is_cut_doubled_added_or_flipped_is_refused_or_meant(target: str) -> None:
    for seed in SEEDS[target]:
        for at in range(len(seed)):
            before, byte, after = seed[:at], seed[at : at + 1], seed[at + 1 :]
            for changed in (b"", byte * 2, b" " + byte, b"\n" + byte, bytes((byte[0] ^ 1 << at % 8,))):
                TARGETS[target](before + changed + after)
        TARGETS[target](seed + seed)


@pytest.mark.parametrize("target", [name for name in TARGETS if name != "cli"])
def test_a_flood_of_input_takes_bounded_memory(target: str) -> None:
    """A few megabytes of it: what is kept is a line, or a token, or nothing."""
    for seed in (b"[" * (4 << 20), SEEDS[target][0] * max(1, (1 << 20) // len(SEEDS[target][0])), b"\0" * (4 << 20)):
        data = seed[: 1 << 20] if target == "jsonl" and seed.startswith(b"{") else seed
        tracemalloc.start()
        try:
            TARGETS[target](data)
            assert tracemalloc.get_traced_memory()[1] < PEAK_BYTES
        finally:
            tracemalloc.stop()


NOTHING_COMES: Final = (
    *("append s alias B A", "append s alias A A", "append s unalias X", "append s alias C", "append S alias C D"),
    *("append s alias C D --expect 1", "append s alias C D --key k", "append s alias C D --at yesterday"),
    *("append s alias C D --etcd 127.0.0.1:1 --timeout 0.2", "append s alias C D --etcd 127.0.0.1:1 --prefix x"),
    *("append s alias C D --repo wiki.git/config", "append s alias C D --repo wiki.git/refs", "append new alias C C"),
    *(
        "state s --etcd 127.0.0.1:1 --timeout 0.2",
        "verify --etcd nowhere:x",
        "recover --etcd 127.0.0.1:1",
    ),
    *("import jsonl s --rejects wiki.git wiki.git/config", "import jsonl s missing", "import jsonl s wiki.git"),
    *("verify u", "log s --after 9 --upto 99", "show s 9", "diff s 1 9", "adopt --to etcd", "holders u", "handoff s"),
)


@pytest.mark.parametrize("line", NOTHING_COMES)
def test_a_refused_command_changes_nothing_in_a_journal_with_content(tmp_path: Path, line: str) -> None:
    shutil.copytree(content(), tmp_path / "wiki.git")
    before, began = journal_of(tmp_path / "wiki.git"), time.monotonic()
    code, made = run(line.split(), tmp_path, "wiki.git")
    assert code != 0
    assert time.monotonic() - began < 10
    assert journal_of(tmp_path / "wiki.git") == before
    assert made == {"wiki.git"}
