"""What people read of a check: rows, cards, secrets, a Hub in trouble."""

# ruff: noqa: F811 (fixtures are those of test_check.py)

from __future__ import annotations

import json

import pytest
import sft
from commands import Commands
from conftest import make_tokenizer
from test_check import CHATML, LLAMA, chat, check, hub, llama_tensors, model_folder, shared, write_rows  # noqa: F401


def test_a_hub_in_trouble_is_no_verdict_on_the_run(hub, commands):
    hub.faults.add(path="^/api/models/ada/tiny$", status=503)
    said = commands.run("check.py", "ada/tiny", "ada/docs", code=4)
    assert "Could not be checked:" in said.stdout and "Not sound" not in said.stdout
    hub.faults.clear()
    assert "Not sound:" in commands.run("check.py", "ada/nothing", "ada/docs", code=1).stdout


def test_a_long_row_is_shown_without_its_middle(hub, commands, tmp_path):
    row = chat("FIRST " + "question " * 2000, "answer " * 50 + "LAST")
    write_rows(tmp_path, {"long.jsonl": [row] * 3})
    shown = commands.run("check.py", "ada/tiny", "long.jsonl", "--max-length", "30000").stdout
    row = shown.partition("its loss mask")[2]
    assert len(row) < 2500 and "FIRST" in row and "LAST<|im_end|>⟧" in row and " characters …]" in row
    whole = commands.json("check.py", "ada/tiny", "long.jsonl", "--max-length", "30000")["mask"]["sample"]
    assert sum(len(part["text"]) for part in whole) > 18_000


def test_a_card_without_metadata_is_nothing_to_tell(hub, commands, tmp_path):
    write_rows(tmp_path / "bare", {"train.jsonl": [chat("q", "a")] * 60})
    (tmp_path / "bare" / "README.md").write_text("# No metadata here\n")
    hub.add_repo("ada/bare", tmp_path / "bare", type="dataset")
    assert "metadata" not in commands.run("check.py", "ada/tiny", "ada/bare").stderr


PARTS = [{"text": "a" * 1500, "learned": False}, {"text": "b" * 600, "learned": True}, {"text": "c" * 4000, "learned": False}]


@pytest.mark.parametrize("segments", [PARTS, PARTS[::-1], PARTS[:2], PARTS[2:], PARTS[1:2]])
def test_what_is_left_out_of_a_row_is_counted(segments):
    import check as command

    made = command.shortened(segments)
    whole, kept = ("".join(part["text"] for part in parts) for parts in (segments, made))
    if len(whole) <= command.ROW_CHARS:
        assert made == segments
        return
    head, _, tail = kept.partition(f"\n[… {len(whole) - command.ROW_CHARS:,} characters …]\n")
    assert len(head + tail) == command.ROW_CHARS and whole.startswith(head) and whole.endswith(tail)


SECRET = "hf_" + "aB3" * 12  # by its shape alone


def test_calls_that_no_template_renders_and_secrets_in_rows_are_told(shared, check, tmp_path):
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
    turns = [
        *chat("What is 2+2?", "")["messages"][:1],
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "Four."},
    ]
    # As a text, since rows of turns with different keys are read by others' rules.
    rows = [{"messages": json.dumps(turns)}] + [{"messages": json.dumps(chat("Who?", f"I{n}.")["messages"])} for n in range(60)]
    rows.append({"messages": json.dumps(chat("My token?", f"It is {SECRET}.")["messages"])})
    shared.add_repo("data/calls", write_rows(tmp_path / "calls", {"train.jsonl": rows}), type="dataset")
    shared.add_repo("masks/chatml", model_folder(tmp_path / "model", LLAMA, llama_tensors(), make_tokenizer(CHATML)))
    found = check("masks/chatml", "data/calls")
    assert found["ok"] and list(found["codes"]) == ["calls_not_rendered", "secret_in_rows"]
    assert (
        found["mask"]["calls_not_rendered_rows"] == 1
        and "1 of the first 62 rows" in found["codes"]["secret_in_rows"]["message"]
    )


def test_the_digest_is_what_the_template_makes_of_the_same_rows(shared, check, tmp_path):
    rows = [chat(f"What is {number}?", "A number.") for number in range(60)]
    folder = write_rows(tmp_path / "rows", {"train.jsonl": rows})
    shared.add_repo("masks/same", model_folder(tmp_path / "same", LLAMA, llama_tensors(), make_tokenizer(CHATML)))
    seen = {count: check("masks/same", str(folder / "train.jsonl"), "--sample", count)["mask"] for count in ("3", "9", "500")}
    renderer = sft.make_renderer(make_tokenizer(CHATML), sft.Format("messages", {}))
    expected = sft.digest_of(renderer, sft.Format("messages", {"messages": "messages"}), rows)
    assert {count: mask["digest"] for count, mask in seen.items()} == {"3": None, "9": expected, "500": expected}


def test_a_row_is_shown_on_a_screen_without_its_secrets(tmp_path, tiny_model):
    long = f"It begins, {SECRET}, " + "and goes on, " * 2000 + "and ends."
    write_rows(tmp_path, {"rows.jsonl": [chat("Why?", long)] * 60})
    commands = Commands({"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}, tmp_path)
    words = ("check.py", str(tiny_model), "rows.jsonl", "--where", "local", "--max-length", "100000")
    shown = commands.run(*words).stdout
    assert "It begins" in shown and "and ends." in shown and " characters …]" in shown and len(shown) < 5000
    assert SECRET not in shown
    segments = commands.json(*words)["mask"]["sample"]
    assert sum(len(part["text"]) for part in segments) > 20_000 and SECRET not in str(segments)
