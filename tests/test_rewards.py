"""Rewards without a run: prompts of every layout, what an answer is worth, when a run ends itself, what is told of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import grpo
import pytest
from conftest import make_tokenizer
from conversations import CHATML, answer, user
from unsloth_jobs.estimate import history
from unsloth_jobs.estimate import rewards as pricing
from unsloth_jobs.events import summarise
from unsloth_jobs.jobs.job import Job
from unsloth_jobs.status.status import Status, as_json
from unsloth_jobs.status.view import reward_line
from unsloth_jobs.status.warnings import warnings

# ---- rows


@pytest.fixture(scope="module")
def renderer():
    return grpo.make_renderer(make_tokenizer(CHATML), grpo.Format("prompt", {}))


def read(renderer, row: dict, system: str = "", **settings: str) -> tuple[str, grpo.Question]:
    layout = grpo.find_format(grpo.Settings(dataset="rows", **settings), list(row), row, ())
    return grpo.read_prompt(row, layout, renderer, system)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "What is 2+2?", "answer": "4"},
        {"question": "What is 2+2?", "answer": "4", "id": 7},
        {"prompt": [user("What is 2+2?")], "solution": 4},
        {"prompt": '[{"role": "user", "content": "What is 2+2?"}]', "reference": "4"},
        {"messages": [user("What is 2+2?"), answer("4")]},
        {"conversations": [{"from": "human", "value": "What is 2+2?"}, {"from": "gpt", "value": "4"}]},
        {"problem": "What is 2+2?", "ground_truth": "\x1e4"},
    ],
    ids=lambda row: "+".join(row),
)
def test_a_prompt_and_its_reference_are_read_whatever_their_columns_are_called(renderer, row):
    text, question = read(renderer, row)
    assert text == "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n"
    assert (question.asked, question.reference) == ("What is 2+2?", "4")
    assert question.row.keys() == row.keys()  # all of it is there for the grader


def test_a_prompt_needs_no_reference_and_columns_can_be_named(renderer):
    assert read(renderer, {"prompt": "Sing.", "style": "loud"})[1].reference == ""
    row = {"ask": "What is 2+2?", "result": "4", "prompt": "other"}
    assert read(renderer, row, prompt_column="ask", completion_column="result")[1].reference == "4"
    earlier = {"prompt": [user("Hi"), answer("Hello"), user("And?")], "answer": "4"}
    assert read(renderer, earlier)[0].count("<|im_start|>") == 4


def test_a_system_prompt_stands_before_each_prompt(renderer):
    assert read(renderer, {"prompt": "Hi"}, "Be brief.")[0].startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user"
    )
    own = {"prompt": [{"role": "system", "content": "Be kind."}, user("Hi")]}
    assert "Be brief.\n\nBe kind." in read(renderer, own, "Be brief.")[0]
    refusing = grpo.make_renderer(make_tokenizer(CHATML.replace("{% for", "{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('no system') }}{% endif %}{% for", 1)), grpo.Format("prompt", {}))  # fmt: skip
    assert "user\nBe brief.\n\nHi" in read(refusing, {"prompt": "Hi"}, "Be brief.")[0]


def test_a_script_reads_its_own_rows(renderer, monkeypatch):
    monkeypatch.setattr(grpo, "to_prompt", lambda row: {"prompt": row["a"], "reference": row["b"]})
    assert read(renderer, {"a": "Hi", "b": "Hello"})[1].reference == "Hello"
    monkeypatch.setattr(grpo, "to_prompt", lambda row: row["missing"])
    with pytest.raises(grpo.Stop) as stop:
        read(renderer, {"a": "Hi"})
    assert stop.value.code == "to_prompt_failed"


def test_prompts_that_are_empty_or_too_long_are_left_out_and_counted(renderer):
    rows = [{"prompt": "Hi", "answer": "4"}, {"prompt": "  ", "answer": "4"}, {"prompt": "What? " * 90, "answer": "4"}]
    layout = grpo.find_format(grpo.Settings(dataset="rows"), list(rows[0]), rows[0], ())
    kept, lost = grpo.read_prompts(rows, renderer, layout, 60)
    assert [one.asked for one in kept] == ["Hi"] and lost == {grpo.EMPTY: 1, grpo.TOO_LONG: 1}
    with pytest.raises(grpo.Stop) as stop:
        grpo.require_prompts(grpo.summary_of(*grpo.read_prompts(rows[1:], renderer, layout, 60)))
    assert stop.value.code == "no_prompts" and "--max-seq-length" in stop.value.fix


@pytest.mark.parametrize(
    ("columns", "settings", "code"),
    [
        (["text"], {}, "unknown_columns"),
        (["prompt"], {"completion_column": "result"}, "unknown_column"),
        (["image"], {"prompt_column": "image"}, "unknown_columns"),
    ],
)
def test_columns_without_a_prompt_stop_with_what_to_do(columns, settings, code):
    with pytest.raises(grpo.Stop) as stop:
        grpo.find_format(grpo.Settings(dataset="rows", **settings), columns, {}, ())
    assert stop.value.code == code and "--prompt-column" in stop.value.fix + "--prompt-column"


# ---- what an answer is worth


def question(reference: str, **row: object) -> grpo.Question:
    return grpo.Question([1, 2], "?", reference, {"answer": reference, **row})


def completion(text: str, tokens: int = 4, cut: bool = False) -> grpo.Completion:
    return grpo.Completion(text, [9] * tokens, cut)


FORM = "<think>…</think><answer>…</answer>"


def test_rewards_are_a_weighted_mean_of_their_parts():
    rewards = grpo.Rewards({"format": 1, "number": 2, "length": 1}, FORM, 10)
    texts = ["<think>So.</think>\n<answer> It is 4 </answer>", "<answer>4</answer>", "4", "<think>4</think><answer>5</answer>"]
    scores = rewards.of([completion(text) for text in texts], [question("4")] * 4)
    assert scores.parts["format"] == [1, 0, 0, 1] and scores.parts["number"] == [1, 1, 1, 0] == scores.right
    assert scores.parts["length"] == [0.7] * 4 and scores.rewards == pytest.approx([3.7 / 4, 2.7 / 4, 2.7 / 4, 1.7 / 4])
    assert rewards.of([completion("4", cut=True)], [question("4")]).parts["length"] == [0]
    assert rewards.grade("<answer>4</answer>", "4", {}) == 1  # what graders see of an evaluation: the part that tells


@pytest.mark.parametrize(
    ("form", "text", "graded", "kept"),
    [
        ("<answer>…</answer>", "Hm <answer>1</answer> or <answer>2</answer>", "2", False),
        ("<answer>...</answer>", "<answer>\n2\n</answer>", "2", True),
        (FORM, "no tags at all", "no tags at all", False),
        ("… #### …", "Two and two.\n#### 4", "4", True),
        ("", "<think>hm</think> 4", "4", False),
    ],
)
def test_the_answer_is_found_in_its_format(form, text, graded, kept):
    assert (grpo.AnswerFormat(form).answer(text), grpo.AnswerFormat(form).is_kept(text)) == (graded, kept)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--reward", "numbr"], "--reward knows exact"),
        (["--reward", "json=x"], "is a number"),
        (["--reward", "json=-1"], "above 0"),
        (["--reward", "json,json"], "named twice"),
        (["--reward", ","], "names no part"),
        (["--reward", "number,format"], "--answer-format"),
        (["--reward", "file"], "--reward-file"),
        (["--reward", "number", "--reward-file", "mine.py"], "would not be used"),
        (["--answer-format", "<answer>"], "holds …"),
        (["--num-generations", "1"], "at least 2"),
        (["--max-completion-length", "2048"], "leave room"),
        (["--temperature", "0"], "above 0"),
        (["--max-kl", "-1"], "--max-kl"),
        (["--packing"], "not packed"),
        (["--early-stopping", "3"], "ends by itself"),
    ],
)
def test_settings_that_no_run_can_have_are_refused(words, said, capsys):
    with pytest.raises(SystemExit):
        grpo.parse_args(["--dataset", "rows.jsonl", *words])
    assert said in capsys.readouterr().err


def made(references: list[str], reward: str = "auto", file: str = "") -> tuple[grpo.Rewards, str]:
    return grpo.make_rewards(reward, file, 1.0, "", 16, [question(one) for one in references])


def test_the_reward_is_the_grader_that_fits_the_answers():
    assert made([str(number) for number in range(20)])[0].weights == {"number": 1.0}
    assert made(["yes", "no"] * 10)[0].grade("No.", "no", {}) == 1  # choice knows all labels
    for references, reward, code in ((["a long story " * 9], "auto", "no_reward"), ([""], "exact", "reward_misfit")):
        with pytest.raises(grpo.Stop) as stop:
            made(references, reward)
        assert stop.value.code == code and "--reward" in stop.value.fix


OWN = """
import os, time
def grade(answer, reference, row):
    print("EVENT {}")
    if answer == "hang": time.sleep(60)
    if answer == "die": os._exit(3)
    if answer == "text": return "yes"
    return {}["x"] if answer == "fail" else row["worth"]
