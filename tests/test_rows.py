"""Columns → format, rows → messages: what data sets call things, and what is said when they cannot be read."""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sft
from conftest import make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

QUESTION, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


@pytest.mark.parametrize(
    ("row", "name", "expected"),
    [
        ({"messages": [QUESTION, ANSWER]}, "messages", {"messages": [QUESTION, ANSWER]}),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "score": 5},
            "sharegpt",
            {"messages": [QUESTION, ANSWER]},
        ),
        ({"prompt": "Hi", "completion": "Hello"}, "prompt-completion", {"prompt": "Hi", "completion": "Hello"}),
        ({"prompt": [QUESTION], "completion": [ANSWER]}, "prompt-completion", {"messages": [QUESTION, ANSWER]}),
        ({"question": "Hi", "answer": "Hello"}, "prompt-completion", {"prompt": "Hi", "completion": "Hello"}),
        ({"instruction": "Add", "input": "2 and 2", "output": "4"}, "alpaca", {"prompt": "Add\n\n2 and 2", "completion": "4"}),
        ({"instruction": "Add", "input": "", "output": "4"}, "alpaca", {"prompt": "Add", "completion": "4"}),
        ({"text": "Once upon a time"}, "text", {"text": "Once upon a time"}),
        ({"messages": '[{"role": "user", "content": "Hi"}]'}, "messages", {"messages": [QUESTION]}),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}, "messages", {"messages": [QUESTION]}),
    ],
)
def test_a_row_of_each_format(row, name, expected):
    layout = sft.detect_format(row)
    assert layout.name == name
    assert sft.normalise_row(row, layout) == expected


def test_named_columns_win_over_guessing():
    layout = sft.detect_format(["problem", "text", "solution"], "problem", "solution")
    row = {"problem": "Hi", "solution": "Hello", "text": "no"}
    assert sft.normalise_row(row, layout) == {"prompt": "Hi", "completion": "Hello"}


@pytest.mark.parametrize(
    ("columns", "code"),
    [(["chosen", "rejected"], "preference_data"), (["image", "label"], "unknown_columns"), ([], "unknown_columns")],
)
def test_columns_that_cannot_be_read_stop_with_what_to_do(columns, code):
    with pytest.raises(sft.Stop) as stop:
        sft.detect_format(columns)
    assert stop.value.code == code
    assert stop.value.fix


@pytest.mark.parametrize(
    ("columns", "fix"),
    [
        (["question_text", "reply"], "--prompt-column question_text --completion-column reply"),
        (["Date", "Reply", "Ticket"], "--prompt-column Ticket --completion-column Reply"),
        (["first", "second", "third"], "--prompt-column first --completion-column second"),
        (["question;answer"], "commas"),
        (["prompt", "chosen", "rejected"], "--completion-column chosen"),
        (["data"], "jq -c '.data[]' FILE > rows.jsonl"),
    ],
)
def test_the_fix_can_be_pasted(columns, fix):
    with pytest.raises(sft.Stop) as stop:
        sft.detect_format(columns)
    assert fix in stop.value.fix


def test_a_named_column_that_is_missing_is_said():
    with pytest.raises(sft.Stop, match="'answer'"):
        sft.detect_format(["question"], "question", "answer")


@pytest.mark.parametrize(
    ("columns", "fix"),
    [
        (["How do I log in?", "Use the blue button."], "a line with the columns' names above it"),
        (["12", "7"], "a line with the columns' names above it"),
        (["role", "content"], '{"messages": [{"role": "user"'),
    ],
)
def test_a_row_is_not_taken_for_the_names_of_columns(columns, fix):
    with pytest.raises(sft.Stop) as stop:
        sft.detect_format(columns)
    assert fix in stop.value.fix
    assert "--prompt-column" not in stop.value.fix


