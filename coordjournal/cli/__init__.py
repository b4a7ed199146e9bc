"""The command line: parse, wire, print, exit code. Nothing imports it."""

from coordjournal.cli.program import main

__all__ = ["main"]
