"""The adapter folded into its base: a model of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .report import Stop, emit
from .settings import TrainingSettings


def require_mergeable(settings: TrainingSettings) -> None:
    """Stop before training where a merge asked for could not be made after it."""
    import torch

    unsloth_in_4bit = settings.backend == "unsloth" and settings.load_in_4bit
    if settings.merge_model and unsloth_in_4bit and not torch.cuda.is_available():
        raise Stop(
            "merge_needs_16bit",
            "Without a GPU a 4-bit model cannot be merged with its adapter.",
            "Add --load-in-16bit, or leave --merge-model out.",
        )


def push_merged(model: Any, tokenizer: Any, api: Any, settings: TrainingSettings) -> None:
    """The base with the adapter folded in, in 16 bits, in a repository of its own: the adapter stays as it is.

    Raises Stop when that fails; the adapter is safe by then.
    """
    folder, repo = Path(settings.save_local) / "merged", settings.output_repo + "-merged"
    try:
        if settings.backend == "unsloth":
            model.save_pretrained_merged(str(folder), tokenizer, save_method="merged_16bit")
        else:
            save_merged(settings, folder)
            tokenizer.save_pretrained(folder)
        if api is not None:
            api.create_repo(repo, private=not settings.public, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Merged 16-bit model")
            emit("pushed", repo=repo, url=f"{api.endpoint}/{repo}")
    except Exception as error:
        raise Stop(
            "merge_failed",
            f"The adapter is complete, its merged copy is not: {type(error).__name__}: {error}",
            "Merge it from the adapter with PEFT's merge_and_unload; training again is not needed.",
        ) from error


def save_merged(settings: TrainingSettings, folder: Path) -> None:
    """The saved adapter folded into the model as it was published, on the processor: it needs no GPU memory."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(
        settings.base_model, revision=settings.base_model_revision or None, dtype="bfloat16"
    )
    PeftModel.from_pretrained(base, settings.save_local).merge_and_unload().save_pretrained(folder)
