# /// script
# requires-python = ">=3.11"
# dependencies = ["matplotlib==3.11.2"]
# [tool.uv]
# exclude-newer = "2026-11-20T00:00:00Z"
# ///
"""The curves of all runs of a comparison in one picture, by matplotlib: a script of its own, so that status.py needs none.

Reads JSON on stdin: title, what is drawn, and series: by run its [tokens, loss] pairs. Writes the file that it is given.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .group import GroupStatus

KINDS = (".svg", ".png", ".pdf")
PATIENCE_S = 300  # with matplotlib to download, the first time


def draw(status: GroupStatus, path: Path) -> None:
    """Raises UserError where the picture cannot be made."""
    from ..errors import USAGE, UserError
    from .group_view import as_picture

    if path.suffix.lower() not in KINDS:
        raise UserError("bad_picture", f"--picture {path} has no known ending.", f"Use one of {', '.join(KINDS)}.", USAGE)
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is None:
        raise UserError("no_uv", "uv is not installed, and the picture is drawn through it.", "pip install uv", USAGE)
    command = [uv, "run", "--quiet", "--script", __file__, str(path.resolve())]
    done = subprocess.run(command, input=json.dumps(as_picture(status)), text=True, capture_output=True, timeout=PATIENCE_S)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no reason was given"]
        raise UserError("no_picture", f"The picture could not be drawn: {last[0]}", "Try a folder that can be written to.")


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
