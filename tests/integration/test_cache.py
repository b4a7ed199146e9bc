"""The cache is derived and disposable: whatever becomes of its files costs time, and nothing else.

A log is made once and copied for each test, with its cache. What must come out of it is known from
what was decided and from plain git, and is not read through the library.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import pickle
import random
import shutil
import sys
import zlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import coordjournal as cj
from coordjournal.cache import spans
from coordjournal.cache.entries import EntryCache, _chain
from coordjournal.cache.keys import KeyIndex
from coordjournal.cache.states import StateCache
from coordjournal.entry import Appended
from coordjournal.state import EMPTY
from coordjournal.store import Diverged
from coordjournal.store.git import GitStore
from tests.support import alias, git, python
from tests.unit.strategies import chain_logs, group_logs, logs
from tests.unit.test_fold_against_naive import accepted

SPACE: Final = "wiki"
AT: Final = "2026-01-31T12:00:00.000000Z"
ACTOR: Final = "alice@example.org"
KINDS: Final = ("entries", "keys", "state")
SMALL: Final = {  # so that a small log has many files of each kind, and many merges
    "coordjournal.cache.entries._BLOCK_ENTRIES": 40,
    "coordjournal.cache.entries._MIN_ENTRIES": 12,
    "coordjournal.cache.entries._NEAR": 8,
    "coordjournal.cache.keys._RECENT": 12,
    "coordjournal.cache.keys._RECORDS": 13,
    "coordjournal.cache.states._MIN_ENTRIES": 60,
    "coordjournal.cache.states._BYTES_PER_ENTRY": 1 << 20,
}

SMALL_SIZES: Final = [1] * 200 + [40, 1, 20, 1, 38]


class Batch(NamedTuple):
    """One append: what is asked for, and the receipt that its key gets ever after."""

    events: list[cj.Event]
    key: str
    actor: str
    receipt: cj.Receipt


class Truth:
    """A repository, and what its log is known to hold."""

    def __init__(self, repo: Path, batches: list[Batch]) -> None:
        self.repo = repo
        self.batches = batches
        self.entries = [
            cj.Entry(seq, batch.key, AT, batch.actor, event, batch.receipt.commit, batch.receipt.term)
            for batch in batches
            for seq, event in enumerate(batch.events, batch.receipt.first)
        ]
        self._states: dict[int, cj.CoordinationState] = {0: EMPTY}

    @property
    def keys(self) -> dict[str, str]:
        return {batch.key: batch.receipt.commit for batch in self.batches}

    @property
    def directory(self) -> Path:
        return self.repo / "coordjournal" / "cache" / SPACE

    @property
    def head(self) -> cj.Head:
        receipt = self.batches[-1].receipt if self.batches else None
        return cj.Head(receipt.seq, receipt.commit, receipt.term) if receipt else cj.Head()

    def state(self, upto: int | None = None) -> cj.CoordinationState:
        seq = len(self.entries) if upto is None else upto
        if seq not in self._states:
            base = max(known for known in self._states if known < seq)
            self._states[seq] = cj.fold(self.entries[base:seq], self._states[base])
        return self._states[seq]

    def upto(self, count: int) -> Truth:
        """Return what was known after the first `count` appends."""
        truth = Truth(self.repo, self.batches[:count])
        truth._states = {seq: state for seq, state in self._states.items() if seq <= truth.head.seq}
        return truth

    def then(self, batch: Batch) -> Truth:
        truth = Truth.__new__(Truth)
        truth.repo, truth.batches = self.repo, [*self.batches, batch]
        truth.entries = [*self.entries, *Truth(self.repo, [batch]).entries]
        truth._states = self._states
        return truth

    def __reduce__(self) -> tuple[type[Truth], tuple[Path, list[Batch]]]:
        return Truth, (self.repo, self.batches)  # what is known of states is found again

    def copy(self, to: Path) -> Truth:
        """Copy the repository; its packs are shared, since nobody changes one."""

        def link(source: str, target: str) -> None:
            (os.link if "/objects/pack/" in source else shutil.copyfile)(source, target)

        shutil.copytree(self.repo, to, copy_function=link)
        truth = Truth.__new__(Truth)
        truth.repo, truth.batches, truth.entries, truth._states = to, self.batches, self.entries, self._states
        return truth


def decisions(count: int, mark: str = "") -> list[cj.Event]:
    """Return decisions of every kind that fit each other; `mark` tells one log's from another's."""
    made: list[cj.Event] = []
    for n in range(count):
        page, hub = f"a:{n}", f"hub:{n % 29}"
        match n % 10:
            case 0:
                made.append(cj.PagesBound(page, hub))
            case 1:
                made.append(cj.OverlaySet(f"a:{n - 1}", "note", "text/plain", f"{mark}{n}"))
            case 2:
                made.append(cj.PagesMerged((page,), hub))
            case 3:
                made.append(cj.PageForked(f"a:{n - 3}", f"fork:{mark}{n}"))
            case 4 if n > 10:
                made.append(cj.AliasRemoved(f"Name {mark}{n - 5}"))
            case 5 if n % 100 == 5:
                made.append(cj.PagesUnbound(f"a:{n - 5}", f"hub:{(n - 5) % 29}"))
            case _:
                made.append(cj.AliasSet(f"Name {mark}{n}", f"page:{n % 7}"))
    return made


def make(repo: Path, sizes: Sequence[int], mark: str = "", space: str = SPACE) -> Truth:
    """Make a log of appends of `sizes`, its cache warm."""
    events = decisions(sum(sizes), mark)
    asked, at = [], 0
    for number, size in enumerate(sizes):
        asked.append((events[at : at + size], f"key-{mark}{number}"))
        at += size
    with cj.DecisionLog.open(repo, actor=ACTOR) as log:
        done = [log.submit(space, batch, key=key, at=AT) for batch, key in asked]
        assert done[-1].result(60).seq == len(events)
        log.state(space)
        assert sum(1 for _ in log.events(space)) == len(events)
    commits = git(repo, "rev-list", "--reverse", f"refs/heads/{space}").split()
    batches, first = [], 1
    for (batch, key), commit in zip(asked, commits, strict=True):
        receipt = cj.Receipt(space, first, first + len(batch) - 1, commit, 0, key)
        batches.append(Batch(batch, key, ACTOR, receipt))
        first += len(batch)
    return Truth(repo, batches)


@pytest.fixture(scope="module")
def big_made(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    """A log of some ten thousand entries, its cache as it is made in earnest."""
    return make(tmp_path_factory.mktemp("big") / "wiki.git", [1] * 8000 + [100] * 40)


@pytest.fixture(scope="module")
def small_made(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        return make(tmp_path_factory.mktemp("small") / "wiki.git", SMALL_SIZES)


@pytest.fixture(scope="module")
def other_made(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    """Another log with the same seqs, and a cache with the same spans, as the small one's."""
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        return make(tmp_path_factory.mktemp("other") / "wiki.git", SMALL_SIZES, mark="x")


