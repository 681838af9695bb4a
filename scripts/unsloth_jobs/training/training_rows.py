"""The rows that a run trains on and those that it holds out, and how each of them is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .columns import Format
from .dataset import data_revision, load_rows, split_rows
from .report import emit
from .settings import TrainingSettings
from .table_layout import FindFormat, find_layout


@dataclass(frozen=True)
class TrainingRows:
    """rows: of the columns that layout uses; train and held_out are their parts, held_out None where there are none."""

    rows: Any
    train: Any
    held_out: Any
    layout: Format


def read_training_rows(settings: TrainingSettings, format_of: FindFormat) -> TrainingRows:
    """The rows of --dataset, told in the event `data`. format_of: the template's own find_format. Raises Stop."""
    rows = load_rows(settings)
    layout = find_layout(rows, settings, format_of)
    used = set(layout.columns.values())
    unused = sorted(set(rows.column_names) - used)
    rows = rows.select_columns(sorted(used))  # pictures and sound beside them are not even decoded
    train_rows, held_out = split_rows(rows, settings)
    emit(
        "data",
        rows=len(rows),
        train_rows=len(train_rows),
        eval_rows=len(held_out or ()),
        format=layout.name,
        columns=layout.columns,
        unused_columns=unused,
        revision=data_revision(settings),
    )
    return TrainingRows(rows, train_rows, held_out, layout)
