"""Measure the GPU memory that templates/sft.py really takes, over model shapes, precisions, lengths and batches.

    python benchmarks/memory.py --shape lfm2-1.2b --precision 4bit --out benchmarks/memory.csv
    python benchmarks/memory.py --missing --out benchmarks/memory.csv   # 16-bit LoRA, what the file lacks of it

Models have random weights made from a config of the real shape: as large and as fast as the real one. Each row of
the output is one (checkpointing, length, batch) of one process, packed as the template packs; every sequence is full,
which is the worst case that a run can meet. `scripts/unsloth_jobs/estimate/memory.py` is fitted on the CSV by
`benchmarks/fit_memory.py`.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import gc
import importlib.metadata
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "templates"), str(ROOT / "demo")]

STEPS = 3
SHAPES = ("lfm2-350m", "lfm2-1.2b", "qwen3-0.6b", "qwen3-1.7b", "qwen3-4b", "llama-1b", "llama-8b", "gemma3-1b")
FIELDS = (
    "shape", "architecture", "parameters", "precision", "packed", "checkpointing", "length", "batch", "weights_gib",
    "allocated_gib", "reserved_gib", "trainable", "gpu", "versions", "date", "backend", "optimizer",
)  # fmt: skip


def config_of(shape: str, vocabulary: dict):
    """A transformers config of a published model's shape."""
    from transformers import Gemma3TextConfig, Lfm2Config, LlamaConfig, Qwen3Config

    def lfm2(hidden: int, inner: int, heads: int) -> Lfm2Config:
        kinds = ["full_attention" if kind == "A" else "conv" for kind in "ccAccAccAcAcAcAc"]
        return Lfm2Config(
            vocab_size=65536, hidden_size=hidden, intermediate_size=inner, block_auto_adjust_ff_dim=True,
            num_hidden_layers=16, num_attention_heads=heads, num_key_value_heads=8, layer_types=kinds, **vocabulary,
        )  # fmt: skip

    def qwen3(hidden: int, inner: int, layers: int, heads: int) -> Qwen3Config:
        return Qwen3Config(
            vocab_size=151936, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, head_dim=128,
            num_attention_heads=heads, num_key_value_heads=8, tie_word_embeddings=True, **vocabulary,
        )  # fmt: skip

    def llama(hidden: int, inner: int, layers: int, tied: bool) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=128256, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
            num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=tied, **vocabulary,
        )  # fmt: skip

    gemma = dict(vocab_size=262144, head_dim=256, tie_word_embeddings=True, sliding_window=512, **vocabulary)
    return {
        "lfm2-350m": lambda: lfm2(1024, 6656, 16),
        "lfm2-1.2b": lambda: lfm2(2048, 12288, 32),
        "qwen3-0.6b": lambda: qwen3(1024, 3072, 28, 16),
        "qwen3-1.7b": lambda: qwen3(2048, 6144, 28, 16),
        "qwen3-4b": lambda: qwen3(2560, 9728, 36, 32),
        "llama-1b": lambda: llama(2048, 8192, 16, True),
        "llama-8b": lambda: llama(4096, 14336, 32, False),
        "gemma3-1b": lambda: Gemma3TextConfig(
            hidden_size=1152, intermediate_size=6912, num_hidden_layers=26, num_attention_heads=4,
            num_key_value_heads=1, **gemma),
        "tiny": lambda: LlamaConfig(
            vocab_size=1024, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, **vocabulary),
    }[shape]()  # fmt: skip


def make_model(shape: str, folder: Path) -> int:
    """A model with random weights and the demo's tokenizer, on disk; returns its number of parameters."""
    import tiny_model
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = tiny_model.make_tokenizer()
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config_of(shape, special), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    parameters = model.num_parameters()
    del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return parameters


def measure(sft, model, tokenizer, settings, rows: int, before: int) -> dict:
    """Train a few steps on rows that fill the length; the peaks, in GiB, without the bytes held before the model."""
    import torch
    from datasets import Dataset

    ids = [[5 + (row * 7 + position) % 900 for position in range(settings.max_seq_length)] for row in range(rows)]
    data = Dataset.from_dict({"input_ids": ids, "labels": ids, "length": [settings.max_seq_length] * rows})
    gc.collect()  # what the trainer before this one left
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    batching = sft.Batching(settings.batch_size, settings.gradient_accumulation, settings.max_seq_length)
    trainer = sft.build_trainer(model, tokenizer, data, None, settings, batching=batching, packed=True)
    trainer.train()
    gib = 2**30
    on_gpu = torch.cuda.is_available()
    return {
        "allocated_gib": round((torch.cuda.max_memory_allocated() - before) / gib, 3) if on_gpu else "",
        "reserved_gib": round((torch.cuda.max_memory_reserved() - before) / gib, 3) if on_gpu else "",
    }


