"""How the rows of a loaded data set are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .columns import Format, media_columns

FindFormat = Callable[[Any, list[str], Mapping[str, Any], Iterable[str]], Format]  # a template's own find_format


def find_layout(rows: Any, settings: Any, format_of: FindFormat) -> Format:
    """The format of a datasets.Dataset, by its columns and its first row: pictures and sound are not decoded for it."""
    text = without_media(rows)
    first = text[0] if len(text) and text.column_names else {}
    return format_of(settings, rows.column_names, first, media_columns(rows.features))


def without_media(rows: Any) -> Any:
    media = media_columns(rows.features)
    return rows.select_columns([name for name in rows.column_names if name not in media])
