"""Comparison: the adapter answers some questions greedily; a conversion should pick the same token after each prefix.

A model is two things here: tokens(text) with its own tokenizer, and logits(ids), a row for each of them. A tokenizer
that was converted wrongly so shows in the same figure as weights that were.
"""

from __future__ import annotations

import contextlib
import html
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .report import Stop, emit


class Transformers:
    """A model of the transformers library."""

    def __init__(self, model: Any, tokenizer: Any):
        self.model, self.tokenizer = model.eval(), tokenizer

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def logits(self, ids: list[int]) -> Any:
        import torch

        with torch.inference_mode():
            return self.model(torch.tensor([ids])).logits[0].float().numpy()

    def answer(self, ids: list[int], length: int, stops: list[int]) -> list[int]:
        import torch

        prompt = torch.tensor([ids])
        with torch.inference_mode():
            output = self.model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=length,
                do_sample=False,
                repetition_penalty=1.0,  # some models ask for one, and llama.cpp's plain arg max has none
                eos_token_id=stops,
                pad_token_id=stops[0] if stops else 0,
            )
        return output[0, len(ids) :].tolist()


class LlamaCpp:
    """A GGUF file in llama.cpp."""

    def __init__(self, path: Path, context: int):
        from llama_cpp import Llama

        self.llama = Llama(
            str(path),
            n_ctx=context,
            n_batch=context,
            n_ubatch=context,
            n_threads=os.cpu_count(),
            logits_all=True,
            verbose=False,
        )

    def tokens(self, text: str) -> list[int]:
        return self.llama.tokenize(text.encode(), add_bos=False, special=True)

    def whole_tokens(self, text: str) -> list[int]:
        """With the token before it that llama.cpp adds to every text, as the file says."""
        return self.llama.tokenize(text.encode(), add_bos=True, special=True)

    @property
    def adds_begin(self) -> bool:
        return self.whole_tokens("a") != self.tokens("a")

    def text(self, ids: list[int]) -> str:
        return self.llama.detokenize(ids).decode("utf-8", "replace").strip()

    def logits(self, ids: list[int]) -> Any:
        self.llama.reset()
        self.llama.eval(ids)
        return self.llama.scores[: len(ids)]

    def answer(self, ids: list[int], length: int, stops: list[int]) -> list[int]:
        answer = [int(self.logits(ids)[-1].argmax())]
        while len(answer) < length and answer[-1] not in stops:
            self.llama.eval(answer[-1:])
            answer.append(int(self.llama.scores[self.llama.n_tokens - 1].argmax()))
        return answer


def card_questions(readme: Path) -> list[str]:
    """The held-out questions that templates/sft.py shows in its card, without the chat's own words around them."""
    text = readme.read_text("utf-8") if readme.is_file() else ""
    section = text.partition("## Held-out questions\n")[2].partition("\n## ")[0]
    quoted = re.findall(r"(?m)(?:^>.*\n)+", section)
    found = [html.unescape(re.sub(r"(?m)^> ?| +$", "", block)).strip() for block in quoted]
    return [re.sub(r"^(user\n|\[INST\] ?)|(\n(assistant|model)| ?\[/INST\])$", "", question).strip() for question in found]


def as_prompt(tokenizer: Any, question: str) -> str:
    """The text that the model is to continue, with all its special tokens in clear."""
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": question}]
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    begins = tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
    return (tokenizer.bos_token if begins else "") + question


def stop_tokens(model: Any, tokenizer: Any) -> list[int]:
    configured = model.generation_config.eos_token_id
    tokens = [*(configured if isinstance(configured, list) else [configured]), tokenizer.eos_token_id]
    return [token for token in dict.fromkeys(tokens) if token is not None]


def answer_questions(model: Any, tokenizer: Any, questions: list[str], length: int) -> dict[str, Any]:
    """The adapter's own answers: {"asked", "length", "stops", "context", "perplexity", "answers": [...]}."""
    adapted, stops = Transformers(model, tokenizer), stop_tokens(model, tokenizer)
    answers, context = [], 0
    for question in questions:
        prompt = as_prompt(tokenizer, question)
        prompt_ids = adapted.tokens(prompt)
        ids = adapted.answer(prompt_ids, length, stops)
        answers.append({"prompt": prompt, "prompt_ids": prompt_ids, "ids": ids, "text": adapted.text(ids)})
        context = max(context, len(prompt_ids) + length)
    reference = {"asked": questions, "length": length, "stops": stops, "context": context + 64, "answers": answers}
    return reference | {"perplexity": measure_agreement(adapted, reference)[1]}


def measure_agreement(model: Transformers | LlamaCpp, reference: Mapping[str, Any]) -> tuple[float, float]:
    """The share of the reference's tokens that a model would pick too, and its perplexity on them."""
    import numpy as np

    same, surprise, total = 0, 0.0, 0
    for answer in reference["answers"]:
        prompt, ids = model.tokens(answer["prompt"]), np.array(answer["ids"])
        rows = model.logits([*prompt, *answer["ids"]])[len(prompt) - 1 : -1].astype(np.float64)
        rows = rows - rows.max(axis=1, keepdims=True)
        same += int((rows.argmax(axis=1) == ids).sum())
        surprise += float((np.log(np.exp(rows).sum(axis=1)) - rows[np.arange(len(ids)), ids]).sum())
        total += len(ids)
    return same / total, math.exp(surprise / total)


def compare(what: str, model: Transformers | LlamaCpp, reference: Mapping[str, Any], least: float) -> dict[str, Any]:
    """Figures of a conversion against the adapter, as an event too. Raises Stop where they are too far apart."""
    agreement, perplexity = measure_agreement(model, reference)
    texts = [
        model.text(model.answer(model.tokens(answer["prompt"]), reference["length"], reference["stops"]))
        for answer in reference["answers"]
    ]
    figures = {
        "agreement": round(agreement, 4),
        "perplexity": round(perplexity, 4),
        "adapter_perplexity": round(reference["perplexity"], 4),
        "same_answers": sum(text == answer["text"] for text, answer in zip(texts, reference["answers"], strict=True)),
        "answers": len(texts),
        "tokens": sum(len(answer["ids"]) for answer in reference["answers"]),
    }
    example = {"question": reference["asked"][0], "adapter": reference["answers"][0]["text"], "converted": texts[0]}
    emit("compared", what=what, **figures, example=example)
    if other := sum(model.tokens(answer["prompt"]) != answer["prompt_ids"] for answer in reference["answers"]):
        emit(
            "warning",
            code="tokens_differ",
            message=f"{what} splits {other} of {len(texts)} prompts into other tokens than the model learned from.",
        )
    if agreement < least:
        raise Stop(
            "conversion_disagrees",
            f"{what} picks the adapter's token in {agreement:.1%} of {figures['tokens']} tokens, below the minimum of {least:.0%} (--min-agreement).",
            "It is not pushed, and the adapter is as it was. Choose a finer quantisation such as q8_0, or read the answers "
            "in the `compared` event and lower --min-agreement.",
        )
    return figures


@contextlib.contextmanager
def open_gguf(path: Path, reference: Mapping[str, Any]) -> Iterator[LlamaCpp]:
    """A GGUF file in memory, with room for what the reference asks."""
    model = LlamaCpp(path, reference["context"])
    try:
        yield model
    finally:
        model.llama.close()
