"""What lies in git is what the design says, byte for byte, and `verify` finds what is not."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
import pytest

import coordjournal as cj
from coordjournal import maintenance
from coordjournal.cache.keys import _save as save_run
from coordjournal.cache.states import StateCache
from coordjournal.entry import MAX_APPEND_BYTES, MAX_SEQ, Append, Head, encode_entries
from coordjournal.facts import Facts, from_facts
from coordjournal.store import Ready
from coordjournal.store.git import GitStore
from tests.integration.processes import quick_path
from tests.integration.workers import ACTOR, repo
from tests.support import alias, fsck, git

__all__ = ["quick_path", "repo"]  # pytest finds the fixtures here

AT: Final = "2026-01-31T12:00:00.250000Z"
EPOCH: Final = 1769860800

WEIRD_ACTORS: Final = [
    "a",
    " ",
    "  in front and behind  ",
    'O\'Brien "the editor" \\ co',
    "trailing dot.",
    ".,:;'\"",
    "Łódź ✏️ 編集者",
    "alice@example.org",
    "@",
    "a@b c@d",
    "é" * 127,
    "x" * 254,
    "\u00a0",
    "\u2028line separator",
    "\u202eright to left",
    "-n",
    "$HOME `id` %s",
]


def branches(repo: Path) -> list[str]:
    return git(repo, "rev-list", "--reverse", "s").split()


def raw(repo: Path, what: str) -> bytes:
    """Return an object's content as git gives it, in bytes."""
    return subprocess.run(["git", "-C", str(repo), "cat-file", "-p", what], capture_output=True, check=True).stdout


def store_at(path: Path, node: str = "node") -> GitStore:
    return GitStore(path, node=node, clock=lambda: datetime.fromtimestamp(EPOCH, UTC), random=os.urandom)


def log_at(path: Path, node: str = "node") -> cj.DecisionLog:
    return cj.DecisionLog(lambda: store_at(path, node), where=str(path), actor=ACTOR)


# What lies there


def test_one_append_is_one_commit_with_one_new_file_named_by_its_first_seq(repo: Path) -> None:
    with log_at(repo) as log:
        receipts = [
            log.append("s", alias(1), key="k1", at=AT),
            log.append("s", [alias(2), cj.PagesBound("ä", "b")], key="k2", at=AT, actor="Bob"),
            log.append("s", cj.OverlaySet("p", "o", "text/plain", 'line\n"quoted" \\ é \u2028\x00'), key="k3", at=AT),
        ]
    first, second, third = branches(repo)
    assert [first, second, third] == [receipt.commit for receipt in receipts]
    listed = [
        git(repo, "diff-tree", "--root", "-r", "--no-commit-id", "--name-status", commit) for commit in branches(repo)
    ]
    assert listed == [
        "A\tevents/00/00/00/01.jsonl\nA\tspace.json\n",
        "A\tevents/00/00/00/02.jsonl\n",
        "A\tevents/00/00/00/04.jsonl\n",
    ]
    assert raw(repo, "s:events/00/00/00/02.jsonl").decode() == (
        '{"seq":2,"key":"k2","at":"2026-01-31T12:00:00.250000Z","actor":"Bob",'
        '"event":{"type":"alias.set","alias":"Name 2","target":"page:2"}}\n'
        '{"seq":3,"key":"k2","at":"2026-01-31T12:00:00.250000Z","actor":"Bob",'
        '"event":{"type":"binding.set","a":"ä","b":"b"}}\n'
    )
    body = '"body":"line\\n\\"quoted\\" \\\\ é \u2028\\u0000"}}\n'
    assert raw(repo, "s:events/00/00/00/04.jsonl").decode().endswith(body)
    modes = {line.split()[0] for line in git(repo, "ls-tree", "-r", "-t", "s").splitlines()}
    assert modes == {"040000", "100644"}
    about = json.loads(raw(repo, "s:space.json"))
    assert list(about) == ["format", "name", "id", "made"]
    assert (about["format"], about["name"], about["made"]) == (1, "s", "2026-01-31T12:00:00.000000Z")
    assert len(about["id"]) == 32
    assert raw(repo, "s:space.json").endswith(b'"}\n')
    fsck(repo)


