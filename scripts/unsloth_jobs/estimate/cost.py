"""How long a run takes on each flavor and what that costs, cheapest run first.

A step is arithmetic, at a share of the GPU's peak, and a fixed time for each micro-batch to launch its kernels: on a
small model that is most of it. At best the one hides behind the other, at worst they add up: the result is a range. Several
GPUs share the passes of a step, and then add their gradients up.
What runs from here really took (ledger.py) moves that range, and makes it narrower.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..lookup.model_info import Model, text_config
from ..training.batching import Batching, choose_batching
from ..training.dataset import held_out_of
from ..training.epochs import epochs_for, patience_for
from ..training.generation import SHORTEST_LIMIT
from ..training.models import needs_bf16
from ..training.precision import Chosen, fits_in_16bit, with_precision
from ..training.settings import TrainingSettings
from . import memory, preferences, rewards
from .decoding import answering_seconds
from .flavors import Flavor
from .history import History, Range

UTILISATION = (0.45, 0.20)  # share of peak arithmetic that a step reaches: best, worst
LAUNCH_S = (0.0055, 0.014)  # seconds per decoder layer and micro-batch: best, worst, as in benchmarks/speed.csv and several.csv
TRL_SLOWER = Range(1.2, 2.0)  # times as long without Unsloth, as in benchmarks/speed.csv
STARTUP = Range(180, 600)  # seconds: machine, installation, rows to tokens, compilation, final push
# From the Hub's storage onto a rented machine's disk, and from there to the GPU: worst, best. Assumed, not measured: a
# first run of a model writes down what its own start took (ledger.py), and later estimates use that instead.
DOWNLOAD_BYTES_S = (60e6, 600e6)
FLOPS_PER_WEIGHT = {"off": 4, "offload": 6}  # per token: forward 2, the same again where it is recomputed, backward 2
FILLED = 0.99  # of a packed pass: steps have nearly as many tokens each
SHORT = 0.75  # of the passes' length: where most need less than that, they are computed in a shape of their own
EVALUATIONS, WATCHED_EVALUATIONS = 5, 11  # at the start, then at each quarter or, to stop early, at each tenth
CONTENDERS = 2  # that answer: base and tuned model
# Between the GPUs of one machine: worst (over its main memory, as on L4 and A10G), best (NVLink); and what GPUs that share a
# step hold for that.
LINK_BYTES_S = (3e9, 100e9)
AGREEING_S = (0.01, 0.001)  # per step: worst, best
PEERS_GB = 1.0
FP16_HANDICAP = 1.25
TIMEOUT_MARGIN = 1.25
LONGEST_TIMEOUT_S = 72 * 3600
LIBRARIES_GB = 15  # on disk: torch, Unsloth and what they need, unpacked and as downloaded


@dataclass(frozen=True)
class Run:
    """What is to be trained on. error: the relative 95% uncertainty of tokens_per_row, counted in a sample of the rows;
    longest: tokens of the longest row (0: not known, as long as one may be); questions: that base and tuned model answer once
    it is over, in so many answer_tokens each; spread: whether its script trains on several GPUs.
    """

    rows: int
    tokens_per_row: float
    packed: bool
    error: float = 0.0
    longest: int = 0
    questions: int = 0
    answer_tokens: float = 0.0
    spread: bool = True


@dataclass(frozen=True)
class Work:
    """A run's size on one machine. at_once: tokens of the largest forward pass, computed: of all, padding included.

    Of several GPUs: passes and what is computed, of each; the rows and tokens that they train on, of all.
    """

    tokens: float
    micro_batches: float
    at_once: int
    computed: float
    evaluation_batches: float
    rows: int  # to train on, in each epoch
    held_out: int


@dataclass(frozen=True)
class Candidate:
    """A flavor and what the run takes on it. basis: what the time rests on; seconds: low and high of each part."""

    flavor: str
    fits: bool
    reason: str  # why it does not fit, or ""
    vram_gb: float
    needed_gb: float
    memory: memory.Memory
    tokens: float
    hours_low: float = 0.0
    hours_high: float = 0.0
    usd_low: float = 0.0
    usd_high: float = 0.0
    basis: str = ""
    seconds: dict[str, tuple[float, float]] | None = None
    seconds_per_token: tuple[float, float] | None = None
    tokens_at_once: int = 0
    code: str = ""  # of the reason
    rows: int = 0  # to train on, in each epoch
    held_out: int = 0
    steps: int = 0
    epochs: float = 0.0
    precision: str = ""  # 16bit or 4bit: what the frozen model is held in
    gpus: int = 1
    rows_a_step: int = 0

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name not in ("memory", "tokens")}


@dataclass(frozen=True)
class Recommended:
    """timeout_s: the upper end with a margin, in whole ten minutes. max_usd: what the timeout costs if all is used."""

    flavor: str
    timeout_s: int
    max_usd: float
    precision: str
    gpus: int = 1


def step_tokens(run: Run, settings: TrainingSettings) -> float:
    """What a packed optimizer step takes, padding included."""
    return settings.batch_size * settings.gradient_accumulation * run.tokens_per_row / FILLED


def divide_step(run: Run, settings: TrainingSettings, keeps: Callable[[int], bool], gpus: int = 1) -> tuple[Batching, bool]:
    """How the template will divide a step, and whether it keeps the activations: its own rule, over the mean row."""
    if compared := preferences.loss_of(settings):
        return preferences.divide_step(run.longest, settings, compared, keeps, gpus)
    if rewards.rewarded(settings):
        return rewards.divide_step(run.longest, settings, keeps)
    longest, tokens = run.longest or settings.max_seq_length, step_tokens(run, settings)
    length_for = lambda sequences: max(longest, math.ceil(tokens / sequences / gpus))  # noqa: E731
    return choose_batching(settings, length_for, keeps, run.packed, processes=gpus)


def work(run: Run, settings: TrainingSettings, batching: Batching, gpus: int = 1) -> Work:
    """The work of a run whose steps are divided like this, on each of so many GPUs."""
    rows = min(run.rows, settings.num_samples) if settings.num_samples else run.rows
    held_out = held_out_of(rows, settings)
    each = settings.batch_size * settings.gradient_accumulation
    epochs = epochs_for(settings, rows - held_out)
    trained = (rows - held_out) * epochs
    steps = math.ceil((rows - held_out) / each) * epochs
    if settings.max_steps:  # then the number of epochs does not count
        steps = settings.max_steps
        trained = steps * min(each, rows - held_out)
    at_once, computed = batching.tokens, float(batching.tokens)
    evaluated = float(held_out)
    if run.packed:
        usual = step_tokens(run, settings) / batching.gradient_accumulation / gpus
        computed = usual if usual < SHORT * at_once else at_once
        evaluated *= run.tokens_per_row / FILLED / at_once
    passes = steps * batching.gradient_accumulation
    if preferences.loss_of(settings):
        computed = trained * run.tokens_per_row * preferences.PADDED / max(passes, 1) / gpus
        evaluated = held_out * run.tokens_per_row / at_once
    return Work(trained * run.tokens_per_row, passes, at_once, passes * computed, evaluated / gpus, rows - held_out, held_out)


def candidates(
    flavors: Iterable[Flavor], model: Model, settings: TrainingSettings, run: Run, ledger: History
) -> list[Candidate]:
    """Each flavor with its time and price, those that fit first, cheapest run first (by its upper end)."""
    return ranked(candidate(flavor, model, settings, run, ledger) for flavor in flavors)


def ranked(found: Iterable[Candidate]) -> list[Candidate]:
    return sorted(found, key=lambda one: (not one.fits, one.usd_high))


def for_machine(flavor: Flavor, model: Model, settings: Chosen) -> Chosen:
    """The settings with the precision that a run takes on this machine, where none was asked for."""
    vram = flavor.vram_gb / max(flavor.gpus, 1) * memory.GB
    return with_precision(settings, fits_in_16bit(settings, model.linears, model.config, model.parameters, vram))


def candidate(flavor: Flavor, model: Model, settings: TrainingSettings, run: Run, ledger: History) -> Candidate:
    settings = for_machine(flavor, model, settings)
    vram, gpus = flavor.vram_gb / max(flavor.gpus, 1), max(flavor.gpus, 1) if run.spread else 1
    batching, kept = divide_step(run, settings, memory.room_for(model, settings, vram), gpus)
    size = work(run, settings, batching, gpus)
    needed = memory.memory(model, settings, size.at_once, kept)
    needed_gb = needed.needed + for_peers(flavor)
    sizes = vram, round(needed_gb, 2), needed, size.tokens
    rows: dict[str, Any] = {"rows": size.rows, "held_out": size.held_out, "steps": steps(size, settings, batching)}
    rows |= {
        "epochs": epochs_for(settings, size.rows),
        "precision": "16bit" if settings.load_in_16bit else "4bit",
        "gpus": gpus,
    }
    rows["rows_a_step"] = settings.batch_size * settings.gradient_accumulation
    if found := misfits(flavor, needed_gb, disk_gb(model, settings), bf16_for(model), most_gpus(settings, run.spread)):
        return Candidate(flavor.name, False, found[0].reason, *sizes, code=found[0].code, **rows)
    if rewards.rewarded(settings):
        pace = rewards.seconds_per_prompt_token(flavor, model, settings, run.tokens_per_row, batching, run.longest)
    else:
        pace = seconds_per_token(
            flavor, model, size, needed.checkpointing, settings.backend, preferences.also_forward(settings)
        )
    if gpus > 1:
        pace = with_sharing(pace, needed.adapter * memory.GB / 2, gpus, rows["steps"] / max(size.tokens, 1))
    known = ledger.refine_estimate(flavor.name, pace)
    training = known.pace.times(size.tokens).widened(run.error)
    evaluation = known.evaluation or evaluating(flavor, model, size)
    watched = patience_for(settings, size.rows, size.held_out)
    evaluations = 0 if rewards.rewarded(settings) else WATCHED_EVALUATIONS if watched else EVALUATIONS
    start = known.overhead or starting(model)
    parts = {"start": start, "training": training, "evaluation": evaluation.times(evaluations)}
    if run.questions:
        parts["grading"] = grading(model, run, settings)
    low, high = (sum(getattr(part, end) for part in parts.values()) for end in ("low", "high"))
    if not low <= LONGEST_TIMEOUT_S:  # NaN as well, of a number of passes that is beyond counting
        reason = f"over {LONGEST_TIMEOUT_S // 3600} h, the longest that a job is planned for here"
        return Candidate(flavor.name, False, reason, *sizes, code="too_long", **rows)
    return Candidate(
        flavor.name,
        True,
        "",
        *sizes,
        round(low / 3600, 2),
        round(high / 3600, 2),
        round(low / 60 * flavor.usd_per_minute, 2),
        round(high / 60 * flavor.usd_per_minute, 2),
        rewards.basis(preferences.basis(known.basis, settings), settings),
        {name: (round(part.low), round(part.high)) for name, part in parts.items()},
        (pace.low, pace.high),
        size.at_once,
        **rows,
    )


def starting(model: Model) -> Range:
    """Seconds until training begins and after it has ended, where no run like this one was measured."""
    slow, fast = DOWNLOAD_BYTES_S
    return Range(STARTUP.low + model.file_bytes / fast, STARTUP.high + model.file_bytes / slow)


def steps(size: Work, settings: TrainingSettings, batching: Batching) -> int:
    """Optimizer steps of the run; 0 where they are beyond counting."""
    passes = size.micro_batches / batching.gradient_accumulation
    return settings.max_steps or (math.ceil(passes) if passes < 1e9 else 0)


@dataclass(frozen=True)
class Misfit:
    """Why a run does not fit a machine: the code of a problem, and the reason in words."""

    code: str
    reason: str


def misfits(flavor: Flavor, needed_vram: float, needed_disk: float, bf16_for: str, most_gpus: int) -> list[Misfit]:
    """Why a run does not fit a machine, the plainest reason first. bf16_for: the kind of model that overflows in fp16;
    most_gpus: that can share a step.
    """
    if not flavor.gpus:
        return [Misfit("cpu_flavor", "no GPU")]
    found = {
        Misfit("multi_gpu_flavor", "several GPUs: its script trains on one"): flavor.gpus > most_gpus == 1,
        Misfit("too_few_rows_a_step", f"{flavor.gpus} GPUs, and a step has rows for {most_gpus}"): flavor.gpus > most_gpus > 1,
        Misfit("unknown_gpu", f"speed of {flavor.accelerator or 'its GPU'} unknown"): flavor.gpu is None,
        Misfit("fp16_overflow", f"no bf16, and {bf16_for} overflows in fp16"): flavor.gpu and bf16_for and not flavor.bf16,
        Misfit(
            "too_little_vram",
            f"{flavor.vram_gb / flavor.gpus:.0f} GB of memory{' on each GPU' * (flavor.gpus > 1)}, {needed_vram:.1f} needed",
        ): (flavor.vram_gb / flavor.gpus < needed_vram),
        Misfit("too_little_disk", f"{flavor.disk_gb:.0f} GB of disk, {needed_disk:.0f} needed"): (
            0 < flavor.disk_gb < needed_disk
        ),
    }
    return [misfit for misfit, applies in found.items() if applies]


def most_gpus(settings: TrainingSettings, spread: bool) -> int:
    """GPUs that can share a step: each needs a row of it. spread: whether the script trains on several at all."""
    return max(settings.batch_size * settings.gradient_accumulation // preferences.least_rows(settings), 1) if spread else 1


def for_peers(flavor: Flavor) -> float:
    """GB that a GPU beside others holds to talk to them."""
    return PEERS_GB if flavor.gpus > 1 else 0.0


def with_sharing(pace: Range, gradient: float, gpus: int, steps_per_token: float) -> Range:
    """Seconds per token with those in which GPUs agree on a step and add up their gradients, of so many bytes."""
    sent = 2 * (gpus - 1) / gpus * gradient
    slow, fast = (sent / link + agreeing for link, agreeing in zip(LINK_BYTES_S, AGREEING_S, strict=True))
    return Range(pace.low + fast * steps_per_token, pace.high + slow * steps_per_token)


def least_memory(model: Model, settings: TrainingSettings) -> memory.Memory:
    """With the smallest forward pass, which is what a run comes down to where more do not fit."""
    kept = settings.gradient_checkpointing == "off"
    return memory.memory(model, settings, settings.max_seq_length * getattr(settings, "least_sequences", 1), kept)


def bf16_for(model: Model) -> str:
    return text_config(model.config).get("model_type", "its model") if needs_bf16(model.config) else ""


def disk_gb(model: Model, settings: TrainingSettings) -> float:
    """GB: the libraries, the weights as they are downloaded, and once more where a merged copy is asked for."""
    return LIBRARIES_GB + model.parameters * 2 / 1e9 * (2 if settings.merge_model else 1)


def seconds_per_token(
    flavor: Flavor, model: Model, size: Work, checkpointing: str, backend: str, also_forward: float = 0
) -> Range:
    """Seconds of training per token, from the model's shapes and the GPU's data sheet.

    also_forward: floating-point operations per weight and token of forward passes that nothing is learned from.
    """
    filled = size.computed / max(size.tokens, 1)  # what is computed, padding included
    flops = (FLOPS_PER_WEIGHT[checkpointing] + also_forward) * model.parameters * filled
    arithmetic = Range(*(flops / (flavor.bf16_flops * share) for share in UTILISATION))
    launches = size.micro_batches * (1 + also_forward / FLOPS_PER_WEIGHT["offload"])
    launching = Range(*LAUNCH_S).times(memory.layers(model) * launches / max(size.tokens, 1))
    pace = Range(max(arithmetic.low, launching.low), arithmetic.high + launching.high)
    return Range(pace.low * TRL_SLOWER.low, pace.high * TRL_SLOWER.high) if backend == "trl" else pace


def evaluating(flavor: Flavor, model: Model, size: Work) -> Range:
    """Seconds of one evaluation: forward passes only."""
    arithmetic = 2 * model.parameters * size.evaluation_batches * size.at_once / flavor.bf16_flops
    launches = memory.layers(model) * size.evaluation_batches / 3
    return Range(*(arithmetic / share + launches * launch for share, launch in zip(UTILISATION, LAUNCH_S, strict=True)))


def grading(model: Model, run: Run, settings: TrainingSettings) -> Range:
    """Seconds in which base and tuned model answer: each token of a batch takes a pass through all layers.

    An answer is as long as its reference at best, and at the limit of tokens at worst, as a base model's often is.
    """
    limit = getattr(settings, "max_completion_length", 0) or max(2 * run.answer_tokens, SHORTEST_LIMIT)
    each = answering_seconds(memory.layers(model), Range(run.answer_tokens, limit), run.questions)
    return each.times(CONTENDERS).at_most(settings.grading_seconds)


@dataclass(frozen=True)
class Wish:
    """What a run should be, beside cheap. faster: the fastest instead, that costs at most max_usd or, without one,
    FASTER_AT_MOST times as much as the cheapest; within_s: that ends in so many seconds.
    """

    faster: bool = False
    within_s: float = math.inf
    max_usd: float = math.inf


FASTER_AT_MOST = 3


def recommend(ranked: list[Candidate], flavors: Iterable[Flavor], wish: Wish = Wish()) -> Recommended | None:  # noqa: B008
    """The cheapest run that fits, or the one that was wished for, with a timeout that it will not reach; None without one.

    A GPU without bf16 trains in fp16, which overflows more easily: it must be worth it.
    """
    by_name = {flavor.name: flavor for flavor in flavors}
    worth = lambda one: one.usd_high * (1 if by_name[one.flavor].bf16 else FP16_HANDICAP)  # noqa: E731
    offers = [as_recommended(one, by_name[one.flavor]) for one in sorted(filter(lambda one: one.fits, ranked), key=worth)]
    return find_wished(offers, {one.flavor: one.hours_high for one in ranked}, wish)


def find_wished(offers: list[Recommended], hours: Mapping[str, float], wish: Wish) -> Recommended | None:
    """The best of the offers, which stand cheapest first, that is as was wished; None without one. hours: by flavor, at most."""
    ceiling = wish.max_usd
    if wish.faster and offers and ceiling == math.inf:
        ceiling = FASTER_AT_MOST * offers[0].max_usd
    wished = [one for one in offers if one.max_usd <= ceiling and hours[one.flavor] * 3600 <= wish.within_s]
    return min(wished, key=lambda one: hours[one.flavor] if wish.faster else 0, default=None)


def as_recommended(one: Candidate, flavor: Flavor) -> Recommended:
    timeout = timeout_for(one.hours_high)
    return Recommended(one.flavor, timeout, flavor.most_usd(timeout), one.precision, one.gpus)


def timeout_for(hours: float) -> int:
    """Seconds that a job will not reach which takes so many hours at most: with a margin, in whole ten minutes."""
    return min(math.ceil(hours * 3600 * TIMEOUT_MARGIN / 600) * 600, LONGEST_TIMEOUT_S)


def as_estimate(one: Candidate) -> dict[str, Any]:
    """What a run record keeps of an estimate, to be held against what the run took."""
    times = ("hours_low", "hours_high", "usd_low", "usd_high", "basis", "seconds", "seconds_per_token")
    return {name: getattr(one, name) for name in (*times, "rows", "held_out", "steps", "epochs", "tokens")}
