"""The files of the adapter that training goes on from, and its weights in the model."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .adapter import CONFIG, TOKENIZER_FILES, WEIGHTS, download
from .files import file_digest
from .parent import Adapted, Parent, is_adapter, read_parent, require_apart, settings_on_base, with_lora_values
from .report import Stop, emit
from .settings import TrainingSettings

LONGEST_HEADER = 100_000_000  # bytes of a safetensors file's, as that library has it
TOKENIZER = {"tokenizer.json", "tokenizer_config.json"}  # without either, an adapter's base has the tokenizer


def starting_point(settings: Adapted) -> tuple[Adapted, Parent | None]:
    """What training begins with: the settings with the whole model and the values of its LoRA, and the adapter on it, if any.

    Raises Stop where --base-model names an adapter that is not gone on from, or whose place the result would take.
    """
    parent = find_parent(settings)
    settings = with_lora_values(settings, parent)
    if parent is None:
        return settings, None
    require_apart(settings, parent)
    emit_parent(parent)
    return settings_on_base(settings, parent), parent


def load_tokenizer(settings: TrainingSettings, parent: Parent | None) -> Any:
    """The tokenizer, chat template included, that the adapter was trained with, where it has one; else the model's."""
    from transformers import AutoTokenizer

    if parent and parent.has_tokenizer:
        return AutoTokenizer.from_pretrained(parent.folder)
    return AutoTokenizer.from_pretrained(settings.base_model, revision=settings.base_model_revision or None)


def find_parent(settings: TrainingSettings) -> Parent | None:
    """The adapter that --base-model names, its few files here; None where it is a whole model. Raises Stop."""
    name, revision = settings.base_model, None
    folder = Path(os.path.expanduser(name))
    if not folder.is_dir():
        if not holds_adapter_config(name, settings.base_model_revision):
            return None
        folder = download(name, settings.base_model_revision or None, [CONFIG, WEIGHTS, "config.json", *TOKENIZER_FILES])
        revision = folder.name  # a snapshot is named after its commit
    files = {path.name for path in folder.iterdir()}
    if not is_adapter(files):
        return None
    if WEIGHTS not in files:
        raise no_weights(name)
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
        shapes = {tensor: shape for tensor, (_, shape) in header_of(folder / WEIGHTS).items()}
        found = read_parent(name, revision, config, shapes, files >= TOKENIZER, folder)
        nested = find_parent(replace(settings, base_model=found.base, base_model_revision=found.base_revision or ""))
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Stop("bad_adapter", f"The files of {name} cannot be read: {error}", "Push the adapter again.") from error
    if nested:
        raise on_adapter(found)
    return found


def holds_adapter_config(repo: str, revision: str) -> bool:
    """Whether there is one. Other errors of the Hub are raised where the model is loaded."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        hf_hub_download(repo, CONFIG, revision=revision or None)
    except (EntryNotFoundError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError):
        return False
    return True


def on_adapter(parent: Parent) -> Stop:
    message = (
        f"{parent.name} is an adapter on {parent.base}, which is an adapter itself: the two are not gone on from together."
    )
    return Stop("unsupported_adapter", message, f"Name a model that both were merged into, or {parent.base} alone.")


def no_weights(name: str) -> Stop:
    fix = "Push the adapter again with PEFT's save_pretrained, which writes that file."
    return Stop("bad_adapter", f"{name} holds {CONFIG} and no {WEIGHTS}: it is neither an adapter nor a model.", fix)


def header_of(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each tensor in a safetensors file. Raises ValueError and others on what is none."""
    with path.open("rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        if size > min(path.stat().st_size, LONGEST_HEADER):
            raise ValueError("its header is longer than the file")
        header = json.loads(file.read(size))
    return {
        name: (str(facts["dtype"]), tuple(map(int, facts["shape"]))) for name, facts in header.items() if name != "__metadata__"
    }


def parent_lineage(parent: Parent | None) -> dict[str, str]:
    """What a checkpoint of a run that goes on from an adapter comes from, beside all else: the adapter's weights."""
    if parent is None or parent.folder is None:
        return {}
    return {"parent": file_digest(parent.folder / WEIGHTS), "parent_name": parent.name}


def copy_weights(model: Any, parent: Parent, places: Mapping[str, str]) -> None:
    """The adapter's matrices into a model that has new ones in each place, by the layer's name in the model."""
    import torch
    from safetensors.torch import load_file

    weights = load_file(str((parent.folder or Path()) / WEIGHTS))
    with torch.no_grad():
        for place, name in places.items():
            layer = model.get_submodule(f"base_model.model.{place}")
            for part in ("lora_A", "lora_B"):
                getattr(layer, part)["default"].weight.copy_(weights[f"base_model.model.{name}.{part}.weight"])


def emit_parent(parent: Parent) -> None:
    """What training goes on from, and what `base` means in the losses, answers and grades of this run."""
    emit(
        "parent",
        adapter=parent.name,
        revision=parent.revision,
        base_model=parent.base,
        base_model_revision=parent.base_revision,
        lora_r=parent.rank,
        lora_alpha=parent.alpha,
        target_modules=parent.targets,
        message="`base` in this run's losses, answers and grades is this adapter as it was when training began.",
    )
