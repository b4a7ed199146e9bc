"""What goes wrong by chance: a network and a world that a schedule decides about."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from coordjournal.etcd import Refused
from tests.simulation.model import FATES, Fate, ModelEtcd, ModelWatcher, Request
from tests.simulation.schedule import Schedule
from tests.simulation.scheduler import Scheduler

FAULTY = (90.0, 2.5, 2.5, 4.0, 1.0)
"""How likely each `Fate` is, in per cent."""


class ChosenNetwork:
    """A network whose faults a schedule chooses. Who is not answered waits in virtual time, up to the deadline."""

    def __init__(self, schedule: Schedule, scheduler: Scheduler, weights: Sequence[float] = FAULTY) -> None:
        assert len(weights) == len(FATES)
        self._schedule = schedule
        self._scheduler = scheduler
        self._weights = weights

    def decide(self, kind: str, description: Request) -> Fate | Refused:
        fate = FATES[self._schedule.weighted(self._weights)]
        if fate is not Fate.DELIVER:
            self._schedule.note(f"{description.node}: {kind} {fate.name.lower().replace('_', ' ')}")
        return fate

    def elapse(self, seconds: float) -> None:
        """Wait; as often as not the connection breaks off before the deadline."""
        self._scheduler.sleep(seconds / (1 + 3 * self._schedule.pick(2)), "no answer")


class Events:
    """What the world does between two steps: of the things it can do now, mostly nothing.

    `likelihood` is how often it does one of them. Each thing is a function that returns None if it cannot
    be done now, else what does it.
    """

    def __init__(
        self,
        schedule: Schedule,
        things: Sequence[Callable[[], Callable[[], object] | None]],
        likelihood: float = 0.2,
    ) -> None:
        self._schedule = schedule
        self._things = things
        self._likelihood = likelihood

    def __call__(self) -> None:
        if not self._schedule.chance(self._likelihood):
            return
        possible = [does for thing in self._things if (does := thing()) is not None]
        if possible:
            possible[self._schedule.pick(len(possible))]()


def landing(schedule: Schedule, server: ModelEtcd) -> Callable[[], Callable[[], object] | None]:
    """Let one of the delayed requests land."""

    def land() -> None:
        pending = server.in_flight[schedule.pick(len(server.in_flight))]
        schedule.note(f"{pending.node}: {pending.kind} lands late")
        server.land(pending)

    return lambda: land if server.in_flight and not server.down else None


def telling(
    schedule: Schedule, watchers: Callable[[], Sequence[ModelWatcher]]
) -> Callable[[], Callable[[], object] | None]:
    """Let one of the streams tell one or all of what is due."""

    def thing() -> Callable[[], object] | None:
        due = [watcher for watcher in watchers() if watcher.untold()]
        if not due:
            return None
        return lambda: due[schedule.pick(len(due))].pump((1, None)[schedule.pick(2)], merge=True)

    return thing
