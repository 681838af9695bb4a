"""submit.py where it compares: one plan of several runs, one approval, and what became of starting each."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from huggingface_hub import HfApi
from rich.markup import escape

from ..errors import APPROVAL, USAGE, Problem, UserError
from ..output import people, print_json, show_problem
from . import approval, records
from .backends import backend_for
from .group import Group, require_group_approval, require_group_budget
from .group_planning import Options, PreparedGroup, prepare_group
from .group_submission import Numbered, RunStart, exit_code, number_runs, start_runs
from .group_text import estimate_of, halving_saves, heading, run_as_json, runs_table, shared_lines
from .job import FAILED
from .plan import SCRIPTS
from .planning import RunRequest
from .starting import Approval, approved_by, approving_command, show_lines
from .variations import read_variations


def compare(api: HfApi, request: RunRequest, vary: list[str], file: Path | None, options: Options, how: Approval) -> None:
    """Show the plan of a comparison and, once it is approved, start its runs. Raises typer.Exit where not all were."""
    count, variations = read_variations(vary, file)
    made = prepare_group(api, request, count, variations, options)
    backend = backend_for(api, made.group.runs[0].plan)
    numbered = number_runs(backend, made.group, how.approve, how.yes)
    group = numbered.group
    made = made.with_group(group)
    if not how.json and not how.approve:
        show(made, numbered)
    problems = [*made.problems, *time_problems(group), *numbered.problems]
    for problem in problems:
        show_problem(problem)
    require_group_budget(group, numbered.most_usd, how.max_usd)
    if how.approve:
        require_group_approval(group, how.approve, records.recall_group(how.approve))
    records.remember_group(group)
    for run in group.runs:
        records.remember_plan(run.plan)
    approved = approved_by(how)
    if not approved:
        refuse(made, numbered, problems, how)
    starts = start_runs(backend, group, approved)
    report(group, starts, how.json)
    if code := exit_code(starts):
        raise typer.Exit(code)


def time_problems(group: Group) -> list[Problem]:
    """What the estimates say of the timeouts; of several alike, the first. Raises UserError where a run cannot end in time."""
    found: dict[str, Problem] = {}
    for run in group.runs:
        try:
            for problem in approval.time_problems(run.plan, estimate_of(run.plan)):
                found.setdefault(
                    problem.code, Problem(problem.code, problem.severity, f"{run.name}: {problem.message}", problem.fix)
                )
        except UserError as error:
            raise UserError(error.problem.code, f"{run.name}: {error.problem.message}", error.problem.fix, USAGE) from error
    return list(found.values())


def show(made: PreparedGroup, numbered: Numbered) -> None:
    show_lines(heading(made.group), shared_lines(made, numbered))
    people.print(runs_table(made))


def refuse(made: PreparedGroup, numbered: Numbered, problems: list[Problem], how: Approval) -> None:
    group = made.group
    if how.json:
        pairs = zip(group.runs, made.prepared, strict=True)
        plan = {"runs": [run_as_json(*pair) for pair in pairs], "max_usd": numbered.most_usd, "at_once": group.at_once}
        plan |= {"halving": group.halving, "metric": group.metric, "where": group.where, "namespace": group.namespace}
        plan |= {"halving_saves": saving.as_json() if (saving := halving_saves(group)) else None}
        shown: dict[str, Any] = {"plan_id": group.group_id, "group_id": group.group_id, "plan": plan, "approved": False}
        print_json(shown | {"summary": shared_lines(made, numbered), "problems": [asdict(one) for one in problems]})
    else:
        command = escape(approving_command(group.group_id))
        people.print(f"\nNot started. To start exactly these {len(group.runs)} runs:\n{command}", soft_wrap=True)
    raise typer.Exit(APPROVAL)


def report(group: Group, starts: list[RunStart], json: bool) -> None:
    look = f"uv run {SCRIPTS / 'status.py'} {group.group_id}"
    missing = [one for one in starts if one.problem]
    waiting = [one for one in starts if one.waits]
    if json:
        print_json(
            {
                "group_id": group.group_id,
                "plan_id": group.group_id,
                "approved": True,
                "max_usd": group.max_usd,
                "jobs": [start_as_json(one) for one in starts],
                "not_submitted": [one.run.name for one in missing],
                "waiting": [one.run.name for one in waiting],
                "problems": [asdict(one) for one in dict.fromkeys(one.problem for one in missing) if one],
                "next": look,
            }
        )
        return
    for one in starts:
        people.print(f"  {escape(one.run.name)}: {start_line(one)}", soft_wrap=True)
    for problem in dict.fromkeys(one.problem for one in missing):
        if problem:
            show_problem(problem)
    if missing:
        rest = f"{len(missing)} of {len(starts)} runs were not submitted. The same command goes on, and pays for none twice."
        people.print(f"\n{rest}", soft_wrap=True)
    if failed := [one.run.name for one in starts if one.existed and one.job and one.job.stage in FAILED]:
        again = "This approval is used up for them; the same command without it plans them again."
        people.print(f"\nEnded without a result: {escape(', '.join(failed))}. {again}", soft_wrap=True)
    people.print(f"\nHow they go: {escape(look)}", soft_wrap=True)


def start_line(one: RunStart) -> str:
    if one.job:
        there = f", there already ({one.job.stage})" if one.existed else ""
        return f"[green]{one.job.job_id}[/]{there}"
    return "waits for its turn" if one.waits else "[red]not submitted[/]"


def start_as_json(one: RunStart) -> dict[str, Any]:
    plan, job = one.run.plan, one.job
    return {
        "name": one.run.name,
        "plan_id": plan.plan_id,
        "job_id": job and job.job_id,
        "url": job and job.url,
        "stage": job.stage if job else "WAITING" if one.waits else "NOT_SUBMITTED",
        "existed": one.existed,
        "flavor": plan.flavor,
        "timeout_s": plan.timeout_s,
        "max_usd": plan.max_usd,
        "model_url": plan.model_url,
        "dashboard_url": plan.dashboard_url,
    }
