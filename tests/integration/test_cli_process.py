"""The program as a process: signals, pipes that close, terminals, bytes that are no text."""

from __future__ import annotations

import io
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import pytest

from coordjournal.cli import main
from tests.cli import Shell, documents, streams
from tests.support import CHECKOUT


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(tmp_path, monkeypatch)


def the(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


def many(shell: Shell, count: int) -> None:
    """Append so much that what is printed of it does not fit into a pipe."""
    line = b'{"event":{"type":"overlay.set","page":"p","overlay":"o","media_type":"text/plain","body":"%s"}}\n'
    shell.ok("pipe", "s", stdin=line % (b"x" * 1000) * count)


def until_open(process: subprocess.Popen[bytes], file: Path) -> None:
    """Wait until a process has opened a file; for a while, where the system does not tell."""
    deadline = time.monotonic() + 5.0
    while time.monotonic() < deadline:
        for opened in Path(f"/proc/{process.pid}/fd").glob("*"):
            try:
                if opened.readlink() == file:
                    return
            except OSError:
                continue  # closed meanwhile
        time.sleep(0.02)


def test_the_program_is_a_module(shell: Shell) -> None:
    ended = shell.run("append", "s", "alias", "a", "b", "-o", "json")
    assert (ended.code, ended.err) == (0, "")
    assert ended.json["seq"] == 1
    assert shell.run("show", "s", "2").code == 3


def test_a_reader_that_left_is_not_talked_about(shell: Shell) -> None:
    many(shell, 300)
    for words, unbuffered in (
        (["log", "s", "-o", "jsonl"], ""),
        (["log", "s", "-o", "json"], ""),
        (["log", "s", "-o", "json"], "1"),
        (["log", "s", "--follow", "-o", "jsonl"], ""),
    ):
        with shell.start(*words, env={"PYTHONUNBUFFERED": unbuffered}) as process:
            assert the(process.stdout).read(10)
            the(process.stdout).close()
            assert process.wait(10) == 141
            assert the(process.stderr).read() == b""


def test_follow_ends_when_its_reader_left_though_nothing_comes(shell: Shell) -> None:
    shell.ok("append", "s", "alias", "a", "b")
    with shell.start("log", "s", "--follow", "-o", "jsonl") as process:
        assert the(process.stdout).readline()
        the(process.stdout).close()
        assert process.wait(10) == 141
        assert the(process.stderr).read() == b""


def test_follow_sees_what_another_process_appends(shell: Shell) -> None:
    shell.ok("append", "s", "alias", "a", "b")
    with shell.start("log", "s", "--follow", "--type", "alias.set", "--upto", "4", "-o", "json") as process:
        assert documents([the(process.stdout).readline()])[0]["seq"] == 1
        assert shell.run("append", "s", "alias", "c", "d").code == 0
        assert documents([the(process.stdout).readline()])[0]["event"]["alias"] == "c"
        shell.ok("append", "s", "bind", "x", "y")
        shell.ok("append", "s", "alias", "e", "f")
        assert documents([the(process.stdout).readline()])[0]["seq"] == 4
        assert process.wait(10) == 0, "--upto ends it"


def test_follow_waits_for_a_space_that_is_yet_to_come(shell: Shell) -> None:
    shell.ok("init")
    with shell.start("log", "s", "--follow", "-n", "0") as process:
        assert the(process.stderr).readline() == b"nothing has been decided in 's' yet\n"
        shell.ok("append", "s", "alias", "a", "b")
        lines = [the(process.stdout).readline(), the(process.stdout).readline()]
        assert lines[0].split()[0] == b"SEQ"
        assert lines[1].split()[0] == b"1"
        process.terminate()
        assert process.wait(10) == 143


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_in_order(shell: Shell, number: signal.Signals, code: int) -> None:
    shell.ok("append", "s", "alias", "a", "b")
    with shell.start("log", "s", "--follow", "-o", "jsonl") as process:
        the(process.stdout).readline()
        process.send_signal(number)
        assert process.wait(10) == code
        assert the(process.stderr).read() == b""


def test_ctrl_c_while_an_append_waits_names_the_key(shell: Shell) -> None:
    from coordjournal.store.files import locked

    shell.ok("init")
    with locked(shell.repo / "coordjournal" / "locks" / "s"), shell.start("append", "s", "alias", "a", "b") as process:
        until_open(process, shell.repo / "coordjournal" / "locks" / "s")
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 130
        assert b"--key " in the(process.stderr).read()


def test_output_that_cannot_be_written_is_an_error(shell: Shell) -> None:
    shell.ok("append", "s", "alias", "a", "b")
    with Path("/dev/full").open("wb") if Path("/dev/full").exists() else pytest.skip("no /dev/full") as full:
        ended = shell.run("log", "s", stdout=full)
    assert (ended.code, ended.err) == (1, "error: the output cannot be written: No space left on device\n")


def test_what_was_appended_is_told_though_the_output_cannot_be_written(shell: Shell) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    for number, mode in enumerate(("table", "json"), 1):
        with Path("/dev/full").open("wb") as full:
            ended = shell.run("append", "s", "alias", f"a{number}", "b", "--key", f"k{number}", "-o", mode, stdout=full)
        assert ended.code == 1
        assert ended.err == (
            "error: the output cannot be written: No space left on device; "
            f"but it was appended: space s, seq {number}, key k{number}\n"
        )
    (shell.directory / "events").write_bytes(b'{"type":"alias.set","alias":"x","target":"y"}\n')
    with Path("/dev/full").open("wb") as full:
        ended = shell.run("import", "jsonl", "s", "events", stdout=full)
    assert (ended.code, ended.err.endswith("; the import is done: 1 append\n")) == (1, True)


def test_a_reader_that_left_before_help_or_a_receipt_came_is_not_talked_about(shell: Shell) -> None:
    for words in (["--help"], ["log", "--help"], ["append", "s", "alias", "-h"], ["--version"], ["append", *"sbab"]):
        words = ["append", "s", "bind", "a", "b"] if words[-1] == "b" else words
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "wb") as lost:
            ended = shell.run(*words, stdout=lost)
        assert (ended.code, ended.err) == (141, ""), words
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as lost:
        completing = {"_COORDJOURNAL_COMPLETE": "bash_complete", "COMP_WORDS": "coordjournal ", "COMP_CWORD": "1"}
        ended = shell.run(stdout=lost, env=completing)
    assert (ended.code, ended.err) == (141, "")


