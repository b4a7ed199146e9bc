"""Files that outlive a power cut, locks that do not outlive their process, and the disk under them."""

from __future__ import annotations

import fcntl
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

# File systems whose locks and caches promise too little between hosts, by the kernel's name for them.
_NETWORK: Final = frozenset(
    (
        *("9p", "acfs", "afpfs", "afs", "beegfs", "ceph", "cifs", "fhgfs", "gfs2", "gpfs", "lustre"),
        *("ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "smb", "smb2", "smb3", "smbfs", "vboxsf", "virtiofs"),
        *("webdav", "fuse.ceph", "fuse.cephfs", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs"),
    )
)
# Of these, and of others unknown to us by name, those on which link, rename or fsync promise too little.
_UNFIT: Final = frozenset(
    (
        *("9p", "afpfs", "cifs", "ncpfs", "smb", "smb2", "smb3", "smbfs", "vboxsf", "webdav"),
        *("fuse.rclone", "fuse.s3fs", "fuse.sshfs", "vfat", "exfat"),
    )
)

_held: set[int] = set()  # descriptors of locks that this process holds
_no_fork = threading.Lock()  # while a descriptor is open and not in `_held`, or the other way round


def sync(file: int) -> None:
    """Make what was written to a descriptor durable; on macOS fsync(2) leaves it in the drive's cache."""
    if sys.platform == "darwin":
        try:
            fcntl.fcntl(file, fcntl.F_FULLFSYNC)
            return
        except OSError:
            pass  # not every file system has it
    os.fsync(file)


def sync_directory(path: Path) -> None:
    """Make the names in `path` durable."""
    file = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync(file)
    finally:
        os.close(file)


def make_directory(path: Path) -> None:
    """Make a directory and those above it that are not there, durably."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir(exist_ok=True)
    sync_directory(path.parent)


def write_synced(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Make a new file with durable content; its name is durable after `sync_directory`."""
    write_all_synced({path: data}, mode)


def write_all_synced(contents: dict[Path, bytes], mode: int = 0o644) -> None:
    """Make new files, as `write_synced` does; all are written before the first is synced, which is quicker."""
    files: list[int] = []
    try:
        for path, data in contents.items():
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            files.append(file)
            view = memoryview(data)
            while view:
                view = view[os.write(file, view) :]
        for file in files:
            sync(file)
    finally:
        for file in files:
            os.close(file)


def replace_synced(path: Path, data: bytes) -> None:
    """Put `data` in the place of `path`, whole or not at all, durably."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        write_synced(draft, data)
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock that the file `path` stands for; yields whether it is held, always true if `wait`.

    `flock(2)`: the kernel frees it when the process dies. A forked child shares the lock; it closes its
    descriptor at once and never unlocks, so the lock stays the parent's.
    """
    file = open_lock(path)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        forget_lock(file)


def open_lock(path: Path, flags: int = 0) -> int:
    """Open, and make if need be, a file for a lock of this process, whose descriptor no forked child keeps."""
    with _no_fork:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | flags, 0o644)
        _held.add(file)
    return file


def forget_lock(file: int) -> None:
    """Close the descriptor of a lock, and so free it."""
    with _no_fork:
        if file in _held:  # not in a forked child, which has closed it
            _held.discard(file)
            os.close(file)


def _forget_locks() -> None:
    for file in _held:
        os.close(file)
    _held.clear()
    _no_fork.release()


os.register_at_fork(before=_no_fork.acquire, after_in_parent=_no_fork.release, after_in_child=_forget_locks)


def is_network(kind: str) -> bool:
    """Whether `kind`, as `file_system` names it, is a network file system."""
    return kind in _NETWORK


def is_sharable(kind: str) -> bool:
    """Whether hosts that etcd keeps apart may share a repository on the file system `kind`."""
    return kind not in _UNFIT


def file_system(path: Path) -> str:
    """Return the kernel's name of the file system that `path` is on, empty if it cannot be told."""
    if sys.platform == "darwin":
        return _darwin_file_system(path)
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        with Path("/proc/self/mountinfo").open(encoding="utf-8", errors="replace") as mounts:
            return mounted_kind(mounts, wanted)
    except OSError:
        return ""


def mounted_kind(mounts: Iterator[str], device: str) -> str:
    """Return the file system of `device` (`major:minor`) in the lines of a mountinfo file (proc(5))."""
    for line in mounts:
        before, _, after = line.partition(" - ")
        if before.split()[2:3] == [device] and after:
            return after.split()[0]
    return ""


def _darwin_file_system(path: Path) -> str:
    """Ask statfs(2): `f_fstypename` is 16 bytes at offset 72 of macOS's 64-bit-inode `struct statfs`."""
    import ctypes

    buffer = ctypes.create_string_buffer(4096)
    library = ctypes.CDLL(None)
    statfs = getattr(library, "statfs$INODE64", None) or library.statfs
    if statfs(os.fsencode(path), buffer) != 0:
        return ""
    return buffer.raw[72:88].split(b"\0", 1)[0].decode("ascii", "replace")
