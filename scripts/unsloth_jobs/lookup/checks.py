"""Everything that can be known of a run before it is paid for: token, model, rows, loss masks, LoRA coverage."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from huggingface_hub import HfApi

from ..errors import FAILED, HUB, USAGE, Problem, UserError
from ..template import Template
from ..training.lora import EXPERTS, leaf, lora_size
from ..training.parent import placed
from ..training.settings import TrainingSettings
from .adapter_info import fetch_model_to_train, with_lora_of
from .dataset_info import fetch_dataset_revision
from .findings import TEXT_MODEL, Lora, Report, check_model, check_owner, check_rows
from .grading import examine_grading
from .identity import whoami, writable_namespace
from .model_info import Model
from .pairs import has_preferences, tokenise_pairs
from .prompts import has_rewards, tokenise_prompts
from .sample import Sample, tokenise_sample
from .table import Table, fetch_table

T = TypeVar("T")
MIN_COVERAGE = 0.9
# Model types that this transformers has and the template's, which is older, has not; a test compares the two.
NOT_ON_THE_JOB = {
    "bailing_hybrid", "beam", "dots3_note", "dots3_note_text", "flint", "granite_docling", "hyperclovax_vision_v2",
    "inkling2", "inkling2_text", "internlm3", "iquestcoder", "kolibri1", "lfm3", "lfm3_vl", "minicpm_ocr",
    "minicpmv4_7", "mistral_large4", "molmo2", "moss_transcribe_diarize", "muse_spark", "nemotron_h_omni",
    "unlimited_ocr",
}  # fmt: skip


def examine(
    api: HfApi, template: Template, settings: TrainingSettings, limit: int, needs_token: bool, namespace: str | None = None
) -> Report:
    """Look at token, model and data at once, then at what follows from them."""
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(attempt, lambda: whoami(api)) if needs_token else None
        looked_up = pool.submit(attempt, lambda: fetch_model_to_train(api, template, settings))
        read = pool.submit(fetch_data, api, template, settings, limit)
        identity, faults = asked.result() if asked else (None, [])
        model, more = looked_up.result()
        settings, table, unreadable = read.result()
    faults += more + unreadable
    owner = (namespace or identity.name) if identity else ""
    sample: Sample | None = None
    refused: list[UserError] = []
    if identity:
        faults += attempt(lambda: writable_namespace(identity, namespace))[1]
    if model:
        refused = attempt(lambda: require_trainable(template, model))[1]
        fitting, contradicted = attempt(lambda: with_lora_of(settings, model))
        refused += contradicted
        settings = replace(fitting or settings, base_model_revision=model.named_revision or "")
    if model and table and not refused:
        sample, untold = attempt(lambda: tokenise(template, reading(settings, model), table))
        faults += untold
    grading, misfits = examine_grading(api, template, settings, sample) if sample else (None, [])
    adapter, lora_problems = lora(template, settings, model)
    unusual = check_model(model) if model and not refused else []
    lookup_problems = dict.fromkeys(fault.problem for fault in (*faults, *refused))  # one bad token is refused at each look-up
    codes = {fault.exit_code for fault in (*faults, *refused)}
    exit_code = next((code for code in (HUB, USAGE) if code in codes), FAILED)
    found = Report(template, settings, identity, owner, model, table, sample, adapter, (), grading, exit_code)
    problems = (*lookup_problems, *lora_problems, *check_owner(found), *unusual, *check_rows(found), *misfits)
    return replace(found, problems=problems)


def reading(settings: TrainingSettings, model: Model) -> TrainingSettings:
    """The settings with the model whose tokenizer the run uses: an adapter's own, where it has one."""
    if model.parent is None or model.parent.has_tokenizer:
        return settings
    return replace(settings, base_model=model.id, base_model_revision=model.revision or "")


def tokenise(template: Template, settings: TrainingSettings, table: Table) -> Sample:
    """The table with its tokens, as this template makes them. Raises UserError."""
    if has_preferences(template):
        return tokenise_pairs(template, settings, table)
    if has_rewards(template):
        return tokenise_prompts(template, settings, table)
    return tokenise_sample(template, settings, table)


