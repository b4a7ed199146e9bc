"""compose.yaml, the Dockerfile and the README's lines about them as they stand, in a Docker engine.

Skipped where there is no Compose, no engine or no image of etcd; `COORDJOURNAL_REQUIRE_CONTAINERS=1` makes a
failure of the latter two. The nodes are built on the Python image of compose.yaml, on the one that
`COORDJOURNAL_PYTHON_IMAGE` names, or where neither can be pulled on what scripts/python-image makes.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import coordjournal as cj
from coordjournal.authority.settings import Settings
from coordjournal.etcd import EtcdError, Get, Put
from coordjournal.etcd.client import EtcdClient, Tls
from coordjournal.overview import status
from coordjournal.testing.certificates import CertificateAuthority
from tests.containers import (
    PYTHON_IMAGE,
    READY_SECONDS,
    Compose,
    compose_program,
    docker,
    need_etcd_image,
    need_python_image,
)
from tests.support import CHECKOUT

MEMBERS = ["etcd1", "etcd2", "etcd3"]
NODES = ["node1", "node2"]
TTL = 3
PORTS = dict.fromkeys(["ETCD_PORT", "ETCD1_PORT", "ETCD2_PORT", "ETCD3_PORT"], "0")

pytestmark = pytest.mark.timeout(420)


@pytest.fixture(scope="module")
def program() -> list[str]:
    """Return how Compose is called here."""
    if not (program := compose_program()):
        pytest.skip("there is no Compose: neither `docker compose` nor docker-compose")
    need_etcd_image()
    return program


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    authority = CertificateAuthority(tmp_path_factory.mktemp("certificates"))
    for member in MEMBERS:
        authority.server(member, member, "localhost", "127.0.0.1")
    authority.client("node", readable=True)
    return authority


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a copy of the checkout that is set up, and that nobody edits between one build and the next."""
    there = tmp_path_factory.mktemp("checkout")
    for name in ("compose.yaml", "Dockerfile", ".dockerignore", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, there)
    for name in ("coordjournal", "scripts"):
        shutil.copytree(CHECKOUT / name, there / name, ignore=shutil.ignore_patterns("__pycache__"))
    (there / ".venv" / "bin").mkdir(parents=True)
    python = there / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    made_for = subprocess.run(["cksum", there / "pyproject.toml"], capture_output=True, check=True).stdout
    (there / ".venv" / ".installed-testing").write_bytes(made_for)
    return there


