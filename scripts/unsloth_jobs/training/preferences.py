"""Preference data, whatever its columns are called: of two answers to a question the better one, or one answer with a label."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from .columns import MEDIA, OPENAI_PREFERRED, Format
from .report import Stop
from .rows import (
    ROW_LIMIT,
    cell_text,
    characters,
    conversation,
    conversation_in,
    from_cell,
    is_turns,
    joined,
    normalise_message,
    parsed,
    plain_text,
)

PROMPTS = ("prompt", "question", "instruction", "query", "input")
ANSWER_PAIRS = (("chosen", "rejected"), ("chosen_response", "rejected_response"), ("preferred", "dispreferred"))
COMPLETIONS = ("completion", "response", "answer", "output")
BESIDE = {"system": "system", "tools": "tools"}  # columns that belong to the prompt, where there are any
LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
SPEAKERS = {"Human": "user", "Assistant": "assistant"}  # in the texts of Anthropic's data sets

ToPreference = Callable[[dict[str, Any]], Mapping[str, Any] | None]


class Preference(NamedTuple):
    """A question with its better and its worse answer, each a normalised row of which the answer alone is learned.

    An answer that was judged by itself stands where it belongs, and the other place is None.
    """

    chosen: dict[str, Any] | None
    rejected: dict[str, Any] | None


@dataclass(frozen=True)
class PreferenceReader:
    """Reads the preference in a row (by column). Called, it gives the better answer's row: what questions and graders read."""

    columns: Mapping[str, str]  # by role: prompt, chosen, rejected or prompt, completion, label; system, tools
    hook: ToPreference | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any] | None:
        return self.read(row).chosen

    def read(self, row: Mapping[str, Any]) -> Preference:
        """Raises ValueError with the reason where the row does not have the shape that its columns promise."""
        values = self.values(dict(row))
        if sum(map(characters, values.values())) > ROW_LIMIT:
            raise ValueError(f"longer than {ROW_LIMIT // 10**6} MB")
        if "label" in values:
            made = with_prompt(values, values.get("completion"))
            return Preference(made, None) if as_label(values["label"]) else Preference(None, made)
        if values.get("prompt") is None or are_conversations(values):
            values = with_common_prompt(values)
        return Preference(*(with_prompt(values, values.get(which)) for which in ("chosen", "rejected")))

    def values(self, row: dict[str, Any]) -> dict[str, Any]:
        """What the row holds, by role."""
        if self.hook is None:
            return {role: row.get(column) for role, column in self.columns.items()}
        try:
            made = self.hook(row)
        except Exception as error:
            raise ValueError(f"to_preference fails: {type(error).__name__}: {error}") from error
        if not made:
            raise ValueError("to_preference leaves it out")
        return dict(made)


def read_preference(row: Mapping[str, Any], layout: Format) -> Preference:
    """A row's preference. Raises ValueError with the reason where it has none."""
    reader: Any = layout.to_messages  # a PreferenceReader; in a process that a script forks its class is another one
    found: Preference = reader.read({column: from_cell(row.get(column)) for column in layout.columns.values()})
    return found


def with_prompt(values: Mapping[str, Any], answer: Any) -> dict[str, Any]:
    """The prompt with one of its answers, as a normalised row. Each may be text, a message or several."""
    prompt, tools = values.get("prompt"), values.get("tools")
    if isinstance(prompt, Mapping) and "messages" in prompt:  # OpenAI's
        prompt, tools = prompt["messages"], prompt.get("tools") or tools
    prompt, answer = as_turns(prompt), as_turns(answer)
    system = cell_text(values.get("system"))
    if not (is_turns(prompt) or is_turns(answer) or system):
        return {"prompt": cell_text(prompt), "completion": cell_text(answer)}
    asked = prompt if is_turns(prompt) else [{"role": "user", "content": cell_text(prompt)}]
    made = conversation(joined(prompt, answer), parsed(tools or None))
    turns = [*map(as_read, made["messages"][: len(asked)]), *made["messages"][len(asked) :]]
    head = [{"role": "system", "content": system}] if system and turns[0]["role"] != "system" else []
    return made | {"messages": [*head, *turns]}


def as_turns(value: Any) -> Any:
    """A message alone, or turns that a table keeps as JSON text, as a list of turns; any other value as it is."""
    value = conversation_in(value)
    return [value] if isinstance(value, Mapping) and {"role", "from"} & value.keys() else value


def as_read(turn: dict[str, Any]) -> dict[str, Any]:
    """A turn of the prompt: what the assistant said there is not learned."""
    return turn | {"weight": 0} if turn["role"] == "assistant" else turn


