"""How many tokens fit in one forward pass: how an optimizer step is divided into micro-batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from .processes import process_count
from .report import Stop, emit
from .settings import TrainingSettings
from .steps import Steps, effective_batch_size, spread

TOKENS_AT_ONCE, FEWEST_TOKENS_AT_ONCE = 8192, 2048
LONGEST_PACKED = 16384
WIDER = 1.1  # times as many tokens in a pass as there should be are less than what another division costs


class Batching(NamedTuple):
    """A step's forward passes: gradient_accumulation of them, of micro_batch_size sequences of length tokens, padding included.

    A sequence is one row or, packed, several. Other batchings of a step compute the same from the same rows. Of several
    processes each makes so many passes, over its own part of the step's sequences.
    """

    micro_batch_size: int
    gradient_accumulation: int
    length: int

    @property
    def tokens(self) -> int:
        """Of a forward pass."""
        return self.micro_batch_size * self.length


def batchings(
    settings: TrainingSettings,
    length_for: Callable[[int], int],
    packed: bool,
    fewest: int = 1,
    smallest: int = 1,
    processes: int = 1,
) -> Iterable[Batching]:
    """Ways to divide a step, largest passes first. length_for(n): of the sequences, where a process packs its part of a step
    into n; smallest: rows in a pass at least, where rows are not packed.
    """
    rows = math.ceil(effective_batch_size(settings) / processes)
    if not packed:
        most = max(max_micro_batch_size(settings), smallest)
        sizes = (size for size in range(most, smallest - 1, -1) if rows % size == 0 or size == smallest)
        yield from (Batching(size, math.ceil(rows / size), settings.max_seq_length) for size in sizes)
        return
    shortest = math.inf
    for passes in range(fewest, rows + 1):
        if (length := length_for(passes)) < shortest:
            shortest = length
            yield Batching(1, passes, length) if settings.backend == "unsloth" else side_by_side(passes, length_for, rows)


def side_by_side(passes: int, length_for: Callable[[int], int], rows: int) -> Batching:
    """Each pass as several shorter sequences, where that costs little: plain attention takes the square of their length."""
    size, line = 1, length_for(passes)
    while 2 * size * passes <= rows and 2 * size * length_for(2 * size * passes) <= WIDER * line:
        size *= 2
    return Batching(size, passes, length_for(size * passes))


def max_micro_batch_size(settings: TrainingSettings) -> int:
    """Beyond TOKENS_AT_ONCE no GPU gets faster, and the mask of a packed pass grows with the square of its tokens."""
    return min(settings.batch_size, max(TOKENS_AT_ONCE // settings.max_seq_length, 1))


def choose_batching(
    settings: TrainingSettings,
    length_for: Callable[[int], int],
    keeps: Callable[[int], bool],
    packed: bool,
    smallest: int = 1,
    processes: int = 1,
) -> tuple[Batching, bool]:
    """How a step is divided, and whether its activations are kept; keeps(tokens) says whether there is room for that.

    Keeping them saves a third of the arithmetic, so smaller micro-batches are taken for it, but none too small for a GPU.
    """
    most = (
        WIDER * max(max_micro_batch_size(settings), smallest) * settings.max_seq_length
    )  # a little more is better than a pass more
    fewest = math.ceil(length_for(1) / most) if packed else 1
    largest = None
    for batching in batchings(settings, length_for, packed, fewest, smallest, processes):
        last = batching
        if batching.tokens > most:
            continue
        if largest and batching.tokens < FEWEST_TOKENS_AT_ONCE:
            break
        if keeps(batching.tokens):
            return batching, True
        largest = largest or batching
    return largest or last, False


def require_rows_for_all(settings: TrainingSettings, smallest: int = 1) -> None:
    """Raises Stop where a step has too few rows for each process to have one, or `smallest`."""
    rows, needed = effective_batch_size(settings), smallest * process_count()
    if rows < needed:
        raise Stop(
            "too_few_rows_a_step",
            f"A step of {rows} rows cannot be shared by {process_count()} GPUs, each of which needs {smallest}.",
            f"Raise --gradient-accumulation to {math.ceil(needed / settings.batch_size)}, or choose a flavor with fewer GPUs.",
        )


def emit_batching(settings: TrainingSettings, batching: Batching, packed: bool, length: int) -> None:
    """length: of a sequence, in tokens."""
    emit(
        "batching",
        packed=packed,
        micro=batching.micro_batch_size,
        accumulation=batching.gradient_accumulation,
        length=length,
        rows_per_step=effective_batch_size(settings),
        processes=process_count(),
        gradient_checkpointing=settings.gradient_checkpointing,
    )


def use_less_memory(batching: Batching, kept: bool, ways: Iterable[Batching], error: Exception) -> tuple[Batching, bool]:
    """The same step in less memory: in smaller micro-batches while a GPU computes them well, then with gradient checkpointing.

    Raises Stop where both are done already.
    """
    smaller = next((way for way in ways if way.tokens < batching.tokens), None)
    if kept and (smaller is None or smaller.tokens < FEWEST_TOKENS_AT_ONCE):
        remedy = "Going on with its activations recomputed (gradient checkpointing)"
        smaller, kept = batching, False
    elif smaller:
        remedy = (
            f"Going on with micro-batches of {smaller.tokens:,} tokens: gradient accumulation {batching.gradient_accumulation} → "
            f"{smaller.gradient_accumulation}, the same effective batch size"
        )
    else:
        raise Stop(
            "out_of_vram",
            f"The GPU's memory does not hold one sequence at a time: {str(error).splitlines()[0]}",
            "Choose a flavor with more GPU memory (estimate.py lists them), or a smaller --max-seq-length.",
        ) from error
    message = f"Out of GPU memory in a forward pass of {batching.tokens:,} tokens. {remedy}."
    emit("warning", code="out_of_vram", message=message)
    return smaller, kept


class Passes:
    """The forward passes of an epoch, each a list of sequences, and these lists of row numbers: a batch sampler of torch's.

    Of several processes each has as many as the others. A sequence without rows fills up what a step lacks.
    """

    def __init__(self, steps: Steps, batching: Batching, packed: bool, number: int = 0, processes: int = 1):
        self.steps, self.batching, self.packed, self.epoch = steps, batching, packed, 0
        self.number, self.processes = number, processes

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[list[int]]]:
        for step in self.steps.of_epoch(self.epoch):
            yield from self.of_step(step)

    def __len__(self) -> int:
        *steps, last = self.steps.of_epoch(0)
        return len(steps) * self.batching.gradient_accumulation + len(self.of_step(last))

    def of_step(self, rows: list[int]) -> list[list[list[int]]]:
        """The passes that this process makes."""
        size = self.batching.micro_batch_size
        sequences = self.sequences(rows)
        each = math.ceil(len(sequences) / self.processes)
        own = sequences[self.number :: self.processes]
        own += [[]] * (each - len(own))
        return [own[at : at + size] for at in range(0, each, size)]

    def sequences(self, rows: list[int]) -> list[list[int]]:
        """Of all processes, those that are computed at the same time of like length: the longest of a pass is waited for."""
        if not self.packed:
            return [[row] for row in rows]  # of like length as they stand (group_alike)
        size, passes, _ = self.batching
        found = spread(rows, self.steps.lengths, size * passes * self.processes)
        return found if self.processes == 1 else sorted(found, key=self.steps.held, reverse=True)

    def short_length(self) -> int:
        """Of the sequences of most passes, where that is much less than all need: a few long rows need not pad the rest."""
        size = self.batching.micro_batch_size
        steps = (self.sequences(step) for step in self.steps.groupings[0])
        held = sorted(max(map(self.steps.held, step[at : at + size])) for step in steps for at in range(0, len(step), size))
        usual = held[int(0.95 * (len(held) - 1))]
        return rounded(usual) if usual < 0.75 * self.batching.length else self.batching.length


def rounded(length: int) -> int:
    """To what a GPU's kernels like."""
    return math.ceil(length / 64) * 64