def test_each_space_is_a_branch_with_an_id_of_its_own(repo: Path) -> None:
    with log_at(repo) as log:
        for space in ("s", "0", "a-", "x" * 63):
            log.append(space, alias(1))
        assert log.spaces() == sorted(["s", "0", "a-", "x" * 63])
    refs = git(repo, "for-each-ref", "--format=%(refname)").split()
    assert refs == sorted(f"refs/heads/{space}" for space in ("s", "0", "a-", "x" * 63))
    assert len({json.loads(raw(repo, f"{ref}:space.json"))["id"] for ref in refs}) == 4
    assert git(repo, "config", "core.bare").strip() == "true"
    assert git(repo, "config", "extensions.preciousObjects").strip() == "true"
    assert git(repo, "config", "coordjournal.authority").strip() == "embedded"
    assert not (repo / "hooks").exists()
    fsck(repo)


def test_the_commit_says_who_decided_when_and_what_and_its_trailers_are_git_trailers(repo: Path) -> None:
    with log_at(repo, "wiki-1.example.org") as log:
        log.append("s", cj.AliasSet("Home", "shard-a:Start"), key="request-1", at=AT)
        log.append("s", [alias(n) for n in range(3)], key="!~k", actor="Ada Lovelace", at=AT)
    show = "%an|%ae|%at|%cn|%ce|%ct|%s"
    assert git(repo, "log", "-1", f"--format={show}", "s~1") == (
        f"{ACTOR}|{ACTOR}|{EPOCH}|wiki-1.example.org|coordjournal@wiki-1.example.org|{EPOCH}"
        "|alias: Home → shard-a:Start\n"
    )
    assert (
        git(repo, "log", "-1", "--format=%an|%ae|%s", "s") == "Ada Lovelace||3 decisions: alias: Name 0 → page:0, …\n"
    )
    trailers = git(repo, "interpret-trailers", "--parse", stdin=git(repo, "log", "-1", "--format=%B", "s~1"))
    assert trailers == "Seq: 1\nKey: request-1\nTerm: 0\nNode: wiki-1.example.org\n"
    assert git(repo, "log", "-1", "--format=%(trailers)", "s") == (
        "Seq: 2-4\nKey: !~k\nTerm: 0\nNode: wiki-1.example.org\n\n"
    )


@pytest.mark.parametrize("count", [1, 2, 10, 11, 500])
def test_a_batch_is_listed_in_the_message_up_to_ten_decisions(repo: Path, count: int) -> None:
    with log_at(repo) as log:
        log.append("s", [alias(n) for n in range(count)])
    words = git(repo, "log", "-1", "--format=%B", "s").splitlines()
    assert words[0] == ("alias: Name 0 → page:0" if count == 1 else f"{count} decisions: alias: Name 0 → page:0, …")
    listed = [word for word in words if word.startswith("- ")]
    assert listed == ([] if count == 1 else [f"- alias: Name {n} → page:{n % 7}" for n in range(min(count, 10))]) + (
        [f"- and {count - 10} more"] if count > 10 else []
    )
    parsed = git(repo, "interpret-trailers", "--parse", stdin="\n".join(words))
    assert parsed.splitlines()[0] == ("Seq: 1" if count == 1 else f"Seq: 1-{count}")
    maintenance.verify(repo)


def test_a_name_that_looks_like_a_trailer_does_not_become_one(repo: Path) -> None:
    names = ["Seq: 7", "Term: 9\tx", "Signed-off-by: eve <eve>", "x" * 512, "---", "# comment", "é" * 256]
    with log_at(repo) as log:
        for number, name in enumerate(names):
            event = cj.AliasSet(name.replace("\t", " "), f"t{number}")
            log.append("s", event, key=f"k{number}")
            log.append("s", [cj.OverlaySet("p", event.alias, "text/plain", "x"), alias(number)], key=f"b{number}")
        assert [e.key for e in log.events("s")][::3] == [f"k{number}" for number in range(len(names))]
    for commit in branches(repo):
        assert len(git(repo, "log", "-1", "--format=%(trailers:key=Seq)%(trailers:key=Term)", commit).split()) == 4
    maintenance.verify(repo)
    fsck(repo)


