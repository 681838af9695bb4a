"""Ollama's template against the tokenizer's own: every chat template that is installed, on whole conversations."""

from __future__ import annotations

import pytest
from conftest import make_tokenizer
from unsloth_jobs.training.modelfile import CONVERSATIONS, find_turns, modelfile


def test_most_installed_templates_become_ollama_s_and_write_the_same(chat_templates):
    found, other = {}, []
    for name, text in chat_templates.items():
        tokenizer = make_tokenizer(text)
        if turns := find_turns(tokenizer, adds_begin=False):
            found[name] = turns
            for conversation in CONVERSATIONS[:1] + CONVERSATIONS[2:3]:
                messages = [{"role": role, "content": content} for role, content in conversation]
                own = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
                assert turns.text(conversation) == own, name
        else:
            other.append(name)
    families = ("trl/qwen3", "trl/llama3", "trl/lfm2", "trl/gemma3", "trl/qwen2_5")
    assert set(families) <= found.keys()
    assert len(found) > 2 * len(other), other
    assert found["trl/gemma3"].system is None and found["trl/qwen3"].system


def test_the_go_template_holds_what_stands_around_each_turn(chat_templates):
    turns = find_turns(make_tokenizer(chat_templates["trl/qwen3"]), adds_begin=False)
    assert turns.go_template() == (
        "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ else }}{{ end }}{{ range .Messages }}"
        '{{ if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n{{ else if eq .Role "assistant" }}'
        "<|im_start|>assistant\n{{ .Content }}<|im_end|>\n{{ end }}{{ end }}<|im_start|>assistant\n"
    )
    text = modelfile("x-Q4_K_M.gguf", turns, ["<|im_end|>", 'a "quoted" one'])
    assert text.startswith('FROM ./x-Q4_K_M.gguf\nTEMPLATE """{{ if .System }}')
    assert text.endswith('PARAMETER stop "<|im_end|>"\nPARAMETER stop "a \\"quoted\\" one"\n')
    assert modelfile("x.gguf", None, ["</s>"]) == 'FROM ./x.gguf\nPARAMETER stop "</s>"\n'


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}",  # twice
        "{% for m in messages %}{{ '{{' }}{{ m.role }}: {{ m.content }}|{% endfor %}",  # Go would read it
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ loop.length }}|{% endfor %}",  # turns are not alike
        "{{ raise_exception('never') }}",
    ],
)
def test_a_template_that_is_no_sequence_of_turns_becomes_none(template):
    assert find_turns(make_tokenizer(template), adds_begin=False) is None
