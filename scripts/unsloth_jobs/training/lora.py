"""LoRA: which linear layers get an adapter, what share of them that is, and attaching it."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from .report import Stop, emit
from .settings import TrainingSettings

NO_DECODER = r"lm_head|embed|vision|visual|image|audio|multi_modal|projector"  # anywhere in a module's name
NO_TARGET = r"router|gate|wte|wpe"  # its last part
NOT_ADAPTED = re.compile(rf"{NO_DECODER}|(^|\.)({NO_TARGET})$")
EXPERTS = re.compile(r"(^|\.)experts\.|block_sparse_moe\.(input|output)_linear")
Shapes = Mapping[str, tuple[int, int]]  # module name -> (features out, features in)


def adaptable(linears: Shapes) -> dict[str, tuple[int, int]]:
    """The decoder's linear layers: no embedding, head, router or encoder of pictures and sound."""
    return {name: shape for name, shape in linears.items() if not NOT_ADAPTED.search(name)}


def leaf(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def lora_targets(linears: Shapes, wanted: str = "auto") -> list[str]:
    """Names of the modules to adapt, as PEFT's target_modules has them. Raises Stop on a name the model lacks."""
    present = sorted({leaf(name) for name in adaptable(linears)})
    if wanted == "auto":
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


def with_lora(model: Any, settings: TrainingSettings, pattern: str) -> Any:
    """The model with LoRA on each module whose name the regular expression matches."""
    options = {"r": settings.lora_r, "lora_alpha": settings.lora_alpha, "lora_dropout": 0, "bias": "none"}
    if settings.backend == "trl":
        from peft import LoraConfig, get_peft_model
        from transformers import set_seed

        set_seed(settings.seed)
        model = get_peft_model(model, LoraConfig(target_modules=pattern, task_type="CAUSAL_LM", **options))
        if settings.gradient_checkpointing == "offload":
            model.gradient_checkpointing_enable({"use_reentrant": False})
        return model
    from unsloth import FastLanguageModel

    return FastLanguageModel.get_peft_model(
        model,
        target_modules=pattern,
        use_gradient_checkpointing="unsloth" if settings.gradient_checkpointing == "offload" else False,
        random_state=settings.seed,
        **options,
    )


def in_full_precision(model: Any) -> None:
    """Make the adapter fp32 where a library made it less: small updates are lost in 16 bits."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def attach_adapter(model: Any, settings: TrainingSettings) -> Any:
    """The model with LoRA on each target. Raises Stop when the adapter reaches less than min_coverage of them."""
    linears = linear_shapes(model)
    everything = lora_size([*adaptable(linears).values(), *expert_shapes(model)])
    targets = lora_targets(linears, settings.target_modules)
    asked = {name: shape for name, shape in adaptable(linears).items() if leaf(name) in targets}
    model = with_lora(model, settings, target_pattern(targets))
    in_full_precision(model)
    prefix = "base_model.model."
    adapted = [name.removeprefix(prefix) for name, module in model.named_modules() if hasattr(module, "lora_A")]
    reached = [linears[name] for name in set(adapted) & linears.keys()]
    share, of_all = coverage(asked, adapted), lora_size(reached) / max(everything, 1)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    emit(
        "coverage",
        coverage=round(of_all, 4),  # as check.py's
        of_asked=round(share, 4),
        of_all_linear=round(of_all, 4),
        target_modules=targets,
        modules=len(adapted),
        trainable=trainable,
        expected_trainable=lora_size(asked.values(), settings.lora_r),
    )
    if share < settings.min_coverage:
        missing = sorted({leaf(name) for name in asked.keys() - set(adapted)})
        raise Stop(
            "low_coverage",
            f"The adapter reaches {share:.0%} of the requested modules; without one: {missing}.",
            "Pass the modules it does reach with --target-modules, or lower --min-coverage knowingly.",
        )
    return model
