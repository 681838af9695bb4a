"""Everything that can be known of a run before it is paid for: token, model, rows, masks, LoRA coverage."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from huggingface_hub import HfApi

from . import hub, rows
from .errors import FAILED, HUB, Problem, UserError
from .template import Template
from .training.lora import EXPERTS, leaf, lora_size
from .training.settings import TrainingSettings

T = TypeVar("T")
MIN_COVERAGE = 0.9
MIN_STOPPING = 0.99
MAX_DUPLICATES = 0.05
MOST = 0.5  # of the rows
FEW_ROWS, MANY_ROWS = 50, 10_000
EXAMPLE = 80  # characters
SAID_REASONS = 5  # for which rows are lost, the commonest: a chat template may give another one for each row
TEXT_MODEL = "LiquidAI/LFM2.5-1.2B-Instruct"
# Model types that this transformers has and the template's, which is older, has not; a test compares the two.
NOT_ON_THE_JOB = {
    "bailing_hybrid", "beam", "dots3_note", "dots3_note_text", "flint", "granite_docling", "hyperclovax_vision_v2",
    "inkling2", "inkling2_text", "internlm3", "iquestcoder", "kolibri1", "lfm3", "lfm3_vl", "minicpm_ocr",
    "minicpmv4_7", "mistral_large4", "molmo2", "moss_transcribe_diarize", "muse_spark", "nemotron_h_omni",
    "unlimited_ocr",
}  # fmt: skip


@dataclass(frozen=True)
class Lora:
    """The modules that get an adapter, and what share of the decoder they hold, a mixture's experts included."""

    targets: list[str]
    coverage: float  # of the possible LoRA parameters
    linear_share: float  # of the linear weights


@dataclass(frozen=True)
class Examination:
    """What was found; a part that could not be looked at is None, and `problems` says why."""

    template: Template
    settings: TrainingSettings
    identity: hub.Identity | None
    owner: str  # who would pay and own the result; "" where the token was not looked at
    model: hub.Model | None
    table: rows.Table | None
    sample: rows.Sample | None  # the table with its tokens, which need the model's tokenizer
    lora: Lora
    problems: tuple[Problem, ...]
    exit_code: int = FAILED  # where not ok: HUB if the Hub kept something from being looked at

    @property
    def ok(self) -> bool:
        return not any(problem.severity == "error" for problem in self.problems)

    @property
    def unanswered(self) -> bool:
        """Whether nothing is known to be wrong: the Hub, or the way to it, kept something from being looked at."""
        errors = {problem.code for problem in self.problems if problem.severity == "error"}
        return bool(errors) and errors <= hub.FAULTS


def examine(
    api: HfApi, template: Template, settings: TrainingSettings, limit: int, needs_token: bool, namespace: str | None = None
) -> Examination:
    """Look at token, model and data at once, then at what follows from them."""
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(attempt, lambda: hub.whoami(api)) if needs_token else None
        looked_up = pool.submit(attempt, lambda: hub.model(api, settings.base_model, settings.base_model_revision or None))
        read = pool.submit(look_at_data, api, template, settings, limit)
        identity, faults = asked.result() if asked else (None, [])
        model, more = looked_up.result()
        settings, table, unreadable = read.result()
    faults += more + unreadable
    owner = (namespace or identity.name) if identity else ""
    sample: rows.Sample | None = None
    refused: list[UserError] = []
    if identity:
        faults += attempt(lambda: hub.writable_namespace(identity, namespace))[1]
    if model:
        settings = replace(settings, base_model_revision=model.revision or "")
        refused = attempt(lambda: require_trainable(template, model))[1]
    if model and table and not refused:
        sample, untold = attempt(lambda: rows.sample(template, settings, table))
        faults += untold
    adapter, lora_problems = lora(template, settings, model)
    unusual = judged_model(model) if model and not refused else []
    told = dict.fromkeys(fault.problem for fault in (*faults, *refused))  # one bad token is refused at each look-up
    exit_code = HUB if any(fault.exit_code == HUB for fault in faults) else FAILED
    found = Examination(template, settings, identity, owner, model, table, sample, adapter, (), exit_code)
    problems = (*told, *lora_problems, *judged_owner(found), *unusual, *judged_rows(found))
    return replace(found, problems=problems)


