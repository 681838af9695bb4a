"""What a comparison saves by ending the worse runs early, against all of them to their end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..values import is_amount
from .halving import rungs_of

SPARED = ("training", "evaluation")  # parts of an estimate of which a run that is ended has paid its share; grading: nothing


@dataclass(frozen=True)
class Saving:
    """share: of all steps; steps, of_steps: where each run's were estimated; usd, of_usd: low and high, likewise.

    Which runs are ended is not known before: where they are not equally long, this is what is saved on average.
    """

    share: float
    steps: int | None = None
    of_steps: int | None = None
    usd: tuple[float, float] | None = None
    of_usd: tuple[float, float] | None = None

    def as_json(self) -> dict[str, Any]:
        low, high = self.usd or (None, None)
        share = round(self.share, 3)
        return {"share_of_steps": share, "steps": self.steps, "of_steps": self.of_steps, "usd_low": low, "usd_high": high}

    @property
    def line(self) -> str:
        steps = "" if self.steps is None else f" ({self.steps:,} of {self.of_steps:,})"
        text = f"about {self.share:.0%} of the steps{steps}"
        if self.usd and self.of_usd:
            text += " and ${:.2f}–{:.2f} of ${:.2f}–{:.2f}".format(*self.usd, *self.of_usd)
        else:
            text += "; the dollars are known once estimate.py has priced the runs"
        return f"{text}, as far as somebody looks at each rung"


def saving_of(estimates: Sequence[Mapping[str, Any] | None], prices: Sequence[float], rate: int) -> Saving | None:
    """prices: dollars a minute of each run. None where no run is ended early."""
    rungs = rungs_of(len(estimates), rate)
    if not rungs:
        return None
    known = [one for one in estimates if one and is_amount(one.get("tokens")) and one["tokens"] > 0]
    if len(known) < len(estimates):
        return Saving(spared([1.0] * len(estimates), rate)[0])
    shares = spared([float(one["tokens"]) for one in known], rate)
    steps = [int(one["steps"]) if is_amount(one.get("steps")) else 0 for one in known]
    saved = math.fsum(share * number for share, number in zip(shares, steps, strict=True))
    whole = sum(steps)
    ended = (len(known) - rungs[-1].keep) / len(known)
    runs = zip(known, shares, prices, strict=True)
    found = [usd_spared(one, share, ended, price) for one, share, price in runs]
    share = saved / whole if all(steps) else math.fsum(shares) / len(shares)
    made = Saving(share, round(saved), whole) if all(steps) else Saving(share)
    if any(one is None for one in found):
        return made
    usd = [round(math.fsum(one[end] for one in found if one), 2) for end in (0, 1)]
    of_usd = [round(math.fsum(one[f"usd_{end}"] for one in known), 2) for end in ("low", "high")]
    return replace(made, usd=(usd[0], usd[1]), of_usd=(of_usd[0], of_usd[1]))


def spared(tokens: Sequence[float], rate: int) -> list[float]:
    """The share of each run that is not trained, where each is as likely to be ended at a rung as the others."""
    rungs, shortest = rungs_of(len(tokens), rate), min(tokens)
    kept = [len(tokens), *(rung.keep for rung in rungs)]
    ended = [(before - after) / len(tokens) for before, after in zip(kept, kept[1:], strict=False)]
    return [
        math.fsum(part * (1 - rung.share * shortest / one) for part, rung in zip(ended, rungs, strict=True)) for one in tokens
    ]


def usd_spared(estimate: Mapping[str, Any], share: float, ended: float, usd_per_minute: float) -> tuple[float, float] | None:
    """Dollars, low and high: of what an estimate says, its training and evaluations by their share, and the answers that a run
    which is ended does not give. None where its parts are not on record.
    """
    parts = estimate.get("seconds")
    if not isinstance(parts, dict) or not all(map(is_span, parts.values())):
        return None
    low, high = (
        share * math.fsum(parts[name][end] for name in SPARED if name in parts)
        + ended * (parts["grading"][end] if "grading" in parts else 0.0)
        for end in (0, 1)
    )
    return low / 60 * usd_per_minute, high / 60 * usd_per_minute


def is_span(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(is_amount, value))
