"""A thousand more schedules, in a file of its own for the sake of those who run test files side by side."""

from __future__ import annotations

import pytest

from tests.simulation.judging import judge
from tests.simulation.schedule import explore

CHUNK = 100


@pytest.mark.parametrize("start", range(1000, 2000, CHUNK))
def test_no_schedule_breaks_a_rule(start: int) -> None:
    explore(judge, range(start, start + CHUNK))
