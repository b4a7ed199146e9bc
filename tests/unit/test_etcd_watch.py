"""Watches on a scripted etcd: whatever happens to the stream, no change is lost without a word."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tenacity import wait_none

from coordjournal.etcd import Change, Unanswered, end_of
from coordjournal.etcd import etcd_pb2 as pb
from coordjournal.etcd.endpoints import endpoints_of
from coordjournal.etcd.messages import changes
from coordjournal.etcd.pool import AUTHENTICATE, Pool
from coordjournal.etcd.watch import StreamWatcher
from coordjournal.retry import ETCD_STREAM
from tests.unit.fake_etcd import WAIT_SECONDS, Abort, FakeEtcd, WatchStream, put

PACE: Final = 0.2
"""Seconds between requests for a sign of life, in tests of just that. After 2.5 times as long etcd is silent."""

CALM: Final = 600.0
"""The same, where they are not to come."""

SOME: Final = b"/some/"

Connect = Callable[..., StreamWatcher]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordjournal.etcd.watch.ETCD_STREAM", ETCD_STREAM.copy(wait=wait_none()))


@pytest.fixture
def fake() -> Iterator[FakeEtcd]:
    with FakeEtcd() as fake:
        yield fake


@pytest.fixture
def connect() -> Iterator[Connect]:
    made: list[tuple[Pool, StreamWatcher]] = []

    def make(*fakes: FakeEtcd, pace: float = CALM, user: str = "") -> StreamWatcher:
        pool = Pool(endpoints_of(fake.endpoint for fake in fakes), None, user, "sesame" if user else "")
        made.append((pool, StreamWatcher(pool, progress_seconds=pace)))
        return made[-1][1]

    yield make
    for pool, watcher in made:
        watcher.close()
        pool.close()


class Told:
    """What a watch was told: each change as its revision and key."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[list[tuple[int, str]] | None] = SimpleQueue()

    def __call__(self, changes: Sequence[Change] | None) -> None:
        self._queue.put(
            None if changes is None else [(change.kv.mod_revision, change.kv.key.decode()) for change in changes]
        )

    def next(self) -> list[tuple[int, str]] | None:
        return self._queue.get(timeout=WAIT_SECONDS)

    def nothing(self) -> bool:
        return self._queue.empty()


def added(watcher: StreamWatcher, key: bytes = SOME) -> Told:
    told = Told()
    watcher.add(key, end_of(key), told)
    return told


def standing(fake: FakeEtcd, watcher: StreamWatcher, revision: int = 10) -> tuple[WatchStream, int, Told]:
    """Add a watch and let it stand; return the stream, the watch's id there, and what it is told."""
    told = added(watcher)
    stream = fake.stream()
    request = stream.create(revision)
    assert told.next() is None
    return stream, request.watch_id, told


# As long as all is well.


def test_a_watch_stands_and_then_is_told_what_changes(fake: FakeEtcd, connect: Connect) -> None:
    told = added(connect(fake))
    stream = fake.stream()
    request = stream.receive_create()
    assert (request.key, request.range_end, request.start_revision, request.fragment) == (SOME, b"/some0", 0, True)
    assert request.watch_id > 0
    assert told.nothing()
    stream.confirm(request, 10)
    assert told.next() is None
    stream.events(request.watch_id, put(11, "/some/a"), put(11, "/some/b"), put(12, "/some/a"))
    assert told.next() == [(11, "/some/a"), (11, "/some/b"), (12, "/some/a")]
    assert stream.metadata["hasleader"] == "true"


def test_a_deletion_is_told_as_one(fake: FakeEtcd, connect: Connect) -> None:
    raw: SimpleQueue[Sequence[Change] | None] = SimpleQueue()
    connect(fake).add(b"/k", b"", raw.put)
    stream = fake.stream()
    request = stream.create(1)
    assert request.range_end == b""
    assert raw.get(timeout=WAIT_SECONDS) is None
    gone = pb.Event(type=pb.Event.DELETE, kv=pb.KeyValue(key=b"/k", mod_revision=2))
    stream.send(watch_id=request.watch_id, events=[gone])
    told = raw.get(timeout=WAIT_SECONDS)
    assert told is not None
    assert [(change.deleted, change.kv.key, change.kv.value) for change in told] == [(True, b"/k", b"")]


