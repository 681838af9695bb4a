"""Whether the frozen model is held in 16 bits (LoRA) or in 4 (QLoRA), where neither is asked for.

4 bits cost some quality, most on small models: they are taken where they make a GPU suffice that would not do otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from .lora import Shapes, linear_shapes
from .memory import fits_kept
from .settings import TrainingSettings

Chosen = TypeVar("Chosen", bound=TrainingSettings)


def is_precision_auto(settings: TrainingSettings) -> bool:
    return not (settings.load_in_16bit or getattr(settings, "load_in_4bit", True))  # a copy of 0.3.0 has but the first


def with_precision(settings: Chosen, in_16bit: bool) -> Chosen:
    """The settings with this precision, where none was asked for."""
    if not is_precision_auto(settings):
        return settings
    return replace(settings, load_in_16bit=in_16bit, load_in_4bit=not in_16bit)


def fits_in_16bit(
    settings: TrainingSettings, linears: Shapes, config: Mapping[str, Any], parameters: int, memory: float
) -> bool:
    """Whether a GPU of this memory (bytes) holds the model in 16 bits and the activations of the smallest forward pass: one
    row of full length, and of a preference both of its answers.

    Then 16 bits cost no time either: nothing has to be recomputed for them. A memory of 0 is a CPU.
    """
    if config.get("quantization_config"):
        return False
    tokens = settings.max_seq_length * getattr(settings, "least_sequences", 1)
    return not memory or fits_kept(settings, linears, config, tokens, 2 * parameters, memory)


def choose_precision(settings: TrainingSettings, config: Any) -> tuple[bool, str]:
    """Whether a model of this transformers configuration is held in 16 bits on this machine, and why."""
    import torch
    from transformers import AutoModelForCausalLM

    stated, memory = config.to_dict(), gpu_bytes()
    if not memory:
        in_16bit = not stated.get("quantization_config")
        return in_16bit, why_precision(in_16bit, stated, memory)
    try:
        with torch.device("meta"):  # its shapes, without memory for them
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # the smaller form is the safer guess
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return False, f"4-bit QLoRA: how large the model is could not be told ({reason}); --load-in-16bit holds it in 16"
    in_16bit = fits_in_16bit(settings, linear_shapes(model), stated, model.num_parameters(), memory)
    return in_16bit, why_precision(in_16bit, stated, memory)


def gpu_bytes() -> int:
    """Memory of this machine's GPU; 0 where there is none."""
    import torch

    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0


def why_precision(in_16bit: bool, config: Mapping[str, Any], memory: float) -> str:
    """memory: of the GPU, in bytes; 0 on a CPU."""
    if in_16bit:
        return f"16-bit LoRA: {memory / 1e9:.0f} GB have the room for it" if memory else "16-bit LoRA, on a CPU"
    if config.get("quantization_config"):
        return "4-bit QLoRA: the model's weights are quantised already"
    return f"4-bit QLoRA: {memory / 1e9:.0f} GB do not hold the model in 16 bits beside the activations of a row"
