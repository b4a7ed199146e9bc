"""A process among many: several callers at one log, who append and read at random and note all of it."""

from __future__ import annotations

import ctypes
import json
import logging
import signal
import sys
import threading
import time
from pathlib import Path
from random import Random
from typing import Final

import msgspec

import coordjournal as cj
from coordjournal.authority import Consistency
from coordjournal.authority.etcd import EtcdAuthority
from coordjournal.authority.wire import Keys, Role
from coordjournal.entry import Append, Receipt, format_time
from coordjournal.events import Event as Decision
from coordjournal.log import _utc_now
from coordjournal.testing.histories import EventFile, RecordedLog, Recorder, Sent
from tests.chaos.edges import Edges, Plan
from tests.integration.processes import Channel

PREFIX: Final = "/coordjournal/"
_PAGES: Final = tuple(f"page:{number}" for number in range(12))
_NAMES: Final = tuple(f"Name {number}" for number in range(40))
_TIMEOUTS: Final = (0.4, 1.5, 4.0, 4.0)
_BEAT_SECONDS: Final = 5.0
_PROBE_SECONDS: Final = 5.0


class Config(msgspec.Struct):
    """What a worker is told at its start."""

    name: str
    repository: str
    history: str
    etcd: str
    seed: str
    spaces: tuple[str, ...]
    ttl: int
    role: Role
    callers: int
    pause_seconds: float


def work(channel: Channel, raw: str) -> None:
    """Append and read until told to stop; then close the log."""
    _die_with_parent()
    config = msgspec.json.decode(raw, type=Config)
    logging.basicConfig(
        filename=Path(config.history) / f"{config.name}.log",
        level=logging.INFO,
        format="%(asctime)s %(threadName)s %(name)s: %(message)s",
    )
    threading.excepthook = _log_the_end_of_a_thread
    with EventFile(Path(config.history) / f"{config.name}.jsonl") as file:
        Worker(_Shared(channel), config, file).run()


def _log_the_end_of_a_thread(what: threading.ExceptHookArgs) -> None:
    if what.exc_value is not None:
        name = what.thread.name if what.thread is not None else "of no name"
        logging.getLogger(__name__).error("thread %s ended", name, exc_info=what.exc_value)


def tracebacks(history: Path) -> list[str]:
    """Return the tracebacks in the logs of all workers, each with what was said before it and its last line."""
    found = []
    for path in sorted(history.glob("*.log")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        for number, line in enumerate(lines):
            if line.startswith("Traceback ("):
                after = (each for each in lines[number + 1 :] if each and not each.startswith(" "))
                found.append(f"{path.name}: {lines[number - 1] if number else ''}: {next(after, 'cut off')}")
    return found


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, int(signal.SIGKILL), 0, 0, 0)


class _Shared:
    """A channel that many threads may send to."""

    def __init__(self, channel: Channel) -> None:
        self.receive = channel.receive
        self._channel = channel
        self._lock = threading.Lock()

    def send(self, value: object) -> None:
        with self._lock:
            self._channel.send(value)


class Worker:
    """One open log, its callers, and what happens to it."""

    def __init__(self, channel: _Shared, config: Config, file: EventFile) -> None:
        self.config = config
        self.recorder = Recorder(file, config.name, time.monotonic)
        self.stop = threading.Event()
        self.known: list[tuple[str, Append]] = []  # appended lately, to be asked for again
        self._channel = channel
        self.edges = Edges(channel, Keys(PREFIX), self._sent)  # type: ignore[arg-type]
        self.log = cj.DecisionLog.open(
            config.repository,
            actor=f"{config.name}@example.org",
            node=config.name.partition(".")[0],
            etcd=config.etcd,
            prefix=PREFIX,
            ttl=config.ttl,
            role=config.role,
        )
        self.callers = [Caller(self, number) for number in range(config.callers)]

    def run(self) -> None:
        self.edges.install()
        threading.Thread(target=self._beat, daemon=True).start()
        with self.log:
            if self.config.role == "holder":
                self.log.serve()
            for caller in self.callers:
                caller.start()
            self._channel.send({"ready": True})
            self._obey()
            self._join()

    def _obey(self) -> None:
        """Do what is asked, until it is to close."""
        prober = Caller(self, len(self.callers))
        while True:
            order = self._channel.receive()
            match order["do"]:
                case "arm":
                    self.edges.arm([Plan(*plan) for plan in order["plans"]])
                case "slow":
                    self.edges.slow_seconds = order["seconds"]
                case "probe":
                    threading.Thread(target=self._probe, args=(prober, order["until"]), daemon=True).start()
                case "stop":
                    self._join()
                    self._channel.send({"stopped": True})
                case "close":
                    return

    def _probe(self, prober: Caller, until: float) -> None:
        """Append once to every space."""
        for space in self.config.spaces:
            prober.insist(space, until)
        self._channel.send({"probed": True})

    def _join(self) -> None:
        self.stop.set()
        for caller in self.callers:
            caller.join()

    def _beat(self) -> None:
        while True:
            time.sleep(_BEAT_SECONDS)
            self._channel.send({"alive": True})

    def _sent(self, space: str, value: str) -> None:
        _, authority = self.log._open()
        assert isinstance(authority, EtcdAuthority)
        commit = str(json.loads(value)["commit"])
        self.recorder.write(Sent(time.monotonic(), self.config.name, authority.node.id, space, commit))


