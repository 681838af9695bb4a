"""Measure templates/sft.py on several GPUs of one host: tokens a second, memory of each GPU, and the loss against one GPU's.

    python benchmarks/several.py --out benchmarks/several.csv
    python benchmarks/several.py lfm2-1.2b:64:4 llama-8b:fsdp2:4 --out benchmarks/several.csv

Run it in the environment of templates/sft.py. A case is SHAPE:ROWS:GPUS, ROWS being the effective batch size; it is a run
of the template with QLoRA on so many of the machine's GPUs, as a user starts it. Models have random weights and the real
shape (memory.py), rows are of mixed length (speed.py). One runs after the other, or with --beside as many at once as there
are GPUs for; those of one shape share what they compile. `tokens_per_s` is of the median step after the warm-up; `scaling` is
tokens_per_s over GPUS times the tokens_per_s of one, which beside others is a little slow: the rows of 2026-11-27 are so made;
`loss_difference` the largest difference of a step's loss to one GPU's. A case that the CSV has is left out: cut, it goes on.

SHAPE:fsdp2:GPUS is Unsloth's own FSDP2 with QLoRA and TRL's trainer, on full rows of 2,048 tokens: what a GPU holds where a
model is spread over all. `note` says whether the adapter that it saves is whole.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import importlib.metadata
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("templates", "demo", "benchmarks")]

import speed  # noqa: E402
from contenders import LENGTH, SEED  # noqa: E402

BATCH, MOST_ROWS = 4, 64
PUBLISHED = (
    "lfm2-1.2b:64:1", "llama-1b:64:1", "lfm2-1.2b:64:2", "llama-1b:64:2", "lfm2-1.2b:16:2", "lfm2-1.2b:64:4", "llama-1b:64:4",
    "lfm2-1.2b:16:1", "llama-1b:16:1", "llama-1b:16:2", "lfm2-1.2b:16:4", "llama-1b:16:4", "llama-8b:fsdp2:4", "llama-8b:fsdp2:2",
)  # fmt: skip
FIELDS = (
    "shape", "kind", "gpus", "tokens_per_s", "scaling", "peaks_gb", "first_step_s", "start_to_first_step_s", "final_loss",
    "loss_difference", "losses", "note", "gpu", "versions", "date",
)  # fmt: skip
Case = tuple[str, str, int]


def command(case: Case, options: argparse.Namespace, folder: Path) -> list[str]:
    shape, kind, gpus = case
    work = options.work / shape
    if kind == "fsdp2":
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}"]
        return [sys.executable, *launcher, __file__, "--fsdp2", str(work / "model"), str(folder / "out"), str(options.steps)]
    settings = {
        "base-model": work / "model", "dataset": options.work / "rows.jsonl", "save-local": folder / "out",
        "max-steps": options.steps, "eval-split": 0, "batch-size": BATCH, "gradient-accumulation": int(kind) // BATCH,
        "max-seq-length": options.length, "lora-r": 16, "lora-alpha": 32, "learning-rate": 2e-4, "num-epochs": 1, "seed": SEED,
        "save-steps": 10**6, "grader": "none", "early-stopping": 0,
    }  # fmt: skip
    flags = [word for name, value in settings.items() for word in ("--" + name, str(value))]
    return [sys.executable, str(ROOT / "templates" / "sft.py"), *flags, "--load-in-4bit" if options.gpus else "--load-in-16bit"]


def measure(case: Case, places: list[int], options: argparse.Namespace) -> dict:
    """A row of the CSV, but for what it says beside one GPU's."""
    shape, kind, gpus = case
    folder = options.work / shape / f"{kind}-{gpus}"
    env = {"UNSLOTH_JOBS_PROCESSES": str(gpus)} | ({"CUDA_VISIBLE_DEVICES": ",".join(map(str, places))} if options.gpus else {})
    if kind == "fsdp2":
        # As where the model does not fit one GPU, which this one does.
        env |= {"UNSLOTH_FSDP2": "1", "UNSLOTH_FSDP2_LAYOUT": "sharded"}
    left = max(options.end - time.monotonic(), 1)
    limit = min(options.limit_s, left)
    events, error = speed.run(command(case, options, folder), folder, limit, options.work / shape / "caches", **env)
    shutil.rmtree(folder / "out", ignore_errors=True)
    found = speed.figures(events, error, options.warmup)
    done = next((event for event in reversed(events) if event["event"] == "done"), {})
    losses = [event["loss"] for event in events if event["event"] == "progress"]
    return {
        "shape": shape,
        "kind": kind,
        "gpus": gpus,
        **{name: found[name] for name in ("first_step_s", "start_to_first_step_s", "final_loss")},
        "tokens_per_s": usual_pace([event for event in events if event["event"] == "progress"], options.warmup),
        "peaks_gb": " ".join(str(one) for one in done.get("peaks_gb") or [done.get("peak_gb", "")]),
        "losses": " ".join(f"{loss:.4f}" for loss in losses),
        "note": error or done.get("note", ""),
    }


