"""How a run is watched: curve, money, warnings, waiting, a Hub that is down; in a real terminal, against the test Hub."""

from __future__ import annotations

import json
import math
import os
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from fcntl import ioctl
from pathlib import Path
from xml.etree import ElementTree

import pyte
import pytest
from commands import Commands
from conftest import ROOT, SFT
from hub import Hub
from hubs import event
from unsloth_jobs.jobs.job import Job

START = 1_800_000_000.0


def progress(step: int, loss: float, total: int = 100, pace: float = 10.0, **values) -> str:
    """A step of a run that takes `pace` seconds a step, by the job's clock."""
    said = {"step": step, "total_steps": total, "loss": loss, "eta_s": (total - step) * pace, "time": START + step * pace}
    return event("progress", **said | values)


def checkpoint(step: int, pace: float = 10.0) -> str:
    return event("checkpoint", step=step, pushed=True, time=START + step * pace)


# ---- what the log says


# ---- the chart


# ---- warnings


def job(stage: str = "RUNNING", minutes: float = 60, **values) -> Job:
    began = datetime.now(UTC) - timedelta(minutes=minutes)
    started = began if stage != "SCHEDULING" else None
    return Job("6871f2a0b0c4d5e6f7a8b9c0", stage, None, "", "l4x1", began, started, None, **values)


def heard(seconds_ago: float, step: int = 5, gap: float = 10) -> list[str]:
    """A healthy log whose newest event is so old."""
    newest = time.time() - seconds_ago
    return [progress(at, 3 - at / 10, time=newest - (step - at) * gap) for at in range(1, step + 1)]


# ---- the ceiling


# ---- money


# ---- waiting


# ---- against the test Hub, as a user runs it


pytestmark = pytest.mark.hub(model="shape", scheduling=30)  # jobs wait for their machine, unless they are led by hand
ARGUMENTS = ["--base-model", "ada/tiny", "--dataset", "ada/docs"]


@pytest.fixture
def submitted(hub: Hub, commands: Commands) -> str:
    """A job that waits for its machine."""
    return commands.json("submit.py", str(SFT), "--flavor", "l4x1", "--yes", "--max-usd", "9", "--", *ARGUMENTS)["job_id"]


def run_for(hub: Hub, job: str, minutes: float, logs: list[str]) -> None:
    """Let a job be at this minute of its run."""
    hub.jobs.get(job).started = time.time() - minutes * 60
    hub.jobs.set(job, stage="RUNNING", logs=logs)


