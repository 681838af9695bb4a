"""The result on its way to the Hub, and where it is when it does not get there."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path
from typing import Any

from .report import Stop, emit
from .run import StopSignal, run_facts
from .settings import TrainingSettings


def push_folder(api: Any, settings: TrainingSettings, folder: Path, message: str, **options: Any) -> Exception | None:
    """None when the folder has reached the Hub, else what went wrong, as a warning: training, and what is on disk, goes on."""
    from huggingface_hub.errors import RepositoryNotFoundError

    def upload() -> None:
        api.upload_folder(repo_id=settings.output_repo, folder_path=folder, commit_message=message, **options)

    try:
        try:
            upload()
        except RepositoryNotFoundError:  # deleted meanwhile: a result that was paid for is kept all the same
            api.create_repo(settings.output_repo, private=not settings.public, exist_ok=True)
            upload()
    except Exception as error:  # whatever went wrong with the network must not end a paid run
        emit("warning", code="push_failed", message=f"{message}: {error}")
        return error
    return None


def is_refused(error: Exception) -> bool:
    """Whether the Hub said no, and will say so again; a fault in passing is anything else."""
    status = getattr(getattr(error, "response", None), "status_code", 0)
    return 400 <= status < 500 and status not in (408, 409, 412, 429)


PUSH_PAUSES_S = (5, 20, 60, 120, 240, 480)  # a quarter of an hour costs less than the run that would be lost
RESULT_ONLY = ["checkpoints*", "merged/*"]  # what else lies in the folder is not pushed


def push_results(api: Any, settings: TrainingSettings, folder: Path, stop_signal: StopSignal) -> None:
    """The adapter on the Hub. Raises Stop when it does not get there, with where it is and how it can be fetched or sent."""
    if api is None:
        return
    for pause in (*PUSH_PAUSES_S, None):
        error = push_folder(api, settings, folder, "Adapter and card", ignore_patterns=RESULT_ONLY)
        if error is None:
            emit("pushed", repo=settings.output_repo, url=f"{api.endpoint}/{settings.output_repo}")
            return
        if pause is None or is_refused(error) or not stop_signal.wait(pause):
            raise unpushed(settings, folder, error)


def unpushed(settings: TrainingSettings, folder: Path, error: Exception) -> Stop:
    """What to say of a result that the Hub did not take: one command fetches it, sends it, or makes it again."""
    code = "push_denied" if is_refused(error) else "push_failed"
    message, repo = f"The adapter did not reach {settings.output_repo}: {error}", settings.output_repo
    job = os.environ.get("JOB_ID")
    if not job:
        private = "" if settings.public else " --private"
        fix = f"hf upload {repo} {shlex.quote(str(folder.resolve()))} . --exclude 'checkpoints*' --exclude 'merged/*'{private}"
        return Stop(code, message, f"It is on this disk. With a token that may write there: {fix}")
    if rescue(folder, job):
        return Stop(code, message, fetching_rescued(repo, job))
    return Stop(
        code,
        message,
        f"Submit the same command with --resume at its end: it goes on from the last checkpoint in {repo}, if any.",
    )


def fetching_rescued(repo: str, job: str) -> str:
    """How what rescue has kept is fetched."""
    bucket = f"{run_facts().get('namespace') or repo.split('/')[0]}/jobs-artifacts"
    fetch = f"hf buckets sync hf://buckets/{bucket} ./rescued --include '*/rescued-{job}/*'"
    return f"It was saved with the job's files. Fetch it: {fetch}"


def rescue(folder: Path, job: str) -> bool:
    """Copy the result to the bucket that this script came from, which needs no token: it is mounted at /data."""
    data = Path(__file__).resolve().parent
    if data.name != "data":
        return False
    try:
        shutil.copytree(folder, data / f"rescued-{job}", ignore=shutil.ignore_patterns("checkpoints*", "merged"))
    except OSError as error:
        emit("warning", code="rescue_failed", message=str(error))
        return False
    return True