def measure_mode(sft, words: list[str], options: argparse.Namespace) -> Iterator[dict]:
    """The rows of one way of checkpointing, each as soon as it is measured."""
    import torch
    from transformers import AutoTokenizer

    longest = max(map(int, options.lengths.split(",")))
    settings = sft.parse_args([*words, "--max-seq-length", str(longest)])
    before = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0  # what an earlier mode has not given back
    model = sft.load_model(settings)
    tokenizer = AutoTokenizer.from_pretrained(settings.base_model)
    weights = (torch.cuda.memory_allocated() - before) / 2**30 if torch.cuda.is_available() else 0
    architecture = type(model).__name__
    sft.keep_rows_apart(model)
    model = sft.attach_adapter(model, settings)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    for length in options.lengths.split(","):
        for batch in options.batches.split(","):
            settings = sft.parse_args([*words, "--max-seq-length", length, "--batch-size", batch])
            found = measure(sft, model, tokenizer, settings, STEPS * 2 * int(batch), before)
            yield {
                "architecture": architecture, "length": length, "batch": batch, "weights_gib": round(weights, 3),
                "trainable": trainable, **found,
            }  # fmt: skip
    del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def add_row(path: Path, row: dict, fields: tuple[str, ...] = FIELDS) -> None:
    """One more row of a CSV, which gets its head with the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fields)
        if new:
            writer.writeheader()
        writer.writerow(row)


def missing(path: Path) -> list[tuple[str, str]]:
    """Shapes and ways of checkpointing that a file has no row of in 16 bits and packed, as the template packs."""
    rows = list(csv.DictReader(path.open())) if path.exists() else []
    there = {
        (row["shape"], row["checkpointing"])
        for row in rows
        if (row["precision"], row["packed"], row["backend"]) == ("16bit", "yes", "unsloth")
    }
    return [(shape, mode) for shape in SHAPES for mode in ("off", "offload") if (shape, mode) not in there]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--shape")
    wanted.add_argument("--missing", action="store_true", help="each shape in 16 bits, packed, that --out has no row of")
    parser.add_argument("--precision", choices=["4bit", "16bit"], default="16bit")
    parser.add_argument("--backend", choices=["unsloth", "trl"], default="unsloth")
    parser.add_argument("--checkpointing", default="off,offload")
    parser.add_argument("--lengths", default="1024,2048")
    parser.add_argument("--batches", default="2,4")
    parser.add_argument("--work", default="/tmp/memory", help="folder for models and checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="CSV to add to")
    options = parser.parse_args()
    if options.missing:
        for shape, mode in missing(options.out):
            words = ["--shape", shape, "--precision", "16bit", "--checkpointing", mode, "--out", str(options.out)]
            subprocess.run([sys.executable, __file__, *words, "--work", options.work])  # one that fails leaves the others
        return
    work = Path(options.work) / f"{options.shape}-{options.precision}-{options.backend}"
    parameters = make_model(options.shape, work / "model")

    if options.backend == "unsloth":
        import unsloth  # noqa: F401  before transformers, which it patches
    import sft

    names = ("unsloth", "torch", "transformers", "trl")
    common = {
        "shape": options.shape, "parameters": parameters, "precision": options.precision,
        "gpu": sft.hardware()["device"], "date": datetime.date.today().isoformat(),
        "versions": " ".join(f"{name}={importlib.metadata.version(name)}" for name in names), "backend": options.backend,
        "optimizer": "adamw",
    }  # fmt: skip
    flags = {
        "base-model": work / "model", "dataset": "made here", "save-local": work / "out", "eval-split": 0, "max-steps": STEPS,
        "gradient-accumulation": 2, "save-steps": 1000, "backend": options.backend, "learning-rate": 2e-4, "num-epochs": 1,
        "early-stopping": 0,
    }  # fmt: skip
    base = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    base.append(f"--load-in-{options.precision}")
    for mode in options.checkpointing.split(","):
        for row in measure_mode(sft, [*base, "--gradient-checkpointing", mode], options):
            add_row(options.out, {**common, "packed": "yes", "checkpointing": mode, **row})
            print(row, flush=True)
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
