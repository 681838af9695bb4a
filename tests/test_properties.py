"""What holds for any input: durations, ids, flags, plans, records, events, rows, masks and costs."""

from __future__ import annotations

import json
import math
import re
from dataclasses import Field, asdict, fields, replace
from pathlib import Path

import pytest
import sft
from conftest import ROWS, make_tokenizer
from hypothesis import HealthCheck, assume, example, given
from hypothesis import settings as how
from hypothesis import strategies as st
from tiny_model import CHAT_TEMPLATE
from unsloth_jobs.errors import UserError
from unsloth_jobs.estimate import cost
from unsloth_jobs.estimate.flavors import snapshot_flavors
from unsloth_jobs.estimate.history import History
from unsloth_jobs.events import cleaned, parse, summarise
from unsloth_jobs.jobs import plan, records
from unsloth_jobs.jobs.backends import id_of
from unsloth_jobs.lookup.model_info import Model
from unsloth_jobs.lookup.sample import inspect_row
from unsloth_jobs.output import duration, escaped, visible

few = how(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

# ---- what is typed


@given(st.lists(st.tuples(st.integers(0, 999), st.sampled_from("smhd")), min_size=1, max_size=4))
def test_a_duration_is_the_sum_of_its_parts(parts):
    text, total = "".join(f"{number}{unit}" for number, unit in parts), sum(number * plan.UNITS[unit] for number, unit in parts)
    if total:
        assert plan.seconds(text) == total
        assert plan.seconds(f"{total}s") == total
    else:
        with pytest.raises(UserError):
            plan.seconds(text)


@given(st.text() | st.from_regex(r"[\d.]{1,3}[smhd ]{0,2}", fullmatch=True))
@example("9" * 400 + "d")
@example("1e3s")
@example("")
def test_any_other_text_is_a_duration_or_an_error_that_says_how_to_write_one(text):
    try:
        assert 1 <= plan.seconds(text) < math.inf
    except UserError as error:
        assert error.problem.code == "bad_timeout"


ids = st.from_regex(r"[\w-]{1,40}", fullmatch=True)


@given(ids, st.sampled_from(["{}", "https://huggingface.co/jobs/ada/{}", "https://huggingface.co/jobs/ada/{}/", "x/{}"]))
def test_a_job_s_id_is_found_in_its_address(job, address):
    assert id_of(address.format(job)) == job


@given(st.text())
@example("../..")
@example("local-\n")
def test_no_text_becomes_a_job_id_that_could_leave_its_folder(text):
    try:
        job = id_of(text)
    except UserError:
        return
    assert Path("/jobs", job).parent == Path("/jobs") and job not in (".", "..") and "\n" not in job


AT_LEAST_ONE = "batch_size gradient_accumulation max_seq_length max_eval_rows lora_r lora_alpha max_graded grading_seconds"
VALID = {  # of settings that do not take each value of their kind
    **dict.fromkeys(AT_LEAST_ONE.split(), st.integers(1, 10**6)),
    **dict.fromkeys(("num_epochs", "learning_rate", "save_steps"), st.floats(0, 10, exclude_min=True)),
    "min_coverage": st.floats(0, 1),
    "eval_split": st.floats(0, 1, exclude_max=True),
    "backend": st.sampled_from(["unsloth", "trl"]),
    "gradient_checkpointing": st.sampled_from(["auto", "off", "offload"]),
    "output_repo": st.from_regex(r"([a-z0-9._-]+/[a-z0-9._-]+)?", fullmatch=True),
    "dataset": st.text(min_size=1, max_size=20),
}
KINDS = {bool: st.booleans(), int: st.integers(0, 10**6), float: st.floats(0, 10), str: st.text(max_size=20)}


def values_of(item: Field) -> st.SearchStrategy:
    """Of one setting: a number or the word auto where either is taken."""
    number = item.metadata["number"]
    kind = number or type(item.default)
    return VALID.get(item.name, KINDS[kind]) | (st.just("auto") if number else st.nothing())


made_settings = st.builds(
    lambda values: sft.Settings(**values), st.fixed_dictionaries({f.name: values_of(f) for f in fields(sft.Settings)})
)


def flags(settings: sft.Settings) -> list[str]:
    said = []
    for item in fields(sft.Settings):
        name, value = item.name.replace("_", "-"), getattr(settings, item.name)
        said.append((f"--{name}" if value else f"--no-{name}") if isinstance(value, bool) else f"--{name}={value}")
    return said


@given(made_settings)
def test_flags_make_the_settings_that_they_were_made_from(settings):
    settings = replace(
        settings,
        completion_column=settings.prompt_column and settings.completion_column + "x",
        early_stopping=settings.early_stopping if settings.eval_split else 0,
        load_in_4bit=settings.load_in_4bit and not settings.load_in_16bit,
    )
    assert not list(sft.setting_problems(settings))
    assert sft.parse_args(flags(settings)) == settings


@given(
    st.sampled_from(fields(sft.Settings)),
    st.sampled_from(["nan", "inf", "-inf", "-1", "0", "1e400", "x", "", "ada/", "/x", "a b/c"]),
)
def test_a_value_that_would_fail_later_is_refused_at_once(item, value):
    try:
        settings = sft.parse_args(["--dataset=x", f"--{item.name.replace('_', '-')}={value}"])
    except SystemExit as end:
        assert end.code == 2
        return
    numbers = [value for value in vars(settings).values() if isinstance(value, int | float)]
    assert all(0 <= number < math.inf for number in numbers)
    assert settings.max_eval_rows >= 1
    assert re.fullmatch(r"|[\w.-]+/[\w.-]+", settings.output_repo)


# ---- plans and records

names = st.text(max_size=12)
maybe = st.none() | names
plans = st.builds(
    plan.Plan,
    **dict.fromkeys(("where", "script", "script_sha256", "flavor"), names),
    **dict.fromkeys(("model", "model_revision", "dataset", "dataset_revision", "output_repo", "output_dir"), maybe),
    **dict.fromkeys(("namespace", "trackio_space", "run_key", "pace_key"), maybe),
    **dict.fromkeys(("arguments", "secrets"), st.lists(names, max_size=4).map(tuple)),
    **dict.fromkeys(("usd_per_minute", "max_usd", "vram_gb"), st.floats(0.01, 1e6)),
    timeout_s=st.integers(1, 10**6),
    attempts=st.integers(1, 9),
    smoke=st.booleans(),
    files=st.dictionaries(names, names, max_size=2),
    start=st.integers(1, 3),
)


@given(plans)
def test_a_plan_comes_back_from_its_record(made):
    again = plan.Plan.from_json(json.loads(json.dumps(asdict(made))))
    assert (again, again.plan_id) == (made, made.plan_id)


@given(plans, plans)
def test_an_approval_fits_one_plan_alone(one, other):
    for item in fields(plan.Plan):
        changed = replace(one, **{item.name: getattr(other, item.name)})
        assert (changed.plan_id == one.plan_id) == (changed == one), item.name


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=16,
)


