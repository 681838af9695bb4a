# /// script
# requires-python = ">=3.11"
# dependencies = ["matplotlib==3.11.2"]
# [tool.uv]
# exclude-newer = "2026-11-20T00:00:00Z"
# ///
"""The curves of several runs in one picture. A script of its own, so that status.py needs no matplotlib.

Reads JSON on stdin: title; what is drawn; series: by run its [tokens, loss] pairs. Writes the file that it is given.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def save(picture: dict[str, Any], path: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot(xlabel="tokens trained on", ylabel=f"{picture['what']} (nats per token)", title=picture["title"])
    for name, points in picture["series"].items():
        if points:
            axes.plot(*zip(*points, strict=True), marker="o" if len(points) < 30 else "", markersize=3, label=name)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    if any(picture["series"].values()):
        axes.legend(frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    save(json.load(sys.stdin), sys.argv[1])
