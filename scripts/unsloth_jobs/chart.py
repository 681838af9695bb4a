"""A loss curve in the rows and columns of a terminal."""

from __future__ import annotations

import math
from itertools import pairwise

from plotille import Canvas
from rich.text import Text

from .events import Curve, Point

ROWS = 6
HELD_OUT = "●"
LINE, DOTS = "cyan", "bold yellow"


def chart(curve: Curve, columns: int) -> Text | None:
    """Training loss as a line, held-out loss as dots, over the steps; None where there is nothing to draw yet.

    columns: how wide it may be, its axis included. What is no number is left out.
    """
    line, dots = finite(curve.loss), finite(curve.eval_loss)
    points = [*line, *dots]
    if len({point.step for point in points}) < 2 or columns < 20:
        return None
    low, high = min(point.value for point in points), max(point.value for point in points)
    first, last = min(point.step for point in points), max(point.step for point in points)
    room = (high - low or abs(high) or 1) / (4 * ROWS - 1)  # of one dot: a canvas ends before its upper limits
    top, bottom = f"{high:.3g}", f"{low:.3g}"
    margin = max(len(top), len(bottom))
    width = columns - margin - 2
    canvas = Canvas(width, ROWS, first, low, last + (last - first) / (2 * width - 1), high + room)
    for left, right in pairwise(line):
        canvas.line(left.step, left.value, right.step, right.value)
    for point in dots:
        canvas.point(point.step, point.value, marker=HELD_OUT)
    drawn = Text()
    for index, row in enumerate(canvas.plot().split("\n")):
        label = top if index == 0 else bottom if index == ROWS - 1 else ""
        drawn.append(f"{label:>{margin}} │", "dim").append(row.ljust(width), LINE).append("\n")
    drawn.append(" " * (margin + 1) + "└", "dim").append(f"step {first}", "dim")
    drawn.append(f"{last:>{width - len(f'step {first}')}}", "dim")
    drawn.highlight_regex(HELD_OUT, DOTS)
    return drawn


def finite(points: tuple[Point, ...]) -> list[Point]:
    return [point for point in points if math.isfinite(point.value)]
