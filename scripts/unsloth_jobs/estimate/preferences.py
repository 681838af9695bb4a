"""What learning preferences costs beside imitation. By floating-point operations and bytes, held against three
shapes on one GPU (benchmarks/preferences.csv).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..training.batching import Batching, choose_batching, rounded
from ..training.preference_losses import LOSSES, Loss

FORWARD = 2  # floating-point operations per weight and token
PADDED = 1.3  # times the tokens are computed: rows of like length stand together, but their two answers differ in length
HELD = 1.09  # times the activations of imitation: 8 to 9% more were measured, for what a loss of pairs holds beside them
MEASURED = ", for preferences held against three shapes on an H200"
WHY = {  # by --backend
    "unsloth": "TRL's trainers of preferences on Unsloth's model; benchmarks/preferences.py compares them with plain TRL",
    "trl": "chosen with --backend trl: for a model that Unsloth does not support",
}


def loss_of(settings: Any) -> Loss | None:
    """How preferences are learned; None for a template that learns none."""
    return LOSSES.get(getattr(settings, "loss", ""))


def divide_step(
    longest: int, settings: Any, loss: Loss, keeps: Callable[[int], bool], processes: int = 1
) -> tuple[Batching, bool]:
    """As templates/dpo.py does: a pass holds of each row both of its answers. longest: of a sequence, 0 where not known."""
    widest = replace(settings, max_seq_length=loss.sequences * rounded(longest or settings.max_seq_length))
    return choose_batching(widest, lambda sequences: 0, keeps, False, loss.smallest, processes)


def least_rows(settings: Any) -> int:
    """Rows in a forward pass at least."""
    loss = loss_of(settings)
    return loss.smallest if loss else 1


def also_forward(settings: Any) -> float:
    """Floating-point operations per weight and token of what is only read: by the reference, and for KTO's KL by both."""
    loss = loss_of(settings)
    if loss is None:
        return 0
    return FORWARD * (loss.reference + (0 if loss.paired else 2))


def basis(known: str, settings: Any) -> str:
    """What an estimate rests on, with what it does not."""
    return known + MEASURED if loss_of(settings) and known.startswith("shapes") else known
