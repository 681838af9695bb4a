"""A setting: the field of a dataclass, its default, and the help of the flag that is named after it."""

from __future__ import annotations

from dataclasses import field
from typing import Any

AUTO = "auto"  # the value of a setting that the run itself chooses


def setting(default: Any, help: str, number: type | None = None) -> Any:
    """number: of a setting whose default is the word auto, the type of what can be given instead."""
    return field(default=default, metadata={"help": help, "number": number})
