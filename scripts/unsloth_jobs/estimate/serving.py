"""Which engine serves a model, on the cheapest machine that holds it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import USAGE, UserError
from ..lookup.model_info import Model, text_config
from ..training.models import needs_bf16
from . import memory
from .flavors import Flavor

VLLM = "0.31.0"
# Architectures whose LoRA adapters vLLM serves, by its list of supported models (September 2026).
VLLM_SERVES = {
    "Exaone4ForCausalLM", "GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "Glm4ForCausalLM", "GraniteForCausalLM",
    "Lfm2ForCausalLM", "Lfm2MoeForCausalLM", "LlamaForCausalLM", "MistralForCausalLM", "Olmo2ForCausalLM", "Olmo3ForCausalLM",
    "Phi3ForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "SmolLM3ForCausalLM",
}  # fmt: skip
CONTEXT = 8192  # tokens of question and answer together
CPU_PARAMETERS = 0.5e9  # up to so many a processor is chosen for. Assumed; benchmarks/serving.csv has one measured model.
ANSWERS_AT_ONCE = 2  # base and tuned
OVERHEAD_GB = {"transformers": 1.5, "vllm": 3.0}  # CUDA, the libraries, vLLM's graphs and activations. Assumed, not measured.
SHARE = {"transformers": 0.95, "vllm": 0.9}  # of the GPU's memory that may be filled
LIBRARIES_GB = {"transformers": 8, "vllm": 25}  # on disk: torch and what it needs; the image of vLLM


@dataclass(frozen=True)
class Served:
    """What is to be served: base and adapter are one model in memory, two whole models are two. extra_bytes: of the adapter."""

    models: tuple[Model, ...]
    extra_bytes: float = 0.0

    @property
    def parameters(self) -> int:
        return sum(model.parameters for model in self.models)

    @property
    def context(self) -> int:
        return min([CONTEXT, *(model.context_length for model in self.models if model.context_length)])

    def needed_gb(self, engine: str, on_gpu: bool) -> float:
        """Of the GPU's memory, or of the machine's without one: there weights are in 32 bits."""
        weights = self.parameters * (2 if on_gpu else 4) + self.extra_bytes
        caches = sum(cache_bytes(model) for model in self.models) * self.context * (1 if on_gpu else 2)
        return (weights + caches * ANSWERS_AT_ONCE / len(self.models)) / memory.GB + OVERHEAD_GB[engine]


@dataclass(frozen=True)
class Choice:
    """A machine with the engine on it. why: in words, for the plan."""

    flavor: Flavor
    engine: str
    needed_gb: float
    why: str


def cache_bytes(model: Model) -> float:
    """Of keys and values in 16 bits, for each token: at most, as if each layer had attention over all of them."""
    config = text_config(model.config)
    heads = config.get("num_attention_heads") or 1
    head = config.get("head_dim") or (config.get("hidden_size") or 0) / heads
    return 2 * 2 * (config.get("num_hidden_layers") or 0) * (config.get("num_key_value_heads") or heads) * head


def engine_for(flavor: Flavor, served: Served, asked: str) -> tuple[str, str]:
    """The engine on this machine, and why. asked: what the user wants, or auto."""
    if asked != "auto":
        return asked, "as asked"
    unknown = sorted({model.architecture for model in served.models} - VLLM_SERVES)
    if not flavor.gpus:
        return "transformers", "no GPU, which vLLM needs"
    if not flavor.bf16:
        return "transformers", "a GPU without bf16, on which vLLM's faster kernels do not run"
    if unknown:
        return "transformers", f"{unknown[0]} with an adapter is not on vLLM's list"
    return "vllm", "a GPU and an architecture that vLLM serves"


def misfit_of(flavor: Flavor, served: Served, engine: str) -> str:
    """Why a machine does not serve this, or ""."""
    needed, on_gpu = served.needed_gb(engine, bool(flavor.gpus)), bool(flavor.gpus)
    disk = LIBRARIES_GB[engine] + sum(model.file_bytes for model in served.models) / memory.GB
    overflow = next((model for model in served.models if needs_bf16(model.config)), None)
    if engine == "vllm" and not on_gpu:
        return "vLLM needs a GPU"
    if flavor.gpus > 1:
        return "several GPUs, of which one would be used"
    if on_gpu and overflow and not flavor.bf16:
        return f"no bf16, and {text_config(overflow.config).get('model_type')} overflows in fp16"
    if 0 < flavor.disk_gb < disk:
        return f"{flavor.disk_gb:.0f} GB of disk, {disk:.0f} needed"
    if on_gpu and flavor.vram_gb * SHARE[engine] < needed:
        return f"{flavor.vram_gb:.0f} GB of GPU memory, {needed / SHARE[engine]:.1f} needed"
    if not on_gpu and 0 < flavor.ram_gb < needed:
        return f"{flavor.ram_gb:.0f} GB of memory, {needed:.1f} needed"
    return ""


def choose(flavors: Iterable[Flavor], served: Served, engine: str, name: str | None) -> Choice:
    """The machine of this name, or the cheapest that holds the model and answers at reading pace. Raises UserError (usage)."""
    listed = sorted(flavors, key=lambda one: one.usd_per_minute)
    asked = [one for one in listed if one.name == name] if name else listed
    reasons = []
    for flavor in asked:
        chosen, why = engine_for(flavor, served, engine)
        slow = not flavor.gpus and served.parameters > CPU_PARAMETERS and not name
        reason = "too slow without a GPU" if slow else misfit_of(flavor, served, chosen)
        if not reason:
            return Choice(flavor, chosen, served.needed_gb(chosen, bool(flavor.gpus)), why)
        reasons.append(reason)
    if not name:
        raise UserError(
            "no_flavor", "No machine holds this model with one GPU.", "Serve a smaller model, or a GGUF file of it.", USAGE
        )
    if not asked:
        raise UserError(
            "unknown_flavor", f"There is no flavor {name!r}.", "One of: " + ", ".join(one.name for one in listed), USAGE
        )
    instead = choose(listed, served, engine, None).flavor.name
    raise UserError(
        "flavor_misfit",
        f"{name} does not serve this model: {reasons[0]}.",
        f"Pass --flavor {instead}, or none: the cheapest is chosen.",
        USAGE,
    )
