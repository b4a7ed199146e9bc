"""A TCP proxy between a node and etcd, whose directions can be cut one by one."""

from __future__ import annotations

import select
import socket
import threading
from types import TracebackType
from typing import Self

_READ = 1 << 16


class Proxy:
    """Listens on loopback, and passes on what comes to `upstream`, `host:port`.

    `to_etcd` and `to_node` say whether that direction passes. What arrives in the meantime is held back, as
    by a network that lost its route, and passes afterwards; `cut` resets all connections.
    """

    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.rpartition(":")
        self._upstream = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.to_etcd = self.to_node = True
        self.refuses = False
        self._closed = False
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def silence(self, *, to_etcd: bool = False, to_node: bool = False) -> None:
        """Pass only what is said to pass from now on."""
        self.to_etcd, self.to_node = to_etcd, to_node

    def heal(self) -> None:
        """Pass everything."""
        self.to_etcd = self.to_node = True
        self.refuses = False

    def cut(self, *, refuse: bool = False) -> None:
        """Reset all connections: what is under way is lost. With `refuse`, take no others until `heal`."""
        self.refuses = refuse
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                try:
                    end.shutdown(socket.SHUT_RDWR)  # wakes whoever reads it
                except OSError:
                    pass
                end.close()

    def close(self) -> None:
        self._closed = True
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(5)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self) -> None:
        self._listener.settimeout(0.05)
        while not self._closed:
            try:
                node, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            try:
                if self.refuses:
                    raise OSError
                etcd = socket.create_connection(self._upstream, 5)
            except OSError:
                node.close()
                continue
            with self._lock:
                self._pairs.append((node, etcd))
            for source, sink, way in ((node, etcd, "to_etcd"), (etcd, node, "to_node")):
                thread = threading.Thread(target=self._pump, args=(source, sink, way), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pump(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        try:
            while data := source.recv(_READ):
                while not getattr(self, way):
                    threading.Event().wait(0.01)  # `cut` closes the sink
                    select.select([sink], [], [], 0)
                sink.sendall(data)
        except (OSError, ValueError):
            pass
        finally:
            for end in (source, sink):
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
