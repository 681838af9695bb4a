"""plan → approve → submit, with the real client against the test Hub: exactly what was approved runs, once."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from commands import Commands
from conftest import ROOT, ROWS, SFT
from hub import Hub, Organization
from hubs import ADA
from tiny_models import shape_of_a_model
from unsloth_jobs.jobs.plan import Plan

EXPORT = ROOT / "templates" / "export.py"
READER, FINE, BROKE = "hf_readreadread", "hf_finefinefine", "hf_brokebrokebr"


pytestmark = pytest.mark.hub(model="shape")


@pytest.fixture
def hub(hub: Hub) -> Hub:
    """Ada is in an organisation, and has tokens that may do less; Bob cannot pay."""
    hub.add_user("ada", token=ADA, orgs=[Organization("acme")])
    hub.add_user("ada", token=READER, role="read")
    hub.add_user("ada", token=FINE, role="fineGrained", permissions=["repo.write"])
    hub.add_user("bob", token=BROKE, can_pay=False)
    return hub


ARGUMENTS = ["--base-model", "ada/tiny", "--dataset", "ada/docs", "--num-epochs", "2"]


def plan(commands: Commands, *options: str, code: int = 3, arguments=ARGUMENTS, script: Path = SFT, **how) -> dict:
    return commands.json("submit.py", str(script), *options, "--", *arguments, code=code, **how)


def jobs_created(hub: Hub) -> list[dict]:
    return [record.json for record in hub.journal.requests(method="POST", path=r"^/api/jobs/[^/]+$") if record.status == 200]


def test_without_approval_the_plan_is_shown_and_nothing_runs(hub, commands):
    shown = plan(commands, "--flavor", "a10g-small", "--timeout", "2h")
    assert shown["approved"] is False
    made = shown["plan"]
    assert (made["flavor"], made["timeout_s"], made["namespace"]) == ("a10g-small", 7200, "ada")
    assert made["max_usd"] == pytest.approx(2.0, abs=0.01)  # two hours at a dollar
    assert made["secrets"] == ["HF_TOKEN"]
    assert made["output_repo"] == "ada/tiny-docs"
    assert made["model_revision"] == hub.store.repos["model", "ada/tiny"].head.sha
    assert made["dataset_revision"] == hub.store.repos["dataset", "ada/docs"].head.sha
    assert not jobs_created(hub)


def test_a_plan_of_several_gpus_says_what_each_gets_and_the_job_is_told(hub, commands):
    shown = plan(commands, "--flavor", "l4x4", "--timeout", "1h")
    assert (shown["plan"]["gpus"], shown["plan"]["vram_gb"], shown["plan"]["max_usd"]) == (4, 24, 3.8)
    assert shown["summary"]["runs on"] == "l4x4, 4 GPUs of 24 GB"
    assert "effective batch size 16, 4 on each of 4 GPUs" in shown["summary"]["training"]
    plan(commands, "--flavor", "l4x4", "--timeout", "1h", "--approve", shown["plan_id"], code=0)
    [request] = jobs_created(hub)
    assert json.loads(request["environment"]["UNSLOTH_JOBS_RUN"])["gpus"] == 4


def test_the_approved_plan_is_what_runs(hub, commands):
    shown = plan(commands, "--timeout", "90m")
    job = plan(commands, "--timeout", "90m", "--approve", shown["plan_id"], code=0)
    assert job["approved"] is True
    assert job["url"] == f"{hub.url}/jobs/ada/{job['job_id']}"
    assert job["model_url"] == f"{hub.url}/ada/tiny-docs"
    assert job["dashboard_url"] == f"{hub.url}/spaces/ada/trackio"
    [request] = jobs_created(hub)
    assert request["flavor"] == "l4x1"
    assert request["timeoutSeconds"] == 5400
    assert list(request["secrets"]) == ["HF_TOKEN"]
    assert request["environment"]["UNSLOTH_DISABLE_CPU_FALLBACK"] == "1"
    assert request["labels"]["unsloth-jobs-plan"] == shown["plan_id"]
    command = " ".join(request["command"])
    for argument in (*ARGUMENTS, f"--dataset-revision={shown['plan']['dataset_revision']}", "--output-repo=ada/tiny-docs"):
        assert argument in command
    assert hub.leaks(ADA) == []


def test_the_same_plan_is_paid_for_once(hub, commands):
    shown = plan(commands)
    first = plan(commands, "--approve", shown["plan_id"], code=0)
    again = plan(commands, "--approve", shown["plan_id"], code=0)
    assert again["job_id"] == first["job_id"]
    assert again["existed"] is True
    assert len(jobs_created(hub)) == 1


@pytest.mark.parametrize("stage", ["ERROR", "CANCELED"])
def test_a_failed_job_has_used_its_approval_up_and_is_started_anew_by_a_new_one(hub, commands, stage):
    shown = plan(commands)
    approved = ["--approve", shown["plan_id"]]
    first = plan(commands, *approved, code=0)
    hub.jobs.wait(first["job_id"])
    hub.jobs.set(first["job_id"], stage=stage, message="Job failed with exit code: 1")
    for options in (approved, approved, ["--yes", "--max-usd", "9"]):
        again = plan(commands, *options, code=0)
        assert (again["job_id"], again["existed"], again["stage"]) == (first["job_id"], True, stage)
    anew = shlex.split(again["next"].split(": ", 1)[1])
    assert "--approve" not in anew and "--yes" not in anew
    new = commands.json("submit.py", *anew[3:], code=3)
    assert new["plan_id"] != shown["plan_id"]
    assert new["plan"] == shown["plan"] | {"start": 2}
    assert first["job_id"] in new["problems"][0]["message"]
    assert plan(commands)["plan_id"] == new["plan_id"]  # it stays while nothing is started
    second = plan(commands, "--approve", new["plan_id"], code=0)
    assert (second["existed"], len(jobs_created(hub))) == (False, 2)
    assert plan(commands, "--yes", "--max-usd", "9", code=0)["job_id"] == second["job_id"]
    assert plan(commands, *approved, code=0)["job_id"] == first["job_id"]
    assert len(jobs_created(hub)) == 2


def test_what_changed_after_the_approval_is_refused_and_said(hub, commands, tmp_path):
    script = tmp_path / "mine.py"
    script.write_bytes(SFT.read_bytes())
    shown = plan(commands, script=script)
    approve = ["--approve", shown["plan_id"]]
    more = tmp_path / "more"
    more.mkdir()
    (more / "extra.jsonl").write_text("{}")

    refused = plan(commands, *approve, script=script, arguments=[*ARGUMENTS, "--lora-r", "8"])
    assert "arguments" in refused["problems"][0]["message"]
    hub.add_repo("ada/docs", more, type="dataset")
    assert "dataset_revision" in plan(commands, *approve, script=script)["problems"][0]["message"]
    script.write_text(script.read_text() + "\n# another script\n")
    assert "script_sha256" in plan(commands, *approve, script=script)["problems"][0]["message"]
    assert "flavor" in plan(commands, *approve, "--flavor", "h200", script=script)["problems"][0]["message"]
    assert plan(commands, "--approve", "no-such-plan", script=script)["problems"][0]["code"] == "unknown_plan"
    assert not jobs_created(hub)


def test_a_plan_over_the_ceiling_is_refused(hub, commands):
    refused = plan(commands, "--flavor", "h200", "--timeout", "4h", "--yes", "--max-usd", "5")
    assert refused["problems"][0]["code"] == "over_budget"
    assert "$20.00" in refused["problems"][0]["message"]
    assert plan(commands, "--yes", code=2)["problems"][0]["code"] == "no_ceiling"
    assert not jobs_created(hub)


@pytest.mark.parametrize(
    ("token", "options", "code", "problem"),
    [
        (READER, [], 4, "token_cannot_write"),
        (FINE, [], 4, "token_cannot_write"),
        ("hf_nobodynobody", [], 4, "bad_token"),
        (None, [], 4, "no_token"),
        (ADA, ["--namespace", "microsoft"], 4, "not_a_member"),
        (ADA, ["--flavor", "h900"], 2, "unknown_flavor"),
        (ADA, ["--timeout", "soon"], 2, "bad_timeout"),
        (ADA, ["--timeout", "10"], 2, "bad_timeout"),
        (BROKE, ["--yes", "--max-usd", "10"], 4, "no_credit"),
    ],
)
def test_what_the_hub_would_refuse_is_said_before(hub, tmp_path, token, options, code, problem):
    commands = Commands(hub.env(token=token), tmp_path)
    refused = plan(commands, *options, code=code)
    assert refused["ok"] is False
    assert refused["problems"][0]["code"] == problem
    assert refused["problems"][0]["fix"]
    assert not jobs_created(hub)


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["--base-model", "ada/tinny", "--dataset", "ada/docs"], 1, "not_found"),
        (["--base-model", "ada/tiny", "--dataset", "ada/dogs"], 1, "not_found"),
        (["--base-model", "./nowhere", "--dataset", "ada/docs"], 1, "local_model"),
        (["--base-model", "ada/tiny", "--dataset", "ada/docs", "--epochs", "3"], 2, "bad_arguments"),
        (["--base-model", "ada/tiny"], 2, "bad_arguments"),
        (["--base-model", "ada/tiny", "--dataset", "nosuch.csv"], 1, "not_found"),
    ],
)
def test_arguments_that_cannot_run_are_refused(hub, commands, arguments, code, problem):
    assert plan(commands, arguments=arguments, code=code)["problems"][0]["code"] == problem


def test_an_organisation_pays_and_owns(hub, commands):
    job = plan(commands, "--namespace", "acme", "--yes", "--max-usd", "9", code=0)
    assert job["model_url"].endswith("/acme/tiny-docs")
    assert hub.jobs.get(job["job_id"]).owner == "acme"


def test_rows_on_this_machine_travel_with_the_job(hub, commands, tmp_path):
    (tmp_path / "support.jsonl").write_bytes(ROWS.read_bytes())
    arguments = ["--base-model", "ada/tiny", "--dataset", "support.jsonl"]
    job = plan(commands, "--yes", "--max-usd", "9", arguments=arguments, code=0)
    assert "/data/" in " ".join(hub.jobs.get(job["job_id"]).spec["command"])
    assert [path for path in hub.files("ada/jobs-artifacts", type="bucket") if path.endswith("support.jsonl")]


def test_what_is_uploaded_is_said_as_it_begins_and_stays_out_of_the_json(commands, tmp_path):
    (tmp_path / "support.jsonl").write_bytes(b" " * 1_300_000 + ROWS.read_bytes())
    words = ["submit.py", str(SFT), "--flavor", "l4x1", "--timeout", "1h", "--yes", "--max-usd", "9", "--json", "--"]
    done = commands.run(*words, "--base-model", "ada/tiny", "--dataset", "support.jsonl")
    assert json.loads(done.stdout)["job_id"]
    said = [line for line in done.stderr.splitlines() if line.startswith("Upload")]
    size = (tmp_path / "support.jsonl").stat().st_size / 1e6
    assert said[0].startswith(f"Uploading {SFT} (0.") and said[0].endswith(" MB) …")
    assert re.fullmatch(rf"Uploading \S*support\.jsonl \({size:,.1f} MB\) …", said[1])
    assert said[2:] == ["Uploaded."]


def test_a_hub_that_is_down_costs_nothing_and_says_so(tmp_path):
    commands = Commands({"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": ADA, "HF_HOME": str(tmp_path)}, tmp_path)
    refused = plan(commands, code=4)
    assert refused["problems"][0]["code"] == "hub_unreachable"


def test_status_and_logs_of_a_hub_job(hub, commands):
    job = plan(commands, "--yes", "--max-usd", "9", code=0)["job_id"]
    hub.jobs.wait(job)
    progress = {"event": "progress", "step": 30, "total_steps": 120, "loss": 1.25, "eta_s": 300}
    hub.jobs.set(job, stage="RUNNING", logs=[f"EVENT {json.dumps(progress)}", f"token {ADA} \x1b[31mred\x1b[0m"])
    hub.jobs.get(job).started -= 60  # what it cost in a few milliseconds would be nothing
    status = commands.json("status.py", job)
    assert (status["stage"], status["eta_s"]) == ("RUNNING", 300)
    assert status["progress"] == {"step": 30, "total_steps": 120, "loss": 1.25, "eval_loss": None}
    assert status["spent_usd"] > 0
    assert status["diagnosis"] is None
    log = commands.run("logs.py", job).stdout
    assert "token hf_*** red" in log
    assert progress in [json.loads(line)["event"] for line in commands.run("logs.py", job, "--json").stdout.splitlines()]

    hub.jobs.set(
        job, stage="ERROR", message="Job failed with exit code: 1", logs=["torch.OutOfMemoryError: CUDA out of memory."]
    )
    status = commands.json("status.py", job, code=1)
    assert status["diagnosis"]["code"] == "out_of_vram"
    assert "--gradient-accumulation" in status["next"]
    assert [one["job_id"] for one in commands.json("status.py", "--all")["jobs"]] == [job]


def test_a_job_is_cancelled(hub, commands):
    job = plan(commands, "--yes", "--max-usd", "9", code=0)["job_id"]
    hub.jobs.wait(job)
    hub.jobs.set(job, stage="RUNNING")
    assert commands.json("status.py", job, "--cancel")["stage"] == "CANCELED"


def test_an_unknown_job_is_said(hub, commands):
    assert commands.json("status.py", "0" * 24, code=1)["problems"][0]["code"] == "unknown_job"
    assert commands.json("logs.py", "local-1", code=1)["problems"][0]["code"] == "unknown_job"
    assert commands.json("status.py", code=2)["problems"][0]["code"] == "no_job"


def test_the_printed_command_starts_exactly_the_plan(hub, commands):
    """Also with the script's flags given without `--`, as `hf jobs uv run` takes them."""
    shown = commands.run("submit.py", str(SFT), "--timeout", "1h30m", *ARGUMENTS, code=3).stdout
    command = shown.strip().splitlines()[-1]
    words = shlex.split(command)
    assert words[:2] == ["uv", "run"]
    commands.run("submit.py", *words[3:])
    [request] = jobs_created(hub)
    assert request["timeoutSeconds"] == 5400
    assert request["labels"]["unsloth-jobs-plan"] in command


