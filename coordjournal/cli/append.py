"""`append`: one decision, and its receipt."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import click

from coordjournal.cli.exits import LATE_SECONDS
from coordjournal.cli.options import SEQ, Command, Group, Settings, complete_space
from coordjournal.cli.output import Output, StdoutLost, note
from coordjournal.entry import MAX_APPEND_BYTES, Receipt
from coordjournal.errors import CoordJournalError, InvalidEvent, TooLarge, Unavailable, Undecided
from coordjournal.events import (
    AliasRemoved,
    AliasSet,
    Event,
    OverlayRemoved,
    OverlaySet,
    PageForked,
    PagesBound,
    PagesMerged,
    PagesUnbound,
)
from coordjournal.space import DEFAULT_MEDIA_TYPE

_META: Final = "coordjournal.append"


@dataclass
class _Asked:
    """What the options of `append` said, before or after the verb."""

    space: str = ""
    key: str | None = None
    expect: int | None = None
    media_type: str | None = None


def _asked(ctx: click.Context) -> _Asked:
    asked: _Asked = ctx.meta.setdefault(_META, _Asked())
    return asked


def _settle(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value is not None:
        assert param.name is not None
        setattr(_asked(ctx), param.name, value)


_KEY: Final = click.Option(
    ["--key"],
    metavar="KEY",
    callback=_settle,
    expose_value=False,
    help="The append's own key: the same one never appends twice.  [default: made up]",
)
_EXPECT: Final = click.Option(
    ["--expect"],
    metavar="SEQ",
    type=SEQ,
    callback=_settle,
    expose_value=False,
    help="Append only if the head has this seq, 0 for a new space.",
)
_MEDIA_TYPE: Final = click.Option(
    ["--media-type"],
    metavar="TYPE",
    callback=_settle,
    expose_value=False,
    help=f"What the overlay's text is.  [default: {DEFAULT_MEDIA_TYPE}]",
)


class _Verb(Command):
    """A kind of decision."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += [_KEY, _EXPECT]


class _Append(Group):
    """Takes its options also between SPACE and the verb."""

    command_class = _Verb

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        args = list(args)
        parser = self.make_parser(ctx)
        _, rest, _ = parser.parse_args(list(args))
        head = args[: len(args) - len(rest)]  # options and SPACE
        alone = click.Command(self.name, params=[p for p in self.get_params(ctx) if isinstance(p, click.Option)])
        options = alone.make_parser(ctx)
        options.allow_interspersed_args = False
        _, verb, _ = options.parse_args(list(rest))
        between = rest[: len(rest) - len(verb)]
        return super().parse_args(ctx, [*between, *head, *verb])


@click.group(cls=_Append, params=[_KEY, _EXPECT, _MEDIA_TYPE])
@click.argument("space", shell_complete=complete_space)
@click.pass_context
def append(ctx: click.Context, space: str) -> None:
    """Append one decision to SPACE and print its receipt.

    A name that begins with - follows --, which follows the options.
    """
    asked = _asked(ctx)
    asked.space = space
    if asked.media_type is not None and ctx.invoked_subcommand != "overlay":
        raise click.UsageError("--media-type says what an overlay's text is; this is none", ctx)


@append.command()
@click.argument("name")
@click.argument("target")
@click.pass_context
def alias(ctx: click.Context, name: str, target: str) -> None:
    """Decide that NAME leads to TARGET."""
    _decide(ctx, AliasSet(name, target))


@append.command()
@click.argument("name")
@click.pass_context
def unalias(ctx: click.Context, name: str) -> None:
    """Decide that NAME leads nowhere any more."""
    _decide(ctx, AliasRemoved(name))


@append.command()
@click.argument("a")
@click.argument("b")
@click.pass_context
def bind(ctx: click.Context, a: str, b: str) -> None:
    """Decide that A and B are the same page."""
    _decide(ctx, PagesBound(a, b))


@append.command()
@click.argument("a")
@click.argument("b")
@click.pass_context
def unbind(ctx: click.Context, a: str, b: str) -> None:
    """Retract the binding of A and B."""
    _decide(ctx, PagesUnbound(a, b))


