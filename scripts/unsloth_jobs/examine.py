"""Everything that can be known of a run before it is paid for: token, model, rows, masks, LoRA coverage."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, TypeVar

from huggingface_hub import HfApi

from . import hub, rows
from .errors import Problem, UserError

T = TypeVar("T")
MIN_COVERAGE = 0.9
FEW_ROWS = 50


@dataclass(frozen=True)
class Examination:
    """What was found; a part that could not be looked at is None, and `problems` says why."""

    template: ModuleType
    settings: Any
    identity: hub.Identity | None
    model: hub.Model | None
    sample: rows.Sample | None
    targets: list[str]
    coverage: float
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        return not any(problem.severity == "error" for problem in self.problems)


def examine(api: HfApi, template: ModuleType, settings: Any, limit: int, needs_token: bool) -> Examination:
    """Look at token, model and data at once, then at what follows from them."""
    with ThreadPoolExecutor() as pool:
        identity = pool.submit(attempt, lambda: hub.whoami(api)) if needs_token else None
        model = pool.submit(attempt, lambda: hub.model(api, settings.base_model, settings.base_model_revision or None))
        revision = pool.submit(attempt, lambda: hub.dataset_revision(api, settings.dataset, settings.dataset_revision or None))
        found_identity = identity.result() if identity else None
        found_model, found_revision = model.result(), revision.result()
    problems = [value for value in (found_identity, found_model, found_revision) if isinstance(value, Problem)]
    if not isinstance(found_revision, Problem):
        settings = replace(settings, dataset_revision=found_revision or "")
    sample = None
    if not isinstance(found_model, Problem) and not isinstance(found_revision, Problem):
        settings = replace(settings, base_model_revision=found_model.revision or "")
        sample = attempt(lambda: rows.sample(template, settings, limit))
        if isinstance(sample, Problem):
            problems.append(sample)
    model_or_none = None if isinstance(found_model, Problem) else found_model
    targets, coverage, lora_problems = lora(template, settings, model_or_none)
    found = Examination(
        template,
        settings,
        None if isinstance(found_identity, Problem) else found_identity,
        model_or_none,
        None if isinstance(sample, Problem) else sample,
        targets,
        coverage,
        (),
    )
    return replace(found, problems=(*problems, *lora_problems, *judged(found, needs_token)))


def attempt(look: Callable[[], T]) -> T | Problem:
    """What look returns, or the problem that it ends with, so that one fault does not hide the others."""
    try:
        return look()
    except UserError as error:
        return error.problem


def lora(template: ModuleType, settings: Any, model: hub.Model | None) -> tuple[list[str], float, list[Problem]]:
    """The modules that get an adapter, the share of the possible LoRA that is, and what is wrong with it."""
    if model is None:
        return [], 0.0, []
    try:
        targets = template.lora_targets(model.linears, settings.target_modules)
    except template.Stop as stop:
        return [], 0.0, [Problem(stop.code, "error", stop.message, stop.fix)]
    reached = [name for name in model.linears if template.leaf(name) in targets]
    coverage = template.coverage(model.linears, reached)
    if coverage >= MIN_COVERAGE:
        return targets, coverage, []
    return (
        targets,
        coverage,
        [
            Problem(
                "low_coverage",
                "warning",
                f"These modules hold {coverage:.0%} of the LoRA that the model could have.",
                "Leave --target-modules out, to adapt each linear layer.",
            )
        ],
    )


def judged(found: Examination, needs_token: bool) -> list[Problem]:
    """What the figures say, beyond what could not be looked at."""
    problems = []
    if needs_token and found.identity and not found.identity.can_pay and not any(found.identity.organizations.values()):
        problems.append(
            Problem(
                "no_billing",
                "warning",
                f"{found.identity.name} has no payment method.",
                "Add one, or claim free credits: https://huggingface.co/settings/billing",
            )
        )
    sample = found.sample
    if sample is None:
        return problems
    if sample.supervised_fraction == 0:
        problems.append(
            Problem(
                "nothing_supervised",
                "error",
                "Not one token of the sampled rows would be learned.",
                "Look at the rows' answers, or pass a larger --max-seq-length.",
            )
        )
    elif sample.rows_without_answer:
        why = ", ".join(f"{count} × {reason}" for reason, count in sample.lost.items())
        problems.append(
            Problem(
                "rows_lost",
                "warning",
                f"{sample.rows_without_answer} of {sample.sampled} rows teach nothing: {why}.",
                f"They will be left out. To keep all answers: --max-seq-length {sample.percentile(1.0)}"
                if "answer cut away" in sample.lost
                else "They will be left out.",
            )
        )
    if sample.rows is not None and sample.rows < FEW_ROWS:
        problems.append(
            Problem(
                "few_rows",
                "warning",
                f"The data set has {sample.rows} rows.",
                "A few hundred good rows teach a style; fewer are mostly learned by heart.",
            )
        )
    if sample.rows is None:
        problems.append(
            Problem(
                "rows_unknown",
                "warning",
                "The data set does not say how many rows it has.",
                "Pass --num-samples N to bound the run, and with it its cost.",
            )
        )
    return problems
