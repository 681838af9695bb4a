"""What all trainers share: the rows of each step, steps that are timed and added up over all processes, an evaluation that
cannot end the run.
"""

from __future__ import annotations

import functools
import time
from typing import Any

from .batching import Passes
from .memory import free_memory
from .processes import add_gradients, add_up, from_all, greatest, is_first, process_count
from .report import emit
from .step_timer import StepTimer


class StepTrainer:
    """Mixed into one of TRL's trainers, to the left of it; `passes` and `timer` are set once it is made.

    A subclass has train_batch(sequences), a batch of tensors from the lists of row numbers in a pass; measure(alone), this
    process's parts of the held-out rows, each with its number (alone: a row each, which takes the least memory); and
    metrics_of(the parts of all, in order): eval_loss and what else.
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
    metrics_of: Any
    model: Any
    out_of_memory: Exception | None = None  # in a pass of this step; once it is raised, all processes raise it
    losses: Any = 0  # of this step's passes so far

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
        items = None if items is None else add_up(items)  # learned tokens: of the step, whoever computes them
        self.timer.count_tokens(self.passes.steps.tokens(self.state.global_step))
        return batches, items

    def training_step(self, model, inputs, num_items_in_batch=None):
        """A pass. After a step's last one its gradient, and its loss, are those of all processes' passes.

        That a pass does not fit one GPU is agreed on before, so that all go on in less memory, or none.
        """
        if process_count() == 1:
            return super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
        import torch

        loss = torch.zeros((), device=self.args.device)
        try:
            if not self.out_of_memory:
                loss = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
        except torch.OutOfMemoryError as error:
            self.out_of_memory = error.with_traceback(None)  # it would keep the tensors of the pass
        self.losses = self.losses + loss
        if not self.accelerator.sync_gradients:
            return torch.zeros_like(loss)
        if greatest(int(self.out_of_memory is not None)):
            self.out_of_memory = self.out_of_memory or torch.OutOfMemoryError("CUDA out of memory on another GPU.")
            raise self.out_of_memory
        # The loss is a sum divided by all tokens of the step or, without their number, a mean of this process's rows.
        share = 1 / process_count() if num_items_in_batch is None else 1.0
        total, self.losses = add_gradients(list(self.model.parameters()), self.losses, share), 0
        return total

    def _save_checkpoint(self, *args, **kwargs):
        if is_first():
            super()._save_checkpoint(*args, **kwargs)  # type: ignore[misc]

    def evaluate(self, *args, **kwargs):
        """The held-out metrics; {} and a warning where they cannot be measured, since training is worth more."""
        if self.eval_dataset is None:
            return {}
        import torch

        began = time.monotonic()
        own, failure = self.try_to_measure()
        if greatest(int(isinstance(failure, torch.OutOfMemoryError))):  # in one of the processes: all divide the rows alike
            free_memory()
            own, failure = self.try_to_measure(alone=True)
        if failures := from_all([f"{type(failure).__name__}: {failure}"] if failure else []):
            self.eval_dataset, metrics = None, {}
            message = f"The held-out rows are no longer evaluated: {failures[0]}"
            emit("warning", code="evaluation_failed", message=message)
        else:
            parts = [part for _, part in sorted(from_all(own), key=lambda one: one[0])]
            self.parts_at[self.state.global_step] = self.weighed(parts)
            metrics = self.metrics_of(parts)
            metrics["eval_runtime"] = time.monotonic() - began
            self.log({**metrics})  # to which TRL adds its own
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def try_to_measure(self, alone: bool = False) -> tuple[list[Any], Exception | None]:
        try:
            return self.measure(alone), None
        except Exception as error:
            return [], error.with_traceback(None)  # it would keep the tensors of the pass

    def weighed(self, parts: list[Any]) -> list[tuple[float, float]]:
        """Loss and weight of each part of the held-out rows, by which runs are compared."""
        return parts

    @functools.cached_property
    def parts_at(self) -> dict[int, list[tuple[float, float]]]:
        """These, by step."""
        return {}


class RowNumbers:
    """A data set for torch whose items are what its sampler asks for: the collator reads the rows themselves."""

    def __init__(self, rows: int):
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, sequence: list[int]) -> list[int]:
        return sequence
