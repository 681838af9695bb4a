"""Buckets: private or public folders of files without history, uploaded and downloaded by Xet."""

import json

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from . import errors
from .access import can_read, is_true, require_write
from .accounts import object_id
from .repos import parents, xet_headers
from .store import Bucket, BucketFile, iso


def full_id(request: Request) -> str:
    """`me` stands for the caller's own namespace."""
    namespace, name = request.path_params["bucket"].split("/")
    if namespace == "me":
        namespace = request.app.state.hub.accounts.require(request).user.name
    return f"{namespace}/{name}"


def find(request: Request) -> Bucket:
    hub = request.app.state.hub
    token = hub.accounts.authenticate(request)
    bucket = hub.store.buckets.get(full_id(request))
    if bucket is None or not can_read(token, bucket):
        raise errors.repo_not_found(logged_in=token is not None)
    return bucket


def find_for_writing(request: Request) -> Bucket:
    bucket = find(request)
    require_write(request.app.state.hub.accounts.require(request), bucket.namespace)
    return bucket


def bucket_info(bucket: Bucket) -> dict:
    return {
        "_id": object_id("bucket", bucket.id),
        "id": bucket.id,
        "private": bucket.private,
        "createdAt": iso(bucket.created),
        "size": sum(file.blob.size for file in bucket.files.values()),
        "totalFiles": len(bucket.files),
    }


def file_entry(path: str, file: BucketFile) -> dict:
    return {
        "type": "file",
        "path": path,
        "size": file.blob.size,
        "xetHash": file.blob.xet_hash,
        "mtime": iso(file.mtime),
        "uploadedAt": iso(file.uploaded),
    }


def create(request: Request) -> Response:
    hub = request.app.state.hub
    bucket_id = full_id(request)
    require_write(hub.accounts.require(request), bucket_id.split("/")[0])
    answer = {"url": f"{hub.url}/buckets/{bucket_id}", "name": bucket_id}
    with hub.store.lock:
        if bucket_id in hub.store.buckets:
            message = f"You already created this bucket: {bucket_id}"
            return JSONResponse({"error": message, **answer}, 409, {"X-Error-Message": message})
        body = json.loads(request.state.body or "{}")
        hub.store.create_bucket(bucket_id, private=bool(body.get("private")) or body.get("visibility") == "private")
    return JSONResponse(answer)


def get_info(request: Request) -> Response:
    return JSONResponse(bucket_info(find(request)))


def delete(request: Request) -> Response:
    bucket = find_for_writing(request)
    del request.app.state.hub.store.buckets[bucket.id]
    return Response()


def list_buckets(request: Request) -> Response:
    hub = request.app.state.hub
    token = hub.accounts.require(request)
    namespace = request.path_params["namespace"]
    namespace = token.user.name if namespace == "me" else namespace
    return JSONResponse(
        [
            bucket_info(bucket)
            for bucket in hub.store.buckets.values()
            if bucket.namespace == namespace and can_read(token, bucket)
        ]
    )


def get_tree(request: Request) -> Response:
    """All files below a prefix, or, when not recursive, the files and folders right below it."""
    bucket = find(request)
    prefix = request.path_params.get("prefix", "")
    files = {path: file for path, file in bucket.files.items() if path.startswith(prefix)}
    if is_true(request.query_params.get("recursive")):
        return JSONResponse([file_entry(path, file) for path, file in sorted(files.items())])
    level = prefix.rstrip("/").count("/") + (1 if prefix else 0)
    folders = {folder for path in files for folder in parents(path) if folder.count("/") == level}
    entries = [{"type": "directory", "path": folder} for folder in sorted(folders)]
    entries += [file_entry(path, file) for path, file in sorted(files.items()) if path.count("/") == level]
    return JSONResponse(entries)


def get_paths_info(request: Request) -> Response:
    files = find(request).files
    paths = json.loads(request.state.body)["paths"]
    return JSONResponse([file_entry(path, files[path]) for path in paths if path in files])


def batch(request: Request) -> Response:
    """Add, copy and delete files; what was uploaded is named by its Xet hash."""
    bucket = find_for_writing(request)
    hub = request.app.state.hub
    failed = []
    with hub.store.lock:
        for line in request.state.body.splitlines():
            operation = json.loads(line)
            path = operation["path"]
            if operation["type"] == "deleteFile":
                bucket.files.pop(path, None)
            elif blob := hub.store.blobs.by_xet_hash(operation["xetHash"]):
                bucket.files[path] = BucketFile(blob, operation["mtime"] / 1000)
            else:
                failed.append({"path": path, "error": "Unknown Xet hash"})
    return JSONResponse({"success": not failed, "failed": failed}, 422 if failed else 200)


def xet_token(request: Request) -> Response:
    scope = request.path_params["scope"]
    (find_for_writing if scope == "write" else find)(request)
    hub = request.app.state.hub
    return hub.cas.token(scope, hub.cas_url)


def resolve(request: Request) -> Response:
    bucket = find(request)
    file = bucket.files.get(request.path_params["path"])
    if file is None:
        raise errors.entry_not_found()
    headers = {"ETag": f'"{file.blob.xet_hash}"', "X-Linked-Size": str(file.blob.size)}
    route = f"{request.app.state.hub.url}/api/buckets/{bucket.id}/xet-read-token"
    headers |= xet_headers(file.blob, route)
    return FileResponse(file.blob.path, headers=headers, media_type="application/octet-stream")


BUCKET = "/api/buckets/{bucket:repo}"

routes = [
    Route("/api/buckets/{namespace}", list_buckets),
    Route(BUCKET, create, methods=["POST"]),
    Route(BUCKET, get_info),
    Route(BUCKET, delete, methods=["DELETE"]),
    Route(BUCKET + "/tree", get_tree),
    Route(BUCKET + "/tree/{prefix:path}", get_tree),
    Route(BUCKET + "/paths-info", get_paths_info, methods=["POST"]),
    Route(BUCKET + "/batch", batch, methods=["POST"]),
    Route(BUCKET + "/xet-{scope}-token", xet_token),
    Route("/buckets/{bucket:repo}/resolve/{path:path}", resolve),
]
