"""check.py and estimate.py against the test Hub: what they find is true, and differs as the runs do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import ROWS, Commands
from hub import Hub
from safetensors.numpy import save_file

ADA = "hf_adaadaadaada"
CHECK_KEYS = {
    "ok": None,
    "problems": None,
    "model": {"id", "revision", "architecture", "parameters", "gated"},
    "dataset": {"id", "revision", "config", "split", "rows", "format", "columns"},
    "tokens": {"sampled", "mean", "p50", "p95", "max", "total"},
    "mask": {"supervised_fraction", "rows_without_answer", "sample"},
    "lora": {"target_modules", "coverage"},
}
FLAVOR_KEYS = {"flavor", "fits", "vram_gb", "needed_gb", "hours_low", "hours_high", "usd_low", "usd_high"}


@pytest.fixture
def hub(tmp_path: Path, tiny_model: Path):
    with Hub(tmp_path / "hub", execute_jobs=False) as hub:
        hub.add_user("ada", token=ADA)
        hub.add_user("bob", token="hf_bobbobbobbob")
        hub.add_repo("ada/tiny", tiny_model)
        hub.add_repo("ada/gated", tiny_model, gated="manual")
        rows = tmp_path / "rows"
        rows.mkdir()
        (rows / "train.jsonl").write_bytes(ROWS.read_bytes())
        hub.add_repo("ada/docs", rows, type="dataset")
        yield hub


@pytest.fixture
def commands(hub: Hub, tmp_path: Path) -> Commands:
    return Commands(hub.env(token=ADA), tmp_path)


def wide_model(folder: Path, tiny: Path, layers: int, hidden: int) -> Path:
    """A Llama-shaped model of stated size, of zeros, with the tiny model's tokenizer."""
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((tiny / name).read_bytes())
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 1024}))
    tensors = {"model.embed_tokens.weight": np.zeros((1024, hidden), np.float16)}
    for layer in range(layers):
        tensors[f"model.layers.{layer}.self_attn.q_proj.weight"] = np.zeros((hidden, hidden), np.float16)
        tensors[f"model.layers.{layer}.mlp.up_proj.weight"] = np.zeros((4 * hidden, hidden), np.float16)
        tensors[f"model.layers.{layer}.input_layernorm.weight"] = np.zeros((hidden,), np.float16)
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_a_sound_run_is_described_by_its_contract(hub, commands):
    found = commands.json("check.py", "ada/tiny", "ada/docs", "--max-length", "256")
    assert found["ok"] is True
    for part, keys in CHECK_KEYS.items():
        assert part in found
        assert keys is None or keys <= found[part].keys(), part
    assert found["model"]["parameters"] == 772_416  # as transformers counts them when the model is made
    assert found["model"]["revision"] == hub.store.repos["model", "ada/tiny"].head.sha
    assert (found["dataset"]["rows"], found["dataset"]["format"]) == (320, "messages")
    assert found["tokens"]["total"] == pytest.approx(found["tokens"]["mean"] * 320, rel=0.01)
    assert found["lora"]["coverage"] == 1.0
    text = ROWS.read_text().splitlines()[0]
    learned = [part["text"] for part in found["mask"]["sample"] if part["learned"]]
    assert learned == [json.loads(text)["messages"][1]["content"] + "<|im_end|>"]
    assert len(hub.journal.requests(path=r"whoami")) == 1
    assert not [
        r for r in hub.journal.requests(method="GET", path="ada/tiny/resolve/.*safetensors") if "range" not in r.headers
    ]


def test_a_person_sees_what_is_learned(commands):
    shown = commands.run("check.py", "ada/tiny", "ada/docs").stdout
    assert "772,416 parameters" in shown
    assert "<|im_start|>assistant" in shown
    assert "Sound." in shown