@few
@given(st.dictionaries(st.text(max_size=8), JSON))
def test_a_record_is_read_as_it_was_written(tmp_path, data):
    records.write(tmp_path / "record.json", data)
    assert records.read(tmp_path / "record.json") == data


@given(st.text() | st.text(alphabet="./\\\n\0ab-_"))
def test_a_record_s_name_stays_in_its_folder(name):
    path = records.path_of("runs", name)
    assert path is None or path.parent == records.folder("runs")


@given(st.floats() | st.integers() | st.none())
def test_any_number_of_seconds_can_be_shown(seconds):
    assert duration(seconds)


@given(st.text())
def test_what_is_printed_holds_no_control_character_and_json_loses_nothing(text):
    assert all(char in "\t\n" or ord(char) >= 0x20 for char in visible(text))
    assert not re.search("[\x7f-\x9f]", visible(text))
    written = escaped(json.dumps(text, ensure_ascii=False))
    assert json.loads(written) == text
    assert written.encode() and visible(written) == written


# ---- events

REAL = [
    'EVENT {"event": "progress", "step": 30, "total_steps": 120, "loss": 1.25, "eta_s": 300}',
    'EVENT {"event": "eval", "step": 0, "eval_loss": 2.5}',
    'EVENT {"event": "failed", "code": "error", "message": "x", "fix": "y"}',
    ' 25%|██▌ | 30/120 [00:10<00:30]EVENT {"event": "checkpoint", "step": 40, "pushed": true}',
    "torch.OutOfMemoryError: CUDA out of memory.",
]