def usual_pace(progress: list[dict], warmup: int) -> float | None:
    """Tokens a second of the median step: a single slow one, as a run on one GPU had, does not count."""
    pairs = [(one, next_one) for one, next_one in itertools.pairwise(progress) if one["step"] >= warmup]
    paces = [(after["tokens"] - before["tokens"]) / (after["at"] - before["at"]) for before, after in pairs]
    return statistics.median(paces) if paces else None


def beside_one(row: dict, rows: list[dict]) -> dict:
    """How a row compares with one GPU's of the same run, where that is measured."""
    one = next((r for r in rows if (r["shape"], r["kind"], int(r["gpus"])) == (row["shape"], row["kind"], 1)), None)
    if one is None or not one["tokens_per_s"] or not row["tokens_per_s"]:
        return {"scaling": None, "loss_difference": None}
    pairs = zip(one["losses"].split(), row["losses"].split(), strict=False)
    return {
        "scaling": float(row["tokens_per_s"]) / float(one["tokens_per_s"]) / int(row["gpus"]),
        "loss_difference": max(abs(float(a) - float(b)) for a, b in pairs),
    }


def measured(path: Path) -> list[dict]:
    return list(csv.DictReader(path.open())) if path.exists() else []


def make_inputs(options: argparse.Namespace) -> None:
    """Models and rows that are not there yet."""
    import memory

    options.work.mkdir(parents=True, exist_ok=True)
    speed.make_rows("mixed", options.steps * MOST_ROWS, options.work / "rows.jsonl")  # the same in each call
    for shape in dict.fromkeys(shape for shape, _, _ in options.cases):
        if not (options.work / shape / "model" / "config.json").exists():
            memory.make_model(shape, options.work / shape / "model")


def run_all(options: argparse.Namespace, common: dict) -> None:
    """Each case as soon as so many GPUs are free, in order; its row as soon as it is measured."""
    import memory

    free, waiting, running = list(range(options.gpus or options.processes)), list(options.cases), {}

    def finish(future: Future) -> None:
        places = running.pop(future)
        free.extend(places)
        row = future.result() | common
        row |= beside_one(row, [*measured(options.out), row])
        memory.add_row(options.out, speed.rounded(row), FIELDS)
        print({name: row[name] for name in FIELDS if name not in (*common, "losses")}, flush=True)

    with ThreadPoolExecutor(len(free)) as pool:
        while waiting or running:
            fits = (at for at, case in enumerate(waiting) if case[2] <= len(free) and (options.beside or not running))
            at = next(fits, None)
            if waiting and at is not None and time.monotonic() < options.end:
                places = [free.pop(0) for _ in range(waiting[at][2])]
                running[pool.submit(measure, waiting.pop(at), places, options)] = places
            elif running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    finish(future)
            else:
                return


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="SHAPE:ROWS:GPUS", help="none: all published")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--warmup", type=int, default=5, help="steps that are not timed")
    parser.add_argument("--length", type=int, default=LENGTH, help="tokens of the longest row")
    parser.add_argument("--beside", action="store_true", help="at once what there are GPUs for: sooner done, less exact")
    parser.add_argument("--limit-s", type=float, default=150, help="seconds that a case may take")
    parser.add_argument("--all-s", type=float, default=390, help="seconds that all may take, models included")
    parser.add_argument("--processes", type=int, default=2, help="at once, on a machine without a GPU: for a trial")
    parser.add_argument("--work", type=Path, default=Path("/tmp/several"), help="folder for models, rows and logs")
    parser.add_argument("--out", type=Path, required=True, help="CSV to add to")
    options = parser.parse_args()
    there = {(row["shape"], row["kind"], int(row["gpus"])) for row in measured(options.out) if row["tokens_per_s"]}
    cases = [(shape, kind, int(gpus)) for shape, kind, gpus in (case.split(":") for case in options.cases or PUBLISHED)]
    options.cases = [case for case in cases if case not in there]
    return options


