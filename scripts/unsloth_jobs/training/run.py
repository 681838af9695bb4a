"""The run as it was submitted: its plan, its price, its timeout, and whether it must stop before its last step."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

from .processes import greatest
from .report import Stop, told_to_end
from .settings import TrainingSettings


def this_run() -> dict[str, Any]:
    """What tells one submission from another, also of the same plan: the job keeps its id when it is started again."""
    return {"plan_id": run_facts().get("plan_id"), "job_id": os.environ.get("JOB_ID")}


def run_facts() -> dict[str, Any]:
    """What submit.py passed on about this run: plan_id, flavor, timeout_s, usd_per_minute, estimate; {} for any other start."""
    try:
        return json.loads(os.environ.get("UNSLOTH_JOBS_RUN", "{}"))
    except ValueError:
        return {}


def billed_since() -> float:
    """Epoch seconds at which this job began: what the local backend states, or when uv began to install its libraries."""
    import psutil

    if started := run_facts().get("started"):
        return started
    process = psutil.Process()
    parent = process.parent()
    return (parent if parent and parent.name().startswith("uv") else process).create_time()


class StopSignal:
    """Whether the run must end before its last step: its timeout is near, or it was cancelled (SIGTERM, Ctrl-C)."""

    MARGINS_S = 10, 300  # the least and the most; between them it is 5% of the timeout
    CHECKS_EVERY_S = 1.0
    REASONS = "", "early_stopped", "deadline", "cancelled"  # of several processes' reasons the last one counts
    SAME_SIGNAL_S = 2.0  # within which a second signal is the first one, passed on

    def __init__(self) -> None:
        self.reason = ""
        self.training = False
        self.signalled_at = 0.0
        timeout = run_facts().get("timeout_s")
        self.deadline = billed_since() + timeout if timeout else None
        least, most = self.MARGINS_S
        self.margin = min(max(0.05 * timeout, least), most) if timeout else 0.0

    def listen(self) -> None:
        told_to_end.clear()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.on_signal)

    def on_signal(self, number: int, _: Any) -> None:
        if self.reason == "cancelled":  # uv passes on what a whole group of processes was sent already
            if number == signal.SIGINT and time.monotonic() > self.signalled_at + self.SAME_SIGNAL_S:
                raise KeyboardInterrupt  # Ctrl-C once more: at once, whatever is lost
            return
        self.reason, self.signalled_at = "cancelled", time.monotonic()
        if not self.training:  # nothing new has been learned that could be saved
            told_to_end.set()
            raise KeyboardInterrupt  # unlike an Exception, nothing on the way to main takes it for a failure of its own

    def due(self, saving_s: float) -> bool:
        """Whether to stop now, when what comes before the next such question takes this many seconds; all processes agree."""
        if self.deadline and not self.reason and time.time() + saving_s + self.margin > self.deadline:
            self.reason = "deadline"
        self.reason = self.REASONS[greatest(self.REASONS.index(self.reason))]
        return bool(self.reason)

    def seconds_left(self) -> float:
        """Until the run must begin to end; infinite without a timeout."""
        return math.inf if self.deadline is None else self.deadline - self.margin - time.time()

    def wait(self, seconds: float) -> bool:
        """Wait; False where the machine is taken away before, or may be any moment."""
        until = time.time() + seconds
        if self.deadline and until > self.deadline:
            return False
        while self.reason != "cancelled" and (left := until - time.time()) > 0:
            time.sleep(min(left, self.CHECKS_EVERY_S))
        return self.reason != "cancelled"

    def require_none(self, state: Any, where: str) -> None:
        """Raises Stop where training ended early, unless nothing more was to be learned. What was learned is saved by then."""
        if state.global_step >= state.max_steps or self.reason == "early_stopped":
            return
        code = self.reason or "stopped"
        why = {"deadline": "Its timeout was near", "cancelled": "It was ended from outside"}.get(
            self.reason, "For no known reason"
        )
        raise Stop(
            code,
            f"{why}: the run stopped after step {state.global_step} of {state.max_steps}. What it learned is in {where}.",
            "Submit the same command with --resume at its end: it goes on from there.",
        )


def cost_usd() -> float | None:
    """Dollars of this job up to now, at the price it was submitted at; None where that is unknown, or nothing."""
    price = run_facts().get("usd_per_minute")
    return round((time.time() - billed_since()) / 60 * price, 4) if price else None


def run_name(settings: TrainingSettings) -> str:
    """The run's name, and its repository's where none is given: model and data set, as the Hub allows names."""
    data = Path(settings.dataset)
    if data.is_file():
        data = Path(re.sub(r"(?i)\.gz$", "", data.name)).with_suffix("")
    parts = (Path(settings.base_model).name, data.name)
    return settings.run_name or re.sub(r"[^A-Za-z0-9._]+", "-", "-".join(parts)).strip("-.")[:90]
