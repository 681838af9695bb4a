"""From what is to be compared to a plan for each run: each with its own result, none that cannot run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

from huggingface_hub import HfApi

from .. import template
from ..errors import USAGE, Problem, UserError
from ..estimate.flavors import fetch_flavor
from ..estimate.rewards import rewarded
from ..lookup.identity import whoami, writable_namespace
from ..training.flags import as_flag_name
from . import planning, preflight
from .group import METRICS, Group, GroupRun
from .hf import PLAN_LABEL
from .plan import DEFAULT_FLAVOR, DEFAULT_TIMEOUT_S, seconds
from .planning import PreparedPlan, RunRequest
from .variations import NAMED_BY_RUN, Changes, as_words, name_with, suffix_of, title_of

MAX_RUNS = 16  # of a comparison, unless more are asked for
# Settings that decide which rows are held out, what their tokens are, and what their loss is of: with another value of
# one of these, two held-out losses are of different things.
SAME_FOR_LOSS = (
    "base_model", "base_model_revision", "dataset", "dataset_config", "dataset_split", "dataset_revision", "eval_split",
    "max_eval_rows", "num_samples", "seed", "max_seq_length", "prompt_column", "completion_column", "chosen_column",
    "rejected_column", "label_column", "loss", "beta", "simpo_gamma",
)  # fmt: skip
SAME_FOR_QUESTIONS = (
    "dataset",
    "dataset_config",
    "dataset_split",
    "dataset_revision",
    "eval_split",
    "max_eval_rows",
    "num_samples",
    "seed",
)
SAME_FOR_GRADES = ("grader",)  # the rule that says what is right
SAME_FOR_REWARDED_GRADES = ("answer_format", "reward", "reward_file")  # by which a run on rewards is graded, too
SAME_RESULT = ("output_repo", "save_local", "run_name")  # what two runs that learn the same may differ in
ASKED_ONCE = (
    "whoami", "list_jobs_hardware", "model_info", "dataset_info", "list_jobs", "get_safetensors_metadata", "hf_hub_download",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """submit.py's options for a comparison."""

    at_once: int | None = None
    halving: int = 0
    metric: str = "auto"
    max_runs: int = MAX_RUNS


@dataclass(frozen=True)
class PreparedGroup:
    group: Group
    prepared: tuple[PreparedPlan, ...]
    problems: tuple[Problem, ...] = ()

    def with_group(self, group: Group) -> PreparedGroup:
        prepared = (replace(one, plan=run.plan) for one, run in zip(self.prepared, group.runs, strict=True))
        return replace(self, group=group, prepared=tuple(prepared))


class Remembering:
    """The Hub's client while several runs are planned: what the same question was answered is not asked again, so that all
    runs see one state of the Hub, and a token is looked up once.
    """

    def __init__(self, api: HfApi):
        self.api, self.answers = api, dict[tuple[str, str], Any]()

    def __getattr__(self, name: str) -> Any:
        asked = getattr(self.api, name)
        return self.remembering(name, asked) if name in ASKED_ONCE else asked

    def remembering(self, name: str, ask: Callable[..., Any]) -> Callable[..., Any]:
        def answer(*args: Any, **how: Any) -> Any:
            key = name, repr((args, sorted(how.items())))
            if key not in self.answers:
                found = ask(*args, **how)
                self.answers[key] = list(found) if name == "list_jobs" else found
            return self.answers[key]

        return answer


def prepare_group(
    api: HfApi, request: RunRequest, count: int, variations: Iterable[Changes], options: Options
) -> PreparedGroup:
    """A plan for each variation of the request. Raises UserError, which names the run where it is of one."""
    asking = cast(HfApi, Remembering(api))
    require_options(request, options)
    require_count(asking, request, count, options.max_runs)
    listed = list(variations)
    runs = [parse_run(request, changes) for changes in listed]  # what is refused is refused before the Hub is asked
    owner = None if request.where == "local" else writable_namespace(whoami(asking), request.namespace)
    named = [with_result(one, owner) for one in runs]
    prepared = [naming(one.changes, lambda one=one: prepare(asking, one)) for one in named]  # type: ignore[misc]
    require_own_results(prepared, listed)
    require_unlike(prepared, listed)
    unlike = *differing(prepared, SAME_FOR_LOSS), *["script"] * (len({one.plan.script_sha256 for one in prepared}) > 1)
    group = Group(
        tuple(GroupRun(one.name, one.changes, made.plan) for one, made in zip(named, prepared, strict=True)),
        at_once=1 if request.where == "local" else min(options.at_once or count, count),
        halving=options.halving,
        metric=decided_by(options, prepared, unlike),
        unlike=unlike,
    )
    problems = dict.fromkeys(problem for one in prepared for problem in one.problems)
    return PreparedGroup(group, tuple(prepared), (*problems, *comparison_problems(group, prepared)))