@pytest.mark.parametrize(
    "columns", [["image", "question", "answer"], ["images", "messages"], ["picture", "question", "answer"]]
)
def test_answers_about_pictures_are_not_learned_without_them_unless_their_columns_are_named(columns):
    with pytest.raises(sft.Stop, match="only text can be learned"):
        sft.detect_format(columns, media=["picture"])
    if "question" in columns:
        assert sft.detect_format(columns, "question", "answer", ["picture"]).columns["prompt"] == "question"
    with pytest.raises(sft.Stop, match="only text can be learned"):
        sft.detect_format(columns, columns[0], columns[1], columns[:1])


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        ("Hi", [ANSWER], [QUESTION, ANSWER]),
        ("Hi", [QUESTION, ANSWER], [QUESTION, ANSWER]),  # as in the data sets of preferences
        ([QUESTION], [QUESTION, ANSWER], [QUESTION, ANSWER]),
        ([QUESTION], "Hello", [QUESTION, ANSWER]),
        ([QUESTION], [ANSWER], [QUESTION, ANSWER]),
    ],
)
def test_a_prompt_and_its_completion_may_be_text_or_turns(prompt, completion, expected):
    layout = sft.detect_format(["prompt", "chosen", "rejected"], "prompt", "chosen")
    assert sft.normalise_row({"prompt": prompt, "chosen": completion}, layout) == {"messages": expected}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (4, "4"),
        (0.5, "0.5"),
        (True, "true"),
        ({"kind": "é", "none": None}, '{"kind": "é", "none": null}'),
        (["a", "b"], '["a", "b"]'),
        ([{"type": "text", "text": "a", "image_url": None}], "a"),
        (None, ""),
        ("4", "4"),
    ],
)
def test_an_answer_that_is_no_text_is_learned_as_json(value, text):
    row = {"question": "Hi", "answer": sft.as_cell(value)}
    for one in (row, row | {"answer": value}):  # as read from a local file, and as datasets gives it
        assert sft.normalise_row(one, sft.detect_format(row))["completion"] == text


def test_a_picture_in_a_column_and_a_row_without_bound_say_so():
    layout = sft.detect_format(["question", "answer"])
    for answer, said in (
        ([{"type": "image_url", "image_url": {"url": "u"}}], "image_url, and only text"),
        ({"bytes": b"PNG", "path": None}, "only text"),
        ("x" * (sft.ROW_LIMIT + 1), "longer than 5 MB"),
    ):
        with pytest.raises(ValueError, match=said):
            sft.normalise_row({"question": "Hi", "answer": answer}, layout)


def rows_of(file: Path) -> list[dict]:
    """As the job's rows come out of their cells."""
    settings = sft.parse_args(["--dataset", str(file)])
    return [
        {name: sft.from_cell(value) for name, value in row.items()} for row in sft.scan_file(sft.local_file(settings), 9).first
    ]


READABLE = {
    "plain.jsonl": (b'{"text": "a"}\n\n{"text": "b"}', [{"text": "a"}, {"text": "b"}]),
    "UPPER.JSONL": (b'{"text": "a"}', [{"text": "a"}]),
    "bom.json": (b'\xef\xbb\xbf{"text": "a"}', [{"text": "a"}]),
    "list.json": (b'[{"a": 1},\n {"b": null}]', [{"a": 1, "b": None}, {"a": None, "b": None}]),
    "printed.json": (b'{\n "a": {"x": [1]}\n}\n{\n "a": "y"\n}', [{"a": {"x": [1]}}, {"a": "y"}]),
    "big.jsonl": (b'{"a": {"n": 1208925819614629174706176}}', [{"a": {"n": 2**80}}]),
    "emoji.jsonl": (b'{"text": "a\\ud83d"}\n{"text": "\\ud83d\\ude00"}', [{"text": "a\ufffd"}, {"text": "\U0001f600"}]),
    "spreadsheet.csv": (b'q;a\r\n"1; 2";"x\r\ny"\r\n3;\r\n', [{"q": "1; 2", "a": "x\r\ny"}, {"q": "3", "a": ""}]),
    "numbers.csv": (b"q,a\n1,NA\n2\n", [{"q": "1", "a": "NA"}, {"q": "2", "a": None}]),
    "tabs.tsv": (b"q\ta\n1\t2\n", [{"q": "1", "a": "2"}]),
    "lines.txt": (b"a\r\n\r\nb", [{"text": "a"}, {"text": "b"}]),
    "packed.jsonl.gz": (gzip.compress(b'{"text": "a"}\n{"text": "b"}'), [{"text": "a"}, {"text": "b"}]),
    "PACKED.CSV.GZ": (gzip.compress(b"q;a\n1;2\n"), [{"q": "1", "a": "2"}]),
    "list.json.gz": (gzip.compress(b'[{"a": 1}]'), [{"a": 1}]),
    "latin.csv": ("q;a\nWas?;Öl – 5 €\n".encode("cp1252"), [{"q": "Was?", "a": "Öl – 5 €"}]),
    "ansi.txt": ("Où est l’été ?\nÀ Évian.".encode("cp1252"), [{"text": "Où est l’été ?"}, {"text": "À Évian."}]),
    "unicode.tsv": ("q\ta\r\nWas?\tÖl\r\n".encode("utf-16"), [{"q": "Was?", "a": "Öl"}]),
    "shell.jsonl": ('{"text": "Öl"}\r\n'.encode("utf-16"), [{"text": "Öl"}]),
    "stated.csv": (b"sep=|\r\nq, or a;a|b\r\n1|2\r\n", [{"q, or a;a": "1", "b": "2"}]),
    "commas.csv": (
        b"Ticket, text;Reply\nHi, all, it broke;Sorry\nHelp;Yes, soon\n",
        [{"Ticket, text": "Hi, all, it broke", "Reply": "Sorry"}, {"Ticket, text": "Help", "Reply": "Yes, soon"}],
    ),
    "below.csv": (b"\n;;\nq;a;\n1;2;\n", [{"q": "1", "a": "2", "column 3": ""}]),
    "mac.csv": (b"q,a\r1,2\r", [{"q": "1", "a": "2"}]),
    "trailing.csv": (b"q;a;;\n1;2;;\n;;;\n", [{"q": "1", "a": "2", "column 3": "", "column 4": ""}]),
}


