"""Several GPUs of one host: processes that train together learn what one process learns."""

from __future__ import annotations

import pytest
from conftest import ROWS

COMMON = ["--dataset", str(ROWS), "--num-samples", "60", "--eval-split", "0.2", "--max-steps", "6", "--max-seq-length", "256",
          "--learning-rate", "5e-3", "--batch-size", "4", "--gradient-accumulation", "2", "--grader", "none", "--early-stopping", "0"]  # fmt: skip


@pytest.mark.parametrize("packing", ["--packing", "--no-packing"])
def test_two_processes_learn_what_one_learns(runs, tiny_model, packing):
    words = ["--base-model", str(tiny_model), *COMMON, packing]
    one = runs.start(*words)
    one.wait()
    two = runs.start(*words, processes=2)
    two.wait()
    print(one.log[-3000:])
    print(two.log[-6000:])
    print((two.folder / "log-1.txt").read_text()[-3000:])
    assert one.code == two.code == 0
