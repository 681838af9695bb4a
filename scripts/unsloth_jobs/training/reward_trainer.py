"""GRPO: completions of a prompt are compared with each other, and those with more reward made likelier.

Not TRL's GRPOTrainer, for three reasons: on a GPU Unsloth rewrites it with another reference model and other defaults; its
passes are padded to the longest prompt and completion of all; and a run that goes on from a checkpoint samples others.
Its loss is TRL's `dapo` (a test compares the two), on completions that are learned from once, so that nothing is clipped.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .adapter_weights import as_it_began
from .batching import Batching
from .fused_head import fused_outputs
from .masks import IGNORE
from .padding import padded
from .questions import Question
from .rewards import Completion, Rewards, Scores
from .rollouts import Sampler, writing
from .settings import TrainingSettings
from .step_trainer import StepTrainer
from .trainer_options import trainer_options

SMALLEST_SPREAD = 1e-4  # added to a group's standard deviation, as TRL does
KL_ROWS = 8  # completions of a step whose KL is measured where the loss does not need it


@dataclass(frozen=True)
class Rollout:
    """A step's completions, those of a prompt side by side, as they were sampled and rewarded."""

    questions: list[Question]  # of each completion
    completions: list[Completion]
    scores: Scores
    advantages: list[float]
    seconds: float  # in which they were written

    @property
    def written(self) -> int:
        """Tokens that the model wrote."""
        return sum(len(one.tokens) for one in self.completions)

    @property
    def tokens(self) -> int:
        """Of all completions, each with its prompt."""
        return self.written + sum(len(question.prompt) for question in self.questions)

    def sequence(self, place: int) -> tuple[list[int], list[int]]:
        """Ids and labels: only what the model wrote is learned."""
        prompt, tokens = self.questions[place].prompt, self.completions[place].tokens
        return prompt + tokens, [IGNORE] * len(prompt) + tokens


def advantages_of(rewards: Sequence[float], group: int) -> list[float]:
    """How much better each completion is than the others of its prompt, in standard deviations of these."""
    found: list[float] = []
    for start in range(0, len(rewards), group):
        one = rewards[start : start + group]
        mean, deviation = statistics.fmean(one), statistics.stdev(one)
        found += [0.0 if deviation < 1e-9 else (reward - mean) / (deviation + SMALLEST_SPREAD) for reward in one]
    return found


