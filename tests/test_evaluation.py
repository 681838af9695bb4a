"""Is it better? What base and tuned model answer to held-out questions, and what a run says of it."""

from __future__ import annotations

import json
import random
import subprocess
from types import SimpleNamespace

import pytest
import sft
from conftest import ROOT, make_tokenizer

QUICK = ["--batch-size", "8", "--gradient-accumulation", "1", "--max-seq-length", "256", "--learning-rate", "5e-3"]
COLOURS = ("red", "green", "blue")
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def colour_rows(count: int, seed: int) -> list[dict[str, str]]:
    """Rows that a tiny model learns in a minute: the answer is the colour that the question names."""
    chance = random.Random(seed)
    made = {f"Box {chance.randrange(10**6)} is {chance.choice(COLOURS)}. Which colour?" for _ in range(2 * count)}
    return [{"question": asked, "answer": asked.split(" is ")[1].split(".")[0]} for asked in sorted(made)[:count]]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    return write(tmp_path_factory.mktemp("colours") / "rows.jsonl", colour_rows(400, 1))


# ---- questions


def question_of(row: dict) -> sft.Question | None:
    tokenizer = make_tokenizer(CHATML)
    layout = sft.detect_format(row)
    normal = sft.normal_question(row, layout)
    return normal and sft.read_question(normal, row, tokenizer, sft.make_renderer(tokenizer, layout))


def test_the_last_answer_is_the_reference_and_all_before_it_is_asked():
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "Four."},
        {"role": "user", "content": "And 3+3?"},
        {"role": "assistant", "content": "Six."},
    ]
    found = question_of({"messages": turns})
    assert (found.asked, found.reference) == ("And 3+3?", "Six.")
    assert found.context == "2+2?\nFour.\nAnd 3+3?"
    prompt = make_tokenizer(CHATML).decode(found.prompt)
    assert prompt.endswith("And 3+3?<|im_end|>\n<|im_start|>assistant\n") and "Six." not in prompt


@pytest.mark.parametrize("row", [{"text": "Once upon a time"}, {"messages": [{"role": "user", "content": "Hm?"}]}])
def test_what_has_no_answer_is_no_question(row):
    assert question_of(row) is None


def test_labels_tell_where_the_last_answer_begins():
    assert sft.last_answer([-100, -100, 5, 6, -100, 7, 8, -100]) == 5
    assert sft.last_answer([1, 2]) == 0
    assert sft.last_answer([-100, -100]) is None


def test_thoughts_are_no_answer():
    assert sft.final_answer("<think>\nTwo and two.\n</think>\n\n4") == "4"
    assert sft.final_answer("Two and two.</think>4") == "4"
    assert sft.final_answer("<think>It goes on and on") == ""
    assert sft.final_answer("4") == "4"


def test_an_answer_may_be_twice_as_long_as_the_longest_reference():
    tokenizer = make_tokenizer(CHATML)
    assert sft.answer_limit(["It is 4."] * 3, tokenizer) == sft.SHORTEST_LIMIT
    assert sft.answer_limit(["x" * 100_000], tokenizer) == sft.LONGEST_ANSWER
    assert sft.answer_limit([], tokenizer) == sft.SHORTEST_LIMIT


def test_questions_of_like_length_are_answered_together():
    lengths = [random.Random(3).randrange(1, 900) for _ in range(300)]
    asked = [sft.Question([0] * length, "", "", {}) for length in lengths]
    batches = list(sft.batches_of(asked, 64, "cpu"))
    assert sorted(place for batch in batches for place in batch) == list(range(300))
    for batch in batches:
        width = max(lengths[place] for place in batch)
        assert len(batch) == 1 or len(batch) * (width + 64) <= sft.TOKENS_AT_A_TIME["cpu"]
    assert [lengths[place] for batch in batches for place in batch] == sorted(lengths)


# ---- grading


def graded(*answers: list[str | None]) -> sft.Evaluation | None:
    """An evaluation of contenders who said this, where "yes" is right."""
    asked = [sft.Question([], f"Question {place}", "yes", {}) for place in range(len(answers[0]))]
    chosen = sft.QuestionSet(asked, sft.load_grader("exact"), "exact")
    given = {
        f"model {number}": [None if text is None else sft.Answer(text, text == "and so on") for text in said]
        for number, said in enumerate(answers)
    }
    return sft.grade_contenders(given, chosen, chosen.grader, 1.5)


def test_contenders_are_compared_on_the_questions_that_all_answered():
    found = graded(["no"] * 8 + ["yes", None], ["yes"] * 8 + ["yes", "yes"], ["and so on"] * 9 + [None])
    assert (len(found.questions), found.unanswered) == (9, 1)
    event = found.as_event()
    first, better, endless = event["contenders"]
    assert [round(one["right"], 2) for one in (first, better, endless)] == [0.11, 1.0, 0.0]
    assert better["verdict"] == "better" and better["difference_low"] > 0 and "difference" not in first
    assert (first["cut"], endless["cut"]) == (0, 9)
    assert json.loads(json.dumps(event)) == event


