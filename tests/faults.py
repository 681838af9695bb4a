"""What each fault of references/faults.md is shown to lead to, collected from the tests of tests/test_faults*.py."""

from __future__ import annotations

from collections.abc import Callable

PATIENCE_S = 300  # seconds after which a command counts as hanging
SHOWN: dict[str, str] = {}  # the faults that are injected: id -> what status or the command says of it


def shows(**outcomes: str) -> Callable:
    """Marks a test of faults of the table: by id, the code (or stage) that the table states for them."""
    SHOWN.update({name.replace("_", "-"): outcome for name, outcome in outcomes.items()})
    return lambda test: test