def test_help_that_cannot_be_written(shell: Shell) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    for words in (["--help"], ["log", "--help"], ["--version"]):
        with Path("/dev/full").open("wb") as full:
            ended = shell.run(*words, stdout=full)
        assert (ended.code, ended.err) == (1, "error: the output cannot be written: No space left on device\n")


SIGNALLED = """
import os, sys
import coordjournal.cli

assert "click" not in sys.modules
number, place = int(sys.argv[1]), sys.argv[2]
sys.argv[1:] = ["--version"]

class Signalling:
    def find_spec(self, name, path=None, target=None):
        if name == place:
            os.kill(os.getpid(), number)

sys.meta_path.insert(0, Signalling())
code = coordjournal.cli.main()
os.kill(os.getpid(), number)
sys.exit(code)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("place", ["click", "coordjournal.cli.exits", "coordjournal.cli.transfer", "at the end"])
def test_a_signal_while_the_program_is_loaded_or_has_ended_is_not_talked_about(
    number: signal.Signals, code: int, place: str
) -> None:
    words = [sys.executable, "-c", SIGNALLED, str(int(number)), place]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(words, capture_output=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (code, b"")
    assert done.stdout.startswith(b"coordjournal ") == (place == "at the end")


def test_a_signal_that_is_ignored_stays_so(shell: Shell) -> None:
    shell.ok("append", "s", "alias", "a", "b")
    script = "trap '' INT; exec \"$@\""
    words = ["sh", "-c", script, "sh", sys.executable, "-m", "coordjournal", "log", "s", "--follow", "-o", "jsonl"]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert documents([the(process.stdout).readline()])[0]["seq"] == 1
        process.send_signal(signal.SIGINT)
        shell.ok("append", "s", "alias", "c", "d")
        assert documents([the(process.stdout).readline()])[0]["seq"] == 2
        process.terminate()
        assert process.wait(10) == 143


@pytest.mark.parametrize(("closed", "code"), [("<&-", 2), (">&-", 1), ("2>&-", 0)])
def test_streams_that_a_shell_closed(shell: Shell, closed: str, code: int) -> None:
    words = {"<&-": "pipe s", ">&-": "spaces", "2>&-": "spaces"}[closed]
    shell.ok("append", "s", "alias", "a", "b")
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -m coordjournal {words} {closed}', sys.executable],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
    )
    assert done.returncode == code
    assert b"Traceback" not in done.stderr
    assert b"Exception" not in done.stderr


def test_bytes_that_are_no_text(shell: Shell) -> None:
    wrong = os.fsdecode(b"\xff")
    ended = shell.run("append", "s", "alias", wrong, "b", "-o", "json")
    assert ended.code == 4
    assert ended.json["error"]["code"] == "invalid_name"
    for words in (["spaces", "--repo", wrong], [wrong], ["append", "s", "overlay", "p", "o", wrong]):
        ended = shell(*words, "-o", "json")
        assert (ended.code, ended.json["error"]["code"]) == (2, "usage_error")


def test_a_terminal_that_knows_little(shell: Shell) -> None:
    shell.ok("append", "s", "alias", "a", "ü")
    ended = shell.run("log", "s", env={"PYTHONIOENCODING": "ascii"})
    assert ended.code == 0
    assert "alias a \\u2192 \\xfc" in ended.out


def in_a_terminal(shell: Shell, *words: str) -> str:
    """Run a command with a terminal for its stdout and return what it printed there."""
    mine, its = pty.openpty()
    try:
        with open(its, "wb", buffering=0) as terminal, streams(io.BytesIO(), terminal, io.BytesIO()):  # noqa: PTH123  # it has no path
            assert main(list(words)) == 0
            return os.read(mine, 1 << 16).decode()
    finally:
        os.close(mine)


def test_colour_is_for_terminals_that_want_it(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    shell.ok("append", "s", "alias", "a", "b")
    assert "\x1b[" in in_a_terminal(shell, "log", "s")
    assert "\x1b[" not in in_a_terminal(shell, "log", "s", "--no-color")
    assert "\x1b[" not in in_a_terminal(shell, "log", "s", "-o", "jsonl")
    assert "\x1b[" not in shell.ok("log", "s").out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in in_a_terminal(shell, "log", "s")
    monkeypatch.setenv("NO_COLOR", "")
    assert "\x1b[" in in_a_terminal(shell, "log", "s"), "an empty one says nothing"
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b[" not in in_a_terminal(shell, "log", "s")
