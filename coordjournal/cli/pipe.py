"""`pipe`: appends as JSON lines on stdin, what became of each on stdout, in order, as soon as it is known."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Final, NamedTuple

import click

from coordjournal.cli.exits import LATE_SECONDS, TRY_AGAIN, encodable, error_document, exit_code
from coordjournal.cli.lines import Ask, BadLine, parse, stdin_lines
from coordjournal.cli.options import Command, Number, Settings, complete_space
from coordjournal.cli.output import StdoutLost
from coordjournal.entry import Receipt, check_space
from coordjournal.errors import CoordJournalError, Unavailable, Undecided
from coordjournal.log import DecisionLog

_DEFAULT_JOBS: Final = 256
_MAX_JOBS: Final = 4096
_MAX_BYTES: Final = 64 << 20  # of the lines under way


class _UnderWay(NamedTuple):
    """A line that was read: its key, its size, since when, and the answer to come."""

    key: str | None
    size: int
    since: float
    answer: Future[Receipt]


@click.command(cls=Command)
@click.argument("space", shell_complete=complete_space)
@click.option(
    "--jobs",
    metavar="N",
    type=Number(1, _MAX_JOBS),
    default=_DEFAULT_JOBS,
    show_default=True,
    help="How many appends are under way at a time.",
)
@click.pass_obj
def pipe(settings: Settings, space: str, jobs: int) -> int:
    """Append JSON lines from stdin, and answer each.

    \b
    in:  {"events": [...], "key": ..., "actor": ..., "expect": ...}   ("event" for one)
    out: the receipt, or {"key": ..., "error": {"code": ..., "message": ...}}

    Lines are decided and answered in their order, each as soon as it is decided. A refusal does not stop
    it. The exit code is the highest of its lines'.
    """  # noqa: D301  # click's mark for lines that stay as they are
    check_space(space)
    log = settings.open_log()
    answer = _Answers(settings)
    feed = _Feed(log, space, stdin_lines(), jobs)
    try:
        for line in feed.answers():
            answer.print(line)
    except (KeyboardInterrupt, SystemExit):
        for line in feed.stop():  # every line that was taken on gets its answer
            answer.print(line)
        raise
    finally:
        if answer.worst == TRY_AGAIN:
            log.close(LATE_SECONDS)
        else:
            log.close()
    return answer.worst


class _Feed:
    """Reads lines and submits them, as many at a time as there is room for, in a thread of its own.

    So a line is read and answered when it comes, whether or not another one follows.
    """

    def __init__(self, log: DecisionLog, space: str, lines: Iterator[bytes], jobs: int) -> None:
        self._log = log
        self._space = space
        self._lines = lines
        self._jobs = jobs
        self._under_way: queue.SimpleQueue[_UnderWay | Exception | None] = queue.SimpleQueue()
        self._room = threading.Condition()
        self._count = 0
        self._bytes = 0
        self._stopped = False
        self._current: _UnderWay | None = None

    def answers(self) -> Iterator[_UnderWay]:
        """Yield the lines in order, each with its answer to come; the next one makes room for another."""
        threading.Thread(target=self._run, name="coordjournal-pipe", daemon=True).start()
        while (line := self._under_way.get()) is not None:
            if isinstance(line, Exception):
                raise line
            self._current = line
            yield line
            self._current = None
            with self._room:
                self._count -= 1
                self._bytes -= line.size
                self._room.notify()

    def stop(self) -> Iterator[_UnderWay]:
        """Take no more lines, and yield those without an answer; what was not begun is cancelled."""
        with self._room:
            self._stopped = True
            self._room.notify()
            left = [] if self._current is None else [self._current]
            while not self._under_way.empty():
                line = self._under_way.get()
                if isinstance(line, _UnderWay):
                    left.append(line)
        for line in reversed(left):  # so that what is appended all the same is the first of them
            line.answer.cancel()
        yield from left

    def _run(self) -> None:
        try:
            for line in self._lines:
                if not self._take(line):
                    return
        except Exception as error:  # noqa: BLE001  # raised again in the thread that prints
            self._under_way.put(error)
        else:
            self._under_way.put(None)

    def _take(self, line: bytes) -> bool:
        """Submit a line when there is room for it; false if no more are to be taken."""
        try:
            ask: Ask | BadLine = parse(line)
        except BadLine as bad:
            ask = bad
        with self._room:
            while self._count and (self._count >= self._jobs or self._bytes + len(line) > _MAX_BYTES):
                if self._stopped:
                    return False
                self._room.wait()
            if self._stopped:
                return False
            self._count += 1
            self._bytes += len(line)
            self._under_way.put(self._submit(ask, len(line)))
        return True

    def _submit(self, ask: Ask | BadLine, size: int) -> _UnderWay:
        key, since = ask.key, time.monotonic()
        try:
            if isinstance(ask, BadLine):
                raise ask.refusal
            key = os.urandom(16).hex() if key is None else key
            answer = self._log.submit(self._space, ask.batch(), key=key, actor=ask.actor, expect=ask.expect)
        except CoordJournalError as error:
            answer = Future()
            answer.set_exception(error)
        return _UnderWay(key, size, since, answer)


class _Answers:
    """Prints what became of lines, and remembers the `worst` exit code."""

    def __init__(self, settings: Settings) -> None:
        self.worst = 0
        self._settings = settings
        self._told = "no line was answered"

    def print(self, line: _UnderWay) -> None:
        """Print an answer; `StdoutLost` says up to where there are answers."""
        try:
            self.worst = max(self.worst, _print(self._settings, line))
        except StdoutLost as lost:
            raise lost.but(f"{self._told}; what follows may be appended: the same keys may be tried again") from lost
        self._told = f"the last key answered is {encodable(line.key)}" if line.key else "a line without a key came last"


def _print(settings: Settings, line: _UnderWay) -> int:
    """Print what became of a line and return its exit code."""
    code = 0
    try:
        settings.out.document(_outcome(line, settings.timeout))
    except CoordJournalError as error:
        code = exit_code(error)
        settings.out.document({"key": encodable(line.key), "error": error_document(settings.placed(error))})
    settings.out.flush()
    return code


def _outcome(line: _UnderWay, timeout: float) -> Receipt:
    try:
        return line.answer.result(max(0.0, line.since + timeout - time.monotonic()))
    except FutureTimeoutError:
        if line.answer.done():
            return line.answer.result()
        if line.answer.cancel():
            raise Unavailable(f"no append was possible within {timeout:g} s; try again") from None
        raise Undecided(f"the append was not decided within {timeout:g} s; try the same key again") from None
    except CancelledError:
        raise Unavailable("the pipe was ended before the append was taken on") from None
