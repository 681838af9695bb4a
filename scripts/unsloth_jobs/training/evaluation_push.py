"""The report on the Hub: a folder of its own and a section of the model card; of what else is there nothing is written."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .evaluation_report import with_section
from .push import PUSH_PAUSES_S, fetching_rescued, is_refused, rescue
from .report import Stop, emit
from .repository import hub_client, open_patiently, require_no_job, require_private
from .run import StopSignal
from .settings import ResultSettings

FOLDER = "evaluation"  # of the repository
CARD = "README.md"
REPORT_FILES = (CARD, "report.json", "answers.jsonl")


def open_for_report(settings: ResultSettings) -> Any:
    """The Hub's client; None without a repository. Its first commit is made now: a push that cannot work fails at once."""
    from huggingface_hub import CommitOperationAdd

    if not settings.output_repo:
        require_no_job()
        return None
    api = hub_client()

    def begin() -> None:
        api.create_repo(settings.output_repo, private=not settings.public, exist_ok=True)
        require_private(api.repo_info(settings.output_repo), settings)
        began = CommitOperationAdd(f"{FOLDER}/settings.json", json.dumps(asdict(settings), indent=1).encode())
        api.create_commit(settings.output_repo, [began], commit_message="Evaluation begins")

    open_patiently(settings.output_repo, begin)
    return api


def push_report(api: Any, settings: ResultSettings, section: str, stop_signal: StopSignal) -> None:
    """The report's files, and the section of the card, in one commit. Raises Stop when they do not get there."""
    if api is None:
        return
    for pause in (*PUSH_PAUSES_S, None):
        try:
            commit_report(api, settings, section)
            emit("pushed", repo=settings.output_repo, url=f"{api.endpoint}/{settings.output_repo}/tree/main/{FOLDER}")
            return
        except Exception as error:  # the network's errors and the Hub's have no ancestor in common
            emit("warning", code="push_failed", message=f"The report: {error}")
            if pause is None or is_refused(error) or not stop_signal.wait(pause):
                raise unpushed_report(settings, error) from error


def commit_report(api: Any, settings: ResultSettings, section: str) -> None:
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.errors import EntryNotFoundError

    repo, folder = settings.output_repo, Path(settings.save_local)
    head = api.repo_info(repo).sha
    try:
        card = Path(api.hf_hub_download(repo, CARD, revision=head)).read_text("utf-8")
    except EntryNotFoundError:
        card = f"# {repo.partition('/')[2]}\n"
    files = [(f"{FOLDER}/{name}", folder / name) for name in REPORT_FILES if (folder / name).is_file()]
    added = [CommitOperationAdd(path, file) for path, file in files]
    added.append(CommitOperationAdd(CARD, with_section(card, section).encode()))
    # parent_commit: where somebody else has written meanwhile, the card is read again
    api.create_commit(repo, added, commit_message="Evaluation", parent_commit=head)


def unpushed_report(settings: ResultSettings, error: Exception) -> Stop:
    code = "push_denied" if is_refused(error) else "push_failed"
    message, folder = f"The report did not reach {settings.output_repo}: {error}", Path(settings.save_local)
    job = os.environ.get("JOB_ID")
    if not job:
        upload = f"hf upload {settings.output_repo} {shlex.quote(str(folder.resolve()))} {FOLDER}"
        return Stop(code, message, f"It is on this disk. With a token that may write there: {upload}")
    if rescue(folder, job):
        return Stop(code, message, fetching_rescued(settings.output_repo, job))
    return Stop(code, message, "Submit the same command again.")
