"""A process that dies before or after the n-th thing that it does to the disk."""

from __future__ import annotations

import builtins
import fcntl
import io
import os
import re
import shutil
import signal
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pygit2

from tests.integration.processes import Child

_CALLS: Final = ("fsync", "link", "mkdir", "rename", "replace", "rmdir", "unlink")


class Steps:
    """Counts what this process does to the disk from now on, in any thread, and kills it at step `last`.

    Each call counts twice, before and after it was done; a write counts once more, half done. A
    `last` of 0 only counts. `names` are the steps that were done.
    """

    def __init__(self, last: int) -> None:
        self.names: list[str] = []
        self._last = last
        self._lock = threading.Lock()

    def take(self, name: str) -> None:
        with self._lock:
            self.names.append(name)
            if len(self.names) == self._last:
                os.kill(os.getpid(), signal.SIGKILL)
                signal.pause()

    def watch(self) -> None:
        """Put the counter around every call by which the library changes files."""
        for name in _CALLS:
            setattr(os, name, self._around(name, getattr(os, name)))
        fcntl.flock = self._around("flock", fcntl.flock)
        pygit2.init_repository = self._around("init_repository", pygit2.init_repository)
        pygit2.PackBuilder.write = self._around("PackBuilder.write", pygit2.PackBuilder.write)  # type: ignore[method-assign]
        self._watch_opening()
        self._watch_writing()

    def _around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            self.take(f"before {name}")
            result = call(*args, **options)
            self.take(f"after {name}")
            return result

        return counted

    def _watch_opening(self) -> None:
        plain_open, plain_file = os.open, io.open
        make = self._around("open", plain_open)
        make_file = self._around("open", plain_file)

        def counted_open(path: Any, flags: int, *args: Any, **options: Any) -> int:
            opener = make if flags & os.O_CREAT else plain_open
            return int(opener(path, flags, *args, **options))

        def counted_file(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            opener = plain_file if mode in ("r", "rb") else make_file
            return opener(file, mode, *args, **options)

        os.open = counted_open
        io.open = counted_file
        builtins.open = counted_file

    def _watch_writing(self) -> None:
        write = os.write

        def counted_write(file: int, data: Any) -> int:
            self.take("before write")
            half = len(data) // 2
            done = write(file, data[:half])
            if done == half:
                self.take("half write")
                done += write(file, data[half:])
            self.take("after write")
            return done

        def write_whole(path: Path, data: bytes) -> int:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            try:
                return os.write(file, data)
            finally:
                os.close(file)

        os.write = counted_write
        Path.write_bytes = write_whole  # type: ignore[assignment,method-assign]


class PowerCuts(Steps):
    """At each step, puts down what a power cut would leave of `root`, as unkind as a disk may be.

    Of a file that is what it held when it was last synced; of a directory the names it had when it
    was last synced, without those that were removed since. What is in `root` now counts as synced.
    """

    def __init__(self, root: Path, target: Path) -> None:
        super().__init__(0)
        self.said: list[str] = []
        self.left: list[tuple[str, list[str]]] = []
        self._root = root
        self._target = target
        self._contents: dict[int, bytes] = {}
        self._names: dict[int, dict[str, tuple[int, bool]]] = {}
        self._pinned: list[int] = []  # open files keep their inode numbers to themselves
        for directory, names, files in os.walk(root):
            for name in (".", *names, *files):
                self._synced(os.open(Path(directory) / name, os.O_RDONLY))
        self._plain = {name: getattr(os, name) for name in ("mkdir", "open", "write", "close", "fsync")}

    def watch(self) -> None:
        super().watch()
        counted = os.fsync

        def recorded(file: int) -> None:
            self._synced(os.dup(file))
            counted(file)

        os.fsync = recorded  # type: ignore[assignment]

    def take(self, name: str) -> None:
        with self._lock:
            self.names.append(name)
            if name.startswith("after"):
                place = self._target / str(len(self.names))
                self._put_down(self._root, self._root.stat().st_ino, place)
                self.left.append((name, list(self.said)))

    def _synced(self, file: int) -> None:
        self._pinned.append(file)
        status = os.fstat(file)
        if stat.S_ISDIR(status.st_mode):
            with os.scandir(file) as entries:
                self._names[status.st_ino] = {e.name: (e.inode(), e.is_dir()) for e in entries}
        else:
            with io.FileIO(f"/proc/self/fd/{file}") as again:
                self._contents[status.st_ino] = again.readall()

    def _put_down(self, now: Path, inode: int, place: Path) -> None:
        self._plain["mkdir"](place)
        for name, (child, is_directory) in self._names.get(inode, {}).items():
            if not os.path.lexists(now / name):
                continue
            if is_directory:
                self._put_down(now / name, child, place / name)
            else:
                file = self._plain["open"](place / name, os.O_WRONLY | os.O_CREAT, 0o644)
                self._plain["write"](file, self._contents.get(child, b""))
                self._plain["close"](file)


def outline(home: Path) -> tuple[tuple[str, int, int], ...]:
    """Return the names, sizes and links of all files; two deaths that leave the same left the same to go on from."""
    return tuple(
        sorted(
            (re.sub(r"[0-9a-f]{8,}|\d+", "#", str(path.relative_to(home))), path.stat().st_size, path.stat().st_nlink)
            for path in home.rglob("*")
        )
    )


def die_at_every_step(
    home: Path, begin: Callable[[Path, int], Child], check: Callable[[Path, int, set[str], bool], None]
) -> int:
    """Check what each step at which a process dies leaves, and what it had acknowledged; return how many there are.

    Each process begins with a copy of the repository `template` in `home`, or with none.
    """
    seen = set()
    last, survived = 0, False
    while not survived:
        last += 1
        place = home / "place"
        place.mkdir()
        repo = place / "wiki.git"
        if (home / "template").exists():
            shutil.copytree(home / "template", repo)
        with begin(repo, last) as child:
            acknowledged = set(child.said())
            survived = child.join() == 0
            assert survived or child.join() == -signal.SIGKILL
        left = (outline(place), frozenset(acknowledged))
        if left not in seen or survived:
            check(repo, last, acknowledged, survived)
        seen.add(left)
        shutil.rmtree(place)
    assert len(seen) > 8
    return last
