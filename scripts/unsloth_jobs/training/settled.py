"""Settings that were left at auto become values, once the model and the number of rows are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .epochs import epochs_for, patience_for, why_epochs
from .learning_rate import learning_rate_for, why_learning_rate
from .precision import Chosen, choose_precision, is_precision_auto, with_precision
from .report import emit
from .setting import AUTO
from .settings import TrainingSettings


def settle(settings: Chosen, config: Any, rows: int, held_out: int) -> Chosen:
    """The settings with a value for each that was left at auto, told in the event `settings`.

    config: transformers' own; rows: to train on. What follows, checkpoints included, sees values only.
    """
    stated = config.to_dict()
    why = why_chosen(settings, stated, rows, held_out)
    if is_precision_auto(settings):
        in_16bit, why["precision"] = choose_precision(settings, config)
        settings = with_precision(settings, in_16bit)
    values = chosen_values(settings, stated, rows, held_out)
    settings = replace(settings, **values)
    emit("settings", **values, load_in_16bit=settings.load_in_16bit, load_in_4bit=settings.load_in_4bit, why=why)
    return settings


def chosen_values(settings: TrainingSettings, config: Mapping[str, Any], rows: int, held_out: int) -> dict[str, Any]:
    """The values of all settings that may be left at auto, but the precision."""
    return {
        "learning_rate": learning_rate_for(settings, config),
        "num_epochs": epochs_for(settings, rows),
        "early_stopping": patience_for(settings, rows, held_out),
    }


def why_chosen(settings: TrainingSettings, config: Mapping[str, Any], rows: int, held_out: int) -> dict[str, str]:
    """Why auto chooses what it does, by setting."""
    found = {}
    if settings.learning_rate == AUTO:
        found["learning_rate"] = why_learning_rate(settings, config)
    if settings.num_epochs == AUTO and not settings.max_steps:
        found["num_epochs"] = why_epochs(settings, rows, held_out)
    return found
