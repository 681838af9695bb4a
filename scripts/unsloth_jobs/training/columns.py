"""Column names become roles: how the rows of a data set are laid out."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from .report import Stop

ROLES = {
    "system": "system", "developer": "developer",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant",
    "tool": "tool", "ipython": "tool", "observation": "tool", "function_response": "tool", "function": "tool",
}  # fmt: skip
PAIRS = (
    ("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("query", "response"),
    ("input", "output"),
)  # fmt: skip
PREFERENCE = {"chosen", "rejected"}
OPENAI_PREFERRED = ("preferred_output", "preferred_completion")
ONLY_TEXT = "only text can be learned"  # the end of each reason that a picture or a sound gives
MEDIA_VALUE = re.compile(
    r"\S+\.(png|jpe?g|webp|gif|bmp|tiff?|wav|mp3|flac|ogg|m4a|mp4|webm|mov)(\?\S*)?|data:(image|audio|video)/\S+", re.IGNORECASE
)
MEDIA = {"image", "images", "audio", "audios", "video", "videos"}

ToMessages = Callable[[dict[str, Any]], list[dict[str, Any]] | dict[str, Any] | None]


class Format(NamedTuple):
    """How the rows of a data set are read: a name and, by role, the columns that are used."""

    name: str
    columns: dict[str, str]
    to_messages: ToMessages | None = None  # the script's own, where it reads these rows


def detect_format(
    columns: Iterable[str], prompt_column: str = "", completion_column: str = "", media: Iterable[str] = ()
) -> Format:
    """Find how to read a data set from its column names, and those known to hold media. Raises Stop where no reading is certain."""
    columns = list(columns)
    seen = [name for name in columns if name in MEDIA or name in media]
    if prompt_column:
        missing = [name for name in (prompt_column, completion_column) if name not in columns]
        if missing:
            raise Stop(
                "unknown_column",
                f"The data set has no column {missing[0]!r}; it has: {', '.join(columns)}.",
                "Name columns that exist with --prompt-column and --completion-column.",
            )
        seen = [name for name in (prompt_column, completion_column) if name in media]
    if seen:
        raise Stop(
            "unknown_columns",
            f"The rows hold pictures or sound ({', '.join(seen)}), and only text can be learned.",
            "Choose a data set of text. Where the text alone is enough, name its two columns with --prompt-column and "
            "--completion-column, or save a copy of the rows without pictures and sound.",
        )
    if prompt_column:
        return Format("prompt-completion", {"prompt": prompt_column, "completion": completion_column})
    tools: dict[str, str] = {name: name for name in ("tools", "functions") if name in columns}
    for name in ("messages", "conversations", "conversation"):
        if name in columns:
            return Format("sharegpt" if name != "messages" else "messages", {"messages": name, **tools})
    if "instruction" in columns and ("output" in columns or "response" in columns):
        answer = "output" if "output" in columns else "response"
        extra = {"input": "input"} if "input" in columns else {}
        return Format("alpaca", {"instruction": "instruction", **extra, "output": answer})
    for prompt, completion in PAIRS:
        if prompt in columns and completion in columns:
            return Format("prompt-completion", {"prompt": prompt, "completion": completion})
    if "text" in columns:
        return Format("text", {"text": "text"})
    if set(columns) >= PREFERENCE:
        imitate = "--prompt-column prompt --completion-column chosen" if "prompt" in columns else ""
        raise preference_data("(chosen, rejected)", imitate)
    if "input" in columns and (preferred := next((name for name in OPENAI_PREFERRED if name in columns), None)):
        imitate = f"--prompt-column input --completion-column {preferred}"
        raise preference_data(f"as OpenAI's DPO files do ({preferred}, non_{preferred})", imitate)
    known = ["messages", "conversations", "instruction + output", *(" + ".join(pair) for pair in PAIRS), "text"]
    raise Stop(
        "unknown_columns",
        f"No known layout in the columns {', '.join(columns) or '(none)'}. Known: {', '.join(known)}.",
        naming_hint(columns),
    )


def preference_data(which: str, imitate: str) -> Stop:
    """What to say of preferences where answers to imitate are asked for. imitate: the flags that name the better ones."""
    return Stop(
        "preference_data",
        f"The rows hold preferences {which}, not answers to imitate.",
        "To learn them use templates/dpo.py in the place of this script: check.py ... --script templates/dpo.py."
        + (f" To imitate the better answers: {imitate}." if imitate else ""),
    )


def naming_hint(columns: list[str]) -> str:
    if len(columns) == 1 and (delimiter := next((mark for mark in ";\t|" if mark in columns[0]), None)):
        return f"The file seems to be separated by {delimiter!r}: save it with commas."
    if len(columns) == 1 and columns[0].isidentifier():
        many = f"If {columns[0]} is a list of the rows, write each into a line: jq -c '.{columns[0]}[]' FILE > rows.jsonl"
        return f"Each row needs a question and an answer: messages, or two columns. {many}"
    if len(columns) < 2:
        return "Each row needs a question and an answer: messages, or two columns."
    if {"role", "content"} <= {*columns} or {"from", "value"} <= {*columns}:
        return "Each turn stands alone. Put a conversation's turns into one row: " + ROW_EXAMPLE
    if any(map(reads_like_a_cell, columns)):
        return "The first line seems to be a row: put a line with the columns' names above it, such as question,answer."
    # Names come from the data set, and a fix is pasted into a shell.
    named = "--prompt-column {} --completion-column {}".format(*map(shlex.quote, likeliest(columns)))
    return f"Name the two columns, such as: {named}. Or fill in to_messages(row) in a copy of the template."


def likeliest(columns: list[str]) -> list[str]:
    """The two columns that sound most like a question and its answer: the first two where none do."""
    answer = next((name for name in columns if SOUNDS_LIKE_AN_ANSWER.search(name)), "")
    question = next((name for name in columns if SOUNDS_LIKE_A_QUESTION.search(name) and name != answer), "")
    return [question, answer] if question and answer else columns[:2]


def reads_like_a_cell(name: str) -> bool:
    """Whether what should be a column's name is rather a sentence or a number, as in a table without names."""
    return len(name) > 40 or len(name.split()) > 3 or bool(re.search(r"[?!.]$|^[\d.,]+$", name))


SOUNDS_LIKE_A_QUESTION = re.compile("question|ticket|request|prompt|input|message|problem|query|body|text", re.IGNORECASE)
SOUNDS_LIKE_AN_ANSWER = re.compile("answer|reply|response|output|solution|resolution|completion", re.IGNORECASE)
ROW_EXAMPLE = (
    'Write an object into each line: {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}'
)


def media_columns(features: Mapping[str, Any] | None) -> list[str]:
    """The columns whose type is pictures, sound or video, alone or in a list."""
    return [name for name, feature in (features or {}).items() if holds_media(feature)]


def media_values(row: Mapping[str, Any]) -> list[str]:
    """The columns of a row that hold the name or the content of a picture, a sound or a video."""
    return [name for name, value in row.items() if isinstance(value, str) and MEDIA_VALUE.fullmatch(value.strip())]


def holds_media(feature: Any) -> bool:
    if isinstance(feature, Mapping):
        return any(map(holds_media, feature.values()))
    if within := getattr(feature, "feature", None):
        return holds_media(within)
    return type(feature).__name__ in ("Image", "Audio", "Video", "Pdf", "Nifti")
