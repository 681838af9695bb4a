"""Whether a plan may be started: the approval, the ceiling, and the estimate's word on its timeout."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from ..errors import APPROVAL, USAGE, Problem, UserError
from ..estimate.flavors import Flavor
from .plan import Plan


def require_approval(plan: Plan, approve: str | None, earlier: Plan | None) -> None:
    """Raises UserError (approval) unless `approve` is this plan's id, and says what has changed since it was shown."""
    if approve == plan.plan_id:
        return
    if earlier is None:
        raise UserError(
            "unknown_plan",
            f"No plan {approve} was shown on this machine.",
            "Run the command without --approve and approve the id it prints.",
            APPROVAL,
        )
    changed = [
        f"{item.name}: {getattr(earlier, item.name)} → {getattr(plan, item.name)}"
        for item in dataclasses.fields(Plan)
        if getattr(earlier, item.name) != getattr(plan, item.name)
    ]
    raise UserError(
        "plan_changed",
        "What was approved is no longer what would run: " + "; ".join(changed),
        f"Look at the new plan, then: --approve {plan.plan_id}",
        APPROVAL,
    )


def require_budget(plan: Plan, max_usd: float | None) -> None:
    if max_usd is None or plan.max_usd <= max_usd:
        return
    affordable_s = Flavor(plan.flavor, plan.usd_per_minute).affordable_s(max_usd, plan.attempts)
    shorter = f"--timeout {affordable_s // 60}m at most, " if affordable_s else ""
    raise UserError(
        "over_budget",
        f"On {plan.flavor} the run can cost up to ${plan.max_usd:.2f}, more than the ${max_usd:.2f} allowed.",
        f"Pass {shorter}a cheaper --flavor, or a higher --max-usd.",
        APPROVAL,
    )


def time_problems(plan: Plan, estimate: dict[str, Any] | None) -> list[Problem]:
    """What the estimate says of the timeout. Raises UserError where not even the best case ends before it."""
    if estimate is None or plan.smoke:
        return []
    low, high, limit = (f"{hours:.1f} h" for hours in (estimate["hours_low"], estimate["hours_high"], plan.timeout_s / 3600))
    enough = math.ceil(estimate["hours_high"] * 60 / 10) * 10
    fix = f"Pass --timeout {enough}m; a job that reaches its timeout is ended."
    if plan.timeout_s < estimate["hours_low"] * 3600:
        raise UserError(
            "timeout_short", f"The run takes {low} to {high} on {plan.flavor}, and would be ended after {limit}.", fix, USAGE
        )
    if plan.timeout_s < estimate["hours_high"] * 3600:
        return [
            Problem(
                "timeout_tight", "warning", f"The run may take up to {high} on {plan.flavor}, and is ended after {limit}.", fix
            )
        ]
    return []


def require_amount(max_usd: float | None) -> None:
    """Raises UserError unless a ceiling, where there is one, is a sum that something can be over: nothing is over nan."""
    if max_usd is not None and not (math.isfinite(max_usd) and max_usd >= 0):
        raise UserError(
            "bad_ceiling", f"--max-usd {max_usd} is not an amount of money.", "Pass a number, such as --max-usd 5.", USAGE
        )
