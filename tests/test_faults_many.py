"""Faults by chance, many times over: no run is lost, none is paid twice, and a watch leaks nothing."""

# ruff: noqa: F811 (fixtures are those of test_faults.py)

from __future__ import annotations

import random
import subprocess
import sys
import time

import psutil
from commands import Said
from conftest import ROOT
from hub import Hub
from hubs import ADA
from test_faults import ARTIFACTS, JOB, Impatient, approved_anew, hub, job, jobs_of, new_plan, no_fault_is_left, server  # noqa: F401
from test_faults_running import progress

CYCLES, SEED = 200, 7
ANYWHERE = [
    {"path": "whoami", "status": 429, "headers": {"Retry-After": "60"}},
    {"path": "/api/jobs/hardware", "status": 502},
    {"path": JOB, "method": "POST", "status": 500},
    {"path": JOB, "method": "POST", "status": 500, "handled": True},
    {"path": JOB, "method": "POST", "drop": "before"},
    {"path": JOB, "method": "POST", "drop": "after"},
    {"path": JOB, "method": "POST", "status": 200, "body": "<html>", "handled": True},
    {"path": JOB, "method": "GET", "status": 503},
    {"path": f"{ARTIFACTS}/batch", "status": 403},
    {"path": "/api/jobs/ada/[^/]+$", "drop": "before"},
    {"path": "/logs", "drop": "during"},
    {"path": "/logs", "status": 500},
]


GROUP_EVERY = 20  # cycles
VARIED = ("2", "4", "8")  # of a comparison's runs, --lora-r


def new_group() -> list[str]:
    """The words of a comparison that no other test has made."""
    words = new_plan()
    at = words.index("--")
    return [*words[:at], "--max-usd", "99", "--vary", f"lora-r={','.join(VARIED)}", *words[at:]]


def is_known(told: Said) -> bool:
    """Whether every job that was asked for is known to be there."""
    return told.returncode == 0 and not told.json.get("not_submitted")


def submit_amid_faults(hub: Hub, server: Impatient, words: list[str], runs: int) -> tuple[Said, list[str]]:
    """A submit, repeated as its own fixes say, and its words in the end: with a new approval where one was used up."""
    for _ in range(10):
        told = server("submit", *words, patience_s=0.05)
        if is_known(told):
            break
        assert (told.returncode, bool(told.problem)) == (4, True), told
        assert len(jobs_of(hub, words)) <= runs
        if told.problem == "submit_unclear" and len(jobs_of(hub, words)) < runs:
            hub.faults.clear()
            words = approved_anew(server, words)
    assert is_known(told)
    hub.faults.clear()
    return told, words


def test_two_hundred_runs_with_random_faults_lose_none_and_double_none(hub, tmp_path):
    """Single ones, and comparisons of three among them."""
    chance, script = random.Random(SEED), tmp_path / "short.py"
    script.write_text("print('done')")
    server = Impatient(hub.env(token=ADA), tmp_path)
    plans, jobs = [], []
    for cycle in range(CYCLES):
        is_group = cycle % GROUP_EVERY == 0
        words = new_group() if is_group else new_plan(script)
        for fault in chance.sample(ANYWHERE, chance.choice((0, 1, 1, 2))):
            hub.faults.add(**fault, times=chance.choice((1, 2)))
        told, words = submit_amid_faults(hub, server, words, len(VARIED) if is_group else 1)
        known = [job["job_id"] for job in told.json["jobs"]] if is_group else [told.json["job_id"]]
        if chance.random() < 0.5:
            hub.faults.add(**chance.choice(ANYWHERE), times=1)
        for one in known:
            hub.jobs.wait(one)
        name = told.json["group_id"] if is_group else known[0]
        if is_group or chance.random() < 0.5:
            looked = server(chance.choice(("status", "status" if is_group else "logs")), name, patience_s=0.05)
            assert looked.returncode in (0, 4)
        hub.faults.clear()
        plans.append(words)
        jobs.append(sorted(known))
    assert [sorted(one.id for one in jobs_of(hub, words)) for words in plans] == jobs
    listed = [one["job_id"] for one in server("status", "--all").json["jobs"]]
    assert sorted(listed) == sorted(one for known in jobs for one in known)


UPDATES, WARM_UP = 60, 15
GROWTH = 4 << 20  # bytes that a watch may hold more after 60 updates: at 70 kB each, an hour of them


def test_a_watch_leaks_nothing(hub, server, job):
    hub.jobs.set(job, stage="RUNNING", logs=[progress(step) for step in range(10)])
    for fault in ANYWHERE[-3:]:
        hub.faults.add(**fault, skip=10, times=2)
        hub.faults.add(**fault, skip=WARM_UP + 10, times=2)
    hub.journal.clear()
    command = [sys.executable, str(ROOT / "scripts" / "status.py"), job, "--watch", "--interval", "0.1"]
    with subprocess.Popen(command, cwd=server.cwd, env=server.env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as watch:
        process, held, seen = psutil.Process(watch.pid), [], 0
        for count in (WARM_UP, WARM_UP + UPDATES):
            while (updates := len(hub.journal.requests(path=f"/{job}$"))) < count:
                assert watch.poll() is None, watch.stderr.read()
                if updates > seen:  # not all the time: a log is read for as long as lines come
                    hub.jobs.set(job, logs=[progress(updates)])
                seen = updates
                time.sleep(0.02)
            held.append((process.num_fds(), process.memory_info().rss))
        hub.jobs.set(job, stage="COMPLETED")
        assert watch.wait() == 0
    (files, memory), (later_files, later_memory) = held
    assert later_files <= files + 2
    assert later_memory <= memory + GROWTH, f"{(later_memory - memory) / 2**20:.0f} MB more"
