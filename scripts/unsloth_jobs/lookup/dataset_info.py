"""A data set as the Hub describes it: revision, rows, sizes."""

from __future__ import annotations

import os
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.hf_api import DatasetInfo, RepoFile
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from ..errors import UserError
from .client import LONGEST_NAME, LOOKUP_TIMEOUT_S, asking, endpoint, fetch_or_suggest, require_id

VIEWER_S = 5
MANY_FILES = 1000  # whose sizes are not asked for


# ---- the data set


def fetch_dataset_revision(api: HfApi, name: str, revision: str | None = None) -> str | None:
    """The commit that a data set's revision stands at; None for one on this machine. Raises UserError."""
    require_id(name)
    return None if is_local(name) else dataset_info(api, name, revision).sha


def dataset_info(api: HfApi, name: str, revision: str | None = None) -> DatasetInfo:
    """What the Hub says of a data set that this token can read. Raises UserError."""
    info = fetch_or_suggest(api, "data set", name, lambda: api.dataset_info(name, revision=revision, timeout=LOOKUP_TIMEOUT_S))
    if info.gated:
        with asking(f"data set {name}"):
            api.auth_check(name, repo_type="dataset")
    return info


def viewer_rows(api: HfApi, name: str, config: str, split: str) -> tuple[int, str] | None:
    """Rows of a split by the dataset viewer, and how it knows; None where it does not: it is only a shortcut."""
    server = os.environ.get("HF_DATASETS_SERVER") or endpoint().replace("://", "://datasets-server.")
    try:
        with asking(f"data set {name}"):
            answer = get_session().get(
                f"{server}/size", params={"dataset": name}, headers=build_hf_headers(token=api.token), timeout=VIEWER_S
            )
            hf_raise_for_status(answer)
            splits = answer.json()["size"]["splits"]
    except (UserError, ValueError, KeyError, TypeError):
        return None
    counts: dict[str, Any] = next((one for one in splits if (one.get("config"), one.get("split")) == (config, split)), {})
    if counts.get("estimated_num_rows"):
        return counts["estimated_num_rows"], "estimated"
    return (counts["num_rows"], "viewer") if counts.get("num_rows") and not answer.json().get("partial") else None


def file_sizes(api: HfApi, name: str, revision: str, urls: list[str]) -> int | None:
    """Bytes of these files of a data set; None where one of them is elsewhere, they are many, or the Hub does not say."""
    paths = [url.partition(f"@{revision}/")[2] for url in urls]
    if not all(paths) or len(paths) > MANY_FILES:
        return None
    try:
        with asking(f"data set {name}"):
            found = api.get_paths_info(name, paths, repo_type="dataset", revision=revision)
    except UserError:
        return None
    sizes = [file.size for file in found if isinstance(file, RepoFile)]
    return sum(sizes) if len(sizes) == len(paths) else None


def is_local(name: str) -> bool:
    """Whether a model's or data set's name is a path here rather than an id on the Hub."""
    return name.startswith((".", "/", "~")) or (len(name) <= LONGEST_NAME and os.path.exists(name))
