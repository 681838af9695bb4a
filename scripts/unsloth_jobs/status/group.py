"""A comparison at one look: its runs, what was decided of them, what they cost, and which is the best."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

from huggingface_hub import HfApi

from ..errors import UserError
from ..events import Point, Summary
from ..jobs import records, submission
from ..jobs.backends import JobRef, find_job
from ..jobs.group import Group, GroupRun, has_same_result, without_start
from ..jobs.halving import Decision, Track, decide
from ..jobs.hf import GROUP_LABEL, PLAN_LABEL, RUN_LABEL, as_job, asking_jobs
from ..jobs.plan import Plan, Submission
from ..jobs.variations import flag_of, setting_name
from ..lookup import client
from ..lookup.client import IS_ID
from ..lookup.identity import whoami
from ..values import number
from .status import Status, as_json, fetch_or_recall, fetch_status, remember
from .winner import Result, Verdict, judge

AT_ONCE = 8  # jobs that are asked about


@dataclass(frozen=True)
class RunStatus:
    """A run of a comparison. status: of its newest job, None where none was submitted; earlier_usd: what earlier jobs of it
    have cost; plan: None where it was submitted from another machine.
    """

    name: str
    changes: dict[str, str]
    plan: Plan | None = None
    status: Status | None = None
    earlier_usd: float = 0.0

    @property
    def stage(self) -> str:
        return self.status.job.stage if self.status else "WAITING"

    @property
    def spent_usd(self) -> float:
        return self.earlier_usd + (self.status.spent_usd or 0.0 if self.status else 0.0)

    @property
    def is_over(self) -> bool:
        return self.status is not None and self.status.job.ended

    @property
    def is_running(self) -> bool:
        return self.status is not None and not self.is_over

    @property
    def is_approved_alone(self) -> bool:
        """Whether its newest job was planned by itself, to go on with what had ended."""
        own, newest = self.plan, self.status.plan if self.status else None
        return own is not None and newest is not None and without_start(newest) != without_start(own)

    @property
    def summary(self) -> Summary | None:
        return self.status.summary if self.status else None

    @property
    def loss(self) -> float | None:
        """The held-out loss of its result, or the newest while it trains."""
        if self.summary is None:
            return None
        tuned = number(self.summary.event("done").get("tuned_loss"))
        return tuned if tuned is not None else self.summary.progress.eval_loss

    @property
    def best_loss(self) -> float | None:
        """The lowest held-out loss of all."""
        seen = [point.value for point in self.summary.curve.eval_loss if point.step] if self.summary else []
        return min([*seen, *([self.loss] if self.loss is not None else [])], default=None)

    @property
    def graded(self) -> dict[str, Any] | None:
        """Its tuned model's line in the table of grades."""
        found = self.summary.event("done").get("graded") if self.summary else None
        return found["contenders"][-1] if found else None

    @property
    def ceiling_usd(self) -> float:
        """The most that this run can cost, as far as it has come. Its newest job may have been approved by itself."""
        if self.is_over and not self.is_cost_unknown:
            return self.spent_usd
        plan = (self.status and self.status.plan) or self.plan
        return self.earlier_usd + (plan.max_usd if plan else 0.0)

    @property
    def is_cost_unknown(self) -> bool:
        """Whether nothing says how long its newest job ran: it was deleted before anybody looked."""
        return self.stage == "DELETED" and bool(self.status and not self.status.spent_usd)

    @property
    def made(self) -> str | None:
        """Its result: a repository, or a folder here. Of a run that was submitted elsewhere its own word."""
        if self.plan:
            return self.plan.output_repo or self.plan.output_dir
        said = str(self.summary.event("done").get("repo")) if self.summary else ""
        return said if IS_ID.fullmatch(said) else None


