"""What this machine remembers of plans and runs: small private JSON files under HF_HOME/unsloth-jobs."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from filelock import FileLock, Timeout
from huggingface_hub import constants

from ..errors import APPROVAL, UserError
from ..values import is_amount, number, shaped
from .group import Group, has_same_result
from .plan import Plan, Submission

ESTIMATE_KEYS = ("usd_low", "usd_high", "hours_low", "hours_high")
RUN_KEYS = {"job_id", "submitted_at", "estimate", "plan"}
ATTEMPT_KEYS = {"made_at", "approved", "estimate", "plan"}
ESTIMATE_VALID_S = 24 * 3600  # for so long an estimate vouches: prices and libraries change
LOCK_S = 120  # what a submit may take, with a large file to upload


def folder(kind: str) -> Path:
    """The folder of "estimates", "plans", "groups", "attempts", "runs", "sent" or "jobs" (of local ones); it may not exist yet."""
    return Path(constants.HF_HOME) / "unsloth-jobs" / kind


def path_of(kind: str, name: str) -> Path | None:
    return folder(kind) / f"{name}.json" if re.fullmatch(r"[\w-]{1,100}", name) else None


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises UserError where what is done to path fails: a full or read-only disk, missing rights."""
    try:
        for level in reversed((path.parent, *path.parent.parents)):
            if level.is_relative_to(folder(".")):  # mkdir's mode is not for the parents that it makes
                level.mkdir(parents=True, exist_ok=True, mode=0o700)
        yield
    except OSError as error:
        raise UserError(
            "records_unwritable",
            f"{path} cannot be written: {error.strerror or error}.",
            "Make room or give write access there, or set HF_HOME to a folder that can be written to.",
        ) from error


def write(path: Path, data: dict[str, Any]) -> None:
    """Whole or not at all, readable by its owner alone. Raises UserError, and leaves what was there before."""
    with writing(path):
        number, partial = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".partial")  # of mode 600
        try:
            with open(number, "w", encoding="utf-8") as file:
                json.dump(data, file, indent=1)
                file.flush()
                os.fsync(number)
            os.replace(partial, path)
        except BaseException:
            os.unlink(partial)
            raise


def read(path: Path | None) -> dict[str, Any] | None:
    """What write wrote; None where there is nothing, or something else."""
    try:
        data = json.loads(path.read_text("utf-8")) if path else None
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def has_content(path: Path) -> bool:
    """Whether there is something in a file, of whatever shape."""
    try:
        return bool(path.read_text("utf-8", errors="replace").strip())
    except OSError:
        return False


@contextlib.contextmanager
def one_at_a_time(plan_id: str, patience_s: float = LOCK_S) -> Iterator[None]:
    """Two commands that submit the same plan or group at once: the second waits, and finds the jobs of the first."""
    path = folder("plans") / f"{plan_id}.lock"
    lock = FileLock(path, timeout=patience_s, mode=0o600)
    with writing(path):
        try:
            lock.acquire()
        except Timeout as error:
            raise UserError(
                "being_submitted", "Another command is submitting this same plan.", "See status.py --all in a minute.", APPROVAL
            ) from error
    try:
        yield
    finally:
        lock.release()  # which the system does, too, for a process that is killed


def remember_plan(plan: Plan) -> None:
    write(folder("plans") / f"{plan.plan_id}.json", asdict(plan))


def recall_plan(plan_id: str) -> Plan | None:
    data = read(path_of("plans", plan_id))
    return plan_of(data) if data else None


def remember_group(group: Group) -> None:
    """A comparison as it was shown; what is on record of an approval and of decisions stays."""
    path = folder("groups") / f"{group.group_id}.json"
    write(path, {"made_at": time.time(), "approved": "", "decisions": []} | (read(path) or {}) | {"group": asdict(group)})


def recall_group(group_id: str) -> Group | None:
    data = read(path_of("groups", group_id))
    return group_of(data.get("group")) if data else None


