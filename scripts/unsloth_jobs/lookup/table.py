"""A data set before any model reads it: what it holds, how many rows, and its first ones."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import json
import os
import re
import statistics
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.constants import HF_HOME
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError

from ..errors import HUB, UserError
from ..redaction import plain, redact
from ..template import Template
from ..training.columns import Format
from ..training.rows import from_cell
from ..training.settings import TrainingSettings
from . import client
from .dataset_info import file_sizes, is_local, viewer_rows


@dataclass(frozen=True)
class Table:
    """A data set before any model reads it: what it holds, and its first rows."""

    config: str | None  # as chosen; None for a file on this machine
    split: str | None
    layout: Format
    columns: list[str]
    rows: int | None  # of the whole split, where that can be known
    rows_source: str | None  # "counted", "metadata", "viewer" or "estimated"
    size: int | None  # bytes of the split's files
    read_as: dict[str, str]  # what a local file's name does not say: encoding, delimiter, sheet
    first: list[dict[str, Any]] = field(repr=False)

    @property
    def format(self) -> str:
        return self.layout.name

    @property
    def used(self) -> dict[str, str]:
        return self.layout.columns

    @property
    def unused(self) -> list[str]:
        return [name for name in self.columns if name not in self.used.values()]

    @property
    def sampled(self) -> int:
        return len(self.first)

    def holds_truths(self, column: str) -> bool:
        """Whether a column says true or false of each row, as preferences of single answers do."""
        return all(str(from_cell(row.get(column))).lower() in ("true", "false") for row in self.first)

    @property
    def swallowing(self) -> int:
        """Rows of a table with a cell that goes on over lines which look like rows: an open quote may have begun it."""
        marks = len(self.columns) - 1
        lines = (
            (
                line
                for value in row.values()
                if isinstance(value, str)
                for line in value.split("\n")[1:-1] or value.split("\n")[1:]
            )
            for row in self.first
        )
        return sum(any(marks and len(re.findall(r"[,;\t](?!\s)", line)) == marks for line in one) for one in lines)

    @property
    def secrets(self) -> int:
        """Rows that hold what looks like a token or a password."""
        return sum(redact(text) != text for text in (json.dumps(row, ensure_ascii=False, default=str) for row in self.first))

    @property
    def duplicates(self) -> int:
        return self.sampled - len({json.dumps(row, sort_keys=True, default=str) for row in self.first})


def fetch_table(api: HfApi, template: Template, settings: TrainingSettings, limit: int) -> Table:
    """Read up to `limit` rows and find how they are laid out. Raises UserError."""
    with client.asking(f"data set {settings.dataset}"), reasons(template):
        return read_table(api, template, settings, limit)


@contextlib.contextmanager
def reasons(template: Template) -> Iterator[None]:
    """Turn the template's reason to stop into a UserError, or into the fault of the Hub that it comes from."""
    try:
        yield
    except template.Stop as stop:
        if fault := cause(stop, HfHubHTTPError, HTTPError):
            raise fault from stop
        if refused := next((error for error in causes(stop) if is_of_the_cache(error)), None):
            raise UserError(
                "cache_unwritable",
                f"{refused.filename} cannot be used: {refused.strerror}.",
                "Name a folder of your own, on a disk with room, for what is downloaded: export HF_HOME=~/hf-home",
            ) from stop
        if (garbled := cause(stop, LocalEntryNotFoundError, *MISREAD)) and is_of_the_hub(garbled):
            raise UserError(
                "hub_garbled",
                f"What {client.endpoint()} answered is not what the Hub answers ({type(garbled).__name__}: {plain(str(garbled))}).",
                "A proxy or a login page may stand between: check the network and HF_ENDPOINT, then try again.",
                HUB,
            ) from stop
        if re.search("image|audio|video", str(cause(stop, ImportError))):  # whose decoders this environment leaves out
            raise UserError(
                "unknown_columns",
                "The rows hold pictures or sound, and only text can be learned.",
                "Choose a data set with messages, or with a question and an answer in each row.",
            ) from stop
        raise UserError(stop.code, plain(stop.message), stop.fix) from stop


def causes(error: BaseException | None) -> Iterator[Any]:
    """An error and those that it comes from, the newest first."""
    while error:
        yield error
        error = error.__cause__ or error.__context__


def cause(error: BaseException, *kinds: type[Exception]) -> Any:
    """The newest of these kinds that an error comes from; None where there is none."""
    return next((one for one in causes(error) if isinstance(one, kinds)), None)


def is_of_the_cache(error: BaseException) -> bool:
    """Whether the folder of what is downloaded cannot be used: it is another user's, read-only, full or no folder."""
    return isinstance(error, OSError) and str(error.filename).startswith(HF_HOME)


MISREAD = (json.JSONDecodeError, TypeError, KeyError, AttributeError)  # what the client raises on answers of another shape


def is_of_the_hub(error: BaseException) -> bool:
    """Whether it was raised while the Hub's client read an answer."""
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    readers = [name for name in modules if not name.startswith("json")]
    return isinstance(error, LocalEntryNotFoundError) or "".join(readers[-1:]).startswith(("huggingface_hub", "httpx"))


