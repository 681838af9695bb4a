"""Models, data sets and Spaces: information, trees, commits, LFS, and the files themselves."""

import json
import re
import struct
from collections import Counter
from collections.abc import Callable
from math import prod
from urllib.parse import parse_qs

import yaml
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from . import errors
from .access import can_read, find, find_for_content, find_for_writing, is_true, repo_url, require_write
from .accounts import object_id
from .store import Blob, Commit, File, Repo, Tree, git_oid, iso
from .uploads import commit, lfs_batch, lfs_upload, preupload, validate_yaml, xet_token


def text_like(pattern: str) -> Convertor[str]:
    """A path parameter that stays text."""

    class Text(Convertor[str]):
        regex = pattern

        def convert(self, value: str) -> str:
            return value

        def to_string(self, value: str) -> str:
            return value

    return Text()


register_url_convertor("kind", text_like("models|datasets|spaces"))
register_url_convertor("repo", text_like("[^/]+/[^/]+"))
register_url_convertor("revision", text_like("refs/[^/]+/[^/]+|[^/]+"))
register_url_convertor("what", text_like("branch|tag"))


# ---------------------------------------------------------------- information


def read_safetensors_header(file: File) -> dict:
    with file.blob.path.open("rb") as stream:
        (size,) = struct.unpack("<Q", stream.read(8))
        return json.loads(stream.read(size))


def safetensors_info(files: Tree) -> dict | None:
    """The number of parameters per type, from the headers of the model's own weights."""
    parameters: Counter[str] = Counter()
    for path, file in files.items():
        if re.fullmatch(r"model(-\d+-of-\d+)?\.safetensors", path):
            for name, tensor in read_safetensors_header(file).items():
                if name != "__metadata__":
                    parameters[tensor["dtype"]] += prod(tensor["shape"])
    return {"parameters": dict(parameters), "total": parameters.total()} if parameters else None


def card_data(files: Tree) -> dict:
    """The YAML at the head of the README."""
    if readme := files.get("README.md"):
        text = readme.blob.read().decode(errors="replace")
        if match := re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL):
            data = yaml.safe_load(match[1])
            return data if isinstance(data, dict) else {}
    return {}


def model_config(files: Tree) -> dict | None:
    """The part of the configuration files that the Hub shows."""
    if "config.json" not in files:
        return None
    config = json.loads(files["config.json"].blob.read())
    result = {key: config[key] for key in ("architectures", "model_type", "quantization_config") if key in config}
    if tokenizer := files.get("tokenizer_config.json"):
        settings = json.loads(tokenizer.blob.read())
        wanted = ("bos_token", "eos_token", "pad_token", "unk_token", "chat_template")
        result["tokenizer_config"] = {key: settings[key] for key in wanted if key in settings}
    if template := files.get("chat_template.jinja"):
        result["chat_template_jinja"] = template.blob.read().decode()
    return result


def tags(card: dict, files: Tree) -> list[str]:
    result = list(card.get("tags") or [])
    if "config.json" in files:
        result.append("transformers")
    if any(path.endswith(".safetensors") for path in files):
        result.append("safetensors")
    if license_name := card.get("license"):
        result.append(f"license:{license_name}")
    return result


def sibling(path: str, file: File, with_blob: bool) -> dict:
    result: dict = {"rfilename": path}
    if with_blob:
        result |= {"size": file.blob.size, "blobId": file.oid}
        if file.lfs:
            result["lfs"] = {"sha256": file.blob.sha256, "size": file.blob.size, "pointerSize": len(file.pointer)}
    return result


def repo_info(repo: Repo, commit: Commit, *, blobs: bool = False, security: bool = False) -> dict:
    """Everything the Hub tells about a repository at a commit."""
    files = commit.files
    card = card_data(files)
    info = {
        "_id": object_id(repo.type, repo.id),
        "id": repo.id,
        "author": repo.namespace,
        "sha": commit.sha,
        "createdAt": iso(repo.created),
        "lastModified": iso(commit.time),
        "private": repo.private,
        "gated": repo.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": tags(card, files),
        "cardData": card,
        "siblings": [sibling(path, file, blobs) for path, file in sorted(files.items())],
        "usedStorage": sum(file.blob.size for file in files.values()),
    }
    if repo.type == "model":
        info |= model_info(repo, card, files)
    if security:
        info["securityRepoStatus"] = {"scansDone": True, "filesWithIssues": []}
    return info


def model_info(repo: Repo, card: dict, files: Tree) -> dict:
    optional = {
        "config": model_config(files),
        "safetensors": safetensors_info(files),
        "library_name": card.get("library_name") or ("transformers" if "config.json" in files else None),
        "pipeline_tag": card.get("pipeline_tag"),
    }
    return {"modelId": repo.id, **{key: value for key, value in optional.items() if value is not None}}


def get_info(request: Request) -> Response:
    repo = find(request)
    commit = repo.at(request.path_params.get("revision", "main"))
    query = request.query_params
    info = repo_info(repo, commit, blobs="blobs" in query, security="securityStatus" in query)
    if expand := query.getlist("expand") + query.getlist("expand[]"):
        info = {key: value for key, value in info.items() if key in ("_id", "id", *expand)}
    return JSONResponse(info)