"""


def test_a_reward_of_one_s_own_has_a_time_limit_and_cannot_end_the_run(tmp_path, capfd):
    (tmp_path / "own.py").write_text(OWN)
    rewards, _ = made(["4"], file=str(tmp_path / "own.py"))
    texts = ["ok", "hang", "die", "text", "fail", "ok"]
    scores = rewards.of([completion(text) for text in texts], [question("4", worth=0.5)] * 6)
    assert scores.rewards == [0.5, 0, 0, 0, 0, 0.5] and scores.failed == 4 and "more than 1 s" in scores.first_failure
    rewards.close()
    assert not capfd.readouterr().out  # what it prints is no event of the run
    for text, code in (("def grade(:", "bad_grader"), ("x = 1", "bad_grader"), (None, "no_grader_file")):
        (tmp_path / "own.py").unlink(missing_ok=True)
        if text is not None:
            (tmp_path / "own.py").write_text(text)
        with pytest.raises(grpo.Stop) as stop:
            made(["4"], file=str(tmp_path / "own.py"))
        assert stop.value.code == code


def test_completions_are_compared_with_those_of_the_same_prompt():
    found = grpo.advantages_of([1.0, 0.0, 0.5, 0.5, 1.0, 1.0], 2)
    assert found == pytest.approx([0.707, -0.707, 0, 0, 0, 0], abs=1e-3)


# ---- when a run ends by itself


def figures(**values: float) -> dict[str, float]:
    usual = {"reward": 0.5, "informative": 0.5, "clipped": 0.0, "kl": 0.1, "reward_failures": 0, "rewarding_s": 0, "step_s": 1}
    return usual | {"writing_s": 0.5} | values


@pytest.mark.parametrize(
    ("values", "code"),
    [({"informative": 0, "reward": 0.0}, "reward_flat"), ({"clipped": 1.0}, "all_clipped"), ({"kl": 2.0}, "kl_too_high")],
)
def test_a_run_that_learns_nothing_ends_and_says_why(values, code):
    watch = grpo.RewardWatch(1.0, 4)
    with pytest.raises(grpo.Stop) as stop:
        for step in range(1, 5):
            assert not watch.look(step, figures(**values), "")
    assert stop.value.code == code and "--" in stop.value.fix


def test_a_run_that_has_learned_all_ends_well_and_others_go_on(capsys):
    watch = grpo.RewardWatch(0, 3)
    assert [watch.look(step, figures(informative=0, reward=1.0, kl=9), "") for step in (1, 2, 3)] == [False, False, True]
    watch = grpo.RewardWatch(1.0)
    for step in range(1, 30):
        failing = {"reward_failures": 1} if step == 5 else {"rewarding_s": 0.8} if step > 7 else {}
        assert not watch.look(step, figures(informative=0 if step % 10 else 0.1, **failing), "ValueError: no")
    codes = [json.loads(line[6:])["code"] for line in capsys.readouterr().out.splitlines()]
    assert codes == ["reward_failed", "reward_slow"]


def test_what_is_waited_for_is_less_than_what_calls_side_by_side_take():
    own = SimpleNamespace(calls=lambda values: [grpo.Call(1.0, "", 60.0) for _ in values])
    rewards = grpo.Rewards({"file": 1.0}, "", 10, own=own)
    scores = rewards.of([grpo.Completion("4", [1], False)] * 2, [question("4")] * 2)
    assert scores.rewards == [1.0, 1.0] and scores.seconds == 120 and scores.waited_s < 60


def test_a_reward_that_rises_without_the_grades_is_told_with_examples(capsys):
    questions = [question(str(number)) for number in range(40)]
    rewards = grpo.Rewards({"number": 1, "format": 1}, "<answer>…</answer>", 16)
    before = [grpo.Answer(one.reference, False) for one in questions]
    hacked = [grpo.Answer("<answer>7</answer>", False) for _ in questions]
    honest = [grpo.Answer(f"<answer>{one.reference}</answer>", False) for one in questions]
    for after, warned in ((hacked, True), (honest, False)):
        if warned:  # it was wrong before, too: only the form was learned
            before = [grpo.Answer("-1", False) for _ in questions]
        chosen = grpo.QuestionSet(questions, rewards.grade, "number")
        evaluation = grpo.grade_contenders({"base": before, "tuned": after}, chosen, rewards.grade, 1.0)
        found = grpo.warn_of_hacking(evaluation, rewards, 0.2, 0.6)
        assert found["after"] > found["before"]
        events = [json.loads(line[6:]) for line in capsys.readouterr().out.splitlines()]
        assert [event["code"] for event in events] == (["reward_hacked"] if warned else [])
        if warned:
            assert len(events[0]["examples"]) == 3


def test_an_estimate_prices_what_is_written():
    settings = grpo.Settings(
        dataset="rows", num_generations=4, batch_size=8, gradient_accumulation=1, max_completion_length=100
    )
    division, kept = pricing.divide_step(60, settings, lambda tokens: True)
    whole = grpo.whole_step(settings, grpo.rounded(160))
    assert kept and division == grpo.choose_batching(whole, lambda sequences: 0, lambda tokens: True, False)[0]
    assert pricing.completions_per_step(settings) == 32
    config = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64, "vocab_size": 10}
    assert grpo.sequence_bytes(config, 100) == 2 * 2 * 2 * 2 * 16 * 100 + 24 * 10 + 1
    hybrid = config | {"layer_types": ["conv", "full_attention"]}
    assert grpo.sequence_bytes(hybrid, 100) < grpo.sequence_bytes(config, 100)


def test_status_tells_rewards_and_not_a_loss_that_says_nothing():
    figures = {
        "right": 0.4,
        "length": 212.4,
        "clipped": 0.03,
        "kl": 0.0123,
        "tokens_per_s": 4100.2,
        "loss": 0.0,
        "total_steps": 40,
    }
    steps = [{"event": "progress", "step": step, "reward": 0.2 + step / 100, **figures} for step in range(1, 31)]
    start = {"event": "eval", "step": 0, "right": 0.1, "rows": 50, "low": 0.05, "high": 0.2, "cut": 3}
    lines = ["EVENT " + json.dumps(event) for event in [start, *steps]]
    began = datetime.now(UTC) - timedelta(minutes=10)
    job = Job("1", "RUNNING", None, "", "l4x1", began, began, None)
    now = Status(job, summarise(lines), None, None, usd_per_minute=0.01)
    line = reward_line(now)
    assert line.startswith("0.500 (0.210 at step 1)  right 40%  212 tokens  cut 3%  KL 0.012  4,100 tokens/s  $")
    assert line.endswith("a point") and now.phase == "training" and warnings(job, now.summary, None) == []
    assert len(as_json(now)["curve"]["reward"]) == 30
    found = {"reward": [0.2, 0.5], "right": [0.1, 0.4], "length": [200, 90]}
    ended = Status(
        job, summarise([*lines, "EVENT " + json.dumps({"event": "done", "rewards": found, "base_loss": None})]), None, None
    )
    assert (
        ended.learned == "mean reward 0.20 → 0.50; right 10% → 40%; 200 → 90 tokens (sampled completions, first and last steps)"
    )
    assert reward_line(Status(job, summarise(lines[:1]), None, None)) == ""


def test_a_smoke_run_tells_the_pace_by_its_prompts():
    done = {"tokens": 9000, "timed_tokens": 6000, "prompt_tokens": 900, "prompt_timed_tokens": 600, "train_s": 60, "steps": 9}
    run = {"job_id": "1", "plan": {"flavor": "l4x1", "pace_key": "x"}, "outcome": {"elapsed_s": 200, "done": done}}
    [entry] = history.entries([run])
    assert entry.seconds_per_token == 0.1 and entry.overhead_s == pytest.approx(200 - 90)
    settings = grpo.Settings(dataset="rows")
    assert pricing.basis("measured by 1", settings) == "measured by 1" and "at worst" in pricing.basis("shapes", settings)
