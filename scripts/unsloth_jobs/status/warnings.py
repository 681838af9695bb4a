"""What is unusual about a job that has not failed, a long wait included."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from ..errors import Problem
from ..estimate.flavors import LOCAL, Flavor
from ..events import Point, Summary
from ..jobs.job import Job
from ..jobs.plan import SCRIPTS, Plan
from ..output import dollars, duration

SILENT_S = 600  # without an event
SLOW = 3  # times the longest pause between steps so far, which is silence of a run whose steps are long
LEAST_POINTS = 20  # training losses before a curve is called flat
LEAST_FALL = 0.005  # of the loss: what a run learns at least


def warnings(job: Job, summary: Summary, plan: Plan | None, estimate: dict[str, Any] | None = None) -> list[Problem]:
    """What to tell of a run before it fails or is wasted. plan, estimate: None for a job that was submitted elsewhere."""
    found = [
        silence_warning(job, summary, plan),
        loss_warning(summary),
        flat_loss_warning(summary, plan),
        other_rows(job, summary, estimate),
    ]
    return [warning for warning in found if warning and job.stage in ("RUNNING", "COMPLETED")]


def silence_warning(job: Job, summary: Summary, plan: Plan | None) -> Problem | None:
    """A running job whose script prints events and has not for long."""
    if job.stage != "RUNNING":
        return None
    if summary.heard is not None:
        quiet = job.now.timestamp() - summary.heard
    elif plan and plan.run_key and not summary.last:  # a template that has not begun to print them
        quiet = job.elapsed_s
    else:
        return None
    times = [point.time for point in summary.curve.loss if point.time is not None]
    usual = max((after - before for before, after in pairwise(times)), default=0.0)
    if quiet < max(SILENT_S, SLOW * usual):
        return None
    curves = f" and at its curves ({plan.dashboard_url}): the log alone may have stalled" if plan and plan.dashboard_url else ""
    return Problem(
        "silent",
        "warning",
        f"No event for {quiet / 60:.0f} minutes, while each minute is billed.",
        f"Look at the end of its log, logs.py {job.job_id} --tail 20{curves}. If nothing moves, end it: "
        f"status.py {job.job_id} --cancel",
    )


def loss_warning(summary: Summary) -> Problem | None:
    newest = [points[-1] for points in (summary.curve.loss, summary.curve.eval_loss) if points]
    wrong = next((point for point in newest if not math.isfinite(point.value)), None)
    if wrong is None:
        return None
    return Problem(
        "loss_not_finite",
        "warning",
        f"The loss at step {wrong.step} is {wrong.value}: nothing is learned from there on.",
        "Cancel it, and submit again with a third of the --learning-rate; on a T4, with --flavor l4x1.",
    )


def flat_loss_warning(summary: Summary, plan: Plan | None) -> Problem | None:
    """A run that has learned nothing since it began. One that has learned and then levels off is a healthy end.

    The held-out loss tells, where the base model was evaluated too: the same rows each time. The training loss differs
    by its rows from step to step: without evaluations, flat is only what hardly moves at all.
    """
    if summary.curve.reward:  # whose loss is about 0 whatever is learned; such a run ends by itself
        return None
    losses = [point.value for point in summary.curve.loss if math.isfinite(point.value)]
    resumed = plan is not None and "--resume" in plan.arguments  # and has learned before this log begins
    if len(losses) < LEAST_POINTS or resumed or (plan and plan.smoke):
        return None
    evaluations = summary.curve.eval_loss
    if evaluations and evaluations[0].step == 0:
        if not has_not_fallen(evaluations):
            return None
        seen = f"The held-out loss is {evaluations[-1].value:.4f}, and was {evaluations[0].value:.4f} before training."
    else:
        if summary.curve.loss[0].step > LEAST_POINTS or min(losses) < max(losses) * (1 - LEAST_FALL):
            return None
        seen = f"The training loss has been {losses[-1]:.4f} from the first of {len(losses)} measurements on."
    return Problem(
        "loss_flat",
        "warning",
        f"{seen} The run has learned nothing so far.",
        "Look at the learned part in check.py. If that is right: three times the --learning-rate, or it is known already.",
    )


def other_rows(job: Job, summary: Summary, estimate: dict[str, Any] | None) -> Problem | None:
    """A job whose first rows have other tokens than those that its estimate was made from."""
    expected, found = (estimate or {}).get("digest"), summary.event("masks").get("digest")
    if not expected or not found or expected == found:
        return None
    return Problem(
        "rows_differ",
        "warning",
        "The job's first rows are not the ones that its estimate was made from: other rows, another tokenizer, or another "
        "chat template.",
        f"Compare the sample in its log (logs.py {job.job_id}) with what check.py shows. Where they differ, end it: "
        f"status.py {job.job_id} --cancel",
    )


def has_not_fallen(evaluations: tuple[Point, ...]) -> bool:
    """Whether no evaluation is better than the first one, the base model's. False as long as there is no second."""
    base, later = evaluations[0].value, [point.value for point in evaluations[1:]]
    return bool(later) and all(value > base * (1 - LEAST_FALL) for value in later)


