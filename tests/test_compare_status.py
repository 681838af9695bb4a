"""status.py GROUP: how a comparison goes, what it costs, and what comes next."""

from __future__ import annotations

import json
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
from hubs import ADA, event
from test_compare import ARGUMENTS, FOUR, approve, done, jobs_created, plan, started
from tiny_models import zero_adapter
from unsloth_jobs.events import summarise
from unsloth_jobs.jobs.job import Job
from unsloth_jobs.status.group import GroupStatus, RunStatus
from unsloth_jobs.status.group_view import curves
from unsloth_jobs.status.status import Status

pytestmark = pytest.mark.hub(model="shape")


def log_of(rate: float, steps: int, total: int = 20, pushed: bool = True) -> list[str]:
    """A run's log up to a step: evaluated each fifth, saved each fifth."""
    lines = [event("eval", step=0, eval_loss=4.0)]
    for step in range(1, steps + 1):
        lines.append(event("progress", step=step, total_steps=total, loss=4 - rate * step, tokens=100 * step, eta_s=60))
        if step % 5 == 0:
            lines.append(event("eval", step=step, eval_loss=4 - rate * step))
            lines.append(event("checkpoint", step=step, pushed=pushed, path="x"))
    return lines


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
