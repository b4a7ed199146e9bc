"""Whatever becomes of any one file of a repository, it is found and named, and never served as truth."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import pygit2
import pytest

import coordjournal as cj
from coordjournal import maintenance
from coordjournal.entry import Head
from coordjournal.store.walk import read_object
from coordjournal.verification import Verified
from tests.integration.processes import quick_path
from tests.integration.test_disk_errors import Tracebacks
from tests.integration.workers import ACTOR
from tests.support import alias

__all__ = ["quick_path"]

pytestmark = pytest.mark.damages

AT: Final = "2026-01-31T12:00:00.000000Z"


class Seen(NamedTuple):
    """What a process that comes anew reads of a space."""

    head: Head
    entries: list[cj.Entry]
    state: cj.CoordinationState


class Truth(NamedTuple):
    """A sound repository, what is in it, and what its verification says."""

    path: Path
    spaces: dict[str, Seen]
    verified: list[Verified]


@pytest.fixture
def small_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a few entries be worth every kind of file."""
    monkeypatch.setattr("coordjournal.cache.keys._RECENT", 2)
    monkeypatch.setattr("coordjournal.cache.states._MIN_ENTRIES", 2)
    monkeypatch.setattr("coordjournal.cache.entries._MIN_ENTRIES", 1)
    monkeypatch.setattr("coordjournal.cache.entries._BLOCK_ENTRIES", 2)
    monkeypatch.setattr("coordjournal.cache.entries._NEAR", 1)


@pytest.fixture
def truth(quick_path: Path, small_caches: None) -> Truth:
    """Make two spaces: a compacted pack, a fresh one, caches, everything that a repository has."""
    path = quick_path / "truth.git"
    for node in ("one", "two"):  # two makers, so that the first one's appends were published for certain
        with cj.DecisionLog.open(path, actor=ACTOR, node=node) as log:
            for space in ("s", "t"):
                for number in range(3):
                    log.append(space, alias(number), key=f"{space}-{node}-{number}", at=AT)
        if node == "one":
            maintenance.compact(path)
    maintenance.compact(path)
    with cj.DecisionLog.open(path, actor=ACTOR, node="three") as log:
        log.append("s", [alias(7), alias(8)], key="s-last", at=AT)
        for space in ("s", "t"):
            list(log.events(space))
            log.state(space)
    kinds = {path.name.split("-")[0] for path in path.glob("coordjournal/cache/*/*")}
    assert kinds == {"state", "entries", "keys"}
    assert len(list(path.glob("objects/pack/*.pack"))) == 2
    return Truth(path, {space: look(path, space) for space in ("s", "t")}, maintenance.verify(path))


def look(path: Path, space: str) -> Seen:
    with cj.DecisionLog.open(path, actor=ACTOR, node="reader") as log:
        return Seen(log.head(space), list(log.events(space)), log.state(space))


# What becomes of a file


class Damage(NamedTuple):
    """A kind of damage: its name, and what it does to a file; `other` is one of the same kind."""

    name: str
    do: Callable[[Path, Path], None]


def write(path: Path, content: bytes) -> None:
    if path.exists():
        path.chmod(0o644)
    path.write_bytes(content)


def flip(path: Path, part: float) -> None:
    content = bytearray(path.read_bytes())
    if content:
        at = min(int(len(content) * part), len(content) - 1)
        content[at] ^= 1 << (at % 7)
        write(path, bytes(content))


def swap(path: Path, other: Path) -> None:
    mine, theirs = path.read_bytes(), other.read_bytes()
    write(path, theirs)
    write(other, mine)


