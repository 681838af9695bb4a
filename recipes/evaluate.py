# /// script
# dependencies = [
#     "torch",
#     "transformers",
#     "peft",
#     "accelerate",
#     "bitsandbytes",
#     "datasets",
#     "huggingface_hub",
#     "numpy",
#     "psutil",
#     "httpx",
#     "openpyxl",
#     "jsonschema",
#     "lm-eval",
# ]
#
# [tool.uv]
# ///
r"""Compare models at your task: base and tuned answer the same questions, and rules grade what they write.

Up to five contenders: adapters, whole models, the base, the base with a system prompt or with examples from the training
rows. On Hugging Face Jobs:

    hf jobs uv run --flavor l4x1 --timeout 1h --secrets HF_TOKEN templates/evaluate.py -- \
        --models you/lfm-finetuned --eval-dataset you/test-rows --output-repo you/lfm-finetuned

Here, what templates/sft.py has made, on the rows that it held out:

    uv run templates/evaluate.py --models ./tuned --save-local ./evaluation

The report is a folder: README.md with a table, an interval for each difference and the worst answers; answers.jsonl with
all of them; report.json. Each thing that matters is printed as one line `EVENT {"event": NAME, ...}`; NAME is one of
plan, contenders, data, questions, answering, graded, worst, judged, benchmark, pushed, warning, done, failed. Exit code 0:
the report is where the `done` event says; 1: the `failed` event says why and what to do.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unsloth_jobs.training.asking import Asker, asked_by_all
from unsloth_jobs.training.benchmarks import run_benchmarks
from unsloth_jobs.training.columns import Format, detect_format
from unsloth_jobs.training.contenders import MOST_CONTENDERS, Contender, find_contenders, id_and_revision
from unsloth_jobs.training.evaluation import Evaluation, grade_contenders, write_answers
from unsloth_jobs.training.evaluation_push import open_for_report, push_report
from unsloth_jobs.training.evaluation_report import card_section, report_page, worst_rows
from unsloth_jobs.training.evidence import ANSWERS_FILE
from unsloth_jobs.training.files import sha256_of
from unsloth_jobs.training.flags import parse_flags
from unsloth_jobs.training.judge import judge_answers
from unsloth_jobs.training.machine import hardware, require_gpu_where_paid, versions
from unsloth_jobs.training.preferences import find_preference_format, is_marked
from unsloth_jobs.training.question_set import SPARE, QuestionSet, choose_grader, unseen
from unsloth_jobs.training.questions import read_questions
from unsloth_jobs.training.report import LAST_EVENTS, Stop, emit, exit_code
from unsloth_jobs.training.rows import custom_format
from unsloth_jobs.training.run import StopSignal, billed_since, cost_usd, run_facts
from unsloth_jobs.training.setting import setting
from unsloth_jobs.training.settings import EvidenceSettings, ResultSettings
from unsloth_jobs.training.stage import Stage, answer_in_turn
from unsloth_jobs.training.test_rows import TestRows, find_test_rows, training_of

METHOD = "evaluate"

# ---------------------------------------------------------------------------------------------------------------
# Settings: fill them in here and above, or pass the flag of the same name.


@dataclass(frozen=True)
class Settings(ResultSettings, EvidenceSettings):
    models: str = setting("", "adapters and whole models, by comma: Hub ids, ID@REVISION, or local folders")
    base_model: str = setting("", "model that all others are compared to (default: the one that the first adapter names)")
    base_model_revision: str = setting("", "commit or branch of that model (default: the one that the adapter names)")
    load_in_4bit: bool = setting(False, "load the models in 4 bits, as QLoRA trains: less memory, some of the quality")
    system_prompt: str = setting("", "text, or a file of it: also ask the base model with this system prompt")
    few_shot: int = setting(0, "also ask the base model with N examples from the training rows (0: no)")
    prompt_column: str = setting("", "column that holds the question, where its name is not recognised")
    completion_column: str = setting("", "column that holds the answer, where its name is not recognised")
    chosen_column: str = setting("", "of preferences: column that holds the better answer, which is the right one")
    rejected_column: str = setting("", "of preferences: column that holds the worse answer")
    label_column: str = setting("", "of answers marked good or bad: column that says which; bad ones are not asked for")
    dataset: str = setting("", "training rows, to take examples from and to find test rows in (default: the adapter's own)")
    dataset_split: str = setting("", "split of the training rows (default: the adapter's own, `train`, or the only one)")
    max_seq_length: int = setting(2048, "tokens that a question may have; longer ones are left out")
    seed: int = setting(3407, "seed of the order of the questions, and of the choice of examples")
    eval_dataset: str = setting(
        "", "test rows: Hub id or local file (default: those that the first adapter's training held out)"
    )
    grading_seconds: int = setting(900, "seconds that each model may take to answer them")
    judge_url: str = setting("", "OpenAI-compatible address, https://…/v1, of a model that judges the answers; none by default")
    judge_model: str = setting("", "model that judges there; its key is JUDGE_API_KEY in the environment")
    benchmarks: str = setting("", "tasks of lm-eval, by comma, such as ifeval,gsm8k, or your task's file.yaml; none by default")
    benchmark_items: int = setting(200, "items of each benchmark")
    output_repo: str = setting("", "Hub repository whose folder `evaluation` and model card get the report (a job needs one)")
    card_samples: bool = setting(True, "quote questions and answers in the report on the Hub")
    save_local: str = setting("evaluation-output", "folder for the report on the machine that evaluates")

    @property
    def named(self) -> list[str]:
        return [name for part in self.models.split(",") if (name := part.strip())]

    @property
    def tasks(self) -> list[str]:
        return [name for part in self.benchmarks.split(",") if (name := part.strip())]


# ---------------------------------------------------------------------------------------------------------------
# Your rows, and your rule.


def to_messages(row: dict[str, Any]) -> list[dict[str, str]] | None:
    """A row of your data as messages, where no flag describes it: fill this in in a copy. None: columns are known by name."""
    # return [{"role": "user", "content": row["ticket"]}, {"role": "assistant", "content": row["reply"]}]
    return None


def grade(answer: str, reference: str, row: Mapping[str, Any]) -> float | None:
    """How right an answer is, from 0 to 1, where no --grader knows: fill this in in a copy. row: the test row, by column."""
    # return float(row["order_number"] in answer)
    return None


def find_format(settings: Settings, columns: list[str], first: Mapping[str, Any], media: Iterable[str]) -> Format:
    """How rows are read: as to_messages says, given the first of them, or by their columns' names. Raises Stop.

    Of preferences, as templates/dpo.py holds them out, the better answers are what is right.
    """
    if custom := custom_format(to_messages, first) if first else None:
        return custom
    roles = ("prompt", "chosen", "rejected", "completion", "label")
    named = {role: getattr(settings, f"{role}_column") for role in roles}
    preferences = lambda: find_preference_format(columns, named, lambda row: None, first, media)  # noqa: E731
    if settings.chosen_column or settings.label_column or is_marked(first):
        return preferences()
    try:
        return detect_format(columns, settings.prompt_column, settings.completion_column, media)
    except Stop as stop:
        if stop.code != "preference_data":
            raise
        return preferences()


def own_grader(rows: Iterable[Mapping[str, Any]]) -> Any:
    """grade, where it is filled in: where it returns something, or fails, for the first row."""
    try:
        return grade if any(grade("", "", row) is not None for row in rows) else None
    except Exception:
        return grade


# ---------------------------------------------------------------------------------------------------------------
# The run.

LIBRARIES = ("torch", "transformers", "peft", "datasets", "lm-eval")


def evaluate(settings: Settings) -> None:
    began = time.monotonic()
    stop_signal = StopSignal()
    stop_signal.listen()
    found, installing_s = versions(LIBRARIES), round(time.time() - billed_since(), 1)
    emit("plan", settings=asdict(settings), hardware=hardware(), versions=found, installing_s=installing_s)

    # ---- what can fail for free comes first: the models' small files, the repository, the rows, the questions
    require_gpu_where_paid(run_facts().get("vram_gb") or 0)
    prompt = read_system_prompt(settings)
    contenders = find_contenders(
        settings.named, settings.base_model, settings.base_model_revision, bool(prompt), settings.few_shot
    )
    emit("contenders", contenders=[one.as_json() for one in contenders])
    api = open_for_report(settings)
    test = find_test_rows(settings, training_of(contenders), find_format)
    train_rows = None if test.train_revision is None else len(test.train_rows)
    emit(
        "data", source=test.source, rows=len(test.rows), train_rows=train_rows, format=test.layout.name, revision=test.revision
    )
    askers = [Asker(one, test.layout, settings.max_seq_length, prompt) for one in contenders]
    for asker in askers:
        if asker.contender.examples:
            asker.choose_examples(test.train_rows, test.train_layout, settings.seed)
    chosen = choose_test_questions(settings, test, askers)

    # ---- the answers, their grades, and the report: safe before anything that is merely nice to have
    stage, folder = Stage(settings.load_in_4bit), Path(settings.save_local)
    answering = time.monotonic()
    answers = answer_in_turn(stage, askers, chosen.questions, settings.grading_seconds, stop_signal.seconds_left())
    evaluation = grade_contenders(answers, chosen, chosen.grader, time.monotonic() - answering)
    if evaluation is None:
        raise Stop(
            "no_time",
            "The time did not suffice for one question that each model answers.",
            "Raise --grading-seconds, and the job's --timeout with it.",
        )
    if evaluation.grades:
        emit("graded", **evaluation.as_event())
    report = new_report(settings, contenders, test, chosen, evaluation, prompt)
    emit("worst", rows=report["worst"])
    folder.mkdir(parents=True, exist_ok=True)
    write_report(settings, evaluation, report, api, stop_signal)

    # ---- then what others say: a judge, public benchmarks
    if settings.judge_url and len(contenders) > 1:
        seconds = min(settings.grading_seconds, stop_signal.seconds_left())
        report["judge"] = judge_answers(evaluation, settings.judge_url, settings.judge_model, seconds)
        if report["judge"]:
            emit("judged", **report["judge"])
    if settings.tasks:
        plain = [asker for asker in askers if not (asker.contender.prompt or asker.contender.examples)]
        report["benchmarks"] = run_benchmarks(stage, plain, settings.tasks, settings.benchmark_items)
    if report.get("judge") or report.get("benchmarks"):
        write_report(settings, evaluation, report, api, stop_signal)
    emit(
        "done",
        graded=evaluation.as_event() if evaluation.grades else None,
        judge=report.get("judge"),
        benchmarks=report.get("benchmarks"),
        report="evaluation/README.md" if settings.output_repo else str((folder / "README.md").resolve()),
        path=str(folder.resolve()),
        repo=settings.output_repo or None,
        cost_usd=cost_usd(),
        duration_s=round(time.monotonic() - began, 1),
    )


def read_system_prompt(settings: Settings) -> str:
    """The text, or what the file holds that is named so. Raises Stop where that is no text."""
    path = Path(os.path.expanduser(settings.system_prompt)) if len(settings.system_prompt) < 200 else Path()
    if not settings.system_prompt or not path.is_file():
        return settings.system_prompt
    try:
        return path.read_text("utf-8").strip()
    except ValueError as error:
        raise Stop("bad_prompt", f"{path} is no text in UTF-8: {error}", "Name a text file with --system-prompt.") from error


def choose_test_questions(settings: Settings, test: TestRows, askers: list[Asker]) -> QuestionSet:
    """The questions that each contender can be asked and no training row asks, with their grader. Raises Stop."""
    order = random.Random(settings.seed).sample(range(len(test.rows)), len(test.rows))
    some = [test.rows[place] for place in order[: SPARE * settings.max_graded]]
    read = read_questions(some, askers[0].tokenizer, askers[0].renderer, test.layout, settings.max_seq_length)
    questions = asked_by_all(askers, read)
    if not questions:
        raise Stop(
            "no_questions",
            f"Not one of {len(some)} rows ({test.source}) ends with an answer and fits each model with --max-seq-length.",
            "Look at its columns; name them with --prompt-column and --completion-column.",
        )
    hook = own_grader(question.row for question in questions[:1])
    chosen = choose_grader(settings, questions, test.train_rows, test.train_layout, hook)
    if chosen.grader:
        return chosen
    if not settings.judge_url:
        raise Stop(
            "no_grader",
            f"No rule tells a right answer from a wrong one. {LAST_EVENTS['questions']['why']}",
            "Pass --grader: a name, or your own FILE.py with a function grade. Or a judge: --judge-url and --judge-model.",
        )
    kept, seen = unseen(chosen.questions, test.train_rows, test.train_layout)
    if not kept:
        raise Stop("all_seen", f"Each of the {seen} test rows stands in the training data.", "Choose other rows.")
    return QuestionSet(kept[: settings.max_graded], seen=seen)


def new_report(
    settings: Settings, contenders: list[Contender], test: TestRows, chosen: QuestionSet, evaluation: Evaluation, prompt: str
) -> dict[str, Any]:
    """What report.json holds: judge and benchmarks come later."""
    known = test.train_revision is not None
    data = {"source": test.source, "revision": test.revision, "seen": chosen.seen, "train_revision": test.train_revision}
    return {
        "models": [one.as_json() for one in contenders],
        "data": data | {"train_rows": len(test.train_rows) if known else None},
        "grader": {"name": evaluation.grader, "why": LAST_EVENTS["questions"]["why"]},
        "weights": "4 bits" if settings.load_in_4bit else "16 bits",
        "graded": evaluation.as_event() if evaluation.grades else None,
        "worst": worst_rows(evaluation),
        "settings": asdict(settings) | {"system_prompt": prompt},
        "versions": LAST_EVENTS["plan"]["versions"],
        "hardware": LAST_EVENTS["plan"]["hardware"],
        "plan_id": run_facts().get("plan_id"),
        "script_sha256": sha256_of(__file__),
    }


def write_report(settings: Settings, evaluation: Evaluation, report: dict[str, Any], api: Any, stop_signal: StopSignal) -> None:
    """Write the report here, and push it."""
    folder, quotes = Path(settings.save_local), settings.card_samples or api is None
    title = settings.named[-1] if settings.named else settings.base_model
    (folder / "README.md").write_text(report_page(Path(title).name, evaluation, report, quotes), encoding="utf-8")
    shown = report if quotes else {**report, "worst": []}
    (folder / "report.json").write_text(json.dumps(shown, indent=1, ensure_ascii=False), encoding="utf-8")
    if quotes:
        write_answers(evaluation, folder / ANSWERS_FILE)
    push_report(api, settings, card_section(evaluation, report), stop_signal)


# ---------------------------------------------------------------------------------------------------------------
# Flags, and how the run ends.


def setting_problems(settings: Settings) -> Iterable[str]:
    ids = [id_and_revision(name)[0].rstrip("/") for name in settings.named]
    every = [*ids, *([settings.base_model.rstrip("/")] if settings.base_model else [])]
    if not every:
        yield "--models is needed: the Hub id or the folder of what templates/sft.py made, or of a whole model"
    if twice := sorted({name for name in every if every.count(name) > 1}):
        yield f"--models and --base-model name {twice[0]} twice"
    count = len(every) + bool(settings.system_prompt) + bool(settings.few_shot)
    if count > MOST_CONTENDERS:
        yield f"--models, with the base model and its forms, are at most {MOST_CONTENDERS}, not {count}"
    if bool(settings.chosen_column) != bool(settings.rejected_column):
        yield "--chosen-column and --rejected-column go together"
    if not settings.chosen_column and bool(settings.prompt_column) != bool(settings.completion_column):
        yield "--prompt-column goes with --completion-column, or with --chosen-column and --rejected-column"
    if bool(settings.judge_url) != bool(settings.judge_model):
        yield "--judge-url and --judge-model go together"
    local = ("http://localhost", "http://127.0.0.1")
    if settings.judge_url and not settings.judge_url.startswith(("https://", *local)):
        yield f"--judge-url is an address that begins with https://, not {settings.judge_url!r}"
    for name in ("max_graded", "grading_seconds", "max_seq_length", "benchmark_items"):
        if getattr(settings, name) < 1:
            yield f"--{name.replace('_', '-')} must be at least 1, not {getattr(settings, name)}"
    for name in ("few_shot", "seed"):
        if getattr(settings, name) < 0:
            yield f"--{name.replace('_', '-')} must be at least 0, not {getattr(settings, name)}"
    if settings.output_repo and settings.output_repo.count("/") != 1:
        yield f"--output-repo is OWNER/NAME, not {settings.output_repo!r}"


def parse_args(argv: list[str] | None = None) -> Settings:
    """Command-line flags over the defaults above. Raises SystemExit(2) on a flag or a value that is not one."""
    return parse_flags(Settings, setting_problems, __doc__, argv)


def main() -> int:
    settings = parse_args()
    return exit_code(lambda: evaluate(settings), "the same command again evaluates from the beginning")


if __name__ == "__main__":
    sys.exit(main())
