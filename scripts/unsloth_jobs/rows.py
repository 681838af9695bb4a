"""A sample of the rows as the job would train on them: lengths, masks, and what would be lost."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import re
import statistics
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.constants import HF_HOME
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError, StrictDataclassError

from . import hub, limits
from .errors import HUB, UserError
from .redaction import plain, redact
from .template import Template
from .training.columns import ONLY_TEXT, Format
from .training.masks import CALL_NOT_RENDERED
from .training.secrets import quotation
from .training.settings import TrainingSettings

DRIFT = 4  # standard errors; chance goes beyond them once in ten thousand data sets


@dataclass(frozen=True)
class Row:
    """One row. Lengths are in tokens; what cannot be rendered has only its reason in `lost`."""

    lost: str = ""  # why it teaches nothing
    length: int = 0  # before the cut
    trained: int = 0  # after it
    learned: int = 0  # of those
    needed: int = 0  # up to the end of its last answer; 0 without one
    stops: bool = False  # whether the last thing learned is a special token
    dropped: str = ""  # text of an answer that the chat template leaves out or changes
    calls_not_rendered: int = 0  # turns that are not learned because the chat template does not render their tool calls
    pictures: bool = False  # whether a picture or a sound is why it teaches nothing


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


@dataclass(frozen=True)
class Sample(Table):
    """The first rows of a data set, through the template's own functions. Lengths are before the cut."""

    looked_at: list[Row] = field(repr=False)
    segments: list[dict[str, Any]] = field(repr=False)
    max_length: int
    digest: str | None  # of the first rows' tokens, as the job's masks event has it; None where too few rows were read

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
    def stopping(self) -> float:
        """Share of the rows that end by teaching the model to stop."""
        return statistics.fmean(row.stops for row in self.kept) if self.kept else 0.0

    @property
    def changed(self) -> list[str]:
        """Of each row whose answers the chat template does not render as they stand, the first such text."""
        return [row.dropped for row in self.looked_at if row.dropped]

    @property
    def calls_not_rendered(self) -> int:
        """Rows of which a turn, or all, is not learned because the chat template does not render its tool calls."""
        return sum(row.calls_not_rendered > 0 for row in self.looked_at)

    @property
    def with_pictures(self) -> int:
        """Rows that are left out because a message of theirs holds a picture or a sound."""
        return sum(row.pictures for row in self.looked_at)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.lengths) if self.lengths else 0.0

    @property
    def total(self) -> tuple[int, int, int] | None:
        """Tokens of the whole split before the cut, and the ends of their 95% interval by the spread among the sampled."""
        if self.rows is None:
            return None
        error = self.mean_error(self.percentile(1.0))
        tokens = self.mean * self.rows
        return round(tokens), round(tokens * max(1 - error, 0)), round(tokens * (1 + error))

    @property
    def drifts(self) -> bool:
        """Whether lengths change along the sample, as in sorted data: then the first rows do not speak for the rest."""
        half = len(self.lengths) // 2
        if half < 2 or self.sampled == self.rows:
            return False
        difference = statistics.fmean(self.lengths[half:]) - statistics.fmean(self.lengths[:half])
        return abs(difference) > DRIFT * 2 * statistics.stdev(self.lengths) / math.sqrt(len(self.lengths))

    def percentile(self, share: float) -> int:
        return sorted(self.lengths)[min(int(share * len(self.lengths)), len(self.lengths) - 1)] if self.lengths else 0

    def length_for(self, share: float) -> int | None:
        """Tokens per row that keep this share of the rows' answers whole; None where no row has an answer."""
        needed = sorted(row.needed for row in self.looked_at if row.needed)
        return needed[math.ceil(share * len(needed)) - 1] if needed else None

    def tokens_per_row(self, max_length: int) -> float:
        """Mean tokens of a row as trained: cut at max_length."""
        return statistics.fmean(min(length, max_length) for length in self.lengths) if self.lengths else 0.0

    def mean_error(self, max_length: int) -> float:
        """Relative 95% uncertainty of tokens_per_row; 0 where each row was looked at."""
        if len(self.lengths) < 2 or self.rows == self.sampled:
            return 0.0
        spread = statistics.stdev(min(length, max_length) for length in self.lengths)
        return 1.96 * spread / math.sqrt(len(self.lengths)) / self.tokens_per_row(max_length)


