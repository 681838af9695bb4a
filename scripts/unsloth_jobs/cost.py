"""How long a run takes on each flavor and what that costs, cheapest run first.

A step is arithmetic, at a share of the GPU's peak, and a fixed time for each micro-batch to launch its kernels: on a
small model that is most of it. At best the one hides behind the other, at worst they add up: the result is an interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .hardware import Flavor
from .hub import Model

UTILISATION = (0.45, 0.15)  # share of peak arithmetic that a step reaches: best, worst
LAUNCH_S = (0.006, 0.020)  # seconds per decoder layer and micro-batch: best, worst
STARTUP_S = (180, 600)  # machine start, installation, download, compilation, final push
FLOPS_PER_WEIGHT = 6  # per token: forward 2, recomputed forward 2, backward to the activations 2
TIMEOUT_MARGIN = 1.25
LONGEST_TIMEOUT_S = 72 * 3600


@dataclass(frozen=True)
class Work:
    """A run's size. padded_tokens: with the padding that batches need."""

    tokens: float
    padded_tokens: float
    micro_batches: float
    evaluation_rows: int


@dataclass(frozen=True)
class Candidate:
    flavor: str
    fits: bool
    reason: str  # why it does not fit, or ""
    vram_gb: float
    needed_gb: float
    hours_low: float
    hours_high: float
    usd_low: float
    usd_high: float


@dataclass(frozen=True)
class Recommended:
    """timeout_s: the upper end with a margin, in whole ten minutes. max_usd: what the timeout costs if all is used."""

    flavor: str
    timeout_s: int
    max_usd: float


def work(rows: int, tokens_per_row: float, settings: Any) -> Work:
    """The work of a run over `rows` rows of a mean `tokens_per_row` tokens."""
    rows = min(rows, settings.num_samples) if settings.num_samples else rows
    held_out = round(rows * settings.eval_split)
    training_rows = rows - held_out
    micro_batches = math.ceil(training_rows / settings.batch_size) * settings.num_epochs
    if settings.max_steps:
        micro_batches = min(micro_batches, settings.max_steps * settings.gradient_accumulation)
    tokens = micro_batches * settings.batch_size * tokens_per_row
    # Rows of like length share a batch, so little is padded: 15% is the worst seen with buckets of 64 tokens.
    return Work(tokens, tokens * 1.15, micro_batches, min(held_out, settings.max_eval_rows))


def candidates(flavors: Iterable[Flavor], model: Model, needed_gb: float, size: Work, tokens_per_row: float) -> list[Candidate]:
    """Each flavor with its time and price, those that fit first, cheapest run first (by its upper end)."""
    found = [candidate(flavor, model, needed_gb, size, tokens_per_row) for flavor in flavors]
    return sorted(found, key=lambda one: (not one.fits, one.usd_high))


def candidate(flavor: Flavor, model: Model, needed_gb: float, size: Work, tokens_per_row: float) -> Candidate:
    reason = misfit(flavor, needed_gb)
    vram = flavor.vram_gb / max(flavor.gpus, 1)
    if reason:
        return Candidate(flavor.name, False, reason, vram, round(needed_gb, 2), 0.0, 0.0, 0.0, 0.0)
    low, high = (seconds(flavor, model, size, tokens_per_row, end) for end in (0, 1))
    return Candidate(
        flavor.name,
        True,
        "",
        vram,
        round(needed_gb, 2),
        round(low / 3600, 2),
        round(high / 3600, 2),
        round(low / 60 * flavor.usd_per_minute, 2),
        round(high / 60 * flavor.usd_per_minute, 2),
    )


def misfit(flavor: Flavor, needed_gb: float) -> str:
    if not flavor.gpus:
        return "no GPU"
    if flavor.gpus > 1:
        return "several GPUs: the template trains on one"
    if flavor.gpu is None:
        return f"speed of {flavor.accelerator or 'its GPU'} unknown"
    if flavor.vram_gb < needed_gb:
        return f"{flavor.vram_gb:.0f} GB of memory, {needed_gb:.1f} needed"
    return ""


def seconds(flavor: Flavor, model: Model, size: Work, tokens_per_row: float, end: int) -> float:
    """Billed seconds of the run; end 0 is the best case, 1 the worst."""
    per_token = FLOPS_PER_WEIGHT * model.parameters / (flavor.gpu.bf16_tflops * 1e12 * UTILISATION[end])
    layers = model.config.get("text_config", model.config).get("num_hidden_layers", 32)
    arithmetic, launching = size.padded_tokens * per_token, size.micro_batches * layers * LAUNCH_S[end]
    training = max(arithmetic, launching) if end == 0 else arithmetic + launching
    # At the start, at each quarter and at the end; a forward pass is a third of a step, one row at a time.
    evaluation = 5 * size.evaluation_rows * (tokens_per_row * per_token + layers * LAUNCH_S[end]) / 3
    return STARTUP_S[end] + training + evaluation


def recommend(ranked: list[Candidate], flavors: Iterable[Flavor]) -> Recommended | None:
    """The cheapest run that fits, with a timeout that it will not reach; None where nothing fits."""
    best = next((one for one in ranked if one.fits), None)
    if best is None:
        return None
    timeout = min(math.ceil(best.hours_high * 3600 * TIMEOUT_MARGIN / 600) * 600, LONGEST_TIMEOUT_S)
    price = next(flavor.usd_per_minute for flavor in flavors if flavor.name == best.flavor)
    return Recommended(best.flavor, timeout, round(timeout / 60 * price, 2))
