"""The commit of an append: who decided, in words, and the trailers by which the log is walked."""

from __future__ import annotations

import re
from datetime import datetime
from typing import NamedTuple

from coordjournal.entry import Append
from coordjournal.errors import Corrupt

_WORDS_LISTED = 10
_HEADER = re.compile(rb"tree ([0-9a-f]{40})\n(?:parent ([0-9a-f]{40})\n)?author ")
_TRAILERS = re.compile(
    rb"\n\nSeq: ([1-9]\d{0,7})(?:-([1-9]\d{0,7}))?\nKey: ([\x21-\x7e]{1,128})\nTerm: (\d{1,18})\nNode: ([^\n]+)\n\Z"
)
_TRAILERS_BYTES = 1024


class CommitInfo(NamedTuple):
    """What a commit says: ids as hex, `parent` empty at the first one, seqs of its append, key, term, node."""

    tree: str
    parent: str
    first: int
    seq: int
    key: str
    term: int
    node: str


def encode(info: CommitInfo, append: Append, made: datetime) -> bytes:
    """Return the raw commit of `append`, made at the holder's time `made`."""
    decided = decided_seconds(append.at)
    seqs = str(info.first) if info.first == info.seq else f"{info.first}-{info.seq}"
    return (
        f"tree {info.tree}\n"
        + (f"parent {info.parent}\n" if info.parent else "")
        + f"author {identity(append.actor).decode()} {decided} +0000\n"
        f"committer {info.node} <coordjournal@{info.node}> {int(made.timestamp())} +0000\n"
        f"\n{_words(append)}\n"
        f"\nSeq: {seqs}\nKey: {info.key}\nTerm: {info.term}\nNode: {info.node}\n"
    ).encode()


def decided_seconds(at: str) -> int:
    """Return the author date of an append decided `at`, in whole seconds; git knows no time before 1970."""
    return max(0, int(datetime.fromisoformat(at).replace(microsecond=0).timestamp()))


def identity(actor: str) -> bytes:
    """Return the git identity of an actor: the actor as name, and as address if it looks like one."""
    return f"{actor} <{actor if '@' in actor and ' ' not in actor else ''}>".encode()


def parse(raw: bytes, commit: str) -> CommitInfo:
    """Return what a raw commit says; `Corrupt` if it is not an append's."""
    header = _HEADER.match(raw)
    trailers = _TRAILERS.search(raw, max(0, len(raw) - _TRAILERS_BYTES))
    if header is None or trailers is None:
        raise Corrupt("the commit is not an append's: it lacks the trailers Seq, Key, Term, Node", f"commit {commit}")
    first, last, key, term, node = trailers.groups()
    tree, parent = header.groups()
    return CommitInfo(
        tree.decode(),
        parent.decode() if parent else "",
        int(first),
        int(last or first),
        key.decode(),
        int(term),
        node.decode("utf-8", "replace"),
    )


def tree_and_parent(raw: bytes) -> tuple[bytes, bytes] | None:
    """Return the 20-byte ids of a raw commit's tree and first parent (empty if none); None if it has no tree."""
    header = _HEADER.match(raw)
    if header is None:
        return None
    tree, parent = header.groups()
    return bytes.fromhex(tree.decode()), bytes.fromhex(parent.decode()) if parent else b""


def clean_node(node: str) -> str:
    """Return `node` fit to stand in a commit: git's identities hold no control characters, < and >."""
    return re.sub(r"[^\w.@:+-]+", "-", node, flags=re.ASCII).strip("-.")[:100] or "unknown"


def _words(append: Append) -> str:
    count = len(append.events)
    if count == 1:
        return append.events[0].words()
    listed = "\n".join(f"- {event.words()}" for event in append.events[:_WORDS_LISTED])
    more = f"\n- and {count - _WORDS_LISTED} more" if count > _WORDS_LISTED else ""
    return f"{count} decisions: {append.events[0].words()}, …\n\n{listed}{more}"
