"""The one exception that reaches a user: what is wrong, and what to type next."""

from __future__ import annotations

from dataclasses import dataclass

FAILED, USAGE, APPROVAL, HUB = 1, 2, 3, 4  # exit codes, as the README states them
INTERRUPTED = 130  # by Ctrl-C, as shells have it


@dataclass(frozen=True)
class Problem:
    """Something found wrong: `severity` is "error" (the run would fail or be wasted) or "warning"."""

    code: str
    severity: str
    message: str
    fix: str


class UserError(Exception):
    """Ends a command with a Problem on stderr (and in the JSON) and this exit code."""

    def __init__(self, code: str, message: str, fix: str, exit_code: int = FAILED):
        super().__init__(message)
        self.problem = Problem(code, "error", message, fix)
        self.exit_code = exit_code
