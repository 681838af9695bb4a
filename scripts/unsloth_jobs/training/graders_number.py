"""The grader number: the last number of the answer against the last number of the reference."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, localcontext
from typing import Any, NamedTuple

from .folded import LONGEST
from .graders_text import grade_exact

RELATIVE, ABSOLUTE = Decimal("1e-6"), Decimal("1e-9")  # how far two equal numbers may be apart
# Nothing raises in it, and no digit of a long number is lost before two are compared to a millionth.
WIDE = Context(prec=50, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])
MINUS = str.maketrans("\u2212\u2012\u2013\uff0d", "----")
LONGEST_UNIT = 20  # characters
SPACES = "\u00a0\u2009\u202f"  # that group digits; an ordinary space stands between two numbers
NUMBER = re.compile(
    rf"""
    (?P<sign>(?<![\w)\]])[-+])?[$€£¥]?(?<![\d.])
    (?: (?P<commas>\d{{1,3}}(?:,\d{{3}}){{1,20}}(?:\.\d++)?(?![\d]|,\d))          # 1,234,567.8
      | (?P<dots>\d{{1,3}}(?:\.\d{{3}}){{1,20}}(?:,\d++|(?<=\.\d{{3}}\.\d{{3}}))(?![\d]|[.,]\d))   # 1.234.567,8
      | (?P<spaced>\d{{1,3}}(?:[{SPACES}'’_]\d{{3}}){{1,20}}(?:[.,]\d++)?(?!\d))   # 1 234 567.8
      | (?<!/)(?P<over>\d++)\s?/\s?(?P<under>\d++)(?![\d/]|\.\d)                  # 3/4, not 3/4/2024
      | (?<!\d,)(?P<comma>\d++,\d++)(?![.,]\d)                               # 0,5, not 1,2,3
      | (?P<plain>\d++(?:\.\d++)?|\.\d++)
    )
    (?:[eE](?P<exponent>[-+]?\d++)(?!\w))?
    (?:\s?(?:×|x|\*|·|\\times|\\cdot)\s?10\s?(?:\^|\*\*)\s?\{{?(?P<power>[-+]?\d++)\}}?)?
    (?P<percent>\s?\\?%)?
    """,
    re.VERBOSE,
)
LATEX_FRACTION = re.compile(r"\\[dt]?frac\s?\{(\d{1,1000})\}\s?\{(\d{1,1000})\}")


class Number(NamedTuple):
    value: Decimal
    is_percent: bool


def grade_number(answer: str, reference: str, row: Mapping[str, Any]) -> float:
    """1 where the last number of both is the same, to a millionth of it.

    1,234.50, 1.234,50, 1.2345e3 and 2469/2 are one number; 1,234 is above a thousand and 0,5 is a half. 50% is 50 as
    well as 0.5. Where the reference holds no number, the texts are compared as exact does.
    """
    wanted, given = last_number(reference), last_number(answer)
    if wanted is None:
        return grade_exact(answer, reference, row)
    return float(given is not None and is_same_number(wanted, given))


def is_same_number(one: Number, other: Number) -> bool:
    with localcontext(WIDE):
        pairs = [(one.value, other.value)]
        if one.is_percent != other.is_percent:
            pairs.append((one.value / (100 if one.is_percent else 1), other.value / (100 if other.is_percent else 1)))
        return any(abs(a - b) <= max(ABSOLUTE, RELATIVE * max(abs(a), abs(b))) for a, b in pairs)


def last_number(text: str) -> Number | None:
    """The last number that a text holds."""
    text = LATEX_FRACTION.sub(r"\1/\2", text[-LONGEST:].translate(MINUS))
    numbers = map(as_number, reversed(list(NUMBER.finditer(text))))
    return next(filter(None, numbers), None)


def is_a_number(text: str) -> bool:
    """Whether a text is one number and nothing else, but for a currency before it and punctuation around it."""
    found = NUMBER.fullmatch(number_text(text))
    return bool(found and as_number(found))


def number_text(text: str) -> str:
    return text.translate(MINUS).strip(" \t\r\n.*`\"'")


def unit_of(text: str) -> str:
    """The one word that follows a text's number, without case and plural: kg, €, apple. "" where the text is not of that kind."""
    text = number_text(text)
    found = NUMBER.match(text)
    unit = text[found.end() :].strip() if found and as_number(found) else ""
    is_word = len(unit) <= LONGEST_UNIT and not re.search(r"[\d\s]", unit)
    return re.sub(r"(?<=\w{3})s$", "", unit.casefold()) if is_word else ""


def as_number(found: re.Match[str]) -> Number | None:
    """The value of a match of NUMBER; None where no Decimal holds it."""
    part = found.groupdict()
    exponents = [part["exponent"] or "0", part["power"] or "0"]
    if max(map(len, exponents)) > 10:
        return None
    with localcontext(WIDE):
        if part["over"]:
            value = Decimal(part["over"]) / Decimal(part["under"])
        elif part["dots"] or part["comma"]:
            value = Decimal((part["dots"] or part["comma"]).replace(".", "").replace(",", "."))
        elif part["spaced"]:
            value = Decimal(re.sub(rf"[{SPACES}'’_]", "", part["spaced"]).replace(",", "."))
        else:
            value = Decimal((part["commas"] or part["plain"]).replace(",", ""))
        value = value.scaleb(sum(map(int, exponents)))
        if part["sign"] == "-":
            value = -value
        return Number(value, bool(part["percent"])) if value.is_finite() else None
