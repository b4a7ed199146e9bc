"""What the tests of containers share: whether there is an engine and an image, and Compose as a program."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

import pytest

from tests.support import CHECKOUT

REQUIRE: Final = "COORDJOURNAL_REQUIRE_CONTAINERS"
PYTHON_IMAGE: Final = "COORDJOURNAL_PYTHON_IMAGE"
LOCAL_PYTHON: Final = "coordjournal-python:local"
READY_SECONDS: Final = 90
_PULL_SECONDS: Final = 60
_BUILD_SECONDS: Final = 240


def give_up(reason: str) -> NoReturn:
    """Skip the test; fail it where containers are required."""
    if os.environ.get(REQUIRE, "0") not in ("", "0"):
        pytest.fail(f"{REQUIRE} is set: {reason}", pytrace=False)
    pytest.skip(reason)


def need_etcd_image() -> str:
    """Return the image of etcd that the tests use, or give up and say what would help."""
    from coordjournal.testing.container import IMAGE, IMAGE_VARIABLE

    if not succeeds("docker", "info"):
        give_up("no Docker engine answers")
    named = os.environ.get(IMAGE_VARIABLE)
    if have_image(image := named or IMAGE):
        return image
    help_ = f"scripts/etcd-image builds coordjournal-etcd:local, for {IMAGE_VARIABLE} to name; scripts/test does both"
    give_up(f"the image {image} is not here and cannot be pulled; {help_}")


def need_python_image() -> str:
    """Return an image to build nodes on: the named or pinned one, or one that is built where none can be pulled.

    Where none can be had at all the test is skipped, whatever is required: nothing could be mended here.
    """
    text = (CHECKOUT / "compose.yaml").read_text(encoding="utf-8")
    (pinned,) = re.findall(rf"{PYTHON_IMAGE}:-([^}}]+)", text)
    image = os.environ.get(PYTHON_IMAGE) or str(pinned)
    if have_image(image):
        return image
    builder = subprocess.run(
        [str(CHECKOUT / "scripts" / "python-image"), LOCAL_PYTHON],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=_BUILD_SECONDS,
        check=False,
    )
    if builder.returncode:
        pytest.skip(f"the image {image} cannot be pulled, and scripts/python-image builds none: {builder.stderr}")
    return LOCAL_PYTHON


def have_image(image: str) -> bool:
    return succeeds("docker", "image", "inspect", image) or succeeds(
        "docker", "pull", "--quiet", image, seconds=_PULL_SECONDS
    )


def succeeds(*command: str, seconds: float = 30) -> bool:
    if shutil.which(command[0]) is None:
        return False
    try:
        return subprocess.run(command, capture_output=True, timeout=seconds, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def docker(*words: str) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"docker {' '.join(words)}: {done.stdout[-4000:]}{done.stderr}"
    return done.stdout


def compose_program() -> list[str]:
    """Return how Compose is called here; empty if there is none."""
    if succeeds("docker", "compose", "version"):
        return ["docker", "compose"]
    return ["docker-compose"] if succeeds("docker-compose", "version") else []


class Compose:
    """The compose.yaml of a checkout, and files that change it, under a project name of its own."""

    def __init__(
        self, program: list[str], directory: Path, project: str, variables: Mapping[str, str], *files: Path
    ) -> None:
        self.program = program
        self.directory = directory
        self.project = project
        paths = ":".join(map(str, [directory / "compose.yaml", *files]))
        self.environment = {**os.environ, "COMPOSE_FILE": paths, "COMPOSE_PROJECT_NAME": project, **variables}

    def __call__(self, *words: str, check: bool = True) -> str:
        done = subprocess.run(
            [*self.program, *words],
            env=self.environment,
            capture_output=True,
            text=True,
            cwd=self.directory,
            check=False,
        )
        assert not check or done.returncode == 0, f"compose {' '.join(words)}: {done.stderr}"
        return done.stdout

    def up(self, *services: str) -> None:
        """Start services, and return when the health checks of all are content."""
        self("up", "--detach", *services)
        self.wait(*services)

    def wait(self, *services: str) -> None:
        """Return when the health checks of services, of all that there are unless named, are content."""
        wanted = self("ps", "--quiet", *services).split() if services else self.containers()
        deadline = time.monotonic() + READY_SECONDS
        while {*(health := self._health(wanted)).values()} != {"healthy"}:
            assert time.monotonic() < deadline, f"{health}\n{self('logs', *services, check=False)}"
            time.sleep(0.2)

    def down(self) -> None:
        """Leave nothing behind, whatever has happened."""
        self("--profile", "single", "down", "--volumes", "--rmi", "local", "--timeout", "1", check=False)

    def containers(self) -> list[str]:
        """Return the names of all its containers, running or not, whatever Compose thinks of them."""
        label = f"label=com.docker.compose.project={self.project}"
        return docker("ps", "--all", "--filter", label, "--format", "{{.Names}}").split()

    def _health(self, containers: list[str]) -> dict[str, str]:
        found = json.loads(docker("inspect", *containers))
        return {container["Name"]: container["State"]["Health"]["Status"] for container in found}

    def endpoint(self, service: str) -> str:
        """Return where the member is found from here."""
        (published,) = self.inspect(service)["NetworkSettings"]["Ports"]["2379/tcp"]
        return f"{published['HostIp']}:{published['HostPort']}"

    def inspect(self, service: str) -> dict[str, Any]:
        (container,) = self("ps", "--quiet", service).split()
        found: dict[str, Any] = json.loads(docker("inspect", container))[0]
        return found
