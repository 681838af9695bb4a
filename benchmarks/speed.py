"""Compare templates/sft.py with the script it grew out of and with plain TRL: real tokens a second, and memory.

    python benchmarks/speed.py --together --steps 16 --warmup 5 --limit-s 430 --out benchmarks/speed.csv
    python benchmarks/speed.py lfm2-1.2b:mixed:ours-trl llama-1b:mixed:ours-trl --together --out benchmarks/speed.csv

Run it in the environment of templates/sft.py. Models have random weights and the real shape (see memory.py); the rows
are made here and are the same for all. Contenders, each in a process of its own, with compile caches of its own:

    ours        templates/sft.py with QLoRA, as all the others
    ours-lean   the same, two sequences at once and activations offloaded: for the least memory
    ours-trl    the same with --backend trl: without Unsloth
    article     the script printed in huggingface.co/blog/unsloth-jobs, with its own list of modules and its defaults
    trl         TRL, PEFT and bitsandbytes without Unsloth, on ours' tokens and masks, rows grouped by length
    trl-packed  the same with rows packed; refused where the model lets packed rows see one another

speed.csv was measured on torch 2.11. There the compiled part of xformers 0.0.35 does not load, so its loader was told to
go on without it: the attention that Unsloth asks of it is torch's own kernel. A job has torch 2.10, where it loads.

Padding is no token. Steps are timed from the log line of one to the log line of another, by the clock of this
process. `tokens_per_s` leaves out the first --warmup steps, `tokens_per_s_after_first` only the first one, which is
all that the template's events can tell apart: for ours the two are the same.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("templates", "demo", "benchmarks")]

from contenders import ACCUMULATION, BATCH, LENGTH, SEED, Turn, child  # noqa: E402

KINDS = ("mixed", "full")
CONTENDERS = ("ours", "ours-lean", "ours-trl", "article", "trl", "trl-packed")
PUBLISHED = (  # what one GPU of 80 GB holds at once
    "lfm2-1.2b:mixed:ours,ours-lean,article,trl", "lfm2-1.2b:full:ours,trl", "llama-1b:mixed:ours,trl,trl-packed",
    "qwen3-0.6b:mixed:ours,trl-packed",
)  # fmt: skip
FIELDS = (
    "shape", "data", "contender", "tokens_per_s", "tokens_per_s_after_first", "rows_per_s", "peak_gb", "first_step_s",
    "start_to_first_step_s", "final_loss", "trainable", "note", "gpu", "versions", "date",
)  # fmt: skip


# ---- rows


def make_rows(kind: str, count: int, path: Path) -> None:
    """Conversations of words drawn from the demo's rows. mixed: lengths as in a chat data set; full: each is cut."""
    import tiny_model

    tokenizer, draw = tiny_model.make_tokenizer(), random.Random(SEED)
    texts = (
        turn["content"] for line in tiny_model.ROWS.read_text("utf-8").splitlines() for turn in json.loads(line)["messages"]
    )
    words = sorted({word for text in texts for word in text.split()})
    sizes = [len(tokenizer(" " + word).input_ids) for word in words]
    frame = [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]
    overhead = len(tokenizer.apply_chat_template(frame, tokenize=True, return_dict=False))

    def text(tokens: float) -> str:
        chosen = []
        while tokens > 0:
            index = draw.randrange(len(words))
            chosen.append(words[index])
            tokens -= sizes[index]
        return " ".join(chosen)

    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            # A lognormal with mean 500 and a long tail, as FineTome has.
            tokens = LENGTH + 64 if kind == "full" else min(max(draw.lognormvariate(math.log(500) - 0.32, 0.8), 32), LENGTH)
            asked = (tokens - overhead) * 0.2
            turns = zip(("user", "assistant"), (text(asked), text(tokens - overhead - asked)), strict=True)
            file.write(json.dumps({"messages": [{"role": role, "content": said} for role, said in turns]}) + "\n")


# ---- the parent process: one contender after the other, read by its events


