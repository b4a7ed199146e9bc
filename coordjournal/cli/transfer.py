"""`import` and `export`: from other logs and wikis into this one, and out again."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Self

import click

from coordjournal.cli.append import read_stdin
from coordjournal.cli.options import Command, Group, Settings, complete_space
from coordjournal.cli.output import encode, note
from coordjournal.cli.read import note_if_empty
from coordjournal.cli.text import count
from coordjournal.entry import check_space

if TYPE_CHECKING:
    from coordjournal.importers.report import Imported, Reject
    from coordjournal.log import DecisionLog

_TERMINAL_SECONDS: Final = 0.1
_WORDS_SECONDS: Final = 10.0

_DUMP: Final = click.Path(exists=True, dir_okay=False, path_type=Path)


class _Source(Command):
    """What can be imported: all take the same options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += [
            click.Option(["--dry-run"], is_flag=True, help="Tell the same, and append nothing."),
            click.Option(
                ["--rejects"],
                metavar="FILE",
                type=click.Path(dir_okay=False, path_type=Path),
                help="Where what was refused is listed.  [default: SPACE.rejects.jsonl, here]",
            ),
        ]


class _Import(Group):
    command_class = _Source


@click.group(name="import", cls=_Import)
def import_() -> None:
    """Import decisions from elsewhere.

    It can be run again without doing anything twice. What the journal refuses is skipped, and listed with
    its line or id and the reason.
    """


@import_.command("jsonl")
@click.argument("space", shell_complete=complete_space)
@click.argument("file", metavar="FILE|-", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.pass_obj
def import_jsonl(settings: Settings, space: str, file: str, dry_run: bool, rejects: Path | None) -> None:
    """Import JSON lines: whole entries, or bare events.

    Whole entries are as `export` gives them; their times, actors and keys are kept.
    """
    from coordjournal.importers import jsonl

    with ExitStack() as stack:
        stream: BinaryIO = read_stdin() if file == "-" else stack.enter_context(Path(file).open("rb"))

        def work(log: DecisionLog, **how: Any) -> Imported:
            return jsonl.import_jsonl(log, space, stream, **how)

        _import(settings, space, dry_run, rejects, work)


@import_.command("mediawiki")
@click.argument("space", shell_complete=complete_space)
@click.option("--redirect", metavar="FILE", type=_DUMP, required=True, help="The dump of `redirect`, .sql or .sql.gz.")
@click.option("--page", metavar="FILE", type=_DUMP, required=True, help="The dump of `page`, .sql or .sql.gz.")
@click.pass_obj
def import_mediawiki(
    settings: Settings, space: str, redirect: Path, page: Path, dry_run: bool, rejects: Path | None
) -> None:
    """Import a wiki's redirects from Wikimedia's dumps."""
    from coordjournal.importers import mediawiki

    def work(log: DecisionLog, **how: Any) -> Imported:
        return mediawiki.import_redirects(log, space, redirect, page, **how)

    _import(settings, space, dry_run, rejects, work)


@click.command(cls=Command)
@click.argument("space", shell_complete=complete_space)
@click.pass_obj
def export(settings: Settings, space: str) -> None:
    """Print the log of SPACE as JSON lines.

    `import jsonl` reads them back to the same state. They are the same whatever -o says.
    """
    from coordjournal.importers.jsonl import export_jsonl

    with settings.open_log() as log:
        note_if_empty(space, log.head(space).seq)
        for line in export_jsonl(log, space):
            settings.out.write(line)


def _import(settings: Settings, space: str, dry_run: bool, rejects: Path | None, work: Callable[..., Imported]) -> None:
    check_space(space)
    progress = _Progress()
    with settings.open_log() as log, _Rejects(rejects or Path(f"{space}.rejects.jsonl")) as refused:
        try:
            found = work(log, rejects=refused.add, progress=progress, dry_run=dry_run, actor=log.default_actor())
        finally:
            progress.end()
    file = str(refused.path) if found.rejected else None
    out = settings.out
    if not out.is_table:
        out.document(
            {
                "space": space,
                "appended": found.appended,
                "duplicates": found.duplicates,
                "rejected": found.rejected,
                "rejects": file,
                "dry_run": dry_run,
            }
        )
        return
    out.pairs([("appended", f"{found.appended:,}"), ("there already", f"{found.duplicates:,}")])
    out.pairs([("refused", f"{found.rejected:,}" + (f", listed in {file}" if file else ""))])
    out.flush()
    if dry_run:
        note("nothing was appended: this is what would be done")


class _Rejects:
    """The file of what was refused, made anew by each import, and not made where nothing was refused."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and self._file is None and self.path.is_file() and self.path.stat().st_size:
            self._file = self.path.open("wb")  # what an earlier import listed is settled
        if self._file is not None:
            self._file.close()

    def add(self, reject: Reject) -> None:
        """List one; it is in the file at once, so that an interruption loses none."""
        if self._file is None:
            self._file = self.path.open("wb", buffering=0)
        line = {"place": reject.place, "key": reject.key, "code": reject.code, "reason": reject.reason}
        self._file.write(encode(line) + b"\n")


class _Progress:
    """Tells on stderr how far an import is: on one line of a terminal, else every ten seconds."""

    def __init__(self) -> None:
        self._terminal = sys.stderr is not None and sys.stderr.isatty()
        self._every = _TERMINAL_SECONDS if self._terminal else _WORDS_SECONDS
        self._next = time.monotonic() + self._every
        self._shown = 0

    def __call__(self, decided: int) -> None:
        if (now := time.monotonic()) < self._next:
            return
        self._next = now + self._every
        text = f"{count(decided, 'append')} decided"
        if self._terminal:
            self._write(f"\r{text}")
            self._shown = len(text)
        else:
            note(text)

    def end(self) -> None:
        """Leave the line free for what comes."""
        if self._shown:
            self._write(f"\r{' ' * self._shown}\r")

    def _write(self, text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except OSError:
            pass  # nobody watches any more; the import goes on