def fetch_data(
    api: HfApi, template: Template, settings: TrainingSettings, limit: int
) -> tuple[Any, Table | None, list[UserError]]:
    """The settings with the data sets' revisions pinned, the table at that revision, and what could not be checked."""
    revision, missing = attempt(lambda: fetch_dataset_revision(api, settings.dataset, settings.dataset_revision or None))
    if missing:
        return settings, None, missing
    settings = replace(settings, dataset_revision=revision or "")
    if name := getattr(settings, "eval_dataset", ""):  # where there is none, examine_grading says so
        revision, _ = attempt(lambda: fetch_dataset_revision(api, name, settings.eval_dataset_revision or None))
        settings = replace(settings, eval_dataset_revision=revision or settings.eval_dataset_revision)
    table, unreadable = attempt(lambda: fetch_table(api, template, settings, limit))
    return settings, table, unreadable


def attempt(look: Callable[[], T]) -> tuple[T | None, list[UserError]]:
    """What look returns, or None and the error that it ends with, so that one fault does not hide the others."""
    try:
        return look(), []
    except UserError as error:
        return None, [error]


def require_decoder(template: Template, model: Model) -> None:
    """Raises UserError where the template itself would refuse the model."""
    try:
        template.require_decoder(model.config)
    except template.Stop as stop:
        raise UserError(stop.code, f"{model.id}: {stop.message}", stop.fix) from stop


def require_trainable(template: Template, model: Model) -> None:
    """Raises UserError where the template, or the transformers that Unsloth builds on, would refuse the model."""
    require_decoder(template, model)
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    kind, other = model.config.get("model_type"), f"Choose a model that transformers has the code of, {TEXT_MODEL} for one."
    if kind not in CONFIG_MAPPING_NAMES or kind in NOT_ON_THE_JOB:
        if "auto_map" in model.config:
            raise UserError(
                "remote_code",
                f"{model.id} ({kind}) runs only with Python code from its own repository, and the job runs none from there.",
                other,
            )
        raise UserError(
            "unknown_architecture", f"The job's transformers, and with it Unsloth, does not know {kind!r} models.", other
        )
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise UserError(
            "not_a_decoder",
            f"{model.id}: {kind} models do not write text.",
            f"Choose a model whose architecture ends in ForCausalLM, such as {TEXT_MODEL}.",
        )


def lora(template: Template, settings: TrainingSettings, model: Model | None) -> tuple[Lora, list[Problem]]:
    """What the adapter would reach, and what is wrong with that."""
    nothing = Lora([], 0.0, 0.0)
    if model is None:
        return nothing, []
    layers = template.adaptable({name: shape for name, shape in model.linears.items() if not EXPERTS.search(name)})
    experts = [shape for shapes in model.experts.values() for shape in shapes]
    try:
        targets = model.parent.targets if model.parent else template.lora_targets(layers, settings.target_modules)
    except template.Stop as stop:
        return nothing, [Problem(stop.code, "error", stop.message, stop.fix)]
    adapted = placed(model.parent, layers) if model.parent else {name for name in layers if leaf(name) in targets}
    reached = {name: shape for name, shape in layers.items() if name in adapted}
    everything = [*layers.values(), *experts]
    adapter = Lora(targets, share(lora_size, reached.values(), everything), share(weights, reached.values(), everything))
    of_layers = template.coverage(layers, reached)
    problems = []
    if of_layers < MIN_COVERAGE:
        problems.append(
            Problem(
                "low_coverage",
                "warning",
                f"{', '.join(targets)}: these modules hold {of_layers:.0%} of the LoRA that the model's linear layers could have.",
                f"Fine where that is wanted. For more of them, {model.parent.merging}"
                if model.parent
                else "To adapt each of them: --target-modules auto (the default).",
            )
        )
    if experts:
        problems.append(
            Problem(
                "experts_not_adapted",
                "warning",
                f"The experts hold {share(weights, experts, everything):.0%} of the linear weights, and no adapter reaches them: "
                f"only the other layers learn ({', '.join(template.lora_targets(layers))}).",
                f"Fine for a style or a format. To teach more, choose a dense model: {TEXT_MODEL}, for one.",
            )
        )
    return adapter, problems


def weights(shapes: Iterable[tuple[int, int]]) -> int:
    return sum(out * into for out, into in shapes)


def share(measure: Callable[[Iterable[tuple[int, int]]], int], part: Iterable, whole: Iterable) -> float:
    return measure(part) / max(measure(whole), 1)
