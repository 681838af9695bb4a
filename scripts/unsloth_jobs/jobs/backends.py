"""Which place a job id belongs to."""

from __future__ import annotations

import re

from huggingface_hub import HfApi

from ..errors import USAGE, UserError
from ..lookup import client
from ..lookup.identity import whoami
from . import records
from .hf import HFJobs
from .job import Backend
from .local import PREFIX, LocalJobs
from .plan import Plan


def id_of(job: str) -> str:
    """A job's id, also from the address that submit.py prints. Raises UserError where it could be no id."""
    job_id = job.rstrip("/").rsplit("/", 1)[-1]
    if not re.fullmatch(r"[\w-]{1,100}", job_id):
        raise UserError("bad_job_id", f"{job!r} is no job's id.", "Pass the id that submit.py printed, or --all.", USAGE)
    return job_id


def find_backend(job: str, namespace: str | None = None) -> Backend:
    """The place that knows this job. Whose job it is, the address says, or the record of a run submitted from here."""
    job_id = id_of(job)
    if job_id.startswith(PREFIX):
        return LocalJobs()
    in_address = re.search(r"/jobs/([\w.-]+)/[^/]+/?$", job)
    plan = records.run_plan(job_id)
    named = namespace or (in_address and in_address[1])
    if plan and plan.namespace and named and named != plan.namespace:
        raise UserError(
            "unknown_job",
            f"{named} has no job {job_id}: it was submitted from here for {plan.namespace}.",
            f"Pass the id alone, without --namespace: {job_id}",
        )
    api = client.connect()
    return HFJobs(api, named or (plan and plan.namespace) or whoami(api).name)


def backend_for(api: HfApi, plan: Plan) -> Backend:
    """The place where a plan runs."""
    return LocalJobs() if plan.where == "local" else HFJobs(api, plan.namespace or whoami(api).name)
