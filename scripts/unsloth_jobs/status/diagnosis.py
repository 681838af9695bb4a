"""From a job's stage, message, events and log to the cause, the smallest change that mends it, and the next command."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ..estimate.history import FREE
from ..events import Summary
from ..jobs.job import Job
from ..jobs.plan import SCRIPTS, Plan
from ..redaction import plain
from ..training.secrets import quotation
from .causes import AGAIN, AT_END, CHECK, ESTIMATE, IN_ERROR, IN_MESSAGE, LOGIN, LOGS, RESUME, Cause, Diagnosis, no_change
from .log_end import LAST_LINES, exceptions, informative_lines, key_line, recent
from .remedies import STOPS, WRAPPERS


def describe_saved(summary: Summary, repository: str | None) -> str:
    """What of a run that ended early is kept on the Hub, by its own events."""
    if repository and summary.event("pushed"):
        return f"The adapter is in {repository}."
    if repository and summary.event("checkpoint").get("pushed"):
        step = summary.event("checkpoint").get("step")
        return f"The checkpoint of step {step} is in {repository}, in last-checkpoint."
    return "No checkpoint had been pushed."


def diagnose(job: Job, summary: Summary, plan: Plan | None = None) -> Diagnosis | None:
    """What went wrong, or None where nothing did (yet). A cause that is not known says so, with its last output.

    In this order: what the platform says, the run's own `failed` event, the exception that ended it, its last lines.
    Codes, fixes and commands are of the tables above: what the log says is quoted and never followed.
    """
    if job.stage not in ("ERROR", "DELETED"):
        return None
    failed = summary.event("failed")
    code, reported = failed.get("code", ""), failed.get("message", "")
    errors, end = exceptions(recent(summary.lines))
    writer = DiagnosisWriter(job, summary, plan)
    if code in ("", "error", "cancelled") and (found := find(IN_MESSAGE, [job.message or ""])):
        return writer.cause(
            *found, before=describe_saved(summary, plan.output_repo if plan else None) if found[0].command == RESUME else ""
        )
    if code in ("", *WRAPPERS) and (
        # A process among several that died says why in no exception of ours.
        found := find(IN_ERROR, [reported, *errors, *([end] if code == "process_died" else [])])
        or (find(AT_END, [end]) if not code else None)
    ):
        return writer.cause(*found)
    if code in STOPS:
        return writer.stop(code, reported)
    last = key_line([reported] if reported else errors, end)
    message = f"Last output: {quotation(last) if last else last_progress(summary) + '.'}"
    lines = () if reported else informative_lines("\n".join(errors) or end)[-LAST_LINES:]
    return Diagnosis(
        "unknown",
        f"{' '.join(plain(job.message or job.stage).split())}. {message}",
        "Look at the end of the log.",
        writer.command(LOGS),
        tuple(lines),
    )


def last_progress(summary: Summary) -> str:
    step = summary.progress.step
    return "nothing" if step is None else f"step {step} of {summary.progress.total_steps}, and nothing after it"


def find(causes: Iterable[Cause], texts: list[str]) -> tuple[Cause, re.Match[str]] | None:
    """The most certain cause of which any of the texts speaks."""
    found = ((cause, match) for cause in causes for text in texts if (match := cause.pattern.search(text)))
    return next(found, None)


@dataclass(frozen=True)
class DiagnosisWriter:
    """Puts a cause into words for one job."""

    job: Job
    summary: Summary
    plan: Plan | None

    def cause(self, cause: Cause, match: re.Match[str], before: str = "") -> Diagnosis:
        detail = next((value for value in match.groups() if value), "").rstrip(".").strip("'\"")
        message = cause.message.replace("{detail}", quotation(detail))
        return Diagnosis(
            cause.code, message, f"{before} {cause.fix}".strip(), self.command(cause.command, cause.change, cause.flavor)
        )

    def stop(self, code: str, reported: str) -> Diagnosis:
        """What to say of a `failed` event whose code is a template's."""
        remedy, message = STOPS[code], f"The job reports: {quotation(reported)}" if reported else "The job reports no details."
        if code == "push_failed" and (found := find(IN_ERROR, [self.summary.event("warning").get("message", "")])):
            message += f" {found[0].message}"
        if code in ("push_failed", "push_denied") and (kept := self.kept()):
            return Diagnosis(code, message, *kept)
        return Diagnosis(code, message, remedy.fix, self.command(remedy.command, remedy.change, remedy.flavor))

    def kept(self) -> tuple[str, str] | None:
        """Where a trained adapter lies that the Hub did not take, and what sends or fetches it; None where it is gone."""
        plan, warning = self.plan, self.summary.event("warning").get("code")
        if plan is None or plan.dataset is None or not plan.output_repo or self.summary.progress.step is None:
            return None
        if plan.where == "local" and plan.output_dir:
            words = [
                "hf",
                "upload",
                plan.output_repo,
                plan.output_dir,
                ".",
                "--exclude",
                "checkpoints*",
                "--exclude",
                "merged/*",
            ]
            public = "--public" in plan.arguments
            return f"It is in {plan.output_dir}. With a token that may write there:", shlex.join(
                words + ["--private"] * (not public)
            )
        if plan.where == "local" or warning == "rescue_failed":
            return None
        owner = plan.namespace or plan.output_repo.split("/")[0]
        words = ["hf", "buckets", "sync", f"hf://buckets/{owner}/jobs-artifacts", "./rescued"]
        words += ["--include", f"*/rescued-{self.job.job_id}/*"]
        return "What it learned was saved with the job's files. Fetch it:", shlex.join(words)

    def command(self, kind: str, change: Callable = no_change, flavor: str | None = None) -> str:
        """What to type next. For a job that was not submitted from here, its log: of its arguments nothing is known."""
        plan = self.plan
        if kind == LOGIN:
            return LOGIN
        if kind in (CHECK, ESTIMATE) and plan and plan.model and plan.dataset:
            larger = [f"--more-than-gb={plan.vram_gb:g}"] if kind == ESTIMATE and plan.vram_gb else []
            flags = plan.flags(leave_out={"base-model", "dataset", *(name.replace("_", "-") for name in FREE)})
            script = [] if Path(plan.script).parent.name == "templates" else [f"--script={plan.script}"]
            return shlex.join(["uv", "run", str(SCRIPTS / f"{kind}.py"), plan.model, plan.dataset, *script, *larger, *flags])
        if kind in (AGAIN, RESUME) and plan:
            plan = replace(plan, flavor=flavor) if flavor and plan.where == "hf" else plan
            asked = self.summary.event("plan").get("settings")
            more = change((asked if isinstance(asked, dict) else {}) | self.summary.event("settings"))
            if more or change is no_change:  # the same run once more would fail once more
                # Only a script that trains on rows takes --resume.
                return plan.resuming() if kind == RESUME and plan.dataset else plan.again(*more)
        return shlex.join(["uv", "run", str(SCRIPTS / "logs.py"), self.job.job_id, "--tail", "50"])
