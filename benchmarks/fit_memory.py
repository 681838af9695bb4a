"""Fit the memory model of scripts/unsloth_jobs/estimate/memory.py on benchmarks/memory.csv, and state its error.

    python benchmarks/fit_memory.py     # in the environment of templates/sft.py

The rows of HELD_OUT (whole shapes, a third of all) take no part in the fit, and neither do the runs of the template
itself in benchmarks/speed.csv, nor those of templates/dpo.py in benchmarks/preferences.csv. Rows that were measured with 8-bit Adam are held against what the model says of fp32
moments, less the difference. Prints the constants to put into memory.py, and the error of the model as it stands
there on each part. Rows of one process that come second in a compiled model lack what the first took for trying
kernels, which a run of its own would not: they are marked, and left out of the errors.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "templates"), str(ROOT / "scripts"), str(ROOT / "benchmarks")]
import dpo  # noqa: E402
import sft  # noqa: E402
from memory import config_of  # noqa: E402
from unsloth_jobs.estimate import memory  # noqa: E402
from unsloth_jobs.lookup.model_info import Model  # noqa: E402

HELD_OUT = {"llama-8b", "qwen3-4b", "qwen3-0.6b"}
TRL_MARGIN = 1.04  # few rows were measured without Unsloth, and families differ
GIB = 2**30
OPTIMIZER_BYTES = {"adamw_8bit": 2, "adamw": memory.OPTIMIZER_BYTES}  # per LoRA parameter


def model_of(shape: str) -> Model:
    """The shape's tensors, without memory for them."""
    import torch
    from transformers import AutoModelForCausalLM

    config = config_of(shape, {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2})
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config)
    tensors = {name: ("BF16", tuple(parameter.shape)) for name, parameter in network.named_parameters()}
    return Model(shape, None, type(network).__name__, config.to_dict(), False, tensors)


def settings_of(row: dict[str, str]):
    words = ["--dataset", "x", "--batch-size", row["batch"], "--max-seq-length", row["length"]]
    words += ["--gradient-checkpointing", row["checkpointing"], "--packing" if row["packed"] == "yes" else "--no-packing"]
    words += ["--backend", row["backend"], f"--load-in-{row['precision']}", "--num-epochs", "1"]
    return (dpo if row.get("loss") else sft).parse_args(words)


def tokens_of(row: dict[str, str]) -> int:
    return int(row["length"]) * int(row["batch"])


def working(row: dict[str, str], model: Model) -> float:
    """Bytes that were measured beyond weights, adapter and optimizer."""
    adapter = int(row["trainable"]) * (memory.ADAPTER_BYTES + OPTIMIZER_BYTES[row["optimizer"]])
    weights = memory.weights_bytes(model, sft.adaptable(model.linears), row["precision"] == "16bit")
    return float(row["allocated_gib"]) * GIB - weights - adapter


def solve(columns: list[list[float]], wanted: list[float]) -> np.ndarray:
    scale = np.max(np.abs(columns), axis=0)
    return np.linalg.lstsq(np.array(columns) / scale, np.array(wanted), rcond=None)[0] / scale


def fit(rows: list[dict[str, str]], models: dict[str, Model]) -> None:
    unsloth = [row for row in rows if row["shape"] not in HELD_OUT and row["backend"] == "unsloth"]
    own = [row for row in unsloth if memory.own_forward(models[row["shape"]])]
    shapes = {shape: memory.widths(sft.adaptable(model.linears)) for shape, model in models.items()}

    alone = [row for row in own if row["packed"] == "no"]
    found = solve(
        [[tokens_of(row) * shapes[row["shape"]][0], tokens_of(row) * shapes[row["shape"]][1], 1.0] for row in alone],
        [working(row, models[row["shape"]]) for row in alone],
    )
    print("PER_TOKEN_INNER = {:.3g}, PER_TOKEN_WIDTH = {:.3g}, FIXED = {:.3g}".format(*found))

    kept = [row for row in own if row["packed"] == "yes" and row["checkpointing"] == "off"]
    columns, wanted = [], []
    for row in kept:
        model, (inner, width) = models[row["shape"]], shapes[row["shape"]]
        each = tokens_of(row) * 2 * memory.layers(model)
        normed = any(name.endswith("q_norm.weight") for name in model.tensors)
        columns.append([each * width, each * width * normed, memory.vocabulary(model)])
        wanted.append(working(row, model) - each * 2 * inner)
    print("PER_TOKEN_KEPT = {:.3g}, PER_TOKEN_NORMED = {:.3g}, LOSS_SLICE = {:.3g}".format(*solve(columns, wanted)))

    offloaded = [row for row in own if row["packed"] == "yes" and row["checkpointing"] == "offload" and tokens_of(row) >= 4096]
    layer = lambda row: tokens_of(row) * np.dot(found[:2], shapes[row["shape"]])  # noqa: E731
    share = [(working(row, models[row["shape"]]) - memory.FIXED) / layer(row) for row in offloaded]
    print(f"PACKED_SHARE = {max(share):.2f} (the largest of {len(share)})")

    trl = [
        row for row in rows
        if row["shape"] not in HELD_OUT and row["backend"] == "trl" and row["checkpointing"] == "off"
    ]  # fmt: skip
    each = [tokens_of(row) * memory.layers(models[row["shape"]]) for row in trl]
    columns = [[count * size for size in shapes[row["shape"]]] for row, count in zip(trl, each, strict=True)]
    print("PER_TOKEN_TRL_INNER = {:.3g}, PER_TOKEN_TRL_WIDTH = {:.3g}".format(
        *solve(columns, [TRL_MARGIN * working(row, models[row["shape"]]) for row in trl])
    ))  # fmt: skip