def test_nothing_answered_is_no_evaluation():
    assert graded([None, None], ["yes", "yes"]) is None


def test_every_answer_is_kept_with_its_grade(tmp_path):
    found = graded(["no", "and so on"], ["yes", "no"])
    sft.write_answers(found, tmp_path / "answers.jsonl")
    first, second = map(json.loads, (tmp_path / "answers.jsonl").read_text().splitlines())
    assert first["model 1"] == {"answer": "yes", "grade": 1.0, "cut": False}
    assert second["model 0"]["cut"] and second["question"] == "Question 1" and second["reference"] == "yes"


def test_time_that_is_over_leaves_whole_blocks():
    asked = [sft.Question([], str(place), "yes", {}) for place in range(3 * sft.QUESTIONS_AT_ONCE)]
    chosen = sft.QuestionSet(asked, sft.load_grader("exact"), "exact")
    seen = []

    def answering(block, until):
        seen.append(len(block))
        return [sft.Answer("yes", False)] * len(block)

    found = sft.evaluate_contenders({"base": answering, "tuned": answering}, chosen, chosen.grader, 0.0)
    assert (
        seen == [sft.QUESTIONS_AT_ONCE, sft.QUESTIONS_AT_ONCE]
        and len(found.questions) == sft.QUESTIONS_AT_ONCE
        and found.unanswered == 2 * sft.QUESTIONS_AT_ONCE
    )


# ---- generation


