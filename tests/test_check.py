"""check.py and estimate.py against the test Hub: what they find is true, and differs as the runs do."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sft
from commands import HASTY, Commands
from conftest import ROWS, make_tokenizer
from hub import Hub, Organization
from hubs import ADA, BOB, hub_of_ada
from safetensors.numpy import save_file
from tiny_models import wide_model
from unsloth_jobs.lookup.checks import NOT_ON_THE_JOB
from unsloth_jobs.lookup.model_info import Model

CHECK_KEYS = {
    "ok": None,
    "problems": None,
    "model": {"id", "revision", "architecture", "parameters", "context_length", "gated"},
    "dataset": {"id", "revision", "config", "split", "rows", "bytes", "format", "columns", "unused"},
    "tokens": {"sampled", "mean", "p50", "p95", "max", "total", "total_low", "total_high"},
    "mask": {"supervised_fraction", "rows_without_answer", "sample"},
    "lora": {"target_modules", "coverage", "linear_share"},
}
FLAVOR_KEYS = {"flavor", "fits", "vram_gb", "needed_gb", "hours_low", "hours_high", "usd_low", "usd_high"}


@pytest.fixture
def hub(hub: Hub, tiny_model: Path) -> Hub:
    """Bob has no access to Ada's gated model."""
    hub.add_user("bob", token=BOB)
    hub.add_repo("ada/gated", tiny_model, gated="manual")
    return hub


class Checker(Commands):
    """check.py in one environment; each call answers with the JSON and the exit code."""

    def __call__(self, *words: str, token: str = ADA) -> dict[str, Any]:
        self.env["HF_TOKEN"] = token
        said = self.run("check.py", *words, "--json", code=None)
        assert ADA not in said.stderr and "hf_" not in said.stderr
        found = said.json
        assert all(problem["message"] and problem["fix"] for problem in found["problems"])
        codes = {problem["code"]: problem for problem in found["problems"]}
        return found | {"exit_code": said.returncode, "codes": codes, "stderr": said.stderr, "held": said.held}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Hub]:
    """A Hub for checks that only read; each test adds what it looks at."""
    root = tmp_path_factory.mktemp("shared")
    rows = write_rows(root / "docs", {"train.jsonl": [json.loads(line) for line in ROWS.read_text().splitlines()]})
    with hub_of_ada(root, model=tiny_model, rows=rows) as hub:
        yield hub


@pytest.fixture(scope="module")
def check(shared: Hub, tmp_path_factory: pytest.TempPathFactory) -> Checker:
    env = shared.env(token=ADA) | {"HF_HUB_ETAG_TIMEOUT": "2", "HF_HUB_DOWNLOAD_TIMEOUT": "2"}
    return Checker(env, tmp_path_factory.mktemp("checks"), settings=HASTY)


def write_rows(folder: Path, files: dict[str, list[dict]]) -> Path:
    for name, rows in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def chat(question: str, answer: str) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


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
    assert (found["lora"]["coverage"], found["lora"]["linear_share"], found["model"]["context_length"]) == (1.0, 1.0, 512)
    chosen = {"config": "default", "split": "train", "bytes": ROWS.stat().st_size, "unused": ["source"]}
    assert found["dataset"] == found["dataset"] | chosen
    rights = {"owner": "ada", "may_write": True, "may_start_jobs": True, "payers": ["ada"]}
    assert found["identity"] == found["identity"] | rights
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
def test_what_is_wrong_is_said_with_its_fix(check, model, dataset, codes):
    found = check(model, *dataset.split())
    assert found["exit_code"] == 1
    assert found["ok"] is False
    errors = [problem for problem in found["problems"] if problem["severity"] == "error"]
    assert {problem["code"] for problem in errors} == codes
    assert all(problem["fix"] for problem in errors)


def test_a_gated_model_needs_access(hub, tmp_path):
    commands = Commands(hub.env(token=BOB), tmp_path)
    found = commands.json("check.py", "ada/gated", "ada/docs", code=1)
    [problem] = [problem for problem in found["problems"] if problem["severity"] == "error"]
    assert problem["code"] == "gated"
    assert f"{hub.url}/ada/gated" in problem["fix"]


def test_part_of_the_modules_is_a_warning_with_the_share(commands):
    found = commands.json("check.py", "ada/tiny", "ada/docs", "--target-modules", "q_proj,k_proj")
    assert found["lora"]["linear_share"] < found["lora"]["coverage"] < 0.2  # narrow layers cost LoRA more than their size
    [problem] = found["problems"]
    assert problem["code"] == "low_coverage"
    [modules] = re.findall(r"--target-modules (\S+)", problem["fix"])
    mended = commands.json("check.py", "ada/tiny", "ada/docs", "--target-modules", modules)
    assert (mended["lora"]["coverage"], mended["problems"]) == (1.0, [])


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
    hub.add_repo("ada/narrow", wide_model(tmp_path / "narrow", tiny_model, layers=2, hidden=256))

    def l4(*words: str) -> dict:
        return commands.json("estimate.py", *words, "--flavor", "l4x1")["flavors"][0]

    narrow, wide, longer = (
        l4(name, "ada/docs", "--epochs", epochs)
        for name, epochs in (("ada/narrow", "900"), ("ada/wide", "900"), ("ada/wide", "90000"))
    )
    assert wide["needed_gb"] > narrow["needed_gb"]
    assert wide["hours_high"] > narrow["hours_high"]
    assert longer["seconds"]["training"] == pytest.approx([100 * end for end in wide["seconds"]["training"]], rel=0.02)
    assert longer["usd_high"] > 2 * wide["usd_high"]
    assert l4("ada/wide", "ada/docs", "--load-in-4bit")["needed_gb"] < wide["needed_gb"]
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


