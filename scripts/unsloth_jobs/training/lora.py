"""LoRA: which linear layers get an adapter, and what share of them that is."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from .report import Stop
from .setting import AUTO
from .settings import TrainingSettings

NO_DECODER = r"lm_head|embed|vision|visual|image|audio|multi_modal|projector"  # anywhere in a module's name
NO_TARGET = r"router|gate|wte|wpe"  # its last part
NOT_ADAPTED = re.compile(rf"{NO_DECODER}|(^|\.)({NO_TARGET})$")
EXPERTS = re.compile(r"(^|\.)experts\.|block_sparse_moe\.(input|output)_linear")
LORA_RANK, LORA_ALPHA = 16, 32  # where none is given, and no adapter is gone on from
Shapes = Mapping[str, tuple[int, int]]  # module name -> (features out, features in)


def adaptable(linears: Shapes) -> dict[str, tuple[int, int]]:
    """The decoder's linear layers: no embedding, head, router or encoder of pictures and sound."""
    return {name: shape for name, shape in linears.items() if not NOT_ADAPTED.search(name)}


def rank_of(settings: TrainingSettings) -> int:
    return LORA_RANK if settings.lora_r == AUTO else int(settings.lora_r)


def alpha_of(settings: TrainingSettings) -> int:
    return LORA_ALPHA if settings.lora_alpha == AUTO else int(settings.lora_alpha)


def leaf(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def lora_targets(linears: Shapes, wanted: str = "auto") -> list[str]:
    """Names of the modules to adapt, as PEFT's target_modules has them. Raises Stop on a name the model lacks."""
    present = sorted({leaf(name) for name in adaptable(linears)})
    if wanted == AUTO:
        return present
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    if unknown := [name for name in names if name not in present]:
        raise Stop(
            "unknown_target",
            f"The model has no linear layer named {', '.join(unknown)}.",
            f"Pass --target-modules {shlex.quote(','.join(present))}, or leave it at auto.",
        )
    return names


def target_pattern(targets: Iterable[str]) -> str:
    """targets as one pattern over whole module names.

    Unsloth narrows a list of names by its own idea of what attention and MLP are called, and loses LFM2's
    convolutions that way; a pattern it passes to PEFT as it stands.
    """
    leaves = "|".join(re.escape(name) for name in targets if not re.fullmatch(NO_TARGET, name))
    return rf"(?!.*(?:{NO_DECODER}))(?:.*\.)?(?:{leaves})"


def lora_size(shapes: Iterable[tuple[int, int]], rank: int = 1) -> int:
    """Trainable parameters of an adapter of this rank on linear layers of these shapes."""
    return sum(rank * (out + into) for out, into in shapes)


def coverage(linears: Shapes, adapted: Iterable[str]) -> float:
    """Share of the possible LoRA parameters (equal rank everywhere) that the adapted modules hold; 1.0 = whole."""
    possible = adaptable(linears)
    reached = [possible[name] for name in set(adapted) & possible.keys()]
    return lora_size(reached) / max(lora_size(possible.values()), 1)


def linear_shapes(model: Any) -> dict[str, tuple[int, int]]:
    import torch

    return {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }


def expert_shapes(model: Any) -> list[tuple[int, int]]:
    """Of the experts' layers that are stacked in one tensor: an adapter reaches only linear layers that are modules."""
    return [
        (parameter.shape[1], math.prod(parameter.shape[2:]))
        for name, parameter in model.named_parameters()
        if EXPERTS.search(name) and parameter.ndim > 2
        for _ in range(parameter.shape[0])
    ]
