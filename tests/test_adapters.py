"""Going on from an adapter: --base-model names one, and training begins with what it learned."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Iterable
from pathlib import Path

import export
import pytest
import sft
from commands import Commands
from conftest import ROOT, ROWS, SFT
from hubs import ADA
from huggingface_hub import HfApi, constants
from runs import Run
from tiny_models import shape_of_a_model
from unsloth_jobs.errors import USAGE, UserError
from unsloth_jobs.estimate.memory import memory
from unsloth_jobs.jobs import preflight
from unsloth_jobs.lookup import adapter_info

STEPS, SAVE = 12, 4
DATA = ["--dataset", str(ROWS), "--batch-size", "4", "--gradient-accumulation", "4", "--max-seq-length", "128"]
QUICK = [*DATA, "--load-in-16bit", "--learning-rate", "5e-3", "--grader", "none"]
FIRST = ["--lora-r", "8", "--lora-alpha", "8", "--target-modules", "q_proj,v_proj,w1,w2"]
ON = [*QUICK, "--max-steps", str(STEPS), "--save-steps", str(SAVE)]


@pytest.fixture(scope="module")
def parent(runs, tiny_model) -> Run:
    """A first training, with an adapter of its own shape: ada/first."""
    runs.hub.add_repo("ada/tiny-lfm2", tiny_model)
    words = ["--base-model", "ada/tiny-lfm2", *FIRST, "--max-steps", "10", "--output-repo", "ada/first"]
    run = runs.start(*QUICK, *words).wait()
    assert run.code == 0, run.log[-3000:]
    return run


@pytest.fixture(scope="module")
def whole(runs, parent) -> Run:
    """A second training, on what the first has learned."""
    run = runs.start(*ON, "--base-model", "ada/first", "--output-repo", "ada/second").wait()
    assert run.code == 0, run.log[-3000:]
    return run


Shapes = dict[str, list[int]]


def header(folder: Path) -> tuple[dict, bytes]:
    content = (folder / "adapter_model.safetensors").read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    found = json.loads(content[8 : 8 + size])
    found.pop("__metadata__", None)
    return found, content[8 + size :]


def tensors(folder: Path) -> dict[str, bytes]:
    """The bytes of each tensor of an adapter."""
    found, content = header(folder)
    return {name: content[slice(*facts["data_offsets"])] for name, facts in found.items()}


def shapes_of(folder: Path, names: Iterable[str]) -> Shapes:
    return {name: header(folder)[0][name]["shape"] for name in names}


def write_adapter(folder: Path, shapes: Shapes, config: dict, contents: dict[str, bytes] | None = None) -> Path:
    """An adapter as PEFT saves it, of zeros where no contents are given."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    stated, body = {}, b""
    for name, shape in shapes.items():
        content = (contents or {}).get(name, bytes(4 * math.prod(shape)))
        stated[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(body), len(body) + len(content)]}
        body += content
    text = json.dumps(stated).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)
    return folder


# ---- what training begins with


def test_training_begins_with_what_the_adapter_has_learned(parent, whole):
    first, second = parent.last("done"), whole.last("done")
    assert second["base_loss"] == pytest.approx(first["tuned_loss"], abs=1e-4)
    assert first["tuned_loss"] < first["base_loss"] - 0.02  # so that it is not the bare model's
    assert second["tuned_loss"] < second["base_loss"] - 0.05
    said = whole.last("parent")
    assert (said["adapter"], said["base_model"], said["lora_r"], said["lora_alpha"]) == ("ada/first", "ada/tiny-lfm2", 8, 8)
    assert said["target_modules"] == ["q_proj", "v_proj", "w1", "w2"] == whole.last("coverage")["target_modules"]
    assert whole.last("coverage")["trainable"] == parent.last("coverage")["trainable"]


def test_the_result_names_both_that_it_comes_from(runs, parent, whole):
    card, config = (whole.folder / "out" / name for name in ("README.md", "adapter_config.json"))
    commits = {name: runs.hub.store.repos["model", f"ada/{name}"].head.sha for name in ("first", "tiny-lfm2")}
    text, stated = card.read_text(), json.loads(config.read_text())
    assert "base_model: ada/tiny-lfm2" in text
    assert f"the adapter `ada/first` at {commits['first']}" in text and "It is not the bare model" in text
    assert commits["tiny-lfm2"] in text
    assert (stated["base_model_name_or_path"], stated["revision"]) == ("ada/tiny-lfm2", commits["tiny-lfm2"])
    assert whole.last("done")["went_on_from"] == "ada/first"