@pytest.mark.parametrize("actor", WEIRD_ACTORS, ids=ascii)
def test_any_legal_actor_gives_a_sound_commit_and_comes_back_as_it_was(repo: Path, actor: str) -> None:
    with log_at(repo) as log:
        log.append("s", alias(1), actor=actor, key="k")
        assert [e.actor for e in log.events("s")] == [actor]
        assert log.append("s", alias(1), actor=actor, key="k").duplicate
    assert json.loads(raw(repo, "s:events/00/00/00/01.jsonl"))["actor"] == actor
    fsck(repo)
    maintenance.verify(repo)


@pytest.mark.parametrize(
    ("at", "decided"),
    [
        ("0001-01-01T00:00:00.000000Z", 0),
        ("1969-12-31T23:59:59.999999Z", 0),
        ("1970-01-01T00:00:01.999999Z", 1),
        ("2038-01-19T03:14:08.000000Z", 2**31),
        ("2106-02-07T06:28:16.000000Z", 2**32),
        ("9999-12-31T23:59:59.999999Z", 253402300799),
    ],
)
def test_any_time_comes_back_as_it_was_and_git_shows_it_where_it_can(repo: Path, at: str, decided: int) -> None:
    with log_at(repo) as log:
        log.append("s", alias(1), at=at)
        assert [e.at for e in log.events("s")] == [at]
    assert f" {decided} +0000\n" in git(repo, "cat-file", "commit", "s").split("committer")[0]
    fsck(repo)
    maintenance.verify(repo)


def test_the_same_decisions_give_the_same_bytes_in_memory_and_in_git(repo: Path) -> None:
    appends: list[tuple[list[cj.Event], str, str]] = [
        ([alias(1)], "k1", "Ada"),
        ([cj.PagesMerged(("b", "c"), "a"), cj.PageForked("a", "d")], "k2", "Łódź"),
        ([cj.OverlaySet("a", "o", "text/markdown", "# é\n\t\x7f\U0001f600")], "k3", " "),
        ([cj.OverlayRemoved("a", "o"), cj.AliasRemoved("Name 1")], "k4", "x"),
    ]
    with (
        log_at(repo, "one") as one,
        log_at(repo.with_name("two.git"), "two") as two,
        cj.DecisionLog.in_memory() as three,
    ):
        for log in (one, two, three):
            for events, key, actor in appends:
                log.append("s", events, key=key, actor=actor, at=AT)
        assert one.state("s") == two.state("s") == three.state("s")
        assert one.head("s").commit != two.head("s").commit, "commits differ by node"
        in_memory: dict[int, bytes] = {}
        parent = ""
        for entry in three.events("s"):
            batch = [e for e in three.events("s") if e.commit == entry.commit]
            in_memory[batch[0].seq] = encode_entries(batch)
        for data in in_memory.values():
            parent = hashlib.sha256(f"{parent} 0\n".encode() + data).hexdigest()
        assert parent == three.head("s").commit
    for first, data in in_memory.items():
        path = f"s:events/00/00/00/{first:02}.jsonl"
        assert raw(repo, path) == raw(repo.with_name("two.git"), path) == data
    assert git(repo, "rev-parse", "s:events") == git(repo.with_name("two.git"), "rev-parse", "s:events")


# Limits


def overlay_of(size: int, seq: int, key: str) -> cj.OverlaySet:
    """Return an overlay whose append under `key`, as entry `seq`, has exactly `size` bytes."""
    empty = Append((cj.OverlaySet("p", "o", "text/plain", ""),), key, ACTOR, AT)
    return cj.OverlaySet("p", "o", "text/plain", "x" * (size - len(empty.encode(seq))))


def test_an_append_of_a_mebibyte_is_taken_and_one_more_byte_is_not(repo: Path) -> None:
    with log_at(repo) as log:
        log.append("s", overlay_of(MAX_APPEND_BYTES, 1, "k"), key="k", at=AT)
        with pytest.raises(cj.TooLarge, match="1,048,577 bytes"):
            log.append("s", overlay_of(MAX_APPEND_BYTES + 1, 2, "l"), key="l", at=AT)
        assert log.head("s").seq == 1
    assert len(raw(repo, "s:events/00/00/00/01.jsonl")) == MAX_APPEND_BYTES
    fsck(repo)
    maintenance.verify(repo)


