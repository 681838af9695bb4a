"""What the estimate makes of the template's runs in benchmarks/speed.csv: [{shape, data, measured, slowest, fastest}]."""

import csv
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "scripts"), str(ROOT / "templates")]
import fit_memory  # noqa: E402
from unsloth_jobs.estimate import cost  # noqa: E402
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
print(json.dumps(found))
