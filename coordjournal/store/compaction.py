"""Compaction: many small packs become one, without losing anything, reachable or not.

Steps: take the compactor's lock → list the inputs → write the union of their objects as one pack among
the drafts, synced → check that it holds every object → move it in, kept → delete the inputs → tell every
process to open new handles. A crash between two steps leaves objects twice, or a draft; never one too few.

Entries are copied as they are. Once there is enough of it, and on demand, older versions of a tree
become deltas on the newest one: they are its beginning, so that no search is needed.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pygit2

from coordjournal.errors import Corrupt, Unavailable
from coordjournal.store import pack
from coordjournal.store.files import locked, sync_directory
from coordjournal.store.message import tree_and_parent
from coordjournal.store.packfile import Entry, PackFile, PackWriter, object_ids, prefix_delta
from coordjournal.store.repository import Repository
from coordjournal.store.tree import TREE, last_entry

LOCK: Final = ".compaction"
"""The compactor's lock: a name that no space can have."""

_DUE_PACKS: Final = 64
_GROWTH: Final = 2  # packs that are left alone are each so many times larger than all smaller ones
_SHRINK_BYTES: Final = 4 << 20  # about a thousand appends; what was shrunk once is only copied afterwards
_DRAFT_SECONDS: Final = 3600.0

logger = logging.getLogger(__name__)


class Compacted(NamedTuple):
    """What a compaction did: packs and bytes before and after, objects in the new pack (0: nothing to do)."""

    packs_before: int
    packs_after: int
    bytes_before: int
    bytes_after: int
    objects: int


def is_due(repository: Repository) -> bool:
    """Whether there are so many packs that a compaction is worth it."""
    return len(pack.ours(repository.packs)) >= _DUE_PACKS


def compact_if_due(repository: Repository) -> Compacted | None:
    """Compact if there are many small packs and no other process is at it; None if not.

    Merges only packs that are small beside the others, so that the cost of an object is logarithmic.
    """
    with locked(repository.lock_path(LOCK), wait=False) as mine:
        if not mine or not is_due(repository):
            return None
        inputs = _small(pack.ours(repository.packs))
        return _compact(repository, inputs, shrink=_size(inputs) >= _SHRINK_BYTES, compress=False)


def compact(repository: Repository) -> Compacted:
    """Make one pack of all; waits for another compactor. Raises `Unavailable` if the disk is full."""
    try:
        with locked(repository.lock_path(LOCK)):
            return _compact(repository, pack.ours(repository.packs), shrink=True, compress=True)
    except OSError as error:
        raise Unavailable(f"the packs cannot be compacted: {error}") from error


def _small(indexes: list[Path]) -> list[Path]:
    """Return the smallest packs, up to the first that is much larger than all before it together."""
    taken, total = [], 0
    for number, index in enumerate(indexes):
        try:
            size = index.with_suffix(".pack").stat().st_size
        except FileNotFoundError:
            continue
        if number > 1 and size > _GROWTH * total and len(indexes) - number < _DUE_PACKS // 4:
            break
        taken.append(index)
        total += size
    return taken


def _compact(repository: Repository, inputs: list[Path], *, shrink: bool, compress: bool) -> Compacted:
    before = pack.ours(repository.packs)
    size_before = _size(before)
    _sweep_drafts(repository.drafts())
    if len(inputs) < 2:
        return Compacted(len(before), len(before), size_before, size_before, 0)
    try:
        union = {oid for index in inputs for oid in object_ids(index)}
        result = _write_union(repository, inputs, union, shrink=shrink, compress=compress)
    except ValueError as error:
        raise Corrupt(str(error), str(repository.packs)) from error
    except OSError as error:
        raise Unavailable(f"the disk does not take the compacted pack: {error}") from error
    for name in ("multi-pack-index", "multi-pack-index.d"):
        _remove(repository.packs / name)  # git's own index over packs, some of which are now gone
    for index in inputs:
        if index.stem != result:
            for suffix in (".idx", ".bitmap", ".rev", ".mtimes", ".pack", ".keep"):
                index.with_suffix(suffix).unlink(missing_ok=True)
    sync_directory(repository.packs)
    repository.next_generation()
    after = pack.ours(repository.packs)
    logger.info("compacted %d packs of %s into one of %d objects", len(inputs), repository.path, len(union))
    return Compacted(len(before), len(after), size_before, _size(after), len(union))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _write_union(repository: Repository, inputs: list[Path], union: set[bytes], *, shrink: bool, compress: bool) -> str:
    """Write a durable pack of the objects `union`, check it, move it in; return its name."""
    draft = repository.drafts() / f"compaction-{time.time_ns()}" / "pack"
    draft.mkdir(parents=True)
    packs: list[PackFile] = []
    writer = PackWriter(draft / "union.pack", len(union))
    try:
        packs.extend(map(PackFile, inputs))
        packs.sort(key=lambda opened: not opened.is_plain())
        made, bases = _copy(writer, packs, _deltas(packs) if shrink else {}, compress=compress)
        name = writer.finish()
        _check(draft, union, list(union) if compress else made, bases)
        pack.move_in(draft / "union.pack", draft / "union.idx", repository.packs, name)
        return name
    finally:
        writer.close()
        for opened in packs:
            opened.close()
        shutil.rmtree(draft.parent, ignore_errors=True)


