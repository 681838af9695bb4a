"""The tables of references/ that are made from code and data. This writes them anew: `make tables`.

Each stands between its own two comments in the reference, which this file names; a test holds them equal.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from conftest import ROOT, SFT, python_of

sys.path.insert(0, str(ROOT / "scripts"))  # as pytest has it
from unsloth_jobs.estimate.flavors import snapshot_flavors  # noqa: E402
from unsloth_jobs.training.learning_rate import learning_rate_for  # noqa: E402
from unsloth_jobs.training.paired import Difference, rows_needed, two_digits  # noqa: E402
from unsloth_jobs.training.settings import TrainingSettings  # noqa: E402

FAMILIES = (
    "llama", "mistral", "qwen2", "qwen3", "smollm3", "granite", "olmo2", "gemma3_text", "lfm2", "qwen3_5_text", "phi3", "phi",
)  # fmt: skip
ROLES = {"self_attn": "attention", "mlp": "feed-forward", "feed_forward": "feed-forward"}  # by the name of what holds them
OTHER = "instead of attention"  # convolutions, linear attention


def prices(_: str) -> str:
    """The snapshot that estimate.py uses where the Hub does not answer, cheapest GPU first."""
    flavors, source = snapshot_flavors()
    rows = [
        f"| {one.name} | {one.usd_per_hour:.2f} | {one.gpus} | {one.accelerator} | {one.vram_gb:.0f} |"
        for one in sorted(flavors, key=lambda one: (one.usd_per_hour, one.name))
        if one.gpus
    ]
    head = ["| flavor | $/hour | GPUs | GPU | memory GB |", "|---|---|---|---|---|"]
    return "\n".join([source[0].upper() + source[1:] + ":", "", *head, *rows])


def modules(training_python: str) -> str:
    """What `--target-modules auto` adapts in each family, by the template's own functions on transformers' own classes."""
    said = subprocess.run(
        [training_python, str(ROOT / "tests" / "families.py"), "modules", *FAMILIES], check=True, capture_output=True, text=True
    ).stdout
    alike = defaultdict(list)
    for family, holders in json.loads(said.splitlines()[-1]).items():
        roles = defaultdict(list)
        for holder, names in holders.items():
            roles[ROLES.get(holder, OTHER)] += names
        alike[tuple(", ".join(roles[role]) for role in ("attention", OTHER, "feed-forward"))].append(family)
    head = [f"| `model_type` | attention | {OTHER} | feed-forward |", "|---|---|---|---|"]
    return "\n".join([*head, *(f"| {', '.join(families)} | {' | '.join(found)} |" for found, families in alike.items())])


GAINS, SHARED = (3, 5, 10, 20), 0.1  # points that a run is better by; share of rows that change to either side beside them


def needed(_: str) -> str:
    """How many graded rows tell two runs apart, by paired.rows_needed."""
    rows = []
    for points in GAINS:
        gain = points / 100
        rows.append(two_digits(rows_needed(Difference(gain, 0.0, 0.0, 0, SHARED + gain - gain**2)) or 0))
    head = f"| difference in points | {' | '.join(map(str, GAINS))} |"
    return "\n".join([head, "|---" * (len(GAINS) + 1) + "|", f"| rows | {' | '.join(f'{one:,}' for one in rows)} |"])


SHAPES = {  # hidden size and model type, of published configurations
    "SmolLM2-135M": (576, "llama"), "Qwen3-0.6B": (1024, "qwen3"), "Gemma-3-1B": (1152, "gemma3_text"),
    "LFM2.5-1.2B": (2048, "lfm2"), "Qwen3-4B": (2560, "qwen3"), "Llama-3.1-8B": (4096, "llama"),
}  # fmt: skip


def rates(_: str) -> str:
    """What `--learning-rate auto` comes to."""
    found = {
        name: learning_rate_for(TrainingSettings(), {"hidden_size": hidden, "model_type": kind})
        for name, (hidden, kind) in SHAPES.items()
    }
    head = [f"| {' | '.join(found)} |", "|---" * len(found) + "|"]
    return "\n".join([*head, f"| {' | '.join(f'{rate:g}' for rate in found.values())} |"])


TABLES: dict[str, tuple[Callable[[str], str], Path]] = {
    "prices": (prices, ROOT / "references" / "gpu-and-cost.md"),
    "modules": (modules, ROOT / "references" / "models.md"),
    "rates": (rates, ROOT / "references" / "defaults.md"),
    "needed": (needed, ROOT / "references" / "comparing.md"),
}


def with_table(text: str, name: str, table: str) -> str:
    """The document with this table between the comments that name it. Raises ValueError where it has none."""
    between = re.compile(rf"(?s)(?<=<!-- {name}: make tables -->\n).*?(?=<!-- end -->)")
    written, count = between.subn(lambda _: table + "\n", text)
    if count != 1:
        raise ValueError(f"{count} places for the table {name!r}")
    return written


if __name__ == "__main__":
    training_python = python_of(SFT)
    for name, (make, document) in TABLES.items():
        document.write_text(with_table(document.read_text("utf-8"), name, make(training_python)), "utf-8")