def watching(commands: Commands, *words: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "status.py"), *words, "--watch", "--interval", "0.2"],
        cwd=commands.cwd,
        env=commands.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(true: Callable[[], bool], patience_s: float = 60) -> None:
    deadline = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_status_of_a_run_is_strict_json_with_its_curve_and_warnings(hub, commands, submitted):
    log = [event("eval", step=0, eval_loss=math.nan), progress(1, 2.0, time=time.time()), progress(2, math.nan)]
    run_for(hub, submitted, 30, log)
    said = commands.run("status.py", submitted, "--json").stdout
    status = json.loads(said, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert status["curve"] == {"loss": [[1, 2.0], [2, None]], "eval_loss": [[0, None]]}
    [warning] = status["warnings"]
    assert warning["code"] == "loss_not_finite"
    assert status["spent_usd"] == pytest.approx(0.4, abs=0.02)  # half an hour at 80 cents


def test_what_a_run_cost_is_held_against_its_estimate(hub, commands, submitted, tmp_path):
    record = next((Path(commands.env["HF_HOME"]) / "unsloth-jobs/runs").glob("*.json"))
    estimate = {"usd_low": 0.30, "usd_high": 0.95, "hours_low": 0.4, "hours_high": 1.2}
    record.write_text(json.dumps(json.loads(record.read_text()) | {"estimate": estimate}))
    run_for(hub, submitted, 31.5, [])
    hub.jobs.set(submitted, stage="COMPLETED", logs=[event("done", repo="ada/tiny-docs")])
    assert "cost $0.42, estimated $0.30 to $0.95" in commands.run("status.py", submitted).stdout
    listed = commands.json("status.py", "--all")
    assert listed["spent_usd"] == pytest.approx(0.42, abs=0.01)
    table = commands.run("status.py", "--all").stdout
    assert "$0.30 to $0.95" in table
    assert "Spent in all: $0.42" in table


def test_a_job_submitted_elsewhere_is_counted_at_todays_price(hub, commands, submitted, tmp_path):
    run_for(hub, submitted, 60, [])
    hub.jobs.set(submitted, stage="COMPLETED")
    elsewhere = Commands(commands.env | {"HF_HOME": str(tmp_path / "elsewhere")}, tmp_path)
    assert elsewhere.json("status.py", submitted)["spent_usd"] == pytest.approx(0.8, abs=0.01)
    assert "$0.80 at today's price" in elsewhere.run("status.py", submitted).stdout


def test_a_long_wait_says_what_else_there_is_and_how_to_move(hub, commands, submitted):
    assert commands.json("status.py", submitted)["warnings"] == []
    hub.jobs.get(submitted).created -= 25 * 60
    status = commands.json("status.py", submitted)
    [warning] = status["warnings"]
    assert warning["code"] == "waiting"
    assert "25 min" in warning["message"] and "not billed" in warning["message"]
    assert status["waited_s"] > 1499
    assert status["spent_usd"] == 0
    assert status["alternatives"][0] == {
        "flavor": "a10g-small", "usd_per_hour": 1.0, "usd_low": None, "usd_high": None
    }  # fmt: skip
    cancel, submit = re.search(r"uv run (\S+ \S+ --cancel); .*: uv run (.+)$", warning["fix"]).groups()
    twice = commands.json("submit.py", *shlex.split(submit)[1:], code=2)  # both would write to one repository
    assert [problem["code"] for problem in twice["problems"]] == ["repo_in_use"]
    commands.run("status.py", *shlex.split(cancel)[1:])
    assert hub.jobs.get(submitted).stage == "CANCELED"
    moved = commands.json("submit.py", *shlex.split(submit)[1:], code=3)
    assert moved["plan"]["flavor"] == "a10g-small"
    assert moved["plan"]["model"] == "ada/tiny"


def test_a_watcher_outlives_a_hub_that_is_down(hub, commands, submitted):
    run_for(hub, submitted, 5, [progress(1, 2.0)])
    watcher = watching(commands, submitted, "--json")
    assert watcher.stderr.readline().startswith("RUNNING step 1/100 loss 2.0")
    down = hub.faults.add(path=r"^/api/jobs/", status=503)
    told = watcher.stderr.readline()
    assert "hub_error" in told
    assert down.hits
    hub.faults.clear()
    hub.jobs.set(submitted, stage="COMPLETED", logs=[event("done", repo="ada/tiny-docs")])
    out, error = watcher.communicate(timeout=300)
    assert watcher.returncode == 0, error
    status = json.loads(out)
    assert (status["stage"], status["warnings"]) == ("COMPLETED", [])


def test_a_log_that_cannot_be_read_does_not_hide_the_stage(hub, commands, submitted):
    run_for(hub, submitted, 30, [])
    hub.faults.add(path=r"/logs$", status=500)
    assert [one["code"] for one in commands.json("status.py", submitted)["warnings"]] == ["log_unread"]  # and not "silent"
    hub.jobs.set(submitted, stage="COMPLETED", logs=[event("done", repo="ada/tiny-docs")])
    status = commands.json("status.py", submitted)
    assert (status["stage"], status["warnings"][0]["code"]) == ("COMPLETED", "log_unread")
    hub.faults.clear()
    assert commands.json("status.py", submitted)["result"]["repo"] == "ada/tiny-docs"
    [run] = (Path(commands.env["HF_HOME"]) / "unsloth-jobs/runs").glob("*.json")
    assert json.loads(run.read_text())["outcome"]["done"]  # what was kept waits for the log


def test_a_watcher_gives_up_on_what_does_not_pass(hub, commands, submitted):
    run_for(hub, submitted, 5, [progress(1, 2.0)])
    watcher = watching(commands, submitted)
    watcher.stderr.readline()
    hub.faults.add(path=r"^/api/jobs/", status=401)
    _, error = watcher.communicate(timeout=300)
    assert watcher.returncode == 4
    assert "bad_token" in error


def test_a_run_is_cancelled_after_it_has_saved_and_before_its_ceiling(hub, commands, submitted):
    """At 80 cents an hour $0.50 pays for 37 minutes; a checkpoint takes 10, and the Hub fails when it is told to cancel."""
    save = [line for step in range(1, 21) for line in (progress(step, 2.0, pace=60), *([checkpoint(10, 60)] * (step == 10)))]
    run_for(hub, submitted, 30, save)  # at step 20, with the checkpoint of step 20 to come
    watcher = watching(commands, submitted, "--max-usd", "0.50", "--json")
    watcher.stderr.readline()
    time.sleep(0.5)
    assert hub.jobs.get(submitted).stage == "RUNNING"
    failing = hub.faults.add(path=r"/cancel$", status=503, times=1)
    hub.jobs.set(submitted, logs=[checkpoint(20, 60)])
    out, error = watcher.communicate(timeout=300)
    assert watcher.returncode == 0, error
    assert failing.hits == 1
    status = json.loads(out)
    assert status["stage"] == "CANCELED"
    assert "step 20" in status["ended_because"]
    assert "step 20 is in ada/tiny-docs" in status["next"]
    assert "--resume" in status["next"]
    assert status["spent_usd"] < 0.5
    assert len(hub.journal.requests(method="POST", path=r"/cancel$")) == 2


def test_a_run_that_ends_before_its_ceiling_is_left_alone(hub, commands, submitted):
    log = [progress(1, 2.0, total=30, pace=60), progress(10, 2.0, total=30, pace=60), checkpoint(10, 60)]
    run_for(hub, submitted, 13, [*log, progress(29, 2.0, total=30, pace=60)])
    watcher = watching(commands, submitted, "--max-usd", "0.25", "--json")  # pays for 18 minutes
    watcher.stderr.readline()
    time.sleep(0.5)
    hub.jobs.set(submitted, stage="COMPLETED")
    out, _ = watcher.communicate(timeout=300)
    assert json.loads(out)["stage"] == "COMPLETED"
    assert not hub.journal.requests(method="POST", path=r"/cancel$")


def test_at_the_ceiling_a_run_ends_whatever_it_has_saved(hub, commands, submitted):
    run_for(hub, submitted, 37, [progress(1, 2.0)])
    status = commands.json("status.py", submitted, "--watch", "--max-usd", "0.49", "--interval", "0.2")
    assert (status["stage"], status["ended_because"]) == ("CANCELED", "The ceiling is reached. --max-usd 0.49 was allowed.")
    assert "No checkpoint had been pushed" in status["next"]
    assert "--resume" not in status["next"]


def test_a_ceiling_needs_a_watcher(commands):
    assert commands.json("status.py", "0" * 24, "--max-usd", "1", code=2)["problems"][0]["code"] == "no_watch"


def test_a_ceiling_needs_a_price(hub, commands, submitted, tmp_path):
    run_for(hub, submitted, 5, [])
    hub.jobs.get(submitted).spec["flavor"] = "h900"
    elsewhere = Commands(commands.env | {"HF_HOME": str(tmp_path / "elsewhere")}, tmp_path)
    refused = elsewhere.json("status.py", submitted, "--watch", "--max-usd", "1", code=2)
    assert refused["problems"][0]["code"] == "no_price"
    assert hub.jobs.get(submitted).stage == "RUNNING"


def test_all_lists_what_can_no_longer_be_asked_about_with_its_cost(hub, commands, submitted):
    run_for(hub, submitted, 30, [])
    hub.jobs.set(submitted, stage="COMPLETED", logs=[event("done", repo="ada/tiny-docs")])
    commands.run("status.py", submitted)
    hub.faults.add(path=rf"/{submitted}", status=404, body={"error": "Job not found"})
    [listed] = commands.json("status.py", "--all")["jobs"]
    assert (listed["stage"], listed["result"]["repo"]) == ("COMPLETED", "ada/tiny-docs")
    assert listed["spent_usd"] == pytest.approx(0.4, abs=0.02)
    assert listed["warnings"]


def test_all_warns_of_a_run_that_is_silent(hub, commands, submitted):
    run_for(hub, submitted, 30, heard(900))
    error = commands.run("status.py", "--all").stderr
    assert "silent" in error and f"{submitted}: No event for 15 minutes" in error


# ---- on this machine


SAVES_WHEN_TOLD = """
import json, signal, sys, time
def say(name, **values):
    print("EVENT " + json.dumps({"event": name, "time": time.time(), **values}), flush=True)
def end(*_):
    say("checkpoint", step=2, path="out/checkpoint-2", pushed=False)
    sys.exit(1)
signal.signal(signal.SIGTERM, end)
say("progress", step=1, total_steps=9, loss=0.5, eta_s=900)
time.sleep(60)
"""


@pytest.mark.slow
def test_a_job_on_this_machine_saves_when_its_ceiling_is_reached(tmp_path):
    """It costs nothing: a price is written into its record, as that of a rented machine."""
    (tmp_path / "script.py").write_text(SAVES_WHEN_TOLD)
    commands = Commands({"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}, tmp_path)
    job = commands.json("submit.py", "script.py", "--where", "local", "--yes", "--timeout", "2m")["job_id"]
    until(lambda: "progress" in commands.run("logs.py", job).stdout)
    record = tmp_path / "hf/unsloth-jobs/runs" / f"{job}.json"
    run = json.loads(record.read_text())
    free = watching(commands, job, "--max-usd", "0.01")
    assert "step 1/9" in free.stderr.readline()  # what costs nothing goes on
    free.kill()
    free.communicate()
    record.write_text(json.dumps(run | {"plan": run["plan"] | {"usd_per_minute": 1.0}}))
    watching(commands, job, "--max-usd", "0.01").communicate(timeout=300)
    status = commands.json("status.py", job)
    assert status["stage"] == "CANCELED"
    assert "checkpoint" in commands.run("logs.py", job).stdout


# ---- the README's pictures, made by demo/pictures.py


@pytest.mark.parametrize("name", ["check", "estimate", "status"])
def test_a_picture_is_small_shows_its_command_and_loads_nothing(name):
    path = ROOT / "demo" / "pictures" / f"{name}.svg"
    drawn = path.read_text("utf-8")
    assert f"demo/pictures/{name}.svg" in (ROOT / "README.md").read_text()
    assert len(drawn) < 60_000
    assert f"scripts/{name}.py" in "".join(ElementTree.fromstring(drawn).itertext()).replace("\xa0", " ")
    assert not re.search(r"@import|href|url\((?!#)", drawn)
    assert not re.search(r"/(home|root|tmp|Users|work)\b", drawn)


# ---- in a terminal


class Terminal:
    """A command in a terminal of its own, and the screen as its user sees it."""

    def __init__(self, commands: Commands, *words: str, columns: int = 80, rows: int = 40):
        self.screen = pyte.Screen(columns, rows)
        self.stream = pyte.ByteStream(self.screen)
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.chdir(commands.cwd)
            os.execve(sys.executable, [sys.executable, *words], commands.env | {"TERM": "xterm-256color", "LANG": "C.UTF-8"})
        ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self) -> None:
        while select.select([self.terminal], [], [], 60)[0]:
            try:
                self.stream.feed(os.read(self.terminal, 65536))
            except OSError:  # its other end is closed
                return

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display).strip()

    def shows(self, *texts: str) -> None:
        try:
            until(lambda: all(text in self.text for text in texts))
        except AssertionError:
            raise AssertionError(f"not on the screen: {texts}\n{self.text}") from None

    def press_ctrl_c(self) -> None:
        os.write(self.terminal, b"\x03")

    def wait(self) -> int:
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.reader.join(10)
        os.close(self.terminal)
        return code


def live(commands: Commands, job: str, *words: str, **size) -> Terminal:
    return Terminal(commands, str(ROOT / "scripts" / "status.py"), job, "--watch", "--interval", "0.2", *words, **size)


def test_the_live_view_shows_stage_bar_curve_and_money_until_the_end(hub, commands, submitted):
    terminal = live(commands, submitted)
    terminal.shows("SCHEDULING", "waits for a machine", "not billed")
    log = [event("eval", step=0, eval_loss=3.2)] + [progress(step, 3.2 - step / 40, time=time.time()) for step in range(1, 41)]
    run_for(hub, submitted, 12, log)
    terminal.shows("RUNNING  training", "40/100", "training 2.2000", "● held-out (base model) 3.2000", "10 min left")
    terminal.shows("$0.16", "of at most $3.20")
    assert re.search(r"3\.2 │●.*\n(.*│.*\n)+.*└step 0 +40", terminal.text), terminal.text
    hub.jobs.set(submitted, logs=[progress(60, 1.5, time=time.time()), event("eval", step=60, eval_loss=1.9)])
    terminal.shows("60/100", "● held-out 1.9000")
    hub.faults.add(path=r"^/api/jobs/", status=503)
    terminal.shows("warning", "hub_error", "until it answers")
    hub.faults.clear()
    hub.jobs.set(submitted, stage="COMPLETED", logs=[event("done", base_loss=3.2, tuned_loss=1.4, repo="ada/tiny-docs")])
    assert terminal.wait() == 0
    assert terminal.text.count("COMPLETED") == 1
    assert "RUNNING" not in terminal.text  # the live table is replaced, not left above
    assert "cost $0.16" in terminal.text
    assert "3.2000 → 1.4000" in terminal.text


def test_a_small_terminal_and_a_loss_that_is_no_number_break_nothing(hub, commands, submitted):
    run_for(hub, submitted, 1, [progress(1, math.nan, time=time.time()), progress(2, math.nan, time=time.time())])
    terminal = live(commands, submitted, columns=36, rows=12)
    terminal.shows("RUNNING", "nan")
    hub.jobs.set(submitted, stage="COMPLETED")
    assert terminal.wait() == 0


def test_ctrl_c_leaves_the_job_running_and_says_how_to_come_back(hub, commands, submitted):
    run_for(hub, submitted, 5, [progress(5, 2.0, time=time.time())])
    terminal = live(commands, submitted, "--max-usd", "2", columns=160)
    terminal.shows("5/100")
    terminal.press_ctrl_c()
    assert terminal.wait() == 130
    assert "The job goes on, and no longer ends at $2" in terminal.text
    assert "Traceback" not in terminal.text
    assert hub.jobs.get(submitted).stage == "RUNNING"
    again = re.search(r"To end it: uv run (\S+) (\S+ --cancel)", terminal.text).groups()
    commands.run("status.py", *again[1].split())
    assert hub.jobs.get(submitted).stage == "CANCELED"


def test_a_watcher_that_is_told_to_end_leaves_the_job(hub, commands, submitted):
    run_for(hub, submitted, 5, [progress(5, 2.0, time=time.time())])
    watcher = watching(commands, submitted, "--json")
    watcher.stderr.readline()
    watcher.send_signal(signal.SIGINT)
    out, error = watcher.communicate(timeout=300)
    assert watcher.returncode == 130, error
    assert json.loads(out)["stage"] == "RUNNING"
    assert "The job goes on" in error
