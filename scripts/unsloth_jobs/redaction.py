"""Text that may be shown: without secrets, and without what would steer the terminal that it is shown on."""

from __future__ import annotations

import functools

from huggingface_hub import get_token

from .training.secrets import CONTROL, SHORTEST_SECRET, cut_out, redacted


def redact(text: str) -> str:
    """redacted, and without the token of `hf auth login`."""
    token = stored_token() or ""
    if len(token) >= SHORTEST_SECRET:
        text = cut_out(text, token)
    return redacted(text)


def plain(text: str) -> str:
    """redact, and without terminal control sequences; line breaks and tabs stay."""
    stripped = CONTROL.sub("", text)
    # Where something steers, before it is cut out, too: a colour may part a token from a word, or stand within one.
    return redact(text) if stripped == text else redact(CONTROL.sub("", redact(text)))


@functools.cache
def stored_token() -> str | None:
    """The token of `hf auth login`."""
    return get_token()
