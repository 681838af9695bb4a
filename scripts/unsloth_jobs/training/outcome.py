"""How every training ends: how many steps it made, and its last event."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .checkpoints import step_of
from .evaluation import Evaluation
from .machine import peak_gb
from .parent import Parent
from .report import LAST_EVENTS, emit
from .run import cost_usd
from .settings import TrainingSettings


def count_trained_steps(trainer: Any, checkpoint: Path | None) -> int:
    """Steps that this run made itself; none is a warning."""
    trained = trainer.state.global_step - (step_of(checkpoint) if checkpoint else 0)
    if not trained:  # the checkpoint is this very run's: what it had learned, and no more, is the result
        message = "Nothing was left to train: the checkpoint was this run's last one. Its adapter is the result."
        emit("warning", code="nothing_trained", message=message)
    return trained


def emit_done(
    settings: TrainingSettings,
    trainer: Any,
    masks: Mapping[str, Any],
    evaluation: Evaluation | None,
    parent: Parent | None,
    trained_steps: int,
    began: float,
    **measured: Any,
) -> None:
    """The event `done`. began: of time.monotonic; measured: what the method itself adds, losses first."""
    emit(
        "done",
        **measured,
        graded=evaluation and evaluation.as_event(),
        early_stopped="early_stopped" in LAST_EVENTS,
        supervised_fraction=masks["supervised_fraction"],
        coverage=LAST_EVENTS["coverage"]["coverage"],
        parameters=LAST_EVENTS["coverage"]["parameters"],
        cost_usd=cost_usd(),
        steps=trainer.state.global_step,
        trained_steps=trained_steps,
        **trainer.timer.figures(),
        peak_gb=peak_gb(),
        **({"peaks_gb": trainer.timer.peaks_gb} if len(trainer.timer.peaks_gb) > 1 else {}),
        went_on_from=parent and parent.name,
        path=str(Path(settings.save_local).resolve()),
        repo=settings.output_repo or None,
        duration_s=round(time.monotonic() - began, 1),
    )
