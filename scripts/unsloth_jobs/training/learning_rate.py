"""The peak learning rate of a LoRA, where none is given. references/defaults.md says what it rests on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .lora import alpha_of
from .models import text_config
from .setting import AUTO
from .settings import TrainingSettings
from .steps import effective_batch_size

RATE, WIDTH = 5e-4, 2000  # the best rate at this hidden size, by Tinker's sweeps, of long runs
SHORT = 1.25  # times that: runs of some hundred steps are best at a higher rate, published up to 1.5 times, and measured here
EXPONENTS = {"llama": 0.781, "qwen": 0.0775}  # of width, by what a model type begins with: the families swept there
ALPHA, ROWS = 32, 16  # a LoRA's alpha there; rows of a step where the rate was held against measurements of ours
MOST_BY_ROWS = 2.0  # times, up or down: the square root of the batch size is a rule of thumb
LARGEST = 2e-3  # no run here diverged at it; most that are published did so at 3e-3


def learning_rate_for(settings: TrainingSettings, config: Mapping[str, Any]) -> float:
    """The learning rate as a number: the one given, or what auto chooses for a model with this config.json."""
    if settings.learning_rate != AUTO:
        return float(settings.learning_rate)
    # An adapter's step is alpha/r times the sum over its r ranks: it grows with alpha, and rank itself drops out.
    rate = RATE * SHORT * width_factor(config) * (ALPHA / alpha_of(settings)) * rows_factor(effective_batch_size(settings))
    return float(f"{min(rate, LARGEST):.1e}")


def width_factor(config: Mapping[str, Any]) -> float:
    """A family that nobody has swept gets the lower of the two families' rates."""
    ratio = WIDTH / hidden_size(config)
    kind = str(text_config(config).get("model_type", ""))
    known = [exponent for name, exponent in EXPONENTS.items() if kind.startswith(name)]
    return min(ratio**exponent for exponent in known or EXPONENTS.values())


def rows_factor(rows: int) -> float:
    return min(max(math.sqrt(rows / ROWS), 1 / MOST_BY_ROWS), MOST_BY_ROWS)


def hidden_size(config: Mapping[str, Any]) -> int:
    """The model's width; where its configuration does not say, the one at which the rule is RATE itself."""
    return text_config(config).get("hidden_size") or WIDTH


def why_learning_rate(settings: TrainingSettings, config: Mapping[str, Any]) -> str:
    return (
        f"learning rate {learning_rate_for(settings, config):g} for a hidden size of {hidden_size(config):,}, "
        f"LoRA alpha {alpha_of(settings)} and {effective_batch_size(settings)} rows a step"
    )
