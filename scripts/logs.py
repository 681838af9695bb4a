# /// script
# requires-python = ">=3.11"
# dependencies = ["huggingface_hub==2.4.0", "typer==0.29.2", "rich==15.0.0", "psutil==7.2.2"]
# [tool.uv]
# exclude-newer = "2026-11-20T00:00:00Z"
# ///
"""Print a job's log, with secrets removed."""

from __future__ import annotations

from typing import Annotated

import typer
from unsloth_jobs import events, places
from unsloth_jobs.output import application, ends_clearly, print_json, visible

app = application("Print a job's log, with secrets removed.")


@app.command(epilog="Exit codes: 0 printed; 1 no such job; 2 usage; 4 the Hub cannot be reached or says no.")
@ends_clearly
def logs(
    job: Annotated[str, typer.Argument(help="the id or address that submit.py printed")],
    follow: Annotated[bool, typer.Option("--follow", help="go on until the job ends")] = False,
    tail: Annotated[int | None, typer.Option(min=1, help="only the last N lines")] = None,
    namespace: Annotated[str | None, typer.Option(help="owner of the job, where it was submitted elsewhere")] = None,
    json: Annotated[bool, typer.Option("--json", help='a JSON object per line: {"line", "event"}')] = False,
) -> None:
    """Print a job's log, with secrets removed.

    Example: logs.py 6871f2a0b0c4d5e6f7a8b9c0 --tail 50
    """
    for line in places.of(job, namespace).logs(places.id_of(job), follow=follow, tail=tail):
        text = events.clean(line)
        if json:
            print_json({"line": text, "event": events.parse(text)})
        else:
            print(visible(text), flush=True)


if __name__ == "__main__":
    app()
