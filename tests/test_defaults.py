"""What a run chooses where its settings say auto: the rules, and that they reach check, estimate, plan and trainer."""

from __future__ import annotations

import importlib
import json
import math
import subprocess

import dpo
import pytest
import sft
from conftest import ROOT, ROWS, SFT
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import shape_of_a_model
from unsloth_jobs.estimate import cost
from unsloth_jobs.estimate.flavors import Flavor, snapshot_flavors
from unsloth_jobs.lookup.model_info import Model
from unsloth_jobs.training.memory import ROOM, activation_bytes
from unsloth_jobs.training.precision import fits_in_16bit

SMOLLM2 = {"model_type": "llama", "hidden_size": 576}


def rate(config: dict | None = None, **settings: object) -> float:
    return sft.learning_rate_for(sft.Settings(dataset="x", **settings), SMOLLM2 if config is None else config)


# ---- the learning rate


def test_the_rule_meets_what_was_measured():
    """SmolLM2-135M at 16 rows a step: 1e-3 and 2e-3 were the best of four rates. LFM2.5-1.2B: between the sweeps' 3e-4 and 1e-3."""
    assert 1e-3 <= rate() <= 2e-3
    assert 3e-4 <= rate({"model_type": "lfm2", "hidden_size": 2048}) <= 1e-3
    assert rate({"model_type": "llama", "hidden_size": 2000}) == 6.3e-4  # a quarter above the published 5e-4


def test_a_number_that_is_given_is_used_as_it_is():
    assert rate(learning_rate=3.0, lora_alpha=1) == 3.0


widths = st.integers(32, 20_000)
kinds = st.sampled_from(["llama", "qwen3", "lfm2", "gemma3_text", ""])


@given(widths, kinds, st.integers(1, 512), st.integers(1, 4096), st.integers(1, 64), st.integers(1, 64))
def test_the_rate_is_positive_capped_and_never_grows_with_width_or_alpha(width, kind, rank, alpha, batch, accumulation):
    def at(**changed: int) -> float:
        given = {"width": width, "lora_alpha": alpha, "lora_r": rank, "batch_size": batch} | changed
        config = {"model_type": kind, "hidden_size": given.pop("width")}
        return rate(config, gradient_accumulation=accumulation, **given)

    assert 0 < at() <= 2e-3
    assert at(width=2 * width) <= at() and at(lora_alpha=2 * alpha) <= at() <= at(batch_size=2 * batch)
    assert at(lora_r=2 * rank) == at()
    assert float(f"{at():.2g}") == at()  # as short as it is said, so that what is said can be typed


@given(widths)
def test_a_family_that_nobody_swept_gets_the_lower_rate(width):
    by_kind = [rate({"model_type": kind, "hidden_size": width}) for kind in ("lfm2", "llama", "qwen3")]
    assert by_kind[0] == min(by_kind)


def test_the_width_of_a_language_model_inside_another_counts():
    inside = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "hidden_size": 1152}}
    assert rate(inside) == rate({"model_type": "gemma3_text", "hidden_size": 1152})
    assert rate({"model_type": "gpt_neo"}) == rate({"model_type": "gpt_neo", "hidden_size": 2000})  # not said: no guess


# ---- epochs


@pytest.mark.parametrize(("rows", "epochs"), [(1, 3), (280, 3), (2656, 3), (2657, 2), (4000, 2), (4001, 1), (100_000, 1)])
def test_few_rows_are_passed_over_several_times(rows, epochs):
    settings = sft.Settings(dataset="x")
    assert sft.epochs_for(settings, rows) == epochs
    assert sft.patience_for(settings, rows, 28) == (3 if epochs > 1 else 0)
    assert sft.patience_for(settings, rows, 0) == 0  # nothing to see it by
    text = (ROOT / "references" / "defaults.md").read_text("utf-8")
    assert "three up to 2,656 rows, two up to 4,000, then one" in text


def test_what_is_given_of_steps_epochs_and_stopping_counts():
    assert sft.epochs_for(sft.Settings(dataset="x", num_epochs=7.5), 10) == 7.5
    assert sft.patience_for(sft.Settings(dataset="x", num_epochs=7.5), 10, 5) == 0  # who names epochs gets them
    assert sft.patience_for(sft.Settings(dataset="x", early_stopping=0), 10, 5) == 0
    limited = sft.Settings(dataset="x", max_steps=5)
    assert (sft.epochs_for(limited, 10), sft.patience_for(limited, 10, 5)) == (1, 0)


