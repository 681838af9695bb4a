"""A model that a job serves: where it answers, how much it has answered, and when it ends."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from typing import Any

from ..events import Summary
from ..jobs.job import Job
from ..jobs.plan import SCRIPTS, Plan
from ..output import dollars, duration
from ..values import number, whole

REASONS = {
    "idle": "Nobody had asked anything for a while, so it ended itself.",
    "timeout": "Its timeout was near, so it ended itself.",
    "cancelled": "It was ended.",
}


@dataclass(frozen=True)
class ServingState:
    """What a serving job's newest event says. address: None until it answers; of a job on the Hub, as the Hub states it."""

    address: str | None
    models: tuple[str, ...]
    requests: int
    tokens: int
    tokens_per_second: float | None
    ends_at: float | None
    idle_ends_at: float | None
    is_ready: bool

    def as_json(self) -> dict[str, Any]:
        names = ("address", "requests", "tokens", "tokens_per_second", "ends_at", "idle_ends_at", "is_ready")
        return {name: getattr(self, name) for name in names} | {"models": list(self.models)}

    @property
    def answered(self) -> str:
        pace = f", {self.tokens_per_second:.1f} tokens a second" if self.tokens_per_second else ""
        return f"{self.requests:,} request{'s' * (self.requests != 1)}, {self.tokens:,} tokens{pace}"

    @property
    def left(self) -> str:
        """When it ends by itself."""
        parts = []
        if self.idle_ends_at:
            parts.append(f"in {duration(max(self.idle_ends_at - time.time(), 0))} if nobody asks")
        if self.ends_at:
            parts.append(f"in {duration(max(self.ends_at - time.time(), 0))} at the latest")
        return ", ".join(parts)


def served_of(job: Job, summary: Summary) -> ServingState | None:
    """None for a job that serves nothing."""
    listening, said = summary.event("listening"), summary.event("serving")
    if not (listening or said):
        return None
    event = said or listening
    names = event.get("models")
    is_local = job.flavor == "local"
    return ServingState(
        address=(str(event["url"]) if is_local and event.get("url") else job.address),
        models=tuple(name for name in ("base", "tuned") if isinstance(names, list) and name in names),
        requests=whole(event.get("requests")) or 0,
        tokens=whole(event.get("tokens")) or 0,
        tokens_per_second=number(event.get("tokens_per_second")),
        ends_at=number(event.get("ends_at")),
        idle_ends_at=number(event.get("idle_ends_at")),
        is_ready=bool(said),
    )


def after_serving(done: dict[str, Any], plan: Plan | None, cost: float | None) -> str:
    """What to say of one that has ended by itself."""
    reason = REASONS.get(str(done.get("reason")), "It has ended.")
    parts = [reason, f"It cost {dollars(cost)}." if cost else "", f"To serve it again: {plan.again()}" if plan else ""]
    return " ".join(part for part in parts if part)


def while_serving(served: ServingState, job: Job) -> str:
    """How to use one that answers."""
    command = ["uv", "run", str(SCRIPTS / "serve.py"), job.job_id]
    end = shlex.join(["uv", "run", str(SCRIPTS / "status.py"), job.job_id, "--cancel"])
    return f"To chat with it: {shlex.join([*command, '--chat'])}\nIn a browser: {shlex.join(command)}\nTo end it: {end}"
