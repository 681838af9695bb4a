"""Preferences: rows of every layout become pairs whose answers alone are compared, and each loss learns from them."""

from __future__ import annotations

import json

import dpo
import evaluate
import pytest
import sft
from conftest import ROOT, make_tokenizer
from conversations import CHATML, answer, user
from datasets import Dataset
from unsloth_jobs.estimate import preferences

DPO = ROOT / "templates" / "dpo.py"


def read(row: dict, **settings: str) -> dpo.Preference:
    layout = dpo.find_format(dpo.Settings(dataset="rows", **settings), list(row), row, ())
    return dpo.read_preference(row, layout)


def said(answer: dict | None) -> list[tuple[str, str]] | None:
    """A normalised row as its turns, those that are only read in brackets."""
    return answer and [
        (turn["role"], f"[{turn['content']}]" if turn["role"] != "assistant" or turn.get("weight") == 0 else turn["content"])
        for turn in dpo.as_messages(answer)
    ]


GOOD, BAD = [("user", "[Hi]"), ("assistant", "Hello")], [("user", "[Hi]"), ("assistant", "Go away")]


# ---- rows


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "Hello", "rejected": "Go away"},
        {"question": "Hi", "chosen": "Hello", "rejected": "Go away", "score": 4},
        {"prompt": [user("Hi")], "chosen": [answer("Hello")], "rejected": [answer("Go away")]},
        {"prompt": "Hi", "chosen": [answer("Hello")], "rejected": [answer("Go away")]},
        {"prompt": [user("Hi")], "chosen": "Hello", "rejected": answer("Go away")},
        {"chosen": [user("Hi"), answer("Hello")], "rejected": [user("Hi"), answer("Go away")]},
        {"prompt": "Hi", "chosen": [user("Hi"), answer("Hello")], "rejected": [user("Hi"), answer("Go away")]},
        {
            "input": {"messages": [user("Hi")], "tools": [], "parallel_tool_calls": True},
            "preferred_output": [answer("Hello")],
            "non_preferred_output": [answer("Go away")],
        },
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: Go away"},
        {"prompt": '\x1e[{"role": "user", "content": "Hi"}]', "chosen": "Hello", "rejected": "Go away"},
        {"instruction": "Hi", "chosen_response": "Hello", "rejected_response": "Go away"},
    ],
    ids=lambda row: "+".join(row),
)
def test_a_pair_is_read_whatever_its_columns_are_called(row):
    pair = read(row)
    assert (said(pair.chosen), said(pair.rejected)) == (GOOD, BAD)


@pytest.mark.parametrize(("label", "place"), [(True, 0), ("true", 0), (1, 0), (False, 1), ("0", 1)])
def test_a_single_answer_is_good_or_bad_by_its_label(label, place):
    found = read({"prompt": "Hi", "completion": "Hello", "label": label})
    assert said(found[place]) == GOOD and found[1 - place] is None


def test_what_the_assistant_said_in_the_prompt_is_not_compared():
    turns = [user("Hi"), answer("Hello"), user("And?")]
    pair = read({"prompt": turns, "chosen": [answer("Well")], "rejected": [answer("No")], "system": "Be kind"})
    read_only = [("system", "[Be kind]"), ("user", "[Hi]"), ("assistant", "[Hello]"), ("user", "[And?]")]
    assert said(pair.chosen) == [*read_only, ("assistant", "Well")]
    assert said(pair.rejected) == [*read_only, ("assistant", "No")]


def test_tools_belong_to_both_answers():
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    row = {
        "input": {"messages": [user("Hi")], "tools": tools},
        "preferred_output": [answer("a")],
        "non_preferred_output": [answer("b")],
    }
    assert [answer["tools"] for answer in read(row)] == [tools, tools]


def test_columns_can_be_named():
    row = {"ticket": "Hi", "sent": "Hello", "draft": "Go away", "prompt": "other"}
    pair = read(row, prompt_column="ticket", chosen_column="sent", rejected_column="draft")
    assert (said(pair.chosen), said(pair.rejected)) == (GOOD, BAD)
    single = {"ticket": "Hi", "reply": "Hello", "solved": True}
    assert said(read(single, prompt_column="ticket", completion_column="reply", label_column="solved").chosen) == GOOD