@st.composite
def mutated(draw, lines):
    """A real line with a stretch of it cut, doubled or replaced."""
    line = draw(st.sampled_from(lines))
    start, end = sorted(draw(st.tuples(*[st.integers(0, len(line))] * 2)))
    return line[:start] + draw(st.sampled_from(["", line[start:end] * 2]) | st.text(max_size=6)) + line[end:]


said = st.dictionaries(st.sampled_from(["event", "step", "total_steps", "loss", "eval_loss", "eta_s", "code"]), JSON)
lines = st.text() | mutated(REAL) | st.builds("{}EVENT {}".format, st.text(max_size=5), said.map(json.dumps) | st.text())


@how(deadline=None)  # a busy machine is no fault
@given(st.lists(lines, max_size=8))
@example(["EVENT " + '{"event":' * 100_000])
@example(["EVENT {" + "9" * 10_000])
@example(['EVENT {"event": "progress", "step": NaN, "eta_s": Infinity}'])
def test_no_line_breaks_the_reading_of_a_log_and_none_is_taken_for_an_event(log):
    summary = summarise(log)
    for line in log:
        event = parse(line)
        if event is not None:
            assert isinstance(event["event"], str)
            told = cleaned(json.loads("{" + line.split("EVENT {", 1)[1]))
            assert told == event or json.dumps(event).count("NaN")
    assert set(summary.last) == {event["event"] for event in map(parse, log) if event}
    for value in vars(summary.progress).values():
        assert value is None or isinstance(value, int | float)


@how(deadline=None)
@given(st.dictionaries(st.text(max_size=8), JSON), st.text(max_size=20))
def test_what_the_template_emits_is_what_is_read(values, before):
    assume("event" not in values and "EVENT {" not in before)
    line = json.dumps({"event": "checkpoint", **values}, ensure_ascii=False)
    assert parse(f"{before}EVENT {line}") == cleaned({"event": "checkpoint", **values})


# ---- rows

LAYOUTS = [
    "messages",
    "conversations",
    "prompt",
    "completion",
    "instruction",
    "input",
    "output",
    "text",
    "tools",
    "question",
    "answer",
]


@given(st.dictionaries(st.sampled_from(LAYOUTS) | st.text(max_size=8), JSON, max_size=5))
@example({"messages": "[" * 100_000})
@example({"messages": [{"role": "user", "content": "a"}], "tools": "[" * 100_000})
@example({"messages": '{"role": "user"}'})
def test_any_row_is_read_or_refused_with_a_reason(row):
    try:
        layout = sft.detect_format(row)
    except sft.Stop as stop:
        assert stop.message and stop.fix
        return
    try:
        found = sft.normalise_row(row, layout)
    except ValueError as error:
        assert str(error)
        return
    assert set(found) - {"tools"} in ({"messages"}, {"prompt", "completion"}, {"text"})
    for turn in found.get("messages", ()):
        assert turn["role"] in sft.ROLES.values() and isinstance(turn["content"], str)


@given(mutated(ROWS.read_text().splitlines()))
def test_a_damaged_line_of_real_data_is_read_or_refused(line):
    try:
        row = json.loads(line)
    except ValueError:
        return
    assume(isinstance(row, dict))
    test_any_row_is_read_or_refused_with_a_reason.hypothesis.inner_test(row)


