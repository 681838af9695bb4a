"""Load an adapter from the Hub as its card says, and answer one question. Prints {"answer", "trained"} as JSON.

Run in the environment of templates/sft.py: answer.py REPOSITORY QUESTION
"""

import json
import sys

import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

repository, question = sys.argv[1:]
model = AutoPeftModelForCausalLM.from_pretrained(repository)
tokenizer = AutoTokenizer.from_pretrained(repository)
prompt = tokenizer.apply_chat_template(
    [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)
output = model.generate(**prompt, max_new_tokens=20, do_sample=False)
answer = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
trained = sum(int(torch.count_nonzero(p)) for name, p in model.named_parameters() if "lora_B" in name)
json.dump({"answer": answer, "trained": trained}, sys.stdout)
