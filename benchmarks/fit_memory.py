"""Fit the memory model of scripts/unsloth_jobs/memory.py on benchmarks/memory.csv, and state its error.

    python benchmarks/fit_memory.py     # in the environment of templates/sft.py

The rows of HELD_OUT (two whole shapes, and one of another in one precision: a third of all) take no part in the fit.
Prints the constants to put into memory.py, and the error of the model as it stands there on both parts.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "templates"), str(ROOT / "scripts"), str(ROOT / "benchmarks")]
import sft  # noqa: E402
from memory import config_of  # noqa: E402
from unsloth_jobs import memory  # noqa: E402
from unsloth_jobs.hub import Model  # noqa: E402

HELD_OUT = {("qwen3-4b", "4bit"), ("qwen3-4b", "16bit"), ("lfm2-1.2b", "4bit"), ("lfm2-1.2b", "16bit"), ("gemma3-1b", "16bit")}
GIB = 2**30


def model_of(shape: str) -> Model:
    """The shape's tensors, without memory for them."""
    import torch
    from transformers import AutoModelForCausalLM

    config = config_of(shape, {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2})
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config)
    tensors = {name: ("BF16", tuple(parameter.shape)) for name, parameter in network.named_parameters()}
    return Model(shape, None, type(network).__name__, config.to_dict(), False, tensors)


def main() -> None:
    rows = list(csv.DictReader((ROOT / "benchmarks" / "memory.csv").open()))
    models = {shape: model_of(shape) for shape in {row["shape"] for row in rows}}
    fitted, wanted = [], []
    for row in rows:
        model, settings = models[row["shape"]], settings_of(row)
        linears = sft.adaptable(model.linears)
        tokens, (inner, width) = int(row["length"]) * int(row["batch"]), memory.widths(linears)
        rest = float(row["allocated_gib"]) * GIB - memory.weights_bytes(model, linears, settings.load_in_16bit)
        rest -= int(row["trainable"]) * (memory.ADAPTER_BYTES + memory.OPTIMIZER_BYTES)
        # Where the logits or the convolutions' workspace are the peak, the rows say nothing of the layers.
        elsewhere = row["shape"].startswith("gemma") or (row["shape"].startswith("lfm2") and tokens < 8192)
        if (row["shape"], row["precision"]) not in HELD_OUT and not elsewhere:
            fitted.append([tokens * inner, tokens * width, 1e9])
            wanted.append(rest)
    found, *_ = np.linalg.lstsq(np.array(fitted, float), np.array(wanted), rcond=None)
    names = ("PER_TOKEN_INNER", "PER_TOKEN_WIDTH", "FIXED")
    print("fitted:", ", ".join(f"{name} = {value:.3g}" for name, value in zip(names, found * [1, 1, 1e9], strict=True)))
    report(rows, models)


def settings_of(row: dict[str, str]):
    words = ["--dataset", "x", "--batch-size", row["batch"], "--max-seq-length", row["length"]]
    return sft.parse_args([*words, *(["--load-in-16bit"] if row["precision"] == "16bit" else [])])


def report(rows: list[dict[str, str]], models: dict[str, Model]) -> None:
    errors: dict[str, list[float]] = {"fitted": [], "held out": []}
    for row in rows:
        predicted = memory.memory(models[row["shape"]], sft, settings_of(row)).peak * memory.GB / GIB
        error = predicted / float(row["allocated_gib"]) - 1
        part = "held out" if (row["shape"], row["precision"]) in HELD_OUT else "fitted"
        errors[part].append(error)
        print(f"{part:9} {row['shape']:11} {row['precision']:5} {row['length']:>5} × {row['batch']}  "
              f"measured {float(row['allocated_gib']):6.2f} GiB  predicted {predicted:6.2f}  {error:+.1%}")  # fmt: skip
    for part, values in errors.items():
        print(
            f"{part}: {len(values)} rows, mean error {np.mean(np.abs(values)):.1%}, from {min(values):+.1%} to {max(values):+.1%}"
        )


if __name__ == "__main__":
    main()
