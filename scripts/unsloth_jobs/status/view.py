"""How a status is shown: a live table, a line, a chart of losses."""

from __future__ import annotations

import math
from itertools import pairwise

from plotille import Canvas
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..events import Curve, Point
from ..output import dollars, duration, people
from .status import Status

ROWS = 6
HELD_OUT = "●"
LINE, DOTS = "cyan", "bold yellow"


def chart(curve: Curve, columns: int) -> Text | None:
    """Training loss as a line, held-out loss as dots, over the steps, or the mean reward; None where there is nothing to draw yet.

    columns: how wide it may be, its axis included. What is no number is left out.
    """
    line, dots = finite(curve.reward or curve.loss), finite(curve.eval_loss)
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


WIDEST = 80  # columns


def as_table(status: Status) -> Table:
    job, progress = status.job, status.summary.progress
    colour = {"COMPLETED": "green", "RUNNING": "cyan", "ERROR": "red", "DELETED": "red"}.get(job.stage, "yellow")
    grid = Table.grid(padding=(0, 2))
    grid.add_row("job", escape(f"{job.job_id} on {job.flavor}" if job.flavor else job.job_id))
    message = job.message or (status.phase if job.stage == "RUNNING" else "")
    grid.add_row("stage", f"[{colour}]{job.stage}[/]" + (f"  {escape(message)}" if message else ""))
    if progress.step is not None and progress.total_steps:
        bar = Table.grid(padding=(0, 1))
        bar.add_row(ProgressBar(progress.total_steps, progress.step, width=30), f"{progress.step}/{progress.total_steps}")
        grid.add_row("step", bar)
    base = status.summary.event("eval").get("step") == 0
    start = "as it began" if status.summary.event("parent") else "base model"
    held_out = f"[{DOTS}]{HELD_OUT}[/] held-out" + (f" ({start})" if base else "")
    losses = {f"[{LINE}]training[/]": progress.loss, held_out: progress.eval_loss}
    if reward := reward_line(status):
        grid.add_row("reward", reward)
    elif any(loss is not None for loss in losses.values()):
        grid.add_row("loss", "  ".join(f"{name} {loss:.4f}" for name, loss in losses.items() if loss is not None))
    if people.is_terminal and people.encoding.startswith("utf") and (curve := chart(status.summary.curve, columns())):
        grid.add_row("", curve)
    eta = status.summary.eta_s
    left = "" if job.ended or eta is None else f", {duration(eta)} left"
    grid.add_row("time", duration(job.elapsed_s) + left)
    if status.spent_usd is not None:
        grid.add_row("spent", money(status))
    if served := status.served:
        grid.add_row("answered", escape(served.answered))
        if not job.ended and served.is_ready:
            grid.add_row("address", escape(served.address or "not known yet"))
            grid.add_row("ends", escape(served.left))
    if status.learned:
        grid.add_row("learned", status.learned)
    for line in status.better:
        grid.add_row("better?", escape(line))
    for warning in status.warnings:
        grid.add_row("[yellow]warning[/]", f"[bold]{warning.code}[/]: {escape(warning.message)} {escape(warning.fix)}")
    if status.diagnosis:
        grid.add_row("cause", f"[bold]{status.diagnosis.code}[/]: {escape(status.diagnosis.message)}")
        if status.diagnosis.lines:
            grid.add_row("log", escape("\n".join(status.diagnosis.lines)))
        if status.plan:
            grid.add_row("submitted", escape(status.plan.command))
    grid.add_row("next", escape(status.next))
    return grid


def reward_line(status: Status) -> str:
    """As: 0.42 (0.31 at first)  right 38%  212 tokens  cut 3%  KL 0.012  4,100 tokens/s  $0.02 a point; "" for other runs."""
    now, points = status.summary.event("progress"), finite(status.summary.curve.reward)
    if not points:
        return ""
    first, last = points[0].value, points[-1].value
    texts = {
        "right": "right {:.0%}", "length": "{:.0f} tokens", "clipped": "cut {:.0%}", "kl": "KL {:.3f}", "tokens_per_s": "{:,.0f} tokens/s",
    }  # fmt: skip
    parts = [f"{last:.3f} ({first:.3f} at step {points[0].step})"]
    parts += [text.format(now[name]) for name, text in texts.items() if isinstance(now.get(name), int | float)]
    if status.spent_usd and last > first:
        parts.append(f"{dollars(status.spent_usd / (100 * (last - first)))} a point")
    return "  ".join(parts)


def columns() -> int:
    """How wide a chart may be, beside the names of the rows."""
    return min(people.width, WIDEST) - 12


def money(status: Status) -> str:
    """What was spent, against the ceiling while it runs and against the estimate."""
    foreseen = "estimated {} to {}".format(*map(dollars, whole)) if (whole := estimated_usd(status)) else ""
    spent = dollars(status.spent_usd or 0)
    if status.plan is None:
        return f"{spent} at today's price"
    if not status.job.ended:
        return f"{spent} of at most {dollars(status.plan.max_usd)}" + (f"; {foreseen}" if foreseen else "")
    return f"cost {spent}" + (f", {foreseen}" if foreseen else "")


def estimated_usd(status: Status) -> tuple[float, float] | None:
    """What the run was estimated to cost; None where it was not, or is only a smoke run of it."""
    if status.estimate is None or status.plan is None or status.plan.smoke:
        return None
    return status.estimate["usd_low"], status.estimate["usd_high"]


def line_of(status: Status) -> str:
    progress = status.summary.progress
    if progress.step is None:
        return status.job.stage
    return f"{status.job.stage} step {progress.step}/{progress.total_steps} loss {progress.loss} eta {duration(status.summary.eta_s)}"
