"""What check.py reads of a file is what the job reads: each shape of rows through both, with the same rows and tokens."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
from pathlib import Path

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import Commands
from hubs import ADA

ROOT = Path(__file__).resolve().parents[1]

ASKED, SAID = {"role": "user", "content": "What is in row {}?"}, {"role": "assistant", "content": "A number, {}."}
CALL = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": {"row": 1}}}
SPOKEN = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"row": 1}'}}
OTHER = {"id": "c2", "type": "function", "function": {"name": "add", "arguments": {"row": [1, 2], "deep": {"x": None}}}}
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}]


def calling(call: dict) -> list[dict]:
    asks = {"role": "assistant", "content": None, "tool_calls": [call]}
    return [ASKED, asks, {"role": "tool", "tool_call_id": call["id"], "content": "7"}, SAID]


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
# By name: the rows that take turns, and how many of each twelve are kept.
SHAPES: dict[str, tuple[list[dict], int]] = {
    "plain": ([{"messages": [ASKED, SAID]}], 12),
    "names": ([{"messages": [{**ASKED, "name": "kim"}, SAID]}, {"messages": [ASKED, SAID], "id": 3}], 12),
    "weights": ([{"messages": [ASKED, {**SAID, "weight": 1}]}, {"messages": [ASKED, SAID]}], 12),
    "thoughts": ([{"messages": [ASKED, {**SAID, "reasoning_content": "t"}]}, {"messages": [ASKED, SAID]}], 12),
    "tools": ([{"messages": calling(CALL), "tools": TOOLS}, {"messages": [ASKED, SAID]}], 12),
    "tools as text": ([{"messages": calling(CALL), "tools": json.dumps(TOOLS)}, {"messages": calling(OTHER)}], 12),
    "arguments as text": ([{"messages": calling(SPOKEN)}, {"messages": calling(CALL)}, {"messages": calling(OTHER)}], 12),
    "parts": ([{"messages": [{"role": "user", "content": [{"type": "text", "text": "Row {}?"}]}, SAID]}, {"messages": [ASKED, SAID]}], 12),
    "pictures in some": ([{"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}, PICTURE]}, SAID]}, {"messages": [ASKED, SAID]}], 6),
    "messages as text": ([{"messages": json.dumps([ASKED, SAID])}, {"messages": [ASKED, SAID]}], 12),
    "numbers": ([{"question": "Row {}?", "answer": 4}, {"question": "Row {}?", "answer": 0.5}, {"question": 7, "answer": "seven"}], 12),
    "objects": ([{"question": "Row {}?", "answer": {"kind": "row", "of": [1, None]}}, {"question": "Row {}?", "answer": ["a", "é"]}], 12),
    "nulls": ([{"question": "Row {}?", "answer": None}, {"question": "Row {}?", "answer": "x"}, {"question": None, "answer": "y"}], 8),
    "objects in messages": ([{"messages": [ASKED, {**SAID, "content": {"kind": "row", "of": [1, None]}}]}, {"messages": [ASKED, SAID]}], 12),
    "functions": ([{"messages": [ASKED, {"role": "assistant", "function_call": SPOKEN["function"]}, {"role": "function", "name": "look_up", "content": "7"}, SAID], "functions": [TOOLS[0]["function"]]}, {"messages": calling(SPOKEN), "tools": TOOLS, "parallel_tool_calls": False}], 12),
    "nothing learned": ([{"messages": [ASKED, {**SAID, "weight": 0}]}, {"messages": [ASKED, {**SAID, "weight": 0}, ASKED, {**SAID, "weight": 1}]}], 6),
    "text and turns": ([{"prompt": "Row {}?", "completion": [SAID]}, {"prompt": [ASKED], "completion": "x"}, {"prompt": "Row {}?", "completion": [{**ASKED, "content": "Row {}?"}, SAID]}], 12),
}  # fmt: skip


def write_shape(folder: Path, rows: list[dict]) -> Path:
    lines = [json.dumps(rows[number % len(rows)]).replace("{}", str(number)) for number in range(12)]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return folder / "rows.jsonl"


@pytest.mark.parametrize("shape", SHAPES)
def test_what_check_reads_is_what_the_job_reads(runs, tiny_model, tmp_path, shape):
    rows, kept = SHAPES[shape]
    file = write_shape(tmp_path, rows)
    run = runs.start("--base-model", str(tiny_model), "--dataset", str(file), "--max-steps", "1", "--eval-split", "0")
    commands = Commands(runs.hub.env(token=ADA), tmp_path)
    found = commands.json("check.py", str(tiny_model), str(file))
    masks, data = run.wait().last("masks"), run.last("data")
    assert run.code == 0, run.log[-3000:]
    assert (data["rows"], data["format"], data["columns"]) == (12, found["dataset"]["format"], found["dataset"]["used"])
    assert found["dataset"]["rows_source"] == "counted"
    assert masks["rows_kept"] == kept == 12 - found["mask"]["rows_without_answer"]
    assert (masks["supervised_fraction"], masks["sample"]) == (found["mask"]["supervised_fraction"], found["mask"]["sample"])


def write_files(folder: Path) -> dict[str, Path]:
    """The same twelve rows of a question and an answer, or of their turns, in each kind of file."""
    rows = [(f"Où est la {number} ?", f"Là – à l’hôtel, {number}; “bien”.") for number in range(12)]
    lines = [json.dumps({"question": question, "answer": answer}) for question, answer in rows]
    turns = [[{"role": "user", "content": one}, {"role": "assistant", "content": other}] for one, other in rows]
    kinds = ("xlsx", "cp1252.csv", "utf16.tsv", "jsonl.gz", "csv.gz", "json", "parquet", "turns.parquet", "turns.csv")
    files = {kind: folder / f"rows.{kind}" for kind in kinds}
    book = openpyxl.Workbook()
    for sheet, table in ((book.active, rows), (book.create_sheet("Other"), rows[:3])):
        for row in (("question", "answer"), *table):
            sheet.append(row)
    book.save(files["xlsx"])
    for kind, encoding, delimiter in (("cp1252.csv", "cp1252", ";"), ("utf16.tsv", "utf-16", "\t")):
        with files[kind].open("w", encoding=encoding, newline="") as opened:
            csv.writer(opened, delimiter=delimiter).writerows([("question", "answer"), *rows])
    with gzip.open(files["csv.gz"], "wt", encoding="utf-8", newline="") as opened:
        csv.writer(opened).writerows([("question", "answer"), *rows])
    with files["turns.csv"].open("w", encoding="utf-8", newline="") as opened:
        csv.writer(opened).writerows([["messages"], *[[str(one)] for one in turns]])  # as pandas does
    files["jsonl.gz"].write_bytes(gzip.compress("\n".join(lines).encode()))
    files["json"].write_text("[" + ",\n".join(lines) + "]")
    pq.write_table(pa.Table.from_pylist([json.loads(line) for line in lines]), files["parquet"])
    pq.write_table(pa.Table.from_pylist([{"messages": one} for one in turns]), files["turns.parquet"])
    return files


def test_a_file_of_any_kind_holds_the_same_rows_for_check_and_for_the_job(runs, tiny_model, tmp_path):
    files = write_files(tmp_path)
    commands = Commands(runs.hub.env(token=ADA), tmp_path)
    digests = {}
    for kind, file in files.items():
        sheet = ["--dataset-config", "Sheet"] if kind == "xlsx" else []
        words = ["--base-model", str(tiny_model), "--dataset", str(file), *sheet, "--max-steps", "1", "--eval-split", "0"]
        run = runs.start(*words)
        found = commands.json("check.py", str(tiny_model), str(file), *sheet)
        assert run.wait().code == 0, run.log[-3000:]
        masks = run.last("masks")
        assert (run.last("data")["rows"], masks["rows_kept"], found["dataset"]["rows"]) == (12, 12, 12)
        assert masks["digest"] == found["mask"]["digest"]
        digests[kind] = masks["digest"]
        guessed = [problem["code"] for problem in found["problems"] if problem["code"] == "encoding_guessed"]
        assert guessed == (["encoding_guessed"] if kind == "cp1252.csv" else [])
    assert len(set(digests.values())) == 1, digests


def test_a_training_file_of_openai_is_read_unchanged(runs, tiny_model, tmp_path):
    file = ROOT / "tests" / "openai.jsonl"
    run = runs.start("--base-model", str(tiny_model), "--dataset", str(file), "--max-steps", "1", "--eval-split", "0")
    found = Commands(runs.hub.env(token=ADA), tmp_path).json("check.py", str(tiny_model), str(file))
    assert run.wait().code == 0, run.log[-3000:]
    masks = run.last("masks")
    assert (masks["rows"], masks["rows_kept"], found["dataset"]["unused"]) == (14, 14, ["parallel_tool_calls"])
    assert masks["digest"] == found["mask"]["digest"]
    assert {problem["code"] for problem in found["problems"]} <= {"few_rows", "calls_not_rendered"}


def test_a_folder_of_files_is_read_on_this_machine(runs, tiny_model, tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    row = json.dumps({"question": "What?", "answer": "That."})
    for number in range(3):
        (folder / f"part-{number}.jsonl.gz").write_bytes(gzip.compress(f"{row}\n{row}\n".encode()))
    run = runs.start("--base-model", str(tiny_model), "--dataset", str(folder), "--max-steps", "1", "--eval-split", "0")
    found = Commands(runs.hub.env(token=ADA), tmp_path).json("check.py", str(tiny_model), str(folder))
    assert run.wait().last("data")["rows"] == 6 == found["dataset"]["rows"]
    assert run.last("masks")["sample"] == found["mask"]["sample"]


BROKEN = {
    "null.jsonl": ('{"question": "a", "answer": "b"}\nnull\n', "dataset_unreadable", "Line 2 of null.jsonl is null"),
    "cut.jsonl": ('{"question": "a", "answer": "b"}\n' * 3000 + '{"question"', "dataset_unreadable", "Line 3,001 of cut.jsonl"),
    "empty.csv": ("", "dataset_unreadable", "empty.csv is empty"),
    "names.csv": ("question,answer\n", "no_rows", "holds no rows"),
    "seen.jsonl": ('{"image": "x", "question": "a", "answer": "b"}', "unknown_columns", "only text can be learned"),
    "rows.xlsx": ("PK", "dataset_unreadable", "rows.xlsx is no .xlsx file"),
    "rows.xls": ("PK", "unknown_file", "none of .jsonl"),
    "pictures.jsonl": ('{"file": "cats/1.png", "question": "a", "answer": "b"}', "unknown_columns", "pictures or sound (file)"),
    "dpo.jsonl": (
        '{"input": {"messages": []}, "preferred_output": [], "non_preferred_output": []}',
        "preference_data",
        "OpenAI",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_check_refuses_the_job_refuses_with_the_same_words(runs, tiny_model, tmp_path, name):
    content, code, said = BROKEN[name]
    (tmp_path / name).write_text(content)
    run = runs.start("--base-model", str(tiny_model), "--dataset", str(tmp_path / name))
    commands = Commands(runs.hub.env(token=ADA), tmp_path)
    [problem] = commands.json("check.py", str(tiny_model), str(tmp_path / name), code=1)["problems"]
    failed = run.wait().last("failed")
    assert run.code == 1
    assert (failed["code"], failed["message"], failed["fix"]) == (problem["code"], problem["message"], problem["fix"])
    assert code == problem["code"] and said in problem["message"]


def test_a_file_that_has_changed_is_read_again(runs, tiny_model, tmp_path):
    words = ["--base-model", str(tiny_model), "--dataset", "rows.jsonl", "--max-steps", "1", "--eval-split", "0"]
    file = write_shape(tmp_path, SHAPES["plain"][0])
    first = runs.start(*words, folder=tmp_path).wait().last("data")
    file.write_text(file.read_text() + "\n" + file.read_text())
    second = runs.start(*words, folder=tmp_path).wait().last("data")
    assert (first["rows"], second["rows"]) == (12, 24)
    assert first["revision"] != second["revision"]


def test_rows_of_many_shapes_on_the_hub_are_read_alike(runs, tiny_model, tmp_path):
    shapes = [row for name in ("names", "weights", "thoughts", "tools", "arguments as text") for row in SHAPES[name][0]]
    (tmp_path / "data").mkdir()
    write_shape(tmp_path / "data", [{"messages": row["messages"]} for row in shapes])
    runs.hub.add_repo("ada/shapes", tmp_path / "data", type="dataset")
    run = runs.start("--base-model", str(tiny_model), "--dataset", "ada/shapes", "--max-steps", "1", "--eval-split", "0")
    found = Commands(runs.hub.env(token=ADA), tmp_path).json("check.py", str(tiny_model), "ada/shapes")
    masks = run.wait().last("masks")
    assert masks["rows_kept"] == 12 == 12 - found["mask"]["rows_without_answer"]
    assert masks["supervised_fraction"] == found["mask"]["supervised_fraction"]


HOOK = """    if row["solved"] == "no":
        return []
    return [{"role": "user", "content": row["ticket"]["text"]}, {"role": "assistant", "content": row["replies"][-1]}]
