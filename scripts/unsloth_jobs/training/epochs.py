"""How often the rows are trained on, and when to stop early, where neither is given."""

from __future__ import annotations

import math

from .setting import AUTO
from .settings import TrainingSettings
from .steps import effective_batch_size

ENOUGH_STEPS = 500  # optimizer steps up to which a small set is repeated
MOST_EPOCHS = 3
PATIENCE = 3  # evaluations, of the ten in such a run


def epochs_for(settings: TrainingSettings, rows: int) -> float:
    """The number of epochs: the one given, or what auto chooses for so many rows to train on."""
    if settings.num_epochs != AUTO:
        return float(settings.num_epochs)
    if settings.max_steps:  # which decides alone
        return 1.0
    per_epoch = math.ceil(max(rows, 1) / effective_batch_size(settings))
    return float(min(max(ENOUGH_STEPS // per_epoch, 1), MOST_EPOCHS))


def patience_for(settings: TrainingSettings, rows: int, held_out: int) -> int:
    """Evaluations without a lower loss before the run stops, 0 for never: as given, or by auto where it repeats the rows."""
    if settings.early_stopping != AUTO:
        return int(settings.early_stopping)
    repeats = settings.num_epochs == AUTO and epochs_for(settings, rows) > 1
    return PATIENCE if repeats and held_out else 0


def why_epochs(settings: TrainingSettings, rows: int, held_out: int) -> str:
    epochs = epochs_for(settings, rows)
    stop = " at most, ended early where the held-out loss no longer falls" if patience_for(settings, rows, held_out) else ""
    return f"{epochs:g} epoch{'s' * (epochs != 1)} over {rows:,} rows{stop}"
