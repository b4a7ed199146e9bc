"""Compaction: many small packs become one, without losing anything, reachable or not.

Steps: take the compactor's lock → list the inputs → write the union of their objects as one pack among
the drafts → check that it holds every object → move it in, kept → delete the inputs → tell every process
to open new handles. A crash between two steps leaves objects twice, or a draft; never once too few.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from pathlib import Path
from typing import Final, NamedTuple

import pygit2
from pygit2 import Oid, PackBuilder

from coordjournal.errors import Corrupt, Unavailable
from coordjournal.store import pack
from coordjournal.store.files import locked, sync_directory
from coordjournal.store.repository import Repository

_DUE_PACKS: Final = 64
_GROWTH: Final = 2  # packs that are left alone are each so many times larger than all smaller ones
_DRAFT_SECONDS: Final = 3600.0

logger = logging.getLogger(__name__)


class Compacted(NamedTuple):
    """What a compaction did: packs and bytes before and after, objects in the new pack (0: nothing to do)."""

    packs_before: int
    packs_after: int
    bytes_before: int
    bytes_after: int
    objects: int


def compact_if_due(repository: Repository) -> Compacted | None:
    """Compact if there are many small packs and no other process is at it; None if not.

    Merges only packs that are small beside the others, so that the cost of an object is logarithmic.
    """
    if len(pack.ours(repository.packs)) < _DUE_PACKS:
        return None
    with locked(repository.lock_path("compaction"), wait=False) as mine:
        if not mine:
            return None
        return _compact(repository, _small(pack.ours(repository.packs)))


def compact(repository: Repository) -> Compacted:
    """Make one pack of all; waits for another compactor. Raises `Unavailable` if the disk is full."""
    with locked(repository.lock_path("compaction")):
        return _compact(repository, pack.ours(repository.packs))


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


def _compact(repository: Repository, inputs: list[Path]) -> Compacted:
    before = pack.ours(repository.packs)
    size_before = _size(before)
    _sweep_drafts(repository.drafts())
    if len(inputs) < 2:
        return Compacted(len(before), len(before), size_before, size_before, 0)
    try:
        union = sorted({oid for index in inputs for oid in pack.object_ids(index)})
    except ValueError as error:
        raise Corrupt(str(error), str(repository.packs)) from error
    try:
        result = _write_union(repository, union)
    except OSError as error:
        raise Unavailable(f"the disk does not take the compacted pack: {error}") from error
    for index in inputs:
        if index.stem != result:
            for suffix in (".idx", ".pack", ".rev", ".keep"):
                index.with_suffix(suffix).unlink(missing_ok=True)
    sync_directory(repository.packs)
    repository.next_generation()
    after = pack.ours(repository.packs)
    logger.info("compacted %d packs of %s into one of %d objects", len(inputs), repository.path, len(union))
    return Compacted(len(before), len(after), size_before, _size(after), len(union))


def _write_union(repository: Repository, union: list[bytes]) -> str:
    """Write a durable pack of the objects `union`, check it, move it in; return its name."""
    draft = repository.drafts() / f"compaction-{time.time_ns()}"
    draft.mkdir()
    try:
        repository.use(lambda handle: _build(handle, union, draft))
        (index,) = draft.glob("pack-*.idx")
        if sorted(pack.object_ids(index)) != union:
            raise Corrupt("the compacted pack lacks objects; the packs are left as they were", str(draft))
        for file in (index.with_suffix(".pack"), index):
            with file.open("rb") as written:
                os.fsync(written.fileno())
        pack.move_in(index.with_suffix(".pack"), index, repository.packs, index.stem)
        return index.stem
    finally:
        for file in draft.iterdir():
            file.unlink(missing_ok=True)
        draft.rmdir()


def _build(handle: pygit2.Repository, union: list[bytes], draft: Path) -> None:
    builder = PackBuilder(handle)
    builder.set_threads(1)
    for oid in union:
        builder.add(Oid(raw=oid))
    builder.write(draft)


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
