"""Compare templates/dpo.py with plain TRL on the same pairs: tokens a second, memory, and reward accuracy.

    python benchmarks/preferences.py lfm2-1.2b llama-1b qwen3-4b --steps 24 --out benchmarks/preferences.csv
    python benchmarks/preferences.py tiny --steps 6 --warmup 2 --precision 16bit --out /tmp/tiny.csv   # on a CPU

Run it in the environment of templates/dpo.py. Models have random weights and the real shape (see memory.py); the rows
are made here: better answers draw their words from one half of a vocabulary, worse ones from the other. Contenders, each
in a process of its own, with compile caches of its own (see speed.py):

    ours       templates/dpo.py, as a user runs it
    ours-trl   the same with --backend trl: without Unsloth
    trl        TRL's DPOTrainer, PEFT and bitsandbytes as they are, with gradient checkpointing
    trl-kept   the same without it, which is faster where the GPU has the room

`tokens_per_s` counts both answers of a pair with their prompt, padding not, after the first steps. `told` is every argument
of the trainer that differs between TRL's configuration and ours: on a GPU this shows what Unsloth made of it.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import math
import random
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("templates", "demo", "benchmarks")]

LENGTH, BATCH, ACCUMULATION, SEED, RATE, BETA = 1024, 4, 4, 42, 1e-4, 0.1
HELD_OUT = 32
CONTENDERS = ("ours", "ours-trl", "trl", "trl-kept")
FIELDS = (
    "shape", "contender", "precision", "tokens_per_s", "peak_gb", "first_step_s", "reward_accuracy", "final_loss",
    "note", "told", "gpu", "versions", "date",
)  # fmt: skip


def make_rows(count: int, path: Path) -> None:
    """Pairs as turns: a prompt of about 100 tokens, answers of about 250 with a long tail."""
    import tiny_model

    draw = random.Random(SEED)
    lines = tiny_model.ROWS.read_text("utf-8").splitlines()
    words = sorted({word for line in lines for turn in json.loads(line)["messages"] for word in turn["content"].split()})
    halves = words[::2], words[1::2]

    def text(vocabulary: list[str], tokens: float) -> str:
        return " ".join(draw.choice(vocabulary) for _ in range(max(int(tokens / 3), 2)))  # about three tokens a word

    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            answers = [text(half, min(draw.lognormvariate(math.log(250) - 0.2, 0.6), 800)) for half in halves]
            row = {"prompt": [{"role": "user", "content": text(words, 100)}]}
            row |= {
                name: [{"role": "assistant", "content": said}]
                for name, said in zip(("chosen", "rejected"), answers, strict=True)
            }
            file.write(json.dumps(row) + "\n")


# ---- contenders, each in a process of its own


def settings_of(model: str, rows: str, folder: str, options: list[str]) -> list[str]:
    values = {
        "base-model": model, "dataset": rows, "save-local": folder, "batch-size": BATCH, "gradient-accumulation": ACCUMULATION,
        "max-seq-length": LENGTH, "learning-rate": RATE, "beta": BETA, "seed": SEED, "save-steps": 10**6, "eval-split": 0.5,
        "max-eval-rows": HELD_OUT, "grader": "none",
    }  # fmt: skip
    return [word for name, value in values.items() for word in (f"--{name}", str(value))] + options


def ours(*words: str) -> None:
    """templates/dpo.py's own main, which also says what its trainer was told."""
    import dpo

    build = dpo.build_trainer

    def telling(*args, **kwargs):
        trainer = build(*args, **kwargs)
        tell(trainer.args)
        return trainer

    dpo.build_trainer = telling
    sys.argv = ["dpo.py", *words]
    sys.exit(dpo.main())


def tell(args) -> None:
    import dataclasses

    import dpo

    defaults = {field.name: field.default for field in dataclasses.fields(args)}
    values = {name: value for name, value in args.to_dict().items() if name in defaults and value != defaults[name]}
    dpo.emit("told", values={name: str(value) for name, value in values.items() if "dir" not in name and "token" not in name})


