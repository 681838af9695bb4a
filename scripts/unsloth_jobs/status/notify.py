"""Telling a user that a job has ended: by a command of their own, or by a webhook that they name. Once, and never for long."""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import shutil
import subprocess
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from ..errors import USAGE, Problem, UserError
from ..output import dollars, duration, visible
from ..redaction import plain
from ..training.secrets import redacted
from .group import GroupStatus
from .group_view import counted, money
from .status import Status

COMMAND_S, REQUEST_S = 60.0, 10.0  # as long as each may take
LONGEST = 1000  # characters
SECRETS_IN_ENVIRONMENT = re.compile("TOKEN|KEY|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)


def require_target(target: str) -> None:
    """Raises UserError (usage) where this can be neither run nor posted to: better now than when the job has ended."""
    if is_address(target):
        parts = urlsplit(target)
        if parts.scheme in ("http", "https") and parts.hostname and not any(map(str.isspace, target)):
            return
        raise UserError(
            "bad_notify", "--notify takes an address that begins with https://, without blanks.", "Correct it.", USAGE
        )
    words = split(target)
    if not words or not shutil.which(words[0]):
        raise UserError(
            "bad_notify",
            f"--notify names no program of this machine: {words[0] if words else '(nothing)'}.",
            "Pass a command, such as 'notify-send Training', or the address of a webhook.",
            USAGE,
        )


def is_address(target: str) -> bool:
    return "://" in target.split(" ", 1)[0]


def split(target: str) -> list[str]:
    try:
        return shlex.split(target, posix=os.name != "nt")
    except ValueError as error:
        raise UserError("bad_notify", f"--notify cannot be read: {error}.", "Close its quotation marks.", USAGE) from error


def message_of(status: Status) -> str:
    """What is told: how the job ended, what it cost, and its cause or its result. Of a log, only what status would show."""
    job, spent = status.job, status.spent_usd
    cost = f", {dollars(spent)}" if spent else ""
    parts = [f"Job {job.job_id}: {job.stage} after {duration(job.elapsed_s)}{cost}."]
    if status.diagnosis:
        parts.append(f"{status.diagnosis.code}: {status.diagnosis.message} {status.diagnosis.fix}")
    elif status.result:
        parts += [*([f"{status.learned}."] if status.learned else []), f"Result: {status.result}"]
    return clean("\n".join(parts))


def message_of_group(status: GroupStatus) -> str:
    """What is told of a comparison: how its runs ended, what all cost, which is the best and where it lies."""
    parts = [f"Comparison {status.group_id}: {counted(status)}; {money(status)}."]
    if (verdict := status.verdict) is None:
        return clean("\n".join([*parts, "Nothing runs, and what waits was not started: see status.py."]))
    parts.append(verdict.sentence)
    if verdict.winner and (made := status.named(verdict.winner).status) and made.result:
        parts.append(f"Result of {verdict.winner}: {made.result}")
    return clean("\n".join(parts))


def clean(text: str) -> str:
    return visible(plain(text))[:LONGEST]


def notify(target: str, text: str, facts: dict[str, str]) -> Problem | None:
    """Tell it. facts: short values by name, for programs. What was in the way, without the address: that is a secret, too."""
    facts = {name: clean(value) for name, value in facts.items()}
    try:
        post(target, text, facts) if is_address(target) else start(split(target), text, facts)
    except (OSError, ValueError, http.client.HTTPException, subprocess.SubprocessError) as error:
        who = urlsplit(target).hostname if is_address(target) else split(target)[0]
        return Problem("notify_failed", "warning", f"{who} was not told: {reason(error)}.", "The job is not touched by that.")
    return None


def post(address: str, text: str, facts: dict[str, str]) -> None:
    """ntfy takes the text as it is; Slack reads `text`, Discord `content`, and others what they want of the rest."""
    host = urlsplit(address).hostname or ""
    if "ntfy" in host:
        body, kind = text.encode(), "text/plain; charset=utf-8"
    else:
        body, kind = json.dumps({"text": text, "content": text, **facts}).encode(), "application/json"
    request = urllib.request.Request(address, body, {"Content-Type": kind, "User-Agent": "unsloth-jobs"}, method="POST")
    with urllib.request.build_opener(Unmoved).open(request, timeout=REQUEST_S) as answer:
        answer.read(1)


class Unmoved(urllib.request.HTTPRedirectHandler):
    """What was sent to one host is not sent to another: an address that has moved is an error."""

    def redirect_request(self, *_: object) -> None:
        return None


def start(words: list[str], text: str, facts: dict[str, str]) -> None:
    """Run the user's command with the text as its last argument, which no shell reads. It gets no secret of ours."""
    env = {name: value for name, value in os.environ.items() if not SECRETS_IN_ENVIRONMENT.search(name)}
    env |= {name.upper(): value for name, value in facts.items()} | {"JOB_TEXT": text}
    subprocess.run([*words, text], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=COMMAND_S, check=True)


def reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"it answered {error.code}"
    if isinstance(error, subprocess.CalledProcessError):
        return f"it ended with exit code {error.returncode}"
    if isinstance(error, subprocess.TimeoutExpired | TimeoutError):
        return "it took too long"
    return redacted(str(getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__))
