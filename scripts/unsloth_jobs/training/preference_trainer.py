"""TRL's trainers of preferences over rows that are tokens already: whatever the trainer, the masks are those of check.py."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

from .batching import Batching
from .fused_head import fused_outputs
from .masks import IGNORE
from .padding import padded
from .preference_losses import LOSSES
from .preference_scores import Score, Yardstick
from .processes import process_count, process_number
from .settings import TrainingSettings
from .step_trainer import StepTrainer
from .trainer_options import trainer_options

REFERENCE = "ref"  # TRL's name for its frozen copy of the adapter that training starts from


class PreferenceTrainer(StepTrainer):
    """Mixed into TRL's trainer of a loss; rows, held_out, filler, multiple and yardstick are set once it is made."""

    rows: Any
    held_out: Any
    filler: int
    multiple: int
    yardstick: Yardstick
    model: Any
    prediction_step: Any
    current_gradient_accumulation_steps: int
    _prepare_inputs: Any

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset  # tokens already

    def tokenize_row(self, feature, *args, **kwargs):
        return feature

    def train_batch(self, sequences):
        numbers = [row for one in sequences for row in one]
        return self.batch_of(self.rows, numbers or [0]) | {"rows": len(numbers)}

    def compute_loss(self, model, inputs, *args, **kwargs):
        """TRL's mean over the rows of a pass, weighted so that a step's is the mean over its rows, whoever computes them."""
        rows = inputs.pop("rows", None)
        loss = super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]  # of the trainer that it is mixed into
        if rows is None:
            return loss
        of_step = len(self.passes.steps.rows(self.state.global_step))
        return loss * (rows * self.current_gradient_accumulation_steps * process_count() / of_step)

    def batch_of(self, rows, numbers):
        """The batch of these rows of a data set, as every trainer of TRL takes it here."""
        made = [rows[number] for number in numbers]
        if "chosen_ids" in made[0]:
            answers = [(row[f"{name}_ids"], row[f"{name}_labels"]) for name in ("chosen", "rejected") for row in made]
            return padded(answers, self.filler, self.multiple)
        batch = padded([(row["input_ids"], row["labels"]) for row in made], self.filler, self.multiple)
        others = [made[at - 1] if len(made) > 1 else rows[(numbers[0] + 1) % len(rows)] for at in range(len(made))]
        mixed = [with_answer(row, other, self.args.max_length) for row, other in zip(made, others, strict=True)]
        kl = padded(mixed, self.filler, self.multiple)
        return batch | {f"KL_{name}": values for name, values in kl.items()} | {"label": as_tensor(made, "desirable")}

    def measure(self, alone=False):
        """The loss and the figures of this process's held-out rows, one by one in any case, each with its number."""
        self.model.eval()
        with self.measuring():
            return [(one, self.score(one)) for one in range(process_number(), len(self.held_out), process_count())]

    def metrics_of(self, parts):
        metrics = self.yardstick.measured(self.state.global_step, parts)
        return {f"eval_{name}": value for name, value in metrics.items()}

    def weighed(self, parts):
        return [(score.loss, 1) for score in parts]

    @contextlib.contextmanager
    def measuring(self):
        """TRL's loss with the start's log-probabilities, where they are known, and without KTO's noisy estimate of its KL."""
        before = {name: getattr(self, name, None) for name in ("precompute_ref_logps", "calculate_KL")}
        self.precompute_ref_logps, self.calculate_KL = bool(self.yardstick.start), False
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(self, name, value)

    def score(self, number):
        import torch

        batch = self.batch_of(self.held_out, [number])
        if self.yardstick.start:
            sums = [torch.tensor([sum(one)]) for one in self.yardstick.start[number].log_probs]
            names = ("ref_chosen_logps", "ref_rejected_logps") if len(sums) == 2 else ("ref_logps",)
            batch |= dict(zip(names, sums, strict=True))
        batch, watched = self._prepare_inputs(batch), Watched(self.model)
        # Before training the model is not prepared yet: without this, the start would be measured in another precision.
        with torch.no_grad(), self.accelerator.autocast(), torch.compiler.set_stance("force_eager"):
            loss, *_ = self.prediction_step(watched, batch, prediction_loss_only=True)
        answers = batch["completion_mask"][:, 1:].bool()
        found = watched.log_probs.float()[:, -answers.shape[1] :]
        log_probs = tuple(row[mask].tolist() for row, mask in zip(found, answers, strict=True))
        return Score(loss.item(), log_probs, bool(batch["label"][0]) if "label" in batch else None)

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)  # type: ignore[misc]  # of the trainer that it is mixed into
        shutil.rmtree(Path(output_dir or self.args.output_dir) / REFERENCE, ignore_errors=True)  # the start has it


