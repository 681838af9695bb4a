"""Several GPUs of one host: processes that train together learn what one process learns, and end together."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import sft
from conftest import ROWS, SFT
from hypothesis import given, settings
from hypothesis import strategies as st
from test_training import events

STEP = ["--batch-size", "1", "--gradient-accumulation", "8", "--max-seq-length", "256", "--learning-rate", "1e-3"]
SHORT = [
    "--dataset",
    str(ROWS),
    "--num-samples",
    "46",
    "--eval-split",
    "0.1",
    "--grader",
    "none",
    "--early-stopping",
    "0",
    *STEP,
]


def distance(one: Path, other: Path) -> float:
    """Of two adapters, relative to the size of the first."""
    from safetensors.numpy import load_file

    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    assert ours.keys() == theirs.keys()
    squares = [(((ours[name] - theirs[name]) ** 2).sum(), (ours[name] ** 2).sum()) for name in ours if "lora_B" in name]
    return math.sqrt(sum(off for off, _ in squares) / sum(whole for _, whole in squares))


def assert_same(one, other) -> None:
    """Loss by step, held-out loss and the adapter of two runs, within what 16 bits and Adam make of another order of sums."""
    assert one.losses().keys() == other.losses().keys()
    differences = {step: abs(loss - other.losses()[step]) for step, loss in one.losses().items()}
    assert max(differences[step] for step in (1, 2, 3)) <= 2e-4 and max(differences.values()) < 8e-3, differences
    for name in ("base_loss", "tuned_loss"):
        assert one.last("done")[name] == pytest.approx(other.last("done")[name], abs=5e-4)
    assert distance(one.folder / "out", other.folder / "out") < 0.005


# ---- who computes which rows


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 512), min_size=1, max_size=150),
    st.integers(1, 8),
    st.integers(1, 8),
    st.integers(2, 8),
    st.booleans(),
    st.integers(64, 9000),
)
def test_processes_share_each_step_of_one(lengths, batch, accumulation, processes, packed, room):
    given = {"batch_size": batch, "gradient_accumulation": accumulation, "max_seq_length": 512, "num_epochs": 2.0}
    wanted = sft.Settings(dataset="rows", **given)
    steps = sft.Steps(lengths, wanted, packed)
    batching, _ = sft.choose_batching(
        wanted, lambda n: steps.spread_length(n * processes), lambda tokens: tokens <= room, packed, processes=processes
    )
    parts = [sft.Passes(steps, batching, packed, number, processes) for number in range(processes)]
    made = [list(part) for part in parts]
    assert (
        len({len(part) for part in made} | {len(part) for part in parts}) == 1
    )  # all make as many passes, so none waits for ever
    for number, rows in enumerate(steps.of_epoch(0)):
        at = number * batching.gradient_accumulation
        passes = [one for part in made for one in part[at : at + batching.gradient_accumulation]]
        assert sorted(row for one in passes for sequence in one for row in sequence) == sorted(rows)
        assert all(len(one) <= batching.micro_batch_size for one in passes)
        assert all(steps.held(sequence) <= batching.length for one in passes for sequence in one)


@pytest.mark.parametrize("packed", [True, False])
def test_processes_compute_as_many_tokens_as_each_other(packed):
    """FineTome's lengths, 64 rows a step on four GPUs: none waits long for another."""
    chance = random.Random(1)
    lengths = [min(int(chance.lognormvariate(5.8, 0.9)) + 1, 2048) for _ in range(1280)]
    wanted = sft.Settings(dataset="rows", gradient_accumulation=16, num_epochs=1.0)
    steps = sft.Steps(lengths, wanted, packed)
    batching, _ = sft.choose_batching(wanted, lambda n: steps.spread_length(4 * n), lambda _: True, packed, processes=4)
    parts = [sft.Passes(steps, batching, packed, number, 4) for number in range(4)]
    held = [sum(steps.held(rows) for one in part for rows in one) for part in parts]
    assert max(held) < 1.05 * sum(held) / 4


def test_a_step_with_fewer_rows_than_processes_is_refused(monkeypatch):
    monkeypatch.setattr(sft.PEERS, "count", 8)
    with pytest.raises(sft.Stop) as stop:
        sft.require_rows_for_all(sft.Settings(dataset="rows", batch_size=2, gradient_accumulation=2))
    assert stop.value.code == "too_few_rows_a_step" and "--gradient-accumulation to 4" in stop.value.fix


@pytest.mark.parametrize(
    ("visible", "place", "seen"), [(None, 2, "2"), ("4,5,6", 1, "5"), ("", 1, ""), ("GPU-a,GPU-b", 0, "GPU-a")]
)
def test_a_process_sees_one_gpu(monkeypatch, visible, place, seen):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    sft.see_one_gpu(place)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen


