"""Which run of a comparison is the best, and whether that can be said at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from ..output import dollars
from ..training.paired import in_points, paired_difference, student_t

FEWEST = 8  # pairs of losses from which an interval is drawn


@dataclass(frozen=True)
class Result:
    """What a finished run was measured at. scores: grade by question; losses: held-out loss and learned tokens of each batch
    of held-out rows; usd: what it cost.
    """

    name: str
    usd: float
    loss: float | None = None
    right: float | None = None
    scores: dict[str, float] | None = None
    losses: tuple[tuple[float, float], ...] = ()

    def value(self, metric: str) -> float:
        """Higher is better."""
        found = self.right if metric == "graded" else self.loss
        return -math.inf if found is None or math.isnan(found) else found if metric == "graded" else -found


@dataclass(frozen=True)
class Verdict:
    """metric: what decided, graded or loss; winner: None where nothing can; alike: the runs that cannot be told from the
    best, itself included.
    """

    metric: str | None
    winner: str | None
    alike: tuple[str, ...]
    sentence: str


def judge(results: Sequence[Result], metric: str, loss_is_comparable: bool) -> Verdict:
    """The best of the finished runs by the metric that was named: auto is graded where all are, else loss.

    Of those that cannot be told from the best it is the cheapest. The best of several is held against each other at 95%
    over all these comparisons together (Bonferroni): the best of many looks better than it is.
    """
    if not results:
        return Verdict(None, None, (), "No run has ended with a result, so there is nothing to compare.")
    chosen = decisive(results, metric, loss_is_comparable)
    if chosen is None:
        why = "their held-out losses are not of the same rows or tokens" if not loss_is_comparable else "nothing was measured"
        return Verdict(None, None, (), f"The runs cannot be compared: not all have graded answers, and {why}.")
    measured = [one for one in results if math.isfinite(one.value(chosen))]
    best = max(measured, key=lambda one: one.value(chosen))
    others = [one for one in measured if one is not best]
    if not others:
        return Verdict(chosen, best.name, (best.name,), f"{best.name} is the only run with a result.")
    found = [(other, interval_between(best, other, chosen, len(others))) for other in others]
    alike = [best, *(other for other, interval in found if interval is None or interval[1] <= 0)]
    winner = min(alike, key=lambda one: (one.usd, -one.value(chosen)))
    return Verdict(chosen, winner.name, tuple(one.name for one in alike), sentence(best, winner, alike, found, chosen))


def decisive(results: Sequence[Result], metric: str, loss_is_comparable: bool) -> str | None:
    if metric != "loss" and all(one.right is not None for one in results):
        return "graded"
    has_loss = any(one.loss is not None and math.isfinite(one.loss) for one in results)
    return "loss" if metric != "graded" and loss_is_comparable and has_loss else None


def interval_between(best: Result, other: Result, metric: str, comparisons: int) -> tuple[float, float, float] | None:
    """By how much the best is better, and the interval of that; None where it cannot be told: other rows, or too few."""
    sure = NormalDist().inv_cdf(1 - 0.025 / comparisons)
    if metric == "graded":
        common = [name for name in best.scores or {} if name in (other.scores or {})]
        if len(common) < FEWEST or best.scores is None or other.scores is None:
            return None
        found = paired_difference([other.scores[name] for name in common], [best.scores[name] for name in common], sure)
        return found.mean, found.low, found.high
    if len(best.losses) < FEWEST or [tokens for _, tokens in best.losses] != [tokens for _, tokens in other.losses]:
        return None
    return loss_interval(best.losses, other.losses, sure)


def loss_interval(
    best: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]], sure: float
) -> tuple[float, float, float]:
    """Of other - best, in nats per token: a t-interval over the batches of held-out rows, each weighing as many tokens as it has."""
    pairs = [(after - before, tokens) for (before, tokens), (after, _) in zip(best, other, strict=True)]
    whole, number = sum(tokens for _, tokens in pairs), len(pairs)
    mean = math.fsum(one * tokens for one, tokens in pairs) / whole
    squares = math.fsum((tokens * (one - mean)) ** 2 for one, tokens in pairs)
    half = student_t(number - 1, sure) * math.sqrt(squares * number / (number - 1)) / whole
    return mean, mean - half, mean + half


def sentence(
    best: Result,
    winner: Result,
    alike: Sequence[Result],
    found: Sequence[tuple[Result, tuple[float, float, float] | None]],
    metric: str,
) -> str:
    by = "right answers" if metric == "graded" else "held-out loss"
    value = shown(best, metric)
    if len(alike) == 1:
        _, (mean, low, high) = min(((other, one) for other, one in found if one), key=lambda one: one[1][1])
        return f"{best.name} is the best by {by}: {value}, ahead of the next by {amount(mean, metric)} (95% sure: {amount(low, metric)} to {amount(high, metric)})."
    names = ", ".join(one.name for one in alike)
    untold = [other.name for other, one in found if one is None]
    why = f" {', '.join(untold)}: not measured on the same rows, or on too few." if untold else ""
    told = f"Not distinguishable by {by}: {names} (the best measured {value})."
    return f"{told} The cheapest of them is {winner.name}: {shown(winner, metric)}, {dollars(winner.usd)}.{why}"


def shown(one: Result, metric: str) -> str:
    return f"{one.right:.0%} right" if metric == "graded" else f"{one.loss:.4f}"


def amount(value: float, metric: str) -> str:
    return f"{in_points(value, 1)} points" if metric == "graded" else f"{value:.4f}"
