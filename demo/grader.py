"""How the demo's answers are graded: the message reaches the right team, with the right priority."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def grade(answer: str, reference: str, row: Mapping[str, Any]) -> float:
    """1 where the first two lines, `Team: …` and `Priority: …`, are those of the team's own answer. The reply may differ."""
    return float(answer.splitlines()[:2] == reference.splitlines()[:2])
