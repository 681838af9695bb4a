"""What jobs that train nothing take: an export, from the sizes of its files, and an evaluation, from its questions.

Assumed rates, best and worst, in bytes or passes a second: nobody has measured these jobs on the Hub's machines yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..lookup.model_info import Model
from ..training.generation import LONGEST_ANSWER, SHORTEST_LIMIT
from ..training.gguf_sizes import gguf_bytes
from .cost import DOWNLOAD_BYTES_S, STARTUP
from .decoding import answering_seconds
from .flavors import Flavor
from .history import Range
from .memory import layers

EXPORT_START = Range(120, 600)  # machine, installation, and the part of llama.cpp that is built
COPIED_BYTES_S = (80e6, 600e6)  # read, changed and written: merging, converting, quantising
WEIGHTS_READ_BYTES_S = (3e9, 40e9)  # from memory: each token of an answer reads all weights once
QUESTIONS, PASSES = 6, 2  # asked of each file; an answer of its own, and the adapter's looked at
EVALUATION_BASIS = "the number of models and questions"
EXPORT_BASIS = "the sizes of the files"
ITEM_S = Range(0.05, 2.0)  # of a benchmark, and model: a choice between endings at best, a long answer at worst
LOADING_S = Range(20, 120)  # of each model onto the GPU


@dataclass(frozen=True)
class ExportSizes:
    """What an export reads and makes. files: bytes of each result by its name."""

    stored: int  # the base as it is downloaded
    merged: int  # in 16 bits
    files: dict[str, int]

    @property
    def disk(self) -> int:
        """Bytes on disk at the end: the base, the merged model, the GGUF files and the one in 16 bits they are made of."""
        ggufs = {name: size for name, size in self.files.items() if name != "merged"}
        return self.stored + self.merged + sum(({"bf16": self.merged} | ggufs).values()) if ggufs else self.stored + self.merged

    @property
    def memory(self) -> float:
        return 1.1 * self.merged + 1e9


def export_sizes(model: Model, wanted: list[str]) -> ExportSizes:
    merged = model.parameters * 2
    return ExportSizes(model.file_bytes, merged, {"merged": merged} | {name: gguf_bytes(merged, name) for name in wanted})


def estimate_export(flavor: Flavor, sizes: ExportSizes, tokens: int) -> dict[str, Any]:
    """Hours and dollars on a flavor. tokens: of each answer that is compared."""
    made = {"bf16": sizes.merged} | sizes.files if len(sizes.files) > 1 else sizes.files
    slow, fast = DOWNLOAD_BYTES_S
    carried = sizes.stored + sum(sizes.files.values())
    copied = 2 * sizes.merged + sum(made.values())
    read = QUESTIONS * tokens * (sizes.merged + PASSES * sum(made.values()))
    return priced(
        flavor,
        {
            "start": EXPORT_START,
            "transfer": Range(carried / fast, carried / slow),
            "files": Range(copied / COPIED_BYTES_S[1], copied / COPIED_BYTES_S[0]),
            "comparison": Range(read / WEIGHTS_READ_BYTES_S[1], read / WEIGHTS_READ_BYTES_S[0]),
        },
        EXPORT_BASIS,
    )


@dataclass(frozen=True)
class EvaluationSize:
    """contenders: that answer; models: that are loaded for it; questions: at most; items: of all benchmarks together."""

    contenders: int
    models: int
    questions: int
    items: int
    grading_seconds: float


def estimate_evaluation(flavor: Flavor, model: Model, size: EvaluationSize) -> dict[str, Any]:
    """Hours and dollars on a flavor, for answers of any length. No contender answers for longer than grading_seconds."""
    slow, fast = DOWNLOAD_BYTES_S
    carried = model.file_bytes * size.models
    answering = answering_seconds(layers(model), Range(SHORTEST_LIMIT, LONGEST_ANSWER), size.questions)
    parts = {
        "start": Range(STARTUP.low / 2 + carried / fast, STARTUP.high + carried / slow),
        "loading": LOADING_S.times(size.contenders),
        "answers": answering.at_most(size.grading_seconds).times(size.contenders),
    }
    if size.items:
        parts["benchmarks"] = ITEM_S.times(size.items * size.contenders)
    return priced(flavor, parts, EVALUATION_BASIS)


def priced(flavor: Flavor, parts: dict[str, Range], basis: str) -> dict[str, Any]:
    low, high = (sum(getattr(part, end) for part in parts.values()) for end in ("low", "high"))
    return {
        "hours_low": round(low / 3600, 2),
        "hours_high": round(high / 3600, 2),
        "usd_low": round(low / 60 * flavor.usd_per_minute, 4),
        "usd_high": round(high / 60 * flavor.usd_per_minute, 4),
        "basis": basis,
        "seconds": {name: (round(part.low), round(part.high)) for name, part in parts.items()},
    }
