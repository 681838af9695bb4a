"""LoRA in the model: attached anew, or with the weights of the adapter that training goes on from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .lora import (
    adaptable,
    alpha_of,
    coverage,
    expert_shapes,
    leaf,
    linear_shapes,
    lora_size,
    lora_targets,
    rank_of,
    target_pattern,
)
from .parent import Parent, placed
from .parent_files import copy_weights
from .report import Stop, emit
from .settings import TrainingSettings


def with_lora(model: Any, settings: TrainingSettings, pattern: str, scaled_by_root: bool = False) -> Any:
    """The model with LoRA on each module whose name the regular expression matches."""
    options = {
        "r": rank_of(settings),
        "lora_alpha": alpha_of(settings),
        "use_rslora": scaled_by_root,
        "lora_dropout": 0,
        "bias": "none",
    }
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


def count_parameters(model: Any, linears: Mapping[str, tuple[int, int]]) -> int:
    """Weights of a model, also where it is held in 4 bits: then a tensor has fewer entries than the layer has weights."""
    sizes = ((linears.get(name.removesuffix(".weight")), weights.numel()) for name, weights in model.named_parameters())
    return sum(shape[0] * shape[1] if shape else count for shape, count in sizes)


def attach_adapter(model: Any, settings: TrainingSettings, parent: Parent | None = None) -> Any:
    """The model with LoRA on each target, new or as in the adapter that training goes on from.

    Raises Stop when it reaches less than min_coverage of the targets, or does not fit the model.
    """
    linears = linear_shapes(model)
    parameters = count_parameters(model, linears)
    everything = lora_size([*adaptable(linears).values(), *expert_shapes(model)])
    targets = parent.targets if parent else lora_targets(linears, settings.target_modules)
    alike = {name: shape for name, shape in adaptable(linears).items() if leaf(name) in targets}
    places = placed(parent, linears) if parent else {}
    asked = {name: linears[name] for name in places} or alike
    pattern = target_pattern(targets) if asked.keys() == alike.keys() else "|".join(map(re.escape, asked))
    model = with_lora(model, settings, pattern, parent is not None and parent.scaled_by_root)
    in_full_precision(model)
    if parent:
        copy_weights(model, parent, places)
    if settings.base_model_revision and not Path(settings.base_model).exists():
        model.peft_config["default"].revision = settings.base_model_revision  # saved with the adapter
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
        parameters=parameters,  # of the model under it
        expected_trainable=lora_size(asked.values(), rank_of(settings)),
    )
    if share < settings.min_coverage:
        missing = sorted({leaf(name) for name in asked.keys() - set(adapted)})
        raise Stop(
            "low_coverage",
            f"The adapter reaches {share:.0%} of the requested modules; without one: {missing}.",
            "Pass the modules it does reach with --target-modules, or lower --min-coverage knowingly.",
        )
    return model