@given(st.integers(0, 10**7), st.integers(1, 64), st.integers(1, 64))
def test_epochs_are_one_to_three_and_fewer_for_more_rows(rows, batch, accumulation):
    settings = sft.Settings(dataset="x", batch_size=batch, gradient_accumulation=accumulation)
    epochs = sft.epochs_for(settings, rows)
    assert 1 <= epochs <= 3 and epochs == round(epochs) and sft.epochs_for(settings, 2 * rows) <= epochs
    steps = epochs * math.ceil(max(rows, 1) / (batch * accumulation))
    assert epochs == 1 or steps <= 500


# ---- 16 or 4 bits


def model_of(layers: int, hidden: int, inner: int, **config: object) -> Model:
    """A Llama's linear layers."""
    shapes = {f"self_attn.{name}_proj": (hidden, hidden) for name in "qkvo"}
    shapes |= {"mlp.up_proj": (inner, hidden), "mlp.gate_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)}
    tensors = {f"model.layers.{n}.{name}.weight": ("BF16", shape) for n in range(layers) for name, shape in shapes.items()}
    said = {"model_type": "llama", "num_hidden_layers": layers, "vocab_size": 32_000, "hidden_size": hidden}
    return Model("a/b", None, "LlamaForCausalLM", said | config, False, tensors)


SMALL, LARGE = model_of(16, 2048, 8192), model_of(32, 4096, 14336)  # about 1 and 8 billion weights


def bits(flavor: str, model: Model, *words: str) -> int:
    found = next(one for one in snapshot_flavors()[0] if one.name == flavor)
    settings = cost.for_machine(found, model, sft.parse_args(["--dataset", "x", *words]))
    assert settings.load_in_16bit != settings.load_in_4bit
    return 16 if settings.load_in_16bit else 4


def test_a_gpu_with_room_for_16_bits_gets_them():
    assert bits("t4-small", SMALL) == 16
    assert [bits(name, LARGE) for name in ("t4-small", "l4x1", "l40sx1", "a100-large")] == [4, 4, 16, 16]
    assert bits("l4x1", SMALL, "--max-seq-length", "65536") == 4  # the activations have the room instead
    assert bits("cpu-basic", SMALL) == 16
    assert bits("h200", model_of(16, 2048, 8192, quantization_config={"quant_method": "bitsandbytes"})) == 4
    assert (bits("t4-small", LARGE, "--load-in-16bit"), bits("h200", SMALL, "--load-in-4bit")) == (16, 4)


@given(
    st.integers(1, 40), st.sampled_from([512, 1024, 2048, 4096, 8192]), st.floats(4, 200), st.sampled_from([512, 2048, 8192])
)
def test_where_16_bits_are_chosen_the_run_fits(layers, hidden, vram, length):
    model, settings = model_of(layers, hidden, 4 * hidden), sft.Settings(dataset="x", max_seq_length=length)
    chosen = cost.for_machine(Flavor("x", 1.0, vram, 1, "L4"), model, settings)
    if chosen.load_in_16bit:
        assert cost.least_memory(model, chosen).needed < vram


def test_both_precisions_at_once_are_refused(capsys):
    with pytest.raises(SystemExit):
        sft.parse_args(["--dataset", "x", "--load-in-16bit", "--load-in-4bit"])
    assert "exclude each other" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--learning-rate", "--num-epochs", "--early-stopping"])
def test_auto_is_a_word_and_any_other_is_refused(flag, capsys):
    assert sft.parse_args(["--dataset", "x", flag, "auto"]) == sft.parse_args(["--dataset", "x"])
    with pytest.raises(SystemExit):
        sft.parse_args(["--dataset", "x", flag, "automatic"])
    said = capsys.readouterr().err
    assert f"argument {flag}" in said and "|auto value" in said


def test_a_preference_needs_room_for_both_of_its_answers():
    linears = {f"model.layers.{place}.mlp.up_proj": (8192, 2048) for place in range(16)}
    settings = [sft.Settings(base_model="a/b", dataset="c/d"), dpo.Settings(base_model="a/b", dataset="c/d")]
    parameters, kept = 10**9, activation_bytes(linears, 2048)
    memory = (2 * parameters + 1.5 * kept) / ROOM  # of one row of full length, and half of another
    assert [fits_in_16bit(one, linears, {}, parameters, memory) for one in settings] == [True, False]
    assert fits_in_16bit(settings[1], linears, {}, parameters, memory + kept / ROOM)


def test_a_model_that_cannot_be_laid_out_is_held_in_4_bits_and_said_to_be_unknown(training_python):
    code = """
import sys
sys.path.insert(0, "scripts")
from transformers import CLIPConfig
from unsloth_jobs.training import precision
precision.gpu_bytes = lambda: int(24e9)  # as on a machine with a GPU
print(precision.choose_precision(None, CLIPConfig()))
"""
    done = subprocess.run([training_python, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("(False, ") and "how large the model is could not be told (ValueError: " in done.stdout
    assert "--load-in-16bit" in done.stdout


# ---- what is said before a run


def test_check_estimate_and_plan_say_what_the_run_chooses(commands):
    checked = commands.json("check.py", "ada/tiny", "ada/docs")["settings"]
    estimated = commands.json("estimate.py", "ada/tiny", "ada/docs")
    assert (checked["learning_rate"], checked["num_epochs"], checked["early_stopping"]) == (7.7e-4, 3, 3)
    assert checked["why"].items() <= estimated["settings"]["why"].items()
    assert {name: estimated["settings"][name] for name in checked if name != "why"}.items() <= checked.items()
    assert estimated["recommended"]["precision"] == estimated["settings"]["precision"] == "16bit"
    train = ["--base-model", "ada/tiny", "--dataset", "ada/docs"]
    shown = commands.json("submit.py", str(SFT), "--flavor", "l4x1", "--timeout", "1h", "--", *train, code=3)
    assert {"--learning-rate=0.00077", "--load-in-16bit"} <= set(shown["plan"]["arguments"])
    assert shown["estimate"]["epochs"] == 3  # it is found, whatever the plan has fixed
    for text in ("3 epochs over 288 rows", f"{shown['estimate']['steps']:,} steps", "learning rate 0.00077"):
        assert text in shown["summary"]["training"]
    assert "16 bits" in shown["summary"]["method"]
    # Typed again as it stands in the plan, it is the same plan.
    words = ["--flavor", "l4x1", "--timeout", "1h", "--", *shown["plan"]["arguments"]]
    assert commands.json("submit.py", str(SFT), *words, code=3)["plan_id"] == shown["plan_id"]


def test_4_bits_are_what_makes_a_cheaper_gpu_possible(hub, commands, tmp_path, tiny_model):
    large = shape_of_a_model(tmp_path / "large", layers=40, hidden=8192, held=False)  # 5 billion weights
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (large / name).write_bytes((tiny_model / name).read_bytes())
    hub.add_repo("ada/large", large)
    found = commands.json("estimate.py", "ada/large", "ada/docs")
    by = {one["flavor"]: one for one in found["flavors"]}
    assert (by["t4-small"]["precision"], by["l4x1"]["precision"]) == ("4bit", "16bit")
    best = by[found["recommended"]["flavor"]]
    assert found["recommended"]["precision"] == best["precision"] == found["settings"]["precision"] == "4bit"
    cheapest = next(one for one in found["flavors"] if one["fits"] and one["precision"] == "16bit")
    assert best["usd_high"] < cheapest["usd_high"]
    assert f"16 bits: from {cheapest['flavor']}, ${cheapest['usd_low']:.2f}" in found["settings"]["why"]["precision"]
    assert by["t4-small"]["needed_gb"] < by["l4x1"]["needed_gb"]
    both = [commands.json("estimate.py", "ada/large", "ada/docs", f"--load-in-{bits}bit")["flavors"] for bits in (4, 16)]
    assert [{one["precision"] for one in flavors} for flavors in both] == [{"4bit"}, {"16bit"}]
    # The plan on either holds the precision that was estimated there, and finds that estimate.
    for flavor, bits in (("t4-small", 4), ("l4x1", 16)):
        words = ["--flavor", flavor, "--timeout", "9h", "--", "--base-model", "ada/large", "--dataset", "ada/docs"]
        shown = commands.json("submit.py", str(SFT), *words, code=3)
        assert f"--load-in-{bits}bit" in shown["plan"]["arguments"] and f"{bits} bits" in shown["summary"]["method"]
        assert shown["estimate"]["usd_high"] == by[flavor]["usd_high"]


# ---- and that it reaches the trainer


def test_the_trainer_the_checkpoint_and_the_card_see_numbers(runs, tiny_model):
    run = runs.start("--base-model", str(tiny_model), "--dataset", str(ROWS), "--num-samples", "40", "--max-seq-length", "256")
    run.wait()
    said = run.last("settings")
    assert (said["learning_rate"], said["num_epochs"], said["early_stopping"]) == (7.7e-4, 3, 3)
    assert (said["load_in_16bit"], said["load_in_4bit"]) == (True, False)
    steps = run.last("done")["steps"]
    assert steps == 3 * math.ceil(36 / 16)
    assert max(event["learning_rate"] for event in run.all("progress")) == pytest.approx(7.7e-4)
    [newest] = (run.folder / "out" / "checkpoints").glob(f"checkpoint-{steps}")
    kept = json.loads((newest / sft.SETTINGS_FILE).read_text())
    assert all(kept[name] == value for name, value in said.items() if name in kept)
    card = (run.folder / "out" / "README.md").read_text()
    assert "0.00077" in card and all(reason in card for reason in said["why"].values())
    again = runs.start(
        "--base-model", str(tiny_model), "--dataset", str(ROWS), "--num-samples", "40", "--max-seq-length", "256", "--resume",
        folder=run.folder,
    )  # fmt: skip
    assert again.wait().last("done")["trained_steps"] == 0


# ---- the benchmark that holds them against others


@pytest.fixture
def quality(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("quality")


def test_each_point_of_the_benchmark_is_a_run_of_the_template(quality):
    made = {name: sft.parse_args(["--dataset", "x", *flags]) for name, flags in quality.points().items() if flags is not None}
    assert made["default"] == sft.Settings(dataset="x")
    assert made["article"].load_in_4bit and made["article"].learning_rate == 2e-4
    grid = {(one.learning_rate, one.load_in_16bit, sft.effective_batch_size(one)) for one in made.values()}
    assert {(2e-3, True, 8), (2e-4, False, 32)} <= grid
    assert len(made) == len({repr(one) for one in made.values()})


def test_the_benchmark_tells_how_far_the_default_is_from_the_best(quality, tmp_path, capsys):
    common = {"task": "docs", "train_rows": 20, "max_steps": 0, "test_rows": 9, "model": "m", "device": "CPU", "exact": 0.5}
    from memory import add_row

    for point, loss in (("base", 4.0), ("default", 1.65), ("lr0.001-16bit-8rows", 1.5), ("trl", 1.4)):
        add_row(tmp_path / "found.csv", common | {"point": point, "loss": loss}, quality.FIELDS)
    rows = quality.read(tmp_path / "found.csv")
    assert quality.key_of(common | {"point": "trl"}) in {quality.key_of(row) for row in rows}  # it would not be run again
    quality.show(rows)
    said = capsys.readouterr().out
    assert "default: +10.0% from the grid's best, lr0.001-16bit-8rows" in said  # of the template's own
    assert said.index("trl ") < said.index("lr0.001") < said.index("default ") < said.index("base ")


def test_the_benchmark_compares_means_of_several_seeds(quality, tmp_path, capsys):
    common = {"task": "docs", "train_rows": 20, "max_steps": 0, "test_rows": 9, "model": "m", "device": "CPU", "exact": 0.5}
    losses = {"default": 1.6, "seed-2": 1.5, "seed-3": 1.7}
    lucky = {"lr0.002-16bit-16rows": 1.4, "lr0.002-16bit-16rows-seed-2": 1.6, "lr0.002-16bit-16rows-seed-3": 1.5}
    rows = [
        common | dict.fromkeys(quality.FIELDS, "") | common | {"point": point, "loss": loss}
        for point, loss in (losses | lucky).items()
    ]
    quality.show(rows)
    said = capsys.readouterr().out
    assert "mean of 3 seeds: default                 1.6000 (1.5000 to 1.7000), +6.7% from the best mean" in said
    assert "default: +14.3% from the grid's best, lr0.002-16bit-16rows\n" in said  # of single runs
