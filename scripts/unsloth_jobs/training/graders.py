"""Graders: what tells a right answer from a wrong one. Ours by name, and a function in the user's own file."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from .graders_calls import grade_tool_call
from .graders_json import grade_json
from .graders_number import grade_number
from .graders_regex import grade_regex
from .graders_text import Grader, choice_among, grade_choice, grade_contains, grade_exact
from .report import Stop

GRADERS: dict[str, Grader] = {
    "exact": grade_exact, "contains": grade_contains, "number": grade_number, "choice": grade_choice,
    "json": grade_json, "regex": grade_regex, "tool_call": grade_tool_call,
}  # fmt: skip
OWN_GRADER = "def grade(answer, reference, row): return 1.0 if answer == reference else 0.0"


class Grades(NamedTuple):
    """One score of 0 to 1 a row. failed: rows on which the grader raised, or gave no such score; they count as 0."""

    scores: list[float]
    failed: int
    first_failure: str | None  # "row 3: ValueError: ...", rows counted from 1


def load_grader(name: str, hook: str = "grade") -> Grader:
    """A grader by its name, or the function `hook` of a Python file, which is run. Raises Stop where there is none."""
    if name in GRADERS:
        return GRADERS[name]
    if not name.endswith(".py"):
        near = difflib.get_close_matches(name, GRADERS, n=1)
        raise Stop(
            "unknown_grader",
            f"There is no grader {clipped(repr(name))}; there are: {', '.join(GRADERS)}.",
            (f"Did you mean {near[0]}? " if near else "")
            + f"For a grader of your own, name a .py file that holds: {OWN_GRADER}",
        )
    return grader_of_file(name, hook)


def grader_of_file(file: str, hook: str) -> Grader:
    shown = clipped(repr(file))
    try:
        found = Path(file).is_file()
    except (OSError, ValueError):  # a name that no file can have
        found = False
    if not found:
        raise Stop("no_grader_file", f"There is no file {shown}.", f"Name a .py file, or one of {', '.join(GRADERS)}.")
    try:
        grader = getattr(run_file(Path(file)), hook, None)
    except (Exception, SystemExit) as error:
        raise Stop(
            "bad_grader", f"{shown} fails when it is read: {described(error)}", "Correct it: run it with python."
        ) from None
    if not callable(grader):
        raise Stop("bad_grader", f"{shown} holds no function {hook!r}.", f"Write into it: {OWN_GRADER}")
    try:
        inspect.signature(grader).bind("answer", "reference", {})
    except (TypeError, ValueError) as error:
        fix = f"It is called with three values, such as: {OWN_GRADER}"
        raise Stop("bad_grader", f"{hook} of {shown} cannot be called: {described(error)}.", fix) from None
    return grader


def run_file(file: Path) -> ModuleType:
    loader = SourceFileLoader(f"grader_{file.stem}", str(file))
    module = ModuleType(loader.name)
    module.__file__ = loader.path
    sys.modules[loader.name] = module  # dataclasses look their module up by name
    loader.exec_module(module)
    return module


def grader_among(grader: Grader, references: Sequence[str]) -> Grader:
    """The grader for rows with these references: choice takes its labels from them, any other stays as it is."""
    return choice_among(references) if grader is grade_choice else grader


def grade_answers(
    grader: Grader, answers: Sequence[str], references: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> Grades:
    """Each answer's score. Raises ValueError where the three are not of one length, and nothing that a grader raises."""
    grader = grader_among(grader, references)
    scores: list[float] = []
    failures: list[str] = []
    for position, (answer, reference, row) in enumerate(zip(answers, references, rows, strict=True), 1):
        try:
            scores.append(as_score(grader(answer, reference, row)))
        except (Exception, SystemExit) as error:
            scores.append(0.0)
            failures.append(f"row {position}: {described(error)}")
    return Grades(scores, len(failures), failures[0] if failures else None)


def as_score(score: Any) -> float:
    """Raises where a score is not a number of 0 to 1."""
    value = None if isinstance(score, str | bytes) else float(score)
    if value is None or not 0 <= value <= 1:
        raise ValueError(f"the score is {clipped(repr(score))}, not a number from 0 to 1")
    return value


def described(error: BaseException) -> str:
    """An exception in a line, whatever its own text is or does."""
    try:
        return clipped(f"{type(error).__name__}: {error}".removesuffix(": "))
    except Exception:
        return type(error).__name__


def clipped(text: str, most: int = 300) -> str:
    """One line without control characters, as an error may quote it."""
    line = "".join(character if character.isprintable() else " " for character in text[:most])
    return line + "…" * (len(text) > most)
