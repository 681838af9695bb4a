"""JSON files of a data set, looked through before datasets reads them: pyarrow ends the process over some of their lines."""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Iterable
from pathlib import Path

from .columns import ROW_EXAMPLE
from .encodings import bad_line
from .rows import ROW_LIMIT

STARTS = 32  # files of which the start is read before datasets streams them
START_BYTES = 11_000_000  # of the first one: datasets parses 10 MiB before it gives the first row
NEXT_BYTES = 64_000  # of each other


def require_sound_starts(splits: Iterable[list[str]], rows: float = math.inf) -> None:
    """What the first rows of each split are streamed from. Raises Stop on a null, and on a line that takes too much memory."""
    for files in splits:
        lines = 0
        for number, file in enumerate(files[:STARTS]):
            if lines < rows:
                lines += scan_lines(file, START_BYTES if number == 0 else NEXT_BYTES)


def require_no_null(splits: Iterable[list[str]]) -> None:
    """Every line that the job will read, of the copies that datasets reads. Raises Stop on a null."""
    from datasets.utils.file_utils import cached_path

    for file in itertools.chain.from_iterable(splits):
        scan_lines(cached_path(file))


def scan_lines(file: str, most: int | None = None) -> int:
    """How many lines were read, 0 of a document. Raises Stop on a line `null` among the first `most` bytes (of all): pyarrow may end the process over it, without a
    word, wherever it stands. Where `most` is given, also on a line that is longer than a row may be.
    """
    import fsspec  # type: ignore[import-untyped]

    system, path = fsspec.url_to_fs(file)
    with system.open(path, "rb", compression="infer", block_size=min(most or START_BYTES, 5_000_000)) as opened:
        lines = io.BufferedReader(opened)
        start = lines.peek(100).removeprefix(b"\xef\xbb\xbf").lstrip()
        if re.match(rb"\[\s*null\b", start):
            raise bad_line(Path(path), 1, "begins with null, not with an object with the columns of a row", ROW_EXAMPLE)
        if re.match(rb"\[|\{\s*\n", start):
            return 0  # a document, in which a null may well have a line of its own
        number, at, is_start = 0, 0, True
        while (most is None or at < most) and (piece := lines.readline(ROW_LIMIT + 1)):
            number, at = number + is_start, at + len(piece)
            if is_start and piece[:100].strip(b"\xef\xbb\xbf \t\r\n") == b"null":
                raise bad_line(Path(path), number, "is null, not an object with the columns of a row", ROW_EXAMPLE)
            if most and len(piece) > ROW_LIMIT:
                what = f"is longer than {ROW_LIMIT // 10**6} MB, and no model reads that much at once"
                raise bad_line(Path(path), number, what, "Split it into shorter rows, or train on a copy without it.")
            is_start = piece.endswith(b"\n")
    return number
