"""Readers of .jsonl, .json, .csv, .tsv and .txt, line by line, which name the line that is wrong."""

from __future__ import annotations

import csv
import itertools
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .columns import ROW_EXAMPLE
from .report import Stop
from .rows import ROW_LIMIT

DOCUMENT_LIMIT = 200_000_000  # bytes of a .json file that is read whole
NumberedRows = Iterator[tuple[int, dict[str, Any]]]


def bad_line(file: Path, line: int, what: str, fix: str) -> Stop:
    return Stop("dataset_unreadable", f"Line {line:,} of {file.name} {what}.", fix)


def numbered_lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file of text with their ends. Raises Stop on one that is too long or not UTF-8."""
    encode = (
        f"Save it as UTF-8. From a spreadsheet: save as CSV UTF-8. In a shell: iconv -f {{}} -t UTF-8 {shlex.quote(file.name)}"
    )
    with file.open("rb") as opened:
        for number in itertools.count(1):
            line = opened.readline(ROW_LIMIT + 1)
            if not line and number == 1:
                raise Stop("dataset_unreadable", f"{file.name} is empty.", "Write a row into each line of it.")
            if not line:
                return
            if b"\0" in line:
                raise bad_line(
                    file, number, "is not UTF-8 text: it looks like UTF-16", encode.format("UTF-16") + " > utf8" + file.suffix
                )
            if len(line) > ROW_LIMIT:
                most = f"{ROW_LIMIT // 10**6} MB"
                raise bad_line(
                    file,
                    number,
                    f"is longer than {most}, and no model reads that much at once",
                    f"Split it into rows of less than {most}, or remove it.",
                )
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                what = f"is not UTF-8 text: it holds the byte 0x{line[error.start]:02x}"
                raise bad_line(file, number, what, encode.format("WINDOWS-1252") + " > utf8" + file.suffix) from None


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
            if not began and (line.strip() == "{" or file.suffix.lower() == ".json"):  # an object over several lines
                yield from document_rows(file)
                return
            raise broken(file, number, error) from None
        began = True
        yield number, require_object(file, number, value)
    if not began:
        raise Stop("dataset_unreadable", f"{file.name} is empty.", "Write a row into each line of it.")


def first_character(file: Path) -> str:
    with file.open("rb") as opened:
        return opened.read(1000).decode("utf-8-sig", "replace").lstrip()[:1]


def document_rows(file: Path) -> NumberedRows:
    """Rows of a list of objects, or of objects that stand one after the other, whatever lines they are on."""
    if file.stat().st_size > DOCUMENT_LIMIT:
        raise Stop(
            "dataset_unreadable",
            f"{file.name} is a JSON document of more than {DOCUMENT_LIMIT // 10**6} MB, which is not read whole.",
            f"Write a row into each line: jq -c '.[]' {shlex.quote(file.name)} > rows.jsonl",
        )
    text = whole_text(file)
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


def whole_text(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")
    except UnicodeDecodeError:
        for _ in numbered_lines(file):  # finds the line, and says how to mend it
            pass
        raise


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


def csv_rows(file: Path) -> NumberedRows:
    """Rows of a table whose first line names the columns; every value is text. Spreadsheets write ; or tabs for commas, too."""
    csv.field_size_limit(ROW_LIMIT)
    lines = (line for _, line in numbered_lines(file))
    first = next(lines)
    delimiter = max(",;\t|", key=first.count)
    # Strict: a quote that is never closed is an error, and swallows no rows.
    reader = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
    began = 1
    try:
        columns = [name.strip() or f"column {place}" for place, name in enumerate(next(reader), 1)]
        if len(set(columns)) < len(columns):
            raise bad_line(file, 1, f"names a column twice: {', '.join(columns)}", "Give each column a name of its own.")
        began = reader.line_num + 1
        for values in reader:
            if any(values[len(columns) :]):
                what = f"has {len(values)} cells, and there are {len(columns)} columns"
                raise bad_line(
                    file,
                    began,
                    what,
                    f"Put a cell that holds {delimiter!r} between quotes, or save it again from a spreadsheet.",
                )
            if values:
                yield began, {**dict.fromkeys(columns), **dict(zip(columns, values, strict=False))}
            began = reader.line_num + 1
    except csv.Error as error:
        raise bad_line(
            file,
            began,
            f"begins a row whose quotes do not match: {error}",
            'Close each cell that begins with a quote, and write a quote within it twice: "". Or save the file again from a spreadsheet.',
        ) from None


def text_rows(file: Path) -> NumberedRows:
    for number, line in numbered_lines(file):
        if line.strip():
            yield number, {"text": line.rstrip("\r\n")}


READERS: dict[str, Callable[[Path], NumberedRows]] = {
    ".jsonl": json_rows, ".json": json_rows, ".csv": csv_rows, ".tsv": csv_rows, ".txt": text_rows,
}  # fmt: skip