def end_soon() -> None:
    """Let datasets report a Hub that fails; it would ask it again for up to twenty minutes."""
    from datasets import config

    config.STREAMING_READ_MAX_RETRIES = 1
    config.STREAMING_READ_RETRY_INTERVAL = 0
    config.STREAMING_READ_SERVER_UNAVAILABLE_RETRY_INTERVAL = 0
    config.STREAMING_READ_RATE_LIMIT_RETRY_INTERVAL = 0


def read_table(api: HfApi, template: Template, settings: TrainingSettings, limit: int) -> Table:
    if file := template.local_file(settings):
        return read_file(template, settings, file, limit)
    end_soon()
    # A copy of an earlier version does not ask how many.
    first = {"first": limit + 1} if "first" in inspect.signature(template.load_rows).parameters else {}
    stream = template.load_rows(settings, streaming=True, **first)
    media = template.media_columns(stream.features)
    taken = first_rows(template, settings, stream, limit + 1)
    if not taken:
        raise template.Stop("no_rows", "The split of the data set has no rows.", "Choose another with --dataset-split.")
    columns = list(stream.features or taken[0])
    layout = find_format(template, settings, columns, taken[0], media)
    split, alone = str(stream.split), Path(os.path.expanduser(settings.dataset)).is_file()
    files = [settings.dataset] if alone else files_of(settings, stream.info.config_name, split)
    size = bytes_of(api, settings, files)
    count, source = (len(taken), "counted") if len(taken) <= limit else count_rows(api, settings, stream, files, size, taken)
    config = stream.info.config_name or "default"
    return Table(None if alone else config, None if alone else split, layout, columns, count, source, size, {}, taken[:limit])


def read_file(template: Template, settings: TrainingSettings, file: Path, limit: int) -> Table:
    """A local file, read to its end as the job reads it: a row that would end the job is found before it is paid for."""
    # A copy of an earlier version knows no sheets, and does not say how it reads a file.
    sheet = (settings.dataset_config,) if "sheet" in inspect.signature(template.scan_file).parameters else ()
    scan = template.scan_file(file, limit, *sheet)
    layout = find_format(template, settings, scan.columns, scan.first[0], ())
    size, read_as = file.stat().st_size, getattr(scan, "read_as", {})
    return Table(None, None, layout, scan.columns, scan.rows, "counted", size, read_as, scan.first)


def find_format(
    template: Template, settings: TrainingSettings, columns: list[str], first: dict[str, Any], media: Iterable[str]
) -> Format:
    """How the template reads the rows."""
    if hasattr(template, "find_format"):
        return template.find_format(settings, columns, first, media)
    # A copy from before 0.3 has only the columns' names to go by.
    return template.detect_format(columns, settings.prompt_column, settings.completion_column, media)  # type: ignore[attr-defined]


def first_rows(template: Template, settings: TrainingSettings, stream: Any, count: int) -> list[dict[str, Any]]:
    """The first rows, without their pictures and sound, which are not learned. Raises the template's Stop."""
    try:
        return list(itertools.islice(stream.remove_columns(template.media_columns(stream.features)), count))
    except Exception as error:  # a row that is not what the first ones promised: each file format has its own error
        raise template.unreadable(settings, error) from error


# ---- how many rows there are


def count_rows(
    api: HfApi, settings: TrainingSettings, stream: Any, files: list[str], size: int | None, taken: list[dict[str, Any]]
) -> tuple[int | None, str | None]:
    """Rows of the split and who says so: the data set's own metadata, the viewer, or else the size of its files."""
    split, splits = str(stream.split), stream.info.splits or {}
    if split in splits and splits[split].num_examples:
        return splits[split].num_examples, "metadata"
    local = is_local(settings.dataset)
    if not local and (rows_stated := viewer_rows(api, settings.dataset, stream.info.config_name or "default", split)):
        return rows_stated
    # Other kinds are compressed or quoted, so that their size does not tell the rows.
    if size is None or not all(Path(file).suffix in (".jsonl", ".json") for file in files):
        return None, None
    return round(size / statistics.fmean(map(stored_bytes, taken))), "estimated"


def files_of(settings: TrainingSettings, config: str | None, split: str) -> list[str]:
    """Paths or URLs of the files that a split of a data set is read from."""
    from datasets import load_dataset_builder

    builder = load_dataset_builder(settings.dataset, config, revision=settings.dataset_revision or None)
    return [str(file) for file in (builder.config.data_files or {}).get(split, ())]


def bytes_of(api: HfApi, settings: TrainingSettings, files: list[str]) -> int | None:
    """Size of these files; None where it is not known."""
    if not files:
        return None
    if is_local(settings.dataset):
        return sum(Path(file).stat().st_size for file in files)
    return file_sizes(api, settings.dataset, settings.dataset_revision, files)


def stored_bytes(row: dict[str, Any]) -> int:
    """Bytes that a row takes as a line of JSON."""
    return len(json.dumps(row, ensure_ascii=False, default=str).encode()) + 1
