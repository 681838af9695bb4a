"""From what a user asked for to the plan: all that the Hub must be asked, and what its answers mean for the run."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from .. import template
from ..errors import USAGE, Problem, UserError
from ..estimate import cost, other_jobs
from ..estimate.flavors import LOCAL, Flavor, fetch_flavor, fetch_flavors
from ..estimate.history import run_key
from ..estimate.other_jobs import ExportSizes
from ..lookup.adapter_info import with_lora_of
from ..lookup.dataset_info import is_local
from ..lookup.identity import Identity, whoami, writable_namespace
from ..lookup.model_info import Model
from ..training.files import file_digest, sha256_of
from ..training.learning_rate import learning_rate_for
from ..training.parent import Parent
from . import arguments, evaluating, preflight
from .plan import (
    DEFAULT_FLAVOR,
    DEFAULT_TIMEOUT_S,
    JUDGE_KEY,
    SERVED_S,
    SMOKE_MAX_USD,
    SMOKE_STEPS,
    SMOKE_TIMEOUT_S,
    Plan,
    seconds,
)
from .serving import IMAGE, PORT, ResolvedServing, resolve_serving, runner_of


@dataclass(frozen=True)
class RunRequest:
    """The arguments of submit.py and serve.py. timeout: text such as 4h, or None for the default; flavor: None for the cheapest
    that serves a model."""

    script: Path
    arguments: list[str]
    where: str
    flavor: str | None
    timeout: str | None
    namespace: str | None
    attempts: int = 1
    smoke: bool = False


@dataclass(frozen=True)
class PreparedPlan:
    """A plan with what it rests on and does not fix: None or empty for a script that is run as it is."""

    plan: Plan
    settings: Any = None
    repositories: tuple[preflight.Repository, ...] = ()
    problems: tuple[Problem, ...] = ()
    parent: Parent | None = None  # the adapter that training goes on from
    estimate: dict[str, Any] | None = None  # of a job that trains nothing; a training's is made by estimate.py
    sizes: ExportSizes | None = None
    serving: ResolvedServing | None = None


@dataclass(frozen=True)
class ResolvedRun:
    """A template's settings with all pinned that was left open, and what they name."""

    settings: Any
    repositories: tuple[preflight.Repository, ...]
    model: str | None
    model_revision: str | None
    parameters: Model | None = None  # of the model, where one is trained
    estimate: dict[str, Any] | None = None
    sizes: ExportSizes | None = None


def prepare(api: HfApi, request: RunRequest) -> PreparedPlan:
    """Look up all that a plan fixes: identity, price, revisions, repositories. Raises UserError."""
    script = request.script
    template.require_harmless(request.arguments)
    module = template.load(script) if template.takes_settings(script) else None
    template.require_no_token(script)
    if request.smoke and not (module and template.trains(module)):
        raise UserError(
            "no_smoke", "A smoke run needs a script that takes --max-steps.", "Use templates/sft.py, or a copy.", USAGE
        )
    settings = arguments.expanded(template.settings(module, request.arguments)) if module else None
    limit = seconds(request.timeout) if request.timeout is not None else None
    if module and template.serves(module):
        return prepare_serving(api, request, module, settings, limit or SERVED_S[request.where])
    if request.where == "local":
        identity, machine, owner = None, LOCAL, None
        flavors: list[Flavor] = []
    else:
        identity = whoami(api)
        owner = writable_namespace(identity, request.namespace)
        machine, flavors = fetch_flavor(api, request.flavor or DEFAULT_FLAVOR)
    base = plan_on(machine, request, owner, default_timeout(machine, request.smoke) if limit is None else limit)
    if module is None:
        return plan_without_settings(base)
    if owner:
        arguments.require_visible(settings)
    if not template.trains(module):
        if owner:
            preflight.require_one_gpu(machine, flavors)
        resolve = resolve_evaluation if template.evaluates(module) else resolve_export
        run = resolve(api, settings, identity, owner, machine)
        return with_arguments(base, run, module, request.arguments)
    run = resolve_training(api, module, settings, owner, request)
    if owner and run.parameters:
        preflight.require_fit(machine, flavors, run.parameters, run.settings, template.uses_all_gpus(module))
    if run.parameters:
        run = replace(run, settings=fixed(machine, run.parameters, run.settings))
    key = run_key(run.settings, script)
    whole = arguments.render(run.settings, request.arguments)
    if request.smoke:
        run = replace(run, settings=smoke_settings(run.settings))
    if arguments.render(run.settings, request.arguments) != whole:
        base = replace(base, whole_arguments=tuple(whole))
    repositories = fetch_result_repositories(api, identity, run.settings)
    base = replace(base, run_key=key.run, pace_key=key.pace)
    return with_arguments(base, replace(run, repositories=repositories), module, request.arguments)


