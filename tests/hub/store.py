"""What the Hub keeps: blobs on disk, and in memory the repositories and buckets that name them."""

import hashlib
import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import hf_xet

from . import errors

RepoType = Literal["model", "dataset", "space"]
Gated = Literal[False, "auto", "manual"]

LFS_THRESHOLD = 10_000_000
LFS_SUFFIXES = {".safetensors", ".bin", ".gguf", ".parquet", ".arrow", ".pt", ".pth", ".onnx", ".zip", ".gz"}
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in sorted(LFS_SUFFIXES)).encode()


def iso(timestamp: float) -> str:
    """A time the way the Hub's JSON writes it."""
    return datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def git_oid(data: bytes) -> str:
    """The id git gives to a blob of these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def wants_lfs(path: str, size: int, sample: bytes) -> bool:
    """Whether the Hub stores such a file outside of git: by suffix, by size, or because it is binary."""
    return Path(path).suffix in LFS_SUFFIXES or size > LFS_THRESHOLD or b"\0" in sample


@dataclass(frozen=True)
class Blob:
    """Bytes that the server holds, under their SHA-256. `xet_hash` is their name in the Xet protocol."""

    sha256: str
    size: int
    xet_hash: str
    path: Path

    def read(self) -> bytes:
        return self.path.read_bytes()


class Blobs:
    """Content-addressed files in one folder, found by SHA-256 or by Xet hash."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._by_sha256: dict[str, Blob] = {}
        self._by_xet_hash: dict[str, Blob] = {}

    def get(self, sha256: str) -> Blob | None:
        return self._by_sha256.get(sha256)

    def by_xet_hash(self, xet_hash: str) -> Blob | None:
        return self._by_xet_hash.get(xet_hash)

    def add(self, data: bytes) -> Blob:
        with self.scratch() as path:
            path.write_bytes(data)
            return self.take(path)

    def add_copy(self, source: Path) -> Blob:
        with self.scratch() as path:
            shutil.copyfile(source, path)
            return self.take(path)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A path to write a new blob to, before it is known what it is called."""
        path = self._folder / f".{uuid.uuid4().hex}"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def take(self, path: Path) -> Blob:
        """Make a file that was written to a `scratch` path a blob."""
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if known := self._by_sha256.get(sha256):
            return known
        xet_hash = hf_xet.hash_files([str(path)])[0].hash
        blob = Blob(sha256, path.stat().st_size, xet_hash, self._folder / sha256)
        path.replace(blob.path)
        self._by_sha256[sha256] = self._by_xet_hash[xet_hash] = blob
        return blob


@dataclass(frozen=True)
class File:
    """A blob at a place in a repository. Git sees an LFS file as its pointer."""

    blob: Blob
    lfs: bool

    @property
    def pointer(self) -> bytes:
        version = "version https://git-lfs.github.com/spec/v1"
        return f"{version}\noid sha256:{self.blob.sha256}\nsize {self.blob.size}\n".encode()

    @property
    def oid(self) -> str:
        return git_oid(self.pointer if self.lfs else self.blob.read())

    @property
    def etag(self) -> str:
        return self.blob.sha256 if self.lfs else self.oid


Tree = dict[str, File]


@dataclass(frozen=True)
class Commit:
    sha: str
    parent: str | None
    title: str
    message: str
    author: str
    time: float
    files: Tree


@dataclass
class Repo:
    """A git repository as far as the Hub's API shows one."""

    id: str
    type: RepoType
    private: bool = False
    gated: Gated = False
    granted: set[str] = field(default_factory=set)  # who may read it although it is gated
    created: float = field(default_factory=time.time)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pull_requests: dict[str, str] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        return self.id.split("/")[0]

    @property
    def head(self) -> Commit:
        return self.commits[self.branches["main"]]

    def at(self, revision: str) -> Commit:
        """The commit that a branch, tag, pull request reference or (abbreviated) sha stands for."""
        references = {**self.pull_requests, **self.tags, **self.branches}
        sha = references.get(revision.removeprefix("refs/heads/"), revision)
        if commit := self.commits.get(sha):
            return commit
        if re.fullmatch(r"[0-9a-f]{7,39}", sha):
            for full, commit in self.commits.items():
                if full.startswith(sha):
                    return commit
        raise errors.revision_not_found(revision)

    def history(self, revision: str) -> list[Commit]:
        """The commits up to a revision, newest first."""
        commits = [self.at(revision)]
        while commits[-1].parent:
            commits.append(self.commits[commits[-1].parent])
        return commits

    def add_commit(self, files: Tree, *, title: str, message: str = "", author: str, parent: str | None) -> Commit:
        """Record a commit; moving a branch to it is up to the caller."""
        now = time.time()
        content = "\n".join(f"{path} {file.blob.sha256}" for path, file in sorted(files.items()))
        sha = hashlib.sha1(f"{parent}\n{now}\n{title}\n{content}".encode()).hexdigest()
        commit = Commit(sha, parent, title, message, author, now, dict(files))
        self.commits[sha] = commit
        return commit


@dataclass(frozen=True)
class BucketFile:
    blob: Blob
    mtime: float
    uploaded: float = field(default_factory=time.time)


@dataclass
class Bucket:
    """Files without history; changed in place."""

    id: str
    private: bool = False
    created: float = field(default_factory=time.time)
    files: dict[str, BucketFile] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        return self.id.split("/")[0]


class Store:
    """Everything on the server that outlives a request, below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = Blobs(root / "blobs")
        self.repos: dict[tuple[str, str], Repo] = {}  # by type and id
        self.buckets: dict[str, Bucket] = {}
        self.lock = threading.RLock()  # held while a commit or a bucket batch is applied

    def create_repo(self, repo_type: RepoType, repo_id: str, *, private: bool = False, gated: Gated = False) -> Repo:
        """A new repository with the first commit that the Hub makes by itself."""
        repo = Repo(repo_id, repo_type, private, gated)
        attributes = File(self.blobs.add(GITATTRIBUTES), lfs=False)
        first = repo.add_commit({".gitattributes": attributes}, title="initial commit", author=repo.namespace, parent=None)
        repo.branches["main"] = first.sha
        self.repos[repo_type, repo_id] = repo
        return repo

    def commit_folder(self, repo: Repo, folder: Path, *, title: str = "Upload folder") -> Commit:
        """Commit a local folder's files to `main`, on top of what is there."""
        files = dict(repo.head.files)
        for name, path in walk(folder):
            with path.open("rb") as file:
                lfs = wants_lfs(name, path.stat().st_size, file.read(512))
            files[name] = File(self.blobs.add_copy(path), lfs)
        commit = repo.add_commit(files, title=title, author=repo.namespace, parent=repo.head.sha)
        repo.branches["main"] = commit.sha
        return commit

    def create_bucket(self, bucket_id: str, *, private: bool = False) -> Bucket:
        self.buckets[bucket_id] = Bucket(bucket_id, private)
        return self.buckets[bucket_id]

    def find(self, source_type: str, source: str) -> Repo | Bucket | None:
        """A repository, or with the type `bucket` a bucket."""
        return self.buckets.get(source) if source_type == "bucket" else self.repos.get((source_type, source))

    def blobs_of(self, source_type: str, source: str, revision: str = "main") -> dict[str, Blob]:
        """The content of a repository or bucket, by path."""
        found = self.find(source_type, source)
        if found is None:
            raise KeyError(f"There is no {source_type} {source}")
        files = found.files if isinstance(found, Bucket) else found.at(revision).files
        return {path: file.blob for path, file in files.items()}


def walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """All files below a folder, by their `/`-separated relative name."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path
