# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "huggingface_hub==2.4.0", "transformers==5.23.0", "datasets==5.2.0", "jinja2==3.1.6",
#     "typer==0.29.2", "rich==15.0.0", "openpyxl==3.1.5",
# ]
# [tool.uv]
# exclude-newer = "2026-11-20T00:00:00Z"
# ///
"""Is this run sound? Token, model, data, masks and LoRA coverage, before anything is paid."""

from __future__ import annotations

import signal
import sys

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C amid the imports leaves no traceback

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.text import Text

if not sys.dont_write_bytecode:  # the skill's folder stays as it was installed
    sys.pycache_prefix = f"{sys.prefix}/pycache"

from unsloth_jobs import template
from unsloth_jobs.lookup import client
from unsloth_jobs.lookup.checks import examine
from unsloth_jobs.lookup.findings import Report
from unsloth_jobs.lookup.grading import Grading
from unsloth_jobs.lookup.model_info import Model
from unsloth_jobs.lookup.pairs import PairSample
from unsloth_jobs.lookup.prompts import PromptSample
from unsloth_jobs.lookup.sample import Sample
from unsloth_jobs.lookup.table import Table
from unsloth_jobs.output import EXTRA_ARGUMENTS, application, ends_clearly, people, print_json, run, show_problem, table
from unsloth_jobs.redaction import redact
from unsloth_jobs.template import quiet_libraries
from unsloth_jobs.training.dataset import held_out_of
from unsloth_jobs.training.parent import Parent
from unsloth_jobs.training.preference_tokens import SAME
from unsloth_jobs.training.settled import chosen_values, why_chosen

USUAL = ("utf-8", ",")  # ways to read a file that need no word
ROW_CHARS = 2000  # of the sample row, on a terminal
SHORT = 7  # characters of a commit that tell it from others

app = application("Is this run sound?")


