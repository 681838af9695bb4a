# /// script
# requires-python = ">=3.11"
# dependencies = ["huggingface_hub==2.4.0", "typer==0.29.2", "rich==15.0.0", "psutil==7.2.2", "openpyxl==3.1.5"]
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
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

if not sys.dont_write_bytecode:  # the skill's folder stays as it was installed
    sys.pycache_prefix = f"{sys.prefix}/pycache"

from unsloth_jobs.errors import USAGE, UserError
from unsloth_jobs.jobs import plan, planning, starting
from unsloth_jobs.jobs.comparing import compare
from unsloth_jobs.jobs.group import PREFIX
from unsloth_jobs.jobs.group_planning import MAX_RUNS, Options
from unsloth_jobs.jobs.job import FAILED, Job
from unsloth_jobs.jobs.starting import Approval
from unsloth_jobs.lookup import client
from unsloth_jobs.output import application, ends_clearly, people, print_json, run

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
    vary: Annotated[
        list[str] | None, typer.Option(metavar="NAME=A,B", help="compare a run for each value; several make a grid")
    ] = None,
    vary_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help='compare a run for each line of settings: {"lora-r": 8, …}')
    ] = None,
    at_once: Annotated[int | None, typer.Option(min=1, help="of compared runs, so many at once; the others wait (all)")] = None,
    halving: Annotated[
        int, typer.Option(metavar="N", help="after each rung one run in N goes on, the worse are ended once saved (0: all)")
    ] = 0,
    metric: Annotated[str, typer.Option(help="what decides: graded, loss; auto: graded where all runs are")] = "auto",
    max_runs: Annotated[int, typer.Option(help="refuse a comparison of more runs")] = MAX_RUNS,
    approve: Annotated[str | None, typer.Option(metavar="PLAN_ID", help="start exactly the plan that has this id")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="start without asking; on hf it needs --max-usd")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="show the arguments, commits and hashes of the plan, too")] = False,
    json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Show the plan of a run and, once it is approved, start it.

    Without approval nothing is started: the plan and its id are printed and the exit code is 3. A person at a
    terminal is asked; an assistant shows the plan to its user and repeats the command with --approve PLAN_ID.

    Example: submit.py templates/sft.py --flavor l4x1 --timeout 4h -- --dataset mlabonne/FineTome-100k
    """
    how = Approval(approve, yes, max_usd, json, verbose)
    starting.require_place(where, how)
    api = client.connect()
    request = planning.RunRequest(script, list(arguments or []), where, flavor, timeout, namespace, attempts, smoke)
    if vary or vary_file:
        return compare(api, request, vary or [], vary_file, Options(at_once, halving, metric, max_runs), how)
    require_compared(at_once, halving, approve)
    prepared = planning.prepare(api, request)
    if smoke and max_usd is None:
        how = replace(how, max_usd=plan.SMOKE_MAX_USD)
    report(*starting.start_approved(api, prepared, how), json)


def require_compared(at_once: int | None, halving: int, approve: str | None) -> None:
    """Raises UserError (usage) where only a comparison was meant, and nothing is varied."""
    if at_once is None and not halving and not (approve or "").startswith(PREFIX):
        return
    message = "A comparison was meant, and --vary, which says what of, is missing."
    raise UserError("bad_vary", message, "Repeat the command that showed the plan, with all of its --vary.", USAGE)


def unapproved_command() -> str:
    """The command that was typed, without an approval."""
    words = [word for word in sys.argv if word != "--yes" and not word.startswith("--approve=")]
    if "--approve" in words:
        at = words.index("--approve")
        del words[at : at + 2]
    return shlex.join(["uv", "run", *words])


def report(made: plan.Plan, job: Job, existed: bool, json: bool) -> None:
    then = f"To start it again, for a plan to approve: {unapproved_command()}" if existed and job.stage in FAILED else None
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
        "next": then,
    }
    if json:
        print_json(values)
        return
    if existed:
        people.print(f"\nThis plan was submitted before, and is not paid for twice: {job.job_id} ({job.stage})")
    else:
        people.print(f"\n[green]Started[/]: {job.job_id}")
    highest = f"${made.max_usd:.2f}" if made.where == "hf" else None
    facts = {"job": job.url, "model": made.model_url, "dashboard": made.dashboard_url, "at most": highest}
    for name, value in facts.items():
        if value:
            people.print(f"  {name:10} {escape(value)}", soft_wrap=True)
    if then:
        people.print(f"\n{escape(then)}", soft_wrap=True)
    people.print(f"\nHow it goes: uv run {Path(__file__).with_name('status.py')} {job.job_id}", soft_wrap=True)


if __name__ == "__main__":
    run(app)
