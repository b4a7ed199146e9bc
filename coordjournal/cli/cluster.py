"""`node`, `status`, `holders`, `handoff`: many processes under etcd, and who holds what."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any, Final

import click
import msgspec

from coordjournal.cli.options import Command, Settings, complete_space, seconds
from coordjournal.cli.output import Column, Output, note
from coordjournal.cli.text import count, when
from coordjournal.errors import Unavailable

_LOOK_SECONDS: Final = 0.5


def _holder(space: Any) -> str:
    if space.holder is None:
        return "-"
    return f"{space.holder.host}:{space.holder.pid}" if space.holder.host else str(space.holder.session)


def _branch(space: Any) -> str:
    behind = space.head.seq - space.branch.seq
    if behind > 0:
        return f"{count(behind, 'entry', 'entries')} behind"
    return "ahead" if behind < 0 else "there"


_SPACE_COLUMNS: Final = (
    Column[Any]("SPACE", lambda space: space.space, "cyan"),
    Column[Any]("HOLDER", _holder),
    Column[Any]("TERM", lambda space: str(space.term), right=True),
    Column[Any]("SEQ", lambda space: str(space.head.seq), "green", right=True),
    Column[Any]("COMMIT", lambda space: space.head.commit[:12], "yellow"),
    Column[Any]("INTENTS", lambda space: str(space.intents), right=True),
    Column[Any]("BRANCH", _branch),
)
_NODE_COLUMNS: Final = (
    Column[Any]("SESSION", lambda node: node.session, "yellow"),
    Column[Any]("HOST", lambda node: node.host, "cyan"),
    Column[Any]("PID", lambda node: str(node.pid), right=True),
    Column[Any]("ROLE", lambda node: node.role),
    Column[Any]("TTL", lambda node: str(node.ttl), right=True),
    Column[Any]("HOLDS", lambda node: str(node.holds), right=True),
    Column[Any]("SINCE", lambda node: when(node.since), "blue"),
    Column[Any]("VERSION", lambda node: node.version),
)
_REIGN_COLUMNS: Final = (
    Column[Any]("TERM", lambda reign: str(reign.term), right=True),
    Column[Any]("NODE", lambda reign: reign.node, "cyan"),
    Column[Any]("ENTRIES", lambda reign: f"{reign.first}-{reign.seq}", "green"),
    Column[Any]("APPENDS", lambda reign: str(reign.appends), right=True),
    Column[Any]("FROM", lambda reign: when(reign.since), "blue"),
    Column[Any]("TO", lambda reign: when(reign.until), "blue"),
)


@click.command(cls=Command)
@click.argument("spaces", metavar="[SPACE]...", nargs=-1, shell_complete=complete_space)
@click.pass_obj
def node(settings: Settings, spaces: tuple[str, ...]) -> None:
    """Hold spaces and serve the appends of others, until SIGTERM.

    The SPACEs that are named; if none is, or with --role holder, every one for which appends wait and that
    nobody holds. At SIGTERM or Ctrl-C it finishes what is under way and hands over.
    """
    etcd = settings.authority_of("a node serves through etcd")
    if etcd.role == "client":
        raise click.UsageError("a node holds spaces, and --role or COORDJOURNAL_ROLE is client, which never does")
    is_new = not settings.repo.exists()
    settings.serves = True
    with _stopped_by_signal() as stopped, settings.open_log(role=etcd.role if spaces else "holder") as log:
        log.serve(spaces)
        what = ", ".join(spaces) if spaces else "every space"
        if is_new:
            what += f" of a new journal, made at {settings.repo.absolute()} and under {etcd.prefix} in etcd"
        elif not (spaces or log.spaces()):
            what += ", of which there is none before its first append"
        note(f"serving {what}; SIGTERM ends it")
        stopped()
    note("handed over")


@contextmanager
def _stopped_by_signal() -> Iterator[Callable[[], None]]:
    """Give what waits for SIGTERM or Ctrl-C, which may have come already.

    A queue, since a handler may put into it whatever this thread is just doing: an event's lock it may hold.
    """
    came: SimpleQueue[int] = SimpleQueue()

    def wait() -> None:
        while True:
            try:
                came.get(timeout=_LOOK_SECONDS)
            except Empty:  # a signal that comes just before the wait begins does not end it, and is handled here
                continue
            return

    if threading.current_thread() is not threading.main_thread():
        yield wait
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in before:
            signal.signal(number, lambda number, _: came.put(number))
        yield wait
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@click.command(cls=Command)
@click.argument("space", required=False, shell_complete=complete_space)
@click.option("--nodes", is_flag=True, help="Only the processes, not the spaces.")
@click.option("--watch", metavar="SECONDS", type=seconds, help="Again every so many seconds, until interrupted.")
@click.pass_obj
def status(settings: Settings, space: str | None, nodes: bool, watch: float | None) -> None:
    """Tell who holds what, and how far everyone is.

    Of SPACE, or of all spaces; then the processes that are there. JSON has the spaces, or with --nodes the
    processes.
    """
    from coordjournal import overview

    while True:
        try:
            _print_status(settings.out, *overview.status(settings.repo, settings.authority, space), nodes=nodes)
        except Unavailable as error:
            if watch is None:
                raise
            note(str(error))  # that etcd is away is what one watches for
        settings.out.flush()
        if watch is None:
            return
        time.sleep(watch)


def _print_status(out: Output, spaces: list[Any], members: list[Any], *, nodes: bool) -> None:
    if not nodes:
        out.items(spaces, _SPACE_COLUMNS, msgspec.to_builtins)
        out.flush()
        for found in spaces:
            if found.fault:
                note(f"space {found.space}: {found.fault}")
        if not spaces:
            note("there is no space yet")
    if nodes or (out.is_table and members):
        if not nodes:
            out.line()
        out.items(members, _NODE_COLUMNS, msgspec.to_builtins)


@click.command(cls=Command)
@click.argument("space", shell_complete=complete_space)
@click.pass_obj
def holders(settings: Settings, space: str) -> None:
    """Tell who held SPACE when, read from git."""
    from coordjournal import overview

    settings.out.items(overview.holders(settings.repo, space), _REIGN_COLUMNS, msgspec.to_builtins)


@click.command(cls=Command)
@click.argument("space", shell_complete=complete_space)
@click.option("--to", metavar="SESSION", help="To this session; `status --nodes` lists them.")
@click.pass_obj
def handoff(settings: Settings, space: str, to: str | None) -> None:
    """Ask the holder of SPACE to hand it over.

    To a session, or to whoever needs it next. Ends when it has, at the latest after --timeout.
    """
    from coordjournal import overview

    etcd = settings.authority_of("nobody holds a space without etcd")
    session = overview.hand_over(etcd, space, to, seconds=settings.timeout)
    if settings.out.is_table:
        settings.out.pairs([("space", space), ("holder", session or "nobody yet")])
    else:
        settings.out.document({"space": space, "holder": session or None})