def test_what_is_answered_as_base_is_the_adapter_as_it_was(parent, whole):
    """Not the bare model: what it answers is what the first training's result answered."""
    first, second = parent.all("sample"), whole.all("sample")
    assert len(first) == len(second) == 3
    assert [one["tuned"] for one in first] == [one["base"] for one in second]
    assert any(one["base"] != one["tuned"] for one in first)  # so that it is not the bare model's


# ---- killed, resumed, and other adapters


def test_killed_and_resumed_it_ends_as_if_undisturbed(runs, whole):
    words = [*ON, "--base-model", "ada/first", "--output-repo", "ada/killed"]
    run = runs.start(*words)
    run.wait_for("checkpoint", SAVE)
    run.process.kill()
    run.wait()
    resumed = runs.start(*words, "--resume").wait()  # on another machine
    assert resumed.code == 0 and min(resumed.losses()) > SAVE, resumed.log[-3000:]
    joined = run.losses() | resumed.losses()
    assert joined == pytest.approx(whole.losses(), abs=2e-2)
    done, undisturbed = resumed.last("done"), whole.last("done")
    assert done["tuned_loss"] == pytest.approx(undisturbed["tuned_loss"], abs=1e-2)
    assert done["base_loss"] == pytest.approx(undisturbed["base_loss"], abs=1e-4)


def test_a_run_from_another_adapter_is_not_resumed(runs, whole):
    folder = whole.folder.with_name("other")
    shutil.copytree(whole.folder / "out" / "checkpoints", folder / "out" / "checkpoints")
    run = runs.start(*ON, "--base-model", "ada/second", "--resume", folder=folder).wait()
    failed = run.last("failed")
    assert (run.code, failed["code"]) == (1, "resume_mismatch")
    assert "the adapter that it goes on from" in failed["message"] and "--base-model ada/first" in failed["fix"]


# ---- the other ways to run


def test_without_unsloth_and_merged_from_a_folder(runs, parent, tmp_path):
    """A copy of the adapter without a tokenizer: its base's is taken."""
    shutil.copytree(parent.folder / "out", tmp_path / "first", ignore=shutil.ignore_patterns("checkpoints", "token*", "chat*"))
    words = [*QUICK, "--base-model", str(tmp_path / "first"), "--max-steps", "4", "--backend", "trl", "--merge-model"]
    run = runs.start(*words).wait()
    assert run.code == 0, run.log[-3000:]
    assert run.last("done")["base_loss"] == pytest.approx(parent.last("done")["tuned_loss"], abs=1e-3)
    assert run.last("parent")["revision"] is None and "the adapter `first`" in (run.folder / "out" / "README.md").read_text()
    assert (run.folder / "out" / "merged" / "model.safetensors").is_file()


def test_a_step_that_changes_nothing_saves_the_adapter_as_it_was(runs, parent, tmp_path):
    """Also one of some of the layers only, that is scaled by the root of its rank."""
    made = parent.folder / "out"
    left_out = min(tensors(made)).rpartition(".lora_")[0]
    some = {name: content for name, content in tensors(made).items() if not name.startswith(left_out)}
    config = json.loads((made / "adapter_config.json").read_text()) | {"use_rslora": True}
    adapter = write_adapter(tmp_path / "some", shapes_of(made, some), config, some)
    words = ["--base-model", str(adapter), "--max-steps", "1", "--learning-rate", "1e-30", "--eval-split", "0"]
    run = runs.start(*QUICK, *words).wait()
    assert run.code == 0, run.log[-3000:]
    assert run.last("coverage")["modules"] == len(some) / 2 == parent.last("coverage")["modules"] - 1
    assert tensors(run.folder / "out") == some
    stated = json.loads((run.folder / "out" / "adapter_config.json").read_text())
    assert stated["use_rslora"] and (stated["r"], stated["lora_alpha"]) == (8, 8)


# ---- the whole way, and what is refused before anything is paid


