"""Graders: what is right, what is wrong, and that no answer, however hostile, stops or delays an evaluation."""

from __future__ import annotations

import json
import math
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer
from keyword import iskeyword
from threading import Thread

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from unsloth_jobs.training.folded import folded
from unsloth_jobs.training.grader_fit import grader_misfit, propose_grader
from unsloth_jobs.training.graders import GRADERS, grade_answers, load_grader
from unsloth_jobs.training.graders_calls import calls_in
from unsloth_jobs.training.graders_number import last_number
from unsloth_jobs.training.graders_text import class_table
from unsloth_jobs.training.report import Stop

some = settings(max_examples=30, deadline=None)

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=5,
)
objects = st.dictionaries(st.text(max_size=4), values, max_size=4)


def grade(name: str, answer: str, reference: str, **row: object) -> float:
    return GRADERS[name](answer, reference, row)


# ---- what holds for any answer


@some
@given(st.sampled_from(sorted(set(GRADERS) - {"regex"})), st.text() | values.map(json.dumps))
@example("number", "1/0")
@example("number", "1e99999999999")
@example("json", '{"a": NaN}')
@example("json", "1e999")
@example("exact", "...")
@example("contains", "")
@example("choice", "`")
@example("choice", "Ⓐ")
@example("choice", "ª.")
def test_a_reference_is_a_right_answer_to_itself(name, reference):
    assert grade(name, reference, reference) == 1
    assert grade_answers(GRADERS[name], [reference], [reference], [{}]) == ([1.0], 0, None)


@some
@given(st.sampled_from(["exact", "number", "json", "tool_call"]), values.map(json.dumps), values.map(json.dumps))
def test_what_compares_values_does_not_mind_which_is_the_reference(name, one, other):
    assume(name != "number" or bool(last_number(one)) == bool(last_number(other)))
    assume(name != "json" or type(json.loads(one)) is type(json.loads(other)))
    assert grade(name, one, other) == grade(name, other, one)


HOSTILE = {
    "ten megabytes": "a " * 5 * 10**6,
    "digits": "9" * 10**6,
    "groups": "1" + ",000" * 25_000 + ",5",
    "commas": "1," * 10**6,
    "slashes": "1/" * 10**6,
    "a huge exponent": "1e" + "9" * 10**6,
    "control characters": "\x00\x1b\x85\u2028" * 10**5,
    "halves of characters": "\ud800" * 10**5,
    "marks": "\u0301\u0323" * 10**6,
    "one character that folds into eighteen": "\ufdfa" * 10**5,
    "quotes": "'" * 10**6,
    "brackets": "[" * 10**6,
    "objects": '{"a":' * 10**5,
    "a deep list": "[" * 900 + "]" * 900,
    "starts": "[0," * 10**5,
    "strings": '["' * 10**5,
    "calls": "[a(" * 10**5,
    "signs": "[f(a=" + "-" * 10_000 + "1)]",
    "parentheses": "[f(a=" + "(" * 5_000 + ")]",
    "a sum": "[f(a=" + "1+" * 9_000 + "1)]",
    "attributes": "f" + ".a" * 9_000 + "(b=1)",
    "lambdas": "f(a=" + "lambda:" * 2_000 + "1)",
    "tags": "<tool_call>" * 10**5,
    "fences": "```json\n" * 10**5,
    "constants": "[NaN, Infinity, -Infinity]",
    "an integer that Python refuses": "[" + "1" * 5_000 + "]",
    "other digits": "٣١ ๔๒ ４２ ²",
}  # fmt: skip
REFERENCES = {"regex": "([a-z ]|[a-z ]?)+Z$", "number": "43"}


@pytest.mark.parametrize("kind", HOSTILE)
def test_no_answer_raises_or_never_ends(kind):
    """What is worse than linear takes hours here, and is ended by faulthandler_timeout."""
    for name, grader in GRADERS.items():
        score = grader(HOSTILE[kind], REFERENCES.get(name, '{"name": "f", "arguments": {"a": 42}}'), {})
        assert 0 <= score < 1, name


def test_a_pattern_that_would_take_years_is_given_up():
    assert grade("regex", "a" * 10**6 + "!", "(a|aa)+$") == 0


@pytest.mark.parametrize(
    "pattern",
    ["(?:a{1000}){1000}", "a{20001}", r"(?:[\]x]\d{150}(b|c){150,}){150}", "(((a{99}){99}){99}", "a{" + "9" * 1900 + "}"],
)
def test_a_pattern_that_takes_long_before_anything_is_searched_is_refused(pattern):
    graded = grade_answers(GRADERS["regex"], ["aaa"], [pattern], [{}])
    assert graded.failed == 1 and "repetitions" in graded.first_failure and "use smaller counts" in graded.first_failure
    assert grader_misfit("regex", [pattern])


