"""What the estimate makes of the template's runs in benchmarks/speed.csv and several.csv: [{shape, data, measured, slowest,
fastest}].
"""

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "scripts"), str(ROOT / "templates")]
import fit_memory  # noqa: E402
from unsloth_jobs.estimate import cost, memory  # noqa: E402
from unsloth_jobs.estimate.flavors import Flavor  # noqa: E402

found = []
for run in fit_memory.template_runs():
    with (ROOT / "benchmarks" / "speed.csv").open() as file:
        row = next(r for r in csv.DictReader(file) if all(r[name] == run[name] for name in ("shape", "data", "contender")))
    settings = fit_memory.settings_of(run)
    per_row = float(row["tokens_per_s"]) / float(row["rows_per_s"])
    planned = cost.Run(1000, per_row, packed=True)
    size = cost.work(planned, settings, cost.divide_step(planned, settings, lambda tokens: True)[0])
    gpu = Flavor("measured", 0.0, 80, 1, run["gpu"])
    pace = cost.seconds_per_token(gpu, fit_memory.model_of(run["shape"]), size, run["checkpointing"], run["backend"])
    found.append(
        {name: run[name] for name in ("shape", "data", "contender")}
        | {"measured": float(row["tokens_per_s"]), "slowest": 1 / pace.high, "fastest": 1 / pace.low}
    )
with (ROOT / "benchmarks" / "several.csv").open() as file:
    runs = [row for row in csv.DictReader(file) if row["kind"] != "fsdp2" and row["tokens_per_s"]]
for run in runs:
    gpus, model = int(run["gpus"]), fit_memory.model_of(run["shape"])
    ours = {"precision": "4bit", "checkpointing": "off", "batch": "4", "backend": "unsloth", "packed": "yes", "length": "2048"}
    settings = replace(fit_memory.settings_of(ours), gradient_accumulation=int(run["kind"]) // 4)
    planned = cost.Run(1000, 485, packed=True)  # tokens of a row there, on average
    batching, _ = cost.divide_step(planned, settings, lambda tokens: True, gpus)
    size = cost.work(planned, settings, batching, gpus)
    pace = cost.seconds_per_token(Flavor("measured", 0.0, 80 * gpus, gpus, run["gpu"]), model, size, "off", "unsloth")
    if gpus > 1:
        adapter = memory.memory(model, settings, size.at_once, True).adapter * memory.GB
        pace = cost.with_sharing(pace, adapter / 2, gpus, cost.steps(size, settings, batching) / size.tokens)
    found.append(
        {"shape": run["shape"], "data": f"{run['kind']} rows, {gpus} GPUs", "contender": "ours"}
        | {"measured": float(run["tokens_per_s"]), "slowest": 1 / pace.high, "fastest": 1 / pace.low}
    )
print(json.dumps(found))
