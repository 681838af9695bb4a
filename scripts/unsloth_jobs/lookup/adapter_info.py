"""The model to train and, where --base-model names an adapter, that adapter with the model under it."""

from __future__ import annotations

import os
import struct
from dataclasses import replace
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

from ..errors import USAGE, UserError
from ..template import Template
from ..training.adapter import CONFIG, WEIGHTS
from ..training.parent import Adapted, Parent, placed, read_parent, require_apart, with_lora_values
from ..training.parent_files import TOKENIZER, header_of, no_weights, on_adapter
from ..training.report import Stop
from ..training.settings import TrainingSettings
from .client import LOOKUP_TIMEOUT_S, asking
from .model_info import Model, broken_weights, configuration, fetch_model

CONTRADICTIONS = ("adapter_conflict", "parent_replaced")  # what the flags say, not what the adapter is


def fetch_model_to_train(api: HfApi, template: Template, settings: TrainingSettings) -> Model:
    """The model that --base-model names, or the one under the adapter that it names. Raises UserError."""
    name, revision = settings.base_model, settings.base_model_revision or None
    try:
        return fetch_model(api, name, revision)
    except UserError as error:
        # A copy of an earlier template would take the adapter for a model.
        if error.problem.code != "adapter_repo" or not hasattr(template, "find_parent"):
            raise
    try:
        parent = fetch_parent(api, name, revision)
        base = fetch_base(api, parent)
        placed(parent, base.linears)
    except Stop as stop:
        raise as_error(stop) from stop
    return replace(base, parent=parent)


def fetch_parent(api: HfApi, name: str, revision: str | None) -> Parent:
    """An adapter on the Hub or in a local folder, without its weights. Raises UserError, and Stop where it is not gone on from."""
    folder = Path(os.path.expanduser(name))
    if folder.is_dir():
        files, commit, here = {path.name for path in folder.iterdir()}, None, folder
    else:
        with asking(f"model {name}"):
            info = api.model_info(name, revision=revision, timeout=LOOKUP_TIMEOUT_S)
            files, commit = {sibling.rfilename for sibling in info.siblings or ()}, info.sha
            here = Path(api.hf_hub_download(name, CONFIG, revision=commit)).parent
    config = configuration(name, CONFIG, (here / CONFIG).read_text("utf-8", errors="replace"))
    if WEIGHTS not in files:
        raise no_weights(name)
    shapes = local_shapes(folder / WEIGHTS) if commit is None else fetch_shapes(api, name, commit)
    return read_parent(name, commit, config, shapes, files >= TOKENIZER, folder if commit is None else None)


def local_shapes(weights: Path) -> dict[str, tuple[int, ...]]:
    try:
        return {tensor: shape for tensor, (_, shape) in header_of(weights).items()}
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise unreadable_weights(str(weights), error) from error


def fetch_shapes(api: HfApi, name: str, commit: str) -> dict[str, tuple[int, ...]]:
    with asking(f"model {name}"):
        try:
            found = api.parse_safetensors_file_metadata(name, WEIGHTS, revision=commit)
        except (SafetensorsParsingError, NotASafetensorsRepoError) as error:
            raise unreadable_weights(name, error) from error
        return {tensor: tuple(facts.shape) for tensor, facts in found.tensors.items()}


def unreadable_weights(name: str, error: Exception) -> UserError:
    return UserError(
        "bad_adapter", broken_weights(name, error).problem.message, "Push the adapter again with PEFT's save_pretrained."
    )


def fetch_base(api: HfApi, parent: Parent) -> Model:
    """The model under an adapter. Raises UserError, which says whose base it is."""
    try:
        return fetch_model(api, parent.base, parent.base_revision)
    except UserError as error:
        if error.problem.code == "adapter_repo":
            raise on_adapter(parent) from error
        problem = error.problem
        message = f"{parent.name} is an adapter of {parent.base}, and training needs that model: {problem.message}"
        raise UserError(problem.code, message, problem.fix, error.exit_code) from error


def with_lora_of(settings: Adapted, model: Model) -> Adapted:
    """The settings with rank, alpha and targets of the adapter that is gone on from. Raises UserError (usage) where they differ."""
    if model.parent is None:
        return settings
    try:
        require_apart(settings, model.parent)
        return with_lora_values(settings, model.parent)
    except Stop as stop:
        raise as_error(stop) from stop


def as_error(stop: Stop) -> UserError:
    usage = {"exit_code": USAGE} if stop.code in CONTRADICTIONS else {}
    return UserError(stop.code, stop.message, stop.fix, **usage)
