"""Several runs that are compared: fixed, priced and approved as one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..errors import APPROVAL, UserError
from .plan import Plan
from .variations import title_of

PREFIX = "group-"  # of a group's id, which tells it from a job's
METRICS = ("auto", "graded", "loss")


@dataclass(frozen=True)
class GroupRun:
    """One of the runs. name: short, and its own within the group; changes: its settings that others have otherwise."""

    name: str
    changes: dict[str, str]
    plan: Plan

    @property
    def title(self) -> str:
        return title_of(self.changes)


@dataclass(frozen=True)
class Group:
    """All runs of a comparison. at_once: so many run, the others wait; halving: after each rung one run in so many goes on
    (0: all run to their end); metric: see METRICS; unlike: settings in which the runs' held-out losses are not alike.
    """

    runs: tuple[GroupRun, ...]
    at_once: int
    halving: int = 0
    metric: str = "auto"
    unlike: tuple[str, ...] = ()

    @property
    def group_id(self) -> str:
        """A hash over all of the above: whatever changes, the approval no longer fits."""
        return PREFIX + hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def max_usd(self) -> float:
        """What all runs cost if each uses up its timeout."""
        return round(sum(run.plan.max_usd for run in self.runs), 2)

    @property
    def where(self) -> str:
        return self.runs[0].plan.where

    @property
    def namespace(self) -> str | None:
        return self.runs[0].plan.namespace

    def with_plans(self, plans: list[Plan]) -> Group:
        return replace(self, runs=tuple(replace(run, plan=plan) for run, plan in zip(self.runs, plans, strict=True)))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Group:
        """Raises KeyError or TypeError where data is none."""
        runs = tuple(GroupRun(one["name"], dict(one["changes"]), Plan.from_json(one["plan"])) for one in data["runs"])
        return cls(runs, data["at_once"], data["halving"], data["metric"], tuple(data["unlike"]))


def without_start(plan: Plan) -> Plan:
    """A plan whatever number it is started by."""
    return replace(plan, start=1)


def has_same_result(plan: Plan, other: Plan) -> bool:
    """Whether the one goes on with, or replaces, what the other has made. A smoke run does neither."""
    places = [(one.where, one.output_repo, one.output_dir) for one in (plan, other)]
    return places[0] == places[1] and not (plan.smoke or other.smoke)


def require_group_approval(group: Group, approve: str, earlier: Group | None) -> None:
    """Raises UserError (approval) unless `approve` is this group's id, and says what has changed since it was shown."""
    if approve == group.group_id:
        return
    if earlier is None:
        raise UserError(
            "unknown_plan",
            f"No comparison {approve} was shown on this machine.",
            "Run the command without --approve and approve the id it prints.",
            APPROVAL,
        )
    raise UserError(
        "plan_changed",
        "What was approved is no longer what would run: " + "; ".join(changes_between(earlier, group)),
        f"Look at the new plan, then: --approve {group.group_id}",
        APPROVAL,
    )


def changes_between(earlier: Group, group: Group) -> list[str]:
    """What is not the same in two groups, run by run."""
    names = ("at_once", "halving", "metric")
    found = [
        f"{name}: {getattr(earlier, name)} → {getattr(group, name)}"
        for name in names
        if getattr(earlier, name) != getattr(group, name)
    ]
    before, after = ({run.name: run.plan for run in one.runs} for one in (earlier, group))
    found += [f"{name}: no longer a run of it" for name in before.keys() - after.keys()]
    found += [f"{name}: a run more" for name in after.keys() - before.keys()]
    for name in sorted(before.keys() & after.keys()):
        for item in dataclasses.fields(Plan):
            was, now = getattr(before[name], item.name), getattr(after[name], item.name)
            found += [f"{name}: {item.name}: {was} → {now}"] if was != now else []
    return found or ["the order of the runs"]


def require_group_budget(group: Group, most_usd: float, max_usd: float | None) -> None:
    """Raises UserError where all runs together may cost more than the ceiling. most_usd: with what was spent on them."""
    if max_usd is None or most_usd <= max_usd + 1e-9:
        return
    raise UserError(
        "over_budget",
        f"The {len(group.runs)} runs can cost up to ${most_usd:.2f} in all, more than the ${max_usd:.2f} allowed.",
        "Pass a shorter --timeout, fewer values in --vary, a cheaper --flavor, or a higher --max-usd.",
        APPROVAL,
    )
