"""What this machine remembers of plans and runs: small private JSON files under HF_HOME/unsloth-jobs."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from .plan import Plan


def folder(kind: str) -> Path:
    """The folder of "estimates", "plans", "runs" or "jobs" (what local jobs write), made where missing."""
    path = Path(constants.HF_HOME) / "unsloth-jobs" / kind
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def path_of(kind: str, name: str) -> Path | None:
    return folder(kind) / f"{name}.json" if re.fullmatch(r"[\w-]{1,100}", name) else None


def write(path: Path, data: dict[str, Any]) -> None:
    """Whole or not at all, readable by its owner alone."""
    partial = path.with_suffix(".partial")
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump(data, file, indent=1)
    os.replace(partial, path)


def read(path: Path | None) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text("utf-8")) if path else None
    except (OSError, ValueError):
        return None


def remember_plan(plan: Plan) -> None:
    write(folder("plans") / f"{plan.plan_id}.json", asdict(plan))


def recall_plan(plan_id: str) -> Plan | None:
    data = read(path_of("plans", plan_id))
    return Plan.from_json(data) if data else None


def remember_estimate(run_key: str, flavors: dict[str, dict[str, Any]]) -> None:
    """What a run was estimated to take on each flavor that fits, by ledger.key(...).run."""
    write(folder("estimates") / f"{run_key}.json", {"made_at": time.time(), "flavors": flavors})


def recall_estimate(run_key: str | None, flavor: str) -> dict[str, Any] | None:
    data = read(path_of("estimates", run_key)) if run_key else None
    return data["flavors"].get(flavor) if data else None


def remember_run(job_id: str, plan: Plan, approved: str, estimate: dict[str, Any] | None) -> None:
    """approved: how, in the words of submit.py's flags."""
    run = {"job_id": job_id, "submitted_at": time.time(), "approved": approved, "estimate": estimate, "plan": asdict(plan)}
    write(folder("runs") / f"{job_id}.json", run)


def remember_outcome(job_id: str, outcome: dict[str, Any]) -> None:
    """How a run from this machine ended: stage, billed seconds and dollars, and its `done` event. Written once."""
    run = run_of(job_id)
    if run and "outcome" not in run:
        write(folder("runs") / f"{job_id}.json", run | {"outcome": outcome})


def run_of(job_id: str) -> dict[str, Any] | None:
    """What remember_run and remember_outcome kept of a job; None for one that was submitted elsewhere."""
    return read(path_of("runs", job_id))


def runs() -> list[dict[str, Any]]:
    """Every run submitted from this machine, newest first."""
    found = [data for path in folder("runs").glob("*.json") if (data := read(path))]
    return sorted(found, key=lambda data: -data["submitted_at"])


def run_plan(job_id: str) -> Plan | None:
    run = run_of(job_id)
    return Plan.from_json(run["plan"]) if run else None
