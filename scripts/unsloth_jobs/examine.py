"""Everything that can be known of a run before it is paid for: token, model, rows, masks, LoRA coverage."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, TypeVar

from huggingface_hub import HfApi

from . import hub, rows
from .errors import FAILED, HUB, Problem, UserError

T = TypeVar("T")
MIN_COVERAGE = 0.9
MIN_STOPPING = 0.99
MAX_DUPLICATES = 0.05
FEW_ROWS = 50
EXAMPLE = 80  # characters


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
    exit_code: int = FAILED  # where not ok: HUB if the Hub kept something from being looked at

    @property
    def ok(self) -> bool:
        return not any(problem.severity == "error" for problem in self.problems)


def examine(
    api: HfApi, template: ModuleType, settings: Any, limit: int, needs_token: bool, namespace: str | None = None
) -> Examination:
    """Look at token, model and data at once, then at what follows from them."""
    with ThreadPoolExecutor() as pool:
        identity = pool.submit(attempt, lambda: hub.whoami(api)) if needs_token else None
        model = pool.submit(attempt, lambda: hub.model(api, settings.base_model, settings.base_model_revision or None))
        revision = pool.submit(attempt, lambda: hub.dataset_revision(api, settings.dataset, settings.dataset_revision or None))
        (found_identity, *faults), (found_model, *more), (found_revision, *others) = (
            part.result() if part else (None,) for part in (identity, model, revision)
        )
    faults += more + others
    if found_identity:
        faults += attempt(lambda: hub.writable_namespace(found_identity, namespace))[1:]
    if found_model:
        faults += attempt(lambda: require_decoder(template, found_model))[1:]
    sample = None
    if not others:
        settings = replace(settings, dataset_revision=found_revision or "")
    if found_model and not others:
        settings = replace(settings, base_model_revision=found_model.revision or "")
        sample, *unreadable = attempt(lambda: rows.sample(api, template, settings, limit))
        faults += unreadable
    targets, coverage, lora_problems = lora(template, settings, found_model)
    told = dict.fromkeys(fault.problem for fault in faults)  # one bad token is refused at each look-up
    exit_code = HUB if any(fault.exit_code == HUB for fault in faults) else FAILED
    found = Examination(template, settings, found_identity, found_model, sample, targets, coverage, (), exit_code)
    problems = (*told, *lora_problems, *judged_owner(found, namespace), *judged_model(found), *judged_rows(found))
    return replace(found, problems=problems)


def attempt(look: Callable[[], T]) -> tuple[T] | tuple[None, UserError]:
    """What look returns, or None and the error that it ends with, so that one fault does not hide the others."""
    try:
        return (look(),)
    except UserError as error:
        return None, error


def require_decoder(template: ModuleType, model: hub.Model) -> None:
    """Raises UserError where the template itself would refuse the model."""
    try:
        template.require_decoder(model.config)
    except template.Stop as stop:
        raise UserError(stop.code, f"{model.id}: {stop.message}", stop.fix) from stop


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


def judged_owner(found: Examination, namespace: str | None) -> list[Problem]:
    """Who pays. Only a hint, since no call tells the credit that is left: the Hub decides when the job is submitted."""
    identity = found.identity
    owner = identity and (namespace or identity.name)
    if identity is None or identity.pays(owner) or (owner != identity.name and owner not in identity.organizations):
        return []
    instead = " or ".join(f"--namespace {payer}" for payer in identity.payers)
    return [
        Problem(
            "no_billing",
            "warning",
            f"{owner} has no payment method.",
            (f"Let another pay: {instead}. Or add" if instead else "Add")
            + " a payment method or credits: https://huggingface.co/settings/billing",
        )
    ]


def judged_model(found: Examination) -> list[Problem]:
    if found.model is None or "vision_config" not in found.model.config:
        return []
    return [
        Problem(
            "vision_model",
            "warning",
            f"{found.model.id} also reads pictures; this run trains its language part, on text.",
            "Choose a text-only model unless you need the pictures later: LiquidAI/LFM2.5-1.2B-Instruct, for one.",
        )
    ]


def judged_rows(found: Examination) -> list[Problem]:
    """What the sampled rows say, beyond what could not be looked at."""
    sample = found.sample
    if sample is None:
        return []
    problems = [*judged_answers(sample), *judged_texts(sample, found.settings.dataset)]
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


def judged_answers(sample: rows.Sample) -> list[Problem]:
    """Whether the rows teach something, and to stop."""
    why = ", ".join(f"{count} × {reason}" for reason, count in sample.lost.items())
    longer = (
        f"To keep all answers whole: --max-seq-length {sample.length_for(1.0)}; "
        f"95% of them: --max-seq-length {sample.length_for(0.95)}."
    )
    cut_away = "answer cut away" in sample.lost
    if not sample.kept:
        return [
            Problem(
                "nothing_supervised",
                "error",
                f"Not one token of the sampled rows would be learned: {why}.",
                longer
                if cut_away
                else "Look at the rows' answers, or name their columns: --prompt-column, --completion-column.",
            )
        ]
    problems = []
    if sample.lost:
        problems.append(
            Problem(
                "rows_lost",
                "warning",
                f"{sample.rows_without_answer} of {sample.sampled} rows teach nothing: {why}.",
                f"They will be left out. {longer}" if cut_away else "They will be left out.",
            )
        )
    if sample.stopping < MIN_STOPPING:
        endless = [row for row in sample.kept if not row.stops]
        cut = sum(row.needed > row.trained for row in endless)
        problems.append(
            Problem(
                "no_eos",
                "warning",
                f"{len(endless)} of {len(sample.kept)} rows do not teach the model to stop; {cut} of them are cut at "
                f"{sample.max_length} tokens.",
                longer if cut else "Choose a model whose chat template closes each answer with a token of its own.",
            )
        )
    return problems


def judged_texts(sample: rows.Sample, dataset: str) -> list[Problem]:
    """Whether the rows are what they seem: each one once, and each answer as it stands."""
    problems = []
    if sample.duplicates > MAX_DUPLICATES * sample.sampled:
        problems.append(
            Problem(
                "duplicates",
                "warning",
                f"{sample.duplicates} of the first {sample.sampled} rows stand there before: they are learned more than once.",
                f"Keep one of each: awk '!seen[$0]++' {dataset} > unique.jsonl"
                if dataset.endswith(".jsonl")
                else "Keep one of each, or train fewer passes: --num-epochs 1.",
            )
        )
    if sample.changed:
        example = sample.changed[0].strip()[:EXAMPLE]
        problems.append(
            Problem(
                "answers_changed",
                "warning",
                f"In {len(sample.changed)} of {sample.sampled} rows the model's chat template leaves out or changes a part of an "
                f"answer, so it is not learned as it stands: {example!r}.",
                "Fine for thoughts of earlier turns, which most templates drop. To learn them, end each row with the turn that "
                "holds them, or choose a model whose template keeps them.",
            )
        )
    return problems
