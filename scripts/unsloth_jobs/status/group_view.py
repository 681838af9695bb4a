"""How a comparison is shown: a table with the changed settings, the curves of all runs in one picture, what comes next."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from plotille import Canvas
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..events import Point, Summary
from ..jobs.plan import SCRIPTS
from ..jobs.variations import flag_of
from ..output import dollars, duration, people, table
from .group import GroupStatus, RunStatus, tokens_at
from .view import ROWS, WIDEST
from .winner import Verdict

COLOURS = ("cyan", "yellow", "magenta", "green", "red", "blue", "white")  # of the runs' curves, as plotille and rich name them
CURVE_ROWS = 2 * ROWS


def as_lines(status: GroupStatus) -> RenderableType:
    """All of it, for a terminal."""
    parts: list[RenderableType] = [f"[bold]{status.group_id}[/]: {counted(status)}", runs_table(status)]
    if people.is_terminal and people.encoding.startswith("utf") and (drawn := curves(status, min(people.width, WIDEST))):
        parts.append(drawn)
    parts += [
        escape(line) for line in [money(status), *halving_lines(status), *warning_lines(status), f"next: {next_of(status)}"]
    ]
    return Lines(*parts)


def counted(status: GroupStatus) -> str:
    """As: 4 runs, 2 RUNNING, 2 COMPLETED."""
    stages = [run.stage for run in status.runs]
    return ", ".join([f"{len(stages)} runs", *(f"{stages.count(stage)} {stage}" for stage in dict.fromkeys(stages))])


def runs_table(status: GroupStatus) -> Table:
    names = list(dict.fromkeys(name for run in status.runs for name in run.changes))
    winner = verdict.winner if (verdict := status.verdict) else None
    rows = table("", "run", *map(flag_of, names), "stage", "step", "held-out loss", "right", "spent $", "job")
    for number, run in enumerate(status.runs):
        cells = [*(run.changes.get(name, "–") for name in names), stage_cell(status, run), step_cell(run), loss_cell(run)]
        cells += [right_cell(run), dollars(run.spent_usd), run.status.job.job_id if run.status else "–"]
        title = Text(run.name, COLOURS[number % len(COLOURS)])
        rows.add_row("→" if run.name == winner else "", title, *map(escape, cells))
    return rows


def folded_cells(status: GroupStatus) -> list[list[str]]:
    """A comparison in the table of all jobs: a line for it, and a short one for each of its runs."""
    lines = [[status.group_id, counted(status).partition(", ")[0], "", "", "", dollars(status.spent_usd), "", ""]]
    for run in status.runs:
        loss = "–" if run.best_loss is None else f"held-out {run.best_loss:.4f}"
        lines.append([f"  {run.name}", run.stage, step_cell(run), loss, "", dollars(run.spent_usd), "", ""])
    return lines


def stage_cell(status: GroupStatus, run: RunStatus) -> str:
    if run.status is None:
        return "never started" if status.is_ended else "waits" if status.approved else "not approved"
    if (decision := status.stopped.get(run.name)) and run.stage != "COMPLETED" and not run.is_approved_alone:
        return f"ended at rung {decision.rung}" if run.is_over else f"to be ended at rung {decision.rung}"
    return run.stage


def step_cell(run: RunStatus) -> str:
    progress = run.summary.progress if run.summary else None
    return f"{progress.step}/{progress.total_steps}" if progress and progress.step is not None else "–"


def loss_cell(run: RunStatus) -> str:
    return "–" if run.loss is None else f"{run.loss:.4f}"


def right_cell(run: RunStatus) -> str:
    """As: 81% (74 to 86)."""
    one = run.graded
    if not one:
        return "–"
    ends = f" ({100 * one['low']:.0f} to {100 * one['high']:.0f})" if {"low", "high"} <= one.keys() else ""
    return f"{one['right']:.0%}{ends}"


def money(status: GroupStatus) -> str:
    if status.group is None:
        return f"spent: {dollars(status.spent_usd)} in all"
    if status.group.where == "local":
        return "spent: nothing, it runs on this machine"
    approved, most = status.group.max_usd, status.ceiling_usd or 0.0
    more = f"; {dollars(most - approved)} of it beyond that, for runs that were gone on with" if most - approved >= 0.01 else ""
    unknown = ", ".join(run.name for run in status.runs if run.is_cost_unknown)
    if status.ended:
        without = f", without {unknown}, whose jobs were deleted before anybody looked" if unknown else ""
        return f"spent: {dollars(status.spent_usd)} of at most {dollars(approved)}{without}{more}"
    least = f"{dollars(approved - most)} of the {dollars(approved)} approved are not needed"
    beside = f"{dollars(approved)} approved{more}" if more else least if approved - most >= 0.01 else ""
    return f"spent: {dollars(status.spent_usd)}; at most {dollars(most)} in all" + (f" ({beside})" if beside else "")


def halving_lines(status: GroupStatus) -> list[str]:
    lines = []
    for one in status.decisions:
        losses = ", ".join(
            f"{name} {loss:.4f}" if math.isfinite(loss) else f"{name} failed" for name, loss in one.losses.items()
        )
        ended = ", ".join(one.stopped) or "none"
        lines.append(f"rung {one.rung}: held-out loss after {one.tokens:,.0f} tokens: {losses}; ended: {ended}")
    return lines


def warning_lines(status: GroupStatus) -> list[str]:
    found: dict[str, list[str]] = {}
    for run in status.runs:
        for warning in run.status.warnings if run.status else ():
            fix = "" if run.stage == "DELETED" else warning.fix  # which is what comes next
            found.setdefault(f"{warning.message} {fix}".rstrip(), []).append(run.name)
        if run.status and run.status.diagnosis and run.stage in ("ERROR", "DELETED"):
            diagnosis = run.status.diagnosis
            found.setdefault(f"{diagnosis.code}: {diagnosis.message}", []).append(run.name)
    return [f"warning ({', '.join(names)}): {text}" for text, names in found.items()]


def next_of(status: GroupStatus) -> str:
    """What is to be done: look again, go on, or use the winner. Nothing of it is done unasked."""
    look = shlex.join(["uv", "run", str(SCRIPTS / "status.py"), status.group_id])
    verdict = status.verdict
    if verdict:
        return " ".join([verdict.sentence, *after(status, verdict), *going_on(status)])
    waiting = [run.name for run in status.runs if run.status is None]
    if status.stage == "WAITING":
        rest = f"Not submitted: {', '.join(waiting)}. The command that was approved goes on: it pays for none twice."
        return " ".join([rest, *going_on(status)])
    left = [run.summary.eta_s for run in status.runs if run.is_running and run.summary and run.summary.eta_s]
    again = duration(min(max([*left, 60.0]), 1800.0))
    soon = f"Look again in {again}: {look}" + (f" Not submitted yet: {', '.join(waiting)}." if waiting else "")
    return " ".join([soon, *going_on(status)])


def going_on(status: GroupStatus) -> list[str]:
    """What goes on with each run that has failed or come to its deadline: its own command, which asks for its own approval."""
    lines = []
    for run in status.runs:
        if run.status is None or not run.is_over or run.name in status.stopped:
            continue
        if found := run.status.diagnosis:
            lines.append(f"\n{run.name} has failed ({found.code}). {found.fix} {found.command}".rstrip())
        elif run.stage == "DELETED":
            lines += [f"\n{run.name} was deleted. {warning.fix}" for warning in run.status.warnings]
    return [*lines, "\nWhat goes on with a run counts in this comparison, with its dollars."] if lines else []


def after(status: GroupStatus, verdict: Verdict) -> list[str]:
    """The commands that come after a comparison."""
    if verdict.winner is None:
        return []
    winner = status.named(verdict.winner)
    lines = [winner.status.after] if winner.status else []
    if winner.status and winner.plan is None and winner.made:  # submitted elsewhere
        lines += ["\n" + "\n".join(winner.status.wishes(winner.made))]
    losers = [run for run in status.runs if run.name != verdict.winner and run.plan and run.plan.output_repo and run.status]
    if losers:
        commands = "; ".join(f"hf repos delete {run.plan.output_repo}" for run in losers if run.plan)
        lines.append(f"\nTo delete the others' repositories, if you do not need them: {commands}")
    return lines


# ---- the picture


def series(summary: Summary | None, held_out: bool) -> list[tuple[float, float]]:
    """Loss by tokens, or by steps where no event tells tokens."""
    points: Sequence[Point] = () if summary is None else summary.curve.eval_loss if held_out else summary.curve.loss
    if summary is None or not points:
        return []
    place = (lambda step: tokens_at(summary.tokens, step)) if summary.tokens else float
    found = ((place(point.step), point.value) for point in points)
    return [(at, value) for at, value in found if at is not None and math.isfinite(value)]


def all_series(status: GroupStatus) -> tuple[dict[str, list[tuple[float, float]]], str]:
    """Each run's losses, held-out ones where there are two of any run, and what they are."""
    held_out = {run.name: series(run.summary, held_out=True) for run in status.runs}
    if any(len(points) > 1 for points in held_out.values()):
        return held_out, "held-out loss"
    return {run.name: series(run.summary, held_out=False) for run in status.runs}, "training loss"


