"""What every command does, and how every kind of failure ends."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest

from coordjournal import maintenance
from coordjournal.errors import CoordJournalError
from coordjournal.store.files import locked
from tests.cli import ACTOR, Shell
from tests.support import git


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(tmp_path, monkeypatch)


@pytest.fixture
def handbook(shell: Shell) -> Shell:
    """A space with one decision of each kind, one of them retracted."""
    for words in (
        ["alias", "Home", "Start"],
        ["bind", "a:X", "b:X"],
        ["merge", "c:X", "a:X", "--into", "c:X"],
        ["fork", "a:X", "d:X"],
        ["overlay", "a:X", "fix-1", "-", "--media-type", "text/markdown"],
        ["unalias", "Home"],
    ):
        shell.ok("append", "handbook", *words, stdin=b"text\n")
    return shell


# --- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize("at", range(6))
def test_global_options_stand_anywhere(shell: Shell, at: int) -> None:
    words = ["append", "handbook", "alias", "Home", "Start"]
    assert shell.ok(*words[:at], "-o", "json", *words[at:]).json["seq"] == 1


def test_the_deeper_option_wins(shell: Shell) -> None:
    shell.ok("--repo", "outer.git", "append", "--repo", "middle.git", "s", "alias", "a", "b", "--repo", "inner.git")
    assert (shell.directory / "inner.git").is_dir()
    assert not (shell.directory / "middle.git").exists()
    assert not (shell.directory / "outer.git").exists()
    assert not shell.repo.exists(), "the environment counts least"


def test_the_repository_of_the_environment(shell: Shell) -> None:
    shell.ok("init")
    assert shell.repo.is_dir()


def test_no_repository_is_a_usage_error(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COORDJOURNAL_REPO")
    ended = shell("spaces")
    assert (ended.code, ended.out) == (2, "")
    assert "--repo" in ended.err
    assert "COORDJOURNAL_REPO" in ended.err
    assert shell("--repo", "", "spaces").code == 2


def test_who_decides(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    shell.ok("append", "s", "alias", "a", "x", "--actor", "bob")
    shell.ok("append", "s", "alias", "b", "x")
    monkeypatch.delenv("COORDJOURNAL_ACTOR")
    shell.ok("append", "s", "alias", "c", "x")
    actors = [entry["actor"] for entry in shell.ok("log", "s", "-o", "jsonl").lines]
    assert actors[:2] == ["bob", ACTOR]
    assert re.fullmatch(r"[^@]+@[^@]+", actors[2])


@pytest.mark.parametrize("words", [["--version"], ["spaces", "--version"], ["append", "s", "alias", "--version"]])
def test_version(shell: Shell, words: list[str]) -> None:
    assert re.fullmatch(r"coordjournal \d+\.\d+\.\d+\S*\n", shell.ok(*words).out)


@pytest.mark.parametrize("words", [["-h"], ["log", "--help"], ["append", "--help"], ["append", "s", "alias", "-h"]])
def test_help_is_data(shell: Shell, words: list[str]) -> None:
    ended = shell.ok(*words)
    assert ended.out.startswith("Usage: coordjournal ")
    assert "--repo" in ended.out
    assert ended.err == ""


@pytest.mark.parametrize(
    "seconds", ["0", "-1", "nan", "inf", "soon", "1_0", "٣", "1e3", " 1", ".", "1000001", "9" * 5000]
)
def test_a_timeout_is_a_number_of_seconds(shell: Shell, seconds: str) -> None:
    assert shell("spaces", "--timeout", seconds).code == 2


def test_a_timeout_may_be_a_part_of_a_second(shell: Shell) -> None:
    shell.ok("init")
    for seconds in ("1", "1.", "0.5", ".5"):
        shell.ok("spaces", "--timeout", seconds)


@pytest.mark.parametrize("seq", ["0", "-1", "x", "1_0", "٣", " 1", "+1", "9" * 5000])
def test_a_seq_is_a_whole_number(shell: Shell, seq: str) -> None:
    ended = shell("show", "s", "--", seq)
    assert ended.code == 2
    assert re.search(r"is no whole number from 1 to [0-9,]+\n", ended.err)


# --- exit codes and errors ---------------------------------------------------------------------


def test_success_is_0_and_says_nothing_on_stderr(shell: Shell) -> None:
    assert shell.ok("append", "s", "alias", "a", "b").err == ""


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["frobnicate"],
        ["log"],
        ["log", "s", "--bogus"],
        ["log", "s", "--type", "alias"],
        ["log", "s", "-n", "-1"],
        ["show", "s", "0"],
        ["show", "s", "many"],
        ["append", "s"],
        ["append", "s", "alias", "a"],
        ["append", "s", "merge", "a", "b"],
        ["append", "s", "alias", "a", "b", "--media-type", "text/plain"],
        ["append", "--media-type", "text/plain", "s", "alias", "a", "b"],
        ["append", "s", "overlay", "p", "o", "no-such-file"],
        ["append", "s", "overlay", "p", "o", "."],
        ["append", "s", "alias", "-x", "y"],
        ["spaces", "--timeout", "soon"],
        ["completion", "tcsh"],
    ],
)
def test_usage_is_2(shell: Shell, words: list[str]) -> None:
    shell.ok("init")
    ended = shell(*words)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err
    told = shell(*words, "-o", "json")
    assert told.code == 2
    assert told.err == ""
    assert list(told.json) == ["error"]
    assert list(told.json["error"]) == ["code", "message"]
    assert told.json["error"]["code"] == "usage_error"


@pytest.mark.parametrize(
    ("words", "code", "name"),
    [
        (["show", "handbook", "7"], 3, "not_found"),
        (["show", "nowhere", "1"], 3, "not_found"),
        (["state", "handbook", "--upto", "7"], 3, "not_found"),
        (["log", "handbook", "--upto", "7"], 3, "not_found"),
        (["diff", "handbook", "0", "7"], 3, "not_found"),
        (["verify", "nowhere"], 3, "not_found"),
        (["spaces", "--repo", "nowhere.git"], 3, "not_found"),
        (["append", "handbook", "alias", "a", "a"], 4, "alias_cycle"),
        (["append", "handbook", "alias", "a", "b", "--expect", "5"], 4, "conflict"),
        (["append", "handbook", "alias", "a", ""], 4, "invalid_name"),
        (["append", "Handbook", "alias", "a", "b"], 4, "invalid_name"),
        (["append", "handbook", "alias", "a", "b", "--key", "a b"], 4, "invalid_name"),
        (["append", "handbook", "alias", "a", "b", "--actor", "<a>"], 4, "invalid_name"),
        (["append", "handbook", "bind", "a", "a"], 4, "invalid_event"),
        (["append", "handbook", "unbind", "a:X", "q"], 4, "nothing_to_retract"),
        (["append", "handbook", "fork", "a:X", "d:X"], 4, "not_forkable"),
        (["append", "handbook", "overlay", "p", "o", "-", "--media-type", "text"], 4, "invalid_event"),
        (["resolve", "handbook", ""], 4, "invalid_name"),
        (["log", "handbook", "--page", "a\u0301"], 4, "invalid_name"),
    ],
)
def test_an_error_is_told_in_words_or_in_json(handbook: Shell, words: list[str], code: int, name: str) -> None:
    ended = handbook(*words)
    assert (ended.code, ended.out) == (code, "")
    assert ended.err.startswith("error: ")
    assert "Traceback" not in ended.err
    for mode in ("json", "jsonl"):
        told = handbook("-o", mode, *words)
        assert (told.code, told.err) == (code, "")
        assert told.json == {"error": {"code": name, "message": ended.err.removeprefix("error: ").rstrip("\n")}}
    assert handbook.ok("spaces", "-o", "json").json[0]["seq"] == 6, "nothing was appended"


def test_a_key_that_was_used_for_something_else_is_4(shell: Shell) -> None:
    shell.ok("append", "s", "alias", "a", "b", "--key", "k")
    assert shell("append", "s", "alias", "a", "c", "--key", "k", "-o", "json").json["error"]["code"] == "key_reused"


def test_what_takes_too_long_is_5_and_names_the_key(shell: Shell) -> None:
    shell.ok("init")
    with locked(shell.repo / "coordjournal" / "locks" / "s"):
        ended = shell("append", "s", "alias", "a", "b", "--timeout", "0.2", "-o", "json")
    assert ended.code == 5
    assert ended.json["error"]["code"] == "unavailable"
    (key,) = re.findall(r"the key is ([0-9a-f]{32})", ended.json["error"]["message"])
    assert shell.ok("append", "s", "alias", "a", "b", "--key", key, "-o", "json").json["seq"] == 1


def test_what_needs_an_operator_is_6(handbook: Shell) -> None:
    git(handbook.directory, "clone", "--quiet", "--mirror", str(handbook.repo), "clone.git")
    ended = handbook("append", "handbook", "alias", "a", "b", "--repo", "clone.git", "-o", "json")
    assert ended.code == 6
    assert ended.json["error"]["code"] == "foreign_repository"
    assert "adopt" in ended.json["error"]["message"]


def test_anything_else_is_1_without_a_traceback(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_path: object, _settings: object) -> None:
        raise ZeroDivisionError("by \x1b[31mzero")

    monkeypatch.setattr(maintenance, "init", fail)
    ended = shell("init")
    assert (ended.code, ended.out, ended.err) == (1, "", "error: ZeroDivisionError: by \\x1b[31mzero\n")
    assert shell("init", "-o", "json").json["error"]["code"] == "zero_division_error"
    told = shell("init", "-v").err
    assert re.search(r"\nraised at \S+/coordjournal/cli/operate\.py:\d+: ZeroDivisionError: by ", told)
    assert "Traceback" not in told
    assert "Traceback" in shell("init", "-vv").err


# --- append ------------------------------------------------------------------------------------


def test_a_receipt_in_json(shell: Shell) -> None:
    ended = shell.ok("append", "s", "alias", "a", "b", "--key", "k", "-o", "json")
    assert list(ended.json) == ["space", "first", "seq", "commit", "term", "key", "via", "duplicate"]
    assert ended.json["key"] == "k"
    assert not ended.json["duplicate"]
    assert shell.ok("append", "s", "alias", "a", "b", "--key", "k", "-o", "json").json == {
        **ended.json,
        "duplicate": True,
    }


def test_each_verb_appends_its_event(handbook: Shell) -> None:
    events = [entry["event"] for entry in handbook.ok("log", "handbook", "-o", "jsonl").lines]
    assert events == [
        {"type": "alias.set", "alias": "Home", "target": "Start"},
        {"type": "binding.set", "a": "a:X", "b": "b:X"},
        {"type": "merge", "sources": ["c:X", "a:X"], "into": "c:X"},
        {"type": "fork", "source": "a:X", "fork": "d:X"},
        {"type": "overlay.set", "page": "a:X", "overlay": "fix-1", "media_type": "text/markdown", "body": "text\n"},
        {"type": "alias.removed", "alias": "Home"},
    ]
    handbook.ok("append", "handbook", "unbind", "b:X", "a:X")
    handbook.ok("append", "handbook", "withdraw", "a:X", "fix-1")
    assert [entry["event"] for entry in handbook.ok("log", "handbook", "-n", "2", "-o", "jsonl").lines] == [
        {"type": "binding.removed", "a": "b:X", "b": "a:X"},
        {"type": "overlay.removed", "page": "a:X", "overlay": "fix-1"},
    ]


@pytest.mark.parametrize(
    "words",
    [
        ["append", "--key", "k", "--expect", "0", "s", "alias", "a", "b"],
        ["append", "s", "--key=k", "--expect", "0", "alias", "a", "b"],
        ["append", "s", "alias", "--key", "k", "a", "--expect=0", "b"],
        ["append", "--key", "no", "s", "--key", "never", "alias", "a", "b", "--expect", "0", "--key", "k"],
    ],
)
def test_the_options_of_append_stand_anywhere(shell: Shell, words: list[str]) -> None:
    assert shell.ok(*words, "-o", "json").json["key"] == "k"
    assert shell(*words[:-2], *words[-2:], "--key", "k2").code == 4, "--expect 0 counts"


def test_names_that_begin_with_a_dash(shell: Shell) -> None:
    shell.ok("append", "s", "alias", "--key", "k", "--", "-o", "--help")
    assert shell.ok("resolve", "s", "-o", "json", "--", "-o").json["hops"] == ["-o", "--help"]
    shell.ok("append", "s", "merge", "--into", "-into", "--", "-a", "-b")
    assert shell.ok("resolve", "s", "--", "-a").out.startswith("-a\ncanonical  -into\n")


def test_an_overlay_from_a_file_and_its_default_type(shell: Shell) -> None:
    (shell.directory / "fix").write_bytes("für\r\n".encode())
    shell.ok("append", "s", "overlay", "p", "o", "fix")
    (overlay,) = shell.ok("resolve", "s", "p", "-o", "json").json["overlays"]
    assert overlay == {"page": "p", "overlay": "o", "media_type": "text/plain", "body": "für\r\n", "seq": 1}
    shell.ok("append", "--media-type", "text/html", "s", "overlay", "p", "o", "fix")
    (overlay,) = shell.ok("resolve", "s", "p", "-o", "json").json["overlays"]
    assert overlay["media_type"] == "text/html"


def test_an_overlay_that_is_no_text_or_too_large_is_refused(shell: Shell) -> None:
    ended = shell("append", "s", "overlay", "p", "o", "-", stdin=b"ab\xffc")
    assert (ended.code, ended.err) == (4, "error: standard input is not UTF-8 text: byte 3 is 0xff\n")
    (shell.directory / "large").write_bytes(b"x" * ((1 << 20) + 1))
    assert shell("append", "s", "overlay", "p", "o", "large", "-o", "json").json["error"]["code"] == "too_large"
    assert not shell.repo.exists()


# --- reading -----------------------------------------------------------------------------------


def test_spaces(handbook: Shell) -> None:
    handbook.ok("append", "a-space", "alias", "x", "y")
    listed = handbook.ok("spaces", "-o", "json").json
    assert [(space["space"], space["seq"]) for space in listed] == [("a-space", 1), ("handbook", 6)]
    assert list(listed[0]) == ["space", "seq", "commit", "term", "at"]
    assert handbook.ok("spaces", "-o", "jsonl").lines == listed
    last = handbook.ok("log", "handbook", "-n", "1", "-o", "json").json[0]
    assert (listed[1]["commit"], listed[1]["at"]) == (last["commit"], last["at"])
    assert handbook.ok("spaces").out.splitlines()[0].split() == ["SPACE", "SEQ", "COMMIT", "AT"]


def test_nothing_decided_is_said_on_stderr(shell: Shell) -> None:
    shell.ok("init")
    assert shell.ok("spaces") == (0, "", "nothing has been decided in any space yet\n")
    said = "nothing has been decided in 'handbok' yet\n"
    assert shell.ok("log", "handbok") == (0, "", said)
    assert shell.ok("log", "handbok", "-o", "json") == (0, "[]\n", said)
    assert shell.ok("log", "handbok", "-o", "jsonl") == (0, "", said)
    assert shell.ok("state", "handbok", "-o", "json").err == said
    assert shell.ok("resolve", "handbok", "Home", "-o", "json").json["hops"] == ["Home"]


@pytest.mark.parametrize(
    ("words", "seqs"),
    [
        ([], [1, 2, 3, 4, 5, 6]),
        (["-n", "2"], [5, 6]),
        (["-n", "0"], []),
        (["--last", "99"], [1, 2, 3, 4, 5, 6]),
        (["--after", "4"], [5, 6]),
        (["--after", "99"], []),
        (["--upto", "2"], [1, 2]),
        (["--after", "1", "--upto", "4", "-n", "2"], [3, 4]),
        (["--type", "alias.set", "--type", "alias.removed"], [1, 6]),
        (["--page", "a:X"], [2, 3, 4, 5]),
        (["--page", "a:X", "-n", "1"], [5]),
        (["--page", "a:X", "--type", "fork"], [4]),
        (["--by", ACTOR, "--upto", "1"], [1]),
        (["--by", "nobody"], []),
    ],
)
def test_log_shows_what_is_asked_for(handbook: Shell, words: list[str], seqs: list[int]) -> None:
    assert [entry["seq"] for entry in handbook.ok("log", "handbook", *words, "-o", "jsonl").lines] == seqs
    assert [int(line.split()[0]) for line in handbook.ok("log", "handbook", *words).out.splitlines()[1:]] == seqs


def test_a_whole_entry_in_json(handbook: Shell) -> None:
    (entry,) = handbook.ok("log", "handbook", "-n", "1", "-o", "json").json
    assert list(entry) == ["seq", "key", "at", "actor", "event", "commit", "term"]


def test_show_tells_what_an_entry_changed(handbook: Shell) -> None:
    shown = handbook.ok("show", "handbook", "3", "-o", "json").json
    assert list(shown) == ["entry", "commit", "changed"]
    assert shown["entry"] == handbook.ok("log", "handbook", "--after", "2", "--upto", "3", "-o", "json").json[0]
    assert list(shown["commit"]) == ["id", "parent", "first", "seq", "term", "node", "file"]
    assert shown["commit"]["id"] == git(handbook.repo, "rev-parse", "handbook~3").strip()
    assert shown["commit"]["parent"] == git(handbook.repo, "rev-parse", "handbook~4").strip()
    assert git(handbook.repo, "show", f"handbook:{shown['commit']['file']}").startswith('{"seq":3,')
    assert shown["changed"] == {
        "aliases": [],
        "groups": [
            {
                "change": "joined",
                "before": [
                    {"canonical": "a:X", "members": ["a:X", "b:X"]},
                    {"canonical": "c:X", "members": ["c:X"]},
                ],
                "after": [{"canonical": "c:X", "members": ["a:X", "b:X", "c:X"]}],
            }
        ],
        "overlays": [],
        "forks": [],
    }
    assert "~ joined: a:X = b:X  |  c:X  ⟶  c:X = a:X = b:X" in handbook.ok("show", "handbook", "3").out


def test_show_of_a_batch_names_its_whole_append(shell: Shell) -> None:
    line = b'{"events":[{"type":"alias.set","alias":"a","target":"b"},{"type":"alias.set","alias":"c","target":"d"}]}'
    shell.ok("pipe", "s", stdin=line)
    commit = shell.ok("show", "s", "2", "-o", "json").json["commit"]
    assert (commit["first"], commit["seq"], commit["parent"]) == (1, 2, None)
    assert "\nparent  –\n" in shell.ok("show", "s", "2").out


def test_show_of_what_changed_nothing(shell: Shell) -> None:
    for _ in range(2):
        shell.ok("append", "s", "bind", "a", "b")
    assert shell.ok("show", "s", "2").out.endswith("\nchanged\nnothing\n")


def test_state_in_json(handbook: Shell) -> None:
    state = handbook.ok("state", "handbook", "-o", "json").json
    assert list(state) == ["space", "seq", "commit", "aliases", "groups", "overlays", "forks"]
    assert state["commit"] == git(handbook.repo, "rev-parse", "handbook").strip()
    del state["commit"]
    assert state == {
        "space": "handbook",
        "seq": 6,
        "aliases": {},
        "groups": [{"canonical": "c:X", "members": ["a:X", "b:X", "c:X"]}],
        "overlays": {"a:X": [{"overlay": "fix-1", "media_type": "text/markdown", "body": "text\n", "seq": 5}]},
        "forks": {"d:X": "a:X"},
    }


def test_state_of_earlier(handbook: Shell) -> None:
    state = handbook.ok("state", "handbook", "--upto", "1", "-o", "json").json
    assert (state["seq"], state["aliases"], state["groups"]) == (1, {"Home": "Start"}, [])
    assert state["commit"] == git(handbook.repo, "rev-parse", "handbook~5").strip()
    assert handbook.ok("state", "handbook", "--upto", "0", "-o", "json").json["commit"] is None


def test_resolve(handbook: Shell) -> None:
    found = handbook.ok("resolve", "handbook", "b:X", "-o", "json").json
    assert list(found) == ["name", "hops", "canonical", "members", "overlays"]
    assert list(found["overlays"][0]) == ["page", "overlay", "media_type", "body", "seq"]
    assert (found["hops"], found["canonical"], found["members"]) == (["b:X"], "c:X", ["a:X", "b:X", "c:X"])
    early = handbook.ok("resolve", "handbook", "Home", "--upto", "1", "-o", "json").json
    assert early["hops"] == ["Home", "Start"]
    assert handbook.ok("resolve", "handbook", "Home", "--upto", "1").out == "Home → Start\n"
    assert handbook.ok("resolve", "handbook", "Home").out == "Home\n"


def test_diff(handbook: Shell) -> None:
    changes = handbook.ok("diff", "handbook", "1", "6", "-o", "json").json
    assert list(changes) == ["space", "a", "b", "aliases", "groups", "overlays", "forks"]
    assert changes["aliases"] == [{"alias": "Home", "before": "Start", "after": None}]
    assert [group["change"] for group in changes["groups"]] == ["joined"]
    assert changes["overlays"] == [
        {
            "page": "a:X",
            "overlay": "fix-1",
            "before": None,
            "after": {"media_type": "text/markdown", "body": "text\n", "seq": 5},
        }
    ]
    assert changes["forks"] == [{"fork": "d:X", "before": None, "after": "a:X"}]
    back = handbook.ok("diff", "handbook", "6", "1", "-o", "json").json
    assert back["aliases"] == [{"alias": "Home", "before": None, "after": "Start"}]
    assert [group["change"] for group in back["groups"]] == ["split"]
    assert handbook.ok("diff", "handbook", "6", "6").out == "nothing\n"
    assert handbook.ok("diff", "handbook", "0", "1").out == "+ alias Home → Start\n"
    assert handbook.ok("diff", "handbook", "1", "0").out == "- alias Home → Start\n"


def test_diff_tells_every_way_to_group_anew(shell: Shell) -> None:
    for words in (
        ["bind", "a", "b"],
        ["bind", "c", "d"],
        ["unbind", "a", "b"],  # 3: split
        ["bind", "b", "c"],
        ["merge", "c", "--into", "d"],  # 5: led by another one
        ["unbind", "b", "c"],
        ["bind", "a", "b"],  # 7
        ["unbind", "a", "b"],
        ["bind", "b", "c"],  # 9: from a-b and c-d to a and b-c-d
    ):
        shell.ok("append", "s", *words)

    def kinds(a: int, b: int) -> list[str]:
        return [group["change"] for group in shell.ok("diff", "s", str(a), str(b), "-o", "json").json["groups"]]

    assert kinds(0, 2) == ["joined", "joined"]
    assert kinds(2, 3) == ["split"]
    assert kinds(4, 5) == ["canonical"]
    assert kinds(7, 9) == ["mixed"]
    assert kinds(2, 7) == ["canonical"], "a merge leads on, though nothing was joined for good"
    assert kinds(7, 7) == []


# --- operating ---------------------------------------------------------------------------------


def test_init_can_be_run_again(shell: Shell) -> None:
    first = shell.ok("init", "-o", "json").json
    assert list(first) == ["repo", "authority", "journal"]
    assert first["authority"] == "embedded"
    assert shell.ok("init", "-o", "json").json == first


def test_verify_counts_what_is_sound(handbook: Shell) -> None:
    handbook.ok("append", "other", "alias", "a", "b")
    ended = handbook.ok("verify", "-o", "json")
    assert [list(space) for space in ended.json] == [["space", "appends", "entries", "seq", "commit"]] * 2
    assert [(space["space"], space["entries"]) for space in ended.json] == [("handbook", 6), ("other", 1)]
    assert ended.err == "sound: 2 spaces, 7 entries\n"
    assert [space["space"] for space in handbook.ok("verify", "other", "-o", "jsonl").lines] == ["other"]


def test_verify_names_the_first_fault(handbook: Shell) -> None:
    tree = git(handbook.repo, "rev-parse", "handbook~1^{tree}").strip()
    message = git(handbook.repo, "log", "-1", "--format=%B", "handbook")
    forged = git(handbook.repo, "commit-tree", tree, "-p", "handbook~1", stdin=message.strip() + "\n").strip()
    git(handbook.repo, "update-ref", "refs/heads/handbook", forged)
    ended = handbook("verify", "-o", "json")
    assert ended.code == 6
    assert ended.json["error"]["code"] == "corrupt"
    assert "events/00/00/00/06.jsonl" in ended.json["error"]["message"]


def test_compact(handbook: Shell) -> None:
    before = handbook.ok("state", "handbook", "-o", "json").json
    done = handbook.ok("compact", "-o", "json").json
    assert list(done) == ["packs_before", "packs_after", "bytes_before", "bytes_after", "objects"]
    assert (done["packs_before"], done["packs_after"]) == (6, 1)
    assert handbook.ok("compact").err == "there was nothing to compact\n"
    assert handbook.ok("state", "handbook", "-o", "json").json == before


def test_adopt_is_the_way_back_from_a_backup(handbook: Shell) -> None:
    git(handbook.directory, "clone", "--quiet", "--mirror", str(handbook.repo), "clone.git")
    dry = handbook.ok("adopt", "--repo", "clone.git", "--dry-run", "-o", "json").json
    assert list(dry) == ["journal", "spaces", "changed", "steps", "dry_run"]
    assert handbook("append", "handbook", "alias", "a", "b", "--repo", "clone.git").code == 6, "nothing was done"
    handbook.ok("adopt", "--repo", "clone.git")
    assert handbook.ok("append", "handbook", "alias", "a", "b", "--repo", "clone.git", "-o", "json").json["seq"] == 7
    assert "nothing was changed" in handbook.ok("adopt", "--repo", "clone.git").err


def test_doctor(handbook: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = handbook.ok("doctor", "-o", "json").json
    assert {tuple(finding) for finding in findings} == {("name", "ok", "found", "advice")}
    assert not [finding for finding in findings if finding["ok"] is False]
    assert handbook.ok("doctor", "-o", "jsonl").lines[0] == findings[0]
    assert handbook("doctor", "--repo", str(handbook.directory)).code == 6, "that is no repository"
    assert "WRONG" in handbook("doctor", "--repo", str(handbook.directory)).out
    monkeypatch.delenv("COORDJOURNAL_REPO")
    assert "name one with --repo" in handbook.ok("doctor").out


# --- completion --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_script(shell: Shell, name: str) -> None:
    script = shell.ok("completion", name).out
    assert "_COORDJOURNAL_COMPLETE" in script
    assert f"{name}_complete" in script


def test_the_script_of_the_shell_at_hand(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/usr/local/bin/fish")
    assert shell.ok("completion").out == shell.ok("completion", "fish").out
    monkeypatch.setenv("SHELL", "/bin/false")
    assert shell("completion").code == 2


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("coordjournal ver", {"verify"}),
        ("coordjournal log hand", {"handbook"}),
        ("coordjournal log nothing-like-it", set()),
        ("coordjournal log handbook --fol", {"--follow"}),
        ("coordjournal append handbook ali", {"alias"}),
        ("coordjournal -o js", {"json", "jsonl"}),
        ("coordjournal log handbook --act", {"--actor"}),
    ],
)
def test_a_shell_is_offered_what_fits(
    handbook: Shell, monkeypatch: pytest.MonkeyPatch, typed: str, offered: set[str]
) -> None:
    monkeypatch.setenv("_COORDJOURNAL_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
    assert {line.partition(",")[2] for line in handbook.ok().out.split()} == offered


# --- tables ------------------------------------------------------------------------------------


def test_nothing_in_a_journal_can_steer_a_terminal(shell: Shell) -> None:
    shell.ok("append", "s", "overlay", "p", "o", "-", stdin="a\x1b[31mb\r\x9bc\u202ed\ne".encode())
    shell.ok("append", "s", "alias", "evil \u202etxt.exe", "p")
    for words in (["resolve", "s", "p"], ["show", "s", "1"], ["log", "s"], ["state", "s"], ["diff", "s", "0", "2"]):
        printed = shell.ok(*words).out
        assert not set("\x1b\r\x9b\u202e") & set(printed), words
    assert "│ a\\x1b[31mb\n" in shell.ok("resolve", "s", "p").out.replace("\\r", "\n")
    assert "evil \\u202etxt.exe" in shell.ok("log", "s").out


def test_columns_stand_below_each_other_in_any_script(shell: Shell) -> None:
    for actor in ("日本", "me\u0301", "Z" * 9):
        actor_nfc = actor.replace("e\u0301", "é")
        shell.ok("append", "s", "alias", actor_nfc, "x", "--actor", actor)
    lines = shell.ok("log", "s").out.splitlines()
    assert lines[1].split("alias")[0].endswith("日本       ")
    assert lines[2].split("alias")[0].endswith("me\u0301" + " " * 9)
    assert lines[3].split("alias")[0].endswith("Z" * 9 + "  ")


def test_tables_are_not_cut(shell: Shell) -> None:
    name = "n" * 500
    shell.ok("append", "s", "alias", name, "x")
    assert name in shell.ok("log", "s").out
    assert name in shell.ok("state", "s").out


def test_every_error_has_an_exit_code() -> None:
    from coordjournal.cli.exits import exit_code

    def all_of(kind: type[CoordJournalError]) -> list[type[CoordJournalError]]:
        public = [inner for inner in kind.__subclasses__() if inner.__module__ == "coordjournal.errors"]
        return [kind, *(deeper for inner in public for deeper in all_of(inner))]

    codes = {kind.__name__: exit_code(kind("why")) for kind in all_of(CoordJournalError)}
    assert codes == {
        "CoordJournalError": 1,
        "Closed": 1,
        "ForkedProcess": 1,
        "NotFound": 3,
        "Rejected": 4,
        "InvalidEvent": 4,
        "InvalidName": 4,
        "AliasCycle": 4,
        "NothingToRetract": 4,
        "NotForkable": 4,
        "KeyReused": 4,
        "TooLarge": 4,
        "SpaceFull": 4,
        "Conflict": 4,
        "Unavailable": 5,
        "Undecided": 5,
        "OperatorNeeded": 6,
        "Corrupt": 6,
        "UnknownEvent": 6,
        "UnknownFormat": 6,
        "WrongAuthority": 6,
        "ForeignRepository": 6,
        "HeadBehind": 6,
        "HeadMissing": 6,
        "MissingObjects": 6,
    }


@pytest.mark.parametrize("words", [("compact",), ("adopt",)])
def test_a_repository_that_may_not_be_written_is_for_an_operator(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """As on a read-only mount, where the first lock is already too much."""
    shell.ok("append", "s", "alias", "a", "b")
    if words == ("adopt",):
        git(shell.directory, "clone", "--quiet", "--mirror", str(shell.repo), "mirror.git")
        monkeypatch.setenv("COORDJOURNAL_REPO", str(shell.directory / "mirror.git"))

    def refuse(path: Path) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr("coordjournal.store.files.open_lock", refuse)
    refused = shell(*words)
    assert refused.code == 6, refused
    assert "the repository cannot be written: Read-only file system: " in refused.err
    assert os.environ["COORDJOURNAL_REPO"] in refused.err
    assert "mount it so that it can be" in refused.err
