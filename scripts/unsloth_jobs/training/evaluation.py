"""Is it better? The answers of several contenders to the same questions, graded, and what the grades tell."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .generation import Answer, final_answer
from .graders import Grades, grade_answers
from .graders_text import Grader, class_table
from .paired import Difference, difference_sentence, paired_difference, rate_interval, verdict
from .question_set import QuestionSet
from .questions import Question
from .report import emit

QUESTIONS_AT_ONCE = 64  # questions that each contender answers before the time is looked at: what is graded stays a random part

Answering = Callable[[Sequence[Question], float], list[Answer | None]]  # the second: until when, by time.monotonic


@dataclass(frozen=True)
class Evaluation:
    """Grades of the questions that every contender answered, the first contender being what the others are compared to.

    answers and grades: by contender, in the order of the questions; no grades where no rule tells right from wrong; unanswered: those for which the time did not suffice.
    """

    grader: str
    questions: list[Question]
    answers: dict[str, list[Answer]]
    grades: dict[str, Grades]
    unanswered: int = 0
    seconds: float = 0.0

    @property
    def first(self) -> str:
        return next(iter(self.answers))

    def right(self, name: str) -> float:
        """Mean grade of a contender, from 0 to 1."""
        return sum(self.grades[name].scores) / len(self.questions)

    def difference(self, name: str) -> Difference:
        """Of a contender's grades to the first one's."""
        return paired_difference(self.grades[self.first].scores, self.grades[name].scores)

    def cut(self, name: str) -> int:
        return sum(answer.cut for answer in self.answers[name])

    def grade_of(self, name: str, place: int) -> float | None:
        """None where no rule grades the answers."""
        return self.grades[name].scores[place] if name in self.grades else None

    def as_row(self, name: str) -> dict[str, Any]:
        """A contender's line of the table."""
        low, high = rate_interval(self.grades[name].scores)
        row = {
            "name": name,
            "right": round(self.right(name), 4),
            "low": round(low, 4),
            "high": round(high, 4),
            "cut": self.cut(name),
            "ungradable": self.grades[name].failed,
        }
        if name == self.first:
            return row
        difference = self.difference(name)
        return row | {
            "difference": round(difference.mean, 4),
            "difference_low": round(difference.low, 4),
            "difference_high": round(difference.high, 4),
            "verdict": verdict(difference),
            "sentence": difference_sentence(difference),
        }

    def as_figures(self) -> dict[str, float]:
        """The rate of each contender, by name."""
        return {f"{name}_right": self.right(name) for name in self.answers}

    def as_event(self) -> dict[str, Any]:
        failure = next((grades.first_failure for grades in self.grades.values() if grades.first_failure), None)
        event = {
            "grader": self.grader,
            "rows": len(self.questions),
            "unanswered": self.unanswered,
            "seconds": round(self.seconds, 1),
            "contenders": [self.as_row(name) for name in self.answers],
            "first_failure": failure,
        }
        return event | ({"classes": {name: self.classes(name) for name in self.answers}} if self.grader == "choice" else {})

    def as_scores(self) -> dict[str, Any]:
        """Each question, as a digest, and each contender's grade of it: by these runs are compared, and no row is told."""
        asked = [hashlib.sha256(f"{one.asked}\0{one.reference}".encode()).hexdigest()[:12] for one in self.questions]
        return {
            "asked": asked,
            "scores": {name: [round(one, 4) for one in grades.scores] for name, grades in self.grades.items()},
        }

    def classes(self, name: str) -> list[dict[str, Any]]:
        """What became of each label's rows: how many there are, how often it was answered, and how often rightly."""
        references = [final_answer(question.reference) for question in self.questions]
        table = class_table([final_answer(answer.text) for answer in self.answers[name]], references)
        return [row._asdict() for row in table.classes]


def evaluate_contenders(
    contenders: Mapping[str, Answering], chosen: QuestionSet, grader: Grader, seconds: float
) -> Evaluation | None:
    """Let each contender answer block after block, until the questions or the seconds are over; None without one answer."""
    began, questions = time.monotonic(), chosen.questions
    until = began + seconds
    answers: dict[str, list[Answer | None]] = {name: [] for name in contenders}
    for start in range(0, len(questions), QUESTIONS_AT_ONCE):
        block = questions[start : start + QUESTIONS_AT_ONCE]
        for name, answering in contenders.items():
            answers[name] += answering(block, until)
        elapsed = round(time.monotonic() - began, 1)
        emit("answering", answered=start + len(block), of=len(questions), elapsed_s=elapsed)
        if time.monotonic() >= until:
            break
    return grade_contenders(answers, chosen, grader, time.monotonic() - began)


def grade_contenders(
    answers: Mapping[str, Sequence[Answer | None]], chosen: QuestionSet, grader: Grader | None, seconds: float
) -> Evaluation | None:
    """The grades of the questions that all answered; None where there is none."""
    answered = [place for place, row in enumerate(zip(*answers.values(), strict=True)) if None not in row]
    if not answered:
        return None
    questions = [chosen.questions[place] for place in answered]
    kept = {name: [one for place in answered if (one := given[place])] for name, given in answers.items()}
    rows, references = [question.row for question in questions], [final_answer(question.reference) for question in questions]
    grades = (
        {
            name: grade_answers(grader, [final_answer(answer.text) for answer in given], references, rows)
            for name, given in kept.items()
        }
        if grader
        else {}
    )
    return Evaluation(chosen.grader_name or "none", questions, kept, grades, len(chosen.questions) - len(answered), seconds)


def write_answers(evaluation: Evaluation, path: Path) -> None:
    """Each question with every contender's answer and grade, a line of JSON each."""
    with path.open("w", encoding="utf-8") as file:
        for place, question in enumerate(evaluation.questions):
            given = {
                name: {"answer": answers[place].text, "grade": evaluation.grade_of(name, place), "cut": answers[place].cut}
                for name, answers in evaluation.answers.items()
            }
            line = {"question": question.asked, "reference": question.reference, **given}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
