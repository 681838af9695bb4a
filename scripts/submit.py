# /// script
# requires-python = ">=3.11"
# dependencies = ["huggingface_hub==2.4.0", "typer==0.29.2", "rich==15.0.0", "psutil==7.2.2"]
# [tool.uv]
# exclude-newer = "2026-11-20T00:00:00Z"
# ///
"""Show the plan of a run and, once it is approved, start it."""

from __future__ import annotations

import signal
import sys

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C amid the imports leaves no traceback

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

if not sys.dont_write_bytecode:  # the skill's folder stays as it was installed
    sys.pycache_prefix = f"{sys.prefix}/pycache"

from unsloth_jobs import hub, places, plan, records, submission
from unsloth_jobs.errors import APPROVAL, USAGE, UserError
from unsloth_jobs.jobs import Job
from unsloth_jobs.output import application, duration, ends_clearly, people, print_json, show_problem, span

app = application("Show the plan of a run and, once it is approved, start it.")


@app.command(
    # As with `hf jobs uv run`, flags that are not of this command are the script's, also without `--`.
    context_settings={"ignore_unknown_options": True},
    epilog="Exit codes: 0 started; 2 usage; 3 not approved, or over --max-usd; 4 the Hub says no.",
)
@ends_clearly
def submit(
    script: Annotated[Path, typer.Argument(help="the training script: templates/sft.py or your copy of it")],
    arguments: Annotated[
        list[str] | None, typer.Argument(help="the script's own arguments, after -- where a name is also one of these")
    ] = None,
    where: Annotated[str, typer.Option(help="hf: Hugging Face Jobs; local: a background process here")] = "hf",
    flavor: Annotated[str, typer.Option(help="machine to rent; estimate.py recommends one")] = plan.DEFAULT_FLAVOR,
    timeout: Annotated[
        str | None, typer.Option(help="end the job after 30m, 4h, 1d (default: 4h; 20m for a smoke run)")
    ] = None,
    max_usd: Annotated[float | None, typer.Option(help="refuse a plan that can cost more (a smoke run: 1)")] = None,
    attempts: Annotated[int, typer.Option(min=1, help="let Hugging Face start a failed job again, up to N starts")] = 1,
    smoke: Annotated[
        bool, typer.Option("--smoke", help=f"the same run for {plan.SMOKE_STEPS} steps, to measure its time and test it whole")
    ] = False,
    namespace: Annotated[str | None, typer.Option(help="user or organisation that pays and owns the model")] = None,
    approve: Annotated[str | None, typer.Option(metavar="PLAN_ID", help="start exactly the plan that has this id")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="start without asking; on hf it needs --max-usd")] = False,
    json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Show the plan of a run and, once it is approved, start it.

    Without approval nothing is started: the plan and its id are printed and the exit code is 3. A person at a
    terminal is asked; an assistant shows the plan to its user and repeats the command with --approve PLAN_ID.

    Example: submit.py templates/sft.py --flavor l4x1 --timeout 4h -- --dataset mlabonne/FineTome-100k
    """
    if where not in ("hf", "local"):
        raise UserError("bad_place", f"--where is hf or local, not {where}.", "Pass --where hf or --where local.", USAGE)
    if yes and where == "hf" and max_usd is None:
        raise UserError("no_ceiling", "--yes starts a paid job without asking.", "Add --max-usd N.", USAGE)
    api = hub.connect()
    wish = plan.Wish(script, list(arguments or []), where, flavor, timeout, namespace, attempts, smoke)
    made = plan.make(api, wish)
    estimate = records.recall_estimate(made.run_key, made.flavor)
    if not json and not approve:
        show(made, estimate)
    problems = plan.time_problems(made, estimate)
    for problem in problems:
        show_problem(problem)
    plan.require_budget(made, max_usd if max_usd is not None or not smoke else plan.SMOKE_MAX_USD)
    if approve:
        plan.require_approval(made, approve, records.recall_plan(approve))
    records.remember_plan(made)
    approved = approve and "--approve" or yes and "--yes" or asked(json) and "asked"
    if not approved:
        if json:
            shown = {"plan_id": made.plan_id, "plan": asdict(made), "estimate": estimate, "approved": False}
            print_json(shown | {"problems": [asdict(problem) for problem in problems]})
        else:
            people.print(f"\nNot started. To start exactly this:\n{escape(approving(made.plan_id))}", soft_wrap=True)
        raise typer.Exit(APPROVAL)
    report(made, *submission.start(places.for_plan(api, made), made, approved, estimate), json)


def approving(plan_id: str) -> str:
    """The command that was typed, with the approval among its own options."""
    return shlex.join(["uv", "run", sys.argv[0], "--approve", plan_id, *sys.argv[1:]])


def asked(json: bool) -> bool:
    """Whether a person at a terminal said yes."""
    return not json and sys.stdin.isatty() and typer.confirm("\nStart it?", default=False)


def show(made: plan.Plan, estimate: dict[str, Any] | None) -> None:
    lines = {
        "script": made.script,
        "arguments": " ".join(made.arguments),
        "model": f"{made.model} @ {made.model_revision or 'as it is'}",
        "data set": f"{made.dataset} @ {made.dataset_revision or 'as it is'}",
        "result": (made.model_url or "what the script saves") + (" (private)" if is_private(made) else ""),
        "dashboard": made.dashboard_url or ("none" if made.where == "hf" else "trackio show --project unsloth-jobs"),
        "runs on": made.flavor if made.where == "hf" else "this machine",
        "paid by": made.namespace or "nobody",
        "timeout": duration(made.timeout_s) + (f", at most {made.attempts} times" if made.attempts > 1 else ""),
        "price": f"${made.usd_per_minute * 60:.2f} an hour",
        **({"estimate": estimated(estimate)} if made.where == "hf" and made.dataset else {}),
        "costs at most": f"${made.max_usd:.2f}",
        "secrets": ", ".join(made.secrets) or "none",
    }
    people.print(f"[bold]Plan {made.plan_id}[/]" + (f", a smoke run of {plan.SMOKE_STEPS} steps" if made.smoke else ""))
    for name, value in lines.items():
        people.print(f"  {name:14} {escape(value)}", soft_wrap=True)


def is_private(made: plan.Plan) -> bool:
    return made.output_repo is not None and "--public" not in made.arguments


def estimated(estimate: dict[str, Any] | None) -> str:
    if estimate is None:
        return "none was made from here with these arguments (estimate.py)"
    time = span(estimate["hours_low"], estimate["hours_high"])
    return f"{time}, ${estimate['usd_low']:.2f}–{estimate['usd_high']:.2f} for the whole run"


def report(made: plan.Plan, job: Job, existed: bool, json: bool) -> None:
    values = {
        "job_id": job.job_id,
        "url": job.url,
        "flavor": made.flavor,
        "timeout_s": made.timeout_s,
        "max_usd": made.max_usd,
        "model_url": made.model_url,
        "dashboard_url": made.dashboard_url,
        "approved": True,
        "plan_id": made.plan_id,
        "existed": existed,
        "stage": job.stage,
    }
    if json:
        print_json(values)
        return
    if existed:
        people.print(f"\nThis plan was submitted before, and is not paid for twice: {job.job_id} ({job.stage})")
    else:
        people.print(f"\n[green]Started[/]: {job.job_id}")
    highest = f"${made.max_usd:.2f}" if made.where == "hf" else None
    told = {"job": job.url, "model": made.model_url, "dashboard": made.dashboard_url, "at most": highest}
    for name, value in told.items():
        if value:
            people.print(f"  {name:10} {escape(value)}", soft_wrap=True)
    people.print(f"\nHow it goes: uv run {Path(__file__).with_name('status.py')} {job.job_id}", soft_wrap=True)


if __name__ == "__main__":
    app()
