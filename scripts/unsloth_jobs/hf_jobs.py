"""Jobs on Hugging Face's machines, through huggingface_hub."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from huggingface_hub import HfApi, JobInfo, get_token

from . import records
from .errors import HUB, UserError
from .hub import LOGIN, asking
from .jobs import RUN_VARIABLE, Job, run_facts
from .plan import Plan
from .redaction import plain

PLAN_LABEL = "unsloth-jobs-plan"
PAID_FOR = ("SCHEDULING", "RUNNING", "COMPLETED")


class HFJobs:
    """Jobs of one namespace. It is named at each call: the client would ask for the token's owner each time."""

    def __init__(self, api: HfApi, namespace: str):
        self.api, self.namespace = api, namespace

    def submit(self, plan: Plan, estimate: dict[str, Any] | None = None) -> Job:
        token = get_token()
        if token is None:
            raise UserError("no_token", "No Hugging Face token was found.", LOGIN + ".", HUB)
        # Unsloth trains on the CPU when it sees no GPU: on a machine paid for its GPU it must fail instead.
        env = {} if plan.flavor.startswith("cpu") else {"UNSLOTH_DISABLE_CPU_FALLBACK": "1"}
        env[RUN_VARIABLE] = run_facts(plan, estimate)
        try:
            # The client prints where it keeps the script: that is no part of our answer on stdout.
            with asking(f"the job for {plan.namespace}"), contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*is experimental")
                info = self.api.run_uv_job(
                    plan.script,
                    script_args=list(plan.arguments),
                    flavor=plan.flavor,
                    timeout=plan.timeout_s,
                    attempts=plan.attempts if plan.attempts > 1 else None,
                    secrets={"HF_TOKEN": token},
                    env=env,
                    labels={PLAN_LABEL: plan.plan_id},
                    namespace=plan.namespace,
                )
        except (OSError, ValueError, RuntimeError) as error:  # what the upload of the script raises
            said = plain(str(error)).strip().rstrip(".")
            raise UserError(
                "upload_failed", f"The script could not be uploaded: {said}.", "Try again in a minute.", HUB
            ) from error
        return as_job(info)

    def inspect(self, job_id: str) -> Job:
        try:
            with asking(f"job {job_id}"):
                return as_job(self.api.inspect_job(job_id=job_id, namespace=self.namespace))
        except UserError as error:
            plan = records.run_plan(job_id)
            if error.problem.code != "unknown_job" or plan is None:
                raise
            raise UserError(
                "job_deleted",
                f"The Hub no longer knows job {job_id}, which was submitted from here; what it pushed is in {plan.model_url}.",
                f"To go on from its last checkpoint: {plan.resuming()}",
            ) from error

    def logs(self, job_id: str, follow: bool = False, tail: int | None = None) -> Iterator[str]:
        with asking(f"job {job_id}"):
            for line in self.api.fetch_job_logs(job_id=job_id, namespace=self.namespace, follow=follow, tail=tail):
                yield from line.split("\n")  # not at what else may end a line: an event is one

    def cancel(self, job_id: str) -> None:
        with asking(f"job {job_id}"):
            self.api.cancel_job(job_id=job_id, namespace=self.namespace)

    def find(self, plan: Plan) -> Job | None:
        with asking(f"the jobs of {plan.namespace}"):
            found = self.api.list_jobs(labels={PLAN_LABEL: plan.plan_id}, namespace=plan.namespace)
            jobs = [as_job(info) for info in found]
        # One that is not on record here is told first, however it ended: its submission was never answered.
        return next((job for job in jobs if job.stage in PAID_FOR or records.run_of(job.job_id) is None), None)


def as_job(info: JobInfo) -> Job:
    return Job(
        job_id=info.id,
        stage=str(info.status.stage),
        message=info.status.message and plain(info.status.message),
        url=info.url,
        flavor=str(info.flavor),
        created=info.created_at,
        started=info.started_at,
        finished=info.finished_at,
        plan_id=(info.labels or {}).get(PLAN_LABEL),
        ahead_s=ahead_s(info),
    )


def ahead_s(info: JobInfo) -> float:
    """How far the Hub's clock is ahead of this machine's, by what it says of a job's age; 0 within a minute."""
    age_s = getattr(info.durations, "total_secs", None)
    if age_s is None or info.created_at is None or info.finished_at is not None:
        return 0.0
    ahead = (info.created_at - datetime.now(UTC)).total_seconds() + age_s
    return ahead if abs(ahead) > 60 else 0.0
