"""Several runs, one plan, one price: what is varied, approved, started and compared, against the test Hub."""

from __future__ import annotations

import json
import math
import re
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from commands import Commands, Said
from conftest import ROOT, ROWS, SFT, python_of
from hub import Hub
from hubs import ADA, event
from huggingface_hub.utils import validate_repo_id
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import zero_adapter
from unsloth_jobs.errors import UserError
from unsloth_jobs.events import summarise
from unsloth_jobs.jobs.halving import Track, decide, rungs_of
from unsloth_jobs.jobs.job import Job
from unsloth_jobs.jobs.saving import saving_of
from unsloth_jobs.jobs.variations import name_with, read_variations
from unsloth_jobs.status.group import GroupStatus, RunStatus
from unsloth_jobs.status.group_view import curves
from unsloth_jobs.status.status import Status
from unsloth_jobs.status.winner import Result, judge

pytestmark = pytest.mark.hub(model="shape")

ARGUMENTS = ["--base-model", "ada/tiny", "--dataset", "ada/docs", "--num-epochs", "2"]
QUICK = ["--batch-size", "8", "--gradient-accumulation", "1", "--max-seq-length", "256", "--no-packing", "--trackio-space="]
GRID = ["--vary", "learning-rate=1e-4,3e-4", "--vary", "lora-r=8,16"]


def plan(commands: Commands, *options: str, code: int = 3, arguments: list[str] = ARGUMENTS) -> dict:
    return commands.json("submit.py", str(SFT), *options, "--", *arguments, code=code)


def jobs_created(hub: Hub) -> list[dict]:
    return [record.json for record in hub.journal.requests(method="POST", path=r"^/api/jobs/[^/]+$") if record.status == 200]


def test_a_grid_is_one_plan_with_a_price_and_a_result_for_each_run(hub, commands):
    hub.journal.clear()
    shown = plan(commands, "--timeout", "1h", *GRID)
    assert len(hub.journal.requests(path="whoami")) == 1  # which the Hub limits strictly
    runs = shown["plan"]["runs"]
    assert [run["name"] for run in runs] == ["lr1e-4-r8", "lr1e-4-r16", "lr3e-4-r8", "lr3e-4-r16"]
    assert [run["output_repo"] for run in runs] == [f"ada/tiny-docs-{run['name']}" for run in runs]
    assert shown["plan"]["max_usd"] == pytest.approx(sum(run["max_usd"] for run in runs)) == pytest.approx(3.2)
    assert not jobs_created(hub)
    said = commands.run("submit.py", str(SFT), "--timeout", "1h", *GRID, "--", *ARGUMENTS, code=3).stdout
    assert "lr3e-4-r16" in said and "$3.20 in all" in said
    print(said)


def test_one_approval_starts_each_run_once(hub, commands):
    shown = plan(commands, *GRID)
    started = plan(commands, *GRID, "--approve", shown["plan_id"], code=0)
    again = plan(commands, *GRID, "--approve", shown["plan_id"], code=0)
    assert [job["job_id"] for job in started["jobs"]] == [job["job_id"] for job in again["jobs"]]
    assert [job["existed"] for job in again["jobs"]] == [True] * 4
    created = jobs_created(hub)
    assert len(created) == 4
    assert {job["labels"]["unsloth-jobs-group"] for job in created} == {shown["group_id"]}
    print(json.dumps(created[0]["labels"]))


@pytest.mark.hub(model="tiny")
def test_each_run_is_estimated_before_it_is_planned(hub, commands):
    """estimate.py prices the runs of a comparison, and the plan holds them against their timeouts."""
    words = ["--num-epochs", "2", *GRID]
    priced = commands.json("estimate.py", "ada/tiny", "ada/docs", *words)
    best = priced["recommended"]
    assert [run["changes"] for run in priced["runs"]][1] == {"learning_rate": "1e-4", "lora_r": "16"}
    assert "In all: $" in commands.run("estimate.py", "ada/tiny", "ada/docs", *words).stdout
    shown = plan(commands, "--flavor", best["flavor"], "--timeout", f"{best['timeout_s']}s", *GRID)
    sums = [sum(run["estimate"][name] for run in shown["plan"]["runs"]) for name in ("usd_low", "usd_high")]
    assert sums[1] == pytest.approx(sum(run["usd_high"] for run in priced["runs"]), abs=0.01)
    assert f"${sums[0]:.2f}–{sums[1]:.2f} in all" in shown["summary"]["estimate"]
    assert shown["plan"]["halving_saves"] is None and "saves" not in shown["summary"]
    halved = plan(commands, "--flavor", best["flavor"], "--timeout", f"{best['timeout_s']}s", *GRID, "--halving", "2")
    saved = halved["plan"]["halving_saves"]
    assert (saved["share_of_steps"], saved["of_steps"]) == (0.5, 4 * best_steps(priced))
    assert 0 <= saved["usd_low"] <= saved["usd_high"] < sums[1]
    assert f"${saved['usd_low']:.2f}–{saved['usd_high']:.2f} of ${sums[0]:.2f}–{sums[1]:.2f}" in halved["summary"]["saves"]
    refused = commands.json("estimate.py", "ada/tiny", "ada/docs", "--vary", "dataset=ada/docs,ada/more", code=2)
    assert refused["problems"][0]["code"] == "bad_vary"


def best_steps(priced: dict) -> int:
    return next(one["steps"] for one in priced["flavors"] if one["flavor"] == priced["recommended"]["flavor"])


# ---- four runs that really train


