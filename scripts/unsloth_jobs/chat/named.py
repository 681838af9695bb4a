"""What a user names to serve: a model, the job that made one, or a job that serves already."""

from __future__ import annotations

import re

from ..errors import UserError
from ..jobs.backends import JobRef, find_job
from ..jobs.local import PREFIX
from ..jobs.plan import SCRIPTS
from ..lookup.client import IS_ID
from ..status.status import fetch_status

JOB_ID = re.compile(rf"(?:https?://\S+/jobs/\S+/)?(?:[0-9a-f]{{24}}|{PREFIX}[\w-]+)/?")


def find_serving_job(name: str, namespace: str | None) -> JobRef | None:
    """The job that serves, where that was named."""
    if not JOB_ID.fullmatch(name):
        return None
    ref = find_job(name, namespace)
    if ref.plan:
        return ref if ref.plan.port else None
    return ref if fetch_status(ref).served else None  # submitted from elsewhere


def model_of_job(name: str, namespace: str | None) -> str:
    """What was named, or the model that the job of this id has made: a Hub id, or a folder here. Raises UserError."""
    if not JOB_ID.fullmatch(name):
        return name
    ref = find_job(name, namespace)
    status = fetch_status(ref)
    done = status.summary.event("done")
    plan = status.plan
    made = plan and (plan.output_repo or plan.output_dir)
    if not made and IS_ID.fullmatch(str(done.get("repo") or "")):
        made = str(done["repo"])  # of a job that was submitted elsewhere: its own word, which the plan shows
    if not status.job.ended:
        raise UserError(
            "not_done",
            f"{ref.job_id} is still {status.job.stage}.",
            f"Wait for it: uv run {SCRIPTS / 'status.py'} {ref.job_id} --watch",
        )
    if not made:
        raise UserError(
            "no_model", f"{ref.job_id} names no model that it has made.", "Pass the model itself: OWNER/NAME or a folder."
        )
    return made
