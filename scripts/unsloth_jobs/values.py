"""Values of JSON that was written elsewhere: which of them have the shape that is relied on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

LARGEST = 2**53  # of the integers that a float tells apart


def shaped(event: dict[str, Any]) -> dict[str, Any]:
    """An event without the fields whose values have not the shape that is relied on: anybody may print one."""
    return {name: value for name, value in event.items() if name not in SHAPES or SHAPES[name](value)}


def is_amount(value: Any) -> bool:
    return number(value) is not None and value >= 0


def is_measured(value: Any) -> bool:
    return real(value) is not None


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_share(value: Any) -> bool:
    return number(value) is not None and -1 <= value <= 1


def is_contender(value: Any) -> bool:
    """A line of an evaluation's table. The first contender has no difference to itself."""
    shares = ("right", "low", "high", "difference", "difference_low", "difference_high")
    return (
        isinstance(value, dict)
        and is_text(value.get("name"))
        and is_share(value.get("right"))
        and all(is_share(value[name]) for name in shares if name in value)
        and is_text(value.get("verdict", ""))
    )


def is_graded(value: Any) -> bool:
    """An evaluation: how many rows, by which grader, and a line for each contender."""
    return (
        isinstance(value, dict)
        and is_amount(value.get("rows"))
        and is_text(value.get("grader"))
        and is_amount(value.get("seconds", 0))
        and isinstance(value.get("contenders"), list)
        and len(value["contenders"]) > 0
        and all(map(is_contender, value["contenders"]))
    )


def is_change(value: Any) -> bool:
    """Figures by name, each before and after."""
    return isinstance(value, dict) and all(
        isinstance(pair, list) and len(pair) == 2 and all(number(one) is not None for one in pair) for pair in value.values()
    )


SHAPES: dict[str, Callable[[Any], bool]] = {  # of the fields that are read, whatever event they stand in
    **dict.fromkeys(("step", "total_steps", "eta_s", "time", "tokens", "timed_tokens", "train_s", "steps"), is_amount),
    **dict.fromkeys(("evaluation_s", "evaluations", "cost_usd", "duration_s", "peak_gb"), is_amount),
    **dict.fromkeys(("loss", "eval_loss", "base_loss", "tuned_loss"), is_measured),
    **dict.fromkeys(("code", "message", "fix", "repo", "path", "url"), is_text),
    **dict.fromkeys(("repos", "paths"), lambda value: isinstance(value, list) and all(map(is_text, value))),
    "graded": lambda value: value is None or is_graded(value),
    "preferences": is_change,
    "rewards": is_change,
    **dict.fromkeys(("prompt_tokens", "prompt_timed_tokens", "length", "clipped", "kl", "tokens_per_s"), is_amount),
    **dict.fromkeys(("reward", "right"), lambda value: is_measured(value) or is_amount(value)),
    "held_out": is_amount,
    "settings": lambda value: isinstance(value, dict),
}


def real(value: Any) -> float | None:
    """A number as a log may state it, NaN and infinity included; None for an integer that no float holds."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return value if isinstance(value, float) or abs(value) < LARGEST else None


def number(value: Any) -> float | None:
    return value if real(value) is not None and math.isfinite(value) else None


def whole(value: Any) -> int | None:
    return int(value) if number(value) is not None else None
