# /// script
# requires-python = ">=3.11"
# dependencies = ["huggingface_hub==2.4.0", "typer==0.29.2", "rich==15.0.0", "psutil==7.2.2"]
# [tool.uv]
# exclude-newer = "2026-11-20T00:00:00Z"
# ///
"""How a job is doing: stage, progress, loss, time left, money spent, what went wrong, what to do next."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from unsloth_jobs import places, records, submission
from unsloth_jobs.diagnosis import Diagnosis, diagnose, saved
from unsloth_jobs.errors import FAILED, USAGE, UserError
from unsloth_jobs.events import Summary, summarise
from unsloth_jobs.jobs import Job, Place
from unsloth_jobs.output import application, diagnostics, dollars, duration, ends_clearly, people, print_json, table
from unsloth_jobs.plan import Plan

app = application("How a job is doing.")
LOG_TAIL = 400  # lines read for progress: enough to hold the newest event of each kind
PHASES = {  # by the event that begins each, in their order
    "plan": "reading the rows",
    "data": "turning rows into tokens",
    "masks": "loading the model",
    "coverage": "measuring the base model",
    "eval": "compiling the first step",
}
RESUMABLE = ("deadline", "timeout", "cancelled")
WATCH_EVERY_S = {"hf": 10.0, "local": 1.0}


@dataclass(frozen=True)
class Status:
    job: Job
    summary: Summary
    plan: Plan | None
    diagnosis: Diagnosis | None
    estimate: dict[str, Any] | None = None

    @property
    def spent_usd(self) -> float | None:
        """What the job's time has cost at the price of its submission; None for a job submitted elsewhere."""
        return round(self.job.elapsed_s / 60 * self.plan.usd_per_minute, 4) if self.plan else None

    @property
    def result(self) -> str | None:
        """Where the tuned model lies once the job is done: an address on the Hub, or a folder here."""
        done = self.summary.event("done")
        planned = self.plan.model_url if self.plan and done else None
        return planned or done.get("repo") or done.get("path")

    @property
    def phase(self) -> str:
        """What a running job is at, by its events."""
        progress = self.summary.progress
        if progress.step is not None:
            return "saving and pushing" if progress.step == progress.total_steps else "training"
        reached = [name for name in PHASES if self.summary.event(name)]
        return PHASES[reached[-1]] if reached else "installing its libraries"

    @property
    def next(self) -> str:
        if self.diagnosis and self.diagnosis.code in RESUMABLE and self.plan:
            return f"{self.diagnosis.fix} {self.plan.resuming(Path(__file__).with_name('submit.py'))}"
        if self.diagnosis:
            return self.diagnosis.fix
        if self.job.stage == "COMPLETED":
            return f"The tuned model: {self.result}" if self.result else "It ended without an error: look at its log."
        if self.job.stage == "CANCELED":
            return f"It was cancelled. {saved(self.summary, self.plan.output_repo if self.plan else None)}"
        if self.job.stage == "SCHEDULING":
            return "It waits for a machine, which is not billed. Look again in a minute."
        return f"It is {self.phase}. Look again in {duration(min(max(self.summary.eta_s or 60, 10), 1800))}."


def end_of_log(place: Place, job: Job) -> list[str]:
    """As many of its last lines as can be had: a job's stage is told without them, too."""
    lines: list[str] = []
    try:
        lines.extend(place.logs(job.job_id, tail=LOG_TAIL) if job.stage != "SCHEDULING" else ())
    except UserError as error:
        diagnostics.print(f"The log could not be read to its end: {error}", markup=False)
    return lines


def look(place: Place, job_id: str) -> Status:
    job = place.inspect(job_id)
    summary = summarise(end_of_log(place, job))
    run = records.run_of(job_id)
    plan = Plan.from_json(run["plan"]) if run else None
    found = Status(job, summary, plan, diagnose(job, summary, plan.output_repo if plan else None), run and run["estimate"])
    if job.ended and plan:
        outcome = {"stage": job.stage, "elapsed_s": job.elapsed_s, "spent_usd": found.spent_usd}
        records.remember_outcome(job_id, outcome | {"done": summary.event("done") or None})
    return found


def as_json(status: Status) -> dict[str, Any]:
    job = status.job
    return {
        "job_id": job.job_id,
        "stage": job.stage,
        "progress": asdict(status.summary.progress),
        "elapsed_s": round(job.elapsed_s, 1),
        "eta_s": None if job.ended else status.summary.eta_s,
        "spent_usd": status.spent_usd,
        "max_usd": status.plan.max_usd if status.plan else None,
        "estimate": status.estimate,
        "url": job.url,
        "message": job.message,
        "phase": status.phase if job.stage == "RUNNING" else None,
        "model_url": status.result,
        "diagnosis": asdict(status.diagnosis) if status.diagnosis else None,
        "result": status.summary.event("done") or None,
        "next": status.next,
    }


