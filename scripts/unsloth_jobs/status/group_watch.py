"""What is done to a comparison while it runs: worse runs are ended, waiting ones started, and a ceiling kept for all."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace

from rich.live import Live

from ..errors import HUB, UserError
from ..jobs import records
from ..jobs.backends import backend_for, find_job
from ..jobs.group_submission import start_runs
from ..lookup import client
from ..output import diagnostics, dollars, people, show_problem
from .group import GroupStatus, RunStatus, fetch_group, remember_group, tokens_at
from .group_view import as_lines, counted
from .watch import END_WITHIN_S, PATIENTLY, end_job, reason_to_cancel, request_cancel

STUCK_AFTER = 3  # looks in which nothing runs and nothing changes: what waits was refused, or has no room under the ceiling
BUSY_S = 0.5  # for another command that sees to the same comparison


def see_to(status: GroupStatus, room_usd: float = math.inf) -> GroupStatus:
    """End the runs that were found worse once they have saved, and start those whose turn it is; the state after that.

    Of two commands that look at once, one does it. room_usd: what waiting runs may still cost.
    """
    remember_group(status)
    asked = [run for run in status.runs if is_to_be_ended(status, run)]
    for run in asked:
        if run.status and (problem := request_cancel(find_job(run.status.job.job_id))):
            show_problem(problem)
    started = start_waiting(status, room_usd) if wants_start(status) else False
    return fetch_group(status.group_id, before=status) if asked or started else status


def is_to_be_ended(status: GroupStatus, run: RunStatus) -> bool:
    """Whether a run that was found worse has saved what it had learned by then. One that was gone on with afterwards stays."""
    decision, summary = status.stopped.get(run.name), run.summary
    if decision is None or not run.is_running or summary is None or run.is_approved_alone:
        return False
    pushes = run.plan is None or bool(run.plan.output_repo)
    saved = summary.saves[-1].step if pushes and summary.saves else None if pushes else summary.kept
    return saved is not None and (tokens_at(summary.tokens, saved) or 0.0) >= decision.tokens


def wants_start(status: GroupStatus) -> bool:
    """Whether runs wait, as the approved plan says that they do, and one of them can start."""
    group = status.group
    if group is None or not status.approved or status.is_ended or group.where == "local" or group.at_once >= len(group.runs):
        return False
    waiting = any(run.status is None for run in status.runs)
    return waiting and sum(run.is_running for run in status.runs) < group.at_once


def start_waiting(status: GroupStatus, room_usd: float) -> bool:
    """Whether a run was started. What the Hub refuses is said, and asked for again at the next look."""
    if status.group is None:
        return False
    backend = backend_for(client.connect(), status.group.runs[0].plan)
    try:
        starts = start_runs(backend, status.group, status.approved, room_usd, patience_s=BUSY_S)
    except UserError as error:
        if error.problem.code != "being_submitted":
            show_problem(replace(error.problem, severity="warning"))
        return False
    for one in starts:
        if one.problem:
            show_problem(replace(one.problem, severity="warning", message=f"{one.run.name}: {one.problem.message}"))
        elif one.job and not one.existed:
            diagnostics.print(f"Started: {one.run.name} ({one.job.job_id})", markup=False)
    return any(one.job and not one.existed for one in starts)


def cancel_group(status: GroupStatus) -> None:
    """End every run that has not ended, and start none that waits. Raises UserError where one's end was not confirmed; the
    others are ended first.
    """
    keep_from_starting(status)
    problem: UserError | None = None
    for run in status.runs:
        if run.is_running and run.status:
            try:
                end_job(find_job(run.status.job.job_id), END_WITHIN_S)
            except UserError as error:
                problem = error
    if problem:
        raise problem


def keep_from_starting(status: GroupStatus) -> None:
    if status.group:
        records.update_group(status.group_id, ended=True)


@dataclass
class GroupGuard:
    """Keeps a ceiling for all runs together, as Guard does for one: each is ended after the last checkpoint before it."""

    max_usd: float
    margin_s: float
    reasons: dict[str, str] = field(default_factory=dict)

    def room_usd(self, status: GroupStatus) -> float:
        """What runs that wait may cost: those that run may use their own ceilings up."""
        return self.max_usd - sum(run.ceiling_usd for run in status.runs if run.status)

    def enforce(self, status: GroupStatus) -> None:
        running = [run for run in status.runs if run.is_running and run.status and run.stage != "SCHEDULING"]
        usd_per_minute = sum(run.status.usd_per_minute or 0.0 for run in running if run.status)
        if not usd_per_minute:
            return
        # They are billed by the minute: one that has begun may count whole.
        left_s = math.floor((self.max_usd - status.spent_usd) / usd_per_minute) * 60
        for run in running:
            if run.status is None:
                continue
            why = self.reasons.get(run.name) or reason_to_cancel(left_s, run.status.summary, self.margin_s)
            if not why:
                continue
            if not self.reasons:
                keep_from_starting(status)
            if run.name not in self.reasons:
                diagnostics.print(f"{run.name} is ended: {why} --max-usd {self.max_usd:g} was allowed for all.", markup=False)
            self.reasons[run.name] = why
            request_cancel(find_job(run.status.job.job_id))


class GroupWatchInterrupted(Exception):
    """The watching was stopped by Ctrl-C; `status` is what it saw last."""

    def __init__(self, status: GroupStatus):
        super().__init__()
        self.status = status


def watch_group(status: GroupStatus, interval: float, max_usd: float | None) -> GroupStatus:
    """Show a comparison until all its runs have ended, and see to it meanwhile. Raises GroupWatchInterrupted on Ctrl-C."""
    guard = GroupGuard(max_usd, (PATIENTLY + 1) * interval) if max_usd is not None else None
    line, idle = "", 0
    try:
        with Live(as_lines(status), console=people, auto_refresh=False, transient=True) as live:
            while not status.ended and idle < STUCK_AFTER:
                if guard:
                    guard.enforce(status)
                status = see_to(status, guard.room_usd(status) if guard else math.inf)
                line = tell(status, line, live)
                time.sleep(interval)
                before, status = status, fetch_patiently(status)
                idle = 0 if is_moving(before, status) else idle + 1
    except KeyboardInterrupt:
        raise GroupWatchInterrupted(status) from None
    remember_group(status)
    return status


def is_moving(before: GroupStatus, status: GroupStatus) -> bool:
    """Whether a run is under way, or one has been started or has ended since: what waits starts after it."""
    stages = [[run.stage for run in one.runs] for one in (before, status)]
    return stages[0] != stages[1] or any(run.is_running for run in status.runs)


def tell(status: GroupStatus, before: str, live: Live) -> str:
    """On a terminal the table, elsewhere a line for each change; the line that was printed last."""
    if people.is_terminal:
        live.update(as_lines(status), refresh=True)
        return before
    line = f"{counted(status)}: {', '.join(steps(run) for run in status.runs)}"
    if line != before:
        diagnostics.print(f"{line} spent {dollars(status.spent_usd)}", markup=False)
    return line


def steps(run: RunStatus) -> str:
    progress = run.summary.progress if run.summary else None
    return f"{run.name} {progress.step if progress and progress.step is not None else 0}"


def fetch_patiently(status: GroupStatus) -> GroupStatus:
    """The state now, or that of before while the Hub does not answer: the jobs go on without it."""
    try:
        return fetch_group(status.group_id, before=status)
    except UserError as error:
        if error.exit_code != HUB:
            raise
        show_problem(replace(error.problem, severity="warning"))
        return status
