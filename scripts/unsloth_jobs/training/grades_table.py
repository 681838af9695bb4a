"""The grades of an evaluation as a Markdown table, and what its differences tell as sentences."""

from __future__ import annotations

from collections.abc import Mapping

from .evaluation import Evaluation
from .markdown import cell


def grades_table(evaluation: Evaluation, titles: Mapping[str, str]) -> str:
    """A line for each contender. titles: of those whose name says too little."""
    lines = ["| | Right | 95% interval | Cut off |", "|---|---|---|---|"]
    for name in evaluation.answers:
        row = evaluation.as_row(name)
        title = titles.get(name, f"`{name}`")
        lines.append(f"| {title} | {row['right']:.1%} | {row['low']:.1%} to {row['high']:.1%} | {row['cut']} |")
    return "\n".join(lines)


def class_lines(evaluation: Evaluation, name: str) -> str:
    """Of graded labels: how many rows have each, and how often a contender named it, and rightly; "" of other grades."""
    if evaluation.grader != "choice":
        return ""
    lines = ["| Label | Rows | Answered | Right |", "|---|---|---|---|"]
    for row in evaluation.classes(name):
        lines.append(f"| {cell(row['label'])} | {row['rows']} | {row['answered']} | {row['right']} |")
    return "\n".join(lines)


def difference_sentences(evaluation: Evaluation, titles: Mapping[str, str]) -> list[str]:
    """How each contender differs from the first, which of them being said where there are several."""
    others = [name for name in evaluation.answers if name != evaluation.first]
    told = [(titles.get(name, f"`{name}`"), evaluation.as_row(name)["sentence"]) for name in others]
    return [f"{title}: {sentence[0].lower()}{sentence[1:]}" if len(told) > 1 else sentence for title, sentence in told]
