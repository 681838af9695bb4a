"""Answers of a model to many questions: greedy, in batches of like length, within a budget of seconds."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from .answer_ends import ends_of
from .memory import free_memory
from .questions import Question

TOKENS_AT_A_TIME = {"cuda": 32_768, "cpu": 4_096}  # of a batch: prompts and answers together, padding included
MOST_ROWS = 64  # of a batch
LONGEST_ANSWER, SHORTEST_LIMIT = 512, 32  # tokens


class Answer(NamedTuple):
    """cut: whether it was still going on at the limit of tokens."""

    text: str
    cut: bool


def answer_limit(references: Iterable[str], tokenizer: Any) -> int:
    """Tokens that an answer may have: twice the longest reference's, within bounds, since a base model may go on for ever."""
    longest = max((len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in references), default=0)
    return max(min(math.ceil(2 * longest / 32) * 32, LONGEST_ANSWER), SHORTEST_LIMIT)


def answer_all(
    model: Any, tokenizer: Any, questions: Sequence[Question], max_new_tokens: int, until: float = math.inf
) -> list[Answer | None]:
    """An answer to each question; None to those that the time (until: of time.monotonic) did not suffice for."""
    answers: list[Answer | None] = [None] * len(questions)
    waiting = list(batches_of(questions, max_new_tokens, model.device.type))
    while waiting and time.monotonic() < until:
        batch = waiting.pop(0)
        try:
            made = answer_batch(model, tokenizer, [questions[place].prompt for place in batch], max_new_tokens, until)
        except Exception as error:
            if len(batch) == 1 or not is_out_of_memory(error):
                raise
            made = []
        if not made:  # out of memory, and what it held is free only once the exception is gone
            free_memory()
            half = len(batch) // 2
            waiting = [batch[:half], batch[half:], *waiting]
        for place, answer in zip(batch, made, strict=False):
            answers[place] = answer
    return answers


def batches_of(questions: Sequence[Question], max_new_tokens: int, device: str) -> Iterator[list[int]]:
    """Places of the questions, those of like length together, shortest first."""
    order = sorted(range(len(questions)), key=lambda place: len(questions[place].prompt))
    batch: list[int] = []
    for place in order:
        tokens = (len(batch) + 1) * (len(questions[place].prompt) + max_new_tokens)
        if batch and (len(batch) == MOST_ROWS or tokens > TOKENS_AT_A_TIME.get(device, TOKENS_AT_A_TIME["cuda"])):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def answer_batch(
    model: Any, tokenizer: Any, prompts: list[list[int]], max_new_tokens: int, until: float
) -> list[Answer | None]:
    """Greedy answers, padded on the left; None to each where the time ran out amid them."""
    import torch

    width, filler = max(map(len, prompts)), tokenizer.pad_token_id
    ids = torch.tensor([[filler] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    left = until - time.monotonic()
    with torch.no_grad():
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=filler,
            **({"max_time": left} if math.isfinite(left) else {}),
        )
    ends = ends_of(model, tokenizer)
    written = output[:, width:].tolist()
    whole = len(written[0]) >= max_new_tokens or all(ends & {*row} for row in written)
    if not whole:
        return [None] * len(prompts)
    return [Answer(tokenizer.decode(row, skip_special_tokens=True).strip(), not ends & {*row}) for row in written]


def is_out_of_memory(error: Exception) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError)


def final_answer(text: str) -> str:
    """What a model says once it has thought; "" where it has not come to an end with that."""
    thought, closed, said = text.rpartition("</think>")
    if closed:
        return said.strip()
    return "" if text.lstrip().startswith("<think>") else text