def test_from_the_check_to_the_adapter_of_an_adapter_in_four_commands(runs, parent, training_python, tmp_path):
    hub = runs.hub
    commands = Commands(hub.env(token=ADA), tmp_path)

    words = ["submit.py", str(SFT), "--flavor", "cpu-upgrade", "--timeout", "15m"]
    arguments = ["--", "--base-model", "ada/first", *ON, "--trackio-space="]

    checked = commands.json("check.py", "ada/first", str(ROWS), "--max-length", "128")
    shown = commands.run(*words, *arguments, code=3).stdout
    job = commands.json(*words, "--approve", re.search("Plan (\\w+)", shown)[1], *arguments)
    log = "\n".join(line.text for line in hub.jobs.wait(job["job_id"], timeout=300).logs)
    status = commands.json("status.py", job["job_id"], code=None)

    assert status["stage"] == "COMPLETED", log[-3000:]
    commit = hub.store.repos["model", "ada/first"].head.sha
    adapter = checked["adapter"]
    assert (adapter["id"], adapter["revision"], adapter["r"], adapter["alpha"]) == ("ada/first", commit, 8, 8)
    assert (checked["model"]["id"], checked["lora"]["target_modules"]) == ("ada/tiny-lfm2", adapter["target_modules"])
    said = {name: json.loads(line.split("EVENT ", 1)[1]) for line in log.splitlines() if (name := name_of(line))}
    assert said["masks"]["digest"] == checked["mask"]["digest"]
    assert said["coverage"]["coverage"] == checked["lora"]["coverage"]
    assert said["done"]["repo"] == "ada/first-stdlib-docs"
    assert said["done"]["base_loss"] == pytest.approx(parent.last("done")["tuned_loss"], abs=1e-3)
    assert "ada/first" in shown and "ada/tiny-lfm2" in shown and "LoRA r 8, alpha 8" in shown
    [created] = [one for one in hub.journal.requests(method="POST", path=r"^/api/jobs/ada$") if one.status == 200]
    assert f"--base-model-revision={commit}" in json.dumps(created.json)
    # It loads as its card says.
    env = {**os.environ, **hub.env(token=ADA)}
    loading = [training_python, str(ROOT / "tests" / "answer.py"), "ada/first-stdlib-docs", "What does bisect.insort do?"]
    assert json.loads(subprocess.run(loading, env=env, check=True, capture_output=True, text=True).stdout)["trained"] > 0


def name_of(line: str) -> str:
    return json.loads(line.split("EVENT ", 1)[1])["event"] if "EVENT {" in line else ""


LAYERS = [f"model.layers.{layer}.{part}" for layer in (0, 1) for part in ("self_attn.q_proj", "mlp.up_proj")]


def lora_shapes(modules: Iterable[str], rank: int = 8, width: int = 64) -> Shapes:
    parts = {"A": [rank, width], "B": [width, rank]}
    return {f"base_model.model.{name}.lora_{part}.weight": shape for name in modules for part, shape in parts.items()}


def plain(base: Path | str, **other: object) -> dict:
    return {"peft_type": "LORA", "base_model_name_or_path": str(base), "r": 8, "lora_alpha": 16, "bias": "none", **other}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return shape_of_a_model(tmp_path / "base")


def settings_for(adapter: Path | str, *words: str) -> sft.Settings:
    return sft.parse_args(["--base-model", str(adapter), "--dataset", "rows.jsonl", *words])


