"""Going on from an adapter: --base-model names one, and training begins with what it learned."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
import sft
from conftest import ROOT, ROWS, SFT, Commands, shape_of_a_model
from runs import TOKEN, Run
from unsloth_jobs import template
from unsloth_jobs.errors import USAGE, UserError
from unsloth_jobs.estimate.memory import memory
from unsloth_jobs.lookup import adapter_info

STEPS, SAVE = 12, 4
DATA = ["--dataset", str(ROWS), "--batch-size", "4", "--gradient-accumulation", "4", "--max-seq-length", "128"]
QUICK = [*DATA, "--load-in-16bit", "--learning-rate", "5e-3", "--no-card-samples", "--grader", "none"]
FIRST = ["--lora-r", "8", "--lora-alpha", "8", "--target-modules", "q_proj,v_proj,w1,w2"]
ON = [*QUICK, "--max-steps", str(STEPS), "--save-steps", str(SAVE)]


@pytest.fixture(scope="module")
def parent(runs, tiny_model) -> Run:
    """A first training, with an adapter of its own shape: ada/first."""
    runs.hub.add_repo("ada/tiny-lfm2", tiny_model)
    words = ["--base-model", "ada/tiny-lfm2", *FIRST, "--max-steps", "10", "--output-repo", "ada/first"]
    run = runs.start(*QUICK, *words).wait()
    assert run.code == 0, run.log[-3000:]
    return run


@pytest.fixture(scope="module")
def whole(runs, parent) -> Run:
    """A second training, on what the first has learned."""
    run = runs.start(*ON, "--base-model", "ada/first", "--output-repo", "ada/second").wait()
    assert run.code == 0, run.log[-3000:]
    return run


def tensors(folder: Path) -> dict[str, bytes]:
    """The raw bytes of each tensor of an adapter."""
    content = (folder / "adapter_model.safetensors").read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    header.pop("__metadata__", None)
    return {name: content[8 + size :][slice(*facts["data_offsets"])] for name, facts in header.items()}


# ---- what training begins with


def test_training_begins_with_what_the_adapter_has_learned(parent, whole):
    first, second = parent.last("done"), whole.last("done")
    assert second["base_loss"] == pytest.approx(first["tuned_loss"], abs=1e-4)
    assert first["tuned_loss"] < first["base_loss"] - 0.02  # so that it is not the bare model's
    assert second["tuned_loss"] < second["base_loss"] - 0.05
    said = whole.last("parent")
    assert (said["adapter"], said["base_model"], said["lora_r"], said["lora_alpha"]) == ("ada/first", "ada/tiny-lfm2", 8, 8)
    assert said["target_modules"] == ["q_proj", "v_proj", "w1", "w2"] == whole.last("coverage")["target_modules"]
    assert whole.last("coverage")["trainable"] == parent.last("coverage")["trainable"]


def test_a_step_that_changes_nothing_saves_the_adapter_as_it_was(runs, parent):
    words = ["--base-model", "ada/first", "--max-steps", "1", "--learning-rate", "1e-30", "--eval-split", "0"]
    run = runs.start(*QUICK, *words).wait()
    assert run.code == 0, run.log[-3000:]
    assert tensors(run.folder / "out") == tensors(parent.folder / "out")


def test_the_result_names_both_that_it_comes_from(runs, parent, whole):
    card, config = (whole.folder / "out" / name for name in ("README.md", "adapter_config.json"))
    commits = {name: runs.hub.store.repos["model", f"ada/{name}"].head.sha for name in ("first", "tiny-lfm2")}
    text, stated = card.read_text(), json.loads(config.read_text())
    assert "base_model: ada/tiny-lfm2" in text
    assert f"the adapter `ada/first` at {commits['first']}" in text and "It is not the bare model" in text
    assert commits["tiny-lfm2"] in text
    assert (stated["base_model_name_or_path"], stated["revision"]) == ("ada/tiny-lfm2", commits["tiny-lfm2"])
    assert whole.last("done")["went_on_from"] == "ada/first"


def test_what_is_answered_as_base_is_the_adapter_as_it_was(runs, parent, training_python, tmp_path):
    """Not the bare model: their greedy answers differ, and those of the parent's own `tuned` are the same."""
    samples = [word for word in QUICK if word != "--no-card-samples"]
    before = runs.start(
        *samples, "--base-model", "ada/tiny-lfm2", *FIRST, "--max-steps", "10", "--output-repo", "ada/asked"
    ).wait()
    after = runs.start(*samples, "--base-model", "ada/asked", "--max-steps", "4").wait()
    first, second = before.all("sample"), after.all("sample")
    assert len(first) == len(second) == 3
    assert [one["tuned"] for one in first] == [one["base"] for one in second]
    assert all(one["base"] != one["tuned"] for one in (*first, *second))


# ---- killed, resumed, and other adapters


def test_killed_and_resumed_it_ends_as_if_undisturbed(runs, whole):
    words = [*ON, "--base-model", "ada/first", "--output-repo", "ada/killed"]
    run = runs.start(*words)
    run.wait_for("checkpoint", SAVE)
    run.process.kill()
    run.wait()
    resumed = runs.start(*words, "--resume").wait()  # on another machine
    assert resumed.code == 0 and min(resumed.losses()) > SAVE, resumed.log[-3000:]
    joined = run.losses() | resumed.losses()
    assert joined == pytest.approx(whole.losses(), abs=2e-2)
    done, undisturbed = resumed.last("done"), whole.last("done")
    assert done["tuned_loss"] == pytest.approx(undisturbed["tuned_loss"], abs=1e-2)
    assert done["base_loss"] == pytest.approx(undisturbed["base_loss"], abs=1e-4)


