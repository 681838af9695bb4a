"""Where an answer ends."""

from __future__ import annotations

from typing import Any


def ends_of(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end an answer."""
    stated = model.generation_config.eos_token_id
    return {tokenizer.eos_token_id, *(stated if isinstance(stated, list) else [stated])} - {None}