def make_small(patch: pytest.MonkeyPatch) -> None:
    for name, value in SMALL.items():
        patch.setattr(name, value)


@pytest.fixture
def small(small_made: Truth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Truth:
    make_small(monkeypatch)
    return small_made.copy(tmp_path / "wiki.git")


@pytest.fixture
def big(big_made: Truth, tmp_path: Path) -> Truth:
    return big_made.copy(tmp_path / "wiki.git")


# What is asked of a log. Each is right by itself, as the first thing that a new handle does.


def all_entries(log: cj.DecisionLog, truth: Truth) -> None:
    assert list(log.events(SPACE)) == truth.entries


def some_entries(log: cj.DecisionLog, truth: Truth) -> None:
    last = len(truth.entries)
    for after, upto in ((1, None), (1, last // 3), (last // 2, None), (last // 3, last // 2), (max(0, last - 3), None)):
        assert list(log.events(SPACE, after=after, upto=upto)) == truth.entries[after:upto]


def newest_state(log: cj.DecisionLog, truth: Truth) -> None:
    assert log.state(SPACE) == truth.state()


def older_states(log: cj.DecisionLog, truth: Truth) -> None:
    last = len(truth.entries)
    for seq in (last - 1, last // 2, min(last, 7), 0):
        assert log.state(SPACE, upto=seq) == truth.state(seq)


def newest_head(log: cj.DecisionLog, truth: Truth) -> None:
    assert log.head(SPACE) == truth.head


def old_keys(log: cj.DecisionLog, truth: Truth, count: int = 12) -> None:
    asked = truth.batches[:: max(1, len(truth.batches) // count)] + truth.batches[-1:]
    done = [log.submit(SPACE, batch.events, key=batch.key, actor=batch.actor) for batch in asked]
    for batch, future in zip(asked, done, strict=True):
        assert future.result(60) == msgspec.structs.replace(batch.receipt, duplicate=True)


def all_keys(log: cj.DecisionLog, truth: Truth) -> None:
    old_keys(log, truth, len(truth.batches))


Question = Callable[[cj.DecisionLog, Truth], None]
QUESTIONS: Final[tuple[Question, ...]] = (all_entries, some_entries, newest_state, older_states, newest_head, old_keys)

READS: Final[dict[str, tuple[Question, ...]]] = {  # what reads files of that kind
    "entries": (all_entries, some_entries, newest_state, older_states, old_keys),
    "keys": (all_keys,),
    "state": (newest_state, older_states, old_keys),
}


def new_key(log: cj.DecisionLog, truth: Truth) -> Truth:
    """Append under a key that was never used; return what is known then."""
    key = f"new-{len(truth.batches)}"
    event = cj.AliasSet(f"new name of {key}", "new target")
    receipt = log.append(SPACE, event, key=key, actor="bob", at=AT)
    assert (receipt.first, receipt.seq, receipt.duplicate) == (len(truth.entries) + 1,) * 2 + (False,)
    assert receipt.commit == git(truth.repo, "rev-parse", f"refs/heads/{SPACE}").strip()
    return truth.then(Batch([event], key, "bob", receipt))


def ask(log: cj.DecisionLog, truth: Truth) -> None:
    for question in QUESTIONS:
        question(log, truth)


# What becomes of a file.


def files(directory: Path, kind: str) -> list[Path]:
    return [directory / name for _, _, name in spans.names(directory, kind)]


def spoil(path: Path, data: bytes) -> None:
    """Change a file where it is, so that who has it open sees it too."""
    with path.open("r+b") as file:
        file.write(data)
        file.truncate()


Damage = Callable[[Path, str, Truth], None]


def all_deleted(directory: Path, kind: str, _other: Truth) -> None:
    for path in files(directory, kind):
        path.unlink()


def first_deleted(directory: Path, kind: str, _other: Truth) -> None:
    files(directory, kind)[0].unlink()


def last_deleted(directory: Path, kind: str, _other: Truth) -> None:
    files(directory, kind)[-1].unlink()


def all_emptied(directory: Path, kind: str, _other: Truth) -> None:
    for path in files(directory, kind):
        spoil(path, b"")


def all_zeroed(directory: Path, kind: str, _other: Truth) -> None:
    """What a file system may leave after a power cut."""
    for path in files(directory, kind):
        spoil(path, bytes(path.stat().st_size))


def cut(at: float, *which: int) -> Damage:
    """Return the damage that files end at that part of their length."""

    def damage(directory: Path, kind: str, _other: Truth) -> None:
        found = files(directory, kind)
        for path in [found[number] for number in which] if which else found:
            data = path.read_bytes()
            spoil(path, data[: int(at) if at >= 1 else int(len(data) * at)] if at else data[:-1])

    damage.__name__ = f"{'all' if not which else which[0]} cut at {at}"
    return damage


def swapped(directory: Path, kind: str, _other: Truth) -> None:
    first, last = files(directory, kind)[0], files(directory, kind)[-1]
    one, other = first.read_bytes(), last.read_bytes()
    spoil(first, other)
    spoil(last, one)


def ends_exchanged(directory: Path, kind: str, _other: Truth) -> None:
    """The last two pages of a file in each other's place."""
    for path in files(directory, kind):
        data = path.read_bytes()
        spoil(path, data[:-8192] + data[-4096:] + data[-8192:-4096])


def another_log_under_our_names(directory: Path, kind: str, other: Truth) -> None:
    for path, foreign in zip(files(directory, kind), files(other.directory, kind), strict=False):
        spoil(path, foreign.read_bytes())


def another_log_instead(directory: Path, kind: str, other: Truth) -> None:
    all_deleted(directory, kind, other)
    another_log_as_well(directory, kind, other)


def another_log_as_well(directory: Path, kind: str, other: Truth) -> None:
    for foreign in files(other.directory, kind):
        shutil.copyfile(foreign, directory / foreign.name)


def another_log_first(directory: Path, kind: str, other: Truth) -> None:
    """The first file is of another log, and the next one would follow it by its seqs."""
    first_deleted(directory, kind, other)
    foreign = files(other.directory, kind)[0]
    shutil.copyfile(foreign, directory / foreign.name)


def another_kind(directory: Path, kind: str, _other: Truth) -> None:
    spoil(files(directory, kind)[0], files(directory, KINDS[KINDS.index(kind) - 1])[0].read_bytes())


def of_version(step: int) -> Damage:
    """Return the damage that files are whole, but of another version of the fold, and tell lies."""

    def damage(directory: Path, kind: str, _other: Truth) -> None:
        for path in files(directory, kind):
            opened = spans.open_span(directory, path.name)
            assert opened is not None
            span, file, _ = opened
            os.close(file)
            lie = b"" if kind == "keys" else b"\x90"  # no entries, no facts
            nothing = bytes(8) if kind == "keys" else b""  # no keys
            lying = msgspec.structs.replace(
                span, version=span.version + step, digest=spans.digest(lie) if lie else b"", extra=nothing
            )
            assert spans.save(directory, lying, lie)

    damage.__name__ = f"of version {step:+}"
    return damage


DAMAGES: Final[list[Damage]] = [
    *(all_deleted, first_deleted, last_deleted, all_emptied, all_zeroed, swapped, ends_exchanged, another_kind),
    *(another_log_under_our_names, another_log_instead, another_log_as_well, another_log_first),
    *(of_version(-1), of_version(+1)),
    *(cut(0), cut(0.5), cut(0.5, 0), cut(0.9, -1), cut(11), cut(30, 0)),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.replace("_", " "))
def test_damaged_files_cost_time_only(kind: str, damage: Damage, small: Truth, other_made: Truth) -> None:
    whole = small.repo.parent / "whole"
    shutil.copytree(small.directory, whole)

    def spoil_again() -> None:
        shutil.rmtree(small.directory, ignore_errors=True)
        shutil.copytree(whole, small.directory)
        damage(small.directory, kind, other_made)

    for question in READS[kind]:  # each by itself, since the first one may mend what the next one would meet
        spoil_again()
        with cj.DecisionLog.open(small.repo) as log:
            question(log, small)
    spoil_again()
    with cj.DecisionLog.open(small.repo) as log:
        ask(log, small)
        damage(small.directory, kind, other_made)
        ask(log, small)
        truth = new_key(log, small)
    with cj.DecisionLog.open(small.repo) as log:
        ask(log, truth)
        truth = new_key(log, truth)
        all_entries(log, truth)
    assert_mended(truth)


def assert_mended(truth: Truth) -> None:
    """Assert that what the cache holds is whole, of this log, and so much of it that it is worth having."""
    commits = {batch.receipt.commit for batch in truth.batches}
    for kind in ("entries", "state"):
        for path in files(truth.directory, kind):
            assert spans.load(truth.directory, path.name) is not None, path
    head, state = StateCache(truth.directory).newest(len(truth.entries))
    assert head.commit in commits
    assert len(truth.entries) - head.seq <= SMALL["coordjournal.cache.states._MIN_ENTRIES"]
    assert state == truth.state(head.seq)
    end = _chain(truth.directory)[-1][0].head
    assert end.commit in commits
    assert len(truth.entries) - end.seq <= SMALL["coordjournal.cache.entries._MIN_ENTRIES"]


def test_a_bit_that_flips_is_seen(small: Truth) -> None:
    draw = random.Random(2)
    git_store, head, wanted = store(small.repo), small.head, small.keys
    for kind in KINDS * 30:
        path = draw.choice(files(small.directory, kind))
        whole = path.read_bytes()
        at = draw.randrange(len(whole)) if draw.random() < 0.6 else draw.randrange(min(len(whole), 250))
        spoil(path, flipped(whole, at, draw.randrange(8)))
        if kind == "keys":
            index = KeyIndex(small.directory, EntryCache(small.directory))
            found = {key: index.find(git_store, SPACE, head, key) for key in wanted}
            index.close()
            assert found == wanted, f"{path.name}, byte {at}"
        else:
            choice = (all_entries, some_entries) if kind == "entries" else (newest_state, older_states)
            with cj.DecisionLog.open(small.repo) as log:
                draw.choice(choice)(log, small)
        path.write_bytes(whole)


def flipped(data: bytes, at: int, bit: int = 0) -> bytes:
    return data[:at] + bytes((data[at] ^ 1 << bit,)) + data[at + 1 :]


def store(repo: Path) -> GitStore:
    return GitStore(repo, node="here", clock=lambda: datetime.now(UTC), random=os.urandom)


def test_a_new_process_is_not_led_astray_by_damage(big: Truth) -> None:
    for kind in KINDS:
        for path in files(big.directory, kind):
            data = path.read_bytes()
            spoil(path, flipped(data, len(data) // 2))
    known = big.repo.parent / "known"
    known.write_bytes(pickle.dumps(big))
    code = """if True:
        import pickle, sys
        from pathlib import Path
        from tests.integration import test_cache
        test_cache.answer(pickle.loads(Path(sys.argv[1]).read_bytes()))
    """
    with python(code, known) as child:
        assert child.communicate(timeout=60) == ("right\n", "")
    with cj.DecisionLog.open(big.repo) as log:
        assert log.head(SPACE).seq == big.head.seq + 1
    for path in files(big.directory, "entries"):
        assert spans.load(big.directory, path.name) is not None, path


def answer(truth: Truth) -> None:
    """What the new process does."""
    with cj.DecisionLog.open(truth.repo) as log:
        some_entries(log, truth)
        ask(log, truth)
        ask(log, new_key(log, truth))
    print("right")  # noqa: T201  # its parent reads it


def test_the_directory_is_deleted_while_a_log_is_open(small: Truth) -> None:
    truth = small
    with cj.DecisionLog.open(small.repo) as log:
        for gone in (small.directory, small.directory.parent):
            ask(log, truth)
            shutil.rmtree(gone)
            ask(log, truth)
            truth = new_key(log, truth)
            shutil.rmtree(gone)
            truth = new_key(log, truth)
            ask(log, truth)
    with cj.DecisionLog.open(small.repo) as log:
        ask(log, truth)
    assert_mended(truth)


@pytest.mark.parametrize("above", [False, True])
def test_a_file_in_the_place_of_the_directory(above: bool, small: Truth) -> None:
    place = small.directory.parent if above else small.directory
    shutil.rmtree(place)
    place.write_text("not a directory")
    with cj.DecisionLog.open(small.repo) as log:
        ask(log, small)
        truth = new_key(log, small)
        ask(log, truth)
    with cj.DecisionLog.open(small.repo) as log:
        old_keys(log, truth)
    assert place.read_text() == "not a directory"


def test_a_disk_that_takes_no_run_is_not_tried_at_every_append(small: Truth, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each try sorts all keys, so one an append made opening a log without a cache quadratic."""
    shutil.rmtree(small.directory)
    small.directory.write_text("not a directory")
    tries, save = [], spans.save

    def counted(directory: Path, span: spans.Span, payload: bytes) -> bool:
        tries.append(span.kind)
        return save(directory, span, payload)

    monkeypatch.setattr(spans, "save", counted)
    with cj.DecisionLog.open(small.repo) as log:
        old_keys(log, small)
    assert 1 <= tries.count("keys") <= len(small.batches).bit_length()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_is_read_only(small: Truth) -> None:
    all_deleted(small.directory, "state", small)
    files(small.directory, "keys")[0].unlink()
    small.directory.chmod(0o500)
    try:
        with cj.DecisionLog.open(small.repo) as log:
            ask(log, small)
            truth = new_key(log, small)
            ask(log, truth)
    finally:
        small.directory.chmod(0o700)


# The branch is what counts for a new process, not what the cache remembers of it; one that has read what the
# branch lacks now refuses to go on.


def refuses(log: cj.DecisionLog) -> None:
    with pytest.raises(cj.Corrupt, match="does not hold it"):
        log.state(SPACE)
    with pytest.raises(cj.Corrupt, match="does not hold it"):
        log.append(SPACE, alias(10_000_000))


@pytest.mark.parametrize("count", [204, 203, 150, 1])
def test_a_branch_that_was_set_back_is_believed(count: int, small: Truth) -> None:
    truth = small.upto(count)
    with cj.DecisionLog.open(small.repo) as old:
        ask(old, small)
        git(small.repo, "update-ref", f"refs/heads/{SPACE}", truth.head.commit)
        refuses(old)
        with cj.DecisionLog.open(small.repo) as log:
            ask(log, truth)
            truth = new_key(log, truth)
            while len(truth.entries) < len(small.entries):  # up to where the old log ended
                truth = new_batch(log, truth, min(40, len(small.entries) - len(truth.entries)))
            ask(log, truth)
            truth = new_batch(log, truth, 90)
            ask(log, truth)
        refuses(old)
    with cj.DecisionLog.open(small.repo) as log:
        ask(log, truth)
    assert_mended(truth)


def test_a_log_that_was_set_back_is_kept_again(small: Truth) -> None:
    """What is kept of the longer log must not stand in the way of what is worth keeping of this one."""
    truth = small.upto(40)
    git(small.repo, "update-ref", f"refs/heads/{SPACE}", truth.head.commit)
    with cj.DecisionLog.open(small.repo) as log:
        for _ in range(4):
            truth = new_batch(log, truth, 30)
        ask(log, truth)
    assert_mended(truth)


def new_batch(log: cj.DecisionLog, truth: Truth, size: int) -> Truth:
    key = f"new-{len(truth.batches)}"
    events: list[cj.Event] = [cj.AliasSet(f"{key} {n}", "new target") for n in range(size)]
    receipt = log.append(SPACE, events, key=key, actor="bob", at=AT)
    assert not receipt.duplicate
    return truth.then(Batch(events, key, "bob", receipt))


QUESTION_IDS: Final = [question.__name__.replace("_", " ") for question in QUESTIONS]


@pytest.mark.parametrize("question", QUESTIONS, ids=QUESTION_IDS)
@pytest.mark.parametrize("count", [len(SMALL_SIZES), 150], ids=["with the same seqs", "that is shorter"])
def test_another_history_is_believed(count: int, question: Question, small: Truth, other_made: Truth) -> None:
    git(small.repo, "fetch", "--quiet", str(other_made.repo), f"refs/heads/{SPACE}")
    truth = Truth(small.repo, other_made.batches[:count])
    with cj.DecisionLog.open(small.repo) as old, cj.DecisionLog.open(small.repo) as new:
        ask(old, small)
        git(small.repo, "update-ref", f"refs/heads/{SPACE}", truth.head.commit)
        refuses(old)
        question(new, truth)
        ours = small.batches[5]
        receipt = new.append(SPACE, alias(1), key=ours.key, actor="bob", at=AT)
        assert (receipt.first, receipt.duplicate) == (len(truth.entries) + 1, False), "that log has no such key"
        truth = truth.then(Batch([alias(1)], ours.key, "bob", receipt))
        ask(new, truth)
    assert_mended(truth)


def test_a_branch_that_was_deleted_begins_anew_where_that_is_wanted(small: Truth) -> None:
    nothing = small.upto(0)
    with cj.DecisionLog.open(small.repo) as old, cj.DecisionLog.open(small.repo) as new:
        ask(old, small)
        git(small.repo, "update-ref", "-d", f"refs/heads/{SPACE}")
        for log in (old, new):
            with pytest.raises(cj.Corrupt, match="to begin the space anew on purpose, delete"):
                log.append(SPACE, alias(1))
        (small.repo / "coordjournal" / "begun" / SPACE).unlink()
        refuses(old)
        assert new.head(SPACE) == cj.Head()
        assert (list(new.events(SPACE)), new.state(SPACE)) == ([], EMPTY)
        ours = small.batches[5]
        receipt = new.append(SPACE, alias(1), key=ours.key, actor="bob", at=AT)
        assert (receipt.first, receipt.duplicate) == (1, False)
        truth = nothing.then(Batch([alias(1)], ours.key, "bob", receipt))
        truth = new_batch(new, truth, 200)
        ask(new, truth)
    with cj.DecisionLog.open(small.repo) as log:
        ask(log, truth)
    assert_mended(truth)


# The index of keys.


def chain(count: int, start: cj.Head | None = None) -> list[Appended]:
    """Return appends that nothing but an index of keys ever sees."""
    head, made = start or cj.Head(), []
    for seq in range(head.seq + 1, head.seq + count + 1):
        commit = hashlib.sha1(f"{seq}".encode()).hexdigest()
        entry = cj.Entry(seq, f"key-{seq}", AT, ACTOR, cj.AliasRemoved("x"), commit, 0)
        made.append(Appended(commit, head.commit, 0, (entry,)))
        head = made[-1].head
    return made


@pytest.mark.parametrize(("count", "recent", "per_block"), [(20_000, 4096, 127), (5_000, 7, 3), (600, 1, 1)])
def test_no_key_is_lost_or_invented_by_runs_and_merges(
    count: int, recent: int, per_block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordjournal.cache.keys._RECENT", recent)
    monkeypatch.setattr("coordjournal.cache.keys._RECORDS", per_block)
    nowhere = GitStore(tmp_path / "wiki.git", node="here", clock=lambda: datetime.now(UTC), random=os.urandom)
    nowhere.claim("embedded")
    directory = tmp_path / "cache"
    index, head = KeyIndex(directory, EntryCache(None)), cj.Head()
    assert index.find(nowhere, SPACE, head, "key-1") is None
    appends = chain(count)
    for appended in appends:
        index.add(appended)
        index.settle()
    head = appends[-1].head
    wanted = {appended.key: appended.commit for appended in appends}
    missing = [f"KEY-{seq}" for seq in range(count // 4)]
    assert {key: index.find(nowhere, SPACE, head, key) for key in wanted} == wanted
    assert not any(index.find(nowhere, SPACE, head, key) for key in missing)
    index.close()
    assert len(files(directory, "keys")) <= count.bit_length()
    runs = files(directory, "keys")
    last = spans.names(directory, "keys")[-1][1]
    assert count - last < recent
    again = KeyIndex(directory, EntryCache(None))
    head = appends[last - 1].head  # what no run covers would be read from the log, which is not there
    wanted = dict(list(wanted.items())[:last])
    assert {key: again.find(nowhere, SPACE, head, key) for key in wanted} == wanted
    assert not any(again.find(nowhere, SPACE, head, key) for key in missing)
    again.close()
    assert files(directory, "keys") == runs


def test_an_index_that_is_opened_holds_few_keys(big: Truth, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordjournal.cache.keys._RECENT", 256)
    git_store, wanted = store(big.repo), big.keys
    for kept in (True, False):  # with the runs that there are, and with none
        if not kept:
            all_deleted(big.directory, "keys", big)
        index = KeyIndex(big.directory, EntryCache(big.directory))
        assert {key: index.find(git_store, SPACE, big.head, key) for key in wanted} == wanted
        assert index.find(git_store, SPACE, big.head, "key-none") is None
        assert len(index._recent) <= 256
        index.close()


@pytest.mark.parametrize("commit", ["of another key", "of nothing"])
def test_a_hit_that_git_does_not_confirm_is_not_believed(commit: str, small: Truth) -> None:
    """As if two keys had the same hash, or a run outlived what it is about."""
    pretended = small.batches[3].receipt.commit if commit == "of another key" else "1" * 40
    rows = {hashed(key): bytes.fromhex(there) for key, there in small.keys.items()}
    rows[hashed("new-205")] = bytes.fromhex(pretended)
    for path in files(small.directory, "keys"):
        path.unlink()
    save_run(small.directory, small.head, rows)
    with cj.DecisionLog.open(small.repo) as log:
        truth = new_key(log, small)
        ask(log, truth)


def hashed(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=12).digest()


def save_run(directory: Path, head: cj.Head, rows: dict[bytes, bytes]) -> None:
    """Write a run as `KeyIndex` does, in blocks of 13."""
    records = sorted(key + commit for key, commit in rows.items())
    blocks = [b"".join(records[at : at + 13]) for at in range(0, len(records), 13)]
    payload = b"".join(
        (block.ljust(13 * 32, b"\0") + zlib.crc32(block, number).to_bytes(4, "big")).ljust(4096, b"\0")
        for number, block in enumerate(blocks)
    )
    extra = len(records).to_bytes(8, "big") + b"".join(block[:12] for block in blocks)
    assert spans.save(directory, spans.Span("keys", 1, head, "", b"", extra), payload)


def test_a_damaged_run_that_is_met_while_catching_up_loses_no_key(small: Truth) -> None:
    """A merge of what was just read with a run that turns out damaged begins again from the log."""
    git_store, wanted = store(small.repo), small.keys
    all_deleted(small.directory, "keys", small)
    index = KeyIndex(small.directory, EntryCache(small.directory))
    assert index.find(git_store, SPACE, small.upto(13).head, "key-none") is None
    index.close()
    (run,) = files(small.directory, "keys")
    data = run.read_bytes()
    spoil(run, flipped(data, len(data) - 4000))
    index = KeyIndex(small.directory, EntryCache(small.directory))
    assert {key: index.find(git_store, SPACE, small.head, key) for key in wanted} == wanted
    index.close()


@pytest.mark.timeout(30)
def test_a_merge_that_the_disk_does_not_take_is_left_for_later(small: Truth, monkeypatch: pytest.MonkeyPatch) -> None:
    all_deleted(small.directory, "keys", small)
    merged = small.batches[23]  # where the second run ends, and so the first merge
    stop = small.directory / f"keys-00000001-{merged.receipt.seq:08}-{merged.receipt.commit[:16]}"
    (stop / "full").mkdir(parents=True)  # a name that no file can be moved to, as on a disk that is full
    with cj.DecisionLog.open(small.repo) as log:
        ask(log, small)
        shutil.rmtree(stop)
        ask(log, new_key(log, small))


def test_spaces_that_rest_keep_no_files_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)
    with cj.DecisionLog.open(tmp_path / "wiki.git", state_bytes=5 << 20) as log:
        for turn in range(2):
            for number in range(12):
                done = [log.submit(f"space-{number}", alias(n), key=f"{turn}-{n}") for n in range(20)]
                done[-1].result(60)
        gc.collect()
        assert open_files(tmp_path, "keys-") <= 3 * 5
    assert open_files(tmp_path, "keys-") == 0


def open_files(below: Path, name: str) -> int:
    """Return how many of this process's open files are below a directory and begin with that name."""
    descriptors = Path("/proc/self/fd") if sys.platform == "linux" else None
    if descriptors is None:
        pytest.skip("there is no /proc to look at")
    links = []
    for descriptor in descriptors.iterdir():
        try:
            links.append(descriptor.readlink())
        except FileNotFoundError:
            continue
    return sum(link.is_relative_to(below) and link.name.startswith(name) for link in links)


def test_two_processes_may_write_the_same_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = tmp_path / "wiki.git"
    code = """if True:
        import json, sys
        import pytest
        import coordjournal as cj
        repo, mark, small = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
        patch = pytest.MonkeyPatch()
        for name, value in small.items():
            patch.setattr(name, value)
        receipts = []
        for turn in range(3):
            with cj.DecisionLog.open(repo, actor=mark) as log:
                for start in range(0, 140, 20):
                    keys = [f"{mark}-{turn}-{start + n}" for n in range(20)]
                    done = [log.submit("wiki", cj.AliasSet(f"{key} x", "y"), key=key) for key in keys]
                    receipts += [future.result(60) for future in done]
                    assert log.state("wiki").seq >= receipts[-1].seq
                    assert sum(1 for _ in log.events("wiki", upto=receipts[-1].seq)) == receipts[-1].seq
        print(json.dumps([[receipt.key, receipt.seq, receipt.commit] for receipt in receipts]))
    """
    children = [python(code, repo, mark, json.dumps(SMALL)) for mark in ("one", "two")]
    told: dict[int, tuple[str, str]] = {}
    for child in children:
        out, err = child.communicate(timeout=60)
        assert (child.returncode, err) == (0, "")
        told |= {seq: (key, commit) for key, seq, commit in json.loads(out)}
    make_small(monkeypatch)
    commits = git(repo, "rev-list", "--reverse", f"refs/heads/{SPACE}").split()
    assert sorted(told) == list(range(1, 841))
    assert [told[seq][1] for seq in sorted(told)] == commits
    directory = repo / "coordjournal" / "cache" / SPACE
    with cj.DecisionLog.open(repo) as log:
        assert [(entry.seq, (entry.key, entry.commit)) for entry in log.events(SPACE)] == sorted(told.items())
        assert log.state(SPACE) == cj.fold(log.events(SPACE))
    index, git_store = KeyIndex(directory, EntryCache(directory)), store(repo)
    found = {key: index.find(git_store, SPACE, log_head(git_store), key) for key, _ in told.values()}
    assert found == dict(told.values())
    index.close()
    for kind in KINDS:
        assert files(directory, kind), "what was kept is kept"


def log_head(git_store: GitStore) -> cj.Head:
    return git_store.head(SPACE)


# The blocks of entries.


def test_reading_ones_own_tail_keeps_no_block_from_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_small(monkeypatch)
    with cj.DecisionLog.open(tmp_path / "wiki.git") as log, cj.DecisionLog.open(tmp_path / "wiki.git") as other:
        for n in range(200):
            writer = log if n % 2 else other
            writer.append(SPACE, alias(n))
            assert [entry.seq for entry in log.events(SPACE, after=n)] == [n + 1]
            assert log.state(SPACE).seq == n + 1
        ends = [last for _, last, _ in spans.names(tmp_path / "wiki.git" / "coordjournal" / "cache" / SPACE, "entries")]
    assert max(ends, default=0) >= 120


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_blocks_tell_what_the_store_tells(data: st.DataObject, small: Truth) -> None:
    whole = small.repo.parent / "whole"
    if not whole.exists():
        shutil.copytree(small.directory, whole)
    shutil.rmtree(small.directory, ignore_errors=True)
    shutil.copytree(whole, small.directory)
    for path in data.draw(st.lists(st.sampled_from(files(small.directory, "entries")), unique=True, max_size=3)):
        at = data.draw(st.integers(-1, path.stat().st_size - 1))
        path.unlink() if at < 0 else spoil(path, flipped(path.read_bytes(), at))
    git_store, cache = store(small.repo), EntryCache(small.directory)
    for _ in range(2):  # and once more by the cache that wrote blocks itself
        head = data.draw(st.sampled_from([batch.receipt for batch in small.batches[-200:]]).map(head_of))
        after = data.draw(st.integers(0, head.seq))
        upto = data.draw(st.none() | st.integers(after, head.seq + 5))
        told = list(cache.read(git_store, SPACE, head, cj.Head(after), upto))
        end = head.seq if upto is None else min(upto, head.seq)
        assert told == small.entries[after:end]
        appends = git_store.read(SPACE, head, after)
        assert told == [entry for appended in appends for entry in appended.entries if after < entry.seq <= end]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_base_that_the_log_does_not_have_is_told_before_the_first_entry(data: st.DataObject, small: Truth) -> None:
    git_store, cache = store(small.repo), EntryCache(small.directory)
    heads = [head_of(batch.receipt) for batch in small.batches]
    place = data.draw(st.integers(0, len(heads) - 1))
    head = data.draw(st.sampled_from(heads[place:]))
    base = heads[place]
    assert list(cache.read(git_store, SPACE, head, base)) == small.entries[base.seq : head.seq]
    wrong = data.draw(st.sampled_from(heads)).commit
    if wrong != base.commit:
        with pytest.raises(Diverged):
            next(cache.read(git_store, SPACE, head, cj.Head(base.seq, wrong)), None)


def head_of(receipt: cj.Receipt) -> cj.Head:
    return cj.Head(receipt.seq, receipt.commit, receipt.term)


# Snapshots of the state.


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(log=logs() | group_logs() | chain_logs(), data=st.data())
def test_a_state_that_was_kept_goes_on_like_one_that_was_folded(
    log: list[cj.Event], data: st.DataObject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordjournal.cache.states._MIN_ENTRIES", 1)
    entries = [cj.Entry(seq, f"k{seq}", AT, ACTOR, event, "c" * 40, 0) for seq, event in enumerate(accepted(log), 1)]
    cut_at = data.draw(st.integers(0, len(entries)))
    folded = cj.fold(entries[:cut_at])
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    head = cj.Head(cut_at, "c" * 40) if cut_at else cj.Head()
    StateCache(tmp_path / "cache").keep(head, folded)
    opened_head, opened = StateCache(tmp_path / "cache").newest(upto=cut_at)
    assert (opened_head, opened) == (head, folded)
    for count in range(cut_at, len(entries) + 1):
        ours = cj.fold(entries[cut_at:count], opened)
        theirs = cj.fold(entries[:count])
        assert ours == theirs
        assert (ours.groups, dict(ours.aliases), dict(ours.overlays)) == (
            *(theirs.groups, dict(theirs.aliases), dict(theirs.overlays)),
        )
    assert opened == folded, "what was kept does not change under its reader"


def test_a_snapshot_that_was_opened_is_the_whole_fold(big: Truth) -> None:
    for seq in (len(big.entries), 9050, 8192, 5000, 100):
        head, state = StateCache(big.directory).newest(upto=seq)
        assert state == big.state(head.seq)
        assert 0 <= seq - head.seq <= 8192
    rest = [cj.Entry(len(big.entries) + 1, "k", AT, ACTOR, cj.PagesUnbound("a:10", "hub:10"), "c" * 40, 0)]
    head, state = StateCache(big.directory).newest(upto=len(big.entries))
    assert head.seq > 0
    assert cj.fold([*big.entries[head.seq :], *rest], state) == cj.fold(rest, big.state())
