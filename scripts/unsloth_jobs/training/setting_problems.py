"""Values of settings that no run can have."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from .flags import as_flag_name
from .setting import AUTO
from .settings import TrainingSettings


def training_problems(settings: TrainingSettings) -> Iterable[str]:
    """What is wrong with the values of the settings above, each as a sentence."""
    if not settings.dataset:
        yield "--dataset is needed: a Hub id such as mlabonne/FineTome-100k, or a local file"
    for name in (
        "batch_size",
        "gradient_accumulation",
        "max_seq_length",
        "max_eval_rows",
        "lora_r",
        "lora_alpha",
        "max_graded",
        "grading_seconds",
    ):
        if getattr(settings, name) != AUTO and getattr(settings, name) < 1:
            yield f"{as_flag_name(name)} must be at least 1, not {getattr(settings, name)}"
    for name in ("num_epochs", "learning_rate", "save_steps"):
        if getattr(settings, name) != AUTO and not 0 < getattr(settings, name) < math.inf:
            yield f"{as_flag_name(name)} must be above 0, not {getattr(settings, name)}"
    for name in ("num_samples", "max_steps", "seed"):
        if getattr(settings, name) < 0:
            yield f"{as_flag_name(name)} must be at least 0, not {getattr(settings, name)}"
    if not 0 <= settings.min_coverage <= 1:
        yield f"--min-coverage is a share from 0 to 1, not {settings.min_coverage}"
    if not 0 <= settings.eval_split < 1:
        yield f"--eval-split is a share from 0 up to 1, not {settings.eval_split}"
    if settings.early_stopping != AUTO and int(settings.early_stopping) < 0:
        yield f"--early-stopping is a number of evaluations, or 0, not {settings.early_stopping}"
    if settings.early_stopping not in (AUTO, 0) and not settings.eval_split:
        yield "--early-stopping needs rows held out: --eval-split 0.1"
    if settings.load_in_16bit and settings.load_in_4bit:
        yield "--load-in-16bit and --load-in-4bit exclude each other: pass one, or neither to leave the choice to the run"
    if settings.backend not in ("unsloth", "trl"):
        yield f"--backend is unsloth or trl, not {settings.backend}"
    if settings.gradient_checkpointing not in ("auto", "off", "offload"):
        yield f"--gradient-checkpointing is auto, off or offload, not {settings.gradient_checkpointing}"
    if settings.output_repo and not re.fullmatch(r"[\w.-]+/[\w.-]+", settings.output_repo, re.ASCII):
        yield f"--output-repo is OWNER/NAME, not {settings.output_repo!r}"
