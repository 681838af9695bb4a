"""How a job is doing at one look: what its backend, its log and this machine's records say of it."""

from __future__ import annotations

import functools
import shlex
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ..errors import HUB, Problem, UserError
from ..estimate.flavors import LOCAL
from ..events import TAIL, Progress, Summary, summarise
from ..jobs import records
from ..jobs.backends import JobRef
from ..jobs.job import Backend, Job
from ..jobs.plan import SCRIPTS, Plan
from ..lookup.client import IS_ID, endpoint
from ..output import duration
from ..training.after_training import endpoint_command, laptop_line
from ..training.secrets import quotation
from ..values import whole
from .causes import Diagnosis
from .diagnosis import describe_saved, diagnose
from .served import ServingState, after_serving, served_of, while_serving
from .warnings import LONG_S, Alternative, alternatives, wait_warning, waited_s, warnings

MEASURED = ("held_out", "scores")  # events by which a run is compared to others
PHASES = {  # by the event that begins each, in their order
    "plan": "reading the rows",
    "listening": "loading the model",
    "serving": "answering",
    "data": "turning rows into tokens",
    "masks": "loading the model",
    "coverage": "measuring what training starts from",
    "eval": "compiling the first step",
}


@dataclass(frozen=True)
class Status:
    """A job at one look. usd_per_minute: as it was submitted, or today's for a job submitted elsewhere; ended_because:
    why a watcher cancelled it.
    """

    job: Job
    summary: Summary
    plan: Plan | None
    diagnosis: Diagnosis | None
    estimate: dict[str, Any] | None = None
    usd_per_minute: float | None = None
    warnings: tuple[Problem, ...] = ()
    alternatives: tuple[Alternative, ...] = ()
    ended_because: str | None = None
    is_log_read: bool = True

    @property
    def spent_usd(self) -> float | None:
        """What the job's time has cost; None where its price is not known."""
        return None if self.usd_per_minute is None else round(self.job.elapsed_s / 60 * self.usd_per_minute, 4)

    @property
    def served(self) -> ServingState | None:
        """What it serves; None for a job that serves nothing."""
        return served_of(self.job, self.summary)

    @property
    def result(self) -> str | None:
        """Where the tuned model lies once the job is done: an address on the Hub, or a folder here."""
        done = self.summary.event("done")
        if not done:
            return None
        if self.plan and self.plan.model_url:
            return self.plan.model_url
        repositories = [name for name in (done.get("repo"), *done.get("repos", ())) if name and IS_ID.fullmatch(name)]
        paths = [quotation(path) for path in (done.get("path"), *done.get("paths", ())) if path]
        return ", ".join(repositories or paths) or None

    @property
    def learned(self) -> str | None:
        """What the training was worth; None where no rows were held out."""
        done = self.summary.event("done")
        if done.get("rewards"):
            return reward_part(done["rewards"])
        base, tuned = done.get("base_loss"), done.get("tuned_loss")
        if base is None or tuned is None:
            return None
        return f"held-out loss {base:.4f} → {tuned:.4f}" + preference_part(done)

    @property
    def better(self) -> list[str]:
        """How many of the questions each contender answers rightly, and what the difference is worth; [] where not graded."""
        graded = self.summary.event("done").get("graded")
        if not graded:
            return []
        first, *others = graded["contenders"]
        return [grade_line(graded, first, other) for other in others]

    @property
    def phase(self) -> str:
        """What a running job is at, by its events."""
        progress = self.summary.progress
        if self.summary.event("answering"):
            return "answering questions, as base and as tuned" if "graded" not in self.summary.last else "writing the card"
        if progress.step is not None:
            return "saving and pushing" if progress.step == progress.total_steps else "training"
        if self.plan and self.plan.port and not self.served:
            return "reading what the model is" if self.summary.event("plan") else "installing its libraries"
        reached = [name for name in PHASES if self.summary.event(name)]
        return PHASES[reached[-1]] if reached else "installing its libraries"

    @property
    def again(self) -> str:
        """How to go on with a run that was ended, or to begin again where it has saved nothing; empty without its plan."""
        if self.plan is None:
            return ""
        if self.summary.event("checkpoint"):
            return f"To go on with it: {self.plan.resuming()}"
        return f"To run it again: {self.plan.again()}"

    @property
    def after(self) -> str:
        """What follows a job that is done."""
        if not self.result:
            log = f"uv run {SCRIPTS / 'logs.py'} {self.job.job_id} --tail 50"
            return f"It ended without an error and reported no result: there may be none. See its log: {log}"
        if report := self.summary.event("done").get("report"):
            return f"The report: {self.report_at(str(report))}\nRead its worst answers before you train again."
        result = f"The tuned model: {self.result}"
        if not (self.plan and self.plan.model and self.plan.dataset):
            return result  # no training of a template's
        return "\n".join([result, *self.wishes(str(self.plan.output_repo or self.plan.output_dir))])

    def wishes(self, adapter: str) -> list[str]:
        """What people want of a tuned model, and the commands for it. adapter: its repository, or its folder here."""
        here = self.plan is not None and self.plan.where == "local"
        serve = shlex.join(["uv", "run", str(SCRIPTS / "serve.py"), self.job.job_id, *(["--where", "local"] if here else [])])
        laptop = laptop_line(whole(self.summary.event("done").get("parameters")))
        wishes = {
            "To try it, in a chat beside its base": f"{serve} --chat",
            f"To run it on a laptop or a phone ({laptop})": self.command(
                "export.py", "cpu-upgrade", "2h", "--adapter", adapter
            ),
            "To call it from a program, at an OpenAI-compatible address": serve,
        }
        if not here:
            wishes["To keep such an address, once it is exported (Inference Endpoints)"] = endpoint_command(adapter)
        wishes["To compare it with its base, given your best prompt"] = self.command(
            "evaluate.py", "l4x1", "1h", "--models", adapter, "--system-prompt", "YOUR PROMPT"
        )
        return [f"{wish}: {command}" for wish, command in wishes.items()]

    def command(self, template: str, flavor: str, timeout: str, *arguments: str) -> str:
        """The command that submits another template, to where this run was."""
        here = self.plan is not None and self.plan.where == "local"
        words = ["uv", "run", str(SCRIPTS / "submit.py"), str(SCRIPTS.parent / "templates" / template)]
        words += ["--where", "local"] if here else ["--flavor", flavor, "--timeout", timeout]
        return shlex.join([*words, "--", *arguments])

    def report_at(self, report: str) -> str:
        """The report's address on the Hub, or its file here. report: as the run names it."""
        repository = self.plan.results[-1] if self.plan and self.plan.results else None
        return f"{endpoint()}/{repository}/blob/main/evaluation/README.md" if repository else quotation(report)

    @property
    def next(self) -> str:
        if self.diagnosis:
            return f"{self.diagnosis.fix} {self.diagnosis.command}".strip()
        if self.job.stage == "COMPLETED" and (self.served or (self.plan and self.plan.port)):
            return after_serving(self.summary.event("done"), self.plan, self.spent_usd)
        if self.job.stage == "COMPLETED":
            return self.after
        if self.job.stage == "CANCELED" and self.plan and self.plan.port:
            return after_serving({"reason": "cancelled"}, self.plan, self.spent_usd)
        if self.job.stage == "CANCELED":
            kept = describe_saved(self.summary, self.plan.output_repo if self.plan else None)
            return " ".join(part for part in ("It was cancelled.", self.ended_because, kept, self.again) if part)
        if self.job.stage == "SCHEDULING" and self.job.flavor == LOCAL.name:
            return f"{self.job.message or 'It is about to start.'} Look again in a minute."
        if self.job.stage == "SCHEDULING":
            waited = f", for {duration(waited)} by now" if (waited := waited_s(self.job)) else ""
            return f"It waits for a machine{waited}, which is not billed. Look again in a minute."
        if self.job.stage != "RUNNING":
            return "Its status is unavailable now. Look again later."
        if self.served and self.served.is_ready:
            return while_serving(self.served, self.job)
        return f"It is {self.phase}. Look again in {duration(min(max(self.summary.eta_s or 60, 10), 1800))}."