def test_many_watches_share_one_stream_and_know_their_own(fake: FakeEtcd, connect: Connect) -> None:
    watcher = connect(fake)
    told = [added(watcher, b"/%d/" % number) for number in range(20)]
    stream = fake.stream()
    requests = [stream.create(1) for _ in told]
    assert [one.next() for one in told] == [None] * 20
    for number, request in reversed(list(enumerate(requests))):
        stream.events(request.watch_id, put(2, f"/{number}/x"))
    assert [one.next() for one in told] == [[(2, f"/{number}/x")] for number in range(20)]
    assert len({request.watch_id for request in requests}) == 20


def test_adding_needs_no_etcd(fake: FakeEtcd, connect: Connect) -> None:
    watcher = connect(fake)
    fake.stop()
    assert watcher.add(SOME, b"", Told()) != watcher.add(SOME, b"", Told())


def test_a_removed_watch_is_canceled_and_told_nothing_more(fake: FakeEtcd, connect: Connect) -> None:
    watcher = connect(fake)
    told, other = Told(), Told()
    number = watcher.add(b"/a", b"", told)
    watcher.add(b"/b", b"", other)
    stream = fake.stream()
    first, second = stream.create(1), stream.create(1)
    assert (told.next(), other.next()) == (None, None)
    watcher.remove(number)
    watcher.remove(number)
    assert stream.receive().cancel_request.watch_id == first.watch_id
    stream.events(first.watch_id, put(2, "/a"))
    stream.send(watch_id=first.watch_id, canceled=True)
    stream.events(second.watch_id, put(3, "/b"))
    assert other.next() == [(3, "/b")]
    assert told.nothing()
    stream.end()
    assert fake.stream().create(3).key == b"/b"


def test_a_watch_that_is_removed_before_it_stands_never_does(fake: FakeEtcd, connect: Connect) -> None:
    watcher = connect(fake)
    told = Told()
    number = watcher.add(b"/a", b"", told)
    stream = fake.stream()
    request = stream.receive_create()
    watcher.remove(number)
    assert stream.receive().cancel_request.watch_id == request.watch_id
    stream.confirm(request, 1)
    after = added(watcher)
    stream.create(1)
    assert after.next() is None
    assert told.nothing()


def test_a_tell_may_add_remove_and_close(fake: FakeEtcd, connect: Connect) -> None:
    watcher = connect(fake)
    told = Told()
    closed = threading.Event()

    def busy(changes: Sequence[Change] | None) -> None:
        if changes is None:
            watcher.remove(watcher.add(b"/passing", b"", told))
            watcher.add(b"/other", b"", told)
        else:
            watcher.close()
            closed.set()

    watcher.add(SOME, b"", busy)
    stream = fake.stream()
    request = stream.create(1)
    passing = stream.receive_create()
    assert stream.receive().cancel_request.watch_id == passing.watch_id
    stream.confirm(passing, 1)
    stream.create(1)
    assert told.next() is None
    stream.events(request.watch_id, put(2, "/some/a"))
    assert closed.wait(WAIT_SECONDS)
    assert stream.over.wait(WAIT_SECONDS)
    assert told.nothing()


