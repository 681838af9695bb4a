"""How every training begins: what can fail for free comes first."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import Any, Generic

from .machine import hardware, require_gpu_where_paid, training_libraries, versions
from .merge import require_mergeable
from .models import require_local_model
from .parent import Adapted, Parent
from .parent_files import starting_point
from .processes import from_first, is_first
from .report import emit
from .repository import open_repository
from .run import StopSignal, billed_since, run_facts
from .table_layout import FindFormat
from .training_rows import TrainingRows, read_training_rows


@dataclass(frozen=True)
class Beginning(Generic[Adapted]):
    """settings: with the whole model and --resume as they turned out; api: None without a repository; data: the rows."""

    settings: Adapted
    parent: Parent | None
    api: Any
    data: TrainingRows
    stop_signal: StopSignal


def begin_training(settings: Adapted, format_of: FindFormat) -> Beginning[Adapted]:
    """The event `plan`; then GPU, adapter to go on from, repository, rows and their columns. Raises Stop.

    format_of: the template's own find_format.
    """
    require_local_model(settings)
    stop_signal = StopSignal()
    stop_signal.listen()
    found, installing_s = versions(training_libraries(settings.backend)), round(time.time() - billed_since(), 1)
    emit("plan", settings=asdict(settings), hardware=hardware(), versions=found, installing_s=installing_s)
    require_gpu_where_paid(run_facts().get("vram_gb") or 0, run_facts().get("gpus") or 0)
    require_mergeable(settings)
    settings, parent = starting_point(settings)
    api, resume = open_repository(settings) if is_first() else (None, False)
    settings = replace(settings, resume=from_first(lambda: resume))
    return Beginning(settings, parent, api, read_training_rows(settings, format_of), stop_signal)
