"""templates/grpo.py: a model learns from rewards, and what the commands say of that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import Commands
from conftest import ROOT
from hub import Hub
from hubs import ADA
from runs import Run

GRPO = ROOT / "templates" / "grpo.py"

# ---- runs


STEPS, SAVE = 14, 3
QUICK = [
    "--learning-rate",
    "1e-2",
    "--load-in-16bit",
    "--max-seq-length",
    "96",
    "--max-completion-length",
    "12",
    "--max-kl",
    "0",
]
SMALL = ["--batch-size", "8", "--gradient-accumulation", "1", "--num-generations", "8"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Questions whose answers are letters, and a reward of one's own."""
    folder = tmp_path_factory.mktemp("rewards")
    rows = [{"prompt": f"Question number {number}?", "answer": "aeiou"[number % 5], "worth": 1.0} for number in range(200)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "own.py").write_text("def grade(answer, reference, row):\n    return row['worth'] * answer.count('e') / 100\n")
    (folder / "mixed.py").write_text("def grade(answer, reference, row):\n    return sum(map(ord, answer)) % 7 / 7\n")
    return folder


@pytest.fixture(scope="module")
def words(tiny_model, data) -> list[str]:
    return ["--base-model", str(tiny_model), "--dataset", str(data / "rows.jsonl"), *QUICK, *SMALL]


@pytest.fixture(scope="module")
def brief(words) -> list[str]:
    return [*words, "--reward", "length", "--max-steps", str(STEPS), "--save-steps", str(SAVE)]


@pytest.fixture(scope="module")
def whole(runs, brief) -> Run:
    """The run that nothing disturbs: it learns to be brief."""
    run = runs.start(*brief, "--output-repo", "ada/brief", template="grpo").wait()
    assert run.code == 0, run.log[-3000:]
    return run


def rewards_of(run: Run) -> dict[int, float]:
    return {event["step"]: event["reward"] for event in run.all("progress")}


def test_an_easy_rule_is_learned(runs, whole):
    found = rewards_of(whole)
    assert found[1] < 0.1 and found[max(found)] > 0.5
    graded = whole.last("graded")
    base, tuned = graded["contenders"]
    assert tuned["difference_low"] > 0 and tuned["verdict"] == "better" and tuned["cut"] < base["cut"]
    done, progress = whole.last("done"), whole.last("progress")
    assert done["rewards"]["reward"][1] > done["rewards"]["reward"][0] and done["reward_held_out"]["low"] > 0
    assert {"reward", "informative", "length", "clipped", "kl", "tokens_per_s", "step_s"} <= progress.keys()
    shown = whole.all("completions")[0]
    assert shown["prompt"].startswith("Question number") and len(shown["completions"]) == 4
    card = runs.hub.files("ada/brief")["README.md"].read_text()
    assert "Mean reward of sampled completions" in card and "length × 1" in card and "- grpo" in card
    assert {"reward.png", "adapter_model.safetensors", "answers.jsonl"} <= runs.hub.files("ada/brief").keys()


def test_a_killed_run_goes_on_as_if_nothing_had_been(runs, brief, whole):
    run = runs.start(*brief, template="grpo")
    run.wait_for("progress", 8)
    run.process.kill()
    run.wait()
    resumed = runs.start(*brief, "--resume", template="grpo", folder=run.folder).wait()
    assert resumed.code == 0 and 1 < min(rewards_of(resumed)) <= 9, resumed.log[-3000:]
    assert rewards_of(run) | rewards_of(resumed) == rewards_of(whole)  # the same prompts, the same seeds
    refused = runs.start(*brief, "--resume", "--temperature", "0.9", template="grpo", folder=run.folder).wait()
    assert (refused.code, refused.last("failed")["code"]) == (1, "resume_mismatch")


def test_a_run_goes_on_where_memory_holds_fewer_completions(runs, brief):
    run = runs.start(*brief, "--max-steps", "2", template="grpo", fault=["out_of_memory_of_completions", 20]).wait()
    assert run.code == 0, run.log[-3000:]
    messages = [event["message"] for event in run.all("warning") if event["code"] == "out_of_vram"]
    assert any("completions were written" in one for one in messages) and any("forward pass" in one for one in messages)


@pytest.mark.parametrize("beta", ["0", "0.1"])
def test_loss_and_gradients_are_those_of_trl(runs, words, data, beta):
    more = ["--reward-file", str(data / "mixed.py"), "--beta", beta, "--temperature", "0.7", "--max-steps", "3"]
    run = runs.start(*words, *more, template="grpo", fault=["compare_grpo"])
    run.process.wait(600)
    compared = run.last("compared_loss")
    assert compared["ours"] == pytest.approx(compared["theirs"], abs=1e-5)
    assert compared["error"] < 1e-4 * compared["size"] or compared["error"] < 1e-6
    assert compared["size"] > 1e-3


def test_a_reward_that_is_never_given_ends_the_run_before_it_costs(runs, words):
    run = runs.start(*words, "--reward", "exact", "--max-steps", "3", template="grpo").wait()
    assert (run.code, run.last("failed")["code"]) == (1, "reward_flat"), run.log[-2000:]
    assert "templates/sft.py" in run.last("failed")["fix"]