def test_a_token_that_cannot_do_the_work_is_known_before_submit(shared, check):
    everything = ["repo.write", "job.write"]
    shared.add_user("ada", token="hf_readreadread", role="read")
    shared.add_user("ada", token="hf_nojobsnojobs", role="fineGrained", permissions=["repo.write", "repo.content.read"])
    shared.add_user("ada", token="hf_norepopaying", role="fineGrained", permissions=["job.write"])
    shared.add_user("ada", token="hf_finefinefine", role="fineGrained", permissions=everything)
    shared.add_user("eve", token="hf_eveeveeveeve", can_pay=False)
    orgs = [Organization("rich"), Organization("poor", can_pay=False), Organization("library", role="read")]
    shared.add_user("kim", token="hf_kimkimkimkim", can_pay=False, orgs=orgs)

    rights = {}

    def problem(token: str, *words: str) -> tuple[int, dict]:
        shared.journal.clear()
        found = check("ada/tiny", "ada/docs", *words, token=token)
        if identity := found["identity"]:
            rights[token] = (identity["may_write"], identity["may_start_jobs"], identity["payers"])
        assert len(shared.journal.requests(path="whoami")) == (1 if token else 0)
        return found["exit_code"], found["codes"]

    code, problems = problem("hf_readreadread")
    assert code == 4 and "write repositories" in problems["token_cannot_write"]["message"]
    code, problems = problem("hf_nojobsnojobs")
    assert code == 4 and "start jobs" in problems["token_cannot_write"]["message"]
    assert "write repositories" in problem("hf_norepopaying")[1]["token_cannot_write"]["message"]
    assert problem("hf_finefinefine") == (0, {})
    assert problem("hf_eveeveeveeve", "--namespace", "ada")[1].keys() == {"not_a_member"}
    code, problems = problem("hf_eveeveeveeve")
    assert code == 0 and problems["no_billing"]["severity"] == "warning"
    code, problems = problem("hf_kimkimkimkim")
    assert code == 0 and "--namespace rich." in problems["no_billing"]["fix"]
    assert problem("hf_kimkimkimkim", "--namespace", "rich") == (0, {})
    assert problem("hf_kimkimkimkim", "--namespace", "poor")[1].keys() == {"no_billing"}
    assert "token_cannot_write" in problem("hf_kimkimkimkim", "--namespace", "library")[1]
    code, problems = problem("")
    assert (code, problems.keys()) == (4, {"no_token"})
    assert rights["hf_readreadread"] == (False, False, [])
    assert rights["hf_nojobsnojobs"] == (True, False, [])
    assert rights["hf_norepopaying"] == (False, True, [])
    assert rights["hf_finefinefine"] == (True, True, ["ada"])
    assert rights["hf_kimkimkimkim"] == (False, False, ["rich"])  # in the library, as asked last
    code, problems = problem("hf_unknownunknown")
    assert (code, problems.keys()) == (4, {"bad_token"})


def test_an_id_that_is_almost_right_is_corrected(shared, check, tiny_model):
    for name in ("acme/LFM2-350M", "acme/LFM2-700M", "acme/other"):
        shared.add_repo(name, tiny_model)
    found = check("acme/LFM2-35M", "ada/dcos")
    fixes = [problem["fix"] for problem in found["problems"]]
    assert fixes[0].startswith("Did you mean acme/LFM2-350M or acme/LFM2-700M?") and "ada/docs" in fixes[1]
    assert "acme/LFM2-350M" in check("LFM2-350M", "ada/docs")["codes"]["not_found"]["fix"]
    assert "Did you mean" not in check("zzz/quite-different", "ada/docs")["codes"]["not_found"]["fix"]