def reward_part(found: dict[str, list[float]]) -> str:
    """What a run on rewards says of its first and last steps."""
    texts = {"reward": "mean reward {:.2f} → {:.2f}", "right": "right {:.0%} → {:.0%}", "length": "{:.0f} → {:.0f} tokens"}
    parts = [text.format(*found[name]) for name, text in texts.items() if name in found]
    return f"{'; '.join(parts)} (sampled completions, first and last steps)"


def preference_part(done: dict[str, Any]) -> str:
    """What a run on preferences says beside its loss, as: ; reward accuracy 83% of 60 rows (half is chance)."""
    found = done.get("preferences") or {}
    if "reward_accuracy" not in found:
        return ""
    text = (
        f"; reward accuracy {found['reward_accuracy'][1]:.0%} of {done.get('held_out', 0):,.0f} held-out rows (half is chance)"
    )
    if "chosen_logp" in found:
        text += "; log-probability per token of the better answers {:.2f} → {:.2f}".format(*found["chosen_logp"])
    return text


VERDICTS = {"better": "better", "worse": "worse", "not distinguishable": "not distinguishable with so few rows"}


def grade_line(graded: dict[str, Any], first: dict[str, Any], other: dict[str, Any]) -> str:
    """As: right on 200 rows 12% → 81% (+69 points, 95% sure: +62 to +75): better."""
    text = f"right on {graded['rows']:,.0f} rows {first['right']:.0%} → {other['right']:.0%}"
    if {"difference", "difference_low", "difference_high"} <= other.keys():
        points = (100 * other[name] for name in ("difference", "difference_low", "difference_high"))
        text += " ({:+.0f} points, 95% sure: {:+.0f} to {:+.0f})".format(*points)
    return f"{text}: {VERDICTS[other['verdict']]}" if other.get("verdict") in VERDICTS else text


