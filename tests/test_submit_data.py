"""submit.py and what a job sees: files of this machine, rows, an adapter."""

# ruff: noqa: F811 (fixtures are those of test_submit.py)

from __future__ import annotations

from pathlib import Path

import openpyxl
import pytest
from conftest import SFT
from hub import Hub
from test_submit import ARGUMENTS, EXPORT, adapter, hub, jobs_created, plan, rows  # noqa: F401
from unsloth_jobs.jobs.arguments import is_file

pytestmark = pytest.mark.hub(model="shape")


def uploaded(hub: Hub) -> set[str]:
    return {Path(path).name for path in hub.files("ada/jobs-artifacts", type="bucket")}


@pytest.mark.parametrize(
    ("given", "lies_at"),
    [
        (["--dataset=support.jsonl"], "support.jsonl"),
        (["--dataset", "../elsewhere/support.jsonl"], "../elsewhere/support.jsonl"),
        (["--dataset", "~/kept/support.jsonl"], "home/kept/support.jsonl"),  # as in a script, where no shell replaces it
        (["--dataset=~/kept/support.jsonl"], "home/kept/support.jsonl"),
    ],
)
def test_a_job_is_sent_its_rows_however_they_are_named(hub, commands, tmp_path, given, lies_at):
    commands.cwd = tmp_path / "project"
    commands.cwd.mkdir()
    commands.env["HOME"] = str(tmp_path / "project" / "home")
    rows(commands.cwd / lies_at)
    job = plan(commands, "--yes", "--max-usd", "9", arguments=["--base-model", "ada/tiny", *given], code=0)
    assert uploaded(hub) == {"sft.py", "support.jsonl"}
    command = hub.jobs.get(job["job_id"]).spec["command"]
    assert command[command.index("--dataset") + 1] == "/data/support.jsonl"
    assert "--output-repo=ada/tiny-support" in command


def test_a_workbook_is_sent_with_the_name_of_its_sheet(hub, commands, tmp_path):
    book = openpyxl.Workbook()
    for sheet in (book.active, book.create_sheet("May 2026")):
        for row in (("question", "answer"), ("What?", "That.")):
            sheet.append(row)
    book.save(tmp_path / "tickets.xlsx")
    words = ["--base-model", "ada/tiny", "--dataset", "tickets.xlsx"]
    [problem] = plan(commands, arguments=words, code=1)["problems"]
    assert problem["code"] == "config_needed" and "Sheet, May 2026" in problem["message"]
    job = plan(commands, "--yes", "--max-usd", "9", arguments=[*words, "--dataset-config", "May 2026"], code=0)
    assert uploaded(hub) == {"sft.py", "tickets.xlsx"}
    command = hub.jobs.get(job["job_id"]).spec["command"]
    assert "--dataset-config=May 2026" in command and "--output-repo=ada/tiny-tickets" in command


