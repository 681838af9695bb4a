"""Every script runs with each warning an error: what a library calls deprecated today is gone in its next version."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from commands import Commands
from conftest import ROOT, ROWS, SFT
from hubs import ADA

SCRIPTS = [path.relative_to(ROOT) for folder in ("scripts", "templates") for path in sorted((ROOT / folder).glob("*.py"))]


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_help_warns_of_nothing(script):
    command = [sys.executable, "-W", "error", str(ROOT / script), "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_run_from_check_to_logs_warns_of_nothing(hub, tmp_path):
    """PYTHONWARNINGS is -W for the processes that a command starts, too."""
    commands = Commands(hub.env(token=ADA) | {"PYTHONWARNINGS": "error"}, tmp_path)
    train = ["--base-model", "ada/tiny", "--dataset", "ada/docs"]
    said = [
        commands.run("check.py", "ada/tiny", "ada/docs"),
        commands.run("check.py", "ada/tiny", str(ROWS), "--where", "local"),
        commands.run("estimate.py", "ada/tiny", "ada/docs", "--epochs", "1"),
        started := commands.run("submit.py", str(SFT), "--timeout", "9h", "--yes", "--max-usd", "90", "--", *train),
    ]
    job = re.search(r"Started: (\w+)", started.stdout).group(1)
    hub.jobs.wait(job)
    hub.jobs.set(job, stage="COMPLETED", logs=['EVENT {"event": "done", "steps": 1}'])
    said += [commands.run("status.py", job), commands.run("status.py", "--all"), commands.run("logs.py", job)]
    assert [line for done in said for line in done.stderr.splitlines() if "Warning" in line] == []


@pytest.mark.slow
def test_a_job_on_this_machine_warns_of_nothing(tmp_path):
    (tmp_path / "script.py").write_text("import sys; print(sys.warnoptions)")
    commands = Commands({"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "error"}, tmp_path)
    job = commands.json("submit.py", "script.py", "--where", "local", "--timeout", "1m", "--yes")["job_id"]
    assert commands.json("status.py", job, "--watch")["stage"] == "COMPLETED"
    assert commands.run("logs.py", job).stdout == "['error']\n"
    assert [path.read_text() for path in (tmp_path / "hf").rglob("runner.txt")] == [""]
