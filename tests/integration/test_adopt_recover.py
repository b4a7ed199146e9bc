"""`adopt` and `recover` with a real etcd: every refusal brought about and got out of, killed at every call too."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import coordjournal as cj
from coordjournal import overview, premises
from coordjournal.adoption import adopt
from coordjournal.authority.wire import HeadValue, encode_head
from coordjournal.entry import Append, Head
from coordjournal.errors import HeadBehind, HeadMissing, MissingObjects, NotFound
from coordjournal.etcd import Delete, Put
from coordjournal.recovery import recover
from coordjournal.store import Ready
from coordjournal.store.git import GitStore
from coordjournal.store.repository import Owner, Repository
from coordjournal.testing.etcd import EtcdServer
from coordjournal.verification import verify_space
from tests.integration.operating import Killed, Place, dying, wait_for
from tests.support import alias, fsck, git

_numbers = itertools.count()


@pytest.fixture(scope="module")
def server(coordjournal_etcd_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd"), binary=coordjournal_etcd_binary) as server:
        yield server


@pytest.fixture
def place(server: EtcdServer, tmp_path: Path) -> Place:
    return Place(server, tmp_path / "wiki.git", f"/adopt-{next(_numbers)}/")


def appended(log: cj.DecisionLog, *numbers: int, space: str = "s") -> list[cj.Receipt]:
    return [log.append(space, alias(number), key=f"key-{number}") for number in numbers]


def keys_of(log: cj.DecisionLog, space: str = "s") -> list[str]:
    return [entry.key for entry in log.events(space)]


def owner_of(place: Place) -> Owner | None:
    return Repository(place.repo).owner()


def fetch(repo: Path, clone: Path) -> None:
    """Bring the objects and branches of a clone back into a repository."""
    git(repo, "fetch", "--quiet", str(clone), "+refs/heads/*:refs/heads/*")


def mirror(place: Place, name: str = "clone.git") -> Path:
    clone = place.repo.parent / name
    subprocess.run(["git", "clone", "--quiet", "--mirror", place.repo, clone], check=True)
    return clone


# There and back.


def test_an_embedded_journal_goes_to_etcd_and_back_and_nothing_is_lost(place: Place) -> None:
    with place.embedded() as log:
        appended(log, 1, 2)
        appended(log, 1, space="other")
    planned = adopt(place.repo, place.settings, dry_run=True)
    assert planned.changed
    assert owner_of(place) == Owner("embedded", planned.journal)
    assert place.read(place.keys.journal) is None, "a dry run changes nothing"
    assert adopt(place.repo, place.settings) == planned
    assert not adopt(place.repo, place.settings).changed
    with place.log() as log:
        assert appended(log, 3)[0].seq == 3
    assert adopt(place.repo, place.settings, to="embedded").changed
    assert not adopt(place.repo, place.settings, to="embedded").changed
    with place.embedded() as log:
        appended(log, 4)
    assert adopt(place.repo, place.settings).changed
    with place.log() as log:
        appended(log, 5)
        assert keys_of(log) == [f"key-{number}" for number in range(1, 6)]


def test_an_embedded_process_that_still_runs_is_refused_after_the_adoption(place: Place) -> None:
    with place.embedded() as running:
        appended(running, 1)
        adopt(place.repo, place.settings)
        with pytest.raises(cj.WrongAuthority, match="coordjournal adopt"):
            appended(running, 2)
        with place.log() as log:
            appended(log, 3)
        assert keys_of(running) == ["key-1", "key-3"], "it may still read"


def test_a_process_of_etcd_that_still_runs_is_refused_after_the_way_back(place: Place) -> None:
    with place.log() as running:
        appended(running, 1)
        adopt(place.repo, place.settings, to="embedded")
        with pytest.raises((cj.OperatorNeeded, cj.Unavailable, cj.Undecided)):
            running.append("s", alias(2), key="key-2", timeout=3)
        with place.embedded() as log:
            appended(log, 3)
            assert keys_of(log) == ["key-1", "key-3"]


def appending(place: Place, log: cj.DecisionLog, stop: threading.Event, told: list[str]) -> None:
    """Append until told to stop, or refused, and note what was acknowledged."""
    for number in itertools.count():
        if stop.is_set():
            return
        key = f"under-way-{threading.get_ident()}-{number}"
        try:
            log.append("s", cj.AliasSet(key, "page"), key=key, timeout=3)
        except (cj.OperatorNeeded, cj.Unavailable, cj.Undecided):
            continue
        told.append(key)


@pytest.mark.parametrize("way", ["to etcd", "to embedded", "recover"])
def test_appenders_that_run_at_the_same_time_lose_nothing_acknowledged(place: Place, way: str) -> None:
    opened = place.embedded if way == "to etcd" else place.log
    told: list[str] = []
    stop = threading.Event()
    with opened() as log, opened() as other:
        appended(log, 1)
        threads = [threading.Thread(target=appending, args=(place, one, stop, told)) for one in (log, other)]
        for thread in threads:
            thread.start()
        try:
            wait_for(lambda: len(told) > 10, "nobody appends")
            if way == "recover":
                place.change(Delete(place.keys.head("s")))
                wait_for(lambda: _recovered(place), "it is never recovered")
            else:
                wait_for(lambda: _adopted(place, way), "it is never adopted")
            before = len(told)
            if way == "recover":
                wait_for(lambda: len(told) > before + 5, "nobody appends any more")
        finally:
            stop.set()
            for thread in threads:
                thread.join(20)
    with (place.embedded if way == "to embedded" else place.log)() as log:
        keys = keys_of(log)
        assert appended(log, 2)[0].seq == len(keys) + 1
    assert len(keys) == len(set(keys))
    assert set(told) <= set(keys), "something acknowledged is lost"


def _recovered(place: Place) -> bool:
    try:
        return recover(place.repo, place.settings, "s").changed
    except cj.Unavailable:
        return False


def _adopted(place: Place, way: str) -> bool:
    try:
        return adopt(place.repo, place.settings, to=way.split()[1]).changed
    except cj.Unavailable:
        return False  # somebody was quicker: run it again


# Killed at every call and write, and run again.


def kill_everywhere(place: Place, begin: Callable[[Place], None], run: Callable[..., object]) -> Iterator[Place]:
    """Yield a fresh place for each point at which `run` can be killed: there it was, and then run to its end."""
    for number in itertools.count(1):
        for after in (False, True):
            settings = place.settings._replace(prefix=f"{place.settings.prefix}{number}{after}/")
            fresh = Place(place.server, place.repo.with_name(f"{number}{after}.git"), settings.prefix)
            begin(fresh)
            kill = dying(fresh.settings, number, after=after)
            try:
                run(fresh.repo, kill)
            except Killed:
                pass
            else:
                assert number > 4, "it makes calls"
                return
            run(fresh.repo, fresh.settings)
            yield fresh


def embedded_with_three(place: Place) -> None:
    with place.embedded() as log:
        appended(log, 1, 2, 3)


def etcd_with_three(place: Place) -> None:
    with place.log() as log:
        appended(log, 1, 2, 3)


def wiped_with_three(place: Place) -> None:
    etcd_with_three(place)
    place.change(Delete(place.keys.prefix, place.keys.prefix[:-1] + b"0"))


def lagging_with_three(place: Place) -> None:
    """The holder died between its last publish and the branch's move."""
    etcd_with_three(place)
    git(place.repo, "update-ref", "refs/heads/s", git(place.repo, "rev-parse", "s~1").strip())


