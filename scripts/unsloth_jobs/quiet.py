"""Keep the libraries' own progress bars and advice out of what a command prints."""

from __future__ import annotations

import logging
import os


def libraries() -> None:
    """Called before datasets or transformers are imported: they read these once."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("DATASETS_VERBOSITY", "critical")  # what it logs it raises as well
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    logging.getLogger("huggingface_hub.repocard").setLevel(logging.ERROR)  # a card without metadata is no fault
