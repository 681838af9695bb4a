"""Rows of a sheet of an .xlsx workbook, each cell as the text that a reader sees in it."""

from __future__ import annotations

import contextlib
import datetime
import re
import shlex
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .encodings import BLOCK
from .report import Stop

WORKBOOK_LIMIT = 1_000_000_000  # bytes that a workbook may unpack to
FORMULA, FORMULA_BYTES = re.compile(rb"<(\w{1,20}:)?f[\s>]"), 24
AGAIN = "Open it in a spreadsheet program and save it again as .xlsx."
NAMES_FIRST = "Write each column's name into the first row of the sheet, with no title above it and no merged cells."


def sheet_rows(file: Path, sheet: str = "") -> Iterator[tuple[int, dict[str, str | None]]]:
    """The rows of a sheet with their numbers, by the columns that its first row names. sheet: its name, where there are several.

    Hidden rows and columns are read like others; empty rows are left out. Raises Stop.
    """
    with contextlib.ExitStack() as opened:
        values = opened.enter_context(open_workbook(file, data_only=True))
        name = choose_sheet(file, values, sheet)
        pairs: Iterable[tuple[Any, Any]] = ((row, row) for row in cells_of(values[name]))
        if holds_formulas(file):
            formulas = opened.enter_context(open_workbook(file, data_only=False))
            pairs = zip(cells_of(values[name]), cells_of(formulas[name]), strict=True)
        columns: list[str] = []
        for number, (shown, written) in enumerate(pairs, 1):
            cells = [cell_shown(file, name, *pair) for pair in zip(shown, written, strict=True)]
            if not any(cells):
                continue
            if not columns:
                columns = header_names(file, name, cells)
                continue
            if any(cells[len(columns) :]):
                raise unnamed(file, name, next(place for place in range(len(columns), len(cells)) if cells[place]))
            yield number, {**dict.fromkeys(columns), **dict(zip(columns, cells, strict=False))}


@contextlib.contextmanager
def open_workbook(file: Path, data_only: bool) -> Iterator[Any]:
    """A workbook, read as it is iterated over. Raises Stop where it is damaged, in whatever part."""
    import openpyxl  # type: ignore[import-untyped]

    warnings.filterwarnings("ignore", module="openpyxl")  # of styles and validations, which are not read
    try:
        with zipfile.ZipFile(file) as packed:
            unpacked = sum(member.file_size for member in packed.infolist())
        if unpacked > WORKBOOK_LIMIT:
            what = f"unpacks to more than {WORKBOOK_LIMIT // 10**6:,} MB"
            raise Stop("dataset_unreadable", f"{file.name} {what}.", "Save its sheet as CSV UTF-8, which is read row by row.")
        book = openpyxl.load_workbook(file, read_only=True, data_only=data_only)
        try:
            yield book
        finally:
            book.close()
    except Stop:
        raise
    except Exception as error:  # zip, XML and openpyxl each have their own
        message = f"{file.name} cannot be read as a workbook: {type(error).__name__}: {error}"
        raise Stop("dataset_unreadable", message, AGAIN) from error


def holds_formulas(file: Path) -> bool:
    with zipfile.ZipFile(file) as packed:
        for name in packed.namelist():
            with packed.open(name) as content:
                before = b""
                while "worksheets/" in name and (block := content.read(BLOCK)):
                    if FORMULA.search(before + block):
                        return True
                    before = block[-FORMULA_BYTES:]
    return False


def choose_sheet(file: Path, book: Any, wanted: str) -> str:
    """The sheet that is asked for, hidden or not, or the only visible one that holds anything. Raises Stop."""
    every = [sheet.title for sheet in book.worksheets]
    if wanted in every:
        return wanted
    names = [sheet.title for sheet in book.worksheets if sheet.sheet_state == "visible" and holds_cells(sheet)]
    listed = ", ".join(names or every)
    if wanted:
        message = f"{file.name} has no sheet {wanted!r}; it has: {', '.join(every)}."
        raise Stop("unknown_config", message, f"Pass --dataset-config {shlex.quote((names or every)[0])}.")
    if not names:
        message = f"{file.name} holds no rows in a visible sheet; its sheets: {listed}."
        raise Stop("no_rows", message, "Write the columns' names into the first row and a row of data into each below.")
    if len(names) > 1:
        fix = f"Pass one of them: --dataset-config {shlex.quote(names[0])}."
        raise Stop("config_needed", f"{file.name} has more than one sheet: {listed}.", fix)
    return names[0]


def holds_cells(sheet: Any) -> bool:
    return any(one.value is not None for row in cells_of(sheet) for one in row)


def cells_of(sheet: Any) -> Iterator[tuple[Any, ...]]:
    """All rows of a sheet, whatever size it states: some programs state a wrong one, or that of a formatted column."""
    sheet.reset_dimensions()
    return sheet.iter_rows()


def cell_shown(file: Path, sheet: str, shown: Any, written: Any) -> str | None:
    """A cell's text; None where it is empty or holds an error, #N/A say. Raises Stop at a formula without its value."""
    value = shown.value
    if value is None and written.data_type == "f" and shown.data_type != "str":  # that is an empty text as its value
        message = f"Cell {written.coordinate} of sheet {sheet!r} of {file.name} holds a formula, and its value is not stored."
        raise Stop("dataset_unreadable", message, f"{AGAIN} It stores the values.")
    return None if shown.data_type == "e" else text_shown(value)


def text_shown(value: Any) -> str | None:
    """A cell's value in plain text: 3 and not 3.0, 0.3 and not 0.30000000000000004, dates as ISO 8601; None where it is blank."""
    if isinstance(value, str):
        text = value.replace("_x000D_\n", "\n").replace("_x000D_", "\n")  # as workbooks write a carriage return
        return text if text.strip() else None
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.15g}"
    if isinstance(value, datetime.datetime):
        day = (value + datetime.timedelta(milliseconds=500)).replace(microsecond=0)
        return str(day.date() if day.time() == datetime.time() else day)
    if isinstance(value, datetime.timedelta):
        seconds = round(value.total_seconds())
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return None if value is None else str(value)


def header_names(file: Path, sheet: str, cells: list[str | None]) -> list[str]:
    """The names of the columns. Raises Stop where one but the first, a table's index, has none, or two have the same."""
    while cells[-1] is None:
        cells = cells[:-1]
    names = [(name or "").strip() for name in cells]
    if "" in names[1:]:
        raise unnamed(file, sheet, names.index("", 1))
    names[0] = names[0] or "column 1"
    if twice := next((name for place, name in enumerate(names) if name in names[:place]), None):
        message = f"The first row of sheet {sheet!r} of {file.name} names a column twice: {twice}."
        raise Stop("dataset_unreadable", message, "Give each column a name of its own.")
    return names


def unnamed(file: Path, sheet: str, place: int) -> Stop:
    from openpyxl.utils import get_column_letter  # type: ignore[import-untyped]

    letter = get_column_letter(place + 1)
    message = f"Column {letter} of sheet {sheet!r} of {file.name} has no name: its cell in the first row is empty or merged with another."
    return Stop("dataset_unreadable", message, NAMES_FIRST)
