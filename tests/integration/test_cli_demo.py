"""The demonstration shows what it says it shows."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest

from tests.cli import Shell
from tests.support import fsck


def test_the_demonstration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shell = Shell(tmp_path, monkeypatch)
    began = time.monotonic()
    ended = shell.run("demo", env={"TMPDIR": str(tmp_path)})
    assert time.monotonic() - began < 30
    assert (ended.code, ended.err) == (0, "")
    assert "\x1b" not in ended.out, "plain where it is piped"
    for shown in (
        "bob is killed (SIGKILL)",
        "refused: alias 'shard-a:Start' → 'Home': 'Home' leads back to it",
        "each in the log exactly once",
        "$ coordjournal log handbook",
        "$ coordjournal state handbook",
        "Home → Main page → shard-a:Start",
        "$ git log",
        "$ git show handbook:events/00/00/00/01.jsonl",
        "$ git fsck --strict",
    ):
        assert shown in ended.out
    after_the_kill = ended.out.partition("bob is killed (")[2].splitlines()[1:5]
    assert all(re.match(r"(alice|carol) +\d+ ", line) for line in after_the_kill), after_the_kill
    (directory,) = re.findall(r"It all lies in (\S+):", ended.out)
    repo = Path(directory) / "federation.git"
    fsck(repo)
    told = sum(map(int, re.findall(r"^✓ \w+ +(\d+) acknowledged", ended.out, re.MULTILINE)))
    landed = int(re.findall(r"without an answer (\d+) are", ended.out)[0])
    state = shell.ok("state", "handbook", "--repo", repo, "-o", "json").json
    assert state["seq"] == told + landed
    assert {"Home", "Main page", "Onboarding"} <= set(state["aliases"])
    assert state["forks"] == {"shard-c:Travel abroad": "shard-a:Travel"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (0, 141)])
def test_a_demonstration_that_is_ended_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    shell = Shell(tmp_path, monkeypatch)
    with shell.start("demo", env={"TMPDIR": str(tmp_path)}) as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith((b"alice", b"bob", b"carol")):
            assert process.poll() is None
        if number:
            process.send_signal(number)
        else:
            process.stdout.close()
        assert process.wait(20) == code
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert list(tmp_path.iterdir()) == []


def test_the_demonstration_fails_where_a_receipt_does_not_hold(tmp_path: Path) -> None:
    import queue
    import threading

    from coordjournal import AliasSet, DecisionLog
    from coordjournal.cli.demo import _check
    from coordjournal.cli.options import Settings
    from coordjournal.cli.story import ACTORS, SPACE
    from coordjournal.cli.story_process import Worker

    repo = tmp_path / "wiki.git"
    with DecisionLog.open(repo) as log:
        receipt = log.append(SPACE, AliasSet("a", "b"), key="alice-1")
    workers = [Worker(actor, repo, queue.SimpleQueue(), threading.Barrier(3)) for actor in ACTORS]
    for worker in workers:
        worker.process.kill()
        worker.process.communicate()
    settings = Settings(given_repo=str(repo))
    workers[0].acknowledged["alice-1"] = {"seq": receipt.seq, "commit": receipt.commit}
    workers[0].refused["alice-2"] = "alias_cycle"
    assert _check(settings, workers) == []
    workers[0].acknowledged["alice-1"] = {"seq": 2, "commit": receipt.commit}
    workers[2].acknowledged["carol-1"] = {"seq": 3, "commit": receipt.commit}
    workers[2].refused["alice-1"] = "conflict"
    faults = _check(settings, workers)
    assert len(faults) == 4, faults