def main() -> None:
    options = parse_args()
    options.end = time.monotonic() + options.all_s
    import sft
    import torch

    options.gpus = torch.cuda.device_count()
    options.cases = [case for case in options.cases if case[2] <= (options.gpus or options.processes)]
    names = ("unsloth", "torch", "transformers", "trl", "peft", "bitsandbytes")
    versions = " ".join(f"{name}={importlib.metadata.version(name)}" for name in names)
    common = {
        "gpu": f"{options.gpus} x {sft.hardware()['device']}", "versions": versions, "date": datetime.date.today().isoformat()
    }  # fmt: skip
    # In a process of its own, so that this one holds nothing of a GPU's memory while others are measured.
    if options.cases:
        words = ["--make", json.dumps([list(case) for case in options.cases]), str(options.work), str(options.steps)]
        subprocess.run([sys.executable, __file__, *words], check=True)
        run_all(options, common)


# ---- a model that is spread over all GPUs, by Unsloth's FSDP2


def train_sharded(model_folder: str, folder: str, steps: str) -> None:
    """One process of torchrun's: a few steps, timed, and the adapter that they save."""
    import torch
    from unsloth import FastLanguageModel  # isort: skip  # first: it patches what comes after it
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    on_gpu, rank = torch.cuda.is_available(), int(os.environ["RANK"])
    began = time.monotonic()
    model, _ = FastLanguageModel.from_pretrained(
        model_folder, max_seq_length=LENGTH, load_in_4bit=on_gpu, load_in_16bit=not on_gpu, use_exact_model_name=True
    )
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = FastLanguageModel.get_peft_model(
        model, r=16, lora_alpha=32, target_modules=targets, use_gradient_checkpointing="unsloth", random_state=SEED
    )
    length = LENGTH if on_gpu else 64
    ids = [[5 + (row * 7 + at) % 900 for at in range(length)] for row in range(8 * int(steps))]
    rows = Dataset.from_dict({"input_ids": ids, "labels": ids})
    say = lambda event, **values: rank or print("EVENT " + json.dumps({"event": event, **values}), flush=True)  # noqa: E731

    class Tell(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" in (logs or {}):
                each = args.per_device_train_batch_size * args.gradient_accumulation_steps * int(os.environ["WORLD_SIZE"])
                tokens, elapsed = state.global_step * each * length, round(time.monotonic() - began, 1)
                say("progress", step=state.global_step, loss=float(logs["loss"]), tokens=tokens, elapsed_s=elapsed)

    config = SFTConfig(
        output_dir=folder, max_steps=int(steps), per_device_train_batch_size=1, gradient_accumulation_steps=2, logging_steps=1,
        learning_rate=2e-4, optim="adamw_torch_fused", bf16=on_gpu, report_to="none", disable_tqdm=True, save_strategy="no",
        max_length=LENGTH, dataset_kwargs={"skip_prepare_dataset": True}, seed=SEED,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    trainer = SFTTrainer(model=model, processing_class=tokenizer, args=config, train_dataset=rows, callbacks=[Tell()])
    held = torch.cuda.memory_allocated() / 1e9 if on_gpu else 0.0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    peak = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else 0.0
    peaks = [None] * int(os.environ["WORLD_SIZE"])
    torch.distributed.all_gather_object(peaks, round(peak, 3))
    say("done", peaks_gb=peaks, note=f"{held:.1f} GB held before training; its adapter could not be saved")
    trainer.save_model(folder)
    torch.distributed.barrier()
    if rank == 0:
        from safetensors.torch import load_file

        saved = load_file(str(Path(folder) / "adapter_model.safetensors"))
        trained = sum("lora_B" in name and bool(value.any()) for name, value in saved.items())
        sizes = sum(value.numel() for value in saved.values())
        note = f"{held:.1f} GB held before training; saved {sizes:,} values in {len(saved)} tensors, {trained} lora_B not zero"
        say("done", peaks_gb=peaks, note=note)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--fsdp2"]:
        train_sharded(*sys.argv[2:])
    elif sys.argv[1:2] == ["--make"]:
        made, folder, steps = sys.argv[2:]
        make_inputs(argparse.Namespace(cases=json.loads(made), work=Path(folder), steps=int(steps)))
    else:
        main()