@pytest.mark.hub(execute_jobs=True, model="tiny", scheduling=0.1)
def test_a_grid_of_four_real_runs_ends_with_a_winner(hub, tmp_path):
    """Plan, one approval, four trained adapters in four repositories, two at a time, and the best of them."""
    commands = Commands(hub.env(token=ADA), tmp_path)
    arguments = [
        "--base-model",
        "ada/tiny",
        "--dataset",
        "ada/docs",
        "--num-samples",
        "80",
        "--max-steps",
        "8",
        "--grader",
        "none",
        *QUICK,
    ]
    grid = ["--vary", "learning-rate=1e-5,5e-3", "--vary", "lora-r=4,8", "--at-once", "2"]
    words = ["submit.py", str(SFT), "--flavor", "cpu-upgrade", "--timeout", "30m", *grid, "--max-usd", "1"]

    shown = commands.json(*words, "--", *arguments, code=3)
    started = commands.json(*words, "--approve", shown["plan_id"], "--", *arguments)
    assert (len([job for job in started["jobs"] if job["job_id"]]), len(started["waiting"])) == (2, 2)
    found = commands.json("status.py", shown["group_id"], "--watch", "--max-usd", "1")

    assert found["stage"] == "COMPLETED"
    losses = {run["name"]: run["eval_loss"] for run in found["runs"]}
    best = min(losses, key=losses.__getitem__)
    assert best.startswith("lr5e-3")
    assert found["winner"] in found["verdict"]["alike"] and best in found["verdict"]["alike"]
    assert not any(name.startswith("lr1e-5") for name in found["verdict"]["alike"])
    for run in found["runs"]:
        assert "adapter_model.safetensors" in hub.files(f"ada/tiny-docs-{run['name']}")
        assert hub.store.repos["model", f"ada/tiny-docs-{run['name']}"].private
    print(commands.run("status.py", shown["group_id"]).stdout)
    print(json.dumps(found["verdict"], indent=1))
    print(found["runs"][0]["result"])


# ---- what is refused before anything is planned


@pytest.mark.parametrize(
    ("vary", "said"),
    [
        (["learning-rate"], "NAME=VALUE"),
        (["=1,2"], "NAME=VALUE"),
        (["lora-r=8,,16"], "NAME=VALUE"),
        (["learning-rate=1e-4,1e-4"], "twice"),
        (["lora-r=8,16", "--lora_r=4,2"], "twice"),
    ],
)
def test_a_grid_that_is_none_is_said(vary, said):
    with pytest.raises(UserError) as refused:
        read_variations(vary, None)
    assert refused.value.problem.code == "bad_vary"
    assert said in refused.value.problem.message


@pytest.mark.parametrize("text", ["", "[]", "{", '"x"', "[1]", '{"lora-r": null}', '[{"lora-r": [8]}]'])
def test_a_file_that_lists_no_settings_is_said(tmp_path, text):
    (tmp_path / "runs.json").write_text(text)
    with pytest.raises(UserError) as refused:
        read_variations([], tmp_path / "runs.json")
    assert refused.value.problem.code == "bad_vary" and "one object a line" in refused.value.problem.fix


def test_a_grid_is_counted_before_it_is_made():
    count, _ = read_variations([f"{letter}={','.join(map(str, range(1000)))}" for letter in "abcdef"], None)
    assert count == 10**18


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--vary", "learning-rate=1e-4"], "one_run", "only one run"),
        (["--vary", "lora-q=8,16"], "bad_vary", "Did you mean lora-r"),
        (["--vary", "lora-r=8,many"], "bad_arguments", "The run with lora-r many"),
        (["--vary", "packing=true,perhaps"], "bad_vary", "neither true nor false"),
        (["--vary", "target-modules=q_proj,z_proj"], "unknown_target", "The run with target-modules z_proj"),
        (["--vary", "learning-rate=1e-4,0.0001"], "same_runs", "paid for twice"),
        (["--vary", "output-repo=ada/x", "--vary", "lora-r=8,16"], "same_repository", "ada/x"),
        (["--vary", f"seed={','.join(map(str, range(200)))}"], "too_many_runs", "$160.00"),
        (["--vary", "seed=1,2", "--metric", "loss"], "not_comparable", "seed"),
        (["--vary", "grader=exact,contains", "--metric", "graded"], "not_comparable", "graded by another grader"),
        (["--vary", "eval-split=0", "--vary", "lora-r=8,16", "--halving", "2"], "not_comparable", "no held-out loss"),
        (["--vary", "lora-r=2,4,8", "--halving", "2", "--at-once", "2"], "bad_halving", "wait"),
        (["--vary", "lora-r=8,16", "--max-usd", "1"], "over_budget", "$1.60 in all"),
        (["--at-once", "2"], "bad_vary", "missing"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_what_to_correct(hub, commands, options, code, said):
    refused = commands.json("submit.py", str(SFT), "--timeout", "1h", *options, "--", *ARGUMENTS, code=None)
    [problem] = [one for one in refused["problems"] if one["severity"] == "error"]
    assert problem["code"] == code
    assert said in problem["message"] + problem["fix"], problem
    assert not jobs_created(hub)


def test_answers_that_are_graded_by_other_rules_do_not_decide(commands):
    shown = plan(commands, "--vary", "grader=exact,contains")
    assert shown["plan"]["metric"] == "loss"
    assert [problem["code"] for problem in shown["problems"]].count("not_comparable") == 1


def test_runs_can_be_listed_and_differ_in_anything(hub, commands, tmp_path):
    """Switches and machines, too; each has a repository of its own, under a name that the Hub takes."""
    listed = [{"lora-r": 8, "packing": False}, {"lora-r": 8, "flavor": "a10g-small", "timeout": "2h"}, {"script": "dpo.py"}]
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in listed))
    arguments = [*ARGUMENTS, "--output-repo", f"ada/{'x' * 90}"]
    shown = plan(commands, "--vary-file", "runs.jsonl", "--timeout", "1h", arguments=arguments)
    runs = shown["plan"]["runs"]
    assert [run["flavor"] for run in runs] == ["l4x1", "a10g-small", "l4x1"]
    assert [run["max_usd"] for run in runs] == [0.8, 2.0, 0.8]
    assert [run["name"] for run in runs] == ["r8-packing-false", "r8-flavor-a10g-small-timeout-2h", "script-dpo"]
    names = {run["output_repo"].partition("/")[2] for run in runs}
    assert len(names) == 3 and all(len(name) <= 96 for name in names)
    assert "loss_not_comparable" in [problem["code"] for problem in shown["problems"]]