@dataclass(frozen=True)
class GroupStatus:
    """group: as it was approved; None where that was on another machine. decisions: of halving, at its rungs; is_ended: by
    its user or its ceiling, so that what waits is not started.
    """

    group_id: str
    group: Group | None
    runs: tuple[RunStatus, ...]
    decisions: tuple[Decision, ...] = ()
    approved: str = ""
    is_ended: bool = False

    @property
    def spent_usd(self) -> float:
        return round(sum(run.spent_usd for run in self.runs), 4)

    @property
    def ceiling_usd(self) -> float | None:
        """What all can cost at most by now: what an ended run has not spent is no longer counted."""
        return round(sum(run.ceiling_usd for run in self.runs), 2) if self.group else None

    @property
    def ended(self) -> bool:
        """Whether no run will go on: those that wait will not be started any more where the whole was ended."""
        return all(run.is_over or (self.is_ended and run.status is None) for run in self.runs)

    @property
    def stage(self) -> str:
        if self.ended:
            return "COMPLETED" if any(run.stage == "COMPLETED" for run in self.runs) else "ERROR"
        return "RUNNING" if any(run.is_running for run in self.runs) else "WAITING"

    @property
    def metric(self) -> str:
        return self.group.metric if self.group else "auto"

    @property
    def unlike(self) -> tuple[str, ...]:
        return self.group.unlike if self.group else ()

    @property
    def stopped(self) -> dict[str, Decision]:
        """Which runs were found worse, and where."""
        return {name: decision for decision in self.decisions for name in decision.stopped}

    @cached_property
    def verdict(self) -> Verdict | None:
        """None until all runs have ended."""
        if not self.ended:
            return None
        return judge(
            [result_of(run) for run in self.runs if run.stage == "COMPLETED" and has_result(run)], self.metric, not self.unlike
        )

    def named(self, name: str) -> RunStatus:
        return next(run for run in self.runs if run.name == name)


def has_result(run: RunStatus) -> bool:
    return bool(run.summary and run.summary.event("done"))


def result_of(run: RunStatus) -> Result:
    """What a run has measured of itself. Anybody may print an event: what has another shape is left out."""
    summary = run.summary or Summary(run.status.summary.progress if run.status else None, None)  # type: ignore[arg-type]
    graded = run.graded
    return Result(
        run.name,
        run.spent_usd,
        number(summary.event("done").get("tuned_loss")),
        graded["right"] if graded else None,
        scores_of(summary.event("scores")),
        losses_of(summary.event("held_out")),
    )


def scores_of(event: Mapping[str, Any]) -> dict[str, float] | None:
    """The last contender's grade of each question."""
    asked, scores = event.get("asked"), event.get("scores")
    if not isinstance(asked, list) or not isinstance(scores, dict) or not scores:
        return None
    given = list(scores.values())[-1]
    if not isinstance(given, list) or len(given) != len(asked) or not all(map(is_grade, given)):
        return None
    return dict(zip(map(str, asked), given, strict=True))


def is_grade(value: Any) -> bool:
    found = number(value)
    return found is not None and 0 <= found <= 1


def losses_of(event: Mapping[str, Any]) -> tuple[tuple[float, float], ...]:
    losses, weights = event.get("losses"), event.get("weights")
    if not isinstance(losses, list) or not isinstance(weights, list) or len(losses) != len(weights):
        return ()
    sound = all(number(one) is not None for one in losses) and all((number(one) or 0) > 0 for one in weights)
    return tuple(zip(losses, weights, strict=True)) if sound else ()


# ---- where its runs are


def fetch_group(group_id: str, namespace: str | None = None, before: GroupStatus | None = None) -> GroupStatus:
    """The state of a comparison now. Raises UserError where it is not known here, nor any job of it on the Hub."""
    group = records.recall_group(group_id)
    if group is None:
        return fetch_from_elsewhere(group_id, namespace)
    facts = records.group_facts(group_id)
    listed = with_unrecorded(group, facts, records.runs())
    earlier = {run.name: run.status for run in before.runs} if before else {}
    # Found one after the other: each makes the client anew, which ends requests that are on their way.
    refs = [
        [find_job(one["job_id"], run=one) for one in listed if is_of(one, run.plan, facts["made_at"])] for run in group.runs
    ]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        runs = pool.map(lambda run, jobs: fetch_run(run, jobs, earlier.get(run.name)), group.runs, refs)
        found = GroupStatus(group_id, group, tuple(runs), approved=facts["approved"], is_ended=facts["ended"])
    return with_decisions(found, facts["decisions"])


