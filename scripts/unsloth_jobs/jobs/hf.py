"""Jobs on Hugging Face's machines, through huggingface_hub."""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import HfApi, JobInfo, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError

from ..errors import APPROVAL, HUB, UserError
from ..estimate.flavors import Flavor, current_flavors, fetch_flavor
from ..lookup.client import LOGIN, asking, garbled
from ..redaction import plain
from . import records, upload
from .job import RUN_VARIABLE, Job, run_facts
from .plan import JUDGE_KEY, Plan, Submission

PLAN_LABEL = "unsloth-jobs-plan"
GROUP_LABEL, RUN_LABEL = "unsloth-jobs-group", "unsloth-jobs-run"
CLAIMS = "unsloth-jobs-plans"  # a private repository of each owner: a tag for each plan that was started
IMAGE = "ghcr.io/astral-sh/uv:python3.12-bookworm"  # what `hf jobs uv run` runs in
TIMED_OUT = 408
NEVER_SENT = ("ConnectError", "ConnectTimeout")  # as the client's HTTP library names what fails before a request is sent


class HFJobs:
    """Jobs of one namespace. It is named at each call: the client would ask for the token's owner each time."""

    def __init__(self, api: HfApi, namespace: str):
        self.api, self.namespace = api, namespace
        self.listed: list[Flavor] | None = None

    def prepare(self, submission: Submission) -> Callable[[], Job]:
        plan = submission.plan
        token = get_token()
        if token is None:
            raise UserError("no_token", "No Hugging Face token was found.", LOGIN + ".", HUB)
        self.require_price(plan)
        command, volume = upload.send(self.api, plan)
        # Unsloth trains on the CPU when it sees no GPU: on a machine paid for its GPU it must fail instead.
        env = {} if plan.flavor.startswith("cpu") else {"UNSLOTH_DISABLE_CPU_FALLBACK": "1"}
        env[RUN_VARIABLE] = run_facts(submission)
        return lambda: self.submit(
            image=plan.image or IMAGE,
            command=command,
            volumes=[volume],
            expose=[plan.port] if plan.port else None,
            flavor=plan.flavor,
            timeout=plan.timeout_s,
            attempts=plan.attempts if plan.attempts > 1 else None,
            secrets={"HF_TOKEN": token} | {name: os.environ[name] for name in plan.secrets if name == JUDGE_KEY},
            env=env,
            name=re.sub(r"[^\w-]", "-", f"{Path(plan.script).stem[:50]}-{plan.plan_id}", flags=re.ASCII),
            labels={PLAN_LABEL: plan.plan_id} | group_labels(submission),
        )

    def require_price(self, plan: Plan) -> None:
        """Raises UserError where the flavor does not cost what it did when the plan was shown."""
        price = fetch_flavor(self.api, plan.flavor)[0].usd_per_minute
        if price != plan.usd_per_minute:
            was, now = (f"${usd * 60:.2f}" for usd in (plan.usd_per_minute, price))
            raise UserError(
                "plan_changed",
                f"{plan.flavor} costs {now} an hour now, not {was} as approved. This command has started no job.",
                "Look at the new plan first: the same command without --approve and --yes.",
                APPROVAL,
            )

    def submit(self, **job: Any) -> Job:
        try:
            with asking_jobs(f"the job for {self.namespace}"):
                return as_job(self.api.run_job(namespace=self.namespace, **job))
        except UserError as error:
            if is_certain(error.__cause__):
                raise
            raise Unanswered(error.problem.code, str(error), error.problem.fix, error.exit_code) from error

    def claim(self, plan: Plan) -> bool:
        """By a tag, which the Hub makes once: a lock here would be this machine's alone."""
        repository = f"{self.namespace}/{CLAIMS}"
        tag = functools.partial(self.api.create_tag, repository, tag=plan.plan_id, repo_type="dataset")
        with asking(f"{repository}, which notes what was started"):
            try:
                try:
                    tag()
                except RepositoryNotFoundError:
                    self.api.create_repo(repository, repo_type="dataset", private=True, exist_ok=True)
                    tag()
            except HfHubHTTPError as error:
                if error.response is None or error.response.status_code != 409:
                    raise
                return False
        return True

    def release(self, plan: Plan) -> None:
        with contextlib.suppress(UserError), asking(CLAIMS):
            self.api.delete_tag(f"{self.namespace}/{CLAIMS}", tag=plan.plan_id, repo_type="dataset")

    def inspect(self, job_id: str) -> Job:
        with asking_jobs(f"job {job_id}"):
            return as_job(self.api.inspect_job(job_id=job_id, namespace=self.namespace))

    def flavors(self) -> list[Flavor]:
        if self.listed is None:
            self.listed = current_flavors(self.api)[0]
        return self.listed

    def logs(self, job_id: str, follow: bool = False, tail: int | None = None) -> Iterator[str]:
        with asking(f"job {job_id}"):
            for line in self.api.fetch_job_logs(job_id=job_id, namespace=self.namespace, follow=follow, tail=tail):
                yield from line.split("\n")  # not at what else may end a line: an event is one

    def cancel(self, job_id: str) -> None:
        with asking_jobs(f"job {job_id}"):
            self.api.cancel_job(job_id=job_id, namespace=self.namespace)

    def find(self, plan: Plan) -> Job | None:
        """Any job of this plan, however it ended: it has used the approval up. What is on record here is asked first."""
        if run := records.run_of_plan(plan.plan_id):
            return self.inspect_recorded(run["job_id"], plan)
        with asking_jobs(f"the jobs of {self.namespace}"):
            found = self.api.list_jobs(labels={PLAN_LABEL: plan.plan_id}, namespace=self.namespace)
            jobs = [as_job(info) for info in found]
        ours = [job for job in jobs if job.plan_id == plan.plan_id]  # a Hub may overlook the label that was asked for
        return min(ours, key=lambda job: job.ended, default=None)

    def inspect_recorded(self, job_id: str, plan: Plan) -> Job:
        try:
            return self.inspect(job_id)
        except UserError as error:
            if error.problem.code != "unknown_job":
                raise
            return Job(job_id, "DELETED", str(deleted(job_id, plan)), "", plan.flavor, None, None, None, plan.plan_id)