def test_a_tell_that_raises_harms_nobody_else(
    fake: FakeEtcd, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    def raising(_: Sequence[Change] | None) -> None:
        raise ZeroDivisionError

    watcher = connect(fake)
    watcher.add(b"/a", b"", raising)
    told = added(watcher)
    stream = fake.stream()
    stream.create(1)
    stream.create(1)
    assert told.next() is None
    assert "ZeroDivisionError" in caplog.text


# The stream breaks.


@pytest.mark.parametrize(
    "abort",
    [
        None,
        Abort("UNAVAILABLE", "etcdserver: no leader"),
        Abort("CANCELLED", "etcdserver: watch canceled"),
        Abort("UNKNOWN", "something"),
        Abort("RESOURCE_EXHAUSTED", "grpc: received message larger than max"),
    ],
)
def test_after_the_end_of_the_stream_a_watch_goes_on_where_it_was(
    fake: FakeEtcd, connect: Connect, abort: Abort | None
) -> None:
    stream, wire, told = standing(fake, connect(fake))
    stream.events(wire, put(11, "/some/a"))
    assert told.next() == [(11, "/some/a")]
    stream.end() if abort is None else stream.fail(*abort)
    stream = fake.stream()
    request = stream.create(15)
    assert request.start_revision == 12
    stream.events(request.watch_id, put(13, "/some/b"))
    assert told.next() == [(13, "/some/b")]


def test_a_watch_that_was_told_nothing_yet_goes_on_from_where_it_stood(fake: FakeEtcd, connect: Connect) -> None:
    stream, _, told = standing(fake, connect(fake), 10)
    stream.end()
    assert fake.stream().create(10).start_revision == 11
    assert told.nothing()


def test_signs_of_life_do_not_move_where_a_watch_goes_on(fake: FakeEtcd, connect: Connect) -> None:
    """Etcd 3.4.23 shows progress ahead of events that it has still to send (etcd's issue 15220)."""
    stream, wire, told = standing(fake, connect(fake), 10)
    stream.show_progress(20)
    stream.events(wire, put(11, "/some/a"))
    assert told.next() == [(11, "/some/a")]
    stream.show_progress(30)
    stream.end()
    assert fake.stream().create(30).start_revision == 12


def test_fragments_are_told_together_and_in_order(fake: FakeEtcd, connect: Connect) -> None:
    watcher = connect(fake)
    stream, wire, told = standing(fake, watcher)
    other = added(watcher, b"/other/")
    second = stream.create(10)
    assert other.next() is None
    stream.events(wire, put(11, "/some/a"), put(12, "/some/b"), fragment=True)
    stream.events(second.watch_id, put(12, "/other/x"))
    assert other.next() == [(12, "/other/x")]
    stream.events(wire, put(12, "/some/c"), fragment=True)
    assert told.nothing()
    stream.events(wire, put(12, "/some/d"), put(13, "/some/e"))
    assert told.next() == [
        (11, "/some/a"),
        (12, "/some/b"),
        (12, "/some/c"),
        (12, "/some/d"),
        (13, "/some/e"),
    ]


def test_a_stream_that_is_cut_between_fragments_goes_on_before_them(fake: FakeEtcd, connect: Connect) -> None:
    stream, wire, told = standing(fake, connect(fake))
    stream.events(wire, put(11, "/some/a"))
    stream.events(wire, put(12, "/some/b"), put(13, "/some/c"), fragment=True)
    assert told.next() == [(11, "/some/a")]
    stream.fail("UNAVAILABLE", "gone")
    stream = fake.stream()
    request = stream.create(13)
    assert request.start_revision == 12
    stream.events(request.watch_id, put(12, "/some/b"), put(13, "/some/c"), put(13, "/some/d"))
    assert told.next() == [(12, "/some/b"), (13, "/some/c"), (13, "/some/d")]


History = list[list[str]]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    history=st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=3), min_size=1, max_size=8),
    plan=st.lists(
        st.tuples(st.integers(0, 24), st.integers(1, 5), st.integers(1, 3), st.booleans()), min_size=0, max_size=4
    ),
)
def test_however_a_stream_is_split_and_cut_every_change_is_told_once_in_order(
    fake: FakeEtcd, connect: Connect, history: History, plan: list[tuple[int, int, int, bool]]
) -> None:
    """`plan` has, for each stream that breaks: after how many responses, of how many events and fragments, and how."""
    watcher = connect(fake)
    told = added(watcher)
    events = [put(2 + number, f"/some/{key}") for number, keys in enumerate(history) for key in keys]
    for cut, size, parts, clean in [*plan, (1 << 30, 2, 2, True)]:
        stream = fake.stream()
        request = stream.receive_create()
        start = request.start_revision or 2
        stream.confirm(request, 1 if not request.start_revision else len(history) + 1)
        rest = [event for event in events if event.kv.mod_revision >= start]
        for number, (response, fragment) in enumerate(split(rest, size, parts)):
            if number == cut:
                break
            stream.events(request.watch_id, *response, fragment=fragment)
        if cut < 1 << 30:
            stream.end() if clean else stream.fail("UNAVAILABLE", "gone")
    assert told.next() is None
    seen: list[tuple[int, str]] = []
    while len(seen) < len(events):
        more = told.next()
        assert more is not None
        seen += more
        assert more[-1] == [one for one in wanted(events) if one[0] == more[-1][0]][-1], "half a revision was told"
    assert seen == wanted(events)
    watcher.close()


