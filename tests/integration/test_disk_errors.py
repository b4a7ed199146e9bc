"""A disk that is full, or that fails at any one call: the append is refused, nothing is published, and it goes on."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

import coordjournal as cj
from coordjournal import maintenance
from tests.integration.crashing import Steps
from tests.integration.loopdisk import Drive, loop_devices, own_mounts, tmpfs
from tests.integration.processes import Channel, quick_path, start
from tests.integration.test_compaction import all_objects, append_many
from tests.integration.workers import ACTOR, check_whole, log_of
from tests.support import alias

__all__ = ["loop_devices", "quick_path"]

AT: Final = "2026-01-31T12:00:00.000000Z"
MOST_STEPS: Final = 300


class Faults(Steps):
    """Has the n-th thing that this process does to the disk while it is armed fail, or all from there on.

    "before" a call it is not made; "after" it, it was, and says that it was not; "half" of a write is done.
    """

    def __init__(self) -> None:
        super().__init__(0)
        self.hit = ""
        self._at = 0
        self._for_ever = False
        self._armed = False

    def arm(self, at: int, *, for_ever: bool = False) -> None:
        """Begin to count anew."""
        self.names.clear()
        self.hit, self._at, self._for_ever = "", at, for_ever

    @contextmanager
    def armed(self) -> Iterator[None]:
        self._armed = True
        try:
            yield
        finally:
            self._armed = False

    def take(self, name: str) -> None:
        if not self._armed or not self._at:
            return
        with self._lock:
            self.names.append(name)
            if len(self.names) == self._at or (self._for_ever and len(self.names) > self._at):
                self.hit = self.hit or name
                raise OSError(errno.EIO, f"the disk fails {name}")


class Tracebacks(logging.Handler):
    """Collects what is logged with a traceback: errors that nobody expected."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        logging.getLogger("coordjournal").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.found.append(self.format(record))


def keys_of(repo: Path) -> list[str]:
    """Return the keys of space `s` as a process that comes anew reads them."""
    try:
        return [key for _, _, key in log_of(repo)]
    except cj.NotFound:
        return []


def try_to_append(log: cj.DecisionLog, repo: Path, key: str, event: cj.Event) -> str:
    """Append once on the failing disk; check what is there against what was told; return that."""
    before = keys_of(repo)
    try:
        log.append("s", event, key=key, at=AT, timeout=30)
        answer = "appended"
    except (cj.Unavailable, cj.Undecided) as error:
        answer = error.code
    after = keys_of(repo)
    assert after in (before, [*before, key]), "something else was appended, or lost"
    if answer == "appended":
        assert key in after, "it was acknowledged, and is not there"
    if answer == "unavailable":
        assert key not in after, "it was said to be certainly not appended"
    assert head_seq(log) == len(after)
    return answer


def head_seq(log: cj.DecisionLog) -> int:
    try:
        return log.head("s").seq
    except cj.NotFound:
        return 0


def append_again(log: cj.DecisionLog, repo: Path, key: str, event: cj.Event) -> None:
    """Append on the disk that works again."""
    known = key in keys_of(repo)
    assert log.append("s", event, key=key, at=AT, timeout=30).duplicate is known
    assert keys_of(repo).count(key) == 1


def append_with_faults(channel: Channel, home: str, for_ever: bool) -> list[tuple[str, str]]:
    """Have each call in turn fail, under one log that goes on; return each one's name and the answer."""
    faults, tracebacks = Faults(), Tracebacks()
    faults.watch()
    repo = Path(home, "wiki.git")
    answers = []
    with cj.DecisionLog.open(repo, actor=ACTOR, node="node") as log:
        log.append("s", alias(0), key="before", at=AT)
        for at in range(1, MOST_STEPS):
            faults.arm(at, for_ever=for_ever)
            with faults.armed():
                answer = try_to_append(log, repo, f"key-{at}", alias(at))
            append_again(log, repo, f"key-{at}", alias(at))
            if not faults.hit:
                break
            answers.append((faults.hit, answer))
    check_whole(repo)
    assert len(log_of(repo)) == len(answers) + 2
    assert not tracebacks.found, tracebacks.found[0]
    return answers


@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "until it is mended"])
def test_a_disk_that_fails_at_any_call_of_an_append_has_it_refused_and_goes_on(
    quick_path: Path, for_ever: bool
) -> None:
    answers = start(append_with_faults, quick_path, for_ever).result()
    told_of = {name: {answer for hit, answer in answers if hit == name} for name, _ in answers}
    assert told_of["before fsync"] == {"unavailable", "undecided"}
    assert told_of["before write"] == told_of["half write"] == told_of["before link"] == {"unavailable"}
    assert len(answers) > 40


