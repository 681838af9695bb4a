"""What preference training changed, from the log-probabilities of held-out answers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .report import emit

DISPLACED = 0.1  # nats per token by which good answers may become less likely before it is said
SHORTER, MOSTLY = 0.7, 0.7  # of rejected answers' length; share of pairs: what makes swapped answers likely


class Score(NamedTuple):
    """A held-out row. log_probs: of each answer's tokens, the better answer first; desirable: of an answer by itself."""

    loss: float
    log_probs: tuple[list[float], ...]
    desirable: bool | None = None


@dataclass
class Yardstick:
    """The held-out rows' scores under the model that training starts from, and the figures of each evaluation by step.

    It outlives the trainers that a run makes one after the other.
    """

    start: list[Score] = field(default_factory=list)
    figures: dict[int, dict[str, float]] = field(default_factory=dict)

    def measured(self, step: int, scores: list[Score]) -> dict[str, float]:
        """The figures of an evaluation; the first one is of the start."""
        self.start = self.start or scores
        self.figures[step] = {
            "loss": statistics.fmean(score.loss for score in scores),
            **preference_figures(self.start, scores),
        }
        return self.figures[step]

    def changes(self, step: int) -> dict[str, list[float]]:
        """Each figure before training and after so many steps; {} where either was not measured."""
        if 0 not in self.figures or step not in self.figures:
            return {}
        before, after = self.figures[0], self.figures[step]
        return {name: [round(before[name], 4), round(after[name], 4)] for name in before}


def preference_figures(start: Sequence[Score], now: Sequence[Score]) -> dict[str, float]:
    """reward_accuracy: share of rows in which the better answer gained more than the worse one since the start (a tie: one
    half); reward_margin: by how much, in nats per answer (times beta it is DPO's); preferred: share of pairs whose better
    answer is the likelier per token; chosen_logp, rejected_logp: mean log-probability per token of an answer; kl: from the
    start, in nats per token of these answers, estimated as half the squared log-ratio.
    """
    gains = [
        [sum(after) - sum(before) for before, after in zip(old.log_probs, new.log_probs, strict=True)]
        for old, new in zip(start, now, strict=True)
    ]
    squares = [
        (after - before) ** 2
        for old, new in zip(start, now, strict=True)
        for one, other in zip(old.log_probs, new.log_probs, strict=True)
        for before, after in zip(one, other, strict=True)
    ]
    kl = {"kl": statistics.fmean(squares) / 2 if squares else 0.0}
    if now[0].desirable is not None:
        return single_figures(now, [gain for [gain] in gains]) | kl
    margins = [better - worse for better, worse in gains]
    chosen, rejected = ([statistics.fmean(score.log_probs[which]) for score in now] for which in (0, 1))
    return {
        "reward_accuracy": statistics.fmean(map(is_right, margins)),
        "reward_margin": statistics.fmean(margins),
        "preferred": statistics.fmean(better > worse for better, worse in zip(chosen, rejected, strict=True)),
        "chosen_logp": statistics.fmean(chosen),
        "rejected_logp": statistics.fmean(rejected),
    } | kl


def single_figures(now: Sequence[Score], gains: list[float]) -> dict[str, float]:
    """Of answers by themselves: right is a desirable one that gained, or an undesirable one that lost."""
    sides: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for score, gain in zip(now, gains, strict=True):
        sides[bool(score.desirable)].append((gain, statistics.fmean(score.log_probs[0])))
    means = {side: [statistics.fmean(part) for part in zip(*found, strict=True)] for side, found in sides.items() if found}
    right = [is_right(gain if score.desirable else -gain) for score, gain in zip(now, gains, strict=True)]
    figures = {"reward_accuracy": statistics.fmean(right)}
    if len(means) == 2:
        figures["reward_margin"] = means[True][0] - means[False][0]
    figures |= {"chosen_logp": means[True][1]} if True in means else {}
    return figures | ({"rejected_logp": means[False][1]} if False in means else {})


def is_right(margin: float) -> float:
    return 0.5 if margin == 0 else float(margin > 0)


def warn_of_swapped(start: Sequence[Score]) -> None:
    """A warning where the better answers look like the worse ones, before training: shorter, and less likely."""
    pairs = [score.log_probs for score in start if len(score.log_probs) == 2]
    if not pairs:
        return
    lengths = [statistics.fmean(len(pair[which]) for pair in pairs) for which in (0, 1)]
    likelier = statistics.fmean(statistics.fmean(rejected) > statistics.fmean(chosen) for chosen, rejected in pairs)
    if lengths[0] < SHORTER * lengths[1] and likelier > MOSTLY:
        emit(
            "warning",
            code="answers_swapped",
            message=f"Chosen answers are much shorter than rejected ones ({lengths[0]:.0f} tokens to {lengths[1]:.0f}) and in "
            f"{likelier:.0%} of the held-out pairs the model finds the rejected one likelier: look whether the two columns are "
            "swapped (--chosen-column, --rejected-column).",
        )


def warn_of_displacement(changes: dict[str, list[float]]) -> None:
    """A warning where good answers became less likely while the margin grew: probability went to neither answer."""
    if not {"chosen_logp", "reward_margin"} <= changes.keys():
        return
    before, after = changes["chosen_logp"]
    if changes["reward_margin"][1] > 0 and before - after > DISPLACED:
        emit(
            "warning",
            code="chosen_less_likely",
            message=f"The chosen answers became less likely ({before:.2f} to {after:.2f} nats per token) while the margin over "
            "the rejected ones grew: the model may write neither. Lower --learning-rate to a third, raise --beta, or try "
            "--loss apo_zero or --loss orpo.",
        )
