"""Trainings on preferences: what each loss learns, what a killed one goes on from, what Unsloth changes on a GPU."""

from __future__ import annotations

import ast
import json
import math
import os
import random
import subprocess
from pathlib import Path

import pytest
from commands import Commands
from conftest import ROOT, SFT
from conversations import answer, user
from hub import Hub
from hubs import ADA
from runs import Run
from test_dpo import DPO, pair

NICE = ["Yes, of course.", "Certainly, here it is.", "With pleasure."]
RUDE = ["No.", "I do not know that at all.", "Ask somebody else."]

# ---- runs


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Pairs whose better answers are polite, single answers with labels, and OpenAI's file of the same."""
    folder, chance = tmp_path_factory.mktemp("preferences"), random.Random(1)
    asked = [f"Can you tell me about number {number}?" for number in range(96)]
    pairs = [pair(text, chance.choice(NICE), chance.choice(RUDE)) for text in asked]
    singles = [
        {"prompt": one["prompt"], "completion": one["chosen" if at % 2 else "rejected"], "label": bool(at % 2)}
        for at, one in enumerate(pairs)
    ]
    openai = [
        {
            "input": {"messages": [user(one["prompt"])]},
            "preferred_output": [answer(one["chosen"])],
            "non_preferred_output": [answer(one["rejected"])],
        }
        for one in pairs
    ]
    for name, rows in {"pairs": pairs, "singles": singles, "openai": openai}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


STEPS, SAVE = 12, 3
QUICK = ["--learning-rate", "1e-3", "--load-in-16bit", "--max-seq-length", "96", "--grader", "none"]


@pytest.fixture(scope="module")
def words(tiny_model, data) -> list[str]:
    where = ["--base-model", str(tiny_model), "--dataset", str(data / "pairs.jsonl")]
    return [*where, *QUICK, "--max-steps", str(STEPS), "--save-steps", str(SAVE)]


@pytest.fixture(scope="module")
def whole(runs, words) -> Run:
    """The run that nothing disturbs."""
    run = runs.start(*words, "--output-repo", "ada/polite", template="dpo", fault=["keep_options"]).wait()
    assert (run.code, list(run.losses())) == (0, list(range(1, STEPS + 1))), run.log[-3000:]
    return run


def test_held_out_pairs_show_what_was_learned(runs, whole):
    parts = whole.last("held_out")  # by these runs are compared to each other
    assert sum(parts["losses"]) / len(parts["losses"]) == pytest.approx(whole.last("done")["tuned_loss"], abs=1e-3)
    start, *_, end = whole.all("eval")
    assert start["eval_loss"] == pytest.approx(math.log(2), abs=1e-4) and start["reward_accuracy"] == 0.5
    assert end["eval_loss"] < 0.5 and end["reward_accuracy"] > 0.8 and end["reward_margin"] > 1 and end["kl"] > 0
    done = whole.last("done")
    assert done["preferences"]["reward_accuracy"] == [0.5, end["reward_accuracy"]]
    assert done["base_loss"] == pytest.approx(math.log(2), abs=1e-4) and done["tuned_loss"] == pytest.approx(
        end["eval_loss"], abs=1e-3
    )
    low, high = done["reward_accuracy_interval"]
    assert low < end["reward_accuracy"] <= high
    assert whole.losses()[1] == pytest.approx(math.log(2), abs=1e-3)
    card = runs.hub.files("ada/polite")["README.md"].read_text()
    assert "Reward accuracy" in card and "--loss sigmoid, beta 0.1" in card and "- dpo" in card


def test_one_adapter_is_saved_and_pushed(runs, whole):
    files = runs.hub.files("ada/polite")
    assert sorted(name for name in files if name.endswith("adapter_model.safetensors")) == [
        "adapter_model.safetensors", "last-checkpoint/adapter_model.safetensors",
    ]  # fmt: skip
    assert len(list((whole.folder / "out").rglob("ref"))) == 0
    assert whole.last("told")["adapters"] == ["default"]  # a new adapter needs no copy: without it the model is the start


