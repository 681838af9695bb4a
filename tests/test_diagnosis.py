"""Each log in tests/logs is read as status.py reads it: the failing ones name their cause, the healthy ones none.

A log's head says which cause, where it comes from (a real run, or the thread that quotes it), and how the job ended.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
import sft
from conftest import ROOT, ROWS, SFT, Commands
from hub import Hub
from hypothesis import given, settings
from hypothesis import strategies as st
from unsloth_jobs import events
from unsloth_jobs.diagnosis import AT_END, CAUSES, CHANGES, IN_ERROR, IN_MESSAGE, NEXT, WRAPPERS, diagnose
from unsloth_jobs.jobs import Job
from unsloth_jobs.plan import Plan

LOGS = sorted((ROOT / "tests" / "logs").glob("*.txt"))
ADA = "hf_adaadaadaada"


@dataclasses.dataclass(frozen=True)
class Log:
    cause: str
    source: str
    stage: str
    message: str
    lines: list[str]

    @classmethod
    def read(cls, path: Path) -> Log:
        head, _, body = path.read_text("utf-8").partition("\n\n")
        facts = dict(line.removeprefix("# ").split(":", 1) for line in head.splitlines())
        return cls(*(facts[name].strip() for name in ("cause", "source", "stage", "message")), body.splitlines())

    @property
    def job(self) -> Job:
        return job(self.stage, self.message)


def job(stage: str = "ERROR", message: str = "Job failed with exit code: 1", job_id: str = "6871f2a0b0c4d5e6f7a8b9c0") -> Job:
    return Job(job_id, stage, message, "https://huggingface.co/jobs/ada/1", "a10g-small", None, None, None)


PLAN = Plan(
    where="hf",
    script=str(SFT),
    script_sha256="0" * 64,
    arguments=("--base-model", "ada/tiny", "--dataset", "ada/docs"),
    flavor="a10g-small",
    timeout_s=7200,
    usd_per_minute=0.0167,
    max_usd=2.0,
    namespace="ada",
    secrets=("HF_TOKEN",),
    model="ada/tiny",
    model_revision=None,
    dataset="ada/docs",
    dataset_revision=None,
    output_repo="ada/out",
    output_dir=None,
    trackio_space=None,
)


@pytest.mark.parametrize("path", LOGS, ids=lambda path: path.stem)
def test_a_log_names_its_cause_and_no_other(path):
    log = Log.read(path)
    found = diagnose(log.job, events.summarise(log.lines), PLAN)
    assert (found.code if found else "none") == log.cause
    if found:
        assert found.message.endswith((".", "!", "…")) or log.cause in ("unknown", "template_refuses", "bad_arguments"), found.message
        assert found.fix and found.command
        assert "{" not in found.message.split("The last thing said")[0]
        assert shlex.split(found.command)[0] in ("uv", "hf")


def test_every_cause_has_a_log_that_shows_it_and_every_log_a_source():
    logs = [Log.read(path) for path in LOGS]
    assert {cause.code for cause in CAUSES} <= {log.cause for log in logs} | {"no_credit", "forbidden", "unknown_revision", "checkpoint_broken", "install_failed"}
    assert all(len(log.source) > 10 for log in logs)
    assert len({cause.code for cause in CAUSES}) >= 25
    assert len([log for log in logs if log.cause == "none"]) >= 8
