"""A single etcd in a container, for those who use testcontainers."""

from __future__ import annotations

import http.client
import os
import time
from typing import TYPE_CHECKING, Any, Final, Self

from testcontainers.core.container import DockerContainer

if TYPE_CHECKING:
    from coordjournal.testing.etcd import Flags

IMAGE: Final = "quay.io/coreos/etcd:v3.5.25"
"""The image that is used unless another one is named."""

IMAGE_VARIABLE: Final = "COORDJOURNAL_ETCD_IMAGE"
"""The variable that names another one."""

READY_SECONDS: Final = 60.0

_PORT: Final = 2379
_ASK_SECONDS: Final = 2.0
_POLL_SECONDS: Final = 0.05
_LOG_LINES: Final = 40


class ContainerFailed(RuntimeError):
    """No container of etcd could be had: no engine, no image, or it did not get ready; the message says which."""


class EtcdContainer(DockerContainer):
    """An etcd of one member, without TLS; a context manager that is entered when it answers a linearizable read.

    `image` is the one that `COORDJOURNAL_ETCD_IMAGE` names, or `IMAGE`. `flags` are etcd's own, without
    their dashes; the rest is `DockerContainer`'s. Raises `ContainerFailed` when it is made if no Docker
    engine answers, and when it is started.
    """

    def __init__(
        self,
        image: str | None = None,
        *,
        flags: Flags | None = None,
        ready_seconds: float = READY_SECONDS,
        **kwargs: Any,
    ) -> None:
        try:
            super().__init__(image or os.environ.get(IMAGE_VARIABLE) or IMAGE, **kwargs)
        except Exception as error:
            raise ContainerFailed(f"no Docker engine answers: {error}") from error
        self._ready_seconds = ready_seconds
        wanted: dict[str, object] = {
            "name": "etcd",
            "data-dir": "/etcd-data",
            "listen-client-urls": f"http://0.0.0.0:{_PORT}",
            "advertise-client-urls": f"http://127.0.0.1:{_PORT}",
            "logger": "zap",
            **(flags or {}),
        }
        self.with_exposed_ports(_PORT)
        self.with_command(["etcd", *(f"--{flag}={value}" for flag, value in wanted.items())])

    @property
    def endpoint(self) -> str:
        """Where clients on this machine find it, `host:port`."""
        return f"{self.get_container_host_ip()}:{self.get_exposed_port(_PORT)}"

    def start(self) -> Self:
        """Pull, make and start it, and wait until it answers; whatever fails, no container is left behind.

        One that was started is left as it is, so that it can be entered after that.
        """
        if self._container is not None:
            return self
        try:
            super().start()
            self._wait()
        except Exception as error:
            said = self._said()
            self.stop()
            raise ContainerFailed(f"no container of {self.image} could be started: {error}{said}") from error
        except BaseException:
            self.stop()
            raise
        return self

    def ready(self) -> bool:
        """Return whether it answers a linearizable read now."""
        connection = http.client.HTTPConnection(self.endpoint, timeout=_ASK_SECONDS)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _wait(self) -> None:
        deadline = time.monotonic() + self._ready_seconds
        while True:
            container = self.get_wrapped_container()
            container.reload()
            if container.status == "exited":
                raise ContainerFailed("etcd exited")
            if self.ready():
                return
            if time.monotonic() > deadline:
                raise ContainerFailed(f"etcd was not ready within {self._ready_seconds} s")
            time.sleep(_POLL_SECONDS)

    def _said(self) -> str:
        """Return the end of its log, if it ever was."""
        try:
            said: bytes = self.get_wrapped_container().logs(tail=_LOG_LINES)
        except Exception:  # noqa: BLE001  # it is another failure that is being told
            return ""
        return f"\n{said.decode(errors='replace')}"
