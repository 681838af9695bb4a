"""What a run shows for its money: losses, answers, picture and card; and that it stops when nothing more is learned."""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path

import pytest
import sft
from conftest import ROOT, SFT
from hub import Hub

ADA = "hf_adaadaadaada"
PLANNED = {
    "plan_id": "0123456789abcdef",
    "flavor": "cpu-upgrade",
    "timeout_s": 3600,
    "usd_per_minute": 0.25,
    "vram_gb": 0,
    "estimate": {"hours_low": 0.01, "hours_high": 0.04, "usd_low": 0.15, "usd_high": 0.6},
}
DATA = ["--num-samples", "120", "--batch-size", "8", "--gradient-accumulation", "1", "--max-seq-length", "256"]


def said(log: str) -> dict[str, list[dict]]:
    """The events of a log, by name, in their order."""
    found: dict[str, list[dict]] = {}
    for line in log.splitlines():
        if line.startswith("EVENT "):
            event = json.loads(line.removeprefix("EVENT "))
            found.setdefault(event["event"], []).append(event)
    return found


def run(python: str, folder: Path, *arguments: str, **env: str) -> dict[str, list[dict]]:
    """The events of a run of the template, planned as PLANNED, that must end well."""
    done = subprocess.run(
        [python, str(SFT), "--save-local", "out", *DATA, *arguments],
        env={**os.environ, "UNSLOTH_JOBS_RUN": json.dumps(PLANNED), **env},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return said(done.stdout)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, training_python, tiny_model, docs):
    """A run on the Hub: its events, the files of its repository, and what Trackio has logged of it."""
    folder = tmp_path_factory.mktemp("finished")
    with Hub(folder / "hub") as hub:
        hub.add_user("ada", token=ADA)
        hub.add_repo("ada/tiny-lfm2", tiny_model)
        hub.add_repo("ada/docs", docs, type="dataset")
        env = hub.env(token=ADA)
        where = ["--base-model", "ada/tiny-lfm2", "--dataset", "ada/docs", "--output-repo", "ada/tuned"]
        events = run(training_python, folder, *where, "--learning-rate", "5e-3", "--max-steps", "6", **env)
        reading = (
            "import json; from trackio.sqlite_storage import SQLiteStorage as store; "
            "print(json.dumps(store.get_logs('unsloth-jobs', 'tiny-lfm2-docs'), default=str))"
        )
        logged = subprocess.run([training_python, "-c", reading], env={**os.environ, **env}, capture_output=True, text=True)
        files = {name: path.read_bytes() for name, path in hub.files("ada/tuned").items()}
        revisions = {hub.store.repos[kind, name].sha for kind, name in (("model", "ada/tiny-lfm2"), ("dataset", "ada/docs"))}
        yield events, files, json.loads(logged.stdout.splitlines()[-1]), revisions


def test_base_and_tuned_are_measured_on_the_same_rows(finished):
    events, _, logged, _ = finished
    [done] = events["done"]
    assert done["tuned_loss"] < done["base_loss"] == pytest.approx(events["eval"][0]["eval_loss"], abs=1e-4)
    for name in ("base", "tuned"):
        assert done[f"{name}_perplexity"] == pytest.approx(math.exp(done[f"{name}_loss"]), rel=1e-4)
    assert events["eval"][-1]["perplexity"] == pytest.approx(done["tuned_perplexity"], rel=1e-3)
    # Trackio has them too, and the answers as a table.
    [result] = [entry for entry in logged if "tuned/loss" in entry]
    assert result["tuned/perplexity"] == done["tuned_perplexity"]
    assert [row["tuned"] for row in result["answers"]["_value"]] == [event["tuned"] for event in events["sample"]]


def test_held_out_questions_are_answered_side_by_side(finished):
    events, files, _, _ = finished
    card = files["README.md"].decode()
    assert len(events["sample"]) == card.count("| Base | Tuned | Reference |") == 3
    for event in events["sample"]:
        assert {"prompt", "base", "tuned", "reference"} <= event.keys()
        assert sft.cell(event["tuned"]) in card
    assert "warning" not in events


def test_the_card_says_how_it_was_made(finished):
    events, files, _, revisions = finished
    card, [done], [reach] = files["README.md"].decode(), events["done"], events["coverage"]
    assert f"{done['base_loss']:.4f} → {done['tuned_loss']:.4f}" in card
    assert f"{done['base_perplexity']:,.2f} → {done['tuned_perplexity']:,.2f}" in card
    assert f"| Supervised share | {done['supervised_fraction']:.1%}" in card
    assert f"{done['coverage']:.1%} of the layers asked for: {reach['modules']} modules, {reach['trainable']:,}" in card
    assert "| Cost | about $" in card
    assert "estimated $0.15 to $0.60 for the whole run" in card
    assert "each packed with rows" in card
    assert "| Plan | 0123456789abcdef |" in card
    assert all(revision in card for revision in revisions)  # nobody asked for one: the run says which it took
    assert "from_pretrained" in card and "apply_chat_template" in card
    assert "None" not in card
    # About: a quarter dollar a minute, since a little before the run's own clock began.
    assert done["duration_s"] / 60 * 0.25 < done["cost_usd"] < (done["duration_s"] + 60) / 60 * 0.25


