"""A model as its repository or folder describes it: configuration, tensors, revision."""

from __future__ import annotations

import json
import math
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

from ..errors import HUB, UserError
from ..redaction import plain
from ..training.lora import EXPERTS
from ..training.models import text_config
from ..training.parent import Parent, is_adapter
from ..training.parent_files import header_of
from .client import LOOKUP_TIMEOUT_S, asking, endpoint, fetch_or_suggest, require_id

MOST_LAYERS = 10_000  # or experts: a configuration that says more is no model's, and would be given memory for each
TOKENIZER_FILES = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


# ---- the model


@dataclass(frozen=True)
class Model:
    """What is known of a model without its weights. `tensors` maps a name to (dtype, shape), from safetensors headers."""

    id: str
    revision: str | None
    architecture: str
    config: dict[str, Any]
    gated: bool
    tensors: dict[str, tuple[str, tuple[int, ...]]]
    parent: Parent | None = None  # the adapter on it that training goes on from

    @property
    def named_revision(self) -> str | None:
        """The commit of what was named: of the adapter, where one was, and else of the model."""
        return self.parent.revision if self.parent else self.revision

    @property
    def parameters(self) -> int:
        """Number of weights, each counted once."""
        return sum(self.count(name) for name in self.tensors if not NO_PARAMETER.search(name) and not self.is_copy(name))

    @property
    def file_bytes(self) -> int:
        """What its weights take on disk: what a job downloads."""
        return sum(math.prod(shape) * bits_of(dtype) // 8 for dtype, shape in self.tensors.values())

    def count(self, name: str) -> int:
        """Weights in a tensor; a packed one holds two in a byte."""
        return math.prod(self.tensors[name][1]) * (2 if self.is_packed(name) else 1)

    def is_packed(self, name: str) -> bool:
        """Whether a tensor holds two weights in a byte: bitsandbytes' layers, and MXFP4's experts."""
        marked = f"{name}.absmax" in self.tensors if name.endswith(".weight") else name.endswith("_blocks")
        return marked and self.tensors[name][0] in ("U8", "I8")

    def is_copy(self, name: str) -> bool:
        """Whether this is an output layer that was saved although it shares the input embedding's weights."""
        tied = self.config.get("tie_word_embeddings") or text_config(self.config).get("tie_word_embeddings")
        return bool(tied) and name.endswith("lm_head.weight") and any("embed_tokens" in other for other in self.tensors)

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Shape (out, in) of each two-dimensional weight by its module's name."""
        return {
            name.removesuffix(".weight"): self.unpacked(name) if self.is_packed(name) else (shape[0], shape[1])
            for name, (_, shape) in self.tensors.items()
            if name.endswith(".weight") and len(shape) == 2
        }

    @property
    def experts(self) -> dict[str, list[tuple[int, int]]]:
        """Shape of each expert's weight by the tensor that holds it: one file keeps them apart, another one stacked.

        transformers stacks them all when it loads them, so none is a linear layer that an adapter could be put on.
        """
        apart = {name: [shape] for name, shape in self.linears.items() if EXPERTS.search(name)}
        stacked = {
            name: [(shape[1], math.prod(shape[2:]) * (2 if self.is_packed(name) else 1))] * shape[0]
            for name, (_, shape) in self.tensors.items()
            if EXPERTS.search(name) and len(shape) > 2 and not NO_PARAMETER.search(name)
        }
        return apart | stacked

    @property
    def context_length(self) -> int | None:
        """Tokens that the model was made to read, with the scaling of positions that its configuration turns on."""
        config = text_config(self.config)
        scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
        original = scaling.get("original_max_position_embeddings") or 0
        stated = next((config[key] for key in CONTEXT_KEYS if config.get(key)), 0)
        return max(stated, round(original * (scaling.get("factor") or 1))) or None

    def unpacked(self, name: str) -> tuple[int, int]:
        """Shape of a packed layer. Each one in a decoder reads or writes the hidden state, so one side is its width."""
        hidden = text_config(self.config).get("hidden_size") or 1
        other = self.count(name) // hidden
        writes = name.removesuffix(".weight").endswith(("o_proj", "out_proj", "down_proj", "w2"))
        return (hidden, other) if writes else (other, hidden)


NO_PARAMETER = re.compile(
    r"\.weight\.(absmax|quant_map|quant_state|nested_)|_scales$|\.(weight|input)_scale(_inv)?$|rotary_emb\.inv_freq$"
)
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len")


def bits_of(dtype: str) -> int:
    """Bits of a safetensors type, by the number in its name; those of the usual one where there is none."""
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else {"BOOL": 8}.get(dtype, 16)


def fetch_model(api: HfApi, name: str, revision: str | None = None) -> Model:
    """A model on the Hub, or in a local folder. Reads headers, never weights. Raises UserError."""
    require_id(name)
    folder = Path(os.path.expanduser(name))  # which leaves ~nobody as it is
    if folder.is_dir():
        return local_model(folder)
    if name.startswith((".", "/", "~")):
        raise UserError("not_found", f"There is no model folder {name}.", "Correct the path, or name a model on the Hub.")
    info = fetch_or_suggest(api, "model", name, lambda: api.model_info(name, revision=revision, timeout=LOOKUP_TIMEOUT_S))
    with asking(f"model {name}"):
        if info.gated:
            api.auth_check(name)
        files = {sibling.rfilename for sibling in info.siblings or ()}

    def read(file: str) -> str:
        with asking(f"model {name}"):
            return Path(api.hf_hub_download(name, file, revision=info.sha)).read_text("utf-8", errors="replace")

    require_weights(name, files)
    config = configuration(name, "config.json", read("config.json"))
    for file in TOKENIZER_FILES & files:  # transformers says of each fault of the Hub that there is no tokenizer
        require_no_page(name, file, read(file))
    with asking(f"model {name}"):
        try:
            metadata = api.get_safetensors_metadata(name, revision=info.sha, timeout=LOOKUP_TIMEOUT_S)
        except (SafetensorsParsingError, NotASafetensorsRepoError) as error:
            raise broken_weights(name, error) from error
        tensors: dict[str, tuple[str, tuple[int, ...]]] = {
            tensor: (facts.dtype, tuple(facts.shape))
            for file in metadata.files_metadata.values()
            for tensor, facts in file.tensors.items()
        }
    return Model(name, info.sha, architecture(config), config, bool(info.gated), tensors)


def configuration(name: str, file: str, text: str) -> dict[str, Any]:
    """What a JSON file of a model says. Raises UserError where it is none, or describes a model that cannot be."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        require_no_page(name, file, text)
        raise bad_config(name, f"{file} is not valid JSON ({error})") from error
    if not isinstance(config, dict):
        raise bad_config(name, f"{file} holds no JSON object")
    for part in (config, config["text_config"] if isinstance(config.get("text_config"), dict) else {}):
        for key, value in part.items():
            if re.search(r"layers?$|experts$", key) and isinstance(value, int) and value > MOST_LAYERS:
                raise bad_config(name, f"{file} says {key} = {value:.3g}")
        if not has_usual_form(part):
            raise bad_config(name, f"{file} has another form than transformers' own")
    return config


def has_usual_form(config: dict[str, Any]) -> bool:
    """Whether what is read here of a model's configuration is of the kinds that transformers writes."""
    parts = [config.get(key) or {} for key in ("text_config", "quantization_config", "rope_parameters", "rope_scaling")]
    names, amounts = config.get("architectures") or [], ("hidden_size", "num_hidden_layers", "vocab_size", *CONTEXT_KEYS)
    if not isinstance(names, list) or not all(isinstance(part, dict) for part in parts):
        return False
    names = [*names, config.get("model_type"), parts[1].get("quant_method")]
    numbers = [config.get(key) for key in amounts]
    numbers += [part.get(key) for part in parts[2:] for key in ("factor", "original_max_position_embeddings")]
    return all(one is None or isinstance(one, str) and re.fullmatch(r"[\w.-]{1,100}", one) for one in names) and all(
        one is None or isinstance(one, int | float) and math.isfinite(one) for one in numbers
    )


def require_no_page(name: str, file: str, text: str) -> None:
    if file.endswith(".json") and text.lstrip()[:1] == "<":
        raise UserError(
            "hub_garbled",
            f"What {endpoint()} answered about {file} of {name} is a web page, not that file.",
            "A proxy or a login page may stand between: check the network and HF_ENDPOINT, then try again.",
            HUB,
        )


def bad_config(name: str, why: str) -> UserError:
    return UserError("bad_config", f"{name} cannot be loaded: its {why}.", "Name the model's original repository.")


def broken_weights(name: str, error: Exception) -> UserError:
    return UserError(
        "no_safetensors",
        f"The safetensors files of {name} cannot be read: {plain(str(error)).splitlines()[0] if str(error) else type(error).__name__}.",
        "Choose the original repository of this model, or save it again with transformers' save_pretrained.",
    )


def local_model(folder: Path) -> Model:
    require_weights(str(folder), {path.name for path in folder.iterdir()})
    config = configuration(str(folder), "config.json", (folder / "config.json").read_text("utf-8", errors="replace"))
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        try:
            tensors |= header_of(path)
        except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise broken_weights(str(path), error) from error
    return Model(str(folder), None, architecture(config), config, False, tensors)


def require_weights(name: str, files: set[str]) -> None:
    """Raises UserError where these files are not a whole model in safetensors, and says what they are instead."""
    if is_adapter(files):
        fix = "To go on from it, use templates/sft.py, or make your copy of that again."
        raise UserError("adapter_repo", f"{name} is a LoRA adapter, not a whole model.", fix)
    whole = {"model.safetensors", "model.safetensors.index.json"} & files
    if whole and "config.json" in files:
        return
    if any(file.endswith(".gguf") for file in files) and not whole:
        original = re.sub(r"[-_.]gguf$", "", name, flags=re.IGNORECASE)
        raise UserError(
            "gguf_only",
            f"{name} holds GGUF files, which are for running a model, not for training it.",
            f"Name the model that they were made from: {original if original != name else 'its card says which'}",
        )
    if "config.json" not in files:
        raise UserError(
            "no_config", f"{name} holds no config.json, so it is no model for transformers.", "Name the model's own repository."
        )
    raise UserError(
        "no_safetensors",
        f"{name} has no weights in model.safetensors.",
        "Choose the original repository of this model, or save it again with transformers' save_pretrained.",
    )


def architecture(config: dict[str, Any]) -> str:
    return str((config.get("architectures") or ["unknown"])[0])