def look_at_data(
    api: HfApi, template: Template, settings: TrainingSettings, limit: int
) -> tuple[Any, rows.Table | None, list[UserError]]:
    """The settings with the data set's revision pinned, its table at that revision, and what could not be looked at."""
    revision, missing = attempt(lambda: hub.dataset_revision(api, settings.dataset, settings.dataset_revision or None))
    if missing:
        return settings, None, missing
    settings = replace(settings, dataset_revision=revision or "")
    table, unreadable = attempt(lambda: rows.table(api, template, settings, limit))
    return settings, table, unreadable


def attempt(look: Callable[[], T]) -> tuple[T | None, list[UserError]]:
    """What look returns, or None and the error that it ends with, so that one fault does not hide the others."""
    try:
        return look(), []
    except UserError as error:
        return None, [error]


def require_decoder(template: Template, model: hub.Model) -> None:
    """Raises UserError where the template itself would refuse the model."""
    try:
        template.require_decoder(model.config)
    except template.Stop as stop:
        raise UserError(stop.code, f"{model.id}: {stop.message}", stop.fix) from stop


def require_trainable(template: Template, model: hub.Model) -> None:
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


def lora(template: Template, settings: TrainingSettings, model: hub.Model | None) -> tuple[Lora, list[Problem]]:
    """What the adapter would reach, and what is wrong with that."""
    nothing = Lora([], 0.0, 0.0)
    if model is None:
        return nothing, []
    layers = template.adaptable({name: shape for name, shape in model.linears.items() if not EXPERTS.search(name)})
    experts = [shape for shapes in model.experts.values() for shape in shapes]
    try:
        targets = template.lora_targets(layers, settings.target_modules)
    except template.Stop as stop:
        return nothing, [Problem(stop.code, "error", stop.message, stop.fix)]
    reached = {name: shape for name, shape in layers.items() if leaf(name) in targets}
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
                "To adapt each of them: --target-modules auto (the default).",
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


def judged_owner(found: Examination) -> list[Problem]:
    """Who pays. Only a hint, since no call tells the credit that is left: the Hub decides when the job is submitted."""
    identity, owner = found.identity, found.owner
    if identity is None or identity.pays(owner) or (owner != identity.name and owner not in identity.organizations):
        return []
    instead = " or ".join(f"--namespace {payer}" for payer in identity.payers)
    return [
        Problem(
            "no_billing",
            "warning",
            f"{owner} has no payment method.",
            (f"Let another pay: {instead}. Or add" if instead else "Add")
            + " a payment method or credits: https://huggingface.co/settings/billing",
        )
    ]


def judged_model(model: hub.Model) -> list[Problem]:
    """What of a model that can be trained is not as usual."""
    problems = []
    if "vision_config" in model.config:
        problems.append(
            Problem(
                "vision_model",
                "warning",
                f"{model.id} also reads pictures; this run trains its language part, on text.",
                f"Choose a text-only model unless you need the pictures later: {TEXT_MODEL}, for one.",
            )
        )
    method = (model.config.get("quantization_config") or {}).get("quant_method", "bitsandbytes")
    if method != "bitsandbytes":
        problems.append(
            Problem(
                "prequantized",
                "warning",
                f"The weights of {model.id} are quantised with {method}: Unsloth loads them in a way of its own instead of in "
                "4 bits, so the memory estimate does not hold.",
                "Choose the model's 16-bit version, or make a trial run first: --max-steps 5.",
            )
        )
    return problems


