"""The rows that are asked, and those that the models were trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from .checkpoints import LINEAGE, newest_in, stored
from .columns import Format
from .contenders import Contender
from .dataset import data_revision, load_rows, split_rows
from .files import FILE_KINDS
from .question_set import read_test_rows, reading_test_set
from .report import Stop, emit
from .settings import EvidenceSettings, SplitSettings
from .table_layout import FindFormat, find_layout, without_media

NO_TEST_ROWS = "Pass --eval-dataset: rows with a question and an answer, which no model here was trained on."


@dataclass(frozen=True)
class TestRows:
    """rows: to ask, read as layout says; train_rows: [] where they are not known. source: where rows come from, in words."""

    rows: Any
    layout: Format
    train_rows: Any
    train_layout: Format
    source: str
    revision: str | None
    train_revision: str | None = None


def find_test_rows(settings: EvidenceSettings, training: Mapping[str, Any], format_of: FindFormat) -> TestRows:
    """The rows of --eval-dataset, or those that the first adapter's training held out. Raises Stop.

    training: that adapter's settings as training_of finds them; its data set is also the default of --dataset.
    """
    trained = split_settings(settings, training)
    reading = with_columns(settings, training)
    if not settings.eval_dataset:
        return rows_held_out(trained, reading, training, format_of)
    rows, layout = read_test_rows(settings, format_of)
    revision = data_revision(reading_test_set(settings))
    try:
        train_rows, train_layout = find_train_rows(trained, reading, format_of)
    except Stop as stop:
        if settings.dataset:
            raise
        message = f"The training rows cannot be read, so a test row that stands among them is not found: {stop.message}"
        emit("warning", code="train_rows_unknown", message=f"{message} Name them with --dataset.")
        return TestRows(rows, layout, [], layout, settings.eval_dataset, revision)
    return TestRows(rows, layout, train_rows, train_layout, settings.eval_dataset, revision, data_revision(trained))


def rows_held_out(
    trained: SplitSettings, reading: EvidenceSettings, training: Mapping[str, Any], format_of: FindFormat
) -> TestRows:
    """The rows that a training held out, by its share and its seed. Raises Stop where those cannot be told."""
    if not training:
        raise Stop("no_test_rows", "No adapter here says which rows were held out from its training.", NO_TEST_ROWS)
    rows, layout = find_train_rows(trained, reading, format_of)
    require_same_rows(trained, training)
    train_rows, test_rows = split_rows(rows, trained)
    if test_rows is None:
        raise Stop("no_test_rows", f"No row of {trained.dataset} was held out from training.", NO_TEST_ROWS)
    revision = data_revision(trained)
    if not str(revision).startswith("sha256:") and not training.get("dataset_revision"):
        message = (
            f"The adapter does not say at which commit {trained.dataset} was: if it has changed, other rows were held out."
        )
        emit("warning", code="rows_not_pinned", message=message)
    return TestRows(test_rows, layout, train_rows, layout, f"held out from {trained.dataset}", revision, revision)


def find_train_rows(trained: SplitSettings, reading: EvidenceSettings, format_of: FindFormat) -> tuple[Any, Format]:
    """All rows that were there for training, and how they are read. Raises Stop."""
    if not trained.dataset:
        raise Stop("no_test_rows", "The training rows are not known, or not on this machine.", NO_TEST_ROWS)
    rows = load_rows(trained)
    return without_media(rows), find_layout(rows, reading, format_of)


def split_settings(settings: EvidenceSettings, training: Mapping[str, Any]) -> SplitSettings:
    """How the training rows are read and split: --dataset and what goes with it, over the adapter's own settings.

    A data set that lay on the machine that trained, and is not here, is no data set.
    """
    known = {
        item.name: training[item.name] for item in fields(SplitSettings) if type(training.get(item.name)) is type(item.default)
    }
    if settings.dataset and settings.dataset != known.get("dataset"):
        known |= {"dataset_config": "", "dataset_revision": ""} | ({} if training else {"dataset_split": ""})
    given = {
        name: value
        for name in ("dataset", "dataset_config", "dataset_split", "dataset_revision")
        if (value := getattr(settings, name))
    }
    made = SplitSettings(**known | given)
    is_path = made.dataset.startswith((".", "/", "~")) or Path(made.dataset).suffix.lower() in FILE_KINDS
    gone = not settings.dataset and is_path and not Path(made.dataset).expanduser().exists()
    return replace(made, dataset="") if gone else made


def require_same_rows(trained: SplitSettings, training: Mapping[str, Any]) -> None:
    """Raises Stop where the file is another one than that which the adapter was trained on: others would be held out."""
    origin = training.get(LINEAGE)
    was = origin.get("data_revision") if isinstance(origin, dict) else None
    now = data_revision(trained)
    if str(was).startswith("sha256:") and str(now).startswith("sha256:") and was != now:
        message = f"{trained.dataset} has changed since the adapter was trained on it, so other rows would be held out."
        raise Stop("rows_changed", message, "Pass the file as it was as --dataset, or test rows as --eval-dataset.")


def with_columns(settings: EvidenceSettings, training: Mapping[str, Any]) -> EvidenceSettings:
    """The settings with the columns of the training, where none are named."""
    if getattr(settings, "prompt_column", ""):
        return settings
    names = [f"{role}_column" for role in ("prompt", "completion", "chosen", "rejected", "label")]
    columns: dict[str, Any] = {name: str(training.get(name) or "") for name in names if hasattr(settings, name)}
    if training.get("loss") == "kto" and "label_column" in columns:
        columns["label_column"] = columns["label_column"] or "label"
    return replace(settings, **columns)


def training_of(contenders: list[Contender]) -> dict[str, Any]:
    """The settings that the first adapter was trained with, as templates/sft.py leaves them there; {} where it does not."""
    for one in contenders:
        if one.adapter and (found := stored(one.adapter) or stored(newest_in(one.adapter / "checkpoints") or one.adapter)):
            return found
    return {}
