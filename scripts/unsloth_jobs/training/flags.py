"""Settings as flags: a dataclass whose fields are the flags of a script."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any, TypeVar

from .setting import AUTO

Settled = TypeVar("Settled")


def parse_flags(
    kind: type[Settled], problems: Callable[[Settled], Iterable[str]], about: str | None, argv: list[str] | None
) -> Settled:
    """The dataclass `kind` from flags named after its fields, over its defaults. about: the text of --help.

    Raises SystemExit(2) on a flag or a value that is not one, or where problems finds one.
    """
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    for item in fields(kind):  # type: ignore[arg-type]  # a TypeVar cannot be bound to "any dataclass"
        flag, default, text = as_flag_name(item.name), item.default, item.metadata["help"]
        text += f" [{default}]" if default not in ("", False) else ""
        if isinstance(default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=text)
        else:
            number = item.metadata["number"]
            read = number_or_auto(number) if number else type(default)
            parser.add_argument(flag, type=read, default=default, metavar=read.__name__, help=text)
    settings = kind(**vars(parser.parse_args(argv)))
    for problem in problems(settings):
        parser.error(problem)
    return settings


def number_or_auto(number: type) -> Callable[[str], Any]:
    """What reads the value of a flag that takes a number, or the word auto."""

    def read(text: str) -> Any:
        return text if text == AUTO else number(text)

    read.__name__ = f"{number.__name__}|{AUTO}"  # argparse names it in its messages
    return read


def as_flag_name(name: str) -> str:
    return "--" + name.replace("_", "-")


def as_flag(name: str, value: Any) -> str:
    """A setting as it is typed."""
    if isinstance(value, bool):
        return as_flag_name(name) if value else as_flag_name(f"no_{name}")
    return f"{as_flag_name(name)} {shlex.quote(str(value))}"
