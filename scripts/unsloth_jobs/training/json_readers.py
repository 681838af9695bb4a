"""Rows of .jsonl, .json and .txt files; the line that is wrong is named."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .columns import ROW_EXAMPLE
from .encodings import bad_line, kind_of, numbered_lines, open_text
from .report import Stop
from .rows import ROW_LIMIT

DOCUMENT_LIMIT = 200_000_000  # characters of a .json file that is read whole
NumberedRows = Iterator[tuple[int, dict[str, Any]]]


def json_rows(file: Path) -> NumberedRows:
    """Rows of a file with an object in each line, or of one that is a JSON document."""
    if first_character(file) == "[":
        yield from document_rows(file)
        return
    began = False
    for number, line in numbered_lines(file):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            if not began and (line.strip() == "{" or kind_of(file) == ".json"):  # an object over several lines
                yield from document_rows(file)
                return
            raise broken(file, number, error) from None
        began = True
        yield number, require_object(file, number, value)
    if not began:
        raise Stop("dataset_unreadable", f"{file.name} is empty.", "Write a row into each line of it.")


def first_character(file: Path) -> str:
    with open_text(file) as text:
        return text.read(1000).lstrip()[:1]


def document_rows(file: Path) -> NumberedRows:
    """Rows of a list of objects, or of objects that stand one after the other, whatever lines they are on."""
    with open_text(file) as opened:
        text = opened.read(DOCUMENT_LIMIT + 1)
    if len(text) > DOCUMENT_LIMIT:
        raise Stop(
            "dataset_unreadable",
            f"{file.name} is a JSON document of more than {DOCUMENT_LIMIT // 10**6} MB, which is not read whole.",
            f"Write a row into each line: jq -c '.[]' {shlex.quote(file.name)} > rows.jsonl",
        )
    at, line, decoder = space_after(text, 0), 1, json.JSONDecoder()
    line += text.count("\n", 0, at)
    listed = text.startswith("[", at)
    at += listed
    while (start := space_after(text, at)) < len(text):
        line += text.count("\n", at, start)
        if listed and text.startswith("]", start):
            if (more := space_after(text, start + 1)) < len(text):
                raise bad_line(
                    file, line + text.count("\n", start, more), "goes on after the list of rows has ended", ROW_EXAMPLE
                )
            return
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            raise broken(file, line + text.count("\n", start, getattr(error, "pos", start)), error) from None
        if end - start > ROW_LIMIT:
            raise bad_line(
                file, line, f"begins a row longer than {ROW_LIMIT // 10**6} MB", "Split it into several rows, or remove it."
            )
        yield line, require_object(file, line, value)
        line += text.count("\n", start, end)
        at = space_after(text, end)
        line += text.count("\n", end, at)
        if listed and text.startswith(",", at):
            at += 1
        elif listed and at < len(text) and text[at] != "]":
            raise bad_line(file, line, "is where a comma or the end of the list is missing", ROW_EXAMPLE)
    if listed:
        raise bad_line(
            file, line, "is the last one, and the list of rows has not ended: the file is cut off", "Write it again."
        )


def space_after(text: str, at: int) -> int:
    """Where the next character that is no space stands."""
    return re.compile(r"\s*").match(text, at).end()  # type: ignore[union-attr]


def require_object(file: Path, line: int, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise bad_line(file, line, f"is {json.dumps(value)[:40]}, not an object with the columns of a row", ROW_EXAMPLE)
    return value


def broken(file: Path, line: int, error: Exception) -> Stop:
    why = "it is nested too deeply" if isinstance(error, RecursionError) else getattr(error, "msg", str(error))
    return bad_line(file, line, f"is not sound JSON: {why}", "Mend or remove that line. " + ROW_EXAMPLE)


def text_rows(file: Path) -> NumberedRows:
    for number, line in numbered_lines(file):
        if line.strip():
            yield number, {"text": line.rstrip("\r\n")}
