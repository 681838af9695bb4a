"""Faults while a run trains: its own, the Hub's, the machine's."""

# ruff: noqa: F811 (fixtures are those of test_faults.py)

from __future__ import annotations

import json
import re
import shlex
import threading
import time

import pytest
import sft
from faults import shows
from hubs import ADA, event
from huggingface_hub import HfApi
from test_faults import hub, job, no_fault_is_left, server  # noqa: F401


def progress(step: int) -> str:
    return event("progress", step=step, total_steps=40, loss=1.5, eta_s=60)


@shows(log_down="RUNNING", log_dropped="RUNNING", log_frozen="RUNNING", log_repeats="RUNNING")
@pytest.mark.parametrize(
    ("fault", "step"), [({"status": 500}, None), ({"drop": "during"}, 7), ({}, 9)], ids=["down", "dropped", "frozen"]
)
def test_the_stage_is_told_whatever_the_log_does(hub, server, job, fault, step):
    hub.jobs.get(job).logs.clear()
    hub.jobs.set(job, stage="RUNNING", logs=[progress(7)])
    if fault:
        hub.faults.add(path="/logs", **fault)
    hub.jobs.set(job, logs=[progress(9)] * 3)  # lines that are sent again
    said = server("status", job)
    assert (said.returncode, said.json["stage"]) == (0, "RUNNING")
    assert said.json["progress"]["step"] in ((7, 9) if step == 7 else (step,))


def test_a_log_that_ends_early_is_followed_to_its_end(hub, server, job):
    hub.jobs.get(job).logs.clear()
    hub.jobs.set(job, stage="RUNNING", logs=["one", "two"])
    hub.journal.clear()
    hub.faults.add(path="/logs", drop="during", times=1)

    def go_on() -> None:
        while len(hub.journal.requests(path="/logs")) < 2:  # the second goes on where the first was cut off
            time.sleep(0.01)
        hub.jobs.set(job, stage="COMPLETED", logs=["three"])

    threading.Thread(target=go_on, daemon=True).start()
    said = server("logs", job, "--follow", patience_s=2)
    assert said.returncode == 0
    assert [json.loads(line)["line"] for line in said.stdout.splitlines()] == ["one", "two", "three"]


@shows(restarted="RUNNING")
def test_what_ended_the_first_attempt_is_not_what_ends_the_second(hub, server, job):
    first = [event("plan"), progress(3), event("failed", code="no_gpu", message="no GPU", fix="Submit it again")]
    hub.jobs.set(job, logs=[*first, event("plan"), progress(5)])
    hub.jobs.set(job, stage="RUNNING")
    found = server("status", job).json
    assert (found["diagnosis"], found["progress"]["step"], found["eta_s"]) == (None, 5, 60)
    hub.jobs.set(job, stage="ERROR", message="Job failed with exit code: 137. Reason: OOMKilled")
    assert server("status", job).json["diagnosis"]["code"] == "out_of_ram"


@shows(preempted="ERROR", cancelled="CANCELED", deleted="job_deleted")
def test_what_others_do_to_a_job_is_said_with_what_is_kept(hub, server, job):
    hub.jobs.set(job, logs=[event("checkpoint", step=12, pushed=True)], stage="ERROR", message="Preempted")
    said = server("status", job)
    assert (said.returncode, said.json["stage"], said.json["message"]) == (1, "ERROR", "Preempted")
    assert said.json["diagnosis"]
    hub.jobs.set(job, stage="CANCELED")
    said = server("status", job)
    assert said.returncode == 0 and re.search(r"step 12 is in ada/r\d+, in last-checkpoint", said.json["next"])

    spec = hub.jobs._jobs.pop(job).spec
    said = server("status", job)
    assert (said.returncode, said.problem) == (1, "job_deleted")
    problem = said.json["problems"][0]
    assert re.search(r"what it pushed is in \S+/ada/r\d+", problem["message"])
    words = shlex.split(problem["fix"].split(": ", 1)[1])
    assert words[-1] == "--resume"
    assert spec["flavor"] in words
    assert server("submit", *words[3:]).returncode == 3  # a plan that can be approved


@shows(name_taken="name_taken")
def test_an_adapter_is_not_mixed_with_a_whole_model(hub):
    before = set(hub.files("ada/tiny"))
    with pytest.raises(sft.Stop) as stop:
        sft.begin_repository(HfApi(endpoint=hub.url, token=ADA), sft.Settings(dataset="x", output_repo="ada/tiny"))
    assert stop.value.code == "name_taken" and "--output-repo" in stop.value.fix
    assert set(hub.files("ada/tiny")) == before
    settings = sft.Settings(dataset="x", output_repo="ada/new")
    for _ in range(2):  # one that holds an adapter, or nothing yet, is gone on with
        sft.begin_repository(HfApi(endpoint=hub.url, token=ADA), settings)
    assert sft.SETTINGS_FILE in hub.files("ada/new")


def test_a_repository_that_is_public_already_is_never_taken_for_private(hub, tmp_path):
    api, settings = HfApi(endpoint=hub.url, token=ADA), sft.Settings(dataset="x", output_repo="ada/open")
    api.create_repo("ada/open", private=False)
    with pytest.raises(sft.Stop) as stop:
        sft.begin_repository(api, settings)
    assert stop.value.code == "public_repository" and "--public" in stop.value.fix
    assert sft.SETTINGS_FILE not in hub.files("ada/open")
    sft.begin_repository(api, sft.replace(settings, public=True))
    assert sft.SETTINGS_FILE in hub.files("ada/open")


def test_the_first_commit_of_a_new_run_takes_the_last_one_s_checkpoint_away(hub):
    api, settings = HfApi(endpoint=hub.url, token=ADA), sft.Settings(dataset="x", output_repo="ada/earlier")
    sft.begin_repository(api, settings)
    for name in ("last-checkpoint/trainer_state.json", "adapter_model.safetensors"):
        api.upload_file(path_or_fileobj=b"{}", path_in_repo=name, repo_id="ada/earlier")
    sft.begin_repository(api, sft.replace(settings, resume=True))
    assert "last-checkpoint/trainer_state.json" in hub.files("ada/earlier")
    sft.begin_repository(api, settings)
    assert "last-checkpoint/trainer_state.json" not in hub.files("ada/earlier")
    assert "adapter_model.safetensors" in hub.files("ada/earlier")
