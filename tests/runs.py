"""Runs of the template for tests that need many: real processes, started in a second each by run_server.py."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from hub import Hub
from hubs import ADA

PATIENCE_S = 600


@dataclass
class Run:
    folder: Path
    process: psutil.Process
    before: int  # characters that earlier runs in this folder had logged
    peers: tuple[psutil.Process, ...] = ()  # the other processes of the run

    @property
    def log(self) -> str:
        return (self.folder / "log.txt").read_text("utf-8")[self.before :]

    @property
    def events(self) -> list[dict]:
        lines = [line for line in self.log.splitlines(keepends=True) if line.endswith("\n")]
        return [json.loads(line.split("EVENT ", 1)[1]) for line in lines if "EVENT {" in line]

    @property
    def code(self) -> int:
        """The exit code, once it has ended by itself."""
        return int(self.log.rsplit("EXIT ", 1)[1])

    def all(self, name: str) -> list[dict]:
        return [event for event in self.events if event["event"] == name]

    def last(self, name: str) -> dict:
        assert self.all(name), f"no event {name} in\n{self.log[-3000:]}"
        return self.all(name)[-1]

    def losses(self) -> dict[int, float]:
        """Training loss by step."""
        return {event["step"]: event["loss"] for event in self.all("progress")}

    def wait(self) -> Run:
        for one in (self.process, *self.peers):
            one.wait(PATIENCE_S)
        return self

    def wait_for(self, name: str, step: int) -> None:
        """Until it has said this of a step."""
        deadline = time.monotonic() + PATIENCE_S
        while not any(event["step"] >= step for event in self.all(name)):
            assert self.process.is_running() and time.monotonic() < deadline, self.log[-3000:]
            time.sleep(0.02)


class Runs:
    """Starts runs, and has the Hub that they push to."""

    def __init__(self, python: str, root: Path, server: str = "run_server.py"):
        self.script, self.root, self.hub = server, root, Hub(root / "hub")
        self.python, self.count = python, 0

    def __enter__(self) -> Runs:
        self.hub.start().add_user("ada", token=ADA)
        self.server = subprocess.Popen(
            [self.python, str(Path(__file__).with_name(self.script))],
            # With more threads than one, OpenMP spins in a forked process.
            env={**os.environ, **self.hub.env(token=ADA), "OMP_NUM_THREADS": "1"},
            cwd=self.root,  # where Unsloth writes what it has rewritten
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stdin.close()
        self.server.wait()
        self.hub.close()

    def start(
        self,
        *arguments: str,
        folder: Path | None = None,
        fault: list | None = None,
        template: str = "sft",
        processes: int = 1,
        **env: str,
    ) -> Run:
        """A run of a template in a new folder, or in that of an earlier one. It saves to FOLDER/out unless told otherwise."""
        self.count += 1
        folder = folder or self.root / f"run-{self.count}"
        folder.mkdir(exist_ok=True)
        (folder / "log.txt").touch()
        before = len((folder / "log.txt").read_text("utf-8"))
        wish = {
            "arguments": ["--save-local", "out", *arguments],
            "folder": str(folder),
            "env": env,
            "fault": fault,
            "template": template,
            "processes": processes,
        }
        print(json.dumps(wish), file=self.server.stdin, flush=True)
        while not (said := self.server.stdout.readline()).replace(" ", "").strip().isdigit():
            assert said, f"{self.script} has ended"
        first, *peers = map(psutil.Process, map(int, said.split()))
        return Run(folder, first, before, tuple(peers))
