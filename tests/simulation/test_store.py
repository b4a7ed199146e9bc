"""The simulated disk: the contract of a store, and what a crash leaves."""

from __future__ import annotations

import threading

import pytest

import coordjournal as cj
from coordjournal.entry import Append, Appended, Head
from coordjournal.store import Diverged, HeadMoved, Ready, Store
from tests.simulation.schedule import Schedule
from tests.simulation.scheduler import Scheduler
from tests.simulation.store import SimulatedDisk, SimulatedStore
from tests.support import alias

AT = "2026-01-31T12:00:00.000000Z"


def ready(first: int, *events: cj.Event) -> Ready:
    append = Append(events or (alias(first),), f"key-{first}", "alice@example.org", AT)
    return Ready(append, first, append.encode(first))


def published(store: Store, *group: Ready, term: int = 0) -> list[Appended]:
    head = store.head("s")
    written = store.write("s", head, group, term)
    store.advance("s", head, written[-1].head)
    return written


@pytest.fixture
def disk() -> SimulatedDisk:
    return SimulatedDisk()


@pytest.fixture
def store(disk: SimulatedDisk) -> SimulatedStore:
    made = SimulatedStore(disk, "a")
    made.claim("embedded")
    return made


def test_what_was_written_is_not_seen_before_it_is_published(store: SimulatedStore) -> None:
    assert store.head("s") == Head()
    assert list(store.read("s", Head())) == []
    written = store.write("s", Head(), [ready(1)], 0)
    assert store.head("s") == Head()
    assert store.spaces() == []
    assert store.has("s", written[-1].head)
    store.advance("s", Head(), written[-1].head)
    assert store.head("s") == written[-1].head
    assert store.spaces() == ["s"]


def test_appends_come_back_as_they_were_written(store: SimulatedStore) -> None:
    first = published(store, ready(1), ready(2, alias(2), cj.PagesBound("a", "b")), ready(4))
    second = published(store, ready(5), term=3)
    head = store.head("s")
    assert (head.seq, head.term) == (5, 3)
    assert list(store.read("s", head)) == first + second
    for appended in first + second:
        assert store.load("s", appended.commit) == appended
        assert store.identity("s", appended.head) == first[0].commit[:32]
    assert [a.parent for a in first + second] == ["", *(a.commit for a in (first + second)[:-1])]
    assert [[a.first for a in store.read("s", head, after)] for after in (0, 1, 2, 3, 5)] == [
        [1, 2, 4, 5],
        [2, 4, 5],
        [2, 4, 5],
        [4, 5],
        [],
    ]


def test_reading_on_from_a_commit_that_is_not_the_logs_is_diverged(store: SimulatedStore) -> None:
    written = published(store, ready(1), ready(2), ready(3))
    orphan = store.write("s", written[0].head, [ready(2, alias(99))], 0)[0]
    head = store.head("s")
    assert [a.first for a in store.read("s", head, 2, written[1].commit)] == [3]
    assert list(store.read("s", head, 3, written[2].commit)) == []
    for after, base in ((2, orphan.commit), (3, orphan.commit), (2, ""), (1, written[1].commit)):
        with pytest.raises(Diverged):
            store.read("s", head, after, base)


def test_the_branch_moves_only_from_where_it_is(disk: SimulatedDisk, store: SimulatedStore) -> None:
    other = SimulatedStore(disk, "b")
    mine = store.write("s", Head(), [ready(1)], 0)[0]
    theirs = other.write("s", Head(), [ready(1)], 0)[0]
    assert mine.commit != theirs.commit, "git's commits name the node"
    store.advance("s", Head(), mine.head)
    with pytest.raises(HeadMoved):
        other.advance("s", Head(), theirs.head)
    with pytest.raises(HeadMoved):
        store.advance("s", theirs.head, mine.head)
    assert other.head("s") == mine.head


def test_only_one_writer_is_let_in_at_a_time(disk: SimulatedDisk, store: SimulatedStore) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(worker: int) -> None:
        for _ in range(20):
            with SimulatedStore(disk, str(worker)).exclusive("s") as mine:
                assert mine
                inside.append(worker)
                most.append(len(inside))
                inside.remove(worker)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(3)]
    with store.exclusive("other"), store.exclusive("s"), store.exclusive("s", wait=False) as second:
        assert not second
        for thread in threads:
            thread.start()
        assert most == []
    for thread in threads:
        thread.join(20)
    assert most == [1] * 60


def test_a_commit_that_is_not_there_is_corrupt(store: SimulatedStore) -> None:
    published(store, ready(1))
    nowhere = Head(2, "2" * 40, 0)
    assert not store.has("s", nowhere)
    for use in (
        lambda: store.load("s", nowhere.commit),
        lambda: store.read("s", nowhere),
        lambda: store.read("s", Head(2, store.head("s").commit)),
        lambda: store.write("s", nowhere, [ready(3)], 0),
    ):
        with pytest.raises(cj.Corrupt):
            use()