def test_a_killed_run_goes_on_as_if_nothing_had_been(runs, words, whole):
    run = runs.start(*words, template="dpo")
    run.wait_for("progress", 8)
    run.process.kill()
    run.wait()
    # There, memory holds less: the same steps in smaller passes.
    fault = ["out_of_memory_of_pairs", 4, 0]
    resumed = runs.start(*words, "--resume", template="dpo", folder=run.folder, fault=fault).wait()
    assert resumed.code == 0 and 1 < min(resumed.losses()) <= 9, resumed.log[-3000:]
    assert [event["code"] for event in resumed.all("warning")].count("out_of_vram") >= 1
    joined = run.losses() | resumed.losses()
    assert joined == pytest.approx(whole.losses(), abs=2e-2)
    assert resumed.last("done")["tuned_loss"] == pytest.approx(whole.last("done")["tuned_loss"], abs=1e-2)


def test_another_loss_does_not_go_on_with_the_checkpoint(runs, words, whole):
    refused = runs.start(*words, "--loss", "ipo", "--resume", template="dpo", folder=whole.folder).wait()
    assert (refused.code, refused.last("failed")["code"]) == (1, "resume_mismatch")
    assert "--loss sigmoid" in refused.last("failed")["fix"]


STARTS = {"ipo": 25.0, "hinge": 1.0, "apo_zero": 1.0, "apo_down": 1.0, "orpo": None, "simpo": None, "kto": 0.5}


@pytest.mark.parametrize("loss", [*STARTS, "sigmoid --backend trl"])
def test_each_loss_learns_from_the_same_rows(runs, words, data, loss):
    rows = ["--dataset", str(data / "singles.jsonl")] if loss == "kto" else []
    fault = ["compare_orpo"] if loss in ("orpo", "simpo") else None
    few = ["--loss", *loss.split(), "--max-steps", "4", "--num-samples", "48", "--save-steps", "100"]
    run = runs.start(*words, *rows, *few, template="dpo", fault=fault).wait()
    assert run.code == 0, run.log[-3000:]
    start, *_, end = run.all("eval")
    if STARTS.get(loss) is not None:
        # KTO weighs the two labels by their numbers in the training rows; the held-out rows have others.
        assert start["eval_loss"] == pytest.approx(STARTS[loss], rel=0.1 if loss == "kto" else 1e-3)
    assert end["eval_loss"] < start["eval_loss"] and end["reward_accuracy"] > 0.5 and end["reward_margin"] > 0
    # By the fused head as by TRL's own forward pass.
    compared = run.all("compared_forward")
    assert bool(compared) == bool(fault) and all(one["error"] < 1e-3 < one["size"] for one in compared)


def test_a_run_that_goes_on_from_an_adapter_is_compared_with_that(runs, words):
    run = runs.start(*words, "--max-steps", "3", "--save-steps", "1", template="dpo", fault=["starts_trained", 4]).wait()
    assert run.code == 0, run.log[-3000:]
    assert run.last("told")["adapters"] == ["default", "ref"] and run.last("told")["trained"] == ["default"]
    assert run.all("eval")[0]["eval_loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert len(run.all("told")) > 1 and run.losses()[1] == pytest.approx(math.log(2), abs=1e-3)  # after running out of memory
    assert len(list((run.folder / "out").rglob("ref"))) == 0
    assert run.losses()[3] < 0.69


def changed_by_unsloth(package: Path) -> set[str]:
    """The defaults of TRL's configurations that Unsloth replaces on a GPU, read from its own source."""
    source = (package / "models" / "rl.py").read_text("utf-8")
    dictionaries = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Dict)]
    keys = [{key.value for key in node.keys if isinstance(key, ast.Constant)} for node in dictionaries]
    [changed] = [found for found in keys if {"learning_rate", "optim", "weight_decay"} <= found]
    return changed | {"warmup_steps", "gradient_checkpointing", "max_length"}


