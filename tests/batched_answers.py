"""Answers to questions one by one, and all in one batch: run in the template's environment, with a model's folder."""

import json
import random
import sys
import time
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "templates"))
import sft

tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
chance = random.Random(5)
asked = [sft.Question([chance.randrange(20, 250) for _ in range(length)], "", "", {}) for length in (3, 9, 4, 21, 1, 40)]
alone = [sft.answer_all(model, tokenizer, [question], 12)[0] for question in asked]
together = sft.answer_all(model, tokenizer, asked, 12)
late = sft.answer_all(model, tokenizer, asked, 12, time.monotonic())
print(json.dumps([alone, together, late]))