"""


def write_copy(folder: Path, hook: str) -> Path:
    """A copy of the template whose to_messages is filled in."""
    text, empty = (ROOT / "templates" / "sft.py").read_text("utf-8"), "    return None\n\n\ndef find_format"
    assert text.count(empty) == 1
    (folder / "mine.py").write_text(text.replace(empty, hook + "\n\ndef find_format"), encoding="utf-8")
    return folder / "mine.py"


def test_a_copy_s_own_reading_of_rows_is_checked_and_trained_on(runs, training_python, tiny_model, tmp_path):
    shape = {"ticket": {"text": "Where is {}?", "id": 1}, "replies": ["Wait.", "Here it is."], "solved": "yes"}
    file, copy = write_shape(tmp_path, [shape, {**shape, "solved": "no"}]), write_copy(tmp_path, HOOK)
    commands = Commands(runs.hub.env(token=ADA), tmp_path)
    found = commands.json("check.py", str(tiny_model), str(file), "--script", str(copy))
    words = ["--base-model", str(tiny_model), "--dataset", str(file), "--max-steps", "1", "--eval-split", "0"]
    done = subprocess.run(
        [training_python, str(copy), *words], cwd=tmp_path, capture_output=True, text=True, env=runs.hub.env()
    )
    events = [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("EVENT ")]
    [masks] = [event for event in events if event["event"] == "masks"]
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert masks["rows_kept"] == 6 and masks["dropped"] == {"to_messages leaves it out": 6}
    assert masks["sample"] == found["mask"]["sample"] and "Here it is." in str(masks["sample"])
    assert found["mask"]["rows_without_answer"] == 6 and found["dataset"]["unused"] == []


@pytest.mark.parametrize(
    "hook", ['    return row["title"]\n', '    return [{"role": "user"}] if row["ticket"] else row["title"]\n']
)
def test_a_copy_s_own_reading_that_fails_is_named(runs, tiny_model, tmp_path, hook):
    file, copy = (
        write_shape(tmp_path, [{"ticket": "", "replies": "a"}, {"ticket": "q", "replies": "a"}]),
        write_copy(tmp_path, hook),
    )
    commands = Commands(runs.hub.env(token=ADA), tmp_path)
    [problem] = commands.json("check.py", str(tiny_model), str(file), "--script", str(copy), code=1)["problems"]
    assert (problem["code"], problem["message"]) == (
        "to_messages_failed",
        "to_messages fails on the first row: KeyError: 'title'",
    )


def test_pictures_beside_named_columns_are_left_alone(runs, tiny_model, tmp_path):
    """Also where they are none that could be opened."""
    picture, text = {"_type": "Image"}, {"_type": "Value", "dtype": "string"}
    about = json.dumps({"info": {"features": {"image": picture, "q": text, "a": text}}})  # as datasets writes it
    rows = [{"image": {"bytes": b"no picture", "path": None}, "q": f"Row {number}?", "a": "Yes."} for number in range(12)]
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"huggingface": about})
    pq.write_table(table, tmp_path / "rows.parquet")
    columns = ["--prompt-column", "q", "--completion-column", "a"]
    words = ["--base-model", str(tiny_model), "--dataset", str(tmp_path / "rows.parquet"), *columns, "--max-steps", "1"]
    run = runs.start(*words).wait()
    commands = Commands(runs.hub.env(token=ADA), tmp_path)
    found = commands.json("check.py", str(tiny_model), str(tmp_path / "rows.parquet"), *columns)
    assert run.code == 0, run.log[-3000:]
    assert (
        run.last("masks")["rows_kept"] == 11 and run.last("data")["unused_columns"] == ["image"] == found["dataset"]["unused"]
    )
