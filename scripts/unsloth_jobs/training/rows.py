"""A row, whatever its columns are called, as {"messages", "tools"?}, {"prompt", "completion"} or {"text"}."""

from __future__ import annotations

import ast
import contextlib
import json
import re
from collections.abc import Mapping
from typing import Any

from .columns import MEDIA, ONLY_TEXT, ROLES, Format, ToMessages
from .report import Stop
from .tool_calls import as_tools, parsed_arguments, with_calls, with_tool_calls


def without_nulls(value: Any) -> Any:
    """Arrow fills each absent key with None, and chat templates take `defined` for `present`: drop them."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def plain_text(content: Any) -> str:
    """The text of a message; an object is written as JSON. Raises ValueError on pictures or sound, and on what is no text."""
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, Mapping):
        return plain_text([content]) if is_part(content) else as_json_text(content)
    if not isinstance(content, list):
        raise ValueError(f"a message's content is {type(content).__name__}, not text")
    for part in content:
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            kind = (part.get("type") or ", ".join(map(str, part))) if isinstance(part, Mapping) else type(part).__name__
            raise ValueError(f"a message holds {kind}, and {ONLY_TEXT}")
    return "".join(part["text"] for part in content)


def is_part(value: Any) -> bool:
    """Whether a value is a part of a message: text, a picture, sound."""
    return isinstance(value, Mapping) and str(value.get("type")) in PART_TYPES


def as_json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def normalise_message(message: Any) -> dict[str, Any]:
    """A turn as {"role", "content"} and what else chat templates read. Raises ValueError with the reason."""
    if not isinstance(message, Mapping):
        raise ValueError(f"a turn is {type(message).__name__}, not a message with a role")
    written = next((message[key] for key in ("content", "value", "refusal") if message.get(key) is not None), None)
    message = without_nulls(message)
    role = str(message.pop("role", message.pop("from", ""))).lower()
    if role not in ROLES:
        raise ValueError(f"unknown role {role!r}")
    content = plain_text(written if isinstance(written, Mapping) else without_nulls(written))
    kept = {
        key: message[key] for key in ("tool_calls", "tool_call_id", "name", "reasoning_content", "thinking") if message.get(key)
    }
    if "tool_calls" in kept:
        kept["tool_calls"] = with_calls(kept["tool_calls"], lambda name: name, parsed_arguments)
    if message.get("weight") == 0:  # as OpenAI marks an answer that is not to be learned; no template sees it
        kept["weight"] = 0
    return {"role": ROLES[role], "content": content, **kept}


def parsed(value: Any) -> Any:
    """What some data sets keep as JSON in a string, or pandas as Python's own notation. Raises ValueError where it is none."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    except ValueError:
        if re.match(r"\s*\[?\s*\{\s*'", value):
            with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
                return ast.literal_eval(value.strip())
        raise


def custom_format(hook: ToMessages, first: Mapping[str, Any]) -> Format | None:
    """The format of rows that hook, the script's own to_messages, reads; None where it leaves them to their columns' names.

    first: a row of the data set. Raises Stop where it fails on that.
    """
    try:
        if hook({name: from_cell(value) for name, value in first.items()}) is None:
            return None
    except Exception as error:
        raise Stop(
            "to_messages_failed",
            f"to_messages fails on the first row: {type(error).__name__}: {error}",
            "Correct to_messages in the script: it is given one row, by column, and returns messages.",
        ) from error
    return Format("messages", {name: name for name in first}, hook)


def custom_row(row: Mapping[str, Any], hook: ToMessages) -> dict[str, Any]:
    """A row as the script's to_messages writes it: messages alone, beside their tools, or a prompt and its completion.

    Raises ValueError where it fails, or leaves the row out.
    """
    try:
        made = hook({name: from_cell(value) for name, value in row.items()})
    except Exception as error:
        raise ValueError(f"to_messages fails: {type(error).__name__}: {error}") from error
    if not made:
        raise ValueError("to_messages leaves it out")
    if isinstance(made, Mapping) and "completion" in made:
        return {"prompt": cell_text(made.get("prompt")), "completion": cell_text(made["completion"])}
    turns, tools = (made["messages"], made.get("tools")) if isinstance(made, Mapping) else (made, None)
    return {"messages": [normalise_message(turn) for turn in turns], **({"tools": tools} if tools else {})}


