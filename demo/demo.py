"""The whole way of a run, on this machine: check, estimate, submit, status, logs, and what training changed.

    make demo

Each step is the command that a paying user types. Only the model is a toy: a tiny LFM2 with random weights, made here.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / ".cache" / "demo"
UV = str(Path(sys.executable).with_name("uv"))
ROWS = "demo/stdlib-docs.jsonl"
TRAINING = [
    "--num-epochs",
    "4",
    "--learning-rate",
    "5e-3",
    "--batch-size",
    "8",
    "--gradient-accumulation",
    "1",
    "--max-seq-length",
    "256",
]


def step(title: str) -> None:
    print(f"\n\033[1m── {title}\033[0m" if sys.stdout.isatty() else f"\n── {title}", flush=True)


def uv_run(*words: str, show: bool = True) -> subprocess.CompletedProcess:
    """A command as its user types it; its output goes to the terminal, or comes back where show is False."""
    if show:
        print(f"$ uv run {shlex.join(words)}\n", flush=True)
    return subprocess.run(
        [UV, "run", "--quiet", *words],
        cwd=ROOT,
        env=ENVIRONMENT,
        check=True,
        stdout=None if show else subprocess.PIPE,
        text=True,
    )


def own_environment() -> dict[str, str]:
    """Everything that is written stays in the work folder, and nothing on the Hub is asked for."""
    kept = {name: value for name, value in os.environ.items() if name not in ("HF_TOKEN", "CC")}
    return kept | {
        "HF_HOME": str(WORK / "hf"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "UV": UV,
        "TOKENIZERS_PARALLELISM": "false",
    }


ENVIRONMENT = own_environment()


def make_model(folder: Path) -> None:
    """The toy model, made with the template's own libraries; setting those up takes a few minutes the first time."""
    began = time.monotonic()
    subprocess.run([UV, "sync", "--script", "templates/sft.py"], cwd=ROOT, env=ENVIRONMENT, check=True)
    find = subprocess.run(
        [UV, "python", "find", "--script", "templates/sft.py"],
        cwd=ROOT,
        env=ENVIRONMENT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    print(f"Libraries ready after {time.monotonic() - began:.0f} s", flush=True)
    subprocess.run([find.stdout.strip(), "demo/tiny_model.py", str(folder)], cwd=ROOT, env=ENVIRONMENT, check=True)


def compare(job_id: str) -> None:
    """Base against tuned, from the job's own events."""
    log = uv_run("scripts/logs.py", job_id, "--json", show=False).stdout
    events = {line["event"]["event"]: line["event"] for line in map(json.loads, log.splitlines()) if line["event"]}
    done, sample = events["done"], events["sample"]
    print(f"\nLoss on held-out rows: base {done['base_loss']:.3f} → tuned {done['tuned_loss']:.3f}")
    for name in ("prompt", "base", "tuned", "reference"):
        text = " ".join(sample[name].split())
        print(textwrap.indent(textwrap.fill(text, 100), " " * 12).replace(" " * 12, f"  {name:10}", 1) or f"  {name}")
    print(f"\nAdapter:   {done['path']}")
    print(f"Curves:    HF_HOME={ENVIRONMENT['HF_HOME']} uv run --with trackio==0.43.0 trackio show --project unsloth-jobs")
    if done["tuned_loss"] >= done["base_loss"]:
        sys.exit("The tuned model is no better than the base: something is wrong.")


def main() -> None:
    model, tuned = WORK / "model", WORK / "tuned"
    shutil.rmtree(tuned, ignore_errors=True)
    WORK.mkdir(parents=True, exist_ok=True)
    names = [str(path.relative_to(ROOT)) for path in (model, tuned)]

    step("A tiny LFM2 to train (the first time, this installs torch and Unsloth: about 3 GB)")
    make_model(model)
    step("Check: is this run sound?")
    uv_run("scripts/check.py", names[0], ROWS, "--where", "local", "--max-length", "256")
    step("Estimate: what would it cost on rented machines?")
    uv_run("scripts/estimate.py", names[0], ROWS, "--epochs", "4", "--max-seq-length", "256", "--batch-size", "8")
    step("Submit: here it runs on this machine, as a background process")
    command = ["scripts/submit.py", "templates/sft.py", "--where", "local", "--timeout", "20m", "--yes"]
    arguments = ["--", "--base-model", names[0], "--dataset", ROWS, "--save-local", names[1], *TRAINING]
    print(f"$ uv run {shlex.join([*command, *arguments])}", flush=True)
    job = json.loads(uv_run(*command, "--json", *arguments, show=False).stdout)
    print(f"\nStarted: {job['job_id']}")
    step("Status: it is watched to its end")
    uv_run("scripts/status.py", job["job_id"], "--watch")
    step("Logs: the last lines")
    uv_run("scripts/logs.py", job["job_id"], "--tail", "3")
    step("What training changed")
    compare(job["job_id"])


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:  # the command has said why, above
        sys.exit(f"The demo stopped: `{shlex.join(map(str, error.cmd[:6]))} …` ended with {error.returncode}.")
