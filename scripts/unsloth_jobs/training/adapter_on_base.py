"""An adapter and the model under it."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from .adapter import CONFIG, TOKENIZER_FILES, WEIGHTS, download
from .report import Stop


@dataclass(frozen=True)
class Adapter:
    """An adapter on this machine's disk and what it says of its base. fingerprint: of all that its merge depends on."""

    folder: Path
    base: str
    base_revision: str | None
    fingerprint: str


def find_adapter(name: str, revision: str, base_model: str, base_model_revision: str) -> Adapter:
    """The adapter's own few files, downloaded where name is no folder. What is "" is found: the newest, the base it names.

    Raises Stop where they are not a LoRA adapter on a model that can be read.
    """
    folder = Path(os.path.expanduser(name))
    if not folder.is_dir():
        folder = download(name, revision or None, [WEIGHTS, CONFIG, "README.md"])
    if missing := [file for file in (CONFIG, WEIGHTS) if not (folder / file).is_file()]:
        raise Stop("no_adapter", f"{name} has no {missing[0]}.", "Pass what templates/sft.py made.")
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    if config.get("peft_type") != "LORA":
        raise Stop("not_lora", f"The adapter is {config.get('peft_type')}, not LORA.", "Only LoRA adapters can be merged here.")
    base = base_model or config.get("base_model_name_or_path") or ""
    if not Path(base).is_dir() and base.count("/") != 1:
        raise Stop("no_base_model", f"The adapter's base model {base!r} is not on this machine.", "Pass --base-model.")
    base_revision = base_model_revision or (None if base_model else config.get("revision"))
    content = (folder / WEIGHTS).read_bytes() + f"{base}@{base_revision}".encode()
    return Adapter(folder, base, base_revision, hashlib.sha256(content).hexdigest())


def base_files(adapter: Adapter) -> Path:
    """The base's configuration and tokenizer, without its weights. Raises Stop where those cannot be merged into."""
    folder = Path(adapter.base)
    if not folder.is_dir():
        folder = download(adapter.base, adapter.base_revision, ["config.json", "generation_config.json", *TOKENIZER_FILES])
    config = json.loads((folder / "config.json").read_text("utf-8"))
    if quantized := config.get("quantization_config"):
        raise Stop(
            "quantized_base",
            f"The weights of {adapter.base} are quantised ({quantized.get('quant_method')}); merging needs 16 bits.",
            "Pass the original 16-bit model as --base-model.",
        )
    return folder


def base_bytes(adapter: Adapter) -> int:
    """The size of the base's weights."""
    from huggingface_hub import HfApi

    if Path(adapter.base).is_dir():
        return sum(path.stat().st_size for path in Path(adapter.base).glob("model*.safetensors"))
    files = HfApi().model_info(adapter.base, revision=adapter.base_revision, files_metadata=True).siblings
    return sum(
        file.size or 0 for file in files or () if file.rfilename.startswith("model") and file.rfilename.endswith(".safetensors")
    )
