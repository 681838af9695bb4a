"""Successive halving: when the runs of a comparison are held against each other, and which of them go on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

# Successive halving of Jamieson and Talwalkar (2016), with the budgets of Hyperband's first bracket (Li et al., 2018): the
# first rung is so early that the last one lies at 1/rate of the run.


@dataclass(frozen=True)
class Rung:
    """share: of the tokens of the shortest run; keep: how many runs go on from there."""

    share: float
    keep: int


def rungs_of(runs: int, rate: int) -> list[Rung]:
    """The rungs of so many runs: at each, one in `rate` goes on. [] where rate is 0."""
    if rate < 2 or runs < 2:
        return []
    number = max(1, math.floor(math.log(runs) / math.log(rate) + 1e-9))
    return [Rung(rate ** -(number - place + 1), max(1, math.ceil(runs / rate**place))) for place in range(1, number + 1)]


@dataclass(frozen=True)
class Track:
    """How far a run is. losses: held-out losses by the tokens that were trained on before each, in their order; whole: the
    tokens of the whole run, None while they are not known; over: whether it makes no more of them; done: whether it has ended
    with a result, such as one that stopped early: its last loss stands for what would have come.
    """

    losses: tuple[tuple[float, float], ...]
    whole: float | None = None
    over: bool = False
    done: bool = False

    def loss_at(self, tokens: float) -> float | None:
        """The held-out loss after so many tokens, on the line between the two evaluations around; None where that is not
        known yet. What is no number is the worst of losses.
        """
        points = [(at, loss if math.isfinite(loss) else math.inf) for at, loss in self.losses]
        for (before, first), (after, second) in pairwise(points):
            if before <= tokens <= after:
                part = (tokens - before) / (after - before) if after > before else 1.0
                return second if math.inf in (first, second) else first + part * (second - first)
        return points[-1][1] if self.done and points else None


@dataclass(frozen=True)
class Decision:
    """What was found at a rung. losses: of the runs that were held against each other, inf of one that had failed before."""

    rung: int
    tokens: float
    losses: dict[str, float]
    stopped: tuple[str, ...]


def decide(tracks: Mapping[str, Track], rate: int) -> list[Decision]:
    """The decision at each rung that all runs still in it have reached, in their order.

    It depends on the events of the runs alone, not on when they are looked at: whoever decides finds the same. A run that
    has failed counts as the worst; of equal losses the run that was named first is the better.
    """
    rungs = rungs_of(len(tracks), rate)
    wholes = [track.whole for track in tracks.values() if track.whole]
    waiting = any(track.whole is None and not track.over for track in tracks.values())
    if not rungs or waiting or not wholes:
        return []
    made: list[Decision] = []
    left = list(tracks)
    for number, rung in enumerate(rungs, 1):
        tokens = rung.share * min(wholes)
        losses = {name: tracks[name].loss_at(tokens) for name in left}
        if any(loss is None and not tracks[name].over for name, loss in losses.items()):
            break
        known = {name: math.inf if loss is None else loss for name, loss in losses.items()}
        order: Sequence[str] = sorted(left, key=lambda name: known[name])
        made.append(Decision(number, tokens, known, tuple(order[rung.keep :])))
        left = [name for name in left if name in order[: rung.keep]]
    return made
