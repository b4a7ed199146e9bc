"""The command line: parse, wire, print, exit code. Nothing imports it."""

import os
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

__all__ = ["main"]


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line on `args` and return the exit code.

    None are the process's own. Then Ctrl-C and SIGTERM are this program's until the process ends: while
    it is loaded, which takes a while, and after it is done, they end it at once and without a word.
    """
    if args is None:
        _end_at_once_by_signals()
        args = sys.argv[1:]
    from coordjournal.cli.program import run

    return run(args)


def _end_at_once_by_signals() -> None:
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _end_at_once)


def _end_at_once(number: int, _frame: FrameType | None) -> NoReturn:
    os._exit(128 + number)  # nothing is open, nothing is printed that was not handed on
