"""Whatever becomes of any one value in etcd, `verify` names it where it matters, and nobody serves it as truth."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Final, NamedTuple

import pytest

import coordjournal as cj
from coordjournal import maintenance
from coordjournal.authority.settings import Settings
from coordjournal.authority.wire import (
    Accepted,
    Keys,
    NodeValue,
    Refusal,
    decode_head,
    decode_intent,
    decode_node,
    decode_outcome,
    encode_intent,
    encode_node,
    encode_outcome,
    range_of,
    session_of,
)
from coordjournal.cli import main
from coordjournal.entry import Append
from coordjournal.errors import OperatorNeeded
from coordjournal.etcd import Delete, Get, Put
from coordjournal.etcd.client import EtcdClient
from coordjournal.testing.etcd import EtcdFailed, EtcdServer
from tests.cli import streams
from tests.integration.etcd_parts import (
    SPACE,
    Nodes,
    check,
    delete_key,
    drain,
    holding,
    node,
    put_key,
    read,
    server,
    told,
    unbroken,
)
from tests.integration.processes import quick_path
from tests.support import alias, git

__all__ = ["node", "quick_path", "server"]

pytestmark = pytest.mark.damages

ACTOR: Final = "alice@example.org"
AT: Final = "2026-01-31T12:00:00.000000Z"
SPACES: Final = ("s", "t")
SESSIONS: Final = ("0123456789abcdef" * 2, "fedcba9876543210" * 2)
SECONDS: Final = 10.0
DEADLINE: Final = 1.5  # of what may be refused
LEASE_SECONDS: Final = 600

_numbers = count()


class Value(NamedTuple):
    """What lies under a key, without the prefix; whether it ends by itself."""

    key: str
    value: bytes
    leased: bool

    @property
    def kind(self) -> str:
        return self.key.partition("/")[0]


class Journal:
    """A repository and its keys in etcd, which can be put back as they were."""

    def __init__(self, server: EtcdServer, path: Path) -> None:
        self.server = server
        self.path = path
        self.keys = Keys(f"/damage-{next(_numbers)}/")
        self.etcd = EtcdClient([server.endpoint])
        self.lease = self.etcd.grant(LEASE_SECONDS, timeout=SECONDS)[0]
        self.truth: list[Value] = []

    @property
    def settings(self) -> Settings:
        return Settings(self.server.endpoint, prefix=self.keys.prefix.decode())

    def log(self, **options: object) -> cj.DecisionLog:
        place = {"etcd": self.server.endpoint, "prefix": self.keys.prefix.decode(), "ttl": 2}
        return cj.DecisionLog.open(self.path, actor=ACTOR, **place, **options)  # type: ignore[arg-type]

    def put(self, key: str, value: bytes, *, leased: bool = False) -> None:
        put = Put(self.keys.prefix + key.encode(), value, self.lease if leased else 0)
        self.etcd.txn([], [put], timeout=SECONDS)

    def all(self) -> list[Value]:
        """Return what lies under the prefix."""
        found = self.etcd.get(Get(*range_of(self.keys.prefix)), timeout=SECONDS)[1].kvs
        return [Value(kv.key.removeprefix(self.keys.prefix).decode(), kv.value, bool(kv.lease)) for kv in found]

    def put_back(self) -> None:
        """Put everything as it was."""
        self.etcd.txn([], [Delete(*range_of(self.keys.prefix))], timeout=SECONDS)
        for value in self.truth:
            self.put(value.key, value.value, leased=value.leased)

    def verify(self, space: str | None = None) -> maintenance.Sound:
        return maintenance.verify_with(self.path, self.settings, space)

    def fault(self) -> OperatorNeeded | None:
        """Return what verification finds; None if it is content."""
        fault: OperatorNeeded | None = None
        try:
            self.verify()
        except OperatorNeeded as error:
            fault = error
        assert fault is None or (fault.where and fault.run), fault
        return fault


@pytest.fixture
def journal(server: EtcdServer, quick_path: Path) -> Iterator[Journal]:
    """Give a journal with two spaces, and in each intents and outcomes that wait."""
    journal = Journal(server, quick_path / "wiki.git")
    with closing(journal.etcd):
        accepted: dict[str, list[cj.Receipt]] = {}
        with journal.log() as log:
            for space in SPACES:
                accepted[space] = [log.append(space, alias(n), key=f"{space}-{n}", at=AT) for n in range(3)]
        for session in SESSIONS:
            for number, space in enumerate(SPACES, 1):
                receipt = accepted[space][number]
                outcome = Accepted(receipt.key, receipt.first, receipt.seq, receipt.commit, receipt.term)
                refusal = Refusal("refused", "AliasCycle", "it would be a circle")
                journal.put(f"outcomes/{session}/{space}/{7:012}", encode_outcome([outcome, refusal]), leased=True)
                asked = Append((cj.AliasSet(f"waiting {space}", "p"),), f"waits-{space}-{session[0]}", ACTOR, AT)
                journal.put(f"intents/{space}/{session}/{8:012}", encode_intent([asked]))
        journal.truth = journal.all()
        assert {value.kind for value in journal.truth} == {"journal", "heads", "intents", "outcomes"}
        assert journal.fault() is None
        yield journal


@pytest.fixture
def attended(journal: Journal) -> Journal:
    """Give the same with sessions that hold the spaces, and one that is to take over."""
    for number, (space, session) in enumerate(zip(SPACES, SESSIONS, strict=True)):
        value = NodeValue("host", 4711 + number, "1", AT, "auto", 10)
        journal.put(f"nodes/{session}", encode_node(value), leased=True)
        journal.put(f"holders/{space}", session.encode(), leased=True)
        journal.put(f"successors/{space}", session.encode(), leased=True)
    journal.truth = journal.all()
    assert journal.fault() is None
    return journal


def changed(value: bytes) -> dict[str, bytes]:
    """Return what may become of the bytes of a value."""
    return {
        "truncated": value[: len(value) // 2],
        "without its last byte": value[:-1],
        "emptied": b"",
        "all zeros": bytes(len(value)),
        **{f"a bit flipped at {at}": flipped(value, at) for at in range(0, len(value), 7)},
    }


def flipped(value: bytes, at: int) -> bytes:
    return value[:at] + bytes((value[at] ^ 1 << at % 8,)) + value[at + 1 :]


def may_be_meant(kind: str, before: bytes, value: bytes) -> bool:
    """Whether a damaged value says something that another process might have said: nothing in it is checked by more.

    An intent asks for something else then, a session is said to be elsewhere, a refusal has another reason.
    """
    if kind == "intents":
        try:
            for append in decode_intent(value):
                append.check()
        except cj.Rejected:
            return False
        return value != b""
    if kind == "outcomes":
        items = decode_outcome(value)
        return len(items) == 2 and items[0] == decode_outcome(before)[0]
    if kind == "nodes":
        return decode_node(value) is not None
    return kind == "successors" and (value == b"-" or session_of(value) != "")


def test_what_was_damaged_is_named_by_verify(attended: Journal) -> None:
    named = 0
    again = [value for value in attended.truth if SESSIONS[1] in value.key and value.kind in ("intents", "outcomes")]
    for value in [value for value in attended.truth if value not in again]:
        for what, damaged in changed(value.value).items():
            attended.put(value.key, damaged, leased=value.leased)
            fault = attended.fault()
            if fault is None:
                assert may_be_meant(value.kind, value.value, damaged), f"{value.key} {what}: {damaged!r}"
            else:
                about = f"{fault} "
                spaces = [space for space in SPACES if f"/{space}/" in f"/{value.key}/"]
                assert value.key in about or "journal" in value.key or any(f"space {s}" in about for s in spaces), (
                    f"{value.key} {what} is told as {about}"
                )
                named += 1
        attended.put(value.key, value.value, leased=value.leased)
    assert attended.fault() is None
    assert named > 100


DELETED: Final = {
    "heads": "HeadMissing",
    "journal": "HeadMissing",
    "nodes": "OperatorNeeded",  # its holder is not there
    "holders": "",  # another one is elected; the one that was there fails at its next publish
    "successors": "",  # they end after two seconds anyway
    "intents": "",  # whoever sent it finds neither it nor an outcome, and asks again under its key
    "outcomes": "",  # they end after ten minutes anyway; whoever waits finds its key in the log
}
"""By kind, as what a deleted value is named; those that are not named hold nothing that is not elsewhere."""


def test_what_was_deleted_is_named_where_anything_rests_on_it(
    attended: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordjournal.inspection._PAUSE_SECONDS", 0.001)  # nobody is there to put it back
    for value in attended.truth:
        attended.etcd.txn([], [Delete(attended.keys.prefix + value.key.encode())], timeout=SECONDS)
        fault = attended.fault()
        assert (type(fault).__name__ if fault is not None else "") == DELETED[value.kind], value.key
        attended.put(value.key, value.value, leased=value.leased)
    assert attended.fault() is None


SWAPPED: Final = {
    "heads": True,
    "holders": False,
    "successors": False,
    "nodes": False,
    "intents": False,
    "outcomes": True,
}
"""By kind, whether two that are swapped are named. The others say nothing of where they lie.