@pytest.mark.parametrize("name", READABLE)
def test_a_local_file_is_read(tmp_path, name):
    content, expected = READABLE[name]
    (tmp_path / name).write_bytes(content)
    assert rows_of(tmp_path / name) == expected


UNREADABLE = {
    "null.jsonl": (b'{"text": "a"}\nnull\n', "Line 2 of null.jsonl is null", "Write an object"),
    "null.json": (b"null", "Line 1 of null.json is null", "Write an object"),
    "cut.jsonl": (b'{"text": "a"}\n' * 999 + b'{"text":', "Line 1,000 of cut.jsonl is not sound JSON", "that line"),
    "first.jsonl": (b'{"text":\n{"text": "a"}\n', "Line 1 of first.jsonl is not sound JSON", "that line"),
    "page.jsonl": (b"<html>\n", "Line 1 of page.jsonl", "that line"),
    "cut.json": (b'[{"text": "a"},\n{"text": "b"}', "Line 2 of cut.json is the last one", "again"),
    "comma.json": (b'[{"text": "a"}\n{"text": "b"}]', "Line 2 of comma.json", "Write an object"),
    "turns.jsonl": (b'[{"role": "user"}]\n[{"role": "user"}]', "Line 2 of turns.jsonl goes on", '{"messages": [{"role"'),
    "deep.jsonl": (b'{"text": ' + b"[" * 99_999 + b"]" * 99_999 + b"}", "nested too deeply", "that line"),
    "long.jsonl": (b'{"a": 1}\n{"text": "' + b"x" * 60_000_000 + b'"}', "Line 2 of long.jsonl is longer than 5 MB", "Split it"),
    "long.json": (b'[{"text": "' + b"x" * 60_000_000 + b'"}]', "longer than 5 MB", "Split it"),
    "wild.jsonl": (b"".join(b'{"k%d": 1}\n' % number for number in range(2000)), "1,000 different columns", "same few names"),
    "empty.jsonl": (b"", "empty.jsonl is empty", "Write a row"),
    "blank.json": (b"\n\n", "blank.json is empty", "Write a row"),
    "latin.jsonl": ('{"text": "Öl"}\n'.encode("latin-1"), "Line 1 of latin.jsonl is not UTF-8", "iconv -f WINDOWS-1252"),
    "russian.csv": ("q,a\nДа?,Нет\n".encode("cp1251"), "Line 2 of russian.csv is not UTF-8", "CSV UTF-8"),
    "polish.csv": ("q,a\n1,zażółć małą gąskę łabędź późno\n".encode("cp1250"), "Line 2 of polish.csv is not UTF-8", "iconv"),
    "utf16.csv": ("q,a\n1,2\n".encode("utf-16-le"), "looks like UTF-16", "iconv -f UTF-16LE -t UTF-8 utf16.csv > utf8.csv"),
    "odd.csv": ("q,a\n1,2\n".encode("utf-16") + b"x", "not the UTF-16 text", "Save it again"),
    "wide.json": ('{"text": "a"}'.encode("utf-32"), "UTF-32", "iconv -f UTF-32"),
    "names.csv": (b"q,a\n", "names.csv holds no rows", "below the names"),
    "open.csv": (b'q,a\n1,2\n"a,b\nc,d\n', "Line 3 of open.csv begins a row whose quotes do not match", "Close each cell"),
    "stray.csv": (b'q,a\n"He said "hi"",b\n', "Line 2 of stray.csv", "twice"),
    "wide.csv": (b"q,a\n1,2,3\n", "Line 2 of wide.csv has 3 cells", "between quotes"),
    "twice.csv": (b"a,a\n1,2\n", "names a column twice", "name of its own"),
    "tickets.xlsx": (b"q;a\n", "tickets.xlsx is no .xlsx file: it begins as plain text does", "Rename it"),
    "zip.xlsx": (b"PK\x03\x04" + bytes(99), "zip.xlsx cannot be read as a workbook", "save it again as .xlsx"),
    "sheet.csv": (b"PK\x03\x04" + bytes(99), "begins as a .xlsx or .zip does", "Rename it"),
    "old.xls": (b"x", "none of .jsonl", "save it as .xlsx"),
    "my rows.jsonl.gz": (b"{}", "my rows.jsonl.gz is no .gz file", "Rename it"),
    "packed.jsonl": (gzip.compress(b"{}"), "begins as a .gz does", "Rename it"),
    "cut.csv.gz": (gzip.compress(b"q,a\n1,2\n")[:-9], "cut.csv.gz cannot be unpacked", "Pack or download it again"),
    "bad.jsonl.gz": (gzip.compress(b'{"text": "a"}\n{"text":'), "Line 2 of bad.jsonl.gz is not sound JSON", "that line"),
    "rows.parquet": (b"q,a\n", "rows.parquet is no .parquet file", "Rename it"),
    "rows.tar.gz": (b"x", "none of .jsonl", "gunzip "),
    "rows.zip": (b"x", "none of .jsonl", "unzip "),
    "rows.pdf": (b"x", "none of .jsonl", "questions and answers"),
    "rows.bin": (b"x", "none of .jsonl", "Save it as .jsonl"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_local_file_that_cannot_be_read_says_where_and_what_to_do(tmp_path, name):
    content, message, fix = UNREADABLE[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(sft.Stop) as stop:
        rows_of(tmp_path / name)
    assert message in stop.value.message
    assert fix in stop.value.fix


CELL = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@settings(deadline=None)
@given(CELL)
def test_a_cell_is_the_value_that_was_written(value):
    assert sft.from_cell(sft.as_cell(value)) == value or isinstance(value, str)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.dictionaries(st.sampled_from("abc"), CELL, min_size=1), min_size=1, max_size=5))
def test_any_rows_are_read_back_from_lines_and_from_a_document(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("rows")
    columns = dict.fromkeys(name for row in rows for name in row)
    (folder / "lines.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "printed.json").write_text(json.dumps(rows, indent=1))
    expected = [{name: sft.from_cell(sft.as_cell(row.get(name))) for name in columns} for row in rows]
    assert rows_of(folder / "lines.jsonl") == rows_of(folder / "printed.json") == expected


def calls_of(function: Callable[[], object]) -> int:
    """How many functions are called in it, of Python and of C."""
    calls = 0

    def count(_: object, event: str, __: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    return calls


def test_a_conversation_takes_as_much_work_as_it_has_turns(tmp_path):
    def read(turns: int) -> None:
        (tmp_path / "long.jsonl").write_text(json.dumps({"messages": [QUESTION, ANSWER] * (turns // 2)}))
        [row] = sft.scan_file(tmp_path / "long.jsonl", 9).first
        assert len(sft.normalise_row(row, sft.detect_format(row))["messages"]) == turns

    read(10)  # what is imported or compiled once
    assert calls_of(lambda: read(10_000)) < 12 * calls_of(lambda: read(1_000))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train.jsonl", b"\nnull\n", "Line 2 of train.jsonl is null"),
        ("train.json", b" [ null, {}]", "Line 1 of train.json begins with null"),
        ("test.jsonl", b"\xef\xbb\xbfnull\r\n", "Line 1 of test.jsonl is null"),
        ("train.jsonl.gz", gzip.compress(b'{"text": "a"}\nnull', mtime=0), "Line 2 of train.jsonl.gz is null"),
    ],
)
def test_a_null_in_a_folder_s_files_does_not_end_the_process(tmp_path, file, content, message):
    (tmp_path / "train-0.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / file).write_bytes(content)
    for streaming in (True, False):
        with pytest.raises(sft.Stop, match=message):
            sft.load_rows(sft.parse_args(["--dataset", str(tmp_path)]), streaming)


def test_a_null_that_pyarrow_takes_for_a_block_s_first_row_stops_the_run_that_reads_it(tmp_path):
    row = json.dumps({"question": "a" * 18, "answer": "bbbb"}) + "\n"
    (tmp_path / "train.jsonl").write_text(row * 250_000 + "null\n" * 9 + row)
    with pytest.raises(sft.Stop, match=r"Line 250,001 of train.jsonl is null"):
        sft.load_rows(sft.parse_args(["--dataset", str(tmp_path)]))


def test_a_document_may_have_a_null_on_a_line_of_its_own(tmp_path):
    (tmp_path / "train.json").write_text('[\n{"text": "a", "kinds": [\nnull\n]}\n]')
    assert [row["text"] for row in sft.load_rows(sft.parse_args(["--dataset", str(tmp_path)]), streaming=True)] == ["a"]


def test_the_revision_of_a_file_is_its_digest(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b"x" * 3_000_000)
    found = sft.data_revision(sft.parse_args(["--dataset", str(tmp_path / "rows.jsonl")]))
    assert found == "sha256:" + hashlib.sha256(b"x" * 3_000_000).hexdigest()


def test_arrow_s_nulls_are_dropped_before_the_template_sees_them():
    """A column of structs holds every key in every row; templates ask `tool_calls is defined`."""
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1, "b": None}}}
    turn = {"role": "assistant", "content": None, "tool_calls": [call], "name": None}
    assert sft.normalise_message(turn) == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}],
    }


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "narrator", "content": "x"}, "narrator"),
        ({"role": "user", "content": [{"type": "image"}]}, "image"),
        ({"role": "user", "content": 7}, "int"),
    ],
)
def test_a_message_that_cannot_be_learned_says_why(message, said):
    with pytest.raises(ValueError, match=said):
        sft.normalise_message(message)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


