"""Jobs on this machine: they outlive the command, keep a log and an exit status, and end at their timeout."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from commands import Commands

SCRIPT = """
import json, os, sys, time
print("hello", os.environ.get("HF_TOKEN", "no token"), flush=True)
print("EVENT " + json.dumps({"event": "progress", "step": 1, "total_steps": 2, "loss": 0.5, "eta_s": 9}), flush=True)
time.sleep(float(sys.argv[1]))
print("EVENT " + json.dumps({"event": "done", "path": "/tuned"}), flush=True)
sys.exit(int(sys.argv[2]))
"""
TOKEN = "hf_localtokenlocal"


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    (tmp_path / "script.py").write_text(SCRIPT)
    return Commands({"HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1"}, tmp_path)


def start(commands: Commands, seconds: float, code: int = 0, timeout: str = "1m") -> str:
    words = ["submit.py", "script.py", "--where", "local", "--timeout", timeout, "--yes", "--", str(seconds), str(code)]
    return commands.json(*words)["job_id"]


def ended(commands: Commands, job: str, code: int = 0) -> dict:
    return commands.json("status.py", job, "--watch", code=code)


def said(commands: Commands, job: str, text: str) -> None:
    """Wait until the job has printed this."""
    deadline = time.monotonic() + 300
    while text not in commands.run("logs.py", job).stdout:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_job_outlives_its_submission_and_is_read_to_its_end(commands):
    job = start(commands, 1)
    status = ended(commands, job)
    assert status["stage"] == "COMPLETED"
    assert status["progress"]["step"] == 1
    assert status["spent_usd"] == 0
    assert "/tuned" in status["next"]
    lines = commands.run("logs.py", job, "--follow").stdout.splitlines()
    assert lines[0] == "hello hf_***"
    assert commands.run("logs.py", job, "--tail", "1").stdout.splitlines() == lines[-1:]


def test_nothing_that_was_written_holds_the_token(commands, tmp_path):
    ended(commands, start(commands, 0))
    files = [path for path in (tmp_path / "hf").rglob("*") if path.is_file()]
    assert len(files) >= 5
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]
    assert not [path for path in files if path.suffix == ".json" and path.stat().st_mode & 0o077]


def test_a_failing_job_says_so(commands):
    status = ended(commands, start(commands, 0, code=3), code=1)
    assert (status["stage"], status["message"]) == ("ERROR", "Job failed with exit code: 3")
    assert status["diagnosis"]["code"] == "unknown"


def test_a_job_ends_at_its_timeout(commands):
    status = ended(commands, start(commands, 60, timeout="2s"), code=1)
    assert (status["stage"], status["message"]) == ("ERROR", "Job timeout")
    assert status["diagnosis"]["code"] == "timeout"


def test_a_job_is_cancelled(commands):
    job = start(commands, 60)
    said(commands, job, "hello")
    commands.run("status.py", job, "--cancel")
    assert ended(commands, job)["stage"] == "CANCELED"


def test_a_killed_runner_is_noticed(commands, tmp_path):
    job = start(commands, 4)
    said(commands, job, "hello")
    state = json.loads((tmp_path / "hf/unsloth-jobs/jobs" / job / "state.json").read_text())
    os.kill(state["pid"], signal.SIGKILL)
    os.kill(state["child"]["pid"], signal.SIGKILL)
    status = ended(commands, job, code=1)
    assert "gone" in status["message"]


def test_a_run_that_finished_after_its_runner_was_killed_is_completed(commands, tmp_path):
    job = start(commands, 3)
    said(commands, job, "hello")
    state = json.loads((tmp_path / "hf/unsloth-jobs/jobs" / job / "state.json").read_text())
    os.kill(state["pid"], signal.SIGKILL)
    status = ended(commands, job)
    assert status["stage"] == "COMPLETED" and "exit status" in status["message"]
    assert "/tuned" in status["next"] and not status["diagnosis"]
    assert 2 < status["elapsed_s"] < 60  # it does not go on


ODD = [  # what another version, a disk that was full or a hand may leave
    [],
    {},
    "RUNNING",
    {"stage": "RUNNING"},
    {"stage": None, "created": 1},
    {"stage": "RUNNING", "created": "yesterday"},
    {"stage": "RUNNING", "created": 1, "pid": "7", "process_created": 1},
    {"stage": "RUNNING", "created": 1, "pid": 7},
    {"stage": "RUNNING", "created": 1, "pid": 7, "process_created": 1, "child": []},
    {"stage": "COMPLETED", "created": 1e300, "started": 1, "finished": {}},
    {"stage": "COMPLETED", "created": 1, "message": ["fine"]},
    {"version": 2, "state": {"stage": "RUNNING"}},
]


def test_a_state_of_another_shape_is_named_and_hides_no_other_job(commands, tmp_path):
    job = start(commands, 0)
    ended(commands, job)
    jobs = tmp_path / "hf/unsloth-jobs/jobs"
    (jobs / "local-file").touch()
    odd = []
    for number, state in enumerate(ODD):
        odd.append(f"local-20990101-00000{number:x}-beef")
        (jobs / odd[-1]).mkdir()
        (jobs / odd[-1] / "state.json").write_text(json.dumps(state))
        (jobs / odd[-1] / "job.json").write_text(json.dumps({"plan_id": ["x"], "output_dir": 3} if number % 2 else []))
        run = json.loads((jobs.parent / "runs" / f"{job}.json").read_text()) | {"job_id": odd[-1]}
        (jobs.parent / "runs" / f"{odd[-1]}.json").write_text(json.dumps(run))
    listed = {one["job_id"]: one for one in commands.json("status.py", "--all")["jobs"]}
    assert listed.keys() == {job, *odd} and listed[job]["stage"] == "COMPLETED"
    for number, (name, state) in enumerate(zip(odd, ODD, strict=True)):
        assert str(jobs / name) in listed[name]["message"], state
        if number % 4 == 1:
            assert listed[name] | {"elapsed_s": 0} == commands.json("status.py", name, code=1) | {"elapsed_s": 0}
        assert json.loads((jobs / name / "state.json").read_text()) == state  # left as it is
    commands.run("status.py", odd[8], "--cancel", code=1)
    assert start(commands, 0) not in odd


def test_the_same_plan_does_not_run_twice_at_once(commands):
    first = start(commands, 20)
    assert start(commands, 20) == first
    commands.run("status.py", first, "--cancel")
    ended(commands, first)
    again = start(commands, 20)
    assert again != first
    commands.run("status.py", again, "--cancel")


def test_all_jobs_are_listed_newest_first(commands):
    jobs = [start(commands, 0), start(commands, 0, timeout="2m")]
    for job in jobs:
        ended(commands, job)
    assert [one["job_id"] for one in commands.json("status.py", "--all")["jobs"]] == jobs[::-1]
    assert "COMPLETED" in commands.run("status.py", "--all").stdout