DAMAGES: Final = [
    Damage("truncated", lambda path, other: write(path, path.read_bytes()[: path.stat().st_size // 2])),
    Damage("without its last byte", lambda path, other: write(path, path.read_bytes()[:-1])),
    Damage("emptied", lambda path, other: write(path, b"")),
    Damage("all zeros", lambda path, other: write(path, bytes(path.stat().st_size))),
    Damage("deleted", lambda path, other: path.unlink()),
    Damage("swapped", swap),
    *(
        Damage(f"a bit flipped at {part:.0%}", lambda path, other, part=part: flip(path, part))  # type: ignore[misc]
        for part in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    ),
]


def files_of(path: Path) -> list[Path]:
    return sorted(file.relative_to(path) for file in path.rglob("*") if file.is_file())


def one_like(path: Path, file: Path) -> Path:
    """Return another file of the same kind, or the next best."""
    like = [other for other in files_of(path) if other != file and other.suffix == file.suffix]
    near = [other for other in like if other.parent == file.parent]
    return path / (near or like or [Path("description")])[0]


def damaged(
    truth: Truth, files: Sequence[Path], damages: Sequence[Damage] = DAMAGES
) -> Iterator[tuple[str, Path, Path]]:
    """Yield, for every file and every damage, what was done, to which file, and the repository that it was done to."""
    for file in files:
        for damage in damages:
            path = truth.path.with_name("damaged.git")
            shutil.copytree(truth.path, path)
            before = (path / file).read_bytes()
            damage.do(path / file, one_like(path, file))
            after = (path / file).read_bytes() if (path / file).is_file() else None
            same = before if not is_branch(file) else before.strip()  # git reads a branch without its newline, too
            if after is None or same != (after if not is_branch(file) else after.strip()):
                yield f"{file} {damage.name}", file, path
            shutil.rmtree(path)


def is_branch(file: Path) -> bool:
    return file.parts[:2] == ("refs", "heads")


def must_be_found(file: Path) -> bool:
    """Whether the log rests on a file."""
    return file.suffix in (".pack", ".idx") or file.parts[:2] == ("refs", "heads") or len(file.parent.name) == 2


def check_found(what: str, file: Path, path: Path, truth: Truth) -> None:
    """Verification names the fault, or there is none."""
    fault: cj.OperatorNeeded | None = None
    try:
        assert maintenance.verify(path) == truth.verified, what
    except cj.OperatorNeeded as error:
        fault = error
    if fault is None:
        assert not must_be_found(file), f"{what}: it is not found"
    else:
        assert fault.where, f"{what}: {fault} does not say where"
        assert fault.run, f"{what}: {fault} does not say what to do"


def check_not_served(what: str, path: Path, truth: Truth) -> None:
    """A process that comes anew reads the truth, or is told that it cannot."""
    for space, seen in truth.spaces.items():
        try:
            found = look(path, space)
        except (cj.OperatorNeeded, cj.NotFound):
            continue
        assert found == seen, f"{what}: what is read of {space} is not true"


def check_appends(what: str, path: Path, truth: Truth) -> None:
    """A process that comes anew appends on top of the truth, finds every key of it, or is told that it cannot."""
    keys = dict.fromkeys(entry.key for entry in truth.spaces["s"].entries)
    with cj.DecisionLog.open(path, actor=ACTOR, node="appender") as log:
        try:
            for key in keys:
                events = [entry.event for entry in truth.spaces["s"].entries if entry.key == key]
                assert log.append("s", events, key=key, at=AT, timeout=10).duplicate, f"{what}: {key} is appended twice"
            receipt = log.append("s", alias(50), key="new", at=AT, timeout=10)
        except (cj.OperatorNeeded, cj.Unavailable):
            return
        assert receipt.seq == truth.spaces["s"].head.seq + 1, what
        assert list(log.events("s"))[:-1] == truth.spaces["s"].entries, what


@pytest.fixture
def tracebacks() -> Iterator[Tracebacks]:
    handler = Tracebacks()
    yield handler
    logging.getLogger("coordjournal").removeHandler(handler)
    assert not handler.found, handler.found[0]


def test_damage_to_any_file_is_found_and_not_served(truth: Truth, tracebacks: Tracebacks) -> None:
    done = 0
    for what, file, path in damaged(truth, files_of(truth.path)):
        check_found(what, file, path, truth)
        check_not_served(what, path, truth)
        check_appends(what, path, truth)
        done += 1
    assert done > 200


def damaged_in_place(path: Path, files: Sequence[Path], damages: Sequence[Damage]) -> Iterator[tuple[str, Path]]:
    """Yield, for every file and every damage, what was done to which; what was done is undone afterwards."""
    derived = path.with_name("derived")
    shutil.copytree(path / "coordjournal", derived)
    for file in files:
        other = one_like(path, file)
        before, others = (path / file).read_bytes(), other.read_bytes()
        for damage in damages:
            damage.do(path / file, other)
            yield f"{file} {damage.name}", file
            write(path / file, before)
            write(other, others)
            shutil.rmtree(path / "coordjournal")
            shutil.copytree(derived, path / "coordjournal")


def test_damage_to_any_loose_object_is_found_and_not_served(truth: Truth, tracebacks: Tracebacks) -> None:
    """As plain git leaves them, where it unpacks what was fetched."""
    packs = truth.path / "objects" / "pack"
    aside = packs.rename(truth.path.with_name("packs"))
    packs.mkdir()
    for found in aside.glob("*.pack"):
        with found.open("rb") as stream:
            subprocess.run(["git", "-C", truth.path, "unpack-objects", "-q"], stdin=stream, check=True)
    loose = [file for file in files_of(truth.path) if len(file.parent.name) == 2]
    assert len(loose) > 50
    for what, file in damaged_in_place(truth.path, loose, DAMAGES):
        check_found(what, file, truth.path, truth)
        check_not_served(what, truth.path, truth)


@pytest.mark.parametrize("left", [0, 1, 2, 10, -12, -4, -1])
def test_a_loose_object_that_is_cut_off_anywhere_hangs_nobody(quick_path: Path, left: int) -> None:
    """libgit2 by itself reads such a one for ever."""
    path = quick_path / "wiki.git"
    blob = pygit2.init_repository(str(path), bare=True).create_blob(os.urandom(100)).raw.hex()
    loose = path / "objects" / blob[:2] / blob[2:]
    write(loose, loose.read_bytes()[:left])
    with pytest.raises((KeyError, OSError, pygit2.GitError)):
        read_object(pygit2.Repository(str(path)), blob)


def test_a_branch_that_is_gone_is_named_with_the_commit_to_bring_back(truth: Truth) -> None:
    (truth.path / "refs" / "heads" / "t").unlink()
    head = truth.spaces["t"].head
    with pytest.raises(cj.Corrupt, match=f"branch of space t is gone.*{head.commit}") as fault:
        maintenance.verify(truth.path)
    command = fault.value.run.split("`")[1].split()
    subprocess.run([command[0], "-C", truth.path, *command[1:]], check=True)
    assert maintenance.verify(truth.path) == truth.verified


@pytest.mark.parametrize("appends", [1, 2])
def test_a_branch_that_is_gone_is_no_empty_space(quick_path: Path, appends: int) -> None:
    """To whoever reads, appends, lists or verifies, in the process that knew it and in a new one."""
    path = quick_path / "wiki.git"
    with cj.DecisionLog.open(path, actor=ACTOR, node="one") as known:
        head = [known.append("s", alias(number), at=AT) for number in range(appends)][-1]
        gone = f"branch of space s is gone.*{head.commit}"
        (path / "refs" / "heads" / "s").unlink()
        with cj.DecisionLog.open(path, actor=ACTOR, node="two") as new:
            for log in (known, new):
                for use in (log.head, log.state, log.events, partial(log.append, events=alias(9), at=AT)):
                    with pytest.raises(cj.Corrupt, match=gone):
                        use("s")
                assert log.spaces() == ["s"]
        with pytest.raises(cj.Corrupt, match=gone):
            maintenance.verify(path)
        with pytest.raises(cj.Corrupt, match=gone) as fault:
            maintenance.verify(path, "s")
        command = fault.value.run.split("`")[1].split()
        subprocess.run([command[0], "-C", path, *command[1:]], check=True)
        assert known.append("s", alias(9), at=AT).seq == appends + 1


def test_a_branch_that_is_gone_with_all_that_it_held_comes_from_a_clone(quick_path: Path) -> None:
    path, clone = quick_path / "wiki.git", quick_path / "clone.git"
    with cj.DecisionLog.open(path, actor=ACTOR) as log:
        log.append("s", alias(0), at=AT)
    subprocess.run(["git", "clone", "-q", "--mirror", path, clone], check=True)
    (path / "refs" / "heads" / "s").unlink()
    for file in (path / "objects" / "pack").iterdir():
        file.unlink()
    with cj.DecisionLog.open(path, actor=ACTOR) as log, pytest.raises(cj.Corrupt, match="so is what it held") as fault:
        log.state("s")
    command = fault.value.run.split("`")[1].replace("CLONE", str(clone)).split()
    subprocess.run([command[0], "-C", path, *command[1:], "-q"], check=True)
    with cj.DecisionLog.open(path, actor=ACTOR) as log:
        assert log.append("s", alias(1), at=AT).seq == 2


def test_a_space_begins_anew_where_an_operator_wants_it_and_nothing_tells_of_a_branch_without_the_note(
    quick_path: Path,
) -> None:
    path = quick_path / "wiki.git"
    with cj.DecisionLog.open(path, actor=ACTOR) as log:
        log.append("s", alias(0), at=AT)
    (path / "refs" / "heads" / "s").unlink()
    with cj.DecisionLog.open(path, actor=ACTOR) as log, pytest.raises(cj.Corrupt) as fault:
        log.head("s")
    Path(fault.value.run.rpartition("delete ")[2]).unlink()
    with cj.DecisionLog.open(path, actor=ACTOR) as log:
        assert log.append("s", alias(1), at=AT).seq == 1


def test_a_first_append_that_was_never_published_is_no_branch_that_is_gone(quick_path: Path) -> None:
    path = quick_path / "wiki.git"
    with cj.DecisionLog.open(path, actor=ACTOR, node="one") as log:
        futures = [log.submit("s", alias(number), at=AT) for number in range(4)]
        assert futures[-1].result(10).seq == 4
        assert log.append("t", alias(1), at=AT).seq == 1
    (path / "refs" / "heads" / "t").unlink()
    (path / "coordjournal" / "begun" / "t").unlink()  # as if its maker had died before it moved the branch
    assert [verified.space for verified in maintenance.verify(path)] == ["s"]


def test_verification_and_compaction_leave_no_file_open(truth: Truth) -> None:
    """So that an operator's program can unmount the disk, and a long-lived one does not run out of descriptors."""
    maintenance.verify(truth.path)
    maintenance.compact(truth.path)
    opened = [os.readlink(place) for place in Path("/proc/self/fd").iterdir() if place.is_symlink()]  # noqa: PTH115
    assert not [name for name in opened if str(truth.path) in name]
