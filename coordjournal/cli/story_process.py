"""One process of the demonstration: fed, read, and perhaps killed."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from coordjournal.cli.output import encode
from coordjournal.cli.story import SPACE, VICTIM, Actor, routine
from coordjournal.cli.text import describe
from coordjournal.events import Event

PATIENCE_SECONDS: Final = 20.0
_KILLED_AFTER: Final = 40  # acknowledged appends of the victim
_KILLED_SECONDS: Final = 0.003  # after it was given more to do: now and then it has appended it, and never told
_PAUSE_SECONDS: Final = 0.1
# How many rounds of its routine each makes, and how many appends it has under way together. The
# victim has more to do than it lives for, and much under way when it dies.
_OTHERS: Final = (3, 6)
_VICTIMS: Final = (100, 12)


class Answer(NamedTuple):
    """What a process printed: a receipt or an error under a key; None where its output ended."""

    worker: Worker
    document: dict[str, Any] | None


class Worker:
    """One process, `coordjournal pipe`, fed and read by a thread each.

    All have made their opening before any goes on to its `routine`.
    """

    def __init__(self, actor: Actor, repo: Path, answers: queue.SimpleQueue[Answer], opened: threading.Barrier) -> None:
        self.actor = actor
        self.asked: dict[str, Event] = {}
        self.acknowledged: dict[str, dict[str, Any]] = {}
        self.refused: dict[str, str] = {}
        self._answers = answers
        self._opened = opened
        self._opening_left = threading.Semaphore(0)
        command = [sys.executable, "-m", "coordjournal", "pipe", SPACE, "--repo", str(repo), "--actor", actor.address]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("COORDJOURNAL_")}
        self.process = subprocess.Popen(  # noqa: S603  # this program itself
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )

    def start(self) -> None:
        """Begin to decide."""
        for work in (self._feed, self._read):
            threading.Thread(target=work, name=f"{self.actor.name}-{work.__name__}", daemon=True).start()

    def _feed(self) -> None:
        assert self.process.stdin is not None
        rounds, under_way = _VICTIMS if self.actor is VICTIM else _OTHERS
        try:
            with self.process.stdin:
                self._ask(self.actor.opening)
                for _ in self.actor.opening:
                    self._opening_left.acquire(timeout=PATIENCE_SECONDS)
                self._opened.wait(PATIENCE_SECONDS)
                for events in _batched(routine(self.actor, rounds), under_way):
                    self._ask(events)
                    if self.actor is VICTIM and len(self.acknowledged) >= _KILLED_AFTER:
                        time.sleep(_KILLED_SECONDS)
                        self.process.send_signal(signal.SIGKILL)
                        return
                    time.sleep(_PAUSE_SECONDS)
        except (OSError, threading.BrokenBarrierError):
            pass  # it was killed, or another one never began: whoever waits for answers sees it

    def _ask(self, events: Iterable[Event]) -> None:
        assert self.process.stdin is not None
        for event in events:
            key = f"{self.actor.name}-{len(self.asked) + 1}"
            self.asked[key] = event
            self.process.stdin.write(encode({"event": event, "key": key}) + b"\n")
        self.process.stdin.flush()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                self._answers.put(Answer(self, msgspec.json.decode(line)))
            except msgspec.DecodeError:
                break  # killed in the middle of a line
            self._opening_left.release()
        self._answers.put(Answer(self, None))

    @property
    def unanswered(self) -> list[str]:
        """The keys of what was asked for and never answered."""
        return [key for key in self.asked if key not in self.acknowledged and key not in self.refused]

    def note(self, document: dict[str, Any]) -> str:
        """Take an answer in and return it in words."""
        key = document["key"]
        event = describe(self.asked[key])
        if "error" in document:
            self.refused[key] = document["error"]["code"]
            return f"  –  {event}   refused: {document['error']['message']}"
        self.acknowledged[key] = document
        return f"{document['seq']:>3}  {event}"


def _batched(events: Iterator[Event], size: int) -> Iterator[list[Event]]:
    return iter(lambda: list(islice(events, size)), [])
