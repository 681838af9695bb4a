"""Start an approved plan once: whatever fails on the way, no second job is paid for and none is forgotten.

An approval is used up by what it starts. A job that failed, was cancelled or never appeared is started again under
the next number (Plan.start), which makes it a plan of its own, to be approved.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ..errors import HUB, INTERRUPTED, Problem, UserError
from ..lookup import client
from ..output import diagnostics
from . import records
from .backends import backend_for
from .hf import Unanswered
from .job import FAILED, Backend, Job
from .plan import SCRIPTS, Plan, Submission

SEARCH_AFTER_S = (0.0, 1.0, 2.0, 4.0, 8.0)  # a Hub that did not answer may still be about to start the job
FORGOTTEN_AFTER_S = 3600.0  # a submission whose job is not listed by then is no longer looked for
UNKNOWN = "The Hub has not answered whether this plan's job was started: the job may still appear, and would be paid for."
STATUS = f"uv run {SCRIPTS / 'status.py'}"


@dataclass(frozen=True)
class EarlierStart:
    """What an approval of a plan was used for: its job, or None where it was requested and has not appeared.

    is_repeated: whether one that is done is wanted again as a matter of course, as where a model is served.
    """

    job: Job | None
    is_repeated: bool = False

    @property
    def is_over(self) -> bool:
        """Whether the run must be approved again to be started."""
        return self.job is None or self.job.stage in FAILED or self.is_done

    @property
    def is_done(self) -> bool:
        """Whether it has ended as it should, and may be started anew, by a new plan."""
        return self.is_repeated and self.job is not None and self.job.stage == "COMPLETED"


def find_earlier_start(backend: Backend, plan: Plan) -> EarlierStart | None:
    """What became of an earlier approval of this plan; None where there was none. Raises UserError."""
    if job := backend.find(plan):
        return EarlierStart(job, bool(plan.port))
    if plan.where == "hf" and records.attempt_of(plan):
        return EarlierStart(None)
    return None


def assign_number(backend: Backend, plan: Plan, approve: str | None, yes: bool) -> tuple[Plan, list[Problem]]:
    """The plan under the number that it is started by, and warnings about what became of the numbers before.

    An approved id names its number itself. --yes is one approval, however often it is repeated: it names the last number
    that was used.
    """
    problems: list[Problem] = []
    before, is_done = plan, False
    while (earlier_start := find_earlier_start(backend, plan)) and plan.plan_id != approve and earlier_start.is_over:
        is_done = earlier_start.is_done
        problems += [] if is_done else [earlier_start_warning(earlier_start)]
        before, plan = plan, replace(plan, start=plan.start + 1)
    if yes and earlier_start is None and not is_done:
        return before, []
    return plan, [] if plan.plan_id == approve else problems


def earlier_start_warning(start: EarlierStart) -> Problem:
    if start.job is None:
        return Problem("earlier_start", "warning", f"This run was approved before. {UNKNOWN}", f"Check first: {STATUS} --all")
    message = f"This run was approved before; its job {start.job.job_id} ended as {start.job.stage}."
    return Problem("earlier_start", "warning", message, f"See why first: {STATUS} {start.job.job_id}")


def start(backend: Backend, submission: Submission) -> tuple[Job, bool]:
    """The job of this plan, and whether it was there already. Raises UserError where none is known to be.

    The attempt is on record before the job is asked for, so that a command that is killed amid it loses nothing.
    """
    plan = submission.plan
    with records.one_at_a_time(plan.plan_id), ctrl_c_by_sigterm():
        try:
            if earlier_start := find_earlier_start(backend, plan):
                job = earlier_start.job or await_job(backend, plan)
                return earlier_job(job, submission), True
            ask = backend.prepare(submission)
            is_ours = backend.claim(plan)
        except KeyboardInterrupt as error:
            message, fix = "Interrupted: this command has started no job.", "Repeat the same command: it looks for one first."
            raise UserError("interrupted", message, fix, INTERRUPTED) from error
        try:
            records.remember_attempt(submission)
            if not is_ours:
                return earlier_job(await_job(backend, plan), submission), True
            job = submit_and_find(ask, backend, plan)
            record_job(job, submission)
        except KeyboardInterrupt as error:
            raise interrupted(backend, submission) from error
        except Unanswered:
            raise
        except UserError:  # it is known that no job comes of it
            backend.release(plan)
            records.forget_attempt(plan)
            raise
    return job, False


def submit_and_find(ask: Callable[[], Job], backend: Backend, plan: Plan) -> Job:
    """The job that `ask` asks for, looked for where that is not answered. Raises Unanswered where it has not appeared."""
    try:
        return ask()
    except Unanswered as error:
        if job := await_job(backend, plan):
            return job
        raise unclear(plan, str(error)) from error


def earlier_job(job: Job | None, submission: Submission) -> Job:
    """The job that another command, or an earlier one, has submitted, now on record. Raises UserError without it."""
    if job is None:
        raise unclear(submission.plan, "This plan was submitted before, by this command or another.")
    record_job(job, submission)
    return job


def await_job(backend: Backend, plan: Plan) -> Job | None:
    """The job of a submission that was not answered, looked for while it may appear; None where it has not by then."""
    pauses = SEARCH_AFTER_S if plan.where == "hf" else (0.0,)
    if plan.where == "hf":
        diagnostics.print(f"Not answered yet: looking for the job, for up to {sum(pauses):.0f} s.", markup=False)
    for pause in pauses:
        time.sleep(pause)
        try:
            if job := backend.find(plan):
                return job
        except UserError:
            continue
    return None


def unclear(plan: Plan, why: str, code: str = "submit_unclear", exit_code: int = HUB) -> Unanswered:
    fix = f"Check in a minute: {STATUS} --all. To start it again anyway, for a plan to approve: {plan.again()}"
    return Unanswered(code, f"{why} {UNKNOWN}", fix, exit_code)


def interrupted(backend: Backend, submission: Submission) -> UserError:
    """What to say after a Ctrl-C amid a submission: what is known of its job."""
    plan = submission.plan
    try:
        job = await_job(backend, plan)
    except KeyboardInterrupt:  # who insists is not kept waiting
        job = None
    if job is not None:
        record_job(job, submission)
        message = f"Interrupted, but job {job.job_id} had been started and goes on."
        return UserError("interrupted", message, f"To end it: {STATUS} {job.job_id} --cancel", INTERRUPTED)
    if plan.where == "local":
        records.forget_attempt(plan)
        return UserError("interrupted", "Interrupted: no job was started.", "Repeat the same command.", INTERRUPTED)
    return unclear(plan, "Interrupted.", "interrupted", INTERRUPTED)


@contextmanager
def ctrl_c_by_sigterm() -> Iterator[None]:
    """SIGTERM, as a system sends it that shuts down, is a Ctrl-C meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def record_job(job: Job, submission: Submission) -> None:
    """Put the job on record, unless it is; where that fails the job goes on, and its id is printed."""
    try:
        if records.run_of(job.job_id) is None:
            records.remember_run(job.job_id, submission)
        records.forget_attempt(submission.plan)
    except UserError as error:
        diagnostics.print(f"Note the id {job.job_id}: {error}", markup=False)


def recover() -> None:
    """Put jobs on record whose submission was ended before it was answered. Raises UserError where a backend does not answer.

    An old one is no longer looked for, and stays on record: its approval may have been used.
    """
    api = client.connect()
    for attempt in records.attempts():
        plan, is_old = Plan.from_json(attempt["plan"]), time.time() - attempt["made_at"] > FORGOTTEN_AFTER_S
        if plan.where == "hf" and is_old:
            continue
        if job := backend_for(api, plan).find(plan):
            record_job(job, records.submission_of(attempt))
        elif is_old:
            records.forget_attempt(plan)
