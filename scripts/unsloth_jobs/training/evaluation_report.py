"""The report of an evaluation: what was found, the worst answers, and how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .evaluation import Evaluation
from .evidence import ANSWERS_FILE
from .grades_table import class_lines, difference_sentences, grades_table
from .markdown import cell, markdown_table, quoted
from .secrets import redacted

WORST_ROWS, WORST_CHARS = 10, 500
TITLES = {"base": "Base model"}
BEGIN, END = "<!-- evaluation -->", "<!-- /evaluation -->"


def worst_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The last contender's worst answers: the lowest grades and, of those, the largest losses against the first.

    Texts are cut. [] where nothing is graded, or all is right.
    """
    if not evaluation.grades:
        return []
    first, last = evaluation.first, list(evaluation.answers)[-1]
    before, after = evaluation.grades[first].scores, evaluation.grades[last].scores
    order = sorted(range(len(after)), key=lambda place: (after[place], after[place] - before[place]))
    worst = [place for place in order if after[place] < 1][:WORST_ROWS]
    return [
        {
            "question": shortened(evaluation.questions[place].asked),
            "reference": shortened(evaluation.questions[place].reference),
            "answers": {name: shortened(evaluation.answers[name][place].text) for name in dict.fromkeys((first, last))},
            "grades": {name: evaluation.grade_of(name, place) for name in dict.fromkeys((first, last))},
        }
        for place in worst
    ]


def shortened(text: str) -> str:
    return text if len(text) <= WORST_CHARS else text[:WORST_CHARS] + "…"


def report_page(title: str, evaluation: Evaluation, report: Mapping[str, Any], quotes: bool) -> str:
    """README.md of the report. quotes: whether it shows rows and answers."""
    parts = [
        f"# Evaluation of {title}",
        findings(evaluation, report),
        classes_part(evaluation) if quotes else "",
        worst_part(report["worst"]) if quotes else "",
        f"All answers: [{ANSWERS_FILE}]({ANSWERS_FILE}). All figures: [report.json](report.json)."
        if quotes
        else "All figures: [report.json](report.json).",
        "## How it was made",
        made_table(report),
        prompt_part(report["settings"].get("system_prompt") if quotes else None),
        judge_part(report.get("judge")),
    ]
    return redacted("\n\n".join(filter(None, parts))) + "\n"


def findings(evaluation: Evaluation, report: Mapping[str, Any]) -> str:
    """The table of grades with a sentence for each difference, what the judge prefers, and the benchmarks."""
    parts = []
    if evaluation.grades:
        rows = f"{len(evaluation.questions):,} questions, graded by `{evaluation.grader}`. {seen_sentence(report)}"
        said = " ".join(difference_sentences(evaluation, TITLES))
        parts += [grades_table(evaluation, TITLES), " ".join(filter(None, [rows, said]))]
    if judge := report.get("judge"):
        lines = ["| | Preferred | 95% interval | Won, tied, lost |", "|---|---|---|---|"]
        lines += [
            f"| `{one['name']}` | {one['preferred']:.1%} | {one['low']:.1%} to {one['high']:.1%} "
            f"| {one['won']}, {one['tied']}, {one['lost']} |"
            for one in judge["contenders"]
        ]
        told = f"Preferred to `{evaluation.first}` by `{judge['model']}`, asked in both orders; half a point for a tie."
        parts += [told, "\n".join(lines)]
    if benchmarks := report.get("benchmarks"):
        lines = ["| Benchmark | | Items | First | This | Difference |", "|---|---|---|---|---|---|"]
        lines += [
            f"| {one['task']}: {one['metric']} | `{one['name']}` | {one['rows']} | {one['first']:.1%} | {one['score']:.1%} "
            f"| {cell(one['sentence'])} |"
            for one in benchmarks
        ]
        parts += ["Benchmarks, by lm-eval with the chat template:", "\n".join(lines)]
    return "\n\n".join(parts)


