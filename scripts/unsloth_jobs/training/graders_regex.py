"""The grader regex: the reference is a pattern that the answer must hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .folded import LONGEST

PATTERN_LENGTH = 2_000  # characters
PATTERN_PARTS = 20_000  # what it counts out: (?:a{1000}){1000} is laid out a million times before anything is searched
PATTERN_SECONDS = 0.3  # for one answer; a pattern such as (a+)+$ would take years
TOKENS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{(\d+)(?:,\d*)?\}|.", re.DOTALL)


def grade_regex(answer: str, reference: str, row: Mapping[str, Any]) -> float:
    """1 where the pattern stands in the answer; ^ and $ are its begin and end. No answer in time is a wrong one.

    Raises regex.error on a reference that is no pattern, and ValueError on one that is too long or repeats too much.
    """
    return float(stands_in(reference, answer[-LONGEST:].strip()))


def stands_in(pattern: str, text: str) -> bool:
    """By the package regex, which transformers needs as well: it reads what re reads, and can be told when to give up."""
    import regex

    if len(pattern) > PATTERN_LENGTH:
        raise ValueError(f"the pattern is longer than {PATTERN_LENGTH:,} characters")
    if laid_out(pattern) > PATTERN_PARTS:
        counted = f"more than {PATTERN_PARTS:,} characters or groups"
        raise ValueError(f"the pattern's repetitions such as {{1000}} come to {counted}: use smaller counts, or + and *")
    try:
        return regex.search(pattern, text, timeout=PATTERN_SECONDS) is not None
    except TimeoutError:
        return False


def laid_out(pattern: str) -> int:
    """Of how many parts a pattern is when each counted repetition is written out as often as it must occur.

    That is what compiling it takes time and memory for, and the timeout bounds the search alone.
    """
    open_groups, last = [0], 0
    for token in TOKENS.finditer(pattern):
        if token[0] == "(":
            open_groups.append(0)
            continue
        if token[1]:
            more = last * (max(int(token[1]), 1) - 1)
            last += more
        elif token[0] == ")" and len(open_groups) > 1:
            more = last = open_groups.pop() + 1
        else:
            more = last = 1
        open_groups[-1] += more
    return sum(open_groups)


def is_pattern(text: str) -> bool:
    import regex

    try:
        stands_in(text, "")
    except (regex.error, ValueError, RecursionError, OverflowError):
        return False
    return True
