"""A sample of the rows as the job would train on them: lengths, loss masks, and what would be lost."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from .. import limits
from ..template import Template
from ..training.columns import ONLY_TEXT
from ..training.conversation import Rendered
from ..training.masks import CALL_NOT_RENDERED, Example, Renderer
from ..training.secrets import quotation
from ..training.settings import TrainingSettings
from . import client
from .model_info import bad_config
from .table import Table, reasons

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
        """Relative 95% uncertainty of tokens_per_row; 0 where each row was read."""
        if len(self.lengths) < 2 or self.rows == self.sampled:
            return 0.0
        spread = statistics.stdev(min(length, max_length) for length in self.lengths)
        return 1.96 * spread / math.sqrt(len(self.lengths)) / self.tokens_per_row(max_length)


def tokenise_sample(template: Template, settings: TrainingSettings, table: Table) -> Sample:
    """Normalise, render, tokenise and mask a table's first rows. Raises UserError."""
    with client.asking(f"model {settings.base_model}"), reasons(template):
        return tokenise(template, settings, table)


def tokenise(template: Template, settings: TrainingSettings, table: Table) -> Sample:
    tokenizer, renderer = load_renderer(template, settings, table)
    special = special_ids(tokenizer)
    looked_at: list[Row] = []
    shown: list[dict[str, Any]] = []
    with limits.bounded(settings.base_model, limits.ROWS_S):
        for raw in table.first:
            row, example = inspect_row(template, renderer, table.layout, special, raw, settings.max_seq_length)
            looked_at.append(row)
            if not row.lost and not shown:
                shown = template.segments(tokenizer, example)
        digest = digest_of_first(template, renderer, table)
    return Sample(**vars(table), looked_at=looked_at, segments=shown, max_length=settings.max_seq_length, digest=digest)


def load_renderer(template: Template, settings: TrainingSettings, table: Table) -> tuple[Any, Renderer]:
    """The model's tokenizer, and what renders rows of this layout with its chat template."""
    tokenizer = load_tokenizer(template, settings)
    with limits.bounded(settings.base_model, limits.TEMPLATE_S):
        return tokenizer, template.make_renderer(tokenizer, table.layout)


def special_ids(tokenizer: Any) -> set[int]:
    return {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}


def digest_of_first(template: Template, renderer: Renderer, table: Table) -> str | None:
    """Of the rows that the job's own digest is of; None where too few were read."""
    whole = len(table.first) >= template.DIGESTED or len(table.first) == table.rows
    return template.digest_of(renderer, table.layout, table.first) if whole else None


def load_tokenizer(template: Template, settings: TrainingSettings) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            settings.base_model,
            revision=settings.base_model_revision or None,
            trust_remote_code=False,  # unsaid, it would stop to ask
        )
    except StrictDataclassError as error:  # transformers loads the model's configuration, too
        raise bad_config(settings.base_model, f"config.json is refused by transformers: {quotation(str(error))}") from error
    except Exception as error:  # what is missing or broken decides the class
        raise template.Stop(
            "no_tokenizer",
            f"{settings.base_model} has no tokenizer that can be loaded: {quotation(str(error))}",
            "Choose a model whose repository holds a tokenizer.json.",
        ) from error


def inspect_row(
    template: Template, renderer: Any, layout: Any, special: set[int], raw: Any, max_length: int
) -> tuple[Row, Any]:
    """What becomes of one row, and the example that is trained on (None where there is none)."""
    try:
        row = template.normalise_row(raw, layout)
        rendered = renderer.rendered(row)
    except ValueError as error:
        return lost_row(error), None
    return row_of(template, renderer, special, row, rendered, max_length)


def lost_row(error: ValueError) -> Row:
    reason = str(error)
    return Row(lost=reason, calls_not_rendered=int(reason == CALL_NOT_RENDERED), pictures=reason.endswith(ONLY_TEXT))


def row_of(
    template: Template, renderer: Renderer, special: set[int], row: dict[str, Any], rendered: Rendered, max_length: int
) -> tuple[Row, Example]:
    """A normalised and rendered row, and the example that is trained on."""
    text, spans, calls_not_rendered = rendered
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