@app.command(
    context_settings=EXTRA_ARGUMENTS,
    epilog="Exit codes: 0 sound; 1 a problem; 2 usage; 4 the Hub cannot be reached or says no.",
)
@ends_clearly
def check(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Hub id or local folder of the model")],
    dataset: Annotated[str, typer.Argument(help="Hub id or local file of the data set")],
    config: Annotated[str, typer.Option(help="configuration of the data set")] = "",
    split: Annotated[str, typer.Option(help="split of the data set")] = "",
    max_length: Annotated[int, typer.Option(help="tokens per row")] = 2048,
    revision: Annotated[str, typer.Option(help="commit or branch of the model")] = "",
    script: Annotated[Path, typer.Option(help="the template that will run")] = template.SFT,
    sample: Annotated[int, typer.Option(min=1, help="rows to sample, from the first on")] = 500,
    namespace: Annotated[str | None, typer.Option(help="user or organisation that will pay and own the model")] = None,
    where: Annotated[str, typer.Option(help="hf: the token is checked too; local: none is needed")] = "hf",
    json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Is this run sound? Token, model, data, masks and LoRA coverage, before anything is paid.

    Any flag of the template can follow: --prompt-column, --target-modules, --lora-r ...

    Example: check.py LiquidAI/LFM2.5-1.2B-Instruct mlabonne/FineTome-100k
    """
    quiet_libraries()
    module = template.load(script)
    settings = template.settings(
        module,
        [
            f"--base-model={model}",
            f"--base-model-revision={revision}",
            f"--dataset={dataset}",
            f"--dataset-config={config}",
            f"--dataset-split={split}",
            f"--max-seq-length={max_length}",
            *context.args,
        ],
    )
    found = examine(client.connect(client.LOOKUP_TIMEOUT_S), module, settings, sample, where == "hf", namespace)
    if json:
        print_json(as_json(found))
    else:
        show(found)
    for problem in found.problems:
        show_problem(problem)
    if not found.ok:
        raise typer.Exit(found.exit_code)


def as_json(found: Report) -> dict[str, Any]:
    model, table, sample, settings = found.model, found.table, found.sample, found.settings
    total = sample and sample.total
    return {
        "ok": found.ok,
        "problems": [asdict(problem) for problem in found.problems],
        "model": model
        and {
            "id": model.id,
            "revision": model.revision,
            "architecture": model.architecture,
            "parameters": model.parameters,
            "context_length": model.context_length,
            "gated": model.gated,
        },
        "adapter": model
        and model.parent
        and {
            "id": model.parent.name,
            "revision": model.parent.revision,
            "base_model_revision": model.parent.base_revision,
            "r": model.parent.rank,
            "alpha": model.parent.alpha,
            "target_modules": model.parent.targets,
            "own_tokenizer": model.parent.has_tokenizer,
        },
        "dataset": table
        and {
            "id": settings.dataset,
            "revision": settings.dataset_revision or None,
            "config": table.config,
            "split": table.split,
            "rows": table.rows,
            "rows_source": table.rows_source,
            "bytes": table.size,
            "duplicates": table.duplicates,
            "format": table.format,
            "read_as": table.read_as,
            "columns": table.columns,
            "used": table.used,
            "unused": table.unused,
        },
        "tokens": sample
        and {
            "sampled": sample.sampled,
            "mean": round(sample.mean, 1),
            "p50": sample.percentile(0.5),
            "p95": sample.percentile(0.95),
            "max": sample.percentile(1.0),
            "total": total and total[0],
            "total_low": total and total[1],
            "total_high": total and total[2],
            "rows_cut": sample.cut,
        },
        "mask": sample
        and {
            "supervised_fraction": round(sample.supervised_fraction, 4),
            "rows_without_answer": sample.rows_without_answer,
            "length_for_95": sample.length_for(0.95),
            "length_for_all": sample.length_for(1.0),
            "eos_supervised_fraction": round(sample.stopping, 4),
            "changed_rows": len(sample.changed),
            "calls_not_rendered_rows": sample.calls_not_rendered,
            "digest": sample.digest,
            "sample": sample.segments,
        },
        "lora": {
            "target_modules": found.lora.targets,
            "coverage": round(found.lora.coverage, 4),
            "linear_share": round(found.lora.linear_share, 4),
        },
        "pairs": as_pairs(sample) if isinstance(sample, PairSample) else None,
        "rewards": sample.verdict | {"reference": sample.reference} if isinstance(sample, PromptSample) else None,
        "grading": found.grading and asdict(found.grading),
        "settings": model and chosen(found, model),
        "identity": found.identity
        and {
            "name": found.identity.name,
            "role": found.identity.role,
            "can_pay": found.identity.can_pay,
            "organizations": found.identity.organizations,
            "payers": found.identity.payers,
            "owner": found.owner,
            "may_write": found.identity.may("repo.write", found.owner),
            "may_start_jobs": found.identity.may("job.write", found.owner),
        },
    }


def as_pairs(sample: PairSample) -> dict[str, Any]:
    return {"figures": sample.pairs, "labels": sample.labels, "sample_rejected": sample.segments_rejected}


def show(found: Report) -> None:
    facts = table("what", "found")
    if identity := found.identity:
        facts.add_row("token", escape(f"{identity.name}, {identity.role}; can pay: {', '.join(identity.payers) or 'nobody'}"))
    if model := found.model:
        if model.parent:
            facts.add_row("adapter", escape(went_on(model.parent)))
        length = f", {model.context_length:,} tokens of context" if model.context_length else ""
        facts.add_row("model", escape(f"{model.id}, {model.architecture}, {model.parameters:,} parameters{length}"))
        facts.add_row("LoRA", escape(f"{found.lora.linear_share:.0%} of the linear weights: {', '.join(found.lora.targets)}"))
    if found.table:
        facts.add_row("data", escape(described(found.table, found.settings.dataset)))
    if sample := found.sample:
        facts.add_row("tokens", lengths(sample))
        if isinstance(sample, PromptSample):
            facts.add_row("reward", escape(rewarded(sample)))
        else:
            facts.add_row(
                "learned",
                f"{sample.supervised_fraction:.1%} of the tokens; {sample.rows_without_answer} rows without an answer",
            )
        if isinstance(sample, PairSample) and sample.kept:
            facts.add_row("compared", compared(sample))
    if grading := found.grading:
        facts.add_row("graded", escape(graded(grading)))
    if found.model and (why := chosen(found, found.model)["why"]):
        facts.add_row("training", escape("; ".join(why.values())))
    people.print(facts)
    if isinstance(found.sample, PromptSample) and found.sample.segments:
        people.print("\n[bold]A prompt as the model sees it[/]; what it writes after that is rewarded:")
        people.print(as_read(found.sample.segments))
        people.print(f"[bold]Its reference[/]: {escape(redact(found.sample.reference)[:ROW_CHARS]) or 'none'}")
    elif found.sample and found.sample.segments:
        people.print("\n[bold]A row as the model sees it[/]; what is learned (its loss mask) stands in [green]⟦ ⟧[/]:")
        people.print(as_read(found.sample.segments))
        if isinstance(found.sample, PairSample) and found.sample.segments_rejected:
            people.print("\n[bold]And with the worse answer[/]:")
            people.print(as_read(found.sample.segments_rejected))
    people.print("[green]Sound.[/]" if found.ok else f"[red]{'Could not be checked' if found.unanswered else 'Not sound'}:[/]")


def as_read(segments: list[dict[str, Any]]) -> Text:
    return Text.assemble(*(shown(part) for part in shortened(without_secrets(segments))))


def compared(sample: PairSample) -> str:
    """What the pairs are like, or how many single answers are good."""
    if not sample.pairs:
        return "{desirable} good answers with {undesirable} bad ones".format(**sample.labels)
    same = sample.lost.get(SAME, 0)
    text = (
        "better answers {chosen_tokens:.0f} tokens, worse ones {rejected_tokens:.0f} (means); {contradictory} contradictory, "
    )
    return (text + "{nearly_same} nearly the same, {same} the same").format(**sample.pairs, same=same)


def rewarded(sample: PromptSample) -> str:
    """What is rewarded, and what the reward says of references and of wrong answers."""
    found = sample.verdict
    if not found:
        return "none that could be made"
    parts = ", ".join(f"{name} × {weight:g}" for name, weight in found["weights"].items())
    verdicts = {"references": found["references_right"], "answers of other rows": found["wrong_right"]}
    told = "; ".join(f"right: {share:.0%} of the {what}" for what, share in verdicts.items() if share is not None)
    return f"{parts} ({found['why']})" + (f"\ntried on {found['rows']} rows; {told}" if told else "")


def went_on(parent: Parent) -> str:
    """The adapter that training goes on from."""
    base = parent.base + (f" at {parent.base_revision[:SHORT]}" if parent.base_revision else "")
    name = parent.name + (f" at {parent.revision[:SHORT]}" if parent.revision else "")
    targets = ", ".join(parent.targets)
    return f"{name}, an adapter of {base}, r {parent.rank}, alpha {parent.alpha}, on {targets}: training goes on from it"


def graded(grading: Grading) -> str:
    """How the answers will be graded once the run is over."""
    if grading.grader is None:
        return f"nothing: {grading.why}"
    return f"{grading.rows:,} answers of base and tuned model, by {grading.grader} ({grading.why}), of {grading.source}"


def chosen(found: Report, model: Model) -> dict[str, Any]:
    """What the run would choose where its settings say auto, and why. The precision depends on the GPU: estimate.py."""
    settings, rows = found.settings, found.table.rows if found.table else None
    counted = rows is not None
    rows = min(rows or 0, settings.num_samples or rows or 0)
    held_out = held_out_of(rows, settings)
    about = settings, model.config, rows - held_out, held_out
    values, why = chosen_values(*about), why_chosen(*about)
    if not counted:
        values |= {"num_epochs": None, "early_stopping": None}
        why.pop("num_epochs", None)
    return values | {"why": why}


def described(data: Table, name: str) -> str:
    """A data set in two lines: which part of it and how much, which columns are read and which are not."""
    part = f" ({data.config}, {data.split})" if data.split else ""
    about = "about " * (data.rows_source == "estimated")
    count = f"{about}{data.rows:,}" if data.rows is not None else "unknown number of"
    size = f", {data.size / 1e6:,.1f} MB" if data.size is not None else ""
    unused = f"; not used: {', '.join(data.unused)}" if data.unused else ""
    read_as = "".join(f", {what} {value!r}" for what, value in data.read_as.items() if value not in USUAL)
    return f"{name}{part}: {count} rows{size}{read_as}\nformat {data.format} ({', '.join(data.used.values())}){unused}"


def lengths(sample: Sample) -> str:
    """Tokens of the sampled rows and, from them, of all."""
    text = (
        f"mean {sample.mean:.0f}, median {sample.percentile(0.5)}, 95% under {sample.percentile(0.95)}, "
        f"longest {sample.percentile(1.0)} (first {sample.sampled} rows); {sample.cut} cut at {sample.max_length}"
    )
    if sample.total:
        total, low, high = sample.total
        text += f"\nin all {total:,}" + (f" (95% sure: {low:,} to {high:,})" if low < high and not sample.drifts else "")
    return text


def without_secrets(segments: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [part | {"text": redact(part["text"])} for part in segments]


def shortened(segments: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row without its middle where it is long: how it begins and how it ends say how it is learned. JSON has it whole."""
    left_out = sum(len(part["text"]) for part in segments) - ROW_CHARS
    if left_out <= 0:
        return segments
    made, at = [], 0
    for part in segments:
        text, begins, at = part["text"], at, at + len(part["text"])
        head = text[: max(ROW_CHARS // 2 - begins, 0)]
        tail = text[max(ROW_CHARS // 2 + left_out - begins, 0) :]
        if begins <= ROW_CHARS // 2 < at:
            note = {"text": f"\n[… {left_out:,} characters …]\n", "learned": False}
            made += [part | {"text": head}, note, part | {"text": tail}]
        else:
            made.append(part | {"text": head if at <= ROW_CHARS // 2 else tail})
    return [part for part in made if part["text"]]


def shown(part: dict[str, Any]) -> tuple[str, str]:
    """A stretch of a row with its style; the brackets show it where there is no colour."""
    text = redact(part["text"])
    return (f"⟦{text}⟧", "green") if part["learned"] else (text, "dim")


if __name__ == "__main__":
    run(app)