def fetch_status(ref: JobRef, before: Status | None = None) -> Status:
    """The job's state now. before: an earlier status, whose log stands in for one that cannot be read."""
    job, plan = ref.inspect(), ref.plan
    summary, unread = read_log(ref.backend, job, before)
    estimate = ref.run and ref.run["estimate"]
    unusual = unread or warnings(job, summary, plan, estimate)  # a log that cannot be read is no silence of the run
    price = plan.usd_per_minute if plan else price_of(ref.backend, job.flavor)
    found = Status(job, summary, plan, diagnose(job, summary, plan), estimate, price, tuple(unusual), is_log_read=not unread)
    if (waited := waited_s(job) or 0) > LONG_S:
        found = with_alternatives(found, ref.backend, waited, before)
    if ref.run is None and (paths := records.damaged(ref.job_id)):
        found = replace(found, warnings=(*found.warnings, set_aside(paths[0])))
    return found


def fetch_or_recall(ref: JobRef) -> Status:
    """The state of a job submitted from here; what was kept of it where it is unavailable."""
    try:
        return fetch_status(ref)
    except UserError as error:
        problem, run, plan = error.problem, ref.run, ref.plan
    if run is None or plan is None:
        raise AssertionError(f"{ref.job_id} comes from the records of runs")
    stage = "DELETED" if problem.code == "job_deleted" else "UNKNOWN"
    outcome = run.get("outcome") or {"stage": stage, "elapsed_s": 0.0, "done": None}
    began = datetime.fromtimestamp(run["submitted_at"], UTC)
    ended = began + timedelta(seconds=outcome["elapsed_s"])
    job = Job(run["job_id"], outcome["stage"], problem.message, plan.model_url or "", plan.flavor, began, began, ended)
    known = {name: outcome[name] for name in ("done", *MEASURED) if isinstance(outcome.get(name), dict)}
    summary = Summary(Progress(), None, known)
    warning = Problem(problem.code, "warning", problem.message, problem.fix)
    return Status(job, summary, plan, None, run["estimate"], plan.usd_per_minute, (warning,), is_log_read=False)


def remember(status: Status) -> None:
    """Keep how a run from this machine ended, once it has: later estimates start from it."""
    job = status.job
    if job.ended and status.plan and status.is_log_read:
        outcome = {"stage": job.stage, "elapsed_s": job.elapsed_s, "spent_usd": status.spent_usd}
        measured = {name: event for name in MEASURED if (event := status.summary.event(name))}
        records.remember_outcome(job.job_id, outcome | {"done": status.summary.event("done") or None} | measured)


def set_aside(record: Path) -> Problem:
    return Problem(
        "record_damaged",
        "warning",
        f"{record} is not the record of a run: its plan and price are not known here.",
        "The job itself is not touched by that. Restore the file, or delete it.",
    )


def read_log(backend: Backend, job: Job, before: Status | None) -> tuple[Summary, list[Problem]]:
    """What a job's log says, and the warning where it could not be read: the job's stage is known all the same."""
    if job.stage == "SCHEDULING":
        return summarise(()), []
    lines: list[str] = []
    try:
        lines.extend(backend.logs(job.job_id, tail=TAIL))
        return summarise(lines), []
    except UserError as error:
        if error.exit_code != HUB:
            raise
        problem = Problem("log_unread", "warning", f"Its log cannot be read: {error.problem.message}", error.problem.fix)
        return before.summary if before else summarise(lines), [problem]


def with_alternatives(found: Status, backend: Backend, waited: float, before: Status | None) -> Status:
    """The status of a job that has waited for long, with what else would hold it. That is asked for once."""
    plan, others = found.plan, before.alternatives if before else ()
    if not others and plan:
        others = alternatives(backend.flavors(), plan, functools.partial(records.recall_estimate, plan.run_key))
    warning = wait_warning(found.job, waited, plan, others)
    return replace(found, alternatives=others, warnings=(*found.warnings, warning))


def price_of(backend: Backend, flavor: str) -> float | None:
    """Dollars a minute today, for a job whose submission is not known here; None where no machine has this name."""
    return next((one.usd_per_minute for one in backend.flavors() if one.name == flavor), None)


def as_json(status: Status) -> dict[str, Any]:
    job = status.job
    return {
        "job_id": job.job_id,
        "stage": job.stage,
        "progress": asdict(status.summary.progress),
        "elapsed_s": round(job.elapsed_s, 1),
        "eta_s": None if job.ended else status.summary.eta_s,
        "spent_usd": status.spent_usd,
        "max_usd": status.plan.max_usd if status.plan else None,
        "estimate": status.estimate,
        "url": job.url,
        "message": job.message,
        "phase": status.phase if job.stage == "RUNNING" else None,
        "waited_s": waited_s(job),
        "alternatives": [asdict(one) for one in status.alternatives],
        "curve": status.summary.curve.as_json(),
        "model_url": status.result,
        "warnings": [asdict(warning) for warning in status.warnings],
        "diagnosis": asdict(status.diagnosis) if status.diagnosis else None,
        "ended_because": status.ended_because,
        "result": status.summary.event("done") or None,
        "serving": status.served.as_json() if status.served else None,
        "worth": [*([status.learned] if status.learned else []), *status.better],
        "next": status.next,
        "command": status.plan and status.plan.command,
    }
