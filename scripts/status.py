# /// script
# requires-python = ">=3.11"
# dependencies = ["huggingface_hub==2.4.0", "typer==0.29.2", "rich==15.0.0", "psutil==7.2.2", "plotille==6.0.5"]
# [tool.uv]
# exclude-newer = "2026-11-20T00:00:00Z"
# ///
"""How a job is doing: stage, progress, loss, time left, money spent, what went wrong, what to do next."""

from __future__ import annotations

import math
import signal
import sys

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C amid the imports leaves no traceback

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

if not sys.dont_write_bytecode:  # the skill's folder stays as it was installed
    sys.pycache_prefix = f"{sys.prefix}/pycache"

from unsloth_jobs.errors import FAILED, USAGE, Problem, UserError
from unsloth_jobs.jobs import records, submission
from unsloth_jobs.jobs.approval import require_amount
from unsloth_jobs.jobs.backends import JobRef, find_job
from unsloth_jobs.jobs.group import PREFIX
from unsloth_jobs.jobs.plan import SCRIPTS
from unsloth_jobs.output import (
    application,
    diagnostics,
    dollars,
    duration,
    ends_clearly,
    people,
    print_json,
    run,
    show_problem,
    table,
)
from unsloth_jobs.status.group import GroupStatus, fetch_group, folded_json, group_json, groups_among, remember_group
from unsloth_jobs.status.group_view import as_lines, folded_cells, next_of
from unsloth_jobs.status.group_watch import GroupWatchInterrupted, cancel_group, see_to, watch_group
from unsloth_jobs.status.notify import message_of, message_of_group, notify, require_target
from unsloth_jobs.status.picture import draw
from unsloth_jobs.status.status import Status, as_json, fetch_or_recall, fetch_status, remember, set_aside
from unsloth_jobs.status.view import as_table, estimated_usd
from unsloth_jobs.status.watch import END_WITHIN_S, EVERY_S, WatchInterrupted, end_job, watch

app = application("How a job is doing.")
AT_ONCE = 8  # jobs that --all asks about
NAMED = 5  # jobs of which the same warning is shown in full
NARROW = 80  # columns, under which a table would cut ids
LEFT = 130  # exit code after Ctrl-C, as of any program


@app.command(epilog="Exit codes: 0 fine; 1 the job failed; 2 usage; 4 the Hub cannot be reached or says no; 130 Ctrl-C.")
@ends_clearly
def status(
    job: Annotated[
        str | None, typer.Argument(help="the id or address that submit.py printed, of a job or of a comparison")
    ] = None,
    all: Annotated[bool, typer.Option("--all", help="every job submitted from this machine, and what each cost")] = False,
    watch_: Annotated[bool, typer.Option("--watch", help="go on until the job ends; Ctrl-C leaves it running")] = False,
    interval: Annotated[
        float | None,
        typer.Option(min=0.1, metavar="SECONDS", help="between two updates of --watch (default: 10; 1 on this machine)"),
    ] = None,
    max_usd: Annotated[
        float | None, typer.Option(min=0, metavar="USD", help="with --watch: cancel the job before it has cost more")
    ] = None,
    notify_: Annotated[
        str | None,
        typer.Option(
            "--notify",
            metavar="COMMAND_OR_URL",
            help="with --watch: run or post to this once the job, or all of a comparison, has ended",
        ),
    ] = None,
    cancel: Annotated[bool, typer.Option("--cancel", help="end the job; what it pushed stays")] = False,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="the curves of a comparison as .svg, .png or .pdf")
    ] = None,
    namespace: Annotated[str | None, typer.Option(help="owner of the job, where it was submitted elsewhere")] = None,
    json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """How a job is doing: stage, progress, loss, time left, money spent, what went wrong, what to do next.

    Spent is the time since the job's machine started, at the price of its submission; waiting for one is free.

    --watch --max-usd N cancels the job right after the last checkpoint that it can push before it has cost N, or at N
    if it has pushed none; a run that will end before N is left alone. That holds only while this command runs: the
    ceiling that needs no watcher is the job's own --timeout.

    --notify runs a command (the message is its last argument, and JOB_TEXT, JOB_ID, JOB_STAGE in its environment) or
    posts to a webhook, once, whether the job is done or has failed; of a comparison once, with its winner.

    Example: status.py 6871f2a0b0c4d5e6f7a8b9c0 --watch --max-usd 2
    """
    if all:
        return show_all(json)
    if job is None:
        raise UserError("no_job", "No job was named.", "Pass a job id, or --all.", USAGE)
    look = Look(watch_, interval, max_usd, notify_, json)
    require_sound(look)
    if job.startswith(PREFIX):
        return show_group(job, namespace, look, cancel, picture)
    if picture:
        raise UserError("no_group", f"{job} is no comparison.", "Its own curves: dashboard_url, and loss.png beside it.", USAGE)
    show_job(find_job(job, namespace), look, cancel)


