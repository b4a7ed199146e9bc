"""`import` and `export`: out, and in again to the same state; what is refused is listed."""

from __future__ import annotations

import hashlib
import signal
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.cli import ACTOR, Ended, Shell, append
from tests.support import CHECKOUT, git

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
    assert dry.json["rejects"] is None
    assert not (shell.directory / "s.rejects.jsonl").exists(), "a dry run writes nothing that was not asked for"
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


EVENT = b'{"type":"alias.set","alias":"a","target":"b"}\n'
PRECIOUS = b"dear diary\n"


def refuses(shell: Shell, *words: str | Path, stdin: bytes = b"") -> str:
    """Run an import that is a usage error: nothing is appended, no file is made or changed."""

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in shell.directory.iterdir() if path.is_file()}

    before = files()
    ended = shell("import", *words, stdin=stdin)
    assert (ended.code, ended.out) == (2, ""), ended
    assert files() == before
    assert not shell.repo.exists()
    return ended.err


@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_the_rejects_never_take_the_place_of_the_input(shell: Shell, dry_run: list[str]) -> None:
    source = shell.directory / "events"
    source.write_bytes(EVENT + b"what?\n")
    (shell.directory / "link").symlink_to(source)
    (shell.directory / "twin").hardlink_to(source)
    for name in ("events", "link", "twin", "../" + shell.directory.name + "/events"):
        assert "take the place of events" in refuses(shell, "jsonl", "s", "events", "--rejects", name, *dry_run)
    for dump in ("redirect.sql", "page.sql"):
        (shell.directory / dump).write_bytes(b"-- a dump\n")
    for dump in ("redirect.sql", "page.sql"):
        words = ["mediawiki", "s", "--redirect", "redirect.sql", "--page", "page.sql", "--rejects", dump, *dry_run]
        assert f"take the place of {dump}" in refuses(shell, *words)


def test_the_rejects_by_default_never_take_the_place_of_the_input(shell: Shell) -> None:
    shell.ok("import", "jsonl", "t", "-", "--rejects", "s.rejects.jsonl", "--repo", "other.git", stdin=b"what?\n")
    assert "take the place of s.rejects.jsonl" in refuses(shell, "jsonl", "s", "s.rejects.jsonl")
    with (shell.directory / "s.rejects.jsonl").open("rb") as file:
        process = shell.start("import", "jsonl", "s", "-", stdin=file)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert b"take the place of what is read from stdin" in err


def test_the_rejects_never_take_the_place_of_the_output(shell: Shell) -> None:
    with (shell.directory / "out").open("wb") as file:
        process = shell.start("import", "jsonl", "s", "-", "--rejects", "out", stdout=file)
        _, err = process.communicate(EVENT, timeout=30)
    assert process.returncode == 2
    assert b"take the place of what is printed" in err
    assert not shell.repo.exists()


@pytest.mark.parametrize("there", [PRECIOUS, EVENT, b"{}\n", b"[1]", b'{"place":"line 1"}\n', b"\xff\n"])
@pytest.mark.parametrize("given", [[], ["--rejects", "mine"], ["--rejects", "mine", "--dry-run"]])
def test_a_file_that_is_no_list_of_rejects_stays_as_it_is(shell: Shell, there: bytes, given: list[str]) -> None:
    (shell.directory / ("mine" if given else "s.rejects.jsonl")).write_bytes(there)
    for stdin in (EVENT, b"what?\n"):
        assert "no list of what an import refused" in refuses(shell, "jsonl", "s", "-", *given, stdin=stdin)


def test_a_dry_run_does_not_look_at_the_file_that_it_does_not_write(shell: Shell) -> None:
    (shell.directory / "s.rejects.jsonl").write_bytes(PRECIOUS)
    ended = shell.ok("import", "jsonl", "s", "-", "--dry-run", stdin=b"what?\n")
    assert "--rejects FILE" in ended.err
    assert (shell.directory / "s.rejects.jsonl").read_bytes() == PRECIOUS
    shell.ok("import", "jsonl", "s", "-", "--dry-run", "--rejects", "mine", stdin=b"what?\n")
    assert len(rejects(shell.directory / "mine")) == 1


def test_a_place_that_cannot_be_written_is_noticed_before_the_first_append(shell: Shell) -> None:
    for place in ("nowhere/mine", "/proc/mine", "x" * 300):
        assert "cannot be listed in" in refuses(shell, "jsonl", "s", "-", "--rejects", place, stdin=EVENT)
    assert refuses(shell, "jsonl", "s", "-", "--rejects", ".", stdin=EVENT)


def test_a_list_goes_through_a_link_and_keeps_its_mode_and_to_a_device_as_it_is(shell: Shell) -> None:
    target = shell.directory / "target"
    target.touch(mode=0o640)
    target.chmod(0o640)
    (shell.directory / "mine").symlink_to(target)
    shell.ok("import", "jsonl", "s", "-", "--rejects", "mine", stdin=b"what?\n")
    assert len(rejects(target)) == 1
    assert (shell.directory / "mine").is_symlink()
    assert target.stat().st_mode & 0o777 == 0o640
    shell.ok("import", "jsonl", "s", "-", "--rejects", "/dev/null", stdin=b"what?\n")
    assert not Path("/dev/null").is_file()
    assert sorted(path.name for path in shell.directory.iterdir()) == ["mine", "target"]


def test_an_import_that_fails_keeps_what_it_listed_and_else_the_list_before(shell: Shell) -> None:
    shell.ok("init")
    shell.ok("import", "jsonl", "s", "-", stdin=b"one?\ntwo?\n")
    file = shell.directory / "s.rejects.jsonl"
    shell.ok("append", "s", "alias", "a", "b")
    git(shell.directory, "clone", "--quiet", "--mirror", str(shell.repo), "mirror.git")
    assert shell("import", "jsonl", "s", "-", "--repo", "mirror.git", stdin=EVENT).code == 6
    assert len(rejects(file)) == 2
    assert shell("import", "jsonl", "s", "-", "--repo", "mirror.git", stdin=b"what?\n" + EVENT).code == 6
    assert len(rejects(file)) == 1
    assert not list(shell.directory.glob("*.part"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_import_keeps_what_it_listed(shell: Shell, number: signal.Signals, code: int) -> None:
    shell.ok("init")
    file = shell.directory / "s.rejects.jsonl"
    with shell.start("import", "jsonl", "s", "-") as process:
        assert process.stdin is not None
        process.stdin.write(b"what?\n" * 100_000)
        process.stdin.flush()
        deadline = time.monotonic() + 30
        while not any(path.stat().st_size for path in shell.directory.glob("*.part")):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(number)
        assert process.wait(10) == code
    assert rejects(file)[0]["place"] == "line 1"
    assert not list(shell.directory.glob("*.part"))


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
