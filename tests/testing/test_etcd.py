"""What the etcd processes of `coordjournal.testing` are good for: they come back, and they do not stay behind."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordjournal.testing.etcd import EtcdCluster, EtcdFailed, EtcdServer
from tests.support import python
from tests.testing.keys import coded, get, put

pytestmark = pytest.mark.usefixtures("coordjournal_etcd_binary")


@pytest.fixture
def server() -> Iterator[EtcdServer]:
    with EtcdServer() as server:
        yield server


def test_it_keeps_its_data_and_its_endpoint_when_it_is_restarted_and_when_it_is_killed(server: EtcdServer) -> None:
    endpoint, pid = server.endpoint, server.pid
    put(server, "a", "1")
    server.restart()
    assert (server.endpoint, get(server, "a")) == (endpoint, "1")
    assert server.pid != pid
    put(server, "a", "2")
    server.kill()
    assert not server.running
    server.start()
    assert (server.endpoint, get(server, "a")) == (endpoint, "2")


def test_a_wiped_one_has_nothing_at_the_same_endpoint(server: EtcdServer) -> None:
    endpoint = server.endpoint
    put(server, "a", "1")
    server.wipe()
    assert (server.endpoint, get(server, "a")) == (endpoint, None)


def test_a_restored_one_forgets_what_came_after_the_snapshot(server: EtcdServer, tmp_path: Path) -> None:
    put(server, "a", "1")
    server.snapshot(tmp_path / "snapshot")
    assert get(server, "a") == "1"
    put(server, "a", "2")
    put(server, "b", "2")
    server.restore(tmp_path / "snapshot")
    assert (get(server, "a"), get(server, "b")) == ("1", None)


def test_a_paused_one_takes_connections_and_answers_nothing_until_it_is_resumed(server: EtcdServer) -> None:
    put(server, "a", "1")
    server.pause()
    assert server.running
    host, port = server.endpoint.split(":")
    socket.create_connection((host, int(port)), 5).close()
    assert not server.ready()
    server.resume()
    server.wait()
    assert get(server, "a") == "1"


def test_a_paused_one_can_be_stopped(server: EtcdServer) -> None:
    server.pause()
    server.stop()
    assert not server.running


def test_flags_reach_it(tmp_path: Path) -> None:
    with EtcdServer(tmp_path, flags={"max-txn-ops": 1, "auto-compaction-mode": "revision"}) as server:
        operation = {"request_put": {"key": coded("a"), "value": coded("1")}}
        server.call("kv/txn", success=[operation])
        with pytest.raises(EtcdFailed, match="too many operations"):
            server.call("kv/txn", success=[operation, {"request_put": {"key": coded("b"), "value": coded("1")}}])


def test_one_that_is_out_of_space_starts_again(tmp_path: Path) -> None:
    with EtcdServer(tmp_path, flags={"quota-backend-bytes": 1 << 20}) as server:
        with pytest.raises(EtcdFailed, match="database space exceeded"):
            fill(server)
        server.restart()
        assert get(server, "key 0")
        with pytest.raises(EtcdFailed, match="database space exceeded"):
            put(server, "a", "1")


def test_one_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(EtcdFailed, match="not-a-flag"):
        EtcdServer(tmp_path, flags={"not-a-flag": 1}).start()


def test_a_closed_one_leaves_nothing_behind() -> None:
    with EtcdServer() as server:
        directory, pid = server.directory, server.pid
        put(server, "a", "1")
    assert not directory.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_without_a_program_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EtcdFailed, match="apt-get install etcd-server"):
        EtcdServer(tmp_path).start()


def test_with_access_control_it_takes_only_who_it_knows(server: EtcdServer) -> None:
    server.enable_auth({"root": "r", "node": "n"}, prefix="/wiki/")
    with pytest.raises(EtcdFailed):
        put(server, "/wiki/a", "1")
    with pytest.raises(EtcdFailed):
        server.call("auth/authenticate", name="node", password="wrong")
    token = server.call("auth/authenticate", name="node", password="n")["token"]
    put(server, "/wiki/a", "1", token=token)
    with pytest.raises(EtcdFailed, match="permission denied"):
        put(server, "/wiki0", "1", token=token)


STARTS_ONE = """
import sys
from coordjournal.testing.etcd import EtcdServer
server = EtcdServer(sys.argv[1]).start()
print(server.pid, flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills the child of a process that was killed")
def test_a_killed_process_leaves_no_etcd_behind(tmp_path: Path) -> None:
    with python(STARTS_ONE + "sys.stdin.read()", tmp_path, stdin=-1) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
        process.wait()
        assert gone(pid)


def test_a_process_that_ends_leaves_no_etcd_behind(tmp_path: Path) -> None:
    with python(STARTS_ONE, tmp_path) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert process.wait() == 0
        assert gone(pid)


def test_the_exit_of_a_forked_child_does_not_end_it(tmp_path: Path) -> None:
    code = STARTS_ONE + "import os\nif os.fork() == 0: sys.exit()\nos.wait()\nprint(server.running, server.ready())"
    with python(code, tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.read().splitlines()[1:] == ["True True"]


def test_the_end_of_the_thread_that_started_it_does_not_end_it(tmp_path: Path) -> None:
    server = EtcdServer(tmp_path)
    try:
        thread = threading.Thread(target=server.start)
        thread.start()
        thread.join()
        put(server, "a", "1")
        assert get(server, "a") == "1"
    finally:
        server.close()


@pytest.mark.skipif(sys.platform != "linux", reason="a port cannot be held elsewhere")
def test_race_nobody_takes_the_ports_of_one_that_is_down(server: EtcdServer) -> None:
    host, port = server.endpoint.split(":")
    server.kill()
    with socket.socket() as thief, pytest.raises(OSError, match="in use"):
        thief.bind((host, int(port)))
    server.start()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with EtcdCluster(3, tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


def test_the_members_of_a_cluster_are_one_etcd(cluster: EtcdCluster) -> None:
    assert cluster.endpoints == ",".join(member.endpoint for member in cluster.members)
    put(cluster.members[0], "a", "1")
    assert [get(member, "a") for member in cluster.members] == ["1"] * 3


@pytest.mark.parametrize("end", [EtcdServer.kill, EtcdServer.pause], ids=["killed", "paused"])
def test_another_member_leads_when_the_leader_is(cluster: EtcdCluster, end: object) -> None:
    assert callable(end)
    leader = cluster.leader()
    put(leader, "b", "1")
    end(leader)
    other = cluster.leader()
    assert other is not leader
    put(other, "b", "2")
    if leader.running:
        leader.resume()
    cluster.start()
    assert get(leader, "b") == "2"


def test_a_cluster_is_wiped_as_a_whole(cluster: EtcdCluster) -> None:
    endpoints = cluster.endpoints
    put(cluster.members[0], "c", "1")
    with pytest.raises(EtcdFailed, match="one member of a cluster cannot wipe"):
        cluster.members[0].wipe()
    cluster.wipe()
    assert (cluster.endpoints, get(cluster.members[1], "c")) == (endpoints, None)


def fill(server: EtcdServer) -> None:
    for number in range(100):
        put(server, f"key {number}", "x" * (100 << 10))


def gone(pid: int) -> bool:
    """Return whether the process is gone; what takes the kernel a moment is waited for."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat")
            if state.exists() and state.read_text().rpartition(") ")[2].startswith("Z"):
                return True  # an orphan that nobody reaps
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    return False
