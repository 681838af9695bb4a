"""Several runs, one plan, one price: what is varied, approved, started and compared, against the test Hub."""

from __future__ import annotations

import json

import pytest
from commands import Commands
from conftest import SFT
from hub import Hub
from hubs import ADA  # noqa: F401

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


# ---- four runs that really train


@pytest.mark.hub(execute_jobs=True, model="tiny", scheduling=0.1)
def test_a_grid_of_four_real_runs_ends_with_a_winner(hub, tmp_path):
    """Plan, one approval, four trained adapters in four repositories, two at a time, and the best of them."""
    commands = Commands(hub.env(token=ADA), tmp_path)
    arguments = ["--base-model", "ada/tiny", "--dataset", "ada/docs", "--num-samples", "80", "--max-steps", "8", "--grader", "none", *QUICK]
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
