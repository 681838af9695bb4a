"""Faults by chance, many times over: no run is lost, none is paid twice, and a watch leaks nothing."""

# ruff: noqa: F811 (fixtures are those of test_faults.py)

from __future__ import annotations

import random
import subprocess
import sys
import time

import psutil
from conftest import ROOT
from hubs import ADA
from test_faults import (  # noqa: F401
    ARTIFACTS,
    JOB,
    Impatient,
    approved_anew,
    hub,
    job,
    jobs_of,
    new_plan,
    no_fault_is_left,
    progress,
    server,
)

CYCLES, SEED = 100, 7
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


def test_a_hundred_runs_with_random_faults_lose_none_and_double_none(hub, tmp_path):
    chance, script = random.Random(SEED), tmp_path / "short.py"
    script.write_text("print('done')")
    server = Impatient(hub.env(token=ADA), tmp_path)
    plans, jobs = [], []
    for _ in range(CYCLES):
        words = new_plan(script)
        for fault in chance.sample(ANYWHERE, chance.choice((0, 1, 1, 2))):
            hub.faults.add(**fault, times=chance.choice((1, 2)))
        for _ in range(6):
            told = server("submit", *words, patience_s=0.05)
            if told.returncode == 0:
                break
            assert (told.returncode, bool(told.problem)) == (4, True), told
            if told.problem == "submit_unclear" and not jobs_of(hub, words):
                hub.faults.clear()
                words = approved_anew(server, words)
        assert told.returncode == 0
        hub.faults.clear()
        if chance.random() < 0.5:
            hub.faults.add(**chance.choice(ANYWHERE), times=1)
        hub.jobs.wait(told.json["job_id"])
        looked = server("status", told.json["job_id"], patience_s=0.05)
        read = server("logs", told.json["job_id"], patience_s=0.05)
        assert {looked.returncode, read.returncode} <= {0, 4}
        hub.faults.clear()
        plans.append(words)
        jobs.append(told.json["job_id"])
    assert [[job.id for job in jobs_of(hub, words)] for words in plans] == [[job] for job in jobs]
    listed = [one["job_id"] for one in server("status", "--all").json["jobs"]]
    assert sorted(listed) == sorted(jobs)


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
