"""Nothing is lost: whatever ends a run early, what it learned is kept, and the run goes on from there."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import pytest
import sft
from commands import Commands
from conftest import ROWS, SFT
from runs import Run

STEPS, SAVE = 30, 5
DATA = ["--dataset", str(ROWS), "--batch-size", "4", "--gradient-accumulation", "4", "--max-seq-length", "128"]


@pytest.fixture(scope="module")
def words(tiny_model) -> list[str]:
    """A run of nearly two epochs in 30 steps of 16 rows, each in some passes."""
    model = ["--base-model", str(tiny_model), "--load-in-16bit"]
    return [*model, *DATA, "--max-steps", str(STEPS), "--save-steps", str(SAVE), "--learning-rate", "5e-3"]


@pytest.fixture(scope="module")
def whole(runs, words) -> Run:
    """The run that nothing disturbs. Its --resume finds nothing, so it starts from the beginning."""
    run = runs.start(*words, "--resume", "--output-repo", "ada/whole").wait()
    assert (run.code, list(run.losses())) == (0, list(range(1, STEPS + 1))), run.log[-3000:]
    batching = run.last("batching")
    assert batching["rows_per_step"] == 16 and batching["accumulation"] > 1 and batching["gradient_checkpointing"] == "off"
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


def test_a_run_that_is_ended_with_ctrl_c_saves_too(runs, words):
    run = runs.start(*words)
    run.wait_for("progress", 3)
    run.process.send_signal(signal.SIGINT)
    run.process.send_signal(signal.SIGINT)  # as uv passes it on
    run.wait()
    assert (run.code, run.last("failed")["code"]) == (1, "cancelled")
    assert run.last("checkpoint")["step"] == max(run.losses())
    assert (run.folder / "out" / "adapter_model.safetensors").is_file()


def test_a_killed_run_goes_on_from_its_pushed_checkpoint_on_another_machine(runs, words, whole):
    run = runs.start(*words, "--output-repo", "ada/killed")
    run.wait_for("progress", 18)
    run.process.kill()
    run.wait()
    kept = json.loads(runs.hub.files("ada/killed")["last-checkpoint/trainer_state.json"].read_text())["global_step"]
    assert max(run.losses()) - kept <= SAVE

    # There, memory holds less: the same steps in smaller passes.
    resumed = runs.start(*words, "--output-repo", "ada/killed", "--resume", fault=["out_of_memory", 300, 0]).wait()
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
    said += process.communicate(timeout=600)[0]
    assert process.returncode == 1
    [failed] = [line for line in said.splitlines() if '"failed"' in line]
    assert '"cancelled"' in failed and "--resume" in failed
    assert '"masks"' not in said and "Traceback" not in said


@pytest.fixture
def signals():
    """A StopSignal that listens; afterwards signals do what they did before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield sft.StopSignal()
    for number, handler in before.items():
        signal.signal(number, handler)
    sft.told_to_end.clear()


@pytest.mark.parametrize("makes_of_it", [None, ImportError("cannot import name 'x' from partially initialized module 'y'")])
def test_a_signal_that_a_library_swallows_amid_its_import_ends_the_run_all_the_same(signals, capsys, makes_of_it):
    def run() -> None:
        signals.listen()
        with suppress(BaseException):
            os.kill(os.getpid(), signal.SIGTERM)
        if makes_of_it:
            raise makes_of_it
        sft.emit("masks", rows=1)

    assert sft.exit_code(run, "the same command with --resume") == 1
    [failed] = capsys.readouterr().out.splitlines()
    assert json.loads(failed.removeprefix("EVENT "))["code"] == "cancelled"


@pytest.mark.parametrize("where", ["has_cross_contamination", "show_evidence"])
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


OWN = {"method": "sft", "data": "sha256:1", "model": "sha256:2", "packed": True, "data_revision": "sha256:3"}


