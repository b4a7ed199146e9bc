"""A place for one worker after the other: started, spoken to, harmed, buried."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from typing import Any, Final

import msgspec

from coordjournal.authority.wire import Role
from coordjournal.testing.histories import Ended
from tests.chaos.proxy import Proxies, Proxy
from tests.chaos.watching import Write
from tests.chaos.worker import Config, work
from tests.integration.processes import Child, start

_GONE: Final = "gone"


class Slot:
    """One worker at a time, its own ways to each member of etcd, and what it has said."""

    def __init__(self, number: int, config: Config, write: Write, proxies: Proxies, etcd: str) -> None:
        self.number = number
        self.ready = False
        self.doomed = False
        """Whether its worker is to end: then it is no surprise."""
        self.stopped = False
        self.cut = False
        self.answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self.problem = ""
        self.proxies: list[Proxy] = [proxies.add(endpoint) for endpoint in etcd.split(",")]
        self.child: Child | None = None
        self.name = ""
        self._config = config
        self._write = write
        self._incarnation = 0

    def start(self, role: Role) -> None:
        """Start a worker."""
        self._incarnation += 1
        self.name = f"w{self.number}.{self._incarnation}"
        config = msgspec.structs.replace(
            self._config,
            name=self.name,
            etcd=",".join(proxy.endpoint for proxy in self.proxies),
            seed=f"{self._config.seed} {self.name}",
            role=role,
        )
        self.ready = self.doomed = self.stopped = False
        self.answers = queue.Queue()
        self.child = start(work, msgspec.json.encode(config).decode())
        threading.Thread(target=_listen, args=(self.child, self.answers), daemon=True).start()

    def tell(self, **order: object) -> None:
        """Tell the worker to do something; one that is gone does not hear it."""
        if self.child is not None:
            try:
                self.child.send(order)
            except OSError:
                pass

    def kill(self) -> None:
        """End the worker at once."""
        if self.child is not None:
            self.doomed = True
            self.child.kill(signal.SIGKILL)

    def stop(self) -> None:
        """Have all of the worker stand still."""
        if self.child is not None:
            self.stopped = True
            os.kill(self.child.pid, signal.SIGSTOP)  # not waited for: it may be dying, or be deep in a slow disk

    def resume(self) -> None:
        """Let the worker go on, if there is still one."""
        if self.child is not None and self.stopped:
            self.child.kill(signal.SIGCONT)
        self.stopped = False

    def cut_off(self, *ways: Any) -> None:
        """Cut its ways to etcd."""
        self.cut = True
        for proxy in self.proxies:
            proxy.cut(*ways)

    def mend(self, *, late: bool) -> None:
        """Mend its ways to etcd."""
        self.cut = False
        for proxy in self.proxies:
            proxy.heal(late=late)

    def heard(self) -> list[dict[str, Any]]:
        """Return what the worker has said since the last call; bury it if it is gone."""
        said = []
        while not self.answers.empty():
            answer = self.answers.get()
            if _GONE in answer:
                self._bury(answer[_GONE])
            elif answer.get("ready"):
                self.ready = True
            else:
                self.doomed = self.doomed or answer.get("reached", [""])[-1] == "die"
                said.append(answer)
        return said

    def _bury(self, why: str) -> None:
        assert self.child is not None
        status = self.child.join()
        if not self.doomed or status not in (0, -signal.SIGKILL):
            self.problem = f"{self.name} ended with status {status}, and nobody had ended it: {why}"
        self._write(Ended(time.monotonic(), self.name))
        self.child, self.ready = None, False

    def bury_soon(self, seconds: float) -> None:
        """Wait until the worker has ended, and kill it if it does not in time."""
        deadline = time.monotonic() + seconds
        while self.child is not None:
            if time.monotonic() > deadline:
                self.problem = self.problem or f"{self.name} did not end within {seconds:g} s"
                self.kill()
                deadline += seconds
            self.heard()
            time.sleep(0.02)


def _listen(child: Child, answers: queue.Queue[dict[str, Any]]) -> None:
    try:
        while True:
            answers.put(child.receive())
    except (EOFError, OSError) as error:
        answers.put({_GONE: str(error)})
