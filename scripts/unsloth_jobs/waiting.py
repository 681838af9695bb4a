"""A job that waits for its machine: for how long, what else would hold it, and how to move there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from . import hardware
from .errors import Problem
from .hardware import Flavor
from .jobs import Job
from .output import dollars, duration
from .plan import SCRIPTS, Plan

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
    """Seconds since a job that has no machine yet was submitted; None for any other."""
    if job.stage != "SCHEDULING" or job.created is None:
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
    said = {flavor.name: found for flavor in flavors if (found := estimate(flavor.name))}

    def holds(flavor: Flavor) -> bool:
        if said:
            return flavor.name in said
        return flavor.gpu is not None and flavor.vram_gb >= plan.vram_gb > 0 and flavor.gpu.bf16 >= needs_bf16

    def offer(flavor: Flavor) -> Alternative:
        figures = said.get(flavor.name, {})
        return Alternative(flavor.name, round(flavor.usd_per_hour, 4), figures.get("usd_low"), figures.get("usd_high"))

    others = [offer(flavor) for flavor in flavors if flavor.name != plan.flavor and holds(flavor)]
    price = lambda one: one.usd_per_hour if one.usd_high is None else one.usd_high  # noqa: E731
    return tuple(sorted(others, key=price)[:OFFERED])


def too_long(job: Job, waited: float, plan: Plan | None, others: tuple[Alternative, ...]) -> Problem:
    """The warning about a wait of more than LONG_S."""
    fix = f"Waiting may still end. To give up: uv run {SCRIPTS / 'status.py'} {job.job_id} --cancel"
    if plan and others:
        moved = replace(plan, flavor=others[0].flavor).again()
        fix += f"; then elsewhere, for a plan to approve: {moved}"
    said = f" Also with room for it: {', '.join(map(str, others))}; the Hub does not say which is free." if others else ""
    return Problem("waiting", "warning", f"It has waited {duration(waited)} for {job.flavor}, which is not billed.{said}", fix)


def look_up(api: Any, plan: Plan, estimate: Callable[[str], dict[str, Any] | None]) -> tuple[Alternative, ...]:
    """alternatives, at today's prices."""
    return alternatives(hardware.current(api)[0], plan, estimate)
