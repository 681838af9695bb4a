"""What a run shows for its money: losses, answers, picture and card; and that it stops when nothing more is learned."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import time
from types import SimpleNamespace

import psutil
import pytest
import sft
from conftest import ROWS, SFT

PLANNED = {
    "plan_id": "0123456789abcdef",
    "flavor": "cpu-upgrade",
    "timeout_s": 3600,
    "usd_per_minute": 0.25,
    "vram_gb": 0,
    "estimate": {"hours_low": 0.01, "hours_high": 0.04, "usd_low": 0.15, "usd_high": 0.6},
}
ENV = {"UNSLOTH_JOBS_RUN": json.dumps(PLANNED)}
QUICK = ["--num-samples", "120", "--batch-size", "8", "--gradient-accumulation", "1", "--max-seq-length", "256"]


@pytest.fixture(scope="module")
def finished(runs, tiny_model, docs):
    """A run whose model, data set and result are on the Hub, and the files of that result."""
    runs.hub.add_repo("ada/plain", tiny_model)
    runs.hub.add_repo("ada/plain-docs", docs, type="dataset")
    where = ["--base-model", "ada/plain", "--dataset", "ada/plain-docs", "--output-repo", "ada/evident"]
    run = runs.start(*where, *QUICK, "--learning-rate", "5e-3", "--max-steps", "6", **ENV).wait()
    assert run.code == 0, run.log[-3000:]
    return run, {name: path.read_bytes() for name, path in runs.hub.files("ada/evident").items()}


def trackio_log(runs, name: str) -> list[dict]:
    """What Trackio has stored of a run."""
    reading = (
        "import json; from trackio.sqlite_storage import SQLiteStorage as store; "
        f"print(json.dumps(store.get_logs('unsloth-jobs', {name!r}), default=str))"
    )
    env = psutil.Process(runs.server.pid).environ()
    said = subprocess.run([runs.python, "-c", reading], env=env, check=True, capture_output=True, text=True).stdout
    return json.loads(said.splitlines()[-1])


def test_base_and_tuned_are_measured_on_the_same_rows(runs, finished):
    run, _ = finished
    done, evaluations = run.last("done"), run.all("eval")
    assert done["tuned_loss"] < done["base_loss"] == pytest.approx(evaluations[0]["eval_loss"], abs=1e-4)
    assert evaluations[-1]["perplexity"] == pytest.approx(done["tuned_perplexity"], rel=1e-3)
    for name in ("base", "tuned"):
        assert done[f"{name}_perplexity"] == pytest.approx(math.exp(done[f"{name}_loss"]), rel=1e-4)
    # Trackio has them too, and the answers as a table.
    [result] = [entry for entry in trackio_log(runs, "plain-plain-docs") if "tuned/loss" in entry]
    assert result["tuned/perplexity"] == done["tuned_perplexity"]
    assert [row["tuned"] for row in result["answers"]["_value"]] == [event["tuned"] for event in run.all("sample")]


def test_held_out_questions_are_answered_side_by_side(finished):
    run, files = finished
    card, answers = files["README.md"].decode(), run.all("sample")
    assert len(answers) == card.count("| Base | Tuned | Reference |") == 3
    for answer in answers:
        assert all(sft.cell(answer[name]) in card for name in ("base", "tuned", "reference"))
        assert sft.quoted(answer["prompt"]) in card
    assert not run.all("warning")


def test_the_card_says_how_it_was_made(runs, finished):
    run, files = finished
    card, done, reach = files["README.md"].decode(), run.last("done"), run.last("coverage")
    assert f"{done['base_loss']:.4f} → {done['tuned_loss']:.4f}" in card
    assert f"{done['base_perplexity']:,.2f} → {done['tuned_perplexity']:,.2f}" in card
    assert f"| Supervised share | {done['supervised_fraction']:.1%}" in card
    assert f"{done['coverage']:.1%} of all linear layers: {reach['modules']} modules, {reach['trainable']:,}" in card
    assert "each packed with rows" in card
    assert "estimated $0.15 to $0.60 for the whole run" in card
    assert "| Plan | 0123456789abcdef |" in card
    assert hashlib.sha256(SFT.read_bytes()).hexdigest() in card
    assert "AutoPeftModelForCausalLM" in card and "apply_chat_template" in card
    for kind, name in (("model", "ada/plain"), ("dataset", "ada/plain-docs")):  # at which commit, nobody had asked for
        assert runs.hub.store.repos[kind, name].branches["main"] in card
    # About: a quarter dollar a minute, since a little before the run's own clock began.
    assert done["duration_s"] / 60 * 0.25 < done["cost_usd"] < (done["duration_s"] + 60) / 60 * 0.25


def test_the_loss_is_drawn(finished):
    _, files = finished
    assert files["loss.png"].startswith(b"\x89PNG\r\n\x1a\n")
    assert len(files["loss.png"]) < 60_000
    assert "](loss.png)" in files["README.md"].decode()


def test_a_run_that_learns_no_more_ends_with_its_best_adapter(runs, tiny_model, tmp_path):
    """At this learning rate the held-out loss soon rises; and no picture can be drawn, as a folder has its name."""
    out = tmp_path / "out"
    (out / "loss.png").mkdir(parents=True)
    words = ["--learning-rate", "3", "--max-steps", "30", "--early-stopping", "1"]
    words += ["--base-model", str(tiny_model), "--dataset", str(ROWS)]
    run = runs.start(*words, *QUICK, folder=tmp_path, **ENV).wait()
    assert run.code == 0, run.log[-3000:]
    stopped, done = run.last("early_stopped"), run.last("done")
    losses = {event["step"]: event["eval_loss"] for event in run.all("eval") if event["step"]}
    # It ended at the first evaluation that was no better, and says what that saved.
    assert done["early_stopped"] and done["steps"] == stopped["step"] < stopped["of"] == 30
    assert stopped["steps_saved"] == 30 - stopped["step"]
    assert stopped["usd_saved"] == pytest.approx(stopped["seconds_saved"] / 60 * 0.25, abs=1e-3)
    # Its adapter is the best one, to the bit.
    assert stopped["kept_step"] == min(losses, key=losses.get) < stopped["step"]
    assert losses[stopped["kept_step"]] == pytest.approx(done["tuned_loss"], abs=1e-4)
    kept = out / "checkpoints" / f"checkpoint-{stopped['kept_step']}"
    saved, expected = (folder / "adapter_model.safetensors" for folder in (out, kept))
    assert saved.read_bytes() == expected.read_bytes()
    card = (out / "README.md").read_text()
    assert f"| Steps | {stopped['step']} of 30: stopped early" in card
    # No picture, and no harm.
    assert [event["code"] for event in run.all("warning")] == ["picture_failed"]
    assert "](loss.png)" not in card


def test_what_cannot_be_drawn_or_answered_is_a_warning(tmp_path, capsys):
    """The tests' own environment has neither matplotlib nor torch."""
    assert not sft.draw_losses([{"step": 1, "loss": 2.0}], 2.1, None, tmp_path / "loss.png")
    asked = sft.QuestionSet([sft.Question([1], "What?", "That.", {})])
    assert sft.show_evidence(None, None, asked, sft.Settings(), math.inf) == (None, [])
    said = capsys.readouterr().out
    assert [code for code in ("picture_failed", "sample_failed") if code not in said] == []


