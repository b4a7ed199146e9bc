"""What callers ask of a log: appends of all sorts, again under a key where they must, and reads."""

from __future__ import annotations

from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import partial
from typing import TYPE_CHECKING, Final

import coordjournal as cj
from coordjournal.entry import Append, Receipt
from coordjournal.errors import CoordJournalError, Undecided
from coordjournal.testing.histories.events import Consistency, What
from coordjournal.testing.histories.recording import RecordedLog
from tests.simulation.process import Process

if TYPE_CHECKING:
    from tests.simulation.world import World

ACTOR: Final = "alice@example.org"
AT: Final = "2026-01-31T12:00:00.000000Z"

_TIMEOUTS: Final = (0.3, 1.5, 4.0, 10.0)
_SHARED: Final = "Shared"
_CONSISTENCIES: Final[tuple[Consistency, ...]] = ("linearizable", "session", "local")
_WHATS: Final[tuple[What, ...]] = ("head", "state", "events")


class Workload:
    """So many calls in all, made by the callers of whichever processes live."""

    def __init__(self, world: World, ops: int) -> None:
        self.finished = False
        self._world = world
        self._left = ops
        self._keys = 0
        self._again: list[tuple[str, Append]] = []  # what may be asked for again
        self._callers = 0
        self._at_work = 0
        self._finishing = 0

    def is_done(self) -> bool:
        """Whether all calls were made and ended."""
        return self._left == 0 and not any(
            not thread.done for process in self._world.living() for thread in process.threads if " calls" in thread.name
        )

    def begin(self, process: Process) -> None:
        """Let a process's callers begin."""
        for _ in range(1 + self._world.schedule.pick(2)):
            self._callers += 1
            caller = f"{process.name} calls {self._callers}"
            process.spawn(f"calls {self._callers}", partial(self._call, process, caller))

    def finish(self, deadline: float) -> None:
        """Let somebody in each process that lives append once more to each space."""
        world = self._world
        for process in world.living():
            if process.closing:
                continue
            self._finishing += 1
            process.spawn("calls at the end", partial(self._last, process, deadline))

    def _last(self, process: Process, deadline: float) -> None:
        log = RecordedLog(process.log, process.recorder, f"{process.name} at the end")
        world = self._world
        for space in world.spaces:
            append = self._new()
            while not isinstance(log.append(space, append, max(0.1, deadline - world.scheduler.now)), Receipt):
                if world.scheduler.now >= deadline:
                    break
                world.scheduler.sleep(0.2)
            log.read(space, "state")
        self._finishing -= 1
        self.finished = not self._finishing

    def _call(self, process: Process, caller: str) -> None:
        schedule = self._world.schedule
        log = RecordedLog(process.log, process.recorder, caller)
        while self._left and not process.closing:
            self._left -= 1
            space = self._world.spaces[schedule.pick(len(self._world.spaces))]
            self._world.scheduler.sleep((0.0, 0.01, 0.3)[schedule.pick(3)], "between calls")
            does = (self._append, self._again_if_any, self._refusable, self._expecting, self._several, self._read)
            does[schedule.weighted((30, 20, 12, 8, 12, 18))](process, log, caller, space)

    def new(self) -> Append:
        """Return an append that nobody has asked for yet."""
        return self._new()

    def _timeout(self) -> float:
        return _TIMEOUTS[self._world.schedule.weighted((30, 30, 20, 20))]

    def _new(self, *events: cj.Event, expect: int | None = None) -> Append:
        self._keys += 1
        made = events or (cj.AliasSet(alias=f"Name {self._keys}", target=f"page:{self._keys % 7}"),)
        return Append(made, f"k{self._keys}", ACTOR, AT, expect)

    def _do(self, log: RecordedLog, space: str, append: Append) -> None:
        entry = (space, append)
        self._again.append(entry)  # if the process dies meanwhile, nobody knows
        self._after(entry, log.append(space, append, self._timeout()))

    def _after(self, entry: tuple[str, Append], told: object) -> None:
        if isinstance(told, Receipt) and self._world.schedule.chance(0.8) and entry in self._again:
            self._again.remove(entry)

    def _append(self, process: Process, log: RecordedLog, caller: str, space: str) -> None:
        self._do(log, space, self._new())

    def _again_if_any(self, process: Process, log: RecordedLog, caller: str, space: str) -> None:
        if self._again:
            space, append = self._again[self._world.schedule.pick(len(self._again))]
            self._after((space, append), log.append(space, append, self._timeout()))
        else:
            self._append(process, log, caller, space)

    def _refusable(self, process: Process, log: RecordedLog, caller: str, space: str) -> None:
        """Set and remove one alias that all have in common: what is not there cannot be removed."""
        set_, removed = cj.AliasSet(alias=_SHARED, target="page:1"), cj.AliasRemoved(alias=_SHARED)
        self._do(log, space, self._new((removed, set_)[self._world.schedule.pick(2)]))

    def _expecting(self, process: Process, log: RecordedLog, caller: str, space: str) -> None:
        found = log.read(space, "head", _CONSISTENCIES[self._world.schedule.pick(3)])
        if isinstance(found, cj.Head):
            self._do(log, space, self._new(expect=found.seq))

    def _several(self, process: Process, log: RecordedLog, caller: str, space: str) -> None:
        """Submit a few, one after the other, and then wait for each."""
        timeout = self._timeout()
        calls = [_Call(process, caller, space, self._some_append()) for _ in range(2 + self._world.schedule.pick(2))]
        for call in calls:
            self._again.append((space, call.append))
            call.begin()
        for call in calls:
            call.end(timeout)
            self._after((space, call.append), call.told)

    def _some_append(self) -> Append:
        return self._new(cj.AliasRemoved(alias=_SHARED)) if self._world.schedule.chance(0.25) else self._new()

    def _read(self, process: Process, log: RecordedLog, caller: str, space: str) -> None:
        schedule = self._world.schedule
        log.read(space, _WHATS[schedule.pick(3)], _CONSISTENCIES[schedule.weighted((50, 25, 25))], timeout=3.0)


class _Call:
    """One append that is submitted, and waited for later; it has returned when its future is done."""

    def __init__(self, process: Process, caller: str, space: str, append: Append) -> None:
        self.append = append
        self.told: Receipt | BaseException | None = None
        self._process = process
        self._space = space
        self._caller = caller
        self._op = ""
        self._future: Future[Receipt] = Future()

    def begin(self) -> None:
        append, recorder = self.append, self._process.recorder
        self._op = recorder.append_invoked(self._caller, self._space, append)
        try:
            self._future = self._process.log.submit(self._space, append.events, actor=ACTOR, key=append.key, at=AT)
        except CoordJournalError as error:
            self._tell(error)
        else:
            self._future.add_done_callback(self._done)

    def end(self, timeout: float) -> None:
        if self.told is not None:
            return
        try:
            self._future.result(timeout)
        except FutureTimeoutError:
            if not self._future.done() and not self._future.cancel() and not self._future.done():
                self._tell(Undecided("it was not decided in time"))
        except CoordJournalError:
            pass  # it was told

    def _done(self, future: Future[Receipt]) -> None:
        if future.cancelled():
            self._tell(cj.Unavailable("it was taken back"))
        else:
            self._tell(future.exception() or future.result())

    def _tell(self, told: Receipt | BaseException) -> None:
        if self.told is None:
            self.told = told
            self._process.recorder.append_returned(self._op, told)
