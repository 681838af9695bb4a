"""One approval, at most one paid job, never above the ceiling: attacks on that, with the real client against the test Hub."""

# ruff: noqa: F811 (a fixture's name is an argument's)

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from commands import Commands
from conftest import ROOT
from hub import Hub
from hub.hardware import HARDWARE
from hubs import ADA
from huggingface_hub import HfApi
from test_submit import hub, jobs_created, plan, pytestmark  # noqa: F401 (a fixture, and what it is made of)
from unsloth_jobs.estimate.flavors import snapshot_flavors

JOB = "^/api/jobs/ada$"
YES = ["--yes", "--max-usd", "9"]


def home(commands: Commands) -> Path:
    return Path(commands.env["HF_HOME"]) / "unsloth-jobs"


def elsewhere(hub: Hub, commands: Commands) -> Commands:
    """The same user on another machine."""
    return Commands(hub.env(token=ADA), commands.cwd, settings=commands.settings)


# ---- one approval, at most one job


def test_a_submission_that_is_carried_out_late_is_not_paid_for_twice(hub, commands):
    """The Hub gives the connection up and starts the job afterwards, as after a POST that hung."""
    hub.faults.add(method="POST", path=JOB, status=504, times=1)
    approved = ["--approve", plan(commands)["plan_id"]]
    refused = plan(commands, *approved, code=4)["problems"][0]
    assert refused["code"] == "submit_unclear"
    assert "may still appear" in refused["message"] and "No job" not in refused["message"]
    again = plan(commands, *approved, code=4)["problems"][0]
    assert (again["code"], len(jobs_created(hub))) == ("submit_unclear", 0)
    assert "--all" in again["fix"] and "submit.py" in again["fix"]

    new = plan(commands)
    assert ["--approve", new["plan_id"]] != approved and "may still appear" in new["problems"][0]["message"]
    labels = {"unsloth-jobs-plan": approved[1]}
    late = HfApi(endpoint=hub.url, token=ADA).run_job(image="x", command=["x"], flavor="l4x1", labels=labels, namespace="ada")
    assert plan(commands, *approved, code=0)["job_id"] == late.id
    changed = plan(commands, "--approve", new["plan_id"], code=3)["problems"][0]  # there is no need of a second any more
    assert (changed["code"], "start" in changed["message"]) == ("plan_changed", True)
    assert len(jobs_created(hub)) == 1


def test_a_hub_that_cannot_be_reached_any_more_has_started_nothing_and_may_be_asked_again(hub, commands):
    """What never left this machine, or was refused, uses no approval up."""
    approved = ["--approve", plan(commands)["plan_id"]]
    for how in ({"status": 402, "body": {"error": "No credit"}}, {"status": 429}, {"status": 400, "body": {"error": "no"}}):
        hub.faults.add(method="POST", path=JOB, times=1, **how)
        assert plan(commands, *approved, code=4)["problems"][0]["code"] in ("no_credit", "rate_limited", "refused")
    assert plan(commands, *approved, code=0)["existed"] is False
    assert len(jobs_created(hub)) == 1


@pytest.mark.parametrize("body", ["[]", "{}", '[{"id": "x"}]', "null", "[null]"])
def test_a_list_of_jobs_that_is_empty_or_garbled_leads_to_no_second_job(hub, commands, body):
    first = plan(commands, *YES, code=0)
    hub.faults.add(method="GET", path=JOB, status=200, body=json.loads(body) if body != "null" else "null")
    assert plan(commands, *YES, code=0)["job_id"] == first["job_id"]
    other = elsewhere(hub, commands)
    other_says = plan(other, *YES, code=4)["problems"][0]["code"]
    assert other_says in ("submit_unclear", "hub_garbled")
    hub.faults.clear()
    assert plan(other, *YES, code=0)["job_id"] == first["job_id"]
    assert len(jobs_created(hub)) == 1


def test_a_stage_that_this_version_does_not_know_is_paid_for(hub, commands):
    first = plan(commands, *YES, code=0)
    hub.jobs.wait(first["job_id"])
    hub.jobs.set(first["job_id"], stage="QUEUED")
    for machine in (commands, elsewhere(hub, commands)):
        again = plan(machine, *YES, code=0)
        assert (again["job_id"], again["stage"]) == (first["job_id"], "QUEUED")
    assert len(jobs_created(hub)) == 1