@given(st.fixed_dictionaries({"messages": ANYTHING}), st.sampled_from(["messages", "sharegpt"]))
def test_no_row_breaks_normalising_with_anything_but_a_reason(row, name):
    try:
        result = sft.normalise_row(row, sft.Format(name, {"messages": "messages"}))
    except ValueError as error:
        assert str(error)
    else:
        assert all(turn["role"] in sft.ROLES.values() for turn in result["messages"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--dataset", ""], "--dataset is needed"),
        (["--eval-split", "1.5"], "--eval-split is a share"),
        (["--output-repo", "lfm"], "OWNER/NAME"),
        (["--prompt-column", "q"], "go together"),
        (["--no-such-flag"], "unrecognized arguments"),
    ],
)
def test_wrong_settings_end_with_usage(arguments, said, capsys):
    with pytest.raises(SystemExit) as end:
        sft.parse_args(["--dataset", "x", *arguments])
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_the_flags_of_the_published_script_are_all_there():
    """unsloth/jobs' sft-lfm2.5.py has these; whoever knows it knows this one."""
    flags = """base-model dataset output-repo num-epochs max-steps batch-size gradient-accumulation learning-rate
    max-seq-length lora-r lora-alpha trackio-space run-name save-local eval-split num-samples seed merge-model"""
    names = {item.name.replace("_", "-") for item in sft.fields(sft.Settings)}
    assert set(flags.split()) <= names