def with_common_prompt(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with the prompt that both answers begin with, where these are whole conversations."""
    chosen, rejected = (whole_conversation(values.get(name)) for name in ("chosen", "rejected"))
    same = 0
    while same < min(len(chosen), len(rejected)) - 1 and normalise_message(chosen[same]) == normalise_message(rejected[same]):
        same += 1
    if not same:
        raise ValueError("its two answers do not begin with the same question")
    return dict(values) | {"prompt": chosen[:same], "chosen": chosen[same:], "rejected": rejected[same:]}


def are_conversations(values: Mapping[str, Any]) -> bool:
    """Whether both answers hold the question as well, and not only the assistant's turns."""
    answers = [as_turns(values.get(name)) for name in ("chosen", "rejected")]
    begins = [answer[0] for answer in answers if answer and is_turns(answer)]
    return len(begins) == 2 and all(normalise_message(turn)["role"] in ("system", "user") for turn in begins)


def whole_conversation(value: Any) -> list[Any]:
    """Turns, or a dialogue in one text as Anthropic writes it. Raises ValueError on other text: it holds no question."""
    value = as_turns(value)
    if is_turns(value):
        return list(value)
    before, *parts = re.split(rf"(?:^|\n\n)({'|'.join(SPEAKERS)}):", plain_text(value))
    if before.strip() or not parts:
        raise ValueError("an answer without its question: there is no prompt")
    spoken = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": SPEAKERS[speaker], "content": text.strip()} for speaker, text in spoken]


def as_label(value: Any) -> bool:
    found = LABELS.get(str(value).strip().lower())
    if found is None:
        raise ValueError(f"its label {str(value)[:40]!r} is neither true nor false")
    return found


# ---- which columns are which


def find_preference_format(
    columns: Iterable[str], named: Mapping[str, str], hook: ToPreference, first: Mapping[str, Any], media: Iterable[str] = ()
) -> Format:
    """How preferences are read: as the script's hook says, by the columns that flags name, by role, or by known names.

    first: a row. Raises Stop where no reading is certain, or a column that is needed holds pictures or sound.
    """
    columns = list(columns)
    if first and hook_reads(hook, first):
        roles = {name: name for name in first}
        return Format("preference", roles, PreferenceReader(roles, hook))
    given = {role: column for role, column in named.items() if column}
    if missing := [column for column in given.values() if column not in columns]:
        flags = ", ".join(f"--{role}-column" for role, column in given.items() if column == missing[0])
        message = f"The data set has no column {missing[0]!r}; it has: {', '.join(columns)}."
        raise Stop("unknown_column", message, f"Name a column that exists with {flags}.")
    name, roles = known_roles(columns, given)
    if seen := [column for column in roles.values() if column in MEDIA or column in media]:
        message = f"The rows hold pictures or sound ({', '.join(seen)}), and only text can be learned."
        raise Stop("unknown_columns", message, "Choose a data set of text.")
    return Format(name, roles, PreferenceReader(roles))


def is_marked(first: Mapping[str, Any]) -> bool:
    """Whether a row says of its answer that it is good or bad. A label that is a number may as well name a class."""
    answered = any(name in first for name in PROMPTS) and any(name in first for name in COMPLETIONS)
    return answered and str(from_cell(first.get("label"))).strip().lower() in ("true", "false")


def hook_reads(hook: ToPreference, first: Mapping[str, Any]) -> bool:
    """Whether the script's to_preference reads these rows. Raises Stop where it fails on the first."""
    try:
        return hook({name: from_cell(value) for name, value in first.items()}) is not None
    except Exception as error:
        raise Stop(
            "to_preference_failed",
            f"to_preference fails on the first row: {type(error).__name__}: {error}",
            "Correct to_preference in the script: it is given one row, by column, and returns prompt, chosen and rejected.",
        ) from error


def known_roles(columns: list[str], given: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """The name of the format, and its columns by role. Raises Stop."""
    beside = {role: column for role, column in BESIDE.items() if column in columns}
    for preferred in OPENAI_PREFERRED:
        if not given and {"input", preferred, f"non_{preferred}"} <= {*columns}:
            return "openai-preference", {"prompt": "input", "chosen": preferred, "rejected": f"non_{preferred}", **beside}
    prompt = given.get("prompt") or next((name for name in PROMPTS if name in columns), "")
    found = {"prompt": prompt} if prompt else {}
    pairs = [(given["chosen"], given["rejected"])] if {"chosen", "rejected"} <= given.keys() else ANSWER_PAIRS
    pair = next((pair for pair in pairs if {*pair} <= {*columns}), None)
    if pair and "label" not in given:
        return "preference", {**found, "chosen": pair[0], "rejected": pair[1], **beside}
    label = given.get("label") or ("label" if "label" in columns else "")
    completion = given.get("completion") or next((name for name in COMPLETIONS if name in columns), "")
    if label and completion and prompt:
        return "unpaired-preference", {**found, "completion": completion, "label": label, **beside}
    raise Stop(
        "unknown_columns",
        f"No preferences are known in the columns {', '.join(columns) or '(none)'}. Known: prompt + chosen + rejected, chosen + "
        "rejected (conversations), input + preferred_output + non_preferred_output, prompt + completion + label.",
        "Name them: --prompt-column A --chosen-column B --rejected-column C. For answers to imitate there is templates/sft.py.",
    )