@pytest.mark.parametrize("base", ["tiny", "x" * 96, f"{'x' * 90}-.-{'y' * 40}"])
def test_a_name_that_becomes_too_long_is_cut_to_what_the_hub_takes_and_stays_its_own(base):
    values = ["a" * 200, "a" * 199 + "b", "q_proj,k_proj", "../../" + "ü" * 300]
    names = [name_with(base, {"target_modules": value, "lora_r": "8"}) for value in values]
    assert len(set(names)) == len(names)
    for name in names:
        validate_repo_id(f"ada/{name}")


def test_a_repository_that_a_running_job_writes_to_is_refused_with_the_run(hub, commands):
    jobs = approve(commands, *GRID)
    hub.jobs.set(jobs["lr3e-4-r8"], stage="RUNNING")
    longer = [*ARGUMENTS, "--seed", "7"]  # another plan with the same results
    [problem] = plan(commands, *GRID, arguments=longer, code=2)["problems"]
    assert problem["code"] == "repo_in_use" and "ada/tiny-docs-lr3e-4-r8" in problem["message"]
    assert "The run with learning-rate 3e-4, lora-r 8" in problem["message"] and len(jobs_created(hub)) == 4


def test_what_auto_chooses_stands_in_the_table_and_is_not_paid_twice(hub, commands):
    shown = plan(commands, "--vary", "learning-rate=auto,1e-4")
    rates = [run["learning_rate"] for run in shown["plan"]["runs"]]
    assert rates[1] == 1e-4 and isinstance(rates[0], float)
    table = commands.run("submit.py", str(SFT), "--vary", "learning-rate=auto,1e-4", "--", *ARGUMENTS, code=3).stdout
    assert f"auto: {rates[0]:g}" in table
    same = ["--vary", f"learning-rate=auto,{rates[0]}"]
    assert plan(commands, *same, code=2)["problems"][0]["code"] == "same_runs"


# ---- halving, against hand-made logs


def track(*losses: float, whole: float | None = 100.0, over: bool = False) -> Track:
    """Evaluations after each tenth of a run of 100 tokens."""
    return Track(tuple((10.0 * place, loss) for place, loss in enumerate(losses)), whole, over)


def test_rungs_lie_where_the_last_one_is_a_share_of_the_run():
    shown = {(runs, rate): [(round(rung.share, 3), rung.keep) for rung in rungs_of(runs, rate)] for runs, rate in RUNGS}
    assert shown == RUNGS


RUNGS = {
    (4, 2): [(0.25, 2), (0.5, 1)],
    (9, 3): [(0.111, 3), (0.333, 1)],
    (8, 3): [(0.333, 3)],
    (2, 3): [(0.333, 1)],
    (5, 0): [],
    (1, 2): [],
}


def test_the_worse_runs_are_those_with_the_higher_loss_at_equal_tokens():
    even = {
        "a": track(4.0, 3.0, 2.5, 2.4),
        "b": track(4.0, 3.2, 2.6, 2.5),
        "c": track(4.0, 2.9, 2.4, 2.3),
        "d": track(4.0, 5.0, 5.0, 5.0),
    }
    [first] = decide(even, 2)
    assert (first.rung, first.tokens, first.stopped) == (1, 25.0, ("b", "d"))
    assert first.losses["a"] == pytest.approx(2.45)  # on the line between the evaluations around
    # A run that is twice as long has learned from as many tokens at half of its share.
    longer = Track(((0.0, 4.0), (20.0, 2.0), (40.0, 1.9)), 200.0)
    assert decide(even | {"b": longer}, 2)[0].stopped == ("a", "d")


def test_a_rung_waits_for_all_that_may_still_reach_it_and_for_none_that_cannot():
    runs = {"a": track(4.0, 3.0, 2.5, 2.4, 2.3, 2.2), "b": track(4.0, 3.2), "c": track(4.0, 2.9, 2.4, 2.3, 2.2, 2.1)}
    assert decide(runs, 2) == []
    assert decide(runs | {"b": track(whole=None)}, 2) == []
    assert decide(runs | {"b": track(4.0, 3.2, over=True)}, 2)[0].stopped == ("b",)  # it has failed: the worst
    early = Track(((0.0, 4.0), (10.0, 2.0)), 100.0, over=True, done=True)  # it has stopped early: its last loss counts
    assert decide(runs | {"b": early}, 2)[0].stopped == ("a",)
    assert decide(runs | {"b": track(4.0, *[math.nan] * 5)}, 2)[0].stopped == ("b",)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(0.5, 5), min_size=11, max_size=11), min_size=2, max_size=9), st.integers(2, 4), st.data())
def test_what_is_decided_does_not_depend_on_when_it_is_looked_at(losses, rate, data):
    """Whoever looks, and however often, ends the same runs; one is left."""
    whole = {f"run{number}": track(*one) for number, one in enumerate(losses)}
    final = decide(whole, rate)
    assert [one.rung for one in final] == list(range(1, len(rungs_of(len(losses), rate)) + 1))
    looked = data.draw(st.lists(st.integers(2, 11), min_size=len(losses), max_size=len(losses)))
    early = decide(
        {name: track(*one[:seen]) for (name, one), seen in zip(zip(whole, losses, strict=True), looked, strict=True)}, rate
    )
    assert early == final[: len(early)]
    stopped = [name for one in final for name in one.stopped]
    assert len(set(stopped)) == len(stopped) == len(losses) - rungs_of(len(losses), rate)[-1].keep


def estimated(tokens: float, steps: int) -> dict:
    seconds = {"start": [60, 600], "training": [600, 1200], "evaluation": [60, 120], "grading": [0, 60]}
    return {"tokens": tokens, "steps": steps, "usd_low": 1.0, "usd_high": 2.0, "seconds": seconds}