def wanted(events: list[pb.Event]) -> list[tuple[int, str]]:
    return [(event.kv.mod_revision, event.kv.key.decode()) for event in events]


def split(events: list[pb.Event], size: int, parts: int) -> Iterator[tuple[list[pb.Event], bool]]:
    """Yield responses as etcd makes them: batches of whole revisions, each in some fragments of `size` events."""
    batch: list[pb.Event] = []
    for number, event in enumerate(events):
        batch.append(event)
        last = number + 1 == len(events)
        whole = last or events[number + 1].kv.mod_revision != event.kv.mod_revision
        if whole and (last or len(batch) >= size * parts):
            pieces = [batch[start : start + size] for start in range(0, len(batch), size)]
            yield from ((piece, piece is not pieces[-1]) for piece in pieces)
            batch = []


# What etcd says of a watch.


def test_compaction_past_a_watch_is_told_and_it_goes_on_from_now(fake: FakeEtcd, connect: Connect) -> None:
    stream, wire, told = standing(fake, connect(fake))
    stream.end()
    stream = fake.stream()
    request = stream.create(90)
    assert request.start_revision == 11
    stream.send(watch_id=request.watch_id, canceled=True, compact_revision=80)
    request = stream.create(91)
    assert request.start_revision == 0
    assert request.watch_id != wire
    assert told.next() is None
    stream.end()
    assert fake.stream().create(91).start_revision == 92


