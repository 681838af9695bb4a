"""Test rows whose question stands in the training data as well: what they show is memory."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .folded import folded

# What may differ in one and the same question. Signs that a formula or a word is made of stay: 2+2 is not 2-2.
PUNCTUATION = re.compile("[\\s.,;:!?'\"()\\[\\]{}¡¿«»‹›„“”‚‘’、。，；：！？「」『』（）【】…—–|_]+")


class Seen(NamedTuple):
    """Indexes of test rows, ascending. No row is in both."""

    exactly: list[int]
    normalised: list[int]  # only without regard to case, punctuation, whitespace and how Unicode writes a character


def seen_rows(test_prompts: Sequence[str], training_prompts: Iterable[str]) -> Seen:
    """The test rows whose question stands among training_prompts, which are read once and not kept."""
    as_written, as_plain = set(test_prompts), {plain_question(text) for text in test_prompts} - {""}
    found_written: set[str] = set()
    found_plain: set[str] = set()
    for text in training_prompts:
        if text in as_written:
            found_written.add(text)
        if (question := plain_question(text)) in as_plain:
            found_plain.add(question)
    rows = list(enumerate(test_prompts))
    return Seen(
        [at for at, text in rows if text in found_written],
        [at for at, text in rows if text not in found_written and plain_question(text) in found_plain],
    )


def plain_question(text: str) -> str:
    return PUNCTUATION.sub(" ", folded(text)).strip()
