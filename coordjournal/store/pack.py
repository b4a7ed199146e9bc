"""Packs: a group's objects as one small pack with its index, made durable before anyone sees it.

Format: gitformat-pack(5), version 2 of both files. Objects are stored uncompressed (the trees are
mostly hash bytes; compaction deltas them), so that writing one costs a hash and a copy.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import zlib
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Final, NamedTuple

from coordjournal.store.files import sync_directory, write_all_synced

COMMIT, TREE, BLOB = 1, 2, 3
OFS_DELTA, REF_DELTA = 6, 7
KEEP: Final = b"coordjournal\n"
"""What our `.keep` files say: git and others leave the pack alone, our own compaction may replace it."""

_COMPRESS_BYTES: Final = 1 << 16  # above a stored block's limit compression is worth its time
IDX_MAGIC: Final = b"\xfftOc\x00\x00\x00\x02"
"""How a version 2 index begins."""
LARGE_OFFSET: Final = 1 << 31
"""From here on an offset stands in a table of its own."""

_PACK_NAME = re.compile(r"pack-[0-9a-f]{40}")


class PackObject(NamedTuple):
    """An object for a pack: its kind (`COMMIT`, `TREE`, `BLOB`), 20-byte id, raw content."""

    kind: int
    oid: bytes
    raw: bytes
    base: bytes = b""  # where `raw` is a delta: the id of its base, which is in the same pack


def build(objects: list[PackObject]) -> tuple[str, bytes, bytes]:
    """Return the name, the pack and the index of a pack of `objects`, whose ids are distinct."""
    parts = [b"PACK\0\0\0\x02" + len(objects).to_bytes(4, "big")]
    offset = len(parts[0])
    rows = []
    for kind, oid, raw, base in objects:
        part = entry_header(REF_DELTA if base else kind, len(raw)) + base + deflated(raw)
        rows.append((oid, zlib.crc32(part), offset))
        parts.append(part)
        offset += len(part)
    body = b"".join(parts)
    checksum = hashlib.sha1(body, usedforsecurity=False).digest()
    return f"pack-{checksum.hex()}", body + checksum, index_bytes(rows, checksum)


def entry_header(kind: int, size: int) -> bytes:
    """Return what stands before an object in a pack: its kind and its size, not compressed."""
    byte = kind << 4 | size & 15
    size >>= 4
    header = bytearray()
    while size:
        header.append(byte | 0x80)
        byte = size & 0x7F
        size >>= 7
    header.append(byte)
    return bytes(header)


def deflated(raw: bytes) -> bytes:
    """Return `raw` as a zlib stream (RFC 1950) of one stored block, compressed only where it is large."""
    size = len(raw)
    if size >= _COMPRESS_BYTES:
        return zlib.compress(raw, 1)
    return b"".join(
        (
            b"\x78\x01\x01",
            size.to_bytes(2, "little"),
            (size ^ 0xFFFF).to_bytes(2, "little"),
            raw,
            zlib.adler32(raw).to_bytes(4, "big"),
        )
    )


def index_bytes(rows: list[tuple[bytes, int, int]], checksum: bytes) -> bytes:
    """Return the index of a pack: rows of (id, crc, offset), which get sorted; the pack's checksum."""
    rows.sort()
    counts = [0] * 256
    for oid, _, _ in rows:
        counts[oid[0]] += 1
    large = [offset for _, _, offset in rows if offset >= LARGE_OFFSET]
    places = {offset: LARGE_OFFSET + place for place, offset in enumerate(large)}
    body = b"".join(
        (
            IDX_MAGIC,
            struct.pack(">256I", *accumulate(counts)),
            *[oid for oid, _, _ in rows],
            struct.pack(f">{len(rows)}I", *[crc for _, crc, _ in rows]),
            struct.pack(f">{len(rows)}I", *[places.get(offset, offset) for _, _, offset in rows]),
            *(offset.to_bytes(8, "big") for offset in large),
            checksum,
        )
    )
    return body + hashlib.sha1(body, usedforsecurity=False).digest()


def install(objects: list[PackObject], packs: Path, drafts: Path) -> None:
    """Write a pack of `objects` into the directory `packs`, durably; `drafts` is on the same disk.

    A crash between two steps leaves a draft, or a pack without index, which git does not look at.
    """
    name, pack, index = build(objects)
    draft = drafts / f"{name}-{os.getpid()}-{os.urandom(4).hex()}"
    pack_draft, index_draft = draft.with_suffix(".pack"), draft.with_suffix(".idx")
    try:
        write_all_synced({pack_draft: pack, index_draft: index}, 0o444)
        move_in(pack_draft, index_draft, packs, name)
    except OSError:
        with suppress(OSError):  # the first error is the one to tell; compaction sweeps what is left
            pack_draft.unlink(missing_ok=True)
            index_draft.unlink(missing_ok=True)
        raise


def move_in(pack: Path, index: Path, packs: Path, name: str) -> None:
    """Move a durable pack and its index into the directory `packs`: kept, and the index last.

    The mark is not synced by itself: a power cut may leave it empty, and the pack uncompacted for good.
    """
    (packs / f"{name}.keep").write_bytes(KEEP)
    os.rename(pack, packs / f"{name}.pack")  # noqa: PTH104  # as its name says, on one disk
    os.rename(index, packs / f"{name}.idx")  # noqa: PTH104
    sync_directory(packs)


def ours(packs: Path) -> list[Path]:
    """Return the indexes of the packs in `packs` that compaction may replace, smallest first.

    A pack that someone else keeps, or that belongs to a partial clone, is not ours to replace.
    """
    found = []
    for index in packs.glob("pack-*.idx"):
        if not _PACK_NAME.fullmatch(index.stem) or index.with_suffix(".promisor").exists():
            continue
        try:
            if index.with_suffix(".keep").read_bytes() != KEEP:
                continue
        except FileNotFoundError:
            pass  # made by plain git
        except OSError:
            continue
        try:
            found.append((index.stat().st_size, index))
        except FileNotFoundError:
            continue  # just replaced by another process
    return [index for _, index in sorted(found)]
