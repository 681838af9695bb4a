"""Sequences of several lengths as one batch."""

from __future__ import annotations

from typing import Any

from .masks import IGNORE


def padded(rows: list[tuple[list[int], list[int]]], filler: int, multiple: int) -> dict[str, Any]:
    """Token ids and labels of some sequences as input_ids, attention_mask and completion_mask (1 where a label is)."""
    import torch

    width = -(-max(len(ids) for ids, _ in rows) // multiple) * multiple
    fill = lambda values, filling: values + [filling] * (width - len(values))  # noqa: E731
    return {
        "input_ids": torch.tensor([fill(ids, filler) for ids, _ in rows]),
        "attention_mask": torch.tensor([fill([1] * len(ids), 0) for ids, _ in rows]),
        "completion_mask": torch.tensor([fill([int(label != IGNORE) for label in labels], 0) for _, labels in rows]),
    }
