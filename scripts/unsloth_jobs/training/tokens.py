"""The rows of a data set as tokens, with what is lost and why."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from typing import Any

from .columns import Format
from .encoded_rows import as_rows, keep_learned, map_rows
from .masks import IGNORE, Example, Renderer
from .report import Stop
from .rows import normalise_row
from .trace import Span

ROWS_AT_ONCE = 64  # through the tokenizer
DIGESTED = 8  # rows


def encode_rows(rows: Any, renderer: Renderer, layout: Format, max_length: int) -> tuple[Any, dict[str, Any]]:
    """rows as input_ids, labels and length; those that teach nothing are left out, and counted by reason."""
    from datasets import Features, Value

    numbers, number = [Value("int64")], Value("int64")
    kinds = {"input_ids": numbers, "labels": numbers, "length": number, "supervised": number}
    features = Features(kinds | {"cut": Value("bool"), "dropped": Value("string")})  # a batch of empty rows tells none

    def encode(columns: Mapping[str, list]) -> dict[str, list]:
        made = [as_encoded(example, max_length) for example in examples_of(renderer, layout, as_rows(columns))]
        return {name: [one[name] for one in made] for name in made[0]}

    kept, summary = keep_learned(map_rows(rows, encode, features, ROWS_AT_ONCE))
    return kept.select_columns(["input_ids", "labels", "length"]), summary


def examples_of(renderer: Renderer, layout: Format, rows: Iterable[Mapping[str, Any]]) -> list[Example | str]:
    """Each row's example, whole, or the reason why it has none."""
    rendered: list[tuple[str, list[Span]] | str] = []
    for row in rows:
        try:
            rendered.append(renderer.render(normalise_row(row, layout)))
        except ValueError as error:
            rendered.append(str(error))
    made = iter(renderer.examples([one for one in rendered if not isinstance(one, str)]))
    return [one if isinstance(one, str) else next(made) for one in rendered]


def as_encoded(example: Example | str, max_length: int) -> dict[str, Any]:
    """An example cut at max_length, or the reason why there is none, as encode_rows keeps it."""
    if isinstance(example, str):
        return {"input_ids": [], "labels": [], "length": 0, "supervised": 0, "cut": False, "dropped": example}
    trained = example.cut(max_length)
    supervised = len(trained.labels) - trained.labels.count(IGNORE)
    return {
        "input_ids": trained.input_ids,
        "labels": trained.labels,
        "length": len(trained.input_ids),
        "supervised": supervised,
        "cut": example.total_tokens > max_length,
        "dropped": "" if supervised else "answer cut away" if example.total_supervised else "no answer",
    }


def digest_of(renderer: Renderer, layout: Format, rows: Iterable[Mapping[str, Any]]) -> str:
    """The first rows' token ids in 16 characters: check.py and the job compare what each of them read."""
    examples = examples_of(renderer, layout, itertools.islice(rows, DIGESTED))
    ids = [None if isinstance(example, str) else example.input_ids for example in examples]
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]


def require_supervised(masks: Mapping[str, Any]) -> None:
    if not masks["supervised_tokens"]:
        why = ", ".join(f"{count} × {reason}" for reason, count in masks["dropped"].items())
        raise Stop(
            "nothing_supervised",
            f"Not one token of the data set would be learned: {why}.",
            "Look at the rows' answers, or pass a larger --max-seq-length.",
        )
