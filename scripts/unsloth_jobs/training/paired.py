"""Base against tuned on the same rows: the difference, how sure it is, and how many rows would tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

SURE = NormalDist().inv_cdf(0.975)  # of a two-sided 95%
POWER = NormalDist().inv_cdf(0.8)
UNTOLD = 100_000  # rows; no test set has more


class Difference(NamedTuple):
    """The mean of tuned - base over the same rows, its 95% interval, and what the interval is made of."""

    mean: float
    low: float
    high: float
    rows: int
    variance: float = (
        1.0  # of the rows' differences, with the two that paired_difference adds; no scores of 0 to 1 have more than 1
    )


def paired_difference(base: Sequence[float], tuned: Sequence[float], sure: float = SURE) -> Difference:
    """The mean of tuned - base with an interval. Both: one score of 0 to 1 a row, in the same order; sure: how far the
    interval reaches on either side, in standard deviations of a normal distribution (as it stands: 95%).

    A t-interval with two rows added, one won and one lost by as much as the largest difference seen (1 where none is):
    after Agresti and Min (2005), who add less. Without them 20 rows that all agree would prove that no row ever differs.
    Raises ValueError without rows, and where the rows are not the same.
    """
    differences = [round(after - before, 9) for before, after in zip(base, tuned, strict=True)]  # 0.1 + 0.2 is no gain on 0.3
    if not differences:
        raise ValueError("no rows to compare")
    rows = len(differences)
    mean = math.fsum(differences) / rows
    largest = max(map(abs, differences)) or 1.0
    with_two = [*differences, largest, -largest]
    centre = math.fsum(with_two) / len(with_two)
    variance = math.fsum((one - centre) ** 2 for one in with_two) / len(with_two)
    half = student_t(rows - 1, sure) * math.sqrt(variance / len(with_two))
    return Difference(mean, max(-1.0, min(mean, centre - half)), min(1.0, max(mean, centre + half)), rows, variance)


def student_t(degrees: int, normal: float = SURE) -> float:
    """The point of Student's t where the normal distribution has `normal`: 97.5% as it stands (Abramowitz and Stegun,
    26.7.5), within 0.1% from 8 degrees of freedom on.
    """
    x, n = normal, max(degrees, 1)
    terms = (
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
        (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160,
    )
    return x + sum(term / n**power for power, term in enumerate(terms, 1))


def rate_interval(scores: Sequence[float]) -> tuple[float, float]:
    """The 95% interval of a mean of scores of 0 to 1: Wilson's, where all are 0 or 1.

    Scores in between vary less than those: they count as so many more rows as their variance is smaller, two rows of
    0 or 1 added, so that equal ones leave an interval. Raises ValueError without scores.
    """
    if not scores:
        raise ValueError("no scores")
    rows, mean = len(scores), min(math.fsum(scores) / len(scores), 1.0)
    most = mean * (1 - mean)
    variance = math.fsum((score - mean) ** 2 for score in scores) / rows
    share = (variance * rows + 2 * most) / (most * (rows + 2)) if most else 1.0
    weight = SURE**2 / (rows / share)
    centre = (mean + weight / 2) / (1 + weight)
    half = math.sqrt(weight * most + weight**2 / 4) / (1 + weight)
    return max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))


def rows_needed(difference: Difference) -> int | None:
    """How many rows would tell a difference of this mean and variance, at 95% in 4 of 5 tries: 20 at least; None where it is 0."""
    if not difference.mean:
        return None
    return max(20, math.ceil((SURE + POWER) ** 2 * difference.variance / difference.mean**2))


def verdict(difference: Difference) -> str:
    """better, worse or not distinguishable, at 95%."""
    if difference.low > 0:
        return "better"
    return "worse" if difference.high < 0 else "not distinguishable"


def difference_sentence(difference: Difference) -> str:
    """What was found, in points of 100, for a reader who knows no statistics."""
    shown = (difference.mean, difference.low, difference.high)
    digits = 0 if all(abs(one) >= 0.01 or not one for one in shown) else 1
    mean, low, high = (in_points(one, digits) for one in shown)
    rows = f"{difference.rows:,} row" + "s" * (difference.rows != 1)
    said = verdict(difference)
    if said != "not distinguishable":
        return f"{said.capitalize()}: {mean} points, 95% sure: {low} to {high} ({rows})."
    needed = rows_needed(difference)
    found = f"Not distinguishable with {rows}: {mean} points, 95% sure: {low} to {high}"
    if needed is None or needed > UNTOLD:
        return f"{found}."
    return f"{found}; about {two_digits(needed):,} rows would tell."


def in_points(share: float, digits: int) -> str:
    """A difference of 0 to 1 as signed points: +3, −9, ±0."""
    value = round(100 * share, digits)
    return f"{'±' if not value else '+' if value > 0 else '−'}{abs(value):.{digits}f}"


def two_digits(number_of_rows: int) -> int:
    """Rounded up to two digits, since it is an estimate."""
    unit = 10 ** max(len(str(number_of_rows)) - 2, 0)
    return -(-number_of_rows // unit) * unit
