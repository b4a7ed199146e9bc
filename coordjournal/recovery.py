"""`recover`: heads are published again after etcd, or the repository, lost them.

It makes a plan from what it finds, which is all that a dry run does, and then carries it out with a guard
on everything that the plan rests on.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import NamedTuple

from coordjournal.adoption import remote_steps
from coordjournal.authority.settings import Settings
from coordjournal.entry import check_space
from coordjournal.errors import (
    CoordJournalError,
    ForeignRepository,
    InvalidEvent,
    NotFound,
    OperatorNeeded,
    Unavailable,
    WrongAuthority,
)
from coordjournal.etcd import KeyValue
from coordjournal.heads import Case, Heads, known
from coordjournal.keyspace import Keyspace
from coordjournal.premises import GitPremises, Premises, store_of, writing
from coordjournal.store import ETCD
from coordjournal.store.repository import Owner


class Recovered(NamedTuple):
    """What a recovery did, or would do, to so many spaces; `loses` says whether published entries go.

    `notes` are sentences about what else was found, `wrong` about what is still wrong, and what to run.
    """

    spaces: int
    changed: bool
    loses: bool
    steps: list[str]
    notes: list[str]
    wrong: list[str]


def recover(
    path: str | os.PathLike[str],
    settings: Settings,
    space: str | None = None,
    *,
    to: str | None = None,
    accept_loss: bool = False,
    dry_run: bool = False,
) -> Recovered:
    """Publish the head that the repository has, where etcd lost its own, or the repository what was published.

    One space, or all: then what cannot be decided about one of them is told, and the others are mended.
    `to` is the commit to publish, where there is a choice. Clears the holders, intents and outcomes of
    what it mends. A mirror clone takes the place of the journal's repository, which etcd knows and nobody
    has any more. Nothing is changed if `dry_run`. Raises `WrongAuthority` unless the repository is etcd's,
    `ForeignRepository`, `NotFound`, `Corrupt`, `Unavailable`, and `OperatorNeeded` where entries that were
    published would go and `accept_loss` does not say so.
    """
    if space is not None:
        check_space(space)
    if not settings.etcd:
        raise InvalidEvent("which etcd? name it with --etcd")
    with writing(path), ExitStack() as stack:
        here, etcd = GitPremises(store_of(path)), Keyspace.connected(settings, stack)
        return recover_heads(here, etcd, space, to=to, accept_loss=accept_loss, dry_run=dry_run)


def recover_heads(
    here: Premises,
    etcd: Keyspace,
    space: str | None = None,
    *,
    to: str | None = None,
    accept_loss: bool = False,
    dry_run: bool = False,
) -> Recovered:
    """Publish the heads that a repository has, as `recover` does."""
    plan = _Plan(here, etcd, space, to)
    if plan.steps and not dry_run:
        if plan.losses and not accept_loss:
            raise OperatorNeeded(
                f"published entries would be lost: {'; '.join(plan.losses)}",
                here.where,
                "bring their objects back; or say --accept-loss",
            )
        plan.carry_out()
    wrong = [str(error) for error in plan.wrong]
    return Recovered(plan.spaces, bool(plan.steps), bool(plan.losses), plan.steps, plan.notes, wrong)


class _Plan:
    """What was found, and what is to be done about it."""

    def __init__(self, here: Premises, etcd: Keyspace, space: str | None, to: str | None) -> None:
        self._here, self._store, self._etcd = here, here.store, etcd
        self._key, found = etcd.journal(), etcd.heads()
        self._journal, self._is_clone = _owned(here, etcd, self._key, found)
        self._heads = Heads(here)
        self._cases: list[Case] = []
        self.wrong: list[CoordJournalError] = []
        self.notes: list[str] = []
        spaces = [space] if space is not None else sorted(self._all(found))
        self.spaces = len(spaces)
        for name in spaces:
            self._look_at(name, found.get(name), to)
        if space is not None and self.wrong:
            raise self.wrong[0]
        self.losses = [case.step for case in self._cases if case.loses]
        holders, intents = etcd.counts()
        self._clears = space is None and intents > 0
        self.steps = remote_steps(here) if self._is_clone else []
        if self._is_clone:
            self.steps.append(f"make it journal {self._journal}, in the place of the repository that is lost")
        if self._clears:
            self.steps.append(f"clear etcd of {holders} holder(s) and {intents} intent(s)")
        self.steps += [case.step for case in self._cases]
        if self._key is None:
            self.steps.append(f"tell etcd that journal {self._journal} is under {etcd.place}")
        if self.losses:
            self.notes.append("whoever has read what is lost must be started anew")

    def _all(self, found: dict[str, KeyValue]) -> set[str]:
        begun = self._heads.begun() if self._key is None else set()
        return {*found, *self._store.spaces(), *begun}

    def _look_at(self, space: str, found: KeyValue | None, to: str | None) -> None:
        try:
            case = self._heads.case(space, found, to or "")
        except (OperatorNeeded, NotFound) as error:
            self.wrong.append(error)
            return
        if case is None:
            return
        self._cases.append(case)
        self.notes += [
            f"space {space}: commit {tip.commit}, entry {tip.seq}, stands on that; it may have been acknowledged if the"
            f" branch could not be moved: choose it with --to {tip.commit}"
            for tip in self._heads.standing_on(space, case.head)
        ]

    def carry_out(self) -> None:
        """Do it. Raises `Unavailable` where something changed meanwhile, `Corrupt`."""
        here, store, etcd = self._here, self._store, self._etcd
        for case in self._cases:
            here.verify(case.space, case.head)
        if self._is_clone:
            here.forget_remotes()
            here.give_to(Owner(ETCD, self._journal, etcd.place))
        if self._clears or self._key is None:
            etcd.clear(self._key, journal=False)
        for case in self._cases:
            branch = self._heads.branch(case.space)
            if not etcd.publish(case.space, case.head, store.identity(case.space, case.head), case.before):
                raise Unavailable(f"space {case.space}: its head changed meanwhile; run the command again")
            self._heads.set_branch(case.space, branch, case.head)
        if self._key is None:
            etcd.tell_journal(self._journal)


def _owned(here: Premises, etcd: Keyspace, key: KeyValue | None, found: dict[str, KeyValue]) -> tuple[str, bool]:
    """Return the journal's id, and whether the repository is a clone that is to become that journal."""
    owner = here.owner()
    if owner is None and key is not None:
        _check_is_clone(here, etcd, found)
        return key.value.decode("ascii", "replace"), True
    if owner is None or owner.authority != ETCD:
        raise WrongAuthority("appends do not go through etcd here", here.where, "run `coordjournal adopt`")
    if owner.place != etcd.place:
        raise ForeignRepository(
            f"the repository's heads are under {owner.place}, not under {etcd.place}",
            here.where,
            f"use --prefix {owner.place}",
        )
    etcd.check(key, owner.journal)
    return owner.journal, False


def _check_is_clone(here: Premises, etcd: Keyspace, found: dict[str, KeyValue]) -> None:
    """Raise `ForeignRepository` unless the spaces here are those that etcd knows, by their ids."""
    store = here.store
    spaces = store.spaces()
    here.check_clone(spaces)
    for space in spaces:
        value = known(found.get(space))
        if value is None or store.identity(space, store.head(space)) != value.space:
            raise ForeignRepository(
                f"space {space} here is not the one that etcd knows under {etcd.place}",
                here.where,
                "name a clone of that journal; or make this one a journal of its own with `coordjournal adopt`,"
                " under another --prefix",
            )