@pytest.fixture
def saved(tmp_path) -> tuple[sft.Settings, Path]:
    """Settings of a run, and its checkpoint at step 40."""
    settings = sft.Settings(dataset="rows.jsonl", save_local=str(tmp_path / "out"), resume=True, lora_r=16, lora_alpha=32)
    for step in (5, 40):
        folder = tmp_path / "out" / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text("{}")
        (folder / sft.SETTINGS_FILE).write_text(json.dumps(asdict(settings) | {"lineage": OWN}))
    return settings, folder


def test_the_newest_whole_checkpoint_is_gone_on_with(saved):
    settings, newest = saved
    (newest.parent / "checkpoint-80").mkdir()  # a kill amid its writing
    assert sft.checkpoint_to_resume(settings, None, OWN) == newest


@pytest.mark.parametrize(
    ("name", "value", "flag"),
    [
        ("lora_r", 8, "--lora-r 16"),
        ("dataset_config", "other", "--dataset-config ''"),
        ("load_in_16bit", True, "--no-load-in-16bit"),
        ("load_in_4bit", True, "--no-load-in-4bit"),
        ("learning_rate", 2e-4, "--learning-rate auto"),
        ("packing", False, "--packing"),
        ("backend", "trl", "--backend unsloth"),
        ("batch_size", 2, "--batch-size 4"),
    ],
)
def test_other_settings_are_refused_with_the_flags_that_it_began_with(saved, name, value, flag):
    settings, _ = saved
    with pytest.raises(sft.Stop) as stop:
        sft.checkpoint_to_resume(sft.replace(settings, **{name: value}), None, OWN)
    assert stop.value.code == "resume_mismatch"
    assert name in stop.value.message and flag in stop.value.fix
    began = sft.parse_args(["--dataset", "rows.jsonl", *shlex.split(flag)])
    assert getattr(began, name) == getattr(settings, name)


@pytest.mark.parametrize(
    ("name", "said"),
    [("data", "the rows"), ("model", "the model"), ("packed", "packing"), ("method", "method"), ("parent", "the adapter")],
)
def test_a_checkpoint_of_other_contents_under_the_same_names_is_refused(saved, name, said):
    settings, _ = saved
    with pytest.raises(sft.Stop) as stop:
        sft.checkpoint_to_resume(settings, None, OWN | {name: "another"})
    assert (stop.value.code, said in stop.value.message) == ("resume_mismatch", True)
    assert "--dataset rows.jsonl --dataset-revision sha256:3" in stop.value.fix and "--resume" in stop.value.fix


@pytest.mark.parametrize("stored", ["{}", "null", "[", '{"lineage": 5}'])
def test_a_checkpoint_that_does_not_say_what_it_was_trained_on_is_refused(saved, stored):
    settings, newest = saved
    (newest / sft.SETTINGS_FILE).write_text(stored)
    with pytest.raises(sft.Stop) as stop:
        sft.checkpoint_to_resume(settings, None, OWN)
    assert stop.value.code == "resume_mismatch"


def test_the_contents_of_rows_and_of_a_local_model_tell_them_apart(tmp_path):
    from datasets import Dataset

    def digest(*ids: int) -> str:
        return sft.rows_digest(Dataset.from_dict({"input_ids": [[1, *ids], [7]], "labels": [[1, *ids], [7]], "length": [2, 1]}))

    assert digest(2, 3) == digest(2, 3) != digest(2, 4)
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_text("x" if name != "c" else "xx")
    a, b, c = (sft.model_digest(sft.Settings(base_model=str(tmp_path / name))) for name in ("a", "b", "c"))
    assert a == b != c


def test_the_same_command_over_other_rows_never_ends_with_the_first_run_s_adapter(runs, words, tmp_path):
    """The file's name is the same, its rows are not: as where a job's file is always train.jsonl."""
    rows = ROWS.read_text().splitlines(keepends=True)
    train = [*words, "--dataset", "train.jsonl", "--max-steps", "2", "--output-repo", "ada/grown"]
    (tmp_path / "train.jsonl").write_text("".join(rows[:40]))
    assert runs.start(*train, folder=tmp_path).wait().code == 0
    (tmp_path / "train.jsonl").write_text("".join(rows[:60]))
    shutil.rmtree(tmp_path / "out")
    refused = runs.start(*train, "--resume", folder=tmp_path).wait()
    assert (refused.code, refused.last("failed")["code"]) == (1, "resume_mismatch")
    # Begun from the beginning, it takes the first run's checkpoint away before it has one of its own.
    begun = runs.start(*train, "--save-steps", "2", folder=tmp_path)
    begun.wait_for("eval", 0)
    assert not [name for name in runs.hub.files("ada/grown") if name.startswith("last-checkpoint/")]
    assert begun.wait().last("done")["trained_steps"] == 2