@pytest.mark.parametrize("where", ["git", "memory"])
def test_a_retry_of_the_largest_append_gets_its_receipt_when_seqs_have_more_digits(repo: Path, where: str) -> None:
    """The bytes grow with the seq they would have now; the append that is there was small enough."""
    with log_at(repo) if where == "git" else cj.DecisionLog.in_memory(actor=ACTOR) as log:
        event = overlay_of(MAX_APPEND_BYTES, 1, "k")
        first = log.append("s", event, key="k", at=AT)
        log.append("s", [alias(n) for n in range(20)])
        again = log.append("s", event, key="k", at=AT)
        assert (again.seq, again.commit, again.duplicate) == (first.seq, first.commit, True)


def begun_at(repo: Path, first: int) -> Head:
    """Make a space whose log begins at seq `first`, which no log does, and return its head."""
    store = store_at(repo)
    append = Append((alias(first),), f"key-{first}", ACTOR, AT)
    (written,) = store.write("s", Head(first - 1), [Ready(append, first, append.encode(first))], 0)
    store.advance("s", Head(), written.head)
    store.close()
    return written.head


def test_a_space_is_full_at_its_last_seq_and_an_append_fits_whole_or_not_at_all(repo: Path) -> None:
    head = begun_at(repo, MAX_SEQ - 6)
    cache = repo / "coordjournal" / "cache" / "s"
    state = from_facts(Facts(head.seq, {}, {}, {}, {}, {}, {}, 1, {}))
    StateCache(cache).keep(head, state)
    save_run(cache, Head(), head, b"")
    with cj.DecisionLog.open(repo, actor=ACTOR) as log:
        assert log.append("s", [alias(1), alias(2)]).seq == MAX_SEQ - 4
        with pytest.raises(cj.SpaceFull, match="99,999,999"):
            log.append("s", [alias(n) for n in range(10, 15)])
        assert log.append("s", [alias(n) for n in range(20, 23)]).seq == MAX_SEQ - 1
        assert log.append("s", alias(3), key="last").seq == MAX_SEQ
        with pytest.raises(cj.SpaceFull):
            log.append("s", alias(4))
        assert log.append("s", alias(3), key="last").duplicate
        assert [e.seq for e in log.events("s", after=MAX_SEQ - 6)] == list(range(MAX_SEQ - 5, MAX_SEQ + 1))
        assert log.state("s").seq == MAX_SEQ
    assert git(repo, "ls-tree", "-r", "--name-only", "s").splitlines() == [
        "events/99/99/99/93.jsonl",
        "events/99/99/99/94.jsonl",
        "events/99/99/99/96.jsonl",
        "events/99/99/99/99.jsonl",
        "space.json",
    ]
    fsck(repo)


@pytest.mark.parametrize("edge", [100, 10_000, 1_000_000, 50_000_000])
def test_where_directories_begin_the_tree_is_as_git_would_make_it(repo: Path, edge: int) -> None:
    head = begun_at(repo, edge - 2)
    store = store_at(repo)
    for first in (edge - 1, edge, edge + 1):
        append = Append((alias(first),), f"key-{first}", ACTOR, AT)
        (written,) = store.write("s", head, [Ready(append, first, append.encode(first))], 0)
        store.advance("s", head, written.head)
        head = written.head
        store = store_at(repo) if first == edge else store  # one that knows nothing, one that remembers
    digits = [f"{first:08}" for first in range(edge - 2, edge + 2)]
    paths = [f"events/{d[:2]}/{d[2:4]}/{d[4:6]}/{d[6:]}.jsonl" for d in digits]
    assert git(repo, "ls-tree", "-r", "--name-only", "s").split() == [*paths, "space.json"]
    for after in range(edge - 3, edge + 1):
        assert [a.first for a in store.read("s", head, after)] == list(range(after + 1, edge + 2))
    store.close()
    fsck(repo)


def test_batches_that_reach_over_the_edges_of_directories_are_found_by_their_first_seq(repo: Path) -> None:
    counts = (98, 1, 1, 1, 4949, 4948, 1, 1, 1, 150)
    with log_at(repo) as log:
        firsts = [log.append("s", [alias(log.head("s").seq + n) for n in range(count)]).first for count in counts]
        head = log.head("s").seq
        assert firsts == [1, 99, 100, 101, 102, 5051, 9999, 10000, 10001, 10002]
        for after in (0, 97, 98, 99, 100, 5049, 5050, 5051, 9997, 9998, 9999, 10000, 10001, 10100, head - 1):
            assert [e.seq for e in log.events("s", after=after)] == list(range(after + 1, head + 1))
    paths = git(repo, "ls-tree", "-r", "--name-only", "s").split()[:-1]
    assert [int(path[7:-6].replace("/", "")) for path in paths] == firsts
    fsck(repo)
    maintenance.verify(repo)


