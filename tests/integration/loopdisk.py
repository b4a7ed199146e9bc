"""A file system of one's own on a loop device, and what a power cut leaves of it.

Everything here is mounted by a child process in a mount namespace of its own: when the child ends, in
whatever way, the kernel unmounts and detaches it.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from tests.integration.crashing import Steps
from tests.integration.processes import Channel, start

_NEW_NAMESPACE: Final = 0x00020000  # CLONE_NEWNS, unshare(2)
_BLOCK: Final = 1 << 16
_ZEROS: Final = bytes(_BLOCK)
# As unkind as ext4 can be told to be: metadata may be there before the data, a rename brings no data along,
# and nothing is committed by the clock while a test runs.
_UNKIND: Final = "data=writeback,noauto_da_alloc,commit=600,noatime"
_SECONDS: Final = 30.0


def run(*command: str | Path) -> None:
    """Run a program; `OSError` with what it says if it fails."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=_SECONDS, check=False)
    if done.returncode:
        raise OSError(f"{command[0]} says: {done.stderr.strip()}")


def own_mounts() -> None:
    """Let this process mount what nobody else sees, and what goes with it."""
    if ctypes.CDLL(None, use_errno=True).unshare(_NEW_NAMESPACE):
        raise OSError(ctypes.get_errno(), "no mount namespace of one's own")
    run("mount", "--make-rprivate", "/")


@contextmanager
def tmpfs(at: Path, options: str) -> Iterator[Path]:
    """Mount a file system in memory on the directory `at`."""
    at.mkdir()
    run("mount", "-t", "tmpfs", "-o", options, "tmpfs", at)
    try:
        yield at
    finally:
        run("umount", at)


def format_image(image: Path, mib: int) -> None:
    """Make an ext4 of that size in a file."""
    with image.open("wb") as file:
        file.truncate(mib << 20)
    run("mkfs.ext4", "-q", "-F", "-b", "1024", "-J", "size=1", image)


class Drive:
    """A drive with an ext4 on it, mounted as `root`.

    What is written reaches the drive when the file system sends it there; a drive that `holds_back`
    keeps it in a cache of its own until it is told to flush, and loses it in a power cut. Such a drive is
    a file of another ext4, in whose page cache it stays until the loop device syncs it.
    """

    def __init__(self, home: Path, image: Path, *, holds_back: bool) -> None:
        self.root = home / "mnt"
        self._image = image
        self._outer = home / "outer" if holds_back else None
        self._plain = {name: getattr(os, name) for name in ("open", "close", "pread", "pwrite", "ftruncate")}

    @classmethod
    def make(cls, home: Path, mib: int, *, holds_back: bool) -> Drive:
        """Make the files of a new drive in the directory `home`."""
        image = home / "drive.img"
        if not holds_back:
            format_image(image, mib)
            return cls(home, image, holds_back=False)
        within = home / "within.img"
        format_image(within, mib)
        format_image(image, 2 * mib)
        drive = cls(home, image, holds_back=True)
        assert drive._outer is not None
        drive._outer.mkdir()
        run("mount", "-o", f"loop,{_UNKIND}", image, drive._outer)
        try:
            (drive._outer / "drive.img").write_bytes(within.read_bytes())  # whole, so that every block is there
            os.sync()
        finally:
            run("umount", drive._outer)
        within.unlink()
        return drive

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        """Mount it, as after a power cut: what the journal of the file system has is played back."""
        self.root.mkdir(exist_ok=True)
        image = self._image
        if self._outer is not None:
            self._outer.mkdir(exist_ok=True)
            run("mount", "-o", f"loop,{_UNKIND}", image, self._outer)
            image = self._outer / "drive.img"
        try:
            run("mount", "-o", f"loop,{_UNKIND}", image, self.root)
            try:
                yield self.root
            finally:
                run("umount", self.root)
        finally:
            if self._outer is not None:
                run("umount", self._outer)

    def cut(self, target: Path) -> str:
        """Put down what a power cut at this moment leaves on the drive; return a digest of it."""
        plain, digest = self._plain, hashlib.blake2b(digest_size=16)
        source = plain["open"](self._image, os.O_RDONLY)
        copy = plain["open"](target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            at = 0
            while block := plain["pread"](source, _BLOCK, at):
                if block != _ZEROS:
                    digest.update(at.to_bytes(8, "big") + block)
                    plain["pwrite"](copy, block, at)
                at += len(block)
            plain["ftruncate"](copy, at)
        finally:
            plain["close"](source)
            plain["close"](copy)
        return digest.hexdigest()


class Cut(NamedTuple):
    """A power cut: after which step, the image that it left, what was noted then."""

    step: str
    image: str
    noted: Any


class DriveCuts(Steps):
    """Cuts the power of a drive at each thing that this process does to it; `note` says what goes with it."""

    def __init__(self, drive: Drive, target: Path, note: Callable[[], Any]) -> None:
        super().__init__(0)
        self.left: list[Cut] = []
        self._drive = drive
        self._target = target
        self._note = note
        self._seen: set[tuple[str, str]] = set()
        self._unlink = os.unlink

    def take(self, name: str) -> None:
        with self._lock:
            self.names.append(name)
            noted = self._note()
            image = self._target / str(len(self.names))
            mark = (self._drive.cut(image), repr(noted))
            if mark in self._seen:
                self._unlink(image)
            else:
                self._seen.add(mark)
                self.left.append(Cut(name, str(image), noted))


def try_a_drive(channel: Channel, home: str) -> str:
    """Return why there can be no drive here; nothing if there can."""
    try:
        own_mounts()
        with Drive.make(Path(home), 8, holds_back=True).mounted() as root, tmpfs(root / "memory", "size=64k"):
            return ""
    except OSError as error:
        return str(error)


@pytest.fixture(scope="session")
def loop_devices(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip, with the reason, where no image can be mounted."""
    why = ""
    if not sys.platform.startswith("linux"):
        why = "loop devices are Linux's"
    elif os.geteuid() != 0:
        why = "mounting an image takes root"
    elif not (shutil.which("mkfs.ext4") and shutil.which("mount")):
        why = "there is no mkfs.ext4 or no mount"
    else:
        why = str(start(try_a_drive, tmp_path_factory.mktemp("drive")).result())
    if why:
        pytest.skip(f"no file system of one's own: {why}")
