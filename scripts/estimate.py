# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "huggingface_hub==2.4.0", "transformers==5.23.0", "datasets==5.2.0", "jinja2==3.1.6",
#     "typer==0.29.2", "rich==15.0.0", "openpyxl==3.1.5",
# ]
# [tool.uv]
# exclude-newer = "2026-11-20T00:00:00Z"
# ///
"""What will a run cost, and on which GPU? From its own tokens, the model's own shapes and today's prices."""

from __future__ import annotations

import signal
import sys

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C amid the imports leaves no traceback

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from huggingface_hub import HfApi
from rich.markup import escape

if not sys.dont_write_bytecode:  # the skill's folder stays as it was installed
    sys.pycache_prefix = f"{sys.prefix}/pycache"

from unsloth_jobs import template
from unsloth_jobs.errors import FAILED, USAGE, Problem, UserError
from unsloth_jobs.estimate import cost, preferences, rewards
from unsloth_jobs.estimate.flavors import Flavor, current_flavors, find_flavor
from unsloth_jobs.estimate.history import History, entries, run_key
from unsloth_jobs.estimate.memory import GB
from unsloth_jobs.jobs import records
from unsloth_jobs.jobs.approval import require_amount
from unsloth_jobs.jobs.plan import seconds
from unsloth_jobs.jobs.plan_text import file_line
from unsloth_jobs.jobs.pricing import Priced, price_job, recommend
from unsloth_jobs.jobs.variations import as_words, flag_of, read_variations, title_of
from unsloth_jobs.lookup import client
from unsloth_jobs.lookup.checks import examine
from unsloth_jobs.lookup.model_info import Model
from unsloth_jobs.output import (
    EXTRA_ARGUMENTS,
    application,
    duration,
    ends_clearly,
    people,
    print_json,
    run,
    show_problem,
    span,
    table,
)
from unsloth_jobs.template import quiet_libraries
from unsloth_jobs.training.flags import as_flag
from unsloth_jobs.training.precision import is_precision_auto, why_precision, with_precision
from unsloth_jobs.training.settled import chosen_values, why_chosen

FRAMEWORKS = {  # by --backend, and why
    "unsloth": "the same rows took TRL with PEFT 2.1 to 11 times as long, on one GPU (benchmarks/speed.csv); "
    "on several GPUs of one machine it shares out each step",
    "trl": "chosen with --backend trl: for a model that Unsloth does not support",
}

# The answer where there is nothing to estimate: its keys are there, so that a program need not ask for each.
NOTHING: dict[str, Any] = {
    "price_source": None,
    "flavors": [],
    "recommended": None,
    "tokens": None,
    "digest": None,
    "memory": None,
    "settings": None,
    "runs": [],
    "ok": False,
}

app = application("What will a run cost, and on which GPU?")


