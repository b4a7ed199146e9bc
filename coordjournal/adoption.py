"""`adopt`: a repository is given another authority, by an operator who says so.

It makes a plan from what it finds, which is all that a dry run does, and then carries it out with a guard
on everything that the plan rests on. `docs/authority.md` says what may happen between the steps.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Final, NamedTuple

from coordjournal.authority.settings import Settings
from coordjournal.authority.wire import HeadValue, decode_head, encode_head
from coordjournal.entry import Head
from coordjournal.errors import (
    ForeignRepository,
    HeadMissing,
    InvalidEvent,
    OperatorNeeded,
    Unavailable,
    WrongAuthority,
)
from coordjournal.etcd import KeyValue
from coordjournal.heads import Case, Heads, known
from coordjournal.keyspace import Keyspace
from coordjournal.premises import GitPremises, Premises, store_of, writing
from coordjournal.store import EMBEDDED, ETCD, Store
from coordjournal.store.repository import Owner

_TRIES: Final = 5


class Adopted(NamedTuple):
    """What an adoption did, or would do: the journal's id, its spaces, whether anything changed, the steps."""

    journal: str
    spaces: int
    changed: bool
    steps: list[str]


def adopt(
    path: str | os.PathLike[str],
    settings: Settings | None = None,
    *,
    to: str | None = None,
    etcd_is_gone: bool = False,
    dry_run: bool = False,
) -> Adopted:
    """Give the repository another authority: a mirror clone its first one, an embedded journal etcd's, or back.

    `settings` name the etcd that it goes to or leaves; `to` is `embedded` or `etcd`, which it is by
    default where an etcd is named and not gone. Every space is verified first. Nothing is changed if
    `dry_run`, or if it is so already. `etcd_is_gone` leaves an etcd that will never be seen again.
    Raises what `verify` does, `ForeignRepository`, `WrongAuthority`, `HeadMissing`, `MissingObjects`, `Unavailable`.
    """
    here = GitPremises(store_of(path))
    named = settings is not None and bool(settings.etcd)
    to = to or (ETCD if named and not etcd_is_gone else EMBEDDED)
    owner = here.owner()
    with ExitStack() as stack:
        stack.enter_context(writing(path))
        if to == ETCD:
            if settings is None or not named:
                raise InvalidEvent("to which etcd? name it with --etcd")
            etcd = Keyspace.connected(settings, stack)
            return adopt_to_etcd(here, etcd, etcd_is_gone=etcd_is_gone, dry_run=dry_run)
        leaves = None
        if owner is not None and owner.authority == ETCD and not etcd_is_gone:
            if settings is None or not named:
                raise WrongAuthority(
                    "appends go through etcd here, and whoever still holds a space must learn that it does not",
                    here.where,
                    "name the etcd that it leaves with --etcd; if that is gone for good, say --etcd-is-gone",
                )
            leaves = Keyspace.connected(settings, stack)
        return adopt_to_embedded(here, leaves, dry_run=dry_run)


# To etcd.


