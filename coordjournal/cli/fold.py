"""`state`, `resolve`, `diff`: what is true, and what became of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from coordjournal.cli.changes import changes_between, print_changes, shown_group
from coordjournal.cli.options import SEQ, Command, Settings, complete_space
from coordjournal.cli.output import Output
from coordjournal.cli.read import note_if_empty, note_if_local, print_body
from coordjournal.cli.text import count, plain
from coordjournal.entry import Entry
from coordjournal.events import check_name
from coordjournal.log import DecisionLog
from coordjournal.state import CoordinationState, Overlay, Resolution, fold

_UPTO = click.option("--upto", metavar="SEQ", type=SEQ, help="As it was after this entry.")


@click.command(cls=Command)
@click.argument("space", shell_complete=complete_space)
@_UPTO
@click.pass_obj
def state(settings: Settings, space: str, upto: int | None) -> None:
    """Show what is true in SPACE: the fold."""
    with settings.open_log() as log:
        known = log.state(space, upto=upto)
        commit = _commit(log, space, known.seq)
        note_if_local(settings, log, space)
        if upto is None:
            note_if_empty(space, known.seq)
    if settings.out.is_table:
        _print_state(settings.out, space, known, commit)
    else:
        settings.out.document(_state_document(space, known, commit))


def _commit(log: DecisionLog, space: str, seq: int) -> str | None:
    """Return the commit that made entry `seq`, None for the state before the first one."""
    head = log.head(space)
    if seq == head.seq:
        return head.commit or None
    return next((entry.commit for entry in log.events(space, after=seq - 1, upto=seq)), None) if seq else None


def _state_document(space: str, known: CoordinationState, commit: str | None) -> dict[str, Any]:
    return {
        "space": space,
        "seq": known.seq,
        "commit": commit,
        "aliases": dict(sorted(known.aliases.items())),
        "groups": known.groups,
        "overlays": {page: [_overlay_document(o) for o in known.overlays[page]] for page in sorted(known.overlays)},
        "forks": dict(sorted(known.forks.items())),
    }


def _overlay_document(overlay: Overlay) -> dict[str, Any]:
    return {
        "overlay": overlay.overlay,
        "media_type": overlay.media_type,
        "body": overlay.body,
        "seq": overlay.seq,
    }


def _print_state(out: Output, space: str, known: CoordinationState, commit: str | None) -> None:
    out.line(
        f"{space} {out.style(str(known.seq), 'green', bold=True)}  {out.style((commit or '')[:12], 'yellow')}".rstrip()
    )
    overlays = [overlay for page in sorted(known.overlays) for overlay in known.overlays[page]]
    sections = (
        (count(len(known.aliases), "alias", "aliases"), [f"{a} → {t}" for a, t in sorted(known.aliases.items())]),
        (count(len(known.groups), "group"), [shown_group(group) for group in known.groups]),
        (count(len(overlays), "overlay"), [shown_overlay(overlay) for overlay in overlays]),
        (count(len(known.forks), "fork"), [f"{s} ⇒ {f}" for f, s in sorted(known.forks.items())]),
    )
    for title, lines in sections:
        if lines:
            out.heading(f"\n{title}")
            for line in lines:
                out.line(f"  {plain(line)}")


def shown_overlay(overlay: Overlay) -> str:
    """Return an overlay in words, without its text."""
    size = count(len(overlay.body.encode()), "byte")
    return f"{overlay.overlay} on {overlay.page}: {overlay.media_type}, {size}, by entry {overlay.seq}"


@click.command(cls=Command)
@click.argument("space", shell_complete=complete_space)
@click.argument("name")
@_UPTO
@click.pass_obj
def resolve(settings: Settings, space: str, name: str, upto: int | None) -> None:
    """Show where NAME leads in SPACE, hop by hop."""
    check_name(name, "name")
    with settings.open_log() as log:
        known = log.state(space, upto=upto)
        note_if_local(settings, log, space)
    if upto is None:
        note_if_empty(space, known.seq)
    found = known.resolve(name)
    if settings.out.is_table:
        _print_resolution(settings.out, found)
    else:
        settings.out.document(found)


def _print_resolution(out: Output, found: Resolution) -> None:
    arrow = out.style(" → ", dim=True)
    out.line(arrow.join([*map(plain, found.hops[:-1]), out.style(plain(found.hops[-1]), "green", bold=True)]))
    if len(found.members) > 1:
        out.pairs([("canonical", found.canonical), *(("member", member) for member in found.members)])
    for overlay in found.overlays:
        out.line(plain(shown_overlay(overlay)))
        print_body(out, overlay.body)


@click.command(cls=Command)
@click.argument("space", shell_complete=complete_space)
@click.argument("a", type=SEQ)
@click.argument("b", type=SEQ)
@click.pass_obj
def diff(settings: Settings, space: str, a: int, b: int) -> None:
    """Show what changed in SPACE from entry A to entry B.

    Aliases, groups joined or split, overlays, forks. 0 is before the first entry. With A after B the
    changes are told backwards.
    """
    low, high = min(a, b), max(a, b)
    touched: set[str] = set()

    def noting(entries: Iterator[Entry]) -> Iterator[Entry]:
        for entry in entries:
            touched.update(entry.event.names())
            yield entry

    with settings.open_log() as log:
        note_if_empty(space, log.head(space).seq)
        note_if_local(settings, log, space)
        older = log.state(space, upto=low)
        newer = fold(noting(log.events(space, after=low, upto=high)), older)
    changes = changes_between(*((older, newer) if a <= b else (newer, older)), touched)
    if settings.out.is_table:
        print_changes(settings.out, changes)
        return
    settings.out.document(
        {
            "space": space,
            "a": a,
            "b": b,
            "aliases": changes.aliases,
            "groups": changes.groups,
            "overlays": changes.overlays,
            "forks": changes.forks,
        }
    )
