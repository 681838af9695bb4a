"""Where a step of templates/sft.py spends its time: how much of it the GPU computes, and how many kernels are launched.

    python benchmarks/profile_step.py lfm2-1.2b llama-1b --out benchmarks/profile_step.csv

Run it in the environment of templates/sft.py, on a GPU. Models and rows are those of speed.py, settings the template's
own. step_s is the mean of steps without a profiler, after the first ones; then a few are profiled: gpu_s is the time of
all kernels of one of them, launches their number.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
import time
from pathlib import Path

import memory
import speed

WARMUP, TIMED, PROFILED = 5, 8, 4  # steps
FIELDS = ("shape", "step_s", "gpu_s", "launches", "tokens_per_step", "gpu", "versions", "date")


def callback(trainer):
    """Prints STEP, the seconds and tokens so far, for each timed step, and then PROFILE with gpu_s and launches."""
    import torch
    from torch.autograd import DeviceType
    from transformers import TrainerCallback

    class Profile(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step in (WARMUP, WARMUP + TIMED):
                torch.cuda.synchronize()
                print("STEP", time.monotonic(), float(trainer.timer.tokens), flush=True)
            if state.global_step == WARMUP + TIMED:
                kinds = torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA
                self.profile = torch.profiler.profile(activities=kinds)
                self.profile.start()
            if state.global_step == WARMUP + TIMED + PROFILED:
                torch.cuda.synchronize()
                self.profile.stop()
                found = self.profile.key_averages()
                kernels = [one for one in found if one.device_type == DeviceType.CUDA and not one.is_user_annotation]
                gpu_s = sum(one.self_device_time_total for one in kernels) / 1e6 / PROFILED
                launches = sum(one.count for one in found if "LaunchKernel" in one.key) / PROFILED
                print("PROFILE", gpu_s, launches, flush=True)

    return Profile()


def child(*words: str) -> None:
    import sft

    build = sft.build_trainer

    def with_profile(*args, **kwargs):
        trainer = build(*args, **kwargs)
        trainer.add_callback(callback(trainer))
        return trainer

    sft.build_trainer = with_profile
    sys.argv = ["sft.py", *words]
    sys.exit(sft.main())


def measure(shape: str, work: Path) -> dict:
    rows, model = work / f"{shape}.jsonl", work / shape
    steps = WARMUP + TIMED + PROFILED
    speed.make_rows("mixed", steps * speed.BATCH * speed.ACCUMULATION, rows)
    memory.make_model(shape, model)
    settings = {"base-model": model, "dataset": rows, "save-local": work / "out", "max-steps": steps, "eval-split": 0}
    words = [str(word) for name, value in (settings | {"save-steps": 10**6}).items() for word in (f"--{name}", value)]
    ran = subprocess.run(
        [sys.executable, __file__, "--child", *words, "--load-in-4bit"], stdout=subprocess.PIPE, text=True, check=True
    )
    said = [line.split() for line in ran.stdout.splitlines()]
    (began, tokens), (ended, more) = ((float(at), float(read)) for name, at, read in (w for w in said if w[:1] == ["STEP"]))
    [(gpu_s, launches)] = [map(float, words[1:]) for words in said if words[:1] == ["PROFILE"]]
    return {
        "shape": shape, "step_s": round((ended - began) / TIMED, 4), "gpu_s": round(gpu_s, 4), "launches": round(launches),
        "tokens_per_step": round((more - tokens) / TIMED),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="+", metavar="SHAPE", help="of memory.py, such as llama-1b")
    parser.add_argument("--work", type=Path, default=Path("/tmp/profile"), help="folder for models, rows and results")
    parser.add_argument("--out", type=Path, required=True, help="CSV to add to")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    import sft

    found = sft.versions(sft.training_libraries("unsloth"))
    common = {
        "gpu": sft.hardware()["device"], "date": datetime.date.today().isoformat(),
        "versions": " ".join(f"{name}={found[name]}" for name in ("unsloth", "torch", "transformers", "trl")),
    }  # fmt: skip
    for shape in options.shapes:
        row = measure(shape, options.work) | common
        memory.add_row(options.out, row, FIELDS)
        print(row, flush=True)


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("templates", "demo")]
    child(*sys.argv[2:]) if sys.argv[1:2] == ["--child"] else main()