def table(api: HfApi, template: Template, settings: TrainingSettings, limit: int) -> Table:
    """Read up to `limit` rows and find how they are laid out. Raises UserError."""
    with hub.asking(f"data set {settings.dataset}"), reasons(template):
        return read_table(api, template, settings, limit)


def sample(template: Template, settings: TrainingSettings, table: Table) -> Sample:
    """Normalise, render, tokenise and mask a table's first rows. Raises UserError."""
    with hub.asking(f"model {settings.base_model}"), reasons(template):
        return tokenise(template, settings, table)


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
                f"What {hub.endpoint()} answered is not what the Hub answers ({type(garbled).__name__}: {plain(str(garbled))}).",
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
    stream = template.load_rows(settings, streaming=True)
    media = template.media_columns(stream.features)
    taken = first_rows(template, settings, stream, limit + 1)
    if not taken:
        raise template.Stop("no_rows", "The split of the data set has no rows.", "Choose another with --dataset-split.")
    columns = list(stream.features or taken[0])
    layout = find_format(template, settings, columns, taken[0], media)
    split, alone = str(stream.split), Path(os.path.expanduser(settings.dataset)).is_file()
    files = files_of(template, settings, split)
    size = bytes_of(api, settings, files)
    count, source = (len(taken), "counted") if len(taken) <= limit else count_rows(api, settings, stream, files, size, taken)
    config = stream.info.config_name or "default"
    return Table(None if alone else config, None if alone else split, layout, columns, count, source, size, taken[:limit])


def read_file(template: Template, settings: TrainingSettings, file: Path, limit: int) -> Table:
    """A local file, read to its end as the job reads it: a row that would end the job is found before it is paid for."""
    columns, count, first = template.scan_file(file, limit)
    layout = find_format(template, settings, columns, first[0], ())
    return Table(None, None, layout, columns, count, "counted", file.stat().st_size, first)


def find_format(
    template: Template, settings: TrainingSettings, columns: list[str], first: dict[str, Any], media: Iterable[str]
) -> Format:
    """How the template reads the rows."""
    if hasattr(template, "find_format"):
        return template.find_format(settings, columns, first, media)
    # A copy from before 0.3 has only the columns' names to go by.
    return template.detect_format(columns, settings.prompt_column, settings.completion_column, media)  # type: ignore[attr-defined]


def tokenise(template: Template, settings: TrainingSettings, table: Table) -> Sample:
    tokenizer = load_tokenizer(template, settings)
    with limits.bounded(settings.base_model, limits.TEMPLATE_S):
        renderer = template.make_renderer(tokenizer, table.layout)
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    looked_at: list[Row] = []
    shown: list[dict[str, Any]] = []
    with limits.bounded(settings.base_model, limits.ROWS_S):
        for raw in table.first:
            row, example = look(template, renderer, table.layout, special, raw, settings.max_seq_length)
            looked_at.append(row)
            if not row.lost and not shown:
                shown = template.segments(tokenizer, example)
        whole = len(table.first) >= template.DIGESTED or len(table.first) == table.rows
        digest = template.digest_of(renderer, table.layout, table.first) if whole else None
    return Sample(**vars(table), looked_at=looked_at, segments=shown, max_length=settings.max_seq_length, digest=digest)


def first_rows(template: Template, settings: TrainingSettings, stream: Any, count: int) -> list[dict[str, Any]]:
    """The first rows, without their pictures and sound, which are not learned. Raises the template's Stop."""
    try:
        return list(itertools.islice(stream.remove_columns(template.media_columns(stream.features)), count))
    except Exception as error:  # a row that is not what the first ones promised: each file format has its own error
        raise template.unreadable(settings, error) from error


