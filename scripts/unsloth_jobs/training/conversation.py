"""A chat template becomes a loss mask: which stretches of a rendered conversation the model learns to write.

The conversation is rendered a second time with markers around each message's own texts. Where nothing but the
markers differs, they show whose text each stretch is; between two stretches stands what the template itself wrote:
how the one turn is closed and the other opened. So no family needs to be known by name, and text in a message that
looks like a tag cannot be taken for one.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from .chat_template import ChatTemplate, has_answer
from .tool_calls import arguments_of, json_text, shows_call, with_calls
from .trace import MARKER, NOBODY, Run, Span, Trace, edges, middle, within_tags


class Rendered(NamedTuple):
    """A row's text, the spans of it that are learned, and how many turns are not because of their tool calls."""

    text: str
    spans: list[Span]
    calls_not_rendered: int = 0


class Conversation:
    """A row's messages, rendered: finds the spans of its assistant's turns."""

    def __init__(self, template: ChatTemplate, messages: list[dict], tools: list | None):
        self.template, self.tools = template, tools
        self.learns = [has_answer(message) and message.get("weight") != 0 for message in messages]
        self.messages, self.text = self.readable(
            [{key: value for key, value in message.items() if key != "weight"} for message in messages]
        )
        self.trace, self.places = self.traced()
        self.memory: dict[tuple, int | None] = {}
        self.allowed = 4096 + 8 * len(messages)  # messages to render again at most, so that no row takes for ever
        owners = self.trace.owners(self.places, self.writes)
        self.runs = self.trace.runs(self.text, self.places, owners)
        self.last_run = {run.owner: number for number, run in enumerate(self.runs)}
        self.called = {self.trace.marks[number].owner for _, number in self.places if self.trace.marks[number].kind != "text"}

    def readable(self, messages: list[dict]) -> tuple[list[dict], str]:
        """The messages with the arguments of tool calls as the template takes them, and their rendering.

        Most take a mapping. Some take the JSON text that OpenAI writes, and refuse a mapping or write it as Python does.
        """
        calls = [call for message in messages for call in arguments_of(message) if isinstance(call, Mapping) and call]
        try:
            text = self.template.chat(messages, self.tools)
            if not any(str(arguments) in text for arguments in calls[:3]):  # the others are written alike
                return messages, text
        except ValueError:
            if not calls:
                raise
        as_json = [
            message | {"tool_calls": with_calls(message["tool_calls"], lambda name: name, json_text)}
            if "tool_calls" in message
            else message
            for message in messages
        ]
        try:
            return as_json, self.template.chat(as_json, self.tools)
        except ValueError:
            return messages, self.template.chat(messages, self.tools)

    def traced(self) -> tuple[Trace, list[tuple[int, int]]]:
        """Markers that change nothing else in the rendering, and where they stand in it; none where each changes more."""
        nonce = next(mark for mark in (MARKER + "7" * more for more in itertools.count()) if mark not in self.text)
        for place, calls in itertools.product((edges, within_tags, middle), (True, False)):
            if not calls and not any("tool_calls" in message for message in self.messages):
                continue
            trace = Trace(self.messages, nonce, place, calls)
            with contextlib.suppress(ValueError):
                text, places = trace.read(self.template.chat(trace.messages, self.tools))
                if text == self.text:
                    return trace, places
        return Trace(self.messages, nonce, None, False), []

    def rendered(self) -> Rendered:
        spans: list[tuple[int, int, int]] = []
        for before, run, after in neighbours(self.runs):
            if run.owner != NOBODY and self.messages[run.owner]["role"] == "assistant":
                spans.append((*self.span(before, run, after), run.owner))
        spans += filter(None, map(self.span_of_unmarked, range(len(self.messages)), self.messages))
        spans.sort()
        written: dict[int, str] = {}
        for start, end, owner in spans:
            written[owner] = written.get(owner, "") + self.text[start:end]
        unrendered = {
            index
            for index, message in enumerate(self.messages)
            if self.learns[index] and "tool_calls" in message and not self.shows_calls(message, written.get(index, ""))
        }
        found: list[Span] = []
        for start, end, owner in spans:
            start = max(start, found[-1][1]) if found else start
            if self.learns[owner] and owner not in unrendered and start < end:
                found.append((start, end))
        ends_with_answer = spans and spans[-1][2] == len(self.messages) - 1
        return Rendered(*self.ended(found, spans[-1][1] if ends_with_answer else None), len(unrendered))

    def span(self, before: Run | None, run: Run, after: Run | None) -> Span:
        """From where the model writes a run to where it stops, what closes the turn included."""
        begin, end = before.end if before else 0, after.start if after else len(self.text)
        start = begin + self.opening(self.text[begin : run.start], before, run)
        if start == run.start:
            start += self.given(begin, run)
        return start, run.end + self.closing(self.text[run.end : end], run, after is None)

    def opening(self, gap: str, before: Run | None, run: Run) -> int:
        """Where in what the template writes before a message's text the model begins to write."""
        known = self.template
        if run.owner - (before.owner if before else -1) == 1:  # no message between them, an empty one say
            if known.header and (at := gap.rfind(known.header)) >= 0:
                at += len(known.header)
                return at + known.shared(gap[at:], known.prompt[len(known.header) :])
            if before and self.messages[before.owner]["role"] == "user" and gap.startswith(known.asked.rstrip()):
                return known.shared(gap, known.asked)
        # A turn that goes on after a tool's result, say: what it is asked with shows how much the model is given.
        prompt = self.shared_with("opening", gap, before, run.owner, prompt=True)
        return len(gap) if prompt is None else prompt

    def given(self, begin: int, run: Run) -> int:
        """How much of a message's own text is the end of the prompt, `<think>\\n` say: the model does not write it."""
        for first, rest in self.template.splits:
            if self.text.startswith(rest, run.start) and self.text.endswith(first, begin, run.start):
                return len(rest)
        return 0

    def closing(self, gap: str, run: Run, last: bool) -> int:
        """How much of what the template writes after a message's text the model writes: it must learn to stop."""
        known = self.template
        ends = [(at, -len(mark)) for mark in (known.closing, known.earlier_closing) if mark and (at := gap.find(mark)) >= 0]
        if ends:
            at, length = min(ends)
            return at - length
        if last:
            rest = gap.removesuffix(known.opened)
            return len(known.to_last_token(rest) or rest.rstrip())
        end = 0
        if gap.strip() and (known.closing or self.trace.marks[run.marks[1]].kind != "text"):
            shared = self.shared_with("closing", gap, run, run.owner + 1, prompt=False) or 0
            end = len(gap[:shared].rstrip())
        if not known.closing and (token := known.token.match(gap, end)):
            end = token.end()  # no token ends an answer here: the next turn's does
        return end

    def writes(self, owner: int, number: int) -> int:
        """How often the conversation up to a message, whose call's name it is, writes a marker."""
        key = ("writes", len(self.messages[owner].get("tool_calls", ())), self.trace.marks[number].kind)
        if key not in self.memory:
            traced = self.render_first(owner + 1, prompt=False)
            self.memory[key] = 1 if traced is None else len(re.findall(f"{self.trace.nonce}{number}q", traced))
        return self.memory[key] or 1

    def shared_with(self, what: str, gap: str, run: Run | None, count: int, prompt: bool) -> int | None:
        """How far a gap after a run is what the first messages alone are followed by; None where they do not show it."""
        key = (what, gap, run is None)
        if key not in self.memory:
            tail = self.tail(run, count, prompt)
            self.memory[key] = None if tail is None else self.template.shared(gap, tail)
        return self.memory[key]

    def tail(self, run: Run | None, count: int, prompt: bool) -> str | None:
        traced = self.render_first(count, prompt)
        return None if traced is None else self.trace.tail(traced, run)

    def render_first(self, count: int, prompt: bool) -> str | None:
        """The first messages alone, with their markers; None where the template refuses them, or after too many of them."""
        if self.allowed < count:
            return None
        self.allowed -= count
        try:
            return self.template.chat(self.trace.messages[:count], self.tools, prompt)
        except ValueError:
            return None

    def span_of_unmarked(self, index: int, message: dict) -> tuple[int, int, int] | None:
        """The span of what a template writes of a message without any of its texts, a call's name written out say."""
        if message["role"] != "assistant" or not self.learns[index] or index in self.called:
            return None
        if index in self.last_run and "tool_calls" not in message:
            return None
        before = next((self.last_run[one] for one in range(index - 1, -1, -1) if one in self.last_run), -1)
        after = self.runs[before + 1] if before + 1 < len(self.runs) else None
        if after and after.owner == index:  # what stands there belongs to that run
            return None
        run = self.runs[before] if before >= 0 else None
        begin, end = run.end if run else 0, after.start if after else len(self.text)
        gap = self.text[begin:end]
        asked, told = self.tail(run, index, True), self.tail(run, index + 1, False)
        if asked is None or told is None:
            return None
        start = self.template.shared(gap, asked)
        written = gap[: self.template.shared(gap, told)].removesuffix(self.template.opened).rstrip()
        if not re.search(r"\w", written[start:].replace(self.template.closing, "").replace(self.template.earlier_closing, "")):
            return None
        return begin + start, begin + len(written), index

    def shows_calls(self, message: dict, written: str) -> bool:
        """Whether what is written of a turn holds each of its tool calls, its own other texts aside."""
        for text in map(message.get, ("content", "reasoning_content", "thinking")):
            if isinstance(text, str) and text.strip():
                written = written.replace(text.strip(), " ")
        calls = message["tool_calls"] if isinstance(message["tool_calls"], list) else []
        return all(shows_call(call, written) for call in calls if isinstance(call, Mapping))

    def ended(self, found: list[Span], last: int | None) -> tuple[str, list[Span]]:
        """With EOS after the last answer where no token closes it: the model would learn never to stop."""
        if self.template.ends or not found or found[-1][1] != last:
            return self.text, found
        text = self.text[: found[-1][1]].rstrip() + self.template.eos
        return text, [*found[:-1], (found[-1][0], len(text))]


def neighbours(runs: list[Run]) -> Iterable[tuple[Run | None, Run, Run | None]]:
    return zip([None, *runs], runs, [*runs[1:], None], strict=False)