def with_unrecorded(group: Group, facts: Mapping[str, Any], listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs on record; jobs of the group that were started from another machine, or whose record was lost, among them."""
    known = {one.get("plan_id") for one in listed}
    missing = {run.plan.plan_id: run for run in group.runs if run.plan.plan_id not in known}
    if group.where == "local" or not missing:
        return listed
    found = []
    with contextlib.suppress(UserError):
        found = [
            job for job in jobs_labelled(client.connect(), str(group.namespace), group.group_id) if plan_of(job) in missing
        ]
    for job in found:
        run = missing[plan_of(job)]
        submission.record_job(as_job(job), Submission(run.plan, str(facts["approved"]), None, group.group_id, run.name))
    return records.runs() if found else listed


def plan_of(job: Any) -> str:
    return str((job.labels or {}).get(PLAN_LABEL))


def fetch_run(run: GroupRun, jobs: Sequence[JobRef], before: Status | None) -> RunStatus:
    """The newest of the jobs that write where this run does, and what those before it have cost: a run may be resumed alone."""
    if not jobs:
        return RunStatus(run.name, run.changes, run.plan)
    newest, *older = jobs
    status = fetch_or_before(newest, before)
    spent = sum(fetch_or_recall(one).spent_usd or 0.0 for one in older)
    return RunStatus(run.name, run.changes, run.plan, status, round(spent, 4))


def is_of(record: dict[str, Any], plan: Plan, made_at: float) -> bool:
    """Whether a run on record is the plan's, by whatever number it was started, or a later one with the same result."""
    other = Plan.from_json(record["plan"])
    if record.get("plan_id") == plan.plan_id or without_start(other) == without_start(plan):
        return True
    return record["submitted_at"] >= made_at and has_same_result(other, plan)


def fetch_or_before(ref: JobRef, before: Status | None) -> Status:
    """A job's state; while the Hub does not answer, that of the last look, with a warning."""
    if before and before.job.job_id == ref.job_id and before.job.ended and before.is_log_read:
        return before  # it changes no more
    if before is None or before.job.job_id != ref.job_id:
        return fetch_or_recall(ref)
    try:
        return fetch_status(ref, before)
    except UserError:
        return fetch_or_recall(ref)


def fetch_from_elsewhere(group_id: str, namespace: str | None) -> GroupStatus:
    """A comparison that was submitted from another machine, by the labels of its jobs."""
    api = client.connect()
    owner = namespace or whoami(api).name
    jobs = jobs_labelled(api, owner, group_id)
    if not jobs:
        raise UserError(
            "unknown_group",
            f"{group_id} was not submitted from here, and {owner} has no job of it.",
            "See status.py --all. Of an organisation: --namespace ORGANISATION.",
        )
    by_run: dict[str, list[Any]] = {}
    for job in jobs:  # newest first
        by_run.setdefault(str((job.labels or {}).get(RUN_LABEL) or job.id), []).append(job)
    arguments = {name: flags_in(of_run[0]) for name, of_run in by_run.items()}
    runs = []
    for name, of_run in sorted(by_run.items(), key=lambda one: jobs.index(one[1][-1]), reverse=True):  # as they were begun
        newest, *older = (fetch_status(find_job(job.id, owner)) for job in of_run)
        spent = round(sum(one.spent_usd or 0.0 for one in older), 4)
        runs.append(RunStatus(name, changes_among(arguments, name), None, newest, spent))
    return GroupStatus(group_id, None, tuple(runs))


def jobs_labelled(api: HfApi, owner: str, group_id: str) -> list[Any]:
    with asking_jobs(f"the jobs of {owner}"):
        found = list(api.list_jobs(namespace=owner, labels={GROUP_LABEL: group_id}))
    return [job for job in found if (job.labels or {}).get(GROUP_LABEL) == group_id]  # a Hub may overlook the label


def flags_in(job: Any) -> dict[str, str]:
    """The script's flags in a job's command, as submit.py writes them: --name=value, --name value, or --name alone."""
    words = [str(word) for word in (*(job.command or ()), *(job.arguments or ()))]
    found = {}
    for word, following in pairwise([*words, "--"]):
        if match := re.fullmatch(r"--([\w-]+)(?:=(.*))?", word, re.DOTALL):
            value = match[2] if match[2] is not None else "" if following.startswith("--") else following
            found[setting_name(match[1])] = value
    return found


OWN = ("output_repo", "run_name", "resume")  # what each run has of its own anyway


def changes_among(flags: Mapping[str, dict[str, str]], name: str) -> dict[str, str]:
    """The flags of one run that not all have alike."""
    names = dict.fromkeys(flag for one in flags.values() for flag in one if flag not in OWN)
    varied = [flag for flag in names if len({one.get(flag) for one in flags.values()}) > 1]
    return {flag: flags[name].get(flag, "default") for flag in varied}


# ---- among all jobs that were submitted from here


def groups_among(statuses: Sequence[Status]) -> list[GroupStatus]:
    """The comparisons that these jobs are runs of, newest first; of a run that was started again, with what both cost."""
    by_plan: dict[str, list[Status]] = {}
    for status in statuses:  # newest first
        if status.plan:
            by_plan.setdefault(status.plan.plan_id, []).append(status)
    return [folded(group, by_plan) for group in records.groups()]


def folded(group: Group, by_plan: Mapping[str, Sequence[Status]]) -> GroupStatus:
    runs = []
    for run in group.runs:
        jobs = by_plan.get(run.plan.plan_id, ())
        earlier = sum(one.spent_usd or 0.0 for one in jobs[1:])
        runs.append(RunStatus(run.name, run.changes, run.plan, jobs[0] if jobs else None, earlier))
    return GroupStatus(group.group_id, group, tuple(runs), approved="yes")


# ---- which of them go on


def with_decisions(status: GroupStatus, recorded: Sequence[dict[str, Any]]) -> GroupStatus:
    """With what was decided before and what is decided now: decisions on record stand, whatever is found later."""
    if status.group is None or not status.group.halving:
        return status
    kept = [one for data in recorded if (one := decision_of(data))]
    new = decide({run.name: track_of(run) for run in status.runs}, status.group.halving)
    return replace(status, decisions=(*kept, *new[len(kept) :]))


def decision_of(data: Mapping[str, Any]) -> Decision | None:
    """A decision on record; None where it has another shape."""
    with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
        losses = {str(name): float("inf") if loss is None else float(loss) for name, loss in data["losses"].items()}
        return Decision(int(data["rung"]), float(data["tokens"]), losses, tuple(map(str, data["stopped"])))
    return None


def track_of(run: RunStatus) -> Track:
    if run.summary is None:
        return Track(())
    summary = run.summary
    losses = tuple(
        (at, point.value) for point in summary.curve.eval_loss if (at := tokens_at(summary.tokens, point.step)) is not None
    )
    total = summary.progress.total_steps
    first = next((point for point in summary.curve.eval_loss if point.step and tokens_at(summary.tokens, point.step)), None)
    whole = (tokens_at(summary.tokens, first.step) or 0) / first.step * total if first and total else None
    is_read = run.status is None or run.status.is_log_read
    return Track(losses, whole, run.is_over and is_read, run.stage == "COMPLETED")


def tokens_at(points: Sequence[Point], step: int) -> float | None:
    """Tokens that were trained on up to a step, on the line between the logged steps around it."""
    if step == 0:
        return 0.0
    for before, after in pairwise([Point(0, 0.0), *points]):
        if before.step < step <= after.step:
            return before.value + (after.value - before.value) * (step - before.step) / (after.step - before.step)
    return None


def remember_group(status: GroupStatus) -> None:
    """Keep how each run has ended, and what was decided of them."""
    for run in status.runs:
        if run.status:
            remember(run.status)
    if status.decisions and len(status.decisions) > len(records.group_facts(status.group_id)["decisions"]):
        with contextlib.suppress(UserError):  # it is decided the same again
            records.update_group(status.group_id, decisions=[decision_json(one) for one in status.decisions])


def decision_json(one: Decision) -> dict[str, Any]:
    losses = {name: loss if loss < float("inf") else None for name, loss in one.losses.items()}
    return asdict(one) | {"losses": losses, "stopped": list(one.stopped)}


def group_json(status: GroupStatus, next_: str) -> dict[str, Any]:
    verdict = status.verdict
    return {
        "group_id": status.group_id,
        "stage": status.stage,
        "runs": [run_json(status, run) for run in status.runs],
        "spent_usd": status.spent_usd,
        "max_usd": status.group.max_usd if status.group else None,
        "at_most_usd": status.ceiling_usd,
        "metric": status.metric,
        "halving": [decision_json(one) for one in status.decisions],
        "winner": verdict and verdict.winner,
        "verdict": asdict(verdict) if verdict else None,
        "next": next_,
    }


def run_json(status: GroupStatus, run: RunStatus) -> dict[str, Any]:
    """What status.py says of the job, with what it is in the comparison."""
    job = as_json(run.status) if run.status else {"job_id": None, "stage": run.stage, "spent_usd": 0.0}
    stopped = status.stopped.get(run.name)
    return job | {
        "name": run.name,
        "changes": {flag_of(name): value for name, value in run.changes.items()},
        "eval_loss": run.loss,
        "best_eval_loss": run.best_loss,
        "graded": run.graded,
        "earlier_usd": run.earlier_usd,
        "ended_at_rung": stopped.rung if stopped else None,
    }


def folded_json(status: GroupStatus) -> dict[str, Any]:
    """A comparison among all jobs, whose own objects say the rest."""
    runs = [
        {
            "name": run.name,
            "changes": {flag_of(name): value for name, value in run.changes.items()},
            "job_id": run.status.job.job_id if run.status else None,
            "stage": run.stage,
            "best_eval_loss": run.best_loss,
            "spent_usd": run.spent_usd,
        }
        for run in status.runs
    ]
    return {"group_id": status.group_id, "stage": status.stage, "runs": runs, "spent_usd": status.spent_usd}