def load_tokenizer(template: Template, settings: TrainingSettings) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            settings.base_model,
            revision=settings.base_model_revision or None,
            trust_remote_code=False,  # unsaid, it would stop to ask
        )
    except StrictDataclassError as error:  # transformers loads the model's configuration, too
        raise hub.bad_config(settings.base_model, f"config.json is refused by transformers: {quotation(str(error))}") from error
    except Exception as error:  # what is missing or broken decides the class
        raise template.Stop(
            "no_tokenizer",
            f"{settings.base_model} has no tokenizer that can be loaded: {quotation(str(error))}",
            "Choose a model whose repository holds a tokenizer.json.",
        ) from error


def look(template: Template, renderer: Any, layout: Any, special: set[int], raw: Any, max_length: int) -> tuple[Row, Any]:
    """What becomes of one row, and the example that is trained on (None where there is none)."""
    try:
        row = template.normalise_row(raw, layout)
        text, spans, calls_not_rendered = renderer.rendered(row)
    except ValueError as error:
        reason = str(error)
        refused = int(reason == CALL_NOT_RENDERED)
        return Row(lost=reason, calls_not_rendered=refused, pictures=reason.endswith(ONLY_TEXT)), None
    whole = renderer.tokens_of(text, spans)
    example = whole.cut(max_length)
    learned = [token for token in example.labels if token != template.IGNORE]
    places = [place for place, token in enumerate(whole.labels) if token != template.IGNORE]
    lost = "" if learned else "answer cut away" if places else "no answer"
    return Row(
        lost,
        length=whole.total_tokens,
        trained=len(example.input_ids),
        learned=len(learned),
        needed=places[-1] + 1 if places else 0,
        stops=bool(learned) and learned[-1] in special,
        # A tag that an answer begins with may be the end of the prompt: it is rendered as it stands, and given.
        dropped=dropped_text(template, row, "".join(text[max(start - len(renderer.prompt), 0) : end] for start, end in spans)),
        calls_not_rendered=calls_not_rendered,
    ), example


def dropped_text(template: Template, row: dict[str, Any], learned: str) -> str:
    """The first text of an answer, thoughts included, that is not among what is learned."""
    turns = [] if "text" in row else template.as_messages(row)
    # What is not learned for its tool calls or its weight has a reason of its own.
    answers = [turn for turn in turns if turn["role"] == "assistant" and "tool_calls" not in turn and turn.get("weight") != 0]
    written = (turn.get(part, "") for turn in answers for part in ("reasoning_content", "thinking", "content"))
    texts = (text.strip() for text in written if isinstance(text, str))
    return next((text for text in texts if text and text not in learned), "")


# ---- how many rows there are


def count_rows(
    api: HfApi, settings: TrainingSettings, stream: Any, files: list[str], size: int | None, taken: list[dict[str, Any]]
) -> tuple[int | None, str | None]:
    """Rows of the split and who says so: the data set's own metadata, the viewer, or else the size of its files."""
    split, splits = str(stream.split), stream.info.splits or {}
    if split in splits and splits[split].num_examples:
        return splits[split].num_examples, "metadata"
    local = hub.is_local(settings.dataset)
    if not local and (said := hub.viewer_rows(api, settings.dataset, stream.info.config_name or "default", split)):
        return said
    # Other kinds are compressed or quoted, so that their size does not tell the rows.
    if size is None or not all(Path(file).suffix in (".jsonl", ".json") for file in files):
        return None, None
    return round(size / statistics.fmean(map(stored_bytes, taken))), "estimated"


def files_of(template: Template, settings: TrainingSettings, split: str) -> list[str]:
    """Paths or URLs of the files that a split is read from."""
    from datasets import load_dataset_builder

    source = {name: value for name, value in template.data_source(settings).items() if name != "split"}
    return [str(file) for file in (load_dataset_builder(**source).config.data_files or {}).get(split, ())]


def bytes_of(api: HfApi, settings: TrainingSettings, files: list[str]) -> int | None:
    """Size of these files; None where it is not known."""
    if not files:
        return None
    if hub.is_local(settings.dataset):
        return sum(Path(file).stat().st_size for file in files)
    return hub.file_sizes(api, settings.dataset, settings.dataset_revision, files)


def stored_bytes(row: dict[str, Any]) -> int:
    """Bytes that a row takes as a line of JSON."""
    return len(json.dumps(row, ensure_ascii=False, default=str).encode()) + 1
