"""Make a tiny LFM2 with random weights, and a tokenizer with a chat template, in a few seconds.

    python demo/tiny_model.py FOLDER    # in the environment of templates/sft.py

It has LFM2's architecture (short convolutions and attention) at under a millionth of a real one's price, so that the
whole way can be gone without a download. What it answers is noise until it is trained, and little better after.
"""

import json
import sys
from pathlib import Path

ROWS = Path(__file__).with_name("stdlib-docs.jsonl")
SPECIAL = ["<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(vocabulary: int = 1024):
    """A byte-level BPE tokenizer trained on the demo's rows."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    texts = [turn["content"] for row in rows for turn in row["messages"]]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL[0],
        bos_token=SPECIAL[1],
        eos_token=SPECIAL[4],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer, seed: int = 7):
    import torch
    from transformers import Lfm2Config, Lfm2ForCausalLM

    torch.manual_seed(seed)
    return Lfm2ForCausalLM(
        Lfm2Config(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            block_auto_adjust_ff_dim=False,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            conv_L_cache=3,
            # Wide enough for the frozen output layer to tell tokens apart: at the usual 0.02 no adapter could be sure of one.
            initializer_range=0.1,
            layer_types=["conv", "conv", "full_attention", "conv"],
            max_position_embeddings=512,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def main() -> None:
    folder = Path(sys.argv[1])
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    print(f"LFM2 with {model.num_parameters():,} random parameters in {folder}")


if __name__ == "__main__":
    main()