def test_batched_answers_are_those_given_alone(tiny_model, training_python):
    """Padding on the left changes nothing, also in a model whose convolutions reach over the rows' beginnings."""
    said = subprocess.run(
        [training_python, str(ROOT / "tests" / "batched_answers.py"), str(tiny_model)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    alone, together, late = json.loads(said.splitlines()[-1])
    assert alone == together and len({text for text, _ in alone}) > 1
    assert late == [None] * len(alone)


# ---- runs


def test_a_run_says_whether_it_is_better(runs, tiny_model, colours):
    run = runs.start("--base-model", str(tiny_model), "--dataset", colours, *QUICK, "--max-steps", "60").wait()
    assert run.code == 0, run.log[-3000:]
    event, done = run.last("graded"), run.last("done")
    base, tuned = event["contenders"]
    assert run.last("questions")["grader"] == event["grader"] == "choice"
    assert (base["name"], tuned["name"]) == ("base", "tuned") and event["rows"] == 40
    assert base["right"] < 0.2 and tuned["right"] > 0.3 and tuned["verdict"] == "better"
    assert done["graded"] == {name: value for name, value in event.items() if name not in ("event", "time")}
    # By these runs are compared to each other: each question's grade, and the loss of each batch of held-out rows.
    told, parts = run.last("scores"), run.last("held_out")
    assert sum(told["scores"]["tuned"]) / 40 == pytest.approx(tuned["right"], abs=1e-3)
    assert len(set(told["asked"])) == 40
    tokens = sum(parts["weights"])
    mean = sum(loss * weight for loss, weight in zip(parts["losses"], parts["weights"], strict=True)) / tokens
    assert mean == pytest.approx(done["tuned_loss"], abs=1e-3)
    out = run.folder / "out"
    lines = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert sum(line["tuned"]["grade"] for line in lines) / 40 == pytest.approx(tuned["right"])
    card = (out / "README.md").read_text()
    assert f"| This adapter | {tuned['right']:.1%}" in card and tuned["sentence"] in card
    assert {line["question"] for line in lines} >= {sample["prompt"] for sample in run.all("sample")}
    assert not run.all("warning")


def test_a_test_set_of_ones_own_is_graded_without_what_was_trained_on(runs, tiny_model, colours, tmp_path):
    seen, new = colour_rows(400, 1)[:8], colour_rows(20, 2)
    test = write(tmp_path / "test.jsonl", [row | {"hint": "of one's own"} for row in (*seen, *new)])
    grader = tmp_path / "strict.py"
    grader.write_text("def grade(answer, reference, row):\n    assert row['hint']\n    return {}['nothing']\n")
    words = ["--base-model", str(tiny_model), "--dataset", colours, "--num-samples", "300", "--max-steps", "2", *QUICK]
    words += ["--eval-dataset", test, "--grader", str(grader), "--no-card-samples", "--eval-split", "0"]
    run = runs.start(*words).wait()
    assert run.code == 0, run.log[-3000:]  # whatever is wrong with the grader
    asked, event = run.last("questions"), run.last("graded")
    assert asked["rows"] == event["rows"] == 28 - asked["seen"] and 4 < asked["seen"] <= 8
    assert [one["ungradable"] for one in event["contenders"]] == [event["rows"]] * 2  # it counts as wrong, and is said
    assert "KeyError" in event["first_failure"] and event["contenders"][1]["verdict"] == "not distinguishable"
    assert not (run.folder / "out" / "answers.jsonl").exists(), "private rows are not written beside the card"


@pytest.mark.parametrize(
    ("rows", "grader", "reason"),
    [
        ([{"question": "Which?", "answer": ""}], "auto", "ends with an answer"),
        ([], "auto", "empty"),
        ([{"ticket": "Which?", "reply": "red"}], "auto", "No known layout"),
        ([{"question": "Which?", "answer": "red"}], "exakt", "exact"),
        ([{"question": "Which?", "answer": "red"}], "missing.py", "missing.py"),
        ([{"question": "2+2?", "answer": "4"}], "exact", "stands in the training data"),
    ],
)
def test_a_test_set_that_cannot_be_used_is_a_warning(tmp_path, capsys, rows, grader, reason):
    tokenizer, trained = make_tokenizer(CHATML), [{"question": "2 + 2", "answer": "4"}, {"question": "2+2?", "answer": "Four"}]
    layout = sft.detect_format(trained[0])
    settings = sft.Settings(dataset="rows.jsonl", eval_dataset=write(tmp_path / "test.jsonl", rows), grader=grader)
    renderer = sft.make_renderer(tokenizer, layout)
    chosen = sft.choose_questions(settings, trained, None, tokenizer, renderer, layout, sft.find_format)
    said = capsys.readouterr().out
    assert chosen.questions == [] and '"no_grading"' in said and reason in said


def test_seconds_that_are_left_end_with_the_margin(monkeypatch):
    monkeypatch.setenv("UNSLOTH_JOBS_RUN", json.dumps({"timeout_s": 1000, "started": 5000.0}))
    monkeypatch.setattr(sft, "time", SimpleNamespace(time=lambda: 5100.0, monotonic=sft.time.monotonic))
    assert sft.StopSignal().seconds_left() == pytest.approx(1000 - 50 - 100)


# ---- before a run


@pytest.mark.hub(model="tiny")
def test_check_proposes_a_grader_estimate_prices_it_and_the_plan_finds_that(hub, commands, tmp_path):
    test = tmp_path / "test"
    test.mkdir()
    write(
        test / "test.jsonl",
        [
            {"messages": [{"role": "user", "content": f"{n}+1?"}, {"role": "assistant", "content": f"{n + 1}"}]}
            for n in range(30)
        ],
    )
    hub.add_repo("ada/sums", test, type="dataset")
    plain = commands.json("check.py", "ada/tiny", "ada/docs")["grading"]
    assert plain["grader"] is None and "long texts" in plain["why"]
    found = commands.json("check.py", "ada/tiny", "ada/docs", "--eval-dataset", "ada/sums")["grading"]
    assert (found["grader"], found["rows"], found["source"]) == ("number", 30, "ada/sums") and "numbers" in found["why"]
    without = commands.json("estimate.py", "ada/tiny", "ada/docs", "--flavor", "l4x1")["flavors"][0]
    graded = commands.json("estimate.py", "ada/tiny", "ada/docs", "--flavor", "l4x1", "--eval-dataset", "ada/sums")["flavors"][
        0
    ]
    low, high = graded["seconds"]["grading"]
    assert 0 <= low < high <= 300 and "grading" not in without["seconds"] and graded["hours_high"] >= without["hours_high"]
    arguments = ["--base-model", "ada/tiny", "--dataset", "ada/docs", "--eval-dataset", "ada/sums"]
    plan = commands.json("submit.py", str(ROOT / "templates" / "sft.py"), "--flavor", "l4x1", "--", *arguments, code=3)
    assert plan["estimate"]["usd_high"] == graded["usd_high"]
    assert any(word.startswith("--eval-dataset-revision=") for word in plan["plan"]["arguments"])


@pytest.mark.parametrize(
    ("rows", "words", "code", "severity"),
    [
        ([{"question": "2+2?", "answer": ""}], [], "no_references", "error"),
        ([{"ticket": "2+2?", "reply": "4"}], [], "unknown_columns", "error"),
        ([{"question": "2+2?", "answer": "4"}], ["--grader", "nunber"], "unknown_grader", "error"),
        ([{"question": "Why?", "answer": "because " * 40}] * 9, ["--grader", "exact"], "grader_misfit", "warning"),
        ([{"question": "What is 2+2?", "answer": "4"}, {"question": "New?", "answer": "5"}], [], "test_rows_seen", "warning"),
    ],
)
def test_a_test_set_that_does_not_fit_is_named_before_anything_is_paid(hub, commands, rows, words, code, severity):
    test = write(commands.cwd / "test.jsonl", rows)
    trained = [{"question": f"What is {n}+2?", "answer": str(n + 2)} for n in range(60)]
    found = commands.json(
        "check.py", "ada/tiny", write(commands.cwd / "rows.jsonl", trained), "--eval-dataset", test, *words,
        code=1 if severity == "error" else 0,
    )  # fmt: skip
    assert [problem["severity"] for problem in found["problems"] if problem["code"] == code] == [severity]
