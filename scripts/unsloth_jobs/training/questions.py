"""Held-out rows as questions: what comes before a row's last answer, and that answer as the reference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from .columns import Format
from .masks import IGNORE, Renderer, as_messages
from .rows import from_cell, normalise_row


class Question(NamedTuple):
    """prompt: token ids up to where the model begins to answer; asked: the last user's message; reference: the row's own
    answer; row: by column, as a grader is given it; context: the whole conversation before the answer, as text.
    """

    prompt: list[int]
    asked: str
    reference: str
    row: dict[str, Any]
    context: str = ""


def read_questions(
    rows: Iterable[Mapping[str, Any]], tokenizer: Any, renderer: Renderer, layout: Format, max_length: int
) -> list[Question]:
    """The rows that end with an answer, whose prompt has at most max_length tokens. Plain text holds no question."""
    found = (
        read_question(normal, row, tokenizer, renderer) for row in rows if (normal := normal_question(row, layout)) is not None
    )
    return [question for question in found if question and len(question.prompt) <= max_length]


def normal_question(row: Mapping[str, Any], layout: Format) -> dict[str, Any] | None:
    """A normalised row; None where it is plain text, or cannot be read: such rows are counted where they become tokens."""
    try:
        normal = normalise_row(row, layout)
    except ValueError:
        return None
    return None if "text" in normal else normal


def read_question(normal: Mapping[str, Any], row: Mapping[str, Any], tokenizer: Any, renderer: Renderer) -> Question | None:
    """The question of a normalised row; None where its chat template cannot render it, or it has no answer."""
    try:
        example = renderer.tokens_of(*renderer.render(normal))
    except ValueError:
        return None
    start = last_answer(example.labels)
    if not start:
        return None
    asked, answer = asked_and_answered(normal)
    written = tokenizer.decode(example.input_ids[start:], skip_special_tokens=True).strip()
    return Question(
        example.input_ids[:start],
        next((turn["content"] for turn in reversed(asked) if turn["role"] == "user"), ""),
        written if answer.get("tool_calls") else answer.get("content", written).strip(),
        {name: from_cell(value) for name, value in row.items()},
        context_of(asked),
    )


def read_context(row: Mapping[str, Any], layout: Format) -> str | None:
    """What a training row asks, to be compared with a Question's context; None where it asks nothing."""
    normal = normal_question(row, layout)
    return None if normal is None else context_of(asked_and_answered(normal)[0])


def asked_and_answered(normal: Mapping[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The turns before the last answer, and that answer; {} where there is none."""
    turns = as_messages(normal)
    last = max((place for place, turn in enumerate(turns) if turn["role"] == "assistant"), default=len(turns))
    return turns[:last], turns[last] if last < len(turns) else {}


def context_of(turns: Iterable[Mapping[str, Any]]) -> str:
    """The system's turn aside, which is often the same in all rows."""
    return "\n".join(turn["content"] for turn in turns if turn["role"] != "system")


def last_answer(labels: list[int]) -> int | None:
    """Where a row's last answer begins: the last stretch of labels that are learned; None without one."""
    place = len(labels) - 1
    while place >= 0 and labels[place] == IGNORE:
        place -= 1
    if place < 0:
        return None
    while place >= 0 and labels[place] != IGNORE:
        place -= 1
    return place + 1