def test_what_halving_saves_is_what_the_ended_runs_do_not_train_evaluate_and_answer():
    """Of four runs two end at a quarter and one at half: (2 × 75% + 50%) of a run, and the answers of three."""
    saved = saving_of([estimated(1000, 100)] * 4, [0.1] * 4, 2)
    assert (saved.share, saved.steps, saved.of_steps) == (0.5, 200, 400)
    assert saved.usd == pytest.approx((2 * 11 * 0.1, (2 * 22 + 3) * 0.1)) and saved.of_usd == (4.0, 8.0)
    assert saved.line.startswith("about 50% of the steps (200 of 400) and $2.20–4.70 of $4.00–8.00")
    # Of a short and a twice as long run one ends at half of the short one: 50 of its steps, or 150 of the other's.
    other = saving_of([estimated(1000, 100), estimated(2000, 200)], [0.1] * 2, 2)
    assert (other.steps, other.of_steps) == (100, 300)
    unknown = saving_of([estimated(1000, 100), None, estimated(1000, 100), None], [0.1] * 4, 2)
    assert (unknown.share, unknown.steps, unknown.usd) == (0.5, None, None)
    assert "estimate.py" in saving_of([{"tokens": 9.0, "seconds": {"training": "x"}}] * 2, [0.1] * 2, 2).line  # damaged
    assert saving_of([estimated(1000, 100)] * 4, [0.1] * 4, 0) is None


# ---- the best, and whether it can be told


def graded(name: str, right: int, usd: float = 1.0, rows: int = 100) -> Result:
    scores = {f"q{place}": float(place < right) for place in range(rows)}
    return Result(name, usd, 2.0, right / rows, scores)


def test_the_best_is_said_where_it_can_be_told_and_the_cheapest_where_not():
    clear = judge([graded("a", 40), graded("b", 81, usd=9.0)], "auto", True)
    assert (clear.metric, clear.winner, clear.alike) == ("graded", "b", ("b",))
    assert "b is the best by right answers: 81% right" in clear.sentence
    close = judge([graded("a", 40), graded("b", 81, usd=9.0), graded("c", 80, usd=2.0)], "auto", True)
    assert (close.winner, set(close.alike)) == ("c", {"b", "c"})
    assert "Not distinguishable" in close.sentence and "cheapest of them is c" in close.sentence


def test_more_runs_need_a_larger_difference():
    """The best of many looks better than it is."""
    two = [graded("a", 73), graded("b", 81)]
    assert judge(two, "auto", True).alike == ("b",)
    many = judge([*two, *(graded(f"c{number}", 10) for number in range(30))], "auto", True)
    assert set(many.alike) == {"a", "b"}


def test_losses_are_compared_batch_by_batch_of_the_same_rows():
    def lost(name: str, gap: float, usd: float) -> Result:
        batches = tuple((1.0 + place / 10 - gap + place % 2 / 50, 50.0) for place in range(20))
        return Result(name, usd, 2.0 - gap, None, None, batches)

    verdict = judge([lost("a", 0.0, 1.0), lost("b", 0.1, 2.0)], "auto", True)
    assert (verdict.metric, verdict.winner, verdict.alike) == ("loss", "b", ("b",))
    other = replace(lost("b", 0.1, 2.0), losses=tuple((loss, 49.0) for loss, _ in lost("b", 0.1, 2.0).losses))
    assert set(judge([lost("a", 0.0, 1.0), other], "auto", True).alike) == {"a", "b"}
    none = judge([lost("a", 0.0, 1.0), lost("b", 0.1, 2.0)], "auto", False)
    assert (none.winner, "cannot be compared" in none.sentence) == (None, True)
    assert judge([], "auto", True).winner is None


# ---- one approval, whatever fails on the way

JOB = "^/api/jobs/ada$"
EIGHT = ["--vary", "lora-r=1,2,3,4,5,6,7,8", "--timeout", "1h"]


def jobs_by_result(hub: Hub) -> dict[str, list]:
    """The jobs that were created, each of which is paid for, by the repository that they write to."""
    found: dict[str, list] = {}
    for job in hub.jobs:
        [place] = [word for word in job.spec["command"] if word.startswith("--output-repo=")]
        found.setdefault(place, []).append(job)
    return found


def started(hub: Hub) -> list[int]:
    return sorted(map(len, jobs_by_result(hub).values()))


def test_what_the_hub_refuses_amid_it_is_on_record_and_the_same_command_goes_on(hub, commands):
    approved = [*EIGHT, "--approve", plan(commands, *EIGHT)["plan_id"]]
    hub.faults.add(method="POST", path=JOB, status=402, body={"error": "Pre-paid credit balance is insufficient"}, skip=4)
    first = plan(commands, *approved, code=4)
    assert (started(hub), len(first["not_submitted"])) == ([1] * 4, 4)
    assert [problem["code"] for problem in first["problems"]] == ["no_credit"]
    hub.faults.clear()
    looked = commands.json("status.py", first["group_id"])
    assert [run["stage"] for run in looked["runs"]].count("WAITING") == 4
    assert started(hub) == [1] * 4  # a look starts none: all were to be started at once, by submit.py
    again = plan(commands, *approved, code=0)
    assert [job["existed"] for job in again["jobs"]] == [True] * 4 + [False] * 4
    assert started(hub) == [1] * 8


FAULTS = [
    {"status": 402, "body": {"error": "No credit"}},
    {"status": 500, "handled": True},
    {"drop": "after"},
    {"status": 500},
    {"status": 200, "body": "<html>", "handled": True},
    {"drop": "before"},
    {"status": 429, "headers": {"Retry-After": "3600"}},
    {"delay": 4.0, "handled": True},
]


