"""From a job's stage, message, events and log to the cause and the smallest change that mends it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .events import Summary
from .jobs import Job


@dataclass(frozen=True)
class Diagnosis:
    code: str
    message: str
    fix: str


# In the order of their certainty. Each pattern is what the failing program itself prints.
IN_MESSAGE = (
    (
        r"OOMKilled|exit code: 137",
        "out_of_ram",
        "The machine ran out of main memory (not GPU memory).",
        "Choose a flavor with more RAM: t4-medium or a10g-large for their smaller namesakes, or l4x1.",
    ),
    (
        r"[Tt]ime.?out|timed out",
        "timeout",
        "The job reached its timeout and was ended.",
        "{saved} With a longer --timeout, and --resume at the end of the arguments, a new job goes on from it.",
    ),
)
IN_LOG = (
    (
        r"CUDA out of memory|CUDA error: out of memory",
        "out_of_vram",
        "The GPU ran out of memory.",
        "Add --gradient-checkpointing offload, halve --batch-size and double --gradient-accumulation: the same training, "
        "in less memory.",
    ),
    (r"No space left on device", "disk_full", "The machine's disk is full.", "Choose a flavor with a larger disk."),
    (
        r"No solution found when resolving",
        "unresolvable",
        "The script's dependencies do not resolve.",
        "Restore the versions of templates/sft.py's header.",
    ),
    (
        r"403 Client Error|403 Forbidden",
        "forbidden",
        "The Hub refused the token.",
        "Use a token with write permission for the owner of --output-repo.",
    ),
    (
        r"401 Client Error|401 Unauthorized",
        "bad_token",
        "The Hub did not accept the token.",
        "Log in again with `hf auth login` and submit again.",
    ),
)


def saved(summary: Summary, repository: str | None) -> str:
    """What of a run that ended early is kept on the Hub, by its own events."""
    if repository and summary.event("pushed"):
        return f"The adapter is in {repository}."
    if repository and summary.event("checkpoint").get("pushed"):
        step = summary.event("checkpoint")["step"]
        return f"The checkpoint of step {step} is in {repository}, in last-checkpoint."
    return "No checkpoint had been pushed."


def diagnose(job: Job, summary: Summary, repository: str | None = None) -> Diagnosis | None:
    """What went wrong, or None where nothing did (yet). A cause that is not known says so, with the last lines."""
    if job.stage not in ("ERROR", "DELETED"):
        return None
    if (failed := summary.event("failed")) and failed.get("code") != "error":
        return Diagnosis(failed["code"], failed.get("message", ""), failed.get("fix", ""))
    log = "\n".join([*summary.lines, str(failed.get("message", ""))])
    for text, table in ((job.message or "", IN_MESSAGE), (log, IN_LOG)):
        for pattern, code, message, fix in table:
            if re.search(pattern, text):
                return Diagnosis(code, message, fix.replace("{saved}", saved(summary, repository)))
    said = failed.get("message") or (summary.lines[-1] if summary.lines else "the log is empty")
    return Diagnosis(
        "unknown", f"{job.message or job.stage}. The last thing said: {said}", f"Read the log: logs.py {job.job_id} --tail 50"
    )