def begin_with_faults(channel: Channel, home: str) -> list[tuple[str, str]]:
    """Have each call of a first append fail in turn, each in a place of its own."""
    faults, tracebacks = Faults(), Tracebacks()
    faults.watch()
    answers = []
    for at in range(1, MOST_STEPS):
        repo = Path(home, str(at), "wiki.git")
        with cj.DecisionLog.open(repo, actor=ACTOR, node="node") as log:
            faults.arm(at)
            with faults.armed():
                answer = try_to_append(log, repo, "key", alias(1))
            append_again(log, repo, "key", alias(1))
        check_whole(repo)
        shutil.rmtree(repo.parent)
        if not faults.hit:
            break
        answers.append((faults.hit, answer))
    assert not tracebacks.found, tracebacks.found[0]
    return answers


def test_a_disk_that_fails_at_any_call_of_the_first_append_leaves_no_repository_or_a_whole_one(
    quick_path: Path,
) -> None:
    assert len(start(begin_with_faults, quick_path).result()) > 60


def compact_with_faults(channel: Channel, home: str) -> list[tuple[str, str]]:
    faults = Faults()
    faults.watch()
    answers = []
    template = Path(home, "template")
    append_many(template, 1, 4)
    objects, entries = all_objects(template), log_of(template)
    for at in range(1, MOST_STEPS):
        repo = Path(home, "wiki.git")
        shutil.copytree(template, repo)
        faults.arm(at)
        answer = "compacted"
        with faults.armed():
            try:
                maintenance.compact(repo)
            except cj.Unavailable as error:
                answer = error.code
        assert all_objects(repo) == objects, f"a disk that fails {faults.hit} loses objects"
        assert log_of(repo) == entries
        maintenance.compact(repo)
        check_whole(repo)
        assert not list(repo.glob("coordjournal/drafts/compaction-*"))
        shutil.rmtree(repo)
        if not faults.hit:
            break
        answers.append((faults.hit, answer))
    return answers


def test_a_disk_that_fails_at_any_call_of_a_compaction_loses_nothing(quick_path: Path) -> None:
    answers = start(compact_with_faults, quick_path).result()
    assert {answer for hit, answer in answers if hit == "before fsync"} >= {"unavailable"}
    assert len(answers) > 30


# A disk that is full


def fill_up(channel: Channel, home: str, kind: str) -> dict[str, list[int]]:
    """Append with ever more blocks free; return the numbers of blocks at which each answer came."""
    own_mounts()
    if kind == "tmpfs":
        with tmpfs(Path(home, "mnt"), "size=2m") as root:
            return append_in_little_room(root)
    with Drive.make(Path(home), 8, holds_back=False).mounted() as root:
        return append_in_little_room(root)


def append_in_little_room(root: Path) -> dict[str, list[int]]:
    tracebacks = Tracebacks()
    repo, ballast = root / "wiki.git", root / "ballast"
    answers: dict[str, list[int]] = {}
    with cj.DecisionLog.open(repo, actor=ACTOR, node="node") as log:
        for number in range(3):
            log.append("s", alias(number), key=f"before-{number}", at=AT)
        fill(ballast)
        with pytest.raises(cj.Unavailable):
            maintenance.compact(repo)
        block = os.statvfs(root).f_frsize
        for number in range(24):
            fill(ballast)
            os.truncate(ballast, ballast.stat().st_size - number * block)
            event = cj.OverlaySet(page=f"page:{number}", overlay="o", media_type="text/plain", body="x" * 6000)
            answer = try_to_append(log, repo, f"key-{number}", event)
            answers.setdefault(answer, []).append(number)
            assert log.state("s").seq == log.head("s").seq, "reading takes no room"
        fill(ballast)
        event = cj.OverlaySet(page="page:last", overlay="o", media_type="text/plain", body="x" * 6000)
        assert try_to_append(log, repo, "last", event) == "unavailable"
        assert log.append("s", alias(0), key="before-0", at=AT).duplicate, "a retry takes no room"
        ballast.unlink()
        append_again(log, repo, "last", event)
    check_whole(repo)
    maintenance.compact(repo)
    check_whole(repo)
    assert not tracebacks.found, tracebacks.found[0]
    return answers


def fill(ballast: Path) -> None:
    """Leave no byte free."""
    with ballast.open("ab", buffering=0) as file:
        try:
            for size in (1 << 16, 1 << 10):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
        finally:
            os.fsync(file.fileno())


@pytest.mark.usefixtures("loop_devices")
@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
def test_a_full_disk_has_appends_refused_until_there_is_room(quick_path: Path, kind: str) -> None:
    answers = start(fill_up, quick_path, kind).result()
    assert answers["unavailable"][0] == 0, "there was no room at all"
    assert answers["appended"][-1] == 23, "there was room enough"