@pytest.mark.parametrize(
    ("model", "dataset", "codes"),
    [
        ("ada/tinny", "ada/docs", {"not_found"}),
        ("ada/tiny", "ada/dogs", {"not_found"}),
        ("ada/tinny", "ada/dogs", {"not_found"}),
        ("./nowhere", "ada/docs", {"not_found"}),
        ("ada/tiny", "ada/docs --split trian", {"unknown_split"}),
        ("ada/tiny", "ada/docs --target-modules q_proj,gate_proj", {"unknown_target"}),
        ("ada/tiny", "ada/docs --max-length 8", {"nothing_supervised"}),
    ],
)
def test_what_is_wrong_is_said_with_its_fix(commands, model, dataset, codes):
    found = commands.json("check.py", model, *dataset.split(), code=1)
    assert found["ok"] is False
    errors = [problem for problem in found["problems"] if problem["severity"] == "error"]
    assert {problem["code"] for problem in errors} == codes
    assert all(problem["fix"] for problem in errors)


def test_a_gated_model_needs_access(hub, tmp_path):
    commands = Commands(hub.env(token="hf_bobbobbobbob"), tmp_path)
    found = commands.json("check.py", "ada/gated", "ada/docs", code=1)
    [problem] = [problem for problem in found["problems"] if problem["severity"] == "error"]
    assert problem["code"] == "gated"
    assert f"{hub.url}/ada/gated" in problem["fix"]


def test_part_of_the_modules_is_a_warning_with_the_share(commands):
    found = commands.json("check.py", "ada/tiny", "ada/docs", "--target-modules", "q_proj,k_proj")
    assert found["lora"]["coverage"] < 0.2
    assert [problem["code"] for problem in found["problems"]] == ["low_coverage"]


def test_the_estimate_uses_the_hub_s_prices_and_ranks_by_dollars_per_run(hub, commands):
    found = commands.json("estimate.py", "ada/tiny", "ada/docs", "--epochs", "2")
    assert found["price_source"] == f"{hub.url}/api/jobs/hardware"
    assert all(one.keys() >= FLAVOR_KEYS for one in found["flavors"])
    fitting = [one for one in found["flavors"] if one["fits"]]
    assert fitting == sorted(fitting, key=lambda one: one["usd_high"])
    assert fitting[0]["flavor"] == found["recommended"]["flavor"]
    assert all(0 < one["usd_low"] < one["usd_high"] for one in fitting)
    assert found["recommended"]["timeout_s"] > fitting[0]["hours_high"] * 3600
    assert not any(one["fits"] for one in found["flavors"] if one["flavor"].startswith("cpu") or "x4" in one["flavor"])


def test_the_estimate_grows_with_the_model_and_the_work(hub, commands, tmp_path, tiny_model):
    hub.add_repo("ada/wide", wide_model(tmp_path / "wide", tiny_model, layers=8, hidden=1024))

    def l4(*words: str) -> dict:
        return commands.json("estimate.py", *words, "--flavor", "l4x1")["flavors"][0]

    tiny, wide = l4("ada/tiny", "ada/docs", "--epochs", "9"), l4("ada/wide", "ada/docs", "--epochs", "9")
    assert wide["needed_gb"] > tiny["needed_gb"]
    assert wide["hours_high"] > tiny["hours_high"]
    assert l4("ada/wide", "ada/docs", "--epochs", "90")["usd_high"] > 2 * wide["usd_high"]
    assert l4("ada/wide", "ada/docs", "--load-in-16bit")["needed_gb"] > wide["needed_gb"]
    assert l4("ada/wide", "ada/docs", "--max-steps", "3")["hours_high"] < wide["hours_high"]


def test_without_the_hub_the_dated_snapshot_is_used_and_said(tmp_path, tiny_model):
    commands = Commands({"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")}, tmp_path)
    found = commands.json("estimate.py", str(tiny_model), str(ROWS))
    assert "2026-08-22" in found["price_source"]
    assert found["recommended"]["max_usd"] > 0


def test_a_csv_on_this_machine_is_a_data_set(commands, tmp_path):
    (tmp_path / "support.csv").write_text("question,answer\n" + "How do I log in?,Use the blue button.\n" * 60)
    found = commands.json("check.py", "ada/tiny", "support.csv")
    assert (found["dataset"]["format"], found["dataset"]["rows"]) == ("prompt-completion", 60)