@pytest.mark.parametrize("other", ["ada/second", "ada/tiny-lfm2"])
def test_a_run_from_another_adapter_or_from_the_bare_base_is_not_resumed(runs, whole, other):
    folder = whole.folder.with_name(f"other-{other.partition('/')[2]}")
    shutil.copytree(whole.folder / "out" / "checkpoints", folder / "out" / "checkpoints")
    run = runs.start(*ON, "--base-model", other, *FIRST, "--resume", folder=folder).wait()
    failed = run.last("failed")
    assert (run.code, failed["code"]) == (1, "resume_mismatch")
    assert "the adapter that it goes on from" in failed["message"] and "--base-model ada/first" in failed["fix"]


# ---- the other ways to run


def test_without_unsloth_and_merged_from_a_folder(runs, parent, tmp_path):
    """A copy of the adapter without a tokenizer: its base's is taken."""
    shutil.copytree(parent.folder / "out", tmp_path / "first", ignore=shutil.ignore_patterns("checkpoints", "token*", "chat*"))
    words = [*QUICK, "--base-model", str(tmp_path / "first"), "--max-steps", "4", "--backend", "trl", "--merge-model"]
    run = runs.start(*words).wait()
    assert run.code == 0, run.log[-3000:]
    assert run.last("done")["base_loss"] == pytest.approx(parent.last("done")["tuned_loss"], abs=1e-3)
    assert run.last("parent")["revision"] is None and "the adapter `first`" in (run.folder / "out" / "README.md").read_text()
    assert (run.folder / "out" / "merged" / "model.safetensors").is_file()


def test_an_adapter_of_some_layers_with_a_scale_by_the_root_of_its_rank(runs, training_python, tiny_model, parent, tmp_path):
    make = """
import sys, torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
config = LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules=["w1", "w2"], layers_to_transform=[1], task_type="CAUSAL_LM")
torch.manual_seed(1)
model = get_peft_model(model, config)
for name, value in model.named_parameters():
    if "lora_B" in name: torch.nn.init.normal_(value.data, std=0.05)
model.save_pretrained(sys.argv[2])
"""
    subprocess.run([training_python, "-c", make, str(tiny_model), str(tmp_path / "some")], check=True, capture_output=True)
    run = runs.start(*QUICK, "--base-model", str(tmp_path / "some"), "--max-steps", "1", "--learning-rate", "1e-30").wait()
    assert run.code == 0, run.log[-3000:]
    assert run.last("coverage")["modules"] == 2
    assert tensors(run.folder / "out") == tensors(tmp_path / "some")
    made = json.loads((run.folder / "out" / "adapter_config.json").read_text())
    assert made["use_rslora"] and (made["r"], made["lora_alpha"]) == (4, 8)


# ---- the whole way, and what is refused before anything is paid


def test_from_the_check_to_the_adapter_of_an_adapter_in_four_commands(runs, parent, training_python, tmp_path):
    hub = runs.hub
    commands = Commands(hub.env(token=TOKEN), tmp_path)

    words = ["submit.py", str(SFT), "--flavor", "cpu-upgrade", "--timeout", "15m"]
    arguments = ["--", "--base-model", "ada/first", *ON, "--trackio-space="]

    checked = commands.json("check.py", "ada/first", str(ROWS), "--max-length", "128")
    shown = commands.run(*words, *arguments, code=3).stdout
    plan = commands.json(*words, *arguments, code=3)
    job = commands.json(*words, "--approve", plan["plan_id"], *arguments)
    log = "\n".join(line.text for line in hub.jobs.wait(job["job_id"]).logs)
    status = commands.json("status.py", job["job_id"], code=None)

    assert status["stage"] == "COMPLETED", log[-3000:]
    commit = hub.store.repos["model", "ada/first"].head.sha
    adapter = checked["adapter"]
    assert (adapter["id"], adapter["revision"], adapter["r"], adapter["alpha"]) == ("ada/first", commit, 8, 8)
    assert (checked["model"]["id"], checked["lora"]["target_modules"]) == ("ada/tiny-lfm2", adapter["target_modules"])
    said = {name: json.loads(line.split("EVENT ", 1)[1]) for line in log.splitlines() if (name := name_of(line))}
    assert said["masks"]["digest"] == checked["mask"]["digest"]
    assert said["coverage"]["coverage"] == checked["lora"]["coverage"]
    assert said["done"]["repo"] == "ada/first-stdlib-docs"
    assert said["done"]["base_loss"] == pytest.approx(parent.last("done")["tuned_loss"], abs=1e-3)
    assert "ada/first" in shown and "ada/tiny-lfm2" in shown and "LoRA r 8, alpha 8" in shown
    assert f"--base-model-revision={commit}" in plan["plan"]["arguments"]
    # It loads as its card says.
    env = {**os.environ, **hub.env(token=TOKEN)}
    loading = [training_python, str(ROOT / "tests" / "answer.py"), "ada/first-stdlib-docs", "What does bisect.insort do?"]
    assert json.loads(subprocess.run(loading, env=env, check=True, capture_output=True, text=True).stdout)["trained"] > 0


def name_of(line: str) -> str:
    return json.loads(line.split("EVENT ", 1)[1])["event"] if "EVENT {" in line else ""
