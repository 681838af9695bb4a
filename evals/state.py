"""What an eval starts with: models, data sets and earlier runs on the test Hub, and the skill in a home folder."""

from __future__ import annotations

import functools
import json
import math
import shutil
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tiny_model
from hub import Hub, Organization
from hub.jobs import TERMINAL_STAGES

USER, TOKEN = "ada", "hf_FAKEadaFAKEadaFAKE"
SKILLS = (".agents/skills/unsloth-jobs", ".claude/skills/unsloth-jobs")  # Codex and OpenCode; Claude Code
NOT_OF_THE_SKILL = shutil.ignore_patterns(".*", "tests", "evals", "demo", "__pycache__")
ROWS = [json.loads(line)["messages"] for line in tiny_model.ROWS.read_text("utf-8").splitlines()]

# The shapes of published models: what check.py and estimate.py see of them is as on the Hub, and their weights are nowhere.
MODELS: dict[str, dict[str, Any]] = {
    "LiquidAI/LFM2.5-1.2B-Instruct": {
        "architectures": ["Lfm2ForCausalLM"],
        "model_type": "lfm2",
        "vocab_size": 65536,
        "hidden_size": 2048,
        "intermediate_size": 12288,
        "block_auto_adjust_ff_dim": True,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "conv_L_cache": 3,
        "layer_types": ["full_attention" if kind == "A" else "conv" for kind in "ccAccAccAcAcAcAc"],
        "max_position_embeddings": 128000,
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen2.5-72B-Instruct": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": 152064,
        "hidden_size": 8192,
        "intermediate_size": 29568,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
    },
    "google/gemma-3-1b-it": {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "vocab_size": 262144,
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "num_hidden_layers": 26,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
    },
}


# ---- repositories


def shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors that transformers makes for a configuration of MODELS."""
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    size = config.get("head_dim", hidden // heads)
    queries, keys = heads * size, config["num_key_value_heads"] * size
    lfm2 = config["model_type"] == "lfm2"
    inner = inner * 2 // 3 if lfm2 else inner
    up, down, out = (["w1", "w3"], "w2", "out_proj") if lfm2 else (["gate_proj", "up_proj"], "down_proj", "o_proj")
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (config["vocab_size"], hidden)
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        if lfm2 and config["layer_types"][number] == "conv":
            yield f"{layer}.conv.in_proj.weight", (3 * hidden, hidden)
            yield f"{layer}.conv.conv.weight", (hidden, 1, config["conv_L_cache"])
            yield f"{layer}.conv.out_proj.weight", (hidden, hidden)
        else:
            for name, width in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
                yield f"{layer}.self_attn.{name}.weight", (width, hidden)
            yield f"{layer}.self_attn.{out}.weight", (hidden, queries)
        for name in up:
            yield f"{layer}.{'feed_forward' if lfm2 else 'mlp'}.{name}.weight", (inner, hidden)
        yield f"{layer}.{'feed_forward' if lfm2 else 'mlp'}.{down}.weight", (hidden, inner)


def safetensors_header(tensors: Iterator[tuple[str, tuple[int, ...]]]) -> bytes:
    """The beginning of a safetensors file: all that is read of it before a training."""
    header, end = {}, 0
    for name, shape in tensors:
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text


@functools.cache
def tokenizer() -> Any:
    return tiny_model.make_tokenizer()


def write_model(folder: Path, name: str) -> None:
    tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(MODELS[name]), "utf-8")
    (folder / "model.safetensors").write_bytes(safetensors_header(shapes(MODELS[name])))


def write_adapter(folder: Path, base_model: str) -> None:
    """What templates/sft.py leaves in its output repository, as far as another command reads it."""
    folder.mkdir()
    adapter = {"base_model_name_or_path": base_model, "peft_type": "LORA", "r": 16, "lora_alpha": 32}
    (folder / "adapter_config.json").write_text(json.dumps(adapter), "utf-8")
    (folder / "adapter_model.safetensors").write_bytes(safetensors_header(iter(())))


def fine_tome() -> list[dict[str, Any]]:
    """2,400 conversations of two questions in FineTome's columns."""
    names = {"user": "human", "assistant": "gpt"}

    def turns(number: int) -> list[dict[str, str]]:
        chosen = ROWS[number % len(ROWS)] + ROWS[(number * 7 + number // len(ROWS) + 1) % len(ROWS)]
        return [{"from": names[turn["role"]], "value": turn["content"]} for turn in chosen]

    return [{"conversations": turns(number), "source": "docs", "score": 5.0} for number in range(2400)]


def long_answers() -> list[dict[str, Any]]:
    """400 rows; in every fourth one the question alone is longer than 2,048 tokens, so that its answer is cut away."""

    def row(number: int) -> dict[str, Any]:
        question, answer = (turn["content"] for turn in ROWS[number % len(ROWS)])
        pages = (
            [turn["content"] for other in range(60) for turn in ROWS[(number + other) % len(ROWS)]] if number % 4 == 0 else []
        )
        return {"prompt": "\n".join([f"Note {number}.", *pages, question]), "completion": answer}

    return [row(number) for number in range(400)]


DATASETS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "mlabonne/FineTome-100k": fine_tome,
    "ada/long-answers": long_answers,
}


def write_dataset(folder: Path, name: str) -> None:
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in DATASETS[name]()), "utf-8")


