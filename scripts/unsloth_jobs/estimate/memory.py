"""How much GPU memory a run needs: weights, adapter with its optimizer, activations, logits, and what CUDA itself takes.

The constants are fitted on benchmarks/memory.csv by benchmarks/fit_memory.py, which also states the error on the
rows that were held out of the fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ..lookup.model_info import Model, text_config
from ..training.lora import EXPERTS, adaptable, leaf, lora_size, lora_targets, rank_of
from ..training.memory import activation_bytes, keeps_activations, logits_bytes
from ..training.settings import TrainingSettings
from .preferences import HELD, loss_of

GB = 1e9
NF4_BYTES = 0.516  # per weight: 4 bits and double-quantised scales
WEIGHTS_SLACK = 30e6  # allocator rounding and buffers, measured right after loading
ADAPTER_BYTES, OPTIMIZER_BYTES = 4 + 4, 8  # per LoRA parameter: fp32 weight and gradient; Adam's two moments
# Offloaded: bytes for each token and unit of width, live in the backward pass of one layer, and what does not grow.
PER_TOKEN_INNER, PER_TOKEN_WIDTH, FIXED = 5.81, 22.5, 103e6
PACKED_SHARE = 0.68  # of that, where Unsloth's own forward runs packed: attention over each row alone
# Kept: values of 16 bits for each token, layer and unit of hidden and query width, in Unsloth's own forward; once more
# where queries and keys are normed.
PER_TOKEN_KEPT, PER_TOKEN_NORMED = 4.15, 0.691
# Kept without Unsloth: bytes for each token, layer and unit of the widest layer's and of hidden and query width.
PER_TOKEN_TRL_INNER, PER_TOKEN_TRL_WIDTH = 4.9, 18.7
LOSS_SLICE = 2220  # bytes per vocabulary entry: the loss is computed over this many tokens at a time
COMPILATION = 0.55e9  # what compiled layers (all but Unsloth's own forward) take once, for trying kernels
CUDA_CONTEXT = 0.6e9  # what the driver holds beside torch's memory
FRAGMENTATION = 1.05
OWN_FORWARD = ("llama", "mistral", "qwen2", "qwen3")  # model types that Unsloth runs through code of its own


@dataclass(frozen=True)
class Memory:
    """GB on one GPU, by what takes it. checkpointing: "off" where all activations are kept, or "offload"."""

    checkpointing: str
    weights: float
    adapter: float
    optimizer: float
    activations: float
    logits: float

    @property
    def peak(self) -> float:
        """What torch.cuda.max_memory_allocated comes to."""
        return self.weights + self.adapter + self.optimizer + self.activations + self.logits

    @property
    def cuda(self) -> float:
        """What CUDA itself takes, and what fragmentation loses."""
        return CUDA_CONTEXT / GB + self.peak * (FRAGMENTATION - 1)

    def by_part(self) -> dict[str, float]:
        return {name: value for name, value in asdict(self).items() if name != "checkpointing"} | {"cuda": self.cuda}

    def as_json(self) -> dict[str, Any]:
        named = self.by_part() | {"peak": self.peak, "needed": self.needed}
        return {"checkpointing": self.checkpointing, **{f"{name}_gb": round(value, 3) for name, value in named.items()}}

    @property
    def needed(self) -> float:
        """What the GPU must have."""
        return self.peak + self.cuda


def room_for(model: Model, settings: TrainingSettings, vram_gb: float) -> Callable[[int], bool]:
    """Whether a GPU of this size has the room to keep the activations of so many tokens: what the template will ask."""
    weights = weights_bytes(model, adaptable(model.linears), settings.load_in_16bit)
    return lambda tokens: keeps_activations(settings, model.linears, model.config, tokens, weights, vram_gb * GB)


def memory(model: Model, settings: TrainingSettings, tokens: int, kept: bool) -> Memory:
    """The memory that a run takes at its peak, with `tokens` tokens at once and their activations kept or offloaded."""
    linears = {name: shape for name, shape in adaptable(model.linears).items() if not EXPERTS.search(name)}
    targets = lora_targets(model.linears, settings.target_modules)
    adapter = lora_size((shape for name, shape in linears.items() if leaf(name) in targets), rank_of(settings))
    weights = weights_bytes(model, adaptable(model.linears), settings.load_in_16bit)
    logits = logits_bytes(model.config, tokens)
    if kept:
        held = HELD if loss_of(settings) else 1.0
        activations = held * kept_bytes(model, linears, tokens, settings.backend)
    else:  # a layer's backward pass and the loss are never at work at once
        activations = offloaded_bytes(model, linears, tokens, settings.packing, settings.backend)
        logits = max(logits - activations, 0)
    parts = (weights, adapter * ADAPTER_BYTES, adapter * OPTIMIZER_BYTES, activations, logits)
    return Memory("off" if kept else "offload", *(part / GB for part in parts))


def weights_bytes(model: Model, linears: dict[str, tuple[int, int]], in_16bit: bool) -> float:
    """The frozen model. In 4 bits, what is no linear layer of the decoder (embeddings, head, norms) stays in 16."""
    quantised = 0 if in_16bit else sum(math.prod(shape) for shape in linears.values())
    return quantised * NF4_BYTES + (model.parameters - quantised) * 2 + WEIGHTS_SLACK


def kept_bytes(model: Model, linears: dict[str, tuple[int, int]], tokens: int, backend: str) -> float:
    """All activations of a forward pass, and the loss on top of them."""
    inner, width = widths(linears)
    if backend == "trl":
        return tokens * layers(model) * (PER_TOKEN_TRL_INNER * inner + PER_TOKEN_TRL_WIDTH * width)
    if not own_forward(model):
        return activation_bytes(linears, tokens) + COMPILATION
    normed = any(name.endswith("q_norm.weight") for name in model.tensors)
    values = 2 * inner + (PER_TOKEN_KEPT + PER_TOKEN_NORMED * normed) * width
    return tokens * 2 * values * layers(model) + vocabulary(model) * LOSS_SLICE


def offloaded_bytes(model: Model, linears: dict[str, tuple[int, int]], tokens: int, packed: bool, backend: str) -> float:
    """One layer's backward pass, or a slice of the loss, whichever is more."""
    inner, width = widths(linears)
    if backend == "trl":  # each layer's input stays on the GPU
        inputs = tokens * 2 * layers(model) * text_config(model.config).get("hidden_size", width // 2)
        return inputs + tokens * (PER_TOKEN_INNER * inner + PER_TOKEN_WIDTH * width)
    own = own_forward(model)
    layer = tokens * (PER_TOKEN_INNER * inner + PER_TOKEN_WIDTH * width) * (PACKED_SHARE if own and packed else 1) + FIXED
    return max(layer, vocabulary(model) * LOSS_SLICE, 0 if own else COMPILATION)


def own_forward(model: Model) -> bool:
    return text_config(model.config).get("model_type") in OWN_FORWARD


def layers(model: Model) -> int:
    return text_config(model.config).get("num_hidden_layers", 32)


def vocabulary(model: Model) -> int:
    return text_config(model.config).get("vocab_size", 0)


def widths(linears: dict[str, tuple[int, int]]) -> tuple[int, int]:
    """(inner, width): the widest layer's output, and the residual stream and the attention's queries together."""
    inner = max((max(shape) for shape in linears.values()), default=0)
    queries = [shape for name, shape in linears.items() if name.endswith(("q_proj", "query"))]
    hidden = queries[0][1] if queries else min((min(shape) for shape in linears.values()), default=0)
    return inner, hidden + (queries[0][0] if queries else hidden)
