"""The command line as tests run it: in this process where none of its own is needed, else as one."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec
import pytest

from coordjournal.cli import main
from tests.support import CHECKOUT

ACTOR = "alice@example.org"


class Ended(NamedTuple):
    """What a run of the command line printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON document on stdout."""
        return msgspec.json.decode(self.out)

    @property
    def lines(self) -> list[Any]:
        """The JSON documents on stdout, one a line."""
        return [msgspec.json.decode(line) for line in self.out.splitlines()]


class Shell:
    """Runs commands on one repository, as one actor, without what the tester's environment says."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.repo = directory / "wiki.git"
        for name in [name for name in os.environ if name.startswith("COORDJOURNAL_")] + ["NO_COLOR"]:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("COORDJOURNAL_REPO", str(self.repo))
        monkeypatch.setenv("COORDJOURNAL_ACTOR", ACTOR)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.chdir(directory)

    def __call__(self, *args: str | Path, stdin: bytes = b"") -> Ended:
        """Run a command in this process."""
        out, err = io.BytesIO(), io.BytesIO()
        with streams(io.BytesIO(stdin), out, err):
            code = main(list(map(str, args)))
        return Ended(code, out.getvalue().decode(), err.getvalue().decode())

    def ok(self, *args: str | Path, stdin: bytes = b"") -> Ended:
        """Run a command that has nothing to complain about."""
        ended = self(*args, stdin=stdin)
        assert ended.code == 0, ended
        return ended

    def start(self, *args: str | Path, **how: Any) -> subprocess.Popen[bytes]:
        """Start a command as a process; its streams are pipes unless `how` says other."""
        streams: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), **how.pop("env", {})}
        return subprocess.Popen(
            [sys.executable, "-m", "coordjournal", *map(str, args)], env=environment, **{**streams, **how}
        )

    def run(self, *args: str | Path, stdin: bytes = b"", **how: Any) -> Ended:
        """Run a command as a process of its own."""
        with self.start(*args, **how) as process:
            out, err = process.communicate(stdin, timeout=30)
            return Ended(process.returncode, (out or b"").decode(), (err or b"").decode())


@contextmanager
def streams(stdin: BinaryIO, stdout: BinaryIO, stderr: BinaryIO) -> Iterator[None]:
    """Put others in place of the process's standard streams; none of them is closed."""
    before = sys.stdin, sys.stdout, sys.stderr
    wrapped = [io.TextIOWrapper(stream, "utf-8", write_through=True) for stream in (stdin, stdout, stderr)]
    sys.stdin, sys.stdout, sys.stderr = wrapped
    try:
        yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = before
        for wrapper in wrapped:
            wrapper.detach()


def append(number: int, key: str = "") -> bytes:
    """Return a line for `pipe` that asks for an alias of its own."""
    ask = {"event": {"type": "alias.set", "alias": f"name-{number}", "target": "page"}, "key": key or f"key-{number}"}
    return msgspec.json.encode(ask) + b"\n"


def documents(lines: Sequence[bytes]) -> list[Any]:
    """Return what JSON lines say."""
    return [msgspec.json.decode(line) for line in lines]
