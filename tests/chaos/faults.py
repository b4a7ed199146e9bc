"""What befalls the processes, etcd, the network and the repository.

Each kind is a function that begins it, if it can be done now, and returns what ends it. What does not last
ends at once.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from coordjournal import maintenance
from coordjournal.testing.etcd import EtcdServer
from tests.chaos.edges import ASKED_OF_ETCD, RARE, USUAL
from tests.chaos.slots import Slot
from tests.integration.processes import Channel, start

if TYPE_CHECKING:
    from tests.chaos.run import Chaos


class Ongoing(NamedTuple):
    """A fault: what it is, whom it befalls, for how many seconds, what ends it, what no other may befall meanwhile.

    What `end` returns, if it is a text, is why it was not done: then it does not count, and the run has a problem.
    """

    kind: str
    target: str
    seconds: float
    end: Callable[[], object]
    keeps: object


Begin = Callable[["Chaos"], Ongoing | None]


def _nothing() -> None:
    pass


def _once(kind: str, target: str) -> Ongoing:
    return Ongoing(kind, target, 0.0, _nothing, None)


# Processes.


def kill_holder(chaos: Chaos) -> Ongoing | None:
    slot = chaos.holder()
    return _kill(slot, "kill the holder") if slot is not None else None


def kill_another(chaos: Chaos) -> Ongoing | None:
    slot = chaos.other()
    return _kill(slot, "kill another") if slot is not None else None


def _kill(slot: Slot, kind: str) -> Ongoing:
    slot.kill()
    return _once(kind, slot.name)


def stop_holder(chaos: Chaos) -> Ongoing | None:
    slot = chaos.holder()
    return _stop(chaos, slot, "stop the holder") if slot is not None else None


def stop_another(chaos: Chaos) -> Ongoing | None:
    slot = chaos.other()
    return _stop(chaos, slot, "stop another") if slot is not None else None


def _stop(chaos: Chaos, slot: Slot, kind: str) -> Ongoing:
    slot.stop()
    return Ongoing(kind, slot.name, chaos.random.uniform(0.3, 2.5) * chaos.settings.ttl, slot.resume, slot)


def at_a_place(chaos: Chaos) -> Ongoing | None:
    """Have a worker die or stand still within a step, or lose what it asks or is answered there."""
    random = chaos.random
    slot = chaos.holder() if random.random() < 0.6 else chaos.other()
    if slot is not None:
        plans = []
        for place in (random.choice(USUAL), *random.sample(RARE, 2)):
            what = random.choice(("die", "stop", "lose") if place in ASKED_OF_ETCD else ("die", "stop"))
            plans.append((place, random.choice(("before", "after")), what))
        slot.tell(do="arm", plans=plans)
    return None  # each counts when it is reached


def close_in_order(chaos: Chaos) -> Ongoing | None:
    slot = chaos.anyone()
    if slot is None:
        return None
    slot.doomed, slot.ready = True, False
    slot.tell(do="close")
    return Ongoing("close in good order", slot.name, 15.0, _nothing, slot)


def slow_disk(chaos: Chaos) -> Ongoing | None:
    slot = chaos.anyone()
    if slot is None:
        return None
    slot.tell(do="slow", seconds=chaos.random.uniform(0.05, 0.4))
    return Ongoing("slow fsync", slot.name, 3.0, lambda: slot.tell(do="slow", seconds=0), slot)


# The network.


def cut_off(chaos: Chaos) -> Ongoing | None:
    return _cut(chaos, "cut off from etcd")


def cut_off_from_answers(chaos: Chaos) -> Ongoing | None:
    return _cut(chaos, "cut off from answers", "answers")


def cut_off_from_asking(chaos: Chaos) -> Ongoing | None:
    return _cut(chaos, "cut off from asking", "requests")


def _cut(chaos: Chaos, kind: str, *ways: str) -> Ongoing | None:
    slot = chaos.holder() if chaos.random.random() < 0.6 else chaos.other()
    if slot is None:
        return None
    late = chaos.random.random() < 0.5
    slot.cut_off(*ways)
    seconds = chaos.random.uniform(0.3, 3.0) * chaos.settings.ttl
    return Ongoing(kind, slot.name, seconds, lambda: slot.mend(late=late), slot)


# Etcd.


def kill_member(chaos: Chaos) -> Ongoing | None:
    return _kill_members(chaos, "kill etcd", [chaos.random.choice(chaos.members)])


def kill_leader(chaos: Chaos) -> Ongoing | None:
    leader = chaos.leader()
    return _kill_members(chaos, "kill etcd's leader", [leader]) if leader is not None else None


def lose_quorum(chaos: Chaos) -> Ongoing | None:
    if len(chaos.members) == 1:
        return None
    some = chaos.random.sample(list(chaos.members), len(chaos.members) // 2 + 1)
    return _kill_members(chaos, "lose the quorum", some)


def _kill_members(chaos: Chaos, kind: str, members: list[EtcdServer]) -> Ongoing:
    for member in members:
        member.kill()

    def end() -> None:
        for member in members:
            member.start(wait=False)

    seconds = chaos.random.uniform(0.2, 2.0) * chaos.settings.ttl
    return Ongoing(kind, _names(members), seconds, end, "etcd")


def _names(members: list[EtcdServer]) -> str:
    return ", ".join(member.name for member in members)


def pause_member(chaos: Chaos) -> Ongoing | None:
    return _pause(chaos, "pause etcd", [chaos.random.choice(chaos.members)])


def pause_leader(chaos: Chaos) -> Ongoing | None:
    leader = chaos.leader()
    return _pause(chaos, "pause etcd's leader", [leader]) if leader is not None else None


def pause_all(chaos: Chaos) -> Ongoing | None:
    return _pause(chaos, "pause all of etcd", list(chaos.members)) if len(chaos.members) > 1 else None


def _pause(chaos: Chaos, kind: str, members: list[EtcdServer]) -> Ongoing:
    for member in members:
        member.pause()

    def end() -> None:
        for member in members:
            member.resume()

    seconds = chaos.random.uniform(0.2, 2.0) * chaos.settings.ttl
    return Ongoing(kind, _names(members), seconds, end, "etcd")


def compact_etcd(chaos: Chaos) -> Ongoing | None:
    seen = chaos.watching.seen
    if seen <= chaos.compacted:
        return None
    chaos.gateway.call("kv/compaction", revision=str(seen), physical=True)
    chaos.compacted = seen
    return _once("compact etcd", f"revision {seen}")


def revoke_lease(chaos: Chaos) -> Ongoing | None:
    leases = chaos.leases()
    if not leases:
        return None
    session, lease = chaos.random.choice(leases)
    chaos.gateway.call("lease/revoke", ID=lease)
    return _once("revoke a lease", session)


def delete_holder(chaos: Chaos) -> Ongoing | None:
    held = chaos.gateway.get("holders/")
    if not held:
        return None
    key = chaos.random.choice(sorted(held))
    chaos.gateway.delete(key)
    return _once("delete a holder's key", key)


def ask_for_handoff(chaos: Chaos) -> Ongoing | None:
    held, sessions = chaos.gateway.get("holders/"), sorted(chaos.gateway.get("nodes/"))
    if not held or not sessions:
        return None
    space = chaos.random.choice(sorted(held)).removeprefix("holders/")
    chosen = chaos.random.choice([*(name.removeprefix("nodes/") for name in sessions), "-"])
    lease = chaos.gateway.call("lease/grant", TTL=2)["ID"]
    chaos.gateway.put(f"successors/{space}", chosen, lease)
    return _once("ask for a handoff", space)


# The repository.


def collect_garbage(chaos: Chaos) -> Ongoing | None:
    return _git(chaos, "git gc", "gc", "--prune=now", "--quiet")


def repack(chaos: Chaos) -> Ongoing | None:
    """Make one pack of all; with `-d` git would refuse, since the repository holds on to its objects."""
    return _git(chaos, "git repack", "repack", "-a", "--quiet")


def _git(chaos: Chaos, kind: str, *arguments: str) -> Ongoing | None:
    if not chaos.repository.exists():
        return None
    process = subprocess.Popen(
        ["git", "-C", str(chaos.repository), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )

    def end() -> str | None:
        _, said = process.communicate()
        return f"{kind} ended with status {process.returncode}: {said.strip()}" if process.returncode else None

    return Ongoing(kind, "repository", 1.0, end, "repository")


def compact_packs(chaos: Chaos) -> Ongoing | None:
    if not chaos.repository.exists():
        return None
    child = start(_compact, str(chaos.repository))

    def end() -> str | None:
        try:
            child.result()
        except AssertionError as error:
            return f"the compaction ended with status {child.join()}: {error}"
        return None

    return Ongoing("compact the packs", "repository", 1.0, end, "repository")


def _compact(channel: Channel, repository: str) -> None:
    maintenance.compact(repository)


KINDS: dict[Begin, int] = {
    kill_holder: 3,
    kill_another: 2,
    stop_holder: 3,
    stop_another: 2,
    at_a_place: 12,
    close_in_order: 1,
    slow_disk: 2,
    cut_off: 2,
    cut_off_from_answers: 3,
    cut_off_from_asking: 1,
    kill_member: 1,
    kill_leader: 1,
    lose_quorum: 1,
    pause_member: 1,
    pause_leader: 1,
    pause_all: 1,
    compact_etcd: 2,
    revoke_lease: 2,
    delete_holder: 1,
    ask_for_handoff: 2,
    collect_garbage: 2,
    repack: 1,
    compact_packs: 1,
}
"""Every kind, and how often it comes in proportion."""

OF_ETCD: Final = frozenset({kill_member, kill_leader, lose_quorum, pause_member, pause_leader, pause_all})
"""Of these one at a time."""

OF_GIT: Final = frozenset({collect_garbage, repack, compact_packs})
"""Likewise."""
