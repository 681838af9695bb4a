"""The whole way with real Unsloth: a job on the test Hub trains, and its adapter comes back out of that Hub."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sft
from commands import Commands
from conftest import ROOT, ROWS, SFT, UV
from datasets import Dataset
from hubs import ADA
from unsloth_jobs.estimate import cost

QUICK = ["--learning-rate", "5e-3", "--batch-size", "8", "--gradient-accumulation", "1", "--max-seq-length", "256"]


def events(text: str) -> dict[str, dict]:
    """The newest event of each name in a log."""
    found = [json.loads(line.split("EVENT ", 1)[1]) for line in text.splitlines() if "EVENT {" in line]
    return {event["event"]: event for event in found}


@pytest.mark.hub(execute_jobs=True, scheduling=0.1)
def test_from_plan_to_an_adapter_that_answers(hub, tmp_path, training_python):
    commands = Commands(hub.env(token=ADA), tmp_path)
    arguments = ["--base-model", "ada/tiny", "--dataset", "ada/docs", "--num-epochs", "3", *QUICK, "--trackio-space="]
    arguments += ["--output-repo", "ada/tiny-tuned", "--merge-model", "--load-in-16bit"]
    words = ["submit.py", str(SFT), "--flavor", "cpu-upgrade", "--timeout", "15m"]

    checked = commands.json("check.py", "ada/tiny", "ada/docs", "--max-length", "256")
    shown = commands.json(*words, "--", *arguments, code=3)
    job = commands.json(*words, "--approve", shown["plan_id"], "--", *arguments)
    status = commands.json("status.py", job["job_id"], "--watch")
    log = "\n".join(line.text for line in hub.jobs.wait(job["job_id"]).logs)
    said = events(log)

    # The job is over, and it learned.
    assert status["stage"] == "COMPLETED", log[-3000:]
    assert status["progress"]["step"] == status["progress"]["total_steps"]
    assert status["progress"]["step"] == 3 * math.ceil(said["masks"]["rows_kept"] / 8)  # of 8 rows each
    assert said["done"]["tuned_loss"] < said["done"]["base_loss"] - 0.5
    assert status["progress"]["eval_loss"] == pytest.approx(said["done"]["tuned_loss"], abs=1e-3)
    # What the check saw is what the job trained on.
    assert said["coverage"]["coverage"] == checked["lora"]["coverage"] == 1.0
    assert said["coverage"]["target_modules"] == checked["lora"]["target_modules"]
    assert said["coverage"]["trainable"] == said["coverage"]["expected_trainable"]
    assert said["masks"]["supervised_fraction"] == pytest.approx(checked["mask"]["supervised_fraction"], abs=0.02)
    assert said["masks"]["digest"] == checked["mask"]["digest"]
    # Adapter, tokenizer, card and checkpoint are on the Hub, in a private repository.
    files = hub.files("ada/tiny-tuned")
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md"} <= files.keys()
    assert "last-checkpoint/trainer_state.json" in files
    assert hub.store.repos["model", "ada/tiny-tuned"].private
    card = files["README.md"].read_text()
    assert "base_model: ada/tiny" in card
    assert f"{said['done']['base_loss']:.4f} → {said['done']['tuned_loss']:.4f}" in card
    assert checked["dataset"]["revision"] in card
    assert "model.safetensors" in hub.files("ada/tiny-tuned-merged")
    # One job, with a stated timeout, the secret by name, and no token in clear anywhere.
    [created] = [r for r in hub.journal.requests(method="POST", path=r"^/api/jobs/ada$") if r.status == 200]
    assert (created.json["flavor"], created.json["timeoutSeconds"]) == ("cpu-upgrade", 900)
    assert list(created.json["secrets"]) == ["HF_TOKEN"]
    assert hub.leaks(ADA) == []
    # It loads as its card says, and answers.
    env = {**os.environ, **hub.env(token=ADA)}
    loading = [training_python, str(ROOT / "tests" / "answer.py"), "ada/tiny-tuned", "What does bisect.insort do?"]
    answered = json.loads(subprocess.run(loading, env=env, check=True, capture_output=True, text=True).stdout)
    assert answered["trained"] > 0
    assert answered["answer"].strip()


@pytest.fixture(scope="module")
def words(runs, tiny_model, docs) -> list[str]:
    """A model and a data set on the Hub of the runs."""
    runs.hub.add_repo("ada/tiny", tiny_model)
    runs.hub.add_repo("ada/docs", docs, type="dataset")
    return ["--base-model", "ada/tiny", "--dataset", "ada/docs"]


def write_rows(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("rows", "settings", "held_out"),
    [
        (5_000, {}, 200),
        (1_000, {}, 100),
        (1_000, {"max_eval_rows": 500, "eval_split": 0.9}, 500),
        (1_000, {"num_samples": 50}, 5),
        (1_000, {"eval_split": 0.0}, 0),
        (3, {}, 0),
        (2, {"eval_split": 0.9}, 1),
        (1, {"eval_split": 0.9}, 0),
    ],
)
def test_each_row_is_trained_on_or_held_out(rows, settings, held_out):
    made = sft.Settings(dataset="rows", num_epochs=1.0, **settings)
    numbered = Dataset.from_dict({"row": list(range(rows))})
    trained, evaluated = sft.split_rows(numbered, made)
    parts = [*trained["row"], *(evaluated["row"] if evaluated else ())]
    assert sorted(parts) == list(range(made.num_samples or rows))
    assert len(evaluated or ()) == held_out
    assert list(sft.split_rows(numbered, made)[0]["row"]) == list(trained["row"])
    # The estimate counts the same rows.
    assert cost.work(cost.Run(rows, 100, True), made, sft.Batching(1, 1, 2048)).tokens == 100 * len(trained)


@pytest.mark.parametrize("model", ["./nowhere", "/nowhere/model", "runs/tuned/final", "~/nowhere"])
def test_a_model_that_is_not_there_stops_in_the_first_second_with_its_name(tmp_path, model):
    """In an environment without torch: nothing heavy has been imported by then."""
    words = ["sft.py", "--base-model", model, "--dataset", str(ROWS)]
    run = f"import sys; sys.argv = {words!r}; import sft; sys.exit(sft.main())"
    env = {**os.environ, "PYTHONPATH": str(SFT.parent)}
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, env=env, cwd=tmp_path)
    failed = events(done.stdout)["failed"]
    assert (done.returncode, failed["code"]) == (1, "no_model")
    assert model in failed["message"] and "--base-model" in failed["fix"] and "Traceback" not in done.stderr


ASKED = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("rows", "arguments", "env", "code"),
    [
        ([{"image": "x", "label": 1}], [], {}, "unknown_columns"),
        ([], [], {}, "dataset_unreadable"),
        ([{"messages": [ASKED]}], ["--merge-model", "--load-in-4bit"], {}, "merge_needs_16bit"),
        ([{"messages": [ASKED]}] * 3, [], {}, "nothing_supervised"),
        ([{"messages": [ASKED]}], ["--output-repo", "microsoft/phi"], {}, "push_denied"),
        ([{"messages": [ASKED]}], [], {"JOB_ID": "1"}, "no_output_repo"),
        ([{"messages": [ASKED]}], [], {"ACCELERATOR": "a10g"}, "no_gpu"),
        (None, ["--dataset-split", "trian"], {}, "unknown_split"),
        (None, ["--dataset", "ada/dogs"], {}, "dataset_not_found"),
    ],
)
def test_it_stops_before_the_model_is_loaded_and_says_what_to_do(runs, words, tiny_model, tmp_path, rows, arguments, env, code):
    runs.hub.add_repo("ada/unloaded", tiny_model)
    data = [] if rows is None else ["--dataset", write_rows(tmp_path / "rows.jsonl", *rows)]
    run = runs.start(*words, "--base-model", "ada/unloaded", *data, *arguments, **env).wait()
    assert run.code == 1
    assert run.last("failed")["code"] == code
    assert run.last("failed")["fix"]
    assert not run.all("coverage")
    assert not runs.hub.journal.requests(path=r"ada/unloaded/resolve/.*safetensors")


def test_a_tokenizer_without_a_chat_template_stops_conversations(runs, tmp_path, tiny_model):
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in tiny_model.iterdir():
        if path.name != "chat_template.jinja":
            (bare / path.name).write_bytes(path.read_bytes())
    run = runs.start("--base-model", str(bare), "--dataset", str(ROWS)).wait()
    assert (run.code, run.last("failed")["code"]) == (1, "no_chat_template")


@pytest.mark.parametrize("fault", ["space", "everything"])
def test_an_unreachable_dashboard_costs_the_curves_not_the_run(runs, words, fault):
    """The test Hub has no running Spaces; and once, nothing that Trackio asks for answers."""
    if fault == "everything":
        runs.hub.faults.add(path=r"/api/(spaces|buckets)", status=500, times=1000)
        runs.hub.faults.add(path=r"/api/repos/create", status=500, times=1000)
    run = runs.start(*words, "--max-steps", "2", "--num-samples", "40", "--trackio-space", f"ada/trackio-{fault}").wait()
    runs.hub.faults.clear()
    assert (run.code, run.last("done")["steps"]) == (0, 2)
    spaces = [repo for (kind, _), repo in runs.hub.store.repos.items() if kind == "space"]
    assert all(repo.private for repo in spaces)


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello there"}]},
        {"instruction": "Add", "input": "2 2", "output": "It is four"},
        {"prompt": "Hi", "completion": "Hello there"},
        {"text": "Return the sum of a sequence."},
    ],
    ids=["sharegpt", "alpaca", "prompt-completion", "text"],
)
def test_each_format_trains(runs, words, tmp_path, row):
    data = write_rows(tmp_path / "rows.jsonl", *[row] * 12)
    run = runs.start(*words, "--dataset", data, "--max-steps", "2", "--load-in-16bit").wait()
    assert (run.code, run.last("done")["steps"]) == (0, 2)
    assert run.last("done")["tuned_loss"] < run.last("done")["base_loss"]
    assert not run.all("warning")
    assert bool(run.all("sample")) == ("text" not in row)
    assert (run.folder / "out" / "adapter_model.safetensors").is_file()


def test_the_help_needs_no_library():
    done = subprocess.run(
        [UV, "run", "--no-project", "--isolated", "python", "-I", str(SFT), "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "--output-repo" in done.stdout
