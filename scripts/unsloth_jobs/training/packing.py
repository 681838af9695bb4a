"""Sequence packing: several rows share a sequence, so that little is spent on padding and each forward pass has the same
shape (a new one costs a GPU seconds).

Rows must not see each other: attention follows position_ids that start again at 0, convolutions by seq_idx, and
has_cross_contamination finds the models that listen to neither. TRL's pack_dataset packs by the same rule; this one
keeps one shape, gives LFM2 its seq_idx, and spreads a step's own rows.
"""

from __future__ import annotations

import bisect
import inspect
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from .batching import LONGEST_PACKED
from .masks import IGNORE
from .report import emit
from .settings import TrainingSettings


def pack(lengths: Iterable[int], size: int) -> list[list[int]]:
    """Row numbers by sequence, so that each holds at most size tokens: the longest row first, each where least is left.

    Of held-out rows: those of a training step are spread over its sequences.
    """
    lengths = list(lengths)  # a data set's column takes ten times as long to look into
    sequences: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, number of the sequence), ascending
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        at = bisect.bisect_left(room, (lengths[row], -1))
        left, number = room.pop(at) if at < len(room) else (size, len(sequences))
        if number == len(sequences):
            sequences.append([])
        sequences[number].append(row)
        bisect.insort(room, (left - lengths[row], number))
    return sequences


class Collator:
    """Sequences, each a list of row numbers, as micro_batch_size × length tokens: of the first of these lengths that holds them.

    Unsloth takes them in one line. transformers' own attention over a line would take a mask of its square: it gets
    them side by side.
    """

    def __init__(self, tokens: Any, micro_batch_size: int, lengths: Iterable[int], filler: int, in_lines: bool = False):
        self.tokens = tokens.with_format("numpy")  # lists would take ten times as long, while the GPU waits
        self.micro_batch_size, self.lengths = micro_batch_size, sorted(set(lengths))
        self.filler, self.in_lines = filler, in_lines

    def __call__(self, sequences: list[list[int]]) -> dict[str, Any]:
        found = [self.rows(numbers) for numbers in sequences]
        longest = max(sum(len(ids) for ids, _ in rows) for rows in found)
        size = next(length for length in self.lengths if length >= longest)
        filled = [row for rows in found for row in self.filled(rows, size)]
        missing = self.micro_batch_size - len(found)  # in an evaluation's last batch
        return as_batch(filled + missing * [self.fill(size)], size if self.in_lines else None)

    def rows(self, numbers: list[int]) -> list[tuple[Any, Any]]:
        if not numbers:
            return []
        columns = self.tokens[numbers]
        return list(zip(columns["input_ids"], columns["labels"], strict=True))

    def filled(self, rows: list[tuple[Any, Any]], size: int) -> list[tuple[Any, Any]]:
        left = size - sum(len(ids) for ids, _ in rows)
        return [*rows, self.fill(left)] if left else rows

    def fill(self, length: int) -> tuple[list[int], list[int]]:
        """A row of its own, so that the lengths add up; nothing of it is learned."""
        return [self.filler] * length, [IGNORE] * length


def as_batch(rows: list[tuple[list[int], list[int]]], width: int | None = None) -> dict[str, Any]:
    """Rows (input_ids, labels) one after the other, with all that tells a model where each begins.

    Shapes: (1, tokens), with the lengths of the rows for Unsloth's attention; or (sequences, width) without them.
    """
    import numpy as np
    import torch

    lengths = np.array([len(ids) for ids, _ in rows], dtype=np.int32)
    ids, labels = (np.concatenate(column).astype(np.int64) for column in zip(*rows, strict=True))
    begins = np.repeat(np.cumsum(lengths) - lengths, lengths)
    labels[begins == np.arange(len(ids))] = IGNORE  # predicted from nothing, or from the row before it
    columns = {
        "input_ids": ids,
        "labels": labels,
        "position_ids": np.arange(len(ids)) - begins,
        "seq_idx": np.repeat(np.arange(len(rows), dtype=np.int32), lengths),
    }
    batch = {name: torch.from_numpy(values).view(-1, width or len(ids)) for name, values in columns.items()}
    return batch if width else batch | {"packed_seq_lengths": torch.from_numpy(lengths)}


