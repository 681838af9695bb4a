"""Models: which of them learn to continue a conversation, and loading one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from .adapter import CONFIG
from .report import Stop
from .settings import TrainingSettings

Trained = TypeVar("Trained", bound=TrainingSettings)


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a configuration that describes the language model."""
    return config.get("text_config") or config


def require_decoder(config: Mapping[str, Any]) -> None:
    """Raises Stop where a model's config.json describes one that this template cannot train."""
    kind = (config.get("architectures") or ["unknown"])[0]
    method = (config.get("quantization_config") or {}).get("quant_method")
    if config.get("is_encoder_decoder"):
        raise Stop(
            "encoder_decoder",
            f"{kind} reads with an encoder and writes with a decoder; this template trains decoders only.",
            "Choose a model whose architecture ends in ForCausalLM, such as LiquidAI/LFM2.5-1.2B-Instruct.",
        )
    if re.search(r"For(MaskedLM|SequenceClassification|TokenClassification|QuestionAnswering|PreTraining)$", kind) or (
        re.search(r"Bert|Electra|MPNet", kind) and not kind.endswith(("ForCausalLM", "LMHeadModel"))
    ):
        raise Stop(
            "not_a_decoder",
            f"{kind} is an encoder or a classifier: it does not write text.",
            "Choose a model whose architecture ends in ForCausalLM, such as LiquidAI/LFM2.5-1.2B-Instruct.",
        )
    if method in ("gptq", "awq"):
        raise Stop(
            "quantized_model",
            f"The weights are quantised with {method}, which cannot be trained with LoRA here.",
            "Choose the original 16-bit model, or its bitsandbytes 4-bit version.",
        )


OVERFLOW_IN_FP16 = ("gemma", "qwen3_5")  # model types whose activations leave fp16's range: NaN instead of a loss


def needs_bf16(config: Mapping[str, Any]) -> bool:
    """Whether a model with this config.json can only be trained on a GPU with bf16 (not on a T4)."""
    kinds = (config.get("model_type"), (config.get("text_config") or {}).get("model_type"))
    return any(str(kind).startswith(OVERFLOW_IN_FP16) for kind in kinds)


def load_config(settings: Trained) -> tuple[Any, Trained]:
    """The model's configuration, and the settings with its commit. Raises Stop where it is not one that can be trained.

    Whatever is pushed to the model meanwhile: its weights are of the commit that its configuration is of.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(settings.base_model, revision=settings.base_model_revision or None)
    require_decoder(config.to_dict())
    return config, replace(settings, base_model_revision=getattr(config, "_commit_hash", None) or settings.base_model_revision)


def load_model(settings: TrainingSettings) -> Any:
    """The base model, in 4 or 16 bits. Raises Stop where Unsloth does not take it."""
    name, revision = settings.base_model, settings.base_model_revision or None
    if settings.backend == "trl":
        return load_plain_model(name, revision, settings.load_in_16bit)
    import torch
    from unsloth import FastLanguageModel

    try:
        model, _ = FastLanguageModel.from_pretrained(
            name,
            revision=revision,
            # Unsloth would load a copy of its own of some models, at another revision than the one that was checked.
            use_exact_model_name=True,
            max_seq_length=settings.max_seq_length,
            load_in_4bit=not settings.load_in_16bit,
            load_in_16bit=settings.load_in_16bit,
        )
    except (OSError, torch.OutOfMemoryError):  # a file, the network, the GPU: no other backend would do better
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise Stop(
            "unsloth_refused",
            f"Unsloth does not load {name}: {type(error).__name__}: {lines[0][:300]}",
            "Add --backend trl: the same training without Unsloth, slower. Estimate it again first.",
        ) from error
    return model


def load_plain_model(name: str, revision: str | None, in_16bit: bool) -> Any:
    """The model as transformers loads it, in its own 16 bits or in bitsandbytes' 4."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    on_gpu = torch.cuda.is_available()
    dtype = (torch.bfloat16 if has_bf16() else torch.float16) if on_gpu else torch.float32
    quantised = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return AutoModelForCausalLM.from_pretrained(
        name,
        revision=revision,
        dtype=dtype,
        quantization_config=None if in_16bit else quantised,
        device_map={"": 0 if on_gpu else "cpu"},
    )


def has_bf16() -> bool:
    """Whether this GPU computes in bf16 itself."""
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def require_local_model(settings: TrainingSettings) -> None:
    """Raises Stop in the first second where the model is a path, and no model is there."""
    model = settings.base_model
    folder = Path(os.path.expanduser(model))
    named_as_path = model.startswith((".", "/", "~")) or model.count("/") > 1 or "\\" in model
    if (named_as_path or folder.exists()) and not any((folder / name).is_file() for name in ("config.json", CONFIG)):
        what = "holds no config.json and no adapter" if folder.is_dir() else "does not exist"
        fix = "Correct --base-model: a folder with config.json and weights, or a Hub id such as LiquidAI/LFM2.5-1.2B-Instruct."
        raise Stop("no_model", f"The model {model} {what}.", fix)
