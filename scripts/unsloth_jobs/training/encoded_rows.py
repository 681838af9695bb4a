"""Rows through the tokenizer, and what becomes of them: the same for answers to imitate and for preferences."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any


def map_rows(rows: Any, encode: Callable[[Mapping[str, list]], dict[str, list]], features: Any, at_once: int) -> Any:
    """A datasets.Dataset of what encode makes of each batch of rows, by several processes where they are many."""
    return rows.map(
        encode,
        batched=True,
        batch_size=at_once,
        remove_columns=rows.column_names,
        features=features,
        num_proc=min(os.cpu_count() or 1, 16) if len(rows) > 5000 else None,
        desc="Rows to tokens",
    )


def as_rows(columns: Mapping[str, list]) -> list[dict[str, Any]]:
    """A batch as datasets gives it, row by row."""
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def keep_learned(encoded: Any) -> tuple[Any, dict[str, Any]]:
    """The rows that teach something, and a summary of all. Columns read: dropped (the reason, "" for none), cut, length,
    supervised (both in tokens).
    """
    reasons = dict(Counter(filter(None, encoded["dropped"])))
    kept = encoded.filter(lambda reason: not reason, input_columns="dropped")
    tokens, learned = sum(kept["length"]), sum(kept["supervised"])
    return kept, {
        "rows": len(encoded),
        "rows_kept": len(kept),
        "rows_without_answer": len(encoded) - len(kept),
        "dropped": reasons,
        "rows_cut": sum(encoded["cut"]),
        "tokens": tokens,
        "supervised_tokens": learned,
        "supervised_fraction": round(learned / max(tokens, 1), 4),
    }
