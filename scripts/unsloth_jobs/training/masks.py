"""A row becomes token ids and labels: the labels of what is read and not learned are -100."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from .chat_template import ChatTemplate
from .columns import Format
from .conversation import Conversation, Rendered
from .report import Stop
from .trace import Span

IGNORE = -100
CALL_NOT_RENDERED = "the chat template does not render its tool calls"


class Example(NamedTuple):
    """A row as the trainer sees it. labels has input_ids' length; -100 where nothing is learned."""

    input_ids: list[int]
    labels: list[int]
    total_tokens: int  # before the cut at max_length
    total_supervised: int

    def cut(self, max_length: int) -> Example:
        return self._replace(input_ids=self.input_ids[:max_length], labels=self.labels[:max_length])


class Renderer(ChatTemplate):
    """A row as text with the spans that are learned, and as token ids with their labels."""

    def render(self, row: Mapping[str, Any]) -> tuple[str, list[Span]]:
        """The text of a normalised row and the spans of it that are learned, as character offsets.

        Raises ValueError where the template refuses the row, or renders no call of a row that teaches nothing else.
        """
        rendered = self.rendered(row)
        return rendered.text, rendered.spans

    def rendered(self, row: Mapping[str, Any]) -> Rendered:
        """As render, with what is not learned."""
        if "text" in row:
            # Rows rendered beforehand carry these tokens already.
            body = row["text"].removeprefix(self.bos).removesuffix(self.eos)
            text = self.bos + body + self.eos
            return Rendered(text, [(len(self.bos), len(text))] if body.strip() else [])
        if "prompt" in row and not self.tokenizer.chat_template:
            head = self.bos + row["prompt"]
            text = head + row["completion"] + self.eos
            return Rendered(text, [(len(head), len(text))] if row["completion"].strip() else [])
        rendered = Conversation(self, as_messages(row), row.get("tools")).rendered()
        if rendered.calls_not_rendered and not rendered.spans:
            raise ValueError(CALL_NOT_RENDERED)
        return rendered

    def encode(self, row: Mapping[str, Any], max_length: int) -> Example:
        """Token ids and labels of a normalised row, cut at max_length tokens. Raises ValueError as render does."""
        return self.tokens_of(*self.render(row)).cut(max_length)

    def tokens_of(self, text: str, spans: list[Span]) -> Example:
        """Token ids and labels of a rendered row, whole."""
        return self.examples([(text, spans)])[0]

    def examples(self, rendered: list[tuple[str, list[Span]]]) -> list[Example]:
        """Token ids and labels of rendered rows, whole: a tokenizer takes many texts faster than each alone."""
        if not rendered:
            return []
        texts = [text for text, _ in rendered]
        encoding = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [
            labelled(ids, offsets, spans)
            for ids, offsets, (_, spans) in zip(encoding["input_ids"], encoding["offset_mapping"], rendered, strict=True)
        ]


def labelled(ids: list[int], offsets: list[Span], spans: list[Span]) -> Example:
    labels = [IGNORE] * len(ids)
    remaining = iter(spans)
    start, end = next(remaining, (math.inf, math.inf))
    for position, (left, right) in enumerate(offsets):
        while left >= end:
            start, end = next(remaining, (math.inf, math.inf))
        # A token that straddles the start is the first one the model writes: " answer" after "[/INST]".
        if left < end and right > start:
            labels[position] = ids[position]
    return Example(ids, labels, len(ids), len(ids) - labels.count(IGNORE))


def as_messages(row: Mapping[str, Any]) -> list[dict]:
    if "messages" in row:
        return row["messages"]
    return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]


def segments(tokenizer: Any, example: Example) -> list[dict[str, Any]]:
    """The row as [{"text", "learned"}], decoded from the very tokens and labels that are trained on."""
    parts: list[dict[str, Any]] = []
    start = 0
    flags = [label != IGNORE for label in example.labels]
    for position in range(1, len(flags) + 1):
        if position == len(flags) or flags[position] != flags[start]:
            text = tokenizer.decode(example.input_ids[start:position], skip_special_tokens=False)
            parts.append({"text": text, "learned": flags[start]})
            start = position
    return parts


def make_renderer(tokenizer: Any, layout: Format) -> Renderer:
    """The tokenizer's Renderer. Raises Stop where it cannot turn this format into text with known offsets."""
    if not tokenizer.is_fast:
        raise Stop(
            "slow_tokenizer",
            "This model has no fast tokenizer, so its loss masks cannot be computed exactly.",
            "Choose a model whose repository holds a tokenizer.json.",
        )
    if not tokenizer.chat_template and layout.name in ("messages", "sharegpt"):
        raise Stop(
            "no_chat_template",
            "The data set holds conversations and the model's tokenizer has no chat template.",
            "Choose the instruct (or -it, -chat) version of this model, or rows of prompt + completion or text.",
        )
    try:
        return Renderer(tokenizer)
    except ValueError as error:
        raise Stop(
            "bad_chat_template",
            f"A question and an answer cannot be rendered with this model's chat template: {error}",
            "Choose another version of this model: its template is not for plain conversations.",
        ) from error
