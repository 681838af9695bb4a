"""Faults amid a training: a Hub that is down, a token that is revoked, a disk that is full."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROWS, SFT
from faults import PATIENCE_S, shows
from hub import Hub
from hubs import ADA
from huggingface_hub import HfApi

# ---- in the job


@pytest.fixture(scope="module")
def words(tiny_model: Path) -> list[str]:
    """A run of 12 steps that keeps a checkpoint each third."""
    model = ["--base-model", str(tiny_model), "--load-in-16bit", "--dataset", str(ROWS), "--max-seq-length", "128"]
    return [*model, "--batch-size", "4", "--gradient-accumulation", "4", "--max-steps", "12", "--save-steps", "3"]


def pushes(run: Any) -> dict[int, bool]:
    return {event["step"]: event["pushed"] for event in run.all("checkpoint")}


@shows(checkpoint_hub_down="none", repository_deleted="none", push_half_done="none")
def test_a_hub_that_is_down_for_a_while_costs_a_checkpoint_and_not_the_run(runs, words):
    run = runs.start(*words, "--output-repo", "ada/down", fault=["impatient"])
    run.wait_for("checkpoint", 3)
    down = runs.hub.faults.add(path="^/api/models/ada/down/", status=503)
    run.wait_for("checkpoint", 6)
    runs.hub.faults.clear()
    assert down.hits
    with runs.hub.store.lock:
        runs.hub.store.repos.pop(("model", "ada/down"))  # its owner deletes it meanwhile
    half = runs.hub.faults.add(path="^/api/models/ada/down/commit", status=500, handled=True, skip=1, times=1)
    run.wait()
    runs.hub.faults.clear()
    assert (run.code, sorted(run.losses())) == (0, list(range(1, 13))), run.log[-3000:]
    assert half.hits
    assert pushes(run)[3] and not pushes(run)[6] and pushes(run)[12]
    assert {"push_failed"} == {event["code"] for event in run.all("warning")}
    assert {"README.md", "adapter_model.safetensors", "last-checkpoint/trainer_state.json"} <= set(runs.hub.files("ada/down"))
    assert runs.hub.store.repos["model", "ada/down"].private


@shows(token_revoked="push_denied")
def test_a_token_that_is_revoked_amid_the_run_leaves_a_model_and_the_command_that_sends_it(runs, words):
    eve = "hf_eveeveeveeveeve"
    runs.hub.add_user("eve", token=eve)
    run = runs.start(*words, "--output-repo", "eve/revoked", fault=["impatient"], HF_TOKEN=eve)
    run.wait_for("checkpoint", 3)
    runs.hub.accounts.revoke(eve)
    run.wait()
    failed = run.last("failed")
    assert (run.code, failed["code"]) == (1, "push_denied"), run.log[-3000:]
    assert sorted(run.losses()) == list(range(1, 13))
    assert eve not in run.log
    kept = (run.folder / "out" / "adapter_model.safetensors").read_bytes()

    again = "hf_eveagaineveagain"
    runs.hub.add_user("eve", token=again)
    command = shlex.split("hf " + failed["fix"].partition(": hf ")[2])
    hf = str(Path(sys.executable).with_name("hf"))
    subprocess.run([hf, *command[1:]], env=os.environ | runs.hub.env(token=again), check=True, capture_output=True)
    files = runs.hub.files("eve/revoked")
    assert files["adapter_model.safetensors"].read_bytes() == kept
    assert not [path for path in files if path.startswith("checkpoints")]


@shows(disk_full="disk_full")
def test_a_full_disk_ends_the_run_with_its_name_and_it_goes_on_elsewhere(runs, words):
    run = runs.start(*words, "--output-repo", "ada/full", fault=["disk_full", 4, 60_000]).wait()
    failed = run.last("failed")
    assert (run.code, failed["code"]) == (1, "disk_full"), run.log[-3000:]
    assert "--resume" in failed["fix"]
    resumed = runs.start(*words, "--output-repo", "ada/full", "--resume").wait()
    assert (resumed.code, min(resumed.losses())) == (0, 4)


LOST = """
# /// script
# requires-python = ">=3.11"
# dependencies = ["huggingface_hub==1.33.0", "httpx"]
# ///
import sys
from pathlib import Path

sys.path.insert(0, str(Path(sys.argv[1]).parent))
import sft
from huggingface_hub import HfApi

settings, folder = sft.Settings(dataset="x", output_repo="ada/lost", save_local="out"), Path("out")
(folder / "checkpoints").mkdir(parents=True)
for name in ("adapter_model.safetensors", "checkpoints/large"):
    (folder / name).write_text("learned")
try:
    sft.push_results(HfApi(token="hf_revokedrevoked"), settings, folder, sft.StopSignal())
except sft.Stop as stop:
    sft.emit("failed", code=stop.code, message=stop.message, fix=stop.fix)
"""


@shows(push_denied_on_job="push_denied")
def test_what_a_job_cannot_push_is_fetched_from_its_bucket(tmp_path):
    """A job's machine is gone when it ends; the bucket that its script came from is not."""
    with Hub(tmp_path / "hub", scheduling=0.02) as hub:
        hub.add_user("ada", token=ADA)
        (tmp_path / "lost.py").write_text(LOST)
        api = HfApi(endpoint=hub.url, token=ADA)
        info = api.run_uv_job(str(tmp_path / "lost.py"), script_args=[str(SFT)], namespace="ada")
        job = hub.jobs.wait(info.id, PATIENCE_S)
        [failed] = [json.loads(line.text.removeprefix("EVENT ")) for line in job.logs if '"failed"' in line.text]
        assert failed["code"] == "push_denied"
        command = shlex.split("hf " + failed["fix"].partition(": hf ")[2])
        hf = str(Path(sys.executable).with_name("hf"))
        env = os.environ | hub.env(token=ADA)
        subprocess.run([hf, *command[1:]], env=env, cwd=tmp_path, check=True, capture_output=True)
        fetched = [path.relative_to(tmp_path / "rescued") for path in (tmp_path / "rescued").rglob("*") if path.is_file()]
        assert [path.name for path in fetched] == ["adapter_model.safetensors"]
