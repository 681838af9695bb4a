"""What runs from this machine really took, against what was estimated: later estimates start from it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..training.files import file_digest, sha256_of
from ..values import shaped

# Settings that change nothing about a run's cost, and those that change its length but not its pace.
FREE = {
    "output_repo", "public", "save_local", "trackio_space", "run_name", "learning_rate", "lora_alpha", "seed",
    "min_coverage", "save_steps", "card_samples", "beta", "simpo_gamma", "max_kl", "temperature",
}  # fmt: skip
LENGTH = {
    "num_epochs", "max_steps", "num_samples", "eval_split", "max_eval_rows", "resume", "early_stopping", "eval_dataset",
    "eval_dataset_config", "eval_dataset_split", "eval_dataset_revision", "grader", "max_graded", "grading_seconds",
}  # fmt: skip
SAME_RUN = 1.1  # how far a step time measured on the same model, rows and flavor may be off
OTHER_MACHINE = 1.5  # how far the start of a run may be off from the start of one like it
LEAST_WIDTH = 1.15  # of a range drawn from other models' runs


@dataclass(frozen=True)
class Range:
    """Best case and worst case of the same quantity."""

    low: float
    high: float

    def times(self, factor: float) -> Range:
        return Range(self.low * factor, self.high * factor)

    def at_most(self, limit: float) -> Range:
        return Range(min(self.low, limit), min(self.high, limit))

    def widened(self, error: float) -> Range:
        """With a relative uncertainty of the quantity that it was multiplied by."""
        return Range(self.low * max(1 - error, 0), self.high * (1 + error))

    @property
    def middle(self) -> float:
        """The geometric mean: the ends are as far from it, in ratio."""
        return math.sqrt(self.low * self.high)

    @classmethod
    def around(cls, middle: float, factor: float) -> Range:
        return cls(middle / factor, middle * factor)


@dataclass(frozen=True)
class RunKey:
    """What identifies a run. run: all that its cost depends on; pace: all that its time per token depends on."""

    run: str
    pace: str


def run_key(settings: Any, script: Path) -> RunKey:
    """The key of a run of this script with these settings, revisions and the content of local rows included."""
    values = {name: value for name, value in asdict(settings).items() if name not in FREE}
    if (rows := Path(os.path.expanduser(settings.dataset))).is_file():  # what a file holds counts, not where it lies
        values |= {"dataset": rows.suffix, "dataset_revision": file_digest(rows)}
    values["script"] = sha256_of(script)
    return RunKey(digest(values), digest({name: value for name, value in values.items() if name not in LENGTH}))


def digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Entry:
    """A finished run. overhead_s: what was billed beside training and evaluation; estimated: its seconds per token."""

    job_id: str
    flavor: str
    pace: str
    seconds_per_token: float
    overhead_s: float
    evaluation_s: float | None
    estimated: Range | None


@dataclass(frozen=True)
class RefinedTime:
    """The time of a run on one flavor, as far as it is known. None: nothing but the estimate from shapes."""

    pace: Range
    overhead: Range | None
    evaluation: Range | None
    basis: str


@dataclass(frozen=True)
class History:
    """The finished runs, newest first, and the pace key of the run that is to be estimated."""

    entries: tuple[Entry, ...] = ()
    pace: str = ""

    def refine_estimate(self, flavor: str, estimated: Range) -> RefinedTime:
        """The estimate of a run's seconds per token on a flavor, after what runs there really took."""
        there = [entry for entry in self.entries if entry.flavor == flavor]
        if same := next((entry for entry in there if entry.pace == self.pace), None):
            evaluation = same.evaluation_s and Range.around(same.evaluation_s, SAME_RUN)
            return RefinedTime(
                Range.around(same.seconds_per_token, SAME_RUN),
                Range.around(same.overhead_s, OTHER_MACHINE),
                evaluation or None,
                f"measured by {same.job_id}",
            )
        ratios = [entry.seconds_per_token / entry.estimated.middle for entry in there if entry.estimated]
        if not ratios:
            return RefinedTime(estimated, None, None, "shapes")
        width = math.sqrt(estimated.high / estimated.low) ** (1 / (1 + len(ratios)))
        centre = statistics.geometric_mean(ratios)
        spread = max(max(ratio / centre, centre / ratio) for ratio in ratios)
        pace = Range.around(estimated.middle * centre, max(width, spread, LEAST_WIDTH))
        return RefinedTime(pace, None, None, f"shapes and {len(ratios)} run{'s' * (len(ratios) > 1)} on {flavor}")


def entries(runs: Iterable[dict[str, Any]]) -> tuple[Entry, ...]:
    """The entries of run records (records.runs) that ended with a model and measured their own time."""
    return tuple(made for run in runs if (made := entry(run)))


def entry(run: dict[str, Any]) -> Entry | None:
    outcome, plan = run.get("outcome") or {}, run["plan"]
    done = shaped(outcome.get("done") or {})
    if not (done.get("timed_tokens") and done.get("train_s") and done.get("tokens")):
        return None  # an older or edited template tells less
    # A run on rewards is priced by its prompts: what it will write is not known before.
    tokens, timed = (done.get(f"prompt_{name}") or done[name] for name in ("tokens", "timed_tokens"))
    per_token = done["train_s"] / timed
    if not 0 < per_token * tokens < math.inf:
        return None
    busy = per_token * tokens + (done.get("evaluation_s") or 0) * done.get("evaluations", 0)
    busy += (done.get("graded") or {}).get("seconds") or 0
    estimated = (run.get("estimate") or {}).get("seconds_per_token")
    return Entry(
        run["job_id"],
        plan["flavor"],
        plan["pace_key"],
        per_token,
        max(outcome["elapsed_s"] - busy, 1.0),
        done.get("evaluation_s"),
        Range(*estimated) if estimated else None,
    )
