"""A short run of `scripts/chaos`, with one etcd and with a cluster; docs/reliability.md has longer ones."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from coordjournal.testing.histories import AppendReturned, EventFile, check, read_events
from tests.chaos.faults import compact_packs, repack
from tests.chaos.proxy import Proxies, Proxy
from tests.chaos.run import Chaos, Settings
from tests.chaos.worker import tracebacks
from tests.integration.processes import until
from tests.support import CHECKOUT

SECONDS = 13.0

FIRST = {
    "kill_holder": "kill the holder",
    "repack": "git repack",
    "revoke_lease": "revoke a lease",
    "at_a_place": "",
    "cut_off_from_answers": "cut off from answers",
    "compact_packs": "compact the packs",
    "compact_etcd": "compact etcd",
    "stop_another": "stop another",
    "collect_garbage": "git gc",
    "kill_member": "kill etcd",
}
"""One fault of each group, and what it is called in the result."""

AT_PLACES = ("die ", "stop before ", "stop after ", "lose the ")


@pytest.mark.parametrize(("members", "seed"), [(1, 11), (3, 12)])
def test_real_processes_and_a_real_etcd_lose_nothing_whatever_befalls_them(
    tmp_path: Path, coordjournal_etcd_binary: str, members: int, seed: int
) -> None:
    also = {"kill_leader": "kill etcd's leader", "lose_quorum": "lose the quorum"} if members > 1 else {}
    first = {**FIRST, **also}
    settings = Settings(
        seed=seed, members=members, seconds=SECONDS, storm_seconds=5.0, fault_seconds=0.4, first=tuple(first)
    )
    result = Chaos(settings, tmp_path / "chaos").run()
    assert result.good, (result.findings, result.problems, f"the history is in {tmp_path / 'chaos'}")
    assert not {kind for kind in first.values() if kind} - set(result.faults)
    assert any(kind.startswith(AT_PLACES) for kind in result.faults)
    assert result.operations["appends ok"] > 50
    assert result.operations["reads ok"] > 50
    assert {f"{space} appends" for space in settings.spaces} <= set(result.log)
    assert len(result.healed_seconds) >= 3, "at the beginning, after each storm, and at the end"


def test_a_fault_that_was_not_done_does_not_count_and_is_a_problem(tmp_path: Path) -> None:
    chaos = Chaos(Settings(), tmp_path)
    chaos.history.mkdir()
    subprocess.run(["git", "init", "--quiet", "--bare", chaos.repository], check=True)
    (chaos.repository / "objects" / "pack").rmdir()
    (chaos.repository / "objects" / "pack").write_text("no directory")
    (chaos.repository / "HEAD").write_text("no head")
    with EventFile(chaos.history / "outside.jsonl") as chaos._write:
        for begin in (repack, compact_packs):
            assert chaos._begin(begin)
            chaos._tend(all_over=True)
    assert not +chaos._counts
    assert [problem.partition(" ended with status ")[0] for problem in chaos._problems] == [
        "git repack",
        "the compaction",
    ]


def test_a_traceback_in_the_log_of_a_worker_is_found(tmp_path: Path) -> None:
    (tmp_path / "w1.1.log").write_text("12:00 a: fine\n12:01 b: a step failed\n" + TRACEBACK + "12:02 c: fine\n")
    (tmp_path / "w2.1.log").write_text("12:00 a: fine\n")
    assert tracebacks(tmp_path) == ["w1.1.log: 12:01 b: a step failed: KeyError: 'x'"]


TRACEBACK = """Traceback (most recent call last):
  File "a.py", line 1, in <module>
    {}["x"]
KeyError: 'x'
"""


def test_the_program_says_what_it_found_in_words_in_json_and_by_its_exit_code(
    tmp_path: Path, coordjournal_etcd_binary: str
) -> None:
    told = tmp_path / "result.json"
    script = CHECKOUT / "scripts" / "chaos.py"
    arguments = ["--minutes", "0.05", "--seed", "5", "--only", "kill_holder", "--workers", "2"]
    places = ["--json", told, "--directory", tmp_path / "runs", "--keep"]
    run = [sys.executable, str(script), *arguments, *map(str, places)]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(run, capture_output=True, text=True, cwd=CHECKOUT, env=environment, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "nothing was lost, doubled, reordered or forked" in done.stdout
    result = json.loads(told.read_bytes())
    assert (result["seed"], result["members"], result["findings"], result["problems"]) == (5, 1, [], [])

    history = Path(result["history"]) / "history"
    again = [sys.executable, str(script), "--check", str(history)]
    assert subprocess.run(again, capture_output=True, cwd=CHECKOUT, env=environment, check=False).returncode == 0
    events = read_events(*history.glob("*.jsonl"))
    told_ok = next(event for event in events if isinstance(event, AppendReturned) and event.receipt is not None)
    assert told_ok.receipt is not None
    claim = msgspec.structs.replace(told_ok.receipt, commit="f" * 40)
    forged = msgspec.structs.replace(told_ok, at=told_ok.at + 1e-6, receipt=claim)
    bent = [forged if event is told_ok else event for event in events]
    assert {finding.rule for finding in check(bent)} == {"durability"}
    (history / "bent.jsonl").write_bytes(msgspec.json.encode(forged) + b"\n")  # a later word counts
    found = subprocess.run(again, capture_output=True, text=True, cwd=CHECKOUT, env=environment, check=False)
    assert found.returncode == 1
    assert "durability: space " in found.stdout


# The network that the workers have.


@pytest.fixture
def echo() -> Iterator[str]:
    """Give a server that says what it hears."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(client,), daemon=True).start()

    def answer(client: socket.socket) -> None:
        with client:
            try:
                while data := client.recv(100):
                    client.sendall(data)
            except OSError:
                pass

    threading.Thread(target=serve, daemon=True).start()
    with server:
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(echo: str) -> Iterator[Proxy]:
    """Give a proxy of it."""
    with closing(Proxies()) as proxies:
        yield proxies.add(echo)


def connect(proxy: Proxy) -> socket.socket:
    host, _, port = proxy.endpoint.rpartition(":")
    client = socket.create_connection((host, int(port)), timeout=10)
    client.sendall(b"hello")
    assert client.recv(100) == b"hello"
    return client


@pytest.mark.parametrize("ways", [("requests",), ("answers",), ()])
def test_what_a_cut_network_held_back_arrives_late(proxy: Proxy, ways: tuple[str, ...]) -> None:
    with connect(proxy) as client:
        proxy.cut(*ways)  # type: ignore[arg-type]
        client.settimeout(0.2)
        client.sendall(b"late")
        with pytest.raises(TimeoutError):
            client.recv(100)
        client.settimeout(10)
        proxy.heal(late=True)
        assert client.recv(100) == b"late"


def test_or_never_since_its_connection_breaks(proxy: Proxy) -> None:
    with connect(proxy) as client:
        proxy.cut()
        client.sendall(b"never")
        proxy.heal(late=False)

        def over() -> bool:
            try:
                return client.recv(100) == b""
            except ConnectionResetError:
                return True

        until(over)
    connect(proxy).close()
