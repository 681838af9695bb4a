"""Preferences as tokens: each answer with its prompt, its loss mask on the answer alone, and what the pairs are like."""

from __future__ import annotations

import hashlib
import itertools
import json
import statistics
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from .columns import Format
from .encoded_rows import as_rows, keep_learned, map_rows
from .masks import IGNORE, Example, Renderer
from .preferences import read_preference
from .report import Stop
from .trace import Span

ROWS_AT_ONCE = 32  # through the tokenizer
DIGESTED = 8  # rows
NEAR = 0.95  # of the longer answer, at its beginning and end: answers that share so much hardly differ

SAME, SAME_ONCE_CUT = "its answers are the same", "what its answers differ in is cut away"


class Compared(NamedTuple):
    """The answers of a row with their prompt, whole; None in the place of an answer that there is none of."""

    chosen: Example | None
    rejected: Example | None

    def examples(self) -> list[Example]:
        return [example for example in self if example]


def compared_of(renderer: Renderer, layout: Format, rows: Iterable[Mapping[str, Any]]) -> list[Compared | str]:
    """Each row's answers as tokens, or the reason why it has none."""
    rendered: list[list[tuple[str, list[Span]] | None] | str] = []
    for row in rows:
        try:
            preference = read_preference(row, layout)
            rendered.append([None if answer is None else renderer.render(answer) for answer in preference])
        except ValueError as error:
            rendered.append(str(error))
    made = iter(renderer.examples([text for one in rendered if not isinstance(one, str) for text in one if text]))
    return [one if isinstance(one, str) else Compared(*(text and next(made) for text in one)) for one in rendered]


def why_dropped(compared: Compared | str, max_length: int) -> str:
    """Why nothing can be learned from a row; "" where something can."""
    if isinstance(compared, str):
        return compared
    for example in compared.examples():
        if not supervised(example.cut(max_length)):
            return "answer cut away" if example.total_supervised else "no answer"
    if compared.chosen and compared.rejected:
        cut = [example.cut(max_length).input_ids for example in compared.examples()]
        if cut[0] == cut[1]:
            return SAME if compared.chosen.input_ids == compared.rejected.input_ids else SAME_ONCE_CUT
    return ""


def supervised(example: Example) -> int:
    return len(example.labels) - example.labels.count(IGNORE)


def encode_preferences(
    rows: Any, renderer: Renderer, layout: Format, max_length: int, paired: bool
) -> tuple[Any, dict[str, Any]]:
    """rows as pairs (chosen_ids, chosen_labels, rejected_ids, rejected_labels) or, not paired, as answers by themselves
    (input_ids, labels, desirable), each with length, its tokens in all; and what was left out and why.
    """
    from datasets import Features, Value

    numbers, number, names = [Value("int64")], Value("int64"), PAIR_COLUMNS if paired else SINGLE_COLUMNS
    kinds = dict.fromkeys(names, numbers) | dict.fromkeys(("length", "supervised", *FIGURES), number)
    kinds |= {"dropped": Value("string"), "near": Value("bool"), "cut": Value("bool"), "desirable": Value("bool")}

    def encode(columns: Mapping[str, list]) -> dict[str, list]:
        made = [
            part
            for compared in compared_of(renderer, layout, as_rows(columns))
            for part in (as_pair(compared, max_length) if paired else as_singles(compared, max_length))
        ]
        return {name: [part.get(name, [] if name in names else EMPTY[name]) for part in made] for name in kinds}

    kept, summary = keep_learned(map_rows(rows, encode, Features(kinds), ROWS_AT_ONCE))
    if paired:
        summary["pairs"] = pair_figures({name: kept[name] for name in (*FIGURES, "near")})
    else:
        summary["labels"] = {"desirable": sum(kept["desirable"]), "undesirable": len(kept) - sum(kept["desirable"])}
    return kept.select_columns([*names, "length", *([] if paired else ["desirable"])]), summary


PAIR_COLUMNS, SINGLE_COLUMNS = ("chosen_ids", "chosen_labels", "rejected_ids", "rejected_labels"), ("input_ids", "labels")
FIGURES = ("chosen_answer", "rejected_answer", "chosen_digest", "rejected_digest")
EMPTY: dict[str, Any] = dict.fromkeys(("length", "supervised", *FIGURES), 0) | {
    "dropped": "", "near": False, "cut": False, "desirable": False,
}  # fmt: skip


