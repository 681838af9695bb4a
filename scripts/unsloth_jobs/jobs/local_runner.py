"""The process behind a local job: runs its command, notes how it ends, ends it at its timeout.

A second process, started here, writes the log without secrets: the command's output must go on being read where this
process is killed, or the command would end at its next line.

Started by local_jobs with the job's folder as its last argument; not meant to be run by hand.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import psutil

from ..errors import UserError
from ..redaction import redact
from .job import RUN_VARIABLE
from .records import read, write

WAIT_S = 0.5  # between two looks at the job that is waited for
GRACE_S = 20  # between asking a job to end and ending it
# Of the environment that started the job, these would mislead it: triton takes CC for its compiler.
NOT_INHERITED = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "CC")


def run(folder: Path) -> None:
    job, state = read(folder / "job.json") or {}, read(folder / "state.json") or {}
    if job.get("after") and not wait_for(job["after"], folder, state):
        return
    env = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    env["PYTHONUNBUFFERED"] = "1"
    env.setdefault("UNSLOTH_COMPILE_LOCATION", str(folder / "unsloth_compiled_cache"))  # else in the user's project
    env[RUN_VARIABLE] = json.dumps(json.loads(env.get(RUN_VARIABLE, "{}")) | {"started": time.time()})
    state |= {"stage": "RUNNING", **process_of(os.getpid()), "started": time.time()}
    reasons: list[str] = []
    with log_writer(folder) as writer:
        child = subprocess.Popen(
            job["command"], cwd=job["cwd"], env=env, stdin=subprocess.DEVNULL, stdout=writer.stdin, stderr=subprocess.STDOUT
        )
        write(folder / "state.json", state | {"child": process_of(child.pid)})
        signal.signal(signal.SIGTERM, lambda *_: end(child, reasons, "CANCELED"))
        timer = threading.Timer(job["timeout_s"], end, (child, reasons, "TIMEOUT"))
        timer.daemon = True
        with main_thread_signals():
            timer.start()
        code = child.wait()
        timer.cancel()
    stage, message = outcome(code, reasons)
    write(folder / "state.json", state | {"stage": stage, "message": message, "finished": time.time()})


def wait_for(job_id: str, folder: Path, state: dict) -> bool:
    """Wait until an earlier job has ended and those that it waits for itself: it may be cancelled before its turn.

    The state says so meanwhile. False where this job is cancelled before.
    """
    from .local import LocalJobs  # which starts this module as a process of its own

    cancelled: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: cancelled.append(number))
    write(folder / "state.json", state | process_of(os.getpid()) | {"message": f"It waits until {job_id} has ended."})
    while not cancelled:
        with contextlib.suppress(UserError):
            if all(LocalJobs().inspect(one).ended for one in with_earlier(job_id, folder.parent)):
                return True
        time.sleep(WAIT_S)
    ends = {"stage": "CANCELED", "message": "Canceled", "started": time.time(), "finished": time.time()}
    write(folder / "state.json", state | ends)
    return False


def with_earlier(job_id: str, jobs: Path) -> Iterator[str]:
    """A job, the one that it waits for, the one that this waits for."""
    while job_id and (jobs / job_id).is_dir():  # one that was deleted is waited for no more
        yield job_id
        job_id = (read(jobs / job_id / "job.json") or {}).get("after") or ""


@contextlib.contextmanager
def main_thread_signals() -> Iterator[None]:
    """A thread that is started meanwhile gets no SIGTERM: only the main thread's wait is ended by one."""
    mask = getattr(signal, "pthread_sigmask", None)
    if mask is None:  # Windows
        yield
        return
    before = mask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        mask(signal.SIG_SETMASK, before)


def process_of(pid: int) -> dict:
    """What names a process for good: after a restart another may have its number. One that is gone already has no time."""
    try:
        return {"pid": pid, "process_created": psutil.Process(pid).create_time()}
    except psutil.NoSuchProcess:
        return {"pid": pid, "process_created": 0}


def outcome(code: int, reasons: list[str]) -> tuple[str, str | None]:
    if reasons:
        return ("CANCELED", "Canceled") if reasons[0] == "CANCELED" else ("ERROR", "Job timeout")
    return ("COMPLETED", None) if code == 0 else ("ERROR", f"Job failed with exit code: {code}")


def log_writer(folder: Path) -> subprocess.Popen:
    """The process that writes the log, by its stdin; it ends with the last process that holds that."""
    command = [sys.executable, "-B", "-m", "unsloth_jobs.jobs.local_runner", "--write-log", str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)


def copy_log(lines: BinaryIO, log: BinaryIO) -> None:
    """Goes on reading where the disk is full: a child whose output nobody reads would stand still, and lose its run."""
    for line in lines:
        with contextlib.suppress(OSError):
            log.write(redact(line.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape"))


def end(child: subprocess.Popen, reasons: list[str], reason: str) -> None:
    """Ask the command and all it started to end, once: asked again, it may not save. Insist after GRACE_S."""
    if reasons:
        return
    reasons.append(reason)
    processes = psutil.Process(child.pid).children(recursive=True) + [psutil.Process(child.pid)]
    tell(processes, "terminate")
    threading.Timer(GRACE_S, tell, (processes, "kill")).start()


def tell(processes: list[psutil.Process], how: str) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended first, which is what was wanted
            getattr(process, how)()


if __name__ == "__main__":
    if sys.argv[1] == "--write-log":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends with what it reads
        with open(Path(sys.argv[2]) / "log.txt", "ab", buffering=0) as log:
            copy_log(sys.stdin.buffer, log)
    else:
        run(Path(sys.argv[1]))
