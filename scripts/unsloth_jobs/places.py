"""Which place a job id belongs to."""

from __future__ import annotations

import re

from . import hub, records
from .errors import USAGE, UserError
from .hf_jobs import HFJobs
from .jobs import Place
from .local_jobs import PREFIX, LocalJobs


def id_of(job: str) -> str:
    """A job's id, also from the address that submit.py prints. Raises UserError where it could be no id."""
    job_id = job.rstrip("/").rsplit("/", 1)[-1]
    if not re.fullmatch(r"[\w-]{1,100}", job_id):
        raise UserError("bad_job_id", f"{job!r} is no job's id.", "Pass the id that submit.py printed, or --all.", USAGE)
    return job_id


def of(job_id: str, namespace: str | None = None) -> Place:
    """The place that knows this job; the namespace is remembered for jobs submitted from this machine."""
    job_id = id_of(job_id)
    if job_id.startswith(PREFIX):
        return LocalJobs()
    plan = records.run_plan(job_id)
    return HFJobs(hub.connect(), namespace or (plan.namespace if plan else None))