def curves(status: GroupStatus, columns: int) -> Text | None:
    """The losses of all runs over the tokens that each was trained on, each in the colour of its name in the table."""
    found, what = all_series(status)
    points = [point for one in found.values() for point in one]
    if len({at for at, _ in points}) < 2 or columns < 20:
        return None
    low, high = min(value for _, value in points), max(value for _, value in points)
    last = max(at for at, _ in points)
    room = (high - low or abs(high) or 1) / (4 * CURVE_ROWS - 1)  # of one dot: a canvas ends before its upper limits
    top, bottom = f"{high:.3g}", f"{low:.3g}"
    margin = max(len(top), len(bottom))
    width = columns - margin - 2
    canvas = Canvas(width, CURVE_ROWS, 0, low, last * (1 + 1 / (2 * width - 1)), high + room)
    for number, one in enumerate(found.values()):
        for left, right in pairwise(one):
            canvas.line(*left, *right, color=COLOURS[number % len(COLOURS)])
    drawn = Text()
    for index, row in enumerate(canvas.plot().split("\n")):
        label = top if index == 0 else bottom if index == CURVE_ROWS - 1 else ""
        drawn.append(f"{label:>{margin}} │", "dim").append_text(Text.from_ansi(row)).append("\n")
    unit = " tokens" if any(run.summary and run.summary.tokens for run in status.runs) else " steps"
    drawn.append(f"{' ' * (margin + 1)}└ {what} after 0 to {last:,.0f}{unit}"[:columns], "dim")
    return drawn


def as_picture(status: GroupStatus) -> dict[str, Any]:
    """What scripts/unsloth_jobs/drawing/curves.py draws."""
    found, what = all_series(status)
    return {"title": status.group_id, "what": what, "series": found}
