"""Who goes next: nodes run in threads of their own, one at a time, and a schedule decides at each step.

A node gives up control at its yield points and nowhere else, so the same schedule gives the same steps.
Time is virtual: it moves a little with each step, and on to the next timer when nobody can go on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, NoReturn

from tests.simulation.schedule import Schedule

MAX_NODES: Final = 64
STUCK_SECONDS: Final = 20.0

NEVER: Final = float("inf")


class Crash(BaseException):
    """The node was killed. It unwinds; whatever it tries meanwhile that has a yield point fails alike."""


class Endless(Exception):
    """The nodes made more steps than the simulation may have."""


class Deadlock(Exception):
    """No node can go on, and no timer will change that."""


class Stuck(Exception):
    """A node does not come to its next yield point: it waits for a lock that a waiting one holds, most likely."""


class Node:
    """One simulated thread of control. `label` is the yield point that it came to last."""

    def __init__(self, name: str, target: Callable[[], object], *, daemon: bool) -> None:
        self.name = name
        self.target = target
        self.daemon = daemon
        self.label = "start"
        self.done = False
        self.crashed = False
        self.paused_until = 0.0
        self.asleep_until = 0.0
        self.predicate: Callable[[], bool] | None = None
        self.thread: threading.Thread | None = None
        self.gate = threading.Lock()
        self.gate.acquire()

    def can_go_on(self, now: float) -> bool:
        """Return whether it could make a step now."""
        if self.done or now < self.paused_until:
            return False
        return now >= self.asleep_until or (self.predicate is not None and self.predicate())


class Scheduler:
    """Runs nodes, one at a time, as `schedule` decides. It is the clock of its world, too.

    `interfere` is what the world does between two steps: kill, pause and start nodes, deliver, lose. It is
    called at every yield point, and when time has moved because nobody could go on; yield points that it
    reaches go on at once. `timers` return when something will happen by itself, None for never, so that
    time can move there: `ModelEtcd.next_expiry` is one. A step takes `step_seconds` of virtual time.
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        interfere: Callable[[], None] | None = None,
        step_seconds: float = 0.001,
        max_steps: int = 20_000,
    ) -> None:
        self.schedule = schedule
        self.interfere = interfere
        self.timers: list[Callable[[], float | None]] = []
        self.now = 0.0
        self.steps = 0
        self.nodes: list[Node] = []
        self._step_seconds = step_seconds
        self._max_steps = max_steps
        self._current: Node | None = None
        self._interfering = False
        self._failure: BaseException | None = None
        self._awaited: list[threading.Lock] = []  # of those who wait for the end of a node they killed
        self._ended = threading.Lock()
        self._ended.acquire()
        self._threads: list[threading.Thread] = []
        self._seen: tuple[int, Node | None] = (-1, None)

    # For whoever sets up the simulation, and for `interfere`.

    def spawn(self, name: str, target: Callable[[], object], *, daemon: bool = False) -> Node:
        """Add a node, which starts when it is chosen. The run does not wait for a daemon, but kills it."""
        assert not any(node.name == name and not node.done for node in self.nodes), f"{name} is alive"
        node = Node(name, target, daemon=daemon)
        self.nodes = [*self.alive(), node]
        assert len(self.nodes) <= MAX_NODES
        return node

    def run(self) -> None:
        """Run until every node is done, daemons aside.

        Raises the first exception that a node raised, `Endless`, `Deadlock` or `Stuck`. No node is left.
        """
        assert not self._threads, "a scheduler runs once"
        try:
            first = self._choose(None)
        except Deadlock:
            return  # there is nobody to run
        self._let(first)
        while not self._ended.acquire(timeout=STUCK_SECONDS):
            self._check_moving()
        for node in self.alive():
            self.kill(node)
        for thread in self._threads:
            thread.join(STUCK_SECONDS)
        if self._failure is not None:
            raise self._failure

    def alive(self) -> list[Node]:
        """Return the nodes that are not done, in the order in which they were added."""
        return [node for node in self.nodes if not node.done]

    def kill(self, node: Node) -> None:
        """Raise `Crash` in a node at the yield point where it is, now; it never runs again."""
        if node.done or node.crashed:
            return
        self.schedule.trace.append((node.name, "killed"))
        node.crashed = True
        if node.thread is None:
            node.done = True
        elif node is not self._current:  # the current one finds out when it leaves its yield point
            self._await_end_of(node)

    def pause(self, node: Node, seconds: float) -> None:
        """Keep a node from going on for some time: it is slow, or its host is suspended."""
        self.schedule.trace.append((node.name, f"paused for {seconds:g} s"))
        node.paused_until = max(node.paused_until, self.now + seconds)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        assert seconds >= 0
        self.now += seconds

    # For nodes.

    @property
    def current(self) -> str:
        """The name of the node that runs; empty if none does."""
        return self._current.name if self._current is not None else ""

    def yield_point(self, label: str) -> None:
        """Let the schedule decide who goes on. Nothing happens outside of a run."""
        node = self._arrive(label)
        if node is not None:
            self._switch(node)

    def sleep(self, seconds: float, label: str = "sleep") -> None:
        """Go on when some time has passed."""
        self.sleep_until(None, self.now + seconds, label)

    def sleep_until(self, predicate: Callable[[], bool] | None, deadline: float, label: str = "wait") -> bool:
        """Go on when `predicate` is true, at `deadline` at the latest; return whether it is true.

        It is asked between the steps of other nodes, in any thread, so it must be quick and have no effect.
        """
        node = self._arrive(label)
        if node is not None:
            node.asleep_until, node.predicate = deadline, predicate
            self._switch(node)
            node.asleep_until, node.predicate = 0.0, None
        elif predicate is None or not predicate():
            self.now = max(self.now, deadline)
        return predicate is not None and predicate()

    def _arrive(self, label: str) -> Node | None:
        """Note that the current node has come to a yield point; None if nobody may be switched to."""
        node = self._current
        if node is None:
            return None
        assert node.thread is threading.current_thread(), f"{label}: a thread of which the scheduler knows nothing"
        if node.crashed:
            raise Crash
        if self._interfering:
            return None
        node.label = label
        self.schedule.trace.append((node.name, label))
        return node

    def _switch(self, node: Node) -> None:
        """Let others go on, or the node itself. Raises `Crash`."""
        self.now += self._step_seconds
        self._interfere(node)
        try:
            chosen = self._choose(node)
        except (Deadlock, Endless) as error:
            self._stop(node, error)
        if chosen is not node:
            self._let(chosen)
            node.gate.acquire()
            if node.crashed:
                raise Crash

    def _interfere(self, node: Node | None) -> None:
        """Let the world act. What it raises is the simulation's failure. Raises `Crash` if it killed `node`."""
        if self.interfere is None:
            return
        self._interfering = True
        try:
            self.interfere()
        except Exception as error:  # the node's own code must not see it
            if node is None:
                raise
            self._stop(node, error)
        finally:
            self._interfering = False
        if node is not None and node.crashed:
            raise Crash

    def _choose(self, node: Node | None) -> Node:
        """Return who goes on; time moves until somebody can. Raises `Deadlock`, `Endless`, and `Crash` as above."""
        while True:
            self.steps += 1
            if self.steps > self._max_steps:
                raise Endless(f"more than {self._max_steps} steps: {self._where()}")
            ready = [each for each in self.nodes if each.can_go_on(self.now)]
            if ready:
                return self._pick(ready, node)
            times = [time for each in self.alive() for time in (each.paused_until, each.asleep_until)]
            times += [time for timer in self.timers if (time := timer()) is not None]
            later = min((time for time in times if time > self.now), default=NEVER)
            if later == NEVER:
                raise Deadlock(self._where())
            self.now = later
            self._interfere(node)

    def _pick(self, ready: list[Node], node: Node | None) -> Node:
        """Ask the schedule, if there is a choice: 0 is the node itself, or else the next one in turn."""
        if len(ready) == 1:
            return ready[0]
        start = 0
        if node is not None and node in self.nodes:
            order = self.nodes.index(node)
            start = sum(self.nodes.index(each) < order for each in ready)
        return ready[(start + self.schedule.pick(len(ready))) % len(ready)]

    def _let(self, node: Node) -> None:
        """Hand control to a node; the caller's thread waits or ends after this."""
        self._current = node
        if node.thread is None:
            node.thread = threading.Thread(target=self._live, args=(node,), name=f"node {node.name}", daemon=True)
            self._threads.append(node.thread)
            node.thread.start()
        else:
            node.gate.release()

    def _live(self, node: Node) -> None:
        try:
            node.target()
        except Crash:
            pass
        except BaseException as error:  # noqa: BLE001  # `run` raises it
            self._failure = self._failure or error
        node.done = True
        if self._awaited:
            self._awaited.pop().release()
            return
        if (following := self._following()) is not None:
            self._let(following)
        else:
            self._ended.release()

    def _following(self) -> Node | None:
        """Return who goes on when a node is done; None if the run ends here."""
        self._current = None
        if self._failure is not None or all(each.daemon for each in self.alive()):
            return None
        try:
            return self._choose(None)
        except Exception as error:  # noqa: BLE001  # `run` raises it
            self._failure = error
            return None

    def _stop(self, node: Node, error: Exception) -> NoReturn:
        """End the run with an error that the node's own code has no part in."""
        self._failure = self._failure or error
        node.crashed = True
        raise Crash

    def _await_end_of(self, node: Node) -> None:
        """Let a killed node unwind, and come back."""
        before, self._current = self._current, node
        end = threading.Lock()
        end.acquire()
        self._awaited.append(end)
        node.gate.release()
        while not end.acquire(timeout=STUCK_SECONDS):
            self._check_moving()
        self._current = before

    def _check_moving(self) -> None:
        """Raise `Stuck` if nothing has happened since the last look."""
        seen = (self.steps, self._current)
        if seen == self._seen:
            raise Stuck(self._where())
        self._seen = seen

    def _where(self) -> str:
        nodes = (f"{node.name} at {node.label!r}{' (current)' * (node is self._current)}" for node in self.alive())
        return f"at {self.now:g} s: {', '.join(nodes)}"
