"""The command line under a real etcd: everything that works embedded works so, and what an operator does."""

from __future__ import annotations

import itertools
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import msgspec
import pytest

import coordjournal as cj
from coordjournal.authority.settings import Settings
from coordjournal.authority.wire import Keys, NodeValue, encode_node
from coordjournal.etcd import Change, KeyValue, Put
from coordjournal.etcd.client import EtcdClient
from coordjournal.overview import hand_over
from coordjournal.testing.certificates import CertificateAuthority
from coordjournal.testing.etcd import EtcdServer
from tests.cli import Shell, append
from tests.integration.operating import Place, wait_for
from tests.support import git
from tests.testing.keys import coded, put

_numbers = itertools.count()
PREFIX = "COORDJOURNAL_PREFIX"
DEAD = "127.0.0.1:1"


@pytest.fixture(scope="module")
def server(coordjournal_etcd_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd"), binary=coordjournal_etcd_binary) as server:
        yield server


@pytest.fixture
def shell(server: EtcdServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    shell = Shell(tmp_path, monkeypatch)
    monkeypatch.setenv("COORDJOURNAL_ETCD", server.endpoint)
    monkeypatch.setenv("COORDJOURNAL_TTL", "2")
    monkeypatch.setenv(PREFIX, f"/cli-{next(_numbers)}/")
    return shell


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def the(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


def node(shell: Shell, stack: ExitStack, *spaces: str) -> subprocess.Popen[bytes]:
    """Start a node, and wait until it holds what was named."""
    process = shell.start("node", *spaces)
    stack.callback(ended, process)
    assert b"serving" in the(process.stderr).readline()
    for space in spaces:
        wait_for(lambda name=space: holder(shell, name) == process.pid, "the node does not hold it")  # type: ignore[misc]
    return process


def ended(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.communicate()


def holder(shell: Shell, space: str) -> int:
    found = shell("status", space, "-o", "json")
    if found.code:
        return 0
    held = found.json[0]["holder"]
    return int(held["pid"]) if held else 0


# Appends and reads.


def test_what_works_embedded_works_so_with_the_same_receipts(shell: Shell, stack: ExitStack) -> None:
    made = shell.ok("init", "-o", "json").json
    assert list(made) == ["repo", "authority", "journal", "prefix"]
    assert (made["authority"], made["prefix"]) == ("etcd", os.environ[PREFIX])
    alone = shell.ok("append", "s", "alias", "a", "b", "--key", "k", "-o", "json").json
    assert list(alone) == ["space", "first", "seq", "commit", "term", "key", "via", "duplicate"]
    assert (alone["seq"], alone["term"], alone["via"], alone["duplicate"]) == (1, 1, "local", False)
    node(shell, stack, "s")
    served = shell.ok("append", "s", "bind", "b", "c", "-o", "json").json
    assert (served["seq"], served["via"]) == (2, "forwarded")
    again = shell.ok("append", "s", "alias", "a", "b", "--key", "k", "-o", "json").json
    assert {**again, "via": "", "duplicate": False} == {**alone, "via": ""}
    assert again["duplicate"]
    assert shell("append", "s", "alias", "b", "a").code == 4
    assert shell("append", "s", "--expect", "7", "alias", "x", "y").code == 4
    assert shell.ok("resolve", "s", "a", "-o", "json").json["members"] == ["b", "c"]
    assert [entry["seq"] for entry in shell.ok("log", "s", "-o", "jsonl").lines] == [1, 2]
    assert shell.ok("show", "s", "2", "-o", "json").json["commit"]["term"] == served["term"]
    assert shell.ok("diff", "s", "1", "2", "-o", "json").json["groups"]
    assert [space["seq"] for space in shell.ok("spaces", "-o", "json").json] == [2]
    exported = shell.ok("export", "s").out
    assert shell.ok("verify", "-o", "json").json[0]["seq"] == 2
    shell.ok("compact")
    found = shell.ok("import", "jsonl", "copy", "-", "-o", "json", stdin=exported.encode())
    assert (found.json["appended"], found.json["rejected"]) == (2, 0)


def test_a_node_says_that_it_made_a_journal_and_that_there_is_no_space(shell: Shell, stack: ExitStack) -> None:
    for said in (f"of a new journal, made at {shell.repo} and under {os.environ[PREFIX]}", "there is none before"):
        process = shell.start("node")
        stack.callback(ended, process)
        assert said.encode() in the(process.stderr).readline()
        process.terminate()
        process.wait(20)


def test_a_process_with_the_role_client_forwards_and_never_holds(shell: Shell, stack: ExitStack) -> None:
    refused = shell("append", "s", "alias", "a", "b", "--role", "client", "--timeout", "1")
    assert refused.code == 5
    node(shell, stack)
    assert shell.ok("append", "s", "alias", "a", "b", "--role", "client", "-o", "json").json["via"] == "forwarded"


def test_a_node_that_names_its_spaces_leaves_the_others_alone(shell: Shell, stack: ExitStack) -> None:
    node(shell, stack, "mine")
    assert shell("append", "other", "alias", "a", "b", "--role", "client", "--timeout", "1").code == 5
    assert shell.ok("append", "mine", "alias", "a", "b", "-o", "json").json["via"] == "forwarded"


def test_pipe_and_import_through_a_node(shell: Shell, stack: ExitStack) -> None:
    node(shell, stack, "s")
    piped = shell.ok("pipe", "s", stdin=b"".join(append(number) for number in range(50)))
    assert [line["seq"] for line in piped.lines] == list(range(1, 51))
    assert {line["via"] for line in piped.lines} == {"forwarded"}
    events = b"".join(b'{"type":"alias.set","alias":"new-%d","target":"p"}\n' % number for number in range(30))
    for appended, duplicates in ((30, 0), (0, 30)):
        found = shell.ok("import", "jsonl", "s", "-", "-o", "json", stdin=events).json
        assert (found["appended"], found["duplicates"]) == (appended, duplicates)


def test_follow_sees_what_other_processes_append(shell: Shell, stack: ExitStack) -> None:
    shell.ok("append", "s", "alias", "a", "b")
    for consistency in ("linearizable", "local"):
        head = shell.ok("state", "s", "-o", "json").json["seq"]
        words = ("log", "s", "--follow", "--after", str(head), "-o", "jsonl", "--consistency", consistency)
        follower = shell.start(*words)
        stack.callback(ended, follower)
        for number in range(3):
            shell.ok("append", "s", "alias", f"{consistency}-{number}", "b")
            line = msgspec.json.decode(the(follower.stdout).readline())
            assert line["seq"] == head + 1 + number
        follower.send_signal(signal.SIGINT)
        assert follower.wait(10) == 130
        assert b"Traceback" not in the(follower.stderr).read()


READS = [
    ("log", "s"),
    ("show", "s", "2"),
    ("state", "s"),
    ("resolve", "s", "a"),
    ("diff", "s", "0", "1"),
    ("export", "s"),
    ("spaces",),
]


@pytest.mark.parametrize("words", READS, ids=lambda words: words[0])
def test_local_reads_need_no_etcd_and_say_how_old_they_are(shell: Shell, words: tuple[str, ...]) -> None:
    shell.ok("append", "s", "alias", "a", "b")
    shell.ok("append", "s", "alias", "c", "b")
    read = shell.ok(*words, "--consistency", "local", "--etcd", DEAD)
    assert "local: s as of entry 2, appended 20" in read.err
    assert "not confirmed by etcd" in read.err
    assert read.out == shell.ok(*words).out
    assert "local:" not in shell.ok(*words).err


# What an operator looks at.


def test_status_is_a_list_of_spaces_with_holder_and_heads(shell: Shell, stack: ExitStack) -> None:
    shell.ok("append", "b", "alias", "a", "b")
    process = node(shell, stack, "a")
    shell.ok("append", "a", "alias", "a", "b")
    first, second = shell.ok("status", "-o", "json").json
    assert list(first) == ["space", "holder", "term", "ttl", "head", "intents", "branch"]
    assert list(first["holder"]) == ["session", "host", "pid"]
    assert (first["holder"]["pid"], first["ttl"], first["head"]) == (process.pid, 2, first["branch"])
    assert (second["space"], second["holder"], second["ttl"], second["head"]["seq"]) == ("b", None, None, 1)
    assert list(first["head"]) == list(first["branch"]) == ["seq", "commit"]
    (member,) = shell.ok("status", "--nodes", "-o", "json").json
    assert list(member) == ["session", "host", "pid", "version", "since", "role", "ttl", "holds"]
    assert (member["pid"], member["holds"], member["session"]) == (process.pid, 1, first["holder"]["session"])
    table = shell.ok("status").out
    assert str(process.pid) in table
    assert shell("status", "nowhere").code == 3


def test_status_without_etcd_is_the_branch(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COORDJOURNAL_ETCD")
    shell.ok("append", "s", "alias", "a", "b")
    (space,) = shell.ok("status", "-o", "json").json
    assert (space["holder"], space["head"]["seq"]) == (None, 1)


@pytest.mark.damages
def test_status_tells_of_a_damaged_branch_and_shows_the_others(shell: Shell) -> None:
    shell.ok("append", "good", "alias", "a", "b")
    shell.ok("append", "bad", "alias", "a", "b")
    (shell.repo / "refs" / "heads" / "bad").write_text("nonsense\n")
    found = {space["space"]: space.get("fault", "") for space in shell.ok("status", "-o", "json").json}
    assert found["good"] == ""
    assert "damaged" in found["bad"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_status_again_and_again_until_a_signal(
    shell: Shell, stack: ExitStack, number: signal.Signals, code: int
) -> None:
    shell.ok("append", "s", "alias", "a", "b")
    watching = shell.start("status", "--watch", "0.05", "-o", "jsonl")
    stack.callback(ended, watching)
    seen = [msgspec.json.decode(the(watching.stdout).readline())["space"] for _ in range(3)]
    assert seen == ["s", "s", "s"]
    watching.send_signal(number)
    assert watching.wait(10) == code
    assert the(watching.stderr).read() == b""


def test_status_tells_every_so_many_seconds_how_it_is_then(shell: Shell, stack: ExitStack) -> None:
    shell.ok("append", "s", "alias", "a", "b")
    watching = shell.start("status", "s", "--watch", "0.4", "-o", "json")
    stack.callback(ended, watching)
    seen: list[tuple[float, int]] = []
    for number in range(3):
        (space,) = msgspec.json.decode(the(watching.stdout).readline())
        seen.append((time.monotonic(), space["head"]["seq"]))
        shell.ok("append", "s", "alias", f"a-{number}", "b")
    assert seen[2][0] - seen[0][0] >= 0.7
    assert seen[0][1] == 1
    assert seen[2][1] > 1, "it looks again each time"


def test_status_goes_on_watching_while_etcd_is_away(shell: Shell, stack: ExitStack, tmp_path: Path) -> None:
    with EtcdServer(tmp_path / "away") as away:
        shell.ok("append", "s", "alias", "a", "b", "--etcd", away.endpoint)
        watching = shell.start("status", "--watch", "0.05", "-o", "jsonl", "--etcd", away.endpoint)
        stack.callback(ended, watching)
        the(watching.stdout).readline()
        away.stop()
        assert away.endpoint.encode() in the(watching.stderr).readline()
        watching.terminate()
        assert watching.wait(10) == 143


def test_holders_are_read_from_git_alone(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        shell.ok("append", "s", "alias", f"a-{number}", "b")
    monkeypatch.setenv("COORDJOURNAL_ETCD", DEAD)
    reigns = shell.ok("holders", "s", "-o", "json").json
    assert [(reign["first"], reign["seq"], reign["appends"]) for reign in reigns] == [(1, 1, 1), (2, 2, 1), (3, 3, 1)]
    terms = [reign["term"] for reign in reigns]
    assert terms == sorted(set(terms))
    assert shell("holders", "nowhere").code == 3


def test_the_fields_of_a_reign_are_those_of_the_page(shell: Shell) -> None:
    shell.ok("append", "s", "alias", "a", "b")
    shell.ok("append", "s", ("alias"), "c", "b")
    first, second = shell.ok("holders", "s", "-o", "jsonl").lines
    assert list(first) == list(second) == ["term", "node", "first", "seq", "appends", "since", "until"]
    assert (first["term"], second["term"], first["node"]) == (1, 2, socket.gethostname())
    commits = git(shell.repo, "log", "--format=%ct", "--reverse", "s").split()
    for reign, seconds in zip((first, second), commits, strict=True):
        at = datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%S.000000Z")
        assert (reign["since"], reign["until"]) == (at, at)


# Handing over.


class Late(Settings):
    """Settings whose client is slow with the first request to hand over: something happens before it arrives."""

    meanwhile: Callable[[], None]

    def client(self) -> EtcdClient:
        client, send, meanwhile = super().client(), EtcdClient.txn, [self.meanwhile]

        def txn(guards: Any, then: Any, otherwise: Any = (), *, timeout: float) -> Any:
            if any(isinstance(item, Put) and b"successors/" in item.key for item in then) and meanwhile:
                meanwhile.pop()()
            return send(client, guards, then, otherwise, timeout=timeout)

        client.txn = txn  # type: ignore[method-assign]
        return client


def test_a_late_request_to_hand_over_is_not_the_next_holders(
    shell: Shell, stack: ExitStack, server: EtcdServer
) -> None:
    place = Place(server, shell.repo, os.environ[PREFIX])
    first = stack.enter_context(place.log())
    first.append("s", cj.AliasSet("a", "b"))
    first.serve(["s"])
    second = stack.enter_context(place.log())
    second.append("s", cj.AliasSet("c", "b"))
    to = second._open()[1].node.id  # type: ignore[attr-defined]
    late = Late(*place.settings)
    late.meanwhile = lambda: wait_for(lambda: hand_over(place.settings, "s", to) == to, "it is not handed over")
    assert hand_over(late, "s") == to
    term = second.head("s").term
    for _ in range(10):
        time.sleep(0.1)
        assert place.read(place.keys.holder("s")) == to.encode(), "the next holder handed over too"
        assert place.read(place.keys.successor("s")) is None, "nothing is left of the request"
    assert second.append("s", cj.AliasSet("d", "b")).term == term + 1


def test_a_request_is_taken_back_where_nobody_hears_it(shell: Shell, stack: ExitStack, server: EtcdServer) -> None:
    process = node(shell, stack, "s")
    place = Place(server, shell.repo, os.environ[PREFIX])
    process.send_signal(signal.SIGSTOP)
    assert shell("handoff", "s", "--timeout", "0.3").code == 5
    assert place.read(place.keys.successor("s")) is None
    process.send_signal(signal.SIGCONT)


def test_what_a_holder_hears_late_was_for_the_one_before(shell: Shell, stack: ExitStack, server: EtcdServer) -> None:
    place = Place(server, shell.repo, os.environ[PREFIX])
    log = stack.enter_context(place.log())
    log.serve(["s"])
    term = log.append("s", cj.AliasSet("a", "b")).term
    authority: Any = log._open()[1]
    created = authority.members["s"].tenure.created
    for revision, handed in ((created - 1, 0), (created + 1, 1)):
        kv = KeyValue(place.keys.successor("s"), b"-", revision, revision, 1)
        authority._told_successors([Change(kv, False)])
        wait_for(lambda: log.append("s", cj.AliasSet("x", "b")), "it is appended")
        time.sleep(0.5)
        receipt = log.append("s", cj.AliasSet("x", "b"))
        assert receipt.term == term + handed


def test_handoff_to_a_session(shell: Shell, stack: ExitStack) -> None:
    first = node(shell, stack, "s")
    second = node(shell, stack, "other")
    sessions = {found["pid"]: found["session"] for found in shell.ok("status", "--nodes", "-o", "json").json}
    handed = shell.ok("handoff", "s", "--to", sessions[second.pid], "-o", "json").json
    assert handed == {"space": "s", "holder": sessions[second.pid]}
    assert holder(shell, "s") == second.pid
    assert shell.ok("handoff", "s", "--to", sessions[second.pid], "-o", "json").json == handed, "it has it already"
    assert first.poll() is None


def test_handoff_to_nobody_in_particular(shell: Shell, stack: ExitStack) -> None:
    process = node(shell, stack, "s")
    before = shell.ok("append", "s", "alias", "a", "b", "-o", "json").json["term"]
    assert shell.ok("handoff", "s", "-o", "json").json == {"space": "s", "holder": None}
    wait_for(lambda: holder(shell, "s") == process.pid, "whoever keeps it takes it again")
    assert shell.ok("append", "s", "alias", "c", "b", "-o", "json").json["term"] > before


def test_handoff_that_cannot_be(shell: Shell, stack: ExitStack, server: EtcdServer) -> None:
    assert shell("handoff", "s").code == 3
    process = node(shell, stack, "s")
    assert shell("handoff", "s", "--to", "1" * 32).code == 3
    assert shell("handoff", "s", "--to", "../../x").code == 4
    keys, client = Keys(os.environ[PREFIX]), "2" * 32
    value = NodeValue("host", 1, "0", "2026-01-31T12:00:00.000000Z", "client", 10)
    Place(server, shell.repo, os.environ[PREFIX]).change(Put(keys.node(client), encode_node(value)))
    assert "role client" in shell("handoff", "s", "--to", client).err
    process.send_signal(signal.SIGSTOP)
    stuck = shell("handoff", "s", "--timeout", "0.3")
    process.send_signal(signal.SIGCONT)
    assert stuck.code == 5
    assert "may be stuck" in stuck.err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_node_hands_over_at_a_signal(shell: Shell, stack: ExitStack, number: signal.Signals) -> None:
    process = node(shell, stack, "s")
    shell.ok("append", "s", "alias", "a", "b")
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, b"", b"handed over\n")
    assert shell.ok("status", "--nodes", "-o", "json").json == []
    assert shell.ok("append", "s", "alias", "c", "b", "-o", "json").json["via"] == "local", "nobody is waited for"


def test_a_node_with_the_role_client_is_a_mistake(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (("node", "--role", "client"), ("node", "s", "--role", "client")):
        failed = shell(*words)
        assert (failed.code, "role" in failed.err, "client" in failed.err) == (2, True, True), failed
    monkeypatch.setenv("COORDJOURNAL_ROLE", "client")
    assert shell("node", "s").code == 2


def test_a_node_with_the_role_holder_serves_more_than_it_names(shell: Shell, stack: ExitStack) -> None:
    process = shell.start("node", "s", "--role", "holder")
    stack.callback(ended, process)
    assert b"serving s" in the(process.stderr).readline()
    assert shell.ok("append", "other", "alias", "a", "b", "--role", "client", "-o", "json").json["via"] == "forwarded"


def test_a_node_needs_an_etcd(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COORDJOURNAL_ETCD")
    assert shell("node").code == 2
    assert shell("handoff", "s").code == 2


# Etcd is not there, or the options are wrong.

NEED_ETCD = [
    ("init",),
    ("append", "s", "alias", "x", "y"),
    ("pipe", "s"),
    ("log", "s"),
    ("log", "s", "--follow"),
    ("state", "s"),
    ("spaces",),
    ("export", "s"),
    ("status",),
    ("handoff", "s"),
    ("node", "s"),
    ("recover",),
    ("adopt", "--to", "embedded"),
    ("import", "jsonl", "s", "-"),
]


def test_every_command_ends_by_its_deadline_and_names_the_endpoint_where_no_etcd_is(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.ok("append", "s", "alias", "a", "b")
    monkeypatch.setenv("COORDJOURNAL_ETCD", DEAD)
    line = b'{"event":{"type":"alias.set","alias":"q","target":"r"}}\n'
    runs = []
    for words in NEED_ETCD:
        stdin = line if words[0] == "pipe" else b'{"type":"alias.set","alias":"q","target":"r"}\n'
        process = shell.start(*words, "--timeout", "1.5")
        the(process.stdin).write(stdin)
        the(process.stdin).close()
        runs.append((words, process))
    since = time.monotonic()
    for words, process in runs:
        code = process.wait(timeout=max(1.0, since + 30 - time.monotonic()))
        said = (the(process.stdout).read() + the(process.stderr).read()).decode()
        for stream in (process.stdout, process.stderr):
            the(stream).close()
        assert (words, code) == (words, 5), said
        assert DEAD in said, (words, said)
        assert "Traceback" not in said


def test_a_password_is_never_an_argument(shell: Shell) -> None:
    assert shell("status", "--etcd-password", "secret").code == 2
    assert "--etcd-password-file" in shell.ok("status", "--help").out


WRONG: list[tuple[list[str], str]] = [
    (["--etcd", "no port:x"], "etcd"),
    (["--etcd", ",,"], "etcd"),
    (["--etcd", "ftp://h:1"], "http"),
    (["--etcd", "user:pw@h:1"], "user"),
    (["--etcd", ""], "empty"),
    (["--prefix", "no-slash"], "'/'"),
    (["--prefix", "/a b/"], "'/'"),
    (["--prefix", "/\udcff/"], "'/'"),
    (["--ttl", "1"], "2"),
    (["--ttl", "3601"], "3,600"),
    (["--ttl", "x"], "x"),
    (["--role", "boss"], "boss"),
    (["--consistency", "eventual"], "eventual"),
    (["--etcd-cacert", "/nowhere/ca.pem"], "/nowhere/ca.pem"),
    (["--etcd-cacert", "/"], "directory"),
    (["--etcd-cert", "notes"], "together"),
    (["--etcd-password-file", "/nowhere/password"], "/nowhere/password"),
    (["--etcd-password-file", "notes"], "no user name"),
    (["--etcd-password-file", "/dev/zero", "--etcd-user", "web"], "no password"),
    (["--etcd-password-file", "/dev/null", "--etcd-user", "web"], "is empty"),
    (["--etcd-password-file", "long", "--etcd-user", "web"], "65,536 bytes"),
    (["--etcd-user", "web"], "without a password"),
    (["--etcd-user", "\udcff"], "UTF-8"),
    (["--etcd", "http://127.0.0.1:1", "--etcd-cacert", "notes"], "TLS"),
]


@pytest.mark.parametrize(("words", "told"), WRONG, ids=[" ".join(map(ascii, words)) for words, _ in WRONG])
def test_a_wrong_option_is_a_usage_error_in_words(shell: Shell, words: list[str], told: str) -> None:
    Path("notes").write_text("secret\n")
    Path("long").write_text("secret" * 11_000)
    failed = shell("log", "s", *words)
    assert failed.code == 2, failed
    assert told in failed.err
    assert "Traceback" not in failed.err
    assert "secret" not in failed.err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("COORDJOURNAL_ETCD", "a:b:c"),
        ("COORDJOURNAL_TTL", "-1"),
        ("COORDJOURNAL_TTL", "10.5"),
        ("COORDJOURNAL_TTL", "99999"),
        ("COORDJOURNAL_ROLE", "boss"),
        ("COORDJOURNAL_PREFIX", "x"),
        ("COORDJOURNAL_CONSISTENCY", "some"),
        ("COORDJOURNAL_ETCD_KEY", "/nowhere"),
        ("COORDJOURNAL_ETCD_PASSWORD_FILE", "/nowhere"),
        ("COORDJOURNAL_ETCD_PASSWORD", "without a user"),
    ],
)
def test_a_wrong_variable_is_a_usage_error_in_words(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    failed = shell("log", "s")
    assert failed.code == 2, failed
    assert "Traceback" not in failed.err


@pytest.mark.parametrize("words", [("node",), ("handoff", "s"), ("recover",), ("adopt", "--to", "etcd")])
def test_a_command_that_needs_an_etcd_says_so_without_one(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.delenv("COORDJOURNAL_ETCD")
    shell.ok("append", "s", "alias", "a", "b")
    failed = shell(*words)
    assert (failed.code, "--etcd or in COORDJOURNAL_ETCD" in failed.err) == (2, True), failed


def test_the_deeper_option_wins_over_the_variable(shell: Shell, server: EtcdServer) -> None:
    shell.ok("append", "s", "alias", "a", "b")
    assert shell.ok("--etcd", DEAD, "log", "s", "--etcd", server.endpoint, "-o", "json").json[0]["seq"] == 1
    assert shell("log", "s", "--prefix", "/another/").code == 6


def test_user_and_password_are_etcds_own(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with EtcdServer(tmp_path / "guarded") as guarded:
        guarded.enable_auth({"root": "r", "alice": "wonder"}, prefix=os.environ[PREFIX])
        monkeypatch.setenv("COORDJOURNAL_ETCD", guarded.endpoint)
        assert shell("append", "s", "alias", "a", "b", "--timeout", "2").code in (5, 6)
        Path("password").write_text("wonder\n")
        shell.ok("append", "s", "alias", "a", "b", "--etcd-user", "alice", "--etcd-password-file", "password")
        monkeypatch.setenv("COORDJOURNAL_ETCD_USER", "alice")
        monkeypatch.setenv("COORDJOURNAL_ETCD_PASSWORD", "wonder")
        assert shell.ok("log", "s", "-o", "json").json[0]["seq"] == 1
        findings = {line["name"]: line["ok"] for line in shell.ok("doctor", "-o", "jsonl").lines}
        assert (findings["etcd may read"], findings["etcd may hold"], findings["journal"]) == (True, True, True)
        monkeypatch.setenv("COORDJOURNAL_ETCD_PASSWORD", "wrong")
        assert shell("doctor").code == 6
        assert "wrong" not in shell("status").err.split("error:")[1].split("user")[0]
        asks = [("status",), ("recover",), ("append", "s", "alias", "c", "d"), ("log", "s"), ("handoff", "s")]
        for words in asks:
            refused = shell(*words)
            assert (refused.code, "the right password" in refused.err, "a role" in refused.err) == (6, True, False), (
                words,
                refused,
            )
        for name in ("USER", "PASSWORD"):
            monkeypatch.delenv(f"COORDJOURNAL_ETCD_{name}")
        for words in asks:
            refused = shell(*words)
            assert (refused.code, "it wants a user, and none is named" in refused.err) == (6, True), (words, refused)
            assert "--etcd-user" in refused.err


def test_who_may_not_make_the_journal_is_told_who_does(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A holder, before the operator's `init`, has all the roles that it is to have."""
    with EtcdServer(tmp_path / "guarded") as guarded:
        prefix = os.environ[PREFIX]
        guarded.enable_auth({"root": "r", "holder": "h"}, prefix=f"{prefix}holders/")
        root = guarded.call("auth/authenticate", name="root", password="r")["token"]
        first, end = (coded(text) for text in (prefix, prefix[:-1] + "0"))
        permission = {"permType": "READ", "key": first, "range_end": end}
        guarded.call("auth/role/grant", token=root, name="holder-role", perm=permission)
        monkeypatch.setenv("COORDJOURNAL_ETCD", guarded.endpoint)
        monkeypatch.setenv("COORDJOURNAL_ETCD_USER", "holder")
        monkeypatch.setenv("COORDJOURNAL_ETCD_PASSWORD", "h")
        for words in (("append", "s", "alias", "a", "b"), ("node",)):
            refused = shell(*words)
            assert (refused.code, "run `coordjournal init` first" in refused.err) == (6, True), refused
            assert "grant the user a role" not in refused.err
        with monkeypatch.context() as operator:
            operator.setenv("COORDJOURNAL_ETCD_USER", "root")
            operator.setenv("COORDJOURNAL_ETCD_PASSWORD", "r")
            shell.ok("append", "s", "alias", "a", "b")
        put(guarded, f"{prefix}holders/s", "0" * 32, token=root)
        refused = shell("handoff", "s")  # this role has no right to `successors/`
        assert (refused.code, "grant the user a role" in refused.err) == (6, True), refused


def test_tls_with_a_certificate_of_ones_own(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = CertificateAuthority(tmp_path / "authority")
    with EtcdServer(tmp_path / "tls", tls=authority.server("etcd", "127.0.0.1")) as guarded:
        alice = authority.client("alice")
        words = ["--etcd", guarded.endpoint, "--etcd-cacert", str(alice.ca)]
        own = ["--etcd-cert", str(alice.cert), "--etcd-key", str(alice.key)]
        shell.ok("append", "s", "alias", "a", "b", *words, *own)
        for name, value in (("ETCD", guarded.endpoint), ("ETCD_CACERT", alice.ca)):
            monkeypatch.setenv(f"COORDJOURNAL_{name}", str(value))
        without = shell("log", "s", "--timeout", "1")
        assert (without.code, guarded.endpoint in without.err) == (5, True), without
        for name, value in (("ETCD_CERT", alice.cert), ("ETCD_KEY", alice.key)):
            monkeypatch.setenv(f"COORDJOURNAL_{name}", str(value))
        assert shell.ok("log", "s", "-o", "json").json[0]["seq"] == 1
        findings = {line["name"]: line["ok"] for line in shell.ok("doctor", "-o", "jsonl").lines}
        assert (findings["etcd TLS"], findings["journal"]) == (True, True)


@pytest.mark.parametrize("command", ["node", "status", "holders", "handoff", "adopt", "recover", "doctor"])
def test_help_names_every_option_of_etcd_and_its_variable(shell: Shell, command: str) -> None:
    text = " ".join(shell.ok(command, "--help").out.split())
    for name in ("etcd", "etcd-cacert", "etcd-cert", "etcd-key", "etcd-user", "prefix", "ttl", "role", "consistency"):
        assert f"--{name} " in text
        assert f"COORDJOURNAL_{name.upper().replace('-', '_')}" in text


# Doctor.


def test_doctor_examines_etcd(shell: Shell, server: EtcdServer) -> None:
    shell.ok("append", "s", "alias", "a", "b")
    findings = {line["name"]: line for line in shell.ok("doctor", "-o", "jsonl").lines}
    endpoint = f"etcd {server.endpoint}"
    assert findings[endpoint]["ok"] is True
    assert findings["etcd TLS"]["ok"] is None
    assert [findings[f"etcd may {right}"]["ok"] for right in ("read", "forward", "hold")] == [True, True, True]
    assert findings["journal"]["ok"] is True
    assert "etcd compaction" in findings
    version = findings[endpoint]["found"].split()[1].rstrip(",")
    assert (f"{endpoint} version" in findings) == version.startswith(("3.4.", "3.3."))


def test_doctor_says_what_is_wrong(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    shell.ok("append", "s", "alias", "a", "b")
    wrong = shell("doctor", "-o", "jsonl", "--prefix", "/another/")
    assert wrong.code == 6
    assert [line["advice"] for line in wrong.lines if line["ok"] is False] == [f"use --prefix {os.environ[PREFIX]}"]
    dead = shell("doctor", "-o", "jsonl", "--etcd", DEAD)
    assert dead.code == 6
    assert [line["name"] for line in dead.lines if line["ok"] is False] == [f"etcd {DEAD}"]
    monkeypatch.delenv("COORDJOURNAL_ETCD")
    assert shell("doctor").code == 0


def test_doctor_warns_of_etcd_lines_with_known_faults_or_out_of_support() -> None:
    from coordjournal.doctor import _endpoint
    from coordjournal.etcd.client import EndpointStatus

    verdicts = {}
    for version in ("3.3.27", "3.4.40", "3.5.0", "3.5.2", "3.5.3", "3.6.1"):
        found = _endpoint(EndpointStatus(DEAD, version=version, member=1, leader=1))
        verdicts[version] = [finding.ok for finding in found if finding.name.endswith("version")]
    assert verdicts == {
        "3.3.27": [None],
        "3.4.40": [None],
        "3.5.0": [False],
        "3.5.2": [False],
        "3.5.3": [],
        "3.6.1": [],
    }


def findings_of(shell: Shell, *words: str) -> dict[str, Any]:
    return {line["name"]: line for line in shell("doctor", "-o", "jsonl", *words).lines}


def test_doctor_tells_how_many_old_revisions_are_kept(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EtcdServer(tmp_path / "young") as young:
        monkeypatch.setenv("COORDJOURNAL_ETCD", young.endpoint)
        for number in range(3):
            shell.ok("append", "s", "alias", f"a-{number}", "b")
        found = findings_of(shell)["etcd compaction"]
        assert (found["ok"], "too young" in found["found"], "auto-compaction" in found["advice"]) == (None, True, True)
        with monkeypatch.context() as old:
            old.setattr("coordjournal.doctor._MANY_REVISIONS", 5)
            found = findings_of(shell)["etcd compaction"]
            assert (found["ok"], "auto-compaction" in found["advice"]) == (False, True)
        revision = int(young.call("kv/range", key="AA==")["header"]["revision"])
        young.call("kv/compaction", revision=revision - 4)
        found = findings_of(shell)["etcd compaction"]
        assert (found["ok"], found["advice"]) == (True, "")
        assert re.match(r"[4-9] revisions are kept", found["found"]), found
        monkeypatch.setattr("coordjournal.doctor._MANY_REVISIONS", 3)
        assert findings_of(shell)["etcd compaction"]["ok"] is False, "once is not enough"


@pytest.mark.parametrize(("quota", "near"), [("16777216", False), ("24576", True)])
def test_doctor_tells_how_near_the_quota_is(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, near: bool
) -> None:
    with EtcdServer(tmp_path / "small", flags={"quota-backend-bytes": quota}) as small:
        monkeypatch.setenv("COORDJOURNAL_ETCD", small.endpoint)
        if not near:
            shell.ok("append", "s", "alias", "a", "b")
        found = findings_of(shell)[f"etcd {small.endpoint} quota"]
        assert found["ok"] is not near
        assert f"of {int(quota) / (1 << 20):,.1f} MiB is used" in found["found"]
        assert ("--quota-backend-bytes" in found["advice"]) == near


def test_doctor_says_so_where_the_quota_is_not_known() -> None:
    from coordjournal.doctor import _quota
    from coordjournal.etcd.client import EndpointStatus

    found = _quota(EndpointStatus(DEAD, db_size=3 << 30), None)
    assert (found.ok, "not known" in found.found, "150% of 2 GiB" in found.found) == (None, True, True)


KINDS = ("nodes", "intents", "holders", "heads", "outcomes", "successors")


@pytest.mark.parametrize("missing", KINDS)
def test_doctor_finds_each_right_that_a_user_lacks(shell: Shell, guarded: EtcdServer, missing: str) -> None:
    root = guarded.call("auth/authenticate", name="root", password="r")["token"]
    granted(guarded, root, missing, "READ", os.environ[PREFIX])
    for kind in KINDS:
        if kind != missing:
            granted(guarded, root, missing, "READWRITE", f"{os.environ[PREFIX]}{kind}/")
    found = findings_of(shell, "--etcd-user", missing, "--etcd-password-file", "password")
    assert found["etcd may read"]["ok"] is True
    lacking = {"nodes": ("forward",), "intents": ("forward", "hold")}.get(missing, ("hold",))
    for right in ("forward", "hold"):
        assert found[f"etcd may {right}"]["ok"] is (right not in lacking), found[f"etcd may {right}"]
        if right in lacking:
            assert f"not write {missing}/ below" in found[f"etcd may {right}"]["found"]
    assert guarded.call("kv/range", token=root, key="AA==", range_end="AA==").get("kvs", []) == [], "nothing is written"


def test_doctor_on_who_may_only_forward_or_not_even_read(shell: Shell, guarded: EtcdServer) -> None:
    root = guarded.call("auth/authenticate", name="root", password="r")["token"]
    as_user = ("--etcd-user", "submitter", "--etcd-password-file", "password")
    prefix = os.environ[PREFIX]
    for kind in ("nodes/", "intents/", "holders/", "heads/", "outcomes/"):
        granted(guarded, root, "submitter", "READ", prefix + kind)
    found = findings_of(shell, *as_user)
    assert (found["etcd may read"]["ok"], "journal, successors/" in found["etcd may read"]["found"]) == (False, True)
    granted(guarded, root, "submitter", "READ", prefix)
    granted(guarded, root, "submitter", "READWRITE", prefix + "nodes/")
    assert findings_of(shell, *as_user)["etcd may forward"]["ok"] is False
    guarded.call("kv/put", token=root, key=coded(f"{prefix}heads/kitchen"), value=coded("x"))
    guarded.call("kv/put", token=root, key=coded(f"{prefix}heads/library"), value=coded("x"))
    granted(guarded, root, "submitter", "READWRITE", prefix + "intents/kitchen/")
    found = findings_of(shell, *as_user)
    assert (found["etcd may forward"]["ok"], found["etcd may forward"]["found"]) == (True, "to the spaces kitchen")
    granted(guarded, root, "submitter", "READWRITE", prefix + "intents/")
    found = findings_of(shell, *as_user)
    assert [found[f"etcd may {right}"]["ok"] for right in ("read", "forward", "hold")] == [True, True, None]
    assert findings_of(shell, *as_user, "--role", "holder")["etcd may hold"]["ok"] is False


@pytest.fixture
def guarded(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[EtcdServer]:  # it sets the environment
    """Give an etcd that asks who one is; the users are those whose rights the tests grant."""
    with EtcdServer(tmp_path / "rights") as guarded:
        users = dict.fromkeys((*KINDS, "submitter"), "secret")
        guarded.enable_auth({"root": "r", **users}, prefix="/elsewhere/")
        monkeypatch.setenv("COORDJOURNAL_ETCD", guarded.endpoint)
        Path("password").write_text("secret\n")
        yield guarded


def granted(server: EtcdServer, root: str, user: str, kind: str, prefix: str) -> None:
    """Give a user's role a right to all keys below a prefix."""
    permission = {"permType": kind, "key": coded(prefix), "range_end": coded(prefix[:-1] + "0")}
    server.call("auth/role/grant", token=root, name=f"{user}-role", perm=permission)


# Adopt and recover, as commands.


def test_adopt_there_and_back_and_recover(shell: Shell, monkeypatch: pytest.MonkeyPatch, server: EtcdServer) -> None:
    with monkeypatch.context() as without:
        without.delenv("COORDJOURNAL_ETCD")
        shell.ok("append", "s", "alias", "a", "b")
    refused = shell("append", "s", "alias", "c", "d")
    assert (refused.code, refused.err.count("\n")) == (6, 1), "told once"
    assert "nothing was changed: this is what would be done" in shell.ok("adopt", "--dry-run").err
    shell.ok("adopt")
    assert "it is so already" in shell.ok("adopt").err
    shell.ok("append", "s", "alias", "c", "d")
    assert "there is nothing to recover" in shell.ok("recover").err
    assert shell("recover", "--to", "x").code == 2
    place = Place(server, shell.repo, os.environ[PREFIX])
    place.change(Put(place.keys.head("s"), b"nonsense"))
    planned = shell.ok("recover", "s", "--dry-run")
    assert "--accept-loss" in planned.err
    assert shell("recover", "s").code == 6
    found = shell.ok("recover", "s", "--accept-loss", "-o", "json").json
    assert list(found) == ["spaces", "changed", "loses", "steps", "notes", "wrong", "dry_run"]
    shell.ok("adopt", "--to", "embedded")
    monkeypatch.delenv("COORDJOURNAL_ETCD")
    assert shell.ok("append", "s", "alias", "e", "f", "-o", "json").json["seq"] == 3


def test_recover_that_leaves_something_wrong_has_exit_code_6(shell: Shell, server: EtcdServer) -> None:
    shell.ok("append", "s", "alias", "a", "b")
    place = Place(server, shell.repo, os.environ[PREFIX])
    head = place.read(place.keys.head("s"))
    assert head is not None
    place.change(Put(place.keys.head("lost"), head.replace(head.split(b'"commit":"')[1][:40], b"1" * 40)))
    for words in (("recover",), ("recover", "--dry-run")):
        found = shell(*words)
        assert found.code == 6
        assert "wrong: entry 1" in found.err


def test_the_demo_is_without_etcd_whatever_the_environment_says(shell: Shell) -> None:
    assert shell.run("demo", env={"TMPDIR": str(shell.directory)}).code == 0
