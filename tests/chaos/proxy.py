"""A TCP proxy on loopback that can cut its clients off: from the server, or only from its answers.

What a client or the server sends meanwhile waits, as it does in a network that comes back; `heal` lets it
arrive late, or breaks the connections, so that it never does.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal

_CHUNK: Final = 1 << 16
_START_SECONDS: Final = 10.0

Way = Literal["requests", "answers"]


class Proxies:
    """The thread in which proxies live."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._thread.start()
        self._proxies: list[Proxy] = []

    def add(self, target: str) -> Proxy:
        """Return a new proxy of the server at `target`, `host:port`."""
        host, _, port = target.rpartition(":")
        proxy = Proxy(self._loop, host, int(port))
        asyncio.run_coroutine_threadsafe(proxy.listen(), self._loop).result(_START_SECONDS)
        self._proxies.append(proxy)
        return proxy

    def close(self) -> None:
        """Break everything, and end the thread."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(_START_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_START_SECONDS)
        self._loop.close()

    async def _end(self) -> None:
        for proxy in self._proxies:
            proxy.shut()
        mine = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks(self._loop) if task is not mine]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Proxy:
    """One listening port, and the connections through it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, host: str, port: int) -> None:
        self.endpoint = ""
        self._loop = loop
        self._host = host
        self._port = port
        self._open: dict[Way, asyncio.Event] = {"requests": asyncio.Event(), "answers": asyncio.Event()}
        self._links: set[asyncio.StreamWriter] = set()

    async def listen(self) -> None:
        for gate in self._open.values():
            gate.set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.endpoint = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def shut(self) -> None:
        """Listen no more."""
        self._server.close()

    def cut(self, *ways: Way) -> None:
        """Let nothing through any more, one way or both (if none is named)."""
        for way in ways or tuple(self._open):
            self._loop.call_soon_threadsafe(self._open[way].clear)

    def heal(self, *, late: bool) -> None:
        """Let everything through again; what waited arrives `late`, or its connections break."""
        if not late:
            self._loop.call_soon_threadsafe(self._break)
        for way in self._open:
            self._loop.call_soon_threadsafe(self._open[way].set)

    def _break(self) -> None:
        for writer in list(self._links):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with self._linked(writer):
            try:
                await self._open["requests"].wait()
                there, back = await asyncio.open_connection(self._host, self._port)
            except OSError:
                return
            with self._linked(back):
                tasks = [
                    asyncio.ensure_future(self._pump(reader, back, "requests")),
                    asyncio.ensure_future(self._pump(there, writer, "answers")),
                ]
                try:
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, way: Way) -> None:
        try:
            while data := await source.read(_CHUNK):
                await self._open[way].wait()
                sink.write(data)
                await sink.drain()
        except OSError:
            pass  # broken: so is the other way then

    @contextmanager
    def _linked(self, writer: asyncio.StreamWriter) -> Iterator[None]:
        self._links.add(writer)
        try:
            yield
        finally:
            self._links.discard(writer)
            writer.transport.abort()
