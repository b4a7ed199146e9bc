"""Pack files as they lie on the disk: read without git, and written again as one.

Format: gitformat-pack(5). Entries are copied as they are wherever that is possible, so that merging many
packs costs a copy; libgit2's pack builder took 25 s for what this does in one, since it searches deltas
where here they are known (`docs/performance.md`).
"""

from __future__ import annotations

import hashlib
import mmap
import struct
import zlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Final, NamedTuple

from coordjournal.store.files import sync
from coordjournal.store.pack import IDX_MAGIC, LARGE_OFFSET, OFS_DELTA, REF_DELTA, deflated, entry_header, index_bytes

_HEADER_BYTES: Final = 12
_TRAILER_BYTES: Final = 20


class Entry(NamedTuple):
    """An object in a pack: its id, where it begins and ends, the checksum of what lies there."""

    oid: bytes
    start: int
    end: int
    crc: int


class PackFile:
    """One pack and its index, opened to be read. `ValueError` if either is damaged; close it after use."""

    def __init__(self, index: Path) -> None:
        self.index = index
        self.oids, self._crcs, self._starts, self._checksum = _read_index(index)
        with index.with_suffix(".pack").open("rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if self._starts and not _HEADER_BYTES <= min(self._starts) <= max(self._starts) < len(self._data):
            raise ValueError(f"{index} names a place that is not in its pack")

    @cached_property
    def entries(self) -> list[Entry]:
        """Every object of the pack, in the order in which they lie there."""
        entries: list[Entry] = []
        end = len(self._data) - _TRAILER_BYTES
        for oid, crc, start in sorted(self.rows(), key=lambda row: row[2], reverse=True):
            if not _HEADER_BYTES <= start < end:
                raise ValueError(f"{self.index} names a place that is not in its pack")
            entries.append(Entry(oid, start, end, crc))
            end = start
        entries.reverse()
        return entries

    @cached_property
    def _at(self) -> dict[int, bytes]:
        return dict(zip(self._starts, self.oids, strict=True))

    def rows(self, shift: int = 0) -> Iterator[tuple[bytes, int, int]]:
        """Return (id, crc, offset) of every object, as if the pack lay `shift` bytes further on."""
        return zip(self.oids, self._crcs, [start + shift for start in self._starts], strict=True)

    def check(self) -> None:
        """Read the whole pack. `ValueError` if it is damaged, or is not the one that its index is of."""
        with memoryview(self._data) as whole, whole[:-_TRAILER_BYTES] as body:
            digest = hashlib.sha1(body, usedforsecurity=False).digest()
        if not digest == self._data[-_TRAILER_BYTES:] == self._checksum:
            raise ValueError(f"the pack of {self.index} does not bear its checksum")

    def body(self) -> bytes:
        """Return all entries as they lie there, one after the other. `ValueError` if the pack is damaged."""
        self.check()
        return self._data[_HEADER_BYTES:-_TRAILER_BYTES]

    def close(self) -> None:
        """Let go of the file."""
        self._data.close()

    def kind(self, entry: Entry) -> int:
        """Return an entry's kind: that of `pack`, or a delta's."""
        return self._data[entry.start] >> 4 & 7

    def raw(self, entry: Entry) -> bytes:
        """Return an object's content; the entry must not be a delta. `ValueError` if it is damaged."""
        data = self._checked(entry)
        at = _after_header(data)
        try:
            return zlib.decompress(data[at:])
        except zlib.error as error:
            raise ValueError(f"object {entry.oid.hex()} in {self.index} is damaged: {error}") from error

    def is_plain(self) -> bool:
        """Whether every object stands there whole, none as a delta."""
        data = self._data
        return all(data[start] >> 4 & 7 < OFS_DELTA for start in self._starts)

    def copy(self, entry: Entry) -> tuple[bytes, int, bytes]:
        """Return an entry's bytes for another pack, their checksum, and the id of its base if it is a delta.

        A delta that names its base by distance names it by id afterwards. `ValueError` if it is damaged.
        """
        data = self._checked(entry)
        kind = self.kind(entry)
        if kind < OFS_DELTA:
            return data, entry.crc, b""
        if kind == REF_DELTA:
            at = _after_header(data)
            return data, entry.crc, data[at : at + 20]
        at = _after_header(data)
        rest = data[at:]
        after = _after_header(rest)  # a distance ends like a header, at the first byte below 128
        base = self._at.get(entry.start - _distance(rest))
        if base is None:
            raise ValueError(f"the delta {entry.oid.hex()} in {self.index} has no base")
        try:
            size = len(zlib.decompress(rest[after:]))
        except zlib.error as error:
            raise ValueError(f"object {entry.oid.hex()} in {self.index} is damaged: {error}") from error
        copied = entry_header(REF_DELTA, size) + base + rest[after:]
        return copied, zlib.crc32(copied), base

    def _checked(self, entry: Entry) -> bytes:
        data = self._data[entry.start : entry.end]
        if zlib.crc32(data) != entry.crc:
            raise ValueError(f"object {entry.oid.hex()} in {self.index} does not bear its checksum")
        return data


class PackWriter:
    """Writes one pack of a known number of objects, entry by entry, and its index."""

    def __init__(self, path: Path, count: int) -> None:
        self._file = path.open("wb")
        self._path = path
        self._hash = hashlib.sha1(usedforsecurity=False)
        self._rows: list[tuple[bytes, int, int]] = []
        self._offset = 0
        self._count = count
        self._write(b"PACK\0\0\0\x02" + count.to_bytes(4, "big"))

    def add(self, oid: bytes, data: bytes, crc: int) -> None:
        """Add the entry of an object as it is to stand in the pack."""
        self._rows.append((oid, crc, self._offset))
        self._write(data)

    def add_all(self, opened: PackFile) -> None:
        """Add a whole pack as it is, deltas and all; none of its objects may be here yet."""
        body = opened.body()
        self._rows.extend(opened.rows(self._offset - _HEADER_BYTES))
        self._write(body)

    def add_delta(self, oid: bytes, base: bytes, delta: bytes) -> None:
        """Add an object as a delta on `base`, which is in the pack."""
        data = entry_header(REF_DELTA, len(delta)) + base + deflated(delta)
        self.add(oid, data, zlib.crc32(data))

    def add_compressed(self, oid: bytes, kind: int, raw: bytes) -> None:
        """Add an object whole, compressed."""
        data = entry_header(kind, len(raw)) + zlib.compress(raw, 6)
        self.add(oid, data, zlib.crc32(data))

    def finish(self) -> str:
        """Write what is left, durably, and the index beside it; return the pack's name."""
        assert len(self._rows) == self._count
        checksum = self._hash.digest()
        self._file.write(checksum)
        self._file.flush()
        sync(self._file.fileno())
        self._file.close()
        with self._path.with_suffix(".idx").open("wb") as index:
            index.write(index_bytes(self._rows, checksum))
            index.flush()
            sync(index.fileno())
        for path in (self._path, self._path.with_suffix(".idx")):
            path.chmod(0o444)
        return f"pack-{checksum.hex()}"

    def close(self) -> None:
        """Let go of the file, finished or not."""
        self._file.close()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._offset += len(data)


def prefix_delta(base: bytes, target: bytes) -> bytes | None:
    """Return the delta from which `target` is made of `base`, if it begins as `base` does; else None.

    All but its last 20 bytes must: an older version of a tree is the newer one's beginning, its last
    entry with another id.
    """
    same = len(target) if base.startswith(target) else len(target) - 20
    if same <= 0 or base[:same] != target[:same] or same >= 1 << 16:
        return None
    copied = b"\xb0" + same.to_bytes(2, "little")  # copy `same` bytes from the base's beginning
    inserted = target[same:]
    literal = bytes((len(inserted),)) + inserted if inserted else b""
    return _size(len(base)) + _size(len(target)) + copied + literal


def _size(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _after_header(data: bytes) -> int:
    at = 0
    while data[at] & 0x80:
        at += 1
    return at + 1


def _distance(data: bytes) -> int:
    at, distance = 0, data[0] & 0x7F
    while data[at] & 0x80:
        at += 1
        distance = (distance + 1) << 7 | data[at] & 0x7F
    return distance


def object_ids(index: Path) -> list[bytes]:
    """Return the 20-byte ids in a pack's index, sorted; `ValueError` if it is not sound."""
    return _read_index(index)[0]


def _read_index(index: Path) -> tuple[list[bytes], Sequence[int], Sequence[int], bytes]:
    """Return the ids, checksums and offsets of the objects in a version 2 index, and its pack's checksum."""
    data = index.read_bytes()
    if data[:8] != IDX_MAGIC or hashlib.sha1(data[:-20], usedforsecurity=False).digest() != data[-20:]:
        raise ValueError(f"{index} is not a sound pack index")
    count = int.from_bytes(data[8 + 255 * 4 : 8 + 256 * 4], "big")
    oids = 8 + 256 * 4
    crcs = oids + 20 * count
    offsets = crcs + 4 * count
    large = offsets + 4 * count
    starts: Sequence[int] = struct.unpack_from(f">{count}I", data, offsets)
    if large < len(data) - 40:
        starts = [
            start if start < LARGE_OFFSET else int.from_bytes(data[large + 8 * (start - LARGE_OFFSET) :][:8], "big")
            for start in starts
        ]
    ids = [data[at : at + 20] for at in range(oids, crcs, 20)]
    return ids, struct.unpack_from(f">{count}I", data, crcs), starts, data[-40:-20]
