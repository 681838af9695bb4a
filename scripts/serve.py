# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "huggingface_hub==2.4.0", "typer==0.29.2", "rich==15.0.0", "psutil==7.2.2", "plotille==6.0.5", "openpyxl==3.1.5", "httpx2==2.16.2", "openai==3.56.0"
# ]
# [tool.uv]
# exclude-newer = "2026-11-20T00:00:00Z"
# ///
"""Serve a tuned model and its base side by side: a chat in the browser or the terminal, and an OpenAI-compatible API."""

from __future__ import annotations

import signal
import sys

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C amid the imports leaves no traceback

import shlex
import threading
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

if not sys.dont_write_bytecode:  # the skill's folder stays as it was installed
    sys.pycache_prefix = f"{sys.prefix}/pycache"

from unsloth_jobs.chat.address import is_local, look_once, token_for, wait_until_ready
from unsloth_jobs.chat.door import Door
from unsloth_jobs.chat.named import find_model, find_serving_job
from unsloth_jobs.errors import USAGE, UserError
from unsloth_jobs.jobs import planning, starting
from unsloth_jobs.jobs.backends import JobRef, find_job
from unsloth_jobs.jobs.plan import SCRIPTS
from unsloth_jobs.jobs.starting import Approval
from unsloth_jobs.lookup import client
from unsloth_jobs.output import application, diagnostics, dollars, ends_clearly, people, print_json, run
from unsloth_jobs.status.served import ServingState
from unsloth_jobs.status.status import Status, fetch_status

app = application("Serve a tuned model and its base side by side.")
TEMPLATE = SCRIPTS.parent / "templates" / "serving.py"
DOOR_LOOKS_EVERY_S = 10


