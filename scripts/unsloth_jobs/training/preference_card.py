"""What preference training changed, as the table of a model card."""

from __future__ import annotations

from collections.abc import Mapping

from .card import markdown_table
from .paired import rate_interval

TITLES = {
    "loss": ("Loss ({loss})", "{0:.4f} → {1:.4f}"),
    "reward_accuracy": ("Reward accuracy (one half is chance)", "{1:.1%}"),
    "reward_margin": ("Reward margin (nats per answer, before beta)", "{1:+.2f}"),
    "preferred": ("Better answer likelier, per token", "{0:.1%} → {1:.1%}"),
    "chosen_logp": ("Log-probability per token of better answers", "{0:.3f} → {1:.3f}"),
    "rejected_logp": ("Log-probability per token of worse answers", "{0:.3f} → {1:.3f}"),
    "kl": ("KL from the start (estimate, nats per token)", "{1:.4f}"),
}


def accuracy_interval(changes: Mapping[str, list[float]], rows: int) -> list[float]:
    """The 95% interval of the reward accuracy; [] where it was not measured."""
    if "reward_accuracy" not in changes or not rows:
        return []
    right = round(changes["reward_accuracy"][1] * rows)
    return [round(end, 4) for end in rate_interval([1.0] * right + [0.0] * (rows - right))]


def preference_table(changes: Mapping[str, list[float]], rows: int, loss: str) -> str:
    """changes: each figure before and after training; rows: that were held out."""
    if not changes:
        return "Not measured: no rows were held out, or the evaluation failed."
    table = {f"{rows:,} held-out rows": "start → tuned"}
    for name, (title, text) in TITLES.items():
        if name in changes:
            table[title.format(loss=loss)] = text.format(*changes[name])
    low, high = accuracy_interval(changes, rows)
    table[TITLES["reward_accuracy"][0]] += f" (95% interval: {low:.1%} to {high:.1%})"
    return markdown_table(table)