def test_only_the_platform_s_own_restart_resumes_by_itself(runs, words):
    """--attempts: each start has the same arguments; a job that is started again keeps its id, another job has its own."""
    facts = {"UNSLOTH_JOBS_RUN": json.dumps({"plan_id": "0123456789abcdef", "attempts": 2})}
    train = [*words, "--max-steps", "12", "--output-repo", "ada/attempts"]
    run = runs.start(*train, JOB_ID="one", **facts)
    run.wait_for("checkpoint", 5)
    run.process.kill()
    run.wait()
    again = runs.start(*train, JOB_ID="one", **facts).wait()
    assert again.code == 0 and min(again.losses()) >= 6, again.log[-3000:]
    assert again.last("done")["trained_steps"] == len(again.losses()) < again.last("done")["steps"] == 12
    other = runs.start(*train, JOB_ID="two", **facts).wait()
    assert other.code == 0 and list(other.losses()) == list(range(1, 13))


def test_what_does_not_change_the_rows_may_change(saved):
    settings, newest = saved
    other = sft.replace(settings, save_steps=0.5, output_repo="ada/other", trackio_space="ada/trackio")
    assert sft.checkpoint_to_resume(other, None, OWN) == newest


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
        assert sft.checkpoint_to_resume(anew, None, OWN) is None
    assert not newest.parent.exists()
    aside = [path for path in newest.parent.parent.iterdir() if (path / newest.name).is_dir()]
    assert len(aside) == 2
    assert all(path.name in capsys.readouterr().out for path in aside[:1])


# ---- out of memory, and what cannot be learned from


def out_of_vram(run: Run) -> list[str]:
    return [event["message"] for event in run.all("warning") if event["code"] == "out_of_vram"]


def test_out_of_memory_a_step_is_made_of_smaller_passes_from_the_newest_checkpoint(runs, words, whole):
    run = runs.start(*words, fault=["out_of_memory", 300, 12]).wait()
    first, *others = out_of_vram(run)
    assert "recomputed" in first and others and all("the same effective batch size" in said for said in others)
    steps = [event["step"] for event in run.all("progress")]
    assert steps == [*range(1, 13), *[11, 12] * len(others), *range(11, STEPS + 1)]
    assert_same_curve(whole, run)


def test_out_of_memory_before_any_checkpoint_the_run_begins_anew(runs, words, whole):
    run = runs.start(*words, fault=["out_of_memory", 200, 3]).wait()
    steps = [event["step"] for event in run.all("progress")]
    assert steps == [*[1, 2, 3] * len(out_of_vram(run)), *range(1, STEPS + 1)]
    assert_same_curve(whole, run)


def test_out_of_memory_with_its_activations_kept_a_run_recomputes_them(runs, words, whole):
    run = runs.start(*words, fault=["out_of_memory_kept"]).wait()
    [said] = out_of_vram(run)
    assert "gradient checkpointing" in said
    assert_same_curve(whole, run)


@pytest.mark.parametrize(("most", "packed"), [(32, True), (1, False)])
def test_out_of_memory_is_no_sign_that_packed_rows_see_each_other(runs, words, most, packed):
    run = runs.start(*words, "--max-steps", "1", fault=["out_of_memory_packed", most]).wait()
    assert run.last("batching")["packed"] is packed
    said = [event["message"] for event in run.all("warning") if event["code"] == "not_packed"]
    assert said == (
        []
        if packed
        else ["No sequence packing, each row is trained alone: it could not be tested: it does not fit in the GPU's memory."]
    )