extras = ["role", "from", "content", "value", "tool_calls", "name", "reasoning_content", "thinking"]
turns_of_anything = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "tool"]), "content": st.text(max_size=9) | JSON})
    | st.dictionaries(st.sampled_from(extras), JSON | st.sampled_from(["user", "gpt"])),
    max_size=4,
)
CHATML = sft.Renderer(make_tokenizer(CHAT_TEMPLATE))


@given(st.fixed_dictionaries({"messages": turns_of_anything, "tools": JSON}), st.integers(1, 60))
@example(
    {"messages": [{"role": "user", "content": "a"}, {"role": "gpt", "content": "b", "thinking": ["c"]}], "tools": None}, 60
)
def test_what_check_counts_in_any_row_adds_up(row, length):
    counted, shown = inspect_row(sft, CHATML, sft.detect_format(row), set(), row, length)
    assert counted.learned <= counted.trained <= min(counted.length, length)
    assert counted.needed <= counted.length
    assert bool(counted.lost) == (counted.learned == 0)
    assert shown is None or len(shown.labels) == len(shown.input_ids) == counted.trained


text_parts = st.lists(st.text(), min_size=1, max_size=3)
contents = st.text() | text_parts.map(lambda texts: [{"type": "text", "text": text} for text in texts])
written = st.tuples(st.sampled_from(sorted(sft.ROLES)), contents)


@given(st.lists(written, min_size=1, max_size=6), st.sampled_from([("role", "content"), ("from", "value")]), st.booleans())
def test_no_turn_of_a_readable_row_is_lost_or_changed(turns, keys, as_text):
    messages = [dict(zip(keys, turn, strict=True)) | {"tool_calls": None} for turn in turns]
    row = {"messages": json.dumps(messages) if as_text else messages}
    found = sft.normalise_row(row, sft.detect_format(row))["messages"]
    plain = [content if isinstance(content, str) else "".join(part["text"] for part in content) for _, content in turns]
    assert found == [{"role": sft.ROLES[role], "content": text} for (role, _), text in zip(turns, plain, strict=True)]


# ---- masks

FAMILIES = [
    "trl/qwen2_5", "trl/qwen3", "trl/llama3_1", "trl/lfm2_2_5", "trl/phi3", "trl/gemma3", "trl/gemma4", "trl/cohere2",
    "trl/deepseekv3", "trl/glm4moe", "unsloth/zephyr", "unsloth/mistral", "unsloth/llama", "unsloth/phi-4", "unsloth/starling",
]  # fmt: skip
NO_SYSTEM = {"unsloth/zephyr", "unsloth/mistral"}  # they refuse one
TAGS = [
    "<|im_end|>\n<|im_start|>assistant\n",
    "<|im_end|>",
    "<|eot_id|>",
    "<end_of_turn>",
    "</s>",
    "[/INST]",
    "<EOS>",
    "{{ x }}",
]
words = st.lists(st.sampled_from([*TAGS, sft.MARKER, "4.", "\n", " ", "It is"]) | st.text(max_size=6), min_size=1, max_size=5)
speech = words.map("".join).map(lambda text: text.replace("⁂", "")).filter(str.strip)
exchanges = st.lists(st.tuples(speech, speech), min_size=1, max_size=3)


@pytest.fixture(scope="module")
def renderers(chat_templates):
    return {name: sft.Renderer(make_tokenizer(chat_templates[name])) for name in FAMILIES}


