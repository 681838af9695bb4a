"""Rows to be rewarded: a prompt, and whatever its grader needs beside it."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .columns import MEDIA, Format
from .masks import Renderer, as_messages
from .questions import Question, context_of
from .report import Stop
from .rows import ROW_LIMIT, cell_text, characters, conversation, from_cell, from_columns, is_turns, parsed

PROMPTS = ("prompt", "question", "query", "problem", "instruction", "input")
REFERENCES = ("answer", "reference", "solution", "completion", "response", "output", "ground_truth", "target")
TURNS = ("messages", "conversations", "conversation")
DIGESTED = 8  # rows
EMPTY, TOO_LONG = "no question", "longer than --max-seq-length leaves room for, beside --max-completion-length"

ToPrompt = Callable[[dict[str, Any]], dict[str, Any] | None]


@dataclass(frozen=True)
class PromptReader:
    """A row as {"messages"}: the turns of its prompt and, where it has a right answer, that as the last turn.

    columns: those of prompt, reference and tools, by role; hook: the script's own to_prompt, which gives these by role.
    """

    columns: Mapping[str, str]
    hook: ToPrompt | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        asked, reference = self.read(row)
        return asked | {"messages": [*asked["messages"], {"role": "assistant", "content": reference}]} if reference else asked

    def read(self, row: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """The prompt as a normalised row, and the reference, "" without one. Raises ValueError with the reason."""
        values = self.values(row)
        if sum(map(characters, values.values())) > ROW_LIMIT:
            raise ValueError(f"longer than {ROW_LIMIT // 10**6} MB")
        turns = parsed_turns(values.get("prompt"))
        reference = values.get("reference")
        if reference is None and "messages" in self.columns and turns and role_of(turns[-1]) == "assistant":
            *turns, last = turns
            reference = conversation([last], None)["messages"][0]["content"]
        if not turns or not any(str(turn.get("content", turn.get("value")) or "").strip() for turn in turns):
            raise ValueError(EMPTY)
        return conversation(turns, parsed(values.get("tools") or None)), cell_text(reference).strip()

    def values(self, row: Mapping[str, Any]) -> dict[str, Any]:
        if self.hook is None:
            found = {role: from_cell(row.get(column)) for role, column in self.columns.items()}
            return found | ({"prompt": found["messages"]} if "messages" in found else {})
        try:
            made = self.hook({name: from_cell(value) for name, value in row.items()})
        except Exception as error:
            raise ValueError(f"to_prompt fails: {type(error).__name__}: {error}") from error
        if not made:
            raise ValueError("to_prompt leaves it out")
        return dict(made)


def role_of(turn: Mapping[str, Any]) -> str:
    return {"gpt": "assistant"}.get(role := str(turn.get("role", turn.get("from"))).lower(), role)


def parsed_turns(value: Any) -> list[Any]:
    """A prompt as turns; text is the user's."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        value = parsed(value)
    value = from_columns(value)
    return list(value) if is_turns(value) else [{"role": "user", "content": cell_text(value)}]


def find_reward_format(
    columns: Iterable[str], named: Mapping[str, str], hook: ToPrompt, first: Mapping[str, Any], media: Iterable[str] = ()
) -> Format:
    """How rows are read: as the script's hook says, by the columns that flags name, or by known names. Each other column that
    holds no pictures or sound is kept for the grader. named: prompt and completion. Raises Stop.
    """
    columns = [name for name in columns if name not in media]
    if first and hook_reads(hook, first):
        return Format("prompt", {name: name for name in first}, PromptReader({}, hook))
    given = {role: column for role, column in named.items() if column}
    if missing := [column for column in given.values() if column not in columns]:
        message = f"The data set has no column {missing[0]!r}; it has: {', '.join(columns)}."
        raise Stop("unknown_column", message, "Name columns that exist with --prompt-column and --completion-column.")
    turns = next((name for name in TURNS if name in columns), "")
    prompt = given.get("prompt") or next((name for name in PROMPTS if name in columns), "")
    if turns and not given and not prompt:
        roles = {"messages": turns}
    elif prompt:
        answer = given.get("completion") or next((name for name in REFERENCES if name in columns and name != prompt), "")
        roles = {"prompt": prompt} | ({"reference": answer} if answer else {})
    else:
        raise Stop(
            "unknown_columns",
            f"No prompt is known in the columns {', '.join(columns) or '(none)'}. Known: {', '.join((*PROMPTS, *TURNS))}.",
            "Name it with --prompt-column, and the column of the right answers with --completion-column.",
        )
    if seen := [column for column in roles.values() if column in MEDIA]:
        message = f"The rows hold pictures or sound ({', '.join(seen)}), and only text can be learned."
        raise Stop("unknown_columns", message, "Choose a data set of text.")
    roles |= {"tools": "tools"} if "tools" in columns else {}
    rest = {name: name for name in columns if name not in roles.values() and name not in roles}
    return Format("prompt", roles | rest, PromptReader(roles))