def test_out_of_memory_with_one_sequence_ends_the_run(runs, words):
    run = runs.start(*words, fault=["out_of_memory", 0, 0]).wait()
    assert (run.code, run.last("failed")["code"]) == (1, "out_of_vram")
    assert "--max-seq-length" in run.last("failed")["fix"]
    assert run.log.count("recomputed") == 1 and run.log.count("Going on with") > 2


def test_an_evaluation_that_does_not_fit_is_made_row_by_row(runs, words, whole):
    run = runs.start(*words, fault=["out_of_memory_evaluating", 130]).wait()
    assert not run.all("warning")
    assert run.last("done")["base_loss"] == pytest.approx(whole.last("done")["base_loss"], rel=1e-3)
    assert_same_curve(whole, run)


@pytest.mark.parametrize(
    ("fault", "evals"), [(["evaluation_fails", 0], 0), (["out_of_memory_evaluating", 0], 0), (["evaluation_fails", 4], 1)]
)
def test_an_evaluation_that_fails_costs_the_evaluation_and_not_the_run(runs, words, fault, evals):
    run = runs.start(*words, "--max-steps", "4", "--output-repo", "ada/unevaluated", fault=fault).wait()
    assert (run.code, list(run.losses())) == (0, [1, 2, 3, 4]), run.log[-3000:]
    assert [event["code"] for event in run.all("warning")] == ["evaluation_failed"]
    assert len(run.all("eval")) >= evals and run.last("done")["tuned_loss"] is None
    assert "the evaluation failed" in runs.hub.files("ada/unevaluated")["README.md"].read_text()


def one_held_out(count: int) -> int:
    """Which of so many rows is held out."""
    from datasets import Dataset

    settings = sft.Settings(dataset="rows", eval_split=0.1)
    return sft.split_rows(Dataset.from_dict({"row": list(range(count))}), settings)[1]["row"][0]


@pytest.mark.parametrize("rows", [12, 1], ids=["the held-out row is cut", "there is one row"])
def test_a_run_without_a_held_out_row_still_ends_with_an_adapter(runs, words, tmp_path, rows):
    made = [{"prompt": f"Count to {number}", "completion": "one two three"} for number in range(rows)]
    if rows > 1:
        made[one_held_out(rows)]["prompt"] = "Count " * 500
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    run = runs.start(*words, "--dataset", "rows.jsonl", "--max-steps", "2", "--early-stopping", "1", folder=tmp_path).wait()
    assert (run.code, run.last("done")["steps"]) == (0, 2), run.log[-3000:]
    assert [event["code"] for event in run.all("warning")] == (["no_evaluation"] if rows > 1 else [])
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file() and run.last("done")["base_loss"] is None


@pytest.mark.parametrize("packing", ["--packing", "--no-packing"])
def test_the_gradient_of_a_step_is_that_of_all_its_tokens_alike(runs, words, tmp_path, packing):
    """In the real trainer, whose passes hold very unequal numbers of learned tokens."""
    made = [{"prompt": f"Count to {number}", "completion": "one two three " * (1, 1, 12)[number % 3]} for number in range(32)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    few = ["--dataset", "rows.jsonl", "--batch-size", "1", "--max-steps", "8", "--max-seq-length", "64", "--eval-split", "0"]
    run = runs.start(*words, *few, packing, folder=tmp_path, fault=["compare_gradient"]).wait()
    assert run.code == 0, run.log[-3000:]
    found = run.all("gradient")
    assert len(found) == 8
    assert any(max(event["learned"]) > 3 * min(event["learned"]) for event in found)
    assert max(event["error"] for event in found) < 0.03


def test_a_loss_that_is_no_number_ends_the_run_and_spoils_no_checkpoint(runs, words):
    """With 250 steps every second one is logged; before a checkpoint the loss is looked at all the same."""
    run = runs.start(*words, "--learning-rate", "1e30", "--max-steps", "250", "--save-steps", "1").wait()
    assert (run.code, run.last("failed")["code"]) == (1, "loss_not_finite")
    assert "--learning-rate" in run.last("failed")["fix"]
    assert {event["step"] for event in run.all("checkpoint")} <= run.losses().keys()
