"""What this machine remembers of plans and runs: small private JSON files under HF_HOME/unsloth-jobs."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from .plan import Plan


def folder(kind: str) -> Path:
    """The folder of "plans", "runs" or "jobs" (what local jobs write), made where missing."""
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


def remember_run(job_id: str, plan: Plan, submitted_at: float) -> None:
    """submitted_at: seconds since the epoch."""
    write(folder("runs") / f"{job_id}.json", {"job_id": job_id, "submitted_at": submitted_at, "plan": asdict(plan)})


def run_plan(job_id: str) -> Plan | None:
    data = read(path_of("runs", job_id))
    return Plan.from_json(data["plan"]) if data else None


def job_ids() -> list[str]:
    """Every job submitted from this machine, newest first."""
    runs = [data for path in folder("runs").glob("*.json") if (data := read(path))]
    return [data["job_id"] for data in sorted(runs, key=lambda data: -data["submitted_at"])]
