"""Graders of plain text: exact, contains, choice. All compare texts as folded.py reads them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from .folded import LONGEST, folded

Grader = Callable[[str, str, Mapping[str, Any]], float]  # (answer, reference, row): 0, wrong, to 1, right

WRAPPINGS = {'"': '"', "(": ")", "'": "'", "`": "`", "*": "*", "«": "»", "‹": "›", "「": "」", "『": "』"}
FINAL = ".,;:!?。、！？…"
# Written without spaces between words: Thai to Burmese, Khmer, kana, Chinese, Korean with its endings.
NO_SPACES = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]")


def bare_answer(text: str) -> str:
    """folded, without quotes, asterisks or brackets around it and punctuation behind it, unless nothing else is there."""
    return unwrapped(folded(text))


def unwrapped(bare: str) -> str:
    for _ in range(4):  # ("**Paris.**")
        less = bare.rstrip(FINAL).rstrip()
        inside = less[1:-1].strip()
        if len(less) > 2 and WRAPPINGS.get(less[0]) == less[-1] and less[0] not in inside.strip(less[0]):
            less = inside
        bare = less or bare
    return bare


def grade_exact(answer: str, reference: str, row: Mapping[str, Any]) -> float:
    """1 where both are the same text but for case, whitespace, Unicode's ways to write it, quotes around it and final punctuation."""
    return float(bare_answer(answer) == bare_answer(reference))


def grade_contains(answer: str, reference: str, row: Mapping[str, Any]) -> float:
    """1 where the reference stands in the answer as words of its own: no `5` in `15`, `2.5` or `-5`, no `art` in `start`."""
    wanted, text = bare_answer(reference), folded(answer)
    if wanted == unwrapped(text):
        return 1.0
    return float(wanted in text and bool(wanted and re.search(as_words(wanted), text)))


def as_words(words: str) -> str:
    """A pattern for folded text that holds these words, and not as a part of longer ones or of a longer number."""
    before, after = "", ""
    if words[0].isalnum() and not NO_SPACES.match(words[0]):
        before = r"(?<!\w)" + (r"(?<!\d[.,])(?<!(?<!\w)[-.])" if words[0].isdigit() else "")
    if words[-1].isalnum() and not NO_SPACES.match(words[-1]):
        after = r"(?!\w)" + (r"(?![.,]\d)" if words[-1].isdigit() else "")
    return f"{before}{re.escape(words)}{after}"


def grade_choice(answer: str, reference: str, row: Mapping[str, Any]) -> float:
    """1 where the answer names the reference and, by choice_among, no other label."""
    return grade_contains(answer, reference, row)


def choice_among(references: Iterable[str]) -> Grader:
    """grade_choice, with its labels: all that references hold. An answer that names two labels, or none, is wrong."""
    label_of = label_finder(references)

    def choice(answer: str, reference: str, row: Mapping[str, Any]) -> float:
        return float(label_of(answer) == bare_answer(reference))

    return choice


def label_finder(references: Iterable[str]) -> Callable[[str], str | None]:
    """A function that gives the one label that an answer names, as bare_answer writes it, or None.

    Of labels within each other the longer counts: `not spam` is no `spam`. A label of one letter stands in an answer only
    in its own case, so that `a dog` does not choose `A`.
    """
    spelled = {bare_answer(one): one.strip() for one in references}
    letters = [label for label in spelled if len(label) == 1 and label.isalpha() and not NO_SPACES.match(label)]
    words = sorted(filter(None, set(spelled) - {*letters}), key=len, reverse=True)
    in_folded = re.compile("|".join(map(as_words, words))) if words else None
    in_own_case = re.compile("|".join(rf"(?<!\w){re.escape(own_case(one, spelled[one]))}(?!\w|['’])" for one in letters))

    def label_of(answer: str) -> str | None:
        text = folded(answer)
        if (bare := unwrapped(text)) in spelled:
            return bare
        found = set(in_folded.findall(text)) if in_folded else set()
        if letters:
            found |= {folded(one) for one in in_own_case.findall(answer[-LONGEST:])}
        return found.pop() if len(found) == 1 else None

    return label_of


def own_case(letter: str, label: str) -> str:
    """A label's letter as the label writes it: `B` of `"B."`."""
    return next((character for character in label if folded(character) == letter), letter)


class ClassRow(NamedTuple):
    """One label: rows that have it as their reference, answers that named it, and those that were right."""

    label: str
    rows: int
    answered: int
    right: int

    @property
    def recall(self) -> float | None:
        return self.right / self.rows if self.rows else None

    @property
    def precision(self) -> float | None:
        return self.right / self.answered if self.answered else None


class ClassTable(NamedTuple):
    classes: list[ClassRow]  # most frequent reference first
    unnamed: int  # answers that named no label, or more than one


def class_table(answers: Sequence[str], references: Sequence[str]) -> ClassTable:
    """By label, as choice_among grades them. Raises ValueError where the two are not of one length."""
    label_of = label_finder(references)
    spelled = {bare_answer(one): one.strip() for one in reversed(references)}
    pairs = [(bare_answer(wanted), label_of(answer)) for wanted, answer in zip(references, answers, strict=True)]
    rows, answered = Counter(wanted for wanted, _ in pairs), Counter(given for _, given in pairs)
    right = Counter(wanted for wanted, given in pairs if wanted == given)
    classes = [ClassRow(spelled[label], count, answered[label], right[label]) for label, count in rows.most_common()]
    return ClassTable(classes, answered[None])