@pytest.mark.parametrize("names_the_watch", [True, False])
def test_a_denied_watch_is_tried_again_until_it_stands(
    fake: FakeEtcd, connect: Connect, names_the_watch: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Etcd says so with the watch's id, or with -1 (from 3.4.22 on)."""
    watcher = connect(fake, pace=PACE)
    first, denied, last = (added(watcher, key) for key in (b"/a/", b"/denied/", b"/z/"))
    stream = fake.stream()
    stream.create(1)
    request = stream.receive_create()
    stream.send(
        watch_id=request.watch_id if names_the_watch else -1,
        created=True,
        canceled=True,
        cancel_reason="rpc error: code = PermissionDenied desc = etcdserver: permission denied",
    )
    stream.create(1)
    assert (first.next(), last.next()) == (None, None)
    while not stream.has_request():  # meanwhile etcd is asked for signs of life
        stream.progress.acquire()
        stream.show_progress(1)
    again = stream.create(1)
    assert again.key == b"/denied/"
    assert denied.next() is None
    stream.events(again.watch_id, put(2, "/denied/x"))
    assert denied.next() == [(2, "/denied/x")]
    assert fake.streams.empty()
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "does not let /denied/ be watched: this user may not do that" in warning
    assert "rpc error" not in warning


def test_a_watch_that_stood_and_is_denied_now_is_told(fake: FakeEtcd, connect: Connect) -> None:
    stream, _, told = standing(fake, connect(fake))
    stream.end()
    stream = fake.stream()
    stream.receive_create()
    stream.send(watch_id=-1, created=True, canceled=True, cancel_reason="etcdserver: permission denied")
    assert told.next() is None


@pytest.mark.parametrize(
    "reason",
    [
        "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token",
        "rpc error: code = InvalidArgument desc = etcdserver: user name is empty",
        "rpc error: code = InvalidArgument desc = etcdserver: revision of auth store is old",
    ],
)
def test_an_expired_token_is_got_anew_for_the_watches(fake: FakeEtcd, connect: Connect, reason: str) -> None:
    fake.script[AUTHENTICATE].extend(pb.AuthenticateResponse(token=token) for token in ("one", "two"))
    watcher = connect(fake, user="node")
    stream, wire, told = standing(fake, watcher)
    assert stream.metadata["token"] == "one"
    stream.events(wire, put(11, "/some/a"))
    assert told.next() is not None
    late = added(watcher, b"/late/")
    stream.receive_create()
    stream.send(watch_id=-1, created=True, canceled=True, cancel_reason=reason)
    stream = fake.stream()
    assert stream.metadata["token"] == "two"
    assert stream.create(11).start_revision == 12
    stream.create(11)
    assert late.next() is None
    assert told.nothing()


def test_a_stream_that_is_refused_for_its_token_gets_another(fake: FakeEtcd, connect: Connect) -> None:
    fake.script[AUTHENTICATE].extend(pb.AuthenticateResponse(token=token) for token in ("one", "two"))
    stream, _, _ = standing(fake, connect(fake, user="node"))
    stream.fail("UNAUTHENTICATED", "etcdserver: invalid auth token")
    assert fake.stream().metadata["token"] == "two"


def test_a_wrong_password_is_tried_again(fake: FakeEtcd, connect: Connect) -> None:
    wrong = Abort("INVALID_ARGUMENT", "etcdserver: authentication failed, invalid user ID or password")
    fake.script[AUTHENTICATE].extend([wrong, wrong, pb.AuthenticateResponse(token="one")])
    standing(fake, connect(fake, user="node"))


# Etcd is not what it was.


@pytest.mark.parametrize(
    "header_now",
    [{"revision": 5}, {"revision": 20, "cluster": 8}, {"revision": 20, "term": 1}],
    ids=["older revision", "another cluster", "older term"],
)
def test_an_etcd_that_was_wiped_or_restored_is_watched_from_now(
    fake: FakeEtcd, connect: Connect, header_now: dict[str, int]
) -> None:
    stream, wire, told = standing(fake, connect(fake), 10)
    stream.events(wire, put(11, "/some/a"))
    assert told.next() is not None
    stream.end()
    stream = fake.stream()
    request = stream.create(**header_now)
    assert request.start_revision == 12
    assert stream.receive().cancel_request.watch_id == request.watch_id
    assert told.nothing()
    request = stream.create(**header_now)
    assert request.start_revision == 0
    assert told.next() is None
    stream.events(request.watch_id, put(6, "/some/b"))
    assert told.next() == [(6, "/some/b")]


def test_a_sign_of_life_from_an_older_revision_starts_all_over(fake: FakeEtcd, connect: Connect) -> None:
    stream, _, told = standing(fake, connect(fake, pace=PACE), 10)
    stream.progress.acquire()
    stream.show_progress(9)
    stream = fake.stream()
    assert stream.create(9).start_revision == 0
    assert told.next() is None


# Etcd is silent.


def test_a_silent_stream_is_left_for_the_next_endpoint(fake: FakeEtcd, connect: Connect) -> None:
    with FakeEtcd() as other:
        stream, _, told = standing(fake, connect(fake, other, pace=PACE))
        assert stream.over.wait(WAIT_SECONDS)
        request = other.stream().create(10)
        assert request.start_revision == 11
        assert told.nothing()


def test_signs_of_life_keep_a_stream(fake: FakeEtcd, connect: Connect) -> None:
    stream, wire, told = standing(fake, connect(fake, pace=PACE), 10)
    for _ in range(5):
        stream.progress.acquire()
        stream.show_progress(10)
    stream.events(wire, put(11, "/some/a"))
    assert told.next() == [(11, "/some/a")]
    assert fake.streams.empty()


def test_a_stream_without_watches_may_be_silent(fake: FakeEtcd, connect: Connect) -> None:
    """From 3.5.8 on etcd has nothing to say then."""
    watcher = connect(fake, pace=PACE)
    number = watcher.add(b"/a", b"", Told())
    stream = fake.stream()
    stream.create(1)
    watcher.remove(number)
    stream.receive()
    for _ in range(5):
        stream.progress.acquire()
    told = added(watcher)
    request = stream.receive_create()
    assert stream.progress.acquire(timeout=WAIT_SECONDS)  # it is not too late for an answer yet
    stream.confirm(request, 1)
    assert told.next() is None
    assert fake.streams.empty()


def test_a_watch_that_is_never_confirmed_is_asked_for_on_a_new_stream(fake: FakeEtcd, connect: Connect) -> None:
    watcher = connect(fake, pace=PACE)
    stream, _, _ = standing(fake, watcher)
    lost = added(watcher, b"/lost/")
    while not stream.over.is_set():
        stream.progress.acquire(timeout=PACE)
        stream.show_progress(10)
    stream = fake.stream()
    stream.create(10)
    stream.create(10)
    assert lost.next() is None


def test_while_a_tell_is_slow_etcd_is_not_called_silent_and_nothing_is_lost(fake: FakeEtcd, connect: Connect) -> None:
    watcher = connect(fake, pace=PACE)
    told = Told()
    busy, go = threading.Event(), threading.Event()

    def slow(changes: Sequence[Change] | None) -> None:
        if changes and not busy.is_set():
            busy.set()
            assert go.wait(WAIT_SECONDS)
        told(changes)

    watcher.add(SOME, end_of(SOME), slow)
    stream = fake.stream()
    wire = stream.create(10).watch_id
    assert told.next() is None
    stream.events(wire, put(11, "/some/0"))
    assert busy.wait(WAIT_SECONDS)
    for number in range(1, 200):
        stream.events(wire, put(11 + number, f"/some/{number}"))
    assert not stream.over.wait(5 * PACE)  # twice the time after which it would be silent otherwise
    go.set()
    assert [told.next() for _ in range(200)] == [[(11 + number, f"/some/{number}")] for number in range(200)]
    assert fake.streams.empty()


# The end.


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "coordjournal-watch"]


