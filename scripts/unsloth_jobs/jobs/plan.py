"""What will be run, where, and at most for how much: fixed before anyone is asked to approve it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from ..errors import USAGE, UserError

SCRIPTS = Path(__file__).resolve().parents[2]  # the commands that fixes name
DEFAULT_FLAVOR, DEFAULT_TIMEOUT_S = "l4x1", 4 * 3600
SERVED_S = {"hf": 30 * 60, "local": 12 * 3600}  # where no --timeout says how long a model is served
SMOKE_STEPS, SMOKE_TIMEOUT_S, SMOKE_MAX_USD = 24, 20 * 60, 1.0
LISTS = ("arguments", "secrets", "results", "whole_arguments", "runner")  # of a plan: tuples, which JSON does not know
JUDGE_KEY = "JUDGE_API_KEY"  # the one secret beside HF_TOKEN that a job is given, where it asks a judge
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Plan:
    """One run, whole. usd_per_minute: the price when the plan was made; max_usd: what all attempts cost if each uses up
    the timeout; run_key, pace_key: of the run that the user asked for, also where this is a smoke run of it.

    results: the repositories that it writes to. public: whether anyone can read those. whole_arguments: those
    that the run was planned with, where --smoke or --attempts have added to them. image, runner: where not the usual ones.
    port: the one that the job answers on, 0 for none.
    """

    where: str
    script: str
    script_sha256: str
    arguments: tuple[str, ...]
    flavor: str
    timeout_s: int
    usd_per_minute: float
    max_usd: float
    namespace: str | None
    secrets: tuple[str, ...]
    model: str | None
    model_revision: str | None
    dataset: str | None
    dataset_revision: str | None
    output_repo: str | None
    output_dir: str | None
    trackio_space: str | None
    vram_gb: float = 0.0  # of one GPU
    gpus: int = 0  # 0 also where it is not known
    attempts: int = 1
    smoke: bool = False
    run_key: str | None = None
    pace_key: str | None = None
    files: dict[str, str] = field(default_factory=dict)  # SHA-256 of each file here that the job is sent, by its argument
    start: int = 1  # 2 where an approved start of the same run failed or was never answered: it needs a new approval
    results: tuple[str, ...] = ()
    public: bool = False
    whole_arguments: tuple[str, ...] = ()
    image: str = ""
    runner: tuple[str, ...] = ()
    port: int = 0

    @property
    def plan_id(self) -> str:
        """A hash over all of the above: whatever changes, the approval no longer fits."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def flags(self, leave_out: set[str]) -> list[str]:
        """The script's arguments without the flags of these names and their values."""
        kept, leaving = [], False
        for word in self.arguments:
            if word.startswith("--"):
                leaving = word[2:].partition("=")[0] in leave_out
            kept += [] if leaving else [word]
        return kept

    def resuming(self) -> str:
        """The command that goes on with this run from its last checkpoint."""
        return self.again(*([] if "--resume" in self.typed else ["--resume"]))

    @property
    def typed(self) -> tuple[str, ...]:
        """The script's arguments as a user gives them, in their canonical form."""
        return self.whole_arguments or self.arguments

    def again(self, *more: str) -> str:
        """The command that plans this run again, with more of its script's arguments at its end."""
        place = ["--where", "local"] if self.where == "local" else ["--flavor", self.flavor]
        place += ["--namespace", self.namespace] if self.namespace else []
        place += ["--attempts", str(self.attempts)] if self.attempts > 1 else []
        place += ["--smoke"] if self.smoke else []
        if self.port:
            return self.serving_again(place)
        words = ["uv", "run", str(SCRIPTS / "submit.py"), self.script, *place, "--timeout", f"{self.timeout_s}s", "--"]
        return shlex.join([*words, *self.typed, *more])

    def serving_again(self, place: list[str]) -> str:
        """The command that plans to serve this model again."""
        values = dict(word[2:].partition("=")[::2] for word in self.typed)
        names = ("base-model", "engine", "idle")
        more = [f"--{name}={values[name]}" for name in names if values.get(name)]
        words = ["uv", "run", str(SCRIPTS / "serve.py"), values["model"], *place, "--timeout", f"{self.timeout_s}s"]
        return shlex.join([*words, *more])

    @property
    def dashboard_url(self) -> str | None:
        return f"{constants.ENDPOINT}/spaces/{self.trackio_space}" if self.trackio_space else None

    @property
    def model_url(self) -> str | None:
        name = self.output_repo or (self.results[-1] if self.results else None)
        return f"{constants.ENDPOINT}/{name}" if name else self.output_dir

    @property
    def command(self) -> str:
        """The command that shows this plan again."""
        return self.again()

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Plan:
        known = {item.name: data[item.name] for item in dataclasses.fields(cls) if item.name in data}
        lists = {name: tuple(known[name]) for name in LISTS if name in known}
        return cls(**known | lists)


def seconds(text: str) -> int:
    """A duration such as 90s, 30m, 4h, 1d or 2h30m. Raises UserError, also without a unit: 10 is seconds to `hf jobs`."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", text)
    value = sum(float(number) * UNITS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text.strip() or not 1 <= value < math.inf:
        raise UserError("bad_timeout", f"{text!r} is not a duration with a unit.", "Write it as 30m, 4h, 2h30m or 1d.", USAGE)
    return round(value)


@dataclass(frozen=True)
class Submission:
    """A plan, how it was approved in the words of submit.py's flags, and what it was estimated to take.

    group: the id of the comparison that it is a run of; run: its name there; after: the job on this machine that it waits for.
    """

    plan: Plan
    approved: str
    estimate: dict[str, Any] | None
    group: str = ""
    run: str = ""
    after: str = ""
