"""A comparison in the words of the person who is asked to approve it."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table

from ..output import duration, table
from ..training.setting import AUTO
from . import records
from .group import Group, GroupRun
from .group_planning import PreparedGroup
from .group_submission import Numbered
from .halving import rungs_of
from .plan_text import summarise
from .planning import PreparedPlan
from .saving import Saving, saving_of
from .variations import flag_of

OF_EACH = ("result", "model card", "costs at most", "estimate", "timeout", "uploaded")  # what the table and the sums say
METRIC_LINES = {
    "auto": "right answers to the same held-out questions where all are graded, else held-out loss",
    "graded": "right answers to the same held-out questions",
    "loss": "held-out loss",
}


def heading(group: Group) -> str:
    return f"Plan {group.group_id}: {len(group.runs)} runs to compare"


def shared_lines(made: PreparedGroup, numbered: Numbered) -> dict[str, str]:
    """What all runs have alike, then what is agreed to of the whole."""
    summaries = [summarise(one, estimate_of(one.plan)) for one in made.prepared]
    lines = {name: alike([one.get(name, "") for one in summaries]) for name in summaries[0] if name not in OF_EACH}
    return {name: text for name, text in lines.items() if text} | group_lines(made.group, made.prepared, numbered)


def alike(texts: list[str]) -> str:
    """What all of them say: the whole text, or those of its parts, between semicolons, that stand in each."""
    first, *others = ([part for part in text.split("; ") if part] for text in texts)
    return "; ".join(part for part in first if all(part in other for other in others))


def group_lines(group: Group, prepared: tuple[PreparedPlan, ...], numbered: Numbered) -> dict[str, str]:
    lines = {
        "results": "a repository for each run, " + ("public" if any(run.plan.public for run in group.runs) else "private"),
        "uploaded": ", ".join(sorted({name for run in group.runs for name in run.plan.files})),
        "compared by": METRIC_LINES[group.metric],
        "ends early": halving_line(group),
        "saves": saving.line if (saving := halving_saves(group)) else "",
        "at once": at_once_line(group),
        "estimate": sum_line(group),
        "there already": ", ".join(f"{name} ({job.job_id}, {job.stage})" for name, job in numbered.there.items()),
        "costs at most": ceilings(group, numbered),
    }
    if group.where == "local":
        lines["results"] = "a folder for each run"
    held = [repository for one in prepared for repository in one.repositories if repository.holds]
    lines["replaces"] = ", ".join(f"{one.id} holds {one.holds}" for one in held)
    return {name: text for name, text in lines.items() if text}


def ceilings(group: Group, numbered: Numbered) -> str:
    if group.where == "local":
        return "nothing: it runs on this machine"
    spent = sum(numbered.spent.values())
    before = f" (${spent:.2f} of it was spent on jobs that have ended)" if spent else ""
    return f"${numbered.most_usd:.2f} in all{before}, each run until its own timeout"


def at_once_line(group: Group) -> str:
    if group.where == "local":
        return "one after the other"
    if group.at_once >= len(group.runs):
        return "all"
    return f"{group.at_once}; the others are started by status.py {group.group_id} as these end, or by this command again"


def halving_line(group: Group) -> str:
    if not group.halving:
        return ""
    shown = ", ".join(f"{rung.keep} after {rung.share:.0%} of the steps" for rung in rungs_of(len(group.runs), group.halving))
    return f"by held-out loss at equal tokens; these go on: {shown}. The others are ended after they have saved, by status.py"


def halving_saves(group: Group) -> Saving | None:
    """Against all runs to their end, by their estimates."""
    plans = [run.plan for run in group.runs]
    return saving_of([estimate_of(one) for one in plans], [one.usd_per_minute for one in plans], group.halving)


def sum_line(group: Group) -> str:
    estimates = [estimate_of(run.plan) for run in group.runs]
    known = [one for one in estimates if one]
    if group.where == "local" or not known:
        return "none was made from here with these arguments (estimate.py)" if group.where == "hf" else ""
    low, high = (sum(one[name] for one in known) for name in ("usd_low", "usd_high"))
    missing = len(estimates) - len(known)
    return f"${low:.2f}–{high:.2f} in all" + (f", without {missing} of the runs, which were not estimated" if missing else "")


def estimate_of(plan: Any) -> dict[str, Any] | None:
    return records.recall_estimate(plan.run_key, plan.flavor)


def runs_table(made: PreparedGroup) -> Table:
    """A line for each run: what it changes, what it may cost, where its result goes."""
    names = list(dict.fromkeys(name for run in made.group.runs for name in run.changes))
    paid = made.group.where == "hf"
    costs = ["estimate $", "at most $"] if paid else ["ends after"]
    rows = table("run", *map(flag_of, names), *costs, "result")
    for run, one in zip(made.group.runs, made.prepared, strict=True):
        cells = [run.name, *(changed(run, one, name) for name in names)]
        cells += [estimated(run), f"{run.plan.max_usd:.2f}"] if paid else [duration(run.plan.timeout_s)]
        rows.add_row(*map(escape, [*cells, run.plan.output_repo or run.plan.output_dir or ""]))
    return rows


def changed(run: GroupRun, made: PreparedPlan, name: str) -> str:
    """A changed setting; of auto, with what it chooses where that is known already."""
    typed, value = run.changes.get(name, "–"), getattr(made.settings, name, None)
    return f"auto: {value:g}" if typed == AUTO and isinstance(value, int | float) else typed


def estimated(run: GroupRun) -> str:
    found = estimate_of(run.plan)
    return f"{found['usd_low']:.2f}–{found['usd_high']:.2f}" if found else "–"


def run_as_json(run: GroupRun, made: PreparedPlan) -> dict[str, Any]:
    """What a program that shows the plan needs of a run."""
    plan = run.plan
    return {
        "name": run.name,
        "changes": {flag_of(name): value for name, value in run.changes.items()},
        "learning_rate": getattr(made.settings, "learning_rate", None),
        "plan_id": plan.plan_id,
        "flavor": plan.flavor,
        "timeout_s": plan.timeout_s,
        "max_usd": plan.max_usd,
        "estimate": estimate_of(plan),
        "output_repo": plan.output_repo,
        "output_dir": plan.output_dir,
    }
