"""Local files of rows.

They are read here and not by datasets: it infers one type for each column, which rows with tools, names or weights do
not have, and ends the process over a line that is no object. The job reads them with these functions and check.py
too, so that they see the same rows.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .columns import ROW_EXAMPLE
from .csv_tables import csv_rows, table_of
from .encodings import bad_line, encoding_of, is_packed, kind_of
from .json_readers import json_rows, text_rows
from .report import Stop
from .rows import as_cell
from .settings import DatasetSettings
from .workbooks import choose_sheet, open_workbook, sheet_rows

COLUMN_LIMIT = 1_000


def local_file(settings: DatasetSettings) -> Path | None:
    """The file that file_rows reads; None for a Parquet file, a folder or a data set on the Hub. Raises Stop."""
    path = Path(os.path.expanduser(settings.dataset))
    if not path.is_file():
        return None
    packed = is_packed(path)
    kind = kind_of(path)
    if kind not in (PACKED_KINDS if packed else FILE_KINDS):
        fix = CONVERSIONS.get(path.suffix.lower(), OTHER_KIND).format(file=shlex.quote(str(path)))
        raise Stop("unknown_file", f"{path.name} is none of {', '.join(FILE_KINDS)} (text also as .gz).", fix)
    require_content(path, ".gz" if packed else kind)
    return None if kind == ".parquet" else path


def require_content(file: Path, kind: str) -> None:
    """Raises Stop where a file's first bytes are of another kind than its name says."""
    with file.open("rb") as opened:
        start = opened.read(8)
        found = next((one for mark, one in SIGNATURES.items() if start.startswith(mark)), None)
        if found == OLE and "EncryptedPackage".encode("utf-16-le") in opened.read(OLE_BYTES):
            fix = "Open it in a spreadsheet program and save it again as .xlsx, without a password."
            raise Stop("dataset_unreadable", f"{file.name} is protected by a password.", fix)
    expected = SIGNED.get(kind)
    if found != expected:
        what = f"it begins as {found or 'plain text'} does" if start else "it is empty"
        fix = f"Rename it by what it is, or save it again as {kind}." if start else "Write it again."
        raise Stop("dataset_unreadable", f"{file.name} is no {kind} file: {what}.", fix)


def file_rows(file: Path, sheet: str = "") -> Iterator[dict[str, str | None]]:
    """The rows of a local file, each value as text. Raises Stop at the first that is not sound, with its line's number."""
    for line, row in READERS[kind_of(file)](file, sheet):
        try:
            yield {name: as_cell(value) for name, value in row.items()}
        except RecursionError:
            raise bad_line(file, line, "is nested too deeply", "Keep such a value as text.") from None


class Scan(NamedTuple):
    """What a local file holds, read to its end."""

    columns: list[str]  # of all rows
    rows: int
    first: list[dict[str, str | None]]
    read_as: dict[str, str]  # what the name does not say: encoding, delimiter, sheet


def scan_file(file: Path, keep: int, sheet: str = "") -> Scan:
    """Read a file to its end and keep its first rows. sheet: of a workbook that has several.

    Raises Stop where a row is not sound, or there is none.
    """
    columns: dict[str, None] = {}
    first: list[dict[str, str | None]] = []
    count = 0
    for count, row in enumerate(file_rows(file, sheet), 1):
        columns.update(dict.fromkeys(row))
        if len(columns) > COLUMN_LIMIT:
            raise Stop(
                "dataset_unreadable",
                f"The first {count:,} rows of {file.name} have more than {COLUMN_LIMIT:,} different columns.",
                "Give each row the same few names: " + ROW_EXAMPLE,
            )
        if count <= keep:
            first.append(row)
    if not columns:
        raise Stop(
            "no_rows", f"{file.name} holds no rows.", "Write a row into each line, below the names of a table's columns."
        )
    return Scan(list(columns), count, [{**dict.fromkeys(columns), **row} for row in first], what_is_found(file, sheet))


def what_is_found(file: Path, sheet: str) -> dict[str, str]:
    """What a file's name does not say of how it is read: {"sheet"} or {"encoding", "delimiter"?}. Raises Stop."""
    kind = kind_of(file)
    if kind in SHEETS:
        with open_workbook(file, data_only=True) as book:
            return {"sheet": choose_sheet(file, book, sheet)}
    text = {"encoding": encoding_of(file)}
    return text | {"delimiter": table_of(file)[0]} if kind in TABLES else text


SHEETS, TABLES = (".xlsx", ".xlsm"), (".csv", ".tsv")
READERS: dict[str, Callable[[Path, str], Iterator[tuple[int, dict[str, Any]]]]] = {
    **dict.fromkeys((".jsonl", ".json"), lambda file, sheet: json_rows(file)),
    **dict.fromkeys(TABLES, lambda file, sheet: csv_rows(file)),
    ".txt": lambda file, sheet: text_rows(file),
    **dict.fromkeys(SHEETS, sheet_rows),
}
FILE_KINDS = (*READERS, ".parquet")
PACKED_KINDS = tuple(kind for kind in READERS if kind not in SHEETS)
OTHER_KIND = "Save it as .jsonl, an object in each line, or as .csv or .xlsx: each row needs a question and an answer."
SPREADSHEET = "Open it in the spreadsheet program and save it as .xlsx, with the names of the columns in the first row."
TEXT_ALONE = (
    "A document is no rows. Write a .csv of questions and answers about it: they teach what it says better than its text."
)
CONVERSIONS = {
    ".gz": "Unpack it: gunzip {file}", ".zip": "Unpack it: unzip {file}", ".bz2": "Unpack it: bunzip2 {file}",
    ".xz": "Unpack it: unxz {file}", ".zst": "Unpack it: unzstd {file}", ".tgz": "Unpack it: tar xf {file}",
    ".tar": "Unpack it: tar xf {file}", ".ndjson": "Rename it: mv {file} rows.jsonl",
    ".xls": SPREADSHEET, ".xlsb": SPREADSHEET, ".ods": SPREADSHEET, ".numbers": SPREADSHEET,
    ".pdf": TEXT_ALONE, ".docx": TEXT_ALONE, ".md": TEXT_ALONE, ".html": TEXT_ALONE,
}  # fmt: skip
ZIP, GZIP, PARQUET, OLE = "a .xlsx or .zip", "a .gz", "a .parquet", "an old .xls"
OLE_BYTES = 50_000_000  # in which the name of its sealed part is looked for
SIGNATURES = {
    b"PK\x03\x04": ZIP, b"\x1f\x8b": GZIP, b"PAR1": PARQUET, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": OLE, b"%PDF": "a .pdf",
}  # fmt: skip
SIGNED = {".xlsx": ZIP, ".xlsm": ZIP, ".gz": GZIP, ".parquet": PARQUET}


def sha256_of(file: Path | str) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def file_digest(file: Path) -> str:
    """What a file on this machine has instead of a revision."""
    return "sha256:" + sha256_of(file)
