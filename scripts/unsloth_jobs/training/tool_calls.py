"""Tool calls in messages: their names and arguments, and whether a rendering shows them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any


def parsed_arguments(arguments: Any) -> Any:
    """The arguments of a tool call as a mapping, where they are the JSON text of one, as OpenAI writes them."""
    if not isinstance(arguments, str):
        return arguments
    try:
        mapping = json.loads(arguments) if arguments.strip() else {}
    except (ValueError, RecursionError):
        return arguments
    return mapping if isinstance(mapping, Mapping) else arguments


def with_calls(calls: Any, name: Callable[[Any], Any], arguments: Callable[[Any], Any]) -> Any:
    """Tool calls with their names and arguments replaced. What is no tool call stays."""

    def replaced(call: Any) -> Any:
        if not isinstance(call, Mapping):
            return call
        if isinstance(call.get("function"), Mapping):
            return {**call, "function": replaced(call["function"])}
        changed = {key: change(call[key]) for key, change in (("name", name), ("arguments", arguments)) if key in call}
        return {**call, **changed}

    return [replaced(call) for call in calls] if isinstance(calls, list) else calls


def as_tools(functions: Any) -> Any:
    """The functions of OpenAI's older files as the tools of its newer ones."""
    return [{"type": "function", "function": one} for one in functions] if isinstance(functions, list) else functions


def with_tool_calls(turns: list[Any]) -> list[Any]:
    """Messages with the `function_call` of OpenAI's older files as a tool call, and with an id that its answer names."""
    changed, calls, last = [], 0, ""
    for turn in turns:
        if isinstance(turn, Mapping) and isinstance(turn.get("function_call"), Mapping):
            calls += 1
            last = f"call{calls:05}"  # nine characters: some chat templates want as many
            call = {"id": last, "type": "function", "function": turn["function_call"]}
            turn = {**turn, "tool_calls": [call]}
        elif isinstance(turn, Mapping) and turn.get("role") == "function" and last:
            turn = {**turn, "tool_call_id": last}
        changed.append(turn)
    return changed


def arguments_of(message: Mapping[str, Any]) -> list[Any]:
    found: list[Any] = []
    with_calls(message.get("tool_calls"), lambda name: name, lambda value: found.append(value))
    return found


def json_text(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping) else value


def shows_call(call: Mapping[str, Any], written: str) -> bool:
    function = call["function"] if isinstance(call.get("function"), Mapping) else call
    words, numbers = words_and_numbers(function.get("arguments"))
    name = str(function.get("name", ""))
    named = name in written if name else True
    return all(word in written for word in words) and (named or bool(numbers) and all(one in written for one in numbers))


def words_and_numbers(value: Any) -> tuple[list[str], list[str]]:
    """What must stand in any rendering of a JSON value: of each text its longest plain word, since the rest may be
    escaped, and the numbers.
    """
    if isinstance(value, Mapping | list):
        found = [words_and_numbers(item) for item in (value.values() if isinstance(value, Mapping) else value)]
        return [word for words, _ in found for word in words], [number for _, numbers in found for number in numbers]
    if isinstance(value, str):
        return [max(re.findall("[A-Za-z0-9]+", value), key=len, default="")], []
    return [], [json.dumps(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []
