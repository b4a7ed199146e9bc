"""`pipe`: a line in, a line out, in order, as soon as it is decided."""

from __future__ import annotations

import errno
import io
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec
import pytest

from coordjournal.cli import main
from coordjournal.importers.lines import MAX_LINE_BYTES
from coordjournal.store.files import locked
from tests.cli import ACTOR, Shell, append, documents, streams

if TYPE_CHECKING:
    from typing_extensions import Buffer

RECEIPT = ["space", "first", "seq", "commit", "term", "key", "via", "duplicate"]


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(tmp_path, monkeypatch)


def the(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


def test_input_order_is_log_order_is_output_order(shell: Shell) -> None:
    ended = shell.ok("pipe", "s", stdin=b"".join(append(number) for number in range(500)))
    assert [(line["seq"], line["key"]) for line in ended.lines] == [(n + 1, f"key-{n}") for n in range(500)]
    assert list(ended.lines[0]) == RECEIPT
    entries = shell.ok("log", "s", "-o", "jsonl").lines
    assert [entry["event"]["alias"] for entry in entries] == [f"name-{number}" for number in range(500)]
    assert [entry["commit"] for entry in entries] == [line["commit"] for line in ended.lines]


@pytest.mark.parametrize("jobs", ["1", "2", "4096"])
def test_any_number_of_jobs_gives_the_same(shell: Shell, jobs: str) -> None:
    ended = shell.ok("pipe", "s", "--jobs", jobs, stdin=b"".join(append(number) for number in range(30)))
    assert [line["seq"] for line in ended.lines] == list(range(1, 31))


def test_jobs_is_a_number_from_1(shell: Shell) -> None:
    assert shell("pipe", "s", "--jobs", "0").code == 2
    assert shell("pipe", "s", "--jobs", "4097").code == 2


def test_a_line_says_who_and_under_which_key_and_on_what(shell: Shell) -> None:
    line = {"events": [{"type": "alias.set", "alias": "a", "target": "b"}] * 2, "key": "k", "actor": "bob", "expect": 0}
    plain = {"event": {"type": "alias.set", "alias": "c", "target": "b"}, "key": None, "actor": None, "expect": None}
    ended = shell.ok("pipe", "s", stdin=b"\n".join(map(msgspec.json.encode, (line, line, plain))))
    assert [(r["first"], r["seq"], r["duplicate"]) for r in ended.lines] == [(1, 2, False), (1, 2, True), (3, 3, False)]
    assert [entry["actor"] for entry in shell.ok("log", "s", "-o", "jsonl").lines] == ["bob", "bob", ACTOR]


def test_a_refusal_does_not_stop_it(shell: Shell) -> None:
    circle = b'{"event":{"type":"alias.set","alias":"page","target":"name-1"},"key":"circle"}\n'
    ended = shell("pipe", "s", stdin=append(1) + circle + append(2) + append(1, "key-2"))
    assert (ended.code, ended.err) == (4, "")
    one, two, three, four = ended.lines
    assert (one["seq"], three["seq"]) == (1, 2)
    assert list(two) == ["key", "error"]
    assert list(two["error"]) == ["code", "message"]
    assert (two["key"], two["error"]["code"]) == ("circle", "alias_cycle")
    assert (four["key"], four["error"]["code"]) == ("key-2", "key_reused")


ALIAS = b'{"type":"alias.set","alias":"a","target":"b"}'


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        (b"", "invalid_event", "empty"),
        (b"{", "invalid_event", "not JSON"),
        (b"[]", "invalid_event", "object"),
        (b"null", "invalid_event", "object"),
        (b'{"event":' + ALIAS + b"}}", "invalid_event", "not JSON"),
        (b"{}", "invalid_event", "exactly one of `events` and `event`"),
        (b'{"event":' + ALIAS + b',"events":[' + ALIAS + b"]}", "invalid_event", "exactly one of"),
        (b'{"events":[]}', "invalid_event", "`events` is a list of at least one event"),
        (b'{"events":null}', "invalid_event", "`events` is a list of at least one event"),
        (b'{"event":' + ALIAS + b',"evnt":1}', "invalid_event", "evnt"),
        (b'{"event":{"type":"alias.set","alias":"a"}}', "invalid_event", "target"),
        (b'{"event":{"type":"alias.set","alias":"a","target":1}}', "invalid_event", "target"),
        (b'{"event":{"type":"alias.set","alias":"a","target":"b","c":1}}', "invalid_event", "`c`"),
        (b'{"event":{"type":"alias.sat","alias":"a"}}', "invalid_event", "alias.sat"),
        (b'{"event":{"alias":"a","target":"b"}}', "invalid_event", "type"),
        (b'{"event":' + ALIAS + b',"key":"k","key":"k"}', "invalid_event", "twice"),
        (b'{"event":{"type":"alias.set","alias":"a","alias":"c","target":"b"}}', "invalid_event", "twice"),
        (b'{"event":' + ALIAS + b',"expect":NaN}', "invalid_event", "NaN"),
        (b'{"event":' + ALIAS + b',"expect":-Infinity}', "invalid_event", "Infinity"),
        (b'{"event":' + ALIAS + b',"expect":1.0}', "invalid_event", "expect"),
        (b'{"event":' + ALIAS + b',"expect":true}', "invalid_event", "expect"),
        (b'{"event":' + ALIAS + b',"expect":-1}', "invalid_event", "expect"),
        (b'{"event":' + ALIAS + b',"expect":' + b"9" * 5000 + b"}", "invalid_event", "digits"),
        (b'{"event":' + ALIAS + b',"key":7}', "invalid_event", "key"),
        (b'{"event":' + ALIAS + b',"key":"a b"}', "invalid_name", "key"),
        (b'{"event":' + ALIAS + b',"actor":""}', "invalid_name", "actor"),
        (b'{"event":' + ALIAS + b',"actor":"\\udc00"}', "invalid_event", "surrogate"),
        (b'{"event":{"type":"alias.removed","alias":"\\ud800"}}', "invalid_event", "surrogate"),
        (b'{"event":' + ALIAS + b',"key":"\xff"}', "invalid_event", "UTF-8"),
        (b"\xef\xbb\xbf{}", "invalid_event", "BOM"),
        (b"[" * 100_000, "invalid_event", "deep"),
        (b'{"event":' * 50_000, "invalid_event", "deep"),
        (b'{"key":"' + b"x" * MAX_LINE_BYTES + b'"}', "too_large", "line"),
        (b'{"event":{"type":"alias.removed","alias":"' + b"x" * (2 << 20) + b'"}}', "invalid_name", "512"),
    ],
    ids=lambda value: value[:40].decode(errors="replace") if isinstance(value, bytes) else None,
)
def test_a_line_that_makes_no_sense_is_refused_alone(shell: Shell, line: bytes, code: str, says: str) -> None:
    ended = shell("pipe", "s", stdin=append(1) + line + b"\n" + append(2))
    before, refused, after = ended.lines
    assert (ended.code, ended.err) == (4, "")
    assert (before["seq"], after["seq"]) == (1, 2)
    assert list(refused) == ["key", "error"]
    assert refused["error"]["code"] == code
    assert says in refused["error"]["message"]


def test_an_append_that_is_too_large_is_refused_and_one_that_just_fits_is_not(shell: Shell) -> None:
    def overlay(size: int) -> bytes:
        event = {"type": "overlay.set", "page": "p", "overlay": "o", "media_type": "text/plain", "body": "x" * size}
        return msgspec.json.encode({"event": event}) + b"\n"

    ended = shell("pipe", "s", stdin=overlay((1 << 20) - 300) + overlay(1 << 20) + overlay(1))
    fits, too_large, small = ended.lines
    assert (fits["seq"], too_large["error"]["code"], small["seq"]) == (1, "too_large", 2)


def test_the_last_line_needs_no_end(shell: Shell) -> None:
    assert len(shell.ok("pipe", "s", stdin=append(1) + append(2).rstrip()).lines) == 2
    assert shell.ok("pipe", "s", stdin=b"").out == ""


def test_the_exit_code_is_the_highest_of_its_lines(shell: Shell) -> None:
    shell.ok("init")
    with locked(shell.repo / "coordjournal" / "locks" / "s"):
        ended = shell("pipe", "s", "--timeout", "0.2", stdin=append(1) + b"{}\n")
    assert ended.code == 5
    assert [line["error"]["code"] for line in ended.lines] == ["unavailable", "invalid_event"]
    assert ended.lines[0]["key"] == "key-1"
    assert shell.ok("log", "s", "-o", "json").json == []


def test_jobs_bounds_how_many_are_under_way(shell: Shell) -> None:
    shell.ok("init")
    took = []
    with locked(shell.repo / "coordjournal" / "locks" / "s"):
        for jobs in ("1", "4"):
            began = time.monotonic()
            shell("pipe", "s", "--timeout", "0.2", "--jobs", jobs, stdin=b"".join(map(append, range(4))))
            took.append(time.monotonic() - began)
    assert took[0] >= 0.8, "each waited for the one before it"
    assert took[1] < 0.6, "all waited together"


