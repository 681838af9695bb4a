"""A sample of prompts as the job would have them answered, and whether the reward tells right from wrong on them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from .. import limits
from ..errors import Problem
from ..template import RewardTemplate, Template
from ..training.questions import Question
from ..training.rewards import FORMAT, AnswerFormat
from . import client
from .sample import Row, Sample, load_renderer
from .table import Table, reasons

GRADED = 50  # rows of which reference and a wrong answer are graded
MOST = 0.95  # of them that must be told apart
SHORT = 200  # characters of an example
SLOW_S = 0.1  # a call of the user's own reward that is worth a word


@dataclass(frozen=True)
class PromptSample(Sample):
    """Lengths are those of prompts. verdict: weights, grader, why, rows, references_right, wrong_right, call_s, failures,
    first_failure, example; {} where no reward could be made.
    """

    reference: str = ""  # of the row that is shown
    verdict: dict[str, Any] = field(default_factory=dict)
    refused: tuple[Problem, ...] = ()

    @property
    def supervised_fraction(self) -> float:
        return 0.0


def has_rewards(template: Template) -> TypeGuard[RewardTemplate]:
    """Whether a template learns from rewards."""
    return hasattr(template, "read_prompts")


def tokenise_prompts(template: RewardTemplate, settings: Any, table: Table) -> PromptSample:
    """Read and render the prompts of a table's first rows, and try the reward on them. Raises UserError."""
    with client.asking(f"model {settings.base_model}"), reasons(template):
        tokenizer, renderer = load_renderer(template, settings, table)
        given = table.layout, settings.prompt_room, settings.system_prompt
        rows: list[Row] = []
        questions: list[Question] = []
        with limits.bounded(settings.base_model, limits.ROWS_S):
            for raw in table.first:
                kept, lost = template.read_prompts([raw], renderer, *given)
                length = len(kept[0].prompt) if kept else 0
                rows.append(Row(next(iter(lost), ""), length=length, trained=length, stops=True))
                questions += kept
            digest = template.digest_of(renderer, table.layout, table.first, *given[1:])
        shown = [{"text": tokenizer.decode(questions[0].prompt), "learned": False}] if questions else []
        verdict, refused = judge(template, settings, questions) if questions else ({}, [])
        return PromptSample(
            **vars(table),
            looked_at=rows,
            segments=shown,
            max_length=settings.prompt_room,
            digest=digest if len(table.first) >= template.DIGESTED or len(table.first) == table.rows else None,
            reference=questions[0].reference if questions else "",
            verdict=verdict,
            refused=tuple(refused),
        )


def judge(template: RewardTemplate, settings: Any, questions: Sequence[Question]) -> tuple[dict[str, Any], list[Problem]]:
    """What the reward says of references, and of answers that are another row's."""
    try:
        rewards, why = template.make_rewards(
            settings.reward, settings.reward_file, settings.reward_seconds, settings.answer_format,
            settings.max_completion_length, questions,
        )  # fmt: skip
    except template.Stop as stop:
        return {}, [Problem(stop.code, "error", stop.message, stop.fix)]
    some = [one for one in questions[:GRADED] if one.reference]
    wrong = [(one, other) for one in some if (other := unlike(one, some))]
    began = time.monotonic()
    try:
        right = rewards.of([rewards.as_completion(one.reference) for one in some], some)
        others = rewards.of([rewards.as_completion(other) for _, other in wrong], [one for one, _ in wrong])
        if not some:  # nothing to compare with: that it can be called is all that is known
            right = rewards.of([rewards.as_completion("")] * len(questions[:GRADED]), questions[:GRADED])
    finally:
        rewards.close()
    missed = next((one for one, is_right in zip(some, right.right, strict=False) if not is_right), None)
    calls = len(some) + len(wrong) or len(questions[:GRADED])
    return {
        "weights": rewards.weights,
        "why": why,
        "grader": rewards.grader_name,
        "graded": bool(rewards.graded),
        "rows": len(some),
        "references_right": round(sum(right.right) / len(some), 4) if some and rewards.graded else None,
        "wrong_right": round(sum(others.right) / len(wrong), 4) if wrong and rewards.graded else None,
        "call_s": round((right.seconds + others.seconds) / calls, 4),
        "elapsed_s": round(time.monotonic() - began, 2),
        "failures": right.failed + others.failed,
        "first_failure": right.first_failure or others.first_failure,
        "example": missed.reference[:SHORT] if missed else "",
    }, []


def unlike(one: Question, others: Sequence[Question]) -> str:
    """Another row's reference."""
    return next((other.reference for other in reversed(others) if other.reference.strip() != one.reference.strip()), "")


def check_prompts(sample: PromptSample, settings: Any) -> list[Problem]:
    """What is wrong with prompts and their reward."""
    found, problems, own = sample.verdict, list(sample.refused), settings.reward_file
    if not found:
        return problems
    name = found["grader"]
    fix = (
        f"Correct {own}." if own and name == "file" else "Choose another --reward, or --completion-column NAME for the answers."
    )
    if found["failures"]:
        message = f"The reward failed in {found['failures']} calls on references and wrong answers: {found['first_failure']}"
        problems.append(Problem("reward_fails", "error", message, f"Correct {own}." if own else fix))
    elif found["references_right"] is not None and found["references_right"] < MOST:
        message = (
            f"{name} counts only {found['references_right']:.0%} of {found['rows']} references as right when each is held against "
            f"itself; not this one: {found['example']!r}"
        )
        problems.append(Problem("reference_not_right", "error", message, fix))
    if found["wrong_right"] is not None and found["wrong_right"] > 1 - MOST:
        message = (
            f"{name} counts {found['wrong_right']:.0%} of answers that are another row's as right: a reward that is always 1 teaches "
            "nothing."
        )
        problems.append(Problem("wrong_is_right", "error", message, fix))
    if found["graded"] and found["rows"] and found["wrong_right"] is None:
        message = "All sampled rows have the same reference: whatever is asked, one answer is right."
        problems.append(Problem("one_reference", "warning", message, "Add rows with other answers."))
    if not found["graded"]:
        message = (
            f"{name} tells nothing about right and wrong: the model learns a form, and nobody sees what becomes of its answers."
        )
        problems.append(Problem("nothing_graded", "warning", message, "Add a grader: --reward number=1,format=0.2"))
    if FORMAT in found["weights"] and (unsaid := unsaid_tag(sample, settings.answer_format)):
        message = f"The first prompt says nothing of {unsaid}, and the format is rewarded: a model that is not told finds it by chance."
        problems.append(Problem("format_unasked", "warning", message, "Say in --system-prompt how an answer is to look."))
    if found["call_s"] > SLOW_S:
        calls = settings.batch_size * settings.gradient_accumulation * settings.num_generations
        message = (
            f"A call of {own} took {found['call_s']:.2f} s here: {calls:,} completions a step are {calls * found['call_s']:,.0f} s of a "
            "processor, while the GPU waits and is paid for."
        )
        problems.append(Problem("reward_slow", "warning", message, "Make it faster, or lower --num-generations."))
    return problems


def unsaid_tag(sample: PromptSample, answer_format: str) -> str:
    """What an answer begins with by the format, where the prompt that is shown has no part of that; else ""."""
    tags = list(filter(None, AnswerFormat(answer_format).parts))
    prompt = "".join(segment["text"] for segment in sample.segments)
    return "" if any(tag in prompt for tag in tags) else next(iter(tags), "")
