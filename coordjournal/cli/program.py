"""The program: all commands under one root, and how it runs and ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Final, NoReturn

import click
from click.shell_completion import shell_complete

from coordjournal.cli import append, cluster, completion, demo, fold, operate, pipe, read, transfer
from coordjournal.cli.exits import INTERRUPTED, OTHER, PIPE_CLOSED, TERMINATED, exit_code, library_log, tell
from coordjournal.cli.options import Group, Settings, wanted_output
from coordjournal.cli.output import StdoutLost, forget_stdout, note

PROGRAM: Final = "coordjournal"

root = Group(
    PROGRAM,
    help="Decisions of federated wikis: an append-only log in git, folded into what is true now.",
    epilog="Exit codes: 0 ok, 1 other, 2 usage, 3 not found, 4 refused or conflict, 5 try again, 6 call an operator.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (
    operate.init,
    read.spaces,
    append.append,
    pipe.pipe,
    read.log,
    read.show,
    fold.state,
    fold.resolve,
    fold.diff,
    transfer.import_,
    transfer.export,
    operate.verify,
    operate.compact,
    operate.adopt,
    operate.recover,
    cluster.node,
    cluster.status,
    cluster.holders,
    cluster.handoff,
    operate.doctor,
    demo.demo,
    completion.completion,
):
    root.add_command(_command)


def run(words: Sequence[str]) -> int:
    """Run the command line on `words` and return the exit code."""
    settings = Settings()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its own lines on stderr are not for our users
    try:
        with library_log(settings), _interruptible():
            try:
                return _run(list(words), settings)
            except click.UsageError as error:
                settings.output = wanted_output(words)  # what stood behind the fault was not read
                settings.__dict__.pop("out", None)
                return _failed(error, settings)
            except Exception as error:  # noqa: BLE001  # the program's edge: told in words, never as a traceback
                return _failed(error, settings)
    except KeyboardInterrupt:
        if sys.stderr is not None and sys.stderr.isatty():
            note("")  # the prompt comes on a line of its own
        return INTERRUPTED


def _run(words: list[str], settings: Settings) -> int:
    if instruction := os.environ.get(completion.VARIABLE):
        return _complete(instruction)
    try:
        with root.make_context(PROGRAM, list(words), obj=settings) as ctx:  # click empties the list
            code = root.invoke(ctx)
    except click.exceptions.Exit as end:
        code = end.exit_code
    settings.out.flush()
    return code if isinstance(code, int) else 0


def _complete(instruction: str) -> int:
    try:
        return shell_complete(root, {}, PROGRAM, completion.VARIABLE, instruction)
    except OSError as error:  # click prints it
        raise StdoutLost(error) from error


def _failed(error: Exception, settings: Settings) -> int:
    try:
        if isinstance(error, StdoutLost):
            raise error
        tell(error, settings)
    except StdoutLost as lost:
        if not lost.quiet:
            tell(lost, settings)
        forget_stdout()
        return PIPE_CLOSED if lost.quiet else OTHER
    return exit_code(error)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the program in order; one of them that is ignored stays so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _terminate}
    before = {number: found for number in handlers if (found := signal.getsignal(number)) is not signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, handlers[number])
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(TERMINATED)