def group_of(data: Any) -> Group | None:
    """The group in a record; None where it is none."""
    try:
        group = Group.from_json(data)
    except (KeyError, TypeError, AttributeError, ValueError):
        return None
    sound = group.runs and all(plan_of(asdict(run.plan)) and is_names(run.changes) for run in group.runs)
    return group if sound and all(isinstance(one, int) for one in (group.at_once, group.halving)) else None


def is_names(value: dict[str, Any]) -> bool:
    return all(isinstance(text, str) for pair in value.items() for text in pair)


def update_group(group_id: str, **values: Any) -> None:
    """Note that a group on record was approved, or what was decided of its runs."""
    path = folder("groups") / f"{group_id}.json"
    write(path, (read(path) or {}) | values)


def group_facts(group_id: str) -> dict[str, Any]:
    """What is on record beside the group: made_at; approved, in the words of submit.py's flags, "" before; ended: whether its
    user or its ceiling has ended it, so that no run that waits is started by a look; decisions.
    """
    data = read(path_of("groups", group_id)) or {}
    decisions = data.get("decisions")
    return {
        "made_at": number(data.get("made_at")) or 0.0,
        "approved": data["approved"] if isinstance(data.get("approved"), str) else "",
        "ended": data.get("ended") is True,
        "decisions": [one for one in decisions if isinstance(one, dict)] if isinstance(decisions, list) else [],
    }


def groups() -> list[Group]:
    """Every comparison of which a run was submitted from this machine, newest first."""
    found = [(group_facts(path.stem), recall_group(path.stem)) for path in folder("groups").glob("*.json")]
    approved = [(facts["made_at"], group) for facts, group in found if group and facts["approved"]]
    return [group for _, group in sorted(approved, key=lambda one: -one[0])]


def run_that_ends_in(plan: Plan) -> tuple[str, str]:
    """The id of the newest comparison with a run whose result this plan goes on with, and the run's name; else "" twice."""
    found = ((group.group_id, run.name) for group in groups() for run in group.runs if has_same_result(run.plan, plan))
    return next(found, ("", ""))


def remember_estimate(run_key: str, flavors: dict[str, dict[str, Any]]) -> None:
    """What a run was estimated to take on each flavor that fits, by ledger.key(...).run."""
    write(folder("estimates") / f"{run_key}.json", {"made_at": time.time(), "flavors": flavors})


def recall_estimate(run_key: str | None, flavor: str) -> dict[str, Any] | None:
    """What remember_estimate kept of a run on a flavor; None where that is older than ESTIMATE_VALID_S."""
    data = read(path_of("estimates", run_key)) if run_key else None
    flavors = data.get("flavors") if data and estimate_age_s(run_key) <= ESTIMATE_VALID_S else None
    return estimate_of(flavors.get(flavor)) if isinstance(flavors, dict) else None


def estimate_age_s(run_key: str | None) -> float:
    """Seconds since a run was estimated from here; infinite where it never was."""
    made_at = (read(path_of("estimates", run_key)) or {}).get("made_at") if run_key else None
    return time.time() - made_at if isinstance(made_at, int | float) else math.inf


def remember_attempt(submission: Submission) -> None:
    """That this plan is about to be submitted: until forget_attempt its job may exist without being on record."""
    write(folder("attempts") / f"{submission.plan.plan_id}.json", {"made_at": time.time(), **asdict(submission)})


def forget_attempt(plan: Plan) -> None:
    path = folder("attempts") / f"{plan.plan_id}.json"
    with writing(path):
        path.unlink(missing_ok=True)


def attempt_of(plan: Plan) -> dict[str, Any] | None:
    return read(folder("attempts") / f"{plan.plan_id}.json")


def attempts() -> list[dict[str, Any]]:
    """What remember_attempt kept and forget_attempt has not taken back."""
    found = [data for path in folder("attempts").glob("*.json") if (data := read(path))]
    return [one for one in found if one.keys() >= ATTEMPT_KEYS and plan_of(one["plan"]) and is_amount(one["made_at"])]