class FusedForward:
    """For ORPO and SimPO: their losses on the log-probabilities of TRL's fused LM head, without logits of a whole batch.

    Only answers count. TRL's own ORPO learns the prompts as well.
    """

    def concatenated_forward(self, model, batch):
        mask = batch["completion_mask"][:, 1:]
        outputs = fused_outputs(model, batch)
        log_probs = outputs.log_probs[:, -mask.shape[1] :]
        chosen, rejected = (log_probs.sum(1) / mask.sum(1)).chunk(2)
        chosen_mask, rejected_mask = mask.bool().chunk(2)
        nll = -log_probs.chunk(2)[0][chosen_mask].mean()
        logits = outputs.mean_logits[:, -mask.shape[1] :].chunk(2)
        return chosen, rejected, logits[0][chosen_mask], logits[1][rejected_mask], nll


class Watched:
    """A model that keeps the log-probabilities that it gave last."""

    def __init__(self, model: Any):
        self.watched = model
        self.log_probs: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        outputs = self.watched(*args, **kwargs)
        self.log_probs = outputs.log_probs
        return outputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self.watched, name)


def as_tensor(rows: list[dict[str, Any]], name: str) -> Any:
    import torch

    return torch.tensor([row[name] for row in rows])


def with_answer(row: dict[str, Any], other: dict[str, Any], max_length: int) -> tuple[list[int], list[int]]:
    """A row's prompt with another row's answer, by which KTO estimates how far the model has moved from its start."""
    prompt, answer = first_label(row["labels"]), first_label(other["labels"])
    ids = row["input_ids"][:prompt] + other["input_ids"][answer:]
    return ids[:max_length], ([IGNORE] * prompt + other["labels"][answer:])[:max_length]


def first_label(labels: list[int]) -> int:
    return next((at for at, label in enumerate(labels) if label != IGNORE), len(labels))


# What Unsloth or TRL would fill in otherwise. The reference of each row is computed when the row is learned from.
FIXED = {"precompute_ref_log_probs": False, "label_smoothing": 0.0, "padding_free": False, "truncation_mode": "keep_start"}


def preference_options(settings: TrainingSettings, division: Batching, evaluates: bool) -> dict[str, Any]:
    """trainer_options, with all else that Unsloth changes on a GPU: there as here a run is what this says."""
    return trainer_options(settings, division, evaluates) | {
        "warmup_steps": 0.1,
        "lr_scheduler_type": "linear",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "disable_dropout": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": True,
        "auto_find_batch_size": False,
        "include_num_input_tokens_seen": False,
        "eval_accumulation_steps": None,
        "torch_empty_cache_steps": None,
    }


def preference_trainer(name: str, beta: float, gamma: float, weights: tuple[float, float], options: dict[str, Any]) -> Any:
    """The class of the loss's trainer, and its configuration. weights: of desirable and undesirable answers, for KTO."""
    kind = LOSSES[name].trainer
    if kind == "dpo":
        from trl import DPOConfig, DPOTrainer

        config = DPOConfig(**options, loss_type=[name], beta=beta, **FIXED)
        return type("Trainer", (PreferenceTrainer, DPOTrainer), {}), config
    if kind == "kto":
        from trl import KTOConfig, KTOTrainer

        desirable, undesirable = weights
        config = KTOConfig(
            **options,
            loss_type="kto",
            train_sampling_strategy="sequential",
            beta=beta,
            desirable_weight=desirable,
            undesirable_weight=undesirable,
            precompute_ref_log_probs=False,
        )
        return type("Trainer", (PreferenceTrainer, KTOTrainer), {}), config
    if kind == "orpo":
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        return type("Trainer", (PreferenceTrainer, FusedForward, ORPOTrainer), {}), ORPOConfig(**options, beta=beta)
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    config = CPOConfig(**options, loss_type=name, beta=beta, simpo_gamma=gamma, cpo_alpha=0.0, label_smoothing=0.0)
    return type("Trainer", (PreferenceTrainer, FusedForward, CPOTrainer), {}), config


def remove_reference(model: Any) -> None:
    """The model without TRL's copy of the adapter that training started from."""
    if REFERENCE in model.peft_config:
        model.delete_adapter(REFERENCE)
        model.set_adapter("default")


def keep_reference_if_trained(model: Any) -> None:
    """Without that copy where the adapter is new: with no adapter at all the model is the same, and faster."""
    if all(not bool(value.any()) for name, value in model.named_parameters() if "lora_B.default" in name):
        remove_reference(model)