def judged_rows(found: Examination) -> list[Problem]:
    """What the rows say, beyond what could not be looked at."""
    table, sample = found.table, found.sample
    problems = []
    if sample and found.model:
        problems += [*judged_answers(sample), *judged_lengths(sample, found.model), *judged_texts(sample)]
    if table:
        problems += judged_table(table, found.settings.dataset)
    return problems


TAGS = re.compile(r"<\|[\w ]+\|>|<[|｜]?\w+[|｜]|\[INST\]|<start_of_turn>|^### ", re.MULTILINE)  # of a rendered conversation


def judged_kind(table: rows.Table, dataset: str) -> list[Problem]:
    """What rows of this kind teach, and whether they are what their author wrote."""
    problems = []
    if table.format == "text" and not any(TAGS.search(str(row.get("text"))) for row in table.first):
        problems.append(
            Problem(
                "raw_text",
                "warning",
                "The rows are plain text: the model learns to go on writing such text, not to answer questions about it.",
                "To have questions answered, write rows of a question and its answer, each fact in several wordings.",
            )
        )
    if {"chosen", "rejected"} & {*table.unused}:
        problems.append(
            Problem(
                "preference_data",
                "warning",
                f"The rows hold preferences (chosen, rejected), and only {', '.join(table.used.values())} is learned: imitation, "
                "not preference training.",
                "Fine to imitate these answers. For DPO, use a script of TRL instead.",
            )
        )
    if dataset.lower().endswith((".csv", ".tsv")) and (count := table.swallowing):
        problems.append(
            Problem(
                "rows_swallowed",
                "warning",
                f"In {count} of the first {table.sampled} rows a cell goes on over lines that look like rows: a quote that was not "
                "closed may have swallowed them.",
                "Look for a quote that opens a cell and is never closed, or save the file again from a spreadsheet.",
            )
        )
    return problems


def judged_table(table: rows.Table, dataset: str) -> list[Problem]:
    """What the rows are, how many there are, and whether each stands there once."""
    problems = judged_kind(table, dataset)
    if secrets := table.secrets:
        problems.append(
            Problem(
                "secret_in_rows",
                "warning",
                f"{secrets} of the first {table.sampled} rows hold what looks like a token or a password: the model "
                "would learn it, and whoever uses the model could read it.",
                "Remove it from the rows, and revoke it where it is real.",
            )
        )
    if table.duplicates > MAX_DUPLICATES * table.sampled:
        problems.append(
            Problem(
                "duplicates",
                "warning",
                f"{table.duplicates} of the first {table.sampled} rows stand there before: they are learned more than once.",
                f"Keep one of each: awk '!seen[$0]++' {shlex.quote(dataset)} > unique.jsonl"
                if dataset.endswith(".jsonl")
                else "Keep one of each, or train fewer passes: --num-epochs 1.",
            )
        )
    if table.rows is not None and table.rows < FEW_ROWS:
        problems.append(
            Problem(
                "few_rows",
                "warning",
                f"The data set has {table.rows} row{'s' * (table.rows != 1)}.",
                "A few hundred good rows teach a style; fewer are mostly learned by heart.",
            )
        )
    if table.rows is None:
        problems.append(
            Problem(
                "rows_unknown",
                "warning",
                "The data set does not say how many rows it has.",
                "Pass --num-samples N to bound the run, and with it its cost.",
            )
        )
    return problems


def judged_lengths(sample: rows.Sample, model: hub.Model) -> list[Problem]:
    """Whether the rows' lengths tell those of the rest, and fit the model. A limit that no row reaches does no harm."""
    problems = []
    if sample.drifts:
        problems.append(
            Problem(
                "rows_sorted",
                "warning",
                f"Lengths change along the first {sample.sampled} rows, as in sorted data: the others may be longer or shorter, "
                "so the number of tokens, and with it the cost, is uncertain.",
                f"Look at more rows: --sample {min(sample.rows or MANY_ROWS, MANY_ROWS)}",
            )
        )
    limit = model.context_length
    over = sum(row.trained > limit for row in sample.kept) if limit else 0
    if over:
        problems.append(
            Problem(
                "over_context",
                "warning",
                f"{over} of {sample.sampled} rows are longer than the {limit} tokens that {model.id} was made to read.",
                f"Cut them there: --max-seq-length {limit}. Or choose a model with a longer context.",
            )
        )
    return problems


