"""The memory model against what was measured on a GPU: benchmarks/memory.csv, and whole runs in benchmarks/speed.csv."""

from __future__ import annotations

import re
import subprocess

import pytest
from conftest import ROOT
from unsloth_jobs.estimate import memory


@pytest.fixture(scope="module")
def said(training_python) -> str:
    fit = [training_python, str(ROOT / "benchmarks" / "fit_memory.py")]
    return subprocess.run(fit, capture_output=True, text=True, check=True).stdout


def errors(said: str, part: str) -> list[float]:
    """Of a part's rows, in per cent of what was measured."""
    return [float(error) for error in re.findall(rf"(?m)^{part} .*×.* ([+-][\d.]+)%$", said)]


def test_held_out_shapes_and_whole_runs_are_met(said):
    """Within 10% of the measured peak, and never more than 5% below it; the document's figures are these."""
    held_out, runs, fitted = (errors(said, part) for part in ("held out", "template", "fitted"))
    assert (len(held_out), len(runs), len(fitted)) == (46, 7, 70)
    for part in (held_out, runs, fitted):
        assert min(part) >= -5
        assert max(part) <= 10
    assert max(map(abs, errors(said, "preferences"))) <= 10
    text = (ROOT / "references" / "gpu-and-cost.md").read_text()
    assert f"between {-min(held_out)}% too low and {max(held_out)}% too high" in text


def test_the_constants_are_those_that_the_fit_gives(said):
    fitted = {name: float(value) for name, value in re.findall(r"([A-Z_]{4,}) = ([\d.e+]+)", said)}
    assert len(fitted) == 9
    assert {name: getattr(memory, name) for name in fitted} == fitted
