"""The memory model against what was measured on a GPU: benchmarks/memory.csv."""

from __future__ import annotations

import re
import subprocess

from conftest import ROOT


def test_held_out_measurements_are_met(training_python):
    """Within 10% of the measured peak, and never more than 5% below it; the document's figures are these."""
    fit = [training_python, str(ROOT / "benchmarks" / "fit_memory.py")]
    said = subprocess.run(fit, capture_output=True, text=True, check=True).stdout
    held_out = [float(error) for error in re.findall(r"(?m)^held out .* ([+-][\d.]+)%$", said)]
    fitted = [float(error) for error in re.findall(r"(?m)^fitted  .* ([+-][\d.]+)%$", said)]
    assert (len(held_out), len(fitted)) == (20, 36)
    assert min(held_out) >= -5
    assert max(held_out) <= 10
    assert min(fitted) >= -5
    text = (ROOT / "references" / "gpu-and-cost.md").read_text()
    assert f"between {-min(held_out)}% too low and {max(held_out)}% too high" in text
    constants = re.search(r"PER_TOKEN_INNER = ([\d.]+), PER_TOKEN_WIDTH = ([\d.]+), FIXED = ([\de.+]+)", said).groups()
    source = (ROOT / "scripts" / "unsloth_jobs" / "memory.py").read_text()
    used = re.search(r"PER_TOKEN_INNER, PER_TOKEN_WIDTH, FIXED = ([\d.]+), ([\d.]+), ([\de]+)", source).groups()
    assert [round(float(value), -6 if float(value) > 1e6 else 1) for value in constants] == [float(value) for value in used]
