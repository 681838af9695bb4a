"""When to end a run so that it costs no more than a ceiling, and loses as little as possible of what it learned."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from itertools import pairwise

from rich.live import Live

from ..errors import HUB, USAGE, Problem, UserError
from ..events import Summary
from ..jobs.approval import require_amount
from ..jobs.backends import JobRef
from ..jobs.plan import SCRIPTS
from ..output import diagnostics, dollars, people, show_problem
from .status import Status, fetch_status
from .view import as_table, line_of

FINISHING_S = 120  # what a run still takes after its last step: the last evaluation, the card, the push


def reason_to_cancel(left_s: float, summary: Summary, interval_s: float) -> str | None:
    """Why to cancel a running job now, or None.

    left_s: seconds until the ceiling is reached; interval_s: at most so many pass until the next check. A job's machine
    may be gone the moment it is cancelled, so it is cancelled right after the last checkpoint that it can push before
    the ceiling. When that is, the pushes so far tell; all times are of the job's own clock.
    """
    if left_s <= interval_s:
        return "The ceiling is reached."
    progress, times = summary.progress, save_times(summary)
    if len(times) < 2 or summary.heard is None or progress.step == progress.total_steps:
        return None
    if summary.eta_s is not None and summary.eta_s + FINISHING_S <= left_s:
        return None
    interval = max(after - before for before, after in pairwise(times))
    next_save_s = interval - (summary.heard - times[-1])
    if 0 < next_save_s <= left_s - interval_s or next_save_s <= 0:  # one that is late may come any moment
        return None
    return f"The checkpoint of step {summary.saves[-1].step} is pushed, and the next one would come after the ceiling."


def save_times(summary: Summary) -> list[float]:
    """When each checkpoint was pushed, after when training began; empty where the events carry no time."""
    times = [point.time for point in summary.saves if point.time is not None]
    if not times or not summary.curve.loss or summary.curve.loss[0].time is None:
        return []
    return [min(summary.curve.loss[0].time, times[0]), *times]


EVERY_S = {"hf": 10.0, "local": 1.0}  # between two updates
PASSING = ("hub_unreachable", "hub_error", "hub_garbled", "rate_limited")  # codes of trouble that is waited out
END_WITHIN_S = 30.0  # a job on this machine has 20 s to save
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0  # between two cancels
PATIENTLY = 3  # times as long until the next request to a Hub in trouble


def watch(ref: JobRef, interval: float, max_usd: float | None = None) -> Status:
    """Show a job until it ends, on a terminal as one live table, elsewhere as a line for each new step.

    interval: seconds between updates. With max_usd the job is cancelled so that it costs no more, after it has saved.
    Raises WatchInterrupted on Ctrl-C, which the job does not notice, and UserError for what does not pass.
    """
    require_amount(max_usd)
    status, reporter, guard = fetch_status(ref), LineReporter(), Guard(ref, max_usd, (PATIENTLY + 1) * interval)
    if max_usd is not None and status.usd_per_minute is None:
        raise UserError("no_price", f"What {status.job.flavor} costs is not known.", "Leave --max-usd out.", USAGE)
    try:
        with Live(as_table(status), console=people, auto_refresh=False, transient=True) as live:
            while not status.job.ended:
                status = guard.enforce(status)
                reporter.report(status)
                wait(interval * (PATIENTLY if is_hub_unavailable(status) else 1), status, live)
                status = fetch_again(ref, status)
    except KeyboardInterrupt:
        raise WatchInterrupted(status) from None
    return replace(status, ended_because=guard.because if status.job.stage == "CANCELED" else None)


class WatchInterrupted(Exception):
    """The watching was stopped by Ctrl-C; `status` is what it saw last."""

    def __init__(self, status: Status):
        super().__init__()
        self.status = status


def is_hub_unavailable(status: Status) -> bool:
    return any(warning.code in PASSING for warning in status.warnings)


def with_hub_warning(status: Status, problem: Problem) -> Status:
    """The status as it was, with a warning that the Hub does not answer. Raises UserError where that will not pass."""
    kept = [warning for warning in status.warnings if warning.code not in PASSING]
    again = Problem(
        problem.code, "warning", problem.message, "The job goes on without it. The Hub is asked again until it answers."
    )
    return replace(status, warnings=(*kept, again))


def fetch_again(ref: JobRef, before: Status) -> Status:
    try:
        return fetch_status(ref, before)
    except UserError as error:
        if error.problem.code not in PASSING:
            raise
        return with_hub_warning(before, error.problem)


def wait(seconds: float, status: Status, live: Live) -> None:
    """Let time pass; on a terminal the table's own clock goes on."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if people.is_terminal:
            live.update(as_table(status), refresh=True)
        time.sleep(min(left, 1.0))


@dataclass
class Guard:
    """Cancels a run by reason_to_cancel, again at each update until one shows that it has ended. because: why it did."""

    ref: JobRef
    max_usd: float | None
    margin_s: float
    because: str | None = None

    def enforce(self, status: Status) -> Status:
        if self.max_usd is None or not status.usd_per_minute or status.job.stage == "SCHEDULING":
            return status
        # It is billed by the minute: one that has begun may count whole.
        left_s = math.floor(self.max_usd / status.usd_per_minute) * 60 - status.job.elapsed_s
        why = reason_to_cancel(left_s, status.summary, self.margin_s)
        if self.because is None and why:
            self.because = f"{why} --max-usd {self.max_usd:g} was allowed."
        if self.because is None:
            return status
        problem = request_cancel(self.ref)
        return with_hub_warning(status, problem) if problem else status


def request_cancel(ref: JobRef) -> Problem | None:
    """Cancel a job once. What was in the way, where that may pass or the job may have ended meanwhile; else UserError."""
    try:
        ref.backend.cancel(ref.job_id)
    except UserError as error:
        if error.problem.code not in (*PASSING, "refused"):
            raise
        return error.problem
    return None


def end_job(ref: JobRef, patience_s: float) -> None:
    """Cancel a job, again and again until its state shows that it has ended: an answer alone is no proof of that.

    Raises UserError where none shows it within patience_s.
    """
    until, pause, problem = time.monotonic() + patience_s, FIRST_PAUSE_S, None
    while time.monotonic() < until:
        problem = request_cancel(ref)
        try:
            if ref.inspect().ended:
                return
        except UserError as error:
            if error.problem.code not in PASSING:
                raise
            problem = error.problem
        time.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE_S)
    why = f" {problem.message}" if problem else ""
    raise UserError(
        "still_running",
        f"Job {ref.job_id} was cancelled, and its end was not confirmed within {patience_s:.0f} s.{why}",
        f"It may still be paid for. Again: uv run {SCRIPTS / 'status.py'} {ref.job_id} --cancel",
        HUB,
    )


@dataclass
class LineReporter:
    """A line for each change, where there is no terminal; what was printed last."""

    line: str = ""
    warnings: set[str] = field(default_factory=set)

    def report(self, status: Status) -> None:
        if people.is_terminal:
            return
        if (line := line_of(status)) != self.line:
            spent = "" if status.spent_usd is None else f" spent {dollars(status.spent_usd)}"
            diagnostics.print(line + spent, markup=False)
        for warning in status.warnings:
            if warning.code not in self.warnings:
                show_problem(warning)
        self.line, self.warnings = line, {warning.code for warning in status.warnings}
