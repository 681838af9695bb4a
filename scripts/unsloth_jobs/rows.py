"""A sample of the rows as the job would train on them: lengths, masks, and what would be lost."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from .errors import UserError


@dataclass(frozen=True)
class Sample:
    """The first `sampled` rows of a data set, through the template's own functions. Lengths are before the cut."""

    format: str
    columns: list[str]
    used: dict[str, str]
    rows: int | None  # of the whole split, where the data set says so
    sampled: int
    lengths: list[int] = field(repr=False)
    supervised_fraction: float
    lost: dict[str, int]  # rows that teach nothing, by reason
    cut: int
    segments: list[dict[str, Any]] = field(repr=False)

    @property
    def rows_without_answer(self) -> int:
        return sum(self.lost.values())

    @property
    def mean(self) -> float:
        return statistics.fmean(self.lengths) if self.lengths else 0.0

    def percentile(self, share: float) -> int:
        return sorted(self.lengths)[min(int(share * len(self.lengths)), len(self.lengths) - 1)] if self.lengths else 0

    def tokens_per_row(self, max_length: int) -> float:
        """Mean tokens of a row as trained: cut at max_length."""
        return statistics.fmean(min(length, max_length) for length in self.lengths) if self.lengths else 0.0


def sample(template: ModuleType, settings: Any, limit: int) -> Sample:
    """Read, normalise, render, tokenise and mask up to `limit` rows. Raises UserError with the template's reason."""
    try:
        return _sample(template, settings, limit)
    except template.Stop as stop:
        raise UserError(stop.code, stop.message, stop.fix) from stop


def _sample(template: ModuleType, settings: Any, limit: int) -> Sample:
    from transformers import AutoTokenizer

    stream = template.load_rows(settings, streaming=True)
    taken = list(itertools.islice(stream, limit + 1))
    if not taken:
        raise template.Stop("no_rows", "The split of the data set has no rows.", "Choose another with --dataset-split.")
    layout = template.detect_format(taken[0].keys(), settings.prompt_column, settings.completion_column)
    try:
        tokenizer = AutoTokenizer.from_pretrained(settings.base_model, revision=settings.base_model_revision or None)
    except (OSError, ValueError) as error:
        raise template.Stop(
            "no_tokenizer",
            f"{settings.base_model} has no tokenizer that can be loaded: {error}",
            "Choose a model whose repository holds a tokenizer.json.",
        ) from error
    renderer = template.make_renderer(tokenizer, layout)
    lengths, lost, cut, supervised, kept = [], {}, 0, 0, 0
    shown: list[dict[str, Any]] = []
    for row in taken[:limit]:
        try:
            example = renderer.encode(template.normalise_row(row, layout), settings.max_seq_length)
        except ValueError as error:
            lost[str(error)] = lost.get(str(error), 0) + 1
            continue
        lengths.append(example.total_tokens)
        cut += example.total_tokens > settings.max_seq_length
        learned = sum(label != template.IGNORE for label in example.labels)
        if not learned:
            reason = "answer cut away" if example.total_supervised else "no answer"
            lost[reason] = lost.get(reason, 0) + 1
            continue
        supervised, kept = supervised + learned, kept + len(example.input_ids)
        shown = shown or template.segments(tokenizer, example)
    return Sample(
        format=layout.name,
        columns=list(taken[0].keys()),
        used=layout.columns,
        rows=len(taken) if len(taken) <= limit else rows_said(stream),
        sampled=min(len(taken), limit),
        lengths=lengths,
        supervised_fraction=supervised / max(kept, 1),
        lost=lost,
        cut=cut,
        segments=shown,
    )


def rows_said(stream: Any) -> int | None:
    """Rows of the split by the data set's own metadata."""
    splits = stream.info.splits or {}
    return splits[str(stream.split)].num_examples if str(stream.split) in splits else None
