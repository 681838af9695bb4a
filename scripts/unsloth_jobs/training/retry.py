"""Training that goes on in less memory where a GPU runs out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .adapter_weights import set_weights, trained_weights
from .batching import Batching, use_less_memory
from .checkpoints import load_if_finished
from .machine import peak_gb
from .memory import free_memory, recompute_activations
from .processes import from_all, process_count, share_weights
from .run import StopSignal


def train_with_oom_retry(
    trainer: Any,
    make_trainer: Any,
    checkpoint: Path | None,
    stop_signal: StopSignal,
    kept: bool,
    ways: Callable[[], Iterable[Batching]],
) -> tuple[Any, float | None]:
    """Train, from a checkpoint where there is one: the trainer that came to the end, and the loss before.

    Out of GPU memory a step is computed in smaller micro-batches, then with gradient checkpointing; it still sees the same
    rows, and training goes on from the newest checkpoint. Raises Stop where one row does not fit.
    """
    import torch

    share_weights(trainer.model)
    first = trained_weights(trainer.model)
    base_loss = trainer.evaluate().get("eval_loss")
    while True:
        try:
            stop_signal.training = True
            if not (checkpoint and load_if_finished(trainer, checkpoint)):
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            trainer.timer.peaks_gb = from_all([peak_gb()])
            return trainer, base_loss
        except torch.OutOfMemoryError as error:
            if process_count() > 1 and not trainer.out_of_memory:
                raise  # in one process alone, and elsewhere than in a pass: the others cannot follow
            batching, keeps = use_less_memory(trainer.batching, kept, ways(), error)
            checkpoint, evaluates = trainer.timer.checkpoint or checkpoint, trainer.eval_dataset is not None
        model = trainer.model
        del trainer
        free_memory()
        if kept and not keeps:
            recompute_activations(model)
        kept = keeps
        set_weights(model, first)  # where no checkpoint was reached, training begins again
        trainer = make_trainer(batching, kept)
        if not evaluates:
            trainer.eval_dataset = None
