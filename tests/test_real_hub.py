"""`make test-hub` finds a field that differs and leaves nothing behind. The real Hub is a second test Hub here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from hub import Hub
from hub.hardware import Hardware
from hubs import ADA, hub_of_ada


@pytest.fixture
def real(tmp_path: Path) -> Iterator[Hub]:
    with hub_of_ada(tmp_path / "real", execute_jobs=True, scheduling=0.1) as hub:
        yield hub


def start(real: Hub, yes: str = "1") -> subprocess.CompletedProcess:
    env = {**os.environ, **real.env(token=ADA), "YES": yes}
    program = [sys.executable, str(ROOT / "tests" / "real_hub.py")]
    return subprocess.run(program, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def compare(real: Hub, code: int, yes: str = "1") -> str:
    done = start(real, yes)
    assert done.returncode == code, done.stdout + done.stderr
    assert ADA not in done.stdout + done.stderr
    assert real.leaks(ADA) == []
    assert not real.store.repos and not real.store.buckets and all(job.is_finished for job in real.jobs)
    return done.stdout


def test_the_test_hub_is_like_itself(real):
    said = compare(real, code=0)
    assert "at most 2 minutes, $0.0003" in said
    assert "no difference" in said and "DIFFERS" not in said and "more " not in said
    assert "13 calls" in said or "14 calls" in said
    assert [job.stage for job in real.jobs] == ["CANCELED"]


def test_a_renamed_field_and_another_type_are_found(real, monkeypatch):
    info = Hardware.info

    def changed(self: Hardware) -> dict:
        found = info(self)
        found["disk"] = found.pop("ephemeralStorage")
        return found | {"unitCostMicroUSD": str(found["unitCostMicroUSD"])}

    monkeypatch.setattr(Hardware, "info", changed)
    said = compare(real, code=1).splitlines()
    call = "GET /api/jobs/hardware[]"
    assert f"DIFFERS {call}: `ephemeralStorage` is in the test Hub's answer, not in the real one's" in said
    assert f"more    {call}: `disk` is in the real Hub's answer only" in said
    assert f"DIFFERS {call}: unitCostMicroUSD: string on the real Hub, number on the test Hub" in said


def test_what_was_made_is_deleted_where_a_call_fails(real):
    real.faults.add(path="/api/jobs/ada", status=403)
    compare(real, code=4)
    assert real.journal.requests("DELETE", "/api/buckets")


def test_what_could_not_be_deleted_is_named(real):
    real.faults.add(path="/api/repos/delete", status=403)
    said = start(real)
    assert said.returncode == 4
    assert re.search(r"Not deleted: ada/unsloth-jobs-test-\w+, the repository", said.stderr)
    assert not real.store.buckets and all(job.is_finished for job in real.jobs)


def test_nothing_is_made_without_a_yes(real):
    compare(real, code=3, yes="")
    assert {record.method for record in real.journal.requests()} == {"GET"}