def judged_answers(sample: rows.Sample) -> list[Problem]:
    """Whether the rows teach something, and to stop."""
    why = ", ".join(f"{count} × {reason}" for reason, count in Counter(sample.lost).most_common(SAID_REASONS))
    longer = (
        f"To keep all answers whole: --max-seq-length {sample.length_for(1.0)}; "
        f"95% of them: --max-seq-length {sample.length_for(0.95)}."
    )
    cut_away = "answer cut away" in sample.lost
    mend = "Look at the rows' answers, or name their columns: --prompt-column, --completion-column."
    if any(reason.endswith("is dict, not text") for reason in sample.lost):
        mend = "Write each answer that is an object as its JSON text, with json.dumps: a model learns to write text."
    if not sample.kept:
        return [
            Problem(
                "nothing_supervised",
                "error",
                f"Not one token of the sampled rows would be learned: {why}.",
                longer if cut_away else mend,
            )
        ]
    problems = []
    if sample.with_pictures:
        problems.append(pictures(sample))
    if sample.lost:
        problems.append(
            Problem(
                "rows_lost",
                "warning",
                f"{sample.rows_without_answer} of {sample.sampled} rows teach nothing: {why}.",
                f"They will be left out. {longer}" if cut_away else "They will be left out.",
            )
        )
    if sample.stopping < MIN_STOPPING:
        endless = [row for row in sample.kept if not row.stops]
        cut = sum(row.needed > row.trained for row in endless)
        problems.append(
            Problem(
                "no_eos",
                "warning",
                f"{len(endless)} of {len(sample.kept)} rows do not teach the model to stop; {cut} of them are cut at "
                f"{sample.max_length} tokens.",
                longer if cut else "Choose a model whose chat template closes each answer with a token of its own.",
            )
        )
    return problems


def pictures(sample: rows.Sample) -> Problem:
    """Some rows with pictures are left out; where most have them, the run is not what its owner wants."""
    count, sampled = sample.with_pictures, sample.sampled
    share = count / sampled
    of_all = f" (about {share * sample.rows:,.0f} of all {sample.rows:,})" if sample.rows and sample.rows > sampled else ""
    most = share > MOST
    return Problem(
        "picture_rows",
        "error" if most else "warning",
        f"{count} of {sampled} rows{of_all} hold pictures or sound, and only text can be learned: each of these rows would be "
        f"left out whole, and {sampled - count} of {sampled} remain at most.",
        "Choose a data set of text, or train on a copy whose messages hold text alone."
        if most
        else "Fine where the other rows are what you want to teach. To learn these too, train on a copy without the pictures.",
    )


def judged_texts(sample: rows.Sample) -> list[Problem]:
    """Whether the answers are learned as they stand."""
    problems = []
    if sample.calls_not_rendered:
        problems.append(
            Problem(
                "calls_not_rendered",
                "warning",
                f"In {sample.calls_not_rendered} of {sample.sampled} rows the model's chat template does not render the tool "
                "calls as they stand: those turns are not learned.",
                "Fine where only the final answers matter. To learn the calls, choose a model whose chat template renders them.",
            )
        )
    if sample.changed:
        example = sample.changed[0].strip()[:EXAMPLE]
        problems.append(
            Problem(
                "answers_changed",
                "warning",
                f"In {len(sample.changed)} of {sample.sampled} rows the model's chat template leaves out or changes a part of an "
                f"answer, so it is not learned as it stands: {example!r}.",
                "Fine for thoughts of earlier turns, which most templates drop. To learn them, end each row with the turn that "
                "holds them, or choose a model whose template keeps them.",
            )
        )
    return problems
