"""The power fails, on a real ext4, at everything that a new holder does to it: what etcd published is there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from coordjournal import maintenance
from coordjournal.authority.wire import decode_head, range_of
from coordjournal.entry import Receipt
from coordjournal.etcd import Delete, Get, Operation, Put
from coordjournal.etcd.client import EtcdClient
from coordjournal.testing.etcd import EtcdServer
from tests.integration.etcd_parts import SPACE, Party, drain, expire, fresh_prefix, lost, published, read, unbroken
from tests.integration.loopdisk import Cut, Drive, DriveCuts, loop_devices, own_mounts
from tests.integration.processes import Channel, quick_path, start
from tests.support import fsck

__all__ = ["loop_devices", "quick_path"]

pytestmark = pytest.mark.usefixtures("loop_devices")

MIB: Final = 8
SECONDS: Final = 10.0


class Server(NamedTuple):
    """An etcd, as a child process knows it."""

    endpoint: str


@pytest.fixture(scope="module")
def endpoint(coordjournal_etcd_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server.endpoint


def dump(etcd: EtcdClient, prefix: str) -> list[list[str]]:
    """Return what etcd has that does not go with a session: keys and values."""
    _, found = etcd.get(Get(*range_of(prefix.encode())), timeout=SECONDS)
    return [[kv.key.decode(), kv.value.decode()] for kv in found.kvs if not kv.lease]


def restore(etcd: EtcdClient, prefix: str, content: list[list[str]]) -> None:
    """Make etcd have that, and nothing else."""
    etcd.txn((), [Delete(*range_of(prefix.encode()))], timeout=SECONDS)
    puts: list[Operation] = [Put(key.encode(), value.encode()) for key, value in content]
    etcd.txn((), puts, timeout=SECONDS)


def take_over_with_cuts(channel: Channel, home: str, endpoint: str, prefix: str) -> list[Cut]:
    """A holder publishes and dies before it moves the branch; the next one takes over and appends."""
    own_mounts()
    server: Any = Server(endpoint)
    etcd = EtcdClient([endpoint])
    drive = Drive.make(Path(home), MIB, holds_back=True)
    with drive.mounted() as root:
        first = Party(endpoint, root / "wiki.git", prefix)
        first.submit("a1")
        first.run()
        first.edge.next("publish", lost)
        first.submit("a2")
        first.until("publish")
        expire(server, first)
        second = Party(endpoint, root / "wiki.git", prefix)

        def note() -> list[Any]:
            told = first.futures | second.futures
            return [[key for key, future in told.items() if future.done()], dump(etcd, prefix)]

        cuts = DriveCuts(drive, Path(home), note)
        cuts.watch()
        cuts.take("before it takes over")
        second.submit("b1")
        second.run()
        assert isinstance(second.futures["b1"].result(0), Receipt)
        cuts.take("after it took over")
        for party in (first, second):
            party.close()
    etcd.close()
    return cuts.left


def check_takeovers(channel: Channel, home: str, endpoint: str, prefix: str, left: list[Any]) -> list[int]:
    """Have a third one take over what each cut left, on the drive and in etcd; return how far each log was."""
    own_mounts()
    server: Any = Server(endpoint)
    etcd = EtcdClient([endpoint])
    seqs = []
    for step, image, (said, content) in left:
        cut = f"a power cut {step}"
        restore(etcd, prefix, content)
        with Drive(Path(home), Path(image), holds_back=True).mounted() as root:
            repo = root / "wiki.git"
            third = Party(endpoint, repo, prefix)
            head = decode_head(read(server, third.keys.head(SPACE)) or b"", "").head
            before = [appended.key for appended in published(server, third)]
            assert before == ["a1", "a2", "b1"][: head.seq], f"{cut} loses what is published"
            assert set(said) <= set(before), f"{cut} loses an acknowledged append"
            seqs.append(head.seq)
            futures = {key: third.ask(key) for key in ("a1", "a2", "b1")}
            drain([third])
            receipts = {key: future.result(0) for key, future in futures.items()}
            assert [key for key, receipt in receipts.items() if receipt.duplicate] == before, cut
            assert list(unbroken(server, third)) == ["a1", "a2", "b1"]
            third.close()
            maintenance.verify(repo)
            fsck(repo)
        Path(image).unlink()
    etcd.close()
    return seqs


def test_a_power_cut_at_every_step_of_a_takeover_loses_and_invents_nothing(quick_path: Path, endpoint: str) -> None:
    prefix = fresh_prefix()
    left = start(take_over_with_cuts, quick_path, endpoint, prefix).result()
    seqs = start(check_takeovers, quick_path, endpoint, prefix, left).result()
    assert set(seqs) == {2, 3}, "the cuts were before and after it published"
    assert len(seqs) > 8
