"""Which rows an optimizer step holds.

The effective batch size, --batch-size × --gradient-accumulation rows, is the same on every machine: which rows a step
holds depends on the rows, these two and the seed alone. What fits a GPU decides only in how many forward passes a step
is computed (batching.py), so that a run can move to another GPU, or go on in less memory, and its steps stay the same.
"""

from __future__ import annotations

import functools
import heapq
import math
import random
from collections.abc import Iterable

from .settings import TrainingSettings

GROUPINGS = 4  # the rows of a step are others in each of so many epochs
MIXED = 0.25  # of its length, by which a row may trade places with others: chance, in what shares a step
LIKE_LENGTH = 50  # steps whose rows are sorted together where rows are not packed


def effective_batch_size(settings: TrainingSettings) -> int:
    return settings.batch_size * settings.gradient_accumulation


def group_evenly(lengths: list[int], size: int, chance: random.Random) -> list[list[int]]:
    """Rows by step, with as many tokens in each as can be: then all steps fill the same shape. A shorter step is last.

    Rows are cut into `size` layers by length, and each layer gives a row to each step: its longest to the emptiest.
    """
    order = list(range(len(lengths)))
    chance.shuffle(order)
    count = len(order) // size
    rest = order[count * size :]
    near = {row: lengths[row] * chance.uniform(1 - MIXED, 1 + MIXED) for row in order[: count * size]}
    layered = sorted(near, key=near.__getitem__, reverse=True)
    steps: list[list[int]] = [[] for _ in range(count)]
    held = [0] * count
    for layer in range(0, count * size, count or 1):
        longest_first = sorted(layered[layer : layer + count], key=lambda row: -lengths[row])
        for step, row in zip(sorted(range(count), key=held.__getitem__), longest_first, strict=True):
            steps[step].append(row)
            held[step] += lengths[row]
    return [*steps, rest] if rest else steps


def group_alike(lengths: list[int], size: int, chance: random.Random) -> list[list[int]]:
    """Rows by step, those of like length together: not packed, each is padded to the longest beside it."""
    order = list(range(len(lengths)))
    chance.shuffle(order)
    rest = order[len(order) // size * size :]
    steps = []
    for start in range(0, len(order) - len(rest), LIKE_LENGTH * size):
        part = sorted(order[start : min(start + LIKE_LENGTH * size, len(order) - len(rest))], key=lambda row: -lengths[row])
        steps += [part[at : at + size] for at in range(0, len(part), size)]
    return [*steps, rest] if rest else steps


class Steps:
    """The rows of each optimizer step, by epoch: a function of the rows' lengths, the effective batch size and the seed."""

    def __init__(self, lengths: Iterable[int], settings: TrainingSettings, packed: bool):
        self.lengths = list(lengths)  # a data set's column takes ten times as long to read from
        self.seed, size = settings.seed, effective_batch_size(settings)
        self.per_epoch = math.ceil(len(self.lengths) / size)
        epochs = math.ceil(settings.max_steps / self.per_epoch if settings.max_steps else float(settings.num_epochs))
        group = group_evenly if packed else group_alike
        numbers = range(min(epochs, GROUPINGS))
        self.groupings = [group(self.lengths, size, random.Random(f"{self.seed} {number}")) for number in numbers]

    @functools.lru_cache(maxsize=2)  # noqa: B019  # it lives as long as the run
    def of_epoch(self, epoch: int) -> list[list[int]]:
        """In random order, but a step that is short of rows last."""
        *steps, last = self.groupings[epoch % len(self.groupings)]
        short = [last] if len(last) < len(steps[0] if steps else last) else []
        steps += [] if short else [last]
        random.Random(f"{self.seed} order {epoch}").shuffle(steps)
        return steps + short

    def rows(self, number: int) -> list[int]:
        """Of the step that comes after so many others."""
        epoch, at = divmod(number, self.per_epoch)
        return self.of_epoch(epoch)[at]

    def tokens(self, number: int) -> int:
        return self.held(self.rows(number))

    def spread_length(self, sequences: int) -> int:
        """Tokens that a sequence must have, so that each step's rows go into so many."""
        steps = (step for grouping in self.groupings for step in grouping)
        return max(max(self.held(sequence) for sequence in spread(step, self.lengths, sequences)) for step in steps)

    def held(self, sequence: list[int]) -> int:
        return sum(self.lengths[row] for row in sequence)


def spread(rows: list[int], lengths: list[int], sequences: int) -> list[list[int]]:
    """Rows over so many sequences, the longest of which is short: the longest row first, each where least lies."""
    found: list[list[int]] = [[] for _ in range(sequences)]
    held = [(0, number) for number in range(sequences)]
    for row in sorted(rows, key=lambda row: -lengths[row]):
        tokens, number = held[0]
        found[number].append(row)
        heapq.heapreplace(held, (tokens + lengths[row], number))
    return found
