"""Files as people have them: workbooks, tables of any delimiter and encoding, OpenAI's training files."""

from __future__ import annotations

import codecs
import csv
import datetime
import gzip
import io
import json
import re
import zipfile
from pathlib import Path

import openpyxl
import pytest
import sft
from conftest import make_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_rows import ANSWER, QUESTION, rows_of

# ---- workbooks


def workbook(file: Path, sheets: dict[str, list[list]], hidden: tuple[str, ...] = ()) -> Path:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        sheet.sheet_state = "hidden" if name in hidden else "visible"
        for row in rows:
            sheet.append(row)
    book.save(file)
    return file


def refusal(file: Path, *words: str) -> sft.Stop:
    with pytest.raises(sft.Stop) as stop:
        asked = sft.parse_args(["--dataset", str(file), *words])
        sft.scan_file(sft.local_file(asked), 9, asked.dataset_config)
    return stop.value


SHOWN = [
    ("a\nb", "a\nb"), (" a ", " a "), ("  ", None), (None, None), ("3", "3"), ("=1", None), (3, "3"), (3.0, "3"), (-0.5, "-0.5"),
    (0.1 + 0.2, "0.3"), (1 / 3, "0.333333333333333"), (1e300, "1e+300"), (123456789012, "123456789012"), (True, "TRUE"), (False, "FALSE"),
    (datetime.date(2026, 3, 1), "2026-03-01"), (datetime.datetime(2026, 3, 1, 14, 30), "2026-03-01 14:30:00"),
    (datetime.datetime(1999, 12, 31, 23, 59, 59), "1999-12-31 23:59:59"), (datetime.time(14, 30), "14:30:00"),
    (datetime.timedelta(hours=26, minutes=5), "26:05:00"), ("#N/A", None), ("Zürich – 日本 😀", "Zürich – 日本 😀"), ("a_x000D_\nb", "a\nb"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "text"), [pair for pair in SHOWN if pair[0] != "=1"])
def test_a_cell_becomes_the_text_that_is_seen_in_it(tmp_path, value, text):
    file = workbook(tmp_path / "rows.xlsx", {"Rows": [["q", "a"], ["x", value]]})
    assert rows_of(file) == [{"q": "x", "a": text}]


def test_a_workbook_is_read_by_the_names_in_its_first_row(tmp_path):
    rows = [["Ticket ", 2024, None], ["Where?", "Here.", None], [None, None, None], ["When?", None, None]]
    file = workbook(tmp_path / "TICKETS.XLSX", {"Tickets": [[None], *rows], "Sheet2": []})
    assert rows_of(file) == [{"Ticket": "Where?", "2024": "Here."}, {"Ticket": "When?", "2024": None}]
    with_index = workbook(tmp_path / "pandas.xlsx", {"Sheet1": [[None, "q", "a"], [0, "x", "y"]]})
    assert rows_of(with_index) == [{"column 1": "0", "q": "x", "a": "y"}]


def test_a_sheet_is_named_where_there_are_several_and_a_hidden_one_is_taken_only_by_its_name(tmp_path):
    sheets = {"Old ones": [["q", "a"], ["1", "old"]], "New": [["q", "a"], ["1", "new"]], "Lists": [["x"], ["y"]], "Empty": []}
    file = workbook(tmp_path / "rows.xlsx", sheets, hidden=("Lists",))
    stop = refusal(file)
    assert (stop.code, stop.message) == ("config_needed", "rows.xlsx has more than one sheet: Old ones, New.")
    assert stop.fix == "Pass one of them: --dataset-config 'Old ones'."
    stop = refusal(file, "--dataset-config", "new")
    assert (stop.code, stop.fix) == ("unknown_config", "Pass --dataset-config 'Old ones'.") and "Lists, Empty" in stop.message
    for name, rows in {"New": [{"q": "1", "a": "new"}], "Lists": [{"x": "y"}]}.items():
        assert sft.scan_file(file, 9, name).first == rows
        assert sft.scan_file(file, 9, name).read_as == {"sheet": name}
    assert refusal(workbook(tmp_path / "none.xlsx", {"Empty": [], "Lists": [["x"]]}, hidden=("Lists",))).code == "no_rows"


