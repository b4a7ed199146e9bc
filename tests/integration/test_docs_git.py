"""docs/git.md says what plain git prints."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

import coordjournal as cj
from tests.support import CHECKOUT

PAGE = CHECKOUT / "docs" / "git.md"
BLOCK = re.compile(r"```sh\n(?P<commands>.*?)```\n\n```text\n(?P<printed>.*?)```", re.DOTALL)
EXAMPLES = [(match["commands"], match["printed"]) for match in BLOCK.finditer(PAGE.read_text(encoding="utf-8"))]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("docs")
    with cj.DecisionLog.open(directory / "wiki.git") as log:
        decisions: list[tuple[str, list[cj.Event]]] = [
            ("alice", [cj.AliasSet("Home", "shard-a:Start")]),
            (
                "bob",
                [
                    cj.PagesBound("a:Setup", "b:Install"),
                    cj.OverlaySet("a:Setup", "fix-1", "text/markdown", "Use the new disk.\n"),
                ],
            ),
            ("carol", [cj.PagesMerged(("a:Setup",), "b:Install")]),
        ]
        for number, (actor, events) in enumerate(decisions):
            at = f"2026-01-31T12:{5 * number:02}:00.000000Z"
            log.append("handbook", events, actor=f"{actor}@example.org", key=f"request-{number + 1}", at=at)
    return directory


def test_the_page_has_all_its_examples() -> None:
    assert len(EXAMPLES) == PAGE.read_text(encoding="utf-8").count("```sh") == 8


@pytest.mark.parametrize(("commands", "printed"), EXAMPLES)
def test_git_prints_what_the_page_says(directory: Path, commands: str, printed: str) -> None:
    environment = {
        **os.environ,
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "reviewer",
        "GIT_AUTHOR_EMAIL": "reviewer@example.org",
        "GIT_COMMITTER_NAME": "reviewer",
        "GIT_COMMITTER_EMAIL": "reviewer@example.org",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    pattern = re.escape(printed).replace("…", ".*")
    assert re.fullmatch(pattern, done.stdout, re.DOTALL), done.stdout


def test_a_clone_of_the_page_is_read_by_coordjournal_and_not_appended_to(directory: Path) -> None:
    for name in ("backup.git", "review.git", "restored.git"):
        with cj.DecisionLog.open(directory / name) as log, cj.DecisionLog.open(directory / "wiki.git") as original:
            assert list(log.events("handbook")) == list(original.events("handbook"))
            assert log.spaces() == ["handbook"]
            with pytest.raises(cj.ForeignRepository, match="coordjournal adopt"):
                log.append("handbook", cj.AliasSet("a", "b"))
