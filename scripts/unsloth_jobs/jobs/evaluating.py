"""What a run of templates/evaluate.py left open, filled in: commits of models and rows, and where the report goes."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from ..errors import USAGE, UserError
from ..estimate.other_jobs import EvaluationSize
from ..lookup import client
from ..lookup.dataset_info import is_local
from ..lookup.identity import Identity
from ..training.adapter import CONFIG, SETTINGS_FILE, WEIGHTS
from ..training.contenders import MOST_CONTENDERS, id_and_revision
from . import preflight

NO_TEST_ROWS = "Pass --eval-dataset: rows with a question and an answer, which no model here was trained on."


@dataclass(frozen=True)
class NamedModel:
    """An adapter or a whole model. revision: its commit; None for a folder here. config: of an adapter, {} of a whole model."""

    id: str
    revision: str | None
    config: dict[str, Any] = field(default_factory=dict)
    trained: dict[str, Any] = field(default_factory=dict)  # the settings that templates/sft.py left beside an adapter

    @property
    def pinned(self) -> str:
        return f"{self.id}@{self.revision}" if self.revision else self.id

    @property
    def base(self) -> str:
        return str(self.config.get("base_model_name_or_path") or "")


def resolve_models(api: HfApi, settings: Any, is_job: bool) -> tuple[Any, list[NamedModel]]:
    """The settings with each model at a commit and the base filled in, and the models that are named. Raises UserError."""
    found = [find_named(api, name, is_job) for name in settings.named]
    adapters = [one for one in found if one.config]
    base, revision = settings.base_model, settings.base_model_revision
    for one in adapters:
        if not is_reachable(one.base, is_job) and not settings.base_model:
            raise UserError(
                "no_base_model",
                f"The adapter {one.id} names {one.base!r} as its base, which is no model's id.",
                "Pass --base-model.",
            )
        if not base or (one.base == base and not revision):
            base, revision = base or one.base, revision or str(one.config.get("revision") or "")
    if base and is_job and is_local(base):
        raise unseen_folder("base-model", base)
    if base and not is_local(base):
        info = client.fetch_or_suggest(api, "model", base, lambda: api.model_info(base, revision=revision or None))
        revision = info.sha or revision
    others = [one for one in found if one.config or one.id != base]
    count = len(others) + bool(base) + bool(settings.system_prompt) + bool(settings.few_shot)
    if count > MOST_CONTENDERS:
        message = f"{count} contenders, with the base model and its forms, are more than {MOST_CONTENDERS}."
        raise UserError("too_many_contenders", message, "Name fewer with --models.", USAGE)
    models = ",".join(one.pinned for one in others)
    return replace(settings, models=models, base_model=base, base_model_revision=revision), found


def size_of(settings: Any, models: list[NamedModel]) -> EvaluationSize:
    """How much is asked, of whom. The base is loaded once for all adapters on it; its forms answer on their own."""
    others = [one for one in models if one.config or one.id != settings.base_model]
    contenders = len(others) + bool(settings.base_model) + bool(settings.system_prompt) + bool(settings.few_shot)
    whole = sum(not one.config for one in others)
    items = settings.benchmark_items * len(settings.tasks)
    return EvaluationSize(contenders, whole + bool(settings.base_model), settings.max_graded, items, settings.grading_seconds)


def find_named(api: HfApi, name: str, is_job: bool, flag: str = "models") -> NamedModel:
    """An adapter or a whole model by what is in its repository or folder. Raises UserError."""
    model, wanted = id_and_revision(name)
    folder = Path(os.path.expanduser(model))
    if is_job and is_local(model):
        raise unseen_folder(flag, model)
    if folder.is_dir():
        files, revision = {path.name for path in folder.iterdir()}, None
    else:
        info = client.fetch_or_suggest(api, "model", model, lambda: api.model_info(model, revision=wanted or None))
        files, revision = {sibling.rfilename for sibling in info.siblings or ()}, info.sha
    if CONFIG not in files and "config.json" not in files:
        message = f"{model} holds neither an adapter nor a whole model: it has no {CONFIG} and no config.json."
        raise UserError("no_model", message, f"Correct --{flag}: a Hub id or a folder.")
    if CONFIG not in files:
        return NamedModel(model, revision)
    if WEIGHTS not in files:
        raise UserError("no_adapter", f"{model} has no {WEIGHTS}.", f"Name what templates/sft.py made with --{flag}.")
    config = read_json(api, model, CONFIG, revision)
    if config.get("peft_type") != "LORA":
        raise UserError(
            "not_lora", f"The adapter {model} is {config.get('peft_type')}, not LORA.", f"Name another with --{flag}."
        )
    return NamedModel(model, revision, config, read_json(api, model, SETTINGS_FILE, revision) if SETTINGS_FILE in files else {})


def read_json(api: HfApi, model: str, name: str, revision: str | None) -> dict[str, Any]:
    """A small file of a model's; {} where it holds no object. Raises UserError."""
    path = Path(os.path.expanduser(model)) / name
    with client.asking(f"model {model}"):
        if not path.is_file():
            path = Path(api.hf_hub_download(model, name, revision=revision))
        found = json.loads(path.read_text("utf-8"))
    return found if isinstance(found, dict) else {}


