"""The data set: configuration, split, revision, rows, and which of them are held out."""

from __future__ import annotations

import functools
import math
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from .files import file_digest, file_rows, local_file, scan_file
from .json_lines import require_no_null, require_sound_starts
from .report import Stop
from .settings import DatasetSettings, SplitSettings


def choose(kind: str, wanted: str, available: list[str], preferred: str) -> str:
    """The configuration or split to use: the one asked for, the usual one, or the only one. Raises Stop."""
    if wanted in available:
        return wanted
    flag = "--dataset-" + kind
    if wanted:
        raise Stop(
            f"unknown_{kind}",
            f"The data set has no {kind} {wanted!r}; it has: {', '.join(available)}.",
            f"Pass {flag} {shlex.quote(available[0])}.",
        )
    if preferred in available or len(available) == 1:
        return preferred if preferred in available else available[0]
    raise Stop(
        f"{kind}_needed",
        f"The data set has more than one {kind}: {', '.join(available)}.",
        f"Pass one of them: {flag} {shlex.quote(available[0])}.",
    )


def load_rows(settings: DatasetSettings, streaming: bool = False, first: float = math.inf) -> Any:
    """The data set's rows (a datasets.Dataset, or an IterableDataset when streaming, of which so many will be read).

    Raises Stop.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    if (file := local_file(settings)) and not streaming:
        return load_file(file, settings.dataset_config)
    try:
        require_sound = functools.partial(require_sound_starts, rows=first) if streaming else require_no_null
        return load_dataset(**data_source(settings, require_sound), streaming=streaming)
    except Stop:
        raise
    except DatasetNotFoundError as error:
        raise Stop(
            "dataset_not_found",
            f"The data set {settings.dataset} cannot be found: {error}",
            "Correct the id; for a private or gated one, ask for access and log in with `hf auth login`.",
        ) from error
    except Exception as error:  # each file format has its own errors: an empty file, a broken line, a wrong type
        raise unreadable(settings, error) from error


def load_file(file: Path, sheet: str) -> Any:
    """A local file's rows as a Dataset of text: no type is inferred, so rows may differ as they like. Raises Stop."""
    from datasets import Dataset, Features, Value

    features = Features({name: Value("string") for name in scan_file(file, 0, sheet).columns})
    # The digest makes a file that has changed another data set to the cache.
    known = {"path": str(file), "sheet": sheet, "digest": file_digest(file)}
    return Dataset.from_generator(digested_rows, features=features, gen_kwargs=known)


def digested_rows(path: str, sheet: str, digest: str) -> Iterator[dict[str, str | None]]:
    yield from file_rows(Path(path), sheet)


def unreadable(settings: DatasetSettings, error: Exception) -> Stop:
    return Stop(
        "dataset_unreadable",
        f"The data set {settings.dataset} cannot be read: {type(error).__name__}: {error}",
        "Write its file again: it is empty, cut off, or not of the kind that its name says."
        if Path(os.path.expanduser(settings.dataset)).is_file()
        else "Look at its files: an empty one, or rows whose columns differ, cannot be loaded. A copy of them as one local "
        ".jsonl file is read line by line, and the line that is wrong is named.",
    )


def data_source(
    settings: DatasetSettings, require_sound: Callable[[Iterable[list[str]]], None] = lambda splits: None
) -> dict[str, Any]:
    """Arguments of load_dataset for a local Parquet file, a local folder or a data set on the Hub.

    require_sound is called with each split's JSON files before datasets reads the first byte of one.
    """
    from datasets import get_dataset_config_names, get_dataset_split_names, load_dataset_builder

    path = Path(os.path.expanduser(settings.dataset))
    if path.is_file():
        return {"path": "parquet", "data_files": str(path), "split": "train"}
    if settings.dataset.startswith((".", "/", "~")) and not path.exists():
        raise Stop("dataset_not_found", f"There is no file or folder {settings.dataset}.", "Correct --dataset.")
    revision = settings.dataset_revision or None
    names = get_dataset_config_names(settings.dataset, revision=revision)
    config = choose("config", settings.dataset_config, names, "default")
    builder = load_dataset_builder(settings.dataset, config, revision=revision)
    by_split = getattr(builder.config, "data_files", None) or {}
    json_files = lambda files: [str(file) for file in files if re.search(r"\.jsonl?(\.\w+)?$", str(file))]  # noqa: E731
    require_sound(map(json_files, by_split.values()))
    # As get_dataset_split_names finds them, which would resolve all files a third time.
    splits = list(map(str, builder.info.splits or by_split))
    splits = splits or get_dataset_split_names(settings.dataset, config, revision=revision)
    split = choose("split", settings.dataset_split, splits, "train")
    return {"path": settings.dataset, "name": config, "split": split, "revision": revision}


def data_revision(settings: DatasetSettings) -> str | None:
    """The data set's commit on the Hub, or a local file's sha256; what was asked for where the Hub does not say."""
    from huggingface_hub import HfApi

    if (path := Path(os.path.expanduser(settings.dataset))).is_file():
        return file_digest(path)
    revision = settings.dataset_revision or None
    try:
        return HfApi().dataset_info(settings.dataset, revision=revision).sha
    except Exception:  # a local folder, or rows from the cache of a machine without a network: they are there all the same
        return revision


def held_out_of(rows: int, settings: SplitSettings) -> int:
    """How many of so many rows, --num-samples taken off, are held out for validation."""
    return max(min(round(rows * settings.eval_split), settings.max_eval_rows, rows - 1), 0)


def split_rows(rows: Any, settings: SplitSettings) -> tuple[Any, Any]:
    """Training rows and, where asked for, evaluation rows (else None). Raises Stop when nothing is left to train on."""
    if settings.num_samples:
        rows = rows.select(range(min(settings.num_samples, len(rows))))
    if len(rows) == 0:
        raise Stop("no_rows", "The split of the data set has no rows.", "Choose another with --dataset-split.")
    if not (held_out := held_out_of(len(rows), settings)):
        return rows, None
    parts = rows.train_test_split(test_size=held_out, seed=settings.seed)
    return parts["train"], parts["test"]
