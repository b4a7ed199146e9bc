"""Whatever goes wrong with any one call to etcd, and whoever takes over meanwhile: no fork, nothing lost or doubled.

One scenario is played again and again, and each time another one of its calls goes wrong in another way.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import pytest

from coordjournal.entry import Receipt
from coordjournal.testing.etcd import EtcdServer
from tests.integration.etcd_parts import (
    SPACE,
    Around,
    Late,
    Party,
    check,
    delete_key,
    drain,
    dropped,
    expire,
    fresh_prefix,
    lost,
    refused,
    server,
    then,
    told,
    unbroken,
)
from tests.integration.processes import quick_path

__all__ = ["quick_path", "server"]

_MOST_CALLS: Final = 60


class World:
    """Two nodes of one journal, and a third that comes when one of them is thought dead."""

    def __init__(self, server: EtcdServer, path: Path) -> None:
        self.server = server
        self._path = path
        self._prefix = fresh_prefix()
        self.a, self.b, self.c = self._party(), self._party(), self._party()
        self.parties = [self.a, self.b]
        self.late = Late()

    def _party(self) -> Party:
        return Party(self.server.endpoint, self._path, self._prefix)

    def play(self) -> None:
        """Hold, forward, take back, hand over, hold again: every kind of call is made by both."""
        a, b = self.a, self.b
        a.submit("a1", "a2")
        a.run()
        b.submit("b1", "b2")
        b.run()
        drain(self.parties)
        b.submit("b3", "b4")
        b.run()
        b.withdraw("b3")
        b.run()
        a.submit("a3")
        drain(self.parties)
        a.member.hint_successor(b.node.id)
        a.run()
        b.member.hint_successor(b.node.id)
        b.submit("b5")
        b.run()
        a.submit("a4", "a5")
        a.run()
        drain(self.parties)

    def usurp(self, victim: Party) -> None:
        """Have the victim's lease end, and another node hold the space and append, while it stands still."""
        expire(self.server, victim)
        self.take_over()

    def take_over(self) -> None:
        """Have another node hold the space and append, if nobody else does."""
        if self.c in self.parties:
            return
        self.parties.append(self.c)
        self.c.submit("c1", "c2")
        self.c.run()

    def end(self) -> None:
        """Let everybody come to rest; check; then have every key tried again, by another node too."""
        drain(self.parties)
        self.late.land()
        drain(self.parties)
        before = check(self.server, self.parties)
        answers = {key: told(future) for party in self.parties for key, future in party.futures.items()}
        elsewhere = self._all_again(self.c, [key for key in answers if isinstance(answers[key], Receipt)])
        for key, again in elsewhere.items():
            assert (again.commit, again.duplicate) == (before[key].commit, True)
        assert check(self.server, self.parties).keys() == before.keys(), "what nobody tried again was appended"
        for party in self.parties:
            unsure = [key for key in party.futures if not isinstance(answers[key], Receipt)]
            for key, again in self._all_again(party, unsure).items():
                assert key not in before or again.commit == before[key].commit
        unbroken(self.server, self.a)

    def _all_again(self, party: Party, keys: Sequence[str]) -> dict[str, Receipt]:
        futures = {key: party.ask(key) for key in keys}
        drain([*self.parties, self.c])
        return {key: future.result(0) for key, future in futures.items()}

    def close(self) -> None:
        for party in (self.a, self.b, self.c):
            party.close()


def play(server: EtcdServer, path: Path, prepare: Callable[[World], object]) -> World:
    """Play the scenario once, with what `prepare` makes go wrong."""
    world = World(server, path)
    try:
        prepare(world)
        world.play()
        return world
    except BaseException:
        world.close()
        raise


def calls(server: EtcdServer, path: Path) -> list[tuple[str, int, str]]:
    """Return whose calls the scenario makes: the node, the call's number, what it is for."""
    world = play(server, path, lambda _: None)
    made = [
        (name, number, call)
        for name, party in (("a", world.a), ("b", world.b))
        for number, call in enumerate(list(party.edge.names))
    ]
    world.end()
    answers = {key: told(future) for party in world.parties for key, future in party.futures.items()}
    assert [key for key, answer in answers.items() if not isinstance(answer, Receipt)] == ["b3"]
    world.close()
    kinds = {call for _, _, call in made}
    assert kinds >= {"campaign", "publish", "intents", "send", "withdraw", "let go", "session", "journal", "read"}
    assert max(number for _, number, _ in made) < _MOST_CALLS
    return made


def lapse(world: World, victim: Party, *, before: bool) -> Around:
    def usurp() -> None:
        world.usurp(victim)

    return then(before=usurp) if before else then(after=usurp)


def unseated(world: World, victim: Party, *, before: bool) -> Around:
    """The holder's key is deleted behind its back, the session lives: two believe that they hold."""

    def unseat() -> None:
        delete_key(world.server, victim.keys.holder(SPACE))
        world.take_over()

    return then(before=unseat) if before else then(after=unseat)


def after_the_next(world: World, party: Party) -> Around:
    """It arrives when the caller has asked what became of it, and not seen it."""
    late = Late()

    def begin(call: Callable[[], object]) -> object:
        party.edge.at(len(party.edge.names), then(after=late.land))
        return late(call)

    return begin


FAULTS: dict[str, Callable[[World, Party], Around]] = {
    "it arrives after the next": after_the_next,
    "it arrives at the end": lambda world, party: world.late,
    "the answer is lost": lambda world, party: lost,
    "the request is lost": lambda world, party: dropped,
    "it is refused": lambda world, party: refused("too many requests"),
    "usurped before it": lambda world, party: lapse(world, party, before=True),
    "usurped after it": lambda world, party: lapse(world, party, before=False),
    "unseated before it": lambda world, party: unseated(world, party, before=True),
    "unseated after it": lambda world, party: unseated(world, party, before=False),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_happens_at_any_call_nothing_is_lost_doubled_reordered_or_forked(
    server: EtcdServer, quick_path: Path, fault: str
) -> None:
    for name, number, call in calls(server, quick_path / "plain.git"):
        world = play(
            server,
            quick_path / f"{name}{number}.git",
            lambda world: (party := getattr(world, name)).edge.at(number, FAULTS[fault](world, party)),  # noqa: B023
        )
        try:
            world.end()
        except BaseException as error:
            error.add_note(f"{fault}: call {number} of {name}, {call}")
            raise
        finally:
            world.close()


def test_two_things_that_go_wrong_are_no_worse_than_one(server: EtcdServer, quick_path: Path) -> None:
    made = calls(server, quick_path / "plain.git")
    chance = random.Random(20260131)
    for round_ in range(25):
        chosen = [(*chance.choice(made), chance.choice(list(FAULTS))) for _ in range(2)]

        def prepare(world: World) -> None:
            for name, number, _, fault in chosen:  # noqa: B023
                party = getattr(world, name)
                party.edge.at(number, FAULTS[fault](world, party))

        world = play(server, quick_path / f"{round_}.git", prepare)
        try:
            world.end()
        except BaseException as error:
            error.add_note(f"{chosen}")
            raise
        finally:
            world.close()