def list_repos(request: Request) -> Response:
    hub = request.app.state.hub
    token = hub.accounts.authenticate(request)
    repo_type = request.path_params["kind"].removesuffix("s")
    search, author = (request.query_params.get(name, "").lower() for name in ("search", "author"))
    limit = int(request.query_params.get("limit", 1000))
    found = [
        repo_info(repo, repo.head)
        for (kind, repo_id), repo in hub.store.repos.items()
        if kind == repo_type and search in repo_id.lower() and can_read(token, repo)
        if not author or repo.namespace.lower() == author
    ]
    return JSONResponse(found[:limit])


# ---------------------------------------------------------------- trees, references, history


def commit_entry(commit: Commit) -> dict:
    return {"id": commit.sha, "title": commit.title, "date": iso(commit.time)}


def file_entry(path: str, file: File) -> dict:
    entry = {"type": "file", "oid": file.oid, "size": file.blob.size, "path": path}
    if file.lfs:
        entry["lfs"] = {"oid": file.blob.sha256, "size": file.blob.size, "pointerSize": len(file.pointer)}
        entry["xetHash"] = file.blob.xet_hash
    return entry


def folder_entry(path: str) -> dict:
    return {"type": "directory", "oid": git_oid(path.encode()), "size": 0, "path": path}


def parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


def tree_entries(files: Tree, below: str, recursive: bool) -> list[dict]:
    """Files and folders in a folder, or in all of its folders too."""
    prefix = f"{below}/" if below else ""
    inside = {path: file for path, file in files.items() if path.startswith(prefix)}
    folders = {folder for path in inside for folder in parents(path) if folder.startswith(prefix)}
    if below and not inside:
        raise errors.entry_not_found()
    entries = {folder: folder_entry(folder) for folder in folders}
    entries |= {path: file_entry(path, file) for path, file in inside.items()}
    return [entry for path, entry in sorted(entries.items()) if recursive or "/" not in path.removeprefix(prefix)]


def expanded(entries: list[dict], commit: Commit) -> list[dict]:
    """Entries with their last commit (here always the current one) and the result of the scans."""
    scan = {"status": "safe", "avScan": None, "pickleImportScan": None}
    return [{**entry, "lastCommit": commit_entry(commit), "securityFileStatus": scan} for entry in entries]


def get_tree(request: Request) -> Response:
    repo = find_for_content(request)
    commit = repo.at(request.path_params["revision"])
    folder = request.path_params.get("path", "").strip("/")
    entries = tree_entries(commit.files, folder, is_true(request.query_params.get("recursive")))
    if is_true(request.query_params.get("expand")):
        entries = expanded(entries, commit)
    return JSONResponse(entries)


def get_paths_info(request: Request) -> Response:
    repo = find_for_content(request)
    commit = repo.at(request.path_params["revision"])
    form = parse_qs(request.state.body.decode())
    everything = {entry["path"]: entry for entry in tree_entries(commit.files, "", recursive=True)}
    entries = [everything[path] for path in form.get("paths", []) if path in everything]
    if is_true(form.get("expand", ["false"])[0]):
        entries = expanded(entries, commit)
    return JSONResponse(entries)


def get_refs(request: Request) -> Response:
    repo = find(request)

    def entries(prefix: str, references: dict[str, str]) -> list[dict]:
        return [{"name": name, "ref": prefix + name, "targetCommit": sha} for name, sha in references.items()]

    answer = {"branches": entries("refs/heads/", repo.branches), "tags": entries("refs/tags/", repo.tags), "converts": []}
    if "include_prs" in request.query_params:
        answer["pullRequests"] = entries("", repo.pull_requests)
    return JSONResponse(answer)


def get_commits(request: Request) -> Response:
    commits = find(request).history(request.path_params["revision"])
    return JSONResponse(
        [{**commit_entry(commit), "message": commit.message, "authors": [{"user": commit.author}]} for commit in commits]
    )


def edit_reference(request: Request) -> Response:
    """Create or delete a branch or a tag."""
    repo = find_for_writing(request)
    name, is_branch = request.path_params["name"], request.path_params["what"] == "branch"
    references = repo.branches if is_branch else repo.tags
    if request.method == "DELETE":
        if name not in references:
            raise errors.revision_not_found(name)
        del references[name]
        return Response(status_code=200)
    if is_branch:
        start = json.loads(request.state.body or "{}").get("startingPoint", "main")
    else:
        name, start = json.loads(request.state.body)["tag"], name
    with request.app.state.hub.store.lock:  # of two at once, the second is refused
        if name in references:
            raise errors.HubError(409, f"Reference already exists: {name}")
        references[name] = repo.at(start).sha
    return JSONResponse({}, 201)


# ---------------------------------------------------------------- life of a repository


def whose(request: Request, body: dict) -> str:
    """The full id of the repository that a request body names."""
    if "/" in body["name"]:
        return body["name"]
    namespace = body.get("organization") or request.app.state.hub.accounts.require(request).user.name
    return f"{namespace}/{body['name']}"


