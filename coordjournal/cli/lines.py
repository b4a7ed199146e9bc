"""The lines that `pipe` takes: read as they come, and strictly understood."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

import click
import msgspec

from coordjournal.errors import InvalidEvent, Rejected
from coordjournal.events import Event
from coordjournal.importers.lines import read_lines, strict_json

_READ_BYTES: Final = 1 << 16


class Ask(msgspec.Struct, forbid_unknown_fields=True):
    """One append as a line asks for it: `events`, or `event` for one."""

    events: list[Event] | msgspec.UnsetType = msgspec.UNSET
    event: Event | msgspec.UnsetType = msgspec.UNSET
    key: str | None = None
    actor: str | None = None
    expect: int | None = None

    def batch(self) -> list[Event]:
        """Return what is to be appended; `InvalidEvent` unless it stands there in one way."""
        if isinstance(self.events, list) and isinstance(self.event, msgspec.UnsetType):
            if not self.events:
                raise InvalidEvent("the line is refused: `events` is a list of at least one event")
            return self.events
        if isinstance(self.events, msgspec.UnsetType) and not isinstance(self.event, msgspec.UnsetType):
            return [self.event]
        raise InvalidEvent("the line is refused: it needs exactly one of `events` and `event`")


class BadLine(Exception):
    """A line that asks for nothing the journal could judge: why, and its key if it could be read."""

    def __init__(self, refusal: Rejected, key: str | None = None) -> None:
        super().__init__(refusal)
        self.refusal = refusal
        self.key = key


def parse(line: bytes) -> Ask:
    """Return what a line asks for; `BadLine` if that is not clear."""
    key = None
    try:
        found = strict_json(line)
        if isinstance(found, dict) and isinstance(found.get("key"), str):
            key = found["key"]
        if isinstance(found, dict) and not isinstance(found.get("events", []), list):
            raise BadLine(InvalidEvent("the line is refused: `events` is a list of at least one event"), key)
        return msgspec.convert(found, Ask)
    except Rejected as refusal:
        raise BadLine(refusal) from refusal
    except msgspec.ValidationError as error:
        raise BadLine(InvalidEvent(f"the line is refused: {error}"), key) from error


def stdin_lines() -> Iterator[bytes]:
    """Yield the lines of stdin as they come."""
    return read_lines(_reader())


def _reader() -> Callable[[], bytes]:
    """Return what reads whatever has come of stdin, from its descriptor: a thread may stay in it at the end."""
    stream: Any = sys.stdin
    if stream is None:
        raise click.UsageError("standard input is closed")
    try:
        fd: int = stream.fileno()
    except (OSError, io.UnsupportedOperation):
        return lambda: bytes(stream.buffer.read1(_READ_BYTES))  # a stand-in, where a program calls `main`
    return lambda: os.read(fd, _READ_BYTES)