@app.command(
    context_settings=EXTRA_ARGUMENTS,
    epilog="Exit codes: 0 estimated; 1 nothing fits, or not sound; 2 usage; 4 the Hub says no.",
)
@ends_clearly
def estimate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Hub id or local folder of the model")],
    dataset: Annotated[str | None, typer.Argument(help="Hub id or local file of the data set (not of an export)")] = None,
    epochs: Annotated[
        float | None,
        typer.Option(help="passes over the training rows (the template's --num-epochs) [default: auto]", show_default=False),
    ] = None,
    flavor: Annotated[str | None, typer.Option(help="only this flavor")] = None,
    more_than_gb: Annotated[
        float, typer.Option(min=0, metavar="GB", help="only GPUs with more memory than this, which did not suffice")
    ] = 0.0,
    faster: Annotated[
        bool, typer.Option("--faster", help=f"recommend the fastest, at up to {cost.FASTER_AT_MOST} times the cheapest's price")
    ] = False,
    within: Annotated[
        str | None, typer.Option(metavar="TIME", help="recommend the cheapest that ends within 1h, 90m …, its start included")
    ] = None,
    max_usd: Annotated[
        float | None, typer.Option(metavar="USD", help="recommend nothing whose --max-usd would be more than this")
    ] = None,
    script: Annotated[Path, typer.Option(help="the template that will run")] = template.SFT,
    sample: Annotated[int, typer.Option(min=1, help="rows to count tokens in, from the first on")] = 500,
    vary: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=A,B", help="also price a run for each value, as submit.py --vary compares them"),
    ] = None,
    namespace: Annotated[
        str | None, typer.Option(help="user or organisation that will pay, as for submit.py: the price is the same for all")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """What will a run cost, and on which GPU? From its own tokens, the model's own shapes and today's prices.

    Any flag of the template can follow: --batch-size, --max-seq-length, --max-steps, --num-samples ...
    With --script templates/export.py or templates/evaluate.py, the adapter alone is named: what those cost.

    Example: estimate.py LiquidAI/LFM2.5-1.2B-Instruct mlabonne/FineTome-100k
    """
    quiet_libraries()
    require_amount(max_usd)
    choice = Choice(flavor, more_than_gb)
    wish = cost.Wish(faster, seconds(within) if within else math.inf, math.inf if max_usd is None else max_usd)
    api, module = client.connect(client.LOOKUP_TIMEOUT_S), template.load(script)
    if not template.trains(module):
        words = [dataset, *context.args] if dataset else context.args  # a flag's value may stand in its place
        if vary:
            raise UserError("bad_vary", "Only trainings are compared, and this trains nothing.", "Leave --vary out.", USAGE)
        return estimate_other(api, module, template.settings(module, as_named(module, model, words)), choice, wish, json)
    if dataset is None:
        raise UserError("no_dataset", "No data set was named.", "Pass the id or the file of one after the model.", USAGE)
    passes = [f"--num-epochs={epochs}"] if epochs is not None else []
    settings = template.settings(module, [f"--base-model={model}", f"--dataset={dataset}", *passes, *context.args])
    if epochs is not None and settings.num_epochs != epochs:
        raise UserError(
            "bad_arguments",
            f"--epochs {epochs:g} and {as_flag('num_epochs', settings.num_epochs)} are the same setting with two values.",
            "Pass one of them.",
            USAGE,
        )
    found = examine(api, module, settings, sample, needs_token=False)
    model_found, counted = found.model, found.sample
    if model_found is None or counted is None or not found.ok:
        if json:
            print_json(NOTHING | {"problems": [asdict(problem) for problem in found.problems]})
        for problem in found.problems:
            show_problem(problem)
        raise typer.Exit(found.exit_code)
    settings = found.settings
    flavors, source = current_flavors(api)
    chosen = choice.among(flavors)
    rows = counted.rows if counted.rows is not None else settings.num_samples
    if not rows and not settings.max_steps:
        raise UserError(
            "rows_unknown",
            "The data set does not say how many rows it has, so its cost has no bound.",
            "Pass --num-samples N or --max-steps N.",
        )
    per_row = counted.tokens_per_row(settings.max_seq_length)
    run = cost.Run(
        rows or settings.max_steps * settings.batch_size * settings.gradient_accumulation,
        per_row,
        module.may_pack(settings, model_found.config),
        counted.mean_error(settings.max_seq_length),
        min(counted.percentile(1.0), settings.max_seq_length) if counted.rows == counted.sampled else 0,
        *((found.grading.rows, found.grading.answer_tokens) if found.grading else (0, 0.0)),
        template.uses_all_gpus(module),
    )
    digest = {"digest": counted.digest} if counted.digest else {}
    ranked = rank(chosen, model_found, found.settings, script, run, digest)
    best = cost.recommend(ranked, flavors, wish)
    shown = next((one for one in ranked if best and one.flavor == best.flavor), ranked[0])
    chosen_by_run = settled(settings, model_found, shown, ranked)
    choose = lambda wish: cost.recommend(ranked, flavors, wish)  # noqa: E731
    hours = {one.flavor: span(one.hours_low, one.hours_high) for one in ranked}
    problems = [*found.problems, *([] if best else [nothing_wished(choose, hours) or nothing_fits(flavor, ranked)])]
    variations = list(read_variations(vary or [], None)[1]) if vary else []
    compared = [
        (changes, rank(chosen, model_found, varied(module, settings, changes), script, run, digest)) for changes in variations
    ]
    if json:
        print_json(
            {
                "price_source": source,
                "flavors": [one.as_json() for one in ranked],
                "recommended": best and asdict(best),
                "tokens": round(shown.tokens) if math.isfinite(shown.tokens) else None,
                "digest": counted.digest,
                "memory": {"flavor": shown.flavor, **shown.memory.as_json()},
                "settings": chosen_by_run,
                "runs": [{"changes": changes} | on_flavor(ranked, shown.flavor) for changes, ranked in compared],
                "framework": {"name": settings.backend, "why": framework(settings)},
                "ok": best is not None,
                "problems": [asdict(problem) for problem in problems],
            }
        )
    else:
        show(ranked, shown, best, source)
        show_compared(compared, shown.flavor)
        for reason in chosen_by_run["why"].values():
            people.print(f"Chosen: {reason}", markup=False)
    for problem in problems:
        show_problem(problem)
    if best is None:
        raise typer.Exit(FAILED)


@dataclass(frozen=True)
class Choice:
    """Which flavors are looked at: one alone, or those whose GPUs have more memory each than did not suffice."""

    flavor: str | None
    more_than_gb: float

    def among(self, flavors: list[Flavor]) -> list[Flavor]:
        """Raises UserError where none is left."""
        chosen = [find_flavor(flavors, self.flavor)] if self.flavor else flavors
        chosen = [one for one in chosen if not self.more_than_gb or one.vram_gb / max(one.gpus, 1) > self.more_than_gb]
        if not chosen:
            raise UserError(
                "nothing_fits",
                f"No GPU to choose from has more than {self.more_than_gb:g} GB.",
                "Lower --batch-size or --max-seq-length, or choose a smaller model.",
            )
        return chosen


def as_named(module: template.Template, model: str, words: list[str]) -> list[str]:
    """The arguments of a template that trains nothing, with what it is asked of first."""
    return [f"{'--models' if template.evaluates(module) else '--adapter'}={model}", *words]


def estimate_other(api: HfApi, module: template.Template, settings: Any, choice: Choice, wish: cost.Wish, json: bool) -> None:
    """What an export or an evaluation costs: they train nothing, so there are no rows to count."""
    flavors, source = current_flavors(api)
    found, sizes = price_job(api, module, settings, choice.among(flavors))
    best = recommend(found, wish)
    hours = {one.flavor.name: span(one.estimate["hours_low"], one.estimate["hours_high"]) for one in found}
    misfit = Problem("nothing_fits", "error", "The job fits on no flavor that was asked for.", nothing(found))
    problems = [] if best else [nothing_wished(lambda wish: recommend(found, wish), hours) or misfit]
    if json:
        listed = {"flavors": [one.as_json() for one in found], "recommended": best and asdict(best)}
        files = {"files": sizes.files} if sizes else {}
        shown = [asdict(problem) for problem in problems]
        print_json(NOTHING | {"price_source": source, **listed, **files, "ok": best is not None, "problems": shown})
    else:
        for name, of_bytes in sizes.files.items() if sizes else ():
            people.print(file_line(name, of_bytes), markup=False)
        rows = table("", "flavor", "time", "job $")
        for one in found:
            if not one.reason:
                low, high = (one.estimate[f"usd_{end}"] for end in ("low", "high"))
                mark = "[green]→[/]" if best and one.flavor.name == best.flavor else ""
                rows.add_row(mark, one.flavor.name, hours[one.flavor.name], f"{low:.2f}–{high:.2f}")
        people.print(rows)
        if best:
            people.print(f"From {found[0].estimate['basis']}, at assumed rates. Prices: {source}", markup=False)
            people.print(submit_with(best))
    for problem in problems:
        show_problem(problem)
    if best is None:
        raise typer.Exit(FAILED)


def nothing(found: list[Priced]) -> str:
    return found[0].reason if found else "An export runs on a processor, an evaluation on one GPU: pass no --flavor."


def submit_with(best: cost.Recommended) -> str:
    return (
        f"Submit with: [bold]--flavor {best.flavor} --timeout {best.timeout_s // 60}m --max-usd {best.max_usd:.2f}[/] "
        f"(ends after {duration(best.timeout_s)} at the latest)"
    )


def framework(settings: Any) -> str:
    """Why the run trains with what it trains with."""
    if rewards.rewarded(settings):
        return rewards.WHY[settings.backend]
    return preferences.WHY[settings.backend] if preferences.loss_of(settings) else FRAMEWORKS[settings.backend]


def rank(
    flavors: list[Flavor], model: Model, settings: Any, script: Path, run: cost.Run, digest: dict[str, Any]
) -> list[cost.Candidate]:
    """Each flavor, at the precision that the run takes there; kept for submit.py, which plans the run with that precision."""
    past, found = entries(records.runs()), []
    for in_16bit in (True, False):
        if taking := [one for one in flavors if cost.for_machine(one, model, settings).load_in_16bit == in_16bit]:
            key = run_key(with_precision(settings, in_16bit), script)
            priced = cost.candidates(taking, model, settings, run, History(past, key.pace))
            records.remember_estimate(key.run, {one.flavor: cost.as_estimate(one) | digest for one in priced if one.fits})
            found += priced
    return cost.ranked(found)


# Settings that change which rows or tokens are trained on: a run with another one is estimated by itself.
COUNTED = ("base_model", "dataset", "max_seq_length", "num_samples", "eval", "column", "script", "flavor", "timeout", "seed")


def varied(module: template.Template, settings: Any, changes: dict[str, str]) -> Any:
    """The settings with some of them changed. Raises UserError (usage) where the template refuses a value."""
    if counted := [name for name in changes if any(part in name for part in COUNTED)]:
        message = f"With another {flag_of(counted[0])} other rows or tokens are counted."
        raise UserError("bad_vary", message, "Estimate that run by itself, with its own value in the command.", USAGE)
    words = [f"--base-model={settings.base_model}", f"--dataset={settings.dataset}", *as_words(changes, settings)]
    read = template.settings(module, words)
    return replace(settings, **{name: getattr(read, name) for name in changes})


def on_flavor(ranked: list[cost.Candidate], flavor: str) -> dict[str, Any]:
    """What a run takes on a flavor, in the estimate's own keys."""
    return next(one for one in ranked if one.flavor == flavor).as_json()


def show_compared(compared: list[tuple[dict[str, str], list[cost.Candidate]]], flavor: str) -> None:
    """The runs of a comparison on one flavor, and the sum of those that fit."""
    if not compared:
        return
    rows, costs = table("run", "time", "run $", title=f"\nCompared on {flavor}"), []
    for changes, ranked in compared:
        one = next(one for one in ranked if one.flavor == flavor)
        cells = (
            [span(one.hours_low, one.hours_high), f"{one.usd_low:.2f}–{one.usd_high:.2f}"] if one.fits else [one.reason, "–"]
        )
        rows.add_row(escape(title_of(changes)), *cells)
        costs += [(one.usd_low, one.usd_high)] if one.fits else []
    people.print(rows)
    people.print(f"In all: ${sum(low for low, _ in costs):.2f}–{sum(high for _, high in costs):.2f}")


def settled(settings: Any, model: Model, shown: cost.Candidate, ranked: list[cost.Candidate]) -> dict[str, Any]:
    """What the run itself will choose where its settings say auto, as its event `settings` has it, and why."""
    why = why_chosen(settings, model.config, shown.rows, shown.held_out)
    if is_precision_auto(settings):
        why["precision"] = why_precision(shown.precision == "16bit", model.config, shown.vram_gb * GB)
        other = next((one for one in ranked if one.fits and one.precision != shown.precision), None)
        if other:
            names = {"16bit": "16 bits", "4bit": "4 bits"}
            why["precision"] += f" ({names[other.precision]}: from {other.flavor}, ${other.usd_low:.2f}–{other.usd_high:.2f})"
    return chosen_values(settings, model.config, shown.rows, shown.held_out) | {"precision": shown.precision, "why": why}


def nothing_wished(choose: Callable[[cost.Wish], cost.Recommended | None], hours: dict[str, str]) -> Problem | None:
    """What to say where runs fit, and none is as fast and as cheap as was asked for; None where none fits. hours: by flavor."""
    cheapest, fastest = choose(cost.Wish()), choose(cost.Wish(True, max_usd=1e9))
    if cheapest is None or fastest is None:
        return None
    told = [
        f"{name} is {one.flavor}: {hours[one.flavor]}, --max-usd {one.max_usd:.2f}"
        for name, one in (("The fastest", fastest), ("The cheapest", cheapest))
    ]
    return Problem("nothing_wished", "error", "No flavor is as fast and as cheap as that.", ". ".join(told) + ".")


def nothing_fits(flavor: str | None, ranked: list[cost.Candidate]) -> Problem:
    fix = "Lower --batch-size or --max-seq-length, or choose a smaller model."
    if any(one.code == "too_long" for one in ranked):
        fix = "Train fewer epochs or rows: lower --num-epochs, or pass --max-steps N or --num-samples N."
    if flavor:
        fix = f"On {flavor}: {ranked[0].reason}. Leave --flavor out to see the others."
    return Problem("nothing_fits", "error", "The run fits on no flavor.", fix)


def show(ranked: list[cost.Candidate], shown: cost.Candidate, best: cost.Recommended | None, source: str) -> None:
    rows = table("", "flavor", "needs GB", "has GB", "time", "run $")
    reasons: dict[str, list[str]] = {}
    for one in ranked:
        if not one.fits:
            reasons.setdefault(one.reason, []).append(one.flavor)
            continue
        mark = "[green]→[/]" if best and one.flavor == best.flavor else ""
        rows.add_row(
            mark,
            one.flavor,
            f"{one.needed_gb:.1f}" + ("*" if one.memory.checkpointing == "offload" else ""),
            f"{one.gpus} × {one.vram_gb:.0f}" if one.gpus > 1 else f"{one.vram_gb:.0f}",
            span(one.hours_low, one.hours_high),
            f"{one.usd_low:.2f}–{one.usd_high:.2f}",
        )
    people.print(rows)
    if any(one.fits and one.memory.checkpointing == "offload" for one in ranked):
        people.print("[dim]* activations are recomputed (gradient checkpointing): slower, in far less memory[/]")
    for reason, names in reasons.items():
        people.print(f"[dim]Not for this run: {', '.join(names)} ({escape(reason)})[/]")
    shares = ", ".join(f"{name} {value:.1f}" for name, value in shown.memory.by_part().items() if value >= 0.05)
    people.print(f"\nGPU memory on {shown.flavor} in GB: {shares}")
    tokens = f"{shown.tokens:,.0f}" if shown.tokens < 1e15 else f"{shown.tokens:.1e}"
    people.print(f"{tokens} tokens to train on. Prices: {source}", markup=False)
    if best:
        people.print(f"Time: {time_line(shown)}")
        if best.gpus > 1:
            each = shown.rows_a_step / best.gpus
            people.print(
                f"{best.gpus} GPUs share each step of {shown.rows_a_step} rows: {each:g} rows each, the same training."
            )
        people.print(submit_with(best))


def time_line(one: cost.Candidate) -> str:
    """Where the time of a run goes, and what the estimate rests on."""
    parts = ((name, low / 60, high / 60) for name, (low, high) in (one.seconds or {}).items())
    minutes = ", ".join(f"{name} {low:.0f}–{high:.0f}" for name, low, high in parts if high >= 0.5)
    narrower = (
        "; submit.py --smoke measures it for a few cents" if one.basis.startswith("shapes") and " run" not in one.basis else ""
    )
    return f"{minutes} min on {one.flavor}, from {one.basis}{narrower}"


if __name__ == "__main__":
    run(app)