def test_one_process_sees_one_gpu_of_several(monkeypatch):
    monkeypatch.setenv("UNSLOTH_JOBS_PROCESSES", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    seen = []
    assert sft.run_on_all_gpus(lambda: seen.append(os.environ["CUDA_VISIBLE_DEVICES"]), "again", str(SFT)) == 0
    assert seen == ["2"]


@pytest.mark.parametrize(("is_ended", "code"), [(False, "process_died"), (True, "cancelled")])
def test_a_run_that_is_ended_before_its_processes_listen_was_cancelled(monkeypatch, tmp_path, capsys, is_ended, code):
    ended = threading.Event()
    monkeypatch.setattr(sft, "told_to_end", ended)
    _ = is_ended and ended.set()
    death = SimpleNamespace(exitcode=-15, signal_name=lambda: "SIGTERM", timestamp=1, error_file_data={})
    sft.emit_cause({0: death, 1: death}, 2, tmp_path, "submit it with --resume")
    failed = events(capsys.readouterr().out)["failed"]
    assert failed["code"] == code and "--resume" in failed["fix"]


# ---- what they learn


def test_four_processes_learn_what_one_learns(runs, tiny_model):
    """Rows alone, of unequal length; the last step of an epoch has one row for four processes."""
    words = ["--base-model", str(tiny_model), *SHORT, "--no-packing", "--num-epochs", "2"]
    four, one = runs.start(*words, processes=4), runs.start(*words)
    assert one.wait().code == four.wait().code == 0
    assert four.last("masks")["rows_kept"] % 8 == 1
    assert four.last("batching")["processes"] == 4
    assert four.last("batching")["accumulation"] * 4 == one.last("batching")["accumulation"] == 8
    assert_same(one, four)
    # The first speaks for all, and says what one process says.
    told = [event["event"] for event in four.events]
    assert told == [event["event"] for event in one.events]
    assert all("EVENT" not in path.read_text() for path in four.folder.glob("log-*.txt"))
    assert len(list(four.folder.glob("log-*.txt"))) == 3


def test_a_process_that_dies_ends_the_run_which_goes_on_in_one(runs, tiny_model, training_python):
    """Packed; started as a user starts it, by torch's own launcher."""
    words = ["--base-model", str(tiny_model), *SHORT, "--num-epochs", "4"]
    one = runs.start(*words)
    folder = runs.root / "launched"
    folder.mkdir()
    env = {
        **os.environ,
        **runs.hub.env(token="x"),
        "UNSLOTH_JOBS_PROCESSES": "2",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    log = folder / "launched.txt"
    with log.open("w") as file:
        command = [training_python, str(SFT), *words, "--save-local", "out"]
        launched = subprocess.Popen(command, cwd=folder, env=env, stdout=file, stderr=subprocess.STDOUT, text=True)
        until = time.monotonic() + 600
        while '"event": "checkpoint"' not in log.read_text():
            assert launched.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
            time.sleep(0.05)
        _, second = sorted(psutil.Process(launched.pid).children(), key=lambda child: child.pid)
        second.kill()
        assert launched.wait(120) == 1
    said = [line for line in log.read_text().splitlines() if '"event": "failed"' in line]
    assert len(said) == 1
    failed = events(log.read_text())["failed"]
    assert failed["code"] == "process_died"
    assert "Process 1 of 2" in failed["message"] and "SIGKILL" in failed["message"] and "--resume" in failed["fix"]
    assert one.wait().code == 0
    reached = sft.step_of(sft.newest_in(folder / "out" / "checkpoints"))
    assert reached < one.last("done")["steps"], "it ended before it could be killed"
    # One process goes on from what two had learned, to what one would have learned.
    resumed = runs.start(*words, "--resume", folder=folder).wait()
    assert resumed.code == 0, resumed.log[-3000:]
    assert resumed.last("done")["trained_steps"] == resumed.last("done")["steps"] - reached
    assert distance(one.folder / "out", folder / "out") < 0.005


def test_out_of_memory_in_one_process_all_go_on_in_less(runs, tiny_model):
    words = ["--base-model", str(tiny_model), *SHORT, "--max-steps", "3", "--batch-size", "4", "--gradient-accumulation", "4"]
    two = runs.start(*words, "--no-packing", processes=2, fault=["out_of_memory_elsewhere", 2 * 104, 1]).wait()
    assert two.code == 0, two.log[-3000:]
    warnings = [event["message"] for event in two.all("warning") if event["code"] == "out_of_vram"]
    assert any("the same effective batch size" in message for message in warnings)
    assert two.last("done")["steps"] == 3


def test_an_evaluation_that_does_not_fit_one_process_is_made_row_by_row_in_all(runs, tiny_model):
    words = ["--base-model", str(tiny_model), *SHORT, "--eval-split", "0.5", "--max-steps", "1"]
    words += ["--batch-size", "4", "--gradient-accumulation", "5"]  # so that a pass of held-out rows holds several
    two = runs.start(*words, processes=2, fault=["out_of_memory_evaluating", 256, "1"])
    one = runs.start(*words)
    assert one.wait().code == two.wait().code == 0, two.log[-3000:]
    assert two.last("batching")["packed"] and not two.all("warning")
    assert two.last("done")["base_loss"] == pytest.approx(one.last("done")["base_loss"], rel=1e-3)
    assert "CUDA out of memory" in (two.folder / "log-1.txt").read_text("utf-8")


def test_preferences_weigh_the_same_on_two_processes(runs, tiny_model, tmp_path):
    """Pairs of unequal length; the last step has one for two processes."""
    rows = tmp_path / "pairs.jsonl"
    pairs = [
        {"prompt": f"{n} and {n}?", "chosen": f"It is {2 * n}. " * (n % 5 + 1), "rejected": "No. " * (n % 3 + 1)}
        for n in range(19)
    ]
    rows.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    words = ["--base-model", str(tiny_model), "--dataset", str(rows), "--eval-split", "0.1", "--num-epochs", "3"]
    words += ["--batch-size", "1", "--gradient-accumulation", "4", "--learning-rate", "1e-3", "--early-stopping", "0"]
    words += ["--grader", "none"]
    two, one = runs.start(*words, template="dpo", processes=2), runs.start(*words, template="dpo")
    assert one.wait().code == two.wait().code == 0, two.log[-3000:]
    assert two.last("masks")["rows_kept"] % 4 == 1 and two.last("batching")["processes"] == 2
    ours, theirs = one.last("done"), two.last("done")
    assert ours["preferences"]["reward_accuracy"] == theirs["preferences"]["reward_accuracy"] == [0.5, 1.0]
    assert_same(one, two)
