"""Markers around the texts of messages: what a rendering shows of them, and where."""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .tool_calls import with_calls

MARKER = "qXz7"  # lengthened for a row that holds it
Span = tuple[int, int]
NOBODY = -2


class Mark(NamedTuple):
    """A marker within a text of a message: whose, of which kind, and where in that text."""

    owner: int
    kind: str  # "text", "name" or "argument"
    text: str
    at: int


class Run(NamedTuple):
    """A stretch of the rendered text from the first to the last text of one message. marks: the first's and last's number."""

    owner: int
    start: int
    end: int
    marks: tuple[int, int]
    after: int  # characters between the last marker and end


def edges(text: str) -> Span:
    """Where a text begins and ends but for the white space around it, which templates trim."""
    return len(text) - len(text.lstrip()), len(text.rstrip())


def within_tags(text: str) -> Span:
    """The same but for a tag at its beginning, which a template may look for."""
    start, end = edges(text)
    tag = re.compile(r"<[^<>\s]{1,40}>\s*").match(text, start)
    return (tag.end(), end) if tag and tag.end() < end else (start, end)


def middle(text: str) -> Span:
    start, end = edges(text)
    return (start + end) // 2, (start + end) // 2


class Trace:
    """Messages with markers in their texts, and what rendering them shows."""

    def __init__(self, messages: list[dict], nonce: str, place: Callable[[str], Span] | None, calls: bool):
        self.nonce, self.place, self.marks = nonce, place, list[Mark]()
        self.marker = re.compile(f"{nonce}([0-9]+)q")
        self.messages = [self.marked(index, message, calls) for index, message in enumerate(messages)]

    def marked(self, owner: int, message: dict, calls: bool) -> dict:
        kept = {
            key: self.put(owner, "text", value) if key in ("content", "reasoning_content", "thinking") else value
            for key, value in message.items()
        }
        if calls and "tool_calls" in message:
            kept["tool_calls"] = with_calls(
                message["tool_calls"],
                lambda name: self.put(owner, "name", name),
                lambda value: with_texts(value, lambda text: self.put(owner, "argument", text)),
            )
        return kept

    def put(self, owner: int, kind: str, text: Any) -> Any:
        if self.place is None or not isinstance(text, str) or not text.strip():
            return text
        start, end = self.place(text)
        number = len(self.marks)
        self.marks += (Mark(owner, kind, text, start), Mark(owner, kind, text, end))
        return f"{text[:start]}{self.nonce}{number}q{text[start:end]}{self.nonce}{number + 1}q{text[end:]}"

    def read(self, traced: str) -> tuple[str, list[tuple[int, int]]]:
        """The rendered text without its markers, and each marker's place in it with its number."""
        pieces = self.marker.split(traced)
        ends = itertools.accumulate(map(len, pieces[::2]))
        return "".join(pieces[::2]), list(zip(ends, map(int, pieces[1::2]), strict=False))

    def owners(self, places: list[tuple[int, int]], writes: Callable[[int, int], int]) -> list[int]:
        """Whose each marker's place is. A call's name above its result is nobody's: the template writes it again.

        writes(owner, number): how often a message alone writes a marker.
        """
        seen = Counter[int]()
        again = [seen.update([number]) or seen[number] > 1 for _, number in places]
        owners, following = [self.marks[number].owner for _, number in places], NOBODY
        for index in reversed(range(len(places))):
            number, owner = places[index][1], owners[index]
            if not again[index]:
                following = owner
            elif following != owner and seen[number] > writes(owner, number):
                owners[index] = NOBODY
            seen[number] -= 1
        return owners

    def runs(self, text: str, places: list[tuple[int, int]], owners: list[int]) -> list[Run]:
        """Whose text stands where. A message whose texts another's interrupt has several runs."""
        runs: list[Run] = []
        there = {number for _, number in places}
        for (at, number), owner in zip(places, owners, strict=True):
            mark = self.marks[number]
            # Where the other marker of a text is lost, as with thoughts that a template drops, the text itself shows.
            alone = number ^ 1 not in there or self.place is not edges
            start, end = self.grown(text, at, mark) if alone else (at, at)
            if runs and runs[-1].owner == owner:
                last = runs[-1]
                runs[-1] = last._replace(
                    start=min(last.start, start),
                    end=max(last.end, end),
                    marks=(last.marks[0], number),
                    after=max(last.end, end) - at,
                )
            else:
                start = max(start, runs[-1].end) if runs else start
                runs.append(Run(owner, start, max(start, end), (number, number), max(start, end) - at))
        return runs

    def grown(self, text: str, at: int, mark: Mark) -> Span:
        """The stretch around a marker that equals the text which it stands in, without white space around it."""
        lead, rest = mark.text[: mark.at].lstrip(), mark.text[mark.at :].rstrip()
        before, after = text[max(at - len(lead), 0) : at], text[at : at + len(rest)]
        start, end = at - same_end(before, lead), at + same_start(after, rest)
        first, last = edges(text[start:end])
        return min(start + first, at), max(start + last, at)

    def tail(self, traced: str, run: Run | None) -> str | None:
        """What a rendering writes after a run, up to the next message's text; None where it does not show the run."""
        if run is not None:
            _, found, traced = traced.rpartition(f"{self.nonce}{run.marks[1]}q")
            if not found:
                return None
        return self.marker.split(traced, maxsplit=1)[0][run.after if run else 0 :]


def with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with each text in it replaced, but for the keys."""
    if isinstance(value, Mapping):
        return {key: with_texts(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [with_texts(item, change) for item in value]
    return change(value) if isinstance(value, str) else value


def same_start(one: str, other: str) -> int:
    return len(os.path.commonprefix([one, other]))


def same_end(one: str, other: str) -> int:
    return len(other) if one.endswith(other) else same_start(one[::-1], other[::-1])
