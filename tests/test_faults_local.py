"""Faults of a run on this machine: its terminal, its runner, its log and its folder."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from commands import Commands
from conftest import ROOT, ROWS, SFT
from faults import PATIENCE_S, shows
from hubs import ADA
from test_local_jobs import SCRIPT, said, start
from tiny_models import shape_of_a_model

# ---- on this machine


@pytest.fixture
def local(tmp_path: Path) -> Commands:
    (tmp_path / "script.py").write_text(SCRIPT)
    return Commands({"HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": ADA, "HF_HUB_OFFLINE": "1"}, tmp_path)


def folder_of(local: Commands, job: str) -> Path:
    return local.cwd / "hf" / "unsloth-jobs" / "jobs" / job


def state_of(local: Commands, job: str) -> dict[str, Any]:
    return json.loads((folder_of(local, job) / "state.json").read_text())


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@shows(terminal_closed="COMPLETED")
def test_a_closed_terminal_ends_no_run(local):
    """The terminal's shell and all of its process group get SIGHUP, as from a window that is closed."""
    submit = f"{sys.executable} {ROOT}/scripts/submit.py script.py --where local --yes --json -- 2 0; sleep 600"
    shell = subprocess.Popen(
        ["env", "--default-signal=HUP", "bash", "-c", submit],
        cwd=local.cwd,
        env=local.env,
        text=True,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    job = json.loads(shell.stdout.readline())["job_id"]
    os.killpg(shell.pid, signal.SIGHUP)
    assert shell.wait(PATIENCE_S) == -signal.SIGHUP
    assert local.json("status.py", job, "--watch")["stage"] == "COMPLETED"


@shows(rebooted="ERROR", stale_pid="ERROR")
@pytest.mark.parametrize("pid", [None, os.getpid()], ids=["free", "another's"])
def test_a_machine_that_was_restarted_has_ended_the_run(local, pid):
    job = start(local, 0)
    wait_until(lambda: state_of(local, job)["stage"] == "COMPLETED")
    process = {"pid": pid or 2**22 + 1, "process_created": time.time() - 9e6}  # Linux gives no larger number than 2**22
    before = state_of(local, job) | process | {"stage": "RUNNING", "child": process}
    (folder_of(local, job) / "state.json").write_text(json.dumps(before))
    log = folder_of(local, job) / "log.txt"  # it ended amid the run, so no result was told of
    log.write_text("".join(line for line in log.read_text().splitlines(True) if '"done"' not in line))
    status = local.json("status.py", job, code=1)
    assert (status["stage"], "restarted" in status["message"]) == ("ERROR", True)
    local.run("status.py", job, "--cancel", code=1)  # which ends no process that is another's
    assert psutil.Process(os.getpid()).is_running()
    assert start(local, 0) != job


def test_a_run_whose_runner_was_killed_goes_on_printing_and_keeps_its_log(local):
    (local.cwd / "script.py").write_text(TALKS)
    job = start(local, 3)
    said(local, job, "hello")
    runner = psutil.Process(state_of(local, job)["pid"])
    runner.kill()
    wait_until(lambda: (local.cwd / "kept").exists())
    said(local, job, "last line")
    log = (folder_of(local, job) / "log.txt").read_text()
    assert ADA not in log and "hf_***" in log.splitlines()[-1]


TALKS = """
import os, sys, time
print("hello", flush=True)
until = time.monotonic() + float(sys.argv[1])
while time.monotonic() < until:
    print("x" * 100, flush=True)
    time.sleep(0.01)
print("last line", os.environ["HF_TOKEN"], flush=True)
open("kept", "w").write("kept")
"""


def test_a_run_whose_runner_stands_still_is_not_said_to_have_ended(local):
    job = start(local, 60)
    said(local, job, "hello")
    runner = psutil.Process(state_of(local, job)["pid"])
    runner.suspend()
    problem = local.json("status.py", job, "--cancel", code=1)["problems"][0]
    assert (problem["code"], f"kill -CONT {runner.pid}" in problem["fix"]) == ("runner_stopped", True)
    runner.resume()
    assert local.json("status.py", job, "--watch")["stage"] == "CANCELED"
    assert "ended already" in local.run("status.py", job, "--cancel").stderr


@shows(runner_killed="RUNNING")
def test_a_run_whose_runner_was_killed_is_seen_and_can_be_ended(local):
    job = start(local, 60)
    said(local, job, "hello")
    state = state_of(local, job)
    child = psutil.Process(state["child"]["pid"])
    psutil.Process(state["pid"]).kill()
    status = local.json("status.py", job)
    assert (status["stage"], str(child.pid) in status["message"]) == ("RUNNING", True)
    assert start(local, 60) == job  # it runs, so it is not started a second time
    assert local.json("status.py", job, "--cancel")["stage"] == "CANCELED"
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


@shows(never_started="ERROR")
def test_a_job_that_was_never_started_is_said_and_holds_nothing_up(local):
    first = start(local, 0)
    wait_until(lambda: state_of(local, first)["stage"] == "COMPLETED")
    state, folder = folder_of(local, first) / "state.json", folder_of(local, "local-20990101-000000-beef")
    folder.mkdir()  # without a state: the disk was full just then
    state.write_text(json.dumps({"stage": "SCHEDULING", "created": time.time() - 600}))
    status = local.json("status.py", first, code=1)
    assert "never started" in status["message"]
    assert local.json("status.py", folder.name, code=1)["stage"] == "ERROR"
    assert start(local, 0) != first


CHATTY = """
import sys
for line in range(2000):
    print("line", line, flush=True)
open("result", "w").write("kept")
"""


@shows(log_full="COMPLETED")
def test_a_log_that_cannot_grow_costs_its_end_and_not_the_run(local):
    (local.cwd / "chatty.py").write_text(CHATTY)
    words = ["chatty.py", "--where", "local", "--yes", "--json"]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # noqa: E731
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "submit.py"), *words],
        cwd=local.cwd, env=local.env, preexec_fn=limit, capture_output=True, text=True,
    )  # fmt: skip
    job = json.loads(done.stdout)["job_id"]
    assert local.json("status.py", job, "--watch")["stage"] == "COMPLETED"
    assert (local.cwd / "result").read_text() == "kept"
    assert (folder_of(local, job) / "log.txt").stat().st_size <= 4096


@shows(same_folder="folder_in_use")
def test_two_runs_do_not_write_to_one_folder(local):
    # A run that is there as long as it is asked about, however slow the machine: it waits where it would train, and so
    # needs no libraries.
    waiting = re.sub(r"(?s)# /// script.*?# ///\n", "", SFT.read_text("utf-8"), count=1)
    waiting = waiting.replace("    settings = parse_args()\n", "    settings = parse_args()\n    time.sleep(600)\n")
    (local.cwd / "waiting.py").write_text(waiting, encoding="utf-8")
    model = shape_of_a_model(local.cwd / "model")
    words = ["--base-model", str(model), "--dataset", str(ROWS), "--save-local", "out"]
    submit = ["submit.py", "waiting.py", "--where", "local", "--yes", "--"]
    first = local.json(*submit, *words)["job_id"]
    try:
        refused = local.json(*submit, *words, "--max-steps", "5", code=2)["problems"][0]
        assert refused["code"] == "folder_in_use" and first in refused["message"]
        assert local.json(*submit, *words)["job_id"] == first
    finally:
        local.run("status.py", first, "--cancel", code=None)
