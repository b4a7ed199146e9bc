"""The contract of a store: memory and git both keep it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

import coordjournal as cj
from coordjournal.entry import Append, Appended, Head
from coordjournal.store import Diverged, HeadMoved, Ready, Store
from coordjournal.store.git import GitStore
from coordjournal.store.memory import MemoryStore
from tests.support import alias

AT = "2026-01-31T12:00:00.000000Z"


@pytest.fixture(params=["memory", "git"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made: Store
    if request.param == "memory":
        made = MemoryStore()
    else:
        made = GitStore(tmp_path / "wiki.git", node="test", clock=lambda: datetime.now(UTC), random=os.urandom)
    made.claim("embedded")
    yield made
    made.close()


def ready(first: int, *events: cj.Event, key: str = "") -> Ready:
    append = Append(events or (alias(first),), key or f"key-{first}", "alice@example.org", AT)
    return Ready(append, first, append.encode(first))


def published(store: Store, *group: Ready, space: str = "s", term: int = 0) -> list[Appended]:
    head = store.head(space)
    written = store.write(space, head, group, term)
    store.advance(space, head, written[-1].head)
    return written


def test_a_space_in_which_nothing_was_decided_has_an_empty_head(store: Store) -> None:
    assert store.head("s") == Head()
    assert store.spaces() == []
    assert list(store.read("s", Head())) == []


def test_what_was_written_is_not_seen_before_it_is_published(store: Store) -> None:
    written = store.write("s", Head(), [ready(1)], 0)
    assert store.head("s") == Head()
    assert store.spaces() == []
    store.advance("s", Head(), written[-1].head)
    assert store.head("s") == written[-1].head
    assert store.spaces() == ["s"]


def test_appends_come_back_as_they_were_written(store: Store) -> None:
    first = published(store, ready(1), ready(2, alias(2), cj.PagesBound("a", "b")), ready(4))
    second = published(store, ready(5), term=3)
    head = store.head("s")
    assert (head.seq, head.term) == (5, 3)
    assert list(store.read("s", head)) == first + second
    for appended in first + second:
        assert store.load("s", appended.commit) == appended
    assert [a.parent for a in first + second] == ["", *(a.commit for a in (first + second)[:-1])]


def test_reading_begins_with_the_append_that_holds_the_next_entry(store: Store) -> None:
    written = published(store, ready(1), ready(2, alias(2), alias(3), alias(4)), ready(5))
    head = store.head("s")
    starts = [[a.first for a in store.read("s", head, after)] for after in range(6)]
    assert starts == [[1, 2, 5], [2, 5], [2, 5], [2, 5], [5], []]
    assert list(store.read("s", written[0].head)) == written[:1]


def test_many_appends_are_read_across_the_borders_of_chunks_and_trees(store: Store) -> None:
    for start in range(1, 1202, 100):
        published(store, *(ready(seq) for seq in range(start, start + 100)))
    head = store.head("s")
    assert [e.seq for a in store.read("s", head) for e in a.entries] == list(range(1, 1301))
    assert [a.first for a in store.read("s", head, 1198)] == list(range(1199, 1301))


def test_reading_on_from_a_commit_that_is_not_the_logs_is_diverged(store: Store) -> None:
    written = published(store, ready(1), ready(2), ready(3))
    orphan = store.write("s", written[0].head, [ready(2, alias(99))], 0)[0]
    head = store.head("s")
    assert [a.first for a in store.read("s", head, 2, written[1].commit)] == [3]
    assert list(store.read("s", head, 3, written[2].commit)) == []
    for after, base in ((2, orphan.commit), (3, orphan.commit), (2, ""), (1, written[1].commit)):
        with pytest.raises(Diverged):
            store.read("s", head, after, base)


def test_the_branch_moves_only_from_where_it_is(store: Store) -> None:
    mine = store.write("s", Head(), [ready(1)], 0)[0]
    other = store.write("s", Head(), [ready(1, alias(2))], 0)[0]
    store.advance("s", Head(), mine.head)
    with pytest.raises(HeadMoved):
        store.advance("s", Head(), other.head)
    with pytest.raises(HeadMoved):
        store.advance("s", other.head, mine.head)
    assert store.head("s") == mine.head


def test_spaces_are_apart(store: Store) -> None:
    published(store, ready(1), space="b")
    published(store, ready(1), ready(2), space="a")
    assert store.spaces() == ["a", "b"]
    assert (store.head("a").seq, store.head("b").seq) == (2, 1)


def test_only_one_writer_is_let_in_at_a_time(store: Store) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(worker: int) -> None:
        for _ in range(50):
            with store.exclusive("s"):
                inside.append(worker)
                most.append(len(inside))
                os.sched_yield()
                inside.remove(worker)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    with store.exclusive("other"):  # another space's writer is in nobody's way
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert most == [1] * 200


def test_a_store_may_be_used_again_after_it_was_closed(store: Store) -> None:
    written = published(store, ready(1))
    store.close()
    assert list(store.read("s", store.head("s"))) == written


def test_a_commit_that_is_not_there_is_corrupt(store: Store) -> None:
    published(store, ready(1))
    with pytest.raises(cj.Corrupt):
        store.load("s", "1" * 40)
    with pytest.raises(cj.Corrupt):
        list(store.read("s", Head(2, "2" * 40, 0)))


def test_the_same_appends_have_the_same_bytes_and_chain_everywhere() -> None:
    first, second = MemoryStore(), MemoryStore()
    assert first.write("s", Head(), [ready(1)], 0) == second.write("s", Head(), [ready(1)], 0)
    assert first.write("s", Head(), [ready(1)], 0) != second.write("s", Head(), [ready(1)], 1)


# What etcd's authority asks of a store.


def test_an_append_is_in_sight_when_it_is_durable_and_before_the_branch_has_it(store: Store) -> None:
    (written,) = store.write("s", Head(), [ready(1)], 1)
    assert store.has("s", written.head)
    assert not store.has("s", Head(1, "1" * 40, 1))
    assert store.patience == 0.0, "on this host's own disk nothing is hidden"


def test_a_space_keeps_the_identity_that_its_first_append_gave_it(store: Store) -> None:
    first = published(store, ready(1))[0]
    identity = store.identity("s", first.head)
    later = published(store, ready(2), ready(3), term=4)[-1]
    orphan = store.write("s", first.head, [ready(2, alias(99))], 2)[0]
    assert identity
    assert store.identity("s", later.head) == store.identity("s", orphan.head) == identity


def test_two_spaces_have_two_identities(store: Store) -> None:
    one = published(store, ready(1), space="one")[0]
    two = published(store, ready(1, alias(2)), space="two")[0]
    assert store.identity("one", one.head) != store.identity("two", two.head)


def test_a_claim_returns_the_same_journal_each_time(store: Store) -> None:
    journal = store.claim("embedded")
    assert journal
    assert store.claim("embedded") == store.claim("embedded", journal) == journal


# What only a repository can be wrong about: memory is one process's own.


def git_store(path: Path) -> GitStore:
    return GitStore(path, node="test", clock=lambda: datetime.now(UTC), random=os.urandom)


def test_a_repository_that_is_made_for_an_authority_is_claimed_by_that_one_alone(tmp_path: Path) -> None:
    journal = git_store(tmp_path / "wiki.git").claim("etcd", place="/here/")
    again = git_store(tmp_path / "wiki.git")
    assert again.claim("etcd", journal, "/here/") == journal
    with pytest.raises(cj.WrongAuthority, match="coordjournal adopt"):
        git_store(tmp_path / "wiki.git").claim("embedded")
    with pytest.raises(cj.ForeignRepository, match="--prefix /here/"):
        git_store(tmp_path / "wiki.git").claim("etcd", journal, "/there/")
    with pytest.raises(cj.ForeignRepository, match=journal):
        git_store(tmp_path / "wiki.git").claim("etcd", "1" * 32, "/here/")


def test_no_repository_is_made_for_a_journal_that_is_known_already(tmp_path: Path) -> None:
    with pytest.raises(cj.ForeignRepository, match="coordjournal recover"):
        git_store(tmp_path / "wiki.git").claim("etcd", "1" * 32, "/here/")
    assert not (tmp_path / "wiki.git").exists()


def test_a_repository_that_became_another_journals_is_not_claimed_again(tmp_path: Path) -> None:
    store, path = git_store(tmp_path / "wiki.git"), tmp_path / "wiki.git"
    store.claim("etcd", place="/here/")
    path.rename(tmp_path / "away.git")
    git_store(path).claim("etcd", place="/here/")
    with pytest.raises(cj.ForeignRepository, match="is expected"):
        store.claim("etcd", place="/here/")
