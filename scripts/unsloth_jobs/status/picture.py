"""The curves of a comparison as a file: drawn by a script with matplotlib, which uv installs once it is asked for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from ..errors import USAGE, UserError
from ..redaction import plain
from .group import GroupStatus
from .group_view import as_picture

SCRIPT = Path(__file__).resolve().parents[1] / "drawing" / "curves.py"
KINDS = (".svg", ".png", ".pdf")
PATIENCE_S = 300  # with matplotlib to download, the first time


def draw(status: GroupStatus, path: Path) -> None:
    """Raises UserError where the picture cannot be made."""
    if path.suffix.lower() not in KINDS:
        raise UserError("bad_picture", f"--picture {path} has no known ending.", f"Use one of {', '.join(KINDS)}.", USAGE)
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is None:
        raise UserError("no_uv", "uv is not installed, and the picture is drawn through it.", "pip install uv", USAGE)
    command = [uv, "run", "--quiet", "--script", str(SCRIPT), str(path.resolve())]
    done = subprocess.run(command, input=json.dumps(as_picture(status)), text=True, capture_output=True, timeout=PATIENCE_S)
    if done.returncode:
        why = plain(" ".join(done.stderr.split())[-300:]) or "no reason was given"
        raise UserError(
            "no_picture", f"The picture could not be drawn: {why}", "Name a file that can be written, or try again."
        )
