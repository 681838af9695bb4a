"""What a completion is worth: graders, a format, brevity and the user's own function, each with a weight."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from .generation import final_answer
from .grader_fit import grader_misfit, propose_grader
from .graders import GRADERS, OWN_GRADER, grade_answers, grader_among
from .questions import Question
from .report import Stop
from .reward_calls import RewardFile

FORMAT, LENGTH, FILE = "format", "length", "file"
ANY_TEXT = re.compile(r"\.\.\.|…")  # stands for any text in an --answer-format
LAST_TAG = re.compile(r"<[^<>]+>$")
RIGHT = 0.999  # a score that counts as right


class Completion(NamedTuple):
    """What the model wrote after a prompt. tokens: ids, the one that ends it included; cut: it was still going on."""

    text: str
    tokens: list[int]
    cut: bool


class Scores(NamedTuple):
    """Of some completions: the reward of each, 0 to 1; each part's scores by name; what failed.

    seconds: of all calls of the user's own function, some of which are made at the same time; waited_s: until all had ended.
    """

    rewards: list[float]
    parts: dict[str, list[float]]
    failed: int = 0
    first_failure: str = ""
    seconds: float = 0.0
    waited_s: float = 0.0

    graded: str = ""  # the part that tells right from wrong; "" where none does

    @property
    def right(self) -> list[float]:
        """Whether each is right; [] where no part tells."""
        return [float(score >= RIGHT) for score in self.parts.get(self.graded, ())]


def parse_rewards(text: str) -> dict[str, float]:
    """`json=1,format=0.2` as weights by name; a name alone weighs 1. Raises ValueError with what is wrong."""
    found: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, weight = part.partition("=")
        try:
            value = float(weight) if weight else 1.0
        except ValueError:
            raise ValueError(f"the weight of {name} is a number, not {weight!r}") from None
        if not 0 < value < 1e6:
            raise ValueError(f"the weight of {name} is above 0, not {weight}")
        if name in found:
            raise ValueError(f"{name} is named twice")
        found[name] = value
    return found


class AnswerFormat:
    """A text such as <think>…</think><answer>…</answer>: … or ... is any text, the last of them the answer.

    parts: what stands around any text, some of them "".
    """

    def __init__(self, text: str):
        self.parts = parts = [part.strip() for part in ANY_TEXT.split(text)]
        fixed = [re.escape(part).replace("><", r">\s*<") for part in parts]
        self.pattern = re.compile(r"\s*" + r"\s*(.*?)\s*".join(fixed) + r"\s*", re.DOTALL) if text else None
        opening = LAST_TAG.search(parts[-2]) if len(parts) > 1 else None
        before = re.escape(opening.group()) if opening else fixed[-2] if len(parts) > 1 else ""
        self.last = re.compile(before + r"\s*((?:(?!" + (before or "(?!)") + r").)*?)\s*" + (fixed[-1] or r"\Z"), re.DOTALL)

    def answer(self, text: str) -> str:
        """What is graded: the answer where the format says, or, where it is not there, the text without the model's thoughts."""
        found = list(self.last.finditer(text)) if self.pattern else []
        return found[-1][1].strip() if found else final_answer(text)

    def is_kept(self, text: str) -> bool:
        return bool(self.pattern and self.pattern.fullmatch(text))


