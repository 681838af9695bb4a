"""What the Hub's metadata says of a run before it is planned: a few requests, no rows, no tokenizer.

check.py and estimate.py say more. What they would refuse and what can be known from here, submit.py refuses as well: the
commands can be called one without the other, and a job that cannot end well is paid for all the same.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from ..errors import HUB, USAGE, UserError
from ..estimate import cost
from ..estimate.flavors import Flavor
from ..estimate.other_jobs import ExportSizes
from ..lookup import client
from ..lookup.adapter_info import fetch_model_to_train
from ..lookup.checks import require_decoder
from ..lookup.dataset_info import dataset_info, is_local
from ..lookup.identity import Identity, writable_namespace
from ..lookup.model_info import Model, fetch_model
from ..lookup.table import read_file, reasons
from ..template import Template
from ..training.report import Stop
from ..training.settings import TrainingSettings
from .plan import Plan

CPU_PARAMETERS = 100e6  # up to so many a processor trains in reasonable time
MEDIA = re.compile(r"\b(image|audio|video)\b", re.IGNORECASE)
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
EXPORT_LIBRARIES_GB = 8  # on disk: torch and what it needs


# ---- the model


def find_model(api: HfApi, template: Template, settings: TrainingSettings) -> Model:
    """The model to train, its revision as a commit. Raises UserError where it cannot be trained."""
    found = fetch_model_to_train(api, template, settings)
    require_decoder(template, found)
    return found


def require_one_gpu(machine: Flavor, flavors: list[Flavor]) -> None:
    """Raises UserError where a script that works on one GPU would pay for several."""
    if machine.gpus <= 1:
        return
    single = sorted((one for one in flavors if one.gpus == 1 and one.gpu == machine.gpu), key=lambda one: one.usd_per_minute)
    instead = f"Pass --flavor {single[0].name}, with one GPU of the same kind." if single else "Pass a --flavor with one GPU."
    message = f"{machine.name} has {machine.gpus} GPUs, and this script works on one."
    raise UserError("multi_gpu_flavor", message, instead, USAGE)


def require_fit(machine: Flavor, flavors: list[Flavor], found: Model, settings: TrainingSettings, spread: bool) -> None:
    """Raises UserError where the run would fail on this machine or waste it. spread: whether its script takes several GPUs."""
    try:
        reason = misfit(machine, found, settings, spread)
    except Stop as stop:  # of its settings, such as modules that this model does not have
        raise UserError(stop.code, stop.message, stop.fix, USAGE) from stop
    if not reason:
        return
    fitting = [one for one in flavors if one.gpus and not misfit(one, found, settings, spread)]
    instead = " or ".join(f"--flavor {one.name}" for one in sorted(fitting, key=lambda one: one.usd_per_minute)[:2])
    fix = "Lower --max-seq-length or --lora-r, pass --gradient-checkpointing offload, or choose a smaller model."
    if instead:
        fix = f"Pass {instead}. estimate.py says what the run takes and costs on each."
    raise UserError(reason.code, f"{found.id} cannot be trained on {machine.name}: {reason.reason}.", fix, USAGE)


def misfit(machine: Flavor, found: Model, settings: TrainingSettings, spread: bool) -> cost.Misfit | None:
    """Why this machine is none for the run, by the estimate's own figures for one sequence at a time."""
    settings = cost.for_machine(machine, found, settings)
    needed = cost.least_memory(found, settings).needed + cost.for_peers(machine)
    method = (found.config.get("quantization_config") or {}).get("quant_method", "bitsandbytes")
    tolerated = {"unknown_gpu"}
    if method != "bitsandbytes":  # check.py warns that the memory of these is not known
        tolerated.add("too_little_vram")
    if found.parameters <= CPU_PARAMETERS:
        tolerated.add("cpu_flavor")
    shared = cost.most_gpus(settings, spread)
    reasons = cost.misfits(machine, needed, cost.disk_gb(found, settings), cost.bf16_for(found), shared)
    return next((one for one in reasons if one.code not in tolerated), None)


# ---- the adapter of an export


@dataclass(frozen=True)
class Adapter:
    id: str
    revision: str | None
    base: str
    base_revision: str | None = None


