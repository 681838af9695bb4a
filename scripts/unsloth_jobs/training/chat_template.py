"""How a tokenizer's chat template opens and closes an assistant's turn, found by rendering small conversations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .secrets import quotation
from .trace import MARKER, same_end, same_start

PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look something up.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string", "description": "it"}}, "required": ["word"]},
    },
}


class ChatTemplate:
    """A tokenizer's chat template, and how it opens and closes an assistant's turn: built once for a data set."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        # Longest first, so that no token is taken for one that it begins with.
        names = sorted({*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}, key=len, reverse=True)
        self.tokens = "|".join(map(re.escape, names)) or r"(?!)"
        self.token = re.compile(rf"\s*(?:{self.tokens})")
        self.piece = re.compile(rf"(?s){self.tokens}|<[^<>\s]{{1,80}}>|\w+|.")
        first = tokenizer("a").input_ids[:1]
        self.bos = tokenizer.bos_token if tokenizer.bos_token and first == [tokenizer.bos_token_id] else ""
        self.eos = tokenizer.eos_token or ""
        self.prompt = self.header = self.closing = self.earlier_closing = self.call_closing = self.opened = ""
        self.in_parts, self.ends = False, False
        # OpenAI's name of the system's role: other templates would leave its turn out, or write a role no model knows.
        self.has_developer = "developer" in str(tokenizer.chat_template)
        if tokenizer.chat_template:
            self.find_turn_borders()

    def chat(self, messages: list[dict], tools: list | None = None, prompt: bool = False) -> str:
        """The conversation as text. Raises ValueError where the template refuses it."""
        if self.in_parts:
            messages = [message | {"content": [{"type": "text", "text": message["content"]}]} for message in messages]
        if not self.has_developer:
            messages = [message | {"role": "system"} if message["role"] == "developer" else message for message in messages]
        try:
            return self.tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=prompt)
        except Exception as error:  # a template raises whatever it likes: over a system turn, or two questions in a row
            raise ValueError(f"the chat template refuses it: {quotation(str(error) or type(error).__name__, 200)}") from error

    def find_turn_borders(self) -> None:
        """Find how the template opens an assistant's turn and closes it. Raises ValueError where it refuses a plain one.

        prompt: what the model is given to write after, `<|im_start|>assistant\\n<think>\\n` say. header: the part of it
        that stands before each earlier answer too; "" where a template has none. closing: what ends the last answer, up
        to its last token; earlier_closing: the others. opened: what a template that always ends by opening a turn
        writes after that.
        """
        tools = self.tools_needed()
        opening, before, tail = self.probe("user", "assistant", tools=tools)
        try:
            asked, bare = self.probe("user", tools=tools, prompt=True)[-1], self.probe("user", tools=tools)[-1]
        except ValueError:  # a template that takes no question without its answer
            asked, bare = before, ""
        try:
            _, *befores, _ = self.probe("user", "assistant", "user", "assistant", tools=tools)
            befores, between = [before, befores[0], befores[2]], befores[1]
        except ValueError:  # a template for one question
            befores, between = [before], tail
        self.asked = asked
        self.prompt = asked[self.shared(asked, bare) :].lstrip()
        self.header = next((part for part in self.beginnings(self.prompt) if all(part in text for text in befores)), "")
        self.splits = [(part, self.prompt[len(part) :]) for part in self.beginnings(self.prompt)[1:]]
        self.splits = [(part, rest) for part, rest in self.splits if rest.strip()]
        always_open = asked == bare and not between.startswith(tail.rstrip())
        self.closing = self.to_last_token(tail[: self.shared(tail, between)])
        if always_open:
            self.closing = self.without_openers(self.closing, opening)
            self.opened = tail[len(self.closing) :]
        elif not self.closing:
            self.closing = self.to_last_token(tail)
        if not self.closing and not always_open and between.startswith(tail.rstrip()):
            self.closing = tail.rstrip()
        self.earlier_closing = self.closing
        if self.closing and not between.startswith(self.closing):
            opened = same_end(between, opening)
            token = self.token.match(between)
            self.earlier_closing = self.to_last_token(between[: len(between) - opened]) or (token.group() if token else "")
        self.ends = bool(self.to_last_token(self.closing))

    def tools_needed(self) -> list | None:
        """What a plain conversation must come with: a few templates are for tools alone, or take texts only in parts."""
        refused: list[ValueError] = []
        for tools, self.in_parts in ((None, False), ([PROBE_TOOL], False), (None, True)):
            try:
                self.probe("user", "assistant", tools=tools)
                return tools
            except ValueError as error:
                refused.append(error)
        raise refused[0]

    def probe(self, *roles: str, tools: list | None = None, prompt: bool = False) -> list[str]:
        """What the template writes around the texts of a conversation, from its beginning to its end."""
        messages = [{"role": role, "content": f"{MARKER}{index}q"} for index, role in enumerate(roles)]
        texts = re.split(rf"{MARKER}[0-9]+q", self.chat(messages, tools, prompt))
        if len(texts) <= len(roles):
            raise ValueError("the chat template does not render each message")
        return [texts[0], *texts[-len(roles) :]]

    def beginnings(self, text: str) -> list[str]:
        """The longest first; none ends within a token, tag or word."""
        return [text[:end] for end in reversed([found.end() for found in self.piece.finditer(text)])]

    def shared(self, one: str, other: str) -> int:
        """How many characters of one are the beginning of other too, but for differences in white space.

        A token, tag or word is shared whole or not at all.
        """
        left = right = 0
        while True:
            same = same_start(one[left:], other[right:])
            if same:
                cuts = [self.cut(text, start, start + same) - start for text, start in ((one, left), (other, right))]
                same = min(cuts)
                left, right = left + same, right + same
            skipped = [re.compile(r"\s*").match(text, at).end() for text, at in ((one, left), (other, right))]  # type: ignore[union-attr]
            if skipped == [left, right] or skipped[0] == len(one) or skipped[1] == len(other):
                return left
            if self.next_piece(one, skipped[0]) != self.next_piece(other, skipped[1]):
                return left
            left, right = skipped

    def next_piece(self, text: str, at: int) -> str:
        return self.piece.match(text, at).group()  # type: ignore[union-attr]

    def cut(self, text: str, start: int, end: int) -> int:
        """end, or the beginning of the token, tag or word that it lies within."""
        at = start
        for found in self.piece.finditer(text, start):
            if found.end() > end:
                break
            at = found.end()
        return at

    def to_last_token(self, text: str) -> str:
        found = re.match(rf"(?s).*(?:{self.tokens})", text)
        return found.group() if found else ""

    def without_openers(self, closing: str, opening: str) -> str:
        """closing without the tokens at its end that open turns: those that the whole conversation begins with."""
        openers = set(re.findall(self.tokens, re.match(rf"(?:{self.token.pattern})*", opening).group()))  # type: ignore[union-attr]
        shorter = closing
        while any(shorter.endswith(token) for token in openers):
            shorter = next(shorter.removesuffix(token) for token in openers if shorter.endswith(token)).rstrip()
        return self.to_last_token(shorter)


def has_answer(message: Mapping[str, Any]) -> bool:
    return bool(message["content"].strip() or message.get("tool_calls"))