def test_a_run_with_nothing_left_to_learn_ends_well(runs, words, tmp_path):
    (tmp_path / "own.py").write_text("def grade(answer, reference, row):\n    return 1.0\n")
    more = ["--reward-file", str(tmp_path / "own.py"), "--max-steps", "9", "--max-completion-length", "40", "--grader", "exact"]
    run = runs.start(*words, *more, template="grpo", fault=["soon_flat"]).wait()
    assert run.code == 0, run.log[-3000:]
    assert run.last("early_stopped")["step"] == 2 == run.last("done")["steps"] and run.last("done")["early_stopped"]
    assert "highest reward" in (run.folder / "out" / "README.md").read_text()
    assert run.last("graded")["grader"] == "exact"  # a second opinion


# ---- the whole way


def test_from_prompts_and_a_reward_file_to_a_pushed_adapter(tiny_model, data, tmp_path):
    with Hub(tmp_path / "hub") as hub:
        hub.add_user("ada", token=ADA)
        hub.add_repo("ada/tiny-lfm2", tiny_model)
        (tmp_path / "own.py").write_bytes((data / "own.py").read_bytes())
        (tmp_path / "rows.jsonl").write_bytes((data / "rows.jsonl").read_bytes())
        commands = Commands(hub.env(token=ADA), tmp_path)
        about = ["ada/tiny-lfm2", "rows.jsonl", "--script", str(GRPO), "--reward-file", "own.py", *QUICK, *SMALL]
        arguments = ["--base-model", "ada/tiny-lfm2", "--dataset", "rows.jsonl", "--reward-file", "own.py", "--trackio-space="]
        arguments += [*QUICK, *SMALL, "--max-steps", "4", "--max-graded", "8"]
        submit = ["submit.py", str(GRPO), "--flavor", "cpu-upgrade", "--timeout", "15m"]

        # The references of these rows are no answers that this reward likes: check says so, and the run is its user's.
        checked = commands.json("check.py", *about, code=1)
        assert {"reference_not_right"} <= {problem["code"] for problem in checked["problems"]}
        assert checked["rewards"]["weights"] == {"file": 1.0} and checked["rewards"]["reference"] == "a"
        about[about.index("own.py") - 1 : about.index("own.py") + 1] = ["--reward", "exact"]
        estimated = commands.json("estimate.py", *about)
        [first, *_] = estimated["flavors"]
        assert "completions as long as they may be" in first["basis"] and first["usd_low"] < first["usd_high"]
        shown = commands.json(*submit, "--", *arguments, code=3)
        assert "own.py" in shown["plan"]["files"]
        job = commands.json(*submit, "--approve", shown["plan_id"], "--", *arguments)
        status = commands.json("status.py", job["job_id"], "--watch")
        log = "\n".join(line.text for line in hub.jobs.wait(job["job_id"]).logs)

        assert status["stage"] == "COMPLETED", log[-3000:]
        masks = next(json.loads(line.split("EVENT ", 1)[1]) for line in log.splitlines() if '"event": "masks"' in line)
        assert masks["digest"] == checked["mask"]["digest"] == estimated["digest"]
        assert any("mean reward" in line for line in status["worth"]) and status["curve"]["reward"]
        repository = shown["plan"]["output_repo"]
        assert {"adapter_model.safetensors", "README.md", "tokenizer.json"} <= hub.files(repository).keys()


def check(folder: Path, model: Path, rows: list[dict], *words: str, code: int | None = None) -> dict:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    commands = Commands({"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "HF_TOKEN": ""}, folder)
    found = commands.json("check.py", str(model), "rows.jsonl", "--where", "local", "--script", str(GRPO), *words, code=code)
    return {problem["code"]: problem for problem in found["problems"]} | {"ok": found["ok"]}


def test_check_tells_what_is_wrong_with_prompts_and_their_reward(tmp_path, tiny_model):
    rows = [{"prompt": f"What is {one} and 1?", "answer": str(one + 1)} for one in range(60)]
    assert check(tmp_path, tiny_model, rows) == {"ok": True}
    worded = [row | {"answer": f"It is {row['answer']}"} for row in rows]
    assert "reward_misfit" in check(tmp_path, tiny_model, worded, "--reward", "json", code=1)
    alone = [{"prompt": row["prompt"]} for row in rows]
    assert "no_reward" in check(tmp_path, tiny_model, alone, code=1)
    assert "nothing_graded" in check(tmp_path, tiny_model, alone, "--reward", "length")
    formatted = "--reward", "number=1,format=0.2", "--answer-format", "<answer>…</answer>"
    assert "<answer>" in check(tmp_path, tiny_model, rows, *formatted)["format_unasked"]["message"]
    told = check(tmp_path, tiny_model, rows, *formatted, "--system-prompt", "End with <answer>…</answer>.")
    assert told == {"ok": True}
    same = [row | {"answer": "7"} for row in rows]
    assert "one_reference" in check(tmp_path, tiny_model, same, "--reward", "number")
    long = [row | {"prompt": row["prompt"] * (40 if at % 2 else 1)} for at, row in enumerate(rows)]
    assert "leaves room" in check(tmp_path, tiny_model, long, "--max-length", "512")["rows_lost"]["message"]
    for text, code in (
        ("return 1.0", "wrong_is_right"),
        ("return 0.0", "reference_not_right"),
        ("return row['gone']", "reward_fails"),
        ("import time; time.sleep(0.15); return float(answer == reference)", "reward_slow"),
    ):
        (tmp_path / "own.py").write_text(f"def grade(answer, reference, row):\n    {text}\n")
        found = check(tmp_path, tiny_model, rows[:50], "--reward-file", "own.py")
        assert code in found and found["ok"] == (code == "reward_slow")