def test_a_hub_that_overlooks_the_label_names_no_other_plan_s_job(hub, commands):
    first = plan(commands, *YES, code=0)
    select = hub.jobs.select
    hub.jobs.select = lambda namespace, stages=(), labels=None: select(namespace, stages)
    other = plan(commands, "--timeout", "1h", *YES, code=0)
    assert other["existed"] is False and other["job_id"] != first["job_id"]


def test_the_same_approval_on_four_machines_starts_one_job(hub, commands):
    hub.faults.add(method="POST", path=JOB, delay=1.5)
    commands.settings = {}  # they wait until the job of the first is listed
    machines = [elsewhere(hub, commands) for _ in range(4)]
    told: list[dict] = []
    threads = [threading.Thread(target=lambda one=one: told.append(plan(one, *YES, code=0))) for one in machines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one["existed"] for one in told) == [False, True, True, True]
    assert len({one["job_id"] for one in told}) == len(jobs_created(hub)) == 1
    assert hub.store.repos["dataset", "ada/unsloth-jobs-plans"].private


def test_a_claim_without_a_job_is_refused_and_planned_anew(hub, commands):
    """Another machine took the plan and has not been heard of since."""
    plan(commands, "--timeout", "1h", *YES, code=0)  # which makes the repository of claims
    shown = plan(commands)
    claims = hub.store.repos["dataset", "ada/unsloth-jobs-plans"]
    claims.tags[shown["plan_id"]] = claims.head.sha
    assert plan(commands, "--approve", shown["plan_id"], code=4)["problems"][0]["code"] == "submit_unclear"
    new = plan(commands)["plan_id"]
    assert new != shown["plan_id"]
    assert plan(commands, "--approve", new, code=0)["existed"] is False


@pytest.mark.parametrize("where", ["create", "/tag/"])
def test_a_claim_that_fails_starts_nothing(hub, commands, where):
    hub.faults.add(method="POST", path=where + "|/tag/main" if where == "create" else where, status=500)
    assert plan(commands, *YES, code=4)["problems"][0]["code"] == "hub_error"
    hub.faults.clear()
    assert not jobs_created(hub)
    assert plan(commands, *YES, code=0)["existed"] is False


@pytest.mark.parametrize("body", ["null", [], {}, "<html>"])
def test_a_job_that_is_answered_with_something_else_is_found(hub, commands, body):
    hub.faults.add(method="POST", path=JOB, status=200, body=body, handled=True, times=1)
    assert plan(commands, *YES, code=0)["existed"] is False
    assert len(jobs_created(hub)) == 1
    job = next(iter(hub.jobs)).id
    hub.faults.add(method="GET", path=f"/{job}$", status=200, body=body)
    assert commands.json("status.py", job, code=4)["problems"][0]["code"] == "hub_garbled"


# ---- what was approved is what runs


class Asked:
    """A submit whose question waits for an answer, on a terminal."""

    def __init__(self, commands: Commands, *words: str):
        self.screen, terminal = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "scripts" / "submit.py"), *words],
            cwd=commands.cwd,
            env=commands.env | {"TERM": "dumb"},
            stdin=terminal,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.text = ""
        while "Start it?" not in self.text:
            read = self.process.stdout.read(1)
            assert read, self.text
            self.text += read

    def answer(self, text: str) -> tuple[int, str]:
        os.write(self.screen, text.encode())
        out, _ = self.process.communicate(timeout=300)
        return self.process.returncode, out


@pytest.mark.parametrize("what", ["script", "rows", "gone", "price", "nothing"])
def test_what_changes_while_the_question_waits_does_not_run(hub, commands, tmp_path, what):
    script, rows = tmp_path / "mine.py", tmp_path / "rows.jsonl"
    script.write_text("print('approved')")
    rows.write_text('{"text": "approved"}')
    asked = Asked(commands, "mine.py", "--", "--dataset", "rows.jsonl")
    if what == "script":
        script.write_text("print('another')")
    elif what == "rows":
        rows.write_text('{"text": "another"}')
    elif what == "gone":
        rows.unlink()
    elif what == "price":
        info = HARDWARE["l4x1"].info() | {"unitCostUSD": 0.5}
        hub.faults.add(path="/api/jobs/hardware", status=200, body=[info])
    code, said = asked.answer("y\n")
    if what == "nothing":
        assert code == 0, said
        files = {path.rsplit("/", 1)[1]: file.read_text() for path, file in bucket(hub).items()}
        assert files == {"mine.py": script.read_text(), "rows.jsonl": rows.read_text()}
        assert next(iter(hub.jobs)).spec["command"] == ["uv", "run", "/data/mine.py", "--dataset", "/data/rows.jsonl"]
        assert not list((home(commands) / "sent").glob("*"))
    else:
        assert (code, "plan_changed" in said) == (3, True), said
        assert not jobs_created(hub) and not bucket(hub)


