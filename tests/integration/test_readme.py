"""The README's examples are run as they stand."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import coordjournal as cj
from coordjournal import __version__
from coordjournal.testing.plugin import EtcdAtHand
from tests.support import CHECKOUT

README = (CHECKOUT / "README.md").read_text(encoding="utf-8")


def test_the_librarys_example_gives_what_its_comments_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, _ = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    seen: dict[str, tuple[object, str]] = {}
    checked = 0
    for expression, expected in re.findall(r"^ *(\S.*?) +# ('.*')$", code, re.MULTILINE):
        code = code.replace(expression, f"seen['{checked}'] = ({expression}), {expected}", 1)
        checked += 1
    exec(compile(code, "README.md", "exec"), {"seen": seen})
    assert checked == 2
    for got, told in seen.values():
        assert got == told
    assert (tmp_path / "wiki.git").is_dir()


def test_the_example_with_etcd_opens_a_log() -> None:
    _, code, _ = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    seen: dict[str, object] = {"cj": cj}
    exec(compile(code, "README.md", "exec"), seen)
    assert isinstance(seen["log"], cj.DecisionLog), "it connects to nothing before it is used"


def test_the_example_of_a_test_passes(
    coordjournal_log: cj.DecisionLog, coordjournal_etcd: EtcdAtHand, coordjournal_prefix: str, tmp_path: Path
) -> None:
    _, _, code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    seen: dict[str, Any] = {"cj": cj}
    exec(compile(code, "README.md", "exec"), seen)
    seen["test_two_processes"](coordjournal_log, coordjournal_etcd, coordjournal_prefix, tmp_path)


def test_it_is_told_how_the_program_gets_onto_the_path_before_it_is_used() -> None:
    for install in ("$ pip install .", "$ . .venv/bin/activate"):
        assert README.index(install) < min(README.index("import coordjournal as cj"), README.index("$ coordjournal"))


def test_the_command_lines_examples_run(tmp_path: Path) -> None:
    blocks = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    commands = [shlex.split(line[2:]) for block in blocks for line in block.splitlines() if line.startswith("$ coord")]
    assert len(commands) >= 6
    for command in commands:
        if "--follow" in command or "mediawiki" in command:
            continue  # does not end; needs dumps. Both have tests of their own.
        done = subprocess.run(
            [sys.executable, "-m", "coordjournal", *command[1:]],
            cwd=tmp_path,
            env={"COORDJOURNAL_REPO": "wiki.git", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(CHECKOUT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (command, done.stderr)


def test_every_document_that_is_named_is_there() -> None:
    for page in [CHECKOUT / "README.md", CHECKOUT / "CHANGELOG.md", *(CHECKOUT / "docs").glob("*.md")]:
        text = page.read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (page.parent / link).exists(), f"{page.name} names {link}"
        for path in re.findall(r"`((?:docs|tests|scripts|coordjournal)/[\w./-]+\.\w+)`", text):
            assert (CHECKOUT / path).exists(), f"{page.name} names {path}"


def test_every_dependency_has_its_reason() -> None:
    project = (CHECKOUT / "pyproject.toml").read_text(encoding="utf-8")
    (listed,) = re.findall(r"^dependencies = \[\n(.*?)^\]", project, re.DOTALL | re.MULTILINE)
    for name in re.findall(r'"([\w-]+)', listed):
        assert f"| [{name}](" in README, name


def test_the_version_is_told() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "coordjournal", "--version"], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    assert __version__ in done.stdout


def test_another_platform_is_refused_by_name() -> None:
    code = "import sys; sys.platform = 'win32'; import coordjournal"
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert "coordjournal runs on Linux and macOS, not on win32" in done.stderr