def test_a_fault_at_each_submission_costs_no_second_payment(hub, commands):
    commands.settings = commands.settings | {"lookup.client:connect.__defaults__": [2.0]}
    approved = [*EIGHT, "--approve", plan(commands, *EIGHT)["plan_id"]]
    for fault in FAULTS:
        hub.faults.clear()
        hub.faults.add(method="POST", path=JOB, times=1, **fault)
        said = plan(commands, *approved, code=None)
        assert max(started(hub), default=0) <= 1
        if [one["code"] for one in said["problems"]] == ["submit_unclear"]:  # no job came of it: that run is approved anew
            approved = [*EIGHT, "--approve", plan(commands, *EIGHT)["plan_id"]]
    hub.faults.clear()
    done = plan(commands, *approved, code=0)
    assert done["not_submitted"] == [] and started(hub) == [1] * 8
    seen = commands.json("status.py", done["group_id"], code=None)
    assert len({run["job_id"] for run in seen["runs"]}) == 8


FOUR = ["--vary", "lora-r=1,2,4,8", "--timeout", "1h"]


def test_two_commands_at_once_start_each_run_once(hub, commands):
    hub.faults.add(method="POST", path=JOB, delay=0.3)
    approved = [*FOUR, "--approve", plan(commands, *FOUR)["plan_id"]]
    other = Commands(hub.env(token=ADA), commands.cwd, settings=commands.settings)  # on another machine
    plan(other, *FOUR)
    with ThreadPoolExecutor(3) as pool:
        said = list(pool.map(lambda who: plan(who, *approved, code=None), [commands, commands, other]))
    assert all(one.get("group_id") for one in said)
    assert started(hub) == [1] * 4
    assert plan(other, *approved, code=0)["not_submitted"] == [] and started(hub) == [1] * 4


def test_two_watchers_start_each_waiting_run_once(hub, commands):
    options = [*FOUR, "--at-once", "1"]
    begun = plan(commands, *options, "--approve", plan(commands, *options)["plan_id"], code=0)
    assert (len(begun["waiting"]), started(hub)) == (3, [1])
    with ThreadPoolExecutor(2) as pool:
        words = ("status.py", begun["group_id"], "--watch", "--interval", "0.2")
        seen = list(pool.map(lambda _: commands.json(*words, code=0), range(2)))
    assert started(hub) == [1] * 4
    assert {one["stage"] for one in seen} == {"COMPLETED"}


def test_what_ends_a_submit_between_two_runs_leaves_the_rest_to_the_same_command(hub, commands):
    shown = plan(commands, *EIGHT)
    hub.faults.add(method="POST", path=JOB, delay=0.5)
    words = ["submit.py", str(SFT), *EIGHT, "--approve", shown["plan_id"], "--json", "--", *ARGUMENTS]
    for number in (signal.SIGINT, signal.SIGKILL):
        before = len(list(hub.jobs))
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "scripts" / words[0]), *words[1:]],
            cwd=commands.cwd,
            env=commands.env,
            stdout=subprocess.PIPE,
        )
        while len(list(hub.jobs)) < before + 2:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
        assert before + 2 <= len(list(hub.jobs)) < 8
    hub.faults.clear()
    assert plan(commands, *EIGHT, "--approve", shown["plan_id"], code=0)["not_submitted"] == []
    assert started(hub) == [1] * 8


# ---- how it goes


def log_of(rate: float, steps: int, total: int = 20, pushed: bool = True) -> list[str]:
    """A run's log up to a step: evaluated each fifth, saved each fifth."""
    lines = [event("eval", step=0, eval_loss=4.0)]
    for step in range(1, steps + 1):
        lines.append(event("progress", step=step, total_steps=total, loss=4 - rate * step, tokens=100 * step, eta_s=60))
        if step % 5 == 0:
            lines.append(event("eval", step=step, eval_loss=4 - rate * step))
            lines.append(event("checkpoint", step=step, pushed=pushed, path="x"))
    return lines


def approve(commands: Commands, *options: str) -> dict[str, str]:
    """The jobs of an approved comparison by their run's name; and the group itself as `group`."""
    begun = plan(commands, *options, "--approve", plan(commands, *options)["plan_id"], code=0)
    return {job["name"]: job["job_id"] for job in begun["jobs"]} | {"group": begun["group_id"]}


HALVED = ["--vary", "learning-rate=1e-4,2e-4,3e-4,4e-4", "--halving", "2", "--timeout", "1h"]
RATES = {"lr1e-4": 0.01, "lr2e-4": 0.02, "lr3e-4": 0.05, "lr4e-4": 0.04}


def test_the_worse_runs_are_ended_once_they_have_saved(hub, commands):
    said = commands.run("submit.py", str(SFT), *HALVED, "--", *ARGUMENTS, code=3).stdout
    assert "2 after 25% of the steps, 1 after 50% of the steps" in said
    assert "about 50% of the steps; the dollars are known once estimate.py has priced the runs" in said
    jobs = approve(commands, *HALVED)
    for name, rate in RATES.items():
        hub.jobs.set(jobs[name], stage="RUNNING", logs=log_of(rate, 4))
    look = lambda **how: commands.json("status.py", jobs["group"], **how)  # noqa: E731
    assert look()["halving"] == []
    for name, rate in RATES.items():
        hub.jobs.set(jobs[name], logs=log_of(rate, 6, pushed=name != "lr1e-4"))
    found = look()
    assert found["halving"][0]["stopped"] == ["lr2e-4", "lr1e-4"]
    stages = {run["name"]: run["stage"] for run in found["runs"]}
    assert stages == {
        "lr1e-4": "RUNNING",
        "lr2e-4": "CANCELED",
        "lr3e-4": "RUNNING",
        "lr4e-4": "RUNNING",
    }  # the one has not saved
    assert "of the $3.20 approved are not needed" in commands.run("status.py", jobs["group"]).stdout
    hub.jobs.set(jobs["lr1e-4"], logs=log_of(RATES["lr1e-4"], 10))
    assert {run["name"]: run["stage"] for run in look()["runs"]}["lr1e-4"] == "CANCELED"
    for name in ("lr3e-4", "lr4e-4"):
        hub.jobs.set(jobs[name], logs=log_of(RATES[name], 15))
    assert [one["stopped"] for one in look()["halving"]] == [["lr2e-4", "lr1e-4"], ["lr4e-4"]]
    ends = [event("done", repo="ada/x", base_loss=4.0, tuned_loss=3.0)]
    hub.jobs.set(jobs["lr3e-4"], stage="COMPLETED", logs=[*log_of(RATES["lr3e-4"], 20), *ends])
    last = look()
    assert (last["stage"], last["winner"], last["spent_usd"] < last["max_usd"]) == ("COMPLETED", "lr3e-4", True)
    assert [run["ended_at_rung"] for run in last["runs"]] == [1, 1, None, 2]
    table = commands.run("status.py", jobs["group"]).stdout
    assert "ended at rung 2" in table and "hf repos delete ada/tiny-docs-lr1e-4" in table
    folded = commands.json("status.py", "--all")["groups"]
    assert [run["best_eval_loss"] for run in folded[0]["runs"]] == [3.9, 3.9, 3.0, 3.4]
    assert "lr3e-4" in commands.run("status.py", "--all").stdout