@app.command(
    epilog="Exit codes: 0 it answers; 1 it does not, or not any more; 2 usage; 3 not approved, or over --max-usd; 4 the Hub says no."
)
@ends_clearly
def serve(
    model: Annotated[
        str,
        typer.Argument(
            help="adapter or whole model (Hub id, folder, GGUF file), the job or comparison that made it, or a job that serves"
        ),
    ],
    where: Annotated[str, typer.Option(help="hf: Hugging Face Jobs; local: this machine, free")] = "hf",
    flavor: Annotated[str | None, typer.Option(help="machine to rent (default: the cheapest that holds the model)")] = None,
    timeout: Annotated[str | None, typer.Option(help="end it after 30m, 2h (default: 30m; 12h on this machine)")] = None,
    idle: Annotated[float, typer.Option(min=0.1, help="minutes after which it ends itself if nobody asks")] = 10,
    max_usd: Annotated[float | None, typer.Option(help="refuse a plan that can cost more")] = None,
    base_model: Annotated[
        str, typer.Option(help="model to compare it with (default: the one that it was made from; none: tuned alone)")
    ] = "",
    engine: Annotated[str, typer.Option(help="auto, vllm, transformers or llama.cpp")] = "auto",
    chat: Annotated[bool, typer.Option("--chat", help="chat in this terminal once it answers")] = False,
    page: Annotated[
        bool, typer.Option("--page", help="open the page of a job on this machine, also without a terminal")
    ] = False,
    save: Annotated[Path, typer.Option(help="where /save puts what was said in --chat")] = Path("corrections.jsonl"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="of this machine, for the page or --where local (0: any)")] = 0,
    host: Annotated[
        str, typer.Option(help="with --where local: address to listen on; others than this machine then reach it")
    ] = "",
    wait: Annotated[
        bool | None, typer.Option("--wait/--no-wait", help="until it answers (default: at a terminal, and with --where local)")
    ] = None,
    namespace: Annotated[str | None, typer.Option(help="user or organisation that pays")] = None,
    approve: Annotated[str | None, typer.Option(metavar="PLAN_ID", help="start exactly the plan that has this id")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="start without asking; on hf it needs --max-usd")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="show the arguments, commits and hashes of the plan, too")] = False,
    json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Serve a tuned model and its base, under the names tuned and base, until the timeout or until nobody asks any more.

    On Hugging Face Jobs it is planned and approved first, as a training is; who asks there needs a token that may read the
    job. With --where local it is free, and only this machine reaches it. A job's id as MODEL: of a training, to serve what it
    made; of one that serves, to use it. A comparison's id: to serve its winner.

    Example: serve.py you/lfm-finetuned --max-usd 1
    """
    how = Approval(approve, yes or where == "local", max_usd, json, verbose)
    if chat and json:
        raise UserError("bad_arguments", "--chat is for a person at a terminal.", "Leave --json out.", USAGE)
    if wait is False and (chat or page):
        raise UserError("bad_arguments", "--chat and --page wait until the model answers.", "Leave --no-wait out.", USAGE)
    ref = find_serving_job(model, namespace)
    if ref is None:
        starting.require_place(where, how)
        name = find_model(model, namespace)
        words = [f"--model={name}", f"--idle={idle:g}", f"--port={port}"]
        words += [
            f"--{flag}={value}" for flag, value in (("base-model", base_model), ("engine", engine), ("host", host)) if value
        ]
        api = client.connect()
        request = planning.RunRequest(TEMPLATE, words, where, flavor, timeout, namespace)
        _, job, existed = starting.start_approved(api, planning.prepare(api, request), how)
        ref = find_job(job.job_id, namespace)
        if not json:
            people.print(f"\n{'Serves already' if existed else '[green]Started[/]'}: {job.job_id}")
    at_terminal = sys.stdin.isatty() and not json
    if wait is None:
        wait = at_terminal or chat or page or is_local(ref)
    look = wait_until_ready if wait else look_once
    status = look(ref, lambda phase: diagnostics.print(f"… {phase}", markup=False))
    report(status, is_local(ref), json)
    if chat:
        talk(ref, status, save)
    elif page or (wait and at_terminal and not is_local(ref)):
        keep_page(ref, status, port)


def report(status: Status, here: bool, json: bool) -> None:
    job, plan, served = status.job, status.plan, status.served
    ends_at = served.ends_at if served else None
    if json:
        print_json(
            {
                "job_id": job.job_id,
                "url": served.address if served else None,
                "models": list(served.models) if served else [],
                "ends_at": datetime.fromtimestamp(ends_at, UTC).isoformat(timespec="seconds") if ends_at else None,
                "max_usd": plan.max_usd if plan else None,
                "job_url": job.url,
                "stage": job.stage,
                "approved": True,
                "plan_id": job.plan_id,
                "serving": served.as_json() if served else None,
                "warnings": [asdict(warning) for warning in status.warnings],
                "next": status.next,
            }
        )
        return
    if not (served and served.is_ready and served.address):
        people.print(
            f"{escape(status.next)}\nIts address, once it answers: uv run {SCRIPTS / 'serve.py'} {job.job_id}", soft_wrap=True
        )
        return
    people.print(f"\n[green]It answers[/]: {escape(served.address)}", soft_wrap=True)
    most = f", at most {dollars(plan.max_usd)}" if plan and plan.max_usd else ""
    people.print(
        f"It ends {served.left}{most}. To end it: uv run {SCRIPTS / 'status.py'} {job.job_id} --cancel", soft_wrap=True
    )
    for line in examples(served, here):
        people.print(escape(line), soft_wrap=True)


def examples(served: ServingState, here: bool) -> list[str]:
    """How to ask it from elsewhere: in a shell, and in Python."""
    body = '{"model": "tuned", "messages": [{"role": "user", "content": "Hello"}]}'
    words = ["curl", f"{served.address}/v1/chat/completions", "-H", "Content-Type: application/json"]
    token = "" if here else ' -H "Authorization: Bearer $HF_TOKEN"'
    key = '"none"' if here else "huggingface_hub.get_token()"
    return [
        "",
        f"{shlex.join(words)}{token} -d {shlex.quote(body)}",
        "",
        "import openai" + ("" if here else ", huggingface_hub"),
        f'client = openai.OpenAI(base_url="{served.address}/v1", api_key={key})',
        'print(client.chat.completions.create(model="tuned", messages=[{"role": "user", "content": "Hello"}]).choices[0].message.content)',
    ]


def talk(ref: JobRef, status: Status, save: Path) -> None:
    import openai
    from unsloth_jobs.chat.conversation import Conversation
    from unsloth_jobs.chat.terminal import TerminalChat

    assert status.served and status.served.address
    asked = openai.OpenAI(
        base_url=f"{status.served.address}/v1",
        api_key=token_for(ref) or "none",
        max_retries=1,
        http_client=openai.DefaultHttpxClient(timeout=600, trust_env=not is_local(ref)),
    )
    models = status.served.models
    TerminalChat(Conversation(asked, models), save, models).run()


def keep_page(ref: JobRef, status: Status, port: int) -> None:
    """The job's page on this machine, until Ctrl-C or the job's end."""
    assert status.served and status.served.address
    try:
        door = Door(ref, status.served.address, port)
    except OSError as error:
        raise UserError(
            "port_in_use", f"Port {port} cannot be listened on: {error.strerror}.", "Pass --port 0: any free one."
        ) from error
    threading.Thread(target=door.serve_forever, daemon=True).start()
    people.print(f"\nIn a browser: {door.url}\nUntil Ctrl-C here, which leaves the job running.", soft_wrap=True)
    while not (now := fetch_status(ref, status)).job.ended:
        time.sleep(DOOR_LOOKS_EVERY_S)
    people.print(f"\n{escape(now.next)}", soft_wrap=True)


if __name__ == "__main__":
    run(app)
