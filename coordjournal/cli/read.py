"""`spaces`, `log`, `show`: what was decided."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

import click

from coordjournal.cli.changes import changes_between, print_changes
from coordjournal.cli.options import SEQ, Command, Number, Settings, complete_space
from coordjournal.cli.output import Column, Output, note, watched_reader
from coordjournal.cli.text import describe, plain, when
from coordjournal.entry import MAX_SEQ, Entry
from coordjournal.errors import NotFound
from coordjournal.events import EVENT_TYPES, OverlaySet, check_name
from coordjournal.log import DecisionLog
from coordjournal.state import fold

Matches = Callable[[Entry], bool]

_ENTRY_COLUMNS: Final = (
    Column[Entry]("SEQ", lambda entry: str(entry.seq), "green", right=True),
    Column[Entry]("AT", lambda entry: when(entry.at), "blue"),
    Column[Entry]("ACTOR", lambda entry: entry.actor, "cyan"),
    Column[Entry]("DECISION", lambda entry: describe(entry.event)),
)
_SPACE_COLUMNS: Final = (
    Column[dict[str, Any]]("SPACE", lambda space: str(space["space"]), "cyan"),
    Column[dict[str, Any]]("SEQ", lambda space: str(space["seq"]), "green", right=True),
    Column[dict[str, Any]]("COMMIT", lambda space: str(space["commit"])[:12], "yellow"),
    Column[dict[str, Any]]("AT", lambda space: when(space["at"]), "blue"),
)


def note_if_empty(space: str, seq: int) -> None:
    """Say so where nothing was decided in a space: it may be a slip of the pen."""
    if not seq:
        note(f"nothing has been decided in {space!r} yet")


def note_if_local(settings: Settings, log: DecisionLog, space: str) -> None:
    """Say as of when it is what was read without asking etcd, though etcd has the last word."""
    if settings.chosen_consistency != "local" or not settings.authority.etcd:
        return
    head = log.head(space)
    last = next(log.events(space, after=head.seq - 1, upto=head.seq), None) if head.seq else None
    age = log.age(space)
    appended = f", appended {when(last.at)}" if last is not None else ""
    confirmed = "not confirmed by etcd" if age is None else f"confirmed by etcd {age:.0f} s ago"
    note(f"local: {space} as of entry {head.seq}{appended}; {confirmed}")


@click.command(cls=Command)
@click.pass_obj
def spaces(settings: Settings) -> None:
    """List the spaces with head and time."""

    def rows(log: DecisionLog) -> Iterator[dict[str, Any]]:
        for space in log.spaces():
            head = log.head(space)
            (last,) = log.events(space, after=head.seq - 1, upto=head.seq)
            note_if_local(settings, log, space)
            yield {"space": space, "seq": head.seq, "commit": head.commit, "term": head.term, "at": last.at}

    with settings.open_log() as log:
        if not settings.out.items(rows(log), _SPACE_COLUMNS):
            note("nothing has been decided in any space yet")


@click.command(cls=Command)
@click.argument("space", shell_complete=complete_space)
@click.option("-n", "--last", metavar="N", type=SEQ, help="Only the last N entries.")
@click.option("--after", metavar="SEQ", type=SEQ, default=0, help="Only entries after this one.")
@click.option("--upto", metavar="SEQ", type=SEQ, help="Only entries up to this one.")
@click.option("--follow", is_flag=True, help="Then go on with what comes, until interrupted.")
@click.option(
    "--type",
    "types",
    metavar="TYPE",
    multiple=True,
    type=click.Choice(sorted(EVENT_TYPES)),
    help="Only this type, such as alias.set; may be repeated.",
)
@click.option("--page", metavar="PAGE", help="Only what names this page or alias.")
@click.option("--by", metavar="ACTOR", help="Only what this actor decided.")
@click.pass_obj
def log(
    settings: Settings,
    space: str,
    last: int | None,
    after: int,
    upto: int | None,
    follow: bool,
    types: tuple[str, ...],
    page: str | None,
    by: str | None,
) -> None:
    """Show the journal of SPACE, newest last.

    With --follow, -o json prints an object a line, as -o jsonl does.
    """
    if page is not None:
        check_name(page, "page")
    matches = _filter(types, page, by)
    with settings.open_log() as journal:
        head = journal.head(space)
        note_if_empty(space, head.seq)
        note_if_local(settings, journal, space)
        end = head.seq if upto is None or (follow and upto > head.seq) else upto
        past = _past(journal, space, after, end, last, matches)
        if not follow:
            settings.out.items(past, _ENTRY_COLUMNS)
            return
        with watched_reader(journal.close):
            future = filter(matches, _to_come(journal, space, max(after, end), upto))
            settings.out.items(past, _ENTRY_COLUMNS, then=future)


def _filter(types: tuple[str, ...], page: str | None, by: str | None) -> Matches | None:
    if not types and page is None and by is None:
        return None
    return lambda entry: (
        (not types or entry.event.type in types)
        and (page is None or page in entry.event.names())
        and (by is None or entry.actor == by)
    )


def _past(
    log: DecisionLog, space: str, after: int, upto: int, last: int | None, matches: Matches | None
) -> Iterator[Entry]:
    """Return what stands in the log, the last ones of it if so asked."""
    if last is not None and matches is None:
        after = max(after, upto - last)
    entries = log.events(space, after=after, upto=upto)
    if matches is None:
        return entries
    found = filter(matches, entries)
    return found if last is None else iter(deque(found, maxlen=last))


def _to_come(log: DecisionLog, space: str, after: int, upto: int | None) -> Iterator[Entry]:
    if upto is not None and after >= upto:
        return
    for entry in log.subscribe(space, after=after):
        yield entry
        if entry.seq == upto:
            return


@click.command(cls=Command)
@click.argument("space", shell_complete=complete_space)
@click.argument("seq", type=Number(1, MAX_SEQ))
@click.pass_obj
def show(settings: Settings, space: str, seq: int) -> None:
    """Show entry SEQ, its commit, and what it changed."""
    with settings.open_log() as log:
        head = log.head(space)
        note_if_local(settings, log, space)
        if seq > head.seq:
            raise NotFound(f"space {space} has no entry {seq}; its head is {head.seq}")
        (entry,) = log.events(space, after=seq - 1, upto=seq)
        before = log.state(space, upto=seq - 1)
    commit = _commit(settings, entry.commit)
    changes = changes_between(before, fold((entry,), before), entry.event.names())
    out = settings.out
    if not out.is_table:
        out.document({"entry": entry, "commit": commit, "changed": changes})
        return
    _print_entry(out, entry)
    out.heading("\ncommit")
    out.pairs((name, "–" if value is None else value) for name, value in commit.items())
    out.heading("\nchanged")
    print_changes(out, changes)


def _commit(settings: Settings, commit: str) -> dict[str, Any]:
    """Return what git's commit says besides its entries."""
    from coordjournal.store import message
    from coordjournal.store.repository import Repository
    from coordjournal.store.tree import event_path

    repository = Repository(settings.repo)
    raw = repository.use(lambda handle: handle.read(commit)[1])
    info = message.parse(raw, commit)
    repository.close()
    return {
        "id": commit,
        "parent": info.parent or None,
        "first": info.first,
        "seq": info.seq,
        "term": info.term,
        "node": info.node,
        "file": event_path(info.first),
    }


def _print_entry(out: Output, entry: Entry) -> None:
    out.heading(f"entry {entry.seq}")
    pairs = [("decision", describe(entry.event)), ("actor", entry.actor), ("at", entry.at), ("key", entry.key)]
    event = entry.event
    if isinstance(event, OverlaySet):
        pairs.append(("media type", event.media_type))
    out.pairs(pairs)
    if isinstance(event, OverlaySet):
        print_body(out, event.body)


def print_body(out: Output, body: str) -> None:
    """Print an overlay's text, line by line, with nothing in it that could steer a terminal."""
    for line in body.splitlines() or [""]:
        out.line(f"  {out.style('│', dim=True)} {plain(line)}".rstrip())
