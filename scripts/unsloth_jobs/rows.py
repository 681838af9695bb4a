"""A sample of the rows as the job would train on them: lengths, masks, and what would be lost."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from . import hub
from .errors import UserError


@dataclass(frozen=True)
class Row:
    """One row. Lengths are in tokens; what cannot be rendered has only its reason in `lost`."""

    content: str  # as normalised, to tell a duplicate
    lost: str = ""  # why it teaches nothing
    length: int = 0  # before the cut
    trained: int = 0  # after it
    learned: int = 0  # of those
    needed: int = 0  # up to the end of its last answer; 0 without one
    stops: bool = False  # whether the last thing learned is a special token
    dropped: str = ""  # text of an answer that the chat template leaves out or changes


@dataclass(frozen=True)
class Sample:
    """The first rows of a data set, through the template's own functions. Lengths are before the cut."""

    format: str
    columns: list[str]
    used: dict[str, str]
    rows: int | None  # of the whole split, where that can be known
    rows_source: str | None  # "counted", "metadata", "viewer" or "estimated"
    looked_at: list[Row] = field(repr=False)
    segments: list[dict[str, Any]] = field(repr=False)
    max_length: int

    @property
    def sampled(self) -> int:
        return len(self.looked_at)

    @property
    def kept(self) -> list[Row]:
        return [row for row in self.looked_at if not row.lost]

    @property
    def lengths(self) -> list[int]:
        return [row.length for row in self.looked_at if row.length]

    @property
    def lost(self) -> dict[str, int]:
        """Rows that teach nothing, by reason."""
        return dict(Counter(row.lost for row in self.looked_at if row.lost))

    @property
    def rows_without_answer(self) -> int:
        return sum(self.lost.values())

    @property
    def cut(self) -> int:
        return sum(length > self.max_length for length in self.lengths)

    @property
    def supervised_fraction(self) -> float:
        return sum(row.learned for row in self.kept) / max(sum(row.trained for row in self.kept), 1)

    @property
    def duplicates(self) -> int:
        return self.sampled - len({row.content for row in self.looked_at})

    @property
    def stopping(self) -> float:
        """Share of the rows that end by teaching the model to stop."""
        return statistics.fmean(row.stops for row in self.kept) if self.kept else 0.0

    @property
    def changed(self) -> list[str]:
        """Of each row whose answers the chat template does not render as they stand, the first such text."""
        return [row.dropped for row in self.looked_at if row.dropped]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.lengths) if self.lengths else 0.0

    def percentile(self, share: float) -> int:
        return sorted(self.lengths)[min(int(share * len(self.lengths)), len(self.lengths) - 1)] if self.lengths else 0

    def length_for(self, share: float) -> int | None:
        """Tokens per row that keep this share of the rows' answers whole; None where no row has an answer."""
        needed = sorted(row.needed for row in self.looked_at if row.needed)
        return needed[math.ceil(share * len(needed)) - 1] if needed else None

    def tokens_per_row(self, max_length: int) -> float:
        """Mean tokens of a row as trained: cut at max_length."""
        return statistics.fmean(min(length, max_length) for length in self.lengths) if self.lengths else 0.0


def sample(api: HfApi, template: ModuleType, settings: Any, limit: int) -> Sample:
    """Read, normalise, render, tokenise and mask up to `limit` rows. Raises UserError with the template's reason."""
    with hub.asking(f"data set {settings.dataset}"):
        try:
            return _sample(api, template, settings, limit)
        except template.Stop as stop:
            if fault := hub_fault(stop):
                raise fault from stop
            raise UserError(stop.code, hub.redact(stop.message), stop.fix) from stop


def hub_fault(error: BaseException | None) -> Exception | None:
    """What the Hub's client raised, where that is what an error comes from."""
    while error and not isinstance(error, (HfHubHTTPError, HTTPError)):
        error = error.__cause__ or error.__context__
    return error


def end_soon() -> None:
    """Let datasets report a Hub that fails; it would ask it again for up to twenty minutes."""
    from datasets import config

    config.STREAMING_READ_MAX_RETRIES = 1
    config.STREAMING_READ_RETRY_INTERVAL = 0
    config.STREAMING_READ_SERVER_UNAVAILABLE_RETRY_INTERVAL = 0
    config.STREAMING_READ_RATE_LIMIT_RETRY_INTERVAL = 0


