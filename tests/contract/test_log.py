"""The contract of a decision log, whatever store and authority stand behind it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, wait
from pathlib import Path

import pytest

import coordjournal as cj
from coordjournal.maintenance import init
from tests.support import alias

AT = "2026-01-31T12:00:00.123456Z"


def opened(request: pytest.FixtureRequest, path: Path) -> cj.DecisionLog:
    """Return the log that the test is run with, a repository of its at `path`."""
    if request.param == "memory":
        return cj.DecisionLog.in_memory()
    if request.param == "git":
        init(path)
        return cj.DecisionLog.open(path)
    etcd = request.getfixturevalue("coordjournal_etcd").endpoints
    prefix = f"{request.getfixturevalue('coordjournal_prefix')}{path.stem}/"
    with cj.DecisionLog.open(path, etcd=etcd, prefix=prefix, ttl=2) as first:
        first.serve()  # makes the repository
    return cj.DecisionLog.open(path, etcd=etcd, prefix=prefix, ttl=2)


@pytest.fixture(params=["memory", "git", "etcd"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[cj.DecisionLog]:
    with opened(request, tmp_path / "wiki.git") as made:
        yield made


@pytest.fixture(params=["memory", "git", "etcd"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[cj.DecisionLog]:
    with opened(request, tmp_path / "target.git") as made:
        yield made


@pytest.fixture
def term(request: pytest.FixtureRequest) -> int:
    """Give the term of a first holder: without one, the term stays 0."""
    return 1 if "etcd" in request.node.callspec.id else 0


def test_a_receipt_says_where_the_append_stands(log: cj.DecisionLog, term: int) -> None:
    one = log.append("handbook", alias(1), actor="alice@example.org", key="request-1")
    assert (one.space, one.first, one.seq, one.term, one.key, one.via, one.duplicate) == (
        *("handbook", 1, 1, term, "request-1", "local", False),
    )
    two = log.append("handbook", [alias(2), alias(3)])
    assert (two.first, two.seq) == (2, 3)
    assert log.head("handbook") == cj.Head(3, two.commit, term)
    assert len(two.key) >= 22, "a key that is made up is hard to guess"


def test_entries_are_what_was_decided(log: cj.DecisionLog, term: int) -> None:
    receipt = log.append("s", [alias(1), cj.PagesBound("a", "b")], actor="Ada L.", key="k", at=AT)
    assert list(log.events("s")) == [
        cj.Entry(1, "k", AT, "Ada L.", alias(1), receipt.commit, term),
        cj.Entry(2, "k", AT, "Ada L.", cj.PagesBound("a", "b"), receipt.commit, term),
    ]


def test_events_between_two_seqs(log: cj.DecisionLog) -> None:
    log.append("s", [alias(n) for n in (1, 2, 3)])
    log.append("s", alias(4))
    log.append("s", [alias(5), alias(6)])
    for after in range(7):
        for upto in (None, *range(after, 7)):
            expected = list(range(after + 1, (6 if upto is None else upto) + 1))
            assert [e.seq for e in log.events("s", after=after, upto=upto)] == expected
    with pytest.raises(cj.NotFound, match="no entry 7"):
        log.events("s", upto=7)
    for wrong in (-1, 1.0, "1", True):
        with pytest.raises(cj.InvalidEvent):
            log.events("s", after=wrong)  # type: ignore[arg-type]


def test_events_belong_to_the_head_at_the_call(log: cj.DecisionLog) -> None:
    log.append("s", alias(1))
    events = log.events("s")
    log.append("s", alias(2))
    assert [e.seq for e in events] == [1]


def test_an_event_in_a_batch_that_does_not_fit_undoes_the_batch(log: cj.DecisionLog) -> None:
    log.append("s", cj.AliasSet("a", "b"))
    with pytest.raises(cj.AliasCycle, match="event 2 of 2"):
        log.append("s", [cj.AliasSet("c", "d"), cj.AliasSet("b", "a")])
    assert log.head("s").seq == 1
    assert dict(log.state("s").aliases) == {"a": "b"}


@pytest.mark.parametrize(
    ("event", "error"),
    [
        (cj.AliasSet("a", "a"), cj.AliasCycle),
        (cj.AliasRemoved("a"), cj.NothingToRetract),
        (cj.PagesBound("a", "a"), cj.InvalidEvent),
        (cj.PagesUnbound("a", "b"), cj.NothingToRetract),
        (cj.PagesMerged(("a",), "a"), cj.InvalidEvent),
        (cj.PageForked("a", "a"), cj.NotForkable),
        (cj.OverlayRemoved("a", "o"), cj.NothingToRetract),
        (cj.OverlaySet("a", "o", "no media type", ""), cj.InvalidEvent),
        (cj.AliasSet("", "a"), cj.InvalidName),
        (cj.AliasSet("a", "b\n"), cj.InvalidName),
        (cj.AliasSet("a", 5), cj.InvalidName),  # type: ignore[arg-type]
        ("alias", cj.InvalidEvent),
        ([], cj.InvalidEvent),
        (cj.OverlaySet("a", "o", "text/plain", "x" * (1 << 20)), cj.TooLarge),
    ],
)
def test_a_refusal_says_why_and_changes_nothing(log: cj.DecisionLog, event: cj.Event, error: type[Exception]) -> None:
    with pytest.raises(error):
        log.append("s", event)
    assert log.head("s") == cj.Head()
    assert log.spaces() == []


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("actor", "<eve>", cj.InvalidName),
        ("actor", "", cj.InvalidName),
        ("key", "a b", cj.InvalidName),
        ("key", "k" * 129, cj.InvalidName),
        ("key", 7, cj.InvalidName),
        ("expect", -1, cj.InvalidEvent),
        ("expect", "0", cj.InvalidEvent),
        ("at", "2026-01-31", cj.InvalidEvent),
        ("at", "2026-02-31T12:00:00.000000Z", cj.InvalidEvent),
    ],
)
def test_arguments_are_checked(log: cj.DecisionLog, argument: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=argument):
        log.append("s", alias(1), **{argument: value})  # type: ignore[arg-type]
    assert log.head("s") == cj.Head()


@pytest.mark.parametrize("space", ["", "A", "-a", "a_b", "a" * 64, "ä", "a/b", "a.lock", None, 3])
def test_a_space_needs_a_name(log: cj.DecisionLog, space: str) -> None:
    calls = (log.head, log.events, log.state, log.subscribe, lambda name: log.append(name, alias(1)))
    for call in calls:
        with pytest.raises(cj.InvalidName, match="space"):
            call(space)


def test_the_same_key_never_appends_twice(log: cj.DecisionLog, term: int) -> None:
    first = log.append("s", alias(1), key="k", actor="a")
    again = log.append("s", alias(1), key="k", actor="a")
    assert again == cj.Receipt("s", 1, 1, first.commit, term, "k", "local", duplicate=True)
    with pytest.raises(cj.KeyReused, match="seq 1"):
        log.append("s", alias(2), key="k", actor="a")
    with pytest.raises(cj.KeyReused):
        log.append("s", alias(1), key="k", actor="b")
    assert log.append("other", alias(2), key="k").duplicate is False, "a key belongs to its space"
    assert log.head("s").seq == 1


def test_a_refused_key_is_free_again(log: cj.DecisionLog) -> None:
    with pytest.raises(cj.NothingToRetract):
        log.append("s", cj.AliasRemoved("a"), key="k")
    assert log.append("s", alias(1), key="k").duplicate is False


def test_a_retry_comes_before_expect_and_state(log: cj.DecisionLog) -> None:
    log.append("s", cj.AliasSet("a", "b"))
    removal = log.append("s", cj.AliasRemoved("a"), key="k", expect=1)
    again = log.append("s", cj.AliasRemoved("a"), key="k", expect=1)
    assert (again.seq, again.duplicate) == (removal.seq, True)


def test_expect_names_the_head(log: cj.DecisionLog) -> None:
    log.append("s", alias(1), expect=0)
    with pytest.raises(cj.Conflict, match="expected head 0, found 1") as conflict:
        log.append("s", alias(2), expect=0)
    assert conflict.value.head_seq == 1
    log.append("s", alias(2), expect=1)


def test_two_appends_under_one_key_at_once_are_one(log: cj.DecisionLog) -> None:
    futures = [log.submit("s", alias(1), key="k", actor="a") for _ in range(20)]
    receipts = [future.result(20) for future in futures]
    assert {(r.seq, r.commit) for r in receipts} == {(1, receipts[0].commit)}
    assert sorted(r.duplicate for r in receipts) == [False] + [True] * 19


def test_submitted_appends_keep_their_order_and_each_its_own_fate(log: cj.DecisionLog) -> None:
    futures: list[Future[cj.Receipt]] = []
    for number in range(200):
        futures.append(log.submit("s", alias(number)))
        futures.append(log.submit("s", cj.AliasRemoved(f"nothing {number}")))
    wait(futures, 30)
    assert [future.result().seq for future in futures[::2]] == list(range(1, 201))
    assert all(isinstance(future.exception(), cj.NothingToRetract) for future in futures[1::2])
    names = [e.event.names()[0] for e in log.events("s")]
    assert names == [f"Name {number}" for number in range(200)]


def test_threads_append_at_once_without_gap_or_loss(log: cj.DecisionLog) -> None:
    receipts: dict[int, cj.Receipt] = {}

    def work(worker: int) -> None:
        for key in (f"{worker}-{number}" for number in range(25)):
            receipt = log.append("s", cj.AliasSet(key, "t"), key=key, timeout=60)
            receipts[receipt.seq] = receipt

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(receipts) == list(range(1, 201))
    in_log = {e.seq: (e.key, e.commit) for e in log.events("s")}
    assert in_log == {seq: (r.key, r.commit) for seq, r in receipts.items()}


def test_a_state_that_was_handed_out_never_changes(log: cj.DecisionLog) -> None:
    log.append("s", [cj.AliasSet("a", "b"), cj.PagesBound("x", "y")])
    before = log.state("s")
    log.append("s", [cj.AliasSet("a", "c"), cj.PagesBound("y", "z"), cj.OverlaySet("x", "o", "text/plain", "hello")])
    assert (before.seq, dict(before.aliases), before.groups[0].members, dict(before.overlays)) == (
        *(2, {"a": "b"}, ("x", "y"), {}),
    )
    after = log.state("s")
    assert (after.seq, dict(after.aliases), after.groups[0].members) == (5, {"a": "c"}, ("x", "y", "z"))
    assert log.state("s", upto=2) == before
    assert log.state("s", upto=5) == after
    assert log.state("s", upto=0).seq == 0
    with pytest.raises(cj.NotFound):
        log.state("s", upto=6)


def test_the_state_is_the_fold_of_the_events_and_nothing_else(log: cj.DecisionLog) -> None:
    log.append("s", [alias(n) for n in range(50)])
    assert cj.fold(log.events("s")) == log.state("s")


def test_subscribe_gives_what_is_there_and_then_what_comes(log: cj.DecisionLog) -> None:
    for number in range(3):
        log.append("s", alias(number))
    seen: list[int] = []
    reached = {seq: threading.Event() for seq in range(2, 9)}

    def follow() -> None:
        for entry in log.subscribe("s", after=1):
            seen.append(entry.seq)
            reached[entry.seq].set()

    follower = threading.Thread(target=follow)
    follower.start()
    assert reached[3].wait(20)
    for number in range(3, 8):
        log.append("s", alias(number))
    assert reached[8].wait(20)
    log.close()
    follower.join(20)
    assert not follower.is_alive()
    assert seen == list(range(2, 9))


def test_after_close_everything_is_closed(log: cj.DecisionLog) -> None:
    log.append("s", alias(1))
    state = log.state("s")
    log.close()
    log.close()
    uses = (
        lambda: log.append("s", alias(2)),
        lambda: log.submit("s", alias(2)),
        lambda: log.head("s"),
        log.spaces,
        lambda: log.events("s"),
        lambda: log.state("s"),
        lambda: next(log.subscribe("s")),
        log.__enter__,
    )
    for use in uses:
        with pytest.raises(cj.Closed):
            use()
    assert state.seq == 1


def test_close_decides_what_was_submitted(log: cj.DecisionLog) -> None:
    futures = [log.submit("s", alias(number)) for number in range(100)]
    log.close()
    assert [future.result(0).seq for future in futures] == list(range(1, 101))


def test_a_future_that_was_cancelled_in_time_is_not_applied(log: cj.DecisionLog) -> None:
    futures = [log.submit("s", alias(number)) for number in range(300)]
    cancelled = {number for number in reversed(range(300)) if futures[number].cancel()}
    log.close()
    done = [future.result(0).seq for number, future in enumerate(futures) if number not in cancelled]
    assert done == list(range(1, 301 - len(cancelled)))


def test_replay_keeps_appends_times_actors_and_keys(log: cj.DecisionLog, target: cj.DecisionLog) -> None:
    log.append("s", [alias(1), alias(2)], key="one", actor="Ada", at=AT)
    log.append("s", cj.OverlaySet("p", "o", "text/plain", "body\n"), key="two", actor="Bob")
    assert cj.replay(log, target, "s") == cj.Replayed(2, 0, 0)
    assert cj.replay(log, target, "s") == cj.Replayed(0, 2, 0)
    kept = [(e.seq, e.key, e.at, e.actor, e.event) for e in target.events("s")]
    assert kept == [(e.seq, e.key, e.at, e.actor, e.event) for e in log.events("s")]
    assert target.state("s") == log.state("s")


def test_replay_raises_a_refusal_unless_it_is_taken(log: cj.DecisionLog, target: cj.DecisionLog) -> None:
    log.append("s", [cj.AliasSet("a", "b"), alias(1)], key="one")
    log.append("s", alias(2), key="two")
    target.append("s", cj.AliasSet("b", "a"))
    with pytest.raises(cj.AliasCycle):
        cj.replay(log, target, "s")
    refused: list[str] = []
    done = cj.replay(log, target, "s", on_refusal=lambda append, error: refused.append(append.key))
    assert (done.refused, refused) == (1, ["one"])
    assert [e.key for e in target.events("s", after=1)] == ["two"]


def test_the_wikis_own_verbs(log: cj.DecisionLog) -> None:
    space = cj.InformationSpace("handbook", log)
    space.alias("Home", "shard-a:Start", actor="alice@example.org", key="k1", expect=0)
    space.bind("a:X", "b:X")
    space.merge(["a:X", "b:Y"], into="a:X")
    space.fork("a:X", "c:X")
    space.overlay("a:X", "fix-1", "text", media_type="text/markdown")
    space.alias("X", "b:X")
    resolved = space.resolve("X")
    assert (resolved.hops, resolved.canonical, resolved.members) == (("X", "b:X"), "a:X", ("a:X", "b:X", "b:Y"))
    assert [(o.page, o.overlay, o.body) for o in resolved.overlays] == [("a:X", "fix-1", "text")]
    assert dict(space.state().forks) == {"c:X": "a:X"}
    space.withdraw("a:X", "fix-1")
    space.unbind("a:X", "b:X")
    space.unalias("Home")
    assert space.state().group("b:X") is None
    assert [e.event.type for e in space.history("a:X")] == [
        *("binding.set", "merge", "fork", "overlay.set", "overlay.removed", "binding.removed"),
    ]
    assert [e.seq for e in space.history("Home")] == [1, 9]
    with pytest.raises(cj.InvalidName):
        space.history(" ")


def test_a_space_that_opened_its_log_closes_it(tmp_path: Path) -> None:
    for repo in (None, tmp_path / "wiki.git"):
        with cj.InformationSpace.open("s", repo=repo) as space:
            space.alias("a", "b")
            log = space.log
        with pytest.raises(cj.Closed):
            log.head("s")


def test_reading_a_repository_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with cj.DecisionLog.open(tmp_path / "no.git") as log:
        for use in (log.head, log.events, log.state, log.subscribe):
            with pytest.raises(cj.NotFound, match="coordjournal init"):
                use("s")
        with pytest.raises(cj.NotFound):
            log.spaces()
        assert not (tmp_path / "no.git").exists()


def test_opening_does_nothing_yet(tmp_path: Path) -> None:
    cj.DecisionLog.open(tmp_path / "no.git").close()
    assert list(tmp_path.iterdir()) == []