def adopt_to_etcd(here: Premises, etcd: Keyspace, *, etcd_is_gone: bool = False, dry_run: bool = False) -> Adopted:
    """Give a repository etcd's authority, as `adopt` does."""
    store, owner, place = here.store, here.owner(), etcd.place
    _check_place(here, owner, place, etcd_is_gone=etcd_is_gone)
    here.check_sharable()
    spaces = store.spaces()
    if owner is None:
        here.check_clone(spaces)
    journal = owner.journal if owner is not None else os.urandom(16).hex()
    key = etcd.journal()
    etcd.check(key, journal)
    if key is not None and owner == Owner(ETCD, journal, place):
        return Adopted(journal, len(spaces), changed=False, steps=[])
    plan = _Plan(here, etcd)
    steps = [f"verify space {space}" for space in spaces]
    if owner is None:
        steps += remote_steps(here)
    steps.append(f"make it journal {journal} of etcd under {place}")
    holders, intents = etcd.counts()
    if holders or intents:
        steps.append(f"clear etcd of {holders} holder(s) and {intents} intent(s)")
    cases, stale = plan.make()
    steps += [f"clear etcd of the head of space {space}, which another journal left there" for space in stale]
    steps += [case.step for case in cases]
    if owner is not None and owner.authority == ETCD:  # it is wiped, another one, or an adoption was not finished
        steps += [step for case in cases if case.before is None for step in left_out(plan.heads, case.space, case.head)]
    if not dry_run:
        with ExitStack() as locks:
            held: set[str] = set()
            for space in here.hold_all(locks, held):
                here.verify(space)
            plan.make()  # refuses now rather than half-way
            if owner is None:
                here.forget_remotes()
            etcd.clear(key, journal=True)
            here.give_to(Owner(ETCD, journal, place))
            spaces = here.hold_all(locks, held)  # one that was under way then is here now; no other begins
            cases, stale = plan.make()
            _carry_out(store, etcd, plan, cases, stale)
            etcd.tell_journal(journal)
    return Adopted(journal, len(spaces), changed=True, steps=steps)


def _check_place(here: Premises, owner: Owner | None, place: str, *, etcd_is_gone: bool) -> None:
    """Refuse to go from one etcd to another: who holds a space there would not learn of it."""
    if owner is None or owner.authority != ETCD or owner.place == place or etcd_is_gone:
        return
    raise ForeignRepository(
        f"the repository's heads are under {owner.place}, not under {place}",
        here.where,
        f"name --prefix {owner.place}; to move it, first `coordjournal adopt --to embedded --prefix {owner.place}`",
    )


class _Plan:
    """Which head of each space is to be published, as branch and etcd say."""

    def __init__(self, here: Premises, etcd: Keyspace) -> None:
        self.heads = Heads(here)
        self._store = here.store
        self._etcd = etcd

    def make(self) -> tuple[list[Case], dict[str, KeyValue]]:
        """Return what is to be published, and the heads that another journal left. Raises `OperatorNeeded`."""
        found, spaces = self._etcd.heads(), self._store.spaces()
        stale = {space: kv for space, kv in found.items() if space not in spaces and self._is_stale(space, kv)}
        wanted = sorted({*spaces, *found} - set(stale))
        return [self._case(space, found.get(space)) for space in wanted], stale

    def _is_stale(self, space: str, kv: KeyValue) -> bool:
        value = known(kv)
        return value is not None and value.left and not self.heads.has(space, value.head)

    def _case(self, space: str, found: KeyValue | None) -> Case:
        if found is not None and known(found) is None:
            decode_head(found.value, f"the head of space {space}")  # says so
        head = self.heads.newest(space, found)
        step = f"publish the head of space {space}: entry {head.seq}, commit {head.commit}"
        return Case(space, found, head, False, step)


def _carry_out(store: Store, etcd: Keyspace, plan: _Plan, cases: Sequence[Case], stale: dict[str, KeyValue]) -> None:
    for space, before in stale.items():
        etcd.replace_head(space, None, before)
    for case in cases:
        if not etcd.publish(case.space, case.head, store.identity(case.space, case.head), case.before):
            raise Unavailable(f"space {case.space}: somebody else changed its head in etcd; run the command again")
        plan.heads.move_branch(case.space, case.head)


# To embedded.