# What verify finds


@dataclass
class Commit:
    """One commit to be made by plain git: its header, message and the changes to the files."""

    author: str
    message: str
    files: dict[str, bytes | None]
    committer: str = f"node <coordjournal@node> {EPOCH} +0000"
    modes: dict[str, str] = field(default_factory=dict)
    parents: tuple[int, ...] | None = None  # marks; the commit before it, unless given


def path_of(seq: int) -> str:
    return f"events/00/00/00/{seq:02}.jsonl"


def line(seq: int, key: str, event: str, actor: str = ACTOR) -> bytes:
    return f'{{"seq":{seq},"key":"{key}","at":"{AT}","actor":"{actor}","event":{event}}}\n'.encode()


def setting(name: str, target: str) -> str:
    return f'{{"type":"alias.set","alias":"{name}","target":"{target}"}}'


def commit(seqs: str, key: str, data: bytes, *, term: int = 0, files: dict[str, bytes | None] | None = None) -> Commit:
    first = int(seqs.partition("-")[0])
    return Commit(
        f"{ACTOR} <{ACTOR}> {EPOCH} +0000",
        f"words\n\nSeq: {seqs}\nKey: {key}\nTerm: {term}\nNode: node\n",
        {path_of(first): data, **(files or {})},
    )


ABOUT: Final = b'{"format":1,"name":"s","id":"0123456789abcdef0123456789abcdef","made":"2026-01-31T12:00:00.000000Z"}\n'


def sound() -> list[Commit]:
    """Return the commits of a sound log of five entries, the third and the fourth one append."""
    return [
        commit("1", "k1", line(1, "k1", setting("a", "b")), files={"space.json": ABOUT}),
        commit("2", "k2", line(2, "k2", setting("c", "é"))),
        commit("3-4", "k3", line(3, "k3", setting("d", "e")) + line(4, "k3", '{"type":"binding.set","a":"x","b":"y"}')),
        commit("5", "k5", line(5, "k5", '{"type":"alias.removed","alias":"a"}')),
    ]


def make(repo: Path, commits: list[Commit]) -> list[str]:
    """Make the branch `s` of these commits by `git fast-import`; return their ids."""
    stream = b""
    for mark, made in enumerate(commits, 1):
        parents = ((mark - 1,) if mark > 1 else ()) if made.parents is None else made.parents
        message = made.message.encode()
        stream += b"reset refs/heads/made\n" if not parents else b""
        stream += f"commit refs/heads/made\nmark :{mark}\nauthor {made.author}\n".encode()
        stream += f"committer {made.committer}\ndata {len(message)}\n".encode() + message
        for number, parent in enumerate(parents):
            stream += f"{'merge' if number else 'from'} :{parent}\n".encode()
        for path, data in made.files.items():
            if data is None:
                stream += f"D {path}\n".encode()
            else:
                stream += (
                    f"M {made.modes.get(path, '100644')} inline {path}\ndata {len(data)}\n".encode() + data + b"\n"
                )
    marks = repo / "marks"
    subprocess.run(
        ["git", "-C", str(repo), "fast-import", "--quiet", "--force", f"--export-marks={marks}"],
        input=stream,
        check=True,
    )
    ids = dict(entry.split() for entry in marks.read_text().splitlines())
    git(repo, "update-ref", "refs/heads/s", ids[f":{len(commits)}"])
    git(repo, "update-ref", "-d", "refs/heads/made")
    return [ids[f":{mark}"] for mark in range(1, len(commits) + 1)]


def test_a_log_that_plain_git_made_as_it_should_be_is_sound_and_goes_on(repo: Path) -> None:
    ids = make(repo, sound())
    verified = maintenance.verify(repo, "s")
    assert [tuple(v) for v in verified] == [("s", 4, 5, 5, ids[-1])]
    with log_at(repo) as log:
        assert dict(log.state("s").aliases) == {"c": "é", "d": "e"}
        assert log.append("s", cj.AliasSet("d", "e"), key="k6").seq == 6
    maintenance.verify(repo)
    fsck(repo)