HEADS = {
    "title": ([["Tickets of May"], ["q", "a"], ["x", "y"]], "Column B of sheet 'Rows'", "no title above it"),
    "unnamed": ([["q", None, "a"], ["x", "z", "y"]], "Column B of sheet 'Rows'", "first row"),
    "beyond": ([["q", "a"], ["x", "y", "z"]], "Column C of sheet 'Rows'", "first row"),
    "twice": ([["q", "a", "q "], ["x", "y", "z"]], "names a column twice: q", "name of its own"),
    "alone": ([["q", "a"]], "holds no rows", "below the names"),
    "formula": ([["q", "a"], ["x", '=A2 & "y"']], "Cell B2 of sheet 'Rows' of formula.xlsx holds a formula", "save it again"),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_sheet_that_is_no_table_says_so(tmp_path, name):
    rows, message, fix = HEADS[name]
    stop = refusal(workbook(tmp_path / f"{name}.xlsx", {"Rows": rows}))
    assert message in stop.message and fix in stop.fix


def test_the_merged_name_of_two_columns_is_said(tmp_path):
    book = openpyxl.Workbook()
    for row in (["question and answer", None], ["x", "y"]):
        book.active.append(row)
    book.active.merge_cells("A1:B1")
    book.save(tmp_path / "merged.xlsx")
    stop = refusal(tmp_path / "merged.xlsx")
    assert "Column B of sheet 'Sheet' of merged.xlsx has no name" in stop.message and "merged" in stop.fix


def test_a_formula_is_its_stored_value_which_may_be_an_empty_text_or_an_error(tmp_path):
    """As spreadsheet programs write them; openpyxl stores no values."""
    file = workbook(tmp_path / "made.xlsx", {"Rows": [["q", "a", "b", "c"], ["x", "=1", "=2", "=3"]]})
    stored = {b"<f>1</f><v></v>": b"<f>1</f><v>7</v>", b"<f>2</f><v></v>": b"<f>2</f><v>#REF!</v>"}
    stored[b"<f>3</f><v></v>"] = b"<f>3</f><v></v>"
    with zipfile.ZipFile(file) as made, zipfile.ZipFile(tmp_path / "rows.xlsx", "w") as written:
        for name in made.namelist():
            content = made.read(name).replace(b"<v />", b"<v></v>").replace(b"<v/>", b"<v></v>")
            for old, new in stored.items():
                if name == "xl/worksheets/sheet1.xml":
                    assert content.count(old) == 1, content
                content = content.replace(old, new)
            for cell, kind in ((b"C2", b"e"), (b"D2", b"str")):
                content = re.sub(rb'<c r="%s"' % cell, rb'<c r="%s" t="%s"' % (cell, kind), content)
            written.writestr(name, content)
    assert rows_of(tmp_path / "rows.xlsx") == [{"q": "x", "a": "7", "b": None, "c": None}]


def test_a_workbook_with_a_password_a_cut_one_and_one_that_would_fill_memory_say_so(tmp_path, monkeypatch):
    sealed = bytes.fromhex("d0cf11e0a1b11ae1") + bytes(900) + "EncryptedPackage".encode("utf-16-le") + bytes(900)
    (tmp_path / "sealed.xlsx").write_bytes(sealed)
    stop = refusal(tmp_path / "sealed.xlsx")
    assert stop.message == "sealed.xlsx is protected by a password." and "without a password" in stop.fix
    (tmp_path / "old.xlsx").write_bytes(sealed[:900])
    assert "an old .xls" in refusal(tmp_path / "old.xlsx").message
    whole = workbook(tmp_path / "rows.xlsx", {"Rows": [["q", "a"], *[[f"q{n}", f"a{n}"] for n in range(99)]]}).read_bytes()
    (tmp_path / "cut.xlsx").write_bytes(whole[: len(whole) // 2])
    assert "cut.xlsx cannot be read as a workbook" in refusal(tmp_path / "cut.xlsx").message
    with (
        zipfile.ZipFile(tmp_path / "bomb.xlsx", "w", zipfile.ZIP_DEFLATED) as packed,
        packed.open("xl/worksheets/sheet1.xml", "w", force_zip64=True) as content,
    ):
        for _ in range(11):
            content.write(bytes(1_000_000))
    monkeypatch.setattr(sft, "WORKBOOK_LIMIT", 10_000_000)
    stop = refusal(tmp_path / "bomb.xlsx")
    assert "unpacks to more than 10 MB" in stop.message and "CSV" in stop.fix


# ---- tables

NAME = st.text("abcdefgäößéñ XYZ019_", min_size=1, max_size=9).map(str.strip).filter(bool)
LETTERS = st.characters(codec="cp1252", exclude_characters="\r", exclude_categories=("Cc", "Cs")) | st.just("\n")
ESCAPE = re.compile("_x[0-9A-Fa-f]{4}_")  # which stands for a character in a workbook, and openpyxl writes as it is
VALUE = st.text(st.sampled_from("abcde,;|\t\"' äößéñ\n") | LETTERS, max_size=12).filter(lambda text: not ESCAPE.search(text))


@st.composite
def tables(draw: st.DrawFn) -> list[list[str]]:
    names = draw(st.lists(NAME, min_size=2, max_size=4, unique=True))
    row = st.lists(VALUE, min_size=len(names), max_size=len(names)).filter(any)
    return [names, *draw(st.lists(row, min_size=1, max_size=6))]


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables(), st.sampled_from(",;\t|"), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-be"]), st.sampled_from(["\n", "\r\n"]), st.booleans())  # fmt: skip
def test_any_table_is_read_back_whatever_its_delimiter_and_encoding(tmp_path, table, delimiter, encoding, ending, packed):
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator=ending).writerows(table)
    start = codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b""
    content = start + text.getvalue().encode(encoding)
    file = tmp_path / ("rows.csv.gz" if packed else "rows.csv")
    file.write_bytes(gzip.compress(content) if packed else content)
    names, *rows = table
    assert rows_of(file) == [dict(zip(names, row, strict=True)) for row in rows]


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables())
def test_any_table_is_read_back_from_a_workbook(tmp_path, table):
    names, *rows = [["'" + cell if cell.startswith("=") else cell for cell in row] for row in table]
    file = workbook(tmp_path / "rows.xlsx", {"Rows": [names, *rows]})
    expected = [{name: cell if cell.strip() else None for name, cell in zip(names, row, strict=True)} for row in rows]
    if kept := [row for row in expected if any(row.values())]:
        assert rows_of(file) == kept


WESTERN = st.lists(
    st.sampled_from(["Größe", "façon", "l’été", "mañana", "nähe", "5 €", "30 m²", "“so”", "café", "plain"]), min_size=1
)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(WESTERN, WESTERN), min_size=1, max_size=9))
def test_windows_1252_is_guessed_for_what_reads_like_a_western_language(tmp_path, rows):
    table = [{"q": " ".join(question), "a": " ".join(answer)} for question, answer in rows]
    text = "q;a\n" + "".join(f"{row['q']};{row['a']}\n" for row in table)
    (tmp_path / "rows.csv").write_bytes(text.encode("cp1252"))
    assert rows_of(tmp_path / "rows.csv") == table


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("cp1251", "Как изменить пароль?"),
        ("cp1253", "Πώς αλλάζω τον κωδικό μου;"),
        ("cp1250", "Chciałbym zmienić hasło, ponieważ zapomniałem go."),
        ("cp1250", "Chtěl bych změnit heslo, ať to jde."),
        ("cp932", "パスワードを変更するには？"),
        ("gbk", "如何更改我的密码？"),
        ("cp949", "비밀번호를 어떻게 변경하나요?"),
        ("cp1255", "איך משנים את הסיסמה"),
        ("mac_roman", "Ich möchte größere Schriften und mein Paßwort ändern"),
    ],
)
def test_another_alphabet_is_not_taken_for_windows_1252(tmp_path, language, text):
    (tmp_path / "rows.csv").write_bytes(f"q;a\n1;{text}\n".encode(language))
    stop = refusal(tmp_path / "rows.csv")
    assert "Line 2 of rows.csv is not UTF-8" in stop.message and "iconv -f ITS-ENCODING" in stop.fix


