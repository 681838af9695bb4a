"""Rows of .csv and .tsv files: the delimiter is found, and the line that is wrong is named."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from .encodings import bad_line, numbered_lines
from .rows import ROW_LIMIT

DELIMITERS = ",;\t|"
SAMPLE_LINES = 50
STATED = re.compile("sep=([,;\t|:^])\r?\n?")  # the first line by which Excel is told the delimiter


def csv_rows(file: Path) -> Iterator[tuple[int, dict[str, str | None]]]:
    """Rows of a table whose first line names the columns, with the lines they begin at; every value is text. Raises Stop."""
    csv.field_size_limit(ROW_LIMIT)
    began = 1
    try:
        delimiter, skipped, lines = table_of(file)
        # Strict: a quote that is never closed is an error, and swallows no rows.
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        began += skipped
        columns = column_names(file, began, next((row for row in reader if any(row)), []))
        began = reader.line_num + 1 + skipped
        for values in reader:
            if any(values[len(columns) :]):
                what = f"has {len(values)} cells, and there are {len(columns)} columns"
                fix = f"Put a cell that holds {delimiter!r} between quotes, or save it again from a spreadsheet."
                raise bad_line(file, began, what, fix)
            if any(values):
                yield began, {**dict.fromkeys(columns), **dict(zip(columns, values, strict=False))}
            began = reader.line_num + 1 + skipped
    except csv.Error as error:
        raise bad_line(
            file,
            began,
            f"begins a row whose quotes do not match: {error}",
            'Close each cell that begins with a quote, and write a quote within it twice: "". Or save the file again from a spreadsheet.',
        ) from None


def table_of(file: Path) -> tuple[str, int, Iterator[str]]:
    """A table's delimiter, how many lines stand before its columns' names, and the lines from these on. Raises Stop."""
    lines = (line for _, line in numbered_lines(file, newline=""))
    first = next(lines)
    if stated := STATED.fullmatch(first):
        return stated[1], 1, lines
    start = [first, *itertools.islice(lines, SAMPLE_LINES - 1)]
    return find_delimiter(start), 0, itertools.chain(start, lines)


def find_delimiter(lines: list[str]) -> str:
    """The character that most often divides rows into as many cells as there are columns, and of those into the most."""

    def fit(mark: str) -> tuple[bool, float, int]:
        names, *rows = [row for row in csv.reader(lines, delimiter=mark) if row] or [[]]
        whole = rows[:-1] or rows  # the last one may be cut off
        return len(names) > 1, sum(len(row) == len(names) for row in whole) / max(len(whole), 1), len(names)

    return max(DELIMITERS, key=fit)


def column_names(file: Path, line: int, cells: list[str]) -> list[str]:
    """The names of a table's columns, as its first line that is not empty has them. Raises Stop where one stands there twice."""
    columns = [name.strip() or f"column {place}" for place, name in enumerate(cells, 1)]
    if len(set(columns)) < len(columns):
        raise bad_line(file, line, f"names a column twice: {', '.join(columns)}", "Give each column a name of its own.")
    return columns
