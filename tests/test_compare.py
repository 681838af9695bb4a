"""Several runs, one plan, one price: what is varied, approved, started and compared, against the test Hub."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from commands import Commands
from conftest import ROOT, SFT
from hub import Hub
from hubs import ADA, event
from huggingface_hub.utils import validate_repo_id
from unsloth_jobs.errors import UserError
from unsloth_jobs.jobs.variations import name_with, read_variations
from unsloth_jobs.status.winner import Result

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
        (["--vary", "num-epochs=1,2", "--vary", "max-steps=20"], "same_runs", "whatever its epochs"),
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


# ---- the best, and whether it can be told


def graded(name: str, right: int, usd: float = 1.0, rows: int = 100) -> Result:
    scores = {f"q{place}": float(place < right) for place in range(rows)}
    return Result(name, usd, 2.0, right / rows, scores)


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


def approve(commands: Commands, *options: str) -> dict[str, str]:
    """The jobs of an approved comparison by their run's name; and the group itself as `group`."""
    begun = plan(commands, *options, "--approve", plan(commands, *options)["plan_id"], code=0)
    return {job["name"]: job["job_id"] for job in begun["jobs"]} | {"group": begun["group_id"]}


# ---- what comes next


def done(name: str, tuned: float) -> list[str]:
    """The end of a run's log: what it was measured at, on twenty batches of held-out rows."""
    batches = {"losses": [tuned + batch / 50 + len(name) * (batch % 3) / 1e4 for batch in range(20)], "weights": [10] * 20}
    repository = f"ada/tiny-docs-{name}"
    return [event("held_out", step=20, **batches), event("done", repo=repository, base_loss=4.0, tuned_loss=tuned)]
