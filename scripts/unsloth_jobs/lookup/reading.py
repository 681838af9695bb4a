"""What was read into a data set that its file does not say, and that its owner should look at."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from ..errors import Problem
from ..training.rows import from_cell, is_no_text, is_part
from .table import Table

QUOTED, LONGEST = 3, 60  # words, characters
ANSWERS = ("completion", "output")  # roles of a column


def check_reading(table: Table) -> list[Problem]:
    """An encoding that was guessed, and answers that become text in a way that is not the only one."""
    problems = []
    if table.read_as.get("encoding") == "cp1252":
        words = ", ".join(foreign_words(table))
        problems.append(
            Problem(
                "encoding_guessed",
                "warning",
                f"The file is not UTF-8. It is read as Windows-1252{f': {words}' if words else ''}.",
                "Right if these words are. If not, save it as CSV UTF-8, or convert it: iconv -f ITS-ENCODING -t UTF-8",
            )
        )
    if written := [answer for answer in answers_of(table) if is_no_text(answer)]:
        example = json.dumps(written[0], ensure_ascii=False, default=str)
        shown = example if len(example) <= LONGEST else example[:LONGEST] + "…"
        problems.append(
            Problem(
                "answers_as_json",
                "warning",
                f"In {len(written)} of the first {table.sampled} rows an answer is no text but an object, a list, a number or a "
                f"truth value: it is learned as its JSON text, {shown}",
                "Fine where the model is to write JSON. For other words, write the answers as text.",
            )
        )
    return problems


def foreign_words(table: Table) -> list[str]:
    """The first words with a letter beyond ASCII, as they are read."""
    texts = (value for row in table.first for value in row.values() if isinstance(value, str))
    words = (word for text in texts for word in re.findall(r"\w*[^\W\x00-\x7f]\w*", text))
    return list(dict.fromkeys(word for word, _ in zip(words, range(100), strict=False)))[:QUOTED]


def answers_of(table: Table) -> Iterator[Any]:
    """What each row gives as an answer, before it becomes text; of a conversation, the first that is an object."""
    columns = [table.used[role] for role in ANSWERS if role in table.used]
    for row in table.first:
        if columns:
            yield from_cell(row.get(columns[0]))
        elif table.format in ("messages", "sharegpt"):
            turns = from_cell(row.get(table.used.get("messages", "")))
            contents = (
                (turn.get("content", turn.get("value")) for turn in turns if isinstance(turn, dict))
                if isinstance(turns, list)
                else ()
            )
            yield next((one for one in contents if isinstance(one, dict) and not is_part(one)), None)