def submission_of(attempt: dict[str, Any]) -> Submission:
    """The submission in a record of attempts()."""
    more = {name: attempt[name] for name in ("group", "run", "after") if isinstance(attempt.get(name), str)}
    return Submission(Plan.from_json(attempt["plan"]), attempt["approved"], attempt["estimate"], **more)


def remember_run(job_id: str, submission: Submission) -> None:
    """Raises UserError, also for an id that is no file's name."""
    run = {"job_id": job_id, "submitted_at": time.time(), **asdict(submission), "plan_id": submission.plan.plan_id}
    if (path := path_of("runs", job_id)) is None:
        raise UserError("bad_job_id", f"The id {job_id!r} cannot be used as a file name.", "Note the id.")
    write(path, run)


def remember_outcome(job_id: str, outcome: dict[str, Any]) -> None:
    """How a run from this machine ended: stage, billed seconds and dollars, and its `done` event. Written once."""
    run = run_of(job_id)
    if run and "outcome" not in run:
        with contextlib.suppress(UserError):  # a full disk must not hide how the job ended
            write(folder("runs") / f"{job_id}.json", run | {"outcome": outcome})


def run_of(job_id: str) -> dict[str, Any] | None:
    """What remember_run and remember_outcome kept of a job; None for one that was submitted elsewhere, and where what was
    kept has another shape (see damaged).
    """
    run = read(path_of("runs", job_id))
    return sound(run) if run and run.get("job_id") == job_id else None


def runs() -> list[dict[str, Any]]:
    """Every run submitted from this machine, newest first."""
    found = [run for path in folder("runs").glob("*.json") if (run := run_of(path.stem))]
    return sorted(found, key=lambda run: -run["submitted_at"])


def damaged(job_id: str = "*") -> list[Path]:
    """The records of runs, or of one, that cannot be read: they are left as they are and hide no other."""
    return sorted(path for path in folder("runs").glob(f"{job_id}.json") if run_of(path.stem) is None)


def sound(run: dict[str, Any]) -> dict[str, Any] | None:
    """A run's record without those parts of it that have another shape; None where it does not say what the run was."""
    if not run.keys() >= RUN_KEYS or number(run["submitted_at"]) is None:
        return None
    if plan_of(run["plan"]) is None:
        return None
    outcome = run.get("outcome")
    kept = {name: value for name, value in run.items() if name != "outcome"} | {"estimate": estimate_of(run["estimate"])}
    if not isinstance(outcome, dict) or not isinstance(outcome.get("stage"), str) or not is_amount(outcome.get("elapsed_s")):
        return kept
    done = outcome.get("done")
    return kept | {"outcome": outcome | {"done": shaped(done) if isinstance(done, dict) else None}}


def plan_of(data: Any) -> Plan | None:
    """The plan in a record; None where it is none."""
    try:
        plan = Plan.from_json(data)
    except (KeyError, TypeError, AttributeError, ValueError):
        return None
    return plan if all(fits(getattr(plan, name), kind) for name, kind in kinds_of_a_plan().items()) else None


@functools.cache
def kinds_of_a_plan() -> dict[str, Any]:
    return get_type_hints(Plan)


def fits(value: Any, kind: Any) -> bool:
    """Whether a value that was read from JSON is of the kind that a field of a dataclass states."""
    if isinstance(kind, UnionType):
        return any(fits(value, one) for one in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(fits(one, get_args(kind)[0]) for one in value)
    if kind in (int, float):
        return number(value) is not None
    return kind is Any or isinstance(value, get_origin(kind) or kind)


def estimate_of(data: Any) -> dict[str, Any] | None:
    """An estimate in a record; None where it is none."""
    if not isinstance(data, dict) or not all(is_amount(data.get(name)) for name in ESTIMATE_KEYS):
        return None
    pace = data.get("seconds_per_token")
    is_range = isinstance(pace, list) and len(pace) == 2 and all(is_amount(end) and end for end in pace)
    return data if pace is None or is_range else data | {"seconds_per_token": None}


def run_of_plan(plan_id: str) -> dict[str, Any] | None:
    """The run that the plan of this id was approved for, or None."""
    return next((run for run in runs() if run.get("plan_id") == plan_id), None)