@pytest.mark.parametrize(
    "pattern", [r"\d{4}-\d{2}", r"[{]{3}\{9999999}", "(?:a{100}){100}", "a{0,99999}b{,99999}", "(a|b{2}){99}?c"]
)
def test_a_pattern_that_counts_within_reason_is_searched(pattern):
    assert grader_misfit("regex", [pattern]) is None


# ---- each grader


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        (" paris.\n", "Paris"), ('**"Paris."**', "Paris"), ("nai\u0308ve", "naïve"), ("ﬁt", "fit"), ("don’t", "don't"),
        ("C", "c."), ("(B)", "B"), ("4–2", "4-2"), ("a\u200bb", "ab"), ("STRASSE", "straße"), ("42", "４２"),
    ],
)  # fmt: skip
def test_exact_minds_neither_case_nor_spelling_of_characters_nor_wrapping(answer, reference):
    assert grade("exact", answer, reference) == grade("exact", reference, answer) == 1


@pytest.mark.parametrize(
    ("answer", "reference"), [("!", "?"), ("the Paris", "Paris"), ("*args", "args"), ("__x__", "x"), ("", "."), ("C++", "C")]
)
def test_exact_keeps_what_makes_another_answer(answer, reference):
    assert grade("exact", answer, reference) == 0


@some
@given(st.text())
def test_folded_text_is_folded(text):
    again = folded(text)
    assert folded(again.upper().lower()) == folded(again.lower())
    assert again == " ".join(again.split())


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("It is Paris, of course", "paris", 1), ("start", "art", 0), ("15", "5", 0), ("2.5", "5", 0), ("5.2", "5", 0),
        ("it is -5", "5", 0), ("it is -5", "-5", 1), ("it is 5.", "5", 1), ("pages 2-5", "5", 1), ("答案是东京。", "东京", 1),
        ("I like C++ more", "C++", 1), ("anything", "", 0), ("", "", 1), ("a.b", "axb", 0), (".5", "5", 0),
    ],
)  # fmt: skip
def test_contains_wants_words_of_their_own(answer, reference, right):
    assert grade("contains", answer, reference) == right


SAME = ["1234.5", "1,234.50", "1.234,50", "1\u00a0234.5", "1'234.5", "1.2345e3", "2469/2", r"\frac{2469}{2}", "1.2345 × 10^3"]


@pytest.mark.parametrize("one", SAME)
def test_a_number_is_one_however_it_is_written(one):
    assert all(grade("number", f"So 7 and then ${one}.", other) == 1 for other in SAME)


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("1, 2 and 3", "3", 1), ("1,2,3", "3", 1), ("5-3", "3", 1), ("x = −3", "-3", 1), ("-$5", "-5", 1), ("50%", "0.5", 1),
        ("50%", "50", 1), ("50%", "5", 0), ("0,5", "0.5", 1), ("1,234", "1.234", 0), ("1.234", "1,234", 0), ("3/4/2024", "2024", 1),
        ("1e999999", "1e999998", 0), ("1e-9999999", "0", 1), ("1000001", "1000000", 1), ("1000002", "1000000", 0),
        ("none", "5", 0), ("no solution", "No solution.", 1), ("3", "no solution", 0), ("٣", "3", 1), ("1/0", "0", 0),
        ("#### 42", "He has 6 * 7 = 42 left.\n#### 42", 1), (r"\boxed{42}", "42", 1), ("7 apples", "7", 1),
    ],
)  # fmt: skip
def test_number_compares_the_last_ones(answer, reference, right):
    assert grade("number", answer, reference) == right


@some
@given(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**12), max_value=10**12))
def test_a_number_is_read_with_and_without_groups(value):
    assert last_number(f"{value:,}").value == last_number(f"{value:f}").value == value


LABELS = ["spam", "not spam", "spam trap", "A", "B", "neutral."]


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("Not spam!", "not spam"), ("This is spam.", "spam"), ("It is not spam", "not spam"), ("A spam trap!", None), ("It is a spam trap", "spam trap"), ("spam or not spam", None),
        ("a dog: B", "B"), ("b", "B"), ("A or B", None), ("Neutral, I'd say", "neutral."), ("B's", None), ("", None), ("spammer", None),
    ],
)  # fmt: skip
def test_choice_wants_one_label_and_no_other(answer, label):
    graded = grade_answers(load_grader("choice"), [answer] * len(LABELS), LABELS, [{}] * len(LABELS))
    assert graded.scores == [float(one == label) for one in LABELS]