def command(contender: str, options: argparse.Namespace, model: Path, rows: Path, folder: Path) -> list[str]:
    if not contender.startswith("ours"):
        own = [str(model), str(rows), str(folder / "out")]
        return [sys.executable, __file__, "--child", contender, *own, str(options.steps)]
    settings = {
        "base-model": model, "dataset": rows, "save-local": folder / "out", "max-steps": options.steps, "eval-split": 0,
        "batch-size": BATCH, "gradient-accumulation": ACCUMULATION, "max-seq-length": LENGTH, "lora-r": 16,
        "lora-alpha": 32, "learning-rate": 2e-4, "num-epochs": 1, "seed": SEED,
        "save-steps": 10**6,  # its usual ten checkpoints, spread over so few steps, would be what is timed
    }  # fmt: skip
    if contender == "ours-lean":
        settings |= {"batch-size": 2, "gradient-accumulation": BATCH * ACCUMULATION // 2, "gradient-checkpointing": "offload"}
    if contender == "ours-trl":
        settings |= {"backend": "trl"}
    flags = [word for name, value in settings.items() for word in ("--" + name, str(value))]
    return [sys.executable, __file__, "--child", contender, *flags, "--load-in-4bit"]


def run(arguments: list[str], folder: Path, limit: float, kept: Path | None = None, **env: str) -> tuple[list[dict], str]:
    """The events of a process, each with `at`, the seconds since its start; and why it failed, or "".

    kept: a folder of compiled kernels that several share. Without it, nobody's first step profits from what another one
    has compiled.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "UNSLOTH_COMPILE_LOCATION")
    caches = {name: str((kept or folder / "caches") / name.lower()) for name in names} | env
    shutil.rmtree(folder / "caches", ignore_errors=True)
    events, expired, log = [], threading.Event(), folder / "log.txt"
    with log.open("w", buffering=1) as lines:
        start = time.monotonic()
        process = subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=lines, text=True, env={**os.environ, **caches}, start_new_session=True
        )

        def stop() -> None:
            expired.set()
            os.killpg(process.pid, signal.SIGKILL)  # with the compilers it started

        timer = threading.Timer(limit, stop)
        timer.start()
        try:
            for line in process.stdout:
                at = time.monotonic() - start
                lines.write(line)
                if line.startswith("EVENT "):
                    events.append({**json.loads(line[6:]), "at": at})
            code = process.wait()
        except BaseException:
            stop()  # a process in a session of its own would outlive a Ctrl-C
            raise
        finally:
            timer.cancel()
    if expired.is_set():
        return events, f"stopped after --limit-s {limit:g}"
    failed = next((event["message"] for event in events if event["event"] == "failed"), None)
    return events, f"exit code {code}: {failed or last_error(log)}"[:300] if code else ""


def last_error(log: Path) -> str:
    """The line that ends a traceback, which a progress bar may follow."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return next((line for line in reversed(lines) if re.match(r"[\w.]*(Error|Exception)\b", line)), lines[-1] if lines else "")


def figures(events: list[dict], error: str, warmup: int) -> dict:
    """A row of the output from the events of a process; what they do not say stays empty."""
    by_name = {event["event"]: event for event in events}
    done, coverage, masks = (by_name.get(name, {}) for name in ("done", "coverage", "masks"))
    progress = [event for event in events if event["event"] == "progress"]
    first, last = (progress[0], progress[-1]) if progress else ({}, {})
    warm = next((event for event in progress if event["step"] == warmup), {})
    losses = [event["loss"] for event in progress[-5:]]
    if "tokens" in last:
        tokens_per_s, after_first = rate("tokens", warm, last), rate("tokens", first, last)
    else:
        # Not train_s alone: work that the GPU still has to do when a step's code has ended must be counted too.
        seconds = max(done.get("train_s") or 0, last.get("at", 0) - first.get("at", 0))
        tokens_per_s = after_first = ratio(done.get("timed_tokens"), seconds)
    # The template counts no rows while it trains: its tokens, over the mean of a row.
    rows_per_s = rate("rows", warm, last) or ratio(tokens_per_s, ratio(masks.get("tokens"), masks.get("rows_kept")))
    adapted = ",".join(coverage.get("target_modules", ()))
    return {
        "tokens_per_s": tokens_per_s,
        "tokens_per_s_after_first": after_first,
        "rows_per_s": rows_per_s,
        "peak_gb": done.get("peak_gb"),
        "first_step_s": first.get("elapsed_s"),
        "start_to_first_step_s": first.get("at"),
        "final_loss": ratio(sum(losses), len(losses)),
        "trainable": coverage.get("trainable"),
        "note": error or f"{done.get('note', 'its defaults')}; adapter on {adapted}",
    }


def rate(name: str, start: dict, end: dict) -> float | None:
    """tokens or rows a second between two progress events."""
    return ratio(end[name] - start[name], end["at"] - start["at"]) if name in start else None


def ratio(value: float | None, by: float | None) -> float | None:
    return value / by if value is not None and by else None


def rounded(row: dict) -> dict:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}