def test_no_flag_is_one_that_hf_jobs_takes_for_itself():
    """`hf jobs uv run SCRIPT --name x` gives --name to hf, not to the script."""
    taken = [
        "name",
        "label",
        "env",
        "image",
        "timeout",
        "token",
        "secrets",
        "volume",
        "flavor",
        "namespace",
        "detach",
        "python",
        "with",
        "repo",
    ]
    assert not {item.name.replace("_", "-") for item in sft.fields(sft.Settings)} & set(taken)


def test_events_carry_no_token(capsys):
    sft.emit("warning", message="https://user:hf_abcdefghijklmnop@hub failed")
    line = capsys.readouterr().out
    assert line.startswith('EVENT {"event": "warning", "time": 1')
    assert line.endswith('"message": "https://user:***@hub failed"}\n')


def test_rows_that_are_dropped_come_first_and_the_others_are_encoded():
    from datasets import Dataset

    layout, good = sft.Format("messages", {"messages": "messages"}), [{"role": "user", "content": "a"}]
    good.append({"role": "assistant", "content": "b"})
    rows = Dataset.from_list([{"messages": [good[0] | {"content": "bad"}, good[1]]}] * 150 + [{"messages": good}] * 3)
    template = "{% for m in messages %}{% if m.content == 'bad' %}{{ raise_exception('no') }}{% endif %}" + (
        "<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    kept, summary = sft.encode_rows(rows, sft.Renderer(make_tokenizer(template)), layout, 100)
    assert summary["dropped"] == {"the chat template refuses it: “no”": 150} and len(kept) == 3
    assert kept[0]["input_ids"] and sft.IGNORE in kept[0]["labels"]
