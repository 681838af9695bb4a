"""The grader tool_call: the calls that an answer makes against those of the reference."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from .folded import LONGEST
from .graders_json import json_values, right_share
from .tool_calls import parsed_arguments

TAGGED = re.compile(
    r"<(tool_call|\|tool_call_start\||\|python_tag\||function_call)>(.*?)(?=</?\1>|<\|tool_call_end\|>|\Z)", re.DOTALL
)
LISTED = re.compile(r"\[\s*[A-Za-z_][\w.]{0,200}\(")
CALL_LENGTH = 20_000  # characters that Python's parser is given: it takes a hundred times their memory
NAMES = {"true": True, "false": False, "null": None}  # as JSON writes them


class ToolCall(NamedTuple):
    name: str
    arguments: Mapping[str, Any]


def grade_tool_call(answer: str, reference: str, row: Mapping[str, Any]) -> float:
    """1 where the answer makes the reference's calls, in their order, with arguments equal by value, and no others.

    Both may write them as JSON, in <tool_call> tags, or as [name(argument=1)]. A reference without calls asks for none.
    """
    wanted, given = calls_in(reference), calls_in(answer)
    alike = len(wanted) == len(given) and all(map(is_same_call, wanted, given))
    return float(alike)


def is_same_call(one: ToolCall, other: ToolCall) -> bool:
    return one.name == other.name and right_share(dict(one.arguments), dict(other.arguments)) == 1


def calls_in(text: str) -> list[ToolCall]:
    """The tool calls that a text makes, in order: those in tags, where it has such."""
    text = text[-LONGEST:]
    tagged = [found[2] for found in TAGGED.finditer(text)]
    return [call for part in tagged or [text] for call in listed_calls(part) or called_in(json_values(part))]


def called_in(value: Any) -> Iterator[ToolCall]:
    """Calls in a value of JSON: {"name", "arguments"}, Llama's "parameters", OpenAI's {"function"}, lists of those."""
    values = [value]
    while values:
        one = values.pop()
        if isinstance(one, list):
            values += reversed(one)
        elif isinstance(one, Mapping):
            arguments = parsed_arguments(one.get("arguments", one.get("parameters")))
            if isinstance(one.get("name"), str) and isinstance(arguments, Mapping):
                yield ToolCall(one["name"], arguments)
            elif isinstance(one.get("function"), Mapping):
                values.append(one["function"])
            elif isinstance(one.get("tool_calls"), list):
                values += reversed(one["tool_calls"])


def listed_calls(text: str) -> list[ToolCall]:
    """The calls of a list such as [f(a=1), g(b="x")], as LFM and Llama write them, or of one call alone. Nothing is run."""
    text = text.strip()
    found = LISTED.search(text)
    if found and "{" not in text[: found.start()]:  # a list within JSON is an argument
        text = text[found.start() : text.rfind("]") + 1]
    if len(text) > CALL_LENGTH or not re.match(r"\[|[A-Za-z_][\w.]*\(", text):
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an escape such as "\d" in an argument
            body = ast.parse(text, mode="eval").body
            return [as_call(node) for node in (body.elts if isinstance(body, ast.List) else [body])]
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return []


def as_call(node: ast.expr) -> ToolCall:
    """Raises ValueError on anything but a call by name, with named arguments that are plain values."""
    if not isinstance(node, ast.Call) or node.args or any(one.arg is None for one in node.keywords):
        raise ValueError("no call")
    for part in ast.walk(node.func):
        if not isinstance(part, ast.Name | ast.Attribute | ast.Load):
            raise ValueError("no name")
    return ToolCall(ast.unparse(node.func), {one.arg or "": literal(one.value) for one in node.keywords})


def literal(node: ast.expr) -> Any:
    """The value of an argument, as JSON would hold it. Raises ValueError on what is none."""
    return plain_value(ast.literal_eval(JsonNames().visit(node)))


class JsonNames(ast.NodeTransformer):
    """Reads true, false and null as JSON does."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(NAMES[node.id]) if node.id in NAMES else node


def plain_value(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [plain_value(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain_value(item) for key, item in value.items()}
    if value is None or isinstance(value, str | int | float):
        return value
    raise ValueError("no value of JSON")
