"""From a plan to its job: the plan is shown, and started once it is approved."""

from __future__ import annotations

import math
import shlex
import sys
from dataclasses import asdict, dataclass, replace
from typing import Any

import typer
from huggingface_hub import HfApi
from rich.markup import escape

from ..errors import APPROVAL, USAGE, Problem, UserError
from ..output import people, print_json, show_problem
from . import approval, plan_text, preflight, records, submission
from .backends import backend_for
from .hf import PLAN_LABEL
from .job import Job
from .plan import Plan, Submission
from .planning import PreparedPlan


@dataclass(frozen=True)
class Approval:
    """How a command was told to go on. approve: a plan's id; max_usd: what the plan may cost."""

    approve: str | None
    yes: bool
    max_usd: float | None
    json: bool
    verbose: bool = False


def require_place(where: str, how: Approval) -> None:
    """Raises UserError (usage) where a command was told what it must not do."""
    if where not in ("hf", "local"):
        raise UserError("bad_place", f"--where is hf or local, not {where}.", "Pass --where hf or --where local.", USAGE)
    if how.yes and where == "hf" and how.max_usd is None:
        raise UserError("no_ceiling", "--yes starts a paid job without asking.", "Add --max-usd N.", USAGE)
    approval.require_amount(how.max_usd)


def start_approved(api: HfApi, prepared: PreparedPlan, how: Approval) -> tuple[Plan, Job, bool]:
    """The plan, its job, and whether it was there already. Raises UserError; without approval it ends the command (3)."""
    backend = backend_for(api, prepared.plan)
    made, earlier = submission.assign_number(backend, prepared.plan, how.approve, how.yes)
    prepared = replace(prepared, plan=made)
    preflight.require_unused(api, made, PLAN_LABEL)
    estimate = prepared.estimate or records.recall_estimate(made.run_key, made.flavor)
    if not how.json and not how.approve:
        show(prepared, estimate, how.verbose)
    problems = [*prepared.problems, *estimate_warnings(made), *approval.time_problems(made, estimate), *earlier]
    for problem in problems:
        show_problem(problem)
    approval.require_budget(made, how.max_usd)
    if how.approve:
        approval.require_approval(made, how.approve, records.recall_plan(how.approve))
    records.remember_plan(made)
    approved = approved_by(how)
    if not approved:
        if how.json:
            shown = {"plan_id": made.plan_id, "plan": asdict(made), "estimate": estimate, "approved": False}
            shown |= {"summary": plan_text.summarise(prepared, estimate)}
            print_json(shown | {"problems": [asdict(problem) for problem in problems]})
        else:
            people.print(f"\nNot started. To start exactly this:\n{escape(approving_command(made.plan_id))}", soft_wrap=True)
        raise typer.Exit(APPROVAL)
    return (made, *submission.start(backend, Submission(made, approved, estimate, *records.run_that_ends_in(made))))


def approving_command(plan_id: str) -> str:
    """The command that was typed, with the approval among its own options."""
    return shlex.join(["uv", "run", sys.argv[0], "--approve", plan_id, *sys.argv[1:]])


def approved_by(how: Approval) -> str:
    """What approves: a flag, or the person at a terminal, who is asked; "" where nothing does."""
    if how.approve or how.yes:
        return "--approve" if how.approve else "--yes"
    is_asked = not how.json and sys.stdin.isatty()
    return "asked" if is_asked and typer.confirm("\nStart it?", default=False) else ""


def show(prepared: PreparedPlan, estimate: dict[str, Any] | None, verbose: bool) -> None:
    lines = plan_text.summarise(prepared, estimate) | (plan_text.details(prepared.plan) if verbose else {})
    show_lines(plan_text.heading(prepared.plan), lines)


def show_lines(heading: str, lines: dict[str, str]) -> None:
    people.print(f"[bold]{heading}[/]")
    for name, value in lines.items():
        for number, line in enumerate(value.split("\n")):
            people.print(f"  {'' if number else name:14} {escape(line)}", soft_wrap=True)


def estimate_warnings(made: Plan) -> list[Problem]:
    """Whether an estimate was made of this run, but too long ago to vouch for it."""
    age = records.estimate_age_s(made.run_key)
    if not records.ESTIMATE_VALID_S < age < math.inf:
        return []
    message = f"The estimate of this run is {age / 3600:.0f} hours old, so its time and price may be out of date."
    return [Problem("estimate_stale", "warning", message, "Run estimate.py again with the same arguments.")]