def adopt_to_embedded(here: Premises, etcd: Keyspace | None, *, dry_run: bool = False) -> Adopted:
    """Give a repository to this host's own processes, as `adopt` does. `etcd` is the one that it leaves, if any."""
    store, owner = here.store, here.owner()
    if owner is not None and owner == Owner(EMBEDDED, owner.journal):
        return Adopted(owner.journal, len(store.spaces()), changed=False, steps=[])
    here.check_local()
    spaces = store.spaces()
    if owner is None:
        here.check_clone(spaces)
    journal = owner.journal if owner is not None else os.urandom(16).hex()
    heads = Heads(here)
    steps = [f"verify space {space}" for space in spaces]
    key: KeyValue | None = None
    if owner is None:
        steps += remote_steps(here)
    elif etcd is not None:
        _check_place(here, owner, etcd.place, etcd_is_gone=False)
        key = etcd.journal()
        etcd.check(key, journal)
        steps += _leaving_steps(heads, etcd, spaces)
    elif owner.authority == ETCD:
        steps += [step for space in spaces for step in left_out(heads, space, heads.branch(space))]
    steps.append(f"make it the embedded journal {journal}")
    if not dry_run:
        with ExitStack() as locks:
            for space in here.hold_all(locks, set()):
                here.verify(space)
            if owner is None:
                here.forget_remotes()
            elif etcd is not None:
                _leave(heads, etcd, key)
            here.give_to(Owner(EMBEDDED, journal))
    return Adopted(journal, len(spaces), changed=True, steps=steps)


def _leaving_steps(heads: Heads, etcd: Keyspace, spaces: Sequence[str]) -> Iterator[str]:
    found = etcd.heads()
    if missing := [space for space in spaces if space not in found]:
        raise HeadMissing(
            f"etcd knows no head of space {', '.join(missing)}: it was wiped, or it is another one",
            etcd.place,
            "name the right etcd; if its data is lost, run `coordjournal recover` first, or say --etcd-is-gone",
        )
    for space, kv in found.items():
        branch, head = heads.branch(space), heads.newest(space, kv)
        if branch.seq > _published(kv, space).seq:
            raise OperatorNeeded(
                f"the branch, at entry {branch.seq}, is ahead of the published head: etcd was restored from an older"
                " time",
                f"space {space}",
                f"run `coordjournal recover {space}` first",
            )
        if branch != head:
            yield f"roll the branch of space {space} forward from entry {branch.seq} to {head.seq}"
    holders, intents = etcd.counts()
    if holders or intents:
        yield f"clear etcd of {holders} holder(s) and {intents} intent(s)"
    yield f"replace the heads under {etcd.place}, so that nobody publishes on them"


def left_out(heads: Heads, space: str, branch: Head) -> Iterator[str]:
    """Yield what stands on a branch's head and is not taken along, though only etcd knew whether it counts.

    The branch is moved before an append is acknowledged, but for a branch that cannot be moved.
    """
    for tip in heads.standing_on(space, branch):
        yield (
            f"leave out commit {tip.commit}, entry {tip.seq} of space {space}, which may have been acknowledged if"
            f" the branch could not be moved; to keep it: `git update-ref refs/heads/{space} {tip.commit}` first"
        )


def _published(kv: KeyValue, space: str) -> HeadValue:
    return decode_head(kv.value, f"the head of space {space}")


def _leave(heads: Heads, etcd: Keyspace, key: KeyValue | None) -> None:
    """Make sure that nobody publishes any more, then bring the branches to where the heads are."""
    etcd.clear(key, journal=True)  # no holder, and none can take over; so no new space can come
    for space, before in etcd.heads().items():
        kv: KeyValue | None = before
        for _ in range(_TRIES):
            if kv is None:
                break
            value = _published(kv, space)
            gone = HeadValue(value.seq, value.commit, value.term, value.space, etcd.mark(), left=True)
            if etcd.replace_head(space, encode_head(gone), kv):
                break
            kv = etcd.head(space)
        else:
            raise Unavailable(f"space {space} is still being appended to; run the command again")
        if kv is not None:
            heads.move_branch(space, heads.newest(space, kv))
    etcd.clear(None, journal=True)


# What `recover` does too.


def remote_steps(here: Premises) -> list[str]:
    """Return what `forget_remotes` would do, in words."""
    return [f"remove the remote {remote}, from which a fetch would overwrite the branches" for remote in here.remotes()]
