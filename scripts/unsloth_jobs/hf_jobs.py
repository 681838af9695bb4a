"""Jobs on Hugging Face's machines, through huggingface_hub."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from huggingface_hub import HfApi, JobInfo, get_token

from .errors import HUB, UserError
from .hub import LOGIN, asking
from .jobs import RUN_VARIABLE, Job, run_facts
from .plan import Plan
from .redaction import plain

PLAN_LABEL = "unsloth-jobs-plan"


class HFJobs:
    """Jobs of one namespace. None: the namespace of the token's owner, which the client looks up at each call."""

    def __init__(self, api: HfApi, namespace: str | None = None):
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
        except (OSError, ValueError) as error:  # what the upload of the script raises
            raise UserError(
                "upload_failed",
                f"The script could not be uploaded: {plain(str(error))}",
                "Look at `status.py --all` before trying again: the job may exist.",
                HUB,
            ) from error
        return as_job(info)

    def inspect(self, job_id: str) -> Job:
        with asking(f"job {job_id}"):
            return as_job(self.api.inspect_job(job_id=job_id, namespace=self.namespace))

    def logs(self, job_id: str, follow: bool = False, tail: int | None = None) -> Iterator[str]:
        with asking(f"job {job_id}"):
            for line in self.api.fetch_job_logs(job_id=job_id, namespace=self.namespace, follow=follow, tail=tail):
                yield from line.splitlines()

    def cancel(self, job_id: str) -> None:
        with asking(f"job {job_id}"):
            self.api.cancel_job(job_id=job_id, namespace=self.namespace)

    def find(self, plan: Plan) -> Job | None:
        with asking(f"the jobs of {plan.namespace}"):
            found = self.api.list_jobs(labels={PLAN_LABEL: plan.plan_id}, namespace=plan.namespace)
            jobs = [as_job(info) for info in found]
        return next((job for job in jobs if job.stage in ("SCHEDULING", "RUNNING", "COMPLETED")), None)


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
