"""Which questions base and tuned model answer once training is over, and by which rule the answers are graded."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from .columns import Format
from .contamination import seen_rows
from .dataset import load_rows
from .grader_fit import grader_misfit, propose_grader
from .graders import load_grader
from .graders_text import Grader
from .masks import Renderer
from .questions import Question, read_context, read_questions
from .report import Stop, emit
from .settings import EvidenceSettings
from .table_layout import FindFormat, find_layout, without_media

TEST_SPLITS = ("test", "validation", "train")  # of a test set on the Hub: the first of them that it has
SPARE = 2  # times as many rows are read as are graded: some are left out

Testing = TypeVar("Testing", bound=EvidenceSettings)


@dataclass(frozen=True)
class QuestionSet:
    """Questions that no training row asks, in random order. grader: None where no rule tells right from wrong."""

    questions: list[Question]
    grader: Grader | None = None
    grader_name: str = ""
    seen: int = 0  # rows left out because they stand in the training data


def choose_questions(
    settings: EvidenceSettings,
    train_rows: Iterable[Mapping[str, Any]],
    eval_rows: Any,
    tokenizer: Any,
    renderer: Renderer,
    layout: Format,
    format_of: FindFormat,
) -> QuestionSet:
    """From --eval-dataset or else from the rows held out. What is wrong with them is a warning: training is worth more."""
    try:
        rows, test_layout = read_test_rows(settings, format_of) if settings.eval_dataset else (eval_rows or [], layout)
        order = random.Random(settings.seed).sample(range(len(rows)), len(rows))
        some = [rows[place] for place in order[: SPARE * settings.max_graded]]
        questions = read_questions(some, tokenizer, renderer, test_layout, settings.max_seq_length)
        if settings.eval_dataset and not questions:
            raise Stop("no_questions", f"No row of {settings.eval_dataset} ends with an answer.", "Look at its columns.")
        return choose_grader(settings, questions, train_rows, layout)
    except Stop as stop:
        if stop.code == "all_seen" and not settings.eval_dataset and settings.grader == "auto":
            return QuestionSet(questions)  # nobody has asked for grades: answers are shown all the same
        reason = f"{stop.message} {stop.fix}"
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    emit("warning", code="no_grading", message=f"No answers will be graded: {reason}")
    return QuestionSet([])


def choose_grader(
    settings: EvidenceSettings,
    questions: list[Question],
    train_rows: Iterable[Mapping[str, Any]],
    layout: Format,
    hook: Grader | None = None,
) -> QuestionSet:
    """The questions with the script's own grader, the one that was asked for, or one that fits their references. Raises Stop."""
    references = [question.reference for question in questions]
    name, why = settings.grader, "asked for"
    if hook and name == "auto":
        name, why = "grade", "the script's own"
    elif name == "auto":
        proposed, why = propose_grader(references)
        name = proposed or "none"
    if name == "none" or not questions:
        emit("questions", rows=0, grader=None, why=why)
        return QuestionSet(questions)
    own = hook if name == "grade" else None
    grader = own or load_grader(name)
    if not own and (misfit := grader_misfit(name, references)):
        emit("warning", code="grader_misfit", message=misfit)
    kept, seen = unseen(questions, train_rows, layout)
    kept = kept[: settings.max_graded]
    source = settings.eval_dataset or "the rows held out"
    emit("questions", rows=len(kept), source=source, grader=name, why=why, seen=seen, seconds=settings.grading_seconds)
    if not kept:
        raise Stop("all_seen", f"Each of the {seen} test rows stands in the training data.", "Choose other rows.")
    return QuestionSet(kept, grader, name, seen)


def unseen(questions: list[Question], train_rows: Iterable[Mapping[str, Any]], layout: Format) -> tuple[list[Question], int]:
    """The questions that no training row asks, and how many others there are."""
    contexts = (context for row in train_rows if (context := read_context(row, layout)))
    seen = seen_rows([question.context for question in questions], contexts)
    left_out = {*seen.exactly, *seen.normalised}
    return [question for place, question in enumerate(questions) if place not in left_out], len(left_out)


def read_test_rows(settings: EvidenceSettings, format_of: FindFormat) -> tuple[Any, Format]:
    """The rows of --eval-dataset and how they are read. Raises Stop."""
    test = reading_test_set(settings)
    rows = load_rows(test)
    if not len(rows):
        raise Stop("no_rows", f"{settings.eval_dataset} has no rows.", "Choose another with --eval-dataset.")
    return without_media(rows), find_layout(rows, test, format_of)


def reading_test_set(settings: Testing) -> Testing:
    """The settings as they read the test set."""
    made = replace(
        settings,
        dataset=settings.eval_dataset,
        dataset_config=settings.eval_dataset_config,
        dataset_split=settings.eval_dataset_split,
        dataset_revision=settings.eval_dataset_revision,
    )
    if made.dataset_split or Path(os.path.expanduser(made.dataset)).exists():
        return made
    from datasets import get_dataset_split_names

    names = get_dataset_split_names(made.dataset, made.dataset_config or None, revision=made.dataset_revision or None)
    return replace(made, dataset_split=next((name for name in TEST_SPLITS if name in names), ""))
