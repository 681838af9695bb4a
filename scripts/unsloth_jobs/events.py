"""The EVENT lines of a job's log, and what they say of its progress."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .hub import redact

MARK = "EVENT {"  # a progress bar may stand before it on the same line
CONTROL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07?)|[\x00-\x08\x0b-\x1f\x7f]")


def clean(line: str) -> str:
    """A log line without secrets and without what would steer the reader's terminal."""
    return redact(CONTROL.sub("", line.split("\r")[-1] if "\r" in line.strip("\r") else line))


def parse(line: str) -> dict[str, Any] | None:
    """The event in a log line, or None. Never raises: a log holds anything."""
    start = line.find(MARK)
    if start < 0:
        return None
    try:
        event = json.loads(line[start + len(MARK) - 1 :])
    except ValueError:
        return None
    return event if isinstance(event.get("event"), str) else None


@dataclass(frozen=True)
class Progress:
    """How far training is. Losses in nats per token; None where not yet known."""

    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    eval_loss: float | None = None


@dataclass(frozen=True)
class Summary:
    progress: Progress
    eta_s: float | None
    last: dict[str, dict[str, Any]] = field(default_factory=dict)  # the newest event of each name
    lines: tuple[str, ...] = ()  # the end of the log, cleaned

    def event(self, name: str) -> dict[str, Any]:
        return self.last.get(name, {})


def summarise(lines: Iterable[str], keep: int = 40) -> Summary:
    """Read a log from its beginning or its tail."""
    last: dict[str, dict[str, Any]] = {}
    kept: deque[str] = deque(maxlen=keep)
    for line in lines:
        if event := parse(line):
            last[event["event"]] = event
            if event["event"] == "plan":  # a job that is started again: how its first attempt ended is no longer how it ends
                last.pop("failed", None)
        elif text := clean(line).strip():
            kept.append(text)
    step, evaluation = last.get("progress", {}), last.get("eval", {})
    progress = Progress(
        number(step.get("step")), number(step.get("total_steps")), number(step.get("loss")), number(evaluation.get("eval_loss"))
    )
    eta = None if "done" in last or "failed" in last else number(step.get("eta_s"))
    return Summary(progress, eta, last, tuple(kept))


def number(value: Any) -> Any:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
