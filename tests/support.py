"""What several kinds of tests share: git as a program, programs as processes, small logs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import coordjournal as cj

CHECKOUT = Path(__file__).resolve().parent.parent


def git(repo: Path, *args: str, check: bool = True, stdin: str | None = None) -> str:
    """Run plain git on a repository, without the configuration of whoever runs the tests."""
    environment = {
        **os.environ,
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "operator",
        "GIT_AUTHOR_EMAIL": "operator@example.org",
        "GIT_COMMITTER_NAME": "operator",
        "GIT_COMMITTER_EMAIL": "operator@example.org",
        "LC_ALL": "C.UTF-8",
    }
    done = subprocess.run(
        ["git", "-C", str(repo), *args], capture_output=True, text=True, env=environment, input=stdin, check=False
    )
    if check and done.returncode:
        raise AssertionError(f"git {' '.join(args)} failed with {done.returncode}: {done.stderr}")
    return done.stdout


def fsck(repo: Path) -> None:
    """Assert that git finds nothing wrong with a repository, dangling objects aside."""
    done = subprocess.run(
        ["git", "-C", str(repo), "fsck", "--strict", "--full", "--no-dangling"],
        capture_output=True,
        text=True,
        check=False,
    )
    words = [line for line in done.stderr.splitlines() if not line.startswith("notice: ")]
    assert (done.returncode, done.stdout, words) == (0, "", []), f"{done.stdout}{done.stderr}"


def python(code: str, *args: str | Path, stdin: int | None = None) -> subprocess.Popen[str]:
    """Start a Python process that runs `code`; its output is a pipe."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
    )


def alias(number: int) -> cj.AliasSet:
    """Return the decision of that number, different from all others."""
    return cj.AliasSet(alias=f"Name {number}", target=f"page:{number % 7}")
