"""Models that are quick to make, for what looks at their files. Those that can be trained: demo/tiny_model.py, families.py."""

from __future__ import annotations

import json
import struct
import subprocess
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

MAKE_LLAMA = """
import json, sys
from pathlib import Path
import sentencepiece, torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

folder = Path(sys.argv[1])
folder.mkdir()
rows = [json.loads(line) for line in Path(sys.argv[2]).read_text("utf-8").splitlines()]
lines = [line for row in rows for turn in row["messages"] for line in turn["content"].splitlines()]
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(lines), model_prefix=str(folder / "tokenizer"), model_type="bpe", vocab_size=1024,
    byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=False,
)
(folder / "tokenizer.vocab").unlink()
(folder / "config.json").write_text('{"model_type": "llama"}')
tokenizer = AutoTokenizer.from_pretrained(folder, add_prefix_space=False)
tokenizer.chat_template = (
    "{{ bos_token }}{% for turn in messages %}{% if turn['role'] == 'user' %}[INST] {{ turn['content'] }} [/INST]"
    "{% else %} {{ turn['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
tokenizer.save_pretrained(folder)
torch.manual_seed(7)
LlamaForCausalLM(LlamaConfig(
    vocab_size=len(tokenizer), hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, initializer_range=0.1, max_position_embeddings=512, tie_word_embeddings=False,
    bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
)).save_pretrained(folder)
"""


def shape_of_a_model(folder: Path, layers: int = 2, hidden: int = 64, held: bool = True, **config: object) -> Path:
    """A Llama's config.json and weights, and no tokenizer. Not held: the weights' header alone, for a size of any kind."""
    folder.mkdir()
    text = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "vocab_size": 512}
    (folder / "config.json").write_text(json.dumps({**text, "num_hidden_layers": layers, **config}))
    shapes = {"model.embed_tokens.weight": [512, hidden]}
    for layer in range(layers):
        shapes |= {f"model.layers.{layer}.{name}.weight": [hidden, hidden] for name in ("self_attn.q_proj", "mlp.up_proj")}
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * shape[1]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    stated = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(stated)) + stated + bytes(at if held else 0))
    return folder


def zero_adapter(folder: Path, base: str, module: str, width: int, rank: int = 8) -> Path:
    """A LoRA adapter of zeros on one square linear layer of a model, as PEFT saves it."""
    folder.mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": base, "r": rank, "lora_alpha": 2 * rank, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    parts = {"A": (rank, width), "B": (width, rank)}
    zeros = {f"base_model.model.{module}.lora_{part}.weight": np.zeros(shape, np.float32) for part, shape in parts.items()}
    save_file(zeros, folder / "adapter_model.safetensors")
    return folder


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


def llama(python: str, folder: Path, rows: Path) -> Path:
    """A tiny Llama with random weights and a tokenizer of rows in SentencePiece's form; in an environment that has torch."""
    subprocess.run([python, "-c", MAKE_LLAMA, str(folder), str(rows)], check=True, capture_output=True)
    return folder
