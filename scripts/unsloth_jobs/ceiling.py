"""When to end a run so that it costs no more than a ceiling, and loses as little as possible of what it learned."""

from __future__ import annotations

import math
from itertools import pairwise

from .errors import USAGE, UserError
from .events import Summary

FINISHING_S = 120  # what a run still takes after its last step: the last evaluation, the card, the push


def require_amount(max_usd: float | None) -> None:
    """Raises UserError unless a ceiling, where there is one, is a sum that something can be over: nothing is over nan."""
    if max_usd is not None and not (math.isfinite(max_usd) and max_usd >= 0):
        raise UserError("bad_ceiling", f"--max-usd {max_usd} is no sum of money.", "Pass a number, such as --max-usd 5.", USAGE)


def due(left_s: float, summary: Summary, look_s: float) -> str | None:
    """Why to cancel a running job now, or None.

    left_s: seconds until the ceiling is reached; look_s: at most so many pass until it is asked again. A job's machine
    may be gone the moment it is cancelled, so it is cancelled right after the last checkpoint that it can push before
    the ceiling. When that is, the pushes so far tell; all times are of the job's own clock.
    """
    if left_s <= look_s:
        return "The ceiling is reached."
    progress, times = summary.progress, save_times(summary)
    if len(times) < 2 or summary.heard is None or progress.step == progress.total_steps:
        return None
    if summary.eta_s is not None and summary.eta_s + FINISHING_S <= left_s:
        return None
    interval = max(after - before for before, after in pairwise(times))
    next_save_s = interval - (summary.heard - times[-1])
    if 0 < next_save_s <= left_s - look_s or next_save_s <= 0:  # one that is late may come any moment
        return None
    return f"The checkpoint of step {summary.saves[-1].step} is pushed, and the next one would come after the ceiling."


def save_times(summary: Summary) -> list[float]:
    """When each checkpoint was pushed, after when training began; empty where the events carry no time."""
    times = [point.time for point in summary.saves if point.time is not None]
    if not times or not summary.curve.loss or summary.curve.loss[0].time is None:
        return []
    return [min(summary.curve.loss[0].time, times[0]), *times]