def model_folder(folder: Path, config: dict | None, tensors: dict[str, np.ndarray] | None, tokenizer: Any = None) -> Path:
    """A model's repository of these parts; any of them can be missing."""
    folder.mkdir()
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    if tensors is not None:
        save_file(tensors, folder / "model.safetensors")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def llama_tensors(hidden: int = 64, inner: int = 96, words: int = 512, packed: bool = False) -> dict[str, np.ndarray]:
    """One layer, in 16 bits or as bitsandbytes packs its linear weights."""
    tensors = {
        "model.embed_tokens.weight": np.zeros((words, hidden), np.float16),
        "model.norm.weight": np.zeros(hidden, np.float16),
    }
    shapes = {"self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (hidden // 2, hidden), "mlp.down_proj": (hidden, inner)}
    for name, (out, into) in shapes.items():
        weight = f"model.layers.0.{name}.weight"
        if packed:
            tensors[weight] = np.zeros((out * into // 2, 1), np.uint8)
            tensors[weight + ".absmax"] = np.zeros(out * into // 64, np.uint8)
            tensors[weight + ".quant_map"] = np.zeros(16, np.float32)
            tensors[weight + ".nested_absmax"] = np.zeros(3, np.float32)
            tensors[weight + ".quant_state.bitsandbytes__nf4"] = np.zeros(80, np.uint8)
        else:
            tensors[weight] = np.zeros((out, into), np.float16)
    return tensors


LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "vocab_size": 512}
LLAMA_PARAMETERS = 512 * 64 + 64 + 64 * 64 + 32 * 64 + 64 * 96
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_what_is_no_model_to_train_says_what_it_is(shared, check, tmp_path):
    def add(name: str, config: dict | None, tensors: dict | None = None, **files: bytes) -> None:
        folder = model_folder(tmp_path / name, config, tensors, make_tokenizer(CHATML))
        for file, content in files.items():
            (folder / file.replace("__", ".")).write_bytes(content)
        shared.add_repo(f"kinds/{name}", folder)

    add("Small-GGUF", LLAMA, model_Q4_K_M__gguf=b"GGUF")
    add("bare", None, llama_tensors())
    add("pickled", LLAMA, pytorch_model__bin=b"...")
    adapter = {"base_model_name_or_path": "ada/tiny", "peft_type": "LORA"}
    add("adapter", None, adapter_config__json=json.dumps(adapter).encode(), adapter_model__safetensors=b"...")
    add("bert", LLAMA | {"architectures": ["BertModel"]}, llama_tensors())
    add("masked", LLAMA | {"architectures": ["ModernBertForMaskedLM"]}, llama_tensors())
    add("judge", LLAMA | {"architectures": ["LlamaForSequenceClassification"]}, llama_tensors())
    add("t5", LLAMA | {"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}, llama_tensors())
    add("awq", LLAMA | {"quantization_config": {"quant_method": "awq"}}, llama_tensors())
    add("seeing", LLAMA | {"vision_config": {"hidden_size": 32}}, llama_tensors())
    add("fp8", LLAMA | {"quantization_config": {"quant_method": "fp8"}}, llama_tensors())
    add("own-code", LLAMA | {"model_type": "ownkind", "auto_map": {"AutoConfig": "own.Config"}}, llama_tensors())
    add("known-anyway", LLAMA | {"auto_map": {"AutoConfig": "own.Config"}}, llama_tensors())
    add("untyped", {"architectures": ["LlamaForCausalLM"], "hidden_size": 64}, llama_tensors())
    add("tomorrow", LLAMA | {"model_type": "lfm3"}, llama_tensors())
    add("painter", LLAMA | {"architectures": ["ViTModel"], "model_type": "vit"}, llama_tensors())
    found = {
        name: check(f"kinds/{name}", "ada/docs", "--sample", "20") for name in sorted(path.name for path in tmp_path.iterdir())
    }
    assert {name: (one["exit_code"], *one["codes"]) for name, one in found.items()} == {
        "Small-GGUF": (1, "gguf_only"),
        "adapter": (1, "bad_adapter"),
        "awq": (1, "quantized_model"),
        "bare": (1, "no_config"),
        "bert": (1, "not_a_decoder"),
        "fp8": (0, "prequantized"),
        "judge": (1, "not_a_decoder"),
        "known-anyway": (0,),
        "masked": (1, "not_a_decoder"),
        "own-code": (1, "remote_code"),
        "painter": (1, "not_a_decoder"),
        "pickled": (1, "no_safetensors"),
        "seeing": (0, "vision_model"),
        "t5": (1, "encoder_decoder"),
        "tomorrow": (1, "unknown_architecture"),
        "untyped": (1, "unknown_architecture"),
    }
    assert found["Small-GGUF"]["problems"][0]["fix"].endswith(": kinds/Small")
    assert "save_pretrained" in found["adapter"]["problems"][0]["fix"]


def test_parameters_are_counted_exactly_in_every_form(shared, check, tmp_path):
    tokenizer, words = make_tokenizer(CHATML), np.zeros((512, 64), np.float16)
    config = LLAMA | {"tie_word_embeddings": True}
    shared.add_repo("forms/tied", model_folder(tmp_path / "tied", config, llama_tensors(), tokenizer))
    twice = llama_tensors() | {"lm_head.weight": words}
    shared.add_repo("forms/tied-saved-twice", model_folder(tmp_path / "twice", config, twice, tokenizer))
    shared.add_repo("forms/untied", model_folder(tmp_path / "untied", LLAMA, twice, tokenizer))
    shared.add_repo("forms/packed", model_folder(tmp_path / "packed", LLAMA, llama_tensors(packed=True), tokenizer))
    sharded, whole = model_folder(tmp_path / "sharded", LLAMA, None, tokenizer), llama_tensors()
    index = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(whole)}
    for file in set(index.values()):
        save_file({name: whole[name] for name in whole if index[name] == file}, sharded / file)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    shared.add_repo("forms/sharded", sharded)

    found = {
        name: check(f"forms/{name}", "ada/docs", "--sample", "20")
        for name in ("tied", "tied-saved-twice", "untied", "packed", "sharded")
    }
    assert {name: one["model"]["parameters"] for name, one in found.items()} == {
        "tied": LLAMA_PARAMETERS,
        "tied-saved-twice": LLAMA_PARAMETERS,
        "untied": LLAMA_PARAMETERS + 512 * 64,
        "packed": LLAMA_PARAMETERS,
        "sharded": LLAMA_PARAMETERS,
    }
    assert check(str(sharded), "ada/docs")["model"]["parameters"] == LLAMA_PARAMETERS
    # k_proj's share of the LoRA: the true shapes, (32, 64) of (64, 64), (32, 64) and (64, 96)
    for name in ("tied", "packed"):
        part = check(f"forms/{name}", "ada/docs", "--target-modules", "k_proj", "--sample", "20")
        assert part["lora"]["coverage"] == pytest.approx(96 / (128 + 96 + 160), abs=1e-4)


MODEL_TYPES = """
import json
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
print(json.dumps([*{*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES} & {*CONFIG_MAPPING_NAMES}]))
"""


def test_what_the_job_s_older_transformers_lacks_is_known(training_python):
    here, job = (
        set(json.loads(subprocess.run([python, "-c", MODEL_TYPES], check=True, capture_output=True, text=True).stdout))
        for python in (sys.executable, training_python)
    )
    assert here - job == NOT_ON_THE_JOB
    assert job <= here


EXPERT = "model.layers.0.mlp.experts"


def expert_tensors(form: str, number: int = 4, hidden: int = 64, inner: int = 32) -> dict[str, np.ndarray]:
    """A mixture's experts, of three stored forms; each time number × (2 × inner × hidden + hidden × inner) weights."""
    if form == "apart":  # as Qwen3-MoE
        shapes = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
        return {
            f"{EXPERT}.{expert}.{name}.weight": np.zeros(shape, np.float16)
            for expert in range(number)
            for name, shape in shapes.items()
        }
    if form == "stacked":  # as gpt-oss in 16 bits
        return {
            f"{EXPERT}.gate_up_proj": np.zeros((number, hidden, 2 * inner), np.float16),
            f"{EXPERT}.down_proj": np.zeros((number, inner, hidden), np.float16),
        }
    blocks = {"gate_up_proj": (number, 2 * inner, hidden // 32), "down_proj": (number, hidden, inner // 32)}
    return {f"{EXPERT}.{name}_blocks": np.zeros((*shape, 16), np.uint8) for name, shape in blocks.items()} | {
        f"{EXPERT}.{name}_scales": np.zeros(shape, np.uint8) for name, shape in blocks.items()
    }


@pytest.mark.parametrize("form", ["apart", "stacked", "mxfp4"])
def test_experts_are_counted_and_known_to_get_no_adapter(shared, check, tmp_path, form):
    tensors = llama_tensors() | expert_tensors(form)
    del tensors["model.layers.0.mlp.down_proj.weight"]
    folder = model_folder(tmp_path / form, LLAMA, tensors, make_tokenizer(CHATML))
    shared.add_repo(f"experts/{form}", folder)
    found = check(f"experts/{form}", "ada/docs", "--sample", "20")
    attention, experts = 64 * 64 + 32 * 64, 4 * 3 * 32 * 64
    assert found["model"]["parameters"] == 512 * 64 + 64 + attention + experts
    assert found["lora"]["target_modules"] == ["k_proj", "q_proj"]
    assert found["lora"]["linear_share"] == pytest.approx(attention / (attention + experts), abs=1e-4)
    lora = 4 * (3 * 96 if form == "apart" else 128 + 96)  # gate and up in one tensor share their input's half
    assert found["lora"]["coverage"] == pytest.approx((128 + 96) / (128 + 96 + lora), abs=1e-4)
    assert list(found["codes"]) == ["experts_not_adapted"]
    # As on the job, whose transformers stacks the experts whatever their file says.
    assert "unknown_target" in check(f"experts/{form}", "ada/docs", "--target-modules", "up_proj")["codes"]


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 4096}, 4096),
        ({"n_positions": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 8192}}, 8192),
        (
            {"max_position_embeddings": 131072, "rope_scaling": {"factor": 8.0, "original_max_position_embeddings": 8192}},
            131072,
        ),
        (
            {"max_position_embeddings": 32768, "rope_parameters": {"factor": 4.0, "original_max_position_embeddings": 32768}},
            131072,
        ),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, None),
    ],
)
def test_the_context_length_is_what_the_configuration_turns_on(config, length):
    assert Model("any", None, "Any", config, False, {}).context_length == length