def test_a_timeout_says_what_is_kept(hub, commands):
    job = plan(commands, "--yes", "--max-usd", "9", code=0)
    hub.jobs.wait(job["job_id"])
    hub.jobs.set(job["job_id"], stage="ERROR", message="Job timeout")
    assert "No checkpoint had been pushed" in commands.json("status.py", job["url"], code=1)["next"]
    hub.jobs.set(job["job_id"], logs=['EVENT {"event": "checkpoint", "step": 40, "pushed": true}'])
    assert "step 40 is in ada/tiny-docs" in commands.json("status.py", job["url"], code=1)["next"]


# ---- a job sees its data


def rows(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(ROWS.read_bytes())
    return path


# ---- what check and estimate know is refused here, too


def refusal(commands: Commands, *options: str, code: int = 2, **how) -> dict:
    problem = plan(commands, *options, code=code, **how)["problems"][0]
    assert problem["fix"]
    return problem


def test_a_machine_that_would_be_paid_for_in_vain_is_refused(hub, commands, tmp_path):
    hub.add_repo("ada/large", shape_of_a_model(tmp_path / "large", layers=80, hidden=16384, held=False))
    hub.add_repo("ada/gemma", shape_of_a_model(tmp_path / "gemma", model_type="gemma3_text"))
    large, gemma = ([*ARGUMENTS, "--base-model", name] for name in ("ada/large", "ada/gemma"))
    few = refusal(commands, "--flavor", "l4x4", arguments=[*ARGUMENTS, "--batch-size", "1", "--gradient-accumulation", "2"])
    assert few["code"] == "too_few_rows_a_step" and "--flavor t4-small" in few["fix"]
    one = refusal(commands, "--flavor", "l4x4", script=EXPORT, arguments=["--adapter", "ada/adapter"])
    assert one["code"] == "multi_gpu_flavor" and "--flavor l4x1" in one["fix"]
    assert refusal(commands, "--flavor", "cpu-basic", arguments=large)["code"] == "cpu_flavor"
    small = refusal(commands, "--flavor", "t4-small", arguments=large)
    assert small["code"] == "too_little_vram" and "--flavor" in small["fix"] and "t4" not in small["fix"]
    assert refusal(commands, "--flavor", "t4-small", arguments=gemma)["code"] == "fp16_overflow"
    hub.add_repo("ada/medium", shape_of_a_model(tmp_path / "medium", layers=50, hidden=16384, held=False))
    merged = [*ARGUMENTS, "--base-model", "ada/medium", "--merge-model"]
    assert refusal(commands, "--flavor", "a10g-small", arguments=merged)["code"] == "too_little_disk"
    assert plan(commands, "--flavor", "cpu-basic")["plan"]["flavor"] == "cpu-basic"  # a tiny model may train there
    assert not jobs_created(hub)


@pytest.fixture
def adapter(hub: Hub, tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "ada/tiny", "peft_type": "LORA"}')
    (folder / "adapter_model.safetensors").write_bytes(b"...")
    hub.add_repo("ada/adapter", folder)
    return folder


def test_an_unreadable_adapter_is_nothing_to_go_on_from_and_a_model_no_adapter_to_export(hub, commands, adapter):
    assert refusal(commands, arguments=[*ARGUMENTS, "--base-model", "ada/adapter"], code=1)["code"] == "bad_adapter"
    for name, code in {"ada/nothing": "not_found", "ada/tiny": "no_adapter"}.items():
        assert refusal(commands, arguments=["--adapter", name], script=EXPORT, code=1)["code"] == code


SEEN = """---
dataset_info:
  features:
  - name: photo
    dtype: image
  - name: question
    dtype: string
---
# Seen
"""


def test_rows_with_pictures_are_refused_unless_their_text_is_asked_for(hub, commands, tmp_path):
    rows(tmp_path / "seen" / "train.jsonl")
    (tmp_path / "seen" / "README.md").write_text(SEEN)
    hub.add_repo("ada/seen", tmp_path / "seen", type="dataset")
    pictures = ["--base-model", "ada/tiny", "--dataset", "ada/seen"]
    refused = refusal(commands, arguments=pictures, code=1)
    assert refused["code"] == "picture_rows" and "(photo)" in refused["message"]
    plan(commands, arguments=[*pictures, "--prompt-column", "question", "--completion-column", "answer"])


def test_a_repository_that_a_job_writes_to_is_not_written_to_by_another(hub, commands):
    first = plan(commands, "--yes", "--max-usd", "9", code=0)["job_id"]
    hub.jobs.wait(first)
    hub.jobs.set(first, stage="RUNNING")
    other = [*ARGUMENTS, "--learning-rate", "1e-3"]
    refused = refusal(commands, arguments=other)
    assert refused["code"] == "repo_in_use" and first in refused["message"]
    assert plan(commands, "--yes", "--max-usd", "9", code=0)["job_id"] == first  # the same plan is found
    plan(commands, arguments=[*other, "--output-repo", "ada/second"])
    hub.jobs.set(first, stage="COMPLETED")
    plan(commands, arguments=other)


@pytest.mark.parametrize("status", [403, 404, 429, 500])
def test_a_hub_in_trouble_about_one_file_is_no_traceback(hub, commands, status):
    hub.faults.add(path="resolve/.*/config.json$", status=status, headers={"Retry-After": "3600"})
    refused = plan(commands, code=1 if status == 404 else 4)["problems"][0]
    assert refused["code"] == {403: "forbidden", 404: "not_found", 429: "rate_limited", 500: "hub_error"}[status]


# ---- where the result goes


def test_an_existing_repository_is_called_what_it_is(hub, commands, tmp_path, adapter):
    hub.add_repo("ada/open", adapter)
    hub.add_repo("ada/closed", adapter, private=True)
    hub.add_repo("ada/whole", shape_of_a_model(tmp_path / "whole"), private=True)
    into = lambda name, *more: [*ARGUMENTS, "--output-repo", name, *more]  # noqa: E731
    refused = refusal(commands, arguments=into("ada/open"))
    assert refused["code"] == "public_repository" and "--public" in refused["fix"]
    agreed = plan(commands, arguments=into("ada/open", "--public"))
    assert agreed["plan"]["public"] is True
    assert "public: it exists and is public" in agreed["summary"]["result"]
    assert "holds an adapter of ada/tiny, which is replaced" in agreed["summary"]["result"]
    for more in ([], ["--public"]):
        closed = plan(commands, arguments=into("ada/closed", *more))
        assert closed["plan"]["public"] is False and "(private)" in closed["summary"]["result"]
    assert "(private; the run makes it)" in plan(commands)["summary"]["result"]
    assert "(public; the run makes it)" in plan(commands, arguments=[*ARGUMENTS, "--public"])["summary"]["result"]
    assert refusal(commands, arguments=into("ada/whole"), code=1)["code"] == "name_taken"
    assert refusal(commands, arguments=into("bob/any"), code=4)["code"] == "not_a_member"


def test_an_export_says_both_of_its_repositories(hub, commands, adapter):
    hub.add_repo("ada/adapter-GGUF", adapter, private=True)
    shown = plan(commands, "--flavor", "cpu-upgrade", arguments=["--adapter", "ada/adapter"], script=EXPORT)
    assert shown["plan"]["results"] == ["ada/adapter-merged", "ada/adapter-GGUF"]
    assert shown["plan"]["model"] == "ada/tiny"
    revision = hub.store.repos["model", "ada/adapter"].head.sha
    assert f"--adapter-revision={revision}" in shown["plan"]["arguments"]
    summary = shown["summary"]
    assert "ada/adapter-merged (private; the run makes it)" in summary["result"]
    assert "ada/adapter-GGUF (private)" in summary["result"]
    assert summary["makes"] == "a merged model in 16 bits, GGUF in q4_k_m"
    assert summary["of model"] == "ada/tiny"
    # Files with their sizes, and what making them takes: priced before it is approved.
    merged, q4 = summary["files"].split("\n")
    assert merged.startswith("merged, 16 bits: about ") and q4.startswith("q4_k_m: about ") and "tokens a second" in q4
    assert summary["estimate"].endswith("from the sizes of the files")
    found = shown["estimate"]
    assert 0 < found["hours_low"] < found["hours_high"] and 0 < found["usd_low"] < found["usd_high"]
    assert set(found["seconds"]) == {"start", "transfer", "files", "comparison"}


def test_an_export_of_a_base_that_is_gone_is_refused_before_anything_is_paid(hub, commands, tmp_path, adapter):
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "ada/gone", "peft_type": "LORA"}')
    hub.add_repo("ada/orphan", adapter)
    words = ["--yes", "--max-usd", "1", "--flavor", "cpu-upgrade"]
    assert refusal(commands, *words, arguments=["--adapter", "ada/orphan"], script=EXPORT, code=1)["code"] == "not_found"
    assert jobs_created(hub) == []