def find_adapter(api: HfApi, settings: Any) -> Adapter:
    """The adapter that templates/export.py would merge. Raises UserError where it cannot be read or is none."""
    folder = Path(os.path.expanduser(settings.adapter))
    if folder.is_dir():
        revision, files = None, {path.name for path in folder.iterdir()}
    else:
        wanted = settings.adapter_revision or None
        info = client.fetch_or_suggest(
            api, "model", settings.adapter, lambda: api.model_info(settings.adapter, revision=wanted)
        )
        revision, files = info.sha, {sibling.rfilename for sibling in info.siblings or ()}
    if missing := [name for name in ADAPTER_FILES if name not in files]:
        fix = "Pass the repository that templates/sft.py made as --adapter."
        if {"config.json", "model.safetensors"} <= files:
            fix += " A whole model needs no export: llama.cpp converts it as it is."
        raise UserError("no_adapter", f"{settings.adapter} is no LoRA adapter: it has no {missing[0]}.", fix)
    config = adapter_config(api, settings.adapter, revision)
    base = settings.base_model or str(config.get("base_model_name_or_path") or "")
    if Path(base).exists() or base.count("/") == 1:
        return Adapter(settings.adapter, revision, base, None if settings.base_model else config.get("revision"))
    raise UserError("no_base_model", f"The adapter names {base!r} as its base, which is no model's id.", "Pass --base-model.")


def adapter_config(api: HfApi, name: str, revision: str | None) -> dict[str, Any]:
    """What an adapter says of itself; {} where that is no object."""
    path = Path(os.path.expanduser(name)) / ADAPTER_FILES[0]
    with client.asking(f"model {name}"):
        if not path.is_file():
            path = Path(api.hf_hub_download(name, ADAPTER_FILES[0], revision=revision))
        config = json.loads(path.read_text("utf-8"))
    return config if isinstance(config, dict) else {}


def find_base(api: HfApi, name: str, revision: str | None, is_job: bool) -> Model | None:
    """The model that an export or an evaluation loads; None where its shapes cannot be read, as of other formats.

    Raises UserError where the job could not read it: it is gone, gated, or private.
    """
    try:
        return fetch_model(api, name, revision)
    except UserError as error:
        if is_job and (error.exit_code == HUB or error.problem.code == "not_found"):
            raise  # here it may lie in the cache
        return None


def require_export_fits(machine: Flavor, sizes: ExportSizes) -> None:
    """Raises UserError where the machine would run out of memory or disk. What is not known of it is not held against it."""
    disk = sizes.disk / 1e9 + EXPORT_LIBRARIES_GB
    for code, what, needed, there in (
        ("too_little_memory", "memory", sizes.memory / 1e9, machine.ram_gb),
        ("too_little_disk", "disk", disk, machine.disk_gb),
    ):
        if 0 < there < needed:
            raise UserError(
                code,
                f"This export needs about {needed:.0f} GB of {what}, and {machine.name} has {there:.0f} GB.",
                f"Pass a flavor with more {what}, such as --flavor cpu-xl, or fewer --quantizations.",
                USAGE,
            )


# ---- the rows


def find_dataset_revision(api: HfApi, settings: Any) -> str | None:
    """The commit of the data set; None for a local one.

    Raises UserError where its card says that its rows hold pictures or sound, unless the columns to learn were named.
    """
    if is_local(settings.dataset):
        return None
    info = dataset_info(api, settings.dataset, settings.dataset_revision or None)
    card = info.card_data.to_dict() if info.card_data else {}
    columns = media(card.get("dataset_info"), settings.dataset_config)
    if columns and not settings.prompt_column:
        raise UserError(
            "picture_rows",
            f"The rows of {settings.dataset} hold pictures or sound ({', '.join(columns)}), and only text can be learned.",
            "Choose a data set of text. To learn from its text alone, name the columns: --prompt-column Q --completion-column A.",
        )
    return info.sha


def require_readable(module: Template, settings: TrainingSettings) -> None:
    """Raises UserError where the job could not read its local files: they are uploaded, and paid for, only where it can."""
    if own := getattr(settings, "reward_file", ""):
        with reasons(module):
            module.grader_of_file(own, "grade")  # type: ignore[attr-defined]  # of a template that learns from rewards
    if hasattr(module, "scan_file"):  # copies of earlier versions have none
        with reasons(module):
            if file := module.local_file(settings):
                read_file(module, settings, file, 1)


