"""Which place a job id belongs to."""

from __future__ import annotations

from . import hub, records
from .hf_jobs import HFJobs
from .jobs import Place
from .local_jobs import PREFIX, LocalJobs


def id_of(job: str) -> str:
    """A job's id, also from the address that submit.py prints."""
    return job.rstrip("/").rsplit("/", 1)[-1]


def of(job_id: str, namespace: str | None = None) -> Place:
    """The place that knows this job; the namespace is remembered for jobs submitted from this machine."""
    job_id = id_of(job_id)
    if job_id.startswith(PREFIX):
        return LocalJobs()
    plan = records.run_plan(job_id)
    return HFJobs(hub.connect(), namespace or (plan.namespace if plan else None))
