"""What learning from rewards costs: most of it is writing, one token after the other, and all of it is per prompt."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..lookup.model_info import Model
from ..training.batching import Batching, choose_batching, rounded
from ..training.reward_trainer import KL_ROWS
from ..training.rollouts import MOST_AT_ONCE, SHARE_OF_FREE, sequence_bytes
from ..training.steps import effective_batch_size
from . import memory
from .decoding import writing_seconds
from .flavors import Flavor
from .history import Range

WRITING_START_S = (0.05, 0.5)  # of a batch, however short: an H200 took 0.4 to 0.6 s in all for five tokens of 512 completions
# Share of the peak arithmetic that a batch's next tokens reach: best, worst. They are few, and wait for memory.
WRITING_UTILISATION = (0.20, 0.05)
WRITTEN = (0.3, 1.0)  # of the limit, by the longest completion of a batch: best, worst
LEARNED = (0.15, 1.0)  # of the limit, by the mean completion, where all groups tell something
PASSES = 3.0  # forward and backward passes of learning, in floating-point operations per weight and token beside FORWARD
FORWARD = 2
LEARNING_UTILISATION = (0.40, 0.15)  # of passes over padded sequences, the head of the vocabulary included: best, worst
LEARNING_LAUNCH_S = (0.006, 0.03)  # seconds per decoder layer and pass: best, worst
NOT_MEASURED = ", with completions as long as they may be at worst"
WHY = {  # by --backend
    "unsloth": "GRPO of this skill on Unsloth's model; benchmarks/rewards.py compares it with TRL's GRPOTrainer",
    "trl": "chosen with --backend trl: for a model that Unsloth does not support",
}


def rewarded(settings: Any) -> bool:
    """Whether a template learns from rewards."""
    return hasattr(settings, "num_generations")


def completions_per_step(settings: Any) -> int:
    return int(effective_batch_size(settings) * settings.num_generations)


def longest_sequence(longest: int, settings: Any) -> int:
    """Tokens of the longest prompt with its completion. longest: of a prompt; 0 where it is not known."""
    return rounded((longest or settings.prompt_room) + settings.max_completion_length)


def divide_step(longest: int, settings: Any, keeps: Callable[[int], bool]) -> tuple[Batching, bool]:
    """As templates/grpo.py does: a step's completions in as few passes of learning as fit."""
    whole = replace(
        settings,
        batch_size=completions_per_step(settings),
        gradient_accumulation=1,
        max_seq_length=longest_sequence(longest, settings),
    )
    return choose_batching(whole, lambda sequences: 0, keeps, False)


def at_once(model: Model, settings: Any, longest: int, vram_gb: float) -> int:
    """Completions that are written at once, as the template chooses them."""
    weights = memory.memory(model, settings, 1, True).peak
    free = max(vram_gb - weights, 0) * memory.GB
    fit = int(SHARE_OF_FREE * free / sequence_bytes(model.config, longest_sequence(longest, settings)))
    return max(min(fit, MOST_AT_ONCE["cuda"], completions_per_step(settings)), 1)


def step_seconds(flavor: Flavor, model: Model, settings: Any, prompt: float, batching: Batching, together: int) -> Range:
    """Seconds of an optimizer step. prompt: mean tokens of a prompt; together: completions that are written at once."""
    completions, limit = completions_per_step(settings), settings.max_completion_length
    batches, layers = math.ceil(completions / together), memory.layers(model)
    launching = writing_seconds(layers, Range(*WRITTEN).times(limit), together)
    ends = []
    for at, launched in enumerate((launching.low, launching.high)):
        length = prompt + LEARNED[at] * limit
        arithmetic = FORWARD * model.parameters * together * WRITTEN[at] * limit
        arithmetic /= flavor.bf16_flops * WRITING_UTILISATION[at]
        writing = batches * (launched + arithmetic if at else max(launched, arithmetic))
        flops = (PASSES * FORWARD + FORWARD * (2 * KL_ROWS / completions + (settings.beta > 0))) * model.parameters
        learning = flops * completions * length / (flavor.bf16_flops * LEARNING_UTILISATION[at])
        launches = LEARNING_LAUNCH_S[at] * layers * math.ceil(completions * length / batching.tokens)
        prefill = FORWARD * model.parameters * completions * prompt / (flavor.bf16_flops * LEARNING_UTILISATION[at])
        ends.append(WRITING_START_S[at] * batches + writing + learning + launches + prefill)
    return Range(*ends)


def seconds_per_prompt_token(
    flavor: Flavor, model: Model, settings: Any, prompt: float, batching: Batching, longest: int
) -> Range:
    """Seconds per token of the prompts, which is the unit in which a run on rewards is measured (done's prompt_tokens)."""
    together = at_once(model, settings, longest, flavor.vram_gb / max(flavor.gpus, 1))
    step = step_seconds(flavor, model, settings, prompt, batching, together)
    return step.times(1 / max(effective_batch_size(settings) * prompt, 1))


def basis(known: str, settings: Any) -> str:
    return known + NOT_MEASURED if rewarded(settings) and known.startswith("shapes") else known