def test_the_loss_is_drawn(finished):
    _, files, _, _ = finished
    assert files["loss.png"].startswith(b"\x89PNG\r\n\x1a\n")
    assert len(files["loss.png"]) < 60_000
    assert "](loss.png)" in files["README.md"].decode()


def test_a_run_that_learns_no_more_ends_with_its_best_adapter(tmp_path, training_python, tiny_model):
    """With this learning rate the held-out loss soon rises; and the picture cannot be drawn, as a folder has its name."""
    (tmp_path / "out" / "loss.png").mkdir(parents=True)
    where = ["--base-model", str(tiny_model), "--dataset", str(ROOT / "demo" / "stdlib-docs.jsonl")]
    rates = ["--learning-rate", "0.1", "--max-steps", "30", "--early-stopping", "1"]
    events = run(training_python, tmp_path, *where, *rates, HF_HOME=str(tmp_path / "hf"), HF_HUB_OFFLINE="1")
    [stopped], [done] = events["early_stopped"], events["done"]
    losses = {event["step"]: event["eval_loss"] for event in events["eval"] if event["step"]}
    # It ended at the first evaluation that was no better, and says what that saved.
    assert done["early_stopped"] and done["steps"] == stopped["step"] < stopped["of"] == 30
    assert stopped["steps_saved"] == 30 - stopped["step"]
    assert stopped["usd_saved"] == pytest.approx(stopped["seconds_saved"] / 60 * 0.25, abs=1e-3)
    # The adapter is the best one, to the bit.
    assert stopped["kept_step"] == min(losses, key=losses.get) < stopped["step"]
    assert losses[stopped["kept_step"]] == pytest.approx(done["tuned_loss"], abs=1e-4)
    kept = tmp_path / "out" / "checkpoints" / f"checkpoint-{stopped['kept_step']}"
    saved, expected = (folder / "adapter_model.safetensors" for folder in (tmp_path / "out", kept))
    assert saved.read_bytes() == expected.read_bytes()
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| Steps | {stopped['step']} of 30: stopped early" in card
    # No picture, and no harm.
    assert [event["code"] for event in events["warning"]] == ["picture_failed"]
    assert "](loss.png)" not in card


def test_what_cannot_be_drawn_or_answered_is_a_warning(tmp_path, capsys):
    """The tests' own environment has neither matplotlib nor torch."""
    assert not sft.draw_losses([{"step": 1, "loss": 2.0}], 2.1, None, tmp_path / "loss.png")
    assert sft.show_answers(None, None, [{"labels": [1]}]) == []
    codes = [event["code"] for event in said(capsys.readouterr().out)["warning"]]
    assert codes == ["picture_failed", "sample_failed"]


def test_a_card_shows_what_a_model_wrote():
    assert sft.cell("a | <b>\n\x07end") == "a \\| &lt;b&gt;<br>end"
    assert sft.cell("") == "(nothing)"
    assert len(sft.cell("x" * 5000)) < 1000
    assert sft.quoted("one\n<think>") == "> one  \n> &lt;think&gt;  "
    assert sft.perplexity(1e6) < math.inf


def test_a_run_without_a_price_names_none():
    assert sft.cost_usd() is None
    assert sft.cost_against_estimate({}) is None


def test_the_driver_is_named_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sft.driver_version() is None
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 550.54.15\necho 550.54.15\n")
    program.chmod(0o755)
    assert sft.driver_version() == "550.54.15"


def test_less_gpu_memory_than_planned_stops_the_run():
    sft.require_planned_memory(23.7, 24)  # of an L4's 24 GB
    sft.require_planned_memory(15.8, 0)  # nothing was planned
    with pytest.raises(sft.Stop) as stop:
        sft.require_planned_memory(15.8, 24)
    assert stop.value.code == "small_gpu"


@pytest.mark.parametrize("words", [["--early-stopping", "-1"], ["--early-stopping", "2", "--eval-split", "0"]])
def test_early_stopping_needs_something_to_look_at(words, capsys):
    with pytest.raises(SystemExit):
        sft.parse_args(["--dataset", "ada/docs", *words])
    assert "--early-stopping" in capsys.readouterr().err
