"""The stage: one model in memory, which answers as one contender after the other."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from .asking import Asker
from .contenders import Contender
from .evaluation import QUESTIONS_AT_ONCE
from .generation import Answer, answer_all, answer_limit, is_out_of_memory
from .memory import free_memory
from .models import load_plain_model
from .questions import Question
from .report import Stop, emit


class Stage:
    """Loads a model when a contender of it comes on, and frees it for one of another."""

    def __init__(self, load_in_4bit: bool):
        self.load_in_4bit = load_in_4bit
        self.model: Any = None
        self.loaded: tuple[str, str | None] | None = None
        self.attached: list[Contender] = []

    @contextlib.contextmanager
    def holding(self, contender: Contender) -> Iterator[Any]:
        """The model as this contender, for as long as the context lasts."""
        self.load(contender)
        if contender.adapter:
            self.attach(contender)
            yield self.model
        elif self.attached:
            with self.model.disable_adapter():
                yield self.model
        else:
            yield self.model

    def load(self, contender: Contender) -> None:
        if self.loaded == contender.place:
            return
        self.model, self.loaded, self.attached = None, None, []
        free_memory()
        self.model = load_plain_model(contender.model, contender.revision, in_16bit=not self.load_in_4bit).eval()
        self.loaded = contender.place

    def attach(self, contender: Contender) -> None:
        """Put an adapter on the model, or turn to it where it is on already. Raises Stop where it does not fit."""
        from peft import PeftModel

        known = contender in self.attached
        name = f"adapter{self.attached.index(contender) if known else len(self.attached)}"
        try:
            if not self.attached:
                self.model = PeftModel.from_pretrained(self.model, contender.adapter, adapter_name=name).eval()
            elif not known:
                self.model.load_adapter(contender.adapter, adapter_name=name)
        except (RuntimeError, ValueError, KeyError) as error:
            if is_out_of_memory(error):
                raise
            raise Stop(
                "adapter_misfit",
                f"The adapter {contender.name} does not fit {contender.model}: {str(error).strip().splitlines()[0][:300]}",
                "Pass the model that it was trained on as --base-model.",
            ) from error
        if not known:
            self.attached.append(contender)
        self.model.set_adapter(name)
        self.model.eval()


def answer_in_turn(
    stage: Stage, askers: Sequence[Asker], questions: Sequence[Question], seconds: float, left: float
) -> dict[str, list[Answer | None]]:
    """The answers of each contender by its name, None where the time did not suffice: each has so many seconds.

    left: seconds until the run must begin to end, which all share. Contenders of one model follow each other.
    """
    given: dict[str, list[Answer | None]] = {}
    models = [one.contender.place for one in askers]
    order = sorted(askers, key=lambda asker: models.index(asker.contender.place))
    ends, most = time.monotonic() + left, len(questions)
    for number, asker in enumerate(order):
        with stage.holding(asker.contender) as model:
            share = (ends - time.monotonic()) / (len(order) - number)
            until = time.monotonic() + min(seconds, share)
            limit = answer_limit((question.reference for question in questions), asker.tokenizer)
            answers = answer_in_blocks(model, asker, questions[:most], limit, until)
        given[asker.contender.name] = answers + [None] * (len(questions) - len(answers))
        most = max((place + 1 for place, answer in enumerate(answers) if answer), default=0)  # no more can be compared
    return {asker.contender.name: given[asker.contender.name] for asker in askers}


def answer_in_blocks(
    model: Any, asker: Asker, questions: Sequence[Question], max_new_tokens: int, until: float
) -> list[Answer | None]:
    """Block after block, so that those that are answered in time are as random as the order of the questions."""
    began = time.monotonic()
    answers: list[Answer | None] = []
    for start in range(0, len(questions), QUESTIONS_AT_ONCE):
        block = [asked for question in questions[start : start + QUESTIONS_AT_ONCE] if (asked := asker.ask(question))]
        answers += answer_all(model, asker.tokenizer, block, max_new_tokens, until)
        emit(
            "answering",
            contender=asker.contender.name,
            answered=len(answers),
            of=len(questions),
            elapsed_s=round(time.monotonic() - began, 1),
        )
        if time.monotonic() >= until:
            break
    return answers
