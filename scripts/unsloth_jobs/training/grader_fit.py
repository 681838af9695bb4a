"""Which grader fits a data set's answers, and whether the one that was chosen does."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from statistics import median

from .folded import folded
from .graders_calls import calls_in
from .graders_json import whole_json
from .graders_number import is_a_number, last_number, unit_of
from .graders_regex import is_pattern
from .graders_text import as_words, bare_answer

NEARLY_ALL = 0.95  # a data set may hold a few rows of another kind
MOST_CLASSES = 20
SHORT_WORDS, SHORT_CHARACTERS = 5, 40
AFTER_HASHES = re.compile(r"####\s*(.+?)\s*$")  # as GSM8K ends its solutions


def propose_grader(references: Sequence[str], prompts: Sequence[str] | None = None) -> tuple[str | None, str]:
    """A grader's name, or None where no rule tells right from wrong, and why, as a sentence.

    prompts: where each of them lists all answers there are, few rows suffice to see that these are classes.
    """
    given = [one for one in references if bare_answer(one)]
    if not given:
        return None, "The rows have no answers to compare with."
    kinds = (
        ("number", "numbers", is_final_number),
        ("tool_call", "tool calls", lambda one: bool(calls_in(one))),
        ("json", "JSON", is_json_text),
    )
    for name, what, is_kind in kinds:
        if (count := sum(map(is_kind, given))) >= NEARLY_ALL * len(given):
            return name, f"{share_of(count, len(given))} answers are {what}."
    distinct = {bare_answer(one) for one in given}
    if 2 <= len(distinct) <= MOST_CLASSES and all(map(is_short, distinct)):
        if len(given) >= 2 * len(distinct):
            return "choice", f"The {len(given):,} answers are {len(distinct)} short texts, again and again."
        if prompts and all(stand_in(distinct, prompt) for prompt in prompts):
            return "choice", f"Each question lists the {len(distinct)} answers to choose from."
    [(unit, count)] = Counter(map(unit_of, given)).most_common(1)
    if unit and count >= NEARLY_ALL * len(given):
        return "number", f"{share_of(count, len(given))} answers are numbers with the same unit."
    words = median(len(one.split()) for one in given)
    if words <= SHORT_WORDS and median(map(len, given)) <= SHORT_CHARACTERS:
        return "exact", f"The answers are short: {words:g} word{'s' * (words != 1)} in the middle."
    return None, "The answers are long texts: no rule tells right from wrong; the loss says how near they are."


def grader_misfit(name: str, references: Sequence[str]) -> str | None:
    """What is amiss where a grader of ours does not fit these references, as a sentence; None where it does."""
    total = len(references)
    if name == "exact" and (count := sum(len(one.split()) > 20 for one in references)) > total / 2:
        return f"{share_of(count, total)} answers are longer than 20 words, and exact wants each word: few will be right."
    if name == "contains" and (count := sum(not one.strip() for one in references)):
        return f"{share_of(count, total)} references are empty: there only an empty answer is right."
    if name == "number" and (count := sum(last_number(one) is None for one in references)):
        return f"{share_of(count, total)} references hold no number: there number compares the texts."
    if name == "choice" and (count := len({bare_answer(one) for one in references})) > 50:
        return f"The references are {count:,} different texts, which are no classes: exact or contains may fit."
    if name == "json" and (count := sum(not whole_json(one) for one in references)):
        return f"{share_of(count, total)} references are no JSON."
    if name == "regex" and (count := sum(not is_pattern(one) for one in references)):
        return f"{share_of(count, total)} references are no regular expressions."
    if name == "tool_call" and (count := sum(not calls_in(one) for one in references)):
        return f"{share_of(count, total)} references hold no tool call: there an answer without one is right."
    return None


def share_of(count: int, total: int) -> str:
    return f"All {total:,}" if count == total else f"{count:,} of {total:,}"


def is_final_number(text: str) -> bool:
    after = AFTER_HASHES.search(text[-200:])
    return is_a_number(after[1] if after else text)


def is_json_text(text: str) -> bool:
    """An object or an array: a number alone is JSON too, and so is a word in quotes."""
    return any(isinstance(value, dict | list) for value in whole_json(text))


def is_short(text: str) -> bool:
    return len(text.split()) <= SHORT_WORDS and len(text) <= SHORT_CHARACTERS


def stand_in(labels: set[str], prompt: str) -> bool:
    text = folded(prompt)
    return all(re.search(as_words(label), text) for label in labels)
