"""What every trainer is told, whatever it trains by: the arguments of transformers' TrainingArguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .batching import Batching
from .models import has_bf16
from .run import run_name
from .settings import TrainingSettings


def trainer_options(settings: TrainingSettings, division: Batching, evaluates: bool) -> dict[str, Any]:
    """The arguments that TRL's configurations share. evaluates: whether there are held-out rows."""
    import torch

    on_gpu, bf16 = torch.cuda.is_available(), has_bf16()
    return {
        "output_dir": str(Path(settings.save_local) / "checkpoints"),
        "num_train_epochs": settings.num_epochs,
        "max_steps": settings.max_steps or -1,
        "per_device_train_batch_size": division.micro_batch_size,
        "gradient_accumulation_steps": division.gradient_accumulation,
        "learning_rate": settings.learning_rate,
        "warmup_steps": 0.03,
        # Its states are small beside all else, and one kernel updates them; in 8 bits each matrix would need its own.
        "optim": "adamw_torch_fused",
        "bf16": bf16,
        "fp16": on_gpu and not bf16,
        "per_device_eval_batch_size": 1,  # evaluation is where runs die of memory
        "eval_strategy": "steps" if evaluates else "no",
        "eval_steps": 0.1 if settings.early_stopping else 0.25,  # to stop early is to look often
        "save_steps": settings.save_steps if settings.save_steps < 1 else int(settings.save_steps),
        "save_total_limit": 2,
        "logging_steps": 0.005,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # it waits for the GPU after each forward pass; progress_callback stops at NaN
        "disable_tqdm": True,
        "report_to": "none",  # Trackio has a callback of its own
        "project": "unsloth-jobs",
        "run_name": run_name(settings),
        "trackio_space_id": settings.trackio_space or None,
        "trackio_static_space_id": False,
        "hub_private_repo": True,
        "max_length": settings.max_seq_length,
        "seed": settings.seed,
        # TRL's default is True, which on a CPU turns on what was left off where the adapter was attached.
        "gradient_checkpointing": settings.gradient_checkpointing != "off" and settings.backend != "trl",
    }