@pytest.fixture(scope="module")
def python_image(program: list[str], checkout: Path) -> Iterator[str]:
    """Give what nodes are built on; while the tests run a node's image is kept, so that each build of it is quick."""
    image = need_python_image()
    kept = {stage: f"{project()}-{stage}" for stage in ("build", "node")}
    try:
        for stage, tag in kept.items():
            target = ["--target", stage] if stage == "build" else []
            docker("build", "--build-arg", f"PYTHON_IMAGE={image}", "--tag", tag, *target, str(checkout))
        yield image
    finally:
        for tag in kept.values():
            subprocess.run(["docker", "image", "rm", tag], capture_output=True, check=False)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the directory of this host in which the cluster's nodes have their repository, as the user who looks there.

    As themselves they run in the README's lines; git here would trust no repository of theirs.
    """
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def cluster(
    program: list[str],
    certificates: CertificateAuthority,
    checkout: Path,
    shared: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Compose]:
    mount = {
        "type": "volume",
        "source": "repository",
        "target": "/var/lib/coordjournal",
        "volume": {"nocopy": True},  # which would also make the directory the image's user's
    }
    node = {
        "environment": {"COORDJOURNAL_TTL": str(TTL)},
        "user": f"{os.getuid()}:{os.getgid()}",
        "volumes": [mount],
    }
    changes = {
        "services": dict.fromkeys(NODES, node),
        "volumes": {"repository": {"driver_opts": {"type": "none", "o": "bind", "device": str(shared)}}},
    }
    override = tmp_path_factory.mktemp("compose") / "override.yaml"
    override.write_text(json.dumps(changes), encoding="utf-8")
    variables = {"COORDJOURNAL_CERTIFICATES": str(certificates.directory), **PORTS}
    compose = Compose(program, checkout, project(), variables, override)
    try:
        compose.up(*MEMBERS)
        yield compose
    finally:
        compose.down()


@pytest.fixture
def single(program: list[str], tmp_path: Path) -> Iterator[Compose]:
    compose = Compose(program, CHECKOUT, project(), {"COORDJOURNAL_CERTIFICATES": str(tmp_path), **PORTS})
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


def test_appends_from_this_host_are_forwarded_and_go_on_when_the_holder_is_killed(
    cluster: Compose, certificates: CertificateAuthority, python_image: str, shared: Path
) -> None:
    cluster.environment[PYTHON_IMAGE] = python_image
    cluster.up(*NODES)
    tls = Tls(*certificates.client("root"))
    repo, endpoints = shared / "wiki.git", ",".join(map(cluster.endpoint, MEMBERS))
    with cj.DecisionLog.open(repo, etcd=endpoints, tls=tls, role="client", ttl=TTL) as log:
        first = log.append("handbook", cj.AliasSet("Home", "shard-a:Start"), key="first", timeout=READY_SECONDS)
        (space,), nodes = status(repo, Settings(endpoints, tls))
        assert space.holder is not None
        assert {node.host for node in nodes} >= {*NODES}
        cluster("kill", killed := space.holder.host)
        second = log.append("handbook", cj.AliasSet("Away", "Home"), key="second", timeout=READY_SECONDS)
        (space,), _ = status(repo, Settings(endpoints, tls), "handbook")
    assert [(first.seq, first.via), (second.seq, second.via)] == [(1, "forwarded"), (2, "forwarded")]
    assert second.term > first.term
    assert space.holder is not None
    (other,) = {*NODES} - {killed}
    assert space.holder.host == other
    resolved = cluster("exec", "-T", other, "coordjournal", "resolve", "handbook", "Away")
    assert "shard-a:Start" in resolved


def test_the_lines_of_the_readme_run_as_they_stand(readme: Readme) -> None:
    assert readme.lines[0].startswith("docker compose up")
    first = next(number for number, line in enumerate(readme.lines, 1) if " append " in line)
    assert first <= 10, "from docker compose up to the first append: ten lines at most"
    said = {line: readme.run(line) for line in readme.lines}
    assert sum(" up " in line for line in said) == 2, "the single member, and the cluster"
    assert [out for line, out in said.items() if " append " in line and "handbook" not in out] == []
    assert all("shard-a:Start" in out for line, out in said.items() if " resolve " in line)
    assert "node2" in readme.run("docker compose exec node2 coordjournal status --nodes")


class Readme:
    """The lines of the README about containers, run in a checkout as whoever reads them would."""

    def __init__(self, compose: Compose) -> None:
        text = (CHECKOUT / "README.md").read_text(encoding="utf-8")
        (block,) = re.findall(r"```console\n(\$ docker compose.*?)```", text, re.DOTALL)
        self.lines = [line.removeprefix("$ ").partition("  #")[0] for line in block.splitlines()]
        self.compose = compose

    def run(self, line: str) -> str:
        """Run a line, with the Compose that is here, and return what it says."""
        waits = line.startswith("docker compose up") and self.compose.program == ["docker-compose"]
        command = re.sub(r"^docker compose exec", "docker compose exec -T", line)  # there is no terminal
        if waits:  # a Compose of old does not know how
            command = command.replace(" --wait", "")
        command = re.sub("^docker compose", " ".join(self.compose.program), command)
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.compose.directory,
            env=self.compose.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        if waits:
            self.compose.wait()
        if " down " in line:
            assert self.compose.containers() == [], line
        return done.stdout


@pytest.fixture
def readme(program: list[str], python_image: str, checkout: Path) -> Iterator[Readme]:
    """Give the lines, and ports that are free and as alike as those of compose.yaml."""
    text = (CHECKOUT / "compose.yaml").read_text(encoding="utf-8")
    published = dict(re.findall(r"\$\{(ETCD\d?_PORT):-(\d+)\}", text))
    assert published.keys() == PORTS.keys()
    free = {port: str(free_port()) for port in {*published.values()}}
    variables = {PYTHON_IMAGE: python_image, **{name: free[port] for name, port in published.items()}}
    compose = Compose(program, checkout, project(), variables)
    try:
        yield Readme(compose)
    finally:
        compose.down()


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


def project() -> str:
    """Return a name that nobody else has."""
    return f"coordjournal-test-{secrets.token_hex(4)}"


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port: int = server.getsockname()[1]
        return port