def test_two_watchers_at_once_end_the_same_runs(hub, commands):
    jobs = approve(commands, *HALVED)
    for name, rate in RATES.items():
        hub.jobs.set(jobs[name], stage="RUNNING", logs=log_of(rate, 6))
    with ThreadPoolExecutor(2) as pool:
        seen = list(pool.map(lambda _: commands.json("status.py", jobs["group"]), range(2)))
    assert [one["halving"][0]["stopped"] for one in seen] == [["lr2e-4", "lr1e-4"]] * 2
    assert sorted(hub.jobs.get(jobs[name]).stage for name in RATES) == ["CANCELED", "CANCELED", "RUNNING", "RUNNING"]


def test_a_comparison_is_seen_from_another_machine_and_left_as_it_is(hub, commands):
    jobs = approve(commands, "--vary", "learning-rate=1e-4,2e-4", "--vary", "lora-r=8,16")
    hub.jobs.set(jobs["lr1e-4-r8"], stage="ERROR", message="boom")
    other = Commands(hub.env(token=ADA), commands.cwd, settings=commands.settings)
    seen = other.json("status.py", jobs["group"], code=1)
    assert [run["changes"] for run in seen["runs"]][:2] == [
        {"learning-rate": "0.0001", "lora-r": "8"},
        {"learning-rate": "0.0001", "lora-r": "16"},
    ]
    assert {run["job_id"] for run in seen["runs"]} == set(jobs.values()) - {jobs["group"]}
    unknown = other.json("status.py", "group-0123456789abcdef", code=1)["problems"][0]
    assert unknown["code"] == "unknown_group"


def test_a_group_whose_jobs_were_deleted_or_failed_says_so_and_pays_for_none_again(hub, commands):
    approved = ["--vary", "lora-r=2,4,8,16"]
    jobs = approve(commands, *approved)
    for name in ("r2", "r4"):
        hub.jobs.wait(jobs[name])
        del hub.jobs._jobs[jobs[name]]
    hub.jobs.wait(jobs["r8"])
    hub.jobs.set(jobs["r8"], stage="ERROR", message="Job failed with exit code: 1")
    seen = commands.json("status.py", jobs["group"], code=1)
    assert [run["stage"] for run in seen["runs"]] == ["DELETED", "DELETED", "ERROR", "COMPLETED"]
    goes_on = re.findall(r"(?m)^(\w+) (?:was deleted|has failed).* uv run \S+/(?:submit|logs)\.py", seen["next"])
    assert (seen["stage"], goes_on) == ("COMPLETED", ["r2", "r4", "r8"])
    assert "without r2, r4, whose jobs were deleted" in commands.run("status.py", jobs["group"], code=1).stdout
    again = plan(commands, *approved, "--approve", jobs["group"], code=0)
    assert [job["stage"] for job in again["jobs"]][:3] == ["DELETED", "DELETED", "ERROR"]
    assert len(list(hub.jobs)) == 2 and len(jobs_created(hub)) == 4
    ended = hub.jobs.get(jobs["r8"])
    ended.started = ended.finished - 3600
    anew = plan(commands, *approved)
    assert anew["plan_id"] != jobs["group"]
    # Two of which nothing says what they have cost, an hour of the third, and what the four may cost from now on.
    assert anew["plan"]["max_usd"] == pytest.approx(2 * 3.2 + 0.8 + 3 * 3.2, abs=0.02)
    assert plan(commands, *approved, "--max-usd", "16")["problems"][0]["code"] == "over_budget"
    assert [problem["code"] for problem in anew["problems"]].count("earlier_start") == 3


def test_a_ceiling_holds_for_all_runs_together(hub, commands):
    jobs = approve(commands, "--vary", "lora-r=8,16", "--flavor", "h200", "--timeout", "1h")  # $5 an hour each
    for name in ("r8", "r16"):
        hub.jobs.set(jobs[name], stage="RUNNING", logs=log_of(0.1, 6))
        hub.jobs.get(jobs[name]).started -= 20 * 60  # $1.67 each by now
    found = commands.json("status.py", jobs["group"], "--watch", "--interval", "0.2", "--max-usd", "3.4")
    assert {run["stage"] for run in found["runs"]} == {"CANCELED"}
    assert found["spent_usd"] <= 3.4


