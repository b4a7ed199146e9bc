"""`import` and `export`: out, and in again to the same state; what is refused is listed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.cli import ACTOR, Ended, Shell, append
from tests.support import CHECKOUT

DATA = CHECKOUT.parent / "shared" / "data"
FIELDS = ["space", "appended", "duplicates", "rejected", "rejects", "dry_run"]
CIRCLE = b'{"type":"alias.set","alias":"page","target":"name-1"}'


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(tmp_path, monkeypatch)


def counts(ended: Ended) -> tuple[int, int, int]:
    assert list(ended.json) == FIELDS
    return ended.json["appended"], ended.json["duplicates"], ended.json["rejected"]


def rejects(path: Path) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]


def some(shell: Shell) -> None:
    batch = (
        b'{"events":[{"type":"binding.set","a":"a","b":"b"},{"type":"fork","source":"a","fork":"c"}],"key":"batch"}\n'
    )
    shell.ok("pipe", "s", "--actor", "bob", stdin=append(1) + batch + append(2))


def test_an_export_is_read_back_to_the_same_state(shell: Shell) -> None:
    some(shell)
    exported = shell.ok("export", "s")
    assert exported.lines == shell.ok("log", "s", "-o", "jsonl").lines
    assert shell.ok("export", "s", "-o", "json").out == exported.out
    ended = shell.ok("import", "jsonl", "s", "-", "--repo", "copy.git", "-o", "json", stdin=exported.out.encode())
    assert counts(ended) == (3, 0, 0)
    assert ended.json["rejects"] is None
    copied = shell.ok("log", "s", "--repo", "copy.git", "-o", "jsonl").lines
    kept = ("seq", "key", "at", "actor", "event")
    assert [[e[k] for k in kept] for e in copied] == [[e[k] for k in kept] for e in exported.lines]
    states = [shell.ok("state", "s", "-o", "json", "--repo", repo).json for repo in (shell.repo, "copy.git")]
    for state in states:
        del state["commit"]
    assert states[0] == states[1]
    assert shell.ok("verify", "--repo", "copy.git").code == 0


def test_an_import_that_is_run_again_does_nothing_twice(shell: Shell) -> None:
    some(shell)
    (shell.directory / "s.jsonl").write_text(shell.ok("export", "s").out)
    for expected in ((3, 0, 0), (0, 3, 0)):
        ended = shell.ok("import", "jsonl", "t", "s.jsonl", "-o", "json")
        assert counts(ended) == expected
    assert not (shell.directory / "t.rejects.jsonl").exists()


def test_bare_events_and_what_is_refused(shell: Shell) -> None:
    event = b'{"type":"alias.set","alias":"name-1","target":"page"}'
    (shell.directory / "events").write_bytes(b"\n".join((event, CIRCLE, event)) + b"\n")
    dry = shell.ok("import", "jsonl", "s", "events", "--dry-run", "-o", "json")
    assert counts(dry) == (2, 0, 1)
    assert dry.json["dry_run"] is True
    assert not shell.repo.exists() or shell.ok("spaces", "-o", "json").json == []
    ended = shell.ok("import", "jsonl", "s", "events", "-o", "json")
    assert counts(ended) == (2, 0, 1)
    assert ended.json["rejects"] == "s.rejects.jsonl"
    digest = hashlib.sha256(event).hexdigest()
    entries = shell.ok("log", "s", "-o", "jsonl").lines
    assert [entry["key"] for entry in entries] == [f"import:{digest}:1", f"import:{digest}:2"]
    assert {entry["actor"] for entry in entries} == {ACTOR}
    (reject,) = rejects(shell.directory / "s.rejects.jsonl")
    assert list(reject) == ["place", "key", "code", "reason"]
    assert reject["key"] == f"import:{hashlib.sha256(CIRCLE).hexdigest()}:1"
    assert "2" in reject["place"]
    assert reject["code"] == "alias_cycle"


def test_the_rejects_file_is_of_the_last_import(shell: Shell) -> None:
    (shell.directory / "events").write_bytes(append(1)[9:-18].rstrip(b",") + b"\n")
    (shell.directory / "wrong").write_bytes(b"what?\n")
    shell.ok("import", "jsonl", "s", "wrong", "--rejects", "mine")
    assert len(rejects(shell.directory / "mine")) == 1
    shell.ok("import", "jsonl", "s", "wrong", "--rejects", "mine")
    assert len(rejects(shell.directory / "mine")) == 1
    (shell.directory / "right").write_bytes(b'{"type":"alias.set","alias":"a","target":"b"}\n')
    shell.ok("import", "jsonl", "s", "right", "--rejects", "mine")
    assert rejects(shell.directory / "mine") == []
    assert not (shell.directory / "s.rejects.jsonl").exists()


def test_the_count_is_told_in_a_table_too(shell: Shell) -> None:
    (shell.directory / "events").write_bytes(CIRCLE + b"\nwhat?\n")
    printed = shell.ok("import", "jsonl", "s", "events").out
    assert "appended" in printed
    assert "s.rejects.jsonl" in printed


def test_import_from_stdin_or_from_a_file_that_is_there(shell: Shell) -> None:
    assert shell("import", "jsonl", "s", "nowhere").code == 2
    assert shell("import", "jsonl", "Not A Space", "-", stdin=CIRCLE).code == 4
    assert counts(shell.ok("import", "jsonl", "s", "-", "-o", "json", stdin=CIRCLE)) == (1, 0, 0)


def test_export_of_nothing(shell: Shell) -> None:
    shell.ok("init")
    assert shell.ok("export", "s") == (0, "", "nothing has been decided in 's' yet\n")
    assert shell("export", "s", "--repo", "nowhere.git").code == 3


def test_import_mediawiki_wants_both_dumps(shell: Shell) -> None:
    (shell.directory / "redirect.sql").write_text("")
    assert shell("import", "mediawiki", "s", "--redirect", "redirect.sql").code == 2


@pytest.mark.skipif(not DATA.is_dir(), reason=f"Wikimedia's dumps are not in {DATA}")
def test_import_of_real_dumps(shell: Shell) -> None:
    dumps = [f"--{table}={DATA}/hzwiki-20160111-{table}.sql.gz" for table in ("redirect", "page")]
    dry = counts(shell.ok("import", "mediawiki", "hz", *dumps, "--dry-run", "-o", "json"))
    done = counts(shell.ok("import", "mediawiki", "hz", *dumps, "-o", "json"))
    assert dry == done
    assert sum(done) == 10
    assert done[1] == 0
    assert counts(shell.ok("import", "mediawiki", "hz", *dumps, "-o", "json")) == (0, done[0], done[2])
    assert all(entry["key"].startswith("import:hz:") for entry in shell.ok("log", "hz", "-o", "jsonl").lines)
    assert shell.ok("verify", "hz").code == 0
