"""The test Hub's jobs, by the real client and hf."""

# ruff: noqa: F811 (fixtures are those of test_hub.py)

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from hub import Hub
from huggingface_hub import HfApi, Volume
from huggingface_hub.errors import HfHubHTTPError
from test_hub import ADA, BOB, NEWER_CLIENT, OLDER_CLIENT, READER, ROWS, Run, api, folder, hub, idle_hub, run  # noqa: F401

HEADER = "# /// script\n# requires-python = '>=3.10'\n# dependencies = [{}]\n# ///\n"


SCRIPT = (
    HEADER.format("")
    + """
import os, pathlib, sys
print("arguments", sys.argv[1:])
print("token", bool(os.environ["HF_TOKEN"]), "leaked", "LEAK" in os.environ)
pathlib.Path(sys.argv[0]).with_name("result.txt").write_text("kept")
"""
)


def test_jobs_command_line(hub: Hub, api: HfApi, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEAK", "a variable of the server's")
    (tmp_path / "train.py").write_text(SCRIPT)
    options = ["--flavor", "cpu-basic", "--secrets", "HF_TOKEN", "--timeout", "1h"]
    done = run("hf", "jobs", "uv", "run", "train.py", *options, "--", "--flag", "x")
    assert "arguments ['--flag', 'x']" in done.stdout and "token True leaked False" in done.stdout

    [job] = hub.jobs
    assert job.spec["timeoutSeconds"] == 3600 and job.info()["secrets"] == ["HF_TOKEN"]
    artifacts = {path.split("/")[1]: file for path, file in hub.files("ada/jobs-artifacts", type="bucket").items()}
    assert artifacts.keys() == {"train.py", "result.txt"} and artifacts["result.txt"].read_text() == "kept"
    assert "arguments" in run("hf", "jobs", "logs", job.id).stdout
    assert "COMPLETED" in run("hf", "jobs", "wait", job.id).stdout
    assert job.id in run("hf", "jobs", "ps", "-a", "--no-truncate").stdout

    slow = api.run_job(image="x", command=["sleep", "60"], namespace="ada")
    run("hf", "jobs", "cancel", slow.id)
    assert hub.jobs.wait(slow.id).stage == "CANCELED"
    assert hub.leaks(ADA) == [] and hub.leaks("token True") == [f"log of job {job.id}"]


def test_jobs_that_fail(hub: Hub, api: HfApi) -> None:
    def outcome(*command: str) -> tuple[str, str | None]:
        job = hub.jobs.wait(api.run_job(image="x", command=list(command), namespace="ada").id)
        return job.stage, job.message

    assert outcome("sh", "-c", "exit 3") == ("ERROR", "Job failed with exit code: 3")
    assert outcome("sh", "-c", "kill -9 $$") == ("ERROR", "Job failed with exit code: 137. Reason: OOMKilled")
    stage, message = outcome("no-such-program")
    assert stage == "ERROR" and message.startswith("Job failed to start: ")


UPLOADING_SCRIPT = """
from huggingface_hub import HfApi, __version__
print("huggingface_hub", __version__)
api = HfApi()
api.create_repo("ada/out")
api.upload_file(path_or_fileobj=bytes(100_000), path_in_repo="weights.bin", repo_id="ada/out")
"""


@pytest.mark.parametrize("client", [OLDER_CLIENT, NEWER_CLIENT])
def test_job_uploads(hub: Hub, api: HfApi, tmp_path: Path, client: str) -> None:
    script = tmp_path / "upload.py"
    script.write_text(HEADER.format(f'"{client}"') + UPLOADING_SCRIPT)
    job = hub.jobs.wait(api.run_uv_job(str(script), secrets={"HF_TOKEN": ADA}, namespace="ada").id)
    assert job.stage == "COMPLETED", job.logs
    assert hub.files("ada/out")["weights.bin"].read_bytes() == bytes(100_000)
    assert any(line.text == client.replace("==", " ") for line in job.logs)
    assert hub.journal.requests("POST", "/cas/v1/xorbs")


def test_jobs_end_early(hub: Hub, api: HfApi) -> None:
    def start(**options) -> str:
        code = "import subprocess; print(subprocess.Popen(['sleep', '60']).pid, flush=True); import time; time.sleep(60)"
        command = [sys.executable, "-c", code]
        job = api.run_job(image="python:3.12", command=command, namespace="ada", **options)
        wait_until(lambda: len(hub.jobs.get(job.id).logs) == 2)
        return job.id

    slow, canceled, left = start(timeout=1), start(), start()
    api.cancel_job(job_id=canceled, namespace="ada")
    assert api.wait_for_job(canceled, namespace="ada", poll_interval=0.05).status.stage == "CANCELED"
    info = api.wait_for_job(slow, namespace="ada", poll_interval=0.05)
    assert (info.status.stage, info.status.message) == ("ERROR", "Job timeout")
    assert info.durations.running_secs >= 1 and info.finished_at > info.started_at
    hub.jobs.close()
    started = [int(hub.jobs.get(job_id).logs[1].text) for job_id in (slow, canceled, left)]
    wait_until(lambda: not any(map(is_alive, started)))  # killed; a busy machine takes a moment to end them


def wait_until(condition: Callable[[], bool], timeout: float = 120) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_volumes(hub: Hub, api: HfApi, folder) -> None:
    hub.add_repo("ada/rows", folder({"data.jsonl": ROWS}), type="dataset")
    api.create_bucket("ada/box")
    api.batch_bucket_files("ada/box", add=[(b"old", "run/old.txt"), (b"other", "other.txt")])
    volumes = [
        Volume(type="bucket", source="ada/box", mount_path="/box", path="run"),
        Volume(type="dataset", source="ada/rows", mount_path="/rows", read_only=True),
    ]
    command = ["sh", "-c", 'wc -l </rows/data.jsonl; rm /box/old.txt; echo "$OUT/x" >$OUT/new.txt; exit 1']
    job = api.run_job(image="x", command=command, env={"OUT": "/box"}, volumes=volumes, namespace="ada")
    job = hub.jobs.wait(job.id)
    assert [line.text.strip() for line in job.logs][1:] == ["20"]
    assert hub.files("ada/box", type="bucket").keys() == {"run/new.txt", "other.txt"}


def test_job_refusals(hub: Hub, api: HfApi) -> None:
    def status(token: str, namespace: str, **options) -> int:
        with pytest.raises(HfHubHTTPError) as error:
            HfApi(endpoint=hub.url, token=token).run_job(image="x", command=["true"], namespace=namespace, **options)
        return error.value.response.status_code

    assert status(BOB, "bob") == 402
    assert status(READER, "ada") == 403
    assert status(ADA, "bob") == 403
    assert status(ADA, "ada", flavor="z80-large") == 400
    assert status(ADA, "ada", labels={"model": "org/name"}) == 400
    assert status(ADA, "ada", volumes=[Volume(type="bucket", source="ada/nothing", mount_path="/x")]) == 404
    assert len(list(hub.jobs)) == 0
    assert api.run_job(image="x", command=["true"], namespace="acme").owner.type == "org"
    assert [flavor.unit_cost_usd for flavor in api.list_jobs_hardware() if flavor.name == "a10g-small"] == [0.016667]


def test_jobs_set_by_hand(idle_hub: Hub) -> None:
    hub, api = idle_hub, HfApi(endpoint=idle_hub.url, token=ADA)
    options = {"image": "x", "command": ["train"], "secrets": {"KEY": "s3cret"}, "name": "t", "namespace": "ada"}
    done = api.run_job(**options, labels={"run": "1"})
    assert done.status.stage == "SCHEDULING"
    assert hub.jobs.wait(done.id).stage == "COMPLETED"

    running = api.run_job(**options, flavor="l4x4", labels={"run": "2"})
    hub.jobs.set(running.id, stage="RUNNING", logs=["step 1", "step 2"])
    assert [job.id for job in api.list_jobs(namespace="ada", status="RUNNING")] == [running.id]
    assert [job.id for job in api.list_jobs(namespace="ada", labels={"run": "1"})] == [done.id]
    metrics = next(iter(api.fetch_job_metrics(job_id=running.id, namespace="ada")))
    assert len(metrics["gpus"]) == 4
    assert httpx.get(f"{hub.url}/api/jobs/ada/{done.id}/metrics", headers={"authorization": f"Bearer {ADA}"}).status_code == 406

    hub.jobs.set(running.id, stage="ERROR", message="Job failed with exit code: 1", logs=["step 3"])
    assert list(api.fetch_job_logs(job_id=running.id, namespace="ada", follow=True)) == ["step 1", "step 2", "step 3"]
    assert list(api.fetch_job_logs(job_id=running.id, namespace="ada", tail=1)) == ["step 3"]
    assert api.inspect_job(job_id=running.id, namespace="ada").status.message == "Job failed with exit code: 1"

    again = api.rerun_job(job_id=running.id, namespace="ada")
    assert again.initiator.type == "duplicated-job" and again.flavor == "l4x4"
    assert api.update_job_labels(job_id=again.id, labels={"run": "3"}, namespace="ada").labels == {"run": "3"}
    assert api.inspect_job(job_id=running.id, namespace="ada").labels == {"name": "t", "run": "2"}
    assert hub.leaks("s3cret") == []
