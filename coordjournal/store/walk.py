"""Reading a log's objects through a handle: back along its commits, forward through its files."""

from __future__ import annotations

import os
import zlib
from array import array
from typing import Final

import pygit2

from coordjournal.entry import Head
from coordjournal.errors import Corrupt
from coordjournal.store import message, pack, tree

_PIECE_BYTES: Final = 1 << 20


class Trail:
    """The commits of a stretch of the log, newest first, in 32 bytes each.

    `start` is the commit before them, `start_seq` its last seq; `seq` is the last one's, `tree` its root.
    """

    def __init__(self, seq: int) -> None:
        self.seq = seq
        self.tree = b""
        self.commits = bytearray()
        self.firsts = array("I")
        self.terms = array("Q")
        self.start = ""
        self.start_seq = 0


def walk_back(handle: pygit2.Repository, head: Head, after: int) -> Trail:
    """Return the commits from `head` back to the append that holds entry `after`; `Corrupt` with the place."""
    trail = Trail(head.seq)
    commit, seq = head.commit, head.seq
    while seq > after:
        if not commit:
            raise Corrupt(f"the log begins at entry {seq + 1}, not at 1", seq=seq)
        raw, kind = read_object(handle, commit)
        if kind != pack.COMMIT:
            raise Corrupt("an object of the log is no commit", f"object {commit}", seq=seq)
        info = message.parse(raw, commit)
        if info.seq != seq or info.first > info.seq:
            raise Corrupt(f"a commit says it ends at entry {info.seq}, not at {seq}", f"commit {commit}", seq=seq)
        if not trail.firsts:
            trail.tree = bytes.fromhex(info.tree)
        trail.commits += bytes.fromhex(commit)
        trail.firsts.append(info.first)
        trail.terms.append(info.term)
        commit, seq = info.parent, info.first - 1
    if not seq and commit:
        raise Corrupt("the commit of entry 1 has a parent", f"commit {commit}", seq=1)
    trail.start, trail.start_seq = commit, seq
    return trail


def blobs(handle: pygit2.Repository, root: bytes, first: int, count: int) -> list[tuple[int, bytes]]:
    """Return (first seq, content) of `count` files of the tree `root`, from the one of seq `first` on."""
    found: list[tuple[int, bytes]] = []
    for file_first, oid in tree.files(root, first, tree_reader(handle)):
        raw, kind = read_object(handle, oid.hex())
        if kind != pack.BLOB:
            raise Corrupt(f"the file of entry {file_first} is no blob", f"object {oid.hex()}", seq=file_first)
        found.append((file_first, raw))
        if len(found) == count:
            return found
    raise Corrupt(f"the tree has no file for what follows entry {found[-1][0] if found else first}", seq=first)


def last_blob(handle: pygit2.Repository, root: bytes) -> tuple[int, bytes]:
    """Return (first seq, content) of the last file of the tree `root`."""
    first, oid = tree.last_file(root, tree_reader(handle))
    raw, kind = read_object(handle, oid.hex())
    if kind != pack.BLOB:
        raise Corrupt(f"the file of entry {first} is no blob", f"object {oid.hex()}", seq=first)
    return first, raw


def read_object(handle: pygit2.Repository, oid: str) -> tuple[bytes, int]:
    """Return an object's raw content and kind; `KeyError` if git has none of that id."""
    if os.access(loose := f"{handle.path}objects/{oid[:2]}/{oid[2:]}", os.F_OK):
        _check_loose(loose)
    kind, raw = handle.read(oid)
    return raw, kind


def _check_loose(path: str) -> None:
    """Raise `KeyError` for a loose object that is cut off: libgit2 1.9 reads it for ever, and holds the GIL."""
    unpacked = zlib.decompressobj()
    try:
        with open(path, "rb") as file:  # noqa: PTH123  # at every loose object; a path object costs more
            while piece := file.read(_PIECE_BYTES):
                while piece:
                    unpacked.decompress(piece, _PIECE_BYTES)
                    piece = unpacked.unconsumed_tail
    except FileNotFoundError:
        return  # plain git has packed it just now
    except zlib.error:
        return  # git says so itself
    if not unpacked.eof:
        raise KeyError(f"{path} is cut off")


def tree_reader(handle: pygit2.Repository) -> tree.ReadTree:
    """Return a function that reads trees through `handle`; it raises `Corrupt` for what is no tree."""

    def read(oid: bytes) -> bytes:
        raw, kind = read_object(handle, oid.hex())
        if kind != pack.TREE:
            raise Corrupt("an object of the log is no tree", f"object {oid.hex()}")
        return raw

    return read


def target_of(handle: pygit2.Repository, space: str) -> str:
    """Return the commit that a space's branch shows, empty if there is none; `ValueError` if it is symbolic."""
    ref = handle.references.get(f"refs/heads/{space}")
    if ref is not None and not isinstance(ref.target, pygit2.Oid):
        raise ValueError(f"it is a symbolic reference to {ref.target}")
    return "" if ref is None else str(ref.target)


def about_of(handle: pygit2.Repository, root: bytes) -> bytes:
    """Return the bytes of `space.json` in the tree `root`."""
    oid = tree.child(tree_reader(handle)(root), tree.BLOB, b"space.json")
    if oid is None:
        raise Corrupt("the root tree lacks space.json", f"tree {root.hex()}")
    return read_object(handle, oid.hex())[0]