class RewardTrainer(StepTrainer):
    """Mixed into transformers' Trainer; what is annotated here is set once it is made."""

    questions: list[Question]
    rewards: Rewards
    sampler: Sampler
    group: int
    beta: float
    began_with: Mapping[str, Any]  # weights of the adapter that training goes on from, which is the reference
    filler: int
    multiple: int
    batching: Batching
    rollout: Rollout
    model: Any
    compute_loss_context_manager: Any
    figures: list[dict[str, float]]
    prompt_tokens = 0  # of the steps that this run made itself, each prompt once

    def train_batch(self, sequences):
        import torch

        return {"rows": torch.tensor([row for [row] in sequences])}

    def training_step(self, model, inputs, *args, **kwargs):
        """A whole optimizer step's gradients: completions are written, rewarded, and learned from in passes that fit."""
        import torch

        began = time.monotonic()
        self.rollout = rollout = self.roll_out(model, inputs["rows"].tolist())
        self.timer.count_tokens(rollout.tokens)
        self.prompt_tokens += sum(len(self.questions[row].prompt) for row in inputs["rows"].tolist())
        model.train()
        learned = [place for place, advantage in enumerate(rollout.advantages) if advantage or self.beta]
        reference = self.reference_of(model, rollout, learned if self.beta else [])
        kl = self.divergence(model, rollout, reference)
        loss = torch.zeros((), device=self.accelerator.device)
        for places in self.parts(rollout, learned):
            with self.compute_loss_context_manager():
                one = self.loss_of(model, rollout, places, reference)
            self.accelerator.backward(one)
            loss += one.detach()
        self.figures.append(figures_of(rollout, self.group, kl, time.monotonic() - began))
        return loss

    def roll_out(self, model, rows) -> Rollout:
        """The completions of these rows by the model as it is now."""
        began = time.monotonic()
        questions = [self.questions[row] for row in rows for _ in range(self.group)]
        with writing(model, self.accelerator) as ready:
            completions = self.sampler.write(ready, [question.prompt for question in questions], self.state.global_step)
        seconds = time.monotonic() - began
        scores = self.rewards.of(completions, questions)
        return Rollout(questions, completions, scores, advantages_of(scores.rewards, self.group), seconds)

    def parts(self, rollout: Rollout, places: Sequence[int]) -> list[list[int]]:
        """Places in passes, those of like length together, none of more tokens than fit, padding included."""
        length = lambda place: len(rollout.sequence(place)[0])  # noqa: E731
        found: list[list[int]] = []
        for place in sorted(places, key=lambda place: (-length(place), place)):
            widest = length(found[-1][0]) if found else 0
            if found and (len(found[-1]) + 1) * -(-widest // self.multiple) * self.multiple <= self.batching.tokens:
                found[-1].append(place)
            else:
                found.append([place])
        return found

    def loss_of(self, model, rollout: Rollout, places: Sequence[int], reference: Mapping[int, Any]) -> Any:
        """Of these completions, divided by the tokens of all that the step wrote."""
        import torch

        log_probs, mask = self.log_probs(model, rollout, places)
        advantages = torch.tensor([rollout.advantages[place] for place in places], device=log_probs.device)[:, None]
        # Its value is 1 and it has the gradient: what was sampled by these very weights needs no correction, nor clipping.
        ratio = torch.exp(log_probs - log_probs.detach())
        losses = -advantages * ratio
        if self.beta:
            theirs = torch.nn.utils.rnn.pad_sequence([reference[place] for place in places], batch_first=True)
            theirs = torch.nn.functional.pad(theirs, (0, log_probs.shape[1] - theirs.shape[1]))
            losses = losses + self.beta * kl_of(log_probs, theirs) * ratio  # without it, the gradient is not the KL's
        return (losses * mask).sum() / rollout.written

    def log_probs(self, model, rollout: Rollout, places: Sequence[int]) -> tuple[Any, Any]:
        """Log-probability of each written token (sequences × tokens, the first column is the second token's), and which these are."""
        batch = padded([rollout.sequence(place) for place in places], self.filler, self.multiple)
        batch = {name: value.to(self.accelerator.device) for name, value in batch.items()}
        found = fused_outputs(model, batch)
        mask = batch["completion_mask"][:, 1:]
        return found.log_probs[:, -mask.shape[1] :].float(), mask

    def read(self, model, rollout: Rollout, places: Sequence[int]) -> dict[int, Any]:
        """The log-probabilities by place, without gradients."""
        import torch

        found: dict[int, Any] = {}
        for part in self.parts(rollout, places):
            with torch.no_grad(), self.compute_loss_context_manager():
                log_probs, mask = self.log_probs(model, rollout, part)
            found |= {place: row * kept for place, row, kept in zip(part, log_probs, mask, strict=True)}
        return found

    def reference_of(self, model, rollout: Rollout, places: Sequence[int]) -> dict[int, Any]:
        """The log-probabilities of the model that training started from."""
        if not places:
            return {}
        with as_it_began(self.accelerator.unwrap_model(model), self.began_with):
            return self.read(model, rollout, places)

    def divergence(self, model, rollout: Rollout, reference: Mapping[int, Any]) -> float:
        """KL from the start in nats per token, of a completion of each of a few prompts."""
        places = [*range(0, len(rollout.completions), self.group)][:KL_ROWS]
        theirs = reference or self.reference_of(model, rollout, places)
        ours = self.read(model, rollout, places)
        sums = [float(kl_of(ours[place], aligned(theirs[place], ours[place])).sum()) for place in places if place in theirs]
        tokens = sum(len(rollout.completions[place].tokens) for place in places if place in theirs)
        return sum(sums) / max(tokens, 1)

    def prompt_figures(self) -> dict[str, int]:
        """The prompts' tokens, which an estimate counts in: all of them, and those of the steps that were timed."""
        share = self.prompt_tokens / max(self.timer.tokens, 1)
        timed = {"prompt_tokens": self.timer.tokens, "prompt_timed_tokens": self.timer.timed_tokens}
        return {name: round(share * tokens) for name, tokens in timed.items()}

    def log(self, logs, *args, **kwargs):
        """With the means of what the steps since the last line measured."""
        if "loss" in logs and self.figures:
            names = self.figures[0]
            logs = logs | {name: statistics.fmean(one[name] for one in self.figures) for name in names}
            self.figures.clear()
        super().log(logs, *args, **kwargs)


def kl_of(log_probs: Any, reference: Any) -> Any:
    """Of each token: an estimate of the KL from the reference that is never negative (Schulman's k3), in nats."""
    difference = reference - log_probs
    return difference.exp() - difference - 1


def aligned(row: Any, other: Any) -> Any:
    """A row of zeros-padded values, as long as another."""
    import torch

    return torch.nn.functional.pad(row, (0, len(other) - len(row))) if len(row) < len(other) else row[: len(other)]


def figures_of(rollout: Rollout, group: int, kl: float, seconds: float) -> dict[str, float]:
    """What a step's completions were like, by the names in the event `progress`."""
    completions, scores = rollout.completions, rollout.scores
    groups = [scores.rewards[start : start + group] for start in range(0, len(scores.rewards), group)]
    parts = (
        {f"reward_{name}": statistics.fmean(values) for name, values in scores.parts.items()} if len(scores.parts) > 1 else {}
    )
    return {
        "reward": statistics.fmean(scores.rewards),
        "reward_spread": statistics.fmean(map(statistics.pstdev, groups)),
        **({"right": statistics.fmean(scores.right)} if scores.graded else {}),
        "informative": statistics.fmean(max(one) - min(one) > 1e-9 for one in groups),
        "length": rollout.written / len(completions),
        "clipped": statistics.fmean(one.cut for one in completions),
        "kl": kl,
        "tokens_per_s": rollout.written / max(rollout.seconds, 1e-9),
        "writing_s": rollout.seconds,
        "rewarding_s": scores.waited_s,
        "step_s": seconds,
        "reward_failures": scores.failed,
        **parts,
    }


def reward_options(settings: TrainingSettings, division: Batching) -> dict[str, Any]:
    """trainer_options of a step that is one batch, with all else that Unsloth changes on a GPU."""
    options = trainer_options(settings, division, False)
    del options["max_length"]
    return options | {
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "warmup_steps": 0.05,
        "lr_scheduler_type": "constant_with_warmup",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "remove_unused_columns": False,
        "auto_find_batch_size": False,
        "torch_empty_cache_steps": None,
    }
