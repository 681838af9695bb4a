"""Jobs on this machine: a process that outlives the command that started it, with a folder of its own.

The folder holds job.json (what to run), state.json (stage and process) and log.txt.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from . import records, upload
from .errors import USAGE, UserError
from .jobs import RUN_VARIABLE, Job, run_facts
from .plan import Plan
from .redaction import redact

PREFIX = "local-"
POLL_S = 0.5
STARTED_WITHIN_S = 60  # by then a runner has noted that it runs


class LocalJobs:
    def prepare(self, plan: Plan, estimate: dict[str, Any] | None = None) -> Callable[[], Job]:
        uv = os.environ.get("UV") or shutil.which("uv")
        if uv is None:
            raise UserError("no_uv", "uv is not installed, and jobs run through it.", "pip install uv", USAGE)
        self.require_own_folder(plan)
        upload.require_unchanged(plan)
        return functools.partial(self.submit, uv, plan, estimate)

    def claim(self, plan: Plan) -> bool:
        return True  # the lock of this machine is enough

    def release(self, plan: Plan) -> None:
        """There is nothing to take back."""

    def submit(self, uv: str, plan: Plan, estimate: dict[str, Any] | None) -> Job:
        job_id = f"{PREFIX}{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        folder = records.folder("jobs") / job_id
        command = [uv, "run", "--script", plan.script, *plan.arguments]
        job = {"command": command, "cwd": os.getcwd(), "timeout_s": plan.timeout_s, "plan_id": plan.plan_id}
        try:
            records.write(folder / "job.json", job | {"output_dir": plan.output_dir})
            for name in ("log.txt", "runner.txt"):
                (folder / name).touch(mode=0o600)
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
        except BaseException:  # Ctrl-C, too: what never starts must not look as if it were about to
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return self.inspect(job_id)

    def require_own_folder(self, plan: Plan) -> None:
        """Raises UserError where a job that is not over writes to the same folder: they would overwrite each other."""
        for job_id in self.job_ids():
            output = (records.read(self.folder(job_id) / "job.json") or {}).get("output_dir")
            if output and output == plan.output_dir and not self.inspect(job_id).ended:
                raise UserError(
                    "folder_in_use",
                    f"{job_id} is not over and writes to {output}, too.",
                    f"Wait for it, end it (status.py {job_id} --cancel), or pass --save-local OTHER after `--`.",
                    USAGE,
                )

    def job_ids(self) -> list[str]:
        """Every job on this machine, newest first."""
        return sorted((path.name for path in records.folder("jobs").glob(PREFIX + "*")), reverse=True)

    def inspect(self, job_id: str) -> Job:
        folder = self.folder(job_id)
        state, job = records.read(folder / "state.json"), records.read(folder / "job.json") or {}
        if state and state["stage"] == "RUNNING" and not alive(state):
            state = records.read(folder / "state.json")  # a runner that is done notes it before it is gone
        stage, message = stage_of(state, folder)
        state = state or {}
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
        if not path.exists():
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
        folder = self.folder(job_id)
        state = records.read(folder / "state.json") or {}
        if alive(state):
            runner = psutil.Process(state["pid"])
            runner.terminate()
            if runner.status() == psutil.STATUS_STOPPED:
                raise UserError(
                    "runner_stopped",
                    f"{job_id} still runs: process {runner.pid}, which would end it, is stopped itself.",
                    f"Let it go on, and it ends the job: kill -CONT {runner.pid}",
                )
        elif alive(state.get("child", {})):  # nobody is left to end it or to note that it was
            child = psutil.Process(state["child"]["pid"])
            for process in [*child.children(recursive=True), child]:
                process.terminate()
            records.write(folder / "state.json", state | {"stage": "CANCELED", "message": "Canceled", "finished": time.time()})

    def find(self, plan: Plan) -> Job | None:
        """A job of this plan that is waiting or running; one that is done may be wanted again: it costs nothing."""
        jobs = (self.inspect(job_id) for job_id in self.job_ids())
        return next((job for job in jobs if job.plan_id == plan.plan_id and not job.ended), None)

    def folder(self, job_id: str) -> Path:
        path = records.folder("jobs") / Path(job_id).name
        if not path.is_dir():
            raise UserError("unknown_job", f"There is no job {job_id} on this machine.", "See: status.py --all")
        return path


def stage_of(state: dict | None, folder: Path) -> tuple[str, str | None]:
    """A job's stage and message: what its runner noted, as far as that can still be so."""
    if state is None:
        return "ERROR", f"{folder} has no readable state: the disk was full, or the machine went down."
    stage, message = state["stage"], state.get("message")
    if stage == "SCHEDULING":
        if said := said_by_runner(folder):
            return "ERROR", f"The job could not be started: {said}"
        if time.time() - state["created"] > STARTED_WITHIN_S:
            return "ERROR", "The job was never started: the command that submitted it was killed."
    if stage == "RUNNING" and not alive(state):
        if alive(state.get("child", {})):
            return "RUNNING", f"Its timeout is no longer kept; process {state['child']['pid']} goes on without it."
        said = said_by_runner(folder)
        return "ERROR", "The process is gone without an exit status: killed, or the machine restarted." + (
            f" {said}" if said else ""
        )
    return stage, message


def said_by_runner(folder: Path) -> str:
    """The last line of what went wrong in the runner itself."""
    with contextlib.suppress(OSError):
        lines = (folder / "runner.txt").read_text(errors="replace").split("\n")
        return next((redact(line) for line in reversed(lines) if line.strip()), "")
    return ""


def alive(state: dict) -> bool:
    """Whether the process that a state names is there and at work: after a restart another may have its number."""
    try:
        process = psutil.Process(state["pid"])
        is_same = abs(process.create_time() - state["process_created"]) < 2
        return is_same and process.status() != psutil.STATUS_ZOMBIE  # which a container may keep for ever
    except (psutil.NoSuchProcess, KeyError):
        return False


def detached() -> dict:
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.DETACHED_PROCESS}
    return {"start_new_session": True}


def moment(timestamp: float | None) -> datetime | None:
    return datetime.fromtimestamp(timestamp, UTC) if timestamp else None
