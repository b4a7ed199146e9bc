"""`import` and `export`: from other logs and wikis into this one, and out again."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import click

from coordjournal.cli.append import read_stdin
from coordjournal.cli.options import Command, Group, Settings, complete_space
from coordjournal.cli.output import Output, StdoutLost, note
from coordjournal.cli.read import note_if_empty, note_if_local
from coordjournal.cli.rejects import Rejects
from coordjournal.cli.text import count
from coordjournal.entry import check_space

if TYPE_CHECKING:
    from coordjournal.importers.report import Imported
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
                help="Where what was refused is listed.  [default: SPACE.rejects.jsonl, here; none by --dry-run]",
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

        inputs = [None if file == "-" else Path(file)]
        _import(settings, space, dry_run, _place(space, rejects, dry_run, inputs), work)


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

    _import(settings, space, dry_run, _place(space, rejects, dry_run, [redirect, page]), work)


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
        note_if_local(settings, log, space)
        for line in export_jsonl(log, space):
            settings.out.write(line)


def _place(space: str, given: Path | None, dry_run: bool, inputs: Sequence[Path | None]) -> Rejects:
    """Return where what is refused is listed: a dry run makes no file that nobody asked for."""
    default = None if dry_run else Path(f"{space}.rejects.jsonl")
    return Rejects(default if given is None else given, inputs)


def _import(settings: Settings, space: str, dry_run: bool, rejects: Rejects, work: Callable[..., Imported]) -> None:
    check_space(space)
    progress = _Progress()
    with settings.open_log() as log, rejects:
        try:
            found = work(log, rejects=rejects.add, progress=progress, dry_run=dry_run, actor=log.default_actor())
        finally:
            progress.end()
    file = str(rejects.path) if found.rejected and rejects.path is not None else None
    try:
        _tell(settings.out, space, dry_run, found, file)
    except StdoutLost as lost:
        done = "nothing was to be appended" if dry_run else f"the import is done: {count(found.appended, 'append')}"
        raise lost.but(done) from lost.__cause__
    if dry_run and settings.out.is_table:
        note("nothing was appended: this is what would be done")
        if found.rejected and file is None:
            note("--rejects FILE lists what would be refused")


def _tell(out: Output, space: str, dry_run: bool, found: Imported, file: str | None) -> None:
    if out.is_table:
        out.pairs([("appended", f"{found.appended:,}"), ("there already", f"{found.duplicates:,}")])
        out.pairs([("refused", f"{found.rejected:,}" + (f", listed in {file}" if file else ""))])
    else:
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
    out.flush()


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
