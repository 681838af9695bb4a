"""The skill's commands as a user runs them."""

from __future__ import annotations

import functools
import json
import os
import shlex
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

NOWHERE = "/dev/null/nowhere"
ROOT = Path(__file__).resolve().parents[1]
UV = str(Path(sys.executable).with_name("uv"))
KEPT = ("PATH", "UV_CACHE_DIR", "UV_PYTHON", "LANG", "OMP_NUM_THREADS")


# Where the Hub and a user's files are: in the process that commands are forked from, nowhere.
PLACES = {"HF_ENDPOINT", "HF_DATASETS_SERVER", "HF_HOME", "HF_XET_CACHE", "HOME"}
# What no library looks at while it is imported, so that one process is forked for all of its values.
LATE = {"HF_TOKEN", "PATH", "PWD", "OLDPWD", "SHLVL", "_", "USERPROFILE"}
LONGEST = 1 << 20  # bytes of a message
FORKING = threading.Lock()
# How long commands wait for a Hub that says no, or that may still start a job: settings for tests that need it to be short.
HASTY = {
    "lookup.client:PATIENCE_S": 0.3,
    "lookup.client:FIRST_PAUSE_S": 0.05,
    "jobs.submission:SEARCH_AFTER_S": [0.0, 0.1, 0.3],
}


class Said(subprocess.CompletedProcess):
    """What a command said: its exit code, stdout, stderr; and the bytes of memory that it held at most."""

    held: int | None = None

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.stdout)

    @property
    def problem(self) -> str | None:
        """The code of the first error under --json; None where there is none."""
        problems = json.loads(self.stdout.splitlines()[-1]).get("problems") or [] if self.stdout.strip() else []
        assert all(one["message"] and one["fix"] for one in problems)
        return next((one["code"] for one in problems if one["severity"] == "error"), None)


class Commands:
    """Commands of one user: real processes, with their own environment and working directory.

    fresh: each is started anew. Otherwise it is forked from a process that has imported the libraries (command_server.py):
    several times as fast, and the same but for what reads the process's own arguments or Python's own variables.
    settings: values in the skill's modules, such as HASTY; without `fresh` alone.
    """

    def __init__(self, env: dict[str, str], cwd: Path, *, fresh: bool = False, settings: dict[str, Any] | None = None):
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        self.env = kept | {"HOME": str(cwd), "UV": UV, "HF_HUB_DISABLE_TELEMETRY": "1"} | env
        self.cwd, self.fresh, self.settings = cwd, fresh or sys.platform != "linux", settings or {}

    def run(self, script: str, *words: str, code: int | None = 0) -> Said:
        """A script of the skill, in the tests' environment (its header's versions, see test_documents)."""
        said = (self.start if self.fresh else self.fork)(script, words)
        assert code is None or said.returncode == code, f"exit code {said.returncode}\n{said.stdout}\n{said.stderr}"
        assert "Traceback" not in said.stderr, said.stderr
        return said

    def json(self, script: str, *words: str, code: int | None = 0) -> dict:
        """The one JSON object of a command."""
        return self.run(script, *with_json(words), code=code).json

    def start(self, script: str, words: tuple[str, ...]) -> Said:
        command = [sys.executable, str(ROOT / "scripts" / script), *words]
        how: dict[str, Any] = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL}
        done = subprocess.run(command, cwd=self.cwd, env=self.env, **how)
        return Said(command, done.returncode, done.stdout, done.stderr)

    def fork(self, script: str, words: tuple[str, ...]) -> Said:
        (out, to_out), (err, to_err) = os.pipe(), os.pipe()
        nothing = os.open(os.devnull, os.O_RDONLY)
        call = {"script": script, "words": words, "cwd": str(self.cwd), "settings": self.settings}
        answer = fork(call, self.env, [nothing, to_out, to_err])
        with ThreadPoolExecutor(3) as readers:
            said, errors, end = readers.map(read, (out, err, answer))
        code, held = json.loads(end)
        made = Said([script, *words], code, said, errors)
        made.held = held
        return made


class Interpreter:
    """A file that runs `SCRIPT WORDS` as Python does, but for the skill's commands, which it has forked.

    For who starts commands by a program's name, such as an assistant: in whatever environment and folder that is.
    """

    def __init__(self, folder: Path):
        self.path, place = folder / "python", folder / "socket"
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(place))
        self.listener.listen()
        client = [sys.executable, "-E", "-S", str(Path(__file__).with_name("forked_python.py")), str(place)]
        self.path.write_text(f'#!/bin/sh\nexec {shlex.join(client)} "$@"\n')
        self.path.chmod(0o755)
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            asked, _ = self.listener.accept()
            threading.Thread(target=self.answer, args=(asked,), daemon=True).start()

    def answer(self, asked: socket.socket) -> None:
        with asked:
            message, files, *_ = socket.recv_fds(asked, LONGEST, 3)
            call = json.loads(message)
            code, _ = json.loads(read(fork(call | {"settings": {}}, call["env"], files)))
            asked.send(str(code).encode())


def fork(call: dict[str, Any], env: dict[str, str], files: list[int]) -> int:
    """Start a command with these as stdin, stdout and stderr: the file to which its exit code and its memory are written."""
    answer, to_answer = os.pipe()
    late = {name: value for name, value in env.items() if name in PLACES | LATE}
    shared = {name: value for name, value in env.items() if name not in LATE and not name.startswith("PYTEST_")}
    shared |= {name: nowhere(name, env[name]) for name in PLACES & env.keys()}
    with FORKING:
        starter = environment(tuple(sorted(shared.items())))
        socket.send_fds(starter, [json.dumps(call | {"env": late}).encode()], [*files, to_answer])
    for file in (*files, to_answer):
        os.close(file)
    return answer


def nowhere(name: str, place: str) -> str:
    """A place that cannot be, for a variable; of an address, on the same host."""
    address = urlsplit(place)
    return f"{address.scheme}://{address.hostname}{NOWHERE}-{name}" if address.scheme else f"{NOWHERE}-{name}"


def with_json(words: tuple[str, ...] | list[str]) -> list[str]:
    """--json goes before the script's own arguments."""
    at = words.index("--") if "--" in words else len(words)
    return [*words[:at], "--json", *words[at:]]


def read(pipe: int) -> str:
    with open(pipe, encoding="utf-8", errors="strict") as file:
        return file.read()


@functools.lru_cache(maxsize=8)
def environment(env: tuple[tuple[str, str], ...]) -> socket.socket:
    """The socket of a process that starts commands in this environment; it ends when the socket is closed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        socket.send_fds(server(), [json.dumps(dict(env)).encode()], [theirs.fileno()])
    return ours


@functools.cache
def server() -> socket.socket:
    """The socket of command_server.py, which ends with this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, str(Path(__file__).with_name("command_server.py")), str(theirs.fileno())]
        subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return ours