@dataclass(frozen=True)
class Look:
    """The options that jobs and comparisons share: --watch, --interval, --max-usd, --notify, --json."""

    watched: bool
    interval: float | None
    max_usd: float | None
    notify: str | None
    json: bool

    def every(self, where: str) -> float:
        """Seconds between two updates."""
        return self.interval or EVERY_S[where]

    def tell(self, job_id: str, stage: str, text: str, **more: str) -> None:
        if not self.notify:
            return
        if problem := notify(self.notify, text, {"job_id": job_id, "job_stage": stage} | more):
            show_problem(problem)

    @contextmanager
    def telling(self, what: str, job_id: str) -> Iterator[None]:
        """Tells, too, that nobody looks any more."""
        try:
            yield
        except UserError as error:
            self.tell(job_id, "UNKNOWN", f"{what} {job_id} is no longer watched: {error.problem.message}")
            raise


def require_sound(look: Look) -> None:
    """Raises UserError."""
    if look.max_usd is not None and not look.watched:
        raise UserError(
            "no_watch", "Only --watch can end a job at --max-usd.", "Add --watch, or --cancel to end it now.", USAGE
        )
    require_amount(look.max_usd)
    if look.notify is not None and not look.watched:
        raise UserError("no_watch", "Only --watch sees the job end.", "Add --watch to --notify.", USAGE)
    if look.notify is not None:
        require_target(look.notify)
    if look.interval is not None and not math.isfinite(look.interval):
        fix = "Pass seconds, such as --interval 10."
        raise UserError("bad_interval", f"--interval must be above 0, not {look.interval}.", fix, USAGE)


def show_job(ref: JobRef, look: Look, cancel: bool) -> None:
    if cancel and (before := ref.inspect()).ended:
        diagnostics.print(f"Nothing to cancel: {ref.job_id} has ended already ({before.stage}).", markup=False)
    elif cancel:
        end_job(ref, END_WITHIN_S)
    every = look.every("local" if ref.job_id.startswith("local-") else "hf")
    try:
        with look.telling("Job", ref.job_id):
            found = watch(ref, every, look.max_usd) if look.watched else fetch_status(ref)
    except WatchInterrupted as left:
        leave(left.status, look)
        raise typer.Exit(LEFT) from left
    remember(found)
    look.tell(ref.job_id, found.job.stage, message_of(found))
    print_job(found, look.json)
    if found.job.stage in ("ERROR", "DELETED"):
        raise typer.Exit(FAILED)


def show_group(group_id: str, namespace: str | None, look: Look, cancel: bool, picture: Path | None) -> None:
    """A comparison: its runs, seen to as its plan says, and at the end the best of them."""
    recover()
    found = fetch_group(group_id, namespace)
    if cancel:
        cancel_group(found)
        found = fetch_group(group_id, namespace)
    try:
        with look.telling("Comparison", group_id):
            if look.watched:
                found = watch_group(found, look.every(found.group.where if found.group else "hf"), look.max_usd)
            elif not cancel:
                found = see_to(found)
    except GroupWatchInterrupted as left:
        print_group(left.status, look.json)
        diagnostics.print("\nThe runs go on; none is ended or started until you look again.", markup=False)
        raise typer.Exit(LEFT) from left
    remember_group(found)
    winner = found.verdict.winner if found.verdict else None
    look.tell(group_id, found.stage, message_of_group(found), **({"job_winner": winner} if winner else {}))
    if picture:
        draw(found, picture)
    print_group(found, look.json)
    if any(run.stage in ("ERROR", "DELETED") for run in found.runs):
        raise typer.Exit(FAILED)