def media(stated: Any, config: str) -> list[str]:
    """Columns of pictures, sound or video, by `dataset_info` of a data set's card: of one configuration or of several."""
    parts = [part for part in (stated if isinstance(stated, list) else [stated]) if isinstance(part, dict)]
    chosen = [part for part in parts if part.get("config_name", config) == config] or parts
    features = [one for part in chosen for one in part.get("features") or () if isinstance(one, dict)]
    types = {str(one.get("name")): json.dumps(one, default=str).partition("dtype")[2] for one in features}
    return sorted(name for name, type in types.items() if MEDIA.search(type))


# ---- where the result goes


@dataclass(frozen=True)
class Repository:
    """A repository that a run writes to, as it is now. private: None where there is none yet; base: of an adapter in it."""

    id: str
    private: bool | None = None
    files: frozenset[str] = frozenset()
    base: str = ""

    @property
    def holds(self) -> str:
        """What of it a new result would replace, in words; "" where there is nothing."""
        if ADAPTER_FILES[1] in self.files:
            return f"an adapter{f' of {self.base}' if self.base else ''}"
        if "config.json" in self.files:
            return "a model"
        if any(name.endswith(".gguf") for name in self.files):
            return "GGUF files"
        return "a checkpoint" if any(name.startswith("last-checkpoint/") for name in self.files) else ""


def find_repository(api: HfApi, name: str) -> Repository:
    """A repository as it is now; one that is not there is made by the run. Raises UserError."""
    try:
        with client.asking(f"model {name}"):
            info = api.model_info(name, timeout=client.LOOKUP_TIMEOUT_S)
    except UserError as error:
        if error.problem.code == "not_found" and isinstance(error.__cause__, RepositoryNotFoundError):
            return Repository(name)
        raise
    files = frozenset(sibling.rfilename for sibling in info.siblings or ())
    config = adapter_config(api, name, info.sha) if set(ADAPTER_FILES) <= files else {}
    base = str(config.get("base_model_name_or_path") or "")
    return Repository(name, bool(info.private), files, base)


def require_own(identity: Identity, names: Iterable[str]) -> None:
    """Raises UserError where the token may not write to one of these repositories."""
    for owner in dict.fromkeys(name.partition("/")[0] for name in names):
        writable_namespace(identity, owner)


def require_room(found: Repository, public: bool, of_adapter: bool) -> None:
    """Raises UserError where a result there would be seen by people it is not meant for, or mixed with a model."""
    if found.private is False and not public:
        raise UserError(
            "public_repository",
            f"{found.id} exists and is public: anyone could read what this run puts there.",
            "Name another repository after `--`: --output-repo OWNER/NAME. Or pass --public, if the result may be public.",
            USAGE,
        )
    if of_adapter and "config.json" in found.files and "adapter_config.json" not in found.files:
        raise UserError(
            "name_taken",
            f"{found.id} holds a whole model, and the adapter would be mixed with it.",
            "Name another --output-repo.",
        )


def require_unused(api: HfApi, plan: Plan, label: str) -> None:
    """Raises UserError where a job of another plan that is not over writes to the same repository.

    A job names its repository in its command, also one that was submitted from elsewhere. Where the list cannot be read
    there is no error: before a job is started the list is fetched again.
    """
    if not (wanted := output_repo(plan.arguments)) or not plan.namespace:
        return
    try:
        with client.asking(f"the jobs of {plan.namespace}"):
            listed = list(api.list_jobs(namespace=plan.namespace, status=["SCHEDULING", "RUNNING"]))
    except (UserError, TypeError, ValueError, AttributeError):
        return
    for job in listed:
        words = [str(word) for word in (*(job.command or ()), *(job.arguments or ()))]
        same_kind = exports(words) == exports(plan.arguments)  # an export writes beside the adapter that it reads
        if same_kind and output_repo(words) == wanted and (job.labels or {}).get(label) != plan.plan_id:
            raise UserError(
                "repo_in_use",
                f"Job {job.id} is not over and writes to {wanted}, too: each would overwrite what the other saves.",
                f"Wait for it, end it (status.py {job.id} --cancel), or name another after `--`: --output-repo OWNER/NAME",
                USAGE,
            )


def output_repo(words: Iterable[str]) -> str | None:
    found = re.search(r"(?:^|\s)--output-repo[= ]([\w.-]+/[\w.-]+)", " ".join(words))
    return found and found[1]


def exports(words: Iterable[str]) -> bool:
    return re.search(r"(?:^|\s)--adapter[= ]", " ".join(words)) is not None
