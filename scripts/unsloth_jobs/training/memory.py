"""GPU memory: what activations and logits take, and whether they are kept or recomputed (gradient checkpointing)."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Mapping
from typing import Any

from .lora import Shapes, adaptable, linear_shapes
from .settings import TrainingSettings

ROOM = 0.75  # share of a GPU's memory that weights and activations may fill; the rest is for what they do not count


def activation_bytes(linears: Shapes, tokens: int) -> float:
    """What a forward pass keeps without gradient checkpointing: what each linear layer reads and writes, in 16 bits."""
    return tokens * 2 * sum(out + into for out, into in adaptable(linears).values())


TRL_ACTIVATIONS = 1.7  # times what is kept without Unsloth, as in benchmarks/memory.csv: at most
LOGITS_BYTES = 6  # per token and vocabulary entry, 16 and 32 bits


def logits_bytes(config: Mapping[str, Any], tokens: int) -> float:
    """What the logits take: nothing to speak of where Unsloth computes the loss in slices, as it does for most."""
    text = config.get("text_config") or config
    whole = str(text.get("model_type", "")).startswith("gemma")
    return tokens * LOGITS_BYTES * text.get("vocab_size", 262_144) if whole else 0.0


def keeps_activations(
    settings: TrainingSettings, linears: Shapes, config: Mapping[str, Any], tokens: int, weights: float, memory: float
) -> bool:
    """Whether a run keeps its activations, which is fastest, or recomputes them (gradient checkpointing); sizes in bytes of one GPU."""
    if settings.gradient_checkpointing != "auto":
        return settings.gradient_checkpointing == "off"
    return fits_kept(settings, linears, config, tokens, weights, memory)


def fits_kept(
    settings: TrainingSettings, linears: Shapes, config: Mapping[str, Any], tokens: int, weights: float, memory: float
) -> bool:
    """Whether weights and the activations of so many tokens have the room that they may take; sizes in bytes of one GPU."""
    activations = activation_bytes(linears, tokens) * (TRL_ACTIVATIONS if settings.backend == "trl" else 1)
    return weights + activations + logits_bytes(config, tokens) < ROOM * memory


def room_for(model: Any, settings: TrainingSettings) -> Callable[[int], bool]:
    """Whether this machine has the room to keep the activations of so many tokens."""
    import torch

    if not torch.cuda.is_available():  # main memory is plenty, and recomputing takes a third of the time
        return lambda tokens: settings.gradient_checkpointing != "offload"
    held, memory = torch.cuda.memory_allocated(), torch.cuda.get_device_properties(0).total_memory
    linears, config = linear_shapes(model), model.config.to_dict()
    return lambda tokens: keeps_activations(settings, linears, config, tokens, held, memory)


def free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def recompute_activations(model: Any) -> None:
    """Turn gradient checkpointing on in a model that was made ready without it."""
    if "unsloth" in sys.modules and hasattr(model, "_unsloth_gradient_checkpointing"):
        from unsloth import FastLanguageModel

        model._unsloth_gradient_checkpointing = True
        FastLanguageModel.for_training(model, use_gradient_checkpointing=True)
    else:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
