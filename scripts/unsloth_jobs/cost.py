"""How long a run takes on each flavor and what that costs, cheapest run first.

A step is arithmetic, at a share of the GPU's peak, and a fixed time for each micro-batch to launch its kernels: on a
small model that is most of it. At best the one hides behind the other, at worst they add up: the result is a range.
What runs from here really took (ledger.py) moves that range, and makes it narrower.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from . import memory
from .hardware import Flavor
from .hub import Model, text_config
from .ledger import Ledger, Range

UTILISATION = (0.45, 0.15)  # share of peak arithmetic that a step reaches: best, worst
LAUNCH_S = (0.006, 0.020)  # seconds per decoder layer and micro-batch: best, worst
STARTUP = Range(180, 600)  # seconds: machine, installation, download, rows to tokens, compilation, final push
FLOPS_PER_WEIGHT = 6  # per token: forward 2, recomputed forward 2, backward to the activations 2
EVALUATIONS = 5  # at the start, at each quarter, at the end
TIMEOUT_MARGIN = 1.25
LONGEST_TIMEOUT_S = 72 * 3600
LIBRARIES_GB = 15  # on disk: torch, Unsloth and what they need, unpacked and as downloaded


@dataclass(frozen=True)
class Work:
    """A run's size. error: the tokens' relative 95% uncertainty, since they are counted in a sample of the rows."""

    tokens: float
    micro_batches: float
    evaluation_tokens: float
    evaluation_rows: int
    error: float = 0.0


@dataclass(frozen=True)
class Needs:
    """What a run needs of a machine. bf16_for: the kind of model that overflows without it, or ""."""

    vram_gb: float
    disk_gb: float
    bf16_for: str = ""


@dataclass(frozen=True)
class Candidate:
    """A flavor and what the run takes on it. basis: what the time rests on; seconds: low and high of each part."""

    flavor: str
    fits: bool
    reason: str  # why it does not fit, or ""
    vram_gb: float
    needed_gb: float
    hours_low: float = 0.0
    hours_high: float = 0.0
    usd_low: float = 0.0
    usd_high: float = 0.0
    basis: str = ""
    seconds: dict[str, tuple[float, float]] | None = None
    seconds_per_token: tuple[float, float] | None = None


@dataclass(frozen=True)
class Recommended:
    """timeout_s: the upper end with a margin, in whole ten minutes. max_usd: what the timeout costs if all is used."""

    flavor: str
    timeout_s: int
    max_usd: float


def work(rows: int, tokens_per_row: float, settings: Any, error: float = 0.0) -> Work:
    """The work of a run over `rows` rows of a mean `tokens_per_row` tokens."""
    rows = min(rows, settings.num_samples) if settings.num_samples else rows
    held_out = round(rows * settings.eval_split)
    micro_batches = math.ceil((rows - held_out) / settings.batch_size) * settings.num_epochs
    if settings.max_steps:
        micro_batches = min(micro_batches, settings.max_steps * settings.gradient_accumulation)
    evaluated = min(held_out, settings.max_eval_rows)
    tokens = micro_batches * settings.batch_size * tokens_per_row
    return Work(tokens, micro_batches, evaluated * tokens_per_row, evaluated, error)


def candidates(flavors: Iterable[Flavor], model: Model, needs: Needs, size: Work, ledger: Ledger) -> list[Candidate]:
    """Each flavor with its time and price, those that fit first, cheapest run first (by its upper end)."""
    found = [candidate(flavor, model, needs, size, ledger) for flavor in flavors]
    return sorted(found, key=lambda one: (not one.fits, one.usd_high))


def candidate(flavor: Flavor, model: Model, needs: Needs, size: Work, ledger: Ledger) -> Candidate:
    reason = misfit(flavor, needs)
    sizes = flavor.vram_gb / max(flavor.gpus, 1), round(needs.vram_gb, 2)
    if reason:
        return Candidate(flavor.name, False, reason, *sizes)
    pace = seconds_per_token(flavor, model, size)
    known = ledger.sharpen(flavor.name, pace)
    training = known.pace.times(size.tokens).widened(size.error)
    evaluation = known.evaluation or evaluating(flavor, model, size)
    parts = {"start": known.overhead or STARTUP, "training": training, "evaluation": evaluation.times(EVALUATIONS)}
    low, high = (sum(getattr(part, end) for part in parts.values()) for end in ("low", "high"))
    return Candidate(
        flavor.name,
        True,
        "",
        *sizes,
        round(low / 3600, 2),
        round(high / 3600, 2),
        round(low / 60 * flavor.usd_per_minute, 2),
        round(high / 60 * flavor.usd_per_minute, 2),
        known.basis,
        {name: (round(part.low), round(part.high)) for name, part in parts.items()},
        (pace.low, pace.high),
    )


def misfit(flavor: Flavor, needs: Needs) -> str:
    if not flavor.gpus:
        return "no GPU"
    if flavor.gpus > 1:
        return "several GPUs: the template trains on one"
    if flavor.gpu is None:
        return f"speed of {flavor.accelerator or 'its GPU'} unknown"
    if needs.bf16_for and not flavor.gpu.bf16:
        return f"no bf16, and {needs.bf16_for} overflows in fp16"
    if flavor.vram_gb < needs.vram_gb:
        return f"{flavor.vram_gb:.0f} GB of memory, {needs.vram_gb:.1f} needed"
    if flavor.disk_gb and flavor.disk_gb < needs.disk_gb:
        return f"{flavor.disk_gb:.0f} GB of disk, {needs.disk_gb:.0f} needed"
    return ""


def needs(model: Model, template: Any, settings: Any) -> Needs:
    """What a run of this model with these settings needs of a machine."""
    weights = model.parameters * 2 / 1e9  # as downloaded, and once more where a merged copy is asked for
    disk = LIBRARIES_GB + weights * (2 if settings.merge_model else 1)
    kind = text_config(model.config).get("model_type", "its model") if template.needs_bf16(model.config) else ""
    return Needs(memory.memory(model, template, settings).needed, disk, kind)


def seconds_per_token(flavor: Flavor, model: Model, size: Work) -> Range:
    """Seconds of training per token, from the model's shapes and the GPU's data sheet."""
    arithmetic = Range(*(flops_per_token(model) / (flavor.gpu.bf16_tflops * 1e12 * share) for share in UTILISATION))
    layers = text_config(model.config).get("num_hidden_layers", 32)
    launching = Range(*LAUNCH_S).times(layers * size.micro_batches / max(size.tokens, 1))
    return Range(max(arithmetic.low, launching.low), arithmetic.high + launching.high)


def evaluating(flavor: Flavor, model: Model, size: Work) -> Range:
    """Seconds of one evaluation: a forward pass, a third of a step's arithmetic, one row at a time."""
    forward = flops_per_token(model) / 3 / (flavor.gpu.bf16_tflops * 1e12)
    layers = text_config(model.config).get("num_hidden_layers", 32)
    return Range(
        *(
            size.evaluation_tokens * forward / share + size.evaluation_rows * layers * launch / 3
            for share, launch in zip(UTILISATION, LAUNCH_S, strict=True)
        )
    )


def flops_per_token(model: Model) -> float:
    return FLOPS_PER_WEIGHT * model.parameters


def recommend(ranked: list[Candidate], flavors: Iterable[Flavor]) -> Recommended | None:
    """The cheapest run that fits, with a timeout that it will not reach; None where nothing fits."""
    best = next((one for one in ranked if one.fits), None)
    if best is None:
        return None
    timeout = min(math.ceil(best.hours_high * 3600 * TIMEOUT_MARGIN / 600) * 600, LONGEST_TIMEOUT_S)
    price = next(flavor.usd_per_minute for flavor in flavors if flavor.name == best.flavor)
    return Recommended(best.flavor, timeout, round(timeout / 60 * price, 2))


def as_estimate(one: Candidate) -> dict[str, Any]:
    """What a run record keeps of an estimate, to be held against what the run took."""
    kept = ("hours_low", "hours_high", "usd_low", "usd_high", "basis", "seconds_per_token")
    return {name: value for name, value in asdict(one).items() if name in kept}