def test_the_space_is_checked_before_anything_is_read(shell: Shell) -> None:
    ended = shell("pipe", "No Space", "-o", "json", stdin=append(1))
    assert (ended.code, ended.json["error"]["code"]) == (4, "invalid_name")


def test_a_line_is_answered_before_the_next_one_is_written(shell: Shell) -> None:
    with shell.start("pipe", "s") as process:
        for number in range(1, 4):
            the(process.stdin).write(append(number))
            the(process.stdin).flush()
            assert documents([the(process.stdout).readline()])[0]["seq"] == number
        the(process.stdin).write(b"what?\n" + append(4)[:20])
        the(process.stdin).flush()
        assert documents([the(process.stdout).readline()])[0]["error"]["code"] == "invalid_event"
        the(process.stdin).write(append(4)[20:])
        the(process.stdin).close()
        assert documents([the(process.stdout).readline()])[0]["seq"] == 4
        assert process.wait(10) == 4
        assert the(process.stderr).read() == b""


def test_pipes_of_several_processes_share_a_space(shell: Shell) -> None:
    shell.ok("init")
    processes = [shell.start("pipe", "s", "--actor", f"p{number}") for number in range(3)]
    for number, process in enumerate(processes):
        lines = b"".join(append(1000 * number + line) for line in range(100))
        the(process.stdin).write(lines)
        the(process.stdin).close()
    receipts = []
    for process in processes:
        with process:
            receipts += documents(the(process.stdout).readlines())
            assert process.wait(20) == 0
    entries = shell.ok("log", "s", "-o", "jsonl").lines
    assert [entry["seq"] for entry in entries] == list(range(1, 301))
    assert {(r["key"], r["seq"], r["commit"]) for r in receipts} == {(e["key"], e["seq"], e["commit"]) for e in entries}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.005)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_every_line_that_was_taken_on_is_answered_at_the_end(shell: Shell, number: signal.Signals, code: int) -> None:
    shell.ok("init")
    with locked(shell.repo / "coordjournal" / "locks" / "s"), shell.start("pipe", "s") as process:
        the(process.stdin).write(b"x\n" + b"".join(map(append, range(5))))
        the(process.stdin).flush()
        assert documents([the(process.stdout).readline()])[0]["error"]["code"] == "invalid_event"
        spool = shell.repo / "coordjournal" / "spool" / "s"
        until(lambda: any(spool.glob("*.intent")))  # what was taken on first lies there; the rest came with it
        process.send_signal(number)
        answers = documents(the(process.stdout).readlines())
        assert process.wait(10) == code
        assert the(process.stderr).read() == b""
    assert answers, "one line at least was taken on: it lay in the spool"
    assert [answer["key"] for answer in answers] == [f"key-{number}" for number in range(len(answers))]
    assert {answer["error"]["code"] for answer in answers} == {"unavailable"}
    assert shell.ok("log", "s", "-o", "json").json == []


def test_a_reader_that_left_ends_it(shell: Shell) -> None:
    with shell.start("pipe", "s") as process:
        the(process.stdout).close()
        fd = the(process.stdin).fileno()
        with pytest.raises(BrokenPipeError):
            deque((os.write(fd, append(number)) for number in range(10_000)), maxlen=0)
        assert process.wait(20) == 141
        assert the(process.stderr).read() == b""
    heads = shell.ok("spaces", "-o", "json").json
    assert heads[0]["seq"] < 10_000


def test_output_that_cannot_be_written_names_the_last_key_answered(shell: Shell) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    with Path("/dev/full").open("wb") as full:
        ended = shell.run("pipe", "s", stdin=append(1) + append(2), stdout=full)
    assert ended.code == 1
    assert ended.err == (
        "error: the output cannot be written: No space left on device; no line was answered; "
        "what follows may be appended: the same keys may be tried again\n"
    )
    few, err = Few(), io.BytesIO()
    with streams(io.BytesIO(b"".join(map(append, range(10)))), few, err):
        assert main(["pipe", "t"]) == 1
    assert [answer["key"] for answer in documents(few.getvalue().splitlines())] == ["key-0", "key-1"]
    assert "; the last key answered is key-1; what follows may be appended" in err.getvalue().decode()


class Few(io.BytesIO):
    """A device that has room for two lines."""

    def write(self, data: Buffer, /) -> int:
        if self.getvalue().count(b"\n") == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)
