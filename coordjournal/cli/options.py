"""The options that every command takes, before or after its name, and what follows from them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast, get_args

import click
from click.shell_completion import CompletionItem

import coordjournal
from coordjournal.authority import Consistency, settings
from coordjournal.authority.settings import DEFAULT_PREFIX, DEFAULT_TTL
from coordjournal.authority.settings import Settings as AuthoritySettings
from coordjournal.authority.wire import Role
from coordjournal.cli.output import Mode, Output
from coordjournal.entry import MAX_SEQ
from coordjournal.errors import CoordJournalError, InvalidEvent, Unavailable, Undecided
from coordjournal.etcd.session import MIN_TTL_SECONDS
from coordjournal.log import DEFAULT_TIMEOUT

if TYPE_CHECKING:
    from coordjournal.log import DecisionLog

E = TypeVar("E", bound=CoordJournalError)

_MAX_SECONDS: Final = 1_000_000.0
_MODES: Final[tuple[Mode, ...]] = ("table", "json", "jsonl")


@dataclass
class Settings:
    """What the global options said, the deeper one where one was given twice; then the environment."""

    given_repo: str | None = None
    output: Mode = "table"
    actor: str | None = None
    timeout: float = DEFAULT_TIMEOUT
    etcd: str | None = None
    etcd_cacert: str | None = None
    etcd_cert: str | None = None
    etcd_key: str | None = None
    etcd_user: str | None = None
    etcd_password_file: str | None = None
    prefix: str | None = None
    ttl: int | None = None
    role: Role | None = None
    consistency: Consistency | None = None
    cache_dir: str | None = None
    no_color: bool = False
    verbose: int = 0
    serves: bool = False
    """Whether this process works for others, who are told what is wrong; so its own operator has to be told too."""

    @cached_property
    def out(self) -> Output:
        """Where data goes; to be asked for when all options are known."""
        return Output(self.output, color=self.color(sys.stdout))

    def color(self, stream: Any) -> bool:
        """Whether `stream` is a terminal that is to get colour."""
        if self.no_color or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
            return False
        return stream is not None and not stream.closed and bool(stream.isatty())

    @property
    def repo_or_none(self) -> Path | None:
        """The repository, None if none was named."""
        text = self.given_repo or os.environ.get("COORDJOURNAL_REPO")
        if not text:
            return None
        if not _is_text(text):
            raise click.UsageError(f"the path of the repository is not UTF-8: {text!r}")
        return Path(text)

    @property
    def repo(self) -> Path:
        """The repository; a usage error if none was named."""
        path = self.repo_or_none
        if path is None:
            raise click.UsageError("which repository? name it with --repo PATH or in COORDJOURNAL_REPO")
        return path

    def open_log(self, role: Role | None = None) -> DecisionLog:
        """Return the log of the repository, not opened yet; in this role, whatever the options say."""
        etcd = self.authority
        return coordjournal.DecisionLog.open(
            self.repo,
            actor=self.actor or os.environ.get("COORDJOURNAL_ACTOR") or None,
            cache_dir=self._given("cache_dir"),
            consistency=self.chosen_consistency,
            read_timeout=self.timeout,
            **etcd._replace(role=role or etcd.role)._asdict(),
        )

    @property
    def authority(self) -> AuthoritySettings:
        """How etcd is reached, if it is; a usage error for what is not of its form."""
        try:
            return settings.read(self._given, lambda name: f"--{name.replace('_', '-')}")
        except InvalidEvent as error:
            raise click.UsageError(str(error)) from error

    def authority_of(self, what: str) -> AuthoritySettings:
        """How etcd is reached, for a command that needs one; a usage error that begins with `what` without."""
        found = self.authority
        if not found.etcd:
            raise click.UsageError(f"{what}; name it with --etcd or in COORDJOURNAL_ETCD")
        return found

    def placed(self, error: E) -> E:
        """Return an error that leaves open which etcd did not answer, or that had no time to, with its endpoints."""
        endpoints = self._given("etcd") or ""
        if isinstance(error, (Unavailable, Undecided)) and endpoints and endpoints not in str(error):
            return type(error)(f"{error} (etcd at {endpoints})")
        return error

    @property
    def chosen_consistency(self) -> Consistency:
        """What reads hold."""
        chosen = self._given("consistency") or "linearizable"
        if chosen not in get_args(Consistency):
            raise click.UsageError(f"consistency: one of {', '.join(get_args(Consistency))}, not {chosen!r}")
        return cast(Consistency, chosen)

    def _given(self, name: str) -> str | None:
        """Return what an option says, or its variable of the environment."""
        value = getattr(self, name, None)
        return str(value) if value is not None else os.environ.get(settings.variable(name)) or None


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def seconds(text: str) -> float:
    """Return a time span, which is more than nothing."""
    span = float(text) if re.fullmatch(r"[0-9]+\.?[0-9]*|\.[0-9]+", text) else 0.0
    if not 0 < span <= _MAX_SECONDS:
        raise click.BadParameter(f"{text!r} is no number of seconds above 0, up to {_MAX_SECONDS:,.0f}")
    return span


def not_empty(text: str) -> str:
    """Return `text`, which says something."""
    if not text:
        raise click.BadParameter("it is empty")
    return text


class Number(click.ParamType[int]):
    """A whole number in decimal digits, from `low` to `high`."""

    name = "integer"

    def __init__(self, low: int, high: int) -> None:
        self._low, self._high = low, high

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        number = int(text) if re.fullmatch(r"[0-9]{1,20}", text) else -1
        if not self._low <= number <= self._high:
            self.fail(f"{text!r} is no whole number from {self._low:,} to {self._high:,}", param, ctx)
        return number


SEQ: Final = Number(0, MAX_SEQ)


def _settle(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Note what was given; a command's own options come after its group's, so the deeper one wins."""
    if value not in (None, False, 0):
        assert param.name is not None
        setattr(ctx.ensure_object(Settings), param.name, value)


