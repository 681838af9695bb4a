"""What a contender is asked: the same question after its system prompt or examples, in the words of its chat template."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from .columns import Format
from .contenders import Contender
from .masks import Renderer, as_messages, make_renderer
from .questions import Question, asked_and_answered, normal_question, read_question
from .report import Stop

TRIED_ROWS = 200  # training rows that are looked at for each example


class Asker:
    """Turns a question into a contender's own. examples: conversations that end with an answer."""

    def __init__(self, contender: Contender, layout: Format, max_length: int, system_prompt: str = ""):
        from transformers import AutoTokenizer

        self.contender, self.layout, self.max_length = contender, layout, max_length
        self.tokenizer = AutoTokenizer.from_pretrained(contender.tokenizer)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token  # the attention mask hides it
        self.renderer = make_renderer(self.tokenizer, layout)
        self.system_prompt = system_prompt if contender.prompt else ""
        self.examples: list[list[dict[str, Any]]] = []

    def ask(self, question: Question) -> Question | None:
        """None where it does not fit, or the chat template refuses it."""
        normal = normal_question(question.row, self.layout)
        if normal is None:
            return None
        turns = as_messages(normal)
        if "prompt" in normal and not self.tokenizer.chat_template:
            asked = {**normal, "prompt": self.as_plain_text(normal["prompt"])}
        else:
            asked = {**{name: normal[name] for name in ("tools",) if name in normal}, "messages": self.with_form(turns)}
        found = read_question(asked, question.row, self.tokenizer, self.renderer)
        return found if found and len(found.prompt) <= self.max_length else None

    def as_plain_text(self, prompt: str) -> str:
        """For a model without a chat template."""
        shown = [f"{turn['content']}" for turns in self.examples for turn in turns]
        return "\n\n".join(filter(None, [self.system_prompt, *shown, prompt]))

    def with_form(self, turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The turns with the system prompt before the row's own, and the examples before the first question."""
        system = [turn for turn in turns[:1] if turn["role"] in ("system", "developer")]
        rest = [turn for turns_of_one in self.examples for turn in turns_of_one] + turns[len(system) :]
        if not self.system_prompt:
            return [*system, *rest]
        text = "\n\n".join([self.system_prompt, *(turn["content"] for turn in system)])
        if takes_system(self.renderer):
            return [{"role": "system", "content": text}, *rest]
        return [{**rest[0], "content": f"{text}\n\n{rest[0]['content']}"}, *rest[1:]]

    def choose_examples(self, train_rows: Any, train_layout: Format, seed: int) -> None:
        """As many training rows as the contender's form says, of those that leave room for a question. Raises Stop."""
        wanted, room = self.contender.examples, self.max_length // (2 * max(self.contender.examples, 1))
        places = random.Random(seed).sample(range(len(train_rows)), min(len(train_rows), TRIED_ROWS * wanted))
        for place in places:
            if len(self.examples) == wanted:
                return
            normal = normal_question(train_rows[place], train_layout)
            if normal is None:
                continue
            before, answer = asked_and_answered(normal)
            turns = [turn for turn in before if turn["role"] not in ("system", "developer")]
            if turns and answer and len(self.tokenizer(str([*turns, answer])).input_ids) <= room:
                self.examples.append([*turns, answer])
        if len(self.examples) < wanted:
            raise Stop(
                "no_examples",
                f"Only {len(self.examples)} training rows serve as examples, of {wanted}: the others do not end with an answer, "
                f"or are longer than {room} tokens.",
                "Lower --few-shot, raise --max-seq-length, or name other training rows with --dataset.",
            )


def takes_system(renderer: Renderer) -> bool:
    """Whether the chat template renders a system turn: Gemma's older ones refuse it."""
    try:
        text = renderer.chat([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}])
    except ValueError:
        return False
    return "Be brief." in text


def asked_by_all(askers: Sequence[Asker], questions: Sequence[Question]) -> list[Question]:
    """The questions that fit each contender's form."""
    return [question for question in questions if all(asker.ask(question) for asker in askers)]
