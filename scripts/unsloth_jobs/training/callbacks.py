"""What is done after each step: events, checkpoints, and Trackio's live curves."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .adapter import SETTINGS_FILE
from .checkpoints import LAST_CHECKPOINT, LINEAGE
from .early_stopping import BestAdapter, emit_early_stop
from .processes import is_first, wait_for_peers
from .push import push_folder
from .report import Stop, emit
from .run import StopSignal
from .settings import TrainingSettings
from .step_timer import StepTimer

# What a trainer on rewards measures, beside each part of the reward as reward_NAME.
STEP_FIGURES = (
    "reward",
    "right",
    "informative",
    "length",
    "clipped",
    "kl",
    "tokens_per_s",
    "writing_s",
    "rewarding_s",
    "step_s",
)


def progress_callback(
    settings: TrainingSettings,
    api: Any,
    timer: StepTimer,
    stop_signal: StopSignal,
    best: BestAdapter,
    origin: Mapping[str, Any],
) -> Any:
    """A trainer callback that prints events and, with a repository, keeps the newest checkpoint off this machine."""
    import torch
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.start = time.monotonic()
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()  # loading takes more for a moment, and is over

        def on_step_end(self, args, state, control, **kwargs):
            if best.patience and state.global_step == state.max_steps:
                control.should_evaluate = True  # the last adapter may be the best
            saving_s = (
                timer.saving_s if timer.checkpoint else stop_signal.margin
            )  # how long the first push takes is not known yet
            if stop_signal.due(2 * saving_s + timer.evaluation_s + (timer.step_s or 0)):
                control.should_save, control.should_evaluate, control.should_training_stop = True, False, True
            control.should_log |= control.should_save  # logging, which comes first, keeps what is no number out of checkpoints
            timer.step_ends(control.should_log or control.should_evaluate)

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" not in (logs or {}):
                return
            if not math.isfinite(logs["loss"]):
                raise Stop(
                    "loss_not_finite",
                    f"The loss is {logs['loss']} at step {state.global_step}: nothing can be learned from here on.",
                    "Lower --learning-rate to a third. On a T4 choose l4x1 instead: many models overflow without bf16.",
                )
            eta = None if timer.step_s is None else timer.step_s * (state.max_steps - state.global_step)
            emit(
                "progress",
                step=state.global_step,
                total_steps=state.max_steps,
                loss=round(float(logs["loss"]), 4),
                learning_rate=logs.get("learning_rate"),
                epoch=round(state.epoch or 0, 3),
                tokens=int(timer.tokens),
                elapsed_s=round(time.monotonic() - self.start, 1),
                eta_s=None if eta is None else round(eta, 1),
                **{
                    name: round(float(value), 4)
                    for name, value in logs.items()
                    if name in STEP_FIGURES or name.startswith("reward_")
                },
            )

        def on_evaluate(self, args, state, control, metrics=None, model=None, **kwargs):
            timer.evaluations += 1
            timer.evaluation_s, loss = metrics["eval_runtime"], float(metrics["eval_loss"])
            figures = {name.removeprefix("eval_"): value for name, value in metrics.items() if name.startswith("eval_")}
            del figures["runtime"], figures["loss"]
            emit(
                "eval",
                step=state.global_step,
                eval_loss=round(loss, 4),
                **{name: round(one, 4) for name, one in figures.items()},
            )
            learning = state.global_step > 0  # the evaluation before training is the base model's
            if learning and best.patience and best.keep_if_better(model, state, loss) and state.global_step < state.max_steps:
                control.should_training_stop = True
                if stop_signal.reason != "cancelled":
                    stop_signal.reason = "early_stopped"
                emit_early_stop(state, timer, best)

        def on_save(self, args, state, control, **kwargs):
            began = time.monotonic()
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            if is_first():
                pushed = keep_checkpoint(folder, f"Checkpoint at step {state.global_step}")
                emit("checkpoint", step=state.global_step, path=str(folder), pushed=pushed)
            wait_for_peers()
            timer.checkpoint, timer.saving_s = folder, time.monotonic() - began

    def keep_checkpoint(folder: Path, message: str) -> bool:
        """Whether a checkpoint, with what it was made of, has reached the repository."""
        kept = asdict(settings) | {LINEAGE: origin}
        (folder / SETTINGS_FILE).write_text(json.dumps(kept, indent=1), encoding="utf-8")
        return api is not None and push_folder(api, settings, folder, message, path_in_repo=LAST_CHECKPOINT) is None

    return Progress()


def trackio_callback() -> Any:
    """The trainer's own Trackio callback, guarded: whatever fails in it costs the live curves, not the run.

    The run in Trackio stays open when training ends, for what is measured then; `close` ends it.
    """
    from transformers import TrainerCallback
    from transformers.integrations import TrackioCallback

    class Guarded(TrainerCallback):
        trackio = TrackioCallback()
        failed = not is_first()

        def attempt(self, action: Any, *args: Any, **kwargs: Any) -> None:
            if self.failed:
                return
            try:
                action(*args, **kwargs)
            except Exception as error:
                self.failed = True
                emit("warning", code="trackio_failed", message=f"no more live curves: {type(error).__name__}: {error}")

        def on_train_begin(self, *args, **kwargs):
            self.attempt(self.trackio.on_train_begin, *args, **kwargs)

        def on_log(self, *args, **kwargs):
            self.attempt(self.trackio.on_log, *args, **kwargs)

        def close(self, losses: Mapping[str, float | None], answers: list[dict[str, str]]) -> None:
            self.attempt(self.log_result, losses, answers)

        def log_result(self, losses, answers):
            import trackio

            measured = {name.replace("_", "/"): value for name, value in losses.items() if value is not None}
            trackio.log(measured | ({"answers": trackio.Table(data=answers)} if answers else {}))
            trackio.finish()

    return Guarded()
