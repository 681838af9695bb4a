"""Packing: rows that share a sequence are trained exactly as if each were alone, in every family that can."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess

import pytest
import sft
from conftest import ROOT, ROWS, SFT
from hypothesis import given, settings
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


row_lengths = st.one_of(
    st.lists(st.integers(1, 512), min_size=1, max_size=150),
    st.lists(st.integers(40, 90), min_size=1, max_size=150),
    st.lists(st.sampled_from([20, 512]), min_size=1, max_size=150),
)


def steps_of(passes: sft.Passes, accumulation: int) -> list[list[int]]:
    """The rows of each optimizer step, as the trainer takes them from its loader."""
    made = list(passes)
    assert len(made) == len(passes)
    taken = [made[at : at + accumulation] for at in range(0, len(made), accumulation)]
    return [sorted(row for one in step for sequence in one for row in sequence) for step in taken]


@settings(deadline=None)
@given(
    st.integers(1, 8),
    st.integers(1, 8),
    row_lengths,
    st.booleans(),
    st.sampled_from(["unsloth", "trl"]),
    st.lists(st.integers(64, 9000), min_size=1, max_size=3),
)
def test_a_step_holds_the_rows_asked_for_however_much_a_gpu_holds(batch, accumulation, lengths, packed, backend, rooms):
    given = {"batch_size": batch, "gradient_accumulation": accumulation, "max_seq_length": 512, "num_epochs": 3.0}
    wanted = sft.Settings(dataset="rows", backend=backend, **given)
    asked = batch * accumulation
    steps = sft.Steps(lengths, wanted, packed)
    by_room = []
    for room in rooms:
        batching, _ = sft.choose_batching(wanted, steps.spread_length, lambda tokens, room=room: tokens <= room, packed)
        passes = sft.Passes(steps, batching, packed)
        if not packed:  # micro-batches divide the step
            assert batching.micro_batch_size * batching.gradient_accumulation == asked
        for sequences in passes:
            assert len(sequences) <= batching.micro_batch_size
            assert all(sum(lengths[row] for row in sequence) <= batching.length for sequence in sequences)
        epochs = []
        for epoch in range(3):
            passes.set_epoch(epoch)
            epochs.append(steps_of(passes, batching.gradient_accumulation))
        by_room.append(epochs)
        for held in epochs:
            assert [len(step) for step in held[:-1]] == [asked] * (math.ceil(len(lengths) / asked) - 1)
            assert sorted(row for step in held for row in step) == list(range(len(lengths)))
        assert [steps.tokens(number) for number in range(len(epochs[0]))] == [
            sum(lengths[row] for row in step) for step in epochs[0]
        ]
    assert all(epochs == by_room[0] for epochs in by_room)


@given(st.integers(1, 8), st.integers(1, 8), row_lengths, st.booleans())
def test_out_of_memory_a_step_keeps_its_rows_until_nothing_smaller_is_left(batch, accumulation, lengths, packed):
    asked = {"batch_size": batch, "gradient_accumulation": accumulation, "max_seq_length": 512, "num_epochs": 1.0}
    wanted = sft.Settings(dataset="rows", **asked)
    steps = sft.Steps(lengths, wanted, packed)
    batching, kept = sft.choose_batching(wanted, steps.spread_length, lambda tokens: True, packed)
    assert kept
    first = steps_of(sft.Passes(steps, batching, packed), batching.gradient_accumulation)
    recomputed = []
    with pytest.raises(sft.Stop) as stop:
        while True:
            before = batching, kept
            batching, kept = sft.use_less_memory(
                *before, sft.batchings(wanted, steps.spread_length, packed), RuntimeError("out of memory")
            )
            assert batching.tokens < before[0].tokens or (batching == before[0] and before[1] and not kept)
            recomputed.append(not kept)
            assert steps_of(sft.Passes(steps, batching, packed), batching.gradient_accumulation) == first
    assert stop.value.code == "out_of_vram" and recomputed[-1]


def test_steps_of_typical_rows_are_almost_full():
    """FineTome's lengths: what is computed is what is learned from, in one line of a large GPU as in short ones of a small."""
    chance = random.Random(1)
    lengths = [min(int(chance.lognormvariate(5.8, 0.9)) + 1, 2048) for _ in range(4000)]
    steps = sft.Steps(lengths, sft.Settings(dataset="rows", num_epochs=1.0), True)
    for room, full in ((9000, 0.98), (4096, 0.96), (2100, 0.7)):
        batching, kept = sft.choose_batching(
            sft.Settings(dataset="rows"), steps.spread_length, lambda tokens, room=room: tokens <= room, True
        )
        assert kept and sum(lengths) / (len(sft.Passes(steps, batching, True)) * batching.length) > full


def test_a_few_long_rows_do_not_pad_all_others():
    lengths = [70] * 2000 + [4000] * 3
    wanted = sft.Settings(dataset="rows", max_seq_length=4096, num_epochs=1.0)
    steps = sft.Steps(lengths, wanted, True)
    passes = sft.Passes(steps, sft.choose_batching(wanted, steps.spread_length, lambda tokens: True, True)[0], True)
    assert passes.batching.length >= 4000 and passes.short_length() < 1200


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
ONE_EPOCH += ["--num-epochs", "1", "--load-in-4bit"]


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
    run = f"import sys; sys.modules['unsloth'] = None; sys.argv[0] = {str(SFT)!r}; import sft"
    run += "; sft.ANSWER_TOKENS = 8; sys.exit(sft.main())"
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
    said = {**unsloth("coverage"), "time": last["coverage"]["time"]}
    assert last["coverage"] == said
    assert (last["batching"]["packed"], last["batching"]["rows_per_step"]) == (True, 8)
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
    # As many steps of as many rows, in fewer passes.
    assert packed("done")["steps"] == alone("done")["steps"] == math.ceil(packed("masks")["rows_kept"] / 8)
    assert packed("batching")["rows_per_step"] == alone("batching")["rows_per_step"] == 8
    assert (alone("batching")["micro"], alone("batching")["accumulation"]) == (4, 2)
    assert packed("batching")["micro"] * packed("batching")["accumulation"] == 1


@pytest.mark.parametrize("family", ["packed", *EXACT[1:], *LEAKING])
def test_every_family_trains_with_an_adapter_on_each_linear_layer(trained, family):
    run = trained[family]
    assert run.code == 0, run.log[-3000:]
    reach = run.last("coverage")
    assert reach["of_asked"] == 1.0
    # The experts of gpt-oss are linear layers that no adapter reaches.
    assert reach["coverage"] == reach["of_all_linear"] and (reach["coverage"] < 1.0) == (family == "gpt_oss")
    assert run.last("coverage")["trainable"] == run.last("coverage")["expected_trainable"]
    warnings = [event["code"] for event in run.all("warning")]
    assert run.last("batching")["packed"] == (family not in LEAKING)
    assert ("not_packed" in warnings) == (family in LEAKING)