def prepare_serving(api: HfApi, request: RunRequest, module: template.Template, settings: Any, limit: int) -> PreparedPlan:
    """The plan of a run of templates/serving.py, on the machine that was named or the cheapest that holds the model."""
    is_job = request.where == "hf"
    owner = writable_namespace(whoami(api), request.namespace) if is_job else None
    flavors = fetch_flavors(api)[0] if is_job else []
    if is_job and request.flavor:
        fetch_flavor(api, request.flavor)  # says why, where its price makes no sense
    found = resolve_serving(api, settings, flavors, request.flavor, is_job)
    if is_job:
        found = replace(found, settings=replace(found.settings, port=PORT, host=""))
    base = plan_on(found.choice.flavor, request, owner, limit)
    engine = found.choice.engine
    base = replace(base, port=found.settings.port or PORT, runner=runner_of(engine), image=IMAGE if engine == "vllm" else "")
    asked = [*request.arguments, f"--port={found.settings.port}"]  # said to the job in any case
    run = ResolvedRun(found.settings, (), found.model, found.revision)
    return replace(with_arguments(base, run, module, asked), serving=found)


def plan_on(machine: Flavor, request: RunRequest, owner: str | None, limit: int) -> Plan:
    """What a plan says before it is known what its script does."""
    return Plan(
        where=request.where,
        script=str(request.script.resolve()),
        script_sha256=sha256_of(request.script),
        arguments=tuple(request.arguments),
        flavor=machine.name,
        timeout_s=limit,
        vram_gb=machine.vram_gb / max(machine.gpus, 1),
        gpus=machine.gpus,
        attempts=request.attempts,
        usd_per_minute=machine.usd_per_minute,
        max_usd=machine.most_usd(limit, request.attempts),
        namespace=owner,
        secrets=("HF_TOKEN",) if request.where == "hf" else (),
        model=None,
        model_revision=None,
        dataset=None,
        dataset_revision=None,
        output_repo=None,
        output_dir=None,
        trackio_space=None,
        smoke=request.smoke,
    )


def plan_without_settings(plan: Plan) -> PreparedPlan:
    """The plan of a script without settings: its arguments are its own."""
    words = list(plan.arguments)
    if {"--help", "-h"} & set(words):
        fix = f"To read its help, run it here: uv run {plan.script} --help"
        raise UserError("bad_arguments", "--help would be run as a job of its own.", fix, USAGE)
    if plan.where == "local":
        return PreparedPlan(plan)
    problems = arguments.require_clear(words)
    arguments.require_sendable(words)
    return PreparedPlan(replace(plan, files=arguments.local_files(words)), problems=tuple(problems))


def with_arguments(plan: Plan, run: ResolvedRun, module: template.Template, typed: list[str]) -> PreparedPlan:
    """The plan of a template's run, its arguments in their canonical form."""
    settings = run.settings
    words = arguments.render(settings, typed)
    if template.settings(module, words) != settings:
        raise template.not_ours(Path(plan.script), f"it reads {' '.join(words)} as other settings than these")
    if plan.where == "hf":
        arguments.require_sendable(words)
    value = lambda name: getattr(settings, name, None) or None  # noqa: E731
    dataset, save_local = value("dataset") if template.trains(module) else None, value("save_local")
    revision = file_digest(Path(dataset)) if dataset and Path(dataset).is_file() else dataset and value("dataset_revision")
    judge = (JUDGE_KEY,) if plan.where == "hf" and value("judge_url") and os.environ.get(JUDGE_KEY) else ()
    # A repository that is there stays as it is, whatever --public says; one that is not is made as that says.
    public = bool(value("public")) and all(one.private is not True for one in run.repositories)
    made = replace(
        plan,
        arguments=tuple(words),
        secrets=(*plan.secrets, *judge),
        files=arguments.local_files(words) if plan.where == "hf" else {},
        model=run.model,
        model_revision=run.model_revision,
        dataset=dataset,
        dataset_revision=revision,
        output_repo=value("output_repo") if template.trains(module) else None,
        results=tuple(one.id for one in run.repositories),
        public=public,
        output_dir=str(Path(save_local).resolve()) if save_local and plan.where == "local" else None,
        trackio_space=value("trackio_space"),
    )
    parent = run.parameters.parent if run.parameters else None
    return PreparedPlan(made, settings, run.repositories, parent=parent, estimate=run.estimate, sizes=run.sizes)


def resolve_training(
    api: HfApi, module: template.Template, settings: Any, owner: str | None, request: RunRequest
) -> ResolvedRun:
    """What a run of templates/sft.py left open, filled in, so that the job does what was checked and keeps what it makes."""
    if owner and is_local(settings.base_model):
        raise UserError(
            "local_model", f"A job cannot see the folder {settings.base_model}.", "Upload it first: hf upload YOU/NAME FOLDER"
        )
    preflight.require_readable(module, settings)
    model = preflight.find_model(api, module, settings)
    settings = with_lora_of(settings, model)
    pinned = {"base_model_revision": model.named_revision, "dataset_revision": preflight.find_dataset_revision(api, settings)}
    if getattr(settings, "eval_dataset", ""):
        test = replace(settings, dataset=settings.eval_dataset, dataset_revision=settings.eval_dataset_revision)
        pinned["eval_dataset_revision"] = preflight.find_dataset_revision(api, test)
    if owner and not settings.output_repo:
        pinned["output_repo"] = f"{owner}/{module.run_name(settings)}"
    if owner and not arguments.given("--trackio-space", request.arguments):
        pinned["trackio_space"] = f"{owner}/trackio"
    settings = replace(settings, **{name: value for name, value in pinned.items() if value})
    return ResolvedRun(settings, (), settings.base_model, model.named_revision, model)