def edited(number: int, **changes: object) -> Callable[[], list[Commit]]:
    """Return the sound log with the commit of that number (from 1) changed."""

    def edit() -> list[Commit]:
        commits = sound()
        commits[number - 1] = replace(commits[number - 1], **changes)  # type: ignore[arg-type]
        return commits

    return edit


def with_file(number: int, path: str, data: bytes | None, mode: str = "100644") -> Callable[[], list[Commit]]:
    def edit() -> list[Commit]:
        commits = sound()
        commits[number - 1].files[path] = data
        commits[number - 1].modes[path] = mode
        return commits

    return edit


def with_message(number: int, old: str, new: str) -> Callable[[], list[Commit]]:
    def edit() -> list[Commit]:
        commits = sound()
        assert old in commits[number - 1].message
        commits[number - 1].message = commits[number - 1].message.replace(old, new)
        return commits

    return edit


def with_last(made: Commit) -> Callable[[], list[Commit]]:
    return lambda: [*sound(), made]


def without(number: int) -> Callable[[], list[Commit]]:
    return lambda: sound()[: number - 1] + sound()[number:]


SECOND: Final = line(2, "k2", setting("c", "é"))
THIRD, FOURTH = line(3, "k3", setting("d", "e")), line(4, "k3", '{"type":"binding.set","a":"x","b":"y"}')
REMOVAL: Final = '{"type":"alias.removed","alias":"nothing"}'

