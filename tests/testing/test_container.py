"""An etcd in a container: it answers, it gets its flags, and none is left behind.

Skipped where no container of etcd can be had; `COORDJOURNAL_REQUIRE_CONTAINERS=1` makes that a failure.
"""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.testing.keys import coded
from tests.testing.test_plugin import run

if TYPE_CHECKING:
    from coordjournal.testing.container import EtcdContainer

REQUIRE = "COORDJOURNAL_REQUIRE_CONTAINERS"


@pytest.fixture(scope="module")
def container() -> Iterator[EtcdContainer]:
    from coordjournal.testing.container import ContainerFailed, EtcdContainer

    try:
        container = EtcdContainer(flags={"max-txn-ops": 1}).start()
    except ContainerFailed as error:
        if os.environ.get(REQUIRE, "0") not in ("", "0"):
            pytest.fail(f"{REQUIRE} is set: {error}", pytrace=False)
        pytest.skip(str(error))
    with container:
        yield container


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

    with pytest.raises(ContainerFailed, match=r"127\.0\.0\.1:1/nobody/etcd:none"):
        EtcdContainer("127.0.0.1:1/nobody/etcd:none").start()


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
