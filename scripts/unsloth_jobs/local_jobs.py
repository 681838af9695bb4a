"""Jobs on this machine: a process that outlives the command that started it, with a folder of its own.

The folder holds job.json (what to run), state.json (stage and process) and log.txt.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from . import records
from .errors import USAGE, UserError
from .jobs import RUN_VARIABLE, Job, run_facts
from .plan import Plan

PREFIX = "local-"
POLL_S = 0.5


class LocalJobs:
    def submit(self, plan: Plan, estimate: dict[str, Any] | None = None) -> Job:
        uv = os.environ.get("UV") or shutil.which("uv")
        if uv is None:
            raise UserError("no_uv", "uv is not installed, and jobs run through it.", "pip install uv", USAGE)
        job_id = f"{PREFIX}{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        folder = records.folder("jobs") / job_id
        folder.mkdir(mode=0o700)
        for name in ("log.txt", "runner.txt"):
            (folder / name).touch(mode=0o600)
        command = [uv, "run", "--script", plan.script, *plan.arguments]
        records.write(
            folder / "job.json", {"command": command, "cwd": os.getcwd(), "timeout_s": plan.timeout_s, "plan_id": plan.plan_id}
        )
        records.write(folder / "state.json", {"stage": "SCHEDULING", "created": time.time()})
        # The environment is handed on and never written down: it may hold a token.
        package = str(Path(__file__).resolve().parents[1])
        # -B: the skill's folder stays as it was installed.
        with (folder / "runner.txt").open("wb") as errors:
            runner = subprocess.Popen(
                [sys.executable, "-B", "-m", "unsloth_jobs.local_runner", str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=os.environ | {"PYTHONPATH": package, RUN_VARIABLE: run_facts(plan, estimate)},
                **detached(),
            )
        runner.returncode = 0  # it outlives this command, so nobody waits for it: unsaid, Python would warn of that
        return self.inspect(job_id)

    def inspect(self, job_id: str) -> Job:
        folder = self.folder(job_id)
        state, job = records.read(folder / "state.json"), records.read(folder / "job.json") or {}
        if state is None:
            raise UserError("broken_job", f"The folder of {job_id} has no readable state.", f"Look into {folder}.")
        stage, message = state["stage"], state.get("message")
        if stage == "SCHEDULING" and (said := (folder / "runner.txt").read_text(errors="replace").strip()):
            stage, message = "ERROR", f"The job could not be started: {said.splitlines()[-1]}"
        if stage == "RUNNING" and not alive(state):
            stage, message = "ERROR", "The process is gone without an exit status: killed, or the machine restarted."
        return Job(
            job_id,
            stage,
            message,
            str(folder),
            "local",
            moment(state.get("created")),
            moment(state.get("started")),
            moment(state.get("finished")),
            job.get("plan_id"),
        )

    def logs(self, job_id: str, follow: bool = False, tail: int | None = None) -> Iterator[str]:
        path = self.folder(job_id) / "log.txt"
        path.touch()
        with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
            lines = (line.rstrip("\n") for line in file)
            yield from deque(lines, maxlen=tail) if tail is not None else lines
            while follow:
                ended = self.inspect(job_id).ended  # asked before reading, so that the last lines are not missed
                yield from (line.rstrip("\n") for line in file)
                if ended:
                    return
                time.sleep(POLL_S)

    def cancel(self, job_id: str) -> None:
        state = records.read(self.folder(job_id) / "state.json") or {}
        if alive(state):
            psutil.Process(state["pid"]).terminate()

    def find(self, plan: Plan) -> Job | None:
        jobs = [self.inspect(path.name) for path in sorted(records.folder("jobs").glob(PREFIX + "*"), reverse=True)]
        live = ("SCHEDULING", "RUNNING")  # one that is done may be wanted again: it costs nothing
        return next((job for job in jobs if job.plan_id == plan.plan_id and job.stage in live), None)

    def folder(self, job_id: str) -> Path:
        path = records.folder("jobs") / Path(job_id).name
        if not path.is_dir():
            raise UserError("unknown_job", f"There is no job {job_id} on this machine.", "See: status.py --all")
        return path


def alive(state: dict) -> bool:
    """Whether the job's own process is there: after a restart another may have its number."""
    try:
        return abs(psutil.Process(state["pid"]).create_time() - state["process_created"]) < 2
    except (psutil.NoSuchProcess, KeyError):
        return False


def detached() -> dict:
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.DETACHED_PROCESS}
    return {"start_new_session": True}


def moment(timestamp: float | None) -> datetime | None:
    return datetime.fromtimestamp(timestamp, UTC) if timestamp else None
