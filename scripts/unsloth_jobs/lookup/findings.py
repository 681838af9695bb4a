"""What was found about a run, and what of it is a problem."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from dataclasses import dataclass

from ..errors import FAILED, Problem
from ..template import SFT, Template
from ..training.preferences import LABELS
from ..training.rows import from_cell
from ..training.settings import TrainingSettings
from . import client
from .grading import Grading
from .identity import Identity
from .model_info import Model
from .pairs import PairSample, check_pairs
from .prompts import PromptSample, check_prompts
from .reading import check_reading
from .sample import Sample
from .table import Table

MIN_STOPPING = 0.99
MAX_DUPLICATES = 0.05
MOST = 0.5  # of the rows
FEW_ROWS, MANY_ROWS = 50, 10_000
EXAMPLE = 80  # characters
SAID_REASONS = 5  # for which rows are lost, the commonest: a chat template may give another one for each row
PREFERENCES = ("chosen", "rejected", "non_preferred_output", "non_preferred_completion")
TEXT_MODEL = "LiquidAI/LFM2.5-1.2B-Instruct"


@dataclass(frozen=True)
class Lora:
    """The modules that get an adapter, and what share of the decoder they hold, a mixture's experts included."""

    targets: list[str]
    coverage: float  # of the possible LoRA parameters
    linear_share: float  # of the linear weights


@dataclass(frozen=True)
class Report:
    """What was found; a part that could not be checked is None, and `problems` says why."""

    template: Template
    settings: TrainingSettings
    identity: Identity | None
    owner: str  # who would pay and own the result; "" where the token was not checked
    model: Model | None
    table: Table | None
    sample: Sample | None  # the table with its tokens, which need the model's tokenizer
    lora: Lora
    problems: tuple[Problem, ...]
    grading: Grading | None = None  # of the answers, once the run is over
    exit_code: int = FAILED  # where not ok: HUB if the Hub kept something from being checked

    @property
    def ok(self) -> bool:
        return not any(problem.severity == "error" for problem in self.problems)

    @property
    def unanswered(self) -> bool:
        """Whether nothing is known to be wrong: the Hub, or the way to it, kept something from being checked."""
        errors = {problem.code for problem in self.problems if problem.severity == "error"}
        return bool(errors) and errors <= client.FAULTS


def check_owner(found: Report) -> list[Problem]:
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


def check_model(model: Model) -> list[Problem]:
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


def check_rows(found: Report) -> list[Problem]:
    """What the rows say, beyond what could not be checked."""
    table, sample = found.table, found.sample
    problems = []
    if sample and found.model:
        problems += [*check_answers(sample), *check_lengths(sample, found.model), *check_texts(sample)]
        problems += check_pairs(sample) if isinstance(sample, PairSample) else []
        problems += check_prompts(sample, found.settings) if isinstance(sample, PromptSample) else []
    if table:
        problems += [*check_reading(table), *check_table(table, found.settings)]
    return problems


TRY_DPO = f"check it with --script {SFT.with_name('dpo.py')}"
TAGS = re.compile(r"<\|[\w ]+\|>|<[|｜]?\w+[|｜]|\[INST\]|<start_of_turn>|^### ", re.MULTILINE)  # of a rendered conversation


def is_labelled(table: Table) -> bool:
    """Whether the column `label` says of each answer whether it is good."""
    found = {str(from_cell(row.get("label"))).lower() for row in table.first}
    return bool(found) and found <= LABELS.keys()


def check_kind(table: Table, settings: TrainingSettings) -> list[Problem]:
    """What rows of this kind teach, and whether they are what their author wrote."""
    problems = []
    if table.format == "text" and not any(TAGS.search(str(row.get("text"))) for row in table.first):
        problems.append(
            Problem(
                "raw_text",
                "warning",
                "The rows are plain text: the model learns to go on writing such text, its style and its words, not to answer "
                "questions about it, and it does not come to know the facts in it.",
                "To have questions answered, write rows of a question and its answer, each fact in several wordings, or give the "
                "model the text with each question (retrieval). To teach the style, go on: "
                f"estimate.py {shlex.quote(settings.base_model)} {shlex.quote(settings.dataset)}",
            )
        )
    if preferences := [name for name in table.unused if name in PREFERENCES or (name == "label" and table.holds_truths(name))]:
        problems.append(
            Problem(
                "preference_data",
                "warning",
                f"The rows hold preferences ({', '.join(preferences)}), and only {', '.join(table.used.values())} is learned: "
                "imitation, not preference training.",
                f"Fine to imitate these answers. To learn the preference: {TRY_DPO}",
            )
        )
    if table.format == "prompt-completion" and "label" in table.unused and is_labelled(table):
        problems.append(
            Problem(
                "preference_data",
                "warning",
                "Each answer has a label, true or false, and all of them are imitated, the bad ones as well.",
                f"Leave out the rows with bad answers. Or learn from both: {TRY_DPO} --loss kto.",
            )
        )
    if re.search(r"\.[ct]sv(\.gz)?$", settings.dataset.lower()) and (count := table.swallowing):
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


def check_table(table: Table, settings: TrainingSettings) -> list[Problem]:
    """What the rows are, how many there are, and whether each stands there once."""
    problems = check_kind(table, settings)
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
                f"{table.duplicates} of the first {table.sampled} rows are duplicates of earlier rows: they are learned more than once.",
                f"Keep one of each: awk '!seen[$0]++' {shlex.quote(settings.dataset)} > unique.jsonl"
                if settings.dataset.endswith(".jsonl")
                else "Keep one of each, or train fewer epochs: --num-epochs 1.",
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


def check_lengths(sample: Sample, model: Model) -> list[Problem]:
    """Whether the rows' lengths tell those of the rest, and fit the model. A limit that no row reaches does no harm."""
    problems = []
    if sample.drifts:
        problems.append(
            Problem(
                "rows_sorted",
                "warning",
                f"Lengths change along the first {sample.sampled} rows, as in sorted data: the others may be longer or shorter, "
                "so the number of tokens, and with it the cost, is uncertain.",
                f"Sample more rows: --sample {min(sample.rows or MANY_ROWS, MANY_ROWS)}",
            )
        )
    limit = model.context_length
    over = sum(row.trained > limit for row in sample.kept) if limit else 0
    if over:
        problems.append(
            Problem(
                "over_context",
                "warning",
                f"{over} of {sample.sampled} rows are longer than the context of {model.id}, {limit} tokens.",
                f"Cut them there: --max-seq-length {limit}. Or choose a model with a longer context.",
            )
        )
    return problems


def check_answers(sample: Sample) -> list[Problem]:
    """Whether the rows teach something, and to stop."""
    why = ", ".join(f"{count} × {reason}" for reason, count in Counter(sample.lost).most_common(SAID_REASONS))
    longer = (
        f"To keep all answers whole: --max-seq-length {sample.length_for(1.0)}; "
        f"95% of them: --max-seq-length {sample.length_for(0.95)}."
    )
    cut_away = "answer cut away" in sample.lost
    mend = "Look at the rows' answers, or name their columns: --prompt-column, --completion-column."
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
        problems.append(check_pictures(sample))
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


def check_pictures(sample: Sample) -> Problem:
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


def check_texts(sample: Sample) -> list[Problem]:
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