def test_on_this_machine_one_runs_after_the_other(tmp_path, tiny_model):
    """Also where nobody watches; a run that is cancelled before its turn never begins."""
    commands = Commands({"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}, tmp_path)
    text = SFT.read_text("utf-8").replace("def train(settings: Settings) -> None:", SLOW, 1)
    (tmp_path / "slow.py").write_text(text[text.index('r"""') :])  # without its header: it needs no library
    words = ["submit.py", "slow.py", "--where", "local", "--vary", "lora-r=4,8,16"]
    arguments = ["--base-model", str(tiny_model), "--dataset", str(ROWS), "--num-samples", "20"]
    shown = commands.json(*words, "--", *arguments, code=3)
    assert len({run["output_dir"] for run in shown["plan"]["runs"]}) == 3
    begun = commands.json(*words, "--approve", shown["plan_id"], "--", *arguments)
    assert [job["stage"] for job in begun["jobs"]][1:] == ["SCHEDULING"] * 2
    first, second, third = (job["job_id"] for job in begun["jobs"])
    while f"waits until {second} has ended" not in commands.json("status.py", third)["next"]:
        time.sleep(0.1)
    commands.run("status.py", second, "--cancel")
    (tmp_path / "go").touch()
    found = commands.json("status.py", shown["group_id"], "--watch", "--interval", "0.2")
    assert [run["stage"] for run in found["runs"]] == ["COMPLETED", "CANCELED", "COMPLETED"]
    assert (found["winner"], found["spent_usd"]) == ("r16", 0.0)
    ends, _, begins = (state_of(commands, job) for job in (first, second, third))
    assert ends["finished"] <= begins["started"]
    again = commands.json(*words, "--approve", shown["plan_id"], "--", *arguments)
    assert [job["existed"] for job in again["jobs"]] == [True, False, True]  # what costs nothing is run again


def state_of(commands: Commands, job: str) -> dict:
    """What the runner of a job on this machine noted."""
    return json.loads((Path(commands.env["HF_HOME"]) / "unsloth-jobs" / "jobs" / job / "state.json").read_text("utf-8"))


# A training that only says that it was one: how runs follow each other does not depend on what they do.
SLOW = """def train(settings: Settings) -> None:
    while not Path("go").exists():
        time.sleep(0.1)
    for step in range(1, 4):
        emit("progress", step=step, total_steps=3, loss=3.0 - step / 10, tokens=step * 100)
        emit("eval", step=step, eval_loss=3.0 - step / 10 - settings.lora_r / 100)
    emit("held_out", step=3, losses=[3.0 - settings.lora_r / 100 - row / 1000 for row in range(20)], weights=[10] * 20)
    emit("done", path=settings.save_local, tuned_loss=3.0 - settings.lora_r / 100, base_loss=4.0)
    return


def train_really(settings: Settings) -> None:"""


def test_a_comparison_that_was_ended_starts_no_run_that_waits(hub, commands):
    """Neither after --cancel nor after its ceiling, until it is submitted once more."""
    options = [*FOUR, "--at-once", "2"]
    jobs = approve(commands, *options)
    for name in ("r1", "r2"):
        hub.jobs.set(jobs[name], stage="RUNNING", logs=log_of(0.1, 6))
    commands.json("status.py", jobs["group"], "--cancel")
    seen = commands.json("status.py", jobs["group"])
    assert [run["stage"] for run in seen["runs"]] == ["CANCELED", "CANCELED", "WAITING", "WAITING"]
    assert "never started" in commands.run("status.py", jobs["group"], "--watch").stdout
    assert started(hub) == [1, 1]
    again = plan(commands, *options, "--approve", jobs["group"], code=0)
    assert [job["existed"] for job in again["jobs"]] == [True, True, False, False] and started(hub) == [1] * 4


def test_ctrl_c_amid_a_watch_leaves_all_runs_as_they_are(hub, commands):
    jobs = approve(commands, "--vary", "lora-r=8,16")
    for name in ("r8", "r16"):
        hub.jobs.set(jobs[name], stage="RUNNING", logs=log_of(0.1, 6))
    words = [str(ROOT / "scripts" / "status.py"), jobs["group"], "--watch", "--interval", "0.2", "--max-usd", "9", "--json"]
    how = {"cwd": commands.cwd, "env": commands.env, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, *words], **how)
    assert "2 RUNNING: r8 6, r16 6" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    said, told = process.communicate(timeout=60)
    assert process.returncode == 130 and "The runs go on" in told
    assert {run["stage"] for run in json.loads(said)["runs"]} == {"RUNNING"} == {job.stage for job in hub.jobs}


@pytest.mark.parametrize("columns", [40, 80])
def test_the_curves_of_all_runs_fit_one_picture_in_the_terminal(columns, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a terminal

    def run(name: str, rate: float, steps: int) -> RunStatus:
        job = Job(name, "RUNNING", None, "", "l4x1", None, None, None)
        return RunStatus(name, {"lora_r": name}, None, Status(job, summarise(log_of(rate, steps)), None, None))

    seen = GroupStatus("group-1", None, (run("8", 0.1, 20), run("16", 0.15, 10), run("32", 0.2, 0)))
    drawn = curves(seen, columns)
    lines = drawn.plain.split("\n")
    assert max(map(len, lines)) <= columns
    assert lines[0].startswith("4 │") and "held-out loss after 0 to 2,000 token" in lines[-1]
    colours = {part.style.color.number for part in drawn.spans if getattr(part.style, "color", None)}
    assert colours == {6, 3}  # cyan and yellow, as the first two names in the table
    assert curves(replace(seen, runs=seen.runs[2:]), columns) is None


def test_the_curves_are_drawn_in_one_picture(hub, commands, tmp_path):
    python_of(
        ROOT / "scripts" / "unsloth_jobs" / "drawing" / "curves.py"
    )  # its environment is made with this machine's registry
    jobs = approve(commands, "--vary", "lora-r=8,16")
    for name, rate in (("r8", 0.1), ("r16", 0.15)):
        hub.jobs.set(jobs[name], stage="RUNNING", logs=log_of(rate, 20))
    for kind, magic in (("svg", b"<?xml"), ("png", b"\x89PNG")):
        commands.json("status.py", jobs["group"], "--picture", f"curves.{kind}")
        assert (tmp_path / f"curves.{kind}").read_bytes().startswith(magic)
    assert commands.json("status.py", jobs["group"], "--picture", "curves.doc", code=2)["problems"][0]["code"] == "bad_picture"


# ---- what comes next


def done(name: str, tuned: float) -> list[str]:
    """The end of a run's log: what it was measured at, on twenty batches of held-out rows."""
    batches = {"losses": [tuned + batch / 50 + len(name) * (batch % 3) / 1e4 for batch in range(20)], "weights": [10] * 20}
    repository = f"ada/tiny-docs-{name}"
    return [event("held_out", step=20, **batches), event("done", repo=repository, base_loss=4.0, tuned_loss=tuned)]


RANKS = ["--vary", "lora-r=8,16", "--timeout", "1h"]


def test_a_run_that_came_to_its_deadline_is_gone_on_with_alone_and_counted(hub, commands):
    """By the command that `next` gives: from its checkpoint, into the same repository, with the dollars of both jobs."""
    jobs = approve(commands, *RANKS)
    failed = event("failed", code="deadline", message="The time is up.", fix="Longer.")
    hub.jobs.set(jobs["r8"], stage="RUNNING", logs=[*log_of(0.1, 11), failed])
    hub.jobs.get(jobs["r8"]).started -= 3600
    hub.jobs.set(jobs["r8"], stage="ERROR", message="Job failed with exit code: 1")
    hub.jobs.set(jobs["r16"], stage="RUNNING", logs=log_of(0.1, 6))
    before = commands.json("status.py", jobs["group"], code=1)
    [line] = [line for line in before["next"].splitlines() if line.startswith("r8 has failed (deadline)")]
    words = shlex.split(re.search(r"uv run \S+/(submit\.py .*)", line)[1])
    assert words[-1] == "--resume" and "--output-repo=ada/tiny-docs-r8" in words
    resumed = commands.json(words[0], "--yes", "--max-usd", "1", *words[1:])["job_id"]
    hub.jobs.set(resumed, stage="RUNNING", logs=log_of(0.1, 14)[12:])
    seen = commands.json("status.py", jobs["group"])
    run = next(one for one in seen["runs"] if one["name"] == "r8")
    assert (run["job_id"], run["stage"], seen["stage"]) == (resumed, "RUNNING", "RUNNING")
    assert run["earlier_usd"] == pytest.approx(0.8, abs=0.01) and seen["spent_usd"] >= 0.79
    assert seen["at_most_usd"] == pytest.approx(0.8 + 2 * 0.8, abs=0.02) and "has failed" not in seen["next"]
    assert "$0.80 of it beyond that" in commands.run("status.py", jobs["group"]).stdout
    other = Commands(hub.env(token=ADA), commands.cwd, settings=commands.settings)  # on another machine
    [there] = [one for one in other.json("status.py", jobs["group"])["runs"] if one["name"] == "r8"]
    assert (there["job_id"], there["changes"]) == (resumed, {"lora-r": "8"})
    assert there["earlier_usd"] == pytest.approx(0.8, abs=0.01)
    for name, job, loss in (("r8", resumed, 2.0), ("r16", jobs["r16"], 3.0)):
        hub.jobs.set(job, stage="COMPLETED", logs=done(name, loss))
    assert commands.json("status.py", jobs["group"])["winner"] == "r8"


def test_the_winner_is_served_and_named_in_what_comes_next(hub, commands, tmp_path):
    """Also from another machine; of runs that cannot be told apart the cheapest, which is said."""
    jobs = approve(commands, *RANKS)
    serve = lambda who=commands, **how: who.run("serve.py", jobs["group"], "--json", **how)  # noqa: E731
    hub.jobs.set(jobs["r16"], stage="RUNNING")
    assert serve(code=1).problem == "not_done"
    hub.jobs.set(jobs["r16"], stage="ERROR")
    hub.jobs.set(jobs["r8"], stage="ERROR")
    assert serve(code=1).problem == "no_winner"
    for name, loss in (("r8", 3.0), ("r16", 2.0)):
        hub.jobs.set(jobs[name], stage="COMPLETED", logs=[*log_of(0.1, 20), *done(name, loss)])
        adapter = zero_adapter(tmp_path / name, "ada/tiny", "model.layers.0.self_attn.q_proj", 32)
        hub.add_repo(f"ada/tiny-docs-{name}", adapter, private=True)
    other = Commands(hub.env(token=ADA), tmp_path, settings=commands.settings)
    for who in (commands, other):
        said = serve(who, code=3)
        assert " --model=ada/tiny-docs-r16@" in arguments_of(said) and "r16 is the best" in said.stderr
        next_ = who.json("status.py", jobs["group"])["next"]
        chat, export, evaluate = (re.search(pattern, next_) for pattern in NEXT)
        assert (chat[1], export[1], evaluate[1]) == (jobs["r16"], "ada/tiny-docs-r16", "ada/tiny-docs-r16")
    alike = approve(commands, "--vary", "lora-r=2,4", "--timeout", "1h")
    for name in ("r2", "r4"):
        hub.jobs.get(alike[name]).started = hub.jobs.get(alike[name]).started or time.time()
        hub.jobs.get(alike[name]).started -= 600 if name == "r4" else 60
        hub.jobs.set(alike[name], stage="COMPLETED", logs=done(name, 2.0))
    hub.add_repo("ada/tiny-docs-r2", tmp_path / "r8", private=True)
    said = commands.run("serve.py", alike["group"], "--json", code=3)
    assert "Not distinguishable" in said.stderr and " --model=ada/tiny-docs-r2@" in arguments_of(said)


def arguments_of(said: Said) -> str:
    return " ".join(["", *said.json["plan"]["arguments"]])


NEXT = (r"serve\.py (\w+) --chat", r"export\.py .*--adapter (\S+)", r"evaluate\.py .*--models (\S+)")
