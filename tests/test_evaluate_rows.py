"""An evaluation's card, its header, and rows of preferences as references."""

from __future__ import annotations

import subprocess

import evaluate
import pytest
from conftest import SFT, UV
from test_documents import header
from test_evaluate import EVALUATE


def test_the_card_keeps_all_but_its_section():
    section = f"{evaluate.BEGIN}\n\nnew\n\n{evaluate.END}"
    once = evaluate.with_section("# a\n\nb\n", section)
    assert once == f"# a\n\nb\n\n{section}\n"
    assert evaluate.with_section(once.replace("new", "old") + "\n## c\n", section) == once + "\n## c\n"
    unclosed = f"# a\n{evaluate.BEGIN}\nsomebody's own"
    assert "somebody's own" in evaluate.with_section(unclosed, section)


def test_the_help_needs_no_library():
    words = [UV, "run", "--no-project", "--isolated", "python", "-I", str(EVALUATE), "--help"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0 and "--few-shot" in done.stdout


def test_its_versions_are_pinned_and_are_those_that_trained():
    pinned, trained = header(EVALUATE), set(header(SFT)["dependencies"])
    assert all("==" in dependency for dependency in pinned["dependencies"])
    shared = {one for one in trained if one.split("==")[0] in ("torch", "transformers", "peft", "datasets", "huggingface_hub")}
    assert len(shared) == 5 and shared <= set(pinned["dependencies"])
    assert "unsloth" not in " ".join(pinned["dependencies"])


@pytest.mark.parametrize(
    ("row", "words", "right"),
    [
        ({"prompt": "Why?", "completion": "Because.", "label": True}, [], "Because."),
        ({"prompt": "Why?", "completion": "So what?", "label": False}, [], None),
        ({"prompt": "Why?", "completion": "So what?", "label": "false"}, [], None),
        ({"prompt": "Why?", "completion": "A class.", "label": 0}, [], "A class."),  # a number may name a class ...
        ({"prompt": "Why?", "completion": "So what?", "good": 0}, ["--label-column", "good"], None),  # ... where none is named
        ({"prompt": "Why?", "best": "Because.", "worst": "So what?"}, ["--chosen-column", "best", "--rejected-column", "worst"], "Because."),
    ],
)  # fmt: skip
def test_of_preferences_only_what_is_good_is_right(row, words, right):
    settings = evaluate.parse_args(["--models", "a/b", *words])
    layout = evaluate.find_format(settings, list(row), row, ())
    normal = evaluate.normal_question(row, layout)
    assert (normal and normal["completion"]) == right


def test_the_columns_of_a_training_on_preferences_read_its_rows():
    settings = evaluate.parse_args(["--models", "a/b"])
    kto = evaluate.with_columns(settings, {"loss": "kto", "prompt_column": "", "label_column": ""})
    assert kto.label_column == "label"
    pairs = evaluate.with_columns(settings, {"loss": "sigmoid", "chosen_column": "best", "rejected_column": "worst"})
    assert (pairs.chosen_column, pairs.rejected_column, pairs.label_column) == ("best", "worst", "")


@pytest.mark.parametrize("words", [["--chosen-column", "best"], ["--prompt-column", "q"], ["--completion-column", "a"]])
def test_columns_that_go_together_are_named_together(words, capsys):
    with pytest.raises(SystemExit):
        evaluate.parse_args(["--models", "a/b", *words])
    assert "go" in capsys.readouterr().err
