"""How the answers of base and tuned model will be graded once a run is over, before it is paid for."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from huggingface_hub import HfApi

from ..errors import Problem, UserError
from ..template import Template
from ..training.contamination import seen_rows
from ..training.dataset import held_out_of
from ..training.generation import LONGEST_ANSWER
from ..training.grader_fit import grader_misfit, propose_grader
from ..training.graders import load_grader
from ..training.question_set import reading_test_set
from ..training.questions import asked_and_answered, context_of
from ..training.report import Stop
from ..training.settings import TrainingSettings
from .prompts import PromptSample
from .sample import Sample
from .table import Table, fetch_table, reasons

CHARACTERS_PER_TOKEN = 4.0  # where a reference's tokens are not counted


@dataclass(frozen=True)
class Grading:
    """grader: None where nothing will be graded; why: it was chosen, or there is none; rows: questions at most;
    answer_tokens: of a reference, mean.
    """

    grader: str | None
    why: str
    rows: int = 0
    answer_tokens: float = 0.0
    source: str = ""


def examine_grading(
    api: HfApi, template: Template, settings: TrainingSettings, sample: Sample
) -> tuple[Grading | None, list[Problem]]:
    """The grading that the run will do, and what is wrong with it. None where the template knows no grading."""
    if not hasattr(settings, "grader"):
        return None, []
    training = list(read(template, sample))
    tested, rows, source = training, held_out_of(sample.rows or 0, settings), "the rows held out"
    problems: list[Problem] = []
    if settings.eval_dataset:
        try:
            table = fetch_test_set(api, template, settings)
        except UserError as error:
            return None, [error.problem]
        tested, rows, source = list(read(template, table)), table.rows or table.sampled, settings.eval_dataset
        if not tested:
            message = f"No row of {settings.eval_dataset} ends with an answer, so there is nothing to hold answers against."
            return None, [Problem("no_references", "error", message, "Add a column with the right answers, or leave it out.")]
        problems += seen_problem(tested, training, settings)
    references = [answer for _, answer in tested]
    name: str | None
    if settings.grader != "auto":
        name, why = settings.grader, "asked for"
    elif isinstance(sample, PromptSample):
        name, why = sample.verdict.get("grader"), "the reward's own"
    else:
        name, why = propose_grader(references)
    if name in (None, "none"):
        return Grading(None, why), problems
    try:
        if why != "the reward's own":  # which has been tried
            load_grader(name)
    except Stop as stop:
        return None, [*problems, Problem(stop.code, "error", stop.message, stop.fix)]
    if misfit := grader_misfit(name, references):
        fix = "Choose another --grader, or --grader none."
        problems.append(Problem("grader_misfit", "warning", misfit, fix))
    tokens = statistics.fmean(map(len, references)) / CHARACTERS_PER_TOKEN if references else 0.0
    return Grading(name, why, min(rows, settings.max_graded), min(tokens, LONGEST_ANSWER), source), problems


def fetch_test_set(api: HfApi, template: Template, settings: TrainingSettings) -> Table:
    """Raises UserError."""
    with reasons(template):
        test = reading_test_set(settings)
    return fetch_table(api, template, test, settings.max_graded)


def read(template: Template, table: Table) -> Iterable[tuple[str, str]]:
    """What each row asks and its answer; rows without one are left out."""
    for row in table.first:
        try:
            normal: dict[str, Any] = template.normalise_row(row, table.layout)
        except ValueError:
            continue
        if "text" in normal:
            continue
        asked, answer = asked_and_answered(normal)
        if answer.get("content") or answer.get("tool_calls"):
            yield context_of(asked), str(answer.get("content") or answer["tool_calls"])


def seen_problem(tested: list[tuple[str, str]], training: list[tuple[str, str]], settings: TrainingSettings) -> list[Problem]:
    """Test rows that stand among the training rows that were read."""
    seen = seen_rows([asked for asked, _ in tested], [asked for asked, _ in training])
    count = len(seen.exactly) + len(seen.normalised)
    if not count:
        return []
    message = f"{count} of {len(tested)} rows of {settings.eval_dataset} stand among the first {len(training)} training rows."
    fix = (
        "They are left out of the grading, as are those that stand among the rest. Better, take them out of the training rows."
    )
    return [Problem("test_rows_seen", "warning", message, fix)]
