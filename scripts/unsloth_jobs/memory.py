"""How much GPU memory a run needs: weights, adapter with its optimizer, activations, logits, and what CUDA itself takes.

The constants are fitted on benchmarks/memory.csv by benchmarks/fit_memory.py, which also states the error on the
rows that were held out of the fit.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from .hub import Model, text_config

GB = 1e9
NF4_BYTES = 0.516  # per weight: 4 bits and double-quantised scales
WEIGHTS_SLACK = 30e6  # allocator rounding and buffers, measured right after loading
ADAPTER_BYTES, OPTIMIZER_BYTES = 4 + 4, 2  # per LoRA parameter: fp32 weight and gradient; 8-bit Adam's two moments
# Bytes for each token of a micro-batch and unit of width, live in the backward pass of one layer (Unsloth keeps the
# checkpoints between layers in main memory), and what does not depend on the batch.
PER_TOKEN_INNER, PER_TOKEN_WIDTH, FIXED = 6.5, 21.3, 97e6
LOGITS_BYTES = 6  # per token and vocabulary entry, 16 and 32 bits, where the loss is not computed in slices
CONVOLUTION_WORKSPACE = 0.64e9  # what cuDNN takes for LFM2's convolutions on small batches
CUDA_CONTEXT = 0.6e9  # what the driver holds beside torch's memory
FRAGMENTATION = 1.05


@dataclass(frozen=True)
class Memory:
    """GB on one GPU, by what takes it. logits and workspace: what they add where one of them is the peak."""

    weights: float
    adapter: float
    optimizer: float
    activations: float
    logits: float
    workspace: float

    @property
    def peak(self) -> float:
        """What torch.cuda.max_memory_allocated comes to."""
        return sum(asdict(self).values())

    @property
    def cuda(self) -> float:
        """What CUDA itself takes, and what fragmentation loses."""
        return CUDA_CONTEXT / GB + self.peak * (FRAGMENTATION - 1)

    def by_part(self) -> dict[str, float]:
        return {**asdict(self), "cuda": self.cuda}

    @property
    def needed(self) -> float:
        """What the GPU must have."""
        return self.peak + self.cuda


def memory(model: Model, template: Any, settings: Any) -> Memory:
    """The memory of a run of this model with these settings, at its peak."""
    linears = template.adaptable(model.linears)
    targets = template.lora_targets(model.linears, settings.target_modules)
    adapter = template.lora_size((shape for name, shape in linears.items() if template.leaf(name) in targets), settings.lora_r)
    layers, logits, workspace = working_bytes(model, linears, settings)
    parts = (
        weights_bytes(model, linears, settings.load_in_16bit),
        adapter * ADAPTER_BYTES,
        adapter * OPTIMIZER_BYTES,
        layers,
        max(logits - layers, 0),  # the backward pass of a layer, the loss and a convolution are never at work at once
        max(workspace - max(layers, logits), 0),
    )
    return Memory(*(part / GB for part in parts))


def weights_bytes(model: Model, linears: dict[str, tuple[int, int]], in_16bit: bool) -> float:
    """The frozen model. In 4 bits, what is no linear layer of the decoder (embeddings, head, norms) stays in 16."""
    quantised = 0 if in_16bit else sum(math.prod(shape) for shape in linears.values())
    return quantised * NF4_BYTES + (model.parameters - quantised) * 2 + WEIGHTS_SLACK


def working_bytes(model: Model, linears: dict[str, tuple[int, int]], settings: Any) -> tuple[float, float, float]:
    """What one micro-batch at full length needs in a layer's backward pass, in the loss, and in a convolution."""
    text = text_config(model.config)
    tokens = settings.batch_size * settings.max_seq_length
    inner, width = widths(linears)
    layers = tokens * (PER_TOKEN_INNER * inner + PER_TOKEN_WIDTH * width) + FIXED
    whole_logits = str(text.get("model_type", "")).startswith("gemma")  # elsewhere the loss is computed in slices
    logits = tokens * LOGITS_BYTES * text.get("vocab_size", 262_144) + FIXED if whole_logits else 0
    return layers, logits, CONVOLUTION_WORKSPACE if "conv" in (text.get("layer_types") or ()) else 0


def widths(linears: dict[str, tuple[int, int]]) -> tuple[int, int]:
    """(inner, width): the widest layer's output, and the residual stream and the attention's queries together."""
    inner = max((max(shape) for shape in linears.values()), default=0)
    queries = [shape for name, shape in linears.items() if name.endswith(("q_proj", "query"))]
    hidden = queries[0][1] if queries else min((min(shape) for shape in linears.values()), default=0)
    return inner, hidden + (queries[0][0] if queries else hidden)