def as_pair(compared: Compared | str, max_length: int) -> list[dict[str, Any]]:
    """One pair as encode_preferences keeps it, or its reason."""
    if reason := why_dropped(compared, max_length) or not_paired(compared):
        return [{"dropped": reason, "cut": is_cut(compared, max_length)}]
    answers = {name: example.cut(max_length) for name, example in zip(("chosen", "rejected"), compared, strict=True)}  # type: ignore[union-attr]
    texts = {name: [token for token in example.labels if token != IGNORE] for name, example in answers.items()}
    made: dict[str, Any] = {"cut": is_cut(compared, max_length), "near": nearly_same(*texts.values())}
    for name, example in answers.items():
        made |= {f"{name}_ids": example.input_ids, f"{name}_labels": example.labels}
        made |= {f"{name}_answer": len(texts[name]), f"{name}_digest": short_digest(example.input_ids)}
    lengths = {
        "length": sum(len(example.input_ids) for example in answers.values()),
        "supervised": sum(map(len, texts.values())),
    }
    return [made | lengths]


def as_singles(compared: Compared | str, max_length: int) -> list[dict[str, Any]]:
    """The answers of a row by themselves, as encode_preferences keeps them, or its reason."""
    if isinstance(compared, str) or (reason := why_dropped(compared, max_length)):
        return [{"dropped": compared if isinstance(compared, str) else reason, "cut": is_cut(compared, max_length)}]
    made = []
    for example, desirable in zip(compared, (True, False), strict=True):
        if example:
            cut, is_longer = example.cut(max_length), example.total_tokens > max_length
            one = {"input_ids": cut.input_ids, "labels": cut.labels, "length": len(cut.input_ids)}
            made.append(one | {"supervised": supervised(cut), "cut": is_longer, "desirable": desirable})
    return made


def not_paired(compared: Compared | str) -> str:
    return "" if isinstance(compared, str) or None not in compared else "one answer alone"


def is_cut(compared: Compared | str, max_length: int) -> bool:
    return not isinstance(compared, str) and any(one.total_tokens > max_length for one in compared.examples())


def short_digest(ids: list[int]) -> int:
    return int.from_bytes(hashlib.blake2b(repr(ids).encode(), digest_size=8).digest(), "little", signed=True)


def nearly_same(one: list[int], other: list[int]) -> bool:
    """Whether two answers differ in a twentieth of the longer at most, by what they begin and end with."""
    most = min(len(one), len(other))
    begins = next((at for at in range(most) if one[at] != other[at]), most)
    ends = next((at for at in range(most - begins) if one[-1 - at] != other[-1 - at]), most - begins)
    return begins + ends >= NEAR * max(len(one), len(other))


def pair_figures(columns: Mapping[str, list]) -> dict[str, Any]:
    """What pairs are like: how many contradict another, how many hardly differ, and the mean tokens of their answers."""
    chosen, rejected = columns["chosen_answer"], columns["rejected_answer"]
    pairs = list(zip(columns["chosen_digest"], columns["rejected_digest"], strict=True))
    known, count = {*pairs}, len(pairs)
    return {
        "contradictory": sum((worse, better) in known for better, worse in pairs),
        "nearly_same": sum(columns["near"]),
        "chosen_tokens": round(statistics.fmean(chosen), 1) if count else 0.0,
        "rejected_tokens": round(statistics.fmean(rejected), 1) if count else 0.0,
        "chosen_longer": round(sum(map(int.__gt__, chosen, rejected)) / max(count, 1), 4),
    }


def digest_of(renderer: Renderer, layout: Format, rows: Iterable[Mapping[str, Any]]) -> str:
    """The first rows' token ids in 16 characters: check.py and the job compare what each of them read."""
    made = compared_of(renderer, layout, itertools.islice(rows, DIGESTED))
    ids = [None if isinstance(one, str) else [example and example.input_ids for example in one] for one in made]
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]


def require_preferences(summary: Mapping[str, Any]) -> None:
    """Raises Stop where nothing can be learned from the rows."""
    why = ", ".join(f"{count} × {reason}" for reason, count in summary["dropped"].items())
    if not summary["rows_kept"]:
        raise Stop(
            "nothing_supervised",
            f"Not one row holds a preference that can be learned: {why}.",
            "For single answers with a label pass --loss kto."
            if "one answer alone" in summary["dropped"]
            else "Look at the rows: each needs two answers that differ within --max-seq-length tokens.",
        )
    labels = summary.get("labels")
    if labels and not all(labels.values()):
        only = next(name for name, count in labels.items() if count)
        raise Stop(
            "one_label",
            f"All {summary['rows_kept']:,} answers have the same label ({only}): there is nothing to tell apart.",
            "Add answers with the other label. To imitate good answers alone there is templates/sft.py.",
        )
