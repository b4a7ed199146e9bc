"""The trees of a space: where the file of an append is, and how one more is added.

`events/00/00/12/34.jsonl` is the append whose first seq is 1234. Trees only ever gain entries, always
at their end, so adding one rewrites the last tree of each level and nothing else.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from coordjournal.errors import Corrupt

TREE, BLOB = b"40000", b"100644"
_ENTRY = re.compile(rb"(40000|100644) ([^\0]+)\0(.{20})", re.DOTALL)
_DIRECTORY = re.compile(rb"\d\d")
_FILE = re.compile(rb"\d\d\.jsonl")
_PIECE: Final = 2047  # from 2,048 bytes on hashlib lets other threads in, and waits for its turn again
_DEPTH: Final = 3  # directories below events/

ReadTree = Callable[[bytes], bytes]
"""Returns the raw content of the tree with this 20-byte id."""


class Item(NamedTuple):
    """One entry of a tree: mode, name, 20-byte id."""

    mode: bytes
    name: bytes
    oid: bytes


def event_path(first: int) -> str:
    """Return the path of the append whose first seq is `first`."""
    digits = f"{first:08}"
    return f"events/{digits[:2]}/{digits[2:4]}/{digits[4:6]}/{digits[6:]}.jsonl"


def object_id(kind: bytes, raw: bytes) -> bytes:
    """Return the 20-byte id of a git object."""
    data = b"%s %d\0" % (kind, len(raw)) + raw
    digest = hashlib.sha1(data[:_PIECE], usedforsecurity=False)
    for at in range(_PIECE, len(data), _PIECE if len(data) < 8 * _PIECE else len(data)):
        digest.update(data[at : at + _PIECE] if len(data) < 8 * _PIECE else data[at:])
    return digest.digest()


def parse(raw: bytes) -> list[Item]:
    """Return the entries of a raw tree; `Corrupt` if it holds anything that no journal's tree does."""
    items = [Item(*match.groups()) for match in _ENTRY.finditer(raw)]
    if sum(len(item.mode) + len(item.name) + 22 for item in items) != len(raw):
        raise Corrupt("a tree holds what no journal's tree does", f"tree {object_id(b'tree', raw).hex()}")
    return items


def child(raw: bytes, mode: bytes, name: bytes) -> bytes | None:
    """Return the id that a raw tree has under `name`, None if there is no such entry."""
    for item in parse(raw):
        if (item.mode, item.name) == (mode, name):
            return item.oid
    return None


def last_entry(raw: bytes) -> Item:
    """Return the last entry of a raw tree of the log; one with empty fields if it is not to be found."""
    for mode, name_bytes in ((TREE, 2), (BLOB, 8)):
        at = len(raw) - 21 - name_bytes - 1 - len(mode)
        if at >= 0 and raw.startswith(mode + b" ", at) and raw[-21] == 0:
            return Item(mode, raw[-21 - name_bytes : -21], raw[-20:])
    return Item(b"", b"", b"")


def last_file(root: bytes, read: ReadTree) -> tuple[int, bytes]:
    """Return (first seq, blob id) of the last append in the root tree `root`; `Corrupt` if there is none."""
    raw = read(root)
    oid, digits = raw[13:33] if raw.startswith(b"40000 events\0") else b"", b""
    for level in range(_DEPTH + 1):
        item = last_entry(read(oid)) if oid else Item(b"", b"", b"")
        mode, pattern = (TREE, _DIRECTORY) if level < _DEPTH else (BLOB, _FILE)
        if item.mode != mode or not pattern.fullmatch(item.name):
            raise Corrupt("the tree has no place for an append at its end", f"tree {root.hex()}")
        oid = item.oid
        digits += item.name[:2]
    return int(digits), oid


class Spine:
    """The last tree of each level of a space, from which the next append's trees are made."""

    def __init__(self, about: bytes) -> None:
        """Begin a space whose `space.json` is the blob `about`."""
        self._about = _item(BLOB, b"space.json", about)
        self._names: list[bytes] = [b""] * _DEPTH
        self._raws: list[bytes] = [b""] * (_DEPTH + 1)  # events/, then each level below

    @classmethod
    def load(cls, root: bytes, read: ReadTree) -> Spine:
        """Read the spine of the root tree `root`."""
        raw = read(root)
        about, events = child(raw, BLOB, b"space.json"), child(raw, TREE, b"events")
        if about is None or events is None:
            raise Corrupt("the root tree lacks space.json or events/", f"tree {root.hex()}")
        spine = cls(about)
        oid = events
        for level in range(_DEPTH + 1):
            spine._raws[level] = read(oid)
            last = parse(spine._raws[level])[-1:]
            if not last or last[0].mode != (TREE if level < _DEPTH else BLOB):
                raise Corrupt("a tree of the log is empty or ends in the wrong kind", f"tree {oid.hex()}")
            if level < _DEPTH:
                spine._names[level] = last[0].name
                oid = last[0].oid
        return spine

    def copy(self) -> Spine:
        """Return another spine that can be added to by itself."""
        spine = Spine(b"")
        spine._about, spine._names, spine._raws = self._about, list(self._names), list(self._raws)
        return spine

    def add(self, first: int, blob: bytes) -> list[tuple[bytes, bytes]]:
        """Add the file of append `first`; return (id, raw) of the trees that are new, the root last."""
        digits = b"%08d" % first
        names = [digits[at : at + 2] for at in range(0, 2 * _DEPTH, 2)]
        same = 0
        while same < _DEPTH and self._names[same] == names[same]:
            same += 1
        for level in range(same + 1, _DEPTH + 1):
            self._raws[level] = b""
        new = []
        mode, name, oid = BLOB, digits[2 * _DEPTH :] + b".jsonl", blob
        for level in range(_DEPTH, -1, -1):
            raw = self._raws[level]
            kept = raw[: -len(_item(mode, name, oid))] if level < same else raw
            self._raws[level] = raw = kept + _item(mode, name, oid)
            oid = object_id(b"tree", raw)
            new.append((oid, raw))
            mode, name = TREE, names[level - 1]
        self._names = names
        root = _item(TREE, b"events", oid) + self._about
        new.append((object_id(b"tree", root), root))
        return new


def files(root: bytes, start: int, read: ReadTree) -> Iterator[tuple[int, bytes]]:
    """Yield (first seq, blob id) of every append's file in the root tree `root` from seq `start` on."""
    events = child(read(root), TREE, b"events")
    if events is None:
        raise Corrupt("the root tree lacks events/", f"tree {root.hex()}")
    yield from _files(events, 0, 0, start, read)


def _files(oid: bytes, level: int, prefix: int, start: int, read: ReadTree) -> Iterator[tuple[int, bytes]]:
    size = 100 ** (_DEPTH - level)
    pattern, mode = (_DIRECTORY, TREE) if level < _DEPTH else (_FILE, BLOB)
    for item in parse(read(oid)):
        if item.mode != mode or not pattern.fullmatch(item.name):
            raise Corrupt(f"{item.name!r} has no place in the log", f"tree {oid.hex()}")
        first = prefix + int(item.name[:2]) * size
        if first + size <= start:
            continue
        if level == _DEPTH:
            yield first, item.oid
        else:
            yield from _files(item.oid, level + 1, first, start, read)


def _item(mode: bytes, name: bytes, oid: bytes) -> bytes:
    return b"%s %s\0%s" % (mode, name, oid)
