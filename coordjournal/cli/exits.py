"""How the program ends: exit codes, and errors in words or in JSON."""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click

from coordjournal.cli.options import Settings
from coordjournal.cli.output import StdoutLost, note
from coordjournal.errors import (
    Conflict,
    CoordJournalError,
    NotFound,
    OperatorNeeded,
    Rejected,
    Unavailable,
    Undecided,
)

_NOWHERE: Final = logging.NullHandler()
_OWN: Final = Path(__file__).parents[1]

OTHER: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
REFUSED: Final = 4
TRY_AGAIN: Final = 5
OPERATOR: Final = 6
# What a shell shows for a program that a signal ended: 128 and its number.
INTERRUPTED: Final = 130
PIPE_CLOSED: Final = 141
TERMINATED: Final = 143

LATE_SECONDS: Final = 0.5
"""For how long a log is closed after a timeout: what did not come in time is not waited for once more."""

_CODES: Final[tuple[tuple[type[BaseException], int], ...]] = (
    (click.ClickException, USAGE),
    (NotFound, NOT_FOUND),
    (Rejected, REFUSED),
    (Conflict, REFUSED),
    (Unavailable, TRY_AGAIN),
    (Undecided, TRY_AGAIN),
    (OperatorNeeded, OPERATOR),
)


def exit_code(error: BaseException) -> int:
    """Return the exit code for an error."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), OTHER)


def error_document(error: BaseException) -> dict[str, str]:
    """Return what JSON output says of an error: its name in snake case, and what it says."""
    return {"code": _code(error), "message": encodable(message(error)) or ""}


def _code(error: BaseException) -> str:
    if isinstance(error, CoordJournalError):
        return error.code
    if isinstance(error, click.ClickException):
        return "usage_error"
    name = type(error).__name__
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def message(error: BaseException) -> str:
    """Return what an error says, without where in the program it was raised."""
    if isinstance(error, CoordJournalError):
        return str(error)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return f"{error.ctx.command_path}: which command? see --help"
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if isinstance(error, StdoutLost):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def encodable(text: str | None) -> str | None:
    """Return `text` with what UTF-8 cannot hold escaped."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()


def tell(error: BaseException, settings: Settings) -> None:
    """Print an error: in JSON to stdout, where the data would have been, else in words to stderr."""
    if not settings.out.is_table and not isinstance(error, StdoutLost):
        settings.out.document({"error": error_document(error)})
        settings.out.flush()
    elif isinstance(error, click.exceptions.NoArgsIsHelpError):
        note(error.message)
    else:
        note(message(error), label="error:", color="red" if settings.color(sys.stderr) else None)
        if isinstance(error, click.UsageError) and error.ctx is not None:
            note(f"try: {error.ctx.command_path} --help")
    if settings.verbose and not isinstance(error, (click.ClickException, StdoutLost)):
        note(_raised(error, settings.verbose))


def _raised(error: BaseException, verbose: int) -> str:
    """Return where in this program an error was raised; if asked twice, with all that led there."""
    if verbose > 1:
        return "".join(traceback.format_exception(error)).rstrip()
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(_OWN)]
    where = f" at {own[-1].filename}:{own[-1].lineno}" if own else ""
    return f"raised{where}: {type(error).__name__}: {error}"


def _is_told(record: logging.LogRecord) -> bool:
    """Whether a record is about an error that whoever asked for something gets as well."""
    args = record.args if isinstance(record.args, tuple) else ()
    return record.levelno <= logging.WARNING and any(isinstance(arg, OperatorNeeded) for arg in args)


class _Words(logging.Handler):
    """The library's log on stderr: warnings, with -v what goes on, with -vv everything."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings

    def emit(self, record: logging.LogRecord) -> None:
        verbose = self._settings.verbose
        if not (verbose or self._settings.serves) and _is_told(record):
            return
        if record.levelno < (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]:
            return
        text = record.getMessage()
        if record.exc_info and record.exc_info[1]:
            error = record.exc_info[1]
            text += f": {message(error)}"
            if verbose:
                text += "\n" + _raised(error, verbose)
        note(text, label=f"{record.levelname.lower()}:")


@contextmanager
def library_log(settings: Settings) -> Iterator[None]:
    """Show the library's log on stderr, as far as the options ask for it."""
    logger = logging.getLogger("coordjournal")
    handler, level = _Words(settings), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.addHandler(_NOWHERE)  # what a thread says while the program ends is not for logging's last resort
        logger.setLevel(level)