def test_a_model_made_of_anothers_adapter_is_the_users(hub, commands, adapter):
    hub.add_repo("bob/theirs", adapter)
    shown = plan(commands, "--flavor", "cpu-upgrade", arguments=["--adapter", "bob/theirs"], script=EXPORT)
    assert shown["plan"]["results"] == ["ada/theirs-merged", "ada/theirs-GGUF"]


# ---- the plan that a person approves


def test_a_plan_says_what_is_agreed_to_and_no_hash(hub, commands, tmp_path):
    rows(tmp_path / "support.jsonl")
    words = ["--base-model", "ada/tiny", "--dataset=support.jsonl", "--num-epochs", "2", "--load-in-16bit"]
    shown = commands.run("submit.py", str(SFT), "--", *words, code=3).stdout.partition("Not started")[0]
    for said in (
        "ada/tiny at ", "support.jsonl", "2 epochs", "learning rate 0.002", "effective batch size 16", "up to 2,048 tokens",
        "LoRA r 16, alpha 32", "in 16 bits", "(private; the run makes it)", "bucket ada/jobs-artifacts", "held-out rows",
    ):  # fmt: skip
        assert said in shown, said
    assert "None" not in shown and "sha256" not in shown and "--num-epochs" not in shown
    verbose = commands.run("submit.py", str(SFT), "--verbose", "--", *words, code=3).stdout
    assert "--num-epochs=2.0" in verbose and "sha256" in verbose


