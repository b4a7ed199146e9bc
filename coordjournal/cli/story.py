"""What the three processes of the demonstration decide."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from coordjournal.events import (
    AliasRemoved,
    AliasSet,
    Event,
    OverlaySet,
    PageForked,
    PagesBound,
    PagesMerged,
)

SPACE: Final = "handbook"
ASKED_NAME: Final = "Home"  # the name whose way is shown at the end


class Actor(NamedTuple):
    """One process: who decides there, for which wiki, and in which colour it is shown."""

    name: str
    shard: str
    color: str
    opening: tuple[Event, ...]

    @property
    def address(self) -> str:
        """The actor of its appends."""
        return f"{self.name}@{self.shard}.example.org"


_NOTICE: Final = "The canteen is closed on Mondays.\nBring something to share."

ACTORS: Final = (
    Actor(
        "alice",
        "shard-a",
        "cyan",
        (
            AliasSet("Home", "Main page"),
            AliasSet("Main page", "shard-a:Start"),
            PagesBound("shard-a:Start", "shard-b:Welcome"),
            AliasSet("shard-a:Start", "Home"),  # a circle: the journal refuses it
            OverlaySet("shard-b:Welcome", "notice", "text/plain", _NOTICE),
        ),
    ),
    Actor(
        "bob",
        "shard-b",
        "magenta",
        (
            AliasSet("Onboarding", "shard-b:First week"),
            PagesMerged(("shard-b:Coffee", "shard-b:Tea"), "shard-b:Drinks"),
        ),
    ),
    Actor(
        "carol",
        "shard-c",
        "yellow",
        (
            PageForked("shard-a:Travel", "shard-c:Travel abroad"),
            AliasSet("Holidays", "shard-c:Leave"),
            AliasRemoved("Holidays"),
            PagesMerged(("shard-c:Hello", "shard-a:Start"), "shard-a:Start"),
        ),
    ),
)
VICTIM: Final = ACTORS[1]

_PAGES: Final = (
    ("Sick leave", "Illness"),
    ("Parental leave", "Elternzeit"),
    ("Expenses", "Spesen"),
    ("Working hours", "Arbeitszeit"),
    ("Remote work", "Home office"),
    ("Bicycle parking", "Vélos"),
    ("Fire drill", "避難訓練"),
    ("First aid", "Primeros auxilios"),
    ("Meeting rooms", "Sitzungszimmer"),
    ("Release checklist", "Release"),
    ("On-call duty", "Pager"),
    ("Incident review", "Postmortem"),
    ("Style guide", "Writing"),
    ("Glossary", "Terms"),
    ("Security", "CERT"),
    ("Backups", "Sicherung"),
)


OPENING: Final = sum(len(actor.opening) for actor in ACTORS) - 1  # without the circle


def routine(actor: Actor, rounds: int) -> Iterator[Event]:
    """Yield what an actor decides after its opening: an alias and a binding for every page, `rounds` times."""
    neighbour = ACTORS[(ACTORS.index(actor) + 1) % len(ACTORS)].shard
    for number in range(rounds):
        again = f" {number + 1}" if number else ""
        for page, other_name in _PAGES:
            yield AliasSet(f"{other_name}{again} ({actor.shard})", f"{actor.shard}:{page}{again}")
            yield PagesBound(f"{actor.shard}:{page}{again}", f"{neighbour}:{page}{again}")