UNREADABLE = {
    "tickets.xlsx": (b"question;answer\n", "dataset_unreadable"),
    "cut.jsonl": (b'{"question": "a", "answer": "b"}\n' * 999 + b'{"quest', "dataset_unreadable"),
    "packed.csv.gz": (b"question,answer\n", "dataset_unreadable"),
    "rows.parquet": (b"question,answer\n", "dataset_unreadable"),
    "names.csv": (b"Ticket,Reply\na,b\n", "unknown_columns"),
    "seen.jsonl": (b'{"photo": "a.png", "question": "a", "answer": "b"}', "unknown_columns"),
    "rows.ods": (b"PK", "unknown_file"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_file_that_the_job_could_not_read_is_refused_before_it_is_sent(hub, commands, tmp_path, name):
    content, code = UNREADABLE[name]
    (tmp_path / name).write_bytes(content)
    words = ["--base-model", "ada/tiny", "--dataset", name]
    [problem] = plan(commands, "--yes", "--max-usd", "9", arguments=words, code=1)["problems"]
    assert problem["code"] == code and problem["fix"]
    assert not jobs_created(hub) and hub.store.find("bucket", "ada/jobs-artifacts") is None


def test_a_value_that_is_called_as_a_file_here_stays_a_value(hub, commands, tmp_path):
    for name in ("question", "answer", "auto", "train"):
        (tmp_path / name).write_text("not for the job")
    columns = ["--prompt-column", "question", "--completion-column", "answer", "--dataset-split", "train"]
    job = plan(commands, "--yes", "--max-usd", "9", arguments=[*ARGUMENTS, *columns, "--target-modules", "auto"], code=0)
    assert uploaded(hub) == {"sft.py"}
    command = hub.jobs.get(job["job_id"]).spec["command"]
    assert {"--prompt-column=question", "--completion-column=answer", "--dataset-split=train"} <= set(command)
    assert [word for word in command if word.startswith("/data/")] == ["/data/sft.py"]
    others = ("chosen_column", "rejected_column", "label_column", "loss", "answer_format", "reward")
    assert not any(is_file(name, str(tmp_path / "question")) for name in others)


def test_a_folder_of_this_machine_is_refused_with_the_way_to_upload_it(hub, commands, tmp_path):
    rows(tmp_path / "tickets" / "train.jsonl")
    (tmp_path / "lora").mkdir()
    [problem] = plan(commands, arguments=["--base-model", "ada/tiny", "--dataset", "tickets"], code=1)["problems"]
    assert problem["code"] == "not_a_file" and "hf upload --repo-type dataset YOU/NAME tickets" in problem["fix"]
    [problem] = plan(commands, arguments=["--adapter", "./lora"], script=EXPORT, code=1)["problems"]
    assert problem["code"] == "not_a_file" and "--adapter YOU/NAME" in problem["fix"]


def test_the_questions_of_an_export_travel_with_it_and_are_part_of_the_plan(hub, commands, tmp_path, adapter):
    (tmp_path / "ask.txt").write_text("What is it?\n")
    words = ["--adapter", "ada/adapter", "--prompts=ask.txt", "--quantizations", "q8_0,q4_k_m"]
    shown = plan(commands, "--flavor", "cpu-upgrade", arguments=words, script=EXPORT)
    assert list(shown["plan"]["files"]) == ["ask.txt"]
    approve = ["--flavor", "cpu-upgrade", "--approve", shown["plan_id"]]
    job = plan(commands, *approve, arguments=words, script=EXPORT, code=0)
    command = hub.jobs.get(job["job_id"]).spec["command"]
    assert command[command.index("--prompts") + 1] == "/data/ask.txt"
    assert uploaded(hub) == {"export.py", "ask.txt"}
    (tmp_path / "ask.txt").write_text("What else?\n")
    assert "files" in plan(commands, *approve, arguments=words, script=EXPORT)["problems"][0]["message"]


def test_what_a_script_without_settings_would_not_be_sent_is_refused(hub, commands, tmp_path):
    script, file = tmp_path / "any.py", rows(tmp_path / "rows.jsonl")
    script.write_text("print(1)")
    (tmp_path / "question").write_text("")
    refused = {
        "file_not_sent": [f"--rows={file.name}"],
        "not_a_file": [str(tmp_path)],
        "missing_file": ["--config", "nowhere.yaml"],
        "bad_arguments": ["--help"],
    }
    for code, words in refused.items():
        [problem] = plan(commands, arguments=words, script=script, code=None)["problems"]
        assert problem["code"] == code and problem["fix"]
    shown = plan(commands, arguments=["--rows", file.name, "--column", "question"], script=script)
    assert list(shown["plan"]["files"]) == [file.name, "question"]
    assert [problem["code"] for problem in shown["problems"]] == ["sent_as_file"]
    assert "rows.jsonl" in shown["summary"]["uploaded"]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("import argparse\ndef parse_args():\n    return argparse.ArgumentParser().parse_args()\n", None),
        ("def parse_args(argv):\n    return {}\n", None),
        ("import sys\nclass Settings: pass\ndef parse_args(argv): return 1\nsys.exit(3)\n", "bad_script"),
        ("class Settings: pass\ndef parse_args(argv): return 1\n", "bad_script"),
        ("class Settings: pass\ndef parse_args(): return 1\n", "bad_script"),
    ],
)
def test_a_parse_args_that_is_no_templates(hub, commands, tmp_path, text, code):
    """It is run as it is; with Settings beside it, it is refused as no template."""
    script = tmp_path / "mine.py"
    script.write_text(text)
    shown = plan(commands, arguments=["--x", "1"], script=script, code=2 if code else 3)
    assert shown["problems"][0]["code"] == code if code else shown["plan"]["arguments"] == ["--x", "1"]


def test_the_help_of_the_script_is_printed(commands):
    shown = commands.run("submit.py", str(SFT), "--", "--help").stdout
    assert "--learning-rate" in shown and "usage:" in shown