LONG_S = 600
OFFERED = 3


@dataclass(frozen=True)
class Alternative:
    """A flavor that holds the run. usd_low, usd_high: what the whole run was estimated to cost there, where it was."""

    flavor: str
    usd_per_hour: float
    usd_low: float | None = None
    usd_high: float | None = None

    def __str__(self) -> str:
        price = f"${self.usd_per_hour:.2f} an hour"
        if self.usd_low is not None and self.usd_high is not None:
            price += f", {dollars(self.usd_low)} to {dollars(self.usd_high)} for the run"
        return f"{self.flavor} ({price})"


def waited_s(job: Job) -> float | None:
    """Seconds since a job that has no machine yet was submitted; None for any other, and for one that waits here for its turn."""
    if job.stage != "SCHEDULING" or job.created is None or job.flavor == LOCAL.name:
        return None
    return max((job.now - job.created).total_seconds(), 0.0)


def alternatives(
    flavors: Iterable[Flavor], plan: Plan, estimate: Callable[[str], dict[str, Any] | None]
) -> tuple[Alternative, ...]:
    """The cheapest other flavors that hold a run. estimate: what estimate.py said of a flavor that fits, by its name.

    Where it said nothing, a flavor holds the run that has one GPU of at least the same memory and number formats.
    """
    flavors = [flavor for flavor in flavors if flavor.gpus == 1]
    needs_bf16 = all(flavor.gpu.bf16 for flavor in flavors if flavor.name == plan.flavor and flavor.gpu)
    estimates = {flavor.name: found for flavor in flavors if (found := estimate(flavor.name))}

    def holds(flavor: Flavor) -> bool:
        if estimates:
            return flavor.name in estimates
        return flavor.gpu is not None and flavor.vram_gb >= plan.vram_gb > 0 and flavor.gpu.bf16 >= needs_bf16

    def offer(flavor: Flavor) -> Alternative:
        figures = estimates.get(flavor.name, {})
        return Alternative(flavor.name, round(flavor.usd_per_hour, 4), figures.get("usd_low"), figures.get("usd_high"))

    others = [offer(flavor) for flavor in flavors if flavor.name != plan.flavor and holds(flavor)]
    price = lambda one: one.usd_per_hour if one.usd_high is None else one.usd_high  # noqa: E731
    return tuple(sorted(others, key=price)[:OFFERED])


def wait_warning(job: Job, waited: float, plan: Plan | None, others: tuple[Alternative, ...]) -> Problem:
    """The warning about a wait of more than LONG_S."""
    fix = f"Waiting may still end. To give up: uv run {SCRIPTS / 'status.py'} {job.job_id} --cancel"
    if plan and others:
        moved = replace(plan, flavor=others[0].flavor).again()
        fix += f"; then elsewhere, for a plan to approve: {moved}"
    elsewhere = f" Also with room for it: {', '.join(map(str, others))}; the Hub does not say which is free." if others else ""
    return Problem(
        "waiting", "warning", f"It has waited {duration(waited)} for {job.flavor}, which is not billed.{elsewhere}", fix
    )
