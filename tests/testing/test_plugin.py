"""The pytest plugin: which etcd it takes, and what it says where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordjournal.testing.etcd import EtcdServer
from tests.support import CHECKOUT, python
from tests.testing.keys import coded

NOWHERE = "127.0.0.1:1"

APPENDS = """
import os
import coordjournal as cj

def test_an_append(coordjournal_log, coordjournal_etcd, coordjournal_prefix, tmp_path):
    assert coordjournal_log.spaces() == []
    assert coordjournal_etcd.source == os.environ["COORDJOURNAL_WANTED_SOURCE"]
    receipt = coordjournal_log.append("handbook", cj.AliasSet("Home", "shard-a:Start"))
    assert (receipt.seq, receipt.term) == (1, 1)
    assert (tmp_path / "wiki.git").is_dir()
    etcd = coordjournal_etcd.endpoints
    with cj.DecisionLog.open(tmp_path / "wiki.git", etcd=etcd, prefix=coordjournal_prefix) as other:
        assert other.spaces() == ["handbook"]

def test_another_log_has_nothing_of_the_first(coordjournal_log):
    assert coordjournal_log.append("handbook", cj.AliasSet("Home", "shard-b:Start")).seq == 1
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, coordjournal_etcd_binary: str) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd"), binary=coordjournal_etcd_binary) as server:
        yield server


def test_the_endpoint_of_the_environment_comes_first_and_is_left_clean(server: EtcdServer, tmp_path: Path) -> None:
    source = f"COORDJOURNAL_TEST_ETCD={server.endpoint}"
    said = run(tmp_path, {"TEST_ETCD": server.endpoint, "WANTED_SOURCE": source}, path=os.environ["PATH"])
    assert said.startswith("0: 2 passed"), said
    assert int(server.call("kv/range", key=coded("\0"), range_end=coded("\0"))["header"]["revision"]) > 2
    assert "kvs" not in server.call("kv/range", key=coded("\0"), range_end=coded("\0"))


def test_the_etcd_on_the_path_comes_next(tmp_path: Path, coordjournal_etcd_binary: str) -> None:
    said = run(tmp_path, {"WANTED_SOURCE": coordjournal_etcd_binary}, path=os.environ["PATH"])
    assert said.startswith("0: 2 passed"), said


@pytest.mark.parametrize("required", [None, "", "0"])
def test_without_any_etcd_tests_are_skipped_and_told_why(tmp_path: Path, required: str | None) -> None:
    said = run(tmp_path, {} if required is None else {"REQUIRE_ETCD": required})
    assert said.startswith("0: 2 skipped"), said
    assert "COORDJOURNAL_TEST_ETCD is not set; there is no etcd on the PATH" in said
    assert "no Docker engine answers" in said


def test_without_any_etcd_tests_fail_where_one_is_required(tmp_path: Path) -> None:
    said = run(tmp_path, {"REQUIRE_ETCD": "1"})
    assert said.startswith("1: 2 errors"), said
    assert "COORDJOURNAL_REQUIRE_ETCD is set, and there is no etcd to test with" in said


def test_an_endpoint_that_is_named_is_not_replaced_by_another_etcd(tmp_path: Path) -> None:
    said = run(tmp_path, {"TEST_ETCD": NOWHERE}, path=os.environ["PATH"])
    assert said.startswith("1: 2 errors"), said
    assert f"there is no etcd to test with: COORDJOURNAL_TEST_ETCD is {NOWHERE}: " in said


@pytest.mark.parametrize(
    ("here", "required", "verdict"),
    [
        (["etcdctl"], "1", "0: 1 passed"),
        (["etcd"], "0", "0: 1 skipped"),
        (["etcd"], "1", "1: 1 error"),
        (["etcd", "etcdctl"], "1", "0: 2 passed"),
    ],
)
def test_etcd_and_etcdctl_are_missed_apart(tmp_path: Path, here: list[str], required: str, verdict: str) -> None:
    for name in here:
        (tmp_path / name).write_text("#!/bin/sh\n", encoding="ascii")
        (tmp_path / name).chmod(0o755)
    code = "def test_it(coordjournal_etcdctl):\n    assert coordjournal_etcdctl.endswith('/etcdctl')\n"
    if len(here) == 2:
        code += "def test_the_other(coordjournal_etcd_binary):\n    assert coordjournal_etcd_binary.endswith('/etcd')\n"
    said = run(tmp_path, {"REQUIRE_ETCD": required}, path=str(tmp_path), code=code)
    assert said.startswith(verdict), said
    assert ("there is no etcdctl on the PATH" in said) == ("etcdctl" not in here)


def test_loading_the_plugin_loads_no_library_of_etcd_or_of_containers() -> None:
    code = (
        "import coordjournal.testing.plugin, sys; print(sorted({'grpc', 'docker', 'testcontainers'} & {*sys.modules}))"
    )
    with python(code) as process:
        assert process.communicate()[0] == "[]\n"


def run(
    directory: Path,
    variables: dict[str, str],
    *,
    path: str = "/nonexistent",
    engine: bool = False,
    code: str = APPENDS,
) -> str:
    """Run pytest on some code with only these variables of ours; return its exit code, verdict and output.

    With `engine`, it may use the Docker engine that answers here.
    """
    (directory / "test_code.py").write_text(code, encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("COORDJOURNAL_", "PYTEST_"))}
    if not engine:
        kept["DOCKER_HOST"] = f"tcp://{NOWHERE}"
    ours = {f"COORDJOURNAL_{name}": value for name, value in variables.items()}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rsE", "-p", "no:cacheprovider", "--basetemp", str(directory / "tmp")],
        cwd=directory,
        env={
            **kept,
            "PATH": path,
            "PYTHONPATH": str(CHECKOUT),
            "COLUMNS": "500",
            **ours,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    verdict = done.stdout.strip().splitlines()[-1].strip("= ")
    return f"{done.returncode}: {verdict}\n{done.stdout}"
