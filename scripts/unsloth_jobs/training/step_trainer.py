"""What all trainers share: the rows of each step, steps that are timed, an evaluation that cannot end the run."""

from __future__ import annotations

import functools
from typing import Any

from .batching import Passes
from .report import emit
from .step_timer import StepTimer


class StepTrainer:
    """Mixed into one of TRL's trainers, to the left of it; `passes` and `timer` are set once it is made.

    A subclass has train_batch(sequences), a batch of tensors from the lists of row numbers in a pass, and measure(), the
    held-out metrics: eval_loss, eval_runtime and what else is measured. Where that sets `parts`, the loss and the weight of
    each batch of held-out rows, these are kept in parts_at, by step.
    """

    eval_dataset: Any
    accelerator: Any
    callback_handler: Any
    args: Any
    state: Any
    control: Any
    log: Any
    passes: Passes
    timer: StepTimer
    train_batch: Any
    measure: Any
    parts: list[tuple[float, float]] | None = None

    def get_train_dataloader(self):
        import torch
        from torch.utils.data import DataLoader

        numbers = RowNumbers(len(self.passes.steps.lengths))
        pinned = torch.cuda.is_available()
        loader = DataLoader(numbers, batch_sampler=self.passes, collate_fn=self.train_batch, pin_memory=pinned)
        return self.accelerator.prepare(loader)

    def get_batch_samples(self, *args, **kwargs):
        self.timer.step_begins()
        batches, items = super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]  # of the trainer that it is mixed into
        self.timer.count_tokens(self.passes.steps.tokens(self.state.global_step))
        return batches, items

    def evaluate(self, *args, **kwargs):
        """The held-out metrics; {} and a warning where they cannot be measured, since training is worth more."""
        try:
            metrics = {} if self.eval_dataset is None else self.measure()
        except Exception as error:
            self.eval_dataset, metrics = None, {}
            message = f"The held-out rows are no longer evaluated: {type(error).__name__}: {error}"
            emit("warning", code="evaluation_failed", message=message)
        if self.parts:
            self.parts_at[self.state.global_step], self.parts = self.parts, None
        if metrics:
            self.log({**metrics})  # to which TRL adds its own
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @functools.cached_property
    def parts_at(self) -> dict[int, list[tuple[float, float]]]:
        return {}


class RowNumbers:
    """A data set for torch whose items are what its sampler asks for: the collator reads the rows themselves."""

    def __init__(self, rows: int):
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, sequence: list[int]) -> list[int]:
        return sequence