# Each with the seq that is named; 0 where only the object is.
FAULTS: Final[dict[str, tuple[Callable[[], list[Commit]], int, type[cj.OperatorNeeded]]]] = {
    "an earlier file is rewritten": (with_file(3, path_of(1), line(1, "k1", setting("a", "z"))), 3, cj.Corrupt),
    "an earlier file is removed": (with_file(4, path_of(2), None), 5, cj.Corrupt),
    "a commit is removed": (without(2), 2, cj.Corrupt),
    "the first commit is removed": (without(1), 0, cj.Corrupt),
    "a commit comes twice": (lambda: [*sound()[:2], sound()[1], *sound()[2:]], 1, cj.Corrupt),
    "a wrong seq in the commit": (with_message(2, "Seq: 2", "Seq: 7"), 2, cj.Corrupt),
    "a wrong last seq in the commit": (with_message(3, "Seq: 3-4", "Seq: 3-5"), 4, cj.Corrupt),
    "a range that runs backwards": (with_message(3, "Seq: 3-4", "Seq: 4-3"), 4, cj.Corrupt),
    "a wrong key in the commit": (with_message(2, "Key: k2", "Key: other"), 2, cj.Corrupt),
    "a term that falls": (with_message(2, "Term: 0", "Term: 5"), 3, cj.Corrupt),
    "no trailers": (with_message(2, "Seq: ", "Sequel: "), 0, cj.Corrupt),
    "text after the trailers": (with_message(2, "Node: node\n", "Node: node\n\nSigned-off-by: eve\n"), 0, cj.Corrupt),
    "a wrong author": (edited(2, author=f"eve <{ACTOR}> {EPOCH} +0000"), 2, cj.Corrupt),
    "a wrong author's address": (edited(2, author=f"{ACTOR} <eve> {EPOCH} +0000"), 2, cj.Corrupt),
    "a wrong author date": (edited(2, author=f"{ACTOR} <{ACTOR}> {EPOCH + 1} +0000"), 2, cj.Corrupt),
    "a wrong time zone": (edited(2, author=f"{ACTOR} <{ACTOR}> {EPOCH} +0100"), 2, cj.Corrupt),
    "two parents": (edited(4, parents=(3, 1)), 0, cj.Corrupt),
    "an extra file at the top": (with_file(2, "README", b"words"), 2, cj.Corrupt),
    "an extra file among the appends": (with_file(2, "events/00/00/00/words", b"x"), 2, cj.Corrupt),
    "an extra directory": (with_file(2, "events/aa/x", b"x"), 2, cj.Corrupt),
    "two files in one commit": (with_file(2, path_of(9), line(9, "k9", setting("z", "e"))), 2, cj.Corrupt),
    "a file that can be executed": (with_file(2, path_of(2), SECOND, "100755"), 2, cj.Corrupt),
    "a file that is a link": (with_file(2, path_of(2), b"01.jsonl", "120000"), 2, cj.Corrupt),
    "a file under another name": (
        lambda: [*sound()[:1], replace(sound()[1], files={path_of(3): SECOND}), *sound()[2:]],
        *(2, cj.Corrupt),
    ),
    "entries in another order": (with_file(3, path_of(3), FOURTH + THIRD), 3, cj.Corrupt),
    "an entry of another append": (with_file(3, path_of(3), THIRD + FOURTH.replace(b"k3", b"k4")), 4, cj.Corrupt),
    "an entry of another actor": (with_file(3, path_of(3), THIRD + FOURTH.replace(b"alice@", b"eve@")), 4, cj.Corrupt),
    "an entry too few": (with_file(3, path_of(3), THIRD), 3, cj.Corrupt),
    "an entry too many": (
        with_file(3, path_of(3), THIRD + FOURTH + line(5, "k3", setting("q", "r"))),
        *(3, cj.Corrupt),
    ),
    "spaces in the JSON": (with_file(2, path_of(2), SECOND.replace(b":2,", b": 2,")), 2, cj.Corrupt),
    "fields in another order": (
        with_file(2, path_of(2), SECOND.replace(b'{"seq":2,"key":"k2",', b'{"key":"k2","seq":2,')),
        *(2, cj.Corrupt),
    ),
    "an escape that is not needed": (with_file(2, path_of(2), SECOND.replace("é".encode(), b"\\u00e9")), 2, cj.Corrupt),
    "a number with a fraction": (with_file(2, path_of(2), SECOND.replace(b":2,", b":2.0,")), 2, cj.Corrupt),
    "a field that comes twice": (
        with_file(2, path_of(2), SECOND.replace(b'"seq":2', b'"seq":2,"seq":2')),
        2,
        cj.Corrupt,
    ),
    "a field too many": (with_file(2, path_of(2), SECOND.replace(b'"seq":2', b'"seq":2,"x":1')), 2, cj.Corrupt),
    "a field too few": (with_file(2, path_of(2), SECOND.replace(b'"key":"k2",', b"")), 2, cj.Corrupt),
    "no newline at the end": (with_file(2, path_of(2), SECOND[:-1]), 2, cj.Corrupt),
    "an empty line at the end": (with_file(2, path_of(2), SECOND + b"\n"), 3, cj.Corrupt),
    "lines that end as on Windows": (with_file(2, path_of(2), SECOND[:-1] + b"\r\n"), 2, cj.Corrupt),
    "an empty file": (with_file(2, path_of(2), b""), 2, cj.Corrupt),
    "no UTF-8": (with_file(2, path_of(2), SECOND.replace("é".encode(), b"\xff")), 2, cj.Corrupt),
    "a name that is not legal": (with_file(2, path_of(2), SECOND.replace("é".encode(), b" ")), 2, cj.Corrupt),
    "a wrong seq in the entry": (with_file(2, path_of(2), SECOND.replace(b":2,", b":3,")), 2, cj.Corrupt),
    "a time that is none": (with_file(2, path_of(2), SECOND.replace(b"01-31", b"02-31")), 2, cj.Corrupt),
    "a key that comes twice": (with_last(commit("6", "k1", line(6, "k1", setting("n", "o")))), 6, cj.Corrupt),
    "a removal of what is not there": (with_last(commit("6", "k6", line(6, "k6", REMOVAL))), 6, cj.Corrupt),
    "a circle": (with_last(commit("6", "k6", line(6, "k6", setting("e", "d")))), 6, cj.Corrupt),
    "a name for itself": (with_last(commit("6", "k6", line(6, "k6", setting("s", "s")))), 6, cj.Corrupt),
    "a type that is unknown": (
        with_last(commit("6", "k6", line(6, "k6", '{"type":"page.moved","page":"x"}'))),
        *(6, cj.UnknownEvent),
    ),
    "no space.json": (with_file(1, "space.json", None), 0, cj.Corrupt),
    "a space.json that changes": (with_file(3, "space.json", ABOUT.replace(b"0123", b"3210")), 3, cj.Corrupt),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_verify_names_the_fault_and_its_place(repo: Path, fault: str) -> None:
    build, seq, kind = FAULTS[fault]
    make(repo, build())
    with pytest.raises(kind) as found:
        maintenance.verify(repo, "s")
    words = str(found.value)
    assert type(found.value) is kind
    assert isinstance(found.value, (cj.Corrupt, cj.UnknownEvent))
    places = re.findall(r"[0-9a-f]{40}", words)
    assert places, f"no place is named: {words}"
    assert git(repo, "cat-file", "-t", places[-1]).strip() in ("commit", "tree")
    assert found.value.seq == seq, words
    with pytest.raises(kind):
        maintenance.verify(repo)
    with log_at(repo) as log:
        for read in (lambda: list(log.events("s")), lambda: log.state("s"), lambda: log.append("s", alias(1))):
            try:
                read()
            except cj.CoordJournalError:
                pass  # reading may trust more than verify does, but raises only what is known


SPACES: Final[dict[str, tuple[bytes, type[cj.OperatorNeeded]]]] = {
    "of another space": (ABOUT.replace(b'"s"', b'"t"'), cj.Corrupt),
    "of a newer format": (ABOUT.replace(b'"format":1', b'"format":2'), cj.UnknownFormat),
    "that is no JSON": (b"words", cj.Corrupt),
}


@pytest.mark.parametrize("kind", SPACES)
def test_a_space_json_of_another_kind_is_refused_by_every_use(repo: Path, kind: str) -> None:
    make(repo, with_file(1, "space.json", SPACES[kind][0])())
    with log_at(repo) as log:
        for use in (
            lambda: log.head("s"),
            lambda: log.events("s"),
            lambda: log.state("s"),
            lambda: log.append("s", alias(1)),
            lambda: maintenance.verify(repo, "s"),
            lambda: maintenance.verify(repo),
        ):
            with pytest.raises(SPACES[kind][1]):
                use()


@pytest.mark.parametrize("what", ["s~2", "s~2^{tree}", "s~2:events/00/00/00", f"s:{path_of(2)}", "s:space.json"])
def test_verify_names_an_object_that_is_missing_or_damaged(repo: Path, what: str) -> None:
    make(repo, sound())
    oid = git(repo, "rev-parse", what).strip()
    loose = repo / "objects" / oid[:2] / oid[2:]
    whole = loose.read_bytes()
    loose.unlink()
    with pytest.raises(cj.Corrupt, match=oid):
        maintenance.verify(repo, "s")
    loose.write_bytes(whole[:-4])
    with pytest.raises(cj.Corrupt):
        maintenance.verify(repo, "s")
    loose.write_bytes(b"")
    with pytest.raises(cj.Corrupt):
        maintenance.verify(repo, "s")
    other = git(repo, "hash-object", "-w", "--stdin", stdin="another object").strip()
    shutil.copy(repo / "objects" / other[:2] / other[2:], loose)
    with pytest.raises(cj.Corrupt):
        maintenance.verify(repo, "s")
    loose.unlink()
    loose.write_bytes(whole)
    maintenance.verify(repo, "s")


def test_verify_finds_a_bit_that_has_changed_in_a_pack(repo: Path) -> None:
    with log_at(repo) as log:
        log.append("s", [alias(n) for n in range(20)])
    (pack,) = (repo / "objects" / "pack").glob("*.pack")
    pack.chmod(0o644)
    data = bytearray(pack.read_bytes())
    data[data.index(b"Name 7")] ^= 1
    pack.write_bytes(data)
    with pytest.raises(cj.Corrupt):
        maintenance.verify(repo, "s")


def test_an_append_of_thousands_of_events_is_one_commit_and_comes_back_whole(repo: Path) -> None:
    events = [alias(n) for n in range(5000)]
    with log_at(repo) as log:
        receipt = log.append("s", events, key="many", at=AT)
        assert (receipt.first, receipt.seq) == (1, 5000)
        assert [e.event for e in log.events("s")] == events
    assert len(branches(repo)) == 1
    decoded = [msgspec.json.decode(entry) for entry in raw(repo, f"s:{path_of(1)}").splitlines()]
    assert [entry["seq"] for entry in decoded] == list(range(1, 5001))
    maintenance.verify(repo)
