"""What is pushed to a repository: preupload, LFS, commits, and the check of a card."""

import base64
import json
import re

import yaml
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from . import errors
from .access import find_for_content, find_for_writing, is_true, repo_url
from .store import Blobs, File, Tree, wants_lfs


def preupload(request: Request) -> Response:
    """Tell for each file whether it goes into the commit itself or has to be uploaded first."""
    repo = find_for_writing(request)
    files = repo.at(request.path_params["revision"]).files
    answers = []
    for wanted in json.loads(request.state.body)["files"]:
        path = wanted["path"]
        lfs = wants_lfs(path, wanted["size"], base64.b64decode(wanted["sample"]))
        answer = {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
        if known := files.get(path):
            answer["oid"] = known.blob.sha256 if known.lfs else known.oid
        answers.append(answer)
    return JSONResponse({"files": answers, "commitOid": repo.head.sha})


def lfs_batch(request: Request) -> Response:
    find_for_writing(request)
    hub = request.app.state.hub
    objects = []
    for wanted in json.loads(request.state.body)["objects"]:
        answer = {"oid": wanted["oid"], "size": wanted["size"]}
        if hub.store.blobs.get(wanted["oid"]) is None:
            answer["actions"] = {"upload": {"href": f"{hub.url}/lfs/{wanted['oid']}"}}
        objects.append(answer)
    return JSONResponse({"transfer": "basic", "objects": objects}, media_type="application/vnd.git-lfs+json")


def lfs_upload(request: Request) -> Response:
    """Takes the place of S3: no token, because the URL would be a signed one."""
    blob = request.app.state.hub.store.blobs.add(request.state.body)
    if blob.sha256 != request.path_params["oid"]:
        raise errors.bad_request("The content does not match its SHA-256")
    return Response()


def apply_operation(blobs: Blobs, files: Tree, key: str, value: dict) -> None:
    """One line of a commit."""
    path = value["path"]
    if key == "file":
        files[path] = File(blobs.add(base64.b64decode(value["content"])), lfs=False)
    elif key == "lfsFile":
        blob = blobs.get(value["oid"])
        if blob is None:
            raise errors.bad_request(f"LFS pointer pointed to a file that does not exist: {path}")
        files[path] = File(blob, lfs=True)
    elif key == "deletedFile":
        if files.pop(path, None) is None:
            raise errors.entry_not_found()
    elif key == "deletedFolder":
        for name in [name for name in files if name.startswith(path.rstrip("/") + "/")]:
            del files[name]
    else:
        raise errors.bad_request(f"Unknown operation: {key}")


def commit(request: Request) -> Response:
    repo = find_for_writing(request)
    hub = request.app.state.hub
    revision = request.path_params["revision"]
    header, *operations = [json.loads(line) for line in request.state.body.splitlines() if line]
    author = hub.accounts.require(request).user.name
    with hub.store.lock:
        parent = repo.at(revision)
        if header["value"].get("parentCommit") not in (None, parent.sha):
            raise errors.HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(parent.files)
        for operation in operations:
            apply_operation(hub.store.blobs, files, operation["key"], operation["value"])
        summary, description = header["value"]["summary"], header["value"].get("description", "")
        new = repo.add_commit(files, title=summary, message=description, author=author, parent=parent.sha)
        url = repo_url(request, repo.type, repo.id)
        answer = {"success": True, "commitOid": new.sha, "commitUrl": f"{url}/commit/{new.sha}", "hookOutput": ""}
        if is_true(request.query_params.get("create_pr")):
            number = len(repo.pull_requests) + 1
            repo.pull_requests[f"refs/pr/{number}"] = new.sha
            answer["pullRequestUrl"] = f"{url}/discussions/{number}"
        else:
            references = repo.pull_requests if revision in repo.pull_requests else repo.branches
            references[revision] = new.sha
    return JSONResponse(answer)


def xet_token(request: Request) -> Response:
    scope = request.path_params["scope"]
    (find_for_writing if scope == "write" else find_for_content)(request)
    hub = request.app.state.hub
    return hub.cas.token(scope, hub.cas_url)


def validate_yaml(request: Request) -> Response:
    """Checks only that the README's metadata is YAML; the Hub also checks what it says."""
    content = json.loads(request.state.body)["content"]
    match = re.match(r"---\r?\n(.*?)\r?\n---", content, re.DOTALL)
    try:
        yaml.safe_load(match[1] if match else "")
    except yaml.YAMLError as error:
        return JSONResponse({"errors": [{"message": str(error)}], "warnings": []}, 400)
    return JSONResponse({"errors": [], "warnings": []})