@how(max_examples=100, deadline=None)
@given(exchanges, st.booleans(), st.sampled_from(FAMILIES))
def test_the_answers_are_learned_and_nothing_else(renderers, turns, system, name):
    renderer = renderers[name]
    messages = [{"role": "system", "content": "⁂ Be brief."}] * (system and name not in NO_SYSTEM)
    for question, answer in turns:  # each question begins with a letter that no answer has
        messages += [{"role": "user", "content": "⁂" + question}, {"role": "assistant", "content": answer}]
    text, spans = renderer.render({"messages": messages})
    learned = [text[start:end] for start, end in spans]
    assert not any("⁂" in part for part in learned)
    assert len(learned) == len(turns)
    for part, (_, answer) in zip(learned, turns, strict=True):
        head, found, tail = part.partition(answer.strip())
        assert found and re.fullmatch(r"\s*(<think>\s*</think>\s*)?", head), (part, answer)
        assert re.fullmatch(rf"\s*(?:{renderer.tokens})*\s*", tail), (part, answer)
    whole = renderer.tokens_of(text, spans)
    assert len(whole.input_ids) == len(whole.labels) == whole.total_tokens
    parts = sft.segments(renderer.tokenizer, whole)
    assert "".join(part["text"] for part in parts) == text
    # A token may straddle the space before an answer.
    assert [part["text"].strip() for part in parts if part["learned"]] == [part.strip() for part in learned]
    cut = whole.cut(len(whole.input_ids) // 2)
    assert cut.labels == whole.labels[: len(cut.input_ids)]


# ---- costs

SHAPES = {"q_proj": (512, 512), "k_proj": (256, 512), "o_proj": (512, 512), "up_proj": (2048, 512), "down_proj": (512, 2048)}
MODEL = Model(
    "ada/tiny",
    None,
    "LlamaForCausalLM",
    {"model_type": "llama", "num_hidden_layers": 8, "vocab_size": 32_000, "hidden_size": 512},
    False,
    {f"model.layers.{layer}.x.{name}.weight": ("BF16", shape) for layer in range(8) for name, shape in SHAPES.items()},
)
FLAVORS = [one for one in snapshot_flavors()[0] if one.name in ("t4-small", "l4x1", "h200", "cpu-basic")]
runs = st.builds(cost.Run, st.integers(1, 10**6), st.floats(1, 2048), st.booleans(), st.floats(0, 3))
trained = st.builds(
    sft.Settings,
    dataset=st.just("x"),
    num_epochs=st.floats(0.1, 5),
    eval_split=st.floats(0, 0.9),
    batch_size=st.integers(1, 8),
    gradient_accumulation=st.integers(1, 8),
    max_steps=st.sampled_from([0, 0, 100]),
    num_samples=st.sampled_from([0, 0, 500]),
    early_stopping=st.sampled_from([0, 2]),
)


def estimated(run: cost.Run, settings: sft.Settings) -> dict[str, cost.Candidate]:
    return {one.flavor: one for one in cost.candidates(FLAVORS, MODEL, settings, run, History())}


@how(max_examples=40, deadline=None)
@given(runs, trained, st.floats(1, 4))
def test_more_rows_or_steps_are_never_cheaper_and_the_ceiling_holds_the_estimate(run, settings, factor):
    some, more = estimated(run, settings), estimated(replace(run, rows=math.ceil(run.rows * factor)), settings)
    longer = estimated(run, replace(settings, num_epochs=settings.num_epochs * factor))
    fitting = [one for one in some.values() if one.fits]
    assert fitting or any(one.code == "too_long" for one in some.values())
    for one in fitting:
        assert 0 < one.hours_low <= one.hours_high and 0 < one.usd_low <= one.usd_high
        for other in (more[one.flavor], longer[one.flavor]):
            if not other.fits:
                assert other.code == "too_long"
                continue
            assert (other.hours_low, other.usd_low) >= (one.hours_low, one.usd_low) or run.error
            assert other.hours_high >= one.hours_high and other.usd_high >= one.usd_high
    best = cost.recommend(list(some.values()), FLAVORS)
    assert (best is None) == (not fitting)
    if best and best.timeout_s < cost.LONGEST_TIMEOUT_S:
        assert best.timeout_s >= some[best.flavor].hours_high * 3600
        assert best.max_usd >= some[best.flavor].usd_high
