"""plan → approve → submit, with the real client against the test Hub: exactly what was approved runs, once."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from conftest import ROWS, SFT, Commands, shape_of_a_model
from hub import Hub, Organization

ADA, READER, FINE, BROKE = "hf_adaadaadaada", "hf_readreadread", "hf_finefinefine", "hf_brokebrokebr"


@pytest.fixture
def hub(tmp_path: Path, docs: Path):
    """A Hub whose jobs complete without running anything."""
    with Hub(tmp_path / "hub", execute_jobs=False, scheduling=0.05) as hub:
        hub.add_user("ada", token=ADA, orgs=[Organization("acme")])
        hub.add_user("ada", token=READER, role="read")
        hub.add_user("ada", token=FINE, role="fineGrained", permissions=["repo.write"])
        hub.add_user("bob", token=BROKE, can_pay=False)
        hub.add_repo("ada/tiny", shape_of_a_model(tmp_path / "model"))
        hub.add_repo("ada/docs", docs, type="dataset")
        yield hub


@pytest.fixture
def commands(hub: Hub, tmp_path: Path) -> Commands:
    return Commands(hub.env(token=ADA), tmp_path)


ARGUMENTS = ["--base-model", "ada/tiny", "--dataset", "ada/docs", "--num-epochs", "2"]


def plan(commands: Commands, *options: str, code: int = 3, arguments=ARGUMENTS, script: Path = SFT, **how) -> dict:
    return commands.json("submit.py", str(script), *options, "--", *arguments, code=code, **how)


def jobs_created(hub: Hub) -> list[dict]:
    return [record.json for record in hub.journal.requests(method="POST", path=r"^/api/jobs/[^/]+$") if record.status == 200]


def test_without_approval_the_plan_is_shown_and_nothing_runs(hub, commands):
    shown = plan(commands, "--flavor", "a10g-small", "--timeout", "2h")
    assert shown["approved"] is False
    made = shown["plan"]
    assert (made["flavor"], made["timeout_s"], made["namespace"]) == ("a10g-small", 7200, "ada")
    assert made["max_usd"] == pytest.approx(2.0, abs=0.01)  # two hours at a dollar
    assert made["secrets"] == ["HF_TOKEN"]
    assert made["output_repo"] == "ada/tiny-docs"
    assert made["model_revision"] == hub.store.repos["model", "ada/tiny"].head.sha
    assert made["dataset_revision"] == hub.store.repos["dataset", "ada/docs"].head.sha
    assert not jobs_created(hub)


def test_the_approved_plan_is_what_runs(hub, commands):
    shown = plan(commands, "--timeout", "90m")
    job = plan(commands, "--timeout", "90m", "--approve", shown["plan_id"], code=0)
    assert job["approved"] is True
    assert job["url"] == f"{hub.url}/jobs/ada/{job['job_id']}"
    assert job["model_url"] == f"{hub.url}/ada/tiny-docs"
    assert job["dashboard_url"] == f"{hub.url}/spaces/ada/trackio"
    [request] = jobs_created(hub)
    assert request["flavor"] == "l4x1"
    assert request["timeoutSeconds"] == 5400
    assert list(request["secrets"]) == ["HF_TOKEN"]
    assert request["environment"]["UNSLOTH_DISABLE_CPU_FALLBACK"] == "1"
    assert request["labels"]["unsloth-jobs-plan"] == shown["plan_id"]
    command = " ".join(request["command"])
    for argument in (*ARGUMENTS, f"--dataset-revision={shown['plan']['dataset_revision']}", "--output-repo=ada/tiny-docs"):
        assert argument in command
    assert hub.leaks(ADA) == []


def test_the_same_plan_is_paid_for_once(hub, commands):
    shown = plan(commands)
    first = plan(commands, "--approve", shown["plan_id"], code=0)
    again = plan(commands, "--approve", shown["plan_id"], code=0)
    assert again["job_id"] == first["job_id"]
    assert again["existed"] is True
    assert len(jobs_created(hub)) == 1


def test_a_failed_job_may_be_submitted_again(hub, commands):
    shown = plan(commands)
    first = plan(commands, "--approve", shown["plan_id"], code=0)
    hub.jobs.wait(first["job_id"])
    hub.jobs.set(first["job_id"], stage="ERROR", message="Job failed with exit code: 1")
    assert plan(commands, "--approve", shown["plan_id"], code=0)["job_id"] != first["job_id"]


def test_what_changed_after_the_approval_is_refused_and_said(hub, commands, tmp_path):
    script = tmp_path / "mine.py"
    script.write_bytes(SFT.read_bytes())
    shown = plan(commands, script=script)
    approve = ["--approve", shown["plan_id"]]
    more = tmp_path / "more"
    more.mkdir()
    (more / "extra.jsonl").write_text("{}")

    refused = plan(commands, *approve, script=script, arguments=[*ARGUMENTS, "--lora-r", "8"])
    assert "arguments" in refused["problems"][0]["message"]
    hub.add_repo("ada/docs", more, type="dataset")
    assert "dataset_revision" in plan(commands, *approve, script=script)["problems"][0]["message"]
    script.write_text(script.read_text() + "\n# another script\n")
    assert "script_sha256" in plan(commands, *approve, script=script)["problems"][0]["message"]
    assert "flavor" in plan(commands, *approve, "--flavor", "h200", script=script)["problems"][0]["message"]
    assert plan(commands, "--approve", "no-such-plan", script=script)["problems"][0]["code"] == "unknown_plan"
    assert not jobs_created(hub)


def test_a_plan_over_the_ceiling_is_refused(hub, commands):
    refused = plan(commands, "--flavor", "h200", "--timeout", "4h", "--yes", "--max-usd", "5")
    assert refused["problems"][0]["code"] == "over_budget"
    assert "$20.00" in refused["problems"][0]["message"]
    assert plan(commands, "--yes", code=2)["problems"][0]["code"] == "no_ceiling"
    assert not jobs_created(hub)


@pytest.mark.parametrize(
    ("token", "options", "code", "problem"),
    [
        (READER, [], 4, "token_cannot_write"),
        (FINE, [], 4, "token_cannot_write"),
        ("hf_nobodynobody", [], 4, "bad_token"),
        (None, [], 4, "no_token"),
        (ADA, ["--namespace", "microsoft"], 4, "not_a_member"),
        (ADA, ["--flavor", "h900"], 2, "unknown_flavor"),
        (ADA, ["--timeout", "soon"], 2, "bad_timeout"),
        (ADA, ["--timeout", "10"], 2, "bad_timeout"),
        (BROKE, ["--yes", "--max-usd", "10"], 4, "no_credit"),
    ],
)
def test_what_the_hub_would_refuse_is_said_before(hub, tmp_path, token, options, code, problem):
    commands = Commands(hub.env(token=token), tmp_path)
    refused = plan(commands, *options, code=code)
    assert refused["ok"] is False
    assert refused["problems"][0]["code"] == problem
    assert refused["problems"][0]["fix"]
    assert not jobs_created(hub)


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["--base-model", "ada/tinny", "--dataset", "ada/docs"], 1, "not_found"),
        (["--base-model", "ada/tiny", "--dataset", "ada/dogs"], 1, "not_found"),
        (["--base-model", "./nowhere", "--dataset", "ada/docs"], 1, "local_model"),
        (["--base-model", "ada/tiny", "--dataset", "ada/docs", "--epochs", "3"], 2, "bad_arguments"),
        (["--base-model", "ada/tiny"], 2, "bad_arguments"),
        (["--base-model", "ada/tiny", "--dataset", "nosuch.csv"], 1, "not_found"),
    ],
)
def test_arguments_that_cannot_run_are_refused(hub, commands, arguments, code, problem):
    assert plan(commands, arguments=arguments, code=code)["problems"][0]["code"] == problem


def test_an_organisation_pays_and_owns(hub, commands):
    job = plan(commands, "--namespace", "acme", "--yes", "--max-usd", "9", code=0)
    assert job["model_url"].endswith("/acme/tiny-docs")
    assert hub.jobs.get(job["job_id"]).owner == "acme"


def test_rows_on_this_machine_travel_with_the_job(hub, commands, tmp_path):
    (tmp_path / "support.jsonl").write_bytes(ROWS.read_bytes())
    arguments = ["--base-model", "ada/tiny", "--dataset", "support.jsonl"]
    job = plan(commands, "--yes", "--max-usd", "9", arguments=arguments, code=0)
    assert "/data/" in " ".join(hub.jobs.get(job["job_id"]).spec["command"])
    assert [path for path in hub.files("ada/jobs-artifacts", type="bucket") if path.endswith("support.jsonl")]


def test_a_hub_that_is_down_costs_nothing_and_says_so(tmp_path):
    commands = Commands({"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": ADA, "HF_HOME": str(tmp_path)}, tmp_path)
    refused = plan(commands, code=4)
    assert refused["problems"][0]["code"] == "hub_unreachable"


def test_status_and_logs_of_a_hub_job(hub, commands):
    job = plan(commands, "--yes", "--max-usd", "9", code=0)["job_id"]
    hub.jobs.wait(job)
    progress = {"event": "progress", "step": 30, "total_steps": 120, "loss": 1.25, "eta_s": 300}
    hub.jobs.set(job, stage="RUNNING", logs=[f"EVENT {json.dumps(progress)}", f"token {ADA} \x1b[31mred\x1b[0m"])
    status = commands.json("status.py", job)
    assert (status["stage"], status["eta_s"]) == ("RUNNING", 300)
    assert status["progress"] == {"step": 30, "total_steps": 120, "loss": 1.25, "eval_loss": None}
    assert status["spent_usd"] > 0
    assert status["diagnosis"] is None
    log = commands.run("logs.py", job).stdout
    assert "token hf_*** red" in log
    assert progress in [json.loads(line)["event"] for line in commands.run("logs.py", job, "--json").stdout.splitlines()]

    hub.jobs.set(
        job, stage="ERROR", message="Job failed with exit code: 1", logs=["torch.OutOfMemoryError: CUDA out of memory."]
    )
    status = commands.json("status.py", job, code=1)
    assert status["diagnosis"]["code"] == "out_of_vram"
    assert "--gradient-accumulation" in status["next"]
    assert [one["job_id"] for one in commands.json("status.py", "--all")["jobs"]] == [job]


def test_a_job_is_cancelled(hub, commands):
    job = plan(commands, "--yes", "--max-usd", "9", code=0)["job_id"]
    hub.jobs.wait(job)
    hub.jobs.set(job, stage="RUNNING")
    assert commands.json("status.py", job, "--cancel")["stage"] == "CANCELED"


def test_an_unknown_job_is_said(hub, commands):
    assert commands.json("status.py", "0" * 24, code=1)["problems"][0]["code"] == "unknown_job"
    assert commands.json("logs.py", "local-1", code=1)["problems"][0]["code"] == "unknown_job"
    assert commands.json("status.py", code=2)["problems"][0]["code"] == "no_job"


def test_the_printed_command_starts_exactly_the_plan(hub, commands):
    """Also with the script's flags given without `--`, as `hf jobs uv run` takes them."""
    shown = commands.run("submit.py", str(SFT), "--timeout", "1h30m", *ARGUMENTS, code=3).stdout
    command = shown.strip().splitlines()[-1]
    words = shlex.split(command)
    assert words[:2] == ["uv", "run"]
    commands.run("submit.py", *words[3:])
    [request] = jobs_created(hub)
    assert request["timeoutSeconds"] == 5400
    assert request["labels"]["unsloth-jobs-plan"] in command


def test_a_timeout_says_what_is_kept(hub, commands):
    job = plan(commands, "--yes", "--max-usd", "9", code=0)
    hub.jobs.wait(job["job_id"])
    hub.jobs.set(job["job_id"], stage="ERROR", message="Job timeout")
    assert "No checkpoint had been pushed" in commands.json("status.py", job["url"], code=1)["next"]
    hub.jobs.set(job["job_id"], logs=['EVENT {"event": "checkpoint", "step": 40, "pushed": true}'])
    assert "step 40 is in ada/tiny-docs" in commands.json("status.py", job["url"], code=1)["next"]
