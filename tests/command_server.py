"""Starts commands of the skill: each is a process of its own, forked from one that has imported what commands import.

The libraries take half a second to import, those of check.py two more: longer than most commands take. They read variables
then, so there are three generations: this process has imported what reads none; it forks one for each environment, which
imports the rest; and that forks one for each command. Where an environment says where the Hub and the user's files are, it
says NOWHERE, and each command puts its own places instead: what would be overlooked fails.

Run with the number of a socket. On it come environments, as JSON, each with another socket; on that come commands, as JSON
{"script", "words", "cwd", "env", "settings"}, each with four files: stdin, stdout, stderr, and one to which its exit code
is written, and the bytes of memory that it held at most. `env` is laid over the environment; `settings` are values in the
skill's modules: {"lookup.client:PATIENCE_S": 0.3}.
"""

from __future__ import annotations

import functools
import gc
import importlib
import io
import json
import os
import runpy
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any, TextIO

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
NOWHERE = "/dev/null/nowhere"
LIBRARIES = ("huggingface_hub", "datasets", "transformers", "unsloth_jobs")  # whose modules hold places
LONGEST = 1 << 20  # bytes of a message
LIMIT_S = 600  # for a command, before it counts as hanging
FIRST = """
    typer typer._adapters typer._click.decorators argparse encodings.idna html psutil plotille yaml filelock tqdm.auto tty
    rich.console rich.table rich._emoji_codes rich._unicode_data.unicode17-0-0 pydantic.plugin._loader httpx2 httpcore2
    fsspec jinja2 numpy pandas pyarrow.dataset pyarrow.parquet dill multiprocess xxhash regex tokenizers safetensors
"""
THEN = "huggingface_hub.file_download huggingface_hub.utils.tqdm huggingface_hub._buckets"
OF_CHECKS = "datasets transformers transformers.models.auto.tokenization_auto transformers.models.auto.modeling_auto"


def serve() -> None:
    """Fork a process for each environment."""
    control = socket.socket(fileno=int(sys.argv[1]))
    for name in FIRST.split():
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended processes leave nothing behind
    while True:
        message, files, *_ = socket.recv_fds(control, LONGEST, 1)
        if not message:
            return
        with socket.socket(fileno=files[0]) as calls:
            if not os.fork():
                control.close()
                os.environ.clear()
                os.environ.update(json.loads(message))
                serve_environment(calls)
                os._exit(0)


def serve_environment(calls: socket.socket) -> None:
    """Fork a process for each command, and one that waits for its end."""
    sys.path[0] = str(SCRIPTS)
    sys.pycache_prefix = f"{sys.prefix}/pycache"
    for name in (*THEN.split(), *(script.stem for script in SCRIPTS.glob("*.py"))):
        importlib.import_module(name)
    read_certificates_once()
    gc.freeze()  # a collection would touch all that was imported, and copy it for each command
    while True:
        message, files, *_ = socket.recv_fds(calls, LONGEST, 4)
        if not message:
            return
        call = json.loads(message)
        if Path(call["script"]).name in ("check.py", "estimate.py"):
            import_for_checks()
        if not os.fork():
            calls.close()
            wait_for(call, *files)
        for file in files:
            os.close(file)


def read_certificates_once() -> None:
    """This machine's, which each command would read anew: half of the time that a status takes."""
    library = importlib.import_module("httpcore2")
    library.default_ssl_context = functools.cache(library.default_ssl_context)
    library.default_ssl_context(_trust_env=True)


@functools.cache
def import_for_checks() -> None:
    """As check.py and estimate.py do when they come to rows and tokenizers; no variable that they set for that stays."""
    before = dict(os.environ)
    importlib.import_module("unsloth_jobs.template").quiet_libraries()
    for name in OF_CHECKS.split():
        importlib.import_module(name)
    os.environ.clear()
    os.environ.update(before)
    gc.freeze()


def wait_for(call: dict[str, Any], stdin: int, stdout: int, stderr: int, answer: int) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    process = os.fork()
    if not process:
        os.close(answer)
        for number, file in enumerate((stdin, stdout, stderr)):
            os.dup2(file, number)
            os.close(file)
        run(**call)
    for file in (stdin, stdout, stderr):
        os.close(file)
    _, status, used = os.wait4(process, 0)
    os.write(answer, json.dumps([os.waitstatus_to_exitcode(status), used.ru_maxrss << 10]).encode())
    os._exit(0)


def run(script: str, words: list[str], cwd: str, env: dict[str, str], settings: dict[str, Any]) -> None:
    """What `python scripts/SCRIPT WORDS` does, or a copy of it elsewhere; the script ends the process."""
    signal.alarm(LIMIT_S)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdin, sys.stdout, sys.stderr = streams()
    os.chdir(cwd)
    put({os.environ[name]: value for name, value in env.items() if NOWHERE in os.environ.get(name, "")})
    os.environ.update(env)
    for name, value in settings.items():
        module, _, path = name.partition(":")
        *owners, variable = path.split(".")
        owner = functools.reduce(getattr, owners, importlib.import_module(f"unsloth_jobs.{module}"))
        setattr(owner, variable, tuple(value) if isinstance(value, list) else value)
    sys.argv = [str(SCRIPTS / script), *words]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except BaseException:
        traceback.print_exc()
    os._exit(70)  # it should have ended by itself


def put(places: dict[str, str]) -> None:
    """Put a place instead of each NOWHERE that the libraries have read into their modules."""

    def placed(value: Any) -> Any:
        text = str(value)
        for nowhere, place in places.items():
            text = text.replace(nowhere, place)
        return type(value)(text)

    for module in [module for name, module in sys.modules.items() if name.startswith(LIBRARIES)]:
        for name, value in list(vars(module).items()):
            if isinstance(value, str | Path) and NOWHERE in str(value):
                setattr(module, name, placed(value))
    client = sys.modules["huggingface_hub.hf_api"].api  # of the library's own functions
    client.endpoint = placed(client.endpoint)


def streams() -> tuple[TextIO, TextIO, TextIO]:
    """stdin, stdout, stderr as an interpreter makes them at its start: this process's own know other files."""
    return (
        io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False))),
        io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False))),
        io.TextIOWrapper(io.BufferedWriter(io.FileIO(2, "w", closefd=False)), errors="backslashreplace", line_buffering=True),
    )


if __name__ == "__main__":
    serve()
