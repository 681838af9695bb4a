"""What serve.py asks for, filled in: the models at their commits, the engine, and the cheapest machine that holds them."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from ..errors import USAGE, UserError
from ..estimate import serving
from ..estimate.flavors import LOCAL, Flavor
from ..lookup import client
from ..lookup.dataset_info import is_local
from ..lookup.model_info import Model, fetch_model
from ..training.models import require_decoder
from ..training.report import Stop
from ..training.serving_commands import LLAMA_SERVER
from . import evaluating

IMAGE = f"vllm/vllm-openai:v{serving.VLLM}"
PORT = 8000
ADAPTER_BYTES = 0.1e9  # of an adapter in memory: assumed
# A GGUF file needs none of the template's own libraries: torch alone would take gigabytes.
GGUF_LIBRARIES = ("starlette==1.10.0", "uvicorn==0.54.0", "psutil==7.2.2", "huggingface_hub==1.33.0")
LLAMA_LIBRARY = "llama-cpp-python==0.3.36"  # built here, where llama.cpp's own server is not installed


@dataclass(frozen=True)
class ResolvedServing:
    """settings: of templates/serving.py; choice: the machine and its engine; model, revision: what is served, at its commit."""

    settings: Any
    choice: serving.Choice
    model: str
    revision: str | None
    names: tuple[str, ...]


def resolve_serving(api: HfApi, settings: Any, flavors: list[Flavor], flavor: str | None, is_job: bool) -> ResolvedServing:
    """Raises UserError where it cannot be served, before anything is paid. flavors: not asked of this machine."""
    if not settings.model:
        raise UserError("bad_arguments", "--model is needed: an adapter or a whole model.", "Pass --model OWNER/NAME.", USAGE)
    if settings.model.endswith(".gguf"):
        return resolve_gguf(settings, is_job)
    found = evaluating.find_named(api, settings.model, is_job, "model")
    base = base_of(api, found, settings.base_model, is_job)
    revision = settings.base_model_revision or (str(found.config.get("revision") or "") if base == found.base else "")
    models = [fetch_model(api, base, revision or None)] if base else []
    if base and not is_local(base):
        revision = models[0].revision or revision
    if not found.config:
        models.append(fetch_model(api, found.id, found.revision))
    for model in models:
        require_served(model)
    served = serving.Served(tuple(models), extra_bytes=ADAPTER_BYTES if found.config else 0.0)
    choice = serving.choose(flavors, served, settings.engine, flavor) if is_job else here(served, settings.engine)
    settings = replace(
        settings,
        model=found.pinned,
        base_model=base,
        base_model_revision=revision,
        engine=choice.engine,
        context=min(settings.context, served.context),
        half=choice.engine == "vllm" and not choice.flavor.bf16,
    )
    return ResolvedServing(settings, choice, found.id, found.revision, ("base", "tuned") if base else ("tuned",))


def base_of(api: HfApi, found: evaluating.NamedModel, asked: str, is_job: bool) -> str:
    """The model that is served beside the tuned one; "" for none. Raises UserError."""
    own = found.base if found.config and evaluating.is_reachable(found.base, is_job) else ""
    if asked and own and asked != own:
        message = f"The adapter {found.id} is one of {own}, and is put on that model."
        raise UserError("base_conflict", message, "Leave --base-model out.", USAGE)
    if found.config and not (own or asked):
        message = f"The adapter {found.id} names {found.base!r} as its base, which is no model's id."
        raise UserError("no_base_model", message, "Pass --base-model.")
    if own or asked or found.revision is None:
        return "" if asked == "none" else own or asked
    with client.asking(f"model {found.id}"):
        card = api.model_info(found.id, revision=found.revision).card_data
    stated = card.get("base_model") if card else None
    return stated if isinstance(stated, str) and client.IS_ID.fullmatch(stated) and is_whole(api, stated) else ""


def is_whole(api: HfApi, name: str) -> bool:
    """Whether what a card names as its base is a model that can be served beside it."""
    try:
        return bool(fetch_model(api, name))
    except UserError:
        return False


def require_served(model: Model) -> None:
    """Raises UserError where no engine here takes a model."""
    try:
        require_decoder(model.config)
    except Stop as stop:
        how = "is quantised in a way that is not served here" if stop.code == "quantized_model" else "does not write text"
        raise UserError(
            "not_served", f"{model.id} ({model.architecture}) {how}.", "Serve a model whose architecture ends in ForCausalLM."
        ) from stop


def here(served: serving.Served, engine: str) -> serving.Choice:
    if engine not in ("auto", "transformers"):
        fix = "Leave --engine out, or pass transformers."
        raise UserError("bad_engine", f"{engine} does not serve this model on this machine.", fix, USAGE)
    return serving.Choice(LOCAL, "transformers", served.needed_gb("transformers", False), "on this machine")


def resolve_gguf(settings: Any, is_job: bool) -> ResolvedServing:
    """A GGUF file of this machine, or OWNER/NAME:FILE of the Hub. Raises UserError."""
    if is_job:
        fix = "Pass --where local. Or serve the adapter that it was made of."
        raise UserError("gguf_job", "A GGUF file is served on this machine, by llama.cpp.", fix, USAGE)
    for name in filter(None, (settings.model, settings.base_model)):
        path = Path(os.path.expanduser(name))
        if not path.is_file() and not re.fullmatch(r"[\w.-]+/[\w.-]+:[\w./-]+\.gguf", name):
            raise UserError(
                "not_found", f"There is no file {name}.", "Correct the path, or name OWNER/NAME:FILE.gguf on the Hub."
            )
    settings = replace(settings, engine="llama.cpp")
    choice = serving.Choice(LOCAL, "llama.cpp", 0.0, "a GGUF file")
    return ResolvedServing(settings, choice, settings.model, None, ("base", "tuned") if settings.base_model else ("tuned",))


def runner_of(engine: str) -> tuple[str, ...]:
    """What runs the template; () for its own environment. vLLM's image has its libraries in its own Python."""
    if engine == "vllm":
        return ("python3",)
    if engine != "llama.cpp":
        return ()
    libraries = (*GGUF_LIBRARIES, *([] if shutil.which(LLAMA_SERVER) else [LLAMA_LIBRARY]))
    return ("uv", "run", "--no-project", *(word for library in libraries for word in ("--with", library)), "python")