def _more_verbose(ctx: click.Context, _param: click.Parameter, value: int) -> None:
    ctx.ensure_object(Settings).verbose += value


def _show_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        ctx.ensure_object(Settings).out.line(f"coordjournal {coordjournal.__version__}")
        ctx.exit()


GLOBAL_OPTIONS: Final = (
    click.Option(
        ["given_repo", "--repo"],
        metavar="PATH",
        type=not_empty,
        callback=_settle,
        expose_value=False,
        help="The git repository.  [env: COORDJOURNAL_REPO]",
    ),
    click.Option(
        ["-o", "--output"],
        type=click.Choice(_MODES),
        callback=_settle,
        expose_value=False,
        help="How data is printed.  [default: table]",
    ),
    click.Option(
        ["--actor"],
        type=not_empty,
        metavar="NAME",
        callback=_settle,
        expose_value=False,
        help="Who decides.  [env: COORDJOURNAL_ACTOR; default: user@host]",
    ),
    click.Option(
        ["--timeout"],
        type=seconds,
        metavar="SECONDS",
        callback=_settle,
        expose_value=False,
        help=f"How long an append, or a question to etcd, may take.  [default: {DEFAULT_TIMEOUT:g}]",
    ),
    click.Option(
        ["--etcd"],
        metavar="HOST:PORT,…",
        type=not_empty,
        callback=_settle,
        expose_value=False,
        help="Let this etcd elect who appends.  [env: COORDJOURNAL_ETCD]",
    ),
    *(
        click.Option(
            [f"--etcd-{name}"],
            metavar="FILE",
            type=not_empty,
            callback=_settle,
            expose_value=False,
            help=f"{what}  [env: COORDJOURNAL_ETCD_{name.upper()}]",
        )
        for name, what in (
            ("cacert", "The authority that signed etcd's certificate."),
            ("cert", "This client's certificate."),
            ("key", "Its key."),
        )
    ),
    click.Option(
        ["--etcd-user"],
        metavar="NAME",
        type=not_empty,
        callback=_settle,
        expose_value=False,
        help="Who to be to etcd; the password is in COORDJOURNAL_ETCD_PASSWORD.  [env: COORDJOURNAL_ETCD_USER]",
    ),
    click.Option(
        ["--etcd-password-file"],
        metavar="FILE",
        type=not_empty,
        callback=_settle,
        expose_value=False,
        help="Or in this file.  [env: COORDJOURNAL_ETCD_PASSWORD_FILE]",
    ),
    click.Option(
        ["--prefix"],
        metavar="PREFIX",
        type=not_empty,
        callback=_settle,
        expose_value=False,
        help=f"Where the keys are in etcd.  [env: COORDJOURNAL_PREFIX; default: {DEFAULT_PREFIX}]",
    ),
    click.Option(
        ["--ttl"],
        metavar="SECONDS",
        type=Number(MIN_TTL_SECONDS, 3600),
        callback=_settle,
        expose_value=False,
        help=f"How long a dead process keeps what it holds.  [env: COORDJOURNAL_TTL; default: {DEFAULT_TTL}]",
    ),
    click.Option(
        ["--role"],
        type=click.Choice(get_args(Role)),
        callback=_settle,
        expose_value=False,
        help="Whether this process may hold spaces.  [env: COORDJOURNAL_ROLE; default: auto]",
    ),
    click.Option(
        ["--consistency"],
        type=click.Choice(get_args(Consistency)),
        callback=_settle,
        expose_value=False,
        help="What a read holds at least.  [env: COORDJOURNAL_CONSISTENCY; default: linearizable]",
    ),
    click.Option(
        ["--cache-dir"],
        metavar="PATH",
        type=not_empty,
        callback=_settle,
        expose_value=False,
        help="Where what is derived is kept, on this host's own disk.  [env: COORDJOURNAL_CACHE_DIR]",
    ),
    click.Option(
        ["--no-color"],
        is_flag=True,
        callback=_settle,
        expose_value=False,
        help="No colour, even in a terminal.  [env: NO_COLOR]",
    ),
    click.Option(
        ["-v", "--verbose"],
        count=True,
        callback=_more_verbose,
        expose_value=False,
        help="Tell on stderr what goes on; twice: more.",
    ),
    click.Option(
        ["--version"],
        is_flag=True,
        is_eager=True,
        callback=_show_version,
        expose_value=False,
        help="Show the version and end.",
    ),
)


