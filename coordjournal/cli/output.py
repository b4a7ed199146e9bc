"""What the command line prints: data to stdout as a table or as JSON, words to stderr."""

from __future__ import annotations

import os
import select
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, Final, Generic, Literal, NamedTuple, TextIO, TypeVar

import click
import msgspec

from coordjournal.cli.text import plain, width

T = TypeVar("T")
Mode = Literal["table", "json", "jsonl"]

_BATCH: Final = 256  # rows whose widths are looked at together
_GAP: Final = "  "

encode = msgspec.json.Encoder().encode


class StdoutLost(Exception):
    """Nobody reads stdout any more (`quiet`), or it cannot be written to: its cause says why."""

    def __init__(self, cause: OSError, done: str = "") -> None:
        text = f"the output cannot be written: {cause.strerror or cause}"
        super().__init__(f"{text}; {done}" if done else text)
        self._cause = cause
        self.quiet = isinstance(cause, BrokenPipeError)

    def but(self, done: str) -> StdoutLost:
        """Return this error with what was done all the same."""
        return StdoutLost(self._cause, done)


class Column(NamedTuple, Generic[T]):
    """One column of a table: its heading, what stands in it, its colour, whether it is right-aligned."""

    heading: str
    cell: Callable[[T], str]
    color: str | None = None
    right: bool = False


class Output:
    """Prints data in the form that was asked for; colour only where `color` says so."""

    def __init__(self, mode: Mode, *, color: bool) -> None:
        self.mode = mode
        self._color = color

    @property
    def is_table(self) -> bool:
        """Whether a person reads it, as far as the options tell."""
        return self.mode == "table"

    def document(self, value: Any) -> None:
        """Print one JSON document, on a line of its own."""
        self.write(encode(value) + b"\n")

    def line(self, text: str = "") -> None:
        """Print a line of a table; `plain` is the caller's to have seen to."""
        encoding = (sys.stdout.encoding if sys.stdout is not None else None) or "utf-8"
        self.write((text + "\n").encode(encoding, "backslashreplace"))

    def style(self, text: str, color: str | None = None, *, bold: bool = False, dim: bool = False) -> str:
        """Return `text` in colour where there is any."""
        if not self._color or not (color or bold or dim):
            return text
        return click.style(text, fg=color, bold=bold or None, dim=dim or None)

    def heading(self, text: str) -> None:
        """Print a heading of a table."""
        self.line(self.style(text, bold=True))

    def pairs(self, pairs: Iterable[tuple[str, object]]) -> None:
        """Print names and values below each other."""
        shown = [(name, plain(str(value))) for name, value in pairs]
        widest = max((width(name) for name, _ in shown), default=0)
        for name, value in shown:
            self.line(f"{self.style(_padded(name, widest), dim=True)}{_GAP}{value}".rstrip())

    def items(
        self,
        items: Iterable[T],
        columns: Sequence[Column[T]],
        document: Callable[[T], Any] = lambda item: item,
        *,
        then: Iterable[T] | None = None,
    ) -> int:
        """Print a list and return how many there were: a table, a JSON array, or an object a line.

        What is to come `then` has no end: it is printed as it comes, and JSON is an object a line.
        """
        if self.mode == "table":
            return self._table(iter(items), columns, then)
        if self.mode == "json" and then is None:
            encoded = [encode(document(item)) for item in items]  # all or an error, never half an array
            self.write(b"[" + b",".join(encoded) + b"]\n")
            return len(encoded)
        number = 0
        for item in chain(items, self._live(then or ())):
            self.document(document(item))
            number += 1
        return number

    def _table(self, items: Iterator[T], columns: Sequence[Column[T]], then: Iterable[T] | None) -> int:
        number = 0
        widths = [0] * len(columns)
        batches = chain(iter(lambda: list(islice(items, _BATCH)), []), ([item] for item in self._live(then or ())))
        for batch in batches:
            rows = [[plain(column.cell(item)) for column in columns] for item in batch]
            headings = [] if number else [[column.heading for column in columns]]
            widths = [max(most, *(width(row[at]) for row in (*headings, *rows))) for at, most in enumerate(widths)]
            for heading in headings:
                self.heading(self._row(heading, columns, widths, colored=False))
            for row in rows:
                self.line(self._row(row, columns, widths, colored=self._color))
            number += len(batch)
        return number

    def _live(self, items: Iterable[T]) -> Iterator[T]:
        """Yield items; what was printed of one is handed on before the next one is waited for."""
        self.flush()
        for item in items:
            yield item
            self.flush()

    def _row(self, cells: list[str], columns: Sequence[Column[T]], widths: list[int], *, colored: bool) -> str:
        shown = []
        for number, (cell, column, most) in enumerate(zip(cells, columns, widths, strict=True), 1):
            if number < len(cells) or column.right:
                cell = _padded(cell, most, right=column.right)
            shown.append(self.style(cell, column.color) if colored else cell)
        return _GAP.join(shown).rstrip()

    def write(self, data: bytes) -> None:
        """Write bytes to stdout; `StdoutLost` if that does not go."""
        stream = _stdout()
        try:
            if hasattr(stream, "buffer"):
                left = memoryview(data)
                while left:  # unbuffered, as with PYTHONUNBUFFERED, it takes only what a pipe has room for
                    left = left[stream.buffer.write(left) :]
            else:  # a text-only stand-in, where a program calls `main`
                stream.write(data.decode("utf-8", "replace"))
        except OSError as error:
            raise StdoutLost(error) from error

    def flush(self) -> None:
        """Hand on what was written; `StdoutLost` if that does not go."""
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError as error:
            raise StdoutLost(error) from error


