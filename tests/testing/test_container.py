"""An etcd in a container: it answers, it gets its flags, and none is left behind.

Skipped where no container of etcd can be had; `COORDJOURNAL_REQUIRE_CONTAINERS=1` makes that a failure.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.containers import (
    PYTHON_IMAGE,
    REQUIRE,
    give_up,
    have_image,
    need_etcd_image,
    need_python_image,
    succeeds,
)
from tests.testing.keys import coded
from tests.testing.test_plugin import run

if TYPE_CHECKING:
    from coordjournal.testing.container import EtcdContainer

NOWHERE = "127.0.0.1:1/nobody/etcd:none"


@pytest.fixture(scope="module")
def container() -> Iterator[EtcdContainer]:
    from testcontainers.core.config import testcontainers_config

    from coordjournal.testing.container import EtcdContainer

    image = need_etcd_image()
    reaper = testcontainers_config.ryuk_image
    if not testcontainers_config.ryuk_disabled and not have_image(reaper):
        help_ = "TESTCONTAINERS_RYUK_DISABLED=true does without it; scripts/test sets that"
        give_up(f"testcontainers' own image {reaper} is not here and cannot be pulled; {help_}")
    with EtcdContainer(image, flags={"max-txn-ops": 1}) as container:
        yield container


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"DOCKER_HOST": "tcp://127.0.0.1:1"}, "no Docker engine answers"),
        (
            {"COORDJOURNAL_ETCD_IMAGE": NOWHERE},
            f"the image {NOWHERE} is not here and cannot be pulled; scripts/etcd-image builds",
        ),
    ],
    ids=["engine", "image"],
)
def test_what_is_missing_is_said_and_what_helps(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], reason: str
) -> None:
    if "DOCKER_HOST" not in variables and not succeeds("docker", "info"):
        pytest.skip("no Docker engine answers")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(REQUIRE, "0")
    with pytest.raises(pytest.skip.Exception, match=reason):
        need_etcd_image()
    monkeypatch.setenv(REQUIRE, "1")
    with pytest.raises(pytest.fail.Exception, match=f"{REQUIRE} is set: {reason}"):
        need_etcd_image()


def test_a_machine_on_which_no_python_image_can_be_had_is_told_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(PYTHON_IMAGE, NOWHERE)
    monkeypatch.setenv(REQUIRE, "1")
    monkeypatch.setattr("tests.containers.LOCAL_PYTHON", NOWHERE)
    monkeypatch.setenv("PATH", str(tmp_path))
    for tool in ("env", "bash", "dirname", "cat", "sha256sum", "cut"):
        (tmp_path / tool).symlink_to(shutil.which(tool, path=os.defpath) or tool)
    with pytest.raises(pytest.skip.Exception, match=r"scripts/python-image builds none: apt-get is not here"):
        need_python_image()


def test_it_keeps_what_it_is_told(container: EtcdContainer) -> None:
    assert container.ready()
    call(container, "kv/put", key=coded("a"), value=coded("1"))
    status, found = call(container, "kv/range", key=coded("a"))
    assert (status, [kv["value"] for kv in found["kvs"]]) == (200, [coded("1")])


def test_flags_reach_it(container: EtcdContainer) -> None:
    operation = {"request_put": {"key": coded("a"), "value": coded("1")}}
    status, said = call(container, "kv/txn", success=[operation, operation])
    assert status != 200
    assert "too many operations" in json.dumps(said)


def test_one_that_does_not_get_ready_is_removed_and_says_why(container: EtcdContainer) -> None:
    from coordjournal.testing.container import ContainerFailed, EtcdContainer

    failing = EtcdContainer(container.image, flags={"not-a-flag": 1}, labels={"coordjournal-test": "failing"})
    with pytest.raises(ContainerFailed, match="not-a-flag"):
        failing.start()
    engine = container.get_docker_client().client
    assert engine.containers.list(all=True, filters={"label": "coordjournal-test=failing"}) == []


def test_entering_one_that_was_started_makes_no_other(container: EtcdContainer) -> None:
    before = container.get_wrapped_container().id
    assert container.start().get_wrapped_container().id == before


def test_an_image_that_is_nowhere_is_named(container: EtcdContainer) -> None:
    from coordjournal.testing.container import ContainerFailed, EtcdContainer

    with pytest.raises(ContainerFailed, match=NOWHERE):
        EtcdContainer(NOWHERE).start()


def test_no_engine_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from coordjournal.testing.container import ContainerFailed, EtcdContainer

    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    with pytest.raises(ContainerFailed, match="no Docker engine answers"):
        EtcdContainer()


def test_the_fixtures_take_a_container_where_there_is_no_process(container: EtcdContainer, tmp_path: Path) -> None:
    source = f"container of {container.image}"
    said = run(tmp_path, {"ETCD_IMAGE": container.image, "WANTED_SOURCE": source}, engine=True)
    assert said.startswith("0: 2 passed"), said


def call(container: EtcdContainer, method: str, **fields: object) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(container.endpoint, timeout=10)
    try:
        connection.request("POST", f"/v3/{method}", json.dumps(fields))
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()