def fixed(machine: Flavor, model: Model, settings: Any) -> Any:
    """The settings with what auto chooses for this model on this machine: what is approved is what runs.

    The number of epochs is left to the job, which counts the rows; the precision to a run here, which finds the GPU.
    """
    settings = settings if machine is LOCAL else cost.for_machine(machine, model, settings)
    return replace(settings, learning_rate=learning_rate_for(settings, model.config))


def resolve_export(api: HfApi, settings: Any, identity: Identity | None, owner: str | None, machine: Flavor) -> ResolvedRun:
    """What a run of templates/export.py left open, filled in: the adapter's commit, and where the models go."""
    found = preflight.find_adapter(api, settings)
    revision = settings.base_model_revision or found.base_revision or None
    model = preflight.find_base(api, found.base, revision, is_job=owner is not None)
    sizes = other_jobs.export_sizes(model, settings.wanted) if model else None
    if sizes and owner:
        preflight.require_export_fits(machine, sizes)
    estimate = other_jobs.estimate_export(machine, sizes, settings.compare_tokens) if sizes and owner else None
    name = settings.output_repo or (found.id if found.revision else "")
    if owner and identity and not settings.output_repo and not identity.may("repo.write", name.partition("/")[0]):
        name = f"{owner}/{name.partition('/')[2]}"  # the adapter is another's: the models made of it are the user's
    settings = replace(settings, adapter_revision=found.revision or "", output_repo=name)
    kinds = ["merged", *(["GGUF"] if settings.wanted else [])]
    names = [f"{name}-{kind}" for kind in kinds] if name else []
    if identity:
        preflight.require_own(identity, names)
    repositories = tuple(preflight.find_repository(api, one) for one in names)
    for one in repositories:
        preflight.require_room(one, settings.public, of_adapter=False)
    return ResolvedRun(settings, repositories, found.base, revision, estimate=estimate, sizes=sizes)


def resolve_evaluation(api: HfApi, settings: Any, identity: Identity | None, owner: str | None, machine: Flavor) -> ResolvedRun:
    """What a run of templates/evaluate.py left open, filled in."""
    settings, models = evaluating.resolve_models(api, settings, is_job=owner is not None)
    settings = evaluating.resolve_rows(api, settings, models, is_job=owner is not None)
    settings = evaluating.resolve_report(settings, models, identity)
    names = [settings.output_repo] if settings.output_repo else []
    if identity:
        preflight.require_own(identity, names)
    repositories = tuple(preflight.find_repository(api, one) for one in names)
    for one in repositories:
        preflight.require_room(one, settings.public, of_adapter=False)
    first = settings.base_model or models[0].id
    revision = settings.base_model_revision or (None if settings.base_model else models[0].revision)
    model = preflight.find_base(api, first, revision, is_job=True) if owner else None
    size = evaluating.size_of(settings, models)
    estimate = other_jobs.estimate_evaluation(machine, model, size) if model else None
    return ResolvedRun(settings, repositories, first, revision, estimate=estimate)


def fetch_result_repositories(api: HfApi, identity: Identity | None, settings: Any) -> tuple[preflight.Repository, ...]:
    """The repositories that a training writes to, as they are now. Raises UserError where it should not."""
    name = settings.output_repo
    names = [name, *([f"{name}-merged"] if settings.merge_model else [])] if name else []
    if identity:
        preflight.require_own(identity, names)
    found = tuple(preflight.find_repository(api, one) for one in names)
    for one in found:
        preflight.require_room(one, settings.public, of_adapter=one.id == name)
    return found


def smoke_settings(settings: Any) -> Any:
    """What makes a run of the template a short trial of itself, with a result of its own."""
    repository = {"output_repo": f"{settings.output_repo}-smoke"} if settings.output_repo else {}
    return replace(settings, max_steps=SMOKE_STEPS, **repository)


def default_timeout(machine: Flavor, smoke: bool) -> int:
    """Seconds. A smoke run ends, at the latest, when it has cost SMOKE_MAX_USD."""
    if not smoke:
        return DEFAULT_TIMEOUT_S
    affordable = machine.affordable_s(SMOKE_MAX_USD) if machine.usd_per_minute else SMOKE_TIMEOUT_S
    return max(min(SMOKE_TIMEOUT_S, affordable), 60)