def keep_rows_apart(model: Any) -> None:
    """Give LFM2's short convolutions a kernel that stops at row borders. Call it once the model is loaded.

    transformers' own falls back to a plain convolution, which ignores seq_idx and is compiled again for each length.
    """
    if "unsloth" in sys.modules and next(model.parameters()).is_cuda:  # for a CPU Unsloth has none, and takes seconds to say so
        try:  # attention over each row alone; without it, it is as exact over a mask of tokens × tokens
            from unsloth.utils.hf_packed_attention import enable_hf_packed_attention

            enable_hf_packed_attention()
        except ImportError as error:
            message = f"Packed rows take more memory: Unsloth's attention over each row alone is missing ({error})."
            emit("warning", code="packed_attention", message=message)
    for kind in {type(module) for module in model.modules()}:
        forward = inspect.unwrap(kind.forward)
        if "seq_idx" in inspect.signature(forward).parameters and "causal_conv1d_fn" in forward.__globals__:
            forward.__globals__["causal_conv1d_fn"] = row_convolution


def row_convolution(hidden_states, weight, bias=None, activation=None, seq_idx=None, **_):
    """causal_conv1d_fn of the causal_conv1d package: (batch, channels, tokens) with weight (channels, taps)."""
    import torch.nn.functional as F

    taps, tokens = weight.shape[-1], hidden_states.shape[-1]
    result = hidden_states * weight[:, -1, None]
    for back in range(1, taps):
        earlier = F.pad(hidden_states, (back, 0))[..., :tokens]
        if seq_idx is not None:
            earlier = earlier * (F.pad(seq_idx, (back, 0), value=-1)[..., :tokens] == seq_idx)[:, None]
        result = result + earlier * weight[:, -1 - back, None]
    result = result if bias is None else result + bias[:, None]
    return result if activation is None else F.silu(result)


def has_cross_contamination(model: Any, size: int, width: int | None = None) -> bool:
    """Whether a row's loss changes with the row that is packed before it: then this model cannot be trained packed.

    width: as of as_batch, whose batches the model will be given.
    """
    import torch

    half, vocabulary = size // 2, model.get_input_embeddings().num_embeddings

    def loss(step: int) -> float:
        before, row = ([(factor * place) % (vocabulary - 1) + 1 for place in range(half)] for factor in (step, 5))
        # Only a row's first tokens are near enough to its border to see far over it.
        learned = row[:8] + [IGNORE] * (half - 8)
        batch = as_batch([(before, [IGNORE] * half), (row, learned)] * (2 if width else 1), width)
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # not worth half a minute of compilation
            return model(**{name: value.to(model.device) for name, value in batch.items()}, use_cache=False).loss.item()

    one, other = loss(3), loss(7)
    return not abs(one - other) <= 1e-5 * abs(one)


def wants_packing(settings: TrainingSettings) -> bool:
    return settings.packing and settings.max_seq_length <= LONGEST_PACKED


def may_pack(settings: TrainingSettings, config: Mapping[str, Any]) -> bool:
    """Whether rows will be packed, as far as config.json tells: linear attention carries its state over their borders."""
    kinds = str((config.get("text_config") or config).get("layer_types") or "")
    return wants_packing(settings) and "linear" not in kinds and "mamba" not in kinds


def can_pack(model: Any, settings: TrainingSettings) -> bool:
    """Whether rows stay apart in this model under sequence packing; where not, a warning says so."""
    if not wants_packing(settings):
        return False
    import torch

    leak: bool | str = "it does not fit in the GPU's memory"
    for size in {settings.max_seq_length // part // 2 * 2: None for part in (1, 4, 16)}:
        try:
            leak = has_cross_contamination(model, size, size if settings.backend == "trl" else None)
        except torch.OutOfMemoryError:  # the logits of this one pass: fewer tokens tell as much
            continue
        except Exception as error:  # a forward that does not take a packed batch at all
            leak = f"{type(error).__name__}: {error}"
        break
    if leak:
        why = "in this model rows would see each other" if leak is True else f"it could not be tested: {leak}"
        emit("warning", code="not_packed", message=f"No sequence packing, each row is trained alone: {why}.")
    return not leak