def create(request: Request) -> Response:
    hub = request.app.state.hub
    body = json.loads(request.state.body)
    token = hub.accounts.require(request)
    repo_type, repo_id = body.get("type", "model"), whose(request, body)
    require_write(token, repo_id.split("/")[0])
    url = repo_url(request, repo_type, repo_id)
    with hub.store.lock:
        if (repo_type, repo_id) in hub.store.repos:
            message = f"You already created this {repo_type} repo: {repo_id}"
            return JSONResponse({"error": message, "url": url}, 409, {"X-Error-Message": message})
        private = bool(body.get("private")) or body.get("visibility") == "private"
        hub.store.create_repo(repo_type, repo_id, private=private)
    return JSONResponse({"url": url, "name": repo_id, "id": object_id(repo_type, repo_id)})


def delete(request: Request) -> Response:
    hub = request.app.state.hub
    body = json.loads(request.state.body)
    repo_type, repo_id = body.get("type", "model"), whose(request, body)
    token = hub.accounts.require(request)
    if (repo_type, repo_id) not in hub.store.repos:
        raise errors.repo_not_found(logged_in=True)
    require_write(token, repo_id.split("/")[0])
    del hub.store.repos[repo_type, repo_id]
    return Response()


def change_settings(request: Request) -> Response:
    repo = find_for_writing(request)
    body = json.loads(request.state.body)
    if "private" in body or "visibility" in body:
        repo.private = bool(body.get("private")) or body.get("visibility") == "private"
    repo.gated = body.get("gated", repo.gated)
    return JSONResponse({"private": repo.private, "gated": repo.gated})


def auth_check(request: Request) -> Response:
    find_for_content(request)
    return Response()


def auth_check_write(request: Request) -> Response:
    find_for_writing(request)
    return Response()


# ---------------------------------------------------------------- files


def xet_headers(blob: Blob, route: str) -> dict[str, str]:
    """What tells a client that it may fetch a file by Xet, and at which URL it gets the token for that."""
    return {"X-Xet-Hash": blob.xet_hash, "X-Xet-Refresh-Route": route, "Link": f'<{route}>; rel="xet-auth"'}


def resolve(request: Request) -> Response:
    """A file's bytes. The real Hub redirects for large ones; here all headers are on one answer."""
    repo = find_for_content(request)
    found = repo.at(request.path_params["revision"])
    file = found.files.get(request.path_params["path"])
    if file is None:
        error = errors.handle(request, errors.entry_not_found())
        error.headers["X-Repo-Commit"] = found.sha
        return error
    headers = {"X-Repo-Commit": found.sha, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
    if file.lfs:
        headers |= {"X-Linked-ETag": f'"{file.etag}"', "X-Linked-Size": str(file.blob.size)}
        route = f"{request.app.state.hub.url}/api/{repo.type}s/{repo.id}/xet-read-token/{found.sha}"
        headers |= xet_headers(file.blob, route)
    return FileResponse(file.blob.path, headers=headers, media_type="application/octet-stream")


def for_model(endpoint: Callable[[Request], Response]) -> Callable[[Request], Response]:
    """The same endpoint under a path that does not say `models`."""

    def wrapped(request: Request) -> Response:
        request.path_params["kind"] = "models"
        return endpoint(request)

    return wrapped


REPO = "/api/{kind:kind}/{repo:repo}"

routes = [
    Route("/api/repos/create", create, methods=["POST"]),
    Route("/api/repos/delete", delete, methods=["DELETE"]),
    Route("/api/validate-yaml", validate_yaml, methods=["POST"]),
    Route("/api/{kind:kind}", list_repos),
    Route(REPO, get_info),
    Route(REPO + "/revision/{revision:revision}", get_info),
    Route(REPO + "/tree/{revision:revision}", get_tree),
    Route(REPO + "/tree/{revision:revision}/{path:path}", get_tree),
    Route(REPO + "/paths-info/{revision:revision}", get_paths_info, methods=["POST"]),
    Route(REPO + "/refs", get_refs),
    Route(REPO + "/commits/{revision:revision}", get_commits),
    Route(REPO + "/{what:what}/{name:path}", edit_reference, methods=["POST", "DELETE"]),
    Route(REPO + "/settings", change_settings, methods=["PUT"]),
    Route(REPO + "/auth-check", auth_check),
    Route(REPO + "/auth-check/write", auth_check_write),
    Route(REPO + "/preupload/{revision:revision}", preupload, methods=["POST"]),
    Route(REPO + "/commit/{revision:revision}", commit, methods=["POST"]),
    Route(REPO + "/xet-{scope}-token/{revision:revision}", xet_token),
    Route("/lfs/{oid}", lfs_upload, methods=["PUT"]),
    Route("/{kind:kind}/{repo:repo}.git/info/lfs/objects/batch", lfs_batch, methods=["POST"]),
    Route("/{repo:repo}.git/info/lfs/objects/batch", for_model(lfs_batch), methods=["POST"]),
    Route("/{kind:kind}/{repo:repo}/resolve/{revision:revision}/{path:path}", resolve),
    Route("/{repo:repo}/resolve/{revision:revision}/{path:path}", for_model(resolve)),
]
