"""What a rule finds wrong."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

Rule = Literal[
    "chain",
    "fencing",
    "durability",
    "exactly once",
    "real time",
    "refusals",
    "reads",
    "branch",
    "drain",
    "storage",
    "liveness",
]

RULES: tuple[Rule, ...] = get_args(Rule)


class Finding(NamedTuple):
    """One violation: the rule's name, the space (empty: the whole journal), what happened in words."""

    rule: Rule
    space: str
    words: str

    def __str__(self) -> str:
        return f"{self.rule}: {f'space {self.space}: ' if self.space else ''}{self.words}"