def _stdout() -> TextIO:
    stream: TextIO | None = sys.stdout
    if stream is None:  # so it is where a shell closed it with `>&-`
        raise StdoutLost(OSError("standard output is closed"))
    return stream


def _padded(text: str, columns: int, *, right: bool = False) -> str:
    space = " " * (columns - width(text))
    return space + text if right else text + space


def note(text: str, *, color: str | None = None, label: str = "") -> None:
    """Print words to stderr, where they can be seen; not being able to is no fault."""
    stream: TextIO | None = sys.stderr
    if stream is None:
        return
    shown = "\n".join(plain(line) for line in text.split("\n"))
    if label:
        shown = f"{click.style(label, fg=color, bold=True) if color else label} {shown}"
    try:
        encoding = stream.encoding or "utf-8"
        stream.write(shown.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        stream.flush()
    except (OSError, ValueError):
        pass  # a closed stderr has no place where that could be said


def forget_stdout() -> None:
    """See to it that what is left in stdout's buffer does not fail once more when the process ends."""
    try:
        sink = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(sink, sys.stdout.fileno())
        os.close(sink)
    except (OSError, ValueError, AttributeError):
        pass  # no stdout of the process's own: nothing is flushed at its end


@contextmanager
def watched_reader(leave: Callable[[], None]) -> Iterator[None]:
    """Call `leave` as soon as nobody reads stdout any more, even while nothing is written.

    Raises `StdoutLost` at the end of the block if that happened.
    """
    gone = threading.Event()

    def watch(fd: int) -> None:
        poll = select.poll()
        poll.register(fd, 0)  # an error or a hang-up is told in any case
        poll.poll()
        gone.set()
        leave()

    try:
        fd = sys.stdout.fileno()
        kind = os.fstat(fd).st_mode
    except (OSError, ValueError, AttributeError):
        yield  # nothing of the process's own that could be closed
        return
    if not stat.S_ISFIFO(kind) and not stat.S_ISSOCK(kind):  # macOS cannot poll a terminal
        yield
        return
    threading.Thread(target=watch, args=(fd,), name="coordjournal-stdout", daemon=True).start()
    yield
    if gone.is_set():
        raise StdoutLost(BrokenPipeError())