def test_a_script_reads_its_own_rows(monkeypatch):
    monkeypatch.setattr(dpo, "to_preference", lambda row: {"prompt": row["a"], "chosen": row["b"], "rejected": row["c"]})
    row = {"a": "Hi", "b": "Hello", "c": "Go away"}
    pair = read(row)
    assert (said(pair.chosen), said(pair.rejected)) == (GOOD, BAD)
    monkeypatch.setattr(dpo, "to_preference", lambda row: row["missing"])
    with pytest.raises(dpo.Stop) as stop:
        read(row)
    assert stop.value.code == "to_preference_failed"


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"chosen": "Hello", "rejected": "Go away"}, "no prompt"),
        ({"chosen": [user("Hi"), answer("a")], "rejected": [user("Ho"), answer("b")]}, "the same question"),
        ({"prompt": "Hi", "completion": "Hello", "label": "maybe"}, "neither true nor false"),
        ({"prompt": [{"role": "wizard", "content": "x"}], "chosen": "a", "rejected": "b"}, "unknown role"),
        ({"prompt": "Hi", "chosen": "a" * 6_000_000, "rejected": "b"}, "longer than 5 MB"),
    ],
)
def test_a_row_without_a_preference_says_why(row, why):
    with pytest.raises(ValueError, match=why):
        read(row)


@pytest.mark.parametrize(
    ("columns", "settings", "code", "fix"),
    [
        (["messages"], {}, "unknown_columns", "templates/sft.py"),
        (["prompt", "chosen"], {}, "unknown_columns", "--rejected-column"),
        (["prompt", "chosen", "rejected"], {"prompt_column": "ask"}, "unknown_column", "--prompt-column"),
        (["images", "prompt", "chosen", "rejected"], {"prompt_column": "images"}, "unknown_columns", "text"),
    ],
)
def test_columns_without_a_preference_stop_with_what_to_do(columns, settings, code, fix):
    with pytest.raises(dpo.Stop) as stop:
        dpo.find_format(dpo.Settings(dataset="rows", **settings), columns, {}, ())
    assert stop.value.code == code and fix in stop.value.fix


def test_the_better_answer_is_what_questions_are_made_of():
    row = {"prompt": "Hi", "chosen": [answer("Hello")], "rejected": [answer("Go away")]}
    layout = dpo.find_format(dpo.Settings(dataset="rows"), list(row), row, ())
    assert said(dpo.normalise_row(row, layout)) == GOOD
    plain = dpo.find_test_format(dpo.Settings(dataset="rows"), ["messages"], {}, ())
    assert plain.name == "messages"


def test_an_evaluation_asks_for_the_better_answer():
    row = {"prompt": "Hi", "chosen": [answer("Hello")], "rejected": [answer("Go away")]}
    layout = evaluate.find_format(evaluate.Settings(models="ada/polite"), list(row), row, ())
    assert said(evaluate.normalise_row(row, layout)) == GOOD
    with pytest.raises(evaluate.Stop):
        evaluate.find_format(evaluate.Settings(models="ada/polite"), ["image"], {}, ())


def test_imitation_says_that_preferences_have_a_template_of_their_own():
    for columns in (["prompt", "chosen", "rejected"], ["input", "preferred_output", "non_preferred_output"]):
        with pytest.raises(sft.Stop) as stop:
            sft.detect_format(columns)
        assert stop.value.code == "preference_data" and "dpo.py" in stop.value.fix


# ---- tokens


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(CHATML)


def encoded(tokenizer, rows: list[dict], loss: str = "sigmoid", max_length: int = 2048):
    data = Dataset.from_list(rows)
    layout = dpo.find_format(dpo.Settings(dataset="rows", loss=loss), data.column_names, rows[0], ())
    renderer = dpo.make_renderer(tokenizer, layout)
    return dpo.encode_preferences(data, renderer, layout, max_length, dpo.LOSSES[loss].paired)


def pair(prompt: str, chosen: str, rejected: str) -> dict:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def learned(tokenizer, ids: list[int], labels: list[int]) -> str:
    return "".join(part["text"] for part in dpo.segments(tokenizer, dpo.Example(ids, labels, 0, 0)) if part["learned"])


def test_the_answers_and_their_ends_are_compared_and_nothing_else(tokenizer):
    turns = [user("Hi"), answer("Hello"), user("And?")]
    rows = [{"prompt": turns, "chosen": [answer("Six.")], "rejected": [answer("It is 4.")]}]
    tokens, summary = encoded(tokenizer, rows)
    [row] = tokens
    assert learned(tokenizer, row["chosen_ids"], row["chosen_labels"]) == "Six.<|im_end|>"
    assert learned(tokenizer, row["rejected_ids"], row["rejected_labels"]) == "It is 4.<|im_end|>"
    assert row["length"] == len(row["chosen_ids"]) + len(row["rejected_ids"]) == summary["tokens"]
    # A tool's result within an answer is read, not compared.
    called = [answer("Let me see"), {"role": "tool", "content": "4"}, answer("It is 4.")]
    [row] = encoded(tokenizer, [{"prompt": "2+2?", "chosen": called, "rejected": [answer("Six.")]}])[0]
    assert learned(tokenizer, row["chosen_ids"], row["chosen_labels"]) == "Let me see<|im_end|>It is 4.<|im_end|>"