def test_closing_ends_the_stream_and_the_thread(fake: FakeEtcd, connect: Connect) -> None:
    watcher = connect(fake)
    stream, wire, told = standing(fake, watcher)
    assert threads()
    watcher.close()
    assert not threads()
    assert stream.over.wait(WAIT_SECONDS)
    stream.events(wire, put(11, "/some/a"))
    assert told.nothing()
    watcher.close()
    with pytest.raises(Unanswered):
        watcher.add(SOME, b"", told)


def test_closing_ends_the_thread_while_no_etcd_is_there(fake: FakeEtcd, connect: Connect) -> None:
    watcher = connect(fake)
    stream, _, _ = standing(fake, watcher)
    fake.stop()
    assert stream.over.wait(WAIT_SECONDS)
    watcher.close()
    assert not threads()


def test_closing_ends_the_thread_between_two_attempts(
    fake: FakeEtcd, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = threading.Event()

    def long(_: object) -> float:
        waiting.set()
        return 1000.0

    monkeypatch.setattr("coordjournal.etcd.watch.ETCD_STREAM", ETCD_STREAM.copy(wait=long))
    watcher = connect(fake)
    added(watcher)
    fake.stream().end()
    assert waiting.wait(WAIT_SECONDS)
    watcher.close()
    assert not threads()


def test_a_watcher_that_was_never_used_closes(fake: FakeEtcd, connect: Connect) -> None:
    connect(fake).close()
    assert not threads()


def test_something_unexpected_is_logged_and_the_watches_go_on(
    fake: FakeEtcd, connect: Connect, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stream, wire, told = standing(fake, connect(fake))
    monkeypatch.setattr("coordjournal.etcd.watch.changes", lambda events: 1 // 0)
    stream.events(wire, put(11, "/some/a"))
    assert stream.over.wait(WAIT_SECONDS)
    monkeypatch.setattr("coordjournal.etcd.watch.changes", changes)
    stream = fake.stream()
    request = stream.create(11)
    assert request.start_revision == 11
    stream.events(request.watch_id, put(11, "/some/a"))
    assert told.next() == [(11, "/some/a")]
    assert "ZeroDivisionError" in caplog.text


def test_a_reconnection_is_logged_without_the_password(
    fake: FakeEtcd, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "coordjournal")
    fake.script[AUTHENTICATE].append(pb.AuthenticateResponse(token="opensesame"))
    stream, _, _ = standing(fake, connect(fake, user="node"))
    stream.fail("UNAVAILABLE", "etcdserver: no leader")
    fake.stream()
    assert "no leader" in caplog.text
    assert "sesame" not in caplog.text