def require_options(request: RunRequest, options: Options) -> None:
    if request.smoke:
        message, fix = "A smoke run measures the time and price of one run.", "Leave --vary out: the others take about as long."
        raise UserError("no_smoke", message, fix, USAGE)
    if options.metric not in METRICS:
        raise UserError("bad_metric", f"--metric is {', '.join(METRICS)}, not {options.metric}.", "Pass one of them.", USAGE)
    if options.halving == 1 or options.halving < 0:
        message = f"--halving {options.halving} would let every run go on."
        raise UserError(
            "bad_halving", message, "Pass 2 to keep half of the runs after each rung, 3 for a third; 0: all.", USAGE
        )


def require_count(api: HfApi, request: RunRequest, count: int, most: int) -> None:
    """Raises UserError where there are more runs than were allowed, with what they could cost, or no two."""
    if count < 2:
        raise UserError("one_run", "There is only one run to compare.", "Name several values: --vary NAME=A,B", USAGE)
    if count <= most:
        return
    price = ""
    if request.where == "hf":
        machine, _ = fetch_flavor(api, request.flavor or DEFAULT_FLAVOR)
        each = machine.most_usd(seconds(request.timeout) if request.timeout else DEFAULT_TIMEOUT_S, request.attempts)
        price = f" They could cost up to ${each * count:,.2f}, at most ${each:.2f} each."
    message = f"These are {count:,} runs, more than the {most} allowed.{price}"
    fix = f"Name fewer values: first the learning rate, then what is left open. Or pass --max-runs {count}."
    raise UserError("too_many_runs", message, fix, USAGE)


@dataclass(frozen=True)
class WantedRun:
    """A run as it was asked for. settings: of its template, before anything is looked up."""

    changes: Changes
    request: RunRequest
    module: template.Template
    settings: Any
    name: str = ""


def parse_run(request: RunRequest, changes: Changes) -> WantedRun:
    """Raises UserError (usage), naming the run, where the template refuses one of its values."""
    script = find_script(request.script, changes.get("script"))
    template.require_harmless([*request.arguments, *changes.values()])
    if not template.takes_settings(script) or not template.trains(module := template.load(script)):
        message = f"{script.name} trains no model, or has no settings that could be varied."
        raise UserError("no_comparison", message, "Pass templates/sft.py, templates/dpo.py, or a copy of one.", USAGE)

    def parse() -> Any:
        words = as_words(changes, template.settings(module, request.arguments))
        return template.settings(module, [*request.arguments, *words])

    settings = naming(changes, parse)
    words = as_words(changes, settings)
    own = replace(request, script=script, arguments=[*request.arguments, *words])
    own = replace(own, flavor=changes.get("flavor", request.flavor), timeout=changes.get("timeout", request.timeout))
    return WantedRun(changes, own, module, settings)


def find_script(given: Path, varied: str | None) -> Path:
    """A script that --vary names by its path, or by its name beside the one that was given."""
    beside = given.with_name(varied) if varied else given
    return beside if beside.is_file() or not varied else Path(varied)


def naming(changes: Changes, do: Callable[[], Any]) -> Any:
    """What `do` returns; a problem of it says which run it is of."""
    try:
        return do()
    except UserError as error:
        problem = error.problem
        message = f"The run with {title_of(changes)}: {problem.message}"
        raise UserError(problem.code, message, problem.fix, error.exit_code) from error


def with_result(run: WantedRun, owner: str | None) -> WantedRun:
    """The run with a result of its own: its repository on the Hub, its folder here, its name in the dashboard."""
    settings, chosen = run.settings, bool(run.settings.run_name)
    name = name_with(run.module.run_name(settings), run.changes, () if chosen else NAMED_BY_RUN)
    words = [] if "run_name" in run.changes else [f"--run-name={name}"]
    if "output_repo" not in run.changes:
        if settings.output_repo:
            base_owner, _, base = settings.output_repo.rpartition("/")
            words.append(f"--output-repo={base_owner}/{name_with(base, run.changes)}")
        elif owner:
            words.append(f"--output-repo={owner}/{name}")
    own_name = suffix_of(run.changes) or name
    if run.request.where == "local" and "save_local" not in run.changes:
        words.append(f"{as_flag_name('save_local')}={Path(settings.save_local) / name_with('', run.changes).strip('-')}")
    request = replace(run.request, arguments=[*run.request.arguments, *words])
    return replace(run, request=request, name=own_name)


def prepare(api: HfApi, run: WantedRun) -> PreparedPlan:
    made = planning.prepare(api, run.request)
    preflight.require_unused(api, made.plan, PLAN_LABEL)
    return made


def require_own_results(prepared: list[PreparedPlan], listed: list[Changes]) -> None:
    """Raises UserError where two runs would write to one repository or folder."""
    writers: dict[str, Changes] = {}
    for made, changes in zip(prepared, listed, strict=True):
        for place in filter(None, [*made.plan.results, made.plan.output_dir]):
            if place in writers:
                raise UserError(
                    "same_repository",
                    f"The runs with {title_of(writers[place])} and with {title_of(changes)} would both write to {place}.",
                    "Leave output-repo and save-local out of what is varied: each run gets its own.",
                    USAGE,
                )
            writers[place] = changes


