"""The content-addressed store (CAS) that hf-xet talks to.

An upload comes as *xorbs* (runs of compressed chunks) and then a *shard* (binary records that say
which chunks of which xorbs make up which file). The files are put together at once and kept as
ordinary blobs, so plain HTTP serves them too. A download is answered the other way round: the blob
is cut into chunks of one fixed size, and the client is told where to fetch them.

Formats: https://huggingface.co/docs/xet
"""

import hashlib
import secrets
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import lz4.frame
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .errors import HubError
from .store import Blob, Blobs

TOKEN_LIFETIME = 3600  # seconds

# An uploaded xorb: chunks of [version u8, compressed size u24, scheme u8, size u24] and data.
CHUNK_HEADER = struct.Struct("<B3sB3s")
SCHEME_NONE, SCHEME_LZ4, SCHEME_GROUPED_LZ4 = range(3)

# A shard: a header, then records of 48 bytes.
SHARD_HEADER_SIZE = 48
RECORD = struct.Struct("<32s4I")
FILE_HAS_VERIFICATION = 1 << 31
FILE_HAS_METADATA = 1 << 30
BOOKEND = b"\xff" * 32

# What is served: blobs in chunks of this size (the protocol allows up to twice that), and at most
# so many of them in one xorb.
SERVED_CHUNK_SIZE = 64 * 1024
SERVED_CHUNKS_PER_XORB = 512
SERVED_FRAME_SIZE = CHUNK_HEADER.size + SERVED_CHUNK_SIZE


@dataclass(frozen=True)
class Term:
    """A run of chunks, `start` to `end` (exclusive), of one xorb."""

    xorb: str
    start: int
    end: int


@dataclass(frozen=True)
class ShardFile:
    """A file as a shard describes it. Buckets leave the SHA-256 out."""

    xet_hash: str
    terms: list[Term]
    sha256: str | None


