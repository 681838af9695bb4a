"""What this machine remembers of plans and runs: small private JSON files under HF_HOME/unsloth-jobs."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from huggingface_hub import constants

from .errors import APPROVAL, UserError
from .plan import Plan

RUN_KEYS = {"job_id", "submitted_at", "estimate", "plan"}
VOUCHES_S = 24 * 3600  # for so long an estimate vouches: prices and libraries change
LOCK_S = 120  # what a submit may take, with a large file to upload


def folder(kind: str) -> Path:
    """The folder of "estimates", "plans", "runs" or "jobs" (what local jobs write); it may not exist yet."""
    return Path(constants.HF_HOME) / "unsloth-jobs" / kind


def path_of(kind: str, name: str) -> Path | None:
    return folder(kind) / f"{name}.json" if re.fullmatch(r"[\w-]{1,100}", name) else None


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises UserError where what is done to path fails: a full or read-only disk, missing rights."""
    try:
        for level in reversed((path.parent, *path.parent.parents)):
            if level.is_relative_to(folder(".")):  # mkdir's mode is not for the parents that it makes
                level.mkdir(parents=True, exist_ok=True, mode=0o700)
        yield
    except OSError as error:
        raise UserError(
            "records_unwritable",
            f"{path} cannot be written: {error.strerror or error}.",
            "Make room or give write access there, or set HF_HOME to a folder that can be written to.",
        ) from error


def write(path: Path, data: dict[str, Any]) -> None:
    """Whole or not at all, readable by its owner alone. Raises UserError, and leaves what was there before."""
    with writing(path):
        number, partial = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".partial")  # of mode 600
        try:
            with open(number, "w", encoding="utf-8") as file:
                json.dump(data, file, indent=1)
                file.flush()
                os.fsync(number)
            os.replace(partial, path)
        except BaseException:
            os.unlink(partial)
            raise


def read(path: Path | None) -> dict[str, Any] | None:
    """What write wrote; None where there is nothing, or something else."""
    try:
        data = json.loads(path.read_text("utf-8")) if path else None
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


@contextlib.contextmanager
def one_at_a_time(plan: Plan) -> Iterator[None]:
    """Two commands that submit the same plan at once: the second waits, and finds the job of the first."""
    path = folder("plans") / f"{plan.plan_id}.lock"
    lock = FileLock(path, timeout=LOCK_S, mode=0o600)
    with writing(path):
        try:
            lock.acquire()
        except Timeout as error:
            raise UserError(
                "being_submitted", "Another command is submitting this very plan.", "See status.py --all in a minute.", APPROVAL
            ) from error
    try:
        yield
    finally:
        lock.release()  # which the system does, too, for a process that is killed


def remember_plan(plan: Plan) -> None:
    write(folder("plans") / f"{plan.plan_id}.json", asdict(plan))


def recall_plan(plan_id: str) -> Plan | None:
    data = read(path_of("plans", plan_id))
    return Plan.from_json(data) if data else None


def remember_estimate(run_key: str, flavors: dict[str, dict[str, Any]]) -> None:
    """What a run was estimated to take on each flavor that fits, by ledger.key(...).run."""
    write(folder("estimates") / f"{run_key}.json", {"made_at": time.time(), "flavors": flavors})


def recall_estimate(run_key: str | None, flavor: str) -> dict[str, Any] | None:
    """What remember_estimate kept of a run on a flavor; None where that is older than VOUCHES_S."""
    data = read(path_of("estimates", run_key)) if run_key else None
    return data.get("flavors", {}).get(flavor) if data and estimate_age_s(run_key) <= VOUCHES_S else None


def estimate_age_s(run_key: str | None) -> float:
    """Seconds since a run was estimated from here; infinite where it never was."""
    made_at = (read(path_of("estimates", run_key)) or {}).get("made_at") if run_key else None
    return time.time() - made_at if isinstance(made_at, int | float) else math.inf


def remember_attempt(plan: Plan, approved: str, estimate: dict[str, Any] | None) -> None:
    """That this plan is about to be submitted: until forget_attempt its job may exist without being on record."""
    attempt = {"made_at": time.time(), "approved": approved, "estimate": estimate, "plan": asdict(plan)}
    write(folder("attempts") / f"{plan.plan_id}.json", attempt)


def forget_attempt(plan: Plan) -> None:
    path = folder("attempts") / f"{plan.plan_id}.json"
    with writing(path):
        path.unlink(missing_ok=True)


def attempts() -> list[dict[str, Any]]:
    """What remember_attempt kept and forget_attempt has not taken back."""
    return [data for path in folder("attempts").glob("*.json") if (data := read(path))]


def remember_run(job_id: str, plan: Plan, approved: str, estimate: dict[str, Any] | None) -> None:
    """approved: how, in the words of submit.py's flags. Raises UserError, also for an id that is no file's name."""
    run = {"job_id": job_id, "submitted_at": time.time(), "approved": approved, "estimate": estimate, "plan": asdict(plan)}
    if (path := path_of("runs", job_id)) is None:
        raise UserError("bad_job_id", f"The id {job_id!r} cannot be kept under its name.", "Note the id.")
    write(path, run)


def remember_outcome(job_id: str, outcome: dict[str, Any]) -> None:
    """How a run from this machine ended: stage, billed seconds and dollars, and its `done` event. Written once."""
    run = run_of(job_id)
    if run and "outcome" not in run:
        with contextlib.suppress(UserError):  # a full disk must not hide how the job ended
            write(folder("runs") / f"{job_id}.json", run | {"outcome": outcome})


def run_of(job_id: str) -> dict[str, Any] | None:
    """What remember_run and remember_outcome kept of a job; None for one that was submitted elsewhere."""
    run = read(path_of("runs", job_id))
    return run if run and run.keys() >= RUN_KEYS else None


def runs() -> list[dict[str, Any]]:
    """Every run submitted from this machine, newest first."""
    found = [run for path in folder("runs").glob("*.json") if (run := run_of(path.stem))]
    return sorted(found, key=lambda run: -run["submitted_at"])


def run_plan(job_id: str) -> Plan | None:
    run = run_of(job_id)
    return Plan.from_json(run["plan"]) if run else None