def test_a_card_shows_what_a_model_wrote():
    assert sft.cell("a | <b>\n\x07end") == "a \\| &lt;b&gt;<br>end"
    assert sft.cell("") == "(nothing)"
    assert len(sft.cell("x" * 5000)) < 1000
    assert sft.quoted("one\n<think>") == "> one  \n> &lt;think&gt;  "
    assert sft.perplexity(1e6) < math.inf


def test_a_card_quotes_rows_only_where_it_may_and_without_secrets():
    secret = "hf_" + "a1B2c3D4" * 4
    losses = {"base_loss": 2.0, "tuned_loss": 1.0, "base_perplexity": 7.4, "tuned_perplexity": 2.7}
    answer = {"prompt": f"My token is {secret}", "base": "B", "tuned": f"Yours is {secret}", "reference": "a private row"}
    settings = sft.Settings(dataset="ada/docs")
    card = sft.model_card(settings, losses, {}, [answer], None, "sft")
    assert secret not in card and "hf_***" in card and "a private row" in card
    silent = sft.model_card(sft.replace(settings, card_samples=False), losses, {}, [answer], None, "sft")
    assert "a private row" not in silent and "2.0000 → 1.0000" in silent
    unmeasured = sft.model_card(settings, losses | {"tuned_loss": None, "tuned_perplexity": None}, {}, [], None, "sft")
    assert "Not measured" in unmeasured


def test_a_run_that_ended_early_for_no_known_reason_says_so():
    ending, state = sft.StopSignal(), SimpleNamespace(global_step=3, max_steps=9)
    with pytest.raises(sft.Stop) as stop:
        ending.require_none(state, "ada/tuned")
    assert stop.value.code == "stopped" and "step 3 of 9" in stop.value.message


def test_the_first_push_is_expected_to_take_time(monkeypatch):
    """Nothing is known of it before the first checkpoint: as long again as the margin is set aside."""
    monkeypatch.setenv("UNSLOTH_JOBS_RUN", json.dumps({"timeout_s": 1000, "started": time.time() - 870}))
    ending = sft.StopSignal()
    assert ending.margin == 50
    assert not ending.due(0) and ending.due(2 * ending.margin)


def test_a_run_without_a_price_names_none():
    assert sft.cost_usd() is None
    assert sft.cost_line({}) is None


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
