"""The files of an adapter."""

from __future__ import annotations

from pathlib import Path

from .report import Stop

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
SETTINGS_FILE = "training_settings.json"  # what it was trained with, as templates/sft.py leaves it beside it
TOKENIZER_FILES = [
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "chat_template*", "additional_chat_templates/*",
]  # fmt: skip


def download(repo: str, revision: str | None, patterns: list[str]) -> Path:
    """Files of a model repository, here. Raises Stop where it cannot be read."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except (HFValidationError, HfHubHTTPError) as error:
        raise Stop(
            "not_found",
            f"{repo} cannot be read: {error}",
            "Correct the id; for a private or gated one, ask for access and log in with `hf auth login`.",
        ) from error