def as_table(status: Status) -> Table:
    job, progress = status.job, status.summary.progress
    colour = {"COMPLETED": "green", "RUNNING": "cyan", "ERROR": "red", "DELETED": "red"}.get(job.stage, "yellow")
    grid = Table.grid(padding=(0, 2))
    grid.add_row("job", escape(job.job_id))
    grid.add_row("stage", f"[{colour}]{job.stage}[/]" + (f"  {escape(job.message)}" if job.message else ""))
    if progress.step is not None and progress.total_steps:
        bar = Table.grid(padding=(0, 1))
        bar.add_row(ProgressBar(progress.total_steps, progress.step, width=30), f"{progress.step}/{progress.total_steps}")
        grid.add_row("step", bar)
    base = status.summary.event("eval").get("step") == 0
    losses = {"training": progress.loss, "held-out (base model)" if base else "held-out": progress.eval_loss}
    if any(loss is not None for loss in losses.values()):
        grid.add_row("loss", "  ".join(f"{name} {loss:.4f}" for name, loss in losses.items() if loss is not None))
    eta = status.summary.eta_s
    left = "" if job.ended or eta is None else f", {duration(eta)} left"
    grid.add_row("time", duration(job.elapsed_s) + left)
    if status.plan:
        foreseen = "; estimated {} to {}".format(*map(dollars, whole)) if (whole := estimated_usd(status)) else ""
        grid.add_row("spent", f"{dollars(status.spent_usd)} of at most {dollars(status.plan.max_usd)}{foreseen}")
    if (done := status.summary.event("done")) and done.get("base_loss"):
        grid.add_row("learned", f"held-out loss {done['base_loss']:.4f} → {done['tuned_loss']:.4f}")
    if status.diagnosis:
        grid.add_row("cause", f"[bold]{status.diagnosis.code}[/]: {escape(status.diagnosis.message)}")
    grid.add_row("next", escape(status.next))
    return grid


def estimated_usd(status: Status) -> tuple[float, float] | None:
    """What the run was estimated to cost; None where it was not, or is only a smoke run of it."""
    if status.estimate is None or status.plan.smoke:
        return None
    return status.estimate["usd_low"], status.estimate["usd_high"]


def watch(place: Place, job_id: str) -> Status:
    """Show a job until it ends, on a terminal as one live table, elsewhere as a line for each new step."""
    pause = WATCH_EVERY_S["local" if job_id.startswith("local-") else "hf"]
    status, said = look(place, job_id), ""
    with Live(as_table(status), console=people, auto_refresh=False, transient=True) as live:
        while not status.job.ended:
            line = line_of(status)
            if people.is_terminal:
                live.update(as_table(status), refresh=True)
            elif line != said:
                diagnostics.print(line, markup=False)
                said = line
            time.sleep(pause)
            status = look(place, job_id)
    return status


def line_of(status: Status) -> str:
    progress = status.summary.progress
    if progress.step is None:
        return status.job.stage
    return f"{status.job.stage} step {progress.step}/{progress.total_steps} loss {progress.loss} eta {duration(status.summary.eta_s)}"


def show_all(namespace: str | None, json: bool) -> None:
    statuses = []
    try:
        submission.recover()
    except UserError as error:
        diagnostics.print(f"Whether a submission that was cut off has started a job is not known: {error}", markup=False)
    for job_id in (run["job_id"] for run in records.runs()):
        try:
            statuses.append(look(places.of(job_id, namespace), job_id))
        except UserError as error:
            diagnostics.print(f"{job_id}: {error.problem.message}", markup=False)
    if json:
        print_json({"jobs": [as_json(status) for status in statuses]})
        return
    rows = table("job", "stage", "step", "loss", "time", "spent $", "model")
    for status in statuses:
        progress = status.summary.progress
        rows.add_row(
            status.job.job_id,
            status.job.stage,
            f"{progress.step or 0}/{progress.total_steps or '?'}",
            f"{progress.loss:.4f}" if progress.loss is not None else "–",
            duration(status.job.elapsed_s),
            dollars(status.spent_usd or 0),
            escape((status.plan.model_url if status.plan else None) or "–"),
        )
    people.print(rows if statuses else "No job was submitted from this machine yet.")
    if statuses:
        people.print(f"\nSpent in all: {dollars(sum(status.spent_usd or 0 for status in statuses))}")


@app.command(epilog="Exit codes: 0 fine; 1 the job failed; 2 usage; 4 the Hub cannot be reached or says no.")
@ends_clearly
def status(
    job: Annotated[str, typer.Argument(help="the id or address that submit.py printed")] = None,
    all: Annotated[bool, typer.Option("--all", help="every job submitted from this machine")] = False,
    watch_: Annotated[bool, typer.Option("--watch", help="go on until the job ends")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="end the job; what it pushed stays")] = False,
    namespace: Annotated[str, typer.Option(help="owner of the job, where it was submitted elsewhere")] = None,
    json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """How a job is doing: stage, progress, loss, time left, money spent, what went wrong, what to do next.

    Example: status.py 6871f2a0b0c4d5e6f7a8b9c0 --watch
    """
    if all:
        return show_all(namespace, json)
    if job is None:
        raise UserError("no_job", "No job was named.", "Pass a job id, or --all.", USAGE)
    job_id, place = places.id_of(job), places.of(job, namespace)
    if cancel:
        place.cancel(job_id)
    found = watch(place, job_id) if watch_ else look(place, job_id)
    print_json(as_json(found)) if json else people.print(as_table(found))
    if found.job.stage in ("ERROR", "DELETED"):
        raise typer.Exit(FAILED)


if __name__ == "__main__":
    app()