Intents are appends that anybody may ask for, under any session's name. Who holds a space is who made its key:
what the key says is for those who look.
"""


def test_what_was_swapped_with_another_is_named_where_it_shows(attended: Journal) -> None:
    for kind, shows in SWAPPED.items():
        values = [value for value in attended.truth if value.kind == kind]
        for one in values:
            for other in values:
                if one.value == other.value:
                    continue
                attended.put(one.key, other.value, leased=one.leased)
                attended.put(other.key, one.value, leased=other.leased)
                assert (attended.fault() is not None) == shows, (one.key, other.key)
                attended.put(one.key, one.value, leased=one.leased)
                attended.put(other.key, other.value, leased=other.leased)


@pytest.mark.parametrize(
    "key",
    [
        *("x", "é", "heads/", "heads/S", "heads/s/x", "heads2/s", "intents/s/x", "intents/s/0/1", "nodes/x"),
        *("outcomes/x/s/1", "holders/", "journal/", "successors/s/t"),
    ],
)
def test_a_key_of_no_kind_is_named(journal: Journal, key: str) -> None:
    journal.put(key, b"x")
    fault = journal.fault()
    assert fault is not None
    assert key.encode().decode("ascii", "backslashreplace") in fault.where
    assert journal.verify("s").keys == 5, "of one space are its head, two intents and two outcomes"


@pytest.mark.parametrize("key", ["nodes", "holders", "successors", "outcomes"])
def test_a_value_that_never_ends_is_named(attended: Journal, key: str) -> None:
    value = next(value for value in attended.truth if value.kind == key)
    attended.put(value.key, value.value)
    fault = attended.fault()
    assert fault is not None
    assert "no lease" in fault.what
    assert value.key in fault.run


def run(*words: str) -> tuple[int, str, str]:
    """Run a command line; return its exit code and what it wrote to stdout and stderr."""
    out, err = io.BytesIO(), io.BytesIO()
    with streams(io.BytesIO(), out, err):
        code = main(list(words))
    return code, out.getvalue().decode(), err.getvalue().decode()


def test_the_command_line_names_faults_of_etcd_as_it_does_those_of_git(journal: Journal) -> None:
    place = ("--repo", str(journal.path), "--prefix", journal.keys.prefix.decode())
    words = ("verify", "-o", "json", *place)
    before = journal.all()
    code, out, err = run(*words, "--etcd", journal.server.endpoint)
    assert (code, [space["space"] for space in json.loads(out)]) == (0, list(SPACES))
    assert err == "sound: 2 spaces, 6 entries, 11 keys in etcd\n"
    assert run(*words)[::2] == (0, "sound: 2 spaces, 6 entries\n")
    assert journal.all() == before, "it only reads"
    journal.put("heads/s", b"{}")
    for wanted in (words, (*words, "s")):
        code, out, err = run(*wanted, "--etcd", journal.server.endpoint)
        told_of = json.loads(out)["error"]
        assert (code, told_of["code"], err) == (6, "operator_needed", "")
        assert "heads/s" in told_of["message"]
        assert "coordjournal recover" in told_of["message"]
    assert run(*words, "t", "--etcd", journal.server.endpoint)[0] == 0
    code, out, err = run("verify", *place, "--etcd", "127.0.0.1:1")
    assert code == 5
    assert "the repository is sound" in err


def test_a_clone_and_a_journal_that_is_not_etcds_are_verified_without_it(journal: Journal) -> None:
    clone = journal.path.with_name("clone.git")
    git(journal.path, "clone", "--quiet", "--mirror", ".", str(clone))
    journal.put("heads/s", b"{}")
    assert maintenance.verify_with(clone, journal.settings) == (maintenance.verify(journal.path), None)


def test_a_prefix_and_a_journal_of_somebody_else_are_named(journal: Journal) -> None:
    with pytest.raises(cj.ForeignRepository, match="prefix"):
        maintenance.verify_with(journal.path, journal.settings._replace(prefix="/elsewhere/"))
    journal.put("journal", b"0" * 32)
    with pytest.raises(cj.ForeignRepository, match="0" * 32):
        journal.verify()


def test_heads_and_branches_that_do_not_fit_are_told_as_what_they_are(journal: Journal) -> None:
    commits = git(journal.path, "rev-list", "s").split()
    head = next(value for value in journal.truth if value.key == "heads/s")
    git(journal.path, "update-ref", "refs/heads/s", commits[1])
    assert journal.fault() is None, "the branch lags, and is rolled forward"
    assert journal.verify("s").spaces[0].seq == 3, "all that is published is walked"
    git(journal.path, "update-ref", "-d", "refs/heads/s")
    fault = journal.fault()
    assert fault is not None
    assert "the next append brings it back" in fault.run
    with journal.log() as log:
        assert log.append("s", alias(1), key="s-1", at=AT).duplicate, "so it does"
        assert log.append("s", alias(9), timeout=SECONDS).seq == 6, "after the intents that waited"
    journal.put("heads/s", head.value)
    assert isinstance(journal.fault(), cj.HeadBehind)


# What those do who append and read afterwards


def damages(journal: Journal) -> Iterator[tuple[str, Value, dict[str, bytes | None]]]:
    """Yield what was done, to which value, and what lies under which keys then; None is nothing."""
    for value in journal.truth:
        if SESSIONS[1] in value.key:
            continue  # as the first one's
        parts = changed(value.value)
        chosen = [what for what in parts if not what.startswith("a bit")]
        bits = [what for what in parts if what.startswith("a bit")]
        for what in chosen + bits[:: max(1, len(bits) // 6)]:
            yield f"{value.key} {what}", value, {value.key: parts[what]}
        yield f"{value.key} deleted", value, {value.key: None}
        for other in journal.truth:
            if other.kind == value.kind and other.key > value.key and other.value != value.value:
                swap = {value.key: other.value, other.key: value.value}
                yield f"{value.key} swapped with {other.key}", value, swap  # type: ignore[misc]


def use(journal: Journal, what: str) -> set[str]:
    """Read and append in all spaces, as a process that comes anew; return the names of the errors that it got."""
    errors: set[str] = set()
    mine: list[cj.Receipt] = []
    with journal.log(read_timeout=DEADLINE) as log:
        for space in SPACES:
            for key in ("s-1", "t-1", "new"):
                known = key.startswith(space)
                event = alias(1) if known else alias(100)
                try:
                    if key == "new" or known:
                        receipt = log.append(space, event, key=key, at=AT, timeout=DEADLINE)
                        mine.append(receipt)
                        assert receipt.duplicate == known, what
                except (OperatorNeeded, cj.Unavailable, cj.Undecided) as error:
                    errors.add(type(error).__name__)
            try:
                entries = list(log.events(space))
                assert log.state(space) == cj.fold(entries), what
            except (OperatorNeeded, cj.Unavailable) as error:
                errors.add(type(error).__name__)
                continue
            assert [entry.key for entry in entries[:3]] == [f"{space}-{n}" for n in range(3)], what
            assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1)), what
            keys = [entry.key for entry in entries]
            assert len(keys) == len(set(keys)), what
            for receipt in mine:
                if receipt.space == space:
                    entry = entries[receipt.seq - 1]
                    assert (entry.key, entry.commit, entry.term) == (receipt.key, receipt.commit, receipt.term), what
    for verified in maintenance.verify(journal.path):  # git alone: it is one chain, whatever etcd says
        assert (
            git(journal.path, "merge-base", "--is-ancestor", journal_head(journal, verified.space), verified.commit)
            == ""
        )
    return errors


def journal_head(journal: Journal, space: str) -> str:
    raw = next(value.value for value in journal.truth if value.key == f"heads/{space}")
    return decode_head(raw, "").commit


EXPECTED: Final = {
    "heads": {"OperatorNeeded", "HeadMissing", "HeadBehind", "MissingObjects", "Corrupt", "ForeignRepository"},
    "journal": {"ForeignRepository", "HeadMissing"},
    "intents": set[str](),
    "outcomes": set[str](),
}
"""By kind, what an operator is told; `Undecided` may stand for it where the time was up."""


def test_nothing_damaged_is_served_as_truth(journal: Journal) -> None:
    sound = journal.path.with_name("sound.git")
    shutil.copytree(journal.path, sound)
    for what, value, values in damages(journal):
        journal.put_back()
        shutil.rmtree(journal.path)
        shutil.copytree(sound, journal.path)
        for key, changed_to in values.items():
            if changed_to is None:
                delete_key(journal.server, journal.keys.prefix + key.encode())
            else:
                journal.put(key, changed_to, leased=value.leased)
        errors = use(journal, what)
        assert errors <= EXPECTED[value.kind] | {"Undecided", "Unavailable"}, what
        if value.kind in ("heads", "journal"):
            assert errors & EXPECTED[value.kind], what
        else:
            assert not errors, what


def test_an_empty_journal_is_another_one(journal: Journal) -> None:
    journal.put("journal", b"")
    assert isinstance(journal.fault(), cj.ForeignRepository)
    assert use(journal, "journal emptied") == {"ForeignRepository"}


def test_an_outcome_that_was_damaged_makes_no_receipt_that_is_not_true(server: EtcdServer, node: Nodes) -> None:
    """Each bit of its place in turn: seq, commit, term. What it does not say rightly, the log says."""
    holder, forwarder = holding(node), node()
    client = EtcdClient([server.endpoint])
    outcomes = Get(*range_of(holder.keys.outcomes_of(forwarder.node.id, SPACE)))
    for at in count():
        forwarder.submit(key := f"k{at:03}")
        forwarder.until("send")
        holder.member.hint_intents()
        holder.run()
        kv = client.get(outcomes, timeout=SECONDS)[1].kvs[-1]
        assert key.encode() in kv.value
        if at == len(kv.value):
            break
        raw = flipped(kv.value, at)
        put_key(server, kv.key, raw)
        forwarder.member.hint_outcome(int(kv.key[-12:]), raw)
        drain([holder, forwarder])
    client.close()
    drain([holder, forwarder])
    assert len(check(server, [holder, forwarder])) > 100


@pytest.mark.parametrize("kind", ["heads", "holders", "nodes", "journal", "successors"])
def test_damage_under_a_living_holder_makes_no_lie(server: EtcdServer, node: Nodes, kind: str) -> None:
    holder, forwarder = holding(node), node()
    keys = holder.keys
    key = {
        "heads": keys.head(SPACE),
        "holders": keys.holder(SPACE),
        "nodes": keys.node(holder.node.id),
        "journal": keys.journal,
        "successors": keys.successor(SPACE),
    }[kind]
    for number, what in enumerate([*changed(read(server, key) or b"-"), "deleted"]):
        before = read(server, key)
        damaged = changed(before or b"-").get(what)
        if damaged is None:
            delete_key(server, key)
        else:
            put_leased(server, key, damaged)
        asked = [party.submit(f"{number}-{party.node.id[:4]}") for party in (holder, forwarder)]
        for _ in range(30):
            for party in (holder, forwarder):
                party.clock.now += party.step() or 0.0
        if before is not None:
            put_leased(server, key, before)
        else:
            delete_key(server, key)
        drain([holder, forwarder])
        assert all(future.done() for future in asked), what
    if kind not in ("heads", "journal"):
        assert len(check(server, [holder, forwarder])) == len(holder.futures) + len(forwarder.futures)
        return
    by_key = unbroken(server, holder)
    for asked_for, future in {**holder.futures, **forwarder.futures}.items():
        answer, stands = told(future), by_key.get(asked_for)
        if isinstance(answer, cj.Receipt):
            assert stands is not None
            assert (answer.first, answer.seq, answer.commit) == (stands.first, stands.seq, stands.commit)
        else:
            assert isinstance(answer, OperatorNeeded | cj.Undecided | cj.Unavailable)
            assert stands is None or not isinstance(answer, cj.Unavailable)


def put_leased(server: EtcdServer, key: bytes, value: bytes) -> None:
    """Change a value in its place: its lease stays, if it has one."""
    name, content = base64.b64encode(key).decode(), base64.b64encode(value).decode()
    try:
        server.call("kv/put", key=name, value=content, ignore_lease=True)
    except EtcdFailed:
        server.call("kv/put", key=name, value=content)  # it is not there
