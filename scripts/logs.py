# /// script
# requires-python = ">=3.11"
# dependencies = ["huggingface_hub==2.4.0", "typer==0.29.2", "rich==15.0.0", "psutil==7.2.2"]
# [tool.uv]
# exclude-newer = "2026-11-20T00:00:00Z"
# ///
"""Print a job's log, with secrets removed, and what a failed job failed of."""

from __future__ import annotations

import signal
import sys

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C amid the imports leaves no traceback

import contextlib
from typing import Annotated

import typer
from rich.markup import escape

if not sys.dont_write_bytecode:  # the skill's folder stays as it was installed
    sys.pycache_prefix = f"{sys.prefix}/pycache"

from unsloth_jobs.errors import UserError
from unsloth_jobs.events import TAIL, clean, parse, summarise
from unsloth_jobs.jobs.backends import JobRef, find_job
from unsloth_jobs.output import application, diagnostics, ends_clearly, print_json, run
from unsloth_jobs.status.diagnosis import diagnose

app = application("Print a job's log, with secrets removed, and what a failed job failed of.")


@app.command(epilog="Exit codes: 0 printed; 1 no such job; 2 usage; 4 the Hub cannot be reached or says no.")
@ends_clearly
def logs(
    job: Annotated[str, typer.Argument(help="the id or address that submit.py printed")],
    follow: Annotated[bool, typer.Option("--follow", help="go on until the job ends")] = False,
    tail: Annotated[int | None, typer.Option(min=1, help="only the last N lines")] = None,
    namespace: Annotated[str | None, typer.Option(help="owner of the job, where it was submitted elsewhere")] = None,
    json: Annotated[bool, typer.Option("--json", help='a JSON object per line: {"line", "event"}')] = False,
) -> None:
    """Print a job's log, with secrets removed. The cause of a failure follows on stderr.

    Example: logs.py 6871f2a0b0c4d5e6f7a8b9c0 --tail 50
    """
    ref = find_job(job, namespace)
    for line in ref.backend.logs(ref.job_id, follow=follow, tail=tail):
        text = clean(line)
        if json:
            print_json({"line": text, "event": parse(text)})
        else:
            print(text, flush=True)
    with contextlib.suppress(UserError):  # the log is what was asked for, and it is there
        name_cause(ref)


def name_cause(ref: JobRef) -> None:
    if not (job := ref.inspect()).ended:  # whose log is at its end only when nothing has come for 5 s
        return
    log = summarise(ref.backend.logs(ref.job_id, tail=TAIL))
    if (found := diagnose(job, log, ref.plan)) is None:
        return
    diagnostics.print(f"\n[red]cause[/] [bold]{found.code}[/]: {escape(found.message)}", soft_wrap=True)
    if "logs.py" not in found.command:  # this very command
        diagnostics.print(f"  → {escape(found.fix)}\n  {escape(found.command)}", soft_wrap=True)
    elif found.code != "unknown":
        diagnostics.print(f"  → {escape(found.fix)}", soft_wrap=True)


if __name__ == "__main__":
    run(app)
