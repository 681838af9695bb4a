"""Which backend runs a job, or will run a plan."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from huggingface_hub import HfApi

from ..errors import USAGE, UserError
from ..lookup import client
from ..lookup.identity import whoami
from . import records
from .hf import HFJobs, deleted
from .job import Backend, Job
from .local import PREFIX, LocalJobs
from .plan import Plan


@dataclass(frozen=True)
class JobRef:
    """A job that was named. run: the record of its submission, read once; None where it was submitted elsewhere."""

    job_id: str
    backend: Backend
    run: dict[str, Any] | None

    @property
    def plan(self) -> Plan | None:
        return Plan.from_json(self.run["plan"]) if self.run else None

    def inspect(self) -> Job:
        """The job's state. Raises UserError, job_deleted for one that was submitted from here and is no longer known."""
        try:
            return self.backend.inspect(self.job_id)
        except UserError as error:
            plan = self.plan
            if error.problem.code != "unknown_job" or plan is None or plan.where == "local":
                raise
            raise deleted(self.job_id, plan) from error


def id_of(job: str) -> str:
    """A job's id, also from the address that submit.py prints. Raises UserError where it could be no id."""
    job_id = job.rstrip("/").rsplit("/", 1)[-1]
    if not re.fullmatch(r"[\w-]{1,100}", job_id):
        raise UserError("bad_job_id", f"{job!r} is not a job id.", "Pass the id that submit.py printed, or --all.", USAGE)
    return job_id


def find_job(job: str, namespace: str | None = None, run: dict[str, Any] | None = None) -> JobRef:
    """The job of this id or address. Whose it is, the address says, or the record of a run submitted from here.

    run: this record, where it has been read already.
    """
    job_id = id_of(job)
    ref = JobRef(job_id, LocalJobs(), run or records.run_of(job_id))
    if job_id.startswith(PREFIX):
        return ref
    in_address, plan = re.search(r"/jobs/([\w.-]+)/[^/]+/?$", job), ref.plan
    named = namespace or (in_address and in_address[1])
    if plan and plan.namespace and named and named != plan.namespace:
        raise UserError(
            "unknown_job",
            f"{named} has no job {job_id}: it was submitted from here for {plan.namespace}.",
            f"Pass the id alone, without --namespace: {job_id}",
        )
    api = client.connect()
    return replace(ref, backend=HFJobs(api, named or (plan and plan.namespace) or whoami(api).name))


def backend_for(api: HfApi, plan: Plan) -> Backend:
    """What will run a plan."""
    return LocalJobs() if plan.where == "local" else HFJobs(api, plan.namespace or whoami(api).name)
