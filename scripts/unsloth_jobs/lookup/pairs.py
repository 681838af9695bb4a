"""A sample of preference data as the job would train on it: both answers of a row, and what the pairs are like."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

from .. import limits
from ..errors import Problem
from ..template import PreferenceTemplate, Template
from ..training.columns import Format
from ..training.masks import Example, Renderer
from ..training.preference_losses import LOSSES
from ..training.preference_tokens import Compared, as_pair, not_paired, pair_figures, why_dropped
from ..training.settings import TrainingSettings
from . import client
from .sample import Row, Sample, digest_of_first, load_renderer, lost_row, row_of, special_ids
from .table import Table, reasons

LONGER = 1.3  # times as long in the mean: answers of which a model learns their length
HARDLY = 0.1  # share of the pairs that may hardly differ before it is said


@dataclass(frozen=True)
class PairSample(Sample):
    """Lengths are those of a row's longest answer with its prompt, for they decide what fits; `answers` has all of them."""

    answers: list[list[int]] = field(default_factory=list, repr=False)  # of each row that is kept, its lengths before the cut
    pairs: dict[str, Any] = field(default_factory=dict)  # pair_figures; {} without pairs
    labels: dict[str, int] = field(default_factory=dict)  # single answers, by label
    segments_rejected: list[dict[str, Any]] = field(default_factory=list, repr=False)

    def tokens(self, max_length: int) -> list[int]:
        """Of each row, its answers together, each cut at max_length."""
        return [sum(min(length, max_length) for length in one) for one in self.answers]

    @property
    def supervised_fraction(self) -> float:
        return sum(row.learned for row in self.kept) / max(sum(self.tokens(self.max_length)), 1)

    @property
    def total(self) -> tuple[int, int, int] | None:
        """Tokens of the whole split's answers, each with its prompt, before the cut, and their 95% interval."""
        if self.rows is None:
            return None
        longest = self.percentile(1.0)
        tokens, error = self.tokens_per_row(longest) * self.rows, self.mean_error(longest)
        return round(tokens), round(tokens * max(1 - error, 0)), round(tokens * (1 + error))

    def tokens_per_row(self, max_length: int) -> float:
        found = self.tokens(max_length)
        return statistics.fmean(found) if found else 0.0

    def mean_error(self, max_length: int) -> float:
        found = self.tokens(max_length)
        if len(found) < 2 or self.rows == self.sampled:
            return 0.0
        return 1.96 * statistics.stdev(found) / math.sqrt(len(found)) / self.tokens_per_row(max_length)


def has_preferences(template: Template) -> TypeGuard[PreferenceTemplate]:
    """Whether a template reads preferences."""
    return hasattr(template, "read_preference")


def tokenise_pairs(template: PreferenceTemplate, settings: TrainingSettings, table: Table) -> PairSample:
    """Read, render, tokenise and mask the preferences of a table's first rows. Raises UserError."""
    with client.asking(f"model {settings.base_model}"), reasons(template):
        tokenizer, renderer = load_renderer(template, settings, table)
        special, rows, kept = special_ids(tokenizer), [], []
        with limits.bounded(settings.base_model, limits.ROWS_S):
            for raw in table.first:
                row, compared = inspect_pair(template, renderer, table.layout, special, raw, settings)
                rows.append(row)
                if not row.lost and compared:
                    kept.append(compared)
            digest = digest_of_first(template, renderer, table)
        length = settings.max_seq_length
        shown = [[] if one is None else template.segments(tokenizer, one.cut(length)) for one in (kept[0] if kept else ())]
        return PairSample(
            **vars(table),
            looked_at=rows,
            segments=next(filter(None, shown), []),
            max_length=length,
            digest=digest,
            answers=[[example.total_tokens for example in one.examples()] for one in kept],
            pairs=figures_of([one for one in kept if None not in one], length),
            labels=labels_of(kept) if any(None in one for one in kept) else {},
            segments_rejected=shown[1] if shown and shown[0] else [],
        )


