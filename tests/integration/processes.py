"""Processes for tests: a zygote that has everything imported and no thread forks one for each call.

A child costs milliseconds, so a test can have one die at every step of what it does. It runs
`function(channel, *arguments)`; it and its test talk over the channel, one JSON value a line, which
is also how they wait for each other.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pytest

from tests.support import CHECKOUT

PATIENCE_SECONDS: Final = 60.0
"""How long a test waits for what must happen; no test measures time by it."""

_MODULES: Final = ("coordjournal", "coordjournal.maintenance", "coordjournal.store.git", "pytest")


class Channel:
    """One end of a line of JSON values between a test and its child."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._lines = end.makefile("rb")

    def send(self, value: object) -> None:
        self._end.sendall(json.dumps(["said", value]).encode() + b"\n")

    def finish(self, kind: str, value: object) -> None:
        self._end.sendall(json.dumps([kind, value]).encode() + b"\n")

    def receive(self) -> Any:
        """Return the next value that the other end sent; `EOFError` if it is gone, with what went wrong there."""
        kind, value = self.take()
        if kind == "said":
            return value
        raise EOFError(f"the other end has finished: {kind} {value}")

    def take(self) -> tuple[str, Any]:
        try:
            line = self._lines.readline()
        except ConnectionResetError:
            line = b""
        if not line.endswith(b"\n"):
            return "died", None
        kind, value = json.loads(line)
        return str(kind), value

    def close(self) -> None:
        self._lines.close()
        self._end.close()


class Child:
    """A child of the zygote, at work on its function."""

    def __init__(self, zygote: _Zygote, pid: int, channel: Channel) -> None:
        self.pid = pid
        self._zygote = zygote
        self._channel = channel
        self._status: int | None = None
        self.send, self.receive = channel.send, channel.receive

    def result(self) -> Any:
        """Return what the function returned, when it has ended; what it sent and nobody received is lost."""
        while True:
            kind, value = self._channel.take()
            if kind == "said":
                continue
            self.join()
            assert kind == "returned", f"the child {kind}: {value}"
            return value

    def said(self) -> list[Any]:
        """Return all that the child sent until it ended, in whatever way."""
        values = []
        while (taken := self._channel.take())[0] == "said":
            values.append(taken[1])
        assert taken[0] != "failed", taken[1]
        return values

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; after SIGSTOP, return when all of the process stands still."""
        os.kill(self.pid, number)
        if number == signal.SIGSTOP:
            until(lambda: all_stopped(self.pid))

    def join(self) -> int:
        """Return the exit status, minus the signal's number if one killed it."""
        if self._status is None:
            while self._channel.take()[0] not in ("died", "returned", "failed"):
                pass
            self._status = int(self._zygote.call({"do": "wait", "pid": self.pid}))
            self._channel.close()
        return self._status

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.join()


def start(function: Callable[..., object], *arguments: object) -> Child:
    """Run `function(channel, *arguments)` in a new process; the arguments must fit into JSON, or be paths."""
    return _the_zygote().start(function, [str(a) if isinstance(a, Path) else a for a in arguments])


@pytest.fixture
def quick_path() -> Iterator[Path]:
    """Give a directory that is in memory where the system has one: a killed process needs no disk to be survived."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() and os.access(memory, os.W_OK) else None) as path:
        yield Path(path)


def until(condition: Callable[[], object], what: str = "what must happen") -> None:
    """Return when the condition holds; fail when it does not for a long time."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.002)


def all_stopped(pid: int) -> bool:
    """Return whether no thread of a process runs, after SIGSTOP was sent to it."""
    tasks = Path(f"/proc/{pid}/task")
    if not tasks.is_dir():  # macOS: the signal is delivered before kill(2) of one's own returns
        return True
    try:
        return all((task / "stat").read_text().rpartition(")")[2].split()[0] in "tT" for task in tasks.iterdir())
    except FileNotFoundError:
        return False


class _Zygote:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=CHECKOUT,
                env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
            )
        self._control.settimeout(PATIENCE_SECONDS)
        self._replies = self._control.makefile("rb")

    def start(self, function: Callable[..., object], arguments: list[object]) -> Child:
        ours, theirs = socket.socketpair()
        ours.settimeout(PATIENCE_SECONDS)
        with theirs:
            name = f"{function.__module__}:{function.__name__}"
            pid = self.call({"do": "start", "function": name, "arguments": arguments}, theirs.fileno())
        return Child(self, pid, Channel(ours))

    def call(self, request: dict[str, object], *files: int) -> int:
        with self._lock:
            socket.send_fds(self._control, [json.dumps(request).encode() + b"\n"], files)
            return int(self._replies.readline())

    def stop(self) -> None:
        self._replies.close()
        self._control.close()
        self._process.wait(PATIENCE_SECONDS)


_zygotes: list[_Zygote] = []


def _the_zygote() -> _Zygote:
    if not _zygotes:
        _zygotes.append(_Zygote())
        atexit.register(_zygotes[0].stop)
    return _zygotes[0]


def _serve(control: socket.socket) -> None:
    for module in _MODULES:
        importlib.import_module(module)
    while True:
        data, files, _, _ = socket.recv_fds(control, 1 << 16, 1)
        while data and not data.endswith(b"\n"):
            data += control.recv(1 << 16)
        if not data:
            return
        request = json.loads(data)
        if request["do"] == "wait":
            _, status = os.waitpid(request["pid"], 0)
            reply = os.waitstatus_to_exitcode(status)
        else:
            module, _, name = request["function"].partition(":")
            function = getattr(importlib.import_module(module), name)
            reply = os.fork()
            if not reply:
                control.close()
                _run(Channel(socket.socket(fileno=files[0])), function, request["arguments"])
            os.close(files[0])
        control.sendall(b"%d\n" % reply)


def _run(channel: Channel, function: Callable[..., object], arguments: list[object]) -> None:
    code = 1
    try:
        channel.finish("returned", function(channel, *arguments))
        code = 0
    except BaseException:  # noqa: BLE001  # whatever it is, the test is to see it
        with suppress(OSError):
            channel.finish("failed", traceback.format_exc())
    finally:
        os._exit(code)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