def test_what_unsloth_changes_on_a_gpu_is_set(training_python, whole):
    code = "import importlib.util as u; print(u.find_spec('unsloth').submodule_search_locations[0])"
    package = subprocess.run([training_python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    script = (
        f"import json, sys; sys.path.insert(0, {str(DPO.parent)!r}); import dpo\n"
        "given = dpo.preference_options(dpo.Settings(dataset='rows'), dpo.Batching(4, 4, 128), True) | dpo.FIXED\n"
        "print(json.dumps(sorted(given)))"
    )
    printed = subprocess.run([training_python, "-c", script], check=True, capture_output=True, text=True).stdout
    told = whole.last("told")["values"]
    assert changed_by_unsloth(Path(package)) & told.keys() <= set(json.loads(printed.splitlines()[-1]))
    wanted = {"learning_rate": "0.001", "weight_decay": "0.0", "warmup_steps": "0.1", "seed": "3407", "beta": "0.1"}
    wanted |= {
        "optim": "'adamw_torch_fused'",
        "precompute_ref_log_probs": "False",
        "max_length": "96",
        "logging_steps": "0.005",
    }
    assert {name: told[name] for name in wanted} == wanted


@pytest.fixture(scope="module")
def as_on_a_gpu(training_python, data, words, tmp_path_factory) -> dict[str, list[dict]]:
    """The events of short runs with the trainers that Unsloth makes on a GPU, by loss."""
    folder = tmp_path_factory.mktemp("gpu")
    cases = {"sigmoid": "pairs", "kto": "singles", "orpo": "pairs"}
    given = [f"{loss}={data / name}.jsonl" for loss, name in cases.items()]
    few = ["--save-local", "out", "--max-steps", "2", "--num-samples", "32", "--save-steps", "100"]
    script = [training_python, str(ROOT / "tests" / "gpu_trainers.py"), str(folder), *given, "--", *words[:2], *QUICK, *few]
    done = subprocess.run(script, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    logs = {loss: (folder / f"{loss}.log").read_text() for loss in cases}
    assert all(log.endswith("EXIT 0\n") for log in logs.values()), logs
    return {
        loss: [json.loads(line.split("EVENT ", 1)[1]) for line in log.splitlines() if "EVENT {" in line]
        for loss, log in logs.items()
    }


@pytest.mark.parametrize(("loss", "trainer"), [("sigmoid", "DPO"), ("kto", "KTO"), ("orpo", "ORPO")])
def test_the_trainers_that_unsloth_makes_on_a_gpu_do_the_same(as_on_a_gpu, whole, loss, trainer):
    events = as_on_a_gpu[loss]
    [told] = [event for event in events if event["event"] == "told"]
    assert f"Unsloth{trainer}Trainer" in told["classes"]
    start, *_, still, end = (event for event in events if event["event"] == "eval")
    assert end["reward_accuracy"] > 0.5 and end["eval_loss"] < start["eval_loss"]
    # A step at learning rate 0 has changed nothing, to the bit: before and during training it is measured alike.
    assert still["step"] == 1 and still["kl"] == 0 and still["eval_loss"] == start["eval_loss"]
    if loss == "sigmoid":
        plain = whole.last("told")["values"]
        own = {"max_steps", "output_dir", "run_name", "save_steps", "logging_dir", "dataset_num_proc", "pad_token", "loss_type"}
        differing = {name for name in plain if name not in own and told["values"].get(name) != plain[name]}
        # Of a processor it takes fp16 for what it can do; and our evaluation is not the trainer's own loop.
        assert differing <= {"fp16", "fp16_full_eval", "eval_accumulation_steps"}, differing


# ---- the whole way


def test_from_an_openai_file_to_a_pushed_adapter(tiny_model, data, tmp_path):
    with Hub(tmp_path / "hub") as hub:
        hub.add_user("ada", token=ADA)
        hub.add_repo("ada/tiny-lfm2", tiny_model)
        folder = tmp_path / "rows"
        folder.mkdir()
        # More rows than one process turns into tokens.
        (folder / "train.jsonl").write_bytes((data / "openai.jsonl").read_bytes() * 60)
        hub.add_repo("ada/choices", folder, type="dataset")
        commands = Commands(hub.env(token=ADA), tmp_path)
        arguments = [
            "--base-model",
            "ada/tiny-lfm2",
            "--dataset",
            "ada/choices",
            "--trackio-space=",
            *QUICK,
            "--max-steps",
            "8",
        ]
        arguments += ["--max-eval-rows", "16"]
        submit = ["submit.py", str(DPO), "--flavor", "cpu-upgrade", "--timeout", "15m"]

        checked = commands.json("check.py", "ada/tiny-lfm2", "ada/choices", "--script", str(DPO), "--max-length", "96")
        assert checked["dataset"]["format"] == "openai-preference" and checked["pairs"]["figures"]["contradictory"] == 0
        learned = [
            "".join(part["text"] for part in sample if part["learned"])
            for sample in (checked["mask"]["sample"], checked["pairs"]["sample_rejected"])
        ]
        assert learned[0].removesuffix("<|im_end|>") in NICE and learned[1].removesuffix("<|im_end|>") in RUDE
        estimated = commands.json("estimate.py", "ada/tiny-lfm2", "ada/choices", "--script", str(DPO), "--max-seq-length", "96")
        assert "for preferences held against" in estimated["flavors"][0]["basis"]
        shown = commands.json(*submit, "--", *arguments, code=3)
        job = commands.json(*submit, "--approve", shown["plan_id"], "--", *arguments)
        status = commands.json("status.py", job["job_id"], "--watch")
        log = "\n".join(line.text for line in hub.jobs.wait(job["job_id"]).logs)

        assert status["stage"] == "COMPLETED", log[-3000:]
        masks = next(json.loads(line.split("EVENT ", 1)[1]) for line in log.splitlines() if '"event": "masks"' in line)
        assert masks["digest"] == checked["mask"]["digest"] == estimated["digest"]
        assert any("reward accuracy" in line for line in status["worth"])
        repository = shown["plan"]["output_repo"]
        assert {"adapter_model.safetensors", "README.md", "tokenizer.json"} <= hub.files(repository).keys()


def check(folder: Path, model: Path, rows: list[dict], *words: str, script: Path = DPO, code: int | None = None) -> dict:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    commands = Commands({"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "HF_TOKEN": ""}, folder)
    found = commands.json("check.py", str(model), "rows.jsonl", "--where", "local", "--script", str(script), *words, code=code)
    return {problem["code"]: problem for problem in found["problems"]} | {"ok": found["ok"]}


def test_check_tells_what_is_wrong_with_preferences(tmp_path, tiny_model):
    numbers = range(60)
    swapped = [pair(f"Number {one}?", *(("a b", "c d") if one % 2 else ("c d", "a b"))) for one in numbers]
    contradictory = [row | {"prompt": "Number?"} for row in swapped]
    assert check(tmp_path, tiny_model, swapped) == {"ok": True}
    assert "contradictory_pairs" in check(tmp_path, tiny_model, contradictory)
    longer = [pair(f"Number {one}?", "It is this one, and that is so.", "Six") for one in numbers]
    assert "longer answers" in check(tmp_path, tiny_model, longer)["length_bias"]["message"]
    same = [pair(f"Number {one}?", "Six", "Six") for one in numbers]
    assert "60 × its answers are the same" in check(tmp_path, tiny_model, same, code=1)["nothing_supervised"]["message"]
    single = [{"prompt": f"Number {one}?", "completion": "Six", "label": True} for one in numbers]
    assert "--loss kto" in check(tmp_path, tiny_model, single, code=1)["unpaired_rows"]["fix"]
    assert "one_label" in check(tmp_path, tiny_model, single, "--loss", "kto", code=1)
    imitated = check(tmp_path, tiny_model, [row | {"label": at % 2 == 0} for at, row in enumerate(single)], script=SFT)
    assert "dpo.py --loss kto" in imitated["preference_data"]["fix"]
