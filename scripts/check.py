# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "huggingface_hub==2.4.0", "transformers==5.23.0", "datasets==5.2.0", "jinja2==3.1.6",
#     "typer==0.29.2", "rich==15.0.0",
# ]
# [tool.uv]
# exclude-newer = "2026-11-20T00:00:00Z"
# ///
"""Is this run sound? Token, model, data, masks and LoRA coverage, before anything is paid."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.text import Text
from unsloth_jobs import hub, quiet, template
from unsloth_jobs.examine import Examination, examine
from unsloth_jobs.output import EXTRA_ARGUMENTS, application, ends_clearly, people, print_json, show_problem, table

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
    sample: Annotated[int, typer.Option(min=1, help="rows to look at, from the first on")] = 500,
    namespace: Annotated[str, typer.Option(help="user or organisation that will pay and own the model")] = None,
    where: Annotated[str, typer.Option(help="hf looks at the token too; local does not need one")] = "hf",
    json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Is this run sound? Token, model, data, masks and LoRA coverage, before anything is paid.

    Any flag of the template can follow: --prompt-column, --target-modules, --lora-r ...

    Example: check.py LiquidAI/LFM2.5-1.2B-Instruct mlabonne/FineTome-100k
    """
    quiet.libraries()
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
    found = examine(hub.connect(hub.LOOK_UP_S), module, settings, sample, where == "hf", namespace)
    if json:
        print_json(as_json(found))
    else:
        show(found)
    for problem in found.problems:
        show_problem(problem)
    if not found.ok:
        raise typer.Exit(found.exit_code)


def as_json(found: Examination) -> dict[str, Any]:
    model, sample, settings = found.model, found.sample, found.settings
    return {
        "ok": found.ok,
        "problems": [asdict(problem) for problem in found.problems],
        "model": model
        and {
            "id": model.id,
            "revision": model.revision,
            "architecture": model.architecture,
            "parameters": model.parameters,
            "gated": model.gated,
        },
        "dataset": sample
        and {
            "id": settings.dataset,
            "revision": settings.dataset_revision or None,
            "config": settings.dataset_config or None,
            "split": settings.dataset_split or None,
            "rows": sample.rows,
            "rows_source": sample.rows_source,
            "duplicates": sample.duplicates,
            "format": sample.format,
            "columns": sample.columns,
            "used": sample.used,
        },
        "tokens": sample
        and {
            "sampled": sample.sampled,
            "mean": round(sample.mean, 1),
            "p50": sample.percentile(0.5),
            "p95": sample.percentile(0.95),
            "max": sample.percentile(1.0),
            "total": round(sample.mean * sample.rows) if sample.rows is not None else None,
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
            "sample": sample.segments,
        },
        "lora": {"target_modules": found.targets, "coverage": round(found.coverage, 4)},
        "identity": found.identity
        and {
            "name": found.identity.name,
            "role": found.identity.role,
            "can_pay": found.identity.can_pay,
            "organizations": found.identity.organizations,
        },
    }


def show(found: Examination) -> None:
    facts = table("what", "found")
    if found.identity:
        facts.add_row("token", escape(f"{found.identity.name}, {found.identity.role}"))
    if model := found.model:
        facts.add_row("model", escape(f"{model.id}, {model.architecture}, {model.parameters:,} parameters"))
        facts.add_row("LoRA", f"{found.coverage:.0%} of the linear layers: {', '.join(found.targets)}")
    if sample := found.sample:
        count = f"{sample.rows:,}" if sample.rows is not None else "unknown number of"
        count = f"about {count}" if sample.rows_source == "estimated" else count
        facts.add_row(
            "data",
            escape(f"{found.settings.dataset}: {count} rows, format {sample.format} ({', '.join(sample.used.values())})"),
        )
        facts.add_row(
            "tokens",
            f"mean {sample.mean:.0f}, median {sample.percentile(0.5)}, 95% under {sample.percentile(0.95)}, "
            f"longest {sample.percentile(1.0)} (first {sample.sampled} rows); {sample.cut} cut",
        )
        facts.add_row(
            "learned", f"{sample.supervised_fraction:.1%} of the tokens; {sample.rows_without_answer} rows without an answer"
        )
    people.print(facts)
    if found.sample and found.sample.segments:
        people.print("\n[bold]A row as the model sees it[/]; what it learns to write stands in [green]⟦ ⟧[/]:")
        people.print(Text.assemble(*(shown(part) for part in found.sample.segments)))
    people.print("[green]Sound.[/]" if found.ok else "[red]Not sound:[/]")


def shown(part: dict[str, Any]) -> tuple[str, str]:
    """A stretch of a row with its style; the brackets show it where there is no colour."""
    return (f"⟦{part['text']}⟧", "green") if part["learned"] else (part["text"], "dim")


if __name__ == "__main__":
    app()
