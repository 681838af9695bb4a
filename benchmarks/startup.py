"""What a run pays before its first step, phase by phase, and what of that a second run of a comparison can save.

    python benchmarks/startup.py --out benchmarks/startup.csv          # on this machine, on a model of --width
    python benchmarks/startup.py --log one.log two.log                 # of jobs: logs.py JOB > one.log

Run it in the tests' environment; the runs are in that of templates/sft.py. On this machine each case is a process of its own, `--rounds` times in
turns, and the best of each phase counts: wall-clock seconds, which other work on the machine stretches, and of the whole
run the seconds of processor time, which it stretches less. Cases: `alone` (no cache of an earlier run), `caches` (torch's, triton's and
Unsloth's compile caches kept), `tokens` (the rows' tokens kept by datasets, as a comparison could mount them), `copied`
(the model downloaded from a Hub on loopback) and `mounted` (the same files as a folder, which `alone` has too: how far
these two are apart is what the machine's other work does). Phases end at the events plan,
data, masks, batching, eval and progress of the log; the first begins with the process.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "demo")]
PHASES = {
    "imports": "plan",
    "reading": "data",
    "tokens": "masks",
    "model": "batching",
    "first evaluation": "eval",
    "first step": "progress",
}
CASES = ("alone", "caches", "tokens", "copied", "mounted")
FIELDS = ("case", *PHASES, "seconds", "cpu_s", "rows", "parameters", "rounds", "load", "versions", "cpu", "date")
TOKEN = "hf_startupstartup"
COMPILERS = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton", "UNSLOTH_COMPILE_LOCATION": "unsloth"}


def phases(events: Iterable[dict[str, Any]], began: float | None) -> dict[str, float]:
    """Seconds of each phase, from the time of its event. began: of the process; without it the first phase is what uv took."""
    first: dict[str, dict[str, Any]] = {}
    for event in events:
        first.setdefault(event["event"], event)
    seconds, before = {}, began
    for name, event_name in PHASES.items():
        at = first[event_name]["time"]
        seconds[name] = round(at - before if before is not None else first[event_name].get("installing_s", 0.0), 2)
        before = at
    return seconds


def events_in(text: str) -> list[dict[str, Any]]:
    found = []
    for line in text.splitlines():
        if line.startswith("{"):  # as logs.py prints a line under --json
            line = json.loads(line).get("line", "")
        if "EVENT {" in line:
            found.append(json.loads(line.split("EVENT ", 1)[1]))
    return found


def make_model(folder: Path, width: int) -> int:
    """A Llama with random weights and the demo's tokenizer; the number of its parameters."""
    import tiny_model
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_model.make_tokenizer(8000)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=4 * width, num_hidden_layers=8, num_attention_heads=8
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(one.numel() for one in model.parameters())


def make_rows(file: Path, number: int) -> None:
    import tiny_model

    rows = tiny_model.ROWS.read_text("utf-8").splitlines()
    file.write_text("".join(f"{rows[at % len(rows)]}\n" for at in range(number)), "utf-8")


class Bench:
    """What the runs are made of: a folder of their own, a Hub with the model, and the caches that some of them keep."""

    def __init__(self, folder: Path, hub: Any, python: str):
        self.folder, self.hub, self.python, self.count, self.versions = folder, hub, python, 0, ""

    def run(self, case: str) -> dict[str, float]:
        self.count += 1
        here = self.folder / f"run-{self.count}"
        here.mkdir()
        model = "ada/model" if case == "copied" else str(self.folder / "model")
        env = {**os.environ, **self.hub.env(token=TOKEN), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        caches = self.folder / "caches" if case == "caches" else here
        env |= {name: str(caches / place) for name, place in COMPILERS.items()}
        env["HF_DATASETS_CACHE"] = str(self.folder / "tokens" if case == "tokens" else here / "datasets")
        words = ["--base-model", model, "--dataset", str(self.folder / "rows.jsonl"), "--max-steps", "1", "--grader", "none"]
        words += ["--max-seq-length", "512", "--save-local", str(here / "out")]
        began, used = time.time(), used_s()
        done = subprocess.run(
            [self.python, str(ROOT / "templates" / "sft.py"), *words], env=env, cwd=here, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{case}: {done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        events = events_in(done.stdout)
        self.versions = " ".join(f"{name} {number}" for name, number in events[0]["versions"].items())
        found = phases(events, began) | {"cpu_s": round(used_s() - used, 2)}
        shutil.rmtree(here)
        return found


def used_s() -> float:
    """Processor time of all processes that were started from here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    from conftest import python_of
    from hub import Hub

    found: dict[str, list[dict[str, float]]] = {case: [] for case in CASES}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        python = python_of(ROOT / "templates" / "sft.py")
        making = [python, __file__, "--make-model", str(folder / "model"), "--width", str(options.width)]
        parameters = int(subprocess.run(making, check=True, capture_output=True, text=True).stdout.split()[-1])
        make_rows(folder / "rows.jsonl", options.rows)
        with Hub(folder / "hub") as hub:
            hub.add_user("ada", token=TOKEN)
            hub.add_repo("ada/model", folder / "model", type="model")
            bench = Bench(folder, hub, python)
            for case in ("caches", "tokens"):
                bench.run(case)  # fills them
            for _ in range(options.rounds):
                for case in CASES:
                    found[case].append(bench.run(case))
                    print(case, found[case][-1], flush=True)
    return [as_line(case, runs, options, parameters) | {"versions": bench.versions} for case, runs in found.items()]


def as_line(case: str, runs: list[dict[str, float]], options: argparse.Namespace, parameters: int) -> dict[str, Any]:
    best = {phase: min(run[phase] for run in runs) for phase in (*PHASES, "cpu_s")}
    return {
        "case": case, **best, "seconds": round(sum(best[phase] for phase in PHASES), 2), "rows": options.rows, "parameters": parameters,
        "rounds": options.rounds, "load": round(os.getloadavg()[0], 1),
        "cpu": platform.processor() or platform.machine(), "date": datetime.date.today().isoformat(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="CSV that gets a line for each case")
    parser.add_argument("--log", type=Path, nargs="+", help="logs of jobs, instead of runs on this machine")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each case [3]")
    parser.add_argument("--rows", type=int, default=2000, help="rows to learn [2000]")
    parser.add_argument("--width", type=int, default=512, help="hidden size of the model [512]")
    parser.add_argument("--make-model", type=Path, help=argparse.SUPPRESS)  # in the environment of templates/sft.py
    options = parser.parse_args()
    if options.make_model:
        print(make_model(options.make_model, options.width))
        return
    if options.log:
        for path in options.log:
            print(path, phases(events_in(path.read_text("utf-8")), None))
        return
    lines = measure(options)
    with options.out.open("w", newline="", encoding="utf-8") if options.out else sys.stdout as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(lines)


if __name__ == "__main__":
    main()
