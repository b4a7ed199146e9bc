"""`adopt`: a repository is given another authority, by an operator who says so.

It makes a plan from what it finds, which is all that a dry run does, and then carries it out with a guard
on everything that the plan rests on. `docs/authority.md` says what may happen between the steps.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import pygit2

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
from coordjournal.store import EMBEDDED, ETCD, compaction
from coordjournal.store.files import file_system, is_network, is_sharable, locked, sync, sync_directory
from coordjournal.store.git import GitStore
from coordjournal.store.repository import Owner, Repository, write_owner
from coordjournal.verification import verify_space

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
    store = store_of(path)
    named = settings is not None and bool(settings.etcd)
    to = to or (ETCD if named and not etcd_is_gone else EMBEDDED)
    owner = store.repository.owner()
    with ExitStack() as stack:
        if to == ETCD:
            if settings is None or not named:
                raise InvalidEvent("to which etcd? name it with --etcd")
            etcd = Keyspace.connected(settings, stack)
            return _adopt_to_etcd(store, owner, etcd, etcd_is_gone=etcd_is_gone, dry_run=dry_run)
        if owner is not None and owner == Owner(EMBEDDED, owner.journal):
            return Adopted(owner.journal, len(store.spaces()), changed=False, steps=[])
        leaves = None
        if owner is not None and owner.authority == ETCD and not etcd_is_gone:
            if settings is None or not named:
                raise WrongAuthority(
                    "appends go through etcd here, and whoever still holds a space must learn that it does not",
                    str(store.repository.path),
                    "name the etcd that it leaves with --etcd; if that is gone for good, say --etcd-is-gone",
                )
            leaves = Keyspace.connected(settings, stack)
        return _adopt_to_embedded(store, owner, leaves, dry_run=dry_run)


def store_of(path: str | os.PathLike[str]) -> GitStore:
    """Return the store at `path`, as a writer that is told apart from all others."""
    writer = f"-{os.getpid()}-{os.urandom(4).hex()}"
    clock = lambda: datetime.now(UTC)  # noqa: E731  # it is one where it is used
    return GitStore(Path(path), node=socket.gethostname(), clock=clock, random=os.urandom, writer=writer)


# To etcd.


def _adopt_to_etcd(
    store: GitStore, owner: Owner | None, etcd: Keyspace, *, etcd_is_gone: bool, dry_run: bool
) -> Adopted:
    repository, place = store.repository, etcd.place
    _check_place(repository, owner, place, etcd_is_gone=etcd_is_gone)
    if not is_sharable(kind := file_system(repository.path)):
        raise WrongAuthority(
            f"the file system ({kind}) promises too little for hosts that share it",
            str(repository.path),
            "move it to one that docs/deployment.md names",
        )
    spaces = store.spaces()
    if owner is None:
        check_clone(repository, spaces)
    journal = owner.journal if owner is not None else os.urandom(16).hex()
    key = etcd.journal()
    etcd.check(key, journal)
    if key is not None and owner == Owner(ETCD, journal, place):
        return Adopted(journal, len(spaces), changed=False, steps=[])
    plan = _Plan(store, etcd)
    steps = [f"verify space {space}" for space in spaces]
    if owner is None:
        steps += remote_steps(repository)
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
            for space in _lock_all(store, locks, held):
                verify_space(store, space)
            plan.make()  # refuses now rather than half-way
            if owner is None:
                forget_remotes(repository)
            etcd.clear(key, journal=True)
            replace_owner(repository, Owner(ETCD, journal, place))
            spaces = _lock_all(store, locks, held)  # one that was under way then is here now; no other begins
            cases, stale = plan.make()
            _carry_out(store, etcd, plan, cases, stale)
            etcd.tell_journal(journal)
    return Adopted(journal, len(spaces), changed=True, steps=steps)


def _check_place(repository: Repository, owner: Owner | None, place: str, *, etcd_is_gone: bool) -> None:
    """Refuse to go from one etcd to another: who holds a space there would not learn of it."""
    if owner is None or owner.authority != ETCD or owner.place == place or etcd_is_gone:
        return
    raise ForeignRepository(
        f"the repository's heads are under {owner.place}, not under {place}",
        str(repository.path),
        f"name --prefix {owner.place}; to move it, first `coordjournal adopt --to embedded --prefix {owner.place}`",
    )


class _Plan:
    """Which head of each space is to be published, as branch and etcd say."""

    def __init__(self, store: GitStore, etcd: Keyspace) -> None:
        self.heads = Heads(store)
        self._store = store
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


def _carry_out(store: GitStore, etcd: Keyspace, plan: _Plan, cases: Sequence[Case], stale: dict[str, KeyValue]) -> None:
    for space, before in stale.items():
        etcd.replace_head(space, None, before)
    for case in cases:
        if not etcd.publish(case.space, case.head, store.identity(case.space, case.head), case.before):
            raise Unavailable(f"space {case.space}: somebody else changed its head in etcd; run the command again")
        plan.heads.move_branch(case.space, case.head)


# To embedded.


def _adopt_to_embedded(store: GitStore, owner: Owner | None, etcd: Keyspace | None, *, dry_run: bool) -> Adopted:
    repository = store.repository
    if is_network(kind := file_system(repository.path)):
        raise WrongAuthority(
            f"it is on a network file system ({kind})", str(repository.path), "copy it to a disk of this host"
        )
    spaces = store.spaces()
    if owner is None:
        check_clone(repository, spaces)
    journal = owner.journal if owner is not None else os.urandom(16).hex()
    heads = Heads(store)
    steps = [f"verify space {space}" for space in spaces]
    key: KeyValue | None = None
    if owner is None:
        steps += remote_steps(repository)
    elif etcd is not None:
        _check_place(repository, owner, etcd.place, etcd_is_gone=False)
        key = etcd.journal()
        etcd.check(key, journal)
        steps += _leaving_steps(heads, etcd, spaces)
    elif owner.authority == ETCD:
        steps += [step for space in spaces for step in left_out(heads, space, heads.branch(space))]
    steps.append(f"make it the embedded journal {journal}")
    if not dry_run:
        with ExitStack() as locks:
            for space in _lock_all(store, locks, set()):
                verify_space(store, space)
            if owner is None:
                forget_remotes(repository)
            elif etcd is not None:
                _leave(heads, etcd, key)
            replace_owner(repository, Owner(EMBEDDED, journal))
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
            gone = HeadValue(value.seq, value.commit, value.term, value.space, os.urandom(8).hex(), left=True)
            if etcd.replace_head(space, encode_head(gone), kv):
                break
            kv = etcd.head(space)
        else:
            raise Unavailable(f"space {space} is still being appended to; run the command again")
        if kv is not None:
            heads.move_branch(space, heads.newest(space, kv))
    etcd.clear(None, journal=True)


# What it begins with, and `recover` too.


def check_clone(repository: Repository, spaces: Sequence[str]) -> None:
    """Raise `ForeignRepository` if a repository that belongs to nobody cannot be made a journal."""
    if (repository.path / "objects" / "info" / "alternates").exists():
        raise ForeignRepository(
            "it borrows objects of another repository (objects/info/alternates), which may delete them",
            str(repository.path),
            "clone it with `git clone --mirror --no-local` and adopt that",
        )
    if not spaces:
        raise ForeignRepository("no branch here is a space's log", str(repository.path), "adopt a clone of a journal")


def _lock_all(store: GitStore, locks: ExitStack, held: set[str]) -> list[str]:
    """Hold every lock there is but those `held`, and those of all spaces; return the spaces."""
    repository = store.repository
    names = {compaction.LOCK, *store.spaces()}
    folder = repository.lock_path(compaction.LOCK).parent
    names.update(name for name in os.listdir(folder))  # noqa: PTH208  # names only
    for name in sorted(names - held):
        locks.enter_context(locked(repository.lock_path(name)))
        held.add(name)
    return store.spaces()


def replace_owner(repository: Repository, owner: Owner) -> None:
    """Write into the config whose the repository is: all of it, or nothing of it, durably."""
    config = repository.path / "config"
    draft = repository.drafts() / f"config-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        shutil.copy2(config, draft)
        write_owner(draft, owner)
        file = os.open(draft, os.O_RDONLY | os.O_CLOEXEC)
        try:
            sync(file)
        finally:
            os.close(file)
        draft.replace(config)
        sync_directory(repository.path)
    except (OSError, pygit2.GitError) as error:
        raise Unavailable(f"the config of {repository.path} cannot be written: {error}") from error
    finally:
        draft.unlink(missing_ok=True)


def remote_steps(repository: Repository) -> list[str]:
    """Return what `forget_remotes` would do, in words."""
    remotes = sorted({name.split(".", 1)[1].rpartition(".")[0] for name in _remote_settings(repository)})
    return [f"remove the remote {remote}, from which a fetch would overwrite the branches" for remote in remotes]


def _remote_settings(repository: Repository) -> set[str]:
    config = pygit2.Config(str(repository.path / "config"))
    return {entry.name for entry in config if entry.name.startswith("remote.")}


def forget_remotes(repository: Repository) -> None:
    """Delete the settings of all remotes; libgit2's own way would delete the branches with a mirror's."""
    config = pygit2.Config(str(repository.path / "config"))
    for name in _remote_settings(repository):
        config.delete_multivar(name, ".*")
