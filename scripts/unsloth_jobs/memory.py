"""How much GPU memory a run needs: weights, adapter with its optimizer, activations, logits, and what CUDA itself takes.

The constants are fitted on benchmarks/memory.csv by benchmarks/fit_memory.py, which also states the error on the
rows that were held out of the fit.
"""

from __future__ import annotations

import math
from typing import Any

from .hub import Model

GB = 1e9
NF4_BYTES = 0.516  # per weight: 4 bits and double-quantised scales
WEIGHTS_SLACK = 30e6  # allocator rounding and buffers, measured right after loading
ADAPTER_BYTES = 4 + 4 + 2  # per LoRA parameter: fp32 weight, fp32 gradient, 8-bit Adam's two moments
# Bytes for each token of a micro-batch and unit of width, live in the backward pass of one layer (Unsloth keeps the
# checkpoints between layers in main memory), and what does not depend on the batch.
PER_TOKEN_INNER, PER_TOKEN_WIDTH, FIXED = 6.5, 21.3, 97e6
LOGITS_BYTES = 6  # per token and vocabulary entry, 16 and 32 bits, where the loss is not computed in slices
CONVOLUTION_WORKSPACE = 0.64e9  # what cuDNN takes for LFM2's convolutions on small batches
CUDA_CONTEXT = 0.6e9  # what the driver holds beside torch's memory
FRAGMENTATION = 1.05


def needed_gb(model: Model, template: Any, settings: Any) -> float:
    """GB of memory that one GPU must have for a run of this model with these settings."""
    return (peak_bytes(model, template, settings) * FRAGMENTATION + CUDA_CONTEXT) / GB


def peak_bytes(model: Model, template: Any, settings: Any) -> float:
    """torch.cuda.max_memory_allocated of the run, in bytes."""
    linears = template.adaptable(model.linears)
    targets = template.lora_targets(model.linears, settings.target_modules)
    adapted = [shape for name, shape in linears.items() if template.leaf(name) in targets]
    adapter = template.lora_size(adapted, settings.lora_r) * ADAPTER_BYTES
    return weights_bytes(model, linears, settings.load_in_16bit) + adapter + working_bytes(model, linears, settings)


def weights_bytes(model: Model, linears: dict[str, tuple[int, int]], in_16bit: bool) -> float:
    """The frozen model. In 4 bits, what is no linear layer of the decoder (embeddings, head, norms) stays in 16."""
    quantised = 0 if in_16bit else sum(math.prod(shape) for shape in linears.values())
    return quantised * NF4_BYTES + (model.parameters - quantised) * 2 + WEIGHTS_SLACK


def working_bytes(model: Model, linears: dict[str, tuple[int, int]], settings: Any) -> float:
    """What one micro-batch at full length adds at its peak: in a layer's backward pass, in the loss, or in a convolution."""
    text = model.config.get("text_config", model.config)
    tokens = settings.batch_size * settings.max_seq_length
    inner, width = widths(linears)
    peaks = [tokens * (PER_TOKEN_INNER * inner + PER_TOKEN_WIDTH * width) + FIXED]
    if str(text.get("model_type", "")).startswith("gemma"):  # no sliced loss for these
        peaks.append(tokens * LOGITS_BYTES * text.get("vocab_size", 262_144) + FIXED)
    if "conv" in (text.get("layer_types") or ()):
        peaks.append(CONVOLUTION_WORKSPACE)
    return max(peaks)


def widths(linears: dict[str, tuple[int, int]]) -> tuple[int, int]:
    """(inner, width): the widest layer's output, and the residual stream and the attention's queries together."""
    inner = max((max(shape) for shape in linears.values()), default=0)
    queries = [shape for name, shape in linears.items() if name.endswith(("q_proj", "query"))]
    hidden = queries[0][1] if queries else min((min(shape) for shape in linears.values()), default=0)
    return inner, hidden + (queries[0][0] if queries else hidden)