def test_rows_without_a_difference_are_left_out_and_counted(tokenizer):
    rows = [
        pair("What is 2+2?", "It is 4.", "Six."),
        pair("What is 2+2?", "It is 4.", "It is 4."),
        pair("What is 3+3?", "Six." * 40 + "a", "Six." * 40 + "b"),
        pair("What? " * 60, "It is 4.", "Six."),
        pair("What is 3+3?", " ", "Six."),
    ]
    tokens, summary = encoded(tokenizer, rows, max_length=64)
    assert len(tokens) == summary["rows_kept"] == 1 and summary["rows"] == 5
    assert summary["dropped"] == {
        "its answers are the same": 1,
        "what its answers differ in is cut away": 1,
        "answer cut away": 1,
        "no answer": 1,
    }
    with pytest.raises(dpo.Stop) as stop:
        dpo.require_preferences(encoded(tokenizer, rows[1:2])[1])
    assert stop.value.code == "nothing_supervised" and "its answers are the same" in stop.value.message


def test_pairs_that_contradict_hardly_differ_or_differ_in_length_are_counted(tokenizer):
    rows = [
        pair("2+2?", "It is 4.", "Six."),
        pair("2+2?", "Six.", "It is 4."),
        pair("3+3?", "It is 4. And 3+3? Six. " * 9, "It is 4. And 3+3? Six. " * 9 + "!"),
        pair("3+3?", "Six.", "What is 2+2? It is 4."),
    ]
    figures = encoded(tokenizer, rows)[1]["pairs"]
    assert (figures["contradictory"], figures["nearly_same"]) == (2, 1)
    assert figures["chosen_longer"] == 0.25
    assert dpo.nearly_same([1] * 99 + [2], [1] * 99 + [3]) and not dpo.nearly_same([1, 2], [1, 3])


def test_single_answers_come_from_labels_or_from_pairs(tokenizer):
    labelled = [{"prompt": "2+2?", "completion": text, "label": text == "It is 4."} for text in ("It is 4.", "Six.", "Six.")]
    tokens, summary = encoded(tokenizer, labelled, "kto")
    assert list(tokens["desirable"]) == [True, False, False] and summary["labels"] == {"desirable": 1, "undesirable": 2}
    assert dpo.label_weights(summary) == (2.0, 1.0)
    tokens, summary = encoded(tokenizer, [pair("2+2?", "It is 4.", "Six.")], "kto")
    assert list(tokens["desirable"]) == [True, False] and summary["rows_kept"] == 2
    with pytest.raises(dpo.Stop) as stop:
        dpo.require_preferences(encoded(tokenizer, labelled[1:], "kto")[1])
    assert stop.value.code == "one_label"
    with pytest.raises(dpo.Stop) as stop:
        dpo.require_preferences(encoded(tokenizer, labelled)[1])
    assert "--loss kto" in stop.value.fix


def test_kto_s_mixed_rows_are_one_prompt_with_another_s_answer(tokenizer):
    rows = [
        {"prompt": "2+2?", "completion": "It is 4.", "label": True},
        {"prompt": "3+3?", "completion": "Six.", "label": False},
    ]
    first, second = encoded(tokenizer, rows, "kto")[0]
    ids, labels = dpo.with_answer(first, second, 2048)
    assert "2+2?" in tokenizer.decode(ids) and learned(tokenizer, ids, labels) == "Six.<|im_end|>"


# ---- figures


def score(loss: float, *answers: list[float], desirable: bool | None = None) -> dpo.Score:
    return dpo.Score(loss, answers, desirable)


def test_figures_say_what_the_better_answer_gained():
    start = [score(0.69, [-1.0, -1.0], [-2.0]), score(0.69, [-1.0], [-0.5])]
    yardstick = dpo.Yardstick()
    first = yardstick.measured(0, start)
    assert (first["reward_accuracy"], first["reward_margin"], first["kl"], first["preferred"]) == (0.5, 0.0, 0.0, 0.5)
    now = yardstick.measured(9, [score(0.4, [-0.5, -0.5], [-3.0]), score(0.6, [-2.0], [-0.5])])
    assert now["reward_accuracy"] == 0.5 and now["reward_margin"] == pytest.approx((2.0 - 1.0) / 2)
    assert now["chosen_logp"] == pytest.approx((-0.5 - 2.0) / 2)
    assert now["kl"] == pytest.approx((0.25 + 0.25 + 1 + 1 + 0) / 5 / 2)
    assert yardstick.changes(9)["loss"] == [0.69, 0.5] and yardstick.changes(3) == {}