@some
@given(st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from([*LABELS, "?", "spam, B"])), min_size=1))
def test_the_table_of_classes_counts_what_choice_grades(pairs):
    references, answers = map(list, zip(*pairs, strict=True))
    table, scores = (
        class_table(answers, references),
        grade_answers(GRADERS["choice"], answers, references, [{}] * len(pairs)).scores,
    )
    assert {row.label: row.rows for row in table.classes} == Counter(references)
    assert sum(row.right for row in table.classes) == sum(scores)
    assert sum(row.answered for row in table.classes) + table.unnamed == len(pairs)
    assert all(row.recall == row.right / row.rows for row in table.classes)


def test_a_table_of_classes_by_hand():
    table = class_table(["spam", "x", "Not spam", "spam!"], ["spam", "spam", "not spam", "not spam"])
    assert table.classes == [("spam", 2, 2, 1), ("not spam", 2, 1, 1)] and table.unnamed == 1
    assert (table.classes[1].recall, table.classes[1].precision) == (0.5, 1.0)


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ('{"b": [1, {"c": "x"}], "a": 1.0}', 1), ('Here:\n```json\n{"a": 1, "b": [1, {"c": "x"}]}\n```\nAs in [1].', 1),
        ('{"a": true, "b": [1, {"c": "x"}]}', 2 / 3), ('{"a": 1, "b": [1, {"c": "y"}]}', 2 / 3), ('{"a": 1}', 1 / 3),
        ('{"a": 1, "b": [1, {"c": "x"}], "d": 0}', 3 / 4), ('{"a": 1, "b": "none"}', 1 / 4), ("[]", 0), ("no idea", 0), ("{", 0),
        ('First {"a": 2}. No: {"a": 1, "b": [1, {"c": "x"}]}', 1), ('{"a": 1, "b": [{"c": "x"}, 1]}', 1 / 5),
    ],
)  # fmt: skip
def test_json_is_graded_by_its_fields(answer, share):
    assert grade("json", answer, '{"a": 1, "b": [1, {"c": "x"}]}') == pytest.approx(share)


@some
@given(objects, st.randoms())
def test_order_of_keys_fences_and_indents_are_of_no_account(value, chance):
    keys = list(value)
    chance.shuffle(keys)
    other = json.dumps({key: value[key] for key in keys}, indent=chance.choice([None, 2]))
    assert (
        grade("json", chance.choice(["{}", "```json\n{}\n```", "So:\n{}\nDone."]).replace("{}", other), json.dumps(value)) == 1
    )


SCHEMA = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}, "b": {"pattern": "^(x|x?)+$"}}}


@pytest.mark.parametrize("schema", [SCHEMA, json.dumps(SCHEMA)])
def test_an_answer_that_does_not_fit_the_row_s_schema_is_worth_nothing(schema):
    assert grade("json", '{"a": 1}', "", json_schema=schema) == 1
    assert grade("json", '{"a": "1"}', "", json_schema=schema) == 0
    assert grade("json", '{"c": 2}', '{"c": 2}', json_schema=schema) == 0
    assert grade("json", '{"a": 1, "c": 2}', '{"a": 1, "c": 3}', json_schema=schema) == 0.5
    assert grade("json", json.dumps({"a": 1, "b": "x" * 40 + "!"}), "", json_schema=schema) == 0