def bucket(hub: Hub) -> dict[str, Path]:
    exists = "ada/jobs-artifacts" in hub.store.buckets
    return hub.files("ada/jobs-artifacts", type="bucket") if exists else {}


def test_what_changes_amid_the_upload_is_not_what_is_uploaded(hub, commands, tmp_path):
    (tmp_path / "mine.py").write_text("print('approved')")
    hub.faults.add(method="POST", path="^/api/buckets/create|^/api/buckets/ada/jobs-artifacts$", delay=1.5, times=1)
    words = [sys.executable, str(ROOT / "scripts" / "submit.py"), "mine.py", *YES]
    submitting = subprocess.Popen(words, cwd=tmp_path, env=commands.env, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list((home(commands) / "sent").glob("*/0")) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    (tmp_path / "mine.py").write_text("print('another')")
    assert submitting.wait(300) == 0
    [sent] = bucket(hub).values()
    assert sent.read_text() == "print('approved')"


def test_a_file_that_any_argument_names_is_part_of_the_plan(hub, commands, tmp_path):
    (tmp_path / "mine.py").write_text("print()")
    (tmp_path / "questions.txt").write_text("one")
    words = ["--prompts", "questions.txt"]
    shown = plan(commands, script=tmp_path / "mine.py", arguments=words)
    (tmp_path / "questions.txt").write_text("two")
    refused = plan(commands, "--approve", shown["plan_id"], script=tmp_path / "mine.py", arguments=words)
    assert refused["problems"][0]["code"] == "plan_changed"


# ---- never above the ceiling


@pytest.mark.parametrize("ceiling", ["nan", "inf", "-inf", "-1", "1e400"])
def test_a_ceiling_that_is_no_sum_is_refused(hub, commands, ceiling):
    for words in (["--flavor", "h200x8", "--timeout", "1d", "--yes"], ["--where", "local"]):
        refused = plan(commands, *words, f"--max-usd={ceiling}", code=2)["problems"][0]
        assert refused["code"] == "bad_ceiling"
    watched = commands.run("status.py", "0" * 24, "--watch", f"--max-usd={ceiling}", code=2)
    assert "--max-usd" in watched.stderr
    assert not jobs_created(hub)


@pytest.mark.parametrize(
    ("flavor", "timeout", "most"),
    [("cpu-basic", "17m", 0.01), ("h200", "61s", 0.17), ("l4x1", "4h", 3.20), ("l4x1", "1s", 0.02), ("a10g-small", "2h", 2.0)],
)
def test_what_a_run_costs_at_most_counts_begun_minutes_and_cents(hub, commands, flavor, timeout, most):
    made = plan(commands, "--flavor", flavor, "--timeout", timeout)["plan"]
    assert made["max_usd"] == pytest.approx(most, abs=1e-9)
    assert made["max_usd"] >= (made["usd_per_minute"] - 0.5e-6) * made["timeout_s"] / 60  # which is stated to a millionth
    refused = plan(commands, "--flavor", flavor, "--timeout", timeout, "--yes", "--max-usd", str(round(most - 0.01, 2)))
    assert refused["problems"][0]["code"] == "over_budget"
    assert not re.search(r"--timeout (0m|-)", refused["problems"][0]["fix"])
    assert not jobs_created(hub)


def test_the_timeout_that_a_refusal_offers_is_within_the_ceiling(hub, commands):
    for flavor, ceiling in (("h200", "5"), ("l4x1", "0.55"), ("t4-small", "0.01"), ("cpu-basic", "0.011")):
        refused = plan(commands, "--flavor", flavor, "--timeout", "3d", "--max-usd", ceiling)["problems"][0]
        offered = re.search(r"--timeout (\d+m)", refused["fix"])[1]
        assert plan(commands, "--flavor", flavor, "--timeout", offered, "--max-usd", ceiling)["plan"]


def test_an_empty_timeout_is_none(commands):
    assert plan(commands, "--timeout=", code=2)["problems"][0]["code"] == "bad_timeout"


PRICES = [0, -1.5, float("nan"), float("inf"), "0.01", None, True]


@pytest.mark.parametrize("price", PRICES, ids=str)
def test_a_price_that_makes_no_sense_stops_its_own_flavor_alone(hub, commands, price):
    items = [machine.info() for machine in HARDWARE.values()]
    odd = next(item for item in items if item["name"] == "h200")
    odd["unitCostUSD"] = price
    hub.faults.add(path="/api/jobs/hardware", status=200, body=items)
    refused = plan(commands, "--flavor", "h200", *YES, code=4)["problems"][0]
    assert (refused["code"], "h200" in refused["message"]) == ("unknown_price", True)
    assert plan(commands, *YES, code=0)["job_id"]
    assert [request["flavor"] for request in jobs_created(hub)] == ["l4x1"]


def test_a_flavor_that_is_priced_by_the_hour_stops_no_other(hub, commands):
    items = [machine.info() for machine in HARDWARE.values()]
    next(item for item in items if item["name"] == "h200")["unitLabel"] = "hour"
    hub.faults.add(path="/api/jobs/hardware", status=200, body=items)
    assert "per hour" in plan(commands, "--flavor", "h200", code=4)["problems"][0]["message"]
    assert plan(commands)["plan"]["flavor"] == "l4x1"


@pytest.mark.parametrize("body", ["null", {}, [None], "<html>"])
def test_a_list_of_hardware_of_another_shape_is_said(hub, commands, body):
    hub.faults.add(path="/api/jobs/hardware", status=200, body=body)
    assert plan(commands, code=4 if body != {} else 2)["problems"][0]["code"] in ("hub_garbled", "unknown_flavor")


def test_a_recommended_ceiling_pays_for_the_recommended_run():
    for flavor in snapshot_flavors()[0]:
        for timeout_s in (1, 59, 60, 1200, 4 * 3600, 259_200):
            most = flavor.most_usd(timeout_s)
            assert most * 100 == pytest.approx(round(most * 100), abs=1e-6)
            assert flavor.affordable_s(most) >= timeout_s - 59
            assert flavor.most_usd(max(flavor.affordable_s(most), 60)) <= max(most, flavor.most_usd(60))


# ---- a job is watched and ended


@pytest.fixture
def running(hub, commands) -> str:
    job = plan(commands, *YES, code=0)["job_id"]
    hub.jobs.wait(job)
    hub.jobs.set(job, stage="RUNNING")
    return job


def cancels(hub: Hub) -> int:
    return len(hub.journal.requests(method="POST", path="/cancel$"))


def test_a_cancel_counts_when_the_job_has_ended_and_not_before(hub, commands, running):
    hub.faults.add(method="POST", path="cancel$", status=200, body="<html>", times=1)
    hub.faults.add(method="POST", path="cancel$", status=200, body={}, times=1)
    status = commands.json("status.py", running, "--watch", "--max-usd", "0", "--interval", "0.2")
    assert (status["stage"], cancels(hub)) == ("CANCELED", 3)


def test_cancel_goes_on_until_the_job_has_ended(hub, commands, running):
    hub.faults.add(method="POST", path="cancel$", status=200, body="<html>", times=2)
    assert commands.json("status.py", running, "--cancel")["stage"] == "CANCELED"
    assert cancels(hub) == 3
    ended = commands.run("status.py", running, "--cancel")
    assert "has ended already (CANCELED)" in ended.stderr
    assert cancels(hub) == 3


def test_a_job_that_ends_amid_its_cancel_is_no_error(hub, commands, running):
    hub.faults.add(method="POST", path="cancel$", status=400, body={"error": "already in a terminal state"}, handled=True)
    assert commands.json("status.py", running, "--cancel")["stage"] == "CANCELED"


def test_a_wrong_owner_is_said_and_leads_to_no_second_run(hub, commands, running):
    for words in ([running, "--namespace", "acme"], [f"{hub.url}/jobs/acme/{running}"]):
        for more in ([], ["--cancel"]):
            problem = commands.json("status.py", *words, *more, code=1)["problems"][0]
            assert problem["code"] == "unknown_job"
            assert "acme" in problem["message"] and "for ada" in problem["message"] and "resume" not in problem["fix"]
    assert [one["stage"] for one in commands.json("status.py", "--all", "--namespace", "acme")["jobs"]] == ["RUNNING"]
    assert commands.json("status.py", running)["stage"] == "RUNNING"