def require_unlike(prepared: list[PreparedPlan], listed: list[Changes]) -> None:
    """Raises UserError where two runs are one: 1e-4 and 0.0001, auto and what it chooses for this model, or another number
    of epochs where a number of steps decides.
    """
    seen: dict[str, Changes] = {}
    for made, changes in zip(prepared, listed, strict=True):
        by_steps = bool(getattr(made.settings, "max_steps", 0))
        ignored = (*SAME_RESULT, "num_epochs") if by_steps else SAME_RESULT
        values = {item.name: getattr(made.settings, item.name) for item in fields(made.settings) if item.name not in ignored}
        key = repr((made.plan.script_sha256, made.plan.flavor, sorted(values.items(), key=lambda one: one[0])))
        if key in seen:
            message = f"The runs with {title_of(seen[key])} and with {title_of(changes)} are the same run: it would be paid for twice."
            fix = "Leave one of the values out."
            if by_steps and "num_epochs" in changes:
                fix = f"--max-steps decides how long each trains, whatever its epochs. {fix}"
            raise UserError("same_runs", message, fix, USAGE)
        seen[key] = changes


def differing(prepared: list[PreparedPlan], names: Iterable[str]) -> list[str]:
    """Those of the settings that not all runs have alike."""
    return [name for name in names if len({repr(getattr(one.settings, name, None)) for one in prepared}) > 1]


def decided_by(options: Options, prepared: list[PreparedPlan], unlike: Iterable[str]) -> str:
    """The metric of the comparison: loss in the place of auto where other rules grade. Raises UserError where none can decide."""
    rules = differing_rules(prepared)
    has_loss = all(has_held_out_loss(one.settings) for one in prepared)
    if not has_loss and (options.halving or options.metric == "loss"):
        message = "These runs have no held-out loss: one on rewards has none, and without --eval-split nothing is held out."
        raise UserError("not_comparable", message, "Leave --halving and --metric loss out: graded answers decide.", USAGE)
    if not rules or options.metric == "loss":
        return options.metric
    if options.metric == "graded" or not has_loss or [*unlike]:
        message = f"Right answers cannot be compared between runs that are graded by another {', '.join(rules)}."
        raise UserError("not_comparable", message, "Pass --grader G after `--`: the same rule for all.", USAGE)
    return "loss"


def differing_rules(prepared: list[PreparedPlan]) -> list[str]:
    """The settings by which the runs' answers are graded unlike."""
    found = differing(prepared, SAME_FOR_GRADES)
    settings = prepared[0].settings
    if rewarded(settings):
        # The format is taken off before any grader sees an answer; rewards grade where no grader is named.
        names = SAME_FOR_REWARDED_GRADES if settings.grader == "auto" else SAME_FOR_REWARDED_GRADES[:1]
        found += differing(prepared, names)
    return found


def has_held_out_loss(settings: Any) -> bool:
    return not rewarded(settings) and bool(getattr(settings, "eval_split", 0))


def comparison_problems(group: Group, prepared: list[PreparedPlan]) -> list[Problem]:
    """What of the comparison is in doubt before it is paid for."""
    problems = []
    if group.unlike and group.metric == "loss":
        message = f"Held-out losses cannot be compared between runs with another {', '.join(group.unlike)}."
        raise UserError("not_comparable", message, "Pass --metric graded, and --eval-dataset after `--`.", USAGE)
    if group.halving and group.unlike:
        message = f"Which runs are worse is seen by their held-out loss, which differs with {', '.join(group.unlike)}."
        raise UserError("not_comparable", message, "Leave --halving out.", USAGE)
    if group.halving and group.at_once < len(group.runs):
        message = "--halving compares runs while they train, and here some would wait for others."
        raise UserError(
            "bad_halving", message, "Leave --halving out, or --at-once; on this machine one runs after the other.", USAGE
        )
    asked = differing(prepared, SAME_FOR_QUESTIONS)
    if asked and not getattr(prepared[0].settings, "eval_dataset", ""):
        message = (
            f"Runs with another {', '.join(asked)} hold other rows out: neither their losses nor their grades are of the same."
        )
        fix = "Pass --eval-dataset TEST after `--`: then all answer the same questions."
        problems.append(Problem("not_comparable", "warning", message, fix))
    elif group.metric == "loss" and differing_rules(prepared):
        message = (
            f"Runs with another {', '.join(differing_rules(prepared))} are graded by other rules: held-out loss decides alone."
        )
        fix = "Pass --grader G after `--`, the same for all, to compare by right answers."
        problems.append(Problem("not_comparable", "warning", message, fix))
    elif group.unlike and has_held_out_loss(prepared[0].settings):
        message = f"Held-out losses cannot be compared between runs with another {', '.join(group.unlike)}: graded answers decide alone."
        problems.append(
            Problem(
                "loss_not_comparable",
                "warning",
                message,
                "Pass --eval-dataset TEST and --grader G after `--`, so that all are graded.",
            )
        )
    return problems
