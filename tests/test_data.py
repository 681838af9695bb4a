"""What check.py reads of a file is what the job reads: each shape of rows through both, with the same rows and tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Commands
from runs import TOKEN

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
    commands = Commands(runs.hub.env(token=TOKEN), tmp_path)
    found = commands.json("check.py", str(tiny_model), str(file))
    masks, data = run.wait().last("masks"), run.last("data")
    assert run.code == 0, run.log[-3000:]
    assert (data["rows"], data["format"], data["columns"]) == (12, found["dataset"]["format"], found["dataset"]["used"])
    assert found["dataset"]["rows_source"] == "counted"
    assert masks["rows_kept"] == kept == 12 - found["mask"]["rows_without_answer"]
    assert (masks["supervised_fraction"], masks["sample"]) == (found["mask"]["supervised_fraction"], found["mask"]["sample"])
