"""Going on from an adapter: --base-model names one, and training begins with what it learned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import sft
from conftest import ROWS, SFT, Commands
from runs import Run


STEPS = 12
DATA = ["--dataset", str(ROWS), "--batch-size", "4", "--gradient-accumulation", "4", "--max-seq-length", "128"]
QUICK = [*DATA, "--load-in-16bit", "--learning-rate", "5e-3", "--grader", "none"]


@pytest.fixture(scope="module")
def parent(runs, tiny_model) -> Run:
    """A first training, of rank 8 on some of the layers, whose adapter is ada/first."""
    runs.hub.add_repo("ada/tiny-lfm2", tiny_model)
    words = ["--base-model", "ada/tiny-lfm2", "--lora-r", "8", "--lora-alpha", "8", "--target-modules", "q_proj,v_proj,w1,w2"]
    run = runs.start(*QUICK, *words, "--max-steps", "10", "--output-repo", "ada/first").wait()
    assert run.code == 0, run.log[-3000:]
    return run


@pytest.fixture(scope="module")
def whole(runs, parent) -> Run:
    run = runs.start(*QUICK, "--base-model", "ada/first", "--max-steps", str(STEPS), "--save-steps", "4", "--output-repo", "ada/second").wait()
    assert run.code == 0, run.log[-3000:]
    return run


def test_it(parent, whole):
    print(parent.last("done"), whole.last("done"))
    print(whole.log[-6000:])
    print((whole.folder/"out"/"README.md").read_text())
    print((whole.folder/"out"/"adapter_config.json").read_text())
    assert 0
