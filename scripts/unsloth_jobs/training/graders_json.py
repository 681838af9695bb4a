"""The grader json: the value that an answer holds against the reference's, field by field."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

from .folded import LONGEST
from .graders_regex import stands_in
from .graders_text import grade_exact

ABSENT: Any = object()
FENCE = re.compile(r"```[a-z]*\s(.*)```", re.DOTALL | re.IGNORECASE)
TRIES = 1_000_000  # characters that are read in search of JSON, since each bracket may begin it


def grade_json(answer: str, reference: str, row: Mapping[str, Any]) -> float:
    """The share of fields that are right: of those that the reference or the answer has, 1 where both are equal by value.

    The answer may stand in a fence or among text; the last value of the reference's kind counts. Order of keys is of no
    account, that of lists is; 1 equals 1.0, and not true. Where the row has a `json_schema`, an answer that does not
    fit it is worth 0, and one without a reference 1 where it does. A reference that is no JSON is compared as exact does.
    """
    wanted, schema = json_values(reference)[-1:], row.get("json_schema")
    if not wanted and (reference.strip() or not schema):
        return grade_exact(answer, reference, row)
    given = json_values(answer)
    alike = [value for value in given if wanted and type(value) is type(wanted[0])] or given
    if not alike or schema and not fits_schema(alike[-1], schema):
        return 0.0
    return right_share(wanted[0], alike[-1]) if wanted else 1.0


def json_values(text: str) -> list[Any]:
    """The JSON value that a text is, in a fence or bare; else the objects and arrays that stand in it, in their order."""
    text = text[-LONGEST:].strip()
    return whole_json(text) or list(values_within(text))


def whole_json(text: str) -> list[Any]:
    """The one value that a text is, in a fence or bare; none where other text is about it."""
    text = text.strip()
    if fenced := FENCE.fullmatch(text):
        text = fenced[1]
    try:
        return [DECODER.decode(text)]
    except (ValueError, RecursionError):
        return []


def values_within(text: str) -> Iterator[Any]:
    at, left = 0, TRIES
    while left > 0 and (start := next_bracket(text, at)) >= 0:
        try:
            value, at = DECODER.raw_decode(text, start)
            yield value
        except json.JSONDecodeError as error:
            at, left = start + 1, left - (error.pos - start) - 200
        except (ValueError, RecursionError):
            at, left = start + 1, left - 10_000


def next_bracket(text: str, at: int) -> int:
    found = [place for place in (text.find("{", at), text.find("[", at)) if place >= 0]
    return min(found, default=-1)


def json_integer(digits: str) -> int | float:
    """int, but where Python refuses to read so long a number."""
    return int(digits) if len(digits) < 4000 else float(digits)


def refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


DECODER = json.JSONDecoder(parse_int=json_integer, parse_constant=refuse_constant)


def right_share(wanted: Any, given: Any) -> float:
    """Equal leaves among all that stand at a place in either value; an empty object or array is a leaf."""
    total = right = 0
    pairs = [(wanted, given)]
    while pairs:  # no recursion: an answer may be nested as deeply as it likes
        one, other = pairs.pop()
        if isinstance(one, dict) and isinstance(other, dict) and one and other:
            pairs += ((one.get(key, ABSENT), other.get(key, ABSENT)) for key in one.keys() | other.keys())
        elif isinstance(one, list) and isinstance(other, list) and one and other:
            pairs += zip_longest(one, other, fillvalue=ABSENT)
        elif parts_of(one) or parts_of(other):
            for side in (one, other):
                pairs += ((part, ABSENT) for part in parts_of(side) or ([] if side is ABSENT else [ABSENT]))
        else:
            total += 1
            right += is_equal_leaf(one, other)
    return right / total


def parts_of(value: Any) -> list[Any]:
    """What an object or an array holds; nothing of any other value."""
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def is_equal_leaf(one: Any, other: Any) -> bool:
    return one is not ABSENT and isinstance(one, bool) == isinstance(other, bool) and one == other


def fits_schema(value: Any, schema: Any) -> bool:
    """Whether a value fits a JSON Schema, an object or the text of one. Nothing is fetched, whatever its $ref names.

    Raises the library's SchemaError on a schema that is none.
    """
    from jsonschema import validators
    from referencing import Registry

    schema = json.loads(schema) if isinstance(schema, str) else schema
    kind = validators.validator_for(schema)
    kind.check_schema(schema)
    bounded = validators.extend(kind, {"pattern": check_pattern})
    return bounded(schema, registry=Registry()).is_valid(value)


def check_pattern(validator: Any, pattern: str, value: Any, schema: Any) -> Iterator[Any]:
    """The keyword `pattern` within the time that a grader has, which Python's own re does not keep."""
    from jsonschema import ValidationError

    if isinstance(value, str) and not stands_in(pattern, value):
        yield ValidationError(f"does not match {pattern!r}")
