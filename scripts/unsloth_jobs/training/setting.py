"""A setting: the field of a dataclass, its default, and the help of the flag that is named after it."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})
