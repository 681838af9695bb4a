"""The output repository: opened before anything is paid for."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from .adapter import SETTINGS_FILE
from .checkpoints import LAST_CHECKPOINT, lineage_of
from .push import is_refused
from .report import Stop
from .run import run_facts, this_run
from .settings import ResultSettings, TrainingSettings

OPEN_PAUSES_S = (5, 20, 60)

Begun = TypeVar("Begun")


def open_repository(settings: TrainingSettings) -> tuple[Any, bool]:
    """Create the output repository and make its first commit, so that a push that cannot work fails now, not at the end.

    The client (None without a repository), and whether to resume: asked for, or the platform started this job again.
    """
    api = hub_client()
    if not settings.output_repo:
        require_no_job()
        return None, settings.resume

    def begin() -> bool:
        resume = settings.resume or is_restarted(api, settings)
        begin_repository(api, replace(settings, resume=resume))
        return resume

    return api, open_patiently(settings.output_repo, begin)


def hub_client() -> Any:
    """The Hub's client, which gives up on an answer that does not come."""
    from huggingface_hub import HfApi, set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def client() -> Any:
        made = default_client_factory()
        made.event_hooks["request"].append(limit)
        return made

    def limit(request: Any) -> None:  # where a call sets no timeout the client waits for ever, on a paid machine
        request.extensions["timeout"] = {part: s or HUB_TIMEOUT_S for part, s in request.extensions["timeout"].items()}

    set_client_factory(client)
    return HfApi()


def require_no_job() -> None:
    """Raises Stop on a machine whose disk is gone when the job ends."""
    if os.environ.get("JOB_ID"):
        raise Stop(
            "no_output_repo",
            "A job's disk is gone when it ends, and no repository is named for the result.",
            "Pass --output-repo YOU/NAME.",
        )


def open_patiently(name: str, begin: Callable[[], Begun]) -> Begun:
    """What begin, which makes a repository's first commit, returns. Raises Stop where the Hub refuses it, or is not there."""
    from httpx import HTTPError
    from huggingface_hub.errors import LocalEntryNotFoundError

    for pause in (*OPEN_PAUSES_S, None):
        try:
            return begin()
        except (HTTPError, LocalEntryNotFoundError) as error:
            if is_refused(error):
                raise Stop(
                    "push_denied",
                    f"{name} cannot be written to: {error}",
                    "Use a token with write permission for this owner (https://huggingface.co/settings/tokens).",
                ) from error
            if pause is None:
                fix = "Submit the same command again in some minutes."
                raise Stop("hub_unreachable", f"{name} cannot be opened: {error}", fix) from error
            time.sleep(pause)
    raise AssertionError("the last pause ends the loop")


def begin_repository(api: Any, settings: TrainingSettings) -> None:
    """The first commit. Raises Stop where the repository is something else's or public, and what the client raises.

    A new run takes an earlier one's last-checkpoint away, so that no --resume finds it; it stays in the history.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    api.create_repo(settings.output_repo, private=not settings.public, exist_ok=True)
    files = api.list_repo_files(settings.output_repo)
    if {"config.json", "adapter_config.json"} & set(files) == {"config.json"}:
        raise Stop(
            "name_taken",
            f"{settings.output_repo} holds a whole model, and the adapter would be mixed with it.",
            "Name another --output-repo.",
        )
    require_private(api.repo_info(settings.output_repo), settings)
    began = CommitOperationAdd(SETTINGS_FILE, json.dumps(asdict(settings), indent=1).encode())
    old = any(name.startswith(f"{LAST_CHECKPOINT}/") for name in files) and not settings.resume
    removed = [CommitOperationDelete(f"{LAST_CHECKPOINT}/", is_folder=True)] if old else []
    api.create_commit(settings.output_repo, [began, *removed], commit_message="Training begins")


def require_private(found: Any, settings: ResultSettings) -> None:
    """Raises Stop where a repository that was there before is public, and --public was not passed."""
    if not settings.public and found.private is False:
        raise Stop(
            "public_repository",
            f"{settings.output_repo} is public: everybody would see the result, its card and what the card quotes.",
            "Name another --output-repo, make this one private in its settings, or pass --public.",
        )


def is_restarted(api: Any, settings: TrainingSettings) -> bool:
    """Whether the platform started this job before (--attempts): its own checkpoint is in the repository then.

    Such a start has the arguments of the first one, so that nothing but this tells them apart.
    """
    facts = run_facts()
    if not settings.output_repo or settings.resume or facts.get("attempts", 1) < 2 or not facts.get("plan_id"):
        return False
    from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError

    try:
        path = api.hf_hub_download(settings.output_repo, f"{LAST_CHECKPOINT}/{SETTINGS_FILE}")
    except (RemoteEntryNotFoundError, RepositoryNotFoundError):
        return False
    return lineage_of(Path(path).parent).get("run") == this_run()


HUB_TIMEOUT_S = 120  # for one piece of an answer, not for a whole upload