def hook_reads(hook: ToPrompt, first: Mapping[str, Any]) -> bool:
    """Whether the script's to_prompt reads these rows. Raises Stop where it fails on the first."""
    try:
        return hook({name: from_cell(value) for name, value in first.items()}) is not None
    except Exception as error:
        raise Stop(
            "to_prompt_failed",
            f"to_prompt fails on the first row: {type(error).__name__}: {error}",
            "Correct to_prompt in the script: it is given one row, by column, and returns prompt and reference.",
        ) from error


def read_prompt(row: Mapping[str, Any], layout: Format, renderer: Renderer, system: str = "") -> tuple[str, Question]:
    """The prompt as the model is given it, and its question, whose token ids are still to be made. Raises ValueError."""
    reader: Any = layout.to_messages  # a PromptReader; in a process that a script forks its class is another one
    asked, reference = reader.read(row)
    turns = with_system(as_messages(asked), system, renderer)
    if renderer.tokenizer.chat_template:
        text = renderer.chat(turns, asked.get("tools"), prompt=True)
    else:
        text = renderer.bos + "\n\n".join(turn["content"] for turn in turns)
    last = next((turn["content"] for turn in reversed(turns) if turn["role"] == "user"), "")
    values = {name: from_cell(value) for name, value in row.items()}
    return text, Question([], last, reference, values, context_of(as_messages(asked)))


def with_system(turns: list[dict[str, Any]], system: str, renderer: Renderer) -> list[dict[str, Any]]:
    """The turns with a system prompt before them: in a turn of its own, or before the first question where there are none."""
    if not system:
        return turns
    own = [turn for turn in turns[:1] if turn["role"] in ("system", "developer")]
    text, rest = "\n\n".join([system, *(turn["content"] for turn in own)]), turns[len(own) :]
    made = [{"role": "system", "content": text}, *rest]
    try:
        if not renderer.tokenizer.chat_template or system in renderer.chat(made, prompt=True):
            return made
    except ValueError:  # Gemma's older templates refuse it
        pass
    return [{**rest[0], "content": f"{text}\n\n{rest[0]['content']}"}, *rest[1:]]


def read_prompts(
    rows: Iterable[Mapping[str, Any]], renderer: Renderer, layout: Format, room: int, system: str = ""
) -> tuple[list[Question], dict[str, int]]:
    """The rows as questions, and how many were left out, by reason. room: tokens that a prompt may have."""
    texts, questions, lost = [], [], Counter[str]()
    for row in rows:
        try:
            text, question = read_prompt(row, layout, renderer, system)
        except ValueError as error:
            lost[str(error)] += 1
            continue
        texts.append(text)
        questions.append(question)
    ids = renderer.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    made = [question._replace(prompt=tokens) for question, tokens in zip(questions, ids, strict=True)]
    kept = [question for question in made if len(question.prompt) <= room]
    lost[TOO_LONG] += len(made) - len(kept)
    return kept, {reason: count for reason, count in lost.items() if count}


def summary_of(kept: list[Question], lost: Mapping[str, int]) -> dict[str, Any]:
    """What became of the rows, as the event `masks` tells it of every method. Nothing of a prompt is learned."""
    return {
        "rows": len(kept) + sum(lost.values()),
        "rows_kept": len(kept),
        "rows_without_answer": sum(lost.values()),
        "dropped": dict(lost),
        "rows_cut": 0,
        "tokens": sum(len(question.prompt) for question in kept),
        "supervised_fraction": 0.0,
    }


def require_prompts(summary: Mapping[str, Any]) -> None:
    if not summary["rows_kept"]:
        why = ", ".join(f"{count} × {reason}" for reason, count in summary["dropped"].items())
        fix = "Look at the rows' prompts, or raise --max-seq-length." if TOO_LONG in summary["dropped"] else "Look at the rows."
        raise Stop("no_prompts", f"Not one row holds a prompt to answer: {why}.", fix)


def digest_of(renderer: Renderer, layout: Format, rows: Iterable[Mapping[str, Any]], room: int, system: str = "") -> str:
    """The first rows' prompts and references in 16 characters: check.py and the job compare what each of them read."""
    questions, _ = read_prompts(itertools.islice(rows, DIGESTED), renderer, layout, room, system)
    first = [[question.prompt, question.reference] for question in questions]
    return hashlib.sha256(json.dumps(first).encode()).hexdigest()[:16]


def rows_digest_of(questions: Iterable[Question]) -> str:
    """sha256 of all prompts, references and what graders see beside them, in their order."""
    digest = hashlib.sha256()
    for question in questions:
        digest.update(json.dumps([question.prompt, question.reference, question.row], default=str).encode())
    return "sha256:" + digest.hexdigest()
