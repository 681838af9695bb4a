"""Early stopping: the adapter of the lowest held-out loss."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from .adapter_weights import set_weights, trained_weights
from .report import emit
from .run import run_facts
from .step_timer import StepTimer


@dataclass
class BestAdapter:
    """The adapter of the lowest held-out loss, which is the result of a run with --early-stopping.

    It is kept in memory, so that it needs no checkpoint at each evaluation: a resumed run looks for it again.
    """

    patience: int = 0  # evaluations in which the loss may fail to fall; 0: the last adapter is the result
    loss: float = math.inf  # nats per token
    step: int = 0
    weights: dict[str, Any] = field(default_factory=dict)

    def keep_if_better(self, model: Any, state: Any, loss: float) -> bool:
        """Take the adapter where it is the best so far; whether the loss has not fallen for too long."""
        if loss < self.loss:
            self.weights = trained_weights(model)
            self.loss, self.step = loss, state.global_step
        # Counted by step, since after running out of memory some evaluations are made a second time.
        return sum("eval_loss" in entry and entry["step"] > self.step for entry in state.log_history) >= self.patience

    def restore(self, model: Any) -> None:
        set_weights(model, self.weights)


def perplexity(loss: float) -> float:
    """e to a loss in nats per token: among how many equally likely tokens the model seems to choose."""
    return math.exp(min(loss, 700))  # beyond that, no float holds it


def emit_early_stop(state: Any, timer: StepTimer, best: BestAdapter) -> None:
    left = state.max_steps - state.global_step
    seconds = None if timer.step_s is None else left * timer.step_s
    price = run_facts().get("usd_per_minute")
    emit(
        "early_stopped",
        step=state.global_step,
        of=state.max_steps,
        kept_step=best.step,
        eval_loss=round(best.loss, 4),
        steps_saved=left,
        seconds_saved=None if seconds is None else round(seconds, 1),
        usd_saved=round(seconds / 60 * price, 4) if seconds is not None and price else None,
    )
