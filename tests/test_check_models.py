"""check.py on models: what is none to train, how its parameters and experts are counted, how long its context is."""

# ruff: noqa: F811 (fixtures are those of test_check.py)

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import make_tokenizer
from safetensors.numpy import save_file
from test_check import CHATML, LLAMA, chat, check, llama_tensors, model_folder, shared, write_rows  # noqa: F401
from unsloth_jobs.lookup.checks import NOT_ON_THE_JOB
from unsloth_jobs.lookup.model_info import Model

LLAMA_PARAMETERS = 512 * 64 + 64 + 64 * 64 + 32 * 64 + 64 * 96


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
