"""The files that a job is sent: uploaded from private copies, whose hashes are those that were approved."""

from __future__ import annotations

import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, Volume, constants

from ..errors import APPROVAL, HUB, UserError
from ..lookup.client import asking
from ..output import diagnostics
from ..redaction import plain
from ..training.files import sha256_of
from . import records
from .plan import Plan

# As the client's own run_uv_job does it: a folder of this bucket is mounted there, and what the job writes into it is kept.
BUCKET, MOUNT = constants.HF_JOBS_ARTIFACTS_BUCKET_NAME, constants.HF_JOBS_ARTIFACTS_MOUNT_PATH


def send(api: HfApi, plan: Plan) -> tuple[list[str], Volume]:
    """Upload the plan's script and files. The job's command, and the volume on which it finds them. Raises UserError."""
    bucket, folder = f"{plan.namespace}/{BUCKET}", f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
    with copies(plan) as copied:
        names = remote_names([plan.script, *plan.files])
        for path in names:
            size = copied[path].stat().st_size
            diagnostics.print(f"Uploading {path} ({size / 1e6:,.1f} MB) …", markup=False, soft_wrap=True)
        try:
            with asking(f"the files of a job for {plan.namespace}"):
                api.create_bucket(bucket, private=True, exist_ok=True)
                api.batch_bucket_files(bucket, add=[(copied[path], f"{folder}/{name}") for path, name in names.items()])
        except UserError as error:
            if error.problem.code != "hub_garbled":
                raise
            raise upload_failed(error) from error
        except (OSError, ValueError, RuntimeError) as error:  # what the upload raises
            raise upload_failed(error) from error
    diagnostics.print("Uploaded.")
    words = [f"{MOUNT}/{names[word]}" if word in plan.files else word for word in plan.arguments]
    volume = Volume(type="bucket", source=bucket, mount_path=MOUNT, path=folder, read_only=False)
    return [*(plan.runner or ("uv", "run")), f"{MOUNT}/{names[plan.script]}", *words], volume


def upload_failed(error: Exception) -> UserError:
    reason = plain(str(error)).strip().rstrip(".")
    return UserError("upload_failed", f"The script could not be uploaded: {reason}.", "Try again in a minute.", HUB)


@contextmanager
def copies(plan: Plan) -> Iterator[dict[str, Path]]:
    """A copy of the script and of each file, by its path: what changes from now on changes nothing. Raises UserError."""
    folder = records.folder("sent") / plan.plan_id
    shutil.rmtree(folder, ignore_errors=True)  # of a command that was killed
    try:
        copied: dict[str, Path] = {}
        for path, sha256 in hashes(plan).items():
            copied[path] = folder / str(len(copied))
            if not Path(path).is_file():
                raise changed(path)
            with records.writing(copied[path]):
                shutil.copyfile(path, copied[path])
            if sha256_of(copied[path]) != sha256:
                raise changed(path)
        yield copied
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def hashes(plan: Plan) -> dict[str, str]:
    return {plan.script: plan.script_sha256, **plan.files}


def require_unchanged(plan: Plan) -> None:
    """Raises UserError where a file of the plan is no longer what was approved."""
    for path, sha256 in hashes(plan).items():
        if not Path(path).is_file() or sha256_of(path) != sha256:
            raise changed(path)


def changed(path: str) -> UserError:
    return UserError(
        "plan_changed",
        f"What was approved is no longer what would run: {path} has changed since. This command has started no job.",
        "Look at the new plan first: the same command without --approve and --yes.",
        APPROVAL,
    )


def remote_names(paths: list[str]) -> dict[str, str]:
    """A file name for each path, in one folder: two files of one name come from different folders here."""
    names: dict[str, str] = {}
    for path in paths:
        name = re.sub(r"\s", "_", Path(path).name)
        names[path] = f"{len(names)}-{name}" if name in names.values() else name
    return names
