"""compose.yaml as it stands: the cluster with TLS, the single member, and the nodes, in a Docker engine.

Skipped where there is no Compose, no engine or no image of etcd; `COORDJOURNAL_REQUIRE_CONTAINERS=1` makes a
failure of the latter two. The nodes are tried only where there is a Python image to build them on: the one of
compose.yaml, or the one that `COORDJOURNAL_PYTHON_IMAGE` names.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from coordjournal.etcd import EtcdError, Get, Put
from coordjournal.etcd.client import EtcdClient, Tls
from coordjournal.testing.certificates import CertificateAuthority
from tests.support import CHECKOUT

REQUIRE = "COORDJOURNAL_REQUIRE_CONTAINERS"
READY_SECONDS = 90
MEMBERS = ["etcd1", "etcd2", "etcd3"]

pytestmark = pytest.mark.timeout(300)


class Compose:
    """compose.yaml under a project name of its own, with ports of its own."""

    def __init__(self, program: list[str], certificates: Path) -> None:
        self.project = f"coordjournal-test-{secrets.token_hex(4)}"
        self._program = [*program, "--file", str(CHECKOUT / "compose.yaml"), "--project-name", self.project]
        ports = dict.fromkeys(["ETCD_PORT", "ETCD1_PORT", "ETCD2_PORT", "ETCD3_PORT"], "0")
        self._environment = {**os.environ, "COORDJOURNAL_CERTIFICATES": str(certificates), **ports}

    def __call__(self, *words: str, check: bool = True) -> str:
        done = subprocess.run(
            [*self._program, *words], env=self._environment, capture_output=True, text=True, cwd=CHECKOUT, check=False
        )
        assert not check or done.returncode == 0, f"compose {' '.join(words)}: {done.stderr}"
        return done.stdout

    def up(self, *services: str) -> None:
        """Start services, and return when the health checks of all are content."""
        self("up", "--detach", *services)
        deadline = time.monotonic() + READY_SECONDS
        while (health := {service: self.health(service) for service in services}) != dict.fromkeys(services, "healthy"):
            assert time.monotonic() < deadline, f"{health}\n{self('logs', *services, check=False)}"
            time.sleep(0.2)

    def down(self) -> None:
        """Leave nothing behind, whatever has happened."""
        self("down", "--volumes", "--rmi", "local", "--timeout", "1", check=False)

    def health(self, service: str) -> str:
        return str(self.inspect(service)["State"]["Health"]["Status"])

    def endpoint(self, service: str) -> str:
        """Return where the member is found from here."""
        (published,) = self.inspect(service)["NetworkSettings"]["Ports"]["2379/tcp"]
        return f"{published['HostIp']}:{published['HostPort']}"

    def inspect(self, service: str) -> dict[str, Any]:
        (container,) = self("ps", "--quiet", service).split()
        done = subprocess.run(["docker", "inspect", container], capture_output=True, text=True, check=True)
        found: dict[str, Any] = json.loads(done.stdout)[0]
        return found


@pytest.fixture(scope="module")
def program() -> list[str]:
    """Return how Compose is called here."""
    from coordjournal.testing.container import IMAGE, IMAGE_VARIABLE

    if not (program := compose_program()):
        pytest.skip("there is no Compose: neither `docker compose` nor docker-compose")
    image = os.environ.get(IMAGE_VARIABLE) or IMAGE
    reason = ""
    if not succeeds("docker", "info"):
        reason = "no Docker engine answers"
    elif not have_image(image):
        reason = f"the image {image} is not here and cannot be pulled; scripts/etcd-image builds one"
    if reason and os.environ.get(REQUIRE, "0") not in ("", "0"):
        pytest.fail(f"{REQUIRE} is set: {reason}", pytrace=False)
    if reason:
        pytest.skip(reason)
    return program


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    authority = CertificateAuthority(tmp_path_factory.mktemp("certificates"))
    for member in MEMBERS:
        authority.server(member, member, "localhost", "127.0.0.1")
    authority.client("node").key.chmod(0o644)
    return authority


@pytest.fixture(scope="module")
def cluster(program: list[str], certificates: CertificateAuthority) -> Iterator[Compose]:
    compose = Compose(program, certificates.directory)
    try:
        compose.up(*MEMBERS)
        yield compose
    finally:
        compose.down()


@pytest.fixture
def single(program: list[str], tmp_path: Path) -> Iterator[Compose]:
    compose = Compose(program, tmp_path)
    try:
        yield compose
    finally:
        compose.down()


def test_the_three_members_are_one_etcd_for_who_has_a_certificate(
    cluster: Compose, certificates: CertificateAuthority
) -> None:
    tls = Tls(*certificates.client("root"))
    for number, member in enumerate(MEMBERS):
        with closing(EtcdClient(cluster.endpoint(member), tls=tls)) as client:
            assert client.txn([], [Put(b"compose/%d" % number, b"1")], timeout=10).succeeded
            assert client.get(Get(b"compose/", b"compose0"), timeout=10)[1].count == number + 1


def test_a_client_without_a_certificate_gets_nothing(cluster: Compose, certificates: CertificateAuthority) -> None:
    for tls in (None, Tls(certificates.ca)):
        with closing(EtcdClient(cluster.endpoint("etcd1"), tls=tls)) as client, pytest.raises(EtcdError):
            client.get(Get(b"compose/0"), timeout=1)


def test_the_cluster_goes_on_without_one_member(cluster: Compose, certificates: CertificateAuthority) -> None:
    cluster("kill", "etcd2")
    endpoints = f"{cluster.endpoint('etcd1')},{cluster.endpoint('etcd3')}"
    with closing(EtcdClient(endpoints, tls=Tls(*certificates.client("root")))) as client:
        assert client.txn([], [Put(b"degraded", b"1")], timeout=10).succeeded
    cluster("up", "--detach", "etcd2")
    with closing(EtcdClient(cluster.endpoint("etcd2"), tls=Tls(*certificates.client("root")))) as client:
        assert client.get(Get(b"degraded"), timeout=30)[1].count == 1


def test_no_container_of_a_member_has_the_authoritys_key(cluster: Compose) -> None:
    for member in MEMBERS:
        (bound,) = [mount for mount in cluster.inspect(member)["Mounts"] if mount["Type"] == "bind"]
        assert sorted(path.name for path in Path(bound["Source"]).iterdir()) == ["ca.pem", "cert.pem", "key.pem"]
        assert not bound["RW"]


def test_the_single_member_needs_no_certificate(single: Compose) -> None:
    single("up", "--detach", "etcd")
    with closing(EtcdClient(single.endpoint("etcd"))) as client:
        client.get(Get(b"single"), timeout=30)
        assert client.txn([], [Put(b"single", b"1")], timeout=10).succeeded


def test_two_nodes_share_a_journal_and_one_goes_on_without_the_other(cluster: Compose) -> None:
    if not have_image(image := python_image()):
        pytest.skip(f"the image {image} is not here and cannot be pulled: there is nothing to build the nodes on")
    cluster.up("node1", "node2")
    append = ("coordjournal", "append", "handbook", "alias")
    cluster("exec", "-T", "node1", *append, "Home", "shard-a:Start")
    assert "shard-a:Start" in cluster("exec", "-T", "node2", "coordjournal", "resolve", "handbook", "Home")
    cluster("kill", "node1")
    cluster("exec", "-T", "node2", *append, "Away", "Home")
    assert "shard-a:Start" in cluster("exec", "-T", "node2", "coordjournal", "resolve", "handbook", "Away")


def test_every_image_is_pinned() -> None:
    text = (CHECKOUT / "compose.yaml").read_text(encoding="utf-8") + (CHECKOUT / "Dockerfile").read_text(
        encoding="utf-8"
    )
    images = re.findall(r"_IMAGE(?::-|=)([^}\s]+)", text)
    assert (len(images), len(set(images))) == (3, 2)
    for image in images:
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+[\w.-]*", image), image


def test_the_fixtures_and_compose_name_the_same_etcd() -> None:
    from coordjournal.testing.container import IMAGE

    assert f"${{COORDJOURNAL_ETCD_IMAGE:-{IMAGE}}}" in (CHECKOUT / "compose.yaml").read_text(encoding="utf-8")


def python_image() -> str:
    (pinned,) = re.findall(
        r"COORDJOURNAL_PYTHON_IMAGE:-([^}]+)", (CHECKOUT / "compose.yaml").read_text(encoding="utf-8")
    )
    return os.environ.get("COORDJOURNAL_PYTHON_IMAGE") or str(pinned)


def have_image(image: str) -> bool:
    return succeeds("docker", "image", "inspect", image) or succeeds("docker", "pull", "--quiet", image)


def compose_program() -> list[str]:
    if succeeds("docker", "compose", "version"):
        return ["docker", "compose"]
    return ["docker-compose"] if succeeds("docker-compose", "version") else []


def succeeds(*command: str) -> bool:
    if shutil.which(command[0]) is None:
        return False
    try:
        return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False