def test_a_repository_belongs_to_one_authority_and_journal(disk: SimulatedDisk) -> None:
    store = SimulatedStore(disk)
    with pytest.raises(cj.NotFound):
        store.head("s")
    with pytest.raises(cj.ForeignRepository):
        store.claim("etcd", "known to etcd", "/coordjournal/")
    assert store.claim("etcd", "", "/coordjournal/") == disk.journal
    assert store.claim("etcd", disk.journal, "/coordjournal/") == disk.journal
    with pytest.raises(cj.WrongAuthority):
        store.claim("embedded")
    with pytest.raises(cj.ForeignRepository):
        store.claim("etcd", "another", "/coordjournal/")
    with pytest.raises(cj.ForeignRepository):
        store.claim("etcd", disk.journal, "/elsewhere/")


def test_what_a_disk_refuses_is_said_to_be_undone_or_undecided(disk: SimulatedDisk, store: SimulatedStore) -> None:
    head = published(store, ready(1))[-1].head
    disk.fails = lambda step: step == "write"
    with pytest.raises(cj.Unavailable):
        store.write("s", head, [ready(2)], 0)
    disk.fails = lambda step: step == "advance"
    new = store.write("s", head, [ready(2)], 0)[0].head
    with pytest.raises(cj.Unavailable):
        store.advance("s", head, new)
    assert store.head("s") == head
    disk.fails = lambda step: step == "sync"
    with pytest.raises(cj.Undecided):
        store.advance("s", head, new)
    assert store.head("s") == new
    disk.lose_power()
    assert store.head("s") == head


def test_another_hosts_commits_are_hidden_for_a_while() -> None:
    clock = Scheduler(Schedule([]))
    disk = SimulatedDisk(clock=clock, hidden_seconds=60)
    one, other = SimulatedStore(disk, "a"), SimulatedStore(disk, "b")
    one.claim("etcd")
    head = published(one, ready(1))[-1].head
    assert one.has("s", head)
    assert other.head("s") == head
    assert other.patience == 60
    clock.advance(59)
    assert not other.has("s", head)
    with pytest.raises(cj.Corrupt):
        other.load("s", head.commit)
    clock.advance(1)
    assert list(other.read("s", head)) == list(one.read("s", head))


def left_by_a_crash(label: str, nth: int = 1, *, power: bool) -> tuple[int, int]:
    """Publish two appends, kill the node at the nth yield point of that label; return commits and head's seq left."""
    disk = SimulatedDisk()
    seen: list[str] = []

    def interfere() -> None:
        seen.append(node.label)
        if node.label == label and seen.count(label) == nth:
            scheduler.kill(node)

    scheduler = Scheduler(Schedule([]), interfere=interfere)
    store = SimulatedStore(disk, "a", scheduler.yield_point)
    store.claim("etcd")
    node = scheduler.spawn("a", lambda: published(store, ready(1), ready(2)))
    scheduler.run()
    assert seen.count(label) == nth
    if power:
        disk.lose_power()
    return len(disk.commits), SimulatedStore(disk, "b").head("s").seq


@pytest.mark.parametrize(
    ("label", "nth", "killed", "without_power"),
    [
        ("write", 1, (0, 0), (0, 0)),
        ("write: not synced", 1, (1, 0), (0, 0)),
        ("write: not synced", 2, (2, 0), (0, 0)),
        ("write: synced", 1, (2, 0), (2, 0)),
        ("advance", 1, (2, 0), (2, 0)),
        ("advance: not synced", 1, (2, 2), (2, 0)),
        ("advance: synced", 1, (2, 2), (2, 2)),
    ],
)
def test_a_crash_leaves_what_was_done_and_a_power_cut_what_was_synced(
    label: str, nth: int, killed: tuple[int, int], without_power: tuple[int, int]
) -> None:
    assert left_by_a_crash(label, nth, power=False) == killed
    assert left_by_a_crash(label, nth, power=True) == without_power


def test_a_power_cut_takes_from_its_own_host_only_and_may_leave_a_part(disk: SimulatedDisk) -> None:
    here, there = SimulatedStore(disk, "a"), SimulatedStore(disk, "b")
    here.claim("etcd")
    disk.fails = lambda step: step == "sync"
    first = here.write("s", Head(), [ready(1)], 0)[0].head
    second = there.write("s", first, [ready(2)], 0)[0].head
    for store, old, new in ((here, Head(), first), (there, first, second)):
        with pytest.raises(cj.Undecided):
            store.advance("s", old, new)
    disk.lose_power("a")
    assert here.head("s") == second
    disk.lose_power("b", survives=lambda: True)
    assert here.head("s") == second
    disk.lose_power("b")
    assert here.head("s") == Head()
    assert here.has("s", first)


def test_a_simulated_node_waits_for_the_lock_of_another_one_and_gets_it_when_that_dies(disk: SimulatedDisk) -> None:
    order: list[str] = []

    def holder() -> None:
        with stores["a"].exclusive("s"):
            order.append("a")
            scheduler.sleep(1000)

    def waiter() -> None:
        with stores["b"].exclusive("s"):
            order.append("b")

    def interfere() -> None:
        if first.label == "sleep" and second.label == "lock":
            scheduler.kill(first)

    scheduler = Scheduler(Schedule([]), interfere=interfere)
    stores = {
        name: SimulatedStore(
            disk, name, scheduler.yield_point, lambda free: scheduler.sleep_until(free, float("inf"), "lock")
        )
        for name in "ab"
    }
    stores["a"].claim("etcd")
    first, second = scheduler.spawn("a", holder), scheduler.spawn("b", waiter)
    scheduler.run()
    assert order == ["a", "b"]
    assert scheduler.now < 1