def is_reachable(base: str, is_job: bool) -> bool:
    """Whether the run can read the model that an adapter names."""
    if is_local(base):
        return not is_job and Path(base).is_dir()
    return base.count("/") == 1


def unseen_folder(flag: str, name: str) -> UserError:
    fix = f"Upload it: hf upload YOU/NAME {name}. Then pass --{flag} YOU/NAME. Or run it here: --where local."
    return UserError("not_a_file", f"--{flag} {name} is on this machine, which a job cannot see.", fix)


def resolve_rows(api: HfApi, settings: Any, models: list[NamedModel], is_job: bool) -> Any:
    """The settings with test rows and training rows at a commit. Raises UserError where nothing says what to ask."""
    trained = next((one.trained for one in models if one.trained), {})
    stored = str(trained.get("dataset") or "")
    if not settings.dataset and stored and not is_local(stored) and stored.count("/") == 1:
        settings = replace(
            settings, dataset=stored, dataset_revision=settings.dataset_revision or trained.get("dataset_revision") or ""
        )
    if settings.eval_dataset:
        test = replace(
            settings,
            dataset=settings.eval_dataset,
            dataset_config=settings.eval_dataset_config,
            dataset_revision=settings.eval_dataset_revision,
        )
        revision = preflight.find_dataset_revision(api, test)
        settings = replace(settings, eval_dataset_revision=revision or settings.eval_dataset_revision)
    elif is_job and not (settings.dataset and trained):
        why = f"The training rows, {stored}, are not on the Hub" if stored else "No model says what it was trained on"
        fix = f"{NO_TEST_ROWS} Or, if you have the training rows, pass them as --dataset." if trained else NO_TEST_ROWS
        raise UserError("no_test_rows", f"{why}, so it is not known which rows were held out.", fix, USAGE)
    if settings.dataset:
        revision = preflight.find_dataset_revision(api, settings)
        settings = replace(settings, dataset_revision=revision or settings.dataset_revision)
    return settings


def resolve_report(settings: Any, models: list[NamedModel], identity: Identity | None) -> Any:
    """The settings with the repository of the report: the first adapter's own, where the token may write there."""
    if settings.output_repo or identity is None:
        return settings
    adapter = next((one.id for one in models if one.config), "")
    if not adapter or not identity.may("repo.write", adapter.partition("/")[0]):
        owns = f"{adapter} belongs to another account" if adapter else "There is no adapter whose repository would take it"
        raise UserError("no_output_repo", f"The report has no place on the Hub: {owns}.", "Pass --output-repo YOU/NAME.", USAGE)
    return replace(settings, output_repo=adapter)