def table(rows: list[dict]) -> str:
    """What was measured, with ours as a multiple of each other contender of the same model and data."""
    columns = FIELDS[: FIELDS.index("note")]
    lines = [[*columns, "ours/other: speed", "after first", "memory"]]
    for row in rows:
        ours = next(
            (r for r in rows if r["contender"] == "ours" and (r["shape"], r["data"]) == (row["shape"], row["data"])), {}
        )
        names = ("tokens_per_s", "tokens_per_s_after_first", "peak_gb")
        ratios = [ratio(ours.get(name), row[name]) for name in names]
        lines.append([shown(value) for value in (*(row[name] for name in columns), *ratios)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    notes = [f"{row['shape']} {row['data']} {row['contender']}: {row['note']}" for row in rows]
    return "\n".join([*text, "", *notes])


def shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"
    return "-" if value is None else str(value)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "cases", nargs="*", metavar="SHAPE:DATA:CONTENDERS", help="lfm2-1.2b:mixed:ours,trl for one; none: all published"
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=4, help="steps that are not timed")
    parser.add_argument("--limit-s", type=float, default=240, help="seconds that a contender may take")
    parser.add_argument("--together", action="store_true", help="start all at once, time one after the other")
    parser.add_argument("--work", type=Path, default=Path("/tmp/speed"), help="folder for models, rows and logs")
    parser.add_argument("--out", type=Path, required=True, help="CSV to add to")
    options = parser.parse_args()
    options.cases = [
        (shape, kind, contender)
        for shape, kind, contenders in (case.split(":") for case in options.cases or PUBLISHED)
        for contender in contenders.split(",")
    ]
    for _, kind, contender in options.cases:
        if kind not in KINDS or contender not in CONTENDERS:
            parser.error(f"{kind}:{contender}: data is {' or '.join(KINDS)}, contenders are {', '.join(CONTENDERS)}")
    if not 1 <= options.warmup < options.steps:
        parser.error("--warmup must be at least 1 and leave a step of --steps to time")
    return options


def main() -> None:
    options = parse_args()
    import memory
    import sft

    names = ("unsloth", "torch", "transformers", "trl", "peft", "bitsandbytes")
    versions = " ".join(f"{name}={importlib.metadata.version(name)}" for name in names)
    common = {"gpu": sft.hardware()["device"], "versions": versions, "date": datetime.date.today().isoformat()}
    results, cases = [], options.cases
    for shape in dict.fromkeys(shape for shape, _, _ in cases):
        work = options.work / shape
        work.mkdir(parents=True, exist_ok=True)
        for kind in KINDS:
            # One pass for all who train on rows as they are; packed ones pass over the same rows more than once.
            make_rows(kind, options.steps * BATCH * ACCUMULATION, work / f"{kind}.jsonl")
        memory.make_model(shape, work / "model")

    def measure(case: tuple[str, str, str]) -> None:
        shape, kind, contender = case
        found = figures(*contend(*case, options), options.warmup)
        if options.together:  # these were taken while the others ran too
            found |= dict.fromkeys(("tokens_per_s_after_first", "first_step_s", "start_to_first_step_s"))
        results.append({"shape": shape, "data": kind, "contender": contender, **found, **common})
        memory.add_row(options.out, rounded(results[-1]), FIELDS)
        print({name: value for name, value in results[-1].items() if name not in common}, flush=True)

    if options.together:
        start_turns(options.work, len(cases), options.warmup)
    with ThreadPoolExecutor(len(cases) if options.together else 1) as pool:
        list(pool.map(measure, cases))
    print("\n" + table(sorted(results, key=lambda row: cases.index((row["shape"], row["data"], row["contender"])))))


def contend(shape: str, kind: str, contender: str, options: argparse.Namespace) -> tuple[list[dict], str]:
    """The events of one contender, and why it failed, or ""."""
    work = options.work / shape
    folder = work / f"{kind}-{contender}"
    try:
        words = command(contender, options, work / "model", work / f"{kind}.jsonl", folder)
        return run(words, folder, options.limit_s)
    finally:
        shutil.rmtree(folder / "out", ignore_errors=True)
        if options.together:
            Turn().pass_on()


def start_turns(work: Path, number: int, warmup: int) -> None:
    folder = work / "turns"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.environ["SPEED_TURN"] = f"{folder},{number},{warmup}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()
