"""Is it better, and not only better at the reward? Held-out prompts, answered greedily by the start and by what it became."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

from .contamination import seen_rows
from .evaluation import QUESTIONS_AT_ONCE, Evaluation, grade_contenders
from .generation import Answer, answer_all
from .graders import load_grader
from .masks import Renderer
from .paired import paired_difference
from .question_set import SPARE, QuestionSet, read_test_rows
from .questions import Question
from .report import Stop, emit
from .reward_rows import read_prompts
from .rewards import Rewards
from .settings import EvidenceSettings
from .table_layout import FindFormat

EXAMPLES = 3  # of answers with more reward that are not better


def choose_prompts(
    settings: EvidenceSettings,
    trained_on: Sequence[Question],
    held_out: Sequence[Question],
    renderer: Renderer,
    format_of: FindFormat,
    rewards: Rewards,
    room: int,
    system: str,
) -> QuestionSet:
    """From --eval-dataset or else from the rows held out. What is wrong with them is a warning: training is worth more.

    They are graded by the part of the reward that grades, or by --grader where it names another.
    """
    if settings.grader == "none":
        return QuestionSet([])
    try:
        questions = list(held_out)
        if settings.eval_dataset:
            rows, layout = read_test_rows(settings, format_of)
            some = random.Random(settings.seed).sample(range(len(rows)), min(len(rows), SPARE * settings.max_graded))
            questions, _ = read_prompts((rows[place] for place in some), renderer, layout, room, system)
            if not questions:
                raise Stop("no_questions", f"No row of {settings.eval_dataset} holds a prompt.", "Look at its columns.")
        name, grader = rewards.grader_name, rewards.grade
        if settings.grader != "auto":
            name, own = settings.grader, load_grader(settings.grader)
            grader = lambda answer, reference, row: own(rewards.form.answer(answer), reference, row)  # noqa: E731
        seen = seen_rows([one.context for one in questions], (one.context for one in trained_on))
        left_out = {*seen.exactly, *seen.normalised}
        kept = [one for place, one in enumerate(questions) if place not in left_out][: settings.max_graded]
        source = settings.eval_dataset or "the rows held out"
        emit("questions", rows=len(kept), source=source, grader=name, why="the reward's own", seen=len(left_out),
             seconds=settings.grading_seconds)  # fmt: skip
        if questions and not kept:
            raise Stop("all_seen", f"Each of the {len(left_out)} test rows stands in the training data.", "Choose other rows.")
        return QuestionSet(kept, grader, name, len(left_out))
    except Stop as stop:
        reason = f"{stop.message} {stop.fix}"
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    emit("warning", code="no_grading", message=f"No answers will be graded: {reason}")
    return QuestionSet([])


def grade_start(model: Any, tokenizer: Any, chosen: QuestionSet, limit: int, seconds: float) -> list[Answer | None]:
    """What the model answers before training, graded in the event `eval` of step 0; [] where nothing will be graded."""
    if not chosen.grader or not chosen.questions:
        return []
    began = time.monotonic()
    answers: list[Answer | None] = []
    for at in range(0, len(chosen.questions), QUESTIONS_AT_ONCE):  # where the time ends, a random part has been asked
        answers += answer_all(model, tokenizer, chosen.questions[at : at + QUESTIONS_AT_ONCE], limit, began + seconds)
    evaluation = grade_contenders({"base": answers}, chosen, chosen.grader, time.monotonic() - began)
    if evaluation:
        row = evaluation.as_row("base")
        emit("eval", step=0, rows=len(evaluation.questions), **{name: row[name] for name in ("right", "low", "high", "cut")})
    return answers


def rewarded(rewards: Rewards, answers: Sequence[Answer], questions: Sequence[Question]) -> list[float]:
    """The whole reward of answers to held-out prompts."""
    made = [rewards.as_completion(answer.text)._replace(cut=answer.cut) for answer in answers]
    return rewards.of(made, questions).rewards


def warn_of_hacking(evaluation: Evaluation | None, rewards: Rewards, first: float, last: float) -> dict[str, Any] | None:
    """The reward on held-out prompts, before and after, and a warning with examples where it rose and the grades did not.

    first, last: the mean reward of the first and the last steps of training.
    """
    if evaluation is None:
        return None
    names = list(evaluation.answers)
    before, after = (rewarded(rewards, evaluation.answers[name], evaluation.questions) for name in names)
    gained, graded = paired_difference(before, after), evaluation.difference(names[1])
    found = {"before": sum(before) / len(before), "after": sum(after) / len(after), "low": gained.low, "high": gained.high}
    rose = gained.low > 0 or (last - first > 0.05 and gained.mean > 0)
    if rose and graded.low <= 0 and graded.mean < gained.mean / 4:
        scores = {name: evaluation.grades[name].scores for name in names}
        worse = [place for place in range(len(before)) if after[place] > before[place] and scores[names[1]][place] < 1]
        examples = [as_example(evaluation, place, after[place]) for place in worse[:EXAMPLES]]
        message = (
            f"The reward rose on held-out prompts ({found['before']:.2f} → {found['after']:.2f}), and the share that is right did "
            f"not ({evaluation.right(names[0]):.0%} → {evaluation.right(names[1]):.0%}): the model learns to please the reward. "
            "Read the examples, and weigh what grades more."
        )
        emit("warning", code="reward_hacked", message=message, examples=examples)
    return {name: round(value, 4) for name, value in found.items()}


def as_example(evaluation: Evaluation, place: int, reward: float) -> Mapping[str, Any]:
    question, name = evaluation.questions[place], list(evaluation.answers)[1]
    answer = evaluation.answers[name][place].text
    return {"prompt": question.asked, "answer": answer, "reference": question.reference, "reward": round(reward, 4)}
