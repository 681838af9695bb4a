"""Packing: rows that share a sequence are trained exactly as if each were alone, in every family that can."""

from __future__ import annotations

import json
import os
import random
import subprocess

import pytest
import sft
from conftest import ROOT, ROWS, SFT
from hypothesis import given
from hypothesis import strategies as st

EXACT = ["lfm2", "llama", "phi3", "qwen2", "qwen3", "gemma3_text", "gemma4_text", "mistral", "smollm3"]
LEAKING = ["qwen3_5_text", "gpt_oss"]

sizes = st.integers(16, 200)
packings = sizes.flatmap(lambda size: st.tuples(st.lists(st.integers(1, size), max_size=60), st.just(size)))


# ---- which rows share a sequence


@given(packings)
def test_each_row_is_packed_once_and_no_sequence_is_too_long(packing):
    lengths, size = packing
    sequences = sft.pack(lengths, size)
    assert sorted(row for sequence in sequences for row in sequence) == list(range(len(lengths)))
    held = [sum(lengths[row] for row in sequence) for sequence in sequences]
    assert all(0 < tokens <= size for tokens in held)
    assert sum(tokens <= size / 2 for tokens in held) <= 1, "two half-empty sequences would have fitted in one"
    assert sft.pack(lengths, size) == sequences


def test_sequences_of_mixed_rows_are_almost_full():
    chance = random.Random(1)
    lengths = [min(int(chance.lognormvariate(5.8, 0.9)) + 1, 2048) for _ in range(2000)]
    assert sum(lengths) / (len(sft.pack(lengths, 2048)) * 2048) > 0.98


@given(st.integers(1, 16), st.integers(1, 16), st.sampled_from([64, 512, 2048, 8192]), st.floats(1, 40))
def test_a_step_sees_the_rows_asked_for_however_many_fit_at_once(batch_size, accumulation, length, rows_per_sequence):
    settings = sft.Settings(dataset="rows", batch_size=batch_size, gradient_accumulation=accumulation, max_seq_length=length)
    batching = sft.Batching.of(settings, rows_per_sequence)
    asked = max(batch_size * accumulation / rows_per_sequence, 1)
    # Whole passes of whole sequences: half a sequence off in each pass, and as much in their number.
    assert abs(batching.micro * batching.accumulation - asked) <= batching.accumulation / 2 + 0.5
    assert batching.micro <= batch_size and batching.micro * length <= max(sft.TOKENS_AT_ONCE, length)
    while batching.micro > 1:
        smaller = batching.smaller(RuntimeError("out of memory"))
        assert smaller.micro < batching.micro
        assert smaller.micro * smaller.accumulation == batching.micro * batching.accumulation
        batching = smaller
    with pytest.raises(sft.Stop):
        batching.smaller(RuntimeError("out of memory"))


# ---- what a model makes of it


@pytest.fixture(scope="module")
def packed(training_python) -> tuple[dict[str, dict], str]:
    """What families.py measured of each family, and all that it printed."""
    command = [training_python, str(ROOT / "tests" / "families.py"), "packed", *EXACT, *LEAKING]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(said.splitlines()[-1]), said


@pytest.mark.parametrize("family", EXACT)
def test_packed_rows_have_the_loss_and_the_gradients_of_rows_alone(packed, family):
    found = packed[0][family]
    assert found["loss_error"] < 1e-5
    assert found["gradient_error"] < 1e-4
    assert (found["leaks"], found["packed"]) == (False, True)


def test_without_care_the_convolutions_of_lfm2_see_the_row_before(packed):
    assert {family for family in EXACT if packed[0][family]["leaks_untouched"]} == {"lfm2"}


@pytest.mark.parametrize("family", LEAKING)
def test_a_model_that_carries_state_over_the_border_is_found_and_not_packed(packed, family):
    found, said = packed
    assert (found[family]["leaks"], found[family]["packed"]) == (True, False)
    assert found[family]["gradient_error"] > 1e-2
    assert said.count("not_packed") == len(LEAKING)


# ---- the whole template

ONE_EPOCH = ["--batch-size", "4", "--gradient-accumulation", "2", "--max-seq-length", "256", "--learning-rate", "5e-3"]