def test_rows_beyond_the_context_are_told_and_a_high_limit_alone_is_not(shared, check, tmp_path):
    rows = [chat("word " * (20 if number % 2 else 200), f"Yes, {number}.") for number in range(60)]
    shared.add_repo("data/wordy", write_rows(tmp_path, {"train.jsonl": rows}), type="dataset")
    problem = check("ada/tiny", "data/wordy", "--max-length", "4096")["codes"]["over_context"]
    assert "30 of 60 rows" in problem["message"] and "--max-seq-length 512" in problem["fix"]
    assert "over_context" not in check("ada/tiny", "ada/docs", "--max-length", "4096")["codes"]


def test_a_model_needs_a_tokenizer_and_for_chats_a_template(shared, check, tmp_path):
    shared.add_repo("kinds/mute", model_folder(tmp_path / "mute", LLAMA, llama_tensors()))
    shared.add_repo("kinds/base", model_folder(tmp_path / "base", LLAMA, llama_tensors(), make_tokenizer(None)))
    assert "no_tokenizer" in check("kinds/mute", "ada/docs")["codes"]
    assert "no_chat_template" in check("kinds/base", "ada/docs")["codes"]


def card(info: dict) -> str:
    return f"---\n{json.dumps({'dataset_info': info})}\n---\n"


