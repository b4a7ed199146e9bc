"""Real etcd processes on loopback: one server, or a cluster, to be killed, paused, wiped and restored."""

from __future__ import annotations

import atexit
import base64
import http.client
import json
import os
import platform
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from coordjournal.testing.certificates import Issued

Flags = Mapping[str, object]
"""Flags of etcd, without their dashes: `{"quota-backend-bytes": 1 << 24}`."""

READY_SECONDS: Final = 30.0
"""For how long a server may take to answer, unless told otherwise."""

_HOST: Final = "127.0.0.1"
_STOP_SECONDS: Final = 15.0
_ASK_SECONDS: Final = 2.0
_POLL_SECONDS: Final = 0.02
_ATTEMPTS: Final = 3
_LOG_LINES: Final = 40
_IN_USE: Final = "address already in use"

# Asks the kernel to kill what it becomes when its parent dies (PR_SET_PDEATHSIG is 1), then becomes etcd.
_LAUNCHER: Final = """
import ctypes, os, signal, sys
ctypes.CDLL(None, use_errno=True).prctl(1, int(signal.SIGKILL), 0, 0, 0)
if os.getppid() != int(sys.argv[1]): sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class EtcdFailed(RuntimeError):
    """An etcd did not start, did not get ready in time, or refused a call; the message has the end of its log."""


class EtcdServer:
    """One etcd process on loopback, with its data in `directory`: a temporary one unless given.

    It keeps its ports and its data until `close`, whatever is done to it in between. It dies with this
    process (on Linux also if that is killed, provided that the main thread started it). `binary` is the
    program, `etcd` of the PATH unless given; `tls` makes it speak TLS and ask for client certificates.
    Its timing is quicker than etcd's own (100 and 1000 ms), so that it is back within half a second; from
    the election timeout etcd also derives the shortest TTL that it grants (1 s; its own timing: 2 s).
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        *,
        flags: Flags | None = None,
        tls: Issued | None = None,
        heartbeat_ms: int = 20,
        election_ms: int = 200,
        name: str = "etcd",
        binary: str | None = None,
        ready_seconds: float = READY_SECONDS,
    ) -> None:
        self.name = name
        self.tls = tls
        self._given = None if directory is None else Path(directory)
        self._directory: Path | None = None
        self._flags = {"heartbeat-interval": heartbeat_ms, "election-timeout": election_ms, **(flags or {})}
        self._binary = binary
        self._ready_seconds = ready_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._ports: tuple[_Port, ...] = ()
        self._peers: Mapping[str, str] | None = None

    @property
    def endpoint(self) -> str:
        """Where clients find it, `127.0.0.1:port`."""
        return f"{_HOST}:{self._port(0)}"

    @property
    def endpoints(self) -> str:
        """The same: a server is a cluster of one."""
        return self.endpoint

    @property
    def peer_url(self) -> str:
        """Where the other members of its cluster find it."""
        return f"http://{_HOST}:{self._port(1)}"

    @property
    def pid(self) -> int:
        """The number of the process, which runs."""
        if self._process is None:
            raise EtcdFailed(f"{self.name} is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is there, paused or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def directory(self) -> Path:
        """Where it keeps its data and its log."""
        if self._directory is None:
            if self._given is None:
                self._directory = Path(tempfile.mkdtemp(prefix="coordjournal-etcd-"))
            else:
                self._directory = self._given
                self._directory.mkdir(parents=True, exist_ok=True)
        return self._directory

    @property
    def log(self) -> str:
        """What it has said, over all its starts."""
        path = self.directory / f"{self.name}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def start(self, *, wait: bool = True) -> Self:
        """Start it on the data that it has; with `wait`, return when it answers a linearizable read.

        Raises `EtcdFailed`. One that runs is left as it is.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            if not self.running:
                self._spawn()
            if not wait:
                return self
            try:
                self.wait()
            except EtcdFailed:
                self.kill()
                taken = attempt < _ATTEMPTS and self._peers is None and _IN_USE in self._end_of_log()
                if not taken or self._data.exists():  # clients may know the ports already
                    raise
                self._release()
            else:
                break
        return self

    def wait(self) -> None:
        """Wait until it answers a linearizable read; raises `EtcdFailed` if it does not, or exits."""
        deadline = time.monotonic() + self._ready_seconds
        while not self.ready():
            if not self.running:
                raise EtcdFailed(f"{self.name} exited\n{self._end_of_log()}")
            if time.monotonic() > deadline:
                raise EtcdFailed(f"{self.name} was not ready within {self._ready_seconds} s\n{self._end_of_log()}")
            time.sleep(_POLL_SECONDS)

    def ready(self) -> bool:
        """Return whether it answers a linearizable read now. One that is merely out of space is ready."""
        try:
            status, answer = self._ask("/health?exclude=NOSPACE")
        except (OSError, http.client.HTTPException):
            return False
        return status == 200 and json.loads(answer)["health"] == "true"

    def metric(self, name: str) -> float:
        """Return the value of one of its metrics that has no labels, as `etcd_server_is_leader`."""
        _, answer = self._ask("/metrics")
        for line in answer.decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
        raise EtcdFailed(f"{self.name} has no metric {name}")

    def call(self, method: str, *, client: Issued | None = None, token: str = "", **fields: object) -> dict[str, Any]:
        """Call one of etcd's own methods by its JSON gateway: `call("auth/user/add", name="root", password="r")`.

        `client` is the certificate to call with, where it speaks TLS; bytes travel in base64. Raises
        `EtcdFailed` with etcd's words if it refuses.
        """
        connection: http.client.HTTPConnection
        if self.tls is None:
            connection = http.client.HTTPConnection(self.endpoint, timeout=self._ready_seconds)
        else:
            context = ssl.create_default_context(cafile=str(self.tls.ca))
            if client is not None:
                context.load_cert_chain(client.cert, client.key)
            connection = http.client.HTTPSConnection(self.endpoint, timeout=self._ready_seconds, context=context)
        try:
            headers = {"Authorization": token} if token else {}
            connection.request("POST", f"/v3/{method}", json.dumps(fields), headers)
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise EtcdFailed(f"{method}: {answer.decode(errors='replace')}")
        found: dict[str, Any] = json.loads(answer)
        return found

    def enable_auth(
        self, passwords: Mapping[str, str], *, prefix: str = "/coordjournal/", client: Issued | None = None
    ) -> None:
        """Switch its access control on, for these users by password, `root` among them.

        `root` may do everything, the others read and write everything under `prefix`.
        """
        start, end = (base64.b64encode(key).decode() for key in (prefix.encode(), prefix[:-1].encode() + b"0"))
        for user, password in passwords.items():
            role = "root" if user == "root" else f"{user}-role"
            self.call("auth/user/add", client=client, name=user, password=password)
            self.call("auth/role/add", client=client, name=role)
            if user != "root":
                permission = {"permType": "READWRITE", "key": start, "range_end": end}
                self.call("auth/role/grant", client=client, name=role, perm=permission)
            self.call("auth/user/grant", client=client, user=user, role=role)
        self.call("auth/enable", client=client)

    def stop(self) -> None:
        """End it in good order (SIGTERM), and wait for that. One that does not run is fine."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once (SIGKILL). One that does not run is fine."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Stop it in its tracks (SIGSTOP): connections stay, nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let one that is paused go on (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def restart(self) -> None:
        """End it in good order, and start it again with the same data and ports."""
        self.stop()
        self.start()

    def wipe(self) -> None:
        """Start it again with nothing in it, on the same ports; raises `EtcdFailed` for a member of a cluster."""
        self._alone("wipe")
        self.kill()
        shutil.rmtree(self._data, ignore_errors=True)
        self.start()

    def snapshot(self, path: str | os.PathLike[str]) -> None:
        """Copy what is in it to a new directory at `path`; it is down meanwhile, if it ran."""
        ran = self.running
        self.stop()
        shutil.copytree(self._data, path)
        if ran:
            self.start()

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Start it again with what a snapshot of it has, on the same ports: what came later is forgotten."""
        self._alone("restore")
        self.kill()
        shutil.rmtree(self._data, ignore_errors=True)
        shutil.copytree(path, self._data)
        self.start()

    def close(self) -> None:
        """End it at once, let go of its ports, and remove its data if they lay in a temporary directory."""
        self.kill()
        self._release()
        atexit.unregister(self._at_exit)
        if self._given is None and self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _data(self) -> Path:
        return self.directory / f"{self.name}.data"

    def _port(self, which: int) -> int:
        if not self._ports:
            self._ports = (_Port(), _Port(), _Port())
        return self._ports[which].number

    def _release(self) -> None:
        for port in self._ports:
            port.release()
        self._ports = ()

    def _alone(self, what: str) -> None:
        if self._peers is not None:
            raise EtcdFailed(f"one member of a cluster cannot {what}: the others would not know it any more")

    def _command(self) -> list[str]:
        program = self._binary or shutil.which("etcd")
        if program is None:
            raise EtcdFailed("there is no etcd on the PATH (Debian: apt-get install etcd-server)")
        scheme = "http" if self.tls is None else "https"
        flags: dict[str, object] = {
            "name": self.name,
            "data-dir": self._data,
            "listen-client-urls": f"{scheme}://{self.endpoint}",
            "advertise-client-urls": f"{scheme}://{self.endpoint}",
            "listen-peer-urls": self.peer_url,
            "initial-advertise-peer-urls": self.peer_url,
            "initial-cluster": ",".join(
                f"{name}={url}" for name, url in (self._peers or {self.name: self.peer_url}).items()
            ),
            "listen-metrics-urls": f"http://{_HOST}:{self._port(2)}",
            "logger": "zap",
            "log-outputs": "stderr",
        }
        if self.tls is not None:
            flags["cert-file"], flags["key-file"] = self.tls.cert, self.tls.key
            flags["trusted-ca-file"], flags["client-cert-auth"] = self.tls.ca, True
        flags |= self._flags
        return [program, *(f"--{flag}={_shown(value)}" for flag, value in flags.items())]

    def _spawn(self) -> None:
        command = self._command()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
        if platform.machine() == "aarch64":
            environment["ETCD_UNSUPPORTED_ARCH"] = "arm64"  # 3.4 asks for that
        # The kernel ties the child to the thread that started it, and only the main one lives as long as we do.
        if sys.platform == "linux" and threading.current_thread() is threading.main_thread():
            command = [sys.executable, "-ISc", _LAUNCHER, str(os.getpid()), *command]
        for port in self._ports:
            port.hand_over()
        with (self.directory / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603  # etcd, with flags that the tests chose
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.directory,
                start_new_session=True,  # an interrupt at the terminal is for the tests
            )
        self._owner = os.getpid()
        atexit.unregister(self._at_exit)
        atexit.register(self._at_exit)

    def _at_exit(self) -> None:
        if self._owner == os.getpid():  # it is not for a forked child to end it
            self.close()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None or self._process.poll() is not None:
            raise EtcdFailed(f"{self.name} is not running\n{self._end_of_log()}")
        self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)  # nothing if it has ended
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _ask(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(_HOST, self._port(2), timeout=_ASK_SECONDS)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def _end_of_log(self) -> str:
        return "\n".join(self.log.splitlines()[-_LOG_LINES:])


class EtcdCluster:
    """Members on loopback that are one etcd, with fast elections; a context manager like `EtcdServer`.

    Each of `members` can be killed, paused and started again by itself.
    """

    def __init__(
        self,
        n: int = 3,
        directory: str | os.PathLike[str] | None = None,
        *,
        flags: Flags | None = None,
        tls: Issued | None = None,
        heartbeat_ms: int = 50,
        election_ms: int = 500,
        binary: str | None = None,
        ready_seconds: float = READY_SECONDS,
    ) -> None:
        self._ready_seconds = ready_seconds
        self.members: Sequence[EtcdServer] = [
            EtcdServer(
                None if directory is None else Path(directory) / f"member{number}",
                flags=flags,
                tls=tls,
                heartbeat_ms=heartbeat_ms,
                election_ms=election_ms,
                name=f"member{number}",
                binary=binary,
                ready_seconds=ready_seconds,
            )
            for number in range(n)
        ]

    @property
    def endpoints(self) -> str:
        """Where clients find its members: `127.0.0.1:port,…`."""
        return ",".join(member.endpoint for member in self.members)

    def start(self) -> Self:
        """Start every member that does not run, and return when each answers a linearizable read."""
        peers = {member.name: member.peer_url for member in self.members}
        for member in self.members:
            member._peers = peers
            member.start(wait=False)
        for member in self.members:
            member.wait()
        return self

    def leader(self) -> EtcdServer:
        """Return the member that leads, as soon as a majority that runs has one; raises `EtcdFailed` if none does."""
        deadline = time.monotonic() + self._ready_seconds
        while time.monotonic() < deadline:
            for member in self.members:
                try:
                    if member.running and member.metric("etcd_server_is_leader") and member.ready():
                        return member
                except (OSError, http.client.HTTPException, EtcdFailed):
                    pass  # paused, or not up yet
            time.sleep(_POLL_SECONDS)
        raise EtcdFailed("no member became the leader\n" + "\n".join(member._end_of_log() for member in self.members))

    def wipe(self) -> None:
        """Start all of it again with nothing in it, on the same ports."""
        for member in self.members:
            member.kill()
            shutil.rmtree(member._data, ignore_errors=True)
        self.start()

    def close(self) -> None:
        """End all members, and remove their data if they lay in temporary directories."""
        for member in self.members:
            member.close()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Port:
    """A free port of loopback, kept free for one server until `release`.

    On Linux a bound socket that does not listen keeps everyone else away, outgoing connections too, and lets
    etcd in, which also sets SO_REUSEADDR. Elsewhere the port is merely found, and lost to whoever is quicker.
    """

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((_HOST, 0))
        self.number: int = self._socket.getsockname()[1]

    def hand_over(self) -> None:
        if sys.platform != "linux":
            self._socket.close()

    def release(self) -> None:
        self._socket.close()


def _shown(value: object) -> object:
    return str(value).lower() if isinstance(value, bool) else value