def seen_sentence(report: Mapping[str, Any]) -> str:
    data = report["data"]
    if data["train_rows"] is None:
        return "Whether they stand in the training data is not known."
    found = f" ({data['seen']} that stand there were left out)" if data["seen"] else ""
    return f"No training row asks them{found}."


def classes_part(evaluation: Evaluation) -> str:
    """For graded labels: what the last contender makes of each."""
    last = list(evaluation.answers)[-1]
    lines = class_lines(evaluation, last) if evaluation.grades else ""
    return f"## The labels, as `{last}` names them\n\n{lines}" if lines else ""


def worst_part(worst: list[dict[str, Any]]) -> str:
    if not worst:
        return ""
    names = list(worst[0]["answers"])
    parts = [f"## The worst answers of `{names[-1]}`"]
    head = " | ".join([*(f"`{name}`" for name in names), "Reference"])
    for row in worst:
        graded = [f"{cell(row['answers'][name])} ({row['grades'][name]:g})" for name in names]
        line = " | ".join([*graded, cell(row["reference"])])
        parts.append(f"{quoted(row['question'])}\n\n| {head} |\n|{'---|' * (len(names) + 1)}\n| {line} |")
    return "\n\n".join(parts)


def made_table(report: Mapping[str, Any]) -> str:
    data = report["data"]
    rows: dict[str, Any] = {one["name"]: model_line(one) for one in report["models"]}
    rows |= {
        "Test rows": f"{shown_name(data['source'])}{at_commit(data['revision'])}",
        "Training rows": f"{data['train_rows']:,}{at_commit(data['train_revision'])}"
        if data["train_rows"] is not None
        else "not known",
        "Grader": f"{report['grader']['name']}: {report['grader']['why']}",
        "Answers": f"greedy, in {report['weights']}, at most {report['settings']['grading_seconds']} s a model",
        "Versions": ", ".join(f"{name} {number}" for name, number in report["versions"].items()),
        "Seed": report["settings"]["seed"],
        "Hardware": report["hardware"].get("device"),
        "Plan": report.get("plan_id"),
        "Script": f"sha256 {report['script_sha256']}",
    }
    return markdown_table({"": "", **{name: cell(str(value)) for name, value in rows.items() if value is not None}})


def model_line(model: Mapping[str, Any]) -> str:
    base = f"{shown_name(model['model'])}{at_commit(model['revision'])}"
    forms = ["with the system prompt"] * bool(model["system_prompt"])
    forms += [f"with {model['examples']} training rows as examples"] * bool(model["examples"])
    return ", ".join([f"{shown_name(model['adapter'])} on {base}" if model["adapter"] else base, *forms])


def shown_name(name: str) -> str:
    """Of a path on this machine, the last part only."""
    return Path(name).name if Path(name).exists() else name


def at_commit(revision: str | None) -> str:
    return f" at {revision}" if revision else ""


def prompt_part(prompt: str | None) -> str:
    return f"The system prompt:\n\n{quoted(prompt)}" if prompt else ""


def judge_part(judge: Mapping[str, Any] | None) -> str:
    return f"The judge, `{judge['model']}`, was asked:\n\n{quoted(judge['prompt'])}" if judge else ""


def card_section(evaluation: Evaluation, report: Mapping[str, Any]) -> str:
    """What the model card says, between two marks by which the next evaluation finds it."""
    beside = "The worst answers, and how it was made: [evaluation](evaluation/README.md)."
    return redacted("\n\n".join([BEGIN, "## Evaluation", findings(evaluation, report), beside, END]))


def with_section(card: str, section: str) -> str:
    """The card with the section in the place of an earlier one, before how the model was made, or at the end."""
    before, begun, rest = card.partition(BEGIN)
    if begun and END in rest:
        return before + section + rest.partition(END)[2]
    before, heading, rest = card.partition("\n## How it was made")
    return f"{before.rstrip()}\n\n{section}\n{heading}{rest}" if heading else f"{card.rstrip()}\n\n{section}\n".lstrip()
