"""Nothing is lost: whatever ends a run early, what it learned is kept, and the run goes on from there."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import sft
from conftest import ROWS, SFT, Commands
from runs import Run

STEPS, SAVE = 30, 5
DATA = ["--dataset", str(ROWS), "--batch-size", "4", "--gradient-accumulation", "4", "--max-seq-length", "128"]


@pytest.fixture(scope="module")
def words(tiny_model) -> list[str]:
    """A run of two epochs in 30 steps, each in two passes of four sequences."""
    model = ["--base-model", str(tiny_model), "--load-in-16bit"]
    return [*model, *DATA, "--max-steps", str(STEPS), "--save-steps", str(SAVE), "--learning-rate", "5e-3"]


@pytest.fixture(scope="module")
def whole(runs, words) -> Run:
    """The run that nothing disturbs. Its --resume finds nothing, so it starts from the beginning."""
    run = runs.start(*words, "--resume", "--output-repo", "ada/whole").wait()
    assert (run.code, list(run.losses())) == (0, list(range(1, STEPS + 1))), run.log[-3000:]
    assert run.last("batching")["micro"] == 4 and run.last("batching")["accumulation"] == 2
    return run


def assert_same_curve(whole: Run, *parts: Run) -> None:
    """The parts together saw the same rows in the same order, and learned the same from them."""
    joined = {step: loss for part in parts for step, loss in part.losses().items()}
    assert joined == pytest.approx(whole.losses(), abs=2e-2)
    assert joined[STEPS] == pytest.approx(whole.losses()[STEPS], abs=1e-2)
    assert parts[-1].code == 0
    assert parts[-1].last("done")["tuned_loss"] == pytest.approx(whole.last("done")["tuned_loss"], abs=1e-2)


# ---- told to end, or killed


def test_a_run_that_is_told_to_end_saves_pushes_and_goes_on_later(runs, words, whole):
    run = runs.start(*words, "--output-repo", "ada/ended")
    run.wait_for("progress", 12)
    run.process.terminate()
    failed, stopped = run.wait().last("failed"), run.last("checkpoint")
    assert (run.code, failed["code"]) == (1, "cancelled")
    assert "--resume" in failed["fix"] and "ada/ended" in failed["message"]
    assert stopped["pushed"] and stopped["step"] == max(run.losses())
    files = runs.hub.files("ada/ended")
    assert "adapter_model.safetensors" in files
    assert json.loads(files["last-checkpoint/trainer_state.json"].read_text())["global_step"] == stopped["step"]

    resumed = runs.start(*words, "--output-repo", "ada/ended", "--resume", folder=run.folder).wait()
    assert min(resumed.losses()) == stopped["step"] + 1
    assert_same_curve(whole, run, resumed)


def test_a_killed_run_goes_on_from_its_pushed_checkpoint_on_another_machine(runs, words, whole):
    run = runs.start(*words, "--output-repo", "ada/killed")
    run.wait_for("progress", 18)
    run.process.kill()
    run.wait()
    kept = json.loads(runs.hub.files("ada/killed")["last-checkpoint/trainer_state.json"].read_text())["global_step"]
    assert max(run.losses()) - kept <= SAVE

    resumed = runs.start(*words, "--output-repo", "ada/killed", "--resume").wait()
    assert min(resumed.losses()) == kept + 1
    assert_same_curve(whole, run, resumed)
    assert "README.md" in runs.hub.files("ada/killed")


def test_a_run_killed_after_its_last_step_only_has_to_be_finished(runs, words, whole):
    """All that is there is the last checkpoint: the adapter, its card and its push are made from it."""
    folder = whole.folder.with_name("unfinished")
    shutil.copytree(whole.folder / "out" / "checkpoints", folder / "out" / "checkpoints")
    resumed = runs.start(*words, "--resume", folder=folder).wait()
    assert (resumed.code, resumed.losses()) == (0, {}), resumed.log[-3000:]
    assert resumed.last("done")["tuned_loss"] == pytest.approx(whole.last("done")["tuned_loss"], abs=1e-2)
    assert (folder / "out" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice, as uv passes it on"])
def test_a_run_that_is_told_to_end_before_training_ends_at_once(training_python, words, tmp_path, times):
    process = subprocess.Popen(
        [training_python, str(SFT), *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    said = ""
    while "EVENT" not in said:
        said += process.stdout.readline()
    time.sleep(1.5)  # amid the imports
    for _ in range(times):
        process.terminate()
    said += process.communicate(timeout=60)[0]
    assert process.returncode == 1
    [failed] = [line for line in said.splitlines() if '"failed"' in line]
    assert '"cancelled"' in failed and "--resume" in failed
    assert '"masks"' not in said and "Traceback" not in said


@pytest.mark.parametrize("where", ["rows_leak", "show_answers"])
def test_no_library_takes_the_signal_for_a_failure_of_its_own(runs, words, where):
    run = runs.start(*words, "--max-steps", "1", fault=["told_to_end", where]).wait()
    assert (run.code, run.last("failed")["code"]) == (1, "cancelled")
    assert not run.all("warning") and not run.all("done")


# ---- the deadline


def test_a_job_stops_before_its_timeout_and_is_gone_on_with(runs, tiny_model, tmp_path, training_python):
    commands = Commands({"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "HF_TOKEN": ""}, tmp_path)
    words = ["--base-model", str(tiny_model), *DATA, "--num-epochs", "1000", "--save-steps", "100000"]
    submit = ["submit.py", str(SFT), "--where", "local", "--timeout", "60s", "--yes", "--", *words, "--save-local", "out"]
    job = commands.json(*submit)["job_id"]
    status = commands.json("status.py", job, "--watch", code=1)
    assert (status["stage"], status["diagnosis"]["code"]) == ("ERROR", "deadline")
    assert status["elapsed_s"] < 60
    assert "--resume" in status["diagnosis"]["fix"] and "--resume" in status["next"]
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()

    again = runs.start(*words, "--resume", folder=tmp_path, UNSLOTH_JOBS_RUN='{"timeout_s": 1}').wait()
    assert (again.code, again.last("failed")["code"]) == (1, "deadline")
    assert again.last("checkpoint")["step"] == status["progress"]["step"] + 1  # however late it is, a step is made


# ---- what --resume goes on with


@pytest.fixture
def saved(tmp_path) -> tuple[sft.Settings, Path]:
    """Settings of a run, and its checkpoint at step 40."""
    settings = sft.Settings(dataset="rows.jsonl", save_local=str(tmp_path / "out"), resume=True)
    for step in (5, 40):
        folder = tmp_path / "out" / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text("{}")
        (folder / sft.SETTINGS_FILE).write_text(json.dumps(asdict(settings)))
    return settings, folder


def test_the_newest_whole_checkpoint_is_gone_on_with(saved):
    settings, newest = saved
    (newest.parent / "checkpoint-80").mkdir()  # a kill amid its writing
    assert sft.checkpoint_to_resume(settings, None) == newest


@pytest.mark.parametrize(
    ("name", "value", "flag"),
    [
        ("lora_r", 8, "--lora-r 16"),
        ("dataset", "other.jsonl", "--dataset rows.jsonl"),
        ("load_in_16bit", True, "--no-load-in-16bit"),
        ("dataset_revision", "refs/pr/1", "--dataset-revision ''"),
    ],
)
def test_other_settings_are_refused_with_the_flags_that_it_began_with(saved, name, value, flag):
    settings, _ = saved
    with pytest.raises(sft.Stop) as stop:
        sft.checkpoint_to_resume(sft.replace(settings, **{name: value}), None)
    assert stop.value.code == "resume_mismatch"
    assert name in stop.value.message and flag in stop.value.fix
    began = sft.parse_args(["--dataset", "rows.jsonl", *shlex.split(flag)])
    assert getattr(began, name) == getattr(settings, name)


def test_what_does_not_change_the_rows_may_change(saved):
    settings, newest = saved
    other = sft.replace(settings, save_steps=0.5, output_repo="ada/other", trackio_space="ada/trackio")
    assert sft.checkpoint_to_resume(other, None) == newest


def test_what_was_set_aside_is_not_pushed(runs, words, whole):
    folder = whole.folder.with_name("anew")
    shutil.copytree(whole.folder / "out" / "checkpoints", folder / "out" / "checkpoints")
    run = runs.start(*words, "--max-steps", "2", "--output-repo", "ada/anew", folder=folder).wait()
    assert (run.code, run.last("done")["steps"]) == (0, 2)
    assert (folder / "out" / "checkpoints-1" / f"checkpoint-{STEPS}").is_dir()
    assert not [path for path in runs.hub.files("ada/anew") if path.startswith("checkpoints")]


def test_without_resume_old_checkpoints_are_set_aside(saved, capsys):
    settings, newest = saved
    anew = sft.replace(settings, resume=False)
    for _ in range(2):  # within one second, too
        newest.mkdir(parents=True, exist_ok=True)
        assert sft.checkpoint_to_resume(anew, None) is None
    assert not newest.parent.exists()
    aside = [path for path in newest.parent.parent.iterdir() if (path / newest.name).is_dir()]
    assert len(aside) == 2
    assert all(path.name in capsys.readouterr().out for path in aside[:1])


# ---- out of memory, and what cannot be learned from


def test_out_of_memory_a_step_is_made_of_smaller_passes_from_the_newest_checkpoint(runs, words, whole):
    run = runs.start(*words, fault=["out_of_memory", 2, 12]).wait()
    [warning] = [event for event in run.all("warning") if event["code"] == "out_of_vram"]
    assert "4 sequences at once" in warning["message"] and "2 in 4 passes" in warning["message"]
    steps = [event["step"] for event in run.all("progress")]
    assert steps == [*range(1, 13), *range(11, STEPS + 1)]
    assert_same_curve(whole, run)


def test_out_of_memory_before_any_checkpoint_the_run_begins_anew(runs, words, whole):
    run = runs.start(*words, fault=["out_of_memory", 1, 3]).wait()
    assert [event["code"] for event in run.all("warning")].count("out_of_vram") == 2
    steps = [event["step"] for event in run.all("progress")]
    assert steps == [1, 2, 3, 1, 2, 3, *range(1, STEPS + 1)]
    assert_same_curve(whole, run)


def test_out_of_memory_with_one_sequence_ends_the_run(runs, words):
    run = runs.start(*words, fault=["out_of_memory", 0, 0]).wait()
    assert (run.code, run.last("failed")["code"]) == (1, "out_of_vram")
    assert "--max-seq-length" in run.last("failed")["fix"]
    assert run.log.count("Going on with") == 2


def test_the_base_models_evaluation_may_run_out_of_memory_too(runs, words, whole):
    run = runs.start(*words, fault=["out_of_memory_evaluating", 2]).wait()
    assert run.last("done")["base_loss"] == pytest.approx(whole.last("done")["base_loss"], rel=1e-3)
    assert_same_curve(whole, run)


def test_a_loss_that_is_no_number_ends_the_run_and_spoils_no_checkpoint(runs, words):
    """With 250 steps every second one is logged; before a checkpoint the loss is looked at all the same."""
    run = runs.start(*words, "--learning-rate", "1e30", "--max-steps", "250", "--save-steps", "1").wait()
    assert (run.code, run.last("failed")["code"]) == (1, "loss_not_finite")
    assert "--learning-rate" in run.last("failed")["fix"]
    assert {event["step"] for event in run.all("checkpoint")} <= run.losses().keys()
