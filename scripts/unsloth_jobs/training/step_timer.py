"""Seconds and tokens of the optimizer steps."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar


@dataclass
class StepTimer:
    """Seconds and tokens of the optimizer steps so far. The first ones compile for a minute or so, and are not timed."""

    WARMUP: ClassVar[int] = 3
    steps: int = 0
    tokens: Any = 0  # numbers or, so that the GPU need not be waited for, tensors
    timed_steps: int = 0
    timed_tokens: Any = 0
    since: float = 0.0  # when the steps that are not timed yet began; 0 between them
    open_steps: int = 0  # and what these are
    open_tokens: Any = 0
    first_step_s: float = 0.0
    train_s: float = 0.0
    evaluations: int = 0
    evaluation_s: float = 0.0  # of the newest one
    saving_s: float = 0.0  # of the newest checkpoint, its push included
    checkpoint: Path | None = None
    peaks_gb: list[float | None] = field(default_factory=list)  # of each process, at most

    def step_begins(self) -> None:
        self.since = self.since or time.monotonic()

    def count_tokens(self, tokens: Any) -> None:
        self.step_tokens = tokens

    def step_ends(self, pausing: bool) -> None:
        """pausing: whether something else is done before the next step, such as a log line or an evaluation.

        Else the GPU is not waited for, so that the next step is made ready while it works.
        """
        import torch

        self.steps += 1
        self.tokens += self.step_tokens
        timed = self.steps > self.WARMUP
        if timed:
            self.open_steps, self.open_tokens = self.open_steps + 1, self.open_tokens + self.step_tokens
        if timed and not pausing:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds, self.since = time.monotonic() - self.since, 0.0
        if self.steps == 1:
            self.first_step_s = seconds
        if timed:
            self.train_s += seconds
            self.timed_steps, self.timed_tokens = self.timed_steps + self.open_steps, self.timed_tokens + self.open_tokens
            self.open_steps, self.open_tokens = 0, 0

    @property
    def step_s(self) -> float | None:
        """Seconds of a timed step."""
        return self.train_s / self.timed_steps if self.timed_steps else None

    def figures(self) -> dict[str, Any]:
        return {
            "tokens": round(float(self.tokens)),
            "timed_tokens": round(float(self.timed_tokens)),
            "first_step_s": round(self.first_step_s, 2),
            "train_s": round(self.train_s, 2),
            "evaluations": self.evaluations,
            "evaluation_s": round(self.evaluation_s, 2),
        }