@append.command()
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option("--into", metavar="PAGE", required=True, help="The page that stands for all of them from now on.")
@click.pass_context
def merge(ctx: click.Context, sources: tuple[str, ...], into: str) -> None:
    """Decide that the pages SOURCE... were merged into PAGE."""
    _decide(ctx, PagesMerged(sources, into))


@append.command()
@click.argument("source")
@click.argument("fork")
@click.pass_context
def fork(ctx: click.Context, source: str, fork: str) -> None:
    """Decide that FORK descends from SOURCE and is another page."""
    _decide(ctx, PageForked(source, fork))


@append.command(params=[_MEDIA_TYPE])
@click.argument("page")
@click.argument("name")
@click.argument("file", metavar="FILE|-", type=click.Path(dir_okay=False, exists=True, allow_dash=True))
@click.pass_context
def overlay(ctx: click.Context, page: str, name: str, file: str) -> None:
    """Lay the text in FILE, or on stdin, on PAGE as NAME.

    It takes the place of one of that name.
    """
    media_type = _asked(ctx).media_type
    _decide(ctx, OverlaySet(page, name, DEFAULT_MEDIA_TYPE if media_type is None else media_type, _text(file)))


@append.command()
@click.argument("page")
@click.argument("name")
@click.pass_context
def withdraw(ctx: click.Context, page: str, name: str) -> None:
    """Take the overlay NAME off PAGE."""
    _decide(ctx, OverlayRemoved(page, name))


def _decide(ctx: click.Context, event: Event) -> None:
    settings, asked = ctx.ensure_object(Settings), _asked(ctx)
    key = os.urandom(16).hex() if asked.key is None else asked.key
    log = settings.open_log()
    try:
        receipt = log.append(asked.space, event, key=key, expect=asked.expect, timeout=settings.timeout)
    except (Unavailable, Undecided) as error:
        log.close(LATE_SECONDS)
        raise type(error)(f"{settings.placed(error)} (the key is {key})") from error
    except (KeyboardInterrupt, SystemExit):
        note(f"interrupted: it may have been appended; to make sure, append it again with --key {key}")
        raise
    except CoordJournalError:
        log.close()
        raise
    log.close()
    try:
        print_receipt(settings.out, receipt)
        settings.out.flush()
    except StdoutLost as lost:
        raise lost.but(f"but it was appended: space {receipt.space}, seq {receipt.seq}, key {receipt.key}") from lost


def print_receipt(out: Output, receipt: Receipt) -> None:
    """Print what became of an append."""
    if not out.is_table:
        out.document(receipt)
        return
    seqs = str(receipt.seq) if receipt.first == receipt.seq else f"{receipt.first}-{receipt.seq}"
    again = "  (it was there already)" if receipt.duplicate else ""
    number = out.style(seqs, "green", bold=True)
    out.line(f"{receipt.space} {number}  {out.style(receipt.commit[:12], 'yellow')}  key {receipt.key}{again}")


def read_stdin() -> BinaryIO:
    """Return stdin's bytes; a usage error where it was closed."""
    stream: Any = sys.stdin
    if stream is None:
        raise click.UsageError("standard input is closed")
    buffer: BinaryIO = stream.buffer
    return buffer


def _text(file: str) -> str:
    """Return an overlay's text; no more is read than an append can hold."""
    where = "standard input" if file == "-" else file
    try:
        with nullcontext(read_stdin()) if file == "-" else open(file, "rb") as stream:  # noqa: PTH123  # of "-" it is no path
            data = stream.read(MAX_APPEND_BYTES + 1)
    except OSError as error:
        raise click.UsageError(f"{where} cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_APPEND_BYTES:
        raise TooLarge(f"{where} has more than the {MAX_APPEND_BYTES:,} bytes that an append may have")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidEvent(f"{where} is not UTF-8 text: byte {error.start + 1} is 0x{data[error.start]:02x}") from error
