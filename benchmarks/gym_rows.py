"""Rows of reasoning-gym, whose answers are exact, and the real small model that benchmarks train on them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path

GYM = "reasoning-gym==0.1.25"


def prepare(script: str, model: Path, data: Path) -> None:
    """The model's folder, and the rows that `SCRIPT --child data FOLDER` makes: where there is a package registry."""
    import demo

    if not model.exists():
        demo.make_model(model)
    command = [demo.UV, "run", "--no-project", "--with", GYM, "python", script, "--child", "data", str(data)]
    subprocess.run(command, check=True)


def gym_rows(task: str, size: int, seed: int, **difficulty: int) -> list[dict[str, str]]:
    import reasoning_gym

    made = reasoning_gym.create_dataset(task, size=size, seed=seed, **difficulty)
    return unlike({"question": row["question"], "answer": str(row["answer"])} for row in made)


def unlike(rows: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """One row of each question."""
    return list({row["question"]: row for row in rows}.values())
