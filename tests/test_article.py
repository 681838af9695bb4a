"""The article's own command, with this template in the place of its URL, through the real `hf` command."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import sft
from conftest import ROOT, SFT
from hubs import ADA

COMMAND = """hf jobs uv run {script} \
    --flavor a10g-small  \
    --secrets HF_TOKEN  \
    --timeout 4h \
    --dataset mlabonne/FineTome-100k \
    --num-epochs 1 \
    --eval-split 0.2 \
    --output-repo your-username/lfm-finetuned"""
ARGUMENTS = ["--dataset", "mlabonne/FineTome-100k", "--num-epochs", "1", "--eval-split", "0.2"]
ARGUMENTS += ["--output-repo", "your-username/lfm-finetuned"]


@pytest.mark.hub(model="none", rows=False)
@pytest.mark.parametrize("source", ["file", "url"])
def test_it_reaches_the_hub_as_it_stands(hub, source):
    script = "templates/sft.py"
    if source == "url":
        hub.add_repo("ada/jobs", SFT.parent, type="dataset")
        script = f"{hub.url}/datasets/ada/jobs/resolve/main/sft.py"
    words = shlex.split(COMMAND.format(script=script))
    words[0] = str(Path(sys.executable).with_name("hf"))
    done = subprocess.run(words, cwd=ROOT, env={**os.environ, **hub.env(token=ADA)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [job] = hub.jobs
    assert job.spec["flavor"] == "a10g-small"
    assert job.spec["timeoutSeconds"] == 14_400
    assert job.spec["secrets"] == {"HF_TOKEN": ADA}
    assert job.spec["command"][-len(ARGUMENTS) :] == ARGUMENTS
    shipped = [path for name, path in hub.files("ada/jobs-artifacts", type="bucket").items() if name.endswith("sft.py")]
    assert [path.read_bytes() for path in shipped] == [SFT.read_bytes()]
    assert hub.leaks(ADA) == []


def test_its_flags_mean_what_the_article_says():
    settings = sft.parse_args(ARGUMENTS)
    assert settings.base_model == "LiquidAI/LFM2.5-1.2B-Instruct"
    assert (settings.num_epochs, settings.eval_split, settings.output_repo) == (1, 0.2, "your-username/lfm-finetuned")
    assert (sft.rank_of(settings), sft.alpha_of(settings), settings.max_seq_length) == (16, 32, 2048)
    assert (settings.batch_size, settings.gradient_accumulation) == (4, 4)


def test_its_own_settings_are_one_line_of_a_reference():
    """What it left to its libraries' defaults, and this template chooses by itself."""
    text = (ROOT / "references" / "defaults.md").read_text("utf-8")
    [flags] = re.findall(r"settings of the article .*: `(.*)`", text)
    settings = sft.parse_args([*ARGUMENTS, *shlex.split(flags)])
    config = {"model_type": "lfm2", "hidden_size": 2048}
    values = {"learning_rate": 2e-4, "num_epochs": 1.0, "early_stopping": 0}
    assert sft.chosen_values(settings, config, 900, 100) == values
    assert settings.load_in_4bit and not sft.is_precision_auto(settings)
    assert sft.why_chosen(settings, config, 900, 100) == {}
