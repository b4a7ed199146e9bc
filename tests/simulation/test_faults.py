"""All parts together, on a toy protocol: nodes that count in etcd, wrongly and rightly."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from coordjournal.etcd import Compare, Etcd, Get, Put, Unanswered
from tests.simulation.faults import ChosenNetwork, Events, landing, telling
from tests.simulation.model import ModelClient, ModelEtcd
from tests.simulation.schedule import Schedule, ScheduleFailed, explore
from tests.simulation.scheduler import Node, Scheduler

COUNTER = b"counter"
NODES = 3


class CountedTwice(AssertionError):
    """The counter is not the number of increments."""


class World:
    """Nodes that add 1 each, and again until they are sure; `named` ones leave a trace by which they know.

    A node that dies is started anew.
    """

    def __init__(self, schedule: Schedule, *, named: bool) -> None:
        self.schedule = schedule
        self.scheduler = Scheduler(schedule, max_steps=3000)
        self.server = ModelEtcd(self.scheduler)
        self.clients: dict[str, ModelClient] = {}
        self._named = named
        self._network = ChosenNetwork(schedule, self.scheduler)
        self._lives = 0
        self.told: list[object] = []
        self._streams = [ModelClient(self.server, "onlooker").watcher()]
        self._streams[0].add(COUNTER, b"", self.told.append)
        things = [self.crashing, landing(schedule, self.server), telling(schedule, lambda: self._streams)]
        self.scheduler.interfere = Events(schedule, things, likelihood=0.1)

    def run(self) -> None:
        for number in range(NODES):
            self.start(f"n{number}")
        self.scheduler.run()
        while self.server.in_flight:
            self.server.land(self.server.in_flight[0])
        counted = self.server.peek(COUNTER)
        if int(counted.value if counted else 0) != NODES:
            raise CountedTwice(f"{counted}, with {NODES} nodes")

    def start(self, name: str) -> None:
        self._lives += 1
        life = f"{name} life {self._lives}"
        self.clients[life] = ModelClient(self.server, name, self._network, self.scheduler.yield_point)
        self.scheduler.spawn(life, lambda: self.add(self.clients[life], f"done/{name}".encode()))

    def crashing(self) -> Callable[[], object] | None:
        alive = self.scheduler.alive()
        return (lambda: self.crash(alive[self.schedule.pick(len(alive))])) if self._lives < 10 else None

    def crash(self, node: Node) -> None:
        self.scheduler.kill(node)
        self.clients.pop(node.name).close()
        self.start(node.name.partition(" ")[0])

    def add(self, client: Etcd, mine: bytes) -> None:
        while True:
            try:
                if self._named and client.get(Get(mine), timeout=2)[1].kvs:
                    return
                _, found = client.get(Get(COUNTER), timeout=2)
                guards = [Compare(COUNTER, "mod_revision", found.kvs[0].mod_revision if found.kvs else 0)]
                value = int(found.kvs[0].value) if found.kvs else 0
                then = [Put(COUNTER, b"%d" % (value + 1))]
                if self._named:
                    guards.append(Compare(mine, "version", 0))
                    then.append(Put(mine, b""))
                if client.txn(guards, then, timeout=2).succeeded:
                    return
            except Unanswered:
                self.scheduler.sleep(0.5)


def unnamed(schedule: Schedule) -> None:
    World(schedule, named=False).run()


def test_counting_again_after_no_answer_counts_twice_and_is_found() -> None:
    with pytest.raises(ScheduleFailed, match="fails: CountedTwice") as caught:
        explore(unnamed, range(200))
    assert sum(map(bool, caught.value.decisions)) < 8, str(caught.value)
    with pytest.raises(CountedTwice):
        unnamed(Schedule(caught.value.seed))
    with pytest.raises(CountedTwice):
        unnamed(Schedule(caught.value.decisions))


def test_counting_under_a_name_counts_once_whatever_happens() -> None:
    happened: set[str] = set()
    for seed in range(200):
        schedule = Schedule(seed)
        World(schedule, named=True).run()
        happened.update(label.rpartition(": ")[2] for _, label in schedule.trace)
    assert {
        *("killed", "no answer", "txn lands late"),
        *("txn drop", "txn lose answer", "txn delay", "txn out of space", "get drop"),
    } <= happened


def test_the_world_lands_what_is_late_and_tells_what_is_due() -> None:
    schedule = Schedule([])
    scheduler = Scheduler(schedule)
    server = ModelEtcd(scheduler)
    client = ModelClient(server, "a", ChosenNetwork(Schedule([3]), scheduler))
    watcher = client.watcher()
    told: list[object] = []
    watcher.add(COUNTER, b"", told.append)
    lands, tells = landing(schedule, server), telling(schedule, lambda: [watcher])
    assert lands() is None
    with pytest.raises(Unanswered):
        client.txn([], [Put(COUNTER, b"1")], timeout=2)
    assert scheduler.now == 2
    world = Events(schedule, [lands, tells], likelihood=0.5)
    world()
    assert len(server.in_flight) == 1, "0 is nothing"
    for schedule_of_one in (Schedule([1, 0]), Schedule([1, 0])):
        Events(schedule_of_one, [lands, tells])()
    assert server.peek(COUNTER) is not None
    assert server.in_flight == []
    assert told == [None]
    assert lands() is None
    Events(Schedule([1]), [lands, tells])()
    assert len(told) == 2
    assert tells() is None
    Events(Schedule([1]), [lands, tells])()


def test_the_same_seed_is_the_same_world() -> None:
    for seed in range(20):
        one, other = World(Schedule(seed), named=True), World(Schedule(seed), named=True)
        one.run()
        other.run()
        assert one.schedule.trace == other.schedule.trace
        assert one.schedule.decisions == other.schedule.decisions
        assert one.server.history == other.server.history
        assert one.told == other.told