def test_data_that_cannot_be_learned_says_why(shared, check, tmp_path):
    long = [chat("How?", "word " * 200 + str(number)) for number in range(60)]
    pixel = b"\x89PNG\r\n\x1a\n"  # whatever follows, it is taken for a picture by its name
    kinds = {
        "photographs": {},
        "preferences": {"train.jsonl": [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 60},
        "pictures": {"train.jsonl": [{"image": "a.png", "label": 3}] * 60},
        "empty": {"train.jsonl": []},
        "silent": {"train.jsonl": [chat(f"What is {number}?", " ") for number in range(60)]},
        "broken": {"train.jsonl": [chat("a", "b")] * 60},
        "two": {"english/train.jsonl": long, "german/train.jsonl": long},
        "three": {"train.jsonl": [chat(f"What is {number}?", "A number.") for number in range(3)]},
        "long": {"train.jsonl": long},
        "gated": {"train.jsonl": long},
        "private": {"train.jsonl": long},
    }
    for name, files in kinds.items():
        folder = write_rows(tmp_path / name, files)
        if name == "photographs":
            folder.mkdir()
            for number in range(3):
                (folder / f"{number}.png").write_bytes(pixel)
        if name == "two":
            configs = [{"config_name": one, "data_files": f"{one}/*.jsonl"} for one in ("english", "german")]
            (folder / "README.md").write_text(f"---\n{json.dumps({'configs': configs})}\n---\n")
        if name == "broken":
            with (folder / "train.jsonl").open("a") as file:
                file.write('{"messages": [{"role": "user", "content"\n')
        shared.add_repo(f"data/{name}", folder, type="dataset")
    shared.store.repos["dataset", "data/gated"].gated = "manual"
    shared.store.repos["dataset", "data/private"].private = True
    found = {name: check("ada/tiny", f"data/{name}", "--max-length", "64") for name in kinds}
    assert {name: (one["exit_code"], *one["codes"]) for name, one in found.items()} == {
        "photographs": (1, "unknown_columns"),
        "preferences": (1, "preference_data"),
        "pictures": (1, "unknown_columns"),
        "empty": (1, "dataset_unreadable"),
        "silent": (1, "nothing_supervised"),
        "broken": (1, "dataset_unreadable"),
        "two": (1, "config_needed"),
        "three": (0, "few_rows"),
        "long": (0, "no_eos"),
        "gated": (1, "gated"),
        "private": (1, "not_found"),
    }
    assert "only text can be learned" in found["pictures"]["problems"][0]["message"]
    assert "only text can be learned" in found["photographs"]["problems"][0]["message"]
    assert "60 × no answer" in found["silent"]["problems"][0]["message"]
    assert "--dataset-config english" in found["two"]["problems"][0]["fix"]
    assert "hf auth login" in found["private"]["problems"][0]["fix"]


def test_columns_of_json_are_read_from_the_hub_as_the_job_reads_them(shared, check, tmp_path):
    """datasets gives columns whose rows differ a type of their own, and hands them out as text where decoding is off."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    turns = [{"weight": 1}, {"name": "kim"}, {"reasoning_content": "t"}, {"tool_calls": [call]}]
    rows = [chat(f"What is {number}?", "A number.") for number in range(60)]
    for number, row in enumerate(rows):
        row["messages"][1] |= turns[number % 4]
    shared.add_repo("data/mixed", write_rows(tmp_path, {"train.jsonl": rows}), type="dataset")
    found = check("ada/tiny", "data/mixed")
    # The tiny model's template renders no calls: where they were text, they would not be seen as such.
    assert (found["exit_code"], found["mask"]["rows_without_answer"]) == (0, 15)
    assert "15 × the chat template does not render its tool calls" in found["codes"]["rows_lost"]["message"]
    assert found["mask"]["calls_not_rendered_rows"] == 15
    assert "In 15 of 60 rows" in found["codes"]["calls_not_rendered"]["message"]


def test_rows_with_pictures_among_others_are_counted_and_refused_where_they_are_most(shared, check, tmp_path):
    seen = chat("What is this?", "A number.")
    seen["messages"][0]["content"] = [{"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "text", "text": "What?"}]
    others = [chat(f"What is {number}?", "A number.") for number in range(60)]
    write_rows(
        tmp_path,
        {
            "one.jsonl": [*others, seen],
            "some.jsonl": [*others[:20], *[seen] * 20, *others],
            "most.jsonl": [*others[:20], *[seen] * 40],
        },
    )
    one, some, most = (
        check("ada/tiny", str(tmp_path / name), "--sample", "61") for name in ("one.jsonl", "some.jsonl", "most.jsonl")
    )
    assert (one["exit_code"], one["codes"]["picture_rows"]["severity"]) == (0, "warning")
    assert "1 of 61 rows hold pictures" in one["codes"]["picture_rows"]["message"]
    assert (some["exit_code"], some["mask"]["rows_without_answer"]) == (0, 20)
    assert "20 of 61 rows (about 33 of all 100) hold pictures" in some["codes"]["picture_rows"]["message"]
    assert (most["exit_code"], most["codes"]["picture_rows"]["severity"]) == (1, "error")
    assert (
        "40 of 60 rows hold pictures" in most["codes"]["picture_rows"]["message"]
        and "20 of 60 remain" in most["codes"]["picture_rows"]["message"]
    )


def test_a_file_here_is_read_to_its_end_and_what_is_wrong_in_it_is_found(check, tmp_path):
    rows = "".join(json.dumps(chat(f"What is {number}?", "A number.")) + "\n" for number in range(60_000))
    (tmp_path / "rows.jsonl").write_text(rows + '{"messages": [')
    found = check("ada/tiny", str(tmp_path / "rows.jsonl"))
    assert (found["exit_code"], list(found["codes"])) == (1, ["dataset_unreadable"])
    assert "Line 60,001 of rows.jsonl" in found["problems"][0]["message"]
    (tmp_path / "rows.jsonl").write_text(rows)
    assert check("ada/tiny", str(tmp_path / "rows.jsonl"))["dataset"]["rows"] == 60_000
    (tmp_path / "rows.jsonl").write_text("null\n")
    assert "is null" in check("ada/tiny", str(tmp_path / "rows.jsonl"))["codes"]["dataset_unreadable"]["message"]


def test_a_line_on_the_hub_over_which_a_library_would_end_is_named(shared, check, tmp_path):
    """`null` ends pyarrow without a word; a line of 100 MB would take many times its size."""
    (tmp_path / "rows").mkdir()
    line = json.dumps(chat("What is one?", "A number.")) + "\n"
    contents = {
        "null": "null\n" + line,
        "later": line * 3 + "null\n" + line,
        "huge": line + '{"text": "' + "x" * 10**8 + '"}\n',
    }
    for name, content in contents.items():
        (tmp_path / "rows" / "train.jsonl").write_text(content)
        shared.add_repo(f"lines/{name}", tmp_path / "rows", type="dataset")
    found = {name: check("ada/tiny", f"lines/{name}") for name in contents}
    assert {name: (one["exit_code"], list(one["codes"])) for name, one in found.items()} == dict.fromkeys(
        contents, (1, ["dataset_unreadable"])
    )
    messages = {name: one["problems"][0]["message"] for name, one in found.items()}
    assert messages["null"].startswith("Line 1 of train.jsonl is null")
    assert messages["later"].startswith("Line 4 of train.jsonl is null")
    assert messages["huge"].startswith("Line 2 of train.jsonl is longer than 5 MB")
    assert all(one["held"] < 2e9 for one in found.values())


def test_rows_that_teach_something_else_than_their_owner_thinks_are_told(shared, check, tmp_path):
    numbers = range(60)
    preferences = [chat(f"What is {number}?", "A number.") | {"chosen": "a", "rejected": "b"} for number in numbers]
    seen = [{"image": "a.png", "question": f"What is {number}?", "answer": "A number."} for number in numbers]
    kinds = {
        "handbook.jsonl": [{"text": f"Chapter {number}. How to do things."} for number in numbers],
        "rendered.jsonl": [{"text": f"<|im_start|>user\nWhat is {number}?<|im_end|>"} for number in numbers],
        "preferences.jsonl": preferences,
        "seen.jsonl": seen,
        "turns.jsonl": [{"prompt": f"What is {n}?", "chosen": chat("a", "b")["messages"], "rejected": "c"} for n in numbers],
        "objects.jsonl": [chat(f"What is {number}?", {"kind": "number", "none": None}) for number in numbers],  # type: ignore[arg-type]
        "judged.jsonl": [{"prompt": f"What is {n}?", "completion": f"It is {n}.", "label": n % 2 == 0} for n in numbers],
        "preferred.jsonl": [
            {
                "input": {"messages": chat(f"What is {number}?", "")["messages"][:1]},
                "preferred_output": chat("", "A number.")["messages"][1:],
                "non_preferred_output": chat("", "No.")["messages"][1:],
            }
            for number in numbers
        ],
        "fields.jsonl": [{"question": f"What is {number}?", "answer": {"kind": "number"}} for number in numbers],
    }
    write_rows(tmp_path, kinds)
    latin = "question;answer\n" + "".join(f"Welche Größe, {number}?;Das reicht für {number}.\n" for number in numbers)
    (tmp_path / "latin.csv").write_bytes(latin.encode("cp1252"))
    (tmp_path / "numbers.csv").write_text("question,answer\n" + "".join(f"What is {number}?,{number}\n" for number in numbers))
    lines = [f"What is {number}?,A number\n" for number in numbers]
    (tmp_path / "open.csv").write_text("question,answer\n" + '"' + "".join(lines[:9]) + 'How?",Thus\n' + "".join(lines))

    def codes(name: str, *words: str) -> tuple[int, list[str]]:
        found = check("ada/tiny", str(tmp_path / name), *words)
        return found["exit_code"], list(found["codes"])

    named = ["--prompt-column", "question", "--completion-column", "answer"]
    assert codes("handbook.jsonl") == (0, ["raw_text"])
    assert codes("rendered.jsonl") == (0, [])
    assert codes("preferences.jsonl") == (0, ["preference_data"])
    assert codes("seen.jsonl") == (1, ["unknown_columns"])
    assert codes("seen.jsonl", *named) == (0, [])
    assert codes("turns.jsonl") == (1, ["preference_data"])
    assert codes("turns.jsonl", "--prompt-column", "prompt", "--completion-column", "chosen") == (0, ["preference_data"])
    assert codes("fields.jsonl") == (0, ["answers_as_json"])
    assert codes("preferred.jsonl") == (1, ["preference_data"])
    assert codes("preferred.jsonl", "--prompt-column", "input", "--completion-column", "preferred_output") == (
        0,
        ["preference_data"],
    )
    assert codes("objects.jsonl") == (0, ["answers_as_json"])
    assert codes("judged.jsonl") == (0, ["preference_data"])
    assert codes("latin.csv") == (0, ["encoding_guessed"])
    guessed = check("ada/tiny", str(tmp_path / "latin.csv"))
    assert "Größe, für" in guessed["codes"]["encoding_guessed"]["message"]
    assert guessed["dataset"]["read_as"] == {"encoding": "cp1252", "delimiter": ";"}
    assert codes("numbers.csv") == (0, [])
    assert codes("open.csv") == (0, ["rows_swallowed"])


PAGE = "<html><body>Please log in.</body></html>"


@pytest.mark.parametrize(
    ("place", "headers", "code"),
    [
        ("train.jsonl$", {}, "hub_unreachable"),
        ("train.jsonl$", {"Content-Type": "text/html"}, "hub_unreachable"),
        ("README.md$", {}, "hub_garbled"),
        ("/tree/", {}, "hub_garbled"),
    ],
)
def test_a_page_in_the_place_of_data_is_a_fault_of_the_hub(shared, check, tmp_path, place, headers, code):
    name = f"data/paged-{len(shared.store.repos)}"  # one that nothing is cached of
    rows = [chat(f"What is {number}?", "A number.") for number in range(500)]
    folder = write_rows(tmp_path, {"train.jsonl": rows})
    (folder / "README.md").write_text("# A card without metadata\n")
    shared.add_repo(name, folder, type="dataset")
    shared.journal.clear()
    shared.faults.add(path=f"{name}.*{place}", status=200, body=PAGE, headers=headers)
    found = check("ada/tiny", name, "--sample", "5")
    shared.faults.clear()
    assert (found["exit_code"], *found["codes"]) == (4, code)
    assert len(shared.journal.requests()) < 60
    again = check("ada/tiny", name, "--sample", "5")
    assert again["exit_code"] == 0
    assert "Repo card metadata" not in found["stderr"] + again["stderr"]


def test_a_cache_that_cannot_be_used_is_named(hub, tmp_path, tiny_model):
    (tmp_path / "file").touch()
    commands = Commands(hub.env(token=ADA) | {"HF_HOME": str(tmp_path / "file")}, tmp_path)
    done = commands.run("check.py", str(tiny_model), "ada/docs", code=1)
    assert "cache_unwritable" in done.stderr and "export HF_HOME=" in done.stderr


def test_what_is_missing_does_not_hide_what_is_there(check):
    model_only, data_only = check("ada/tiny", "ada/dogs"), check("ada/tinny", "ada/docs", "--dataset-split", "train")
    assert (model_only["dataset"], model_only["lora"]["coverage"]) == (None, 1.0)
    assert (data_only["model"], data_only["tokens"], data_only["mask"]) == (None, None, None)
    assert (data_only["dataset"]["rows"], data_only["dataset"]["format"]) == (320, "messages")
    assert check("ada/tinny", "ada/docs", "--dataset-split", "trian")["codes"].keys() == {"not_found", "unknown_split"}


def test_the_part_that_was_chosen_and_the_columns_that_are_left_are_told(shared, check, tmp_path):
    rows = [{"id": number, "question": f"What is {number}?", "answer": "A number.", "source": "me"} for number in range(60)]
    folder = write_rows(tmp_path, {"english/test.jsonl": rows})
    files = [{"split": "test", "path": "english/*"}]
    configs = [{"config_name": "english", "data_files": files}]
    (folder / "README.md").write_text(f"---\n{json.dumps({'configs': configs})}\n---\n")
    shared.add_repo("data/chosen", folder, type="dataset")
    found = check("ada/tiny", "data/chosen")["dataset"]
    assert (found["config"], found["split"], found["unused"]) == ("english", "test", ["id", "source"])
    assert found["bytes"] == (folder / "english" / "test.jsonl").stat().st_size
    local = check("ada/tiny", str(folder / "english" / "test.jsonl"))["dataset"]
    assert (local["config"], local["split"], local["bytes"]) == (None, None, found["bytes"])


def test_the_total_has_an_interval_that_holds_it_and_sorted_rows_are_told(shared, check, tmp_path):
    lengths = [1 + 7 * number % 97 for number in range(400)]
    for name, order in (("mixed", lengths), ("sorted", sorted(lengths))):
        rows = [chat("word " * length, f"Number {number}.") for number, length in enumerate(order)]
        shared.add_repo(f"data/{name}", write_rows(tmp_path / name, {"train.jsonl": rows}), type="dataset")
    mixed, sort = (check("ada/tiny", f"data/{name}", "--sample", "100") for name in ("mixed", "sorted"))
    every = check("ada/tiny", "data/sorted", "--sample", "400")
    true = every["tokens"]["total"]
    assert every["tokens"]["total_low"] == true == every["tokens"]["total_high"]
    assert mixed["tokens"]["total_low"] < true < mixed["tokens"]["total_high"] < 1.3 * true
    assert [list(one["codes"]) for one in (mixed, sort, every)] == [[], ["rows_sorted"], []]
    assert "--sample 400" in sort["codes"]["rows_sorted"]["fix"]


def test_the_length_that_keeps_the_answers_is_told_and_keeps_them(shared, check, tmp_path):
    rows = [chat("word " * number, f"Yes, {number}.") for number in range(1, 101)]
    shared.add_repo("data/growing", write_rows(tmp_path, {"train.jsonl": rows}), type="dataset")
    assert check("ada/tiny", "data/growing", "--max-length", "8")["codes"]["nothing_supervised"]
    short = check("ada/tiny", "data/growing", "--max-length", "100")
    problem, mask = short["codes"]["rows_lost"], short["mask"]
    assert "answer cut away" in problem["message"]
    assert f"--max-seq-length {mask['length_for_all']}" in problem["fix"]
    most = check("ada/tiny", "data/growing", "--max-length", str(mask["length_for_95"]))["mask"]
    every = check("ada/tiny", "data/growing", "--max-length", str(mask["length_for_all"]))
    less = check("ada/tiny", "data/growing", "--max-length", str(mask["length_for_all"] - 1))["mask"]
    assert 0 < most["rows_without_answer"] <= 5
    assert (every["mask"]["rows_without_answer"], every["mask"]["eos_supervised_fraction"], every["codes"]) == (0, 1.0, {})
    assert less["eos_supervised_fraction"] == 0.99


def test_rows_that_repeat_are_counted(shared, check, tmp_path):
    rows = [chat(f"What is {number}?", "A number.") for number in range(90)]
    shared.add_repo("data/some", write_rows(tmp_path / "a", {"train.jsonl": rows + rows[:4]}), type="dataset")
    shared.add_repo("data/many", write_rows(tmp_path / "b", {"train.jsonl": rows + rows[:10]}), type="dataset")
    some, many = (check("ada/tiny", f"data/{name}") for name in ("some", "many"))
    assert (some["dataset"]["duplicates"], list(some["codes"])) == (4, [])
    assert (many["dataset"]["duplicates"], list(many["codes"])) == (10, ["duplicates"])


def test_rows_are_counted_by_the_best_source_there_is_and_only_the_sample_is_read(shared, check, tmp_path):
    lines = [chat(f"What is {number:05}?", "A number.") for number in range(400)]
    files = {f"data/train-{part:05}-of-00010.jsonl": lines for part in range(10)}
    split = {"name": "train", "num_examples": 40_000_000, "num_bytes": 1}
    huge = write_rows(tmp_path / "huge", files)
    (huge / "README.md").write_text(card({"splits": [split]}))
    shared.add_repo("data/huge", huge, type="dataset")
    shared.add_repo("data/plain", write_rows(tmp_path / "plain", files), type="dataset")

    def counted(name: str, *words: str) -> tuple[int | None, str | None]:
        dataset = check("ada/tiny", name, *words)["dataset"]
        return dataset["rows"], dataset["rows_source"]

    shared.journal.clear()
    assert counted("data/huge", "--sample", "20") == (40_000_000, "metadata")
    read = {record.path for record in shared.journal.requests("GET", r"datasets/data/huge/resolve/.*\.jsonl")}
    assert read and all("train-00000" in path for path in read)
    assert not shared.journal.requests(path="/viewer")
    assert counted("data/plain", "--sample", "20") == (4000, "viewer")
    many = {"config": "default", "split": "train", "num_rows": 90_000, "estimated_num_rows": 40_000_000}
    shared.faults.add(path="/viewer/size", status=200, body={"size": {"splits": [many]}, "partial": True})
    assert counted("data/plain", "--sample", "20") == (40_000_000, "estimated")
    shared.faults.clear()
    shared.faults.add(path="/viewer", status=500)
    try:
        assert counted("data/plain", "--sample", "20") == (4000, "estimated")
        assert counted("ada/docs", "--sample", "20")[0] == pytest.approx(320, rel=0.2)
        assert counted("ada/docs", "--sample", "320") == (320, "counted")
        assert counted(str(tmp_path / "plain" / "data" / "train-00000-of-00010.jsonl"), "--sample", "20") == (400, "counted")
    finally:
        shared.faults.clear()


FAULTS = {
    "down": ({"drop": "before"}, "hub_unreachable"),
    "slow": ({"delay": 4}, "hub_unreachable"),
    "busy": ({"status": 429, "headers": {"Retry-After": "3600"}}, "rate_limited"),
    "broken": ({"status": 500}, "hub_error"),
    "refused": ({"status": 401, "body": {"error": "Invalid credentials in Authorization header"}}, "bad_token"),
    "forbidden": ({"status": 403, "body": {"error": "Not with this token"}}, "forbidden"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_hub_that_does_not_answer_ends_the_check_in_seconds_and_says_so(shared, check, fault):
    what, code = FAULTS[fault]
    for place in ("/api/whoami", "/api/models/ada/tiny", "/api/datasets/ada/docs", "ada/docs/resolve/.*jsonl"):
        shared.faults.add(path=place, **what)
        shared.journal.clear()
        found = check("ada/tiny", "ada/docs", "--sample", "5")
        shared.faults.clear()
        assert (found["exit_code"], *found["codes"]) == (4, code), place
        assert len(shared.journal.requests(path=place)) < 10  # each is waited for for 2 s, here, and 10 s elsewhere


THINKING = CHATML.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] if not loop.last else m.content }}")


def test_what_the_chat_template_drops_and_rows_that_never_stop_are_told(shared, check, tmp_path):
    thought = [
        *chat("What is 2?", "<think>easy</think>Two.")["messages"],
        *chat("And 3?", "<think>hm</think>Three.")["messages"],
    ]
    rows = {"train.jsonl": [{"messages": thought}] + [chat(f"What is {number}?", "A number.") for number in range(60)]}
    shared.add_repo("data/thoughts", write_rows(tmp_path / "rows", rows), type="dataset")
    templates = {
        "forgets": THINKING,
        "keeps": CHATML,
        "endless": CHATML.replace("<|im_end|>", "").replace("<|im_start|>", "## "),
    }
    for name, template in templates.items():
        tokenizer = make_tokenizer(template)
        if name == "endless":
            tokenizer.eos_token = None
        shared.add_repo(f"masks/{name}", model_folder(tmp_path / name, LLAMA, llama_tensors(), tokenizer))
    found = {name: check(f"masks/{name}", "data/thoughts") for name in templates}
    assert {name: list(one["codes"]) for name, one in found.items()} == {
        "forgets": ["answers_changed"],
        "keeps": [],
        "endless": ["no_eos"],
    }
    assert found["forgets"]["mask"]["changed_rows"] == 1
    assert "<think>easy</think>Two." in found["forgets"]["codes"]["answers_changed"]["message"]
    assert [one["mask"]["eos_supervised_fraction"] for one in found.values()] == [1.0, 1.0, 0.0]


# ---- what people read


def test_a_hub_in_trouble_is_no_verdict_on_the_run(hub, commands):
    hub.faults.add(path="^/api/models/ada/tiny$", status=503)
    said = commands.run("check.py", "ada/tiny", "ada/docs", code=4)
    assert "Could not be checked:" in said.stdout and "Not sound" not in said.stdout
    hub.faults.clear()
    assert "Not sound:" in commands.run("check.py", "ada/nothing", "ada/docs", code=1).stdout


def test_a_long_row_is_shown_without_its_middle(hub, commands, tmp_path):
    row = chat("FIRST " + "question " * 2000, "answer " * 50 + "LAST")
    write_rows(tmp_path, {"long.jsonl": [row] * 3})
    shown = commands.run("check.py", "ada/tiny", "long.jsonl", "--max-length", "30000").stdout
    row = shown.partition("its loss mask")[2]
    assert len(row) < 2500 and "FIRST" in row and "LAST<|im_end|>⟧" in row and " characters …]" in row
    whole = commands.json("check.py", "ada/tiny", "long.jsonl", "--max-length", "30000")["mask"]["sample"]
    assert sum(len(part["text"]) for part in whole) > 18_000


def test_a_card_without_metadata_is_nothing_to_tell(hub, commands, tmp_path):
    write_rows(tmp_path / "bare", {"train.jsonl": [chat("q", "a")] * 60})
    (tmp_path / "bare" / "README.md").write_text("# No metadata here\n")
    hub.add_repo("ada/bare", tmp_path / "bare", type="dataset")
    assert "metadata" not in commands.run("check.py", "ada/tiny", "ada/bare").stderr


PARTS = [{"text": "a" * 1500, "learned": False}, {"text": "b" * 600, "learned": True}, {"text": "c" * 4000, "learned": False}]


@pytest.mark.parametrize("segments", [PARTS, PARTS[::-1], PARTS[:2], PARTS[2:], PARTS[1:2]])
def test_what_is_left_out_of_a_row_is_counted(segments):
    import check as command

    made = command.shortened(segments)
    whole, kept = ("".join(part["text"] for part in parts) for parts in (segments, made))
    if len(whole) <= command.ROW_CHARS:
        assert made == segments
        return
    head, _, tail = kept.partition(f"\n[… {len(whole) - command.ROW_CHARS:,} characters …]\n")
    assert len(head + tail) == command.ROW_CHARS and whole.startswith(head) and whole.endswith(tail)


SECRET = "hf_" + "aB3" * 12  # by its shape alone


def test_calls_that_no_template_renders_and_secrets_in_rows_are_told(shared, check, tmp_path):
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
    turns = [
        *chat("What is 2+2?", "")["messages"][:1],
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "Four."},
    ]
    # As a text, since rows of turns with different keys are read by others' rules.
    rows = [{"messages": json.dumps(turns)}] + [{"messages": json.dumps(chat("Who?", f"I{n}.")["messages"])} for n in range(60)]
    rows.append({"messages": json.dumps(chat("My token?", f"It is {SECRET}.")["messages"])})
    shared.add_repo("data/calls", write_rows(tmp_path / "calls", {"train.jsonl": rows}), type="dataset")
    shared.add_repo("masks/chatml", model_folder(tmp_path / "model", LLAMA, llama_tensors(), make_tokenizer(CHATML)))
    found = check("masks/chatml", "data/calls")
    assert found["ok"] and list(found["codes"]) == ["calls_not_rendered", "secret_in_rows"]
    assert (
        found["mask"]["calls_not_rendered_rows"] == 1
        and "1 of the first 62 rows" in found["codes"]["secret_in_rows"]["message"]
    )


def test_the_digest_is_what_the_template_makes_of_the_same_rows(shared, check, tmp_path):
    rows = [chat(f"What is {number}?", "A number.") for number in range(60)]
    folder = write_rows(tmp_path / "rows", {"train.jsonl": rows})
    shared.add_repo("masks/same", model_folder(tmp_path / "same", LLAMA, llama_tensors(), make_tokenizer(CHATML)))
    seen = {count: check("masks/same", str(folder / "train.jsonl"), "--sample", count)["mask"] for count in ("3", "9", "500")}
    renderer = sft.make_renderer(make_tokenizer(CHATML), sft.Format("messages", {}))
    expected = sft.digest_of(renderer, sft.Format("messages", {"messages": "messages"}), rows)
    assert {count: mask["digest"] for count, mask in seen.items()} == {"3": None, "9": expected, "500": expected}


def test_a_row_is_shown_on_a_screen_without_its_secrets(tmp_path, tiny_model):
    long = f"It begins, {SECRET}, " + "and goes on, " * 2000 + "and ends."
    write_rows(tmp_path, {"rows.jsonl": [chat("Why?", long)] * 60})
    commands = Commands({"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}, tmp_path)
    words = ("check.py", str(tiny_model), "rows.jsonl", "--where", "local", "--max-length", "100000")
    shown = commands.run(*words).stdout
    assert "It begins" in shown and "and ends." in shown and " characters …]" in shown and len(shown) < 5000
    assert SECRET not in shown
    segments = commands.json(*words)["mask"]["sample"]
    assert sum(len(part["text"]) for part in segments) > 20_000 and SECRET not in str(segments)
