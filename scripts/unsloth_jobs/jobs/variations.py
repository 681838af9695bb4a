"""What the runs of a comparison differ in: --vary and --vary-file become the changed settings of each run."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..errors import USAGE, UserError
from ..training.flags import as_flag_name

OF_SUBMIT = ("script", "flavor", "timeout")  # what submit.py itself is told, and may differ between runs
SHORT = {"learning_rate": "lr", "lora_r": "r", "lora_alpha": "alpha", "num_epochs": "epochs", "max_seq_length": "length"}
NAMED_BY_RUN = ("base_model", "dataset")  # a run's own name holds these already, unless its user chose one
LONGEST = 96  # characters of a repository's name on the Hub
DIGEST = 8  # characters that stand for the settings where they are too long for a name
TRUE, FALSE = ("true", "yes", "on"), ("false", "no", "off")

Changes = dict[str, str]  # value by setting, as it was typed


def read_variations(vary: Sequence[str], file: Path | None) -> tuple[int, Iterable[Changes]]:
    """How many runs are asked for, and the changed settings of each: every row of the file with every point of the grid.

    The runs are made as they are read: a grid may have more of them than anything could hold. Raises UserError (usage).
    """
    grid = dict(parse_axis(text) for text in vary)
    if len(grid) < len(vary):
        raise bad_vary("The same setting stands in --vary twice.", "Write all of its values in one --vary NAME=A,B.")
    listed: list[Changes] = read_list(file) if file else [{}]
    if twice := {name for one in listed for name in one} & set(grid):
        raise bad_vary(f"{', '.join(sorted(twice))} stands in --vary and in {file}.", "Leave it out of one of them.")
    made = (one | dict(zip(grid, point, strict=True)) for one in listed for point in itertools.product(*grid.values()))
    return len(listed) * math.prod(map(len, grid.values())), made


def parse_axis(text: str) -> tuple[str, list[str]]:
    """`learning-rate=1e-4,3e-4`: the setting's name and its values."""
    name, equals, values = text.partition("=")
    found = [value.strip() for value in values.split(",")]
    if not equals or not setting_name(name) or not all(found):
        raise bad_vary(f"--vary {text!r} is not NAME=VALUE,VALUE.", "For example: --vary learning-rate=1e-4,3e-4,1e-3")
    if len(set(found)) < len(found):
        raise bad_vary(f"--vary {text} names a value twice.", "Name each value once.")
    return setting_name(name), found


def read_list(file: Path) -> list[Changes]:
    """A JSON list of objects, or an object a line: the changed settings of each run. Raises UserError (usage)."""
    try:
        text = file.read_text("utf-8")
        rows = (
            json.loads(text) if text.lstrip().startswith("[") else [json.loads(one) for one in text.splitlines() if one.strip()]
        )
    except (OSError, ValueError) as error:
        raise bad_vary(f"--vary-file {file} cannot be read: {error}", example_file()) from error
    if not rows or not all(isinstance(row, dict) and all(map(is_value, row.values())) for row in rows):
        raise bad_vary(f"--vary-file {file} is no list of settings.", example_file())
    return [{setting_name(name): as_typed(value) for name, value in row.items()} for row in rows]


def is_value(value: Any) -> bool:
    return isinstance(value, str | int | float)


def as_typed(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def example_file() -> str:
    return 'Write one object a line, such as {"learning-rate": "3e-4", "lora-r": 16}'


def setting_name(typed: str) -> str:
    """`--lora-r`, `lora-r` and `lora_r` are one setting."""
    return typed.strip().removeprefix("--").replace("-", "_")


def bad_vary(message: str, fix: str) -> UserError:
    return UserError("bad_vary", message, fix, USAGE)


def as_words(changes: Mapping[str, str], settings: Any) -> list[str]:
    """The changed settings as the script's arguments. settings: of the template. Raises UserError (usage)."""
    kinds = {item.name: type(item.default) for item in fields(settings)}
    words = []
    for name, value in changes.items():
        if name in OF_SUBMIT:
            continue
        if name not in kinds:
            near = difflib.get_close_matches(name, [*kinds, *OF_SUBMIT], 1)
            hint = f"Did you mean {flag_of(near[0])}?" if near else "See the script's --help for its settings."
            raise bad_vary(f"{flag_of(name)} is no setting of this script.", hint)
        words.append(switch(name, value) if kinds[name] is bool else f"{as_flag_name(name)}={value}")
    return words


def switch(name: str, value: str) -> str:
    if value.lower() not in (*TRUE, *FALSE):
        raise bad_vary(
            f"{flag_of(name)} is a switch, and {value!r} neither true nor false.", f"--vary {flag_of(name)}=true,false"
        )
    return as_flag_name(name if value.lower() in TRUE else f"no_{name}")


def flag_of(name: str) -> str:
    """A setting's name as it is typed in --vary."""
    return name.replace("_", "-")


def title_of(changes: Mapping[str, str]) -> str:
    """A run by its changed settings: learning-rate 1e-4, lora-r 8."""
    return ", ".join(f"{flag_of(name)} {value}" for name, value in changes.items())


def suffix_of(changes: Mapping[str, str], left_out: Iterable[str] = ()) -> str:
    """The changed settings as the end of a name on the Hub: lr1e-4-r8."""
    parts = [
        f"{SHORT.get(name, flag_of(name) + '-')}{short_value(value)}" for name, value in changes.items() if name not in left_out
    ]
    return re.sub(r"-{2,}|\.{2,}", "-", re.sub(r"[^A-Za-z0-9._]+", "-", "-".join(parts))).strip("-.")


def short_value(value: str) -> str:
    """Of an id or a path its last part: the owner says little."""
    return Path(value).stem if value.endswith((".py", ".jsonl", ".csv", ".xlsx")) else value.rstrip("/").rsplit("/", 1)[-1]


def name_with(base: str, changes: Mapping[str, str], left_out: Iterable[str] = ()) -> str:
    """A run's name: base and its changed settings. Where that is too long for the Hub, a digest stands for them."""
    suffix = suffix_of(changes, left_out)
    if len(f"{base}-{suffix}") > LONGEST:
        suffix = hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()[:DIGEST]
    return f"{base[: LONGEST - len(suffix) - 1].rstrip('-.')}-{suffix}" if suffix else base[:LONGEST]
