"""The skill's commands as a user runs them."""

from __future__ import annotations

import functools
import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
UV = str(Path(sys.executable).with_name("uv"))
KEPT = ("PATH", "UV_CACHE_DIR", "UV_PYTHON", "LANG", "OMP_NUM_THREADS")


class Commands:
    """Commands of one user: real processes, with their own environment and working directory.

    fresh: each is started anew. Otherwise it is forked from a process that has imported the libraries (command_server.py):
    ten times as fast, and not to be told apart by what reads neither the process's own arguments nor PYTHON variables.
    settings: values in the skill's modules, such as how long a command waits for a Hub: {"lookup.client.PATIENCE_S": 0.3}.
    """

    def __init__(self, env: dict[str, str], cwd: Path, *, fresh: bool = False, settings: dict[str, Any] | None = None):
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        self.env = kept | {"HOME": str(cwd), "UV": UV, "HF_HUB_DISABLE_TELEMETRY": "1"} | env
        self.cwd, self.fresh, self.settings = cwd, fresh or not hasattr(socket, "SOCK_SEQPACKET"), settings or {}

    def run(self, script: str, *words: str, code: int | None = 0) -> subprocess.CompletedProcess:
        """A script of the skill, in the tests' environment (its header's versions, see test_documents)."""
        done = self.start_anew(script, words) if self.fresh else self.fork(script, words)
        assert code is None or done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def json(self, script: str, *words: str, code: int | None = 0) -> dict:
        """The one JSON object of a command; --json goes before the script's own arguments."""
        at = words.index("--") if "--" in words else len(words)
        return json.loads(self.run(script, *words[:at], "--json", *words[at:], code=code).stdout)

    def start_anew(self, script: str, words: tuple[str, ...]) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / "scripts" / script), *words]
        how = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL}
        return subprocess.run(command, cwd=self.cwd, env=self.env, **how)

    def fork(self, script: str, words: tuple[str, ...]) -> subprocess.CompletedProcess:
        call = {"script": script, "words": words, "cwd": str(self.cwd), "settings": self.settings}
        (out, to_out), (err, to_err), (answer, to_answer) = os.pipe(), os.pipe(), os.pipe()
        nothing = os.open(os.devnull, os.O_RDONLY)
        files = [nothing, to_out, to_err, to_answer]
        socket.send_fds(environment(tuple(sorted(self.env.items()))), [json.dumps(call).encode()], files)
        for file in files:
            os.close(file)
        with ThreadPoolExecutor(3) as readers:
            said, errors, code = readers.map(read, (out, err, answer))
        return subprocess.CompletedProcess([script, *words], int(code), said, errors)


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
