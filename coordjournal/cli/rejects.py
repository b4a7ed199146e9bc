"""The file in which an import lists what was refused: never in place of anything that is not such a list."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, Self, TextIO

import click
import msgspec

from coordjournal.cli.output import encode

if TYPE_CHECKING:
    from coordjournal.importers.report import Reject

_FIELDS: Final = ("place", "key", "code", "reason")
_MAX_LINE_BYTES: Final = 16 << 20  # of a reject: its key may be as long as a line of the input


class Rejects:
    """A list that is written beside `path` and takes its place when the block ends, however that ends.

    Where nothing was refused, a list of an earlier import is emptied, and no file is made. A block that
    fails before anything was refused leaves all as it is. What is no regular file, such as a terminal,
    is written to. Without a path nothing is listed.
    """

    def __init__(self, path: Path | None, inputs: Sequence[Path | None] = ()) -> None:
        """Take the place of the list and what the import reads, None being stdin."""
        self.path = path
        self.listed = False
        self._inputs = inputs
        self._target = Path()  # where the list goes in the end, no symbolic link
        self._beside: Path | None = None
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        """Make sure that the list can be written; a usage error if not, or if anything would be lost by it."""
        if self.path is not None:
            try:
                self._open(self.path)
            except (OSError, RuntimeError) as error:  # the latter where symbolic links go round in a circle
                why = (isinstance(error, OSError) and error.strerror) or error
                raise click.UsageError(
                    f"what is refused cannot be listed in {self.path}: {why}; name another place with --rejects"
                ) from error
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._file is None:
            return
        self._file.close()
        if self._beside is None:
            return
        if self.listed or (kind is None and _has_something(self._target)):
            self._beside.replace(self._target)
        else:
            self._beside.unlink()

    def add(self, reject: Reject) -> None:
        """List one; it is in the file at once, so that an interruption loses none."""
        self.listed = True
        if self._file is not None:
            line = encode({field: getattr(reject, field) for field in _FIELDS}) + b"\n"
            self._file.write(line)

    def _open(self, path: Path) -> None:
        there = path.stat() if path.exists() else None
        if there is not None:
            self._check(path, there)
            if not stat.S_ISREG(there.st_mode):
                self._file = path.open("wb", buffering=0)
                return
        self._target = path.resolve()
        beside = self._target.with_name(f"{self._target.name[:40]}.{os.urandom(8).hex()}.part")
        self._file = beside.open("xb", buffering=0)
        self._beside = beside
        if there is not None:
            beside.chmod(stat.S_IMODE(there.st_mode))

    def _check(self, path: Path, there: os.stat_result) -> None:
        if not stat.S_ISREG(there.st_mode):
            return
        used = [(str(source or "what is read from stdin"), _stat(source or sys.stdin)) for source in self._inputs]
        used += [("what is printed", _stat(stream)) for stream in (sys.stdout, sys.stderr)]
        for name, other in used:
            if other is not None and os.path.samestat(other, there):
                raise click.UsageError(
                    f"the list of what is refused would take the place of {name}; name another file with --rejects"
                )
        if there.st_size and not _is_list(path):
            raise click.UsageError(
                f"{path} is there, and no list of what an import refused; name another file with --rejects"
            )


def _has_something(path: Path) -> bool:
    with suppress(FileNotFoundError):
        return path.stat().st_size > 0
    return False


def _stat(file: Path | TextIO | None) -> os.stat_result | None:
    """Return what a file is; None where there is none, as behind a stand-in for stdin."""
    try:
        return file.stat() if isinstance(file, Path) else os.fstat(file.fileno()) if file else None
    except (OSError, ValueError):
        return None


def _is_list(path: Path) -> bool:
    """Whether the first line is one that `Rejects` writes."""
    with path.open("rb") as file:
        line = file.readline(_MAX_LINE_BYTES)
    try:
        found = msgspec.json.decode(line, type=dict[str, str])
    except msgspec.MsgspecError:
        return False
    return set(found) == set(_FIELDS)
