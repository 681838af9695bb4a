"""The grader regex: the reference is a pattern that the answer must hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .folded import LONGEST

PATTERN_LENGTH = 2_000  # characters
PATTERN_SECONDS = 0.3  # for one answer; a pattern such as (a+)+$ would take years


def grade_regex(answer: str, reference: str, row: Mapping[str, Any]) -> float:
    """1 where the pattern stands in the answer; ^ and $ are its begin and end. No answer in time is a wrong one.

    Raises regex.error on a reference that is no pattern, and ValueError on one that is too long.
    """
    return float(stands_in(reference, answer[-LONGEST:].strip()))


def stands_in(pattern: str, text: str) -> bool:
    """By the package regex, which transformers needs as well: it reads what re reads, and can be told when to give up."""
    import regex

    if len(pattern) > PATTERN_LENGTH:
        raise ValueError(f"the pattern is longer than {PATTERN_LENGTH:,} characters")
    try:
        return regex.search(pattern, text, timeout=PATTERN_SECONDS) is not None
    except TimeoutError:
        return False


def is_pattern(text: str) -> bool:
    import regex

    try:
        stands_in(text, "")
    except (regex.error, ValueError, RecursionError, OverflowError):
        return False
    return True
