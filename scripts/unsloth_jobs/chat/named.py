"""What a user names to serve: a model, the job or the comparison that made one, or a job that serves already."""

from __future__ import annotations

import re

from ..errors import UserError
from ..jobs import group, local
from ..jobs.backends import JobRef, find_job
from ..jobs.plan import SCRIPTS
from ..lookup.client import IS_ID
from ..output import diagnostics
from ..status.group import GroupStatus, fetch_group
from ..status.group_view import counted
from ..status.status import fetch_status

JOB_ID = re.compile(rf"(?:https?://\S+/jobs/\S+/)?(?:[0-9a-f]{{24}}|{local.PREFIX}[\w-]+)/?")
GROUP_ID = re.compile(rf"{group.PREFIX}[0-9a-f]{{16}}")


def find_serving_job(name: str, namespace: str | None) -> JobRef | None:
    """The job that serves, where that was named."""
    if not JOB_ID.fullmatch(name):
        return None
    ref = find_job(name, namespace)
    if ref.plan:
        return ref if ref.plan.port else None
    return ref if fetch_status(ref).served else None  # submitted from elsewhere


def find_model(name: str, namespace: str | None) -> str:
    """What was named, or what the job or comparison of this id has made: a Hub id, or a folder here. Raises UserError."""
    if GROUP_ID.fullmatch(name):
        return model_of_winner(fetch_group(name, namespace))
    return model_of_job(name, namespace) if JOB_ID.fullmatch(name) else name


def model_of_winner(found: GroupStatus) -> str:
    """The best run's model; of runs that cannot be told apart, that of the cheapest, which is said. Raises UserError."""
    look = f"uv run {SCRIPTS / 'status.py'} {found.group_id}"
    if (verdict := found.verdict) is None:
        raise UserError("not_done", f"It has no winner yet: {counted(found)}.", f"Wait for it: {look} --watch")
    made = found.named(verdict.winner).made if verdict.winner else None
    if not made:
        raise UserError("no_winner", verdict.sentence, f"Pass the model of one of its runs: {look} shows them.")
    diagnostics.print(f"{verdict.sentence} Served: {made}", markup=False, soft_wrap=True)
    return made


def model_of_job(name: str, namespace: str | None) -> str:
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