def ends_well(place: Place) -> None:
    fsck(place.repo)
    owner = owner_of(place)
    assert owner is not None
    with (place.log if owner.authority == "etcd" else place.embedded)() as log:
        assert [receipt.seq for receipt in appended(log, 4)] == [4]
        assert keys_of(log) == ["key-1", "key-2", "key-3", "key-4"]


def test_adopt_to_etcd_is_killed_at_every_call_and_run_again(place: Place) -> None:
    for fresh in kill_everywhere(place, embedded_with_three, lambda repo, how: adopt(repo, how, to="etcd")):
        ends_well(fresh)


@pytest.mark.parametrize("begin", [etcd_with_three, lagging_with_three])
def test_adopt_to_embedded_is_killed_at_every_call_and_run_again(place: Place, begin: Callable[[Place], None]) -> None:
    for fresh in kill_everywhere(place, begin, lambda repo, how: adopt(repo, how, to="embedded")):
        ends_well(fresh)


def test_recover_is_killed_at_every_call_and_run_again(place: Place) -> None:
    for fresh in kill_everywhere(place, wiped_with_three, recover):
        ends_well(fresh)


def test_adopt_that_is_killed_half_way_back_can_be_undone_and_loses_nothing(place: Place) -> None:
    """It had replaced the heads, and not yet moved a branch that lagged: the head knows more than the branch."""
    for number in itertools.count(1):
        fresh = Place(place.server, place.repo.with_name(f"{number}.git"), f"{place.settings.prefix}{number}/")
        lagging_with_three(fresh)
        kill = dying(fresh.settings, number, after=True)
        try:
            adopt(fresh.repo, kill, to="embedded")
            break
        except Killed:
            pass
        (adopt if number % 2 else recover)(fresh.repo, fresh.settings)
        ends_well(fresh)
    assert number > 4


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("way", ["to etcd", "to embedded", "clone"])
def test_adopt_is_killed_at_the_write_of_the_config_and_run_again(
    place: Place, monkeypatch: pytest.MonkeyPatch, way: str, after: bool
) -> None:
    (etcd_with_three if way == "to embedded" else embedded_with_three)(place)
    if way == "clone":
        place.repo = mirror(place)
    real = premises.replace_owner

    def killed(repository: Repository, owner: Owner) -> None:
        if after:
            real(repository, owner)
        raise Killed

    to = "embedded" if way == "to embedded" else "etcd"
    monkeypatch.setattr(premises, "replace_owner", killed)
    with pytest.raises(Killed):
        adopt(place.repo, place.settings, to=to)
    monkeypatch.setattr(premises, "replace_owner", real)
    went_on = [opened for opened in (place.log, place.embedded) if goes_on(opened)]
    assert len(went_on) <= 1, "a half-done adoption lets both append"
    adopt(place.repo, place.settings, to=to)
    fsck(place.repo)
    with (place.embedded if to == "embedded" else place.log)() as log:
        appended(log, 5)
        assert keys_of(log) == ["key-1", "key-2", "key-3", *(["key-4"] if went_on else []), "key-5"]


