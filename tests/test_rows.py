"""Columns → format, rows → messages: what data sets call things, and what is said when they cannot be read."""

from __future__ import annotations

import pytest
import sft
from conftest import make_tokenizer
from hypothesis import given
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
        (["question;answer"], "commas"),
        (["prompt", "chosen", "rejected"], "--completion-column chosen"),
    ],
)
def test_the_fix_can_be_pasted(columns, fix):
    with pytest.raises(sft.Stop) as stop:
        sft.detect_format(columns)
    assert fix in stop.value.fix


def test_a_named_column_that_is_missing_is_said():
    with pytest.raises(sft.Stop, match="'answer'"):
        sft.detect_format(["question"], "question", "answer")


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
    assert line.endswith('"message": "https://user:hf_***@hub failed"}\n')


def test_rows_that_are_dropped_come_first_and_the_others_are_encoded():
    from datasets import Dataset

    layout, good = sft.Format("messages", {"messages": "messages"}), [{"role": "user", "content": "a"}]
    good.append({"role": "assistant", "content": "b"})
    rows = Dataset.from_list([{"messages": [good[0] | {"content": "bad"}, good[1]]}] * 150 + [{"messages": good}] * 3)
    template = "{% for m in messages %}{% if m.content == 'bad' %}{{ raise_exception('no') }}{% endif %}" + (
        "<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    kept, summary = sft.encode_rows(rows, sft.Renderer(make_tokenizer(template)), layout, 100)
    assert summary["dropped"] == {"the chat template refuses it: no": 150} and len(kept) == 3
    assert kept[0]["input_ids"] and sft.IGNORE in kept[0]["labels"]