def normalise_row(row: Mapping[str, Any], layout: Format) -> dict[str, Any]:
    """One row as {"messages": [...], "tools"?: [...]}, {"prompt": str, "completion": str} or {"text": str}.

    Raises ValueError with the reason where the row does not have the shape its columns promise.
    """
    values = {role: from_cell(row.get(column)) for role, column in layout.columns.items()}
    if sum(map(characters, values.values())) > ROW_LIMIT:
        raise ValueError(f"longer than {ROW_LIMIT // 10**6} MB")
    if layout.to_messages:
        return custom_row(row, layout.to_messages)
    if layout.name == "text":
        return {"text": cell_text(values["text"])}
    if layout.name == "alpaca":
        question = "\n\n".join(filter(None, (cell_text(values["instruction"]), cell_text(values.get("input")))))
        return {"prompt": question, "completion": cell_text(values["output"])}
    if layout.name == "prompt-completion":
        prompt, completion = map(conversation_in, (values["prompt"], values["completion"]))
        asked = prompt.get("messages") if isinstance(prompt, Mapping) else prompt
        if is_turns(asked) or is_turns(completion):
            tools = prompt.get("tools") if is_turns(asked) and isinstance(prompt, Mapping) else None
            return conversation(joined(asked if is_turns(asked) else prompt, completion), tools)
        return {"prompt": cell_text(prompt), "completion": cell_text(completion)}
    turns = from_columns(parsed(values["messages"]))
    if not isinstance(turns, list) or not turns:
        raise ValueError("the conversation is empty")
    return conversation(turns, parsed(values.get("tools") or None) or as_tools(parsed(values.get("functions") or None)))


def conversation(turns: list[Any], tools: Any) -> dict[str, Any]:
    """Turns and tools as {"messages": [...], "tools"?: [...]}. Raises ValueError with the reason where a turn is none."""
    tools = without_nulls(tools)
    return {"messages": [normalise_message(turn) for turn in with_tool_calls(turns)], **({"tools": tools} if tools else {})}


def from_columns(turns: Any) -> Any:
    """Turns that are kept as a list for each of their keys, as datasets once stored them, one by one."""
    if isinstance(turns, Mapping) and turns and all(isinstance(column, list) for column in turns.values()):
        return [dict(zip(turns, values, strict=False)) for values in zip(*turns.values(), strict=False)]
    return turns


def conversation_in(value: Any) -> Any:
    """The turns that a column keeps as JSON text, as in a table; any other value as it is."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        with contextlib.suppress(ValueError):
            return turns if is_turns(turns := parsed(value)) else value
    return value


def characters(value: Any) -> int:
    """How much text a value holds."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(characters, value.values()))
    return sum(map(characters, value)) if isinstance(value, list) else 0


def cell_text(value: Any) -> str:
    """The text of a column's value; what is neither text nor parts of one is written as JSON, as an answer's fields may be."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, list) and any(map(is_part, value)):
        return plain_text(without_nulls(value))
    if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):
        raise ValueError(f"a column holds a picture or sound, and {ONLY_TEXT}")
    return as_json_text(value)


def is_no_text(value: Any) -> bool:
    """Whether an answer is written as JSON text: it is neither text nor turns nor parts of a message."""
    if isinstance(value, list):
        return not is_turns(value) and not any(map(is_part, value))
    return value is not None and not isinstance(value, str)


def is_turns(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, Mapping) and {"role", "from"} & turn.keys() for turn in value)
    )


def joined(prompt: Any, completion: Any) -> list[Any]:
    """The turns of a prompt and its completion, of which one may be text, and the completion may repeat the prompt."""
    asked = prompt if is_turns(prompt) else [{"role": "user", "content": cell_text(prompt)}]
    answered = completion if is_turns(completion) else [{"role": "assistant", "content": cell_text(completion)}]
    begins = [normalise_message(turn) for turn in answered[: len(asked)]] == [normalise_message(turn) for turn in asked]
    return answered if begins else [*asked, *answered]


ROW_LIMIT = 5_000_000  # bytes; at 4 or 5 a token the longest contexts there are
JSON_CELL = "\x1e"  # stands before a value that was not text, as before each value of a JSON text sequence (RFC 7464)
PART_TYPES = {*MEDIA, "text", "image_url", "input_text", "output_text", "input_image", "input_audio"}
HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def as_cell(value: Any) -> str | None:
    """A value as text that from_cell reads; half a character (of an emoji cut in two), which has no UTF-8, is replaced."""
    text = value if value is None or isinstance(value, str) else JSON_CELL + json.dumps(value, ensure_ascii=False)
    return HALF_CHARACTER.sub("\ufffd", text) if text else text


def from_cell(value: Any) -> Any:
    """The value that as_cell wrote; of other rows, the value as it is."""
    if isinstance(value, str) and value.startswith(JSON_CELL):
        with contextlib.suppress(ValueError):
            return json.loads(value[1:])
    return value