def goes_on(opened: Callable[[], cj.DecisionLog]) -> bool:
    with opened() as log:
        try:
            return appended(log, 4)[0].seq == 4
        except cj.OperatorNeeded:
            return False


def test_a_config_that_is_half_written_is_not_seen(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded_with_three(place)

    def killed(path: Path, owner: Owner) -> None:
        path.write_text("[core]\n")
        raise Killed

    monkeypatch.setattr(premises, "write_owner", killed)
    with pytest.raises(Killed):
        adopt(place.repo, place.settings)
    with place.embedded() as log:
        assert log.append("s", alias(9)).seq == 4


def test_a_space_that_begins_while_the_config_is_written_goes_along(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An embedded process was let in before, and moves the branch after."""
    embedded_with_three(place)
    real = premises.replace_owner
    threads: list[threading.Thread] = []

    def begins(inside: threading.Event) -> None:
        store = premises.store_of(place.repo)
        append = Append((alias(1),), "first", "bob@example.org", "2026-01-31T12:00:00.000000Z")
        with store.exclusive("new"):
            (written,) = store.write("new", Head(), [Ready(append, 1, append.encode(1))], 0)
            inside.set()
            deadline = time.monotonic() + 0.5  # for as long, whoever does not wait for the lock goes past it
            while place.read(place.keys.journal) is None and time.monotonic() < deadline:
                time.sleep(0.01)
            store.advance("new", Head(), written.head)

    def meanwhile(repository: Repository, owner: Owner) -> None:
        inside = threading.Event()
        threads.append(threading.Thread(target=begins, args=(inside,)))
        threads[0].start()
        assert inside.wait(20)
        real(repository, owner)

    monkeypatch.setattr(premises, "replace_owner", meanwhile)
    assert adopt(place.repo, place.settings).spaces == 2
    threads[0].join(20)
    with place.log() as log:
        assert appended(log, 2, space="new")[0].seq == 2


def test_a_half_done_adoption_refuses_appends_until_it_is_run_again(place: Place) -> None:
    embedded_with_three(place)
    with pytest.raises(Killed):
        adopt(place.repo, dying(place.settings, 7, after=False))
    assert owner_of(place) == Owner("etcd", owner_of(place).journal, place.settings.prefix)  # type: ignore[union-attr]
    with place.embedded() as log, pytest.raises(cj.WrongAuthority):
        appended(log, 4)
    with place.log() as log, pytest.raises(HeadMissing, match="coordjournal recover"):
        appended(log, 4)
    adopt(place.repo, place.settings)
    ends_well(place)


# The wrong one is named.


def test_another_prefix_is_refused_by_everything(place: Place) -> None:
    etcd_with_three(place)
    wrong = place.settings._replace(prefix=f"{place.settings.prefix}wrong/")
    other = Place(place.server, place.repo, wrong.prefix)
    with other.log() as log, pytest.raises(cj.ForeignRepository, match=f"--prefix {place.settings.prefix}"):
        appended(log, 4)
    for to in ("etcd", "embedded"):
        with pytest.raises(cj.ForeignRepository, match=place.settings.prefix):
            adopt(place.repo, wrong, to=to)
    with pytest.raises(cj.ForeignRepository, match=place.settings.prefix):
        recover(place.repo, wrong)
    ends_well(place)


def test_the_wrong_etcd_cannot_be_left_while_the_right_one_still_serves(place: Place, tmp_path: Path) -> None:
    etcd_with_three(place)
    with EtcdServer(tmp_path / "another") as another:
        wrong = place.settings._replace(etcd=another.endpoint)
        with pytest.raises(HeadMissing, match="name the right etcd"):
            adopt(place.repo, wrong, to="embedded")
        with Place(another, place.repo, wrong.prefix).log() as log, pytest.raises(HeadMissing, match="name the right"):
            appended(log, 4)
    ends_well(place)


def test_a_prefix_that_another_journal_has_is_refused(place: Place) -> None:
    etcd_with_three(place)
    mine = Place(place.server, place.repo.with_name("mine.git"), place.settings.prefix)
    with mine.embedded() as log:
        appended(log, 1)
    with pytest.raises(cj.ForeignRepository, match="etcd serves journal"):
        adopt(mine.repo, mine.settings)
    with mine.embedded() as log:
        assert appended(log, 2)[0].seq == 2
    adopt(place.repo, place.settings, to="embedded")
    adopt(mine.repo, mine.settings)  # the other one has left; its heads are no hindrance
    with mine.log() as log:
        assert appended(log, 3)[0].seq == 3


def test_an_etcd_that_is_gone_is_left_and_one_that_is_not_named_is_asked_for(place: Place, tmp_path: Path) -> None:
    with EtcdServer(tmp_path / "gone") as gone:
        lost = Place(gone, place.repo, place.settings.prefix)
        etcd_with_three(lost)
    with pytest.raises(cj.WrongAuthority, match="--etcd-is-gone"):
        adopt(place.repo, to="embedded")
    with pytest.raises(cj.Unavailable, match=lost.settings.etcd):
        adopt(place.repo, lost.settings, to="embedded")
    assert adopt(place.repo, lost.settings, etcd_is_gone=True).changed, "though it is still named"
    ends_well(place)


# Etcd was wiped, or restored.


def test_after_a_wipe_nothing_begins_anew_and_recover_gets_out(place: Place, tmp_path: Path) -> None:
    with EtcdServer(tmp_path / "wiped") as wiped:
        place = Place(wiped, place.repo, place.settings.prefix)
        etcd_with_three(place)
        with place.log() as log:
            appended(log, 1, space="other")
        wiped.wipe()
        with place.log() as log:
            for use in (lambda: appended(log, 4), lambda: log.head("s"), lambda: appended(log, 1, space="new")):
                with pytest.raises(HeadMissing, match="coordjournal recover"):
                    use()
        planned = recover(place.repo, place.settings, dry_run=True)
        assert place.read(place.keys.journal) is None, "a dry run changes nothing"
        assert (planned.changed, planned.loses, planned.wrong) == (True, False, [])
        assert recover(place.repo, place.settings) == planned
        assert not recover(place.repo, place.settings).changed
        ends_well(place)


def test_a_process_that_held_a_space_when_etcd_was_wiped_goes_on_after_recover(place: Place, tmp_path: Path) -> None:
    with EtcdServer(tmp_path / "wiped") as wiped:
        place = Place(wiped, place.repo, place.settings.prefix)
        with place.log() as log:
            appended(log, 1, 2, 3)
            wiped.wipe()
            with pytest.raises((cj.OperatorNeeded, cj.Unavailable, cj.Undecided)):
                log.append("s", alias(9), key="lost", timeout=3)
            recover(place.repo, place.settings)
            wait_for(lambda: _goes_on(log), "it does not go on")
            keys = keys_of(log)
        assert keys[:3] == ["key-1", "key-2", "key-3"]
        assert "key-4" in keys
        assert len(keys) == len(set(keys))


def _goes_on(log: cj.DecisionLog) -> bool:
    try:
        return bool(log.append("s", alias(4), key="key-4", timeout=2).seq)
    except (cj.OperatorNeeded, cj.Unavailable, cj.Undecided):
        return False


def test_after_a_restored_snapshot_the_branch_is_ahead_and_recover_gets_out(place: Place, tmp_path: Path) -> None:
    with EtcdServer(tmp_path / "restored") as restored:
        place = Place(restored, place.repo, place.settings.prefix)
        with place.log() as log:
            appended(log, 1, 2)
        restored.snapshot(tmp_path / "snapshot")
        with place.log() as log:
            appended(log, 3)
        restored.restore(tmp_path / "snapshot")
        with place.log() as log, pytest.raises(HeadBehind, match="coordjournal recover s"):
            appended(log, 4)
        assert ["entry 2" in space.fault for space in overview.status(place.repo, place.settings)[0]] == [True]
        with pytest.raises(cj.OperatorNeeded, match="coordjournal recover s"):
            adopt(place.repo, place.settings, to="embedded")
        (step,) = recover(place.repo, place.settings, dry_run=True).steps
        assert "entry 3" in step
        recover(place.repo, place.settings, "s")
        ends_well(place)


def test_intents_that_a_restored_snapshot_brings_back_are_cleared_by_recover_without_a_space(place: Place) -> None:
    etcd_with_three(place)
    place.change(Put(place.keys.intent("s", "0" * 32, 1), b"[]"))
    assert not recover(place.repo, place.settings, "s").changed
    assert recover(place.repo, place.settings, dry_run=True).steps == ["clear etcd of 0 holder(s) and 1 intent(s)"]
    assert recover(place.repo, place.settings).changed
    assert place.read(place.keys.intent("s", "0" * 32, 1)) is None
    ends_well(place)


def test_a_head_that_is_not_well_formed_is_replaced_when_loss_is_accepted(place: Place) -> None:
    etcd_with_three(place)
    place.change(Put(place.keys.head("s"), b'{"seq": 0}'))
    with place.log() as log, pytest.raises(cj.OperatorNeeded, match="coordjournal recover"):
        appended(log, 4)
    with pytest.raises(cj.OperatorNeeded, match="coordjournal recover"):
        adopt(place.repo, place.settings, to="embedded")
    with pytest.raises(cj.OperatorNeeded, match="--accept-loss"):
        recover(place.repo, place.settings, "s")
    recover(place.repo, place.settings, "s", accept_loss=True)
    ends_well(place)


# The repository lost something.


@pytest.mark.damages
def test_a_branch_that_was_deleted_with_its_packs_is_missing_until_it_is_brought_back(place: Place) -> None:
    etcd_with_three(place)
    clone = mirror(place)
    lose_everything(place)
    with place.log() as log, pytest.raises(MissingObjects, match="git fetch"):
        appended(log, 4)
    with pytest.raises(MissingObjects, match="git fetch"):
        recover(place.repo, place.settings, "s")
    found = recover(place.repo, place.settings)
    assert not found.changed
    assert ["git fetch" in text for text in found.wrong] == [True]
    with pytest.raises(MissingObjects, match="git fetch"):
        adopt(place.repo, place.settings, to="embedded")
    fetch(place.repo, clone)
    ends_well(place)


def lose_everything(place: Place) -> None:
    git(place.repo, "update-ref", "-d", "refs/heads/s")
    for path in (place.repo / "objects").iterdir():
        shutil.rmtree(path)
    (place.repo / "objects" / "pack").mkdir()
    (place.repo / "objects" / "info").mkdir()


def test_a_deleted_branch_whose_objects_are_there_is_rolled_forward(place: Place) -> None:
    etcd_with_three(place)
    git(place.repo, "update-ref", "-d", "refs/heads/s")
    assert not recover(place.repo, place.settings).changed
    ends_well(place)


def test_a_deleted_branch_goes_along_when_the_journal_leaves_etcd(place: Place) -> None:
    etcd_with_three(place)
    git(place.repo, "update-ref", "-d", "refs/heads/s")
    adopt(place.repo, place.settings, to="embedded")
    ends_well(place)


def test_a_deleted_branch_in_a_wiped_etcd_does_not_begin_again_unseen(place: Place) -> None:
    wiped_with_three(place)
    commit = git(place.repo, "rev-parse", "s").strip()
    git(place.repo, "update-ref", "-d", "refs/heads/s")
    found = recover(place.repo, place.settings, dry_run=True)
    assert [commit in text for text in found.wrong] == [True]
    recover(place.repo, place.settings, "s", to=commit)
    ends_well(place)


@pytest.mark.damages
def test_published_entries_that_are_lost_for_good_are_given_up_only_when_that_is_said(place: Place) -> None:
    with place.log() as log:
        appended(log, 1, 2)
    clone = mirror(place)
    with place.log() as log:
        appended(log, 3)
    lose_everything(place)
    fetch(place.repo, clone)
    with place.log() as log, pytest.raises(MissingObjects, match="bring them back"):
        appended(log, 4)
    planned = recover(place.repo, place.settings, dry_run=True)
    assert planned.loses
    with pytest.raises(cj.OperatorNeeded, match="--accept-loss"):
        recover(place.repo, place.settings)
    recover(place.repo, place.settings, accept_loss=True)
    with place.log() as log:
        assert appended(log, 4)[0].seq == 3
        assert keys_of(log) == ["key-1", "key-2", "key-4"]


def test_what_is_wrong_with_one_space_does_not_keep_recover_from_the_others(place: Place) -> None:
    etcd_with_three(place)
    with place.log() as log:
        appended(log, 1, space="parted")
    other = orphan(place, "parted", 0)
    git(place.repo, "update-ref", "refs/heads/parted", other)
    place.change(Delete(place.keys.head("s")))
    found = recover(place.repo, place.settings)
    assert ["--to" in text and "parted" in text for text in found.wrong] == [True]
    with place.log() as log:
        assert appended(log, 4)[0].seq == 4
        with pytest.raises(cj.Corrupt, match="recover parted"):
            appended(log, 2, space="parted")
    with pytest.raises(cj.OperatorNeeded, match="--accept-loss"):
        recover(place.repo, place.settings, "parted", to=other)
    recover(place.repo, place.settings, "parted", to=other, accept_loss=True)
    with place.log() as log:
        assert appended(log, 2, space="parted")[0].seq == 2


def orphan(place: Place, space: str, after: int) -> str:
    """Write an append on top of entry `after` that nobody publishes; return its commit."""
    store = premises.store_of(place.repo)
    chain = list(store.read(space, store.head(space)))
    head = Head() if not after else chain[after - 1].head
    append = Append((alias(77),), f"orphan-{after}", "bob@example.org", "2026-01-31T12:00:00.000000Z")
    (written,) = store.write(space, head, [Ready(append, after + 1, append.encode(after + 1))], head.term + 1)
    return written.commit


def test_an_append_that_no_branch_has_is_named_and_taken_only_when_chosen(place: Place) -> None:
    wiped_with_three(place)
    commit = orphan(place, "s", 3)
    found = recover(place.repo, place.settings, dry_run=True)
    assert [commit in text for text in found.notes] == [True]
    assert recover(place.repo, place.settings, "s", to=commit).changed
    with place.log() as log:
        assert keys_of(log) == ["key-1", "key-2", "key-3", "orphan-3"]
    gone = adopt(place.repo, to="embedded", etcd_is_gone=True, dry_run=True)
    assert not any("leave out" in step for step in gone.steps)
    another = orphan(place, "s", 4)
    gone = adopt(place.repo, to="embedded", etcd_is_gone=True, dry_run=True)
    assert [another in step for step in gone.steps if "leave out" in step] == [True]


def test_a_commit_that_is_no_choice_is_refused(place: Place) -> None:
    etcd_with_three(place)
    for commit in ("1" * 40, git(place.repo, "rev-parse", "s~1").strip(), "s"):
        with pytest.raises(NotFound, match="in full"):
            recover(place.repo, place.settings, "s", to=commit)
    with pytest.raises(NotFound, match="no space nowhere"):
        recover(place.repo, place.settings, "nowhere")
    ends_well(place)


def test_an_append_in_between_makes_recover_and_adopt_begin_anew(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    etcd_with_three(place)
    place.change(Delete(place.keys.head("s")))

    def meanwhile(store: GitStore, space: str, head: cj.Head) -> object:
        value = HeadValue(head.seq, head.commit, head.term, store.identity(space, head), mark="0123")
        place.change(Put(place.keys.head(space), encode_head(value)))
        return verify_space(store, space, head)

    monkeypatch.setattr("coordjournal.premises.verify_space", meanwhile)
    with pytest.raises(cj.Unavailable, match="run the command again"):
        recover(place.repo, place.settings)


# Clones.


def test_a_mirror_clone_is_not_appended_to_through_etcd_and_becomes_a_journal_of_its_own(place: Place) -> None:
    etcd_with_three(place)
    clone = Place(place.server, mirror(place), place.settings.prefix)
    with clone.log() as log, pytest.raises(cj.ForeignRepository, match="mirror clone"):
        appended(log, 4)
    with pytest.raises(cj.ForeignRepository, match="etcd serves journal"):
        adopt(clone.repo, clone.settings)
    own = Place(place.server, clone.repo, f"{place.settings.prefix}own/")
    planned = adopt(own.repo, own.settings, dry_run=True)
    assert any("remote origin" in step for step in planned.steps)
    adopt(own.repo, own.settings)
    ends_well(own)
    ends_well(place)


def test_a_mirror_clone_is_adopted_without_etcd_though_one_is_named(place: Place) -> None:
    etcd_with_three(place)
    clone = Place(place.server, mirror(place), place.settings.prefix)
    adopt(clone.repo, clone.settings, to="embedded")
    ends_well(clone)
    ends_well(place)


def test_after_the_repository_is_lost_a_mirror_clone_takes_its_place(place: Place) -> None:
    etcd_with_three(place)
    clone = mirror(place)
    journal = owner_of(place)
    shutil.rmtree(place.repo)
    with place.log() as log, pytest.raises(cj.ForeignRepository, match="coordjournal recover"):
        appended(log, 4)
    clone.rename(place.repo)
    planned = recover(place.repo, place.settings, dry_run=True)
    assert owner_of(place) is None
    assert recover(place.repo, place.settings) == planned
    assert owner_of(place) == journal
    ends_well(place)


def test_a_clone_of_something_else_does_not_take_the_place_of_the_repository(place: Place) -> None:
    etcd_with_three(place)
    other = Place(place.server, place.repo.with_name("other.git"), place.settings.prefix)
    with other.embedded() as log:
        appended(log, 1)
    clone = mirror(other)
    with pytest.raises(cj.ForeignRepository, match="not the one that etcd knows"):
        recover(clone, place.settings)
    assert Repository(clone).owner() is None


# Nobody waits for ever.


def test_no_lock_is_held_for_long_while_etcd_does_not_answer(place: Place, tmp_path: Path) -> None:
    embedded_with_three(place)
    with EtcdServer(tmp_path / "paused") as paused:
        paused.pause()
        try:
            with pytest.raises(cj.Unavailable, match=paused.endpoint):
                adopt(place.repo, place.settings._replace(etcd=paused.endpoint))
        finally:
            paused.resume()
    ends_well(place)
