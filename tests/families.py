"""Tiny models with random weights, one for each family of architectures, in the environment of templates/sft.py.

families.py save FOLDER NAME...     # each in FOLDER/NAME, with a tokenizer
families.py packed NAME...          # what packing does to each: prints {NAME: {...}} as JSON
families.py modules NAME...         # what gets an adapter: prints {NAME: {what holds them: [modules]}} as JSON
"""

import json
import random
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "demo"), str(ROOT / "templates")]
import sft  # noqa: E402
import tiny_model  # noqa: E402

SIZE = 128
LENGTHS = (37, 5, 61, 2, 90, 18, 64, 33, 1, 120, 44)


def config(name: str, tokenizer):
    from transformers import AutoConfig

    own = {
        "lfm2": {"block_auto_adjust_ff_dim": False, "conv_L_cache": 3, "layer_types": ["conv", "full_attention", "conv"]},
        "qwen3": {"head_dim": 16},
        "gemma3_text": {
            "head_dim": 16,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        "qwen3_5_text": {
            "head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        },
    }
    return AutoConfig.for_model(
        name,
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **own.get(name, {}),
    )


def make(name: str, tokenizer):
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    return AutoModelForCausalLM.from_config(config(name, tokenizer), dtype=torch.float32)


def save(folder: str, *names: str) -> None:
    tokenizer = tiny_model.make_tokenizer()
    for name in names:
        make(name, tokenizer).save_pretrained(Path(folder, name))
        tokenizer.save_pretrained(Path(folder, name))


def random_rows() -> list[tuple[list[int], list[int]]]:
    """Rows as (input_ids, labels), each learned from a random place on."""
    chance, rows = random.Random(5), []
    for length in LENGTHS:
        ids, start = [chance.randrange(5, 1000) for _ in range(length)], chance.randrange(length)
        rows.append((ids, [sft.IGNORE] * start + ids[start:]))
    return rows


def with_adapter(model):
    """LoRA as the template attaches it, with values that let each gradient flow."""
    import torch
    from peft import LoraConfig, get_peft_model

    targets = sft.target_pattern(sft.lora_targets(sft.linear_shapes(model)))
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=targets))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter) * 0.1
    return model.train()


def learned(model, batches: list[dict]):
    """The summed loss of the learned tokens, and its gradient over the whole adapter."""
    import torch

    model.zero_grad()
    total = 0.0
    for batch in batches:
        if count := sft.learned_tokens(batch["labels"]):
            loss = model(**batch, use_cache=False).loss * count
            loss.backward()
            total += loss.item()
    return total, torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.requires_grad])


def packed(*names: str) -> dict[str, dict]:
    import torch

    sys.modules["unsloth"] = None  # plain transformers: what Unsloth adds is tested through the template
    tokenizer, rows = tiny_model.make_tokenizer(), random_rows()
    alone = [{"input_ids": torch.tensor([ids]), "labels": torch.tensor([labels])} for ids, labels in rows]
    sequences = sft.pack([len(ids) for ids, _ in rows], SIZE)
    together = [sft.as_batch([rows[number] for number in sequence]) for sequence in sequences]
    found = {}
    for name in names:
        model = make(name, tokenizer).eval()
        untouched = sft.has_cross_contamination(model, SIZE)
        sft.keep_rows_apart(model)
        settings = sft.Settings(dataset="rows", max_seq_length=SIZE)
        said = {
            "leaks_untouched": untouched,
            "leaks": sft.has_cross_contamination(model, SIZE),
            "packed": sft.can_pack(model, settings),
        }
        model = with_adapter(model)
        (loss, gradient), (loss_packed, gradient_packed) = learned(model, alone), learned(model, together)
        found[name] = said | {
            "loss_error": abs(loss - loss_packed) / loss,
            "gradient_error": ((gradient - gradient_packed).abs().max() / gradient.abs().max()).item(),
        }
    return found


def modules(*names: str) -> dict[str, dict[str, list[str]]]:
    """The modules that the template adapts in each, by the module that holds them: self_attn, mlp, conv and the like."""
    tokenizer, found = tiny_model.make_tokenizer(), {}
    for name in names:
        paths = {tuple(path.split(".")[-2:]) for path in sft.adaptable(sft.linear_shapes(make(name, tokenizer)))}
        found[name] = {holder: sorted(leaf for other, leaf in paths if other == holder) for holder in sorted(dict(paths))}
    return found


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    print(json.dumps({"save": save, "packed": packed, "modules": modules}[what](*words)))
