"""Local files of rows.

They are read here and not by datasets: it infers one type for each column, which rows with tools, names or weights do
not have, and ends the process over a line that is no object. The job reads them with these functions and check.py
too, so that they see the same rows.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .columns import ROW_EXAMPLE
from .file_readers import READERS, bad_line
from .report import Stop
from .rows import as_cell
from .settings import DatasetSettings

COLUMN_LIMIT = 1_000


def local_file(settings: DatasetSettings) -> Path | None:
    """The file that file_rows reads; None for a Parquet file, a folder or a data set on the Hub. Raises Stop."""
    path = Path(os.path.expanduser(settings.dataset))
    if not path.is_file() or path.suffix.lower() == ".parquet":
        return None
    if path.suffix.lower() not in READERS:
        raise Stop(
            "unknown_file",
            f"{path.name} is none of {', '.join(FILE_KINDS)}.",
            CONVERSIONS.get(path.suffix.lower(), OTHER_KIND).format(file=shlex.quote(str(path))),
        )
    return path


def file_rows(file: Path) -> Iterator[dict[str, str | None]]:
    """The rows of a local file, each value as text. Raises Stop at the first that is not sound, with its line's number."""
    for line, row in READERS[file.suffix.lower()](file):
        try:
            yield {name: as_cell(value) for name, value in row.items()}
        except RecursionError:
            raise bad_line(file, line, "is nested too deeply", "Keep such a value as text.") from None


class Scan(NamedTuple):
    """What a local file holds, read to its end."""

    columns: list[str]  # of all rows
    rows: int
    first: list[dict[str, str | None]]


def scan_file(file: Path, keep: int) -> Scan:
    """Read a file to its end and keep its first rows. Raises Stop where a row is not sound, or there is none."""
    columns: dict[str, None] = {}
    first: list[dict[str, str | None]] = []
    count = 0
    for count, row in enumerate(file_rows(file), 1):
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
        raise Stop("no_rows", f"{file.name} holds no rows.", "Write a row into each line, below the names of a .csv's columns.")
    return Scan(list(columns), count, [{**dict.fromkeys(columns), **row} for row in first])


FILE_KINDS = (*READERS, ".parquet")
OTHER_KIND = "Save it as .jsonl, an object in each line, or as .csv: each row needs a question and an answer."
SPREADSHEET = (
    "Open it in the spreadsheet program and save it as CSV UTF-8 (.csv), with the names of the columns in the first row."
)
CONVERSIONS = {
    ".gz": "Unpack it: gunzip {file}", ".zip": "Unpack it: unzip {file}", ".bz2": "Unpack it: bunzip2 {file}",
    ".xz": "Unpack it: unxz {file}", ".zst": "Unpack it: unzstd {file}", ".tgz": "Unpack it: tar xf {file}",
    ".tar": "Unpack it: tar xf {file}", ".ndjson": "Rename it: mv {file} rows.jsonl",
    ".xlsx": SPREADSHEET, ".xls": SPREADSHEET, ".ods": SPREADSHEET, ".numbers": SPREADSHEET,
}  # fmt: skip


def sha256_of(file: Path | str) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def file_digest(file: Path) -> str:
    """What a file on this machine has instead of a revision."""
    return "sha256:" + sha256_of(file)