# ---- OpenAI's files

TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
CALL = {"name": "look_up", "arguments": '{"row": 1}'}


def test_openai_s_older_calls_of_functions_become_calls_of_tools():
    asks = {"role": "assistant", "content": None, "function_call": CALL}
    answers = {"role": "function", "name": "look_up", "content": "7"}
    row = {"messages": [QUESTION, asks, answers, ANSWER], "functions": [TOOL["function"]]}
    layout = sft.detect_format(row)
    made = sft.normalise_row(row, layout)
    assert layout.columns == {"messages": "messages", "functions": "functions"} and made["tools"] == [TOOL]
    call = {"id": "call00001", "type": "function", "function": {"name": "look_up", "arguments": {"row": 1}}}
    assert made["messages"][1:3] == [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "7", "tool_call_id": "call00001", "name": "look_up"},
    ]
    new = {**row, "tools": [TOOL]}  # a row of either kind in one file
    assert sft.normalise_row(new, sft.detect_format(new))["tools"] == [TOOL]
    assert sft.normalise_row({**new, "tools": None}, sft.detect_format(new))["tools"] == [TOOL]


def test_openai_s_preferences_are_named_and_their_preferred_answers_can_be_imitated():
    row = {"input": {"messages": [QUESTION], "tools": [TOOL], "parallel_tool_calls": True}}
    row |= {"preferred_output": [ANSWER], "non_preferred_output": [{**ANSWER, "content": "No"}]}
    with pytest.raises(sft.Stop) as stop:
        sft.detect_format(row)
    assert stop.value.code == "preference_data"
    asked = sft.parse_args(["--dataset", "x", *stop.value.fix.rstrip(".").rpartition(": ")[2].split()])
    layout = sft.detect_format(row, asked.prompt_column, asked.completion_column)
    assert sft.normalise_row(row, layout) == {"messages": [QUESTION, ANSWER], "tools": [TOOL]}