class Caller(threading.Thread):
    """One caller: whatever it does follows what it did before."""

    def __init__(self, worker: Worker, number: int) -> None:
        super().__init__(name=f"{worker.config.name}/{number}", daemon=True)
        self._worker = worker
        self._random = Random(f"{worker.config.seed} {self.name}")
        self._log = RecordedLog(worker.log, worker.recorder, self.name)
        self._numbers = 0
        self._head: dict[str, int] = {}

    def run(self) -> None:
        while not self._worker.stop.wait(self._random.uniform(0, 2 * self._worker.config.pause_seconds)):
            space = self._random.choice(self._worker.config.spaces)
            if self._random.random() < 0.6:
                self._append(space)
            else:
                self._read(space)

    def insist(self, space: str, until: float) -> bool:
        """Append until it succeeds, under new keys; false if it does not in time."""
        while time.monotonic() < until:
            append = self._new(self._decision())
            append = msgspec.structs.replace(append, events=(cj.AliasSet("probe", self._key()),))
            if isinstance(self._log.append(space, append, _PROBE_SECONDS), Receipt):
                self._log.read(space, "state")
                return True
        return False

    def _key(self) -> str:
        self._numbers += 1
        return f"{self.name}/{self._numbers}"

    def _new(self, *events: Decision, expect: int | None = None) -> Append:
        return Append(events, self._key(), f"{self.name}@example.org", format_time(_utc_now()), expect)

    def _append(self, space: str) -> None:
        append = self._wanted(space)
        for _ in range(4):
            told = self._log.append(space, append, self._random.choice(_TIMEOUTS))
            if isinstance(told, Receipt):
                self._head[space] = told.seq
                known = self._worker.known
                known.append((space, append))
                del known[:-50]
            if not isinstance(told, cj.Undecided | cj.Unavailable) or self._random.random() < 0.4:
                return
            if self._worker.stop.wait(self._random.uniform(0, 0.3)):
                return

    def _wanted(self, space: str) -> Append:
        random, known = self._random, self._worker.known
        chance = random.random()
        if chance < 0.06 and (before := [append for where, append in list(known) if where == space]):
            again = random.choice(before)
            if random.random() < 0.5:
                return again
            return msgspec.structs.replace(again, events=(cj.AliasSet("reused", self._key()),))
        if chance < 0.20:
            head = self._head.get(space, 0)
            return self._new(self._decision(), expect=head if random.random() < 0.7 else head + 1000)
        if chance < 0.22:
            return self._new(cj.PagesBound("same", "same"))
        if chance < 0.30:
            return self._new(*(self._decision() for _ in range(random.randint(2, 5))))
        return self._new(self._decision())

    def _decision(self) -> Decision:
        """Return a decision that may fit or not."""
        random = self._random
        one, two = random.sample(_PAGES, 2)
        match random.randrange(12):
            case 0:
                return cj.PagesBound(one, two)
            case 1 | 2:
                return cj.PagesUnbound(one, two)
            case 3:
                return cj.AliasRemoved(random.choice(_NAMES))
            case 4:
                return cj.PageForked(one, two)
            case 5:
                return cj.OverlaySet(one, random.choice("abc"), "text/plain", f"by {self.name}")
            case 6:
                return cj.OverlayRemoved(one, random.choice("abc"))
            case 7:
                return cj.AliasSet(random.choice(_NAMES), random.choice(_NAMES))
            case _:
                return cj.AliasSet(random.choice(_NAMES), f"{self.name} {self._numbers}")

    def _read(self, space: str) -> None:
        what = self._random.choice(("head", "head", "state", "events"))
        consistency: Consistency = self._random.choice(("linearizable", "session", "local"))
        after = max(0, self._head.get(space, 0) - 5) if what == "events" else 0
        found = self._log.read(space, what, consistency, after, self._random.choice(_TIMEOUTS))  # type: ignore[arg-type]
        if isinstance(found, cj.Head):
            self._head[space] = found.seq
