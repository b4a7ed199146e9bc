"""A build of the authority in which a guard is left out: the simulation finds what that breaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from coordjournal.authority import forwarding
from coordjournal.authority.forwarding import Forwarding
from coordjournal.authority.tenure import Tenure
from coordjournal.etcd import Compare
from tests.simulation.judging import Violated, simulate
from tests.simulation.kinds import FULL, LATE, LOSSY, STUCK, Kind
from tests.simulation.process import KEYS
from tests.simulation.schedule import Schedule

MAX_SCHEDULES = 1_000


class Omission(NamedTuple):
    """What is left out, how, and the rules of which one must break. `kind` is the world in which it does soonest."""

    name: str
    leave_out: Callable[[pytest.MonkeyPatch], None]
    rules: tuple[str, ...]
    kind: Kind | None = None


def _publish_without(prefix: bytes) -> Callable[[pytest.MonkeyPatch], None]:
    def leave_out(patch: pytest.MonkeyPatch) -> None:
        guards = Tenure.guards
        patch.setattr(
            Tenure,
            "guards",
            lambda tenure, intents: [g for g in guards(tenure, intents) if not g.key.startswith(prefix)],
        )

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


OMISSIONS = (
    Omission("the holder", _publish_without(KEYS.holders), ("fencing",), STUCK),
    Omission("the head", _publish_without(KEYS.heads), ("chain", "exactly once"), LOSSY),
    Omission("the intents", _publish_without(KEYS.intents), ("exactly once", "drain"), FULL),
    Omission("the session of a put", _put_without(KEYS.nodes), ("exactly once", "refusals"), LATE),
    Omission("the absence of what is put", _put_without(KEYS.intents), ("exactly once", "refusals", "drain"), LATE),
    Omission("the revision withdrawn from", _withdraw_without_its_revision, ("exactly once", "drain"), FULL),
)


@pytest.mark.parametrize("omission", OMISSIONS, ids=lambda omission: omission.name)
def test_without_a_guard_a_rule_is_broken(omission: Omission, monkeypatch: pytest.MonkeyPatch) -> None:
    omission.leave_out(monkeypatch)
    with pytest.raises(Violated) as caught:
        _search(omission.kind)
    assert caught.value.rule in omission.rules, caught.value


def _search(kind: Kind | None) -> None:
    for seed in range(MAX_SCHEDULES):
        simulate(Schedule(seed), kind)
