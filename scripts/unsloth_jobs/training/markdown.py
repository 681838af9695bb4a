"""Markdown: tables, and a model's texts in them."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

SHOWN_CHARS = 800  # of a text in a card


def markdown_table(rows: Mapping[str, Any]) -> str:
    """A Markdown table of two columns; the first row is its head."""
    head, *lines = (f"| {name} | {value} |" for name, value in rows.items())
    return "\n".join([head, "|---|---|", *lines])


def cell(text: str) -> str:
    """A model's text on one line, for a table."""
    return as_markdown(text).replace("|", "\\|").replace("\n", "<br>") or "(nothing)"


def quoted(text: str) -> str:
    return "\n".join(f"> {line}  " for line in as_markdown(text).splitlines())


def as_markdown(text: str) -> str:
    """A model's text as Markdown in which its tags are seen, without its middle where it is long."""
    half = SHOWN_CHARS // 2
    text = text if len(text) <= SHOWN_CHARS else f"{text[:half]} … {text[-half:]}"
    return html.escape("".join(char for char in text if char.isprintable() or char == "\n"), quote=False)