class Library:
    """Models and data sets as folders, made when first asked for."""

    def __init__(self, root: Path):
        self.root, self.lock = root, threading.Lock()

    def folder(self, kind: str, name: str) -> Path:
        path = self.root / kind / name
        with self.lock:
            if not path.exists():
                {"models": write_model, "datasets": write_dataset}[kind](path, name)
        return path


# ---- the Hub


def fill(hub: Hub, state: dict[str, Any], library: Library) -> None:
    """What the Hub holds from the beginning on."""
    join(hub, state, role="write")
    for name in state.get("models", ()):
        hub.add_repo(name, library.folder("models", name))
    for name in state.get("datasets", ()):
        hub.add_repo(name, library.folder("datasets", name), type="dataset")
    for name, base_model in state.get("adapters", {}).items():
        folder = hub.root / name.replace("/", "--")
        write_adapter(folder, base_model)
        hub.add_repo(name, folder, private=True)


def join(hub: Hub, state: dict[str, Any], role: str) -> None:
    """The user's part in the organizations that they lose the right to write to once the earlier runs are submitted."""
    hub.add_user(USER, TOKEN, orgs=[Organization(name, role=role) for name in state.get("reads_only", ())])


def change(hub: Hub, state: dict[str, Any]) -> None:
    """What may change with each prompt: who may write where, who may read a gated model, and the faults in force."""
    if "reads_only" in state:
        join(hub, state, role="read")
    for name in state.get("gated", ()):
        hub.store.repos["model", name].gated = "manual"
    for name in state.get("granted", ()):
        hub.store.repos["model", name].granted.add(USER)
    for fault in state.get("faults", ()):
        hub.faults.add(**fault)


def lead(hub: Hub, job_id: str, run: dict[str, Any]) -> None:
    """Put a submitted job into the state that an eval says: its log, its stage, how many minutes it ran."""
    job, now = hub.jobs.get(job_id), time.time()
    job.created = job.started = now - 60 * run["minutes"]
    lines = [line if isinstance(line, str) else f"EVENT {json.dumps(line)}" for line in run["logs"]]
    hub.jobs.set(job_id, stage=run["stage"], message=run.get("message"), logs=lines)
    if run["stage"] in TERMINAL_STAGES:
        job.finished = now


# ---- the user's machine


def install(skill: Path, home: Path) -> list[Path]:
    """Copies of the skill where assistants look for one."""
    folders = [home / name for name in SKILLS]
    for folder in folders:
        shutil.copytree(skill, folder, ignore=NOT_OF_THE_SKILL)
    return folders