def _show_help(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        ctx.ensure_object(Settings).out.line(ctx.get_help())
        ctx.exit()


def _help_as_data(option: click.Option | None) -> click.Option | None:
    """Return the option `--help` so that its text goes where data goes: losing stdout is told as ever."""
    if option is not None:
        option.callback = _show_help
    return option


class Command(click.Command):
    """A command that takes the global options too."""

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        return _help_as_data(super().get_help_option(ctx))

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return with_globals(super().get_params(ctx))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _format_options(self, ctx, formatter)


class Group(click.Group):
    """A group that takes the global options too, as do its commands."""

    command_class = Command
    group_class = type

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        return _help_as_data(super().get_help_option(ctx))

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return with_globals(super().get_params(ctx))

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        return list(self.commands)  # in the order in which they are met, not of the alphabet

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_commands(ctx, formatter)
        _format_options(self, ctx, formatter)


def with_globals(params: list[click.Parameter]) -> list[click.Parameter]:
    """Return a command's parameters with the global options before its last one, `--help`."""
    return [*params[:-1], *GLOBAL_OPTIONS, *params[-1:]]


def _format_options(command: click.Command, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    own: list[tuple[str, str]] = []
    common: list[tuple[str, str]] = []
    for param in command.get_params(ctx):
        if isinstance(param, click.Option) and (record := param.get_help_record(ctx)) is not None:
            (common if param in GLOBAL_OPTIONS or param.name == "help" else own).append(record)
    for title, records in (("Options", own), ("Global options, before or after the command", common)):
        if records:
            with formatter.section(title):
                formatter.write_dl(records)


def complete_space(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the spaces that begin with what was typed, for a shell's completion."""
    try:
        with ctx.ensure_object(Settings).open_log() as log:
            return [CompletionItem(space) for space in log.spaces() if space.startswith(incomplete)]
    except (CoordJournalError, click.UsageError, OSError):
        return []  # whoever is typing sees the reason when the command runs


def wanted_output(args: Sequence[str]) -> Mode:
    """Return the form of output that `args` ask for, though they may be wrong in other ways."""
    wanted: Mode = "table"
    words = iter(args)
    for word in words:
        if word == "--":
            break
        for name in ("--output=", "-o="):
            if word.startswith(name):
                word = "-o" + word[len(name) :]
        if word in ("-o", "--output"):
            word = "-o" + next(words, "")
        for mode in _MODES:
            if word == "-o" + mode:
                wanted = mode
    return wanted
