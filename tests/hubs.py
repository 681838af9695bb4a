"""The test Hub as most tests want it, the tokens of its users, and what its jobs log."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hub import Hub

ADA, BOB = "hf_adaadaadaada", "hf_bobbobbobbob"


@contextmanager
def hub_of_ada(
    root: Path, *, model: Path | None = None, rows: Path | None = None, token: str = ADA, **options: Any
) -> Iterator[Hub]:
    """A Hub whose jobs complete without running anything; Ada has a model, ada/tiny, and a data set, ada/docs."""
    with Hub(root, **{"execute_jobs": False, "scheduling": 0.05, "quiet_s": 0.1} | options) as hub:
        hub.add_user("ada", token=token)
        for repo, folder, kind in (("ada/tiny", model, "model"), ("ada/docs", rows, "dataset")):
            if folder:
                hub.add_repo(repo, folder, type=kind)
        yield hub


def event(name: str, **values: Any) -> str:
    """A line of a job's log."""
    return f"EVENT {json.dumps({'event': name, **values})}"
