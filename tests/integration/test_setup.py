"""scripts/setup: what it provides for the tests, on machines that have one thing and not the other."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import CHECKOUT

INSTALLS = """#!/bin/bash
mkdir -p "$1/usr/bin"
for name in etcd etcdctl; do echo "#!/bin/true" >"$1/usr/bin/$name"; chmod +x "$1/usr/bin/$name"; done
"""
FAILS = "#!/bin/bash\nexit 1\n"


@pytest.mark.parametrize(
    ("here", "unpacked"),
    [([], ["etcd", "etcdctl"]), (["etcd"], ["etcdctl"]), (["etcdctl"], ["etcd"]), (["etcd", "etcdctl"], [])],
)
def test_both_programs_of_etcd_are_provided_and_the_machines_own_come_first(
    tmp_path: Path, here: list[str], unpacked: list[str]
) -> None:
    found = provide_etcd(tmp_path, here, INSTALLS).stdout.split()
    assert found == [
        str(tmp_path / (".venv/etcd/usr/bin" if name in unpacked else "machine") / name) for name in ("etcd", "etcdctl")
    ]
    assert (tmp_path / ".venv").exists() == bool(unpacked)


def test_where_nothing_can_be_had_that_is_said_and_the_tests_begin(tmp_path: Path) -> None:
    done = provide_etcd(tmp_path, ["etcd"], FAILS)
    assert done.stdout.split() == [str(tmp_path / "machine" / "etcd")]
    assert "etcd or etcdctl is missing" in done.stderr


def provide_etcd(directory: Path, here: list[str], installer: str) -> subprocess.CompletedProcess[str]:
    """Run it in a checkout of its own, on a machine that has these programs; it prints where each is found then."""
    scripts, machine = directory / "scripts", directory / "machine"
    scripts.mkdir()
    machine.mkdir()
    shutil.copy(CHECKOUT / "scripts" / "setup", scripts)
    (scripts / "install-etcd").write_text(installer, encoding="ascii")
    (scripts / "install-etcd").chmod(0o755)
    for tool in ("dirname", "mkdir", "chmod"):
        (machine / tool).symlink_to(shutil.which(tool) or tool)
    for name in here:
        (machine / name).write_text("#!/bin/true\n", encoding="ascii")
        (machine / name).chmod(0o755)
    return subprocess.run(
        [
            "/bin/bash",
            "-c",
            ". scripts/setup; provide_etcd; for name in etcd etcdctl; do command -v $name || true; done",
        ],
        cwd=directory,
        env={"PATH": str(machine)},
        capture_output=True,
        text=True,
        check=True,
    )
