"""Checkpoints: what each was trained from, and which may be resumed."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .adapter import SETTINGS_FILE
from .flags import as_flag
from .report import LAST_EVENTS, Stop, emit
from .run import this_run
from .settings import TrainingSettings
from .steps import effective_batch_size

LAST_CHECKPOINT = "last-checkpoint"  # folder of the repository
# Settings that decide what a step learns from which rows: a run can only be resumed with those that it began with.
RESUME_MUST_MATCH = (
    "base_model", "load_in_16bit", "load_in_4bit", "backend", "dataset_config", "dataset_split",
    "prompt_column", "completion_column", "num_samples", "eval_split", "max_eval_rows", "num_epochs", "max_steps",
    "batch_size", "gradient_accumulation", "learning_rate", "max_seq_length", "packing", "lora_r", "lora_alpha",
    "target_modules", "seed", "loss", "beta", "simpo_gamma", "chosen_column", "rejected_column", "label_column",
    "reward", "answer_format", "system_prompt", "num_generations", "max_completion_length", "temperature",
)  # fmt: skip
LINEAGE = "lineage"  # the key beside the settings that are stored with a checkpoint
LINEAGE_NAMES = {
    "method": "the method", "data": "the rows", "model": "the model's files", "packed": "sequence packing",
    "parent": "the adapter that it goes on from", "rewards": "the rewards and what they compare with",
}  # fmt: skip


def lineage(method: str, settings: TrainingSettings, rows: Any, packed: bool) -> dict[str, Any]:
    """What a checkpoint comes from, beside the settings: stored with it, since names say nothing of contents."""
    return {
        "method": method,
        "data": rows_digest(rows),
        "model": model_digest(settings),
        "packed": packed,
        "data_revision": LAST_EVENTS.get("data", {}).get("revision"),
        "effective_batch_size": effective_batch_size(settings),
        "run": this_run(),
        "versions": LAST_EVENTS.get("plan", {}).get("versions"),
    }


def rows_digest(rows: Any) -> str:
    """sha256 of the rows as they are trained on: of their tokens and labels, in their order."""
    import numpy as np

    digest = hashlib.sha256()
    names = [name for name in rows.column_names if name != "length"]
    for batch in rows.select_columns(names).with_format("numpy").iter(1000):
        for column in names:
            for values in map(np.atleast_1d, batch[column]):
                digest.update(len(values).to_bytes(4, "little") + values.astype(np.int32).tobytes())
    return "sha256:" + digest.hexdigest()


def model_digest(settings: TrainingSettings) -> str | None:
    """The model's commit, or of a local folder the names and sizes of its files and its config.json."""
    folder = Path(settings.base_model)
    if not folder.is_dir():
        return settings.base_model_revision or None
    files = sorted((path.name, path.stat().st_size) for path in folder.iterdir() if path.is_file())
    weights = [file for file in files if file[0].endswith((".safetensors", ".bin"))]
    return "sha256:" + hashlib.sha256(repr(weights).encode() + (folder / "config.json").read_bytes()).hexdigest()


def stored(checkpoint: Path) -> dict[str, Any]:
    """The settings that a checkpoint was made with, and its lineage."""
    try:
        found = json.loads((checkpoint / SETTINGS_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def lineage_of(checkpoint: Path) -> dict[str, Any]:
    found = stored(checkpoint).get(LINEAGE)
    return found if isinstance(found, dict) else {}


def newest_checkpoint(settings: TrainingSettings) -> Path | None:
    """The checkpoint with the most steps on this machine; None where there is none."""
    return newest_in(Path(settings.save_local) / "checkpoints")


def newest_in(folder: Path) -> Path | None:
    whole = [
        one
        for one in folder.glob("checkpoint-*")
        if all((one / name).is_file() for name in ("trainer_state.json", SETTINGS_FILE))
    ]
    return max(whole, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def checkpoint_to_resume(settings: TrainingSettings, api: Any, own: Mapping[str, Any]) -> Path | None:
    """The newest checkpoint here or, after a move to another machine, in the repository. Raises Stop where it is another run's."""
    if not settings.resume:
        set_aside(Path(settings.save_local) / "checkpoints")
        return None
    found = newest_checkpoint(settings) or (fetch_checkpoint(settings, api) if api else None)
    if found is not None:
        require_same_run(found, settings, own)
    return found


def require_same_run(checkpoint: Path, settings: TrainingSettings, own: Mapping[str, Any]) -> None:
    """Raises Stop unless a checkpoint was made from the same rows and model, with the settings that decide its steps."""
    began, theirs = stored(checkpoint), lineage_of(checkpoint)
    fix = "to train from the beginning, leave --resume out"
    if not theirs:
        message = f"The checkpoint {checkpoint.name} does not say what it was trained on."
        raise Stop("resume_mismatch", message, f"{fix[0].upper()}{fix[1:]}.")
    if changed := [name for name in RESUME_MUST_MATCH if began.get(name) != getattr(settings, name, None)]:
        flags = " ".join(as_flag(name, began[name]) for name in changed if name in began)
        raise Stop(
            "resume_mismatch",
            f"The checkpoint was trained with other settings ({', '.join(changed)}), so it cannot be resumed.",
            f"Pass what it began with: {flags}. Or, {fix}." if flags else f"{fix[0].upper()}{fix[1:]}.",
        )
    if changed := [title for name, title in LINEAGE_NAMES.items() if theirs.get(name) != own.get(name)]:
        began_with = [as_flag("dataset", began.get("dataset"))]
        if revision := theirs.get("data_revision"):
            began_with.append(as_flag("dataset_revision", revision))
        if LINEAGE_NAMES["parent"] in changed:
            began_with.append(as_flag("base_model", theirs.get("parent_name") or began.get("base_model")))
        raise Stop(
            "resume_mismatch",
            f"The checkpoint is another run's: {' and '.join(changed)} differ, so it cannot be resumed.",
            f"It began with {' '.join(began_with)}. Or, {fix}.",
        )


def set_aside(folder: Path) -> None:
    """Rename the checkpoints of an earlier run: the trainer would take those with more steps for newer than its own."""
    if folder.is_dir():
        names = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(1))
        kept = folder.rename(next(name for name in names if not name.exists()))
        emit("warning", code="checkpoints_kept", message=f"Checkpoints of an earlier run were there; they are kept in {kept}.")


def fetch_checkpoint(settings: TrainingSettings, api: Any) -> Path | None:
    """The repository's last-checkpoint, downloaded under the name that the trainer would have given it."""
    from httpx import HTTPError
    from huggingface_hub.errors import LocalEntryNotFoundError

    folder = Path(settings.save_local) / "checkpoints"
    try:
        api.snapshot_download(settings.output_repo, allow_patterns=f"{LAST_CHECKPOINT}/*", local_dir=folder)
    except (HTTPError, LocalEntryNotFoundError) as error:
        raise Stop("resume_failed", f"The checkpoint cannot be downloaded: {error}", "Try again in a minute.") from error
    fetched = folder / LAST_CHECKPOINT
    if not (fetched / "trainer_state.json").is_file():
        return None
    step = json.loads((fetched / "trainer_state.json").read_text("utf-8"))["global_step"]
    return fetched.rename(folder / f"checkpoint-{step}")


def load_if_finished(trainer: Any, checkpoint: Path) -> bool:
    """Whether the checkpoint is of the last step; then it is loaded here, since train() would make one step more."""
    from transformers import TrainerState

    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    if state.global_step < state.max_steps:
        return False
    trainer._load_from_checkpoint(str(checkpoint))
    trainer.state = state
    return True