def test_no_plan_holds_a_none(hub, commands, tmp_path, adapter):
    script = tmp_path / "any.py"
    script.write_text("print(1)")
    for words in ([str(script)], [str(EXPORT), "--", "--adapter", "ada/adapter"], [str(SFT), "--smoke", "--", *ARGUMENTS]):
        assert "None" not in commands.run("submit.py", *words, code=3).stdout


@pytest.mark.parametrize("options", [[], ["--smoke"], ["--attempts", "2"], ["--smoke", "--attempts", "2"]])
def test_the_command_of_a_run_plans_the_same_run(hub, commands, options):
    made = plan(commands, *options, "--timeout", "12m")
    words = shlex.split(Plan.from_json(made["plan"]).again())
    assert set(options) <= set(words)
    assert commands.json("submit.py", *words[3:], code=3)["plan_id"] == made["plan_id"]


def test_an_empty_timeout_is_no_default(hub, commands):
    assert refusal(commands, "--timeout=")["code"] == "bad_timeout"


def test_a_branch_is_pinned_to_the_commit_it_stands_at(hub, commands):
    made = plan(commands, arguments=[*ARGUMENTS, "--base-model-revision", "main"])["plan"]
    assert made["model_revision"] == hub.store.repos["model", "ada/tiny"].head.sha