class Rewards:
    """Scores completions. weights: by name of a part; count: the tokens of a text that a grader is given alone."""

    def __init__(
        self,
        weights: Mapping[str, float],
        answer_format: str,
        most_tokens: int,
        references: Sequence[str] = (),
        own: RewardFile | None = None,
        count: Callable[[str], int] = len,
    ):
        self.weights, self.own, self.count = dict(weights), own, count
        self.graded = next((name for name in weights if name not in (FORMAT, LENGTH)), "")
        self.form, self.most_tokens = AnswerFormat(answer_format), most_tokens
        self.graders = {name: grader_among(GRADERS[name], references) for name in weights if name in GRADERS}

    @property
    def grader_name(self) -> str:
        """Of what tells right from wrong, or else the whole reward."""
        return self.graded or ",".join(self.weights)

    def of(self, completions: Sequence[Completion], questions: Sequence[Question]) -> Scores:
        """The question of each completion stands at its place. Nothing that a part raises is raised here: it counts 0."""
        answers = [self.form.answer(completion.text) for completion in completions]
        references, rows = [question.reference for question in questions], [question.row for question in questions]
        parts: dict[str, list[float]] = {}
        failed, first, seconds, waited_s = 0, "", 0.0, 0.0
        for name in self.weights:
            if name == FORMAT:
                parts[name] = [float(self.form.is_kept(completion.text)) for completion in completions]
            elif name == LENGTH:
                parts[name] = [0.0 if one.cut else 1 - (len(one.tokens) - 1) / self.most_tokens for one in completions]
            elif name == FILE and self.own:
                began = time.monotonic()
                calls = self.own.calls(list(zip(answers, references, rows, strict=True)))
                waited_s += time.monotonic() - began
                parts[name] = [one.score for one in calls]
                failures = [one.failure for one in calls if one.failure]
                failed, first = failed + len(failures), first or next(iter(failures), "")
                seconds += sum(one.seconds for one in calls)
            else:
                grades = grade_answers(self.graders[name], answers, references, rows)
                parts[name], failed, first = grades.scores, failed + grades.failed, first or (grades.first_failure or "")
        total = sum(self.weights.values())
        rewards = [
            sum(weight * parts[name][place] for name, weight in self.weights.items()) / total for place in range(len(answers))
        ]
        return Scores(rewards, parts, failed, first, seconds, waited_s, self.graded)

    def close(self) -> None:
        if self.own:
            self.own.close()

    def grade(self, answer: str, reference: str, row: Mapping[str, Any]) -> float:
        """As a grader of one answer: by the part that tells right from wrong, or by the whole reward where none does."""
        scores = self.of([self.as_completion(answer)], [Question([], "", reference, dict(row))])
        return scores.parts[self.graded][0] if self.graded else scores.rewards[0]

    def as_completion(self, text: str) -> Completion:
        """A text whose tokens are not known any more."""
        tokens = self.count(text) + 1  # the one that ends it
        return Completion(text, [0] * min(tokens, self.most_tokens), tokens > self.most_tokens)


def make_rewards(
    reward: str,
    reward_file: str,
    reward_seconds: float,
    answer_format: str,
    most_tokens: int,
    questions: Sequence[Question],
    count: Callable[[str], int] = len,
) -> tuple[Rewards, str]:
    """The rewards that were asked for, or the grader that fits the references, and why it is that. Raises Stop."""
    references = [question.reference for question in questions]
    own = RewardFile(reward_file, reward_seconds) if reward_file else None
    weights, why = (parse_rewards(reward), "asked for") if reward != "auto" else ({}, "")
    if not weights and own:
        weights, why = {FILE: 1.0}, f"the function in {reward_file}"
    if not weights:
        name, why = propose_grader(references)
        if name is None:
            raise Stop(
                "no_reward",
                f"No rule is known that tells a right answer here. {why}",
                f"Choose one with --reward: {', '.join(GRADERS)}. Or pass --reward-file FILE.py that holds: {OWN_GRADER}",
            )
        weights = {name: 1.0}
    if misfit := misfit_of(weights, references):
        raise Stop("reward_misfit", misfit, "Choose another --reward, or name the column of the answers: --completion-column.")
    return Rewards(weights, answer_format, most_tokens, references, own, count), why


def misfit_of(weights: Mapping[str, float], references: Sequence[str]) -> str:
    """Why a grader cannot tell right from wrong on these rows, as a sentence; "" where each can."""
    graders = [name for name in weights if name in GRADERS]
    if graders and not any(references):
        return f"The rows have no answers, and {', '.join(graders)} compares with them."
    return next(filter(None, (grader_misfit(name, references) for name in graders)), "")


def reward_problems(reward: str, reward_file: str, answer_format: str) -> list[str]:
    """What is wrong with these values whatever the rows are, each as a sentence."""
    try:
        weights = {} if reward == "auto" else parse_rewards(reward)
    except ValueError as error:
        return [f"--reward: {error}"]
    known = (*GRADERS, FORMAT, LENGTH, FILE)
    found = [f"--reward knows {', '.join(known)}, not {name}" for name in weights if name not in known]
    if reward != "auto" and not weights:
        found.append("--reward names no part: --reward number, or --reward json=1,format=0.2")
    if FILE in weights and not reward_file:
        found.append("--reward file needs --reward-file FILE.py")
    if reward_file and weights and FILE not in weights:
        found.append("--reward does not name file, so --reward-file would not be used: --reward file=1,…")
    if FORMAT in weights and not answer_format:
        found.append("--reward format needs --answer-format, such as '<answer>…</answer>'")
    if answer_format and not ANY_TEXT.search(answer_format):
        found.append("--answer-format holds … where the answer stands, such as '<answer>…</answer>'")
    return found
