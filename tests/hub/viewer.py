"""The dataset viewer, as far as small JSON Lines, JSON, CSV and Parquet files go."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from . import errors
from .access import find_for_content
from .store import Blob, Repo

CONFIG = "default"
FIRST_ROWS = 100
SPLIT_NAMES = {"train": "train", "test": "test", "eval": "test", "validation": "validation", "valid": "validation"}


def read_rows(path: str, blob: Blob) -> list[dict] | None:
    """The rows of a data file; None if it is none."""
    match Path(path).suffix:
        case ".jsonl":
            return [json.loads(line) for line in blob.read().splitlines() if line.strip()]
        case ".json":
            return json.loads(blob.read())
        case ".csv":
            return list(csv.DictReader(io.StringIO(blob.read().decode())))
        case ".parquet":
            return pyarrow.parquet.read_table(blob.path).to_pylist()
    return None


def split_of(path: str) -> str:
    """The split that a file's name tells, `train` by default."""
    words = re.split(r"[^a-z]+", path.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "train")


def rows_by_split(repo: Repo) -> dict[str, list[dict]]:
    splits: dict[str, list[dict]] = {}
    for path, file in sorted(repo.head.files.items()):
        rows = read_rows(path, file.blob)
        if rows is not None:
            splits.setdefault(split_of(path), []).extend(rows)
    if not splits:
        raise errors.HubError(422, "The dataset is empty.", "EmptyDatasetError")
    return splits


def feature(value: object) -> dict:
    """A column's type, from one value."""
    if isinstance(value, list):
        return {"feature": feature(value[0] if value else None), "_type": "List"}
    if isinstance(value, dict):
        return {key: feature(item) for key, item in value.items()}
    names = {bool: "bool", int: "int64", float: "float64", str: "string", type(None): "null"}
    return {"dtype": names.get(type(value), "string"), "_type": "Value"}


def features(rows: list[dict]) -> dict:
    return {name: feature(value) for name, value in rows[0].items()} if rows else {}


def find(request: Request) -> Repo:
    request.path_params.update(kind="datasets", repo=request.query_params["dataset"])
    return find_for_content(request)


def is_valid(request: Request) -> Response:
    find(request)
    return JSONResponse({"preview": True, "viewer": True, "search": True, "filter": True, "statistics": True})


def splits(request: Request) -> Response:
    repo = find(request)
    entries = [{"dataset": repo.id, "config": CONFIG, "split": name} for name in rows_by_split(repo)]
    return JSONResponse({"splits": entries, "pending": [], "failed": []})


def size(request: Request) -> Response:
    repo = find(request)
    split_sizes: list[dict[str, Any]] = []
    for name, rows in rows_by_split(repo).items():
        count = sum(len(json.dumps(row, default=str)) for row in rows)
        counts = {"num_bytes_parquet_files": count, "num_bytes_memory": count, "num_rows": len(rows)}
        counts["num_columns"] = len(features(rows))
        split_sizes.append({"dataset": repo.id, "config": CONFIG, "split": name, **counts, "estimated_num_rows": None})
    summed = ("num_bytes_parquet_files", "num_bytes_memory", "num_rows")
    totals = {key: sum(entry[key] for entry in split_sizes) for key in summed} | {"estimated_num_rows": None}
    config = {"dataset": repo.id, "config": CONFIG, "num_columns": split_sizes[0]["num_columns"], **totals}
    sizes = {"dataset": {"dataset": repo.id, **totals}, "configs": [config], "splits": split_sizes}
    return JSONResponse({"size": sizes, "pending": [], "failed": [], "partial": False})


def first_rows(request: Request) -> Response:
    repo = find(request)
    query = request.query_params
    rows = rows_by_split(repo).get(query["split"])
    if rows is None or query.get("config", CONFIG) != CONFIG:
        raise errors.HubError(404, "Not found.", "SplitNotFoundError")
    columns = [{"feature_idx": index, "name": name, "type": kind} for index, (name, kind) in enumerate(features(rows).items())]
    shown = [{"row_idx": index, "row": row, "truncated_cells": []} for index, row in enumerate(rows[:FIRST_ROWS])]
    answer = {"dataset": repo.id, "config": CONFIG, "split": query["split"], "features": columns, "rows": shown}
    return JSONResponse({**answer, "truncated": len(rows) > FIRST_ROWS})


routes = [Route("/is-valid", is_valid), Route("/splits", splits), Route("/size", size), Route("/first-rows", first_rows)]
