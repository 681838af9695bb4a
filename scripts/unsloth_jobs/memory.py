"""How much GPU memory a run needs, from the shapes of the model's own tensors.

Stated parts, not yet fitted to measurements on every shape: treat the sum as an estimate, and leave room.
"""

from __future__ import annotations

import math
from typing import Any

from .hub import Model

GB = 1e9
CUDA_CONTEXT_GB = 0.8  # what CUDA, cuBLAS and the kernels take before the first tensor
HEADROOM = 1.2  # fragmentation, and what the parts below leave out
NF4_BYTES = 0.516  # per weight: 4 bits and double-quantised scales
ADAPTER_BYTES = 4 + 4 + 2  # per LoRA parameter: fp32 weight, gradient, 8-bit Adam's two moments


def needed_gb(model: Model, template: Any, settings: Any) -> float:
    """GB of GPU memory for one GPU: weights, adapter with its optimizer, activations, logits, CUDA."""
    linears = template.adaptable(model.linears)
    in_linears = sum(math.prod(shape) for shape in linears.values())
    # Everything that is no linear layer (embeddings, norms, convolutions) stays in 16 bits.
    weights = in_linears * (2 if settings.load_in_16bit else NF4_BYTES) + (model.parameters - in_linears) * 2
    targets = template.lora_targets(model.linears, settings.target_modules)
    adapted = [shape for name, shape in linears.items() if template.leaf(name) in targets]
    adapter = template.lora_size(adapted, settings.lora_r) * ADAPTER_BYTES
    return HEADROOM * ((weights + adapter + activations(model, settings)) / GB + CUDA_CONTEXT_GB)


def activations(model: Model, settings: Any) -> float:
    """Bytes live at once in one micro-batch: a checkpoint per layer, one layer in full, and a slice of the logits."""
    text = model.config.get("text_config", model.config)
    hidden = text.get("hidden_size", 2048)
    inner = max((max(shape) for shape in model.linears.values() if hidden in shape), default=4 * hidden)
    inner = min(inner, 8 * hidden)  # the output layer is counted with the logits
    tokens = settings.batch_size * settings.max_seq_length
    checkpoints = text.get("num_hidden_layers", 32) * tokens * hidden * 2
    one_layer = tokens * (8 * hidden + 4 * inner) * 2
    logits = min(tokens, 4096) * text.get("vocab_size", 65536) * 4
    return checkpoints + one_layer + logits