def print_job(found: Status, json: bool) -> None:
    print_json(as_json(found)) if json else people.print(as_table(found))


def print_group(found: GroupStatus, json: bool) -> None:
    print_json(group_json(found, next_of(found))) if json else people.print(as_lines(found))


def recover() -> None:
    try:
        submission.recover()
    except UserError as error:
        diagnostics.print(f"It is not known whether an interrupted submission has started a job: {error}", markup=False)


def leave(status: Status, look: Look) -> None:
    print_job(status, look.json)
    command = f"uv run {SCRIPTS / 'status.py'} {status.job.job_id}"
    unguarded = f", and no longer ends at ${look.max_usd:g}" if look.max_usd is not None else ""
    message = f"\nThe job goes on{unguarded}. To look again: {command} --watch\nTo end it: {command} --cancel"
    diagnostics.print(message, markup=False, soft_wrap=True)


def show_all(json: bool) -> None:
    recover()
    refs = [find_job(run["job_id"], run=run) for run in records.runs()]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        statuses = list(pool.map(fetch_or_recall, refs))
    for status in statuses:
        remember(status)
    damaged = records.damaged()
    spent = round(sum(status.spent_usd or 0 for status in statuses), 4)
    if json:
        listed = [as_json(status) for status in statuses]
        groups = [folded_json(one) for one in groups_among(statuses)]
        print_json({"jobs": listed, "groups": groups, "spent_usd": spent, "damaged": [str(path) for path in damaged]})
        return
    if not statuses:
        people.print("No job was submitted from this machine yet.")
    else:
        list_jobs(statuses, spent)
    for path in damaged:
        show_problem(set_aside(path))


def list_jobs(statuses: list[Status], spent: float) -> None:
    """A table of jobs; where it does not fit, a line for each, since an id that is cut names nothing."""
    rows = table("job", "stage", "step", "loss", "time", "spent $", "estimated $", "model")
    rows.columns[0].no_wrap = True
    groups = groups_among(statuses)
    compared = {run.status.job.job_id for group in groups for run in group.runs if run.status}
    lines = [line for group in groups for line in folded_cells(group)]
    lines += [cells(status) for status in statuses if status.job.job_id not in compared]
    for line in lines:
        rows.add_row(*map(escape, line))
    if people.width >= NARROW:
        people.print(rows)
    else:
        for line in lines:
            people.print(" ".join(line[:3]), markup=False, soft_wrap=True)
    people.print(f"\nSpent in all: {dollars(spent)}")
    warned = [(status.job.job_id, warning) for status in statuses for warning in status.warnings]
    for code in dict.fromkeys(warning.code for _, warning in warned):
        alike = [(job, warning) for job, warning in warned if warning.code == code]
        for job, warning in alike if len(alike) <= NAMED else alike[:1]:
            more = f" And {len(alike) - 1} more jobs: see status.py JOB for each." if len(alike) > NAMED else ""
            show_problem(Problem(code, warning.severity, f"{job}: {warning.message}{more}", warning.fix))


def cells(status: Status) -> list[str]:
    progress, foreseen = status.summary.progress, estimated_usd(status)
    return [
        status.job.job_id,
        status.job.stage,
        f"{progress.step or 0}/{progress.total_steps or '?'}",
        f"{progress.loss:.4f}" if progress.loss is not None else "–",
        duration(status.job.elapsed_s),
        dollars(status.spent_usd or 0),
        "{} to {}".format(*map(dollars, foreseen)) if foreseen else "–",
        (status.plan.model_url if status.plan else None) or "–",
    ]


if __name__ == "__main__":
    run(app)
