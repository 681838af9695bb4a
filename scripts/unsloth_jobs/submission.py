"""Start an approved plan once: whatever fails on the way, no second job is paid for and none is forgotten."""

from __future__ import annotations

import time
from typing import Any

from . import hub, places, records
from .errors import HUB, INTERRUPTED, UserError
from .jobs import Job, Place
from .output import diagnostics
from .plan import Plan

UNCLEAR = {"hub_unreachable", "hub_error", "hub_garbled", "upload_failed"}  # after which the job may exist all the same
LOOK_AFTER_S = (0.0, 1.0, 2.0)  # a Hub that did not answer may still be about to start it
FORGOTTEN_AFTER_S = 3600.0  # a submission whose job is not listed by then came to nothing
REPEAT = "Repeat the same command: before it starts a job it looks whether this plan has one."


def start(place: Place, plan: Plan, approved: str, estimate: dict[str, Any] | None) -> tuple[Job, bool]:
    """The job of this plan, and whether it was there already. Raises UserError where none is known to be.

    The attempt is on record before the place is asked, so that a command that is killed amid it loses nothing.
    """
    with records.one_at_a_time(plan):
        if job := place.find(plan):
            keep(job, plan, approved, estimate)
            return job, True
        records.remember_attempt(plan, approved, estimate)
        try:
            job = place.submit(plan, estimate)
            keep(job, plan, approved, estimate)
        except UserError as error:
            if error.problem.code not in UNCLEAR:
                records.forget_attempt(plan)
                raise
            if (job := look_for(place, plan)) is None:
                raise UserError(error.problem.code, f"{error} No job was started.", REPEAT, error.exit_code) from error
            keep(job, plan, approved, estimate)
        except KeyboardInterrupt as error:
            if (job := look_for(place, plan)) is None:
                raise UserError("interrupted", "Interrupted: no job was started.", REPEAT, INTERRUPTED) from error
            keep(job, plan, approved, estimate)
            raise UserError(
                "interrupted",
                f"Interrupted, but job {job.job_id} had been started and goes on.",
                f"To end it: status.py {job.job_id} --cancel",
                INTERRUPTED,
            ) from error
    return job, False


def look_for(place: Place, plan: Plan) -> Job | None:
    """The job of a submission that was not answered; None where it had not arrived. Raises UserError if that stays unknown."""
    for pause in LOOK_AFTER_S:
        time.sleep(pause)
        try:
            if job := place.find(plan):
                return job
        except UserError as error:
            if pause == LOOK_AFTER_S[-1]:
                unknown = "The submission was not answered, and whether its job was started cannot be asked now."
                raise UserError("submit_unclear", f"{unknown} {error}", REPEAT, HUB) from error
    return None


def keep(job: Job, plan: Plan, approved: str, estimate: dict[str, Any] | None) -> None:
    """Put the job on record, unless it is; where that fails the job goes on, and its id is said all the same."""
    try:
        if records.run_of(job.job_id) is None:
            records.remember_run(job.job_id, plan, approved, estimate)
        records.forget_attempt(plan)
    except UserError as error:
        diagnostics.print(f"Note the id {job.job_id}: {error}", markup=False)


def recover() -> None:
    """Put jobs on record whose submission was ended before it was answered. Raises UserError where a place cannot be asked."""
    api = hub.connect()
    for attempt in records.attempts():
        plan = Plan.from_json(attempt["plan"])
        if job := places.for_plan(api, plan).find(plan):
            keep(job, plan, attempt["approved"], attempt["estimate"])
        elif time.time() - attempt["made_at"] > FORGOTTEN_AFTER_S:
            records.forget_attempt(plan)
