"""The files of the cache: each covers a span of one space's entries and says so in its header.

Layout: magic, length of the header, header (msgpack), BLAKE2b-128 of the header, payload. The header
has a digest of the payload, except where the payload carries its own checksums.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from pathlib import Path
from typing import Final

import msgspec

from coordjournal.entry import Head
from coordjournal.state import FOLD_VERSION

_MAGIC: Final = b"cjspan\x00\x01"
_DIGEST_BYTES: Final = 16
_NAME = re.compile(r"(?P<kind>[a-z]+)-(?P<first>\d{8})-(?P<last>\d{8})-[0-9a-f]{1,16}")


class Span(msgspec.Struct, frozen=True, array_like=True):
    """Which entries a file covers: `first` to `head.seq`, after commit `parent`, ending at `head`."""

    kind: str
    first: int
    head: Head
    parent: str
    digest: bytes = b""
    extra: bytes = b""
    version: int = FOLD_VERSION

    @property
    def name(self) -> str:
        """The file's name."""
        return f"{self.kind}-{self.first:08}-{self.head.seq:08}-{self.head.commit[:16]}"


_HEADER = msgspec.msgpack.Decoder(Span)


def digest(payload: bytes) -> bytes:
    """Return the checksum that a header bears for `payload`."""
    return hashlib.blake2b(payload, digest_size=_DIGEST_BYTES).digest()


def names(directory: Path, kind: str) -> list[tuple[int, int, str]]:
    """Return (first, last, name) of every file of `kind`, sorted."""
    try:
        found = os.listdir(directory)  # noqa: PTH208  # names are all that is wanted
    except OSError:
        return []
    matches = (match for name in found if (match := _NAME.fullmatch(name)) and match["kind"] == kind)
    return sorted((int(match["first"]), int(match["last"]), match.string) for match in matches)


def save(directory: Path, span: Span, payload: bytes) -> bool:
    """Write a file whole or not at all; False where the disk does not take it, which costs time only."""
    header = msgspec.msgpack.encode(span)
    path = directory / span.name
    draft = directory / f".{span.name}.{os.getpid()}.{os.urandom(4).hex()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            file.writelines((_MAGIC, len(header).to_bytes(4, "big"), header, digest(header), payload))
        draft.replace(path)
    except OSError:
        drop(directory, draft.name)
        return False
    return True


def load(directory: Path, name: str) -> tuple[Span, bytes] | None:
    """Return a file's span and payload; None, and the file is gone, if any of it is damaged."""
    opened = open_span(directory, name)
    if opened is None:
        return None
    span, file, start = opened
    try:
        size = os.fstat(file).st_size
        payload = os.pread(file, size - start, start)
    except OSError:
        payload = b""
    finally:
        os.close(file)
    if digest(payload) != span.digest:
        drop(directory, name)
        return None
    return span, payload


def open_span(directory: Path, name: str) -> tuple[Span, int, int] | None:
    """Return a file's checked span, an open descriptor, and where the payload starts; None as in `load`."""
    try:
        file = os.open(directory / name, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        top = len(_MAGIC) + 4
        start = os.pread(file, top, 0)
        size = int.from_bytes(start[len(_MAGIC) :], "big")
        if start[: len(_MAGIC)] == _MAGIC and size <= os.fstat(file).st_size:
            data = os.pread(file, size + _DIGEST_BYTES, top)
            if digest(data[:size]) == data[size:]:
                span = _HEADER.decode(data[:size])
                if span.version == FOLD_VERSION and span.name == name:
                    return span, file, top + size + _DIGEST_BYTES
    except (OSError, msgspec.MsgspecError):
        pass  # damaged, like everything that does not decode
    os.close(file)
    drop(directory, name)
    return None


def drop(directory: Path, name: str) -> None:
    """Delete a file; another process may have done it."""
    with contextlib.suppress(OSError):
        os.unlink(directory / name)  # noqa: PTH108  # a name, no need for a path object
