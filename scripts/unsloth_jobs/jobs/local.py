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

from ..errors import USAGE, UserError
from ..estimate.flavors import LOCAL, Flavor
from ..events import TAIL, summarise
from ..redaction import redact
from ..values import is_amount
from . import records, upload
from .job import RUN_VARIABLE, TERMINAL, Job, run_facts
from .plan import Plan, Submission

PREFIX = "local-"
POLL_S = 0.5
WRITTEN_WITHIN_S = 2  # by then what a job that is gone has printed is in its log
LATEST = 1e11  # seconds since 1970, of a time that can be
STARTED_WITHIN_S = 60  # by then a runner has noted that it runs


class LocalJobs:
    def prepare(self, submission: Submission) -> Callable[[], Job]:
        plan = submission.plan
        uv = os.environ.get("UV") or shutil.which("uv")
        if uv is None:
            raise UserError("no_uv", "uv is not installed, and jobs run through it.", "pip install uv", USAGE)
        self.require_own_folder(plan)
        upload.require_unchanged(plan)
        return functools.partial(self.submit, uv, submission)

    def claim(self, plan: Plan) -> bool:
        return True  # the lock of this machine is enough

    def release(self, plan: Plan) -> None:
        """There is nothing to take back."""

    def submit(self, uv: str, submission: Submission) -> Job:
        plan = submission.plan
        job_id = f"{PREFIX}{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        folder = records.folder("jobs") / job_id
        words = [uv, *plan.runner[1:]] if plan.runner else [uv, "run", "--script"]
        command = [*words, plan.script, *plan.arguments]
        job = {"command": command, "cwd": os.getcwd(), "timeout_s": plan.timeout_s, "plan_id": plan.plan_id}
        try:
            records.write(folder / "job.json", job | {"output_dir": plan.output_dir, "after": submission.after})
            for name in ("log.txt", "runner.txt"):
                (folder / name).touch(mode=0o600)
            records.write(folder / "state.json", {"stage": "SCHEDULING", "created": time.time()})
            # The environment is handed on and never written down: it may hold a token.
            package = str(Path(__file__).resolve().parents[2])
            # -B: the skill's folder stays as it was installed.
            with (folder / "runner.txt").open("wb") as errors:
                runner = subprocess.Popen(
                    [sys.executable, "-B", "-m", "unsloth_jobs.jobs.local_runner", str(folder)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    env=os.environ | {"PYTHONPATH": package, RUN_VARIABLE: run_facts(submission)},
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
        return sorted((path.name for path in records.folder("jobs").glob(PREFIX + "*") if path.is_dir()), reverse=True)

    def inspect(self, job_id: str) -> Job:
        folder = self.folder(job_id)
        state, job = read_state(folder), records.read(folder / "job.json") or {}
        if state and state["stage"] == "RUNNING" and not alive(state):
            state = read_state(folder)  # a runner that is done notes it before it is gone
        stage, message = stage_of(state, folder)
        state = state or {}
        if state.get("stage") == "RUNNING" and stage in TERMINAL:  # nobody noted when
            state["finished"] = last_written(folder)
        return Job(
            job_id,
            stage,
            message,
            str(folder),
            "local",
            moment(state.get("created")),
            moment(state.get("started")),
            moment(state.get("finished")),
            job["plan_id"] if isinstance(job.get("plan_id"), str) else None,
        )

    def flavors(self) -> list[Flavor]:
        return [LOCAL]

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
        state = read_state(folder) or {}
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


def read_state(folder: Path) -> dict[str, Any] | None:
    """What a job's runner noted; None where there is nothing, or something of another shape: damaged, or a later version's."""
    state = records.read(folder / "state.json")
    if not state or not isinstance(state.get("stage"), str) or not is_moment(state.get("created")):
        return None
    times = all(state.get(name) is None or is_moment(state[name]) for name in ("started", "finished"))
    processes = all(
        is_process(state[name]) if name == "child" else is_process(state) for name in ("pid", "child") if name in state
    )
    return state if times and processes and isinstance(state.get("message"), str | None) else None


def is_moment(value: Any) -> bool:
    return is_amount(value) and value < LATEST


def is_process(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("pid"), int) and is_amount(value.get("process_created"))


def stage_of(state: dict | None, folder: Path) -> tuple[str, str | None]:
    """A job's stage and message: what its runner noted, as far as that can still be so."""
    if state is None and records.has_content(folder / "state.json"):
        return (
            "ERROR",
            f"{folder / 'state.json'} is not a job's state as this version writes it. How it went: {folder / 'log.txt'}",
        )
    if state is None:
        return "ERROR", f"{folder} has no readable state: the disk was full, or the machine went down."
    stage, message = state["stage"], state.get("message")
    if stage == "SCHEDULING":
        if reason := runner_error(folder):
            return "ERROR", f"The job could not be started: {reason}"
        if alive(state):
            return stage, message
        if time.time() - state["created"] > STARTED_WITHIN_S:
            return "ERROR", "The job was never started: what would have started it was killed."
    if stage == "RUNNING" and not alive(state):
        if alive(state.get("child", {})):
            return "RUNNING", f"Its timeout is no longer enforced; process {state['child']['pid']} goes on without it."
        if is_done(folder):
            return "COMPLETED", "Its log ends with its result; the process that would have recorded its exit status was killed."
        reason = runner_error(folder)
        return "ERROR", "The process is gone without an exit status: killed, or the machine restarted." + (
            f" {reason}" if reason else ""
        )
    return stage, message


def is_done(folder: Path) -> bool:
    """Whether the job's log tells of a result. What the job printed last may be on its way into it."""
    log = folder / "log.txt"
    until = last_written(folder) + WRITTEN_WITHIN_S
    while True:
        with contextlib.suppress(OSError), log.open(encoding="utf-8", errors="replace", newline="\n") as lines:
            summary = summarise(deque(lines, maxlen=TAIL))
            if summary.event("done"):
                return not summary.event("failed")
        if time.time() > until:
            return False
        time.sleep(POLL_S)


def last_written(folder: Path) -> float:
    """When the job's log grew for the last time."""
    try:
        return (folder / "log.txt").stat().st_mtime
    except OSError:
        return 0.0


def runner_error(folder: Path) -> str:
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