@pytest.fixture(scope="module")
def trained(runs, training_python, tiny_model, tmp_path_factory):
    """By family, a run over two steps; and as `packed` and `alone`, one over an epoch of the demo's rows."""
    folder = tmp_path_factory.mktemp("families")
    names = [*EXACT[1:], *LEAKING]
    command = [training_python, str(ROOT / "tests" / "families.py"), "save", str(folder), *names]
    subprocess.run(command, check=True, capture_output=True)
    words = ["--dataset", str(ROWS), *ONE_EPOCH]
    started = {
        how: runs.start("--base-model", str(tiny_model), f"--{flag}packing", *words)
        for how, flag in (("packed", ""), ("alone", "no-"))
    }
    for name in names:
        few = ["--max-steps", "2", "--num-samples", "60"]
        started[name] = runs.start("--base-model", str(folder / name), *words, *few)
    return {name: run.wait() for name, run in started.items()}


@pytest.fixture(scope="module")
def without_unsloth(training_python, tiny_model, tmp_path_factory):
    """The events of the same run with --backend trl, in a process where Unsloth is not to be had."""
    folder = tmp_path_factory.mktemp("trl")
    run = f"import sys; sys.modules['unsloth'] = None; sys.argv[0] = {str(SFT)!r}; import sft; sys.exit(sft.main())"
    words = ["--backend", "trl", "--base-model", str(tiny_model), "--dataset", str(ROWS), *ONE_EPOCH, "--merge-model"]
    command = [training_python, "-c", run, *words, "--save-local", str(folder / "out")]
    env = {**os.environ, "PYTHONPATH": str(SFT.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    events = [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("EVENT ")]
    return folder / "out", {event["event"]: event for event in events}


def test_without_unsloth_the_same_is_learned(trained, without_unsloth):
    (folder, last), unsloth = without_unsloth, trained["packed"].last
    assert "unsloth" not in last["plan"]["versions"]
    for name in ("batching", "coverage"):
        said = {**unsloth(name), "time": last[name].get("time")}
        assert {**last[name], "time": said["time"]} == said
    for name in ("steps", "tokens", "supervised_fraction"):
        assert last["done"][name] == unsloth("done")[name]
    # The base model is in 4 bits in both, by code that rounds a little differently.
    assert last["done"]["base_loss"] == pytest.approx(unsloth("done")["base_loss"], rel=0.01)
    assert last["done"]["tuned_loss"] == pytest.approx(unsloth("done")["tuned_loss"], rel=0.03)
    card = (folder / "README.md").read_text()
    assert "trained with TRL and PEFT" in card and "nsloth" not in card.split("---")[1]


def test_without_unsloth_a_4_bit_run_leaves_a_merged_model_in_16(without_unsloth, training_python):
    folder, _ = without_unsloth
    load = "import sys, transformers as t; m = t.AutoModelForCausalLM.from_pretrained(sys.argv[1]); print(m.dtype)"
    said = subprocess.run([training_python, "-c", load, str(folder / "merged")], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["torch.bfloat16"]


def test_a_model_that_unsloth_refuses_is_offered_the_other_way(runs, tiny_model):
    words = ["--base-model", str(tiny_model), "--dataset", str(ROWS), "--num-samples", "20"]
    failed = runs.start(*words, fault=["unsloth_refuses"]).wait().last("failed")
    assert failed["code"] == "unsloth_refused" and "--backend trl" in failed["fix"]


def test_a_packed_run_learns_what_an_unpacked_run_learns(trained):
    packed, alone = trained["packed"].last, trained["alone"].last
    assert (packed("batching")["packed"], alone("batching")["packed"]) == (True, False)
    assert packed("done")["base_loss"] == pytest.approx(alone("done")["base_loss"], rel=1e-4)
    assert packed("done")["tuned_loss"] == pytest.approx(alone("done")["tuned_loss"], rel=0.03)
    assert packed("done")["tuned_loss"] < packed("done")["base_loss"] - 0.3
    assert packed("done")["tokens"] == alone("done")["tokens"] == packed("masks")["tokens"]
    # About as many steps, of fewer and fuller passes: a step holds whole sequences of several rows.
    assert packed("done")["steps"] == pytest.approx(alone("done")["steps"], rel=0.2)
    assert (alone("batching")["micro"], alone("batching")["accumulation"]) == (4, 2)
    assert packed("batching")["micro"] * packed("batching")["accumulation"] == 2


@pytest.mark.parametrize("family", ["packed", *EXACT[1:], *LEAKING])
def test_every_family_trains_with_an_adapter_on_each_linear_layer(trained, family):
    run = trained[family]
    assert run.code == 0, run.log[-3000:]
    assert run.last("coverage")["coverage"] == run.last("coverage")["of_all_linear"] == 1.0
    assert run.last("coverage")["trainable"] == run.last("coverage")["expected_trainable"]
    warnings = [event["code"] for event in run.all("warning")]
    assert run.last("batching")["packed"] == (family not in LEAKING)
    assert ("not_packed" in warnings) == (family in LEAKING)