def test_a_schema_fetches_nothing_and_a_bad_one_is_a_failed_row():
    asked = []

    class Schemas(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    with HTTPServer(("127.0.0.1", 0), Schemas) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        elsewhere = {"$ref": f"http://127.0.0.1:{server.server_port}/schema"}
        graded = grade_answers(
            GRADERS["json"], ["{}", "{}"], ["", ""], [{"json_schema": elsewhere}, {"json_schema": {"type": 1}}]
        )
        server.shutdown()
    assert graded.scores == [0, 0] and graded.failed == 2 and graded.first_failure.startswith("row 1: ")
    assert not asked


def test_regex_searches_and_a_reference_that_is_no_pattern_is_a_failed_row():
    assert grade("regex", " Order A-17 \n", r"^Order [A-Z]-\d+$") == 1
    assert grade("regex", "Order 17", r"[A-Z]-\d+") == 0
    graded = grade_answers(GRADERS["regex"], ["x", "x", "x"], ["x", "(", "a" * 5000], [{}] * 3)
    assert graded.scores == [1, 0, 0] and graded.failed == 2 and graded.first_failure.startswith("row 2: error: ")


TWO_CALLS = [
    '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n<tool_call>{"name": "g.h", "arguments": {"b": [true, null]}}</tool_call>',
    "<|tool_call_start|>[f(a=1), g.h(b=[True, None])]<|tool_call_end|>",
    "[f(a=1), g.h(b=[true, null])]",
    "I will call [f(a=1.0), g.h(b=(True, None))]",
    '{"name": "f", "parameters": {"a": 1}}; {"name": "g.h", "parameters": {"b": [true, null]}}',
    '[{"type": "function", "function": {"name": "f", "arguments": "{\\"a\\": 1}"}}, {"name": "g.h", "arguments": {"b": [true, null]}}]',
    '{"tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}, {"name": "g.h", "arguments": {"b": [true, null]}}]}',
]


@pytest.mark.parametrize("answer", TWO_CALLS)
def test_tool_calls_are_compared_however_they_are_written(answer):
    assert [call.name for call in calls_in(answer)] == ["f", "g.h"]
    assert all(grade("tool_call", answer, reference) == 1 for reference in TWO_CALLS)
    assert grade("tool_call", "[f(a=1)]", answer) == grade("tool_call", "[g.h(b=[True, None]), f(a=1)]", answer) == 0
    assert grade("tool_call", "[f(a=True), g.h(b=[True, None])]", answer) == 0
    assert grade("tool_call", "I cannot.", answer) == 0 and grade("tool_call", answer, "I cannot.") == 0


@pytest.mark.parametrize(
    "text", ['[f(a=__import__("os").getcwd())]', "[f(1)]", "[f(**x)]", "[f(a=b)]", "[f()(a=1)]", "[f(a=1j)]", '{"name": "Bob"}']
)
def test_what_is_not_a_name_with_plain_values_is_no_call(text):
    assert calls_in(text) == []


@some
@given(st.dictionaries(st.text("abcdefg_", min_size=1, max_size=3).filter(lambda one: not iskeyword(one)), objects, max_size=3))
def test_a_call_as_python_is_the_call_as_json(arguments):
    listed = f"[find({', '.join(f'{key}={value!r}' for key, value in arguments.items())})]"
    assert grade("tool_call", listed, json.dumps({"name": "find", "arguments": arguments})) == 1


def test_a_list_of_calls_within_an_argument_is_an_argument():
    assert calls_in('So: {"name": "run", "arguments": {"code": "[f(a=1)]"}}') == [("run", {"code": "[f(a=1)]"})]
    assert calls_in('[run(code={"name": "f", "arguments": {}})]') == [("run", {"code": {"name": "f", "arguments": {}}})]


# ---- rows


def test_a_grader_that_fails_on_a_row_is_counted_and_stops_nothing():
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError

    def grader(answer, reference, row):
        if answer == "exit":
            raise SystemExit(3)
        if answer == "mute":
            raise Mute
        return row["score"]

    scores = [1, True, 0.25, None, "1", math.nan, math.inf, -0.1, 1.1, [1], 10**400, 0, 0, False]
    answers = ["" for _ in scores]
    answers[11], answers[12] = "exit", "mute"
    graded = grade_answers(grader, answers, answers, [{"score": score} for score in scores])
    assert graded.scores == [1, 1, 0.25] + [0] * 11
    assert graded.failed == 10 and graded.first_failure.startswith("row 4: TypeError: ")
    with pytest.raises(ValueError):
        grade_answers(grader, ["a"], [], [])


def test_a_failure_is_one_short_line():
    def grader(answer, reference, row):
        raise ValueError("a\x1b[31m\nb" * 10**6)

    said = grade_answers(grader, ["a"], ["a"], [{}]).first_failure
    assert said.isprintable() and len(said) < 400


# ---- a grader by name or file


def test_a_user_s_own_grader(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n@dataclass\nclass Weight:\n    by: float\n\n"
        "def grade(answer, reference, row):\n    return Weight(0.5).by * (answer == reference)\n\nreward = lambda *values: 1\n"
    )
    assert load_grader(str(file))("a", "a", {}) == 0.5
    assert load_grader(str(file), "reward")("a", "b", {}) == 1
    assert load_grader("exact") is GRADERS["exact"]


@pytest.mark.parametrize(
    ("source", "code", "says"),
    [
        (None, "no_grader_file", "no file"), ("", "bad_grader", "no function 'grade'"), ("grade = 1", "bad_grader", "no function"),
        ("def grade(answer): return 1", "bad_grader", "too many positional"), ("def grade(:", "bad_grader", "SyntaxError"),
        ("import no_such_module", "bad_grader", "no_such_module"), ("raise SystemExit(2)", "bad_grader", "SystemExit"),
        ("\0", "bad_grader", "null bytes"), ("x = '\ud800'", "bad_grader", "fails"), ("1/0", "bad_grader", "ZeroDivisionError"),
    ],
)  # fmt: skip
def test_a_file_without_a_grader_says_what_to_write(tmp_path, source, code, says):
    file = tmp_path / "mine.py"
    if source is not None:
        file.write_bytes(source.encode("utf-8", "surrogatepass"))
    with pytest.raises(Stop) as stopped:
        load_grader(str(file))
    assert stopped.value.code == code and says in stopped.value.message and stopped.value.fix
    assert stopped.value.__suppress_context__ or stopped.value.__context__ is None


@some
@given(st.text() | st.text().map(lambda text: text + ".py"))
@example("exat")
@example("a" * 5000 + ".py")
@example("\0.py")
@example(".py")
def test_any_other_name_is_an_error_that_names_the_graders(name):
    assume(name not in GRADERS)
    with pytest.raises(Stop) as stopped:
        load_grader(name)
    said = stopped.value.message + stopped.value.fix
    assert "exact" in said and "tool_call" in said and said.isprintable() and len(said) < 1000
    if name == "exat":
        assert "Did you mean exact?" in said


# ---- which grader fits

CALLS = [f'<tool_call>{{"name": "f", "arguments": {{"a": {at}}}}}</tool_call>' for at in range(20)]
OBJECTS = [json.dumps({"name": "Bob", "age": at}) for at in range(20)]
LONG = ["The quick brown fox jumps over the lazy dog and then it sleeps until the sun is up again on the next day."] * 20


@pytest.mark.parametrize(
    ("references", "name", "says"),
    [
        ([str(at) for at in range(50)], "number", "All 50 answers are numbers."), (["$1,200", "-3.5%"] * 5, "number", "All 10"),
        ([f"{at} + 1 is the answer\n#### {at:,}" for at in range(20)], "number", "All 20"),
        ([*map(str, range(49)), "N/A"], "number", "49 of 50 answers are numbers."), (OBJECTS, "json", "All 20 answers are JSON."),
        ([f"```json\n{one}\n```" for one in OBJECTS], "json", "All 20"), (CALLS, "tool_call", "All 20 answers are tool calls."),
        (["[f(a=1)]", '[g(b="x")]'], "tool_call", "All 2"), (["Positive", "negative"] * 5, "choice", "2 short texts"),
        ([f"town {at}" for at in range(30)], "exact", "2 words"), ([f"{at},50 €" for at in range(30)], "number", "the same unit"),
        ([f"{at} apple{'s' * (at != 1)}." for at in range(30)], "number", "All 30"), (["5 stars", "1 star"] * 9, "choice", "2 short texts"), ([f"{at} s" for at in range(30)], "number", "All 30"),
        ([f"{at} {'kg' if at % 2 else 'm'}" for at in range(30)], "exact", "2 words"), ([f"2024-05-{at}" for at in range(10, 30)], "exact", "1 word"),
        (LONG, None, "long texts"), ([], None, "no answers"), (["", " "], None, "no answers"),
    ],
)  # fmt: skip
def test_a_grader_is_proposed_from_the_references(references, name, says):
    proposed, why = propose_grader(references)
    assert proposed == name and says in why and why.endswith(".")
    assert not name or grader_misfit(name, references) is None or "49 of" in why


def test_questions_that_list_the_answers_tell_classes_from_few_rows():
    references, prompts = ["hot", "cold", "warm"], ["Is it hot, cold or warm?"] * 3
    assert propose_grader(references)[0] == "exact"
    assert propose_grader(references, prompts)[0] == "choice"


@pytest.mark.parametrize(
    ("name", "references", "says"),
    [
        ("exact", LONG, "All 20"), ("number", ["5", "five"], "1 of 2"), ("json", OBJECTS + ["{"], "1 of 21"), ("regex", ["a", "("], "1 of 2"),
        ("choice", [f"{at}" for at in range(60)], "60 different"), ("tool_call", [*CALLS, "no"], "1 of 21"), ("contains", ["", "a"], "1 of 2"),
    ],
)  # fmt: skip
def test_a_grader_that_does_not_fit_is_told(name, references, says):
    assert says in (grader_misfit(name, references) or "")
    assert grader_misfit("mine.py", references) is None


@some
@given(st.lists(st.text(max_size=30), max_size=8), st.lists(st.text(max_size=30), max_size=3))
def test_any_references_get_a_proposal_and_a_sentence(references, prompts):
    name, why = propose_grader(references, prompts)
    assert name is None or name in GRADERS
    assert why[0].isupper() and why.endswith(".")
    for name in GRADERS:
        grader_misfit(name, references)