def test_figures_of_single_answers():
    start = [score(0.5, [-1.0], desirable=True), score(0.5, [-1.0], desirable=False)]
    now = [score(0.5, [-0.5], desirable=True), score(0.5, [-0.8], desirable=False)]
    figures = dpo.preference_figures(start, now)
    assert figures["reward_accuracy"] == 0.5 and figures["reward_margin"] == pytest.approx(0.5 - 0.2)
    assert "rejected_logp" not in dpo.preference_figures(start[:1], now[:1])


def warned(capsys) -> list[str]:
    lines = [line for line in capsys.readouterr().out.splitlines() if '"warning"' in line]
    return [json.loads(line.removeprefix("EVENT "))["code"] for line in lines]


def test_swapped_answers_and_lost_likelihood_are_told(capsys):
    short, long = [-3.0] * 4, [-1.0] * 20
    dpo.warn_of_swapped([score(0.69, short, long)] * 5)
    assert warned(capsys) == ["answers_swapped"]
    dpo.warn_of_swapped([score(0.69, long, short)] * 5)
    dpo.warn_of_swapped([score(0.5, short, desirable=True)])
    dpo.warn_of_displacement({"chosen_logp": [-1.0, -1.05], "reward_margin": [0.0, 3.0]})
    dpo.warn_of_displacement({})
    assert warned(capsys) == []
    dpo.warn_of_displacement({"chosen_logp": [-1.0, -2.0], "reward_margin": [0.0, 3.0]})
    assert warned(capsys) == ["chosen_less_likely"]


def test_the_card_says_what_changed():
    changes = {"loss": [0.6931, 0.5], "reward_accuracy": [0.5, 0.8], "reward_margin": [0, 2.5], "chosen_logp": [-1, -0.9]}
    table = dpo.preference_table(changes, 50, "sigmoid")
    assert "| Loss (sigmoid) | 0.6931 → 0.5000 |" in table and "80.0%" in table and "95% interval: 67.0% to 88" in table
    assert "Not measured" in dpo.preference_table({}, 0, "sigmoid")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--loss", "dpo"], "--loss is one of sigmoid"),
        (["--packing"], "--packing is for templates/sft.py"),
        (["--chosen-column", "a"], "--rejected-column go together"),
        (["--loss", "kto", "--batch-size", "1", "--gradient-accumulation", "1"], "an even number of rows"),
        (["--beta", "-1"], "--beta"),
    ],
)
def test_settings_that_no_run_can_have_are_refused(words, said, capsys):
    with pytest.raises(SystemExit):
        dpo.parse_args(["--dataset", "rows.jsonl", *words])
    assert said in capsys.readouterr().err


def test_kto_always_has_two_rows_in_a_pass():
    settings = dpo.Settings(dataset="rows", batch_size=1, gradient_accumulation=8, max_seq_length=9000)
    ways = list(dpo.batchings(settings, lambda sequences: 0, False, smallest=2))
    assert [way.micro_batch_size for way in ways] == [2]
    assert dpo.choose_batching(settings, lambda sequences: 0, lambda tokens: True, False, 2)[0] == ways[0]


@pytest.mark.parametrize(("loss", "reads", "sequences"), [("sigmoid", 2, 2), ("orpo", 0, 2), ("kto", 6, 2)])
def test_an_estimate_counts_what_is_only_read(loss, reads, sequences):
    settings = dpo.Settings(dataset="rows", loss=loss, max_seq_length=1000)
    assert preferences.also_forward(settings) == reads and settings.least_sequences == sequences
    kind = dpo.LOSSES[loss]
    division, kept = preferences.divide_step(300, settings, kind, lambda tokens: True)
    assert kept and division.length == kind.sequences * 320 and division.micro_batch_size >= kind.smallest
    # As the template divides it.
    widest = dpo.replace(settings, max_seq_length=kind.sequences * dpo.rounded(300))
    assert dpo.choose_batching(widest, lambda sequences: 0, lambda tokens: True, False, kind.smallest)[0] == tuple(division)
    assert preferences.also_forward(sft.Settings(dataset="rows")) == 0
    assert preferences.basis("measured by 1", settings) == "measured by 1"