def _copy(
    writer: PackWriter, packs: list[PackFile], deltas: dict[bytes, tuple[bytes, bytes]], *, compress: bool
) -> tuple[list[bytes], dict[bytes, bytes]]:
    """Copy every object once; return the ids of those that stand there in a new form, and the deltas' bases.

    No circle of deltas can come about: a pack's objects are taken together with their bases, which it
    holds itself, unless an earlier pack gave them; `deltas` are of plain packs, which come first.
    """
    done: set[bytes] = set()
    made, bases = [], {}
    for opened in packs:
        if not compress and done.isdisjoint(opened.oids) and deltas.keys().isdisjoint(opened.oids):
            done.update(opened.oids)
            writer.add_all(opened)
            continue
        for entry in opened.entries:
            if entry.oid in done:
                continue
            done.add(entry.oid)
            if (delta := deltas.get(entry.oid)) is not None:
                writer.add_delta(entry.oid, *delta)
                made.append(entry.oid)
                bases[entry.oid] = delta[0]
            elif compress and (kind := opened.kind(entry)) in (pack.COMMIT, pack.BLOB):
                writer.add_compressed(entry.oid, kind, opened.raw(entry))
                made.append(entry.oid)
            else:
                data, crc, base = opened.copy(entry)
                writer.add(entry.oid, data, crc)
                if base:
                    bases[entry.oid] = base
    return made, bases


def _deltas(packs: list[PackFile]) -> dict[bytes, tuple[bytes, bytes]]:
    """Return (base, delta) for every tree of our own packs that is an older version of another one in them.

    The commits are walked from the newest back, so that the first tree that is seen of a directory is the
    newest one: the base of all others, which are its beginning. No delta has a delta as its base.
    """
    plain = [opened for opened in packs if opened.is_plain()]
    where = {entry.oid: (opened, entry) for opened in plain for entry in opened.entries}
    commits: dict[bytes, tuple[bytes, bytes]] = {}
    for opened in plain:
        for entry in opened.entries:
            if opened.kind(entry) == pack.COMMIT and (ids := tree_and_parent(opened.raw(entry))):
                commits[entry.oid] = ids
    parents = {parent for _, parent in commits.values()}
    deltas: dict[bytes, tuple[bytes, bytes]] = {}
    bases: set[bytes] = set()
    for tip in commits.keys() - parents:
        newest: dict[bytes, tuple[bytes, bytes]] = {}
        commit = tip
        while commit in commits:
            root, parent = commits.pop(commit)
            for path, oid in _spine(where, root):
                if oid in deltas or oid in bases:
                    continue
                opened, entry = where[oid]
                raw = opened.raw(entry)
                base = newest.get(path)
                delta = prefix_delta(base[1], raw) if base is not None else None
                if base is not None and delta is not None:
                    deltas[oid] = (base[0], delta)
                else:
                    newest[path] = (oid, raw)
                    bases.add(oid)
            commit = parent
    return deltas


def _spine(where: dict[bytes, tuple[PackFile, Entry]], root: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (path, id) of the last directory of each level below a root tree, as far as it is at hand."""
    path, name, oid = b"", b"events", _directory(where, root, b"events")
    while oid is not None and oid in where:
        path += name + b"/"
        yield path, oid
        opened, entry = where[oid]
        raw = opened.raw(entry)
        mode, name, oid = last_entry(raw)
        if mode != TREE:
            return


def _directory(where: dict[bytes, tuple[PackFile, Entry]], root: bytes, name: bytes) -> bytes | None:
    if root not in where:
        return None
    opened, entry = where[root]
    raw = opened.raw(entry)
    start = raw.find(TREE + b" " + name + b"\0")
    at = start + len(TREE) + len(name) + 2
    return raw[at : at + 20] if start == 0 else None


def _check(draft: Path, union: set[bytes], read: list[bytes], bases: dict[bytes, bytes]) -> None:
    """See that the written pack stands: it has every object, every delta ends at a whole one, git reads `read`."""
    damaged = Corrupt("the compacted pack does not stand; the packs are left as they were", str(draft))
    if set(object_ids(draft / "union.idx")) != union:
        raise damaged
    whole = union - bases.keys()
    for oid in bases:
        steps = [oid]
        while steps[-1] not in whole:
            base = bases.get(steps[-1])
            if base is None or len(steps) > len(bases):
                raise damaged
            steps.append(base)
        whole.update(steps)
    (draft / "union.idx").rename(draft / "pack-union.idx")
    (draft / "union.pack").rename(draft / "pack-union.pack")
    odb = pygit2.Odb()
    odb.add_backend(pygit2.OdbBackendPack(str(draft.parent)), 1)
    try:
        for oid in read:
            odb.read(pygit2.Oid(raw=oid))  # computes the id anew, and compares
    except (KeyError, pygit2.GitError) as error:
        raise damaged from error
    (draft / "pack-union.idx").rename(draft / "union.idx")
    (draft / "pack-union.pack").rename(draft / "union.pack")


def _size(indexes: list[Path]) -> int:
    total = 0
    for index in indexes:
        for suffix in (".pack", ".idx"):
            try:
                total += index.with_suffix(suffix).stat().st_size
            except FileNotFoundError:
                continue
    return total


def _sweep_drafts(drafts: Path) -> None:
    """Delete what died unfinished: another compactor's, since this one has the lock; a group's after an hour.

    The drafts of refs stay: they tell whose a ref's lock is.
    """
    for path in drafts.iterdir():
        try:
            if path.name.startswith("compaction-"):
                shutil.rmtree(path, ignore_errors=True)
            elif path.name.startswith("pack-") and time.time() - path.stat().st_mtime > _DRAFT_SECONDS:
                path.unlink()
        except FileNotFoundError:
            continue
