"""How long answers take to be written: a pass through all layers for each token of a batch, however many rows it has."""

from __future__ import annotations

import math

from ..training.generation import MOST_ROWS
from .history import Range

# Seconds per decoder layer and token: of a batch at best and at worst, and more with each of its rows. Those of three shapes
# on an H200 (benchmarks/rewards-speed.csv) lie between; on a slower GPU arithmetic comes on top (rewards.py).
TOKEN_S = (0.0002, 0.004)
ROW_S = 8e-6


def writing_seconds(layers: int, tokens: Range, rows: float) -> Range:
    """Of a batch of so many rows, the longest of which takes so many tokens, at best and at worst."""
    low, high = (layers * (pace + ROW_S * rows) for pace in TOKEN_S)
    return Range(tokens.low * low, tokens.high * high)


def answering_seconds(layers: int, tokens: Range, questions: int) -> Range:
    """In which one model answers so many questions, in batches as the template makes them, in so many tokens each."""
    batches = math.ceil(questions / MOST_ROWS)
    return writing_seconds(layers, tokens, questions / max(batches, 1)).times(batches)
