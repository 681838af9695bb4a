"""Local files of text as lines: unpacked, and decoded by what their bytes say, since a table does not state its encoding."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import itertools
import re
import shlex
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from .report import Stop
from .rows import ROW_LIMIT

BLOCK = 1_000_000  # bytes
BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
GUESS = "cp1252"  # what spreadsheets and editors on Windows write, where the bytes are not UTF-8 and do not speak against it
UNDEFINED = re.compile(b"[\x81\x8d\x8f\x90\x9d]")  # bytes that it has no character for
# What other alphabets look like when they are read so: letters with accents in a row, and signs within words.
UNLIKELY = re.compile(rb"[\xc0-\xff]{3,}|(?<=[A-Za-z\xa1-\xff])[\xa1-\xb3\xb5\xb6\xb8-\xbf](?=[A-Za-z\xa1-\xff])")


def bad_line(file: Path, line: int, what: str, fix: str) -> Stop:
    return Stop("dataset_unreadable", f"Line {line:,} of {file.name} {what}.", fix)


def kind_of(file: Path) -> str:
    """The ending that says what a file holds, .gz aside, in lower case: .jsonl of rows.JSONL.gz."""
    return Path(file.name.lower().removesuffix(".gz")).suffix


def is_packed(file: Path) -> bool:
    return file.suffix.lower() == ".gz"


def open_bytes(file: Path) -> BinaryIO:
    """A file's content, unpacked where it is a .gz."""
    return cast(BinaryIO, gzip.open(file, "rb")) if is_packed(file) else file.open("rb")


def numbered_lines(file: Path, newline: str = "\n") -> Iterator[tuple[int, str]]:
    """The lines of a file of text with their ends; newline as open takes it. Raises Stop, also at a line that is too long."""
    with open_text(file, newline) as text:
        for number in itertools.count(1):
            line = text.readline(ROW_LIMIT + 1)
            if not line and number == 1:
                raise Stop("dataset_unreadable", f"{file.name} is empty.", "Write a row into each line of it.")
            if not line:
                return
            if "\0" in line:
                raise bad_line(file, number, "is not UTF-8 text: it looks like UTF-16", recode(file, "UTF-16LE"))
            if len(line) > ROW_LIMIT:
                most = f"{ROW_LIMIT // 10**6} MB"
                what = f"is longer than {most}, and no model reads that much at once"
                raise bad_line(file, number, what, f"Split it into rows of less than {most}, or remove it.")
            yield number, line


@contextlib.contextmanager
def open_text(file: Path, newline: str = "\n") -> Iterator[io.TextIOWrapper]:
    """A file's text. Raises Stop where it cannot be unpacked or decoded."""
    try:
        encoding = encoding_of(file)
        with open_bytes(file) as content, io.TextIOWrapper(content, encoding, newline=newline) as text:
            yield text
    except UnicodeDecodeError:
        message = f"{file.name} is not the UTF-16 text that its first bytes promise."
        raise Stop("dataset_unreadable", message, "Save it again, as UTF-8.") from None
    except (EOFError, OSError, zlib.error) as error:
        if not is_packed(file):
            raise
        message = f"{file.name} cannot be unpacked: {error}."
        raise Stop("dataset_unreadable", message, "Pack or download it again: it is damaged, or no .gz file.") from None


def encoding_of(file: Path) -> str:
    """utf-8, as a byte order mark says, or the guess for a table or text. Raises Stop where it is none of these."""
    with open_bytes(file) as content:
        start = content.read(4)
    if start in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
        raise bad_line(file, 1, "begins as UTF-32 text", recode(file, "UTF-32"))
    stated = next((name for mark, name in BOMS.items() if start.startswith(mark)), "utf-8")
    if stated == "utf-16" or not (fault := first_fault(file)):
        return stated
    line, byte = fault
    western = stated == "utf-8" and may_be_guessed(file)
    if not western or kind_of(file) in (".json", ".jsonl"):
        fix = recode(file, "WINDOWS-1252" if western else "ITS-ENCODING")
        raise bad_line(file, line, f"is not UTF-8 text: it holds the byte 0x{byte:02x}", fix)
    return GUESS


def first_fault(file: Path) -> tuple[int, int] | None:
    """The line and the byte at which a file stops to be UTF-8; None where it does not."""
    decoder, line = codecs.getincrementaldecoder("utf-8")(), 1
    with open_bytes(file) as content:
        while block := content.read(BLOCK):
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                # The decoder's input begins with what it kept of the block before, less than a character.
                return line + error.object.count(b"\n", 0, error.start), error.object[error.start]
            line += block.count(b"\n")
    rest = decoder.getstate()[0]  # a character that the file's end cuts off
    return (line, rest[0]) if rest else None


def may_be_guessed(file: Path) -> bool:
    """Whether a file reads like a language of Western Europe when it is taken for Windows-1252."""
    accents = unlikely = 0
    with open_bytes(file) as content:
        while block := content.read(BLOCK):
            if UNDEFINED.search(block):
                return False
            accents += len(block) - len(block.decode("ascii", "ignore"))
            unlikely += sum(len(run[0]) for run in UNLIKELY.finditer(block))
    return unlikely * 10 <= accents


def recode(file: Path, encoding: str) -> str:
    """How to write a file as UTF-8."""
    name, plain_name = shlex.quote(file.name), f"utf8{kind_of(file)}"
    unpacked = f"gunzip -c {name} | iconv -f {encoding} -t UTF-8" if is_packed(file) else f"iconv -f {encoding} -t UTF-8 {name}"
    return f"Save it as UTF-8. From a spreadsheet: save as CSV UTF-8. In a shell: {unpacked} > {plain_name}"