def plain(kept: bool, model_folder: str, rows: str, folder: str, steps: int, in_16bit: bool) -> None:
    """TRL's DPOTrainer with its own tokens, rows and reference: a new adapter switched off."""
    import contenders
    import dpo
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    from trl import DPOConfig, DPOTrainer

    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        dpo.compute_head_without_gpu()
    quantised = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
    )
    model = AutoModelForCausalLM.from_pretrained(
        model_folder, dtype=torch.bfloat16 if on_gpu else torch.float32, attn_implementation="sdpa",
        quantization_config=quantised if on_gpu and not in_16bit else None, device_map={"": 0 if on_gpu else "cpu"},
    )  # fmt: skip
    made = dpo.parse_args(settings_of(model_folder, rows, folder, []))
    data = dpo.load_rows(made).map(lambda row: {name: dpo.from_cell(value) for name, value in row.items()}, features=None)
    train, held_out = dpo.split_rows(data, made)
    config = DPOConfig(
        output_dir=folder, max_steps=steps, per_device_train_batch_size=BATCH, gradient_accumulation_steps=ACCUMULATION,
        learning_rate=RATE, beta=BETA, warmup_steps=0.1, optim="adamw_torch_fused", bf16=on_gpu, max_length=LENGTH,
        gradient_checkpointing=not kept, pad_to_multiple_of=64, save_strategy="no", logging_steps=1, report_to="none", seed=SEED,
        per_device_eval_batch_size=1, disable_tqdm=True,
    )  # fmt: skip
    adapter = LoraConfig(r=16, lora_alpha=32, lora_dropout=0, target_modules="all-linear", task_type="CAUSAL_LM")
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    trainer = DPOTrainer(
        model=model, args=config, processing_class=tokenizer, train_dataset=train, eval_dataset=held_out, peft_config=adapter
    )
    tell(config)
    contenders.train_measured(trainer)
    dpo.emit("accuracy", value=trainer.evaluate()["eval_rewards/accuracies"])


def child(contender: str, *words: str) -> None:
    if contender.startswith("ours"):
        return ours(*words)
    *own, steps, precision = words
    plain(contender == "trl-kept", *own, int(steps), precision == "16bit")


# ---- the parent process


def command(contender: str, options: argparse.Namespace, model: Path, rows: Path, folder: Path) -> list[str]:
    start = [sys.executable, __file__, "--child", contender]
    own = [str(model), str(rows), str(folder / "out")]
    if not contender.startswith("ours"):
        return [*start, *own, str(options.steps), options.precision]
    more = ["--max-steps", str(options.steps)]
    more += ["--load-in-16bit"] if options.precision == "16bit" else []
    return [*start, *settings_of(*own, more + (["--backend", "trl"] if contender == "ours-trl" else []))]


def figures(events: list[dict], error: str, warmup: int) -> dict:
    import speed

    by_name = {event["event"]: event for event in events}
    found, done = speed.figures(events, error, warmup), by_name.get("done", {})
    per_second = found["tokens_per_s"]
    if done.get("train_s"):  # its evaluations stand between the steps
        per_second = done["timed_tokens"] / done["train_s"]
    accuracy = by_name.get("accuracy", {}).get("value")
    return {
        "tokens_per_s": per_second,
        "peak_gb": found["peak_gb"],
        "first_step_s": found["first_step_s"],
        "reward_accuracy": done["preferences"]["reward_accuracy"][1] if done.get("preferences") else accuracy,
        "final_loss": found["final_loss"],
        "note": error or done.get("note", "its defaults"),
        "told": json.dumps(by_name.get("told", {}).get("values")),
    }


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="+", metavar="SHAPE", help="of memory.py")
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--precision", choices=["4bit", "16bit"], default="4bit")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=4, help="steps that are not timed")
    parser.add_argument("--limit-s", type=float, default=300, help="seconds that a contender may take")
    parser.add_argument("--work", type=Path, default=Path("/tmp/preferences"), help="folder for models, rows and logs")
    parser.add_argument("--out", type=Path, required=True, help="CSV to add to")
    return parser.parse_args()


def main() -> None:
    options = parse_args()
    import memory
    import sft
    import speed

    names = ("unsloth", "torch", "transformers", "trl", "peft", "bitsandbytes")
    versions = " ".join(f"{name}={importlib.metadata.version(name)}" for name in names)
    common = {"gpu": sft.hardware()["device"], "versions": versions, "date": datetime.date.today().isoformat()}
    for shape in options.shapes:
        work = options.work / shape
        work.mkdir(parents=True, exist_ok=True)
        make_rows(options.steps * BATCH * ACCUMULATION + HELD_OUT, work / "pairs.jsonl")
        memory.make_model(shape, work / "model")
        for contender in options.contenders.split(","):
            folder, began = work / contender, time.monotonic()
            words = command(contender, options, work / "model", work / "pairs.jsonl", folder)
            row = figures(*speed.run(words, folder, options.limit_s), options.warmup)
            row = {"shape": shape, "contender": contender, "precision": options.precision, **row, **common}
            memory.add_row(options.out, speed.rounded(row), FIELDS)
            print({name: row[name] for name in FIELDS[:8] if name in row}, row["note"], f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()
