"""A conversation with one or two models: what each was told and said, streamed by the openai client."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..training.secrets import CONTROL


@dataclass
class Answer:
    """An answer while it comes. text is shown as it is: what would steer a terminal is left out."""

    model: str
    text: str = ""
    tokens: int = 0
    began: float = field(default_factory=time.monotonic)
    first: float | None = None
    ended: float | None = None
    error: str = ""

    @property
    def pace(self) -> str:
        if self.error:
            return self.error
        if self.ended is None or not self.tokens:
            return "…" if self.ended is None else ""
        seconds = self.ended - self.began
        return f"{self.tokens} tokens, {self.tokens / seconds:.1f} a second, first after {(self.first or self.ended) - self.began:.1f} s"


@dataclass
class Conversation:
    """client: of openai. turns: what was said, by model."""

    client: Any
    models: tuple[str, ...]
    system: str = ""
    turns: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    stopped: threading.Event = field(default_factory=threading.Event)

    def messages(self, model: str) -> list[dict[str, str]]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self.turns.get(model, [])]

    def forget(self) -> None:
        self.turns = {}

    def ask(self, question: str, models: Sequence[str]) -> tuple[list[Answer], ThreadPoolExecutor]:
        """Each model's answer, which is being written when this returns; the pool ends once they are whole."""
        self.stopped.clear()
        asked, answers = {"role": "user", "content": question}, [Answer(model) for model in models]
        pool = ThreadPoolExecutor(len(answers))
        for answer in answers:
            pool.submit(self.follow, answer, asked)
        pool.shutdown(wait=False)
        return answers, pool

    def follow(self, answer: Answer, asked: dict[str, str]) -> None:
        messages = [*self.messages(answer.model), asked]
        try:
            stream = self.client.chat.completions.create(
                model=answer.model, messages=messages, stream=True, stream_options={"include_usage": True}
            )
            with stream:
                for chunk in stream:
                    if self.stopped.is_set():
                        break
                    self.take(answer, chunk)
        except Exception as error:  # of the client, or of the network below it
            answer.error = CONTROL.sub("", f"{type(error).__name__}: {error}")[:500]
        else:
            said = {"role": "assistant", "content": answer.text}
            self.turns.setdefault(answer.model, []).extend([asked, said])
        answer.ended = time.monotonic()

    def take(self, answer: Answer, chunk: Any) -> None:
        if chunk.usage:
            answer.tokens = chunk.usage.completion_tokens
        for choice in chunk.choices:
            if choice.delta.content:
                answer.first = answer.first or time.monotonic()
                answer.text += CONTROL.sub("", choice.delta.content)

    def as_row(self, model: str, right: str) -> dict[str, Any]:
        """What was said with a model, as a row to learn from. right: the last answer, "" for the model's own."""
        messages = self.messages(model)
        if not self.turns.get(model):
            raise UserError("nothing_said", f"Nothing was said with {model} yet.", "Ask something first.")
        last = {"role": "assistant", "content": right} if right else messages[-1]
        return {"messages": [*messages[:-1], last]}


def save_row(file: Path, row: dict[str, Any]) -> int:
    """Append a row to a JSONL file; how many it then has. Raises UserError."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a+", encoding="utf-8") as lines:
            lines.seek(0)
            before = lines.read()
            lines.write(("\n" if before and not before.endswith("\n") else "") + json.dumps(row, ensure_ascii=False) + "\n")
        return sum(bool(line.strip()) for line in before.splitlines()) + 1
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("not_saved", f"{file} cannot be written: {error}", "Pass another file with --save.") from error