def hash_text(raw: bytes) -> str:
    """A Xet hash as text: four little-endian 64-bit numbers in hexadecimal."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", raw))


def parse_shard(data: bytes) -> Iterator[ShardFile]:
    """The files in a shard. The list of xorbs that follows them is of no use here."""
    position = SHARD_HEADER_SIZE

    def records(count: int) -> Iterator[tuple]:
        nonlocal position
        for _ in range(count):
            yield RECORD.unpack_from(data, position)
            position += RECORD.size

    while True:
        [(file_hash, flags, count, *_)] = records(1)
        if file_hash == BOOKEND:
            return
        terms = [Term(hash_text(xorb), start, end) for xorb, _, _, start, end in records(count)]
        if flags & FILE_HAS_VERIFICATION:
            list(records(count))
        sha256 = None
        if flags & FILE_HAS_METADATA:
            [(raw, *_)] = records(1)
            sha256 = hash_text(raw)
        yield ShardFile(hash_text(file_hash), terms, sha256)


def decompress(scheme: int, data: bytes) -> bytes:
    if scheme == SCHEME_NONE:
        return data
    data = lz4.frame.decompress(data)
    return ungroup(data) if scheme == SCHEME_GROUPED_LZ4 else data


def ungroup(data: bytes) -> bytes:
    """Undo byte grouping: first every 1st of 4 bytes, then every 2nd, and so on."""
    result = bytearray(len(data))
    position = 0
    for offset in range(4):
        size = len(result[offset::4])
        result[offset::4] = data[position : position + size]
        position += size
    return bytes(result)


def parse_xorb(data: bytes) -> list[bytes]:
    """The chunks of a xorb. A footer may follow them; it does not start with version 0."""
    chunks = []
    position = 0
    while position < len(data) and data[position] == 0:
        _, packed, scheme, size = CHUNK_HEADER.unpack_from(data, position)
        start = position + CHUNK_HEADER.size
        position = start + int.from_bytes(packed, "little")
        chunk = decompress(scheme, data[start:position])
        if len(chunk) != int.from_bytes(size, "little"):
            raise HubError(400, "Xorb chunk is corrupt")
        chunks.append(chunk)
    return chunks


def served_xorb(blob: Blob, index: int) -> bytes:
    """The `index`th piece of a blob, uncompressed, in the form of a xorb."""
    with blob.path.open("rb") as file:
        file.seek(index * SERVED_CHUNKS_PER_XORB * SERVED_CHUNK_SIZE)
        content = file.read(SERVED_CHUNKS_PER_XORB * SERVED_CHUNK_SIZE)
    result = bytearray()
    for start in range(0, len(content), SERVED_CHUNK_SIZE):
        chunk = content[start : start + SERVED_CHUNK_SIZE]
        size = len(chunk).to_bytes(3, "little")
        result += CHUNK_HEADER.pack(0, size, SCHEME_NONE, size) + chunk
    return bytes(result)


def reconstruction(blob: Blob, start: int, end: int, base_url: str) -> dict:
    """Where to fetch bytes `start` to `end` (exclusive) of a blob."""
    first, last = start // SERVED_CHUNK_SIZE, (end - 1) // SERVED_CHUNK_SIZE
    terms, fetch_info = [], {}
    for index in range(first // SERVED_CHUNKS_PER_XORB, last // SERVED_CHUNKS_PER_XORB + 1):
        offset = index * SERVED_CHUNKS_PER_XORB
        begin = max(first, offset)
        stop = min(last + 1, offset + SERVED_CHUNKS_PER_XORB)
        length = min(stop * SERVED_CHUNK_SIZE, blob.size) - begin * SERVED_CHUNK_SIZE
        name = hashlib.sha256(f"{blob.xet_hash}/{index}".encode()).hexdigest()
        chunks = {"start": begin - offset, "end": stop - offset}
        from_byte = chunks["start"] * SERVED_FRAME_SIZE
        to_byte = from_byte + length + (stop - begin) * CHUNK_HEADER.size - 1
        terms.append({"hash": name, "unpacked_length": length, "range": chunks})
        url = f"{base_url}/data/{blob.xet_hash}/{index}"
        fetch_info[name] = [{"range": chunks, "url": url, "url_range": {"start": from_byte, "end": to_byte}}]
    return {"offset_into_first_range": start - first * SERVED_CHUNK_SIZE, "terms": terms, "fetch_info": fetch_info}


def byte_range(header: str | None, size: int) -> tuple[int, int]:
    """The half-open range that a `Range` header asks for, within `size` bytes."""
    if header is None:
        return 0, size
    first, _, last = header.removeprefix("bytes=").partition("-")
    start, end = int(first), min(int(last) + 1, size) if last else size
    if start >= size:
        raise HubError(416, "Range not satisfiable")
    return start, end


class Cas:
    """Uploaded xorbs on disk, and the tokens that the Hub handed out for this store."""

    def __init__(self, blobs: Blobs, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._blobs = blobs
        self._tokens: dict[str, str] = {}
        self._chunks = lru_cache(maxsize=2)(self._read_chunks)

    def token(self, scope: str, cas_url: str) -> Response:
        """The Hub's answer to `xet-read-token` and `xet-write-token`: once for Python, once for Rust."""
        token = f"xet-{scope}-{secrets.token_hex(16)}"
        self._tokens[token] = scope
        expires = int(time.time()) + TOKEN_LIFETIME
        headers = {"X-Xet-Cas-Url": cas_url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(expires)}
        return JSONResponse({"casUrl": cas_url, "accessToken": token, "exp": expires}, headers=headers)

    def check(self, request: Request, scope: str) -> None:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        granted = self._tokens.get(token)
        if granted is None:
            raise HubError(401, "Unknown Xet token")
        if scope == "write" and granted != "write":
            raise HubError(403, "The Xet token is for reading only")

    def put_xorb(self, name: str, data: bytes) -> bool:
        """Keep a xorb; False when it was there."""
        path = self._folder / name
        if path.exists():
            return False
        parse_xorb(data)
        path.write_bytes(data)
        return True

    def put_shard(self, data: bytes) -> None:
        """Put the files of a shard together."""
        for file in parse_shard(data):
            with self._blobs.scratch() as path:
                with path.open("wb") as output:
                    for term in file.terms:
                        output.writelines(self._chunks(term.xorb)[term.start : term.end])
                blob = self._blobs.take(path)
            if blob.xet_hash != file.xet_hash or file.sha256 not in (None, blob.sha256):
                raise HubError(400, f"The shard describes file {file.xet_hash} wrongly")

    def blob(self, xet_hash: str) -> Blob:
        blob = self._blobs.by_xet_hash(xet_hash)
        if blob is None:
            raise HubError(404, "Unknown file")
        return blob

    def _read_chunks(self, xorb: str) -> list[bytes]:
        path = self._folder / xorb
        if not path.exists():
            raise HubError(400, f"Unknown xorb {xorb}")
        return parse_xorb(path.read_bytes())


def upload_xorb(request: Request) -> Response:
    cas: Cas = request.app.state.hub.cas
    cas.check(request, "write")
    return JSONResponse({"was_inserted": cas.put_xorb(request.path_params["name"], request.state.body)})


def upload_shard(request: Request) -> Response:
    cas: Cas = request.app.state.hub.cas
    cas.check(request, "write")
    cas.put_shard(request.state.body)
    return JSONResponse({"result": 1})


def get_reconstruction(request: Request) -> Response:
    hub = request.app.state.hub
    hub.cas.check(request, "read")
    blob = hub.cas.blob(request.path_params["name"])
    start, end = byte_range(request.headers.get("range"), blob.size)
    return JSONResponse(reconstruction(blob, start, end, hub.cas_url))


def get_data(request: Request) -> Response:
    """The bytes themselves; the real URLs are signed instead of carrying a token."""
    blob = request.app.state.hub.cas.blob(request.path_params["name"])
    xorb = served_xorb(blob, request.path_params["index"])
    start, end = byte_range(request.headers.get("range"), len(xorb))
    headers = {"Content-Range": f"bytes {start}-{end - 1}/{len(xorb)}"}
    return Response(xorb[start:end], 206, headers, media_type="application/octet-stream")


def unknown_chunk(request: Request) -> Response:
    """Global deduplication knows nothing, so every client uploads what it does not know by itself."""
    raise HubError(404, "Chunk not found")


routes = [
    Route("/v1/xorbs/default/{name}", upload_xorb, methods=["POST"]),
    Route("/v1/shards", upload_shard, methods=["POST"]),
    Route("/v1/reconstructions/{name}", get_reconstruction),
    Route("/v1/chunks/{prefix}/{name}", unknown_chunk),
    Route("/data/{name}/{index:int}", get_data),
]