def test_an_adapter_takes_its_own_rank_alpha_and_targets_and_costs_what_they_do(tmp_path, base):
    adapter = write_adapter(tmp_path / "adapter", lora_shapes(LAYERS[::2]), plain(base))
    settings = settings_for(adapter)
    model = adapter_info.fetch_model_to_train(None, sft, settings)
    taken = adapter_info.with_lora_of(settings, model)
    assert (taken.lora_r, taken.lora_alpha, taken.target_modules) == (8, 16, "q_proj")
    alike = settings_for(base, "--lora-r", "8", "--lora-alpha", "16", "--target-modules", "q_proj")
    bare = adapter_info.fetch_model_to_train(None, sft, alike)
    assert (model.id, model.tensors, bare.parent) == (bare.id, bare.tensors, None)
    assert memory(model, taken, 2048, True) == memory(bare, alike, 2048, True) != memory(bare, settings_for(base), 2048, True)
    # In the job it is the same.
    parent = sft.find_parent(settings)
    assert sft.with_lora_values(settings, parent) == taken
    on = sft.settings_on_base(settings, parent)
    assert (on.base_model, sft.run_name(on)) == (str(base), "adapter-rows.jsonl")
    assert sft.find_parent(on) is None and sft.with_lora_values(on, None).lora_r == 16


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--lora-r", "16"], "--lora-r 16"),
        (["--lora-alpha", "32"], "--lora-alpha 32"),
        (["--target-modules", "q_proj"], "--target-modules q_proj"),
        (["--lora-r", "16", "--lora-alpha", "16"], "--lora-r 16"),
    ],
)
def test_a_flag_that_contradicts_the_adapter_is_refused_with_the_way_to_merge_it(tmp_path, base, words, said):
    adapter = write_adapter(tmp_path / "adapter", lora_shapes(LAYERS), plain(base))
    settings = settings_for(adapter, *words)
    with pytest.raises(UserError) as refused:
        adapter_info.with_lora_of(settings, adapter_info.fetch_model_to_train(None, sft, settings))
    with pytest.raises(sft.Stop) as stopped:
        sft.with_lora_values(settings, sft.find_parent(settings))
    problem = refused.value.problem
    assert (refused.value.exit_code, problem.code, stopped.value.code) == (USAGE, "adapter_conflict", "adapter_conflict")
    assert said in problem.message and f"templates/export.py --adapter {adapter} --quantizations none" in problem.fix
    agreeing = settings_for(adapter, "--lora-r", "8", "--lora-alpha", "16", "--target-modules", "up_proj, q_proj")
    assert sft.with_lora_values(agreeing, sft.find_parent(agreeing)).lora_r == 8


ODD = lora_shapes(LAYERS) | {"base_model.model.model.embed_tokens.lora_embedding_A": [8, 512]}


@pytest.mark.parametrize(
    ("shapes", "config", "code"),
    [
        (lora_shapes(LAYERS), {"peft_type": "PROMPT_TUNING"}, "unsupported_adapter"),
        (lora_shapes(LAYERS), {"peft_type": "IA3"}, "unsupported_adapter"),
        (lora_shapes(LAYERS), {"use_dora": True}, "unsupported_adapter"),
        (lora_shapes(LAYERS), {"modules_to_save": ["lm_head"]}, "unsupported_adapter"),
        (lora_shapes(LAYERS), {"rank_pattern": {"q_proj": 4}}, "unsupported_adapter"),
        (lora_shapes(LAYERS), {"bias": "all"}, "unsupported_adapter"),
        (lora_shapes(LAYERS), {"init_lora_weights": "pissa_niter_4"}, "unsupported_adapter"),
        (ODD, {}, "unsupported_adapter"),
        (lora_shapes(LAYERS, rank=4), {}, "unsupported_adapter"),
        ({}, {}, "unsupported_adapter"),
        (lora_shapes(LAYERS), {"r": "8"}, "bad_adapter"),
        (lora_shapes(LAYERS, width=32), {}, "bad_adapter"),
        (lora_shapes([*LAYERS, "model.layers.2.self_attn.q_proj"]), {}, "bad_adapter"),
        (lora_shapes(LAYERS), {"base_model_name_or_path": None}, "bad_adapter"),
        (lora_shapes(LAYERS), {"base_model_name_or_path": "/nowhere/model"}, "bad_adapter"),
        (lora_shapes(LAYERS), {"base_model_name_or_path": "x/y\nz"}, "bad_adapter"),
    ],
)
def test_an_adapter_that_is_not_gone_on_from_says_why_before_and_in_the_job(tmp_path, base, shapes, config, code):
    adapter = write_adapter(tmp_path / "adapter", shapes, plain(base) | config)
    settings = settings_for(adapter)
    with pytest.raises(UserError) as refused:
        adapter_info.fetch_model_to_train(None, sft, settings)
    with pytest.raises(sft.Stop) as stopped:
        linears = adapter_info.fetch_model_to_train(None, sft, settings_for(base)).linears
        sft.placed(sft.find_parent(settings), linears)
    assert (refused.value.problem.code, stopped.value.code) == (code, code)
    assert refused.value.problem.fix and str(adapter) in stopped.value.message


