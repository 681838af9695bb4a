"""What training on rewards changed, as the table of a model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .markdown import markdown_table
from .report import emit

EDGE = 10  # steps at the beginning and the end whose means are compared


def edges_of(history: Sequence[Mapping[str, Any]], name: str) -> tuple[float, float] | None:
    """The mean of a figure over the first and the last steps that were logged; None where none was."""
    values = [float(entry[name]) for entry in history if name in entry]
    if not values:
        return None
    first, last = values[:EDGE], values[-EDGE:]
    return sum(first) / len(first), sum(last) / len(last)


TITLES = {
    "reward": ("Mean reward of sampled completions (0 to 1)", "{:.3f} → {:.3f}"),
    "right": ("Right, of sampled completions", "{:.1%} → {:.1%}"),
    "informative": ("Prompts whose completions differ in reward", "{:.0%} → {:.0%}"),
    "length": ("Tokens of a completion", "{:.0f} → {:.0f}"),
    "clipped": ("Completions cut at the limit", "{:.1%} → {:.1%}"),
    "kl": ("KL from the start (estimate, nats per token)", "{:.4f} → {:.4f}"),
}


def reward_table(history: Sequence[Mapping[str, Any]], held_out: Mapping[str, float] | None) -> str:
    """history: the trainer's log; held_out: warn_of_hacking's figures."""
    table = {"In training": "first → last steps"}
    for name, (title, text) in TITLES.items():
        if found := edges_of(history, name):
            table[title] = text.format(*found)
    if held_out:
        table["Mean reward on held-out prompts, greedy"] = (
            "{before:.3f} → {after:.3f} (95% sure of the change: {low:+.3f} to {high:+.3f})".format(**held_out)
        )
    return markdown_table(table)


def reward_line(weights: Mapping[str, float], answer_format: str) -> str:
    """As: number × 1, format × 0.2 (<answer>…</answer>)."""
    parts = ", ".join(f"{name} × {weight:g}" for name, weight in weights.items())
    return parts + (f" ({answer_format})" if answer_format else "")


def draw_rewards(history: Sequence[Mapping[str, Any]], path: Any) -> bool:
    """Whether the picture of the mean reward over the steps could be drawn. A failure is a warning: the result is safe."""
    points = [(entry["step"], entry["reward"]) for entry in history if "reward" in entry]
    try:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 3.5), dpi=100, layout="constrained")
        axes = figure.add_subplot(xlabel="step", ylabel="mean reward")
        axes.plot(*zip(*points, strict=True), color="tab:blue", marker=".", label="sampled completions")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
        figure.savefig(path)
    except Exception as error:
        emit("warning", code="picture_failed", message=f"{type(error).__name__}: {error}")
        return False
    return True