def inspect_pair(
    template: PreferenceTemplate, renderer: Renderer, layout: Format, special: set[int], raw: Any, settings: Any
) -> tuple[Row, Compared | None]:
    """What becomes of one row, and its answers as tokens (None where they cannot be rendered)."""
    try:
        answers = template.read_preference(raw, layout)
        rendered = [None if answer is None else renderer.rendered(answer) for answer in answers]
    except ValueError as error:
        return lost_row(error), None
    found: list[Row] = []
    wholes: list[Example | None] = []
    for answer, text in zip(answers, rendered, strict=True):
        if answer is None or text is None:
            wholes.append(None)
            continue
        found.append(row_of(template, renderer, special, answer, text, settings.max_seq_length)[0])
        wholes.append(renderer.tokens_of(text.text, text.spans))
    compared = Compared(*wholes)
    reason = why_dropped(compared, settings.max_seq_length)
    if not reason and LOSSES[settings.loss].paired:
        reason = not_paired(compared)
    merged = replace(
        max(found, key=lambda row: row.length),
        lost=reason,
        learned=sum(row.learned for row in found),
        needed=max(row.needed for row in found),
        stops=all(row.stops for row in found),
        dropped=next((row.dropped for row in found if row.dropped), ""),
        calls_not_rendered=sum(row.calls_not_rendered for row in found),
    )
    return merged, compared


def figures_of(pairs: list[Compared], max_length: int) -> dict[str, Any]:
    rows = [row for one in pairs for row in as_pair(one, max_length)]
    names = ("chosen_answer", "rejected_answer", "chosen_digest", "rejected_digest", "near")
    return pair_figures({name: [row[name] for row in rows] for name in names}) if rows else {}


def labels_of(kept: list[Compared]) -> dict[str, int]:
    good = sum(one.chosen is not None for one in kept)
    return {"desirable": good, "undesirable": sum(one.rejected is not None for one in kept)}


def check_pairs(sample: PairSample) -> list[Problem]:
    """What is wrong with preferences, or a bias of them."""
    problems, pairs, count = [], sample.pairs, len(sample.kept)
    if sample.labels and not all(sample.labels.values()):
        problems.append(
            Problem(
                "one_label",
                "error",
                f"All {count} sampled answers have the same label: there is nothing to tell apart.",
                "Add answers with the other label, or sample more rows: --sample 10000. To imitate good answers alone: sft.py.",
            )
        )
    if sample.lost.get("one answer alone"):
        problems.append(
            Problem("unpaired_rows", "error", "The rows hold single answers with a label, not pairs.", "Pass --loss kto.")
        )
    if pairs.get("contradictory"):
        problems.append(
            Problem(
                "contradictory_pairs",
                "warning",
                f"{pairs['contradictory']} of {count} pairs contradict another: the same two answers, the other way round.",
                "Keep of each the one that most people chose, or leave both out.",
            )
        )
    if pairs and pairs["nearly_same"] > HARDLY * count:
        problems.append(
            Problem(
                "answers_nearly_same",
                "warning",
                f"In {pairs['nearly_same']} of {count} pairs the two answers share all but a twentieth: there is little to learn.",
                "Fine where that little is the point. Else leave them out.",
            )
        )
    return problems + check_length_bias(pairs)


def check_length_bias(pairs: dict[str, Any]) -> list[Problem]:
    """A difference of length that is easier to learn than what was meant."""
    if not pairs:
        return []
    chosen, rejected = pairs["chosen_tokens"], pairs["rejected_tokens"]
    longer, shorter = chosen > LONGER * rejected, rejected > LONGER * chosen
    if not (longer or shorter):
        return []
    return [
        Problem(
            "length_bias",
            "warning",
            f"Chosen answers have {chosen:.0f} tokens in the mean and rejected ones {rejected:.0f}: the model may learn to write "
            f"{'longer' if longer else 'shorter'} answers, not better ones.",
            "Fine where length is the point; look whether the columns are swapped. Else choose pairs of like length, or --loss "
            "simpo or ipo, which weigh each token.",
        )
    ]
