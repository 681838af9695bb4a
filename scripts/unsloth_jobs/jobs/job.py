"""A job, wherever it runs: its state, and the backend that runs it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from ..estimate.flavors import Flavor
from .plan import Plan, Submission

RUN_VARIABLE = "UNSLOTH_JOBS_RUN"  # what a template may know of its own run: run_facts
FAILED = {"ERROR", "CANCELED", "DELETED"}
TERMINAL = {"COMPLETED", *FAILED}


@dataclass(frozen=True)
class Job:
    """A job's state in the Hub's words: stage is SCHEDULING, RUNNING, COMPLETED, ERROR, CANCELED or DELETED.

    address: where the port that it exposes is reached. ahead_s: how far its backend's clock is ahead of this machine's.
    """

    job_id: str
    stage: str
    message: str | None
    url: str
    flavor: str
    created: datetime | None
    started: datetime | None
    finished: datetime | None
    plan_id: str | None = None
    ahead_s: float = 0.0
    address: str | None = None

    @property
    def now(self) -> datetime:
        """By the clock that its own times are of."""
        return datetime.now(UTC) + timedelta(seconds=self.ahead_s)

    @property
    def ended(self) -> bool:
        return self.stage in TERMINAL

    @property
    def elapsed_s(self) -> float:
        """Seconds since the job was started (0 while it waits for a machine)."""
        if self.started is None:
            return 0.0
        return max(((self.finished or self.now) - self.started).total_seconds(), 0.0)


class Backend(Protocol):
    """What runs jobs. Each method raises UserError where the backend says no or does not answer."""

    def prepare(self, submission: Submission) -> Callable[[], Job]:
        """All that can fail before the job is asked for; what is returned asks for it."""

    def claim(self, plan: Plan) -> bool:
        """Take a plan, so that no other command, wherever it runs, starts it too; False where it is taken already."""

    def release(self, plan: Plan) -> None:
        """Take a claim back, of a plan whose job was refused."""

    def inspect(self, job_id: str) -> Job: ...

    def flavors(self) -> list[Flavor]:
        """Its machines at today's prices."""

    def logs(self, job_id: str, follow: bool = False, tail: int | None = None) -> Iterator[str]: ...

    def cancel(self, job_id: str) -> None: ...

    def find(self, plan: Plan) -> Job | None:
        """The job that this plan's approval was used up by, or None."""


def run_facts(submission: Submission) -> str:
    """JSON for the job's environment: its deadline and price, who pays, and what it was estimated to cost."""
    names = ("plan_id", "flavor", "vram_gb", "gpus", "timeout_s", "attempts", "usd_per_minute", "namespace")
    group = {"group": submission.group, "run": submission.run} if submission.group else {}
    return json.dumps({name: getattr(submission.plan, name) for name in names} | {"estimate": submission.estimate} | group)