def group_labels(submission: Submission) -> dict[str, str]:
    """By which a comparison's jobs are found from any machine; a label takes letters, digits, - and _."""
    if not submission.group:
        return {}
    return {GROUP_LABEL: submission.group, RUN_LABEL: re.sub(r"[^\w-]", "_", submission.run, flags=re.ASCII)[:100]}


def deleted(job_id: str, plan: Plan) -> UserError:
    """What to say of a job that was submitted from here, and that the Hub does not know."""
    return UserError(
        "job_deleted",
        f"The Hub no longer knows job {job_id}, which was submitted from here; what it pushed is in {plan.model_url}.",
        f"To go on from its last checkpoint: {plan.resuming()}",
    )


class Unanswered(UserError):
    """The job was asked for, and whether the Hub has started it or still will is not known."""


def is_certain(cause: BaseException | None) -> bool:
    """Whether a request that failed so has done nothing: the Hub refused it, or it was never sent."""
    if isinstance(cause, HfHubHTTPError):
        status = cause.response.status_code if cause.response is not None else 0
        return 400 <= status < 500 and status != TIMED_OUT
    return isinstance(cause, LocalTokenNotFoundError | OfflineModeIsEnabled) or type(cause).__name__ in NEVER_SENT


@contextlib.contextmanager
def asking_jobs(about: str) -> Iterator[None]:
    """asking, where the client also raises what Python does for an answer of another shape, such as null."""
    try:
        with asking(about):
            yield
    except (TypeError, AttributeError, ValueError) as error:
        raise garbled(about, error) from error


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
        address=address_of(info),
    )


def address_of(info: JobInfo) -> str | None:
    """Where the port that a job exposes is reached; None where it has none, or at a place that is not the job's own.

    Who asks there sends a token, so the address must name the job, as the Hub's own client asks of it too.
    """
    for url in info.status.expose_urls or []:
        place, hub = urlsplit(url), urlsplit(constants.ENDPOINT)
        if place.scheme == "https" and (place.hostname or "").startswith(f"{info.id}--".lower()):
            return url.rstrip("/")
        if place.scheme == hub.scheme == "http" and place.hostname == hub.hostname:  # a Hub on this machine
            return url.rstrip("/")
    return None


def ahead_s(info: JobInfo) -> float:
    """How far the Hub's clock is ahead of this machine's, by what it says of a job's age; 0 within a minute."""
    age_s = getattr(info.durations, "total_secs", None)
    if age_s is None or info.created_at is None or info.finished_at is not None:
        return 0.0
    ahead = (info.created_at - datetime.now(UTC)).total_seconds() + age_s
    return ahead if abs(ahead) > 60 else 0.0