def _sample(api: HfApi, template: ModuleType, settings: Any, limit: int) -> Sample:
    end_soon()
    stream = template.load_rows(settings, streaming=True)
    taken = first_rows(template, settings, stream, limit + 1)
    if not taken:
        raise template.Stop("no_rows", "The split of the data set has no rows.", "Choose another with --dataset-split.")
    layout = template.detect_format(taken[0].keys(), settings.prompt_column, settings.completion_column)
    tokenizer = load_tokenizer(template, settings)
    renderer = template.make_renderer(tokenizer, layout)
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    looked_at, shown = [], []
    for raw in taken[:limit]:
        row, example = look(template, renderer, layout, special, raw, settings.max_seq_length)
        looked_at.append(row)
        if not row.lost and not shown:
            shown = template.segments(tokenizer, example)
    count, source = (len(taken), "counted") if len(taken) <= limit else count_rows(api, template, settings, stream, taken)
    return Sample(layout.name, list(taken[0].keys()), layout.columns, count, source, looked_at, shown, settings.max_seq_length)


def first_rows(template: ModuleType, settings: Any, stream: Any, count: int) -> list[dict[str, Any]]:
    """The first rows; pictures and sound in them stay as they are stored. Raises the template's Stop."""
    try:
        return list(itertools.islice(stream.decode(False) if stream.features else stream, count))
    except Exception as error:  # a row that is not what the first ones promised: each file format has its own error
        raise template.unreadable(settings, error) from error


def load_tokenizer(template: ModuleType, settings: Any) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(settings.base_model, revision=settings.base_model_revision or None)
    except Exception as error:  # what is missing or broken decides the class
        raise template.Stop(
            "no_tokenizer",
            f"{settings.base_model} has no tokenizer that can be loaded: {error}",
            "Choose a model whose repository holds a tokenizer.json.",
        ) from error


def look(template: ModuleType, renderer: Any, layout: Any, special: set[int], raw: Any, max_length: int) -> tuple[Row, Any]:
    """What becomes of one row, and the example that is trained on (None where there is none)."""
    content = json.dumps(raw, sort_keys=True, default=str)
    try:
        row = template.normalise_row(raw, layout)
        text, spans = renderer.render(row)
    except ValueError as error:
        return Row(content, lost=str(error)), None
    whole = renderer.tokens_of(text, spans)
    example = whole.cut(max_length)
    learned = [token for token in example.labels if token != template.IGNORE]
    places = [place for place, token in enumerate(whole.labels) if token != template.IGNORE]
    lost = "" if learned else "answer cut away" if places else "no answer"
    return Row(
        content,
        lost,
        length=whole.total_tokens,
        trained=len(example.input_ids),
        learned=len(learned),
        needed=places[-1] + 1 if places else 0,
        stops=bool(learned) and learned[-1] in special,
        dropped=dropped_text(template, row, "".join(text[start:end] for start, end in spans)),
    ), example


def dropped_text(template: ModuleType, row: dict[str, Any], learned: str) -> str:
    """The first text of an answer, thoughts included, that is not among what is learned."""
    answers = [] if "text" in row else [turn for turn in template.as_messages(row) if turn["role"] == "assistant"]
    written = (turn.get(part, "") for turn in answers for part in ("reasoning_content", "thinking", "content"))
    return next((text for text in written if text.strip() and text.strip() not in learned), "")


# ---- how many rows there are


def count_rows(
    api: HfApi, template: ModuleType, settings: Any, stream: Any, taken: list[dict[str, Any]]
) -> tuple[int | None, str | None]:
    """Rows of the split and who says so: the data set's own metadata, the viewer, or else the size of its files."""
    split, splits = str(stream.split), stream.info.splits or {}
    if split in splits and splits[split].num_examples:
        return splits[split].num_examples, "metadata"
    local = hub.is_local(settings.dataset)
    if not local and (said := hub.viewer_rows(api, settings.dataset, stream.info.config_name or "default", split)):
        return said
    size = bytes_of(api, template, settings, split)
    if size is None:
        return None, None
    return round(size / statistics.fmean(map(stored_bytes, taken))), "estimated"


def bytes_of(api: HfApi, template: ModuleType, settings: Any, split: str) -> int | None:
    """Size of the split's files; None for kinds that are compressed, where it does not tell the rows."""
    from datasets import load_dataset_builder

    source = {name: value for name, value in template.data_source(settings).items() if name != "split"}
    files = [str(file) for file in load_dataset_builder(**source).config.data_files[split]]
    if not all(Path(file).suffix in (".jsonl", ".json") for file in files):
        return None
    if hub.is_local(settings.dataset):
        return sum(Path(file).stat().st_size for file in files)
    return hub.file_sizes(api, settings.dataset, settings.dataset_revision, files)


def stored_bytes(row: dict[str, Any]) -> int:
    """Bytes that a row takes as a line of JSON."""
    return len(json.dumps(row, ensure_ascii=False, default=str).encode()) + 1