def predicted(row: dict[str, str], model: Model) -> float:
    kept = row["checkpointing"] == "off"
    fewer = int(row["trainable"]) * (memory.OPTIMIZER_BYTES - OPTIMIZER_BYTES[row["optimizer"]])
    peak = memory.memory(model, settings_of(row), tokens_of(row), kept).peak
    return (peak * memory.GB - fewer) / GIB


def report(rows: list[dict[str, str]], models: dict[str, Model]) -> None:
    errors: dict[str, list[float]] = {"fitted": [], "held out": [], "template": [], "preferences": []}
    seen: set[tuple] = set()
    for row in rows:
        model, process = models[row["shape"]], (row["shape"], row["precision"], row["checkpointing"], row["backend"])
        error = predicted(row, model) / float(row["allocated_gib"]) - 1
        part = (
            "preferences"
            if row.get("loss")
            else "template"
            if "contender" in row
            else "held out"
            if row["shape"] in HELD_OUT
            else "fitted"
        )
        compiled = row["backend"] == "unsloth" and not memory.own_forward(model) and not row["shape"].startswith("gemma")
        second = part == "fitted" and process in seen and compiled
        seen.add(process)
        if not second:
            errors[part].append(error)
        print(f"{'second' if second else part:9} {row['shape']:11} {row['precision']:5} {row['checkpointing']:7} "
              f"{row['length']:>5} × {row['batch']}  measured {float(row['allocated_gib']):6.2f} GiB  "
              f"predicted {predicted(row, model):6.2f}  {error:+.1%}")  # fmt: skip
    for part, values in errors.items():
        print(f"{part}: {len(values)} rows, mean error {np.mean(np.abs(values)):.1%}, {min(values):+.1%} to {max(values):+.1%}")


def template_runs() -> list[dict[str, str]]:
    """The whole runs of the template in speed.csv, as rows of memory.csv."""
    ways = {
        "ours": {"checkpointing": "off", "batch": "4", "backend": "unsloth"},
        "ours-lean": {"checkpointing": "offload", "batch": "2", "backend": "unsloth"},
        "ours-trl": {"checkpointing": "off", "batch": "4", "backend": "trl"},
    }
    with (ROOT / "benchmarks" / "speed.csv").open() as file:
        return [
            {**row, "precision": "4bit", "optimizer": "adamw", "packed": "yes", "length": "2048", **ways[row["contender"]],
             "allocated_gib": str(float(row["peak_gb"]) * 1e9 / GIB)}
            for row in csv.DictReader(file)
            if row["contender"] in ways
        ]  # fmt: skip


def preference_runs() -> list[dict[str, str]]:
    """The whole runs of templates/dpo.py in preferences.csv: four pairs at once, each of two answers that fill the length."""
    fixed = {"backend": "unsloth", "checkpointing": "off", "packed": "no", "optimizer": "adamw", "loss": "sigmoid"}
    fixed |= {"batch": "8", "length": "1024"}
    with (ROOT / "benchmarks" / "preferences.csv").open() as file:
        return [
            {**row, **fixed, "trainable": "0", "allocated_gib": str(float(row["peak_gb"]) * 1e9 / GIB)}
            for row in csv.DictReader(file)
            if row["contender"] == "ours" and row["peak_gb"]
        ]


def main() -> None:
    with (ROOT / "benchmarks" / "memory.csv").open() as file:
        rows = list(csv.DictReader(file))
    models = {shape: model_of(shape) for shape in {row["shape"] for row in rows}}
    fit(rows, models)
    report([*rows, *template_runs(), *preference_runs()], models)


if __name__ == "__main__":
    main()
