"""`init`, `verify`, `compact`, `adopt`, `recover`, `doctor`: what an operator does with a repository."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from coordjournal.cli.exits import OPERATOR
from coordjournal.cli.options import Command, Settings, complete_space
from coordjournal.cli.output import Column, note
from coordjournal.cli.text import count, plain
from coordjournal.store import EMBEDDED, ETCD

if TYPE_CHECKING:
    from coordjournal.doctor import Finding

_VERIFIED_COLUMNS: Final = (
    Column[Any]("SPACE", lambda space: space.space, "cyan"),
    Column[Any]("APPENDS", lambda space: f"{space.appends:,}", right=True),
    Column[Any]("ENTRIES", lambda space: f"{space.entries:,}", right=True),
    Column[Any]("SEQ", lambda space: str(space.seq), "green", right=True),
    Column[Any]("COMMIT", lambda space: space.commit[:12], "yellow"),
)
_VERDICTS: Final[dict[bool | None, tuple[str, str]]] = {
    True: ("ok", "green"),
    False: ("WRONG", "red"),
    None: ("-", "blue"),
}


@click.command(cls=Command)
@click.pass_obj
def init(settings: Settings) -> None:
    """Make the repository; one that is there stays as it is."""
    from coordjournal import maintenance

    owner = maintenance.init(settings.repo, settings.authority)
    found = {"repo": str(settings.repo.absolute()), "authority": owner.authority, "journal": owner.journal}
    if owner.place:
        found["prefix"] = owner.place
    if settings.out.is_table:
        settings.out.pairs(found.items())
    else:
        settings.out.document(found)


@click.command(cls=Command)
@click.argument("space", required=False, shell_complete=complete_space)
@click.pass_obj
def verify(settings: Settings, space: str | None) -> None:
    """Walk everything and name the first fault and its place.

    All of SPACE, or of all spaces: hashes, commits, trees that only gain, seqs without a gap, keys, the
    bytes of entries, the fold; and, where the journal is under etcd, every key there.
    """
    from coordjournal import maintenance

    spaces, keys = maintenance.verify_with(settings.repo, settings.authority, space)
    settings.out.items(spaces, _VERIFIED_COLUMNS, _fields)
    settings.out.flush()
    entries = sum(verified.entries for verified in spaces)
    seen = "" if keys is None else f", {count(keys, 'key')} in etcd"
    note(f"sound: {count(len(spaces), 'space')}, {count(entries, 'entry', 'entries')}{seen}")


@click.command(cls=Command)
@click.pass_obj
def compact(settings: Settings) -> None:
    """Make one pack of all; others may append meanwhile."""
    from coordjournal import maintenance

    found = maintenance.compact(settings.repo)
    out = settings.out
    if not out.is_table:
        out.document(_fields(found))
        return
    out.line(f"packs {found.packs_before:,} → {found.packs_after:,}")
    out.line(f"bytes {found.bytes_before:,} → {found.bytes_after:,}")
    if not found.objects:
        out.flush()
        note("there was nothing to compact")


@click.command(cls=Command)
@click.option("--to", type=click.Choice((EMBEDDED, ETCD)), help="Which authority.  [default: etcd if one is named]")
@click.option("--etcd-is-gone", is_flag=True, help="Leave an etcd that will never be seen again.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.pass_obj
def adopt(settings: Settings, to: str | None, etcd_is_gone: bool, dry_run: bool) -> None:
    """Change through which authority a repository is appended to.

    A mirror clone becomes a journal of its own, the way back from a backup: only when nobody appends to
    the original any more, since two journals with one past cannot be joined. An embedded journal goes to
    the etcd that is named, or comes back from it with --to embedded.
    """
    from coordjournal import adoption

    etcd = settings.authority_of("adoption by etcd needs one") if to == ETCD else settings.authority
    found = adoption.adopt(settings.repo, etcd, to=to, etcd_is_gone=etcd_is_gone, dry_run=dry_run)
    out = settings.out
    if not out.is_table:
        out.document({**_fields(found), "dry_run": dry_run})
        return
    for step in found.steps:
        out.line(plain(step))
    out.flush()
    if not found.changed:
        note("it is so already; nothing was changed")
    elif dry_run:
        note("nothing was changed: this is what would be done")


@click.command(cls=Command)
@click.argument("space", required=False, shell_complete=complete_space)
@click.option("--to", metavar="COMMIT", help="Which commit is to be the head of SPACE, where there is a choice.")
@click.option("--accept-loss", is_flag=True, help="Go on though published entries are lost for good.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.pass_obj
def recover(settings: Settings, space: str | None, to: str | None, accept_loss: bool, dry_run: bool) -> int:
    """Publish the head again where etcd, or the repository, lost it.

    Of SPACE, or of all spaces. Look at what --dry-run says first: after this nobody can go back. The exit
    code is 6 if something is still wrong.
    """
    from coordjournal import recovery

    if to is not None and space is None:
        raise click.UsageError("--to is about one space; name it")
    etcd = settings.authority_of("heads are recovered in an etcd")
    found = recovery.recover(settings.repo, etcd, space, to=to, accept_loss=accept_loss, dry_run=dry_run)
    out = settings.out
    code = OPERATOR if found.wrong else 0
    if not out.is_table:
        out.document({**_fields(found), "dry_run": dry_run})
        return code
    for step in found.steps:
        out.line(plain(step))
    out.flush()
    for text in found.notes:
        note(text)
    for text in found.wrong:
        note(text, label="wrong:")
    if not found.changed:
        note("nothing was changed" if found.wrong else "there is nothing to recover; nothing was changed")
    elif dry_run:
        note("nothing was changed: this is what would be done" + _with_loss(found.loses))
    return code


def _with_loss(loses: bool) -> str:
    return ", with --accept-loss, since published entries go" if loses else ""


@click.command(cls=Command)
@click.pass_obj
def doctor(settings: Settings) -> int:
    """Tell what is installed, found, and wrong.

    With what to do about it. The exit code is 6 if anything is wrong.
    """
    from coordjournal.doctor import doctor

    findings = doctor(settings.repo_or_none, settings.authority)
    out = settings.out
    if out.is_table:
        widest = max(len(finding.name) for finding in findings)
        for finding in findings:
            verdict, color = _VERDICTS[finding.ok]
            found = plain(finding.found) + (f"; {plain(finding.advice)}" if finding.advice else "")
            out.line(f"{out.style(verdict.ljust(5), color)}  {finding.name.ljust(widest)}  {found}")
    else:
        out.items(findings, (), _finding)
    return OPERATOR if any(finding.ok is False for finding in findings) else 0


def _finding(finding: Finding) -> dict[str, Any]:
    return _fields(finding)


def _fields(found: Any) -> dict[str, Any]:
    """Return a named tuple as JSON shows it."""
    fields: dict[str, Any] = found._asdict()
    return fields