def test_turns_that_stand_as_columns_within_a_cell_are_read():
    row = {"conversations": {"from": ["human", "gpt"], "value": ["Hi", "Hello"]}}
    assert sft.normalise_row(row, sft.detect_format(row)) == {"messages": [QUESTION, ANSWER]}


@pytest.mark.parametrize(
    ("known", "said"), [("system", "<|system|>Be brief.<|end|>"), ("developer", "<|developer|>Be brief.<|end|>")]
)
def test_what_a_developer_says_reaches_a_template_that_has_no_such_role(known, said):
    """One that knows its roles by name, as most do, would leave it out without a word."""
    shown = f"{{% if m.role in ['{known}', 'user', 'assistant'] %}}<|{{{{ m.role }}}}|>{{{{ m.content }}}}<|end|>{{% endif %}}"
    template = f"{{% for m in messages %}}{shown}{{% endfor %}}{{% if add_generation_prompt %}}<|assistant|>{{% endif %}}"
    renderer = sft.Renderer(make_tokenizer(template))
    text, spans = renderer.render({"messages": [{"role": "developer", "content": "Be brief."}, QUESTION, ANSWER]})
    assert text == f"{said}<|user|>Hi<|end|><|assistant|>Hello<|end|>"
    assert [text[start:end] for start, end in spans] == ["Hello<|end|>"]


def test_a_refusal_is_learned_as_the_answer_that_it_is():
    said = {"role": "assistant", "content": None, "refusal": "I cannot."}
    assert sft.normalise_message(said) == {"role": "assistant", "content": "I cannot."}


@pytest.mark.parametrize("written", [json.dumps([QUESTION, ANSWER]), str([QUESTION, ANSWER])])
def test_turns_that_a_table_keeps_as_text_are_turns(written):
    """As JSON, or as pandas writes a list."""
    assert sft.normalise_row({"messages": written}, sft.detect_format(["messages"])) == {"messages": [QUESTION, ANSWER]}
    layout = sft.detect_format(["prompt", "completion"])
    row = {"prompt": "Hi", "completion": str([ANSWER]) if "'" in written else json.dumps([ANSWER])}
    assert sft.normalise_row(row, layout) == {"messages": [QUESTION, ANSWER]}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"kind": "refund", "note": None}, '{"kind": "refund", "note": null}'),
        ({"type": "refund", "text": "x"}, '{"type": "refund", "text": "x"}'),
        ({"type": "text", "text": "x"}, "x"),
    ],
)
def test_an_object_as_a_message_s_content_is_json_text_unless_it_is_a_part(content, text):
    assert sft.normalise_message({"role": "assistant", "content": content})["content"] == text
    assert sft.normalise_row({"question": "Hi", "answer": [{"type": "refund"}]}, sft.detect_format(["question", "answer"])) == {
        "prompt": "Hi",
        "completion": '[{"type": "refund"}]',
    }


@pytest.mark.parametrize("content", [{"type": "image_url", "image_url": {"url": "u"}}, [{"type": "image", "text": None}]])
def test_a_picture_as_a_message_s_content_says_so(content):
    with pytest.raises(ValueError, match="only text can be learned"):
        sft.normalise_message({"role": "user", "content": content})


@pytest.mark.parametrize("value", ["photos/a b.PNG".replace(" ", "_"), "https://example.com/x.jpg?size=2", "data:image/png;base64,iVBO", "call.wav"])  # fmt: skip
def test_names_of_pictures_and_sounds_in_a_column_count_as_such(value):
    row = {"question": "What is it?", "answer": "A cat.", "file": value}
    with pytest.raises(sft.Stop, match=r"pictures or sound \(file\)"):
        sft.find_format(sft.Settings(dataset="x"), list(row), row, [])
    named = sft.Settings(dataset="x", prompt_column="question", completion_column="answer")
    assert sft.find_format(named, list(row), row, []).name == "prompt-completion"
    row |= {"file": "see a.png for more"}
    assert sft.find_format(sft.Settings(dataset="x"), list(row), row, []).name == "prompt-completion"