def test_half_an_adapter_a_broken_one_and_one_on_another_are_refused(tmp_path, base):
    half, broken, above = (write_adapter(tmp_path / name, lora_shapes(LAYERS), plain(base)) for name in "abc")
    (half / "adapter_model.safetensors").unlink()
    (broken / "adapter_model.safetensors").write_bytes(b"<html>")
    (above / "adapter_config.json").write_text(
        json.dumps(plain(write_adapter(tmp_path / "d", lora_shapes(LAYERS), plain(base))))
    )
    for adapter, code in {half: "bad_adapter", broken: "bad_adapter", above: "unsupported_adapter"}.items():
        with pytest.raises(UserError) as refused:
            adapter_info.fetch_model_to_train(None, sft, settings_for(adapter))
        with pytest.raises(sft.Stop) as stopped:
            sft.find_parent(settings_for(adapter))
        assert (refused.value.problem.code, stopped.value.code) == (code, code)


def test_an_adapter_beside_the_configuration_of_its_base_is_an_adapter(tmp_path, base):
    adapter = write_adapter(tmp_path / "adapter", lora_shapes(LAYERS), plain(base))
    shutil.copy(base / "config.json", adapter)
    assert sft.find_parent(settings_for(adapter)).rank == 8
    assert adapter_info.fetch_model_to_train(None, sft, settings_for(adapter)).parent.rank == 8


def test_a_copy_of_a_template_that_knows_no_adapters_is_not_given_one(tmp_path, base):
    adapter = write_adapter(tmp_path / "adapter", lora_shapes(LAYERS), plain(base))
    with pytest.raises(UserError) as refused:
        adapter_info.fetch_model_to_train(None, export, settings_for(adapter))
    assert refused.value.problem.code == "adapter_repo" and "make your copy of that again" in refused.value.problem.fix


def test_the_adapter_is_not_replaced_by_what_is_made_of_it(tmp_path, base):
    folder = write_adapter(tmp_path / "adapter", lora_shapes(LAYERS), plain(base))
    on_hub = sft.replace(sft.find_parent(settings_for(folder)), name="ada/first", revision="c" * 40, folder=None)
    same = settings_for("ada/first", "--output-repo", "ada/first")
    with pytest.raises(sft.Stop) as stopped:
        sft.require_apart(same, on_hub)
    assert stopped.value.code == "parent_replaced"
    sft.require_apart(
        settings_for(*stopped.value.fix.rpartition("--base-model ")[2].split(), "--output-repo", "ada/first"), on_hub
    )
    sft.require_apart(settings_for("ada/first", "--output-repo", "ada/second"), on_hub)
    with pytest.raises(sft.Stop):
        sft.require_apart(settings_for(folder, "--save-local", str(folder)), sft.find_parent(settings_for(folder)))


def test_an_adapter_on_the_hub_is_refused_with_its_base_s_name_where_that_is_gone_or_gated(runs, tmp_path, base, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    hub = runs.hub
    hub.add_repo("big/gated", base, gated="manual")
    hub.add_repo("big/encoder", shape_of_a_model(tmp_path / "bert", architectures=["BertModel"]))
    codes = {}
    for name in ("big/gone", "big/gated", "big/encoder"):
        folder = write_adapter(tmp_path / name.replace("/", "-"), lora_shapes(LAYERS), plain(name))
        adapter = f"ada/of-{name.partition('/')[2]}"
        hub.add_repo(adapter, folder)
        with pytest.raises(UserError) as refused:
            preflight.find_model(HfApi(hub.url, token=ADA), sft, settings_for(adapter))
        codes[refused.value.problem.code] = refused.value.problem.message
        assert name in refused.value.problem.message
    assert list(codes) == ["not_found", "gated", "not_a_decoder"]


def test_the_commands_refuse_a_contradiction_as_a_wrong_use(runs, parent, tmp_path):
    commands = Commands(runs.hub.env(token=ADA), tmp_path)
    checked = commands.json("check.py", "ada/first", str(ROWS), "--lora-r", "16", code=USAGE)
    words = ["submit.py", str(SFT), "--flavor", "cpu-upgrade", "--", "--base-model", "ada/first", "--dataset", str(ROWS)]
    planned = commands.json(*words, "--output-repo", "ada/first", code=USAGE)
    assert [one["problems"][0]["code"] for one in (checked, planned)] == ["adapter_conflict", "parent_replaced"]
