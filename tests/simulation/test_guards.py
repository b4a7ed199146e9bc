"""A build of the authority in which a guard is left out: the simulation finds what that breaks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import pytest

from coordjournal.authority import forwarding, tenure
from coordjournal.authority.forwarding import Forwarding
from coordjournal.authority.tenure import Intent, Tenure
from coordjournal.errors import OperatorNeeded
from coordjournal.etcd import Compare
from tests.simulation.judging import Violated, simulate
from tests.simulation.kinds import ADOPTED, FULL, LATE, LOSSY, Kind
from tests.simulation.operator import SimulatedPremises
from tests.simulation.process import KEYS
from tests.simulation.schedule import Schedule

MAX_SCHEDULES = 1_000


class Omission(NamedTuple):
    """What is left out, how, and the rules of which one must break. `kind` is the world in which it does soonest."""

    name: str
    leave_out: Callable[[pytest.MonkeyPatch], None]
    rules: tuple[str, ...]
    kind: Kind | None = None


def _publish_without(prefix: bytes, *targets: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Leave out one compare of the publish, of what is below a prefix."""

    def leave_out(patch: pytest.MonkeyPatch) -> None:
        real = Tenure.guards

        def guards(tenure: Tenure, intents: Iterable[Intent]) -> list[Compare]:
            whole = real(tenure, intents)
            rest = [guard for guard in whole if not (guard.key.startswith(prefix) and guard.target in targets)]
            assert len(whole) - len(rest) == (1 if prefix != KEYS.intents else len(list(intents))), "it is one compare"
            return rest

        patch.setattr(Tenure, "guards", guards)

    return leave_out


def _put_without(prefix: bytes) -> Callable[[pytest.MonkeyPatch], None]:
    def leave_out(patch: pytest.MonkeyPatch) -> None:
        guards = Forwarding._absent
        patch.setattr(
            Forwarding, "_absent", lambda self, sent: [g for g in guards(self, sent) if not g.key.startswith(prefix)]
        )

    return leave_out


def _withdraw_without_its_revision(patch: pytest.MonkeyPatch) -> None:
    def compare(key: bytes, target: str, wanted: int) -> Compare:
        if target == "mod_revision":
            return Compare(b"/nothing", "version", 0)
        assert target in ("create_revision", "version")
        return Compare(key, target, wanted)  # type: ignore[arg-type]  # it is one of the two

    patch.setattr(forwarding, "Compare", compare)


def _adopt_without_locks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SimulatedPremises, "hold_all", lambda here, locks, held: here.store.spaces())


def _take_over_in_the_old_term(patch: pytest.MonkeyPatch) -> None:
    take_over = Tenure.take_over

    def take_over_so(tenure: Tenure) -> None:
        take_over(tenure)
        tenure.term = max(tenure.head.term, 1)

    patch.setattr(Tenure, "take_over", take_over_so)


def _acknowledge_without_the_branch(patch: pytest.MonkeyPatch) -> None:
    for module in (tenure, forwarding):
        patch.setattr(module, "roll_forward", lambda node, space, known, head: head)


AGAIN = Kind("again", {"tell": 10.0, "land": 1.0, "revoke": 2.5}, (70, 0, 5, 25, 0), ops=16)
"""Answers are lost, and who held the space soon holds it again, in another tenure."""

REPEATED = Kind("repeated", {"tell": 12.0, "land": 3.0, "wipe": 2.5, "pause": 0.8}, (90, 0, 2, 8, 0), ops=10)
"""Etcd is wiped again and again, so that another process is elected at the same revision."""

OMISSIONS = (
    Omission("which holder", _publish_without(KEYS.holders, "value"), ("fencing", "chain"), REPEATED),
    Omission("which tenure", _publish_without(KEYS.holders, "create_revision"), ("fencing", "exactly once"), AGAIN),
    Omission("the head", _publish_without(KEYS.heads, "value", "version"), ("chain", "exactly once"), LOSSY),
    Omission("the intents", _publish_without(KEYS.intents, "mod_revision"), ("exactly once", "drain"), FULL),
    Omission("the session of a put", _put_without(KEYS.nodes), ("exactly once", "refusals", "real time"), LATE),
    Omission("the absence of what is put", _put_without(KEYS.intents), ("exactly once", "refusals", "drain"), LATE),
    Omission("the revision withdrawn from", _withdraw_without_its_revision, ("exactly once", "drain"), FULL),
    Omission("the locks of an adoption", _adopt_without_locks, ("branch", "durability"), ADOPTED),
    Omission("a new term", _take_over_in_the_old_term, ("fencing",)),
    Omission("the branch before the receipt", _acknowledge_without_the_branch, ("branch",), LATE),
)


@pytest.mark.parametrize("omission", OMISSIONS, ids=lambda omission: omission.name)
def test_without_a_guard_a_rule_is_broken(omission: Omission, monkeypatch: pytest.MonkeyPatch) -> None:
    omission.leave_out(monkeypatch)
    with pytest.raises(Violated) as caught:
        _search(omission.kind)
    assert caught.value.rule in omission.rules, caught.value


def _search(kind: Kind | None) -> None:
    for seed in range(MAX_SCHEDULES):
        try:
            simulate(Schedule(seed), kind)
        except OperatorNeeded:
            continue  # the operator is told that the log has forked: another schedule shows which rule that breaks
