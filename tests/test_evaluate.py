"""Models that exist are compared: real PEFT adapters of a tiny model, the plan, the job, the report and the card."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import evaluate
import pytest
from commands import Commands
from conftest import ROOT, make_tokenizer, python_of
from hub import Hub
from hubs import ADA
from runs import Run, Runs
from test_judge import Judge

EVALUATE = ROOT / "templates" / "evaluate.py"
MAKE_MODELS = """
import json, sys
import torch
sys.path.insert(0, "demo")
import tiny_model
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

base, rows, *folders = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(base)
config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
model.save_pretrained(folders[1])  # untrained: it answers as its base does
rows = [json.loads(line) for line in open(rows)]
texts = [
    tokenizer.apply_chat_template(
        [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}], tokenize=False
    )
    for row in rows
]
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
for step in range(40):
    at = 8 * step % 64
    batch = tokenizer(texts[at : at + 8], return_tensors="pt", padding=True, add_special_tokens=False)
    model(**batch, labels=batch.input_ids.masked_fill(batch.attention_mask == 0, -100)).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
model.save_pretrained(folders[0])
tokenizer.save_pretrained(folders[0])
tiny_model.make_model(tokenizer, seed=11).save_pretrained(folders[2])
tokenizer.save_pretrained(folders[2])
"""
TRAINED_ON = {"dataset": "ada/numbers", "eval_split": 0.25, "max_eval_rows": 200, "num_samples": 0, "seed": 3407}


def write_rows(file: Path, rows: list[dict]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def asked(number: int, answer: str = "yes") -> dict:
    return {"question": f"Is {number} a number?", "answer": answer}


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory) -> Iterator[Runs]:
    """Starts runs of the template; libraries are imported once. Its Hub holds what the fixture `models` makes."""
    with Runs(python_of(EVALUATE), tmp_path_factory.mktemp("evaluations"), "evaluation_server.py") as runs:
        yield runs


@pytest.fixture(scope="module")
def models(evaluations, tiny_model, tmp_path_factory) -> Path:
    """A folder with adapters of tiny_model: `tuned` says yes to all, `untrained` does what its base does; `other`: a model."""
    folder = tmp_path_factory.mktemp("models")
    write_rows(folder / "rows.jsonl", [asked(number) for number in range(64)])
    making = [evaluations.python, "-c", MAKE_MODELS, str(tiny_model), str(folder / "rows.jsonl")]
    making += [str(folder / name) for name in ("tuned", "untrained", "other")]
    subprocess.run(making, check=True, capture_output=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    (folder / "tuned" / "README.md").write_text(
        "---\nlicense: mit\n---\n\n# tuned\n\nWhat it is.\n\n## How it was made\n\nSo.\n"
    )
    return folder


@pytest.fixture(scope="module")
def hub(evaluations, models, tiny_model) -> Hub:
    """ada/tuned as templates/sft.py leaves it on the Hub, with its base and the rows that it was trained on."""
    hub, folder = evaluations.hub, models / "on-hub"
    folder.mkdir()
    for file in (models / "tuned").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "ada/tiny"}))
    (folder / "training_settings.json").write_text(json.dumps(TRAINED_ON))
    write_rows(models / "numbers" / "train.jsonl", [asked(number, "yes" if number % 4 else "no") for number in range(64)])
    hub.add_repo("ada/tiny", tiny_model, private=True)
    hub.add_repo("ada/numbers", models / "numbers", type="dataset", private=True)
    hub.add_repo("ada/tuned", folder, private=True)
    return hub


@pytest.fixture(scope="module")
def test_rows(models) -> Path:
    """40 rows of which 14 stand in the training data, two of them in other words."""
    seen = [asked(number) for number in range(12)] + [
        {"question": f"is {number} a NUMBER", "answer": "yes"} for number in (20, 21)
    ]
    return write_rows(
        models / "test.jsonl", seen + [asked(number, "yes" if number % 3 else "no") for number in range(100, 126)]
    )


def failed(run: Run) -> dict:
    run.wait()
    assert run.code == 1, run.log[-3000:]
    return run.last("failed")


def table(event: dict) -> dict[str, dict]:
    return {row["name"]: row for row in event["contenders"]}


# ---- side by side


def test_five_contenders_answer_the_same_questions_on_this_machine(models, test_rows, tmp_path):
    commands = Commands({"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "UV_OFFLINE": "1"}, tmp_path)
    (tmp_path / "prompt.txt").write_text("Answer with one word.\n")
    named = f"{models / 'tuned'},{models / 'other'}"
    words = ["--models", named, "--eval-dataset", str(test_rows), "--dataset", str(models / "rows.jsonl"), "--few-shot", "2"]
    words += ["--system-prompt", "prompt.txt", "--grader", "exact", "--save-local", "report"]
    job = commands.json("submit.py", str(EVALUATE), "--where", "local", "--timeout", "10m", "--yes", "--", *words)["job_id"]
    status = commands.json("status.py", job, "--watch", code=None)
    assert status["stage"] == "COMPLETED", commands.run("logs.py", job).stdout[-3000:]
    found = status["result"]["graded"]
    assert list(table(found)) == ["base", "base + prompt", "base + 2 examples", "tuned", "other"]
    # The 14 rows that the training data holds are left out, also those that are written otherwise.
    assert found["rows"] == 26
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["data"]["seen"] == 14 and report["data"]["train_rows"] == 64
    # It says yes to all: right where that is right, and the interval says that this is no chance.
    tuned = table(found)["tuned"]
    assert tuned["right"] == pytest.approx(18 / 26, abs=1e-3) and tuned["verdict"] == "better"
    assert table(found)["base"]["right"] == 0
    assert any("0% → 69%" in line for line in status["worth"])
    assert "report/README.md" in status["next"]
    answers = [json.loads(line) for line in (tmp_path / "report" / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 26
    for row in answers:
        assert row["tuned"]["answer"] == "yes"
        assert row["tuned"]["grade"] == (1.0 if row["reference"] == "yes" else 0.0)
    page = (tmp_path / "report" / "README.md").read_text()
    assert "Answer with one word." in page and str(models) not in page
    # The worst are the last contender's, and at most ten.
    assert page.count("| Reference |") == len(report["worst"]) == 10
    assert {row["grades"]["other"] for row in report["worst"]} == {0.0}


def test_an_adapter_that_learned_nothing_answers_as_its_base(evaluations, models, test_rows):
    """Adapters of one base share it in memory: each answers as itself, and the base as none of them."""
    both = f"{models / 'tuned'},{models / 'untrained'}"
    run = evaluations.start("--models", both, "--eval-dataset", str(test_rows), "--grader", "exact").wait()
    assert run.code == 0, run.log[-3000:]
    assert "train_rows_unknown" in {event["code"] for event in run.all("warning")}
    rows = [json.loads(line) for line in (run.folder / "out" / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == 40
    for row in rows:
        assert row["untrained"]["answer"] == row["base"]["answer"] != row["tuned"]["answer"]
    untrained = table(run.last("graded"))["untrained"]
    assert untrained["difference"] == 0 and untrained["verdict"] == "not distinguishable"
    # A base model of noise writes on and on, and is told of it.
    assert untrained["cut"] == table(run.last("graded"))["base"]["cut"] > 30


def test_whole_models_alone_are_compared_to_the_first(evaluations, models, test_rows, tiny_model):
    named = f"{tiny_model},{models / 'other'}"
    run = evaluations.start("--models", named, "--eval-dataset", str(test_rows), "--grader", "contains").wait()
    assert run.code == 0, run.log[-3000:]
    assert list(table(run.last("graded"))) == [tiny_model.name, "other"]
    alone = evaluations.start("--models", str(tiny_model), "--eval-dataset", str(test_rows), "--grader", "contains").wait()
    assert alone.code == 0, alone.log[-3000:]
    assert list(table(alone.last("graded"))) == [tiny_model.name]


def test_a_grader_that_fails_is_told_and_counts_as_wrong(evaluations, models, test_rows, tmp_path):
    grader = tmp_path / "grader.py"
    grader.write_text("def grade(answer, reference, row):\n    return 1.0 if row['answer'] == 'no' else 1 / 0\n")
    words = ["--models", str(models / "tuned"), "--eval-dataset", str(test_rows), "--grader", str(grader), "--max-graded", "9"]
    run = evaluations.start(*words).wait()
    assert run.code == 0, run.log[-3000:]
    graded = run.last("graded")
    assert graded["rows"] == 9 and "ZeroDivisionError" in graded["first_failure"]
    assert all(row["ungradable"] + round(9 * row["right"]) == 9 for row in graded["contenders"])


# ---- on the Hub


def test_a_job_evaluates_on_the_rows_held_out_and_puts_its_report_beside_the_adapter(hub, tmp_path):
    commands, before = Commands(hub.env(token=ADA), tmp_path), contents(hub, "ada/tuned")
    words = ["submit.py", str(EVALUATE), "--flavor", "cpu-upgrade", "--timeout", "20m"]
    arguments = ["--", "--models", "ada/tuned", "--grader", "exact"]
    shown = commands.json(*words, *arguments, code=3)
    plan = shown["plan"]
    revisions = {name: hub.store.repos[kind, name].head.sha for kind, name in REPOSITORIES}
    assert f"--models=ada/tuned@{revisions['ada/tuned']}" in plan["arguments"]
    assert (plan["model"], plan["model_revision"]) == ("ada/tiny", revisions["ada/tiny"])
    assert f"--dataset-revision={revisions['ada/numbers']}" in plan["arguments"]
    assert plan["results"] == ["ada/tuned"] and plan["public"] is False
    assert "which is replaced" not in shown["summary"]["result"] and "section of the card" in shown["summary"]["result"]
    assert shown["summary"]["test rows"] == "those that the training held out"

    job = commands.json(*words, "--approve", shown["plan_id"], *arguments)["job_id"]
    log = "\n".join(line.text for line in hub.jobs.wait(job, timeout=600).logs)
    status = commands.json("status.py", job, code=None)
    assert status["stage"] == "COMPLETED", log[-3000:]
    assert status["next"].startswith(f"The report: {hub.env()['HF_ENDPOINT']}/ada/tuned/blob/main/evaluation/README.md")
    assert '"code": "rows_not_pinned"' in log  # nobody had pinned them for that training
    # Asked were the very rows that the training held out, by its share and its seed.
    after = contents(hub, "ada/tuned")
    answered = [json.loads(line) for line in after["evaluation/answers.jsonl"].decode().splitlines()]
    assert {row["question"] for row in answered} == held_out(hub)
    assert status["result"]["graded"]["rows"] == len(answered) == 16
    # Of the adapter, only the card has changed, and that only by its section.
    new = {"evaluation/README.md", "evaluation/report.json", "evaluation/answers.jsonl", "evaluation/settings.json"}
    assert after.keys() - before.keys() == new
    assert {name for name in before if before[name] != after[name]} == {"README.md"}
    card = after["README.md"].decode()
    assert card.startswith("---\nlicense: mit\n---\n\n# tuned\n\nWhat it is.\n\n<!-- evaluation -->\n\n## Evaluation\n")
    assert card.endswith("<!-- /evaluation -->\n\n## How it was made\n\nSo.\n")
    assert (
        f"ada/tuned@{revisions['ada/tuned']} on ada/tiny at {revisions['ada/tiny']}" in after["evaluation/README.md"].decode()
    )
    assert hub.leaks(ADA) == []


REPOSITORIES = (("model", "ada/tuned"), ("model", "ada/tiny"), ("dataset", "ada/numbers"))


def contents(hub: Hub, name: str) -> dict[str, bytes]:
    return {file: path.read_bytes() for file, path in hub.files(name).items()}


def held_out(hub: Hub) -> set[str]:
    from datasets import Dataset

    rows = [json.loads(line) for line in hub.files("ada/numbers", type="dataset")["train.jsonl"].read_text().splitlines()]
    return set(Dataset.from_list(rows).train_test_split(test_size=16, seed=3407)["test"]["question"])


def test_another_evaluation_replaces_the_section_and_may_quote_nothing(evaluations, hub, test_rows):
    """After the job: the report of the second stands, in whole."""
    words = ["--models", "ada/tuned", "--eval-dataset", str(test_rows), "--grader", "exact", "--output-repo", "ada/tuned"]
    run = evaluations.start(*words, "--no-card-samples", "--base-model", "ada/tiny").wait()
    assert run.code == 0, run.log[-3000:]
    assert run.last("data")["train_rows"] == 64
    files = contents(hub, "ada/tuned")
    card, page = files["README.md"].decode(), files["evaluation/README.md"].decode()
    assert card.count("<!-- evaluation -->") == card.count("## Evaluation") == 1 and "What it is." in card
    assert "Is 1" not in page and "Is 1" not in files["evaluation/report.json"].decode()
    assert "26 questions" in card


def test_a_public_repository_gets_no_report_unasked(evaluations, hub, models, test_rows):
    hub.add_repo("ada/open", models / "on-hub")
    words = ["--models", "ada/open", "--eval-dataset", str(test_rows), "--output-repo", "ada/open"]
    assert failed(evaluations.start(*words))["code"] == "public_repository"
    assert "evaluation/README.md" not in hub.files("ada/open")


# ---- how a contender is asked

TURNS = "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>\n{% endfor %}"
TURNS += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TURNS


def prompt_of(folder: Path, chat_template: str | None, **form: object) -> str:
    """What a contender with a system prompt, or with an example, reads of a row."""
    make_tokenizer(chat_template).save_pretrained(folder)
    layout = evaluate.Format("prompt-completion", {"prompt": "question", "completion": "answer"})
    contender = evaluate.Contender("base", str(folder), tokenizer=folder, **form)
    asker = evaluate.Asker(contender, layout, 2000, "Be brief.")
    if contender.examples:
        asker.choose_examples([{"question": "One?", "answer": "Two."}], layout, 0)
    row = {"question": "Three?", "answer": "Four."}
    found = asker.ask(evaluate.Question([], "Three?", "Four.", row))
    assert found.reference == "Four."
    return asker.tokenizer.decode(found.prompt)


def test_a_system_prompt_and_examples_stand_where_the_chat_template_wants_them(tmp_path):
    turn = "<|im_start|>{}\n{}<|im_end|>\n".format
    asked = turn("user", "Three?") + "<|im_start|>assistant\n"
    assert prompt_of(tmp_path / "plain", TURNS) == asked
    assert prompt_of(tmp_path / "system", TURNS, prompt=True) == turn("system", "Be brief.") + asked
    shown = turn("user", "One?") + turn("assistant", "Two.")
    assert prompt_of(tmp_path / "shown", TURNS, examples=1) == shown + asked
    refused = turn("user", "Be brief.\n\nThree?") + "<|im_start|>assistant\n"
    assert prompt_of(tmp_path / "refused", NO_SYSTEM, prompt=True) == refused
    assert prompt_of(tmp_path / "text", None, prompt=True) == "Be brief.\n\nThree?"
    assert prompt_of(tmp_path / "texts", None, examples=1) == "One?\n\nTwo.\n\nThree?"


# ---- what cannot be evaluated


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--models", "ada/nothing", "--eval-dataset", "TEST"], "not_found"),
        (["--models", "./nothing", "--eval-dataset", "TEST"], "no_model"),
        (["--models", "prefix", "--eval-dataset", "TEST"], "not_lora"),
        (["--models", "orphan", "--eval-dataset", "TEST"], "no_base_model"),
        (["--models", "misfit", "--eval-dataset", "TEST", "--grader", "exact"], "adapter_misfit"),
        (["--models", "MODELS/tuned"], "no_test_rows"),
        (["--models", "MODELS/tuned", "--eval-dataset", "empty.jsonl"], "dataset_unreadable"),
        (["--models", "MODELS/tuned", "--eval-dataset", "texts.jsonl"], "no_questions"),
        (["--models", "MODELS/tuned", "--eval-dataset", "others.jsonl"], "unknown_columns"),
        (["--models", "MODELS/tuned", "--eval-dataset", "essays.jsonl"], "no_grader"),
        (["--models", "MODELS/tuned", "--eval-dataset", "TEST", "--dataset", "TEST"], "all_seen"),
        (["--models", "MODELS/tuned", "--eval-dataset", "TEST", "--few-shot", "1"], "no_examples"),
        (["--models", "MODELS/tuned,MODELS/other,ada/tuned", "--few-shot", "1", "--system-prompt", "x"], "too_many_contenders"),
        (["--models", "MODELS/tuned", "--eval-dataset", "TEST", "--output-repo", "microsoft/phi"], "push_denied"),
    ],
)
def test_it_stops_and_says_what_to_do(evaluations, hub, models, test_rows, tmp_path, words, code):
    config = json.loads((models / "tuned" / "adapter_config.json").read_text())
    for name, change in {
        "prefix": {"peft_type": "PREFIX_TUNING"},
        "orphan": {"base_model_name_or_path": "/data/gone"},
        "misfit": {"r": 4},
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "adapter_model.safetensors").symlink_to(models / "tuned" / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(config | change))
    write_rows(tmp_path / "empty.jsonl", [])
    write_rows(tmp_path / "texts.jsonl", [{"text": "Once upon a time."}])
    write_rows(tmp_path / "others.jsonl", [{"colour": "red", "size": "4"}])
    write_rows(
        tmp_path / "essays.jsonl", [{"question": f"Why {n}?", "answer": f"For {n} reasons. " * (5 + n)} for n in range(8)]
    )
    words = [word.replace("MODELS", str(models)).replace("TEST", str(test_rows)) for word in words]
    stop = failed(evaluations.start(*words, folder=tmp_path))
    assert stop["code"] == code, stop
    assert stop["fix"]


def test_a_job_without_time_or_a_place_for_its_report_stops(evaluations, models, test_rows):
    words = ["--models", str(models / "tuned"), "--eval-dataset", str(test_rows), "--grader", "exact"]
    assert failed(evaluations.start(*words, JOB_ID="1"))["code"] == "no_output_repo"
    assert failed(evaluations.start(*words, UNSLOTH_JOBS_RUN=json.dumps({"timeout_s": 1})))["code"] == "no_time"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--models", "a/b,a/b"],
        ["--models", "a/b@main,a/b"],
        ["--models", "a/b", "--base-model", "a/b"],
        ["--models", "a/1,a/2,a/3,a/4,a/5,a/6"],
        ["--models", "a/1,a/2,a/3,a/4", "--base-model", "a/5", "--few-shot", "2"],
        ["--models", "a/b", "--few-shot", "-1"],
        ["--models", "a/b", "--judge-url", "https://judge.example/v1"],
        ["--models", "a/b", "--judge-url", "http://judge.example/v1", "--judge-model", "m"],
        ["--models", "a/b", "--prompt-column", "q"],
        ["--models", "a/b", "--output-repo", "b"],
        ["--models", "a/b", "--max-graded", "0"],
    ],
)
def test_wrong_flags_are_named(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        evaluate.parse_args(words)
    assert "error: --" in capsys.readouterr().err


# ---- the plan


def refusal(commands: Commands, *arguments: str, code: int) -> dict:
    return commands.json("submit.py", str(EVALUATE), "--", *arguments, code=code)["problems"][0]


def test_a_plan_refuses_what_a_job_could_not_do(hub, models, test_rows, tmp_path):
    commands = Commands(hub.env(token=ADA), tmp_path)
    hub.add_user("bob", token="hf_bobbobbobbob")
    hub.add_repo("bob/theirs", models / "on-hub")
    rows = ["--eval-dataset", str(test_rows)]
    refused = refusal(commands, "--models", str(models / "tuned"), *rows, code=1)
    assert refused["code"] == "not_a_file" and "hf upload" in refused["fix"] and "--where local" in refused["fix"]
    assert refusal(commands, "--models", "ada/none", *rows, code=1)["code"] == "not_found"
    assert refusal(commands, "--models", "ada/tiny", code=2)["code"] == "no_test_rows"
    assert refusal(commands, "--models", "ada/tiny", *rows, code=2)["code"] == "no_output_repo"
    assert refusal(commands, "--models", "bob/theirs", *rows, code=2)["code"] == "no_output_repo"
    many = ["--models", "ada/tuned,bob/theirs,a/b", "--few-shot", "1", "--system-prompt", "x"]
    hub.add_repo("a/b", models / "on-hub")
    assert refusal(commands, *many, *rows, code=2)["code"] == "too_many_contenders"


def test_a_plan_says_who_is_compared_who_judges_and_what_the_judge_is_sent(hub, test_rows, tmp_path):
    env = hub.env(token=ADA) | {"JUDGE_API_KEY": "a-judges-key-of-thirty-letters"}
    words = ["--models", "ada/tuned,ada/tiny", "--eval-dataset", str(test_rows), "--system-prompt", "Be brief."]
    words += ["--judge-url", "https://judge.example/v1", "--judge-model", "judge-1", "--grader", "exact"]
    shown = Commands(env, tmp_path).json("submit.py", str(EVALUATE), "--", *words, code=3)
    assert shown["plan"]["secrets"] == ["HF_TOKEN", "JUDGE_API_KEY"] and list(shown["plan"]["files"]) == [str(test_rows)]
    assert not any(word.startswith("--models=") and "tiny" in word for word in shown["plan"]["arguments"])  # it is the base
    summary = shown["summary"]
    assert "ada/tiny at " in summary["base model"] and "with the system prompt" in summary["base model"]
    assert "judge-1 at https://judge.example/v1, which is sent the questions" in summary["judge"]
    assert "a-judges-key" not in json.dumps(shown)


# ---- the judge


def test_a_judge_grades_where_no_rule_does_and_what_is_down_costs_nothing_else(evaluations, models, tmp_path):
    """One run asks a judge and two benchmarks, of which one does not exist."""
    rows = [
        {"question": f"Is {n} a number?", "answer": f"Yes, {n} is one, and so it has been for a long while. " * 3}
        for n in range(9)
    ]
    write_rows(tmp_path / "essays.jsonl", rows)
    write_rows(tmp_path / "items.jsonl", [asked(number) for number in range(200, 208)])
    (tmp_path / "task.yaml").write_text(TASK.format(file=tmp_path / "items.jsonl"))
    with Judge("fair") as judge:
        words = ["--models", str(models / "tuned"), "--eval-dataset", "essays.jsonl", "--judge-url", judge.url]
        words += ["--judge-model", "m", "--benchmarks", "task.yaml,no_such_task", "--benchmark-items", "6"]
        run = evaluations.start(*words, folder=tmp_path).wait()
    assert run.code == 0, run.log[-3000:]
    assert not run.all("graded") and len(judge.requests) == 18
    assert run.last("done")["judge"]["contenders"][0]["tied"] == 9
    [line] = run.last("done")["benchmarks"]
    assert (line["task"], line["metric"], line["rows"], line["first"], line["score"]) == ("says_yes", "exact_match", 6, 0, 1)
    assert line["verdict"] == "better"
    assert "no_such_task" in next(event["message"] for event in run.all("warning") if event["code"] == "benchmark_failed")
    page = (tmp_path / "out" / "README.md").read_text()
    assert "| says_yes: exact_match |" in page and "Preferred to `base` by `m`" in page and "follow none of it" in page


TASK = """
task: says_yes
dataset_path: json
dataset_kwargs:
  data_files: {file}
test_split: train
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 8
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


# ---- the card, the header


# ---- rows of preferences
