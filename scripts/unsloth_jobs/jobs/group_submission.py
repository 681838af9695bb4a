"""Start the runs of an approved comparison: each once, no more at once than was agreed, whatever fails on the way."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..errors import HUB, INTERRUPTED, Problem, UserError
from . import records, submission
from .group import Group, GroupRun, without_start
from .hf import Unanswered
from .job import FAILED, Backend, Job
from .plan import Plan, Submission


@dataclass(frozen=True)
class RunStart:
    """What became of starting a run. job: None where it waits for others, or was not started; existed: it was there already;
    problem: why it was not started.
    """

    run: GroupRun
    job: Job | None = None
    existed: bool = False
    problem: Problem | None = None

    @property
    def waits(self) -> bool:
        return self.job is None and self.problem is None


def find_job_of(backend: Backend, plan: Plan) -> Job | None:
    """The job that a plan's approval was used up by. One on this machine that is done is not run again by a group."""
    if plan.where == "local" and (run := records.run_of_plan(plan.plan_id)):
        with contextlib.suppress(UserError):
            job = backend.inspect(run["job_id"])
            return job if job.stage not in FAILED else None
    return backend.find(plan)


@dataclass(frozen=True)
class Numbered:
    """The group, each run under the number that it is started by; there: the job of a run that was started already; spent:
    what ended jobs of each run have cost, those of earlier starts included; problems: what became of those.
    """

    group: Group
    there: dict[str, Job]
    spent: dict[str, float]
    problems: tuple[Problem, ...]

    @property
    def most_usd(self) -> float:
        """What all can cost: what was spent, and the ceilings of the runs that have not ended."""
        ended = {name for name, job in self.there.items() if job.ended}
        ceilings = sum(run.plan.max_usd for run in self.group.runs if run.name not in ended)
        return round(sum(self.spent.values()) + ceilings, 2)


def number_runs(backend: Backend, group: Group, approve: str | None, yes: bool) -> Numbered:
    """Look for earlier starts of each run (assign_number). Raises UserError."""
    approved = records.recall_group(approve) if approve else None
    known = {without_start(run.plan).plan_id: run.plan.plan_id for run in approved.runs} if approved else {}
    plans, problems = [], []
    there, spent = dict[str, Job](), dict[str, float]()
    for run in group.runs:
        plan, earlier = submission.assign_number(backend, run.plan, known.get(without_start(run.plan).plan_id), yes)
        plans.append(plan)
        problems += [Problem(one.code, one.severity, f"{run.name}: {one.message}", one.fix) for one in earlier]
        if job := find_job_of(backend, plan):
            there[run.name] = job
        starts = [replace(plan, start=number) for number in range(1, plan.start)]
        jobs = [*(backend.find(one) for one in starts), job if job and job.ended else None]
        spent[run.name] = sum(cost_of(one, plan) for one in jobs if one)
    return Numbered(group.with_plans(plans), there, spent, tuple(problems))


def cost_of(job: Job, plan: Plan) -> float:
    """Dollars of a job that has ended; its ceiling where nothing says how long it ran."""
    if job.stage == "DELETED":
        outcome = (records.run_of(job.job_id) or {}).get("outcome") or {}
        return float(outcome.get("spent_usd", plan.max_usd) or 0.0)
    return job.elapsed_s / 60 * plan.usd_per_minute


def start_runs(
    backend: Backend, group: Group, approved: str, room_usd: float = math.inf, patience_s: float = records.LOCK_S
) -> list[RunStart]:
    """Start what is approved and not started yet, as far as the others leave room for it.

    The approval is on record before the first job is asked for. A run that the Hub refuses ends it: those after it would
    be refused, too, and the same command goes on. One whose answer was lost is passed over, and never asked for again
    without being looked for. room_usd: what those that are started now may cost. Raises UserError where another command is
    at it for longer than patience_s, or nothing can be recorded.
    """
    with records.one_at_a_time(group.group_id, patience_s):
        records.remember_group(group)
        records.update_group(group.group_id, approved=approved, ended=False)
        return list(started_in_turn(backend, group, approved, room_usd))


def started_in_turn(backend: Backend, group: Group, approved: str, room_usd: float) -> Iterator[RunStart]:
    found = {run.name: find_job_of(backend, run.plan) for run in group.runs}
    running = sum(job is not None and not job.ended for job in found.values())
    refused: Problem | None = None
    before = ""
    for run in group.runs:
        job = found[run.name]
        if job:
            before = job.job_id if not job.ended else before
            record_found(job, run, group, approved)
            yield RunStart(run, job, existed=True)
        elif refused:
            yield RunStart(run, problem=refused)
        elif group.where == "hf" and (running >= group.at_once or run.plan.max_usd > room_usd):
            yield RunStart(run)
        else:
            one = start_run(backend, run, group, approved, before if group.where == "local" else "")
            is_paid = one.job is not None or is_unclear(one.problem)
            running, room_usd = running + is_paid, room_usd - is_paid * run.plan.max_usd
            before = one.job.job_id if one.job else before
            refused = one.problem if one.problem and not is_unclear(one.problem) else None
            yield one


def start_run(backend: Backend, run: GroupRun, group: Group, approved: str, after: str) -> RunStart:
    estimate = records.recall_estimate(run.plan.run_key, run.plan.flavor)
    wanted = Submission(run.plan, approved, estimate, group.group_id, run.name, after)
    try:
        return RunStart(run, *submission.start(backend, wanted))
    except KeyboardInterrupt:
        return RunStart(run, problem=interrupted())
    except Unanswered as error:
        return RunStart(run, problem=error.problem)
    except UserError as error:
        return RunStart(run, problem=error.problem)


def interrupted() -> Problem:
    return Problem("interrupted", "error", "Interrupted before it was submitted.", "Repeat the same command: it goes on.")


def is_unclear(problem: Problem | None) -> bool:
    """Whether the run's job may exist without being known."""
    return problem is not None and problem.code == "submit_unclear"


def record_found(job: Job, run: GroupRun, group: Group, approved: str) -> None:
    """A job that another machine started, or whose record was lost, is put on record here."""
    submission.record_job(job, Submission(run.plan, approved, None, group.group_id, run.name))


def exit_code(starts: list[RunStart]) -> int:
    """0 where each run was started or waits for its turn."""
    problems = [one.problem for one in starts if one.problem]
    if not problems:
        return 0
    return INTERRUPTED if any(problem.code == "interrupted" for problem in problems) else HUB
